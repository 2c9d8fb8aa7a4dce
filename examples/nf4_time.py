"""Training time per step of one stack on a base in NF4 against the base in full, in turns.

    python examples/nf4_time.py --model DIR_OR_HUB_ID [--slots 4] [--batch 32] [--tokens 24] [--rounds 30]

Two stacks with the same slots (r = 8, query and value), one on each base, step in turns on the same random tokens; the ratio
is the median over the rounds of one step's time over its neighbour's. Losses and gradient norms of the last step follow.
"""

import argparse
from collections.abc import Iterator
from statistics import median

import torch

from lorascope.base_model import load_base
from lorascope.config import BaseModelConfig, TrainConfig
from lorascope.data.task import Example
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.train import StepResult, train

LABELS = ("negative", "positive")


def steps(model: str, quantization: str | None, slots: int, batch: int, tokens: int, rounds: int) -> Iterator[StepResult]:
    """One training step after another of the stack on its own copy of the base."""
    config = BaseModelConfig.model_validate({"model": model, "quantization": quantization})
    base = load_base(config, "SEQ_CLS", LABELS)
    ids = torch.randint(1000, 2000, (batch, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Example(str(index), row, None, index % 2, tokens) for index, row in enumerate(ids)]
    placements = tuple(Placement(target, 8, 2.0) for target in resolve(base.model, ["query", "value"], base.heads))
    stack = Stack(base.model, [Slot(f"s{index}", 1, placements) for index in range(slots)], base.heads, base.initial_head)
    settings = TrainConfig(batch_size=batch, max_steps=rounds)
    yield from train(stack, base, examples, {slot.name: settings for slot in stack.slots})


def main() -> None:
    """Step both in turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    size = (arguments.slots, arguments.batch, arguments.tokens, arguments.rounds)
    pairs = list(zip(steps(arguments.model, None, *size), steps(arguments.model, "nf4", *size), strict=True))
    full, packed = ([step.seconds for step in kind[2:]] for kind in zip(*pairs, strict=True))
    for name, seconds, step in (("full", full, pairs[-1][0]), ("nf4", packed, pairs[-1][1])):
        slot = step.slots["s0"]
        print(f"{name:4}  {median(seconds):.4f} s/step  loss {slot.loss:.4f}  gradient norm {slot.grad_norm:.4f}")
    print(f"nf4 / full {median(b / a for a, b in zip(full, packed, strict=True)):.3f}")


if __name__ == "__main__":
    main()
