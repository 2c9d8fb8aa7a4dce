"""Honest comparison of a study's configurations.

``study`` says which are compared and what the outcome means, ``scores`` turns predictions into scores of examples, ``paired``
measures one difference and how sure it is; ``examples`` compares two versions of one adapter. Floor: ``compare``, above
``cohort``.
"""

from lorascope.compare.examples import OverExamples, difference_over_examples
from lorascope.compare.paired import FEWEST_SEEDS, Difference, paired_difference
from lorascope.compare.study import comparisons, is_adapter, primary_metric

__all__ = [
    "FEWEST_SEEDS",
    "Difference",
    "OverExamples",
    "comparisons",
    "difference_over_examples",
    "is_adapter",
    "paired_difference",
    "primary_metric",
]
