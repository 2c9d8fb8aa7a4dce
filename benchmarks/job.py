"""What a worker is asked to do, as JSON between two processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import prepare
from benchmarks.workloads import WORKLOADS, Side, Workload


@dataclass(frozen=True)
class Parity:
    """Train on given batches for a few steps and compare.

    Attributes:
        rows: the rows that Lorascope may use; None for all.
        batches: for peers, Lorascope's own batches.
    """

    steps: int
    batch_size: int
    rows: list[int] | None = None
    batches: list[list[int]] | None = None


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        seconds: how long the timed steps should take together; two steps are timed in any case.
        configuration: the one that a peer trains.
    """

    workload_name: str
    side_name: str
    cache: str
    device: str
    seconds: float
    limit: int | None
    repeat: int
    configuration: int
    parity: Parity | None = None

    @property
    def workload(self) -> Workload:
        """The workload, its batches made to fit the limit."""
        return prepare.with_limit(WORKLOADS[self.workload_name], self.limit)

    @property
    def side(self) -> Side:
        """Who is measured."""
        return self.workload.side(self.side_name)

    @property
    def prepared(self) -> prepare.Prepared:
        """The data."""
        return prepare.load(self.workload, Path(self.cache), self.limit)

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Job:
        """From JSON."""
        values = json.loads(text)
        parity = values.pop("parity")
        return Job(**values, parity=None if parity is None else Parity(**parity))
