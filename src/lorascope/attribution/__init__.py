"""What each part of an adapter adds: cooperative games played by a study's adapters.

``players`` says who plays and which coalitions become trials, ``one_run`` trains an adapter that serves every coalition,
``maps`` reads coalitions off a trained one for every seed of a study, ``document`` is what people read. Three games are kept
apart by name: *usefulness* (each coalition retrained), *reliance* (players masked out of one trained adapter) and
*one_run* (one training with random coalitions). Floor: above ``cohort``.
"""
