"""Lorascope's side: the only file here that calls Lorascope. When its entry points change, this is what to adapt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.job import Job
from benchmarks.measure import Measurement, count_timed, matmul_rates, step_flops, synchronise
from benchmarks.rows import Row, read_rows, write_rows
from benchmarks.workloads import Workload
from lorascope.base_model import BaseModel, load_base
from lorascope.cohort.kernels import install_kernels
from lorascope.cohort.planner import packed_weights_budget
from lorascope.cohort.probe import steady_allocator
from lorascope.config import AdapterConfig, BaseModelConfig, DecodingConfig, TaskConfig, TrainConfig, TrialConfig
from lorascope.data.packing import batch_order
from lorascope.data.task import Example, encode_task, read_task
from lorascope.data.tree import sibling_groups
from lorascope.decode import end_tokens, generate
from lorascope.lora.peft_io import read_adapter, write_adapter
from lorascope.lora.stack import Slot, Stack
from lorascope.plan import slot_of
from lorascope.train import train

SEED = 42
# Prompt tokens of all slots in one decoding batch: Lorascope's own default.
_BATCH_TOKENS = 8192


def prepare(workload: Workload, model: Path, task: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write ``rows.jsonl`` and the initial adapters; returns what the other sides have to know.

    For decoding, ``lora_B`` is filled with seeded noise, so that the adapters do something.
    """
    raw = read_task(TaskConfig(**task, max_length=workload.max_length), "train")
    base = load_base(BaseModelConfig(model=str(model)), raw.task_type, raw.labels)
    encoded = encode_task(raw, base.tokenizer, workload.max_length)
    write_rows(directory / "rows.jsonl", [_row(example) for example in encoded.train])
    stack = Stack(base.model, _slots(workload, base, str(model)), base.heads, base.initial_head)
    for index, slot in enumerate(stack.slots):
        weights = stack.read(index)
        if workload.kind == "decode":
            generator = torch.Generator().manual_seed(index)
            for key, value in weights.lora_B.items():
                weights.lora_B[key] = 0.02 * torch.randn(value.shape, generator=generator).to(value.dtype)
        target = directory / "adapters" / str(index)
        target.mkdir()
        write_adapter(target, weights, slot, base.model, heads=base.heads, base_model=str(model), task_type=base.task_type)
    return {
        "task_type": base.task_type,
        "labels": list(raw.labels),
        "pad_id": base.pad_id,
        "end_ids": end_tokens(base) if base.task_type == "CAUSAL_LM" else [],
        "adapted": sorted({placement.target.module for slot in stack.slots for placement in slot.placements}),
        "notes": [notice.message for notice in encoded.notices if notice.kind in ("truncated", "dropped")],
    }


def measure_training(job: Job) -> Measurement:
    """Train the workload's cohort; the first step is the warm-up."""
    workload, side, facts = job.workload, job.side, job.prepared.facts
    dtype = side.dtype or workload.dtype
    rates = matmul_rates(dtype, job.device, facts["shape"]["hidden"]) if job.parity is None else {}
    rows = read_rows(job.prepared.rows)
    chosen = list(range(len(rows))) if job.parity is None or job.parity.rows is None else job.parity.rows
    examples = [_example(rows[index]) for index in chosen]
    batch_size = workload.batch_size if job.parity is None else job.parity.batch_size
    started = time.perf_counter()
    base = _load(job, dtype)
    stack = Stack(base.model, _slots(workload, base, str(job.prepared.model)), base.heads, base.initial_head)
    settings = TrainConfig(
        epochs=1 if len(examples) > 2 * batch_size else 3,
        batch_size=batch_size,
        learning_rate=workload.learning_rate,
        warmup_ratio=0.0,
        schedule="constant",
        max_steps=None if job.parity is None else job.parity.steps,
    )
    measurement = Measurement(num_configurations=stack.num_slots, rows_per_step=batch_size)
    measurement.load_seconds = time.perf_counter() - started
    epoch = _batches(examples, settings, 0)
    order = [*epoch, *_batches(examples, settings, 1), *_batches(examples, settings, 2)]
    names = {slot.name: f"c{index}" for index, slot in enumerate(stack.slots)}
    marks = [time.perf_counter()]
    for step in train(stack, base, examples, {slot.name: settings for slot in stack.slots}):
        synchronise(job.device)
        marks.append(time.perf_counter())
        num_tokens = sum(len(examples[row].input_ids) for row in order[step.step])
        if (step.num_examples, step.num_tokens) != (len(order[step.step]), num_tokens):
            raise RuntimeError("train() took other batches than this file thinks: adapt lorascope_side._batches")
        for name, result in step.slots.items():
            measurement.losses.setdefault(names[name], []).append(result.loss)
            measurement.grad_norms.setdefault(names[name], []).append(result.grad_norm)
        if job.parity is None and len(marks) >= 4 and marks[-1] - marks[1] >= job.seconds:
            break
    num_steps = len(marks) - 1
    measurement.first_step_seconds = marks[1] - marks[0]
    measurement.seconds = marks[-1] - marks[1]
    if job.parity is not None:
        measurement.batches = [[chosen[row] for row in batch] for batch in order[:num_steps]]
        return measurement
    shared = facts["task_type"] == "CAUSAL_LM"
    used = [rows[index] for index in chosen]
    work = count_timed(measurement, used, order[1:num_steps], epoch, lambda work: work.stored_tokens, shared)
    measurement.achieved_gflops = step_flops(facts["shape"], work, stack.num_slots) / measurement.seconds / 1e9
    after = matmul_rates(dtype, job.device, facts["shape"]["hidden"])
    measurement.probed_gflops = {name: max(rate, after[name]) for name, rate in rates.items()}
    return measurement


def measure_decoding(job: Job) -> Measurement:
    """Answer every question with every adapter; the first questions, once more, are the warm-up."""
    workload = job.workload
    rows = read_rows(job.prepared.rows)
    examples = [_example(row) for row in rows]
    started = time.perf_counter()
    base = _load(job, job.side.dtype or workload.dtype)
    saved = [read_adapter(job.prepared.adapter(index), f"c{index}") for index in range(len(workload.configurations))]
    stack = Stack(base.model, [adapter.slot for adapter in saved])
    for index, adapter in enumerate(saved):
        stack.write(index, adapter.weights)
    decoding = DecodingConfig(max_new_tokens=workload.max_new_tokens)
    measurement = Measurement(num_configurations=stack.num_slots, rows_per_step=len(rows))
    measurement.load_seconds = time.perf_counter() - started
    started = time.perf_counter()
    list(generate(stack, base, examples[:8], decoding, _BATCH_TOKENS))
    synchronise(job.device)
    measurement.first_step_seconds = time.perf_counter() - started
    answers: list[dict[str, Any]] = [{} for _ in saved]
    done: list[list[int]] = []
    started = time.perf_counter()
    for batch, generated in generate(stack, base, examples, decoding, _BATCH_TOKENS):
        done.append(list(batch))
        for slot, texts in enumerate(generated):
            for row, answer in zip(batch, texts, strict=True):
                answers[slot][rows[row].id] = {"text": answer.text, "tokens": getattr(answer, "tokens", None)}
        synchronise(job.device)
        if time.perf_counter() - started >= job.seconds:
            break
    measurement.seconds = time.perf_counter() - started
    measurement.answers = answers
    prompts = [Row(row.id, row.input_ids[: row.prompt_length]) for row in rows]
    every = [list(range(len(rows)))]
    count_timed(measurement, prompts, done, every, lambda work: work.tokens, shared=True)
    return measurement


def _load(job: Job, dtype: str) -> BaseModel:
    facts = job.prepared.facts
    quantization = {} if job.side.quantization is None else {"quantization": job.side.quantization}
    config = BaseModelConfig.model_validate({"model": str(job.prepared.model), "dtype": dtype, **quantization})
    base = load_base(config, facts["task_type"], facts["labels"], device=job.device)
    steady_allocator()
    install_kernels(base, packed_weights_budget(job.device))
    return base


def _slots(workload: Workload, base: BaseModel, model: str) -> list[Slot]:
    """One slot per configuration, all of one seed."""
    slots = []
    for index, configuration in enumerate(workload.configurations):
        adapter = AdapterConfig(
            r=configuration.r, lora_alpha=configuration.lora_alpha, lora_dropout=0.0, targets=list(configuration.targets)
        )
        trial = TrialConfig(base=BaseModelConfig(model=model), adapter=adapter, train=TrainConfig(), seed=SEED)
        slot = slot_of(trial, base.model, base.heads)
        slots.append(Slot(f"c{index}", SEED, slot.placements))
    return slots


def _batches(examples: list[Example], settings: TrainConfig, epoch: int) -> list[list[int]]:
    """The optimiser batches of an epoch, as ``train`` forms them."""
    return batch_order(sibling_groups(examples), settings.batch_size, SEED, epoch)


def _row(example: Example) -> Row:
    return Row(example.id, example.input_ids, example.is_target, example.label, example.token_type_ids, example.prompt_length)


def _example(row: Row) -> Example:
    return Example(row.id, row.input_ids, row.is_target, row.label, row.prompt_length, (), row.token_type_ids)
