"""A trial as a standalone program of PEFT and Trainer: the same initial adapter, data order, schedule and evaluation.

The program imports nothing of Lorascope. What it needs lies beside it: the initial adapter, the examples as token ids in
batch order, and the trial's predictions to compare with. At dropout 0 it arrives where the trial did, up to rounding; with
dropout the masks differ. Floor: ``cohort``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorascope.base_model import load_base, read_config, task_type_of
from lorascope.cohort.single import base_path
from lorascope.config import AdapterConfig, BaseModelConfig, Study, TrainConfig, TrialConfig
from lorascope.data.packing import batch_order
from lorascope.data.task import Example, RawTask, Task, encode_task, read_task
from lorascope.data.tree import sibling_groups
from lorascope.decode import end_tokens
from lorascope.errors import UsageError
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.stack import Slot, Stack
from lorascope.plan import slot_of
from lorascope.store import Store, atomic_directory, check_new

_TEMPLATE = Path(__file__).with_name("train_peft.py.txt")


def write_script(trial_directory: Path, out: Path) -> None:
    """Write ``train_peft.py`` and its inputs for a trial that is done.

    Args:
        trial_directory: ``runs/<study>/trials/<trial>``.
        out: a directory that is not there yet, or is empty.

    Raises:
        UsageError: there is no such trial, it has no adapter or no predictions, it is not one that the program can repeat, or
            ``out`` holds something.
    """
    check_new(out)
    study, trial = _find(trial_directory)
    raw = read_task(study.task, study.evaluate.split)
    _check_repeatable(study, trial, raw, str(trial_directory))
    try:
        predictions = (trial_directory / "predictions.jsonl").read_text(encoding="utf-8")
    except OSError as error:
        fix = "its program compares with them; run the trial again"
        raise UsageError(f"cannot read predictions.jsonl ({error.strerror})", where=str(trial_directory), fix=fix) from None
    base = load_base(trial.base, raw.task_type, raw.labels)
    task = encode_task(raw, base.tokenizer, study.task.max_length)
    slot = slot_of(trial, base.model, base.heads)
    stack = Stack(base.model, [slot], base.heads, base.initial_head)
    weights = stack.read(0)
    stack.detach()
    with atomic_directory(out, replace=False) as directory:
        (directory / "initial_adapter").mkdir()
        write_adapter(
            directory / "initial_adapter",
            weights,
            slot,
            base.model,
            heads=base.heads,
            base_model=base_path(trial.base),
            revision=trial.base.revision,
            task_type=base.task_type,
            labels=base.labels,
        )
        settings = _settings(study, trial, task, base.pad_id, end_tokens(base) if task.generates else [])
        settings["slices"] = _slices(slot)
        _write_json(directory / "settings.json", settings)
        _write_json(directory / "batches.json", _batches(trial, task.train))
        _write_lines(directory / "train.jsonl", [_row(example) for example in task.train])
        _write_lines(directory / "eval.jsonl", [_row(example) for example in task.eval])
        (directory / "predictions.jsonl").write_text(predictions, encoding="utf-8")
        (directory / "train_peft.py").write_text(_TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")


def _find(trial_directory: Path) -> tuple[Study, TrialConfig]:
    """The study and configuration of a trial's directory."""
    name = trial_directory.resolve().name
    absent = UsageError("no such trial", where=str(trial_directory), fix="give runs/<study>/trials/<trial>")
    if trial_directory.resolve().parent.name != "trials":
        raise absent
    with Store.open(trial_directory.resolve().parents[1]) as store:
        row = next((row for row in store.trials() if row.trial == name), None)
        if row is None:
            raise absent
        if row.adapter is None:
            what = f"the trial is {row.status} and has no adapter"
            raise UsageError(what, where=str(trial_directory), fix="give one that was trained with an adapter")
        sections = {
            section: schema.model_validate({key: row.config[key] for key in schema.model_fields if key in row.config})
            for section, schema in (("adapter", AdapterConfig), ("train", TrainConfig), ("base", BaseModelConfig))
        }
        return store.study, TrialConfig(**sections, seed=row.seed)


def _check_repeatable(study: Study, trial: TrialConfig, raw: RawTask, where: str) -> None:
    """The program loads the base in full, trains classifiers and causal models, and answers greedily."""
    if task_type_of(read_config(trial.base), raw.task_type) == "SEQ_2_SEQ_LM":
        what = "the trial's base is an encoder-decoder, and the program trains causal models and classifiers"
        raise UsageError(what, where=where, fix="give a trial of another base")
    if trial.base.quantization is not None:
        what = f"the trial's base is packed ({trial.base.quantization}), and the program would train on it in full"
        raise UsageError(what, where=where, fix="give a trial whose base is not quantised")
    strategy = study.evaluate.decoding[0].strategy
    if raw.generates and strategy != "greedy":
        what = f"the trial's answers were drawn ({strategy}), and the program answers greedily"
        raise UsageError(what, where=where, fix="run the study with greedy decoding")


def _settings(study: Study, trial: TrialConfig, task: Task, pad_id: int, ends: list[int]) -> dict[str, Any]:
    train = trial.train
    return {
        "trial": trial.trial,
        "base_model": base_path(trial.base),
        "revision": trial.base.revision,
        "dtype": trial.base.dtype,
        "task_type": task.task_type,
        "labels": list(task.labels),
        "pad_token_id": pad_id,
        "generates": task.generates,
        "end_token_ids": ends,
        "max_new_tokens": study.evaluate.decoding[0].max_new_tokens,
        "learning_rate": train.learning_rate,
        "warmup_ratio": train.warmup_ratio,
        "schedule": train.schedule,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "lora_dropout": trial.adapter.lora_dropout,
        "base_dropout": train.base_dropout,
        "seed": trial.seed,
    }


def _slices(slot: Slot) -> dict[str, list[list[int]]]:
    """For a fused projection the blocks of PEFT's one ``lora_B`` that the trial trains: first row, end row, first column, end.

    PEFT has one adapter per module and would train the rest of the matrix too, key's rows for a trial of query and value.
    """
    blocks: dict[str, list[list[int]]] = {}
    columns: dict[str, int] = {}
    for placement in slot.placements:
        column = columns.get(placement.target.module, 0)
        columns[placement.target.module] = column + placement.r
        if placement.target.part is not None:
            block = [*placement.target.part, column, column + placement.r]
            blocks.setdefault(placement.target.module, []).append(block)
    return blocks


def _batches(trial: TrialConfig, examples: Sequence[Example]) -> list[list[int]]:
    """Every optimiser batch of the trial, in order."""
    train, num_examples = trial.train, len(examples)
    groups = sibling_groups(examples)
    num_steps = train.num_steps(num_examples)
    epochs = -(-num_steps // train.steps_per_epoch(num_examples))
    batches = [rows for epoch in range(epochs) for rows in batch_order(groups, train.batch_size, trial.seed, epoch)]
    return batches[:num_steps]


def _row(example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"id": example.id, "input_ids": example.input_ids}
    if example.token_type_ids is not None:
        row["token_type_ids"] = example.token_type_ids
    if example.is_target is None:
        return row | {"label": example.label}
    pairs = zip(example.input_ids, example.is_target, strict=True)
    labels = [token if target else -100 for token, target in pairs]
    return row | {"labels": labels, "prompt_length": example.prompt_length, "answers": list(example.answers)}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
