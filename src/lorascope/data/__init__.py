"""Datasets, from files and hub rows to token ids and batches.

``record`` holds the types, ``source`` finds the data, ``table`` reads file formats. ``glue``, ``nli``, ``squad``,
``dialogue``, ``persona`` and ``files`` turn rows into records, ``prompt`` turns records into token ids (``conversation`` and
``chat`` write the text, ``truncation`` shortens it, ``tokens`` asks the tokenizer), and ``task`` ties these together.
``audit`` says what is wrong with the data (``overlap`` finds what the splits share), ``marking`` shows examples token by
token. ``packing`` forms batches, ``tree`` stores common beginnings once.
Floor: imports ``config`` and ``errors`` only.
"""
