"""Saved adapters on their base: what both must hold, and the stack that results.

Knows what a base lacks and an adapter must bring. Does not know files (``lora.peft_io``) nor what the adapters are wanted for.
Floor: above ``base_model``, below ``judge`` and ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorascope.base_model import BaseModel
from lorascope.errors import AdapterError
from lorascope.lora.peft_io import SavedAdapter, check_fits
from lorascope.lora.stack import Slot, Stack


def stack_saved(base: BaseModel, saved: SavedAdapter, where: str) -> Stack:
    """A stack of one that holds an adapter from disk, its heads and biases included.

    Raises:
        AdapterError: a tensor has no place in the base, or the base's newly initialised head is not in the adapter.
    """
    return stack_several(base, {where: saved})


def stack_several(base: BaseModel, adapters: Mapping[str, SavedAdapter], alone: Sequence[Slot] = ()) -> Stack:
    """A stack with a slot for each adapter from disk, in this order, and before them those of ``alone``.

    Args:
        adapters: by the place that an error names.
        alone: slots without an adapter: the base as it is, beside those that have one.

    Raises:
        AdapterError: a tensor has no place in the base, or the base's newly initialised head is not in an adapter.
    """
    for where, saved in adapters.items():
        absent = [name for name in base.new_parameters if name not in saved.weights.heads]
        if absent:
            check_fits(saved, base.model, where)  # says more than that a head is missing
            raise AdapterError(
                f"the adapter holds no {absent[0]!r}, which the base model does not have either",
                where=where,
                fix="save it with modules_to_save, or use the base it was trained on",
            )
    return _stacked(base, adapters, [*alone, *(saved.slot for saved in adapters.values())], len(alone))


def stack_beside_base(base: BaseModel, adapters: Mapping[str, SavedAdapter]) -> Stack:
    """A stack that holds adapters from disk and, in its last slot, the base alone; each slot by its adapter's name.

    A head that an adapter does not hold is the base's own, newly initialised or not: what lies below the heads is the same.

    Raises:
        AdapterError: a tensor has no place in the base.
    """
    # Nothing is drawn here, so no dropout needs a place.
    slots = [replace(saved.slot, name=name, dropout=0.0) for name, saved in adapters.items()]
    return _stacked(base, adapters, [*slots, Slot("base", 0, ())], 0)


def _stacked(base: BaseModel, adapters: Mapping[str, SavedAdapter], slots: Sequence[Slot], first: int) -> Stack:
    """A stack of the slots, with the adapters' numbers in those from ``first`` on."""
    for where, saved in adapters.items():
        check_fits(saved, base.model, where)
    inside = tuple(f"{head}." for head in base.heads)
    held = (name for saved in adapters.values() for name in saved.weights.heads)
    more = dict.fromkeys(name.rpartition(".")[0] for name in held if not name.startswith(inside))
    stack = Stack(base.model, slots, (*base.heads, *more))
    try:
        for index, saved in enumerate(adapters.values(), first):
            stack.write(index, saved.weights)
    except BaseException:
        stack.detach()
        raise
    return stack
