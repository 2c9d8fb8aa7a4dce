"""Trials trained together.

``run`` carries a study out, ``probe`` measures one configuration alone, ``single`` evaluates one adapter from disk, ``script``
writes a trial as a standalone PEFT + Trainer program. Floor: ``cohort``.
"""
