"""Honest comparison of a study's configurations.

``study`` says which are compared and what the outcome means, ``scores`` turns predictions into scores of examples, ``paired``
measures one difference over seeds and how sure it is; ``examples`` compares two versions of one adapter, or two trained ones,
``proportions`` where each example is right or wrong; ``intervals`` says how sure one score is. Floor: ``compare``, above
``cohort``.
"""

from lorascope.compare.examples import OverExamples, difference_over_examples, loss_over_examples
from lorascope.compare.intervals import Interval, score_interval, seeds_interval
from lorascope.compare.paired import FEWEST_SEEDS, Difference, paired_difference
from lorascope.compare.scores import read_ratios
from lorascope.compare.study import comparisons, is_adapter, primary_metric

__all__ = [
    "FEWEST_SEEDS",
    "Difference",
    "Interval",
    "OverExamples",
    "comparisons",
    "difference_over_examples",
    "is_adapter",
    "loss_over_examples",
    "paired_difference",
    "primary_metric",
    "read_ratios",
    "score_interval",
    "seeds_interval",
]
