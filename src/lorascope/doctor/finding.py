"""What a check is, what it may find, and how it is carried out. Knows none of the checks. Floor: doctor.

Imports nothing that may be missing or broken on a user's machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lorascope.errors import LorascopeError
from lorascope.store import strict_json

if TYPE_CHECKING:
    from lorascope.base_model import BaseModel

Status = Literal["passed", "warning", "failed", "skipped"]
# Of an error that a check ends with; its whole text may hold a page of shapes.
_MOST_CHARACTERS = 300


class NotReached(Exception):
    """There is nothing to check, because what comes before it failed."""


@dataclass
class Setting:
    """What the checks are carried out on.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        model: the directory or hub id of the user's own base; None where there is none.
        base: that base, once a check has loaded it.
    """

    device: str = "cpu"
    model: str | None = None
    base: BaseModel | None = None

    def loaded(self) -> BaseModel:
        """The user's own base.

        Raises:
            NotReached: it could not be loaded.
        """
        if self.base is None:
            raise NotReached("the base was not loaded")
        return self.base


@dataclass(frozen=True)
class Finding:
    """What a check saw.

    Attributes:
        showed: in a few words, with the figures that count.
        figures: all of them, as JSON can hold them.
        wrong: what did not hold; a check passes where there is nothing.
        warnings: what is missing or slow, and fails nothing.
        skipped: there was nothing to check here; ``showed`` says why.
        fix: what to do, where the check knows better than its row in the table.
    """

    showed: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: bool = False
    fix: str | None = None

    @property
    def status(self) -> Status:
        """The worst that can be said of it."""
        if self.wrong:
            return "failed"
        return "skipped" if self.skipped else "warning" if self.warnings else "passed"


@dataclass(frozen=True)
class Check:
    """One row of the table: a claim, the function that puts it to the test, and what to do where it does not hold."""

    name: str
    claim: str
    function: Callable[[Setting], Finding]
    fix: str


@dataclass(frozen=True)
class CheckResult:
    """How a check ended: ``showed`` is one line, ``fix`` is empty unless there is something to do."""

    check: str
    claim: str
    status: Status
    showed: str
    fix: str
    seconds: float
    figures: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """As strict JSON can hold it: a figure that is no number is null."""
        figures = {name: strict_json(value) for name, value in self.figures.items()}
        return {
            "check": self.check,
            "claim": self.claim,
            "status": self.status,
            "showed": self.showed,
            "fix": self.fix or None,
            "seconds": round(self.seconds, 3),
            "figures": figures,
        }


def examine(checks: Sequence[Check], setting: Setting) -> Iterator[CheckResult]:
    """Carry the checks out, one after the other; a result as soon as there is one."""
    for check in checks:
        yield carry_out(check, setting)


def carry_out(check: Check, setting: Setting) -> CheckResult:
    """The check's result; one that raises has failed, with its reason in one line."""
    started = time.perf_counter()
    fix = check.fix
    try:
        finding = check.function(setting)
    except NotReached as reason:
        finding = Finding(str(reason), skipped=True)
    except LorascopeError as error:
        where = "" if error.where is None else f"{error.where}: "
        finding = Finding("", wrong=(f"{where}{error.what}",), fix=error.fix)
    except Exception as error:  # whatever breaks, the other checks still have something to say
        finding = Finding("", wrong=(f"{type(error).__name__}: {error}",))
    said = finding.wrong or ((finding.showed, *finding.warnings) if finding.showed else finding.warnings)
    showed = " ".join("; ".join(said).split())
    if finding.status == "failed" and len(showed) > _MOST_CHARACTERS:
        showed = f"{showed[:_MOST_CHARACTERS]}…"
    fix = (finding.fix or fix) if finding.status in ("failed", "warning") else ""
    seconds = time.perf_counter() - started
    return CheckResult(check.name, check.claim, finding.status, showed, fix, seconds, finding.figures)


def beyond(figures: Mapping[str, float], limits: Mapping[str, float]) -> tuple[str, ...]:
    """What exceeds its limit, in words; NaN exceeds every limit."""
    return tuple(
        f"{name.replace('_', ' ')} {figures[name]:.1e}, more than {limit:.0e}"
        for name, limit in limits.items()
        if not figures[name] <= limit
    )


def compared(what: str, error: float) -> str:
    """How far ``what`` are apart, in words."""
    return f"{what} are equal to the bit" if error == 0.0 else f"{what} differ by {error:.0e}"
