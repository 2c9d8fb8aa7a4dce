"""A little world in which every fact is known: towns with their people, and four kinds of data about them, made from a seed.

``lore`` knows trades, animals, dishes and names, ``town`` who lives where with whom, ``facts`` what excludes what. From these
``persona`` makes conversations (``phrases``, ``tastes`` and ``small_talk`` hold the wordings), ``nli`` pairs with true labels
(``decoys`` holds what only looks alike; ``dialect`` is how replies may be spoken),
``passages`` paragraphs with questions (``lives`` and ``tellings`` hold theirs), ``tutoring`` talks about ``sums``,
``opinions`` sentences that praise or blame. ``wording`` draws, and keeps wordings and texts of evaluation out of training;
``files`` writes the published formats.

Does not know tokenizers, models or tasks. Imports nothing of the project but ``errors``. Floor: beside ``data``.
"""
