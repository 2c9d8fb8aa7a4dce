"""On what the models are compared: a task's own examples, or texts drawn from the tokenizer's vocabulary, always the same.

Knows how inputs are chosen, cut to what memory allows, and laid out for each type of task. Does not know models but for their
tokenizer. Floor: ``certify``.

Legend: B rows, T tokens, S decoder tokens, K compared positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorascope.config import TaskConfig, TaskType
from lorascope.data.packing import Batch, collate, evaluation_batches
from lorascope.data.task import Example, Task, encode_task, read_task
from lorascope.errors import UsageError

# Texts that are drawn where there is no task; of large models fewer, so that a processor takes minutes and not hours.
NUM_DRAWN, FEWEST_DRAWN = 96, 24
_DRAWN_PARAMETERS = 5e10
_SEED = 0
_SHORTEST, _LONGEST = 6, 32
# Logits that are kept for comparison, of each of two models: 128 MB in float32.
_MOST_LOGITS = 2**25
_BATCH_TOKENS = 512
_BATCH_LOGITS = 2**24


@dataclass(frozen=True)
class Inputs:
    """Inputs and where they come from.

    Attributes:
        task: set where the inputs are a task's; all of its evaluation examples, which scores are computed on.
        origin: in words.
        num_offered: rows there were before memory limited them.
        pairs: two texts per row.
    """

    examples: list[Example]
    task_type: TaskType
    origin: str
    num_offered: int
    task: Task | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def num_positions(self) -> int:
        """Distributions that are compared."""
        if self.task_type == "SEQ_CLS":
            return len(self.examples)
        return sum(example.num_targets for example in self.examples)

    def checksum(self) -> str:
        """SHA-256 over the token ids and what is compared of them."""
        digest = hashlib.sha256()
        for one in self.examples:
            digest.update(repr((one.input_ids, one.target_ids, one.is_target, one.token_type_ids)).encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """As the certificate has it."""
        rows, offered = len(self.examples), self.num_offered
        return {
            "from": self.origin if rows == offered else f"{self.origin}; the first {rows} of {offered} rows",
            "rows": rows,
            "positions": self.num_positions,
            "tokens": sum(example.num_tokens for example in self.examples),
            "checksum": self.checksum(),
        }

    def batches(self, pad_id: int, num_logits: int) -> Iterator[Batch]:
        """Padded batches, short rows first, always the same."""
        width = 1 if self.task_type == "SEQ_CLS" else num_logits
        most = max(1, min(_BATCH_TOKENS, _BATCH_LOGITS // width))
        for rows in evaluation_batches([example.num_tokens for example in self.examples], most):
            yield collate(self.examples, rows, pad_id)


def task_inputs(config: TaskConfig, split: str, task_type: TaskType, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """A task's evaluation examples.

    Args:
        task_type: the base's own form of the task's (``base_model.task_type_of``).

    Raises:
        DataError: they cannot be read.
        UsageError: the task is of another type than the adapter.
    """
    raw = read_task(config, split, with_train=False)
    if (raw.task_type == "SEQ_CLS") != (task_type == "SEQ_CLS"):
        fix = "give a task of the kind that the adapter was trained for"
        raise UsageError(f"{raw.name} is a {raw.task_type} task, the adapter a {task_type} one", where="--task", fix=fix)
    task = encode_task(replace(raw, task_type=task_type), tokenizer, config.max_length)
    examples = [example for example in task.eval if task_type == "SEQ_CLS" or example.num_targets]
    origin = f"task {task.name}, {task.eval_split}"
    warnings = [notice.message for notice in task.notices]
    return Inputs(examples, task_type, origin, len(examples), task, warnings)


def drawn_inputs(tokenizer: PreTrainedTokenizerBase, task_type: TaskType, num_parameters: int = 0) -> Inputs:
    """Texts of tokens that are drawn evenly from the vocabulary, special ones left out, and encoded as any text is.

    Args:
        num_parameters: of the model, which decides how many texts.
    """
    num_texts = max(FEWEST_DRAWN, min(NUM_DRAWN, int(_DRAWN_PARAMETERS / max(1, num_parameters))))
    special = set(tokenizer.all_special_ids)
    ids = np.array(sorted(set(tokenizer.get_vocab().values()) - special))
    draw = np.random.default_rng(_SEED)

    def text() -> list[int]:
        drawn = draw.choice(ids, size=int(draw.integers(_SHORTEST, _LONGEST + 1)))
        encoded = tokenizer(tokenizer.decode(drawn.tolist()), truncation=True, max_length=4 * _LONGEST)["input_ids"]
        return list(encoded) if len(encoded) > 1 else drawn.tolist()

    examples = []
    for number in range(num_texts):
        row = text()
        if task_type == "SEQ_CLS":
            examples.append(Example(str(number), row, None, 0, 0))
        elif task_type == "SEQ_2_SEQ_LM":
            examples.append(Example(str(number), row, None, None, len(row), target_ids=text()))
        else:
            examples.append(Example(str(number), row, [False] + [True] * (len(row) - 1), None, 1))
    origin = (
        f"texts of {_SHORTEST} to {_LONGEST} tokens drawn from the tokenizer's vocabulary (seed {_SEED}); no task was given"
    )
    return Inputs(examples, task_type, origin, len(examples))


def limited(inputs: Inputs, num_logits: int, num_positions: int | None) -> Inputs:
    """The first rows whose logits fit into memory, at least one.

    Args:
        num_logits: classes, or the vocabulary.
        num_positions: tokens that the model has positions for; longer rows are left out.
    """
    longest = [max(len(one.input_ids), len(one.target_ids or ())) for one in inputs.examples]
    fitting = [one for one, length in zip(inputs.examples, longest, strict=True) if length <= (num_positions or length)]
    kept: list[Example] = []
    total = 0
    for example in fitting:
        total += num_logits * (1 if inputs.task_type == "SEQ_CLS" else example.num_targets)
        if kept and total > _MOST_LOGITS:
            break
        kept.append(example)
    return replace(inputs, examples=kept)


def compared_positions(batch: Batch, task_type: TaskType) -> tuple[Tensor, Tensor] | None:
    """Rows and places whose logits are compared, ``[K]`` each; None for a classifier, whose every row is.

    Places of an encoder–decoder are the decoder's.
    """
    if task_type == "SEQ_CLS":
        return None
    if task_type == "SEQ_2_SEQ_LM":
        assert batch.target_mask_BS is not None
        row_K, place_K = batch.target_mask_BS.nonzero().unbind(1)
        return row_K, place_K
    assert batch.is_target_BT is not None
    row_K, place_K = batch.is_target_BT[:, 1:].to(torch.bool).nonzero().unbind(1)
    return row_K, place_K
