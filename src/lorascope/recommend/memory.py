"""What is given up, and in which order, until a configuration fits into the memory there is.

Knows the order. Does not know how memory is forecast. Floor: ``recommend``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from lorascope.recommend.rules import LITTLE_MEMORY, Choice, places, targets_of

Forecast = Callable[[Mapping[str, Choice]], int]


def fit(
    choices: Mapping[str, Choice], forecast: Forecast, most_bytes: int, roles: Sequence[str], *, can_quantise: bool
) -> tuple[dict[str, Choice], int]:
    """The choices with as little given up as fits, and what they need.

    First smaller micro-batches, which change no result; then fewer bits for the base; then rank and targets, down to those of
    the rule of thumb for little memory and never up. Where nothing is enough, the smallest that there is: its bytes exceed
    ``most_bytes``.

    Args:
        forecast: the bytes that choices need, of training alone.
        can_quantise: whether 4 bits are possible here.
    """
    current = dict(choices)
    needed = forecast(current)
    for what, changes in _reductions(choices, roles, can_quantise):
        if needed <= most_bytes:
            break
        changes = {key: value for key, value in changes.items() if current[key].value != value}
        if not changes:
            continue
        because = f"{what}; without it the forecast is {_gib(needed)} of {_gib(most_bytes)}"
        smaller = current | {key: Choice(value, "memory", because) for key, value in changes.items()}
        fewer = forecast(smaller)
        if fewer < needed:
            current, needed = smaller, fewer
    return _as_large_pieces(current, choices, forecast, most_bytes, needed)


def _as_large_pieces(
    current: dict[str, Choice], choices: Mapping[str, Choice], forecast: Forecast, most_bytes: int, needed: int
) -> tuple[dict[str, Choice], int]:
    """What was given up later may have made room for larger micro-batches again, which are faster."""
    if needed > most_bytes or current["micro_batch_size"].source != "memory":
        return current, needed
    sizes = [None, *(rows for rows in _halves(choices) if rows > current["micro_batch_size"].value)]
    for rows in sizes:
        larger = current | {"micro_batch_size": replace(current["micro_batch_size"], value=rows)}
        if rows is None:
            larger["micro_batch_size"] = choices["micro_batch_size"]
        more = forecast(larger)
        if more <= most_bytes:
            return larger, more
    return current, needed


def _reductions(
    choices: Mapping[str, Choice], roles: Sequence[str], can_quantise: bool
) -> Iterator[tuple[str, dict[str, object]]]:
    for rows in _halves(choices):
        yield "the same batch in smaller pieces changes no result", {"micro_batch_size": rows}
    if can_quantise and choices["quantization"].value is None:
        yield "the base in 4 bits", {"quantization": "nf4"}
    if choices["dtype"].value != "bfloat16":
        yield "the base, or what of it stays unpacked, in 16 bits", {"dtype": "bfloat16"}
    fewer: dict[str, object] = {}
    rank, least = choices["r"].value, LITTLE_MEMORY.values["r"]
    if rank > least:
        fewer |= {"r": least, "lora_alpha": choices["lora_alpha"].value * least / rank}
    targets, _ = targets_of(str(LITTLE_MEMORY.values["targets"]), roles)
    if places(targets, roles) < places(choices["targets"].value, roles):
        fewer["targets"] = targets
    if fewer:
        yield f"rule of thumb, {LITTLE_MEMORY.name}, alpha in proportion", fewer


def _halves(choices: Mapping[str, Choice]) -> list[int]:
    """Sizes of micro-batches, from half of what there was."""
    rows = choices["micro_batch_size"].value or choices["batch_size"].value
    sizes = []
    while rows > 1:
        rows //= 2
        sizes.append(rows)
    return sizes


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
