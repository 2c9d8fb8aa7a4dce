"""PEFT + Trainer and TRL's SFTTrainer on the prepared rows. Imports nothing of Lorascope."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.job import Job
from benchmarks.measure import Measurement, count_timed, matmul_rates, step_flops, synchronise
from benchmarks.rows import Row, Work, read_rows, spread

SEED = 42


class Clock(TrainerCallback):
    """Marks the end of every step, keeps what Trainer logs, and ends the training when enough was timed."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device = device
        self.seconds = seconds
        self.marks: list[float] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step is the warm-up; two more are timed in any case."""
        synchronise(self.device)
        self.marks.append(time.perf_counter())
        if len(self.marks) >= 3 and self.marks[-1] - self.marks[0] >= self.seconds:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Losses and gradient norms, one a step."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.grad_norms.append(float(logs.get("grad_norm", float("nan"))))


def measure_training(job: Job) -> Measurement:
    """Train with a peer on an evenly spread sample of its own epoch, or on the batches of a parity run."""
    side, workload, facts = job.side, job.workload, job.prepared.facts
    rows = read_rows(job.prepared.dialogues if side.dialogues else job.prepared.rows)
    batch_size = side.batch_size or workload.batch_size
    dtype = side.dtype or workload.dtype
    hidden = facts["shape"]["hidden"]
    rates = matmul_rates(dtype, job.device, hidden) if job.parity is None else {}
    if side.medium:
        torch.set_float32_matmul_precision("medium")
    started = time.perf_counter()
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(job.prepared.model)
    model = load_model(job, "float32" if side.autocast else dtype, tokenizer)
    measurement = Measurement(side=side.name)
    with tempfile.TemporaryDirectory() as scratch:
        # Parity runs stop at the number of batches, never by time.
        clock = Clock(job.device, job.seconds if job.parity is None else float("inf"))
        trainer = _trainer(job, model, tokenizer, rows, batch_size, scratch, clock)
        if job.parity is not None:
            assert job.parity.batches is not None
            epoch = batches = job.parity.batches
            stated = max(map(len, batches))
        else:
            epoch = _own_batches(trainer, batch_size)
            batches = [epoch[index] for index in spread(len(epoch))]
            stated = _rows_that_fit(job, trainer, rows, batches, measurement)
            batches = [batch[:stated] for batch in batches]
        batches = [batches[step % len(batches)] for step in range(trainer.args.max_steps)]
        trainer.own_batches = batches
        measurement.load_seconds = time.perf_counter() - started
        started = time.perf_counter()
        with _rows_seen(trainer) as seen:
            trainer.train()
    num_steps = len(clock.marks)
    measurement.first_step_seconds = clock.marks[0] - started
    measurement.seconds = clock.marks[-1] - clock.marks[0]
    measurement.losses[f"c{job.configuration}"] = clock.losses
    measurement.grad_norms[f"c{job.configuration}"] = clock.grad_norms
    measurement.rows_per_step = stated
    if seen[:num_steps] != [len(batch) for batch in batches[:num_steps]]:
        raise RuntimeError(f"the trainer took batches of {seen[:num_steps]} rows, which are not those it was given")
    if job.parity is not None:
        return measurement
    work = count_timed(measurement, rows, batches[1:num_steps], epoch, _stored(side.padding_free), shared=False)
    if facts["task_type"] == "CAUSAL_LM":
        # A causal row needs half of its square.
        work = replace(work, attended_pairs=(work.attended_pairs + work.tokens) // 2)
    measurement.achieved_gflops = step_flops(facts["shape"], work, 1) / measurement.seconds / 1e9
    after = matmul_rates(dtype, job.device, hidden)
    measurement.probed_gflops = {name: max(rate, after[name]) for name, rate in rates.items()}
    return measurement


def load_model(job: Job, dtype: str, tokenizer: Any) -> Any:
    """The base with the initial adapter of the job's configuration; every dropout is off."""
    facts = job.prepared.facts
    labels = facts["labels"]
    classifies = facts["task_type"] == "SEQ_CLS"
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    extra = {"num_labels": len(labels)} if classifies else {}
    base = auto.from_pretrained(job.prepared.model, dtype=getattr(torch, dtype), **extra)
    base.config.pad_token_id = facts["pad_id"]
    tokenizer.pad_token_id = facts["pad_id"]
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"):
        if getattr(base.config, name, None):
            setattr(base.config, name, 0.0)
    model = PeftModel.from_pretrained(base, str(job.prepared.adapter(job.configuration)), is_trainable=True)
    return model.to(job.device)


def _trainer(job: Job, model: Any, tokenizer: Any, rows: list[Row], batch_size: int, scratch: str, clock: Clock) -> Any:
    side = job.side
    per_epoch = -(-len(rows) // batch_size)
    settings: dict[str, Any] = {
        "output_dir": scratch,
        "max_steps": job.parity.steps if job.parity is not None else max(3, per_epoch),
        "per_device_train_batch_size": batch_size,
        "learning_rate": job.workload.learning_rate,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": SEED,
        "use_cpu": job.device == "cpu",
        "bf16": side.autocast,
        "gradient_checkpointing": side.checkpointing,
        "train_sampling_strategy": "group_by_length" if side.grouped else "random",
    }
    dataset = _dataset(rows)
    if side.program == "sft":
        from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

        # The rows are cut already; with padding_free TRL does not enforce a length anyway.
        arguments = SFTConfig(**settings, max_length=None, padding_free=side.padding_free)
        trainer = _with_batches(SFTTrainer)(
            model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock]
        )
    else:
        classifies = rows[0].is_target is None
        collator = DataCollatorWithPadding(tokenizer) if classifies else DataCollatorForSeq2Seq(tokenizer)
        trainer = _with_batches(Trainer)(
            model=model,
            args=TrainingArguments(**settings),
            train_dataset=dataset,
            data_collator=collator,
            processing_class=tokenizer,
            callbacks=[clock],
        )
    if len(trainer.train_dataset) != len(rows):
        raise RuntimeError(f"the trainer kept {len(trainer.train_dataset)} of {len(rows)} rows")
    return trainer


def _with_batches(kind: Any) -> Any:
    """The trainer, but it takes the batches of ``own_batches`` one after the other."""

    class WithBatches(kind):  # type: ignore[misc]
        own_batches: list[list[int]]

        def get_train_dataloader(self) -> Any:
            loader: Any = DataLoader(self.train_dataset, batch_sampler=self.own_batches, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    return WithBatches


def _dataset(rows: list[Row]) -> Dataset:
    columns: dict[str, list[Any]] = {
        "input_ids": [row.input_ids for row in rows],
        "attention_mask": [[1] * len(row.input_ids) for row in rows],
    }
    if any(row.token_type_ids is not None for row in rows):
        columns["token_type_ids"] = [row.token_type_ids or [0] * len(row.input_ids) for row in rows]
    if rows[0].is_target is None:
        columns["labels"] = [row.label for row in rows]
    else:
        columns["labels"] = [
            [token if target else -100 for token, target in zip(row.input_ids, row.is_target or [], strict=True)]
            for row in rows
        ]
    return Dataset.from_dict(columns)


def _own_batches(trainer: Any, batch_size: int) -> list[list[int]]:
    """An epoch's batches as the trainer's own sampler would draw them."""
    set_seed(SEED)
    order = list(trainer._get_train_sampler(trainer.train_dataset))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _rows_that_fit(job: Job, trainer: Any, rows: list[Row], batches: list[list[int]], measurement: Measurement) -> int:
    """Rows of a timed batch: all, or fewer where two whole steps would take more than twice the time that there is.

    A row of median length goes forward and backward once; bf16 products without bf16 instructions make that necessary.
    """
    whole = max(map(len, batches))
    median = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))[len(rows) // 2]
    batch = trainer.data_collator([trainer.train_dataset[median]])
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    model = trainer.model.train()

    def one_pass() -> float:
        started = time.perf_counter()
        with torch.autocast(job.device.partition(":")[0], torch.bfloat16, enabled=job.side.autocast):
            model(**{name: value.to(job.device) for name, value in inputs.items()}).loss.backward()
        synchronise(job.device)
        return time.perf_counter() - started

    seconds = one_pass()
    if seconds < job.seconds / 4:
        # The first pass sets things up; only a very slow one is believed at once.
        seconds = one_pass()
    model.zero_grad()
    tokens = sum(max(len(rows[index].input_ids) for index in batch) for batch in batches) / len(batches)
    step = seconds * whole * tokens / len(rows[median].input_ids)
    if job.device != "cpu" or step <= job.seconds:
        return whole
    fitting = max(1, min(whole, int(whole * job.seconds / step)))
    if fitting < whole:
        measurement.notes.append(
            f"timed with batches cut to {fitting} of {whole} rows: by one row, a whole step would take about {step:.0f} s"
        )
    return fitting


@contextlib.contextmanager
def _rows_seen(trainer: Any) -> Iterator[list[int]]:
    """The number of rows of each batch that reaches the model."""
    seen: list[int] = []
    original = trainer.training_step

    def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        positions = inputs.get("position_ids")
        rows = len(inputs["input_ids"])
        # Flattened rows: each starts at position 0.
        seen.append(int((positions == 0).sum()) if rows == 1 and positions is not None else rows)
        return original(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    yield seen
    del trainer.training_step


def _stored(padding_free: bool) -> Any:
    """The tokens that a peer computes on."""

    def stored(work: Work) -> int:
        return work.tokens if padding_free else work.padded_tokens

    return stored
