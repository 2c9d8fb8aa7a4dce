"""What each part of an adapter adds: cooperative games played by a study's adapters.

``players`` says who plays and which coalitions become trials, ``masks`` reads coalitions off a trained adapter, ``one_run``
trains one that can be read so, ``maps`` does both for every seed of a study, ``document`` is what people read. Three games
are kept apart by name: *usefulness* (each coalition retrained), *reliance* (players masked out of one trained adapter) and
*one_run* (one training with random coalitions). Floor: above ``cohort``.
"""
