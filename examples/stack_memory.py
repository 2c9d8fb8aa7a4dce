"""Peak memory of a study of 8 slots against 1: one copy of the base is held for all of them.

    python examples/stack_memory.py --model DIR_OR_HUB_ID [--slots 1 8] [--batch 1] [--tokens 128]

Each count runs in a process of its own: load the base, two training steps, print the peak of resident memory.
"""

import argparse
import json
import subprocess
import sys


def measure(model: str, slots: int, batch: int, tokens: int) -> dict[str, float]:
    """Train ``slots`` adapters (r = 8, query and value) for two steps on random tokens; sizes in MiB."""
    import resource

    import torch

    from lorascope.base_model import load_base
    from lorascope.config import BaseModelConfig, TrainConfig
    from lorascope.data.task import Example
    from lorascope.lora.stack import Placement, Slot, Stack
    from lorascope.lora.targets import resolve
    from lorascope.train import train

    base = load_base(BaseModelConfig(model=model), "CAUSAL_LM")
    weights = sum(value.numel() * value.element_size() for value in base.model.parameters())
    ids = torch.randint(0, 1000, (batch, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    target = [position >= tokens - 4 for position in range(tokens)]
    examples = [Example(str(index), row, target, None, tokens - 4) for index, row in enumerate(ids)]
    placements = tuple(Placement(target, 8, 2.0) for target in resolve(base.model, ["query", "value"], ()))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stack = Stack(base.model, [Slot(f"s{index}", index, placements) for index in range(slots)])
    settings = TrainConfig(batch_size=batch, max_steps=2)
    steps = list(train(stack, base, examples, {slot.name: settings for slot in stack.slots}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "slots": slots,
        "base_mib": weights / 2**20,
        "loaded_mib": loaded / 2**10,
        "peak_mib": peak / 2**10,
        "seconds_per_step": steps[-1].seconds,
    }


def main() -> None:
    """Measure each count in a fresh process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.model, arguments.slots[0], arguments.batch, arguments.tokens)))
        return
    print("slots  base MiB  loaded MiB  peak MiB  s/step")
    for slots in arguments.slots:
        command = [
            sys.executable, __file__, "--child", "--model", arguments.model, "--slots", str(slots),
            "--batch", str(arguments.batch), "--tokens", str(arguments.tokens),
        ]  # fmt: skip
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(
            f"{row['slots']:5}  {row['base_mib']:8.0f}  {row['loaded_mib']:10.0f}  {row['peak_mib']:8.0f}  "
            f"{row['seconds_per_step']:6.2f}"
        )


if __name__ == "__main__":
    main()
