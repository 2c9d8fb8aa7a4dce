"""transformers' ``generate`` with PEFT, one adapter after the other. Imports nothing of Lorascope."""

from __future__ import annotations

import time
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.job import Job
from benchmarks.measure import Measurement, count_timed, synchronise
from benchmarks.rows import Row, Work, read_rows, spread


def measure_decoding(job: Job) -> Measurement:
    """Greedy answers to an evenly spread sample of the questions, the same for every adapter."""
    side, workload = job.side, job.workload
    if side.medium:
        torch.set_float32_matmul_precision("medium")
    rows = [Row(row.id, row.input_ids[: row.prompt_length]) for row in read_rows(job.prepared.rows)]
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(job.prepared.model)
    model = _load(job)
    num_adapters = len(workload.configurations)
    size = side.batch_size or workload.batch_size
    order = list(range(len(rows)))
    if side.grouped:
        order.sort(key=lambda index: len(rows[index].input_ids))
    epoch = [order[start : start + size] for start in range(0, len(order), size)]
    measurement = Measurement(side=side.name, num_configurations=num_adapters, rows_per_step=size)
    measurement.load_seconds = time.perf_counter() - started
    started = time.perf_counter()
    _answer(job, model, tokenizer, rows, epoch[0][: min(2, size)])
    measurement.first_step_seconds = time.perf_counter() - started
    done: list[list[int]] = []
    answers: list[dict[str, Any]] = []
    for adapter in range(num_adapters):
        started = time.perf_counter()
        model.set_adapter(f"c{adapter}")
        if side.merged:
            model.merge_adapter([f"c{adapter}"])
        texts: dict[str, Any] = {}
        # The first adapter's time decides how many batches there are; the others answer the same questions.
        todo = [epoch[index] for index in spread(len(epoch))] if adapter == 0 else done
        for batch in todo:
            texts.update(_answer(job, model, tokenizer, rows, batch))
            if adapter == 0:
                done.append(batch)
                if time.perf_counter() - started >= job.seconds / num_adapters:
                    break
        if side.merged:
            model.unmerge_adapter()
        measurement.seconds += time.perf_counter() - started
        answers.append(texts)
    measurement.answers = answers

    def computed(work: Work) -> int:
        return work.padded_tokens

    count_timed(measurement, rows, done, epoch, computed, shared=False)
    return measurement


def _load(job: Job) -> Any:
    dtype = getattr(torch, job.side.dtype or job.workload.dtype)
    base = AutoModelForCausalLM.from_pretrained(job.prepared.model, dtype=dtype)
    model = PeftModel.from_pretrained(base, str(job.prepared.adapter(0)), adapter_name="c0")
    for index in range(1, len(job.workload.configurations)):
        model.load_adapter(str(job.prepared.adapter(index)), adapter_name=f"c{index}")
    return model.to(job.device).eval()


@torch.no_grad()
def _answer(job: Job, model: Any, tokenizer: Any, rows: list[Row], batch: list[int]) -> dict[str, Any]:
    facts = job.prepared.facts
    width = max(len(rows[index].input_ids) for index in batch)
    gaps = [width - len(rows[index].input_ids) for index in batch]
    ids = torch.tensor([[facts["pad_id"]] * gap + rows[index].input_ids for gap, index in zip(gaps, batch, strict=True)])
    mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=job.workload.max_new_tokens,
        pad_token_id=facts["pad_id"],
        eos_token_id=facts["end_ids"] or None,
    )
    output = model.generate(input_ids=ids.to(job.device), attention_mask=mask.to(job.device), generation_config=settings)
    synchronise(job.device)
    answers = {}
    for index, tokens in zip(batch, output[:, width:].tolist(), strict=True):
        stop = next((place for place, token in enumerate(tokens) if token in facts["end_ids"]), len(tokens))
        text = str(tokenizer.decode(tokens[:stop], skip_special_tokens=True)).strip()
        answers[rows[index].id] = {"text": text, "tokens": tokens[:stop]}
    return answers
