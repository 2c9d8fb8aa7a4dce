"""The merge certificate: whether a merged model is its base plus its adapter, and nothing else.

``claim`` is what is checked; ``checkpoint`` reads model files, ``update`` an adapter's, ``tensors`` compares them;
``inputs``, ``logits`` and ``outputs`` compare what the models answer; ``checks`` judges, ``certificate`` puts it together.
Floor: above ``evaluate``. The code that merges is not used here, so that an error in it cannot cancel out.
"""

from lorascope.certify.certificate import CERTIFICATE_FILE, Certificate, certificate_text, certify
from lorascope.certify.claim import MergeClaim, why_tensors_only

__all__ = ["CERTIFICATE_FILE", "Certificate", "MergeClaim", "certificate_text", "certify", "why_tensors_only"]
