"""What each player adds to the latency of a pass: the coalitions of a study timed against one another, at its end.

An adapter that is merged adds none. One that is kept apart, to be exchanged or served beside others, adds some at every module
that it adapts, whatever was trained; so coalitions are timed once for a study, not for each seed. Every coalition has a stack
of its own, as someone who deploys it alone would: one slot, no kernels but torch's own. They are timed in turns, so that what
else the machine does falls on all alike, and a round's time is the shortest of a few passes. A player's share is its Shapley
value of that time, and its interval is over the rounds.

Knows stacks, one example of the task and a clock. Does not know what coalitions are worth (``document``). Floor:
``attribution``.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorascope.attribution.players import LATENCY_KEY, SAMPLING_SEED, Game
from lorascope.base_model import BaseModel, hardware, load_base, settled_clock
from lorascope.cohort.deadline import Deadline
from lorascope.cohort.events import Event, Events
from lorascope.cohort.training import warn
from lorascope.data.packing import collate
from lorascope.data.task import Notice, Task, encode_task, read_task
from lorascope.evaluate import EvaluationStep
from lorascope.lora.stack import Stack
from lorascope.losses import is_out_of_memory, model_inputs
from lorascope.plan import slot_of
from lorascope.shapley import Coalition, attribute, coalitions_of, estimate
from lorascope.store import Store

# So many rounds, or as few, within so many seconds; coalitions of up to six players are timed all.
_MOST_ROUNDS = 5
_FEWEST_ROUNDS = 3
_MOST_SECONDS = 60.0
_EXACT_COALITIONS = 64
_SAMPLED_PER_PLAYER = 8
# Of a turn: passes that are not timed, and those of which the shortest counts.
_WARM_UP = 1
_PASSES = 3

Inputs = dict[str, Tensor]


def measure_latency(game: Game, directory: Path, *, device: str = "cpu", deadline: Deadline | None = None) -> Events:
    """Time the coalitions of a study whose trials have been run, and store what each player adds.

    What was measured stays; where there was no time or memory for it, the reason is stored and warned of, and a later call
    tries again.

    Args:
        deadline: no more time is taken than is left.
    """
    with Store.create(directory, game.study, resume=True) as store:
        known = store.info(LATENCY_KEY)
        if known is not None and "players" in known:
            return
        left = _MOST_SECONDS if deadline is None else min(_MOST_SECONDS, deadline.left_seconds)
        if left <= 0.0:
            record: dict[str, Any] = {"reason": "the budget left no time for it; go on with --resume"}
        else:
            try:
                record = yield from _measured(game, device, left)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                record = {"reason": "memory ran out while the base was loaded or run once more"}
        store.set_info(LATENCY_KEY, record)
        if "reason" in record:
            message = f"latency was not measured: {record['reason']}"
            yield from warn(store, [Notice("latency", 1, "design", message)])


def _measured(game: Game, device: str, most_seconds: float) -> Generator[Event, None, dict[str, Any]]:
    """What the players add in milliseconds, and how it was measured; or the reason why not."""
    study = game.study
    raw = read_task(study.task, study.evaluate.split)  # the train split may tell which labels there are
    base = load_base(study.base, raw.task_type, raw.labels, device)
    task = encode_task(replace(raw, task_type=base.task_type), base.tokenizer, study.task.max_length)
    inputs, num_tokens = _inputs(base, task)
    coalitions = _coalitions(game)
    _turn(game, base, game.everyone, inputs)  # whatever torch and the system do once
    started = time.perf_counter()
    _turn(game, base, game.everyone, inputs)
    needed = len(coalitions) * max(time.perf_counter() - started, 1e-9)
    rounds = min(_MOST_ROUNDS, int(most_seconds / needed))
    if rounds < _FEWEST_ROUNDS:
        what = f"{_FEWEST_ROUNDS} rounds over {len(coalitions)} coalitions take about {_FEWEST_ROUNDS * needed:.0f} s"
        return {"reason": f"{what}, and {most_seconds:.0f} s are allowed"}
    times: dict[Coalition, list[float]] = {coalition: [] for coalition in coalitions}
    for number in range(rounds):
        for coalition in coalitions:
            times[coalition].append(1e3 * _turn(game, base, coalition, inputs))
        yield EvaluationStep("timing coalitions", number + 1, rounds, "rounds")
    is_exact = len(coalitions) == 1 << len(game.players)
    found = (attribute if is_exact else estimate)(list(game.players), times, higher_is_better=False)
    machine = hardware()
    return {
        "players": {
            player: {"ms": value.estimate, "low": _known(value.low), "high": _known(value.high)}
            for player, value in found.values.items()
        },
        "without_ms": sum(times[frozenset()]) / rounds,
        "with_all_ms": sum(times[game.everyone]) / rounds,
        "num_coalitions": len(coalitions),
        "exact": is_exact,
        "rounds": rounds,
        "tokens": num_tokens,
        "rows": 1,
        "phase": _PHASES[base.task_type],
        "device": machine["cuda"] if base.device.type == "cuda" else machine["processor"],
        "threads": machine["torch_threads"],
        "torch": machine["torch"],
        "dtype": study.base.dtype,
        "quantization": study.base.quantization,
    }


def _known(end: float) -> float | None:
    return end if math.isfinite(end) else None


_PHASES = {
    "SEQ_CLS": "one pass",
    "CAUSAL_LM": "one pass up to the first token's logits",
    "SEQ_2_SEQ_LM": "the encoder and the decoder's first step",
}


def _coalitions(game: Game) -> list[Coalition]:
    """All, or where these are too many as many as the values of so many players take."""
    if 1 << len(game.players) <= _EXACT_COALITIONS:
        return game.coalitions()
    most = max(_EXACT_COALITIONS, _SAMPLED_PER_PLAYER * len(game.players))
    return list(islice(coalitions_of(list(game.players), SAMPLING_SEED), most))


def _inputs(base: BaseModel, task: Task) -> tuple[Inputs, int]:
    """The evaluation example of middling length as the model is given it, and how many tokens it has."""
    lengths = [example.num_tokens for example in task.eval]
    middle = sorted(range(len(lengths)), key=lengths.__getitem__)[len(lengths) // 2]
    batch = collate(task.eval, [middle], base.pad_id)
    inputs = model_inputs(batch, base.device)
    num_tokens = inputs["input_ids"].shape[1]
    if base.task_type == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = torch.full_like(inputs["input_ids"][:, :1], base.start_id)
    return inputs, num_tokens


@torch.no_grad()
def _turn(game: Game, base: BaseModel, coalition: Coalition, inputs: Inputs) -> float:
    """Seconds of a pass with a coalition's adapters; their numbers are those that training would begin with."""
    slot = slot_of(game.trials([coalition])[0], base.model, base.heads)
    stack = Stack(base.model, [slot], base.heads, base.initial_head)
    takes = inspect.signature(base.model.forward).parameters
    last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    cache: dict[str, Any] = {"use_cache": False} if base.task_type == "CAUSAL_LM" else {}
    try:
        seconds = []
        for _ in range(_WARM_UP + _PASSES):
            started = settled_clock(base)
            base.model(**inputs, **last, **cache)
            seconds.append(settled_clock(base) - started)
        return min(seconds[_WARM_UP:])
    finally:
        stack.detach()
