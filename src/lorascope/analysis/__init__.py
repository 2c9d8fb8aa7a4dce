"""What trained adapters have become: the documents and pictures of ``lorascope inspect``.

``updates`` reads adapters and gives every update its figures, ``overlap`` compares adapters module by module, ``drift``
compares hidden states on real inputs, ``pictures`` draws. Floor: beside ``design``, ``attribution`` and ``compare``.
"""

from lorascope.analysis.overlap import overlap_document
from lorascope.analysis.updates import Inspected, adapter_document, read_adapters

__all__ = ["Inspected", "adapter_document", "overlap_document", "read_adapters"]
