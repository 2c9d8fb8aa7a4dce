"""A study's directory.

``database`` is the store itself, one SQLite file; ``files`` writes whole files or nothing; ``results`` is what people read.
"""

from lorascope.store.database import DATABASE, STATUSES, Store, TrialRow
from lorascope.store.files import CERTIFICATE_FILE, atomic_directory, check_new, write_atomically
from lorascope.store.results import by_configuration, merge_results, results_document, strict_json

__all__ = [
    "CERTIFICATE_FILE",
    "DATABASE",
    "STATUSES",
    "Store",
    "TrialRow",
    "atomic_directory",
    "by_configuration",
    "check_new",
    "merge_results",
    "results_document",
    "strict_json",
    "write_atomically",
]
