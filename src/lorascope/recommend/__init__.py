"""Which configuration to begin with, why, and what would change the answer.

``rules`` is the table of rules of thumb; ``closeness`` orders studies by how near they are; ``evidence`` says what one study
chose and how sure that is; ``advice`` puts them together, own evidence first; ``memory`` makes it fit; ``study_file`` writes
it down. All of it works on plain documents: no torch, no stores, no verdicts of its own (those are ``compare``'s, as
``lorascope results`` prints them). Floor: ``recommend``.
"""
