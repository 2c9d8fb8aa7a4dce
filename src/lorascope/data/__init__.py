"""Datasets, from files and hub rows to token ids and batches.

``record`` holds the types, ``source`` finds the data, ``table`` reads file formats, ``glue``, ``squad`` and ``files``
turn rows into records, ``prompt`` turns records into token ids (``conversation`` and ``chat`` write the text,
``truncation`` shortens it, ``tokens`` asks the tokenizer), ``task`` ties these together, and ``packing`` forms batches.
Floor: imports ``config`` and ``errors`` only.
"""
