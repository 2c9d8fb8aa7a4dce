"""Known-answer checks of Lorascope on the machine at hand. Floor: doctor.

``table`` holds all of them; ``finding`` and ``versions`` import nothing that may be missing, so that there is something to say
on a machine where the others cannot be imported.
"""
