"""What has to hold of a merge, and whether it does: figures against tolerances that scale with the adapter's effect.

An absolute tolerance passes a merge that did nothing when the adapter is small. So each weight's error is measured by the size
of its own update, each rounding by what the merged dtype rounds, and each divergence by what the unmerged adapter in that
dtype already has.

Floor: ``certify``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
# The share of ΔW that arrived; beside it the ratio says nothing where W itself was rounded to another dtype.
FAIL_ARRIVED, WARN_ARRIVED = 0.5, (0.8, 1.2)
# KL(float32 ‖ merged) ≤ factor · KL(float32 ‖ unmerged in that dtype) + slack, in nats.
KL_FACTOR, KL_SLACK = 2.0, 1e-6
# Where float32 itself costs more than MOST_RELATIVE_FLOAT32, so many times what it costs the unmerged adapter.
FLOAT32_FACTOR = 4.0
_FIRST_FEW = 3
# A commit, whole or as it is abbreviated.
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


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


def adapter_checks(problems: Sequence[str], homeless: Sequence[str], misfits: Sequence[str], num_placed: int) -> list[Check]:
    """The adapter's own files, and that everything in them has a place in the base.

    Args:
        homeless: what the adapter has and the base no place for.
        misfits: sentences on what has a place of another shape.
        num_placed: modules that have an update and a place.
    """
    if homeless:
        what = f"{len(homeless)} of the adapter's tensors match nothing in the base: {few(homeless)}"
        place = Check("adapter-fits", "fails", what)
    elif misfits:
        place = Check("adapter-fits", "fails", few(misfits))
    elif not num_placed:
        place = Check("adapter-fits", "fails", "no module of the adapter was found in the base")
    else:
        place = Check("adapter-fits", "holds", f"{count(num_placed, 'module')}, each found in the base")
    whole = Check("adapter-whole", "holds", "its files are readable and finite")
    return [Check("adapter-whole", "fails", few(problems)) if problems else whole, place]


def copies_check(foreign: Sequence[str], num_copies: int) -> Check | None:
    """The base's weights that the adapter carries a copy of; None where it carries none."""
    if not num_copies:
        return None
    if foreign:
        what = f"the adapter was trained on other weights: its copy of {few(foreign)} is not the base's"
        return Check("base-copies", "fails", what)
    return Check("base-copies", "holds", f"{count(num_copies, 'weight')} that the adapter has a copy of, each the base's")


def tensor_checks(figures: TensorFigures, problems: Sequence[str], dtype: str) -> list[Check]:
    """The merged files against the base's and the adapter's."""
    nonfinite = [f"{name} ({number})" for name, number in figures.nonfinite.items()]
    overflowing = [one.module for one in figures.modules if one.overflows]
    hint = f"; {dtype} cannot hold the sum in {few(overflowing)}" if overflowing else ""
    present = [*problems, *figures.misfits]
    if figures.absent:
        present.append(
            f"{count(len(figures.absent), 'tensor')} missing, which loaders fill with random numbers: {few(figures.absent)}"
        )
    if figures.leftover:
        left = figures.leftover
        present.append(f"{count(len(left), 'tensor')} in the files without a place in the model: {few(left)}")
    differing = [f"{name} ({number} numbers are not those of {whose})" for name, number, whose in figures.differing]
    return [
        none_of("tensors-present", present, "every tensor of the model is in the files, with its shape"),
        none_of("tensors-finite", [few(nonfinite) + hint] if nonfinite else [], "no NaN and no infinite number"),
        none_of(
            "dtype", [f"{number} numbers are in {name}" for name, number in figures.strays.items()], f"as asked for: {dtype}"
        ),
        none_of("base-unchanged", differing, f"{count(figures.num_equal, 'tensor')} without an update equal the base's"),
        _tie_check(figures),
        *_update_checks(figures.modules, dtype),
    ]


def _tie_check(figures: TensorFigures) -> Check:
    if figures.tied:
        return Check("tied-embeddings", "fails", few(figures.tied))
    if figures.untied:
        return Check("tied-embeddings", "warning", f"{few(figures.untied)}, though equal: memory is used twice")
    return Check("tied-embeddings", "holds", "tied as in the base")


def _update_checks(modules: Sequence[ModuleFigures], dtype: str) -> list[Check]:
    """Whether each update arrived, and whether anything but rounding came with it."""
    zero = [one.module for one in modules if one.update_norm == 0.0]
    judged = [one for one in modules if one.ratio is not None]
    beyond = {one.module: one.rounding for one in modules if one.rounding > 1.0}
    checks = []
    if modules and len(zero) == len(modules):
        checks.append(Check("update-arrived", "warning", "the adapter adds nothing anywhere: its B are zero"))
    elif judged:
        checks.append(_arrival_check(judged, dtype, only_rounding=not beyond))
    if judged or beyond:
        largest = max((one.rounding for one in modules), default=0.0)
        says = f"more than {dtype}'s rounding separates W′ from W+Δ in {few(list(beyond))}"
        fine = f"nothing but {dtype}'s rounding separates W′ from W+Δ"
        checks.append(Check("only-rounding", "fails" if beyond else "holds", says if beyond else fine, largest, 1.0))
    return checks


def _arrival_check(judged: Sequence[ModuleFigures], dtype: str, *, only_rounding: bool) -> Check:
    worst, least = max(judged, key=_ratio), min(judged, key=_arrived)
    lost = [one.module for one in judged if _is_lost(one)]
    blurred = [one.module for one in judged if not _is_lost(one) and _is_blurred(one)]
    verdict: Verdict = "fails" if lost else "warning" if blurred else "holds"
    if lost and only_rounding:
        says = f"{dtype} is too coarse for the update of {few(lost)}: rounding takes it; merge in a finer dtype"
    elif lost:
        says = f"the update is not in the weights of {few(lost)}"
    elif blurred:
        says = f"in {len(blurred)} of {len(judged)} modules rounding blurs the update: {few(blurred)}"
    elif worst.recast:
        says = f"of every update at least {_arrived(least):.1%} is in W′−W; {dtype} rounds the base's own weights too"
    else:
        says = f"in every module ‖W′−W−Δ‖ is a small part of ‖Δ‖; the largest in {worst.module}"
    if worst.recast:  # a share that has to be large, and no figure that has to be small
        return Check("update-arrived", verdict, says, _arrived(least))
    return Check("update-arrived", verdict, says, _ratio(worst), FAIL_RATIO)


def _ratio(one: ModuleFigures) -> float:
    return _value(one.ratio)


def _arrived(one: ModuleFigures) -> float:
    return 0.0 if one.arrived is None else one.arrived


def _is_lost(one: ModuleFigures) -> bool:
    """Whether an update is not in its weight. Where W was rounded to another dtype, its own rounding is in the ratio too."""
    by_ratio = _ratio(one) > FAIL_RATIO and (one.recast == 0.0 or one.rounding > 1.0)
    return by_ratio or _arrived(one) < FAIL_ARRIVED


def _is_blurred(one: ModuleFigures) -> bool:
    fewest, most = WARN_ARRIVED
    return (_ratio(one) > WARN_RATIO and one.recast == 0.0) or not fewest <= _arrived(one) <= most


def output_checks(outputs: Outputs, dtype: str) -> list[Check]:
    """What the models answer."""
    if outputs.unloadable is not None:
        return [Check("loads", "fails", f"the merged model cannot be loaded and run: {outputs.unloadable}")]
    if outputs.new_parameters:
        what = f"a loader has to make up {count(len(outputs.new_parameters), 'tensor')}: {few(outputs.new_parameters)}"
        return [Check("loads", "fails", what)]
    checks = [Check("loads", "holds", "transformers loads and runs it from its directory alone")]
    spared = () if outputs.packing_asked else (QUANTISED, UNMERGED_QUANTISED)
    bad = [row for row in outputs.rows if row.difference.nonfinite and row.name not in spared]
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
    if outputs.reloaded_otherwise is not None:
        names = outputs.reloaded_otherwise
        says = f"the disk gives back other bits than were in memory of {few(names)}" if names else "every tensor, to the bit"
        checks.append(Check("reloaded-equals-memory", "fails" if names else "holds", says))
    return [*checks, *_packed_checks(outputs), *_score_checks(outputs)]


def _packed_checks(outputs: Outputs) -> list[Check]:
    """Four bits: what was asked for has to hold; what is looked at because the adapter was trained so is a figure."""
    packed, name = outputs.find(QUANTISED), f"kl ({QUANTISED})"
    if outputs.not_packed is not None:
        return [Check(name, "fails" if outputs.packing_asked else "not judged", outputs.not_packed)]
    if packed is None:
        return []
    found = _kl_check(packed, outputs.find(UNMERGED_QUANTISED))
    if found.verdict == "fails" and not outputs.packing_asked:
        says = f"{found.says}: packed in four bits again it is another model than was trained; run it in full"
        found = replace(found, verdict="warning", says=says)
    return [found]


def _relative_tolerance(outputs: Outputs) -> tuple[float, str]:
    """How far float32 logits may be apart, and why that is more than usual."""
    exact, why_not = outputs.find(UNMERGED_FLOAT64), outputs.no_float64 or outputs.stopped
    if exact is None and why_not is not None:
        return MOST_RELATIVE_FLOAT32, f"; what float32 itself costs was not measured: {why_not}"
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
    row, unmerged = outputs.find(RELOADED), outputs.find(UNMERGED)
    task = None if outputs.inputs is None else outputs.inputs.task
    if task is None or row is None or not outputs.scores or (not row.scores and outputs.incomplete is not None):
        return []
    if not row.scores:
        return [Check("score", "warning", "the merged model has none: in its answers are NaN or infinite numbers")]
    one_example = 1.0 / max(1, len(task.eval))
    moved = []
    for name in task.metric_names:
        if name not in outputs.scores or name not in row.scores:
            continue
        own = abs(unmerged.scores.get(name, 0.0) - outputs.scores[name]) if unmerged is not None and unmerged.scores else 0.0
        if abs(row.scores[name] - outputs.scores[name]) > own + one_example + 1e-9:
            moved.append(f"{name} {outputs.scores[name]:.4f} became {row.scores[name]:.4f}")
    return [Check("score", "warning" if moved else "holds", few(moved) if moved else "the task's score stays what it was")]


def tensors_only_check(why: str, asked: str | None) -> Check:
    """That models were not run, or not all: a failure where a comparison was asked for that needs them.

    Args:
        asked: what was asked for; None where nothing was.
    """
    if asked is None:
        return Check("outputs", "warning", f"tensors alone were compared: {why}")
    return Check("outputs", "fails", f"{asked} was asked for, and cannot be had: {why}")


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


def revision_check(
    adapter: Mapping[str, Any], model: str, revision: str | None, local: bool, commit: str | None = None
) -> Check:
    """The revision of the base that the adapter was trained on, against the one it was merged into.

    A commit tells one set of weights for ever; a branch or a tag is a name that may have moved since.

    Args:
        adapter: PEFT's configuration.
        commit: of the snapshot that was merged into; None where that is not known.
    """
    trained = adapter.get("revision")
    if trained is None:
        return Check("base-revision", "not judged", "the adapter names no revision of its base")
    named = adapter.get("base_model_name_or_path")
    if local or named != model:
        what = "a directory does not tell its own" if local else f"that is of {named}, and {model} was given"
        return Check("base-revision", "not judged", f"the adapter names revision {trained}; {what}")
    here = commit or revision
    if _COMMIT.fullmatch(str(trained)) is not None:
        if here is not None and here.startswith(str(trained)):
            return Check("base-revision", "holds", f"{model} at {here}")
    elif str(trained) == str(revision):
        now = "" if commit is None else f" (now {commit[:12]})"
        says = f"trained on {model} at {trained}{now}, a name that may have moved since: the adapter tells no commit"
        return Check("base-revision", "not judged", says)
    return Check("base-revision", "fails", f"trained on {model} at {trained}, merged into {here or 'the newest'}")


def base_check(recorded: str | None, found: str | None, why_not: str, names: tuple[str, str] | None = None) -> Check:
    """The checksum of the base that the adapter was trained on, against that of the base it was merged into.

    Args:
        names: of the one and of the other, where they differ; worth a warning where no checksum says that they are the same.
    """
    if recorded is None or found is None:
        if names is not None:
            says = f"the adapter was trained on {names[0]}, and is merged into {names[1]} here; {why_not}"
            return Check("base-checksum", "warning", says)
        return Check("base-checksum", "not judged", why_not)
    if recorded == found:
        return Check("base-checksum", "holds", "the base's weights are those that the adapter was trained on")
    return Check("base-checksum", "fails", f"the adapter was trained on other weights ({recorded[:12]}, here {found[:12]})")


def none_of(name: str, problems: Sequence[str], fine: str) -> Check:
    """A check that fails with the problems' first few, and holds where there are none."""
    return Check(name, "fails", few(problems)) if problems else Check(name, "holds", fine)


def few(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    shown = "; ".join(names[:_FIRST_FEW])
    return shown if len(names) <= _FIRST_FEW else f"{shown} and {len(names) - _FIRST_FEW} more"


def count(number: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _value(figure: float | None) -> float:
    return float("inf") if figure is None else figure
