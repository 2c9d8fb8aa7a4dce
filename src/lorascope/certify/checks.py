"""What has to hold of a merge, and whether it does: figures against tolerances that scale with the adapter's effect.

An absolute tolerance passes a merge that did nothing when the adapter is small. So each weight's error is measured by the size
of its own update, each rounding by what the merged dtype rounds, and each divergence by what the unmerged adapter in that
dtype already has.

Floor: ``certify``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorascope.certify.outputs import (
    IN_MEMORY,
    MOST_RELATIVE_FLOAT32,
    QUANTISED,
    RELOADED,
    UNMERGED,
    UNMERGED_FLOAT64,
    UNMERGED_QUANTISED,
    Compared,
    Outputs,
)
from lorascope.certify.tensors import ModuleFigures, TensorFigures

Verdict = Literal["holds", "warning", "fails", "not judged"]
# ‖W′ − W − ΔW‖ / ‖ΔW‖ of one module.
WARN_RATIO, FAIL_RATIO = 0.3, 0.9
# KL(float32 ‖ merged) ≤ factor · KL(float32 ‖ unmerged in that dtype) + slack, in nats.
KL_FACTOR, KL_SLACK = 2.0, 1e-6
# Where float32 itself costs more than MOST_RELATIVE_FLOAT32, so many times what it costs the unmerged adapter.
FLOAT32_FACTOR = 4.0
# The same weights, once in memory and once from the disk; kernels may add in another order.
_MOST_RELATIVE_RELOADED = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 2e-2, "float16": 2e-3}
# Keys of config.json that a merge may change; what ties and labels say is judged apart.
_MAY_DIFFER = {
    "_name_or_path", "architectures", "decoder_start_token_id", "dtype", "id2label", "label2id", "num_labels", "pad_token_id",
    "problem_type", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
_FIRST_FEW = 3


@dataclass(frozen=True)
class Check:
    """One thing that has to hold.

    Attributes:
        says: what was found, a sentence.
        value, tolerance: the figure that decided and what it may be at most; None where it is no figure.
    """

    name: str
    verdict: Verdict
    says: str
    value: float | None = None
    tolerance: float | None = None


def adapter_checks(problems: Sequence[str], figures: TensorFigures) -> list[Check]:
    """The adapter's own files, and that everything in them has a place in the base."""
    homeless = figures.homeless
    total = figures.num_placed
    if homeless:
        what = f"{len(homeless)} of the adapter's tensors match nothing in the base: {_few(homeless)}"
        place = Check("adapter-fits", "fails", what)
    elif not total:
        place = Check("adapter-fits", "fails", "no module of the adapter was found in the base")
    else:
        place = Check("adapter-fits", "holds", f"{_count(total, 'module')}, each found in the base")
    whole = Check("adapter-whole", "holds", "its files are readable and finite")
    return [Check("adapter-whole", "fails", _few(problems)) if problems else whole, place]


def tensor_checks(figures: TensorFigures, problems: Sequence[str], dtype: str) -> list[Check]:
    """The merged files against the base's and the adapter's."""
    nonfinite = [f"{name} ({count})" for name, count in figures.nonfinite.items()]
    overflowing = [one.module for one in figures.modules if one.overflows]
    hint = f"; {dtype} cannot hold the sum in {_few(overflowing)}" if overflowing else ""
    present = [*problems, *figures.misfits]
    if figures.absent:
        present.append(
            f"{_count(len(figures.absent), 'tensor')} missing, which loaders fill with random numbers: {_few(figures.absent)}"
        )
    differing = [f"{name} ({count} numbers are not those of {whose})" for name, count, whose in figures.differing]
    return [
        _none_of("tensors-present", present, "every tensor of the model is in the files, with its shape"),
        _none_of("tensors-finite", [_few(nonfinite) + hint] if nonfinite else [], "no NaN and no infinite number"),
        _none_of(
            "dtype", [f"{count} numbers are in {name}" for name, count in figures.strays.items()], f"as asked for: {dtype}"
        ),
        _none_of("base-unchanged", differing, f"{_count(figures.num_equal, 'tensor')} without an update equal the base's"),
        _tie_check(figures),
        *_update_checks(figures.modules, dtype),
    ]


def _tie_check(figures: TensorFigures) -> Check:
    if figures.tied:
        return Check("tied-embeddings", "fails", _few(figures.tied))
    if figures.untied:
        return Check("tied-embeddings", "warning", f"{_few(figures.untied)}, though equal: memory is used twice")
    return Check("tied-embeddings", "holds", "tied as in the base")


def _update_checks(modules: Sequence[ModuleFigures], dtype: str) -> list[Check]:
    """Whether each update arrived, and whether anything but rounding came with it."""
    zero = [one.module for one in modules if one.update_norm == 0.0]
    judged = {one.module: one.ratio for one in modules if one.ratio is not None}
    beyond = {one.module: one.rounding for one in modules if one.rounding > 1.0}
    checks = []
    if modules and len(zero) == len(modules):
        checks.append(Check("update-arrived", "warning", "the adapter adds nothing anywhere: its B are zero"))
    elif judged:
        worst = max(judged, key=lambda module: judged[module])
        lost = [module for module, ratio in judged.items() if ratio > FAIL_RATIO]
        blurred = [module for module, ratio in judged.items() if WARN_RATIO < ratio <= FAIL_RATIO]
        only_rounding = bool(lost) and not beyond
        if only_rounding:
            says = f"{dtype} is too coarse for the update of {_few(lost)}: rounding takes it; merge in a finer dtype"
        elif lost:
            says = f"the update is not in the weights of {_few(lost)}"
        elif blurred:
            says = f"in {len(blurred)} of {len(judged)} modules rounding blurs the update: {_few(blurred)}"
        else:
            says = f"in every module ‖W′−W−Δ‖ is a small part of ‖Δ‖; the largest in {worst}"
        verdict: Verdict = "fails" if lost else "warning" if blurred else "holds"
        checks.append(Check("update-arrived", verdict, says, judged[worst], FAIL_RATIO))
    if judged or beyond:
        largest = max((one.rounding for one in modules), default=0.0)
        says = f"more than {dtype}'s rounding separates W′ from W+Δ in {_few(list(beyond))}"
        fine = f"nothing but {dtype}'s rounding separates W′ from W+Δ"
        checks.append(Check("only-rounding", "fails" if beyond else "holds", says if beyond else fine, largest, 1.0))
    return checks


def output_checks(outputs: Outputs, dtype: str) -> list[Check]:
    """What the models answer."""
    if outputs.unloadable is not None:
        return [Check("loads", "fails", f"the merged model cannot be loaded and run: {outputs.unloadable}")]
    if outputs.new_parameters:
        what = f"a loader has to make up {_count(len(outputs.new_parameters), 'tensor')}: {_few(outputs.new_parameters)}"
        return [Check("loads", "fails", what)]
    checks = [Check("loads", "holds", "transformers loads and runs it from its directory alone")]
    bad = [row for row in outputs.rows if row.difference.nonfinite]
    if bad:
        says = "; ".join(f"{row.name}: {row.difference.nonfinite} logits are NaN or infinite" for row in bad)
        return [*checks, Check("logits-finite", "fails", says)]
    unmerged = outputs.find(UNMERGED)
    for name in (RELOADED, IN_MEMORY):
        row = outputs.find(name)
        if row is None:
            continue
        checks.append(_kl_check(row, unmerged))
        if dtype in ("float32", "float64"):
            value = _value(row.difference.relative_difference)
            tolerance, why = _relative_tolerance(outputs)
            verdict: Verdict = "holds" if value <= tolerance else "fails"
            says = f"logits differ from the adapter's by {value:.1e} (relative){why}"
            checks.append(Check(f"relative-difference ({name})", verdict, says, value, tolerance))
    again = outputs.find(RELOADED, IN_MEMORY)
    if again is not None:
        value, tolerance = _value(again.difference.relative_difference), _MOST_RELATIVE_RELOADED[dtype]
        says = f"from the disk, logits differ from those in memory by {value:.1e} (relative)"
        checks.append(Check("reloaded-equals-memory", "holds" if value <= tolerance else "fails", says, value, tolerance))
    packed = outputs.find(QUANTISED)
    if packed is not None:
        checks.append(_kl_check(packed, outputs.find(UNMERGED_QUANTISED)))
    return [*checks, *_score_checks(outputs)]


def _relative_tolerance(outputs: Outputs) -> tuple[float, str]:
    """How far float32 logits may be apart, and why that is more than usual."""
    exact = outputs.find(UNMERGED_FLOAT64)
    own = 0.0 if exact is None else exact.difference.relative_difference or 0.0
    if FLOAT32_FACTOR * own <= MOST_RELATIVE_FLOAT32:
        return MOST_RELATIVE_FLOAT32, ""
    return FLOAT32_FACTOR * own, f"; float32 alone, unmerged, by {own:.1e} from float64"


def _kl_check(row: Compared, unmerged: Compared | None) -> Check:
    """The divergence from the adapter in float32, against what the unmerged adapter in the same dtype has."""
    value = _value(row.difference.kl)
    own = 0.0 if unmerged is None else _value(unmerged.difference.kl)
    tolerance = KL_FACTOR * own + KL_SLACK
    beside = "" if unmerged is None else f", unmerged {own:.1e}"
    says = f"KL {value:.1e} from the adapter in float32{beside}"
    return Check(f"kl ({row.name})", "holds" if value <= tolerance else "fails", says, value, tolerance)


def _score_checks(outputs: Outputs) -> list[Check]:
    """A score that moves by more than one example, and more than it does unmerged: worth a look, no proof of a fault."""
    task, row, unmerged = outputs.inputs.task, outputs.find(RELOADED), outputs.find(UNMERGED)
    if task is None or row is None or not outputs.scores:
        return []
    one_example = 1.0 / max(1, len(task.eval))
    moved = []
    for name in task.metric_names:
        if name not in outputs.scores or name not in row.scores:
            continue
        own = abs(unmerged.scores.get(name, 0.0) - outputs.scores[name]) if unmerged is not None and unmerged.scores else 0.0
        if abs(row.scores[name] - outputs.scores[name]) > own + one_example + 1e-9:
            moved.append(f"{name} {outputs.scores[name]:.4f} became {row.scores[name]:.4f}")
    return [Check("score", "warning" if moved else "holds", _few(moved) if moved else "the task's score stays what it was")]


def effect_check(outputs: Outputs, effect: Compared) -> Check:
    """Whether the inputs see the adapter at all: what they do not see, they cannot miss."""
    figures = effect.difference
    if figures.nonfinite or figures.relative_difference is None:
        return Check("adapter-has-effect", "fails", "the base's logits are NaN or infinite")
    relative, kl, moved = figures.relative_difference, _value(figures.kl), 1.0 - _value(figures.top1_agreement)
    says = f"it moves logits by {relative:.1e} (relative), KL {kl:.1e}, {moved:.1%} of the likeliest answers"
    unmerged = outputs.find(UNMERGED)
    noise = MOST_RELATIVE_FLOAT32
    if unmerged is not None:
        noise = max(noise, unmerged.difference.relative_difference or 0.0)
    if relative > noise:
        return Check("adapter-has-effect", "holds", says, relative)
    says += f"; rounding alone moves them by {noise:.1e}, so outputs show little, and the tensors decide"
    return Check("adapter-has-effect", "warning", says, relative)


def configuration_check(base: Mapping[str, Any], merged: Mapping[str, Any], dtype: str) -> Check:
    """config.json, beyond what a merge may change; the dtype in which others will load it."""
    keys = sorted((set(base) | set(merged)) - _MAY_DIFFER)
    differing = [
        f"{key} is {_short(merged.get(key))}, {_short(base.get(key))} in the base"
        for key in keys
        if _plain(base.get(key)) != _plain(merged.get(key))
    ]
    declared = str(merged.get("dtype") or merged.get("torch_dtype") or "").removeprefix("torch.")
    if declared and declared != dtype:
        differing.append(f"dtype is {declared}, the weights are in {dtype}")
    return _none_of("configuration", differing, "config.json is the base's, but for what the adapter changes")


def labels_check(labels: Sequence[str], merged: Mapping[str, Any]) -> Check | None:
    """A classifier's class names in order; None where the adapter does not tell them."""
    if not labels:
        return None
    named = [name for _, name in sorted((int(number), str(name)) for number, name in (merged.get("id2label") or {}).items())]
    if named == list(labels):
        return Check("labels", "holds", f"classes in order: {', '.join(labels)}")
    return Check("labels", "fails", f"the classes are {', '.join(named)}; the adapter's are {', '.join(labels)}")


def revision_check(adapter: Mapping[str, Any], model: str, revision: str | None, local: bool) -> Check:
    """The revision of the base that the adapter was trained on, against the one it was merged into."""
    trained = adapter.get("revision")
    if trained is None:
        return Check("base-revision", "not judged", "the adapter names no revision of its base")
    named = adapter.get("base_model_name_or_path")
    if local or named != model:
        what = "a directory does not tell its own" if local else f"that is of {named}, and {model} was given"
        return Check("base-revision", "not judged", f"the adapter names revision {trained}; {what}")
    if str(trained) == str(revision):
        return Check("base-revision", "holds", f"{model} at {revision}")
    return Check("base-revision", "fails", f"trained on {model} at {trained}, merged into {revision or 'the newest'}")


def base_check(recorded: str | None, found: str | None, why_not: str) -> Check:
    """The checksum of the base that the adapter was trained on, against that of the base it was merged into."""
    if recorded is None or found is None:
        return Check("base-checksum", "not judged", why_not)
    if recorded == found:
        return Check("base-checksum", "holds", "the base's weights are those that the adapter was trained on")
    return Check("base-checksum", "fails", f"the adapter was trained on other weights ({recorded[:12]}, here {found[:12]})")


def _none_of(name: str, problems: Sequence[str], fine: str) -> Check:
    return Check(name, "fails", _few(problems)) if problems else Check(name, "holds", fine)


def _few(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_FIRST_FEW])
    return shown if len(names) <= _FIRST_FEW else f"{shown} and {len(names) - _FIRST_FEW} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _value(figure: float | None) -> float:
    return float("inf") if figure is None else figure


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
