"""Saved adapters on a base: what both sides must hold, and the stack that results.

Knows what a base lacks and an adapter must bring. Does not know files (``lora.peft_io``) nor what adapters are wanted for.
Floor: above ``base_model``, below ``judge`` and ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorascope.base_model import BaseModel
from lorascope.errors import AdapterError
from lorascope.lora.peft_io import SavedAdapter, check_fits
from lorascope.lora.stack import Slot, Stack


def stack_saved(base: BaseModel, saved: SavedAdapter, where: str) -> Stack:
    """A stack of one that holds an adapter from disk, its heads and biases included.

    Raises:
        AdapterError: a tensor has no place in the base, or the base's newly initialised head is not in the adapter.
    """
    return stack_together(base, [saved], [where])


def stack_together(base: BaseModel, adapters: Sequence[SavedAdapter], places: Sequence[str]) -> Stack:
    """One stack of several adapters from disk, a slot each, in their order. Where one brings a head that another lacks, the
    other's slot has the base's own.

    Args:
        places: where each came from, for messages.

    Raises:
        AdapterError: as ``stack_saved``, of any of them.
    """
    more: dict[str, None] = {}
    for saved, where in zip(adapters, places, strict=True):
        check_fits(saved, base.model, where)
        absent = [name for name in base.new_parameters if name not in saved.weights.heads]
        if absent:
            raise AdapterError(
                f"the adapter holds no {absent[0]!r}, which the base model does not have either",
                where=where,
                fix="save it with modules_to_save, or use the base it was trained on",
            )
        inside = tuple(f"{head}." for head in base.heads)
        more |= dict.fromkeys(name.rpartition(".")[0] for name in saved.weights.heads if not name.startswith(inside))
    stack = Stack(base.model, [saved.slot for saved in adapters], (*base.heads, *more))
    try:
        for number, saved in enumerate(adapters):
            stack.write(number, saved.weights)
    except BaseException:
        stack.detach()
        raise
    return stack


def stack_beside_base(base: BaseModel, adapters: Mapping[str, SavedAdapter]) -> Stack:
    """A stack that holds adapters from disk and, in its last slot, the base alone; each slot by its adapter's name.

    A head that an adapter does not hold is the base's own, newly initialised or not: what lies below the heads is the same.

    Raises:
        AdapterError: a tensor has no place in the base.
    """
    for name, saved in adapters.items():
        check_fits(saved, base.model, name)
    inside = tuple(f"{head}." for head in base.heads)
    held = (tensor for saved in adapters.values() for tensor in saved.weights.heads)
    more = dict.fromkeys(tensor.rpartition(".")[0] for tensor in held if not tensor.startswith(inside))
    # Nothing is drawn here, so no dropout needs a place.
    slots = [replace(saved.slot, name=name, dropout=0.0) for name, saved in adapters.items()]
    stack = Stack(base.model, [*slots, Slot("base", 0, ())], (*base.heads, *more))
    try:
        for index, saved in enumerate(adapters.values()):
            stack.write(index, saved.weights)
    except BaseException:
        stack.detach()
        raise
    return stack
