"""The smallest adapter inside an adapter: how few directions of its updates keep its score, found by evaluation.

Every module's update is a sum of singular directions (``lora.truncate``). All directions of all modules stand in one line, the
one that does most first, and a cut keeps the first so many: one threshold for the whole adapter, from which each module gets
its own rank, down to none. What a direction does is its singular value over the Frobenius norm of its module's frozen weight.
For inputs that favour no direction, its square is the share that the direction adds to the energy of what the module puts
out anyway, so it does not matter how large a module's weights happen to be (docs/experiments.md compares five orders). Without
the base's weights the order is that of the singular values themselves, which for every number of directions loses the least
energy in all. At the end stand directions that the rounding of the stored numbers explains, those of an adapter in bfloat16:
they are tried only where the others alone do not do.

Where a task is given, the fewest directions whose score stays within ε are searched: a bisection over the line, several cuts
at once as slots of one stack. It takes for granted that fewer directions score no better; each cut that was tried is told, and
a score that breaks the rule is named.

Knows adapters, evaluations and thresholds. Does not know which metric matters, nor where results are shown. Floor:
``analysis``.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorascope.amounts import counted
from lorascope.base_model import BaseModel
from lorascope.cohort.single import Prepared, evaluate_together
from lorascope.errors import AdapterError, CheckFailed, UsageError, did_you_mean
from lorascope.evaluate import Evaluation
from lorascope.lora.diagnostics import Decomposition
from lorascope.lora.peft_io import SavedAdapter, read_adapter
from lorascope.lora.truncate import directions_of, num_computed, truncated, write_truncated
from lorascope.metrics import HIGHER_IS_BETTER

# Slots that are evaluated together.
NUM_SLOTS = 4
# Scores of the same adapter in another stack differ by so much of themselves.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Line:
    """All directions of an adapter, the one that does most first.

    Attributes:
        keys: the module of each; how often a module is among the first so many is its rank.
        least: ranks below which a module must not fall.
        energies: squared singular values, in the order of ``keys``.
        num_clear: how many of them the rounding of the stored numbers does not explain; they come first.
    """

    saved: SavedAdapter
    directions: Mapping[str, Decomposition]
    keys: tuple[str, ...]
    least: Mapping[str, int]
    energies: tuple[float, ...]
    num_clear: int

    def ranks(self, count: int) -> dict[str, int]:
        """Each module's rank where the first ``count`` directions are kept."""
        ranks = dict(self.least)
        kept = dict.fromkeys(self.directions, 0)
        for key in self.keys[:count]:
            kept[key] += 1
        return {key: max(rank, ranks[key]) for key, rank in kept.items()}

    def cut(self, count: int) -> SavedAdapter:
        """The adapter with its first ``count`` directions."""
        return truncated(self.saved, self.directions, self.ranks(count))

    def energy_kept(self, count: int) -> float:
        """The share of the sum of squared singular values, those within rounding included."""
        return math.fsum(self.energies[:count]) / math.fsum(self.energies)


@dataclass(frozen=True)
class Tried:
    """One cut and what it scored.

    Attributes:
        num_directions, num_parameters: that it keeps.
        score: None where its outputs were not finite.
        loss: of score against the whole adapter, positive where it is worse; infinite where there is no score.
        holds: whether the loss is within ε.
    """

    num_directions: int
    num_parameters: int
    energy_kept: float
    score: float | None
    loss: float
    holds: bool


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        whole: the adapter as it was.
        tried: every cut, fewest directions first.
        smallest: the one with the fewest directions that holds.
        notes: what must be told with it.
    """

    metric: str
    epsilon: float
    whole: Evaluation
    tried: tuple[Tried, ...]
    smallest: Tried
    notes: tuple[str, ...]


def line_up(
    saved: SavedAdapter,
    where: str,
    sizes: Mapping[str, float] | None = None,
    *,
    directions: Mapping[str, Decomposition] | None = None,
) -> Line:
    """Put an adapter's directions in line; those that the rounding of a computation in float32 explains are left out.

    Args:
        where: the adapter came from, for messages.
        sizes: by module, what its singular values are measured against (``weight_norms``); nothing by default.
        directions: ``directions_of`` its updates, where somebody has taken them apart.

    Raises:
        AdapterError: every update is zero, or none is above the rounding of the numbers that it is stored in.
    """
    directions = directions_of(saved.weights) if directions is None else directions
    strengths = []
    for placement in saved.slot.placements:
        key = placement.target.key
        update, size = directions[key], sizes[key] if sizes else 1.0
        values = update.values_S[: num_computed(saved.weights, placement, update)].tolist()
        strengths += [(index < update.numerical_rank, value / size, key, value**2) for index, value in enumerate(values)]
    num_clear = sum(is_clear for is_clear, *_ in strengths)
    if not strengths:
        raise AdapterError("the adapter changes nothing: every update is zero", where=where, fix="use the base model alone")
    if not num_clear:
        what = f"the adapter's {counted(len(strengths), 'direction')} are all within the rounding of its stored numbers"
        raise AdapterError(what, where=where, fix="use the base model alone, or save the adapter in a wider dtype")
    strengths.sort(key=lambda one: one[:2], reverse=True)
    held = {
        placement.target.key
        for placement in saved.slot.placements
        if saved.slot.bias == "lora_only" and f"{placement.target.module}.bias" in saved.weights.biases
    }
    least = {key: int(key in held) for key in directions}
    keys, energies = (tuple(column) for column in zip(*(one[2:] for one in strengths), strict=True))
    return Line(saved, directions, keys, least, energies, num_clear)


@torch.no_grad()
def weight_norms(base: BaseModel, saved: SavedAdapter) -> dict[str, float]:
    """The Frobenius norm of the frozen weight behind every update of the adapter, by target key."""
    norms = {}
    for placement in saved.slot.placements:
        weight = base.model.get_submodule(placement.target.module).weight
        assert isinstance(weight, torch.Tensor)
        # A weight of zeros puts nothing out: whatever the update adds there counts as infinitely much.
        norms[placement.target.key] = max(float(torch.linalg.vector_norm(weight.float())), 1e-30)
    return norms


def keep_energy(line: Line, epsilon: float) -> int:
    """The fewest directions that lose at most the share ``epsilon`` of the energy, the sum of squared singular values.

    Of those above the rounding of the stored numbers: what this explains is no energy of the adapter's.
    """
    clear = line.energies[: line.num_clear]
    total, kept = math.fsum(clear), 0.0
    for count, energy in enumerate(clear, start=1):
        kept += energy
        if kept >= (1.0 - epsilon) * total:
            return count
    return line.num_clear


def search(
    prepared: Prepared,
    line: Line,
    where: str,
    *,
    epsilon: float,
    metric: str,
    num_slots: int = NUM_SLOTS,
) -> Generator[Tried, None, Found]:
    """Find the fewest directions whose score is at most ``epsilon`` worse than the whole adapter's.

    Args:
        epsilon: in the metric's own unit, 0 or above.
        metric: with a direction (``HIGHER_IS_BETTER``).
        num_slots: adapters evaluated in one stack; more rounds with fewer of them come to the same.

    Yields:
        Each cut as it is scored.

    Raises:
        UsageError: the evaluation has no such metric.
        AdapterError: the adapter's outputs are not finite, or it does not fit.
        CheckFailed: not even all of its directions, written anew, keep the score.
    """
    whole: list[Evaluation] = []
    tried: dict[int, Tried] = {}

    def score(counts: Sequence[int]) -> Iterable[Tried]:
        adapters = [line.cut(count) for count in counts]
        first = {} if whole else {where: line.saved}
        cuts = {f"{where}, {count} directions": adapter for count, adapter in zip(counts, adapters, strict=True)}
        evaluations = evaluate_together(prepared, {**first, **cuts})
        if first:
            whole.append(_checked(evaluations.pop(0), metric, where))
        for count, adapter, evaluation in zip(counts, adapters, evaluations, strict=True):
            yield _tried(line, count, adapter, evaluation, whole[0], metric, epsilon)

    failing = 0
    # Directions within rounding are looked at only where all others together do not hold.
    for end in dict.fromkeys((line.num_clear, len(line.keys))):
        holding = end + 1
        while holding - failing > 1:
            counts = _between(failing, holding, num_slots - (not whole), with_end=end not in tried)
            for one in score(counts):
                tried[one.num_directions] = one
                yield one
            holding = min((count for count, one in tried.items() if one.holds), default=end + 1)
            failing = max((count for count, one in tried.items() if not one.holds and count < holding), default=0)
        if holding <= end:
            listed = tuple(tried[count] for count in sorted(tried))
            return Found(metric, epsilon, whole[0], listed, tried[holding], _notes(line, listed, tried[holding], metric))
    raise _nothing_holds(tried, metric, epsilon, where)


def write_and_verify(
    prepared: Prepared, line: Line, found: Found, source: Path, directory: Path
) -> tuple[Evaluation, Evaluation]:
    """Write the smallest cut into an existing directory, read it back, and score it beside the whole adapter.

    Returns:
        The evaluations of the adapter as it was and as it was written, of one stack.

    Raises:
        CheckFailed: what was read back does not keep the score.
    """
    write_truncated(source, directory, line.cut(found.smallest.num_directions))
    again = read_adapter(directory, "truncated")
    whole, written = evaluate_together(prepared, {str(source): line.saved, str(directory): again})
    loss = loss_of(whole, written, found.metric)
    if loss > found.epsilon + _tolerance(whole, found.metric):
        raise CheckFailed(
            f"the adapter that was written loses {loss:g} of {found.metric}, more than {found.epsilon:g}",
            where=str(source),
            fix="report this: the cut that was tried in memory did hold",
        )
    return whole, written


def loss_of(whole: Evaluation, cut: Evaluation, metric: str) -> float:
    """By how much the cut is worse, in the metric's unit; negative where it is better."""
    if not cut.finite:
        return math.inf
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    return sign * (whole.metrics[metric] - cut.metrics[metric])


def num_parameters(saved: SavedAdapter) -> int:
    """Numbers in the adapter's A's and B's."""
    return sum(value.numel() for group in (saved.weights.lora_A, saved.weights.lora_B) for value in group.values())


def num_bytes(saved: SavedAdapter) -> int:
    """Of the adapter's A's and B's in their file; cut factors are in float32 at least, so that fewer may take more."""
    return sum(value.nbytes for group in (saved.weights.lora_A, saved.weights.lora_B) for value in group.values())


def _between(low: int, high: int, most: int, *, with_end: bool) -> list[int]:
    """At most ``most`` counts between ``low`` and ``high``, both left out, evenly spread; the last of them too if asked."""
    inside = high - low - 1
    end = [high - 1] if with_end else []
    number = min(max(most - len(end), 0 if end else 1), inside - len(end))
    spread = {low + max(1, round((index + 1) * (inside + 1) / (number + 1))) for index in range(number)}
    return sorted(spread | set(end))


def _tried(
    line: Line, count: int, adapter: SavedAdapter, evaluation: Evaluation, whole: Evaluation, metric: str, epsilon: float
) -> Tried:
    loss = loss_of(whole, evaluation, metric)
    holds = loss <= epsilon + _tolerance(whole, metric)
    score = evaluation.metrics[metric] if evaluation.finite else None
    return Tried(count, num_parameters(adapter), line.energy_kept(count), score, loss, holds)


def _tolerance(whole: Evaluation, metric: str) -> float:
    return _ROUNDING * abs(whole.metrics[metric])


def _checked(whole: Evaluation, metric: str, where: str) -> Evaluation:
    if not whole.finite:
        raise AdapterError("the adapter's outputs are not finite", where=where, fix="train it again")
    if metric not in whole.metrics:
        there = [name for name in whole.metrics if name in HIGHER_IS_BETTER]
        raise UsageError(f"the evaluation has no {metric!r}", where="--metric", fix=did_you_mean(metric, there))
    return whole


def _nothing_holds(tried: Mapping[int, Tried], metric: str, epsilon: float, where: str) -> CheckFailed:
    least = min(tried.values(), key=lambda one: one.loss)
    return CheckFailed(
        f"no cut keeps {metric} within {epsilon:g}: {least.num_directions} directions lose {least.loss:.3g}",
        where=where,
        fix="allow a larger loss",
    )


def _notes(line: Line, tried: Sequence[Tried], smallest: Tried, metric: str) -> tuple[str, ...]:
    notes, count = [], smallest.num_directions
    worse = [one for one in tried if not one.holds and one.num_directions > count]
    if worse:
        what = f"{count} directions keep {metric} and {worse[0].num_directions} do not: it does not fall evenly"
        notes.append(f"{what}, and fewer that were not tried may hold too")
    if count > line.num_clear:
        what = f"the {line.num_clear} directions above the rounding of the stored numbers do not keep {metric}"
        notes.append(f"{what}, so {count - line.num_clear} that may be rounding are kept too")
    if count == 1:
        notes.append(f"one direction keeps {metric}: the base with the adapter's head and biases may do so alone")
    return tuple(notes)
