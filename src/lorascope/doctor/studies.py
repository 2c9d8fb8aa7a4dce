"""Checks of whole runs: a killed study that goes on, and answers against transformers' own ``generate``. Floor: doctor.

Legend: T tokens.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from transformers import GenerationConfig

from lorascope.cohort.run import Limits, run_study
from lorascope.config import DecodingConfig, Study
from lorascope.data.record import Example
from lorascope.decode import end_tokens, generate
from lorascope.design import expand
from lorascope.doctor import models
from lorascope.doctor.finding import Finding, Setting
from lorascope.store import Store
from lorascope.train import StepResult

_KILLED_AFTER = 3
_NEW_TOKENS = 10


def resume(setting: Setting) -> Finding:
    """A small study, copied in mid-training as a kill leaves it: the copy, resumed, ends with the bits of the original."""
    with TemporaryDirectory() as name:
        study = _small_study(Path(name))
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        limits = Limits(device=setting.device, checkpoint_seconds=0)
        with closing(run_study(study, expand(study), whole, limits=limits)) as events:
            for event in events:
                if isinstance(event, StepResult) and event.step == _KILLED_AFTER:
                    shutil.copytree(whole, killed)
        resumed = run_study(study, expand(study), killed, resume=True, limits=limits)
        steps = [event.step for event in resumed if isinstance(event, StepResult)]
        expected, found = _left_behind(whole), _left_behind(killed)
    different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    wrong, warnings = [], []
    if not steps or steps[0] == 0:
        wrong.append("the study did not go on from its checkpoint")
    if found["statuses"] != ["done", "done"]:
        wrong.append(f"its trials ended as {', '.join(found['statuses'])}")
    elif different and setting.device == "cpu":
        wrong.append(f"{len(different)} of {len(expected)} results differ ({different[0]})")
    elif different:
        warnings.append(f"{len(different)} of {len(expected)} results differ: not every kernel here is deterministic")
    showed = f"goes on at step {steps[0] if steps else '–'}; {len(expected) - len(different)} of {len(expected)} results equal"
    figures = {"results": len(expected), "different": len(different), "resumed_at": steps[0] if steps else None}
    return Finding(showed, figures, tuple(wrong), tuple(warnings))


def _small_study(directory: Path) -> Study:
    """Two trials on texts of two classes, six steps each; base and data are written to ``directory``."""
    models.write(models.body(), directory / "model")
    draw = random.Random(1)
    seen: set[str] = set()
    paths = {}
    for split, size in (("train", 12), ("validation", 6)):
        lines: list[str] = []
        while len(lines) < size:
            words = draw.sample(range(models.NUM_SPECIAL, models.VOCABULARY), 6)
            text = " ".join(f"w{word}" for word in words)
            if text not in seen:
                seen.add(text)
                lines.append(json.dumps({"text": text, "label": "high" if words[0] > words[1] else "low"}))
        paths[split] = directory / f"{split}.jsonl"
        paths[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Study.model_validate(
        {
            "name": "doctor",
            "base": {"model": str(directory / "model")},
            "task": {
                "name": "file",
                "data": {split: str(path) for split, path in paths.items()},
                "labels": ["low", "high"],
                "max_length": 16,
            },
            "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
            "seeds": [1],
            "design": {"kind": "list", "trials": [{"r": 2, "lora_dropout": 0.2}, {"r": 3, "targets": "all-linear"}]},
        }
    )


def _left_behind(directory: Path) -> dict[str, Any]:
    """What must not depend on where a study was broken off: files, metrics, curves."""
    files = (path for path in sorted((directory / "trials").rglob("*")) if path.is_file())
    found: dict[str, Any] = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    with Store.open(directory) as store:
        trials = store.trials()
        found["statuses"] = [row.status for row in trials]
        for row in trials:
            steps = [{key: value for key, value in step.items() if key != "seconds"} for step in store.steps(row.trial)]
            found |= {f"metrics of {row.trial}": row.metrics, f"curves of {row.trial}": steps}
    return found


def decoding(setting: Setting) -> Finding:
    """Greedy answers of two slots at once, shared prefixes read once, against ``generate`` one prompt at a time."""
    base = models.as_base(models.make("gpt2", torch.float64, setting.device))
    slots = [models.slot(base.model, "a", 1), models.slot(base.model, "b", 2, "all-linear", r=2)]
    examples = [Example(one.id, one.input_ids, one.is_target, None, one.prompt_length) for one in _prompts()]
    found: list[list[tuple[int, ...]]] = [[() for _ in examples] for _ in slots]
    with models.installed(base, slots) as stack:
        weights = [stack.read(index) for index in range(2)]
        for rows, answers in generate(stack, base, examples, DecodingConfig(max_new_tokens=_NEW_TOKENS), 10**6):
            for own, of_slot in zip(found, answers, strict=True):
                for row, answer in zip(rows, of_slot, strict=True):
                    own[row] = answer.tokens
    ends = end_tokens(base, examples)
    expected = []
    for one in weights:
        twin = models.make("gpt2", torch.float64, setting.device)
        twin.load_state_dict(models.adapted_weights(twin, one), strict=False)
        expected.append([_by_generate(twin, example, ends) for example in examples])
    different = sum(
        mine != theirs
        for own, reference in zip(found, expected, strict=True)
        for mine, theirs in zip(own, reference, strict=True)
    )
    total = len(slots) * len(examples)
    wrong = [f"{different} of {total} answers are not those of generate"] if different else []
    if len({answer for own in expected for answer in own}) < total // 2:
        wrong.append("the answers are too alike to show anything")
    if not base.packs:
        wrong.append(f"prefixes are not shared ({'; '.join(base.warnings)})")
    tokens = sum(len(answer) for own in expected for answer in own)
    figures = {"answers": total, "different": different, "tokens": tokens, "shares_prefixes": bool(base.packs)}
    return Finding(f"{total} answers, {tokens} tokens, all as generate gives them", figures, tuple(wrong))


def _prompts() -> list[Example]:
    """Prompts of different lengths; some share their beginning."""
    context = models.random_ids(20, 30)
    texts = [context + models.random_ids(3, 31), context + models.random_ids(6, 32), context, models.random_ids(7, 33)]
    return [models.continued(str(index), [*ids, 4, 5], len(ids)) for index, ids in enumerate(texts)]


def _by_generate(model: Any, example: Example, ends: Sequence[int]) -> tuple[int, ...]:
    """Greedy tokens before the first end token."""
    ids = torch.tensor([example.input_ids[: example.prompt_length]], device=model.device)
    settings = GenerationConfig(do_sample=False, max_new_tokens=_NEW_TOKENS, pad_token_id=0)
    model.generation_config = settings
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    tokens = cast(list[int], output[0, ids.shape[1] :].tolist())
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:stop])
