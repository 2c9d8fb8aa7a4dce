"""Lorascope: a laboratory for LoRA configurations."""

__version__ = "0.1.0"
