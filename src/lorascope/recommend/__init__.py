"""Which configuration to begin with, why, and what would change the answer.

``rules`` is the table of rules of thumb; ``closeness`` orders studies by how near they are, by the ``facts`` of tasks and
models; ``evidence`` says what one study chose and how sure that is; ``advice`` puts them together, own evidence first;
``section`` says on which data, ``memory`` makes it fit, ``further`` names the studies that would change it, and ``answer`` is
all of it; ``study_file`` writes it down. Costs come from whoever plans, and studies as plain documents: no torch, no stores,
no verdicts of its own (those are ``compare``'s, as ``lorascope results`` prints them). Floor: above ``compare``, ``design``.
"""
