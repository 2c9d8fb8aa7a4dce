"""In which order an adapter's directions are best kept: equally many parameters, chosen by five orders, and their scores.

    python -m benchmarks.orders ADAPTER --task sst2 --data DIR --max-eval 300 --parameters 20000 40000 80000

``value`` is the singular value; the others divide it by the Frobenius norm of the module's frozen weight (what ``lorascope
inspect --truncate`` goes by), by the root of the numbers that a direction costs, or by the norm of the module's own update.
``inputs`` is measured: how much the direction adds to what the module puts out on 48 examples, over what it puts out.

Legend: T tokens, D in, S directions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lorascope.adapter import agreed_base, stack_saved
from lorascope.analysis.truncated import Line, line_up, num_parameters, weight_norms
from lorascope.cohort.single import Prepared, evaluate_together, prepare
from lorascope.config import EvaluateConfig, TaskConfig
from lorascope.lora.peft_io import SavedAdapter, read_adapter

_CALIBRATION = 48


class _Meter:
    """Of one module: squares of its input along each direction, and of its output."""

    def __init__(self, right_DS: Tensor) -> None:
        self._right_DS = right_DS
        self.inputs_S = torch.zeros(right_DS.shape[1], dtype=torch.float64)
        self.output = 0.0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x_TD = inputs[0].double().reshape(-1, inputs[0].shape[-1])
        self.inputs_S += (x_TD @ self._right_DS).square().sum(dim=0)
        self.output += float(output.double().square().sum())


@torch.no_grad()
def by_inputs(prepared: Prepared, saved: SavedAdapter, line: Line) -> Line:
    """The same directions by what they do on real inputs."""
    meters = {key: _Meter(update.right_DS) for key, update in line.directions.items()}
    stack = stack_saved(prepared.base, saved, "adapter")
    try:
        hooks = [prepared.base.model.get_submodule(key).register_forward_hook(meter) for key, meter in meters.items()]
        for example in prepared.task.eval[:_CALIBRATION]:
            ids = torch.tensor([example.input_ids])
            prepared.base.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        for hook in hooks:
            hook.remove()
    finally:
        stack.detach()
    found = [
        (float(value) * math.sqrt(float(square) / meters[key].output), key, float(value) ** 2)
        for key, update in line.directions.items()
        for value, square in zip(update.values_S[: update.numerical_rank], meters[key].inputs_S, strict=False)
    ]
    found.sort(key=lambda one: -one[0])
    keys, energies = tuple(key for _, key, _ in found), tuple(one[2] for one in found)
    return Line(saved, line.directions, keys, line.least, energies, len(found))


def orders(prepared: Prepared, saved: SavedAdapter) -> dict[str, Line]:
    """The adapter's directions in each order."""
    plain = line_up(saved, "adapter")
    sizes: Mapping[str, Mapping[str, float]] = {
        "over the weight's norm": weight_norms(prepared.base, saved),
        "over the root of its numbers": {key: math.sqrt(cost) for key, cost in costs(plain).items()},
        "over the update's norm": {key: float(update.values_S.norm()) or 1.0 for key, update in plain.directions.items()},
    }
    lines = {"value": plain, **{name: line_up(saved, "adapter", one) for name, one in sizes.items()}}
    return {**lines, "inputs": by_inputs(prepared, saved, plain)}


def costs(line: Line) -> dict[str, int]:
    """Numbers that one direction of each module takes."""
    return {key: len(update.left_OS) + len(update.right_DS) for key, update in line.directions.items()}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--max-eval", type=int)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--parameters", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    given = parser.parse_args()
    saved = read_adapter(given.adapter)
    task = TaskConfig(name=given.task, data=given.data, max_eval=given.max_eval, max_length=given.max_length)
    prepared = prepare(agreed_base({str(given.adapter): saved}), task, EvaluateConfig())
    whole = evaluate_together(prepared, {"whole": saved})[0].metrics
    names = list(whole)
    print(f"| order | directions | parameters | energy | {' | '.join(names)} |\n|---|{'---|' * (3 + len(names))}")
    print(f"| whole | | {num_parameters(saved):,} | | {' | '.join(f'{whole[name]:.4f}' for name in names)} |", flush=True)
    for budget in given.parameters:
        for order, line in orders(prepared, saved).items():
            cost, total, count = costs(line), 0, 0
            while count < len(line.keys) and total + cost[line.keys[count]] <= budget:
                total, count = total + cost[line.keys[count]], count + 1
            found = evaluate_together(prepared, {order: line.cut(count)})[0].metrics
            scores = " | ".join(f"{found[name]:.4f}" for name in names)
            print(f"| {order} | {count} | {total:,} | {line.energy_kept(count):.4f} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
