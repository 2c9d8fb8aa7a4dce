"""The merge certificate: whether a merged model is its base plus its adapter, and nothing else.

``claim`` is what is checked, ``beforehand`` what can be known of it before anything is written; ``checkpoint`` reads model
files, ``update`` an adapter's, ``layout`` says which tensor is which, ``tensors`` compares them; ``directory`` looks at what
lies beside; ``inputs``, ``running``, ``logits`` and ``outputs`` compare what the models answer; ``checks`` judges,
``certificate`` puts it together.
Floor: above ``evaluate``. The code that merges is not used here, so that an error in it cannot cancel out.
"""

from lorascope.certify.beforehand import Beforehand, examine
from lorascope.certify.certificate import Certificate, certificate_text, certify, refused
from lorascope.certify.claim import MergeClaim, why_tensors_only

__all__ = [
    "Beforehand",
    "Certificate",
    "MergeClaim",
    "certificate_text",
    "certify",
    "examine",
    "refused",
    "why_tensors_only",
]
