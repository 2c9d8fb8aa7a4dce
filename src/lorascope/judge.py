"""The judge behind the C-score: an NLI model that is asked whether a reply entails a sentence about its speaker.

The C-score of a reply is the sum over its persona sentences of +1 where the reply entails the sentence, −1 where it
contradicts it, and 0 otherwise (Madotto et al. 2019, section 3). The reply is the premise and the sentence the hypothesis, as
in their code. What a score is worth depends on the judge, so a judge carries ``facts`` that are kept with it.

Knows which of a model's outputs means what, and asks once for every pair. Does not know where replies come from.
Floor: above ``losses`` and ``adapter``, below ``evaluate``.

Legend: B rows, K the three classes.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from lorascope.adapter import own_tokenizer, stack_saved
from lorascope.base_model import BaseModel, label_names, load_base, num_positions, read_config
from lorascope.config import BaseModelConfig, JudgeCheck, JudgeConfig, NLIClass, TaskConfig, validate
from lorascope.data.packing import collate, evaluation_batches
from lorascope.data.task import Example, RawTask, Record, encode_task, read_task
from lorascope.embedded import ADAPTERS
from lorascope.errors import DataError, ModelError, RunError
from lorascope.lora.peft_io import CONFIG_FILE, SavedAdapter, read_adapter
from lorascope.lora.stack import AdapterWeights, Stack
from lorascope.losses import class_logits, is_out_of_memory, release_memory

CLASSES: tuple[NLIClass, ...] = get_args(NLIClass)
POINTS: dict[NLIClass, int] = {"entailment": 1, "neutral": 0, "contradiction": -1}
_SPELLINGS: dict[str, NLIClass] = {
    "entailment": "entailment",
    "entail": "entailment",
    "neutral": "neutral",
    "contradiction": "contradiction",
    "contradict": "contradiction",
}
# Longest row of a judge whose positions are not bounded, and of one that could read whole books.
_MOST_TOKENS = 512
# Another meaning of the classes is believed when it wins by so many standard errors of the difference.
_CLEARLY = 3.0

# A premise (the reply) and a hypothesis (the persona sentence).
Pair = tuple[str, str]


@dataclass
class Judge:
    """An NLI model that answers each pair once.

    Attributes:
        stack: holds the judge's adapter, where it has one.
        labels: its classes in the order of its outputs.
        facts: model, adapter, revision, labels, checksum over all its weights, and the check that it passed or None; what a
            C-score must be kept with.
        batch_tokens: most tokens of a forward pass.
        notes: what people must be told about this judge.
        num_truncated: pairs that were too long for it and lost tokens.
    """

    base: BaseModel
    stack: Stack | None
    labels: tuple[NLIClass, ...]
    facts: dict[str, Any]
    batch_tokens: int
    notes: list[str] = field(default_factory=list)
    num_truncated: int = 0
    _answers: dict[Pair, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def max_length(self) -> int:
        """Most tokens of a pair."""
        bounds = [_MOST_TOKENS, num_positions(self.base.model.config), self.base.tokenizer.model_max_length]
        return min(bound for bound in bounds if bound is not None)

    @property
    def warnings(self) -> list[str]:
        """What must be told together with its verdicts so far."""
        if not self.num_truncated:
            return list(self.notes)
        return [*self.notes, f"{self.num_truncated} pairs were cut to the judge's {self.max_length} tokens"]

    @torch.no_grad()
    def judging(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, int]]:
        """Ask for the pairs that are new; ``label_pairs`` and ``c_scores`` then answer at once.

        Yields:
            After every forward pass, how many of the new pairs have been judged, and how many there are.

        Raises:
            ModelError: a logit is no finite number.
            RunError: memory does not suffice for a single pair.
        """
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._answers and not _says_nothing(pair)]
        examples = self._encoded(new)
        waiting = evaluation_batches([len(example.input_ids) for example in examples], self.batch_tokens)[::-1]
        done = 0
        while waiting:
            rows = waiting.pop()
            logits_BK = self._logits(examples, rows)
            if logits_BK is None:
                middle = len(rows) // 2
                waiting += [rows[middle:], rows[:middle]]
                continue
            for row, answer in zip(rows, logits_BK.softmax(dim=1).tolist(), strict=True):
                self._answers[new[row]] = tuple(answer)
            done += len(rows)
            yield done, len(new)

    def probabilities(self, pairs: Sequence[Pair]) -> list[dict[NLIClass, float]]:
        """What the judge believes of each pair. A text without words says nothing: neutral, and the model is not asked."""
        for _ in self.judging(pairs):
            pass
        neutral = tuple(float(name == "neutral") for name in CLASSES)
        return [dict(zip(CLASSES, self._answers.get(pair, neutral), strict=True)) for pair in pairs]

    def label_pairs(self, pairs: Sequence[Pair]) -> list[NLIClass]:
        """The likeliest class of each pair of premise and hypothesis."""
        return [max(CLASSES, key=answer.__getitem__) for answer in self.probabilities(pairs)]

    def c_scores(self, replies: Sequence[str], personas: Sequence[Sequence[str]]) -> list[int]:
        """Each reply's C-score against its own persona sentences; an empty reply has 0."""
        points = iter([POINTS[label] for label in self.label_pairs(pairs_of(replies, personas))])
        return [sum(next(points) for _ in persona) for persona in personas]

    def _encoded(self, pairs: Sequence[Pair]) -> list[Example]:
        """Encoded as examples of a task are, so that an adapter reads what it was trained on."""
        if not pairs:
            return []
        records = [Record(str(index), "the judge's pairs", *pair) for index, pair in enumerate(pairs)]
        raw = RawTask("judge", "SEQ_CLS", self.labels, [], records, "pairs", "", "", [], False, ())
        task = encode_task(raw, self.base.tokenizer, self.max_length)
        self.num_truncated += sum(notice.count for notice in task.notices if notice.kind == "truncated")
        return task.eval

    def _logits(self, examples: Sequence[Example], rows: Sequence[int]) -> Tensor | None:
        """In the order of CLASSES, float64; None where memory does not suffice for so many rows."""
        try:
            logits_BK = class_logits(self.base, collate(examples, rows, self.base.pad_id))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            logits_BK = None
        # The handler is left first: the error holds the frames of the failed pass, and with them its tensors.
        if logits_BK is None:
            release_memory(self.base.device)
            if len(rows) == 1:
                raise RunError(
                    "memory ran out at a single pair", where="evaluate.judge", fix="free some, or use a smaller judge"
                )
            return None
        if not bool(torch.isfinite(logits_BK).all()):
            raise ModelError("the judge's logits are not finite", where=self.facts["model"], fix="use another judge")
        return logits_BK[:, [self.labels.index(name) for name in CLASSES]].double().cpu()


def pairs_of(replies: Sequence[str], personas: Sequence[Sequence[str]]) -> list[Pair]:
    """What a judge is asked for C-scores: every reply with each sentence of its persona."""
    return [(reply, sentence) for reply, persona in zip(replies, personas, strict=True) for sentence in persona]


def load_judge(config: JudgeConfig, device: str = "cpu", batch_tokens: int = 8192) -> Judge:
    """Load the judge, learn what its classes mean, and check that on labelled pairs where there are some.

    The meaning is taken from ``config.labels``, else from what lies with the adapter, else from the model's own
    configuration. Names such as LABEL_0 mean nothing and are not guessed at.

    Raises:
        ModelError: it has no trained head or not three classes, their meaning is not known, or on the labelled pairs another
            meaning fits clearly better.
        AdapterError: the adapter cannot be read or does not fit.
        DataError: the labelled pairs cannot be read or are not of this kind.
    """
    adapter, saved, source = _sources(config)
    labels, notes = _meaning(config, source, adapter, saved)
    if saved is not None:
        source = source.with_tokenizer(own_tokenizer({cast(str, adapter): saved}, source))
    base = load_base(source, "SEQ_CLS", labels, device)
    if saved is None and base.new_parameters:
        raise ModelError(
            f"the model has no trained classification head ({base.new_parameters[0]!r} is not in the checkpoint)",
            where=config.model,
            fix="give an NLI model, or add the adapter that holds the head",
        )
    known = len(base.warnings)
    stack = None if saved is None else stack_saved(base, saved, cast(str, adapter))
    notes += base.warnings[known:]
    facts: dict[str, Any] = {
        "model": source.model,
        "adapter": adapter,
        "revision": source.revision or getattr(base.model.config, "_commit_hash", None),
        "labels": list(labels),
        "checksum": _checksum(base, stack),
        "check": None,
    }
    judge = Judge(base, stack, labels, facts, batch_tokens, notes)
    if config.check is None:
        judge.notes.append("the judge was not tried on labelled pairs (evaluate.judge.check): how good it is is not known")
    else:
        facts["check"] = _check(judge, config.check)
    return judge


def _sources(config: JudgeConfig) -> tuple[str | None, SavedAdapter | None, BaseModelConfig]:
    """The adapter's directory or name and its contents, where there is one, and the model to load."""
    source = BaseModelConfig(model=config.model, revision=config.revision)
    adapter = config.adapter
    if adapter is None and (config.model in ADAPTERS or (Path(config.model) / CONFIG_FILE).is_file()):
        adapter = config.model
    if adapter is None:
        return None, None, source
    saved = read_adapter(adapter)
    if saved.task_type not in (None, "SEQ_CLS"):
        raise ModelError(f"a judge classifies; this is a {saved.task_type} adapter", where=adapter, fix="use another")
    if adapter != config.model:
        return adapter, saved, source
    if not saved.base_model:
        fix = "give the base as judge.model and this directory as judge.adapter"
        raise ModelError("the adapter names no base model", where=adapter, fix=fix)
    revision = config.revision or saved.config.get("revision")
    values = {"model": saved.base_model, "revision": revision}
    return adapter, saved, validate(BaseModelConfig, values, f"{adapter}/{CONFIG_FILE}")


def _meaning(
    config: JudgeConfig, source: BaseModelConfig, adapter: str | None, saved: SavedAdapter | None
) -> tuple[tuple[NLIClass, ...], list[str]]:
    """The classes in the order of the outputs, and what is to be said about them."""
    place = adapter or source.model
    if saved is not None and (saved.labels or saved.weights.heads):
        # The adapter brings its own head, whose order the base's configuration does not know.
        names = list(saved.labels)
    else:
        names = list(label_names(read_config(source)))
    if names and len(names) != len(CLASSES):
        raise ModelError(
            f"it has {len(names)} classes ({', '.join(names)}), and a C-score needs entailment, neutral and contradiction",
            where=place,
            fix="give an NLI model of three classes",
        )
    classes = tuple(_SPELLINGS.get(name.strip().lower()) for name in names)
    known = set(classes) == set(CLASSES)
    if config.labels is not None:
        given = tuple(config.labels)
        differs = known and given != classes
        note = f"the judge's classes are taken as {', '.join(given)}, though it names them {', '.join(names)}"
        return given, [note] if differs else []
    if not known:
        shown = f"it names them {', '.join(names)}" if names else "their names were not kept with the adapter"
        raise ModelError(
            f"which of its classes are entailment, neutral and contradiction is not known ({shown})",
            where=place,
            fix="give judge.labels, its classes in the order of their numbers",
        )
    return cast("tuple[NLIClass, ...]", classes), []


def _check(judge: Judge, check: JudgeCheck) -> dict[str, Any]:
    """The judge's accuracy on labelled pairs; an error where the classes seem to mean something else."""
    raw, gold = _labelled_pairs(check)
    pairs = [(record.text, record.text_pair or "") for record in raw.eval]
    guesses = judge.label_pairs(pairs)
    # How often the first was right and the second was said.
    counts = Counter(zip(gold, guesses, strict=True))
    correct = sum(counts[name, name] for name in CLASSES)
    accuracy = correct / len(pairs)
    majority = max(Counter(gold).values()) / len(pairs)
    # What the judge says for each class under another meaning of its outputs, that which fits best.
    said = max(
        (dict(zip(CLASSES, order, strict=True)) for order in permutations(CLASSES)),
        key=lambda said: sum(counts[name, said[name]] for name in CLASSES),
    )
    better = sum(counts[name, said[name]] for name in CLASSES)
    # Pairs on which just one of the two meanings is right: a sign test.
    decisive = sum(counts[name, name] + counts[name, said[name]] for name in CLASSES if name != said[name])
    # A judge that always says one thing is right most often if that means the commonest class; no meaning follows from it.
    if better - correct > _CLEARLY * math.sqrt(decisive) and better / len(pairs) > majority:
        meant = {said[name]: name for name in CLASSES}
        order = ", ".join(meant[name] for name in judge.labels)
        raise ModelError(
            f"its classes seem to mean something else: on {len(pairs)} pairs of {raw.name} its accuracy is {accuracy:.1%} "
            f"when they are {', '.join(judge.labels)}, and {better / len(pairs):.1%} when they are {order}",
            where=judge.facts["adapter"] or judge.facts["model"],
            fix=f"set judge.labels to [{order}], or correct the labels of the check",
        )
    if accuracy <= majority:
        judge.notes.append(
            f"the judge is no better than a constant answer: {accuracy:.1%} of {len(pairs)} pairs of {raw.name} right, "
            f"of which {majority:.1%} have one label"
        )
    num_truncated, judge.num_truncated = judge.num_truncated, 0
    return {
        "task": raw.name,
        "data_checksum": raw.checksum,
        "split": raw.eval_split,
        "num_examples": len(pairs),
        "num_truncated": num_truncated,
        "accuracy": accuracy,
        "majority_accuracy": majority,
    }


def _labelled_pairs(check: JudgeCheck) -> tuple[RawTask, list[NLIClass]]:
    values: dict[str, Any] = {"name": check.task, "data": check.data, "max_eval": check.max_eval}
    # Without a train split, a file does not tell which labels there are.
    labels = list(CLASSES) if check.task == "file" else None
    raw = read_task(TaskConfig(**values, labels=labels), check.split, with_train=False)
    classes = [_SPELLINGS.get(label.strip().lower()) for label in raw.labels]
    if set(classes) != set(CLASSES) or any(record.text_pair is None for record in raw.eval):
        raise DataError(
            "the judge is checked on pairs of texts labelled entailment, neutral or contradiction, and these are not",
            where=f"evaluate.judge.check ({check.task})",
            fix="use sick, dialogue_nli, or a file with text, text_pair and label",
        )
    gold = [classes[record.label] for record in raw.eval if record.label is not None]
    return raw, cast("list[NLIClass]", gold)


def _says_nothing(pair: Pair) -> bool:
    return not all(text.strip() for text in pair)


def _checksum(base: BaseModel, stack: Stack | None) -> str:
    """SHA-256 over everything that the judge's answers depend on: base, adapter with its scaling, and head."""
    if stack is None:
        heads = {name: value for name, value in base.model.state_dict().items() if name.startswith(tuple(_inside(base)))}
        weights = AdapterWeights((), {}, {}, {}, heads)
    else:
        weights = stack.read(0)
    digest = hashlib.sha256(base.checksum.encode())
    for placement in weights.placements:
        digest.update(f"{placement.target.key} {placement.r} {placement.scaling!r}".encode())
    parts: tuple[tuple[str, Mapping[str, Tensor]], ...] = (
        ("lora_A", weights.lora_A),
        ("lora_B", weights.lora_B),
        ("bias", weights.biases),
        ("head", weights.heads),
    )
    for kind, tensors in parts:
        for name in sorted(tensors):
            value = tensors[name].detach().cpu().contiguous()
            digest.update(f"{kind} {name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _inside(base: BaseModel) -> list[str]:
    return [f"{head}." for head in base.heads]
