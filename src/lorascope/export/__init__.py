"""A trained adapter, ready to leave the study: chosen, described, and written for PEFT, transformers and vLLM.

``source`` finds what is meant, ``best`` chooses among trials, ``described`` gathers what the card says and ``limits`` what it
cannot say, ``adapter`` and ``merged`` write directories, ``vllm`` knows what keeps vLLM from loading them. Floor: ``export``,
above ``compare`` and ``certify``.
"""

from lorascope.export.adapter import write_adapter_directory
from lorascope.export.best import Choice, best_trial
from lorascope.export.described import Wishes, described
from lorascope.export.source import Source, find_source

__all__ = [
    "Choice",
    "Source",
    "Wishes",
    "best_trial",
    "described",
    "find_source",
    "write_adapter_directory",
]
