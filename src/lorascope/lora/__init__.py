"""N LoRA adapters on one frozen base.

``targets`` finds modules, ``layer`` computes, ``parameters`` holds every slot's numbers, ``stack`` puts the adapters into a
model and takes them out again, ``streams`` is where randomness comes from, ``peft_io`` reads and writes PEFT's format.
"""
