"""What trained adapters have become: the documents and pictures of ``lorascope inspect``.

``updates`` reads adapters and gives every update its figures, ``overlap`` compares adapters module by module, ``drift``
compares hidden states on real inputs, ``figures`` says what the figures are called and lays them out, ``pictures`` draws.
Floor: beside ``design``, ``attribution`` and ``compare``.
"""
