"""What is given up, and in which order, until a configuration fits into the memory there is.

Knows the order. Does not know how memory is forecast. Floor: ``recommend``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from lorascope.recommend.rules import LITTLE_MEMORY, Choice, targets_of

Forecast = Callable[[Mapping[str, Choice]], int]


def fit(
    choices: Mapping[str, Choice], forecast: Forecast, most_bytes: int, roles: Sequence[str], *, can_quantise: bool
) -> tuple[dict[str, Choice], int]:
    """The choices with as little given up as fits, and what they need.

    First smaller micro-batches, which change no result; then fewer bits for the base; then the rule of thumb for little
    memory. Where nothing is enough, the smallest that there is: its bytes exceed ``most_bytes``.

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
        because = f"memory forecast: {_gib(needed)} of {_gib(most_bytes)} without; {what}"
        smaller = current | {
            key: Choice(value, "memory", f"{because}, in the place of {current[key].value}") for key, value in changes.items()
        }
        fewer = forecast(smaller)
        if fewer < needed:
            current, needed = smaller, fewer
    return current, needed


def _reductions(
    choices: Mapping[str, Choice], roles: Sequence[str], can_quantise: bool
) -> Iterator[tuple[str, dict[str, object]]]:
    rows = choices["batch_size"].value if choices["micro_batch_size"].value is None else choices["micro_batch_size"].value
    while rows > 1:
        rows //= 2
        yield "the same batch in smaller pieces changes no result", {"micro_batch_size": rows}
    if can_quantise and choices["quantization"].value is None:
        yield "the base in 4 bits", {"quantization": "nf4"}
    if choices["dtype"].value != "bfloat16":
        yield "the base, or what of it stays unpacked, in 16 bits", {"dtype": "bfloat16"}
    rule = {key: value for key, value in LITTLE_MEMORY.values.items() if key not in ("targets", "quantization")}
    targets, _ = targets_of(str(LITTLE_MEMORY.values["targets"]), roles)
    yield f"rule of thumb, {LITTLE_MEMORY.name}", {**rule, "targets": targets}


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
