"""What the slots of a stack are worth: ``evaluate`` gives every slot its metrics and one prediction per example.

``run`` leads through it, ``likelihood`` measures losses and ranks candidates, ``answers`` generates and scores texts,
``result`` holds what comes out, ``foreseen`` says beforehand which metrics that has. Floor: above ``train``, ``decode`` and
``judge``.
"""

from lorascope.evaluate.foreseen import check_metrics, foreseen_metrics
from lorascope.evaluate.result import Decoded, Evaluation, EvaluationRun, EvaluationStep, run_to_end
from lorascope.evaluate.run import evaluate

__all__ = [
    "Decoded",
    "Evaluation",
    "EvaluationRun",
    "EvaluationStep",
    "check_metrics",
    "evaluate",
    "foreseen_metrics",
    "run_to_end",
]
