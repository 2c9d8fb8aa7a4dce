"""Saved adapters on their base: what both must hold, and the stack that results.

Knows what a base lacks and an adapter must bring. Does not know files (``lora.peft_io``) nor what the adapters are wanted for.
Floor: above ``base_model``, below ``judge`` and ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        check_fits(saved, base.model, where)
        absent = [name for name in base.new_parameters if name not in saved.weights.heads]
        if absent:
            raise AdapterError(
                f"the adapter holds no {absent[0]!r}, which the base model does not have either",
                where=where,
                fix="save it with modules_to_save, or use the base it was trained on",
            )
    inside = tuple(f"{head}." for head in base.heads)
    names = [name for saved in adapters.values() for name in saved.weights.heads if not name.startswith(inside)]
    more = dict.fromkeys(name.rpartition(".")[0] for name in names)
    stack = Stack(base.model, [*alone, *(saved.slot for saved in adapters.values())], (*base.heads, *more))
    try:
        for index, saved in enumerate(adapters.values(), len(alone)):
            stack.write(index, saved.weights)
    except BaseException:
        stack.detach()
        raise
    return stack
