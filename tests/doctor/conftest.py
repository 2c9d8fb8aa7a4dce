"""Checks carried out by their names, as the table holds them."""

from collections.abc import Callable
from typing import Any

import pytest

from lorascope.doctor.finding import CheckResult, Setting, carry_out
from lorascope.doctor.table import CHECKS, OWN_BASE
from lorascope.lora import frozen
from lorascope.lora.stack import Stack


@pytest.fixture
def check() -> Callable[..., CheckResult]:
    """``check("merge")``: the result of one row of the table, on the CPU."""
    rows = {row.name: row for row in (*CHECKS, *OWN_BASE)}
    return lambda name, setting=None: carry_out(rows[name], setting or Setting())


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which path wins is not what is tested."""
    monkeypatch.setattr(frozen, "_REPEATS", 1)
    monkeypatch.setattr(frozen, "_ROWS", 64)


@pytest.fixture
def leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base parameter asks for a gradient, though a stack is on the model."""
    original = Stack._bind

    def leaking(self: Any) -> None:
        original(self)
        next(iter(self._base_parameters.values())).requires_grad_(True)

    monkeypatch.setattr(Stack, "_bind", leaking)


@pytest.fixture
def touched_base() -> Callable[..., Any]:
    """``touched_base(train)``: the same training, in which one base weight moves by a millionth."""

    def touching(train: Any) -> Any:
        def run(stack: Any, base: Any, *arguments: Any) -> Any:
            yield from train(stack, base, *arguments)
            next(iter(base.model.parameters())).data.view(-1)[-1] += 1e-6

        return run

    return touching
