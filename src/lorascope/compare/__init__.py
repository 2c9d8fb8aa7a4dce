"""Honest comparison of a study's configurations.

``study`` says which are compared and what the outcome means, ``scores`` turns predictions into scores of examples, ``paired``
measures one difference and how sure it is. Floor: ``compare``, above ``cohort``.
"""

from lorascope.compare.paired import FEWEST_SEEDS, Difference, paired_difference
from lorascope.compare.study import comparisons, is_adapter, primary_metric

__all__ = ["FEWEST_SEEDS", "Difference", "comparisons", "is_adapter", "paired_difference", "primary_metric"]
