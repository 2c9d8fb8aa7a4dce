"""Whether data are fit to learn from: findings with their places, and figures, before anything is trained.

Records tell what repeats, leaks or is missing (``overlap``). Examples tell what a model would learn: the tokens marked as
targets are decoded and compared with the answers that the records hold, spaces aside, and must close with a token that ends
generation. What reading and encoding reported about answers and prompts is repeated here, so that one list holds all.

An **error** makes results wrong and stops a study unless its kind is allowed (``--allow``, ``task.allow``); a **warning** is
stored with the study.

    kind              error                                            warning
    overlap           more than 1 % of the evaluation records are      fewer; a 13-gram or an input in common
                      in train, exactly or normalised
    truncated_target  a target cut short; more than 5 % of the split   fewer
                      dropped because its answers do not fit
    empty_target      a training example that learns an empty answer   in evaluation; records left out for it
    missing_end       a target without end token: answers never end
    wrong_mask        targets that are not the record's answer
    special_text      a control token is written out in a training      in other texts
                      target: the model would learn to end there
    duplicate, conflict, label_missing, one_class, no_tokens,          always
    dropped, truncated, answer_lost, first_token, misplaced_answer

None of the published data that were measured has an error (docs/decisions/0005). Does not know files or models. Floor: data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, groupby, takewhile
from typing import TYPE_CHECKING, Any, Literal, cast

from lorascope.config import TaskType
from lorascope.data.overlap import Shared, contradicting, leaked, num_repeated_targets, repeated
from lorascope.data.prompt import UNCUT, encode_records, one_target_each
from lorascope.data.record import Example, Notice, RawTask, Record, Task
from lorascope.data.tokens import special_ids, special_texts
from lorascope.errors import CheckFailed, UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS: dict[str, str] = {
    "overlap": "evaluation records that train holds",
    "truncated_target": "answers cut short, or dropped because they do not fit",
    "empty_target": "answers of no text",
    "missing_end": "answers without an end token",
    "wrong_mask": "tokens learned that are not the answer, or the other way round",
    "duplicate": "records that repeat an earlier one",
    "conflict": "equal inputs with different answers",
    "label_missing": "classes without a training record",
    "one_class": "training records of one class only",
    "special_text": "texts that hold the tokenizer's control tokens",
    "no_tokens": "texts of which the tokenizer knows nothing",
    "dropped": "records left out",
    "truncated": "prompts cut to the longest length",
    "answer_lost": "contexts cut so that they no longer hold the answer",
    "first_token": "answers without a prompt, whose first token cannot be learned",
    "misplaced_answer": "answers that are not where the data say",
}
LEAKED_SHARE = 0.01
TRUNCATED_SHARE = 0.05
_PLACES = 3
_BARS = 16
# An empty pair of tags, as templates of reasoning models put before an answer (``<think></think>``).
_EMPTY_TAGS = re.compile(r"<(\w+)></\1>")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with the data, or may be.

    Attributes:
        kind: one of ``KINDS``.
        count: of the split's records or examples.
        places: the first few, as ``file:line``.
        told: a notice of reading or encoding says it already.
    """

    kind: str
    severity: Literal["error", "warning"]
    split: str
    count: int
    places: tuple[str, ...]
    message: str
    told: bool = False

    @property
    def summary(self) -> str:
        """The message without places."""
        return self.message.partition(" (first: ")[0].rstrip(".") if self.places else self.message.rstrip(".")


@dataclass(frozen=True)
class SplitFigures:
    """One split in numbers; those of tokens are None where no tokenizer was at hand.

    Attributes:
        num_repeated_targets: of the texts to be learned, how many an earlier one of the split equals; None for classifiers.
        lengths: token counts ``(from, to)``, both inclusive, and how many examples have as many.
    """

    split: str
    num_records: int
    num_examples: int | None = None
    num_tokens: int | None = None
    num_target_tokens: int | None = None
    median_tokens: int | None = None
    longest_tokens: int | None = None
    num_repeated_targets: int | None = None
    lengths: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Audit:
    """What was found, errors first."""

    findings: tuple[Finding, ...]
    figures: tuple[SplitFigures, ...]

    def refused(self, allow: Collection[str]) -> tuple[Finding, ...]:
        """The errors that ``allow`` does not name.

        Raises:
            UsageError: ``allow`` names no kind of finding.
        """
        check_kinds(allow)
        return tuple(finding for finding in self.findings if finding.severity == "error" and finding.kind not in allow)

    def check(self, allow: Collection[str]) -> None:
        """Raise a CheckFailed where an error is not allowed."""
        refused = self.refused(allow)
        if refused:
            first = refused[0]
            kinds = list(dict.fromkeys(finding.kind for finding in refused))
            others = len(refused) - 1
            more = f" (and {others} more error{'s' if others > 1 else ''})" if others else ""
            raise CheckFailed(
                f"{first.kind}: {first.summary}{more}",
                where=first.places[0] if first.places else first.split,
                fix=f"correct the data, or accept this with --allow {' --allow '.join(kinds)} "
                f"or task.allow: [{', '.join(kinds)}]",
            )

    def notices(self) -> list[Notice]:
        """The findings that no notice has told yet."""
        return [
            Notice(finding.kind, finding.count, finding.split, finding.message, finding.places)
            for finding in self.findings
            if not finding.told
        ]


def check_kinds(allow: Collection[str]) -> None:
    """Raise a UsageError for what is no kind of finding."""
    for kind in allow:
        if kind not in KINDS:
            raise UsageError(f"no kind of finding {kind!r}", where="task.allow", fix=did_you_mean(kind, list(KINDS)))


def audit(raw: RawTask, task: Task | None, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> Audit:
    """Look for what is wrong with a task's data.

    Args:
        task: the same records encoded by ``tokenizer``; without them only the records are looked at.
        max_length: what ``task`` was encoded with.
    """
    findings = [*_of_records(raw), *_of_notices(raw.notices)]
    splits: list[tuple[str, list[Record], list[Example]]] = [("train", raw.train, task.train if task else [])]
    if raw.eval_split != "train":
        splits.append((raw.eval_split, raw.eval, task.eval if task else []))
    splits = [each for each in splits if each[1]]
    if task is None or tokenizer is None:
        return _sorted(findings, [_figures(split, records, None) for split, records, _ in splits])
    own = task.notices[len(raw.notices) :]
    findings += _of_notices(notice for notice in own if notice.kind != "dropped")  # told below, with all places
    checker = _TokenCheck(tokenizer, max_length, {(notice.kind, notice.where) for notice in own})
    for split, records, examples in splits:
        findings += checker.findings(records, examples, split, task.task_type)
    return _sorted(findings, [_figures(split, records, examples) for split, records, examples in splits])


def _sorted(findings: Sequence[Finding], figures: Sequence[SplitFigures]) -> Audit:
    return Audit(tuple(sorted(findings, key=lambda finding: finding.severity)), tuple(figures))


def _found(
    kind: str, severity: Literal["error", "warning"], split: str, places: Sequence[str], message: str, told: bool = False
) -> Finding:
    first = f" (first: {places[0]})" if places else ""
    return Finding(kind, severity, split, len(places), tuple(places[:_PLACES]), f"{message}{first}.", told)


def _of_records(raw: RawTask) -> Iterator[Finding]:
    """Repetitions, contradictions, leakage and classes."""
    twice = [shared.place for shared in repeated(raw.train)]
    if twice:
        yield _found(
            "duplicate", "warning", "train", twice, f"{len(twice)} of {len(raw.train)} train records repeat an earlier one"
        )
    conflicts = [shared.place for shared in contradicting(raw.train)]
    if conflicts:
        message = f"{len(conflicts)} of {len(raw.train)} train records have the input of another and a different answer"
        yield _found("conflict", "warning", "train", conflicts, message)
    if raw.eval_split != "train":
        yield from _leakage(leaked(raw.train, raw.eval), len(raw.eval), raw.eval_split)
    yield from _classes(raw)


def _leakage(found: Sequence[Shared], num_records: int, split: str) -> Iterator[Finding]:
    whole = [shared.place for shared in found if shared.grade in ("exact", "normalised")]
    if whole:
        severity: Literal["error", "warning"] = "error" if len(whole) > LEAKED_SHARE * num_records else "warning"
        differing = sum(shared.grade == "normalised" for shared in found)
        how = f", {differing} of them but for case, punctuation, spaces or label" if differing else ""
        yield _found("overlap", severity, split, whole, f"{len(whole)} of {num_records} {split} records are in train{how}")
    for grade, what in (("input", "have the input of a train record"), ("13-gram", "share 13 words in a row with train")):
        places = [shared.place for shared in found if shared.grade == grade]
        if places:
            yield _found("overlap", "warning", split, places, f"{len(places)} of {num_records} {split} records {what}")


def _classes(raw: RawTask) -> Iterator[Finding]:
    if not raw.labels or not raw.train:
        return
    counts = Counter(record.label for record in raw.train)
    if len(counts) == 1:
        message = f"all {len(raw.train)} train records in use have one label; max_train takes the first ones."
        yield Finding("one_class", "warning", "train", len(raw.train), (), message)
        return
    missing = [name for number, name in enumerate(raw.labels) if number not in counts]
    if missing:
        message = f"no train record in use has the label {' or '.join(missing[:5])}{' …' if len(missing) > 5 else ''}."
        yield Finding("label_missing", "warning", "train", len(missing), (), message)


def _of_notices(notices: Iterable[Notice]) -> Iterator[Finding]:
    for notice in notices:
        if notice.kind in KINDS:
            yield Finding(notice.kind, "warning", notice.where, notice.count, notice.places, notice.message, told=True)


class _TokenCheck:
    """Compares examples with the records that they were made of."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, told: Collection[tuple[str, str]]) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._told = told
        self._special = special_ids(tokenizer)
        self._special_texts = special_texts(tokenizer)

    def findings(
        self, records: Sequence[Record], examples: Sequence[Example], split: str, task_type: TaskType
    ) -> Iterator[Finding]:
        """What is wrong with a split's examples."""
        yield from self._control_tokens(records, split)
        pairs, lost = paired(records, examples, task_type)
        told = ("dropped", split) in self._told
        if any(record.segments for record in records):
            yield from self._targets(pairs, lost, split, told)
            return
        if lost:
            message = f"{len(lost)} {split} records were dropped: their text has no tokens"
            yield _found("no_tokens", "warning", split, _places(lost), message, told)
        unknown = [record for record, example in pairs if self._special.issuperset(example.input_ids)]
        if unknown:
            message = f"{len(unknown)} {split} texts have no token but special ones"
            yield _found("no_tokens", "warning", split, _places(unknown), message)

    def _control_tokens(self, records: Sequence[Record], split: str) -> Iterator[Finding]:
        """Texts that write out what a tokenizer reads as a mark: an answer that holds the end token ends there."""
        written = re.compile("|".join(map(re.escape, self._special_texts)) or r"(?!)")
        learned, read = [], []
        for record in records:
            targets = [segment.text for segment in record.segments if segment.is_target]
            others = (record.text, record.text_pair or "", *(s.text for s in record.segments if not s.is_target))
            if split == "train" and any(written.search(text) for text in targets):
                learned.append(record)
            elif any(written.search(text) for text in (*targets, *others)):
                read.append(record)
        for severity, found, what in (("error", learned, "learn"), ("warning", read, "hold")):
            if found:
                message = f"{len(found)} {split} records {what} a control token of the tokenizer, written out in their text"
                yield _found("special_text", cast("Literal['error', 'warning']", severity), split, _places(found), message)

    def _targets(
        self, pairs: Sequence[tuple[Record, Example]], lost: Sequence[Record], split: str, told: bool
    ) -> Iterator[Finding]:
        faults: dict[str, list[str]] = {}
        if ("target_dropped", split) in self._told:
            pairs = self._without_dropped_targets(pairs)
        for (record, _), fault in zip(pairs, self._faults(pairs), strict=True):
            if fault is not None:
                faults.setdefault(fault, []).append(record.where)
        num_records = len(pairs) + len(lost)
        if lost:
            message = (
                f"{len(lost)} of {num_records} {split} examples were dropped: max_length {self._max_length} cuts an answer"
            )
            severity: Literal["error", "warning"] = "error" if len(lost) > TRUNCATED_SHARE * num_records else "warning"
            yield _found("truncated_target", severity, split, _places(lost), message, told)
        for kind, what in (
            ("truncated_target", "have a target that is cut short"),
            ("empty_target", "have a target without text"),
            ("missing_end", "have a target that no end token closes, so that answers would not end"),
            ("wrong_mask", "learn other tokens than their target's"),
        ):
            places = faults.get(kind, [])
            if places:
                harmless = kind == "empty_target" and split != "train"
                message = f"{len(places)} of {num_records} {split} examples {what}"
                known = kind == "missing_end" and ("no_end", split) in self._told
                yield _found(kind, "warning" if harmless else "error", split, places, message, known)

    def _without_dropped_targets(self, pairs: Sequence[tuple[Record, Example]]) -> list[tuple[Record, Example]]:
        """The pairs, their records without the targets that went with a conversation's oldest exchanges.

        The example has the uncut record's tokens but for a stretch; the targets in it are gone, whatever the mask says.
        Where the tokens around fit two stretches (an exchange said twice), the mask decides between these.
        """
        fewer = [index for index, (record, example) in enumerate(pairs) if _num_runs(example) < _num_targets(record)]
        records = [pairs[index][0] for index in fewer]
        whole, _ = encode_records(records, self._tokenizer, UNCUT, "train", training=True, generates=False)
        kept = list(pairs)
        for index, uncut in zip(fewer, whole, strict=True):
            record, example = pairs[index]
            places = [place for place, segment in enumerate(record.segments) if segment.is_target]
            least, most = _num_gone(uncut, example)
            gone = set(places[: min(max(least, len(places) - _num_runs(example)), most)])
            segments = tuple(replace(s, is_target=False) if at in gone else s for at, s in enumerate(record.segments))
            kept[index] = (replace(record, segments=segments), example)
        return kept

    def _faults(self, pairs: Sequence[tuple[Record, Example]]) -> list[str | None]:
        """For each example what is wrong with its targets, or None."""
        targets = [_targets_of(example) for _, example in pairs]
        given = self._texts(targets)
        expected = [_squeezed("".join(s.text for s in record.segments if s.is_target)) for record, _ in pairs]
        closing = [_closing_tokens(example) for _, example in pairs]
        ends = self._ends(closing)
        faults: list[str | None] = []
        for (record, example), last, text, wanted in zip(pairs, closing, given, expected, strict=True):
            fault = None
            if text != wanted:
                fault = self._mismatch(record, example, text, wanted)
            elif not all(segment.text.strip() for segment in record.segments if segment.is_target):
                fault = "empty_target"
            if fault is None and not self._is_in_place(record, example):
                fault = "wrong_mask"
            if fault is None and not ends.issuperset(last):
                fault = "missing_end"
            faults.append(fault)
        return faults

    def _ends(self, closing: Sequence[Sequence[int]]) -> set[int]:
        """The tokens that may close a target: the tokenizer's end token, and the special one that a chat template writes."""
        ends = set() if self._tokenizer.eos_token_id is None else {int(self._tokenizer.eos_token_id)}
        if self._tokenizer.chat_template:
            written = Counter(token for of_example in closing for token in of_example if token in self._special)
            ends.update(token for token, _ in written.most_common(1))
        return ends

    def _mismatch(self, record: Record, example: Example, text: str, wanted: str) -> str | None:
        """What kind of difference there is between target tokens and answer; None where it is none."""
        is_target = example.is_target
        if is_target is not None and is_target[1:2] == [True] and not is_target[0]:
            # With nothing before it, the first token is not learned.
            [text_from_first] = self._texts([[example.input_ids[0], *_targets_of(example)]])
            if text_from_first == wanted:
                return None
        [round_trip] = self._texts([self._encoded(record)])
        if text == round_trip:
            return None  # the tokenizer itself loses something: case, an unknown character
        [everything] = self._texts([example.input_ids])
        last = _squeezed([segment.text for segment in record.segments if segment.is_target][-1])
        if example.target_ids is None and last and everything.endswith(last):
            return "wrong_mask"  # nothing is missing from the end
        if wanted.startswith(text) and len(text) < len(wanted):
            return "truncated_target"
        return "wrong_mask"

    def _encoded(self, record: Record) -> list[int]:
        texts = [segment.text for segment in record.segments if segment.is_target]
        encoded: Any = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [token for ids in encoded["input_ids"] for token in ids]

    def _is_in_place(self, record: Record, example: Example) -> bool:
        """Whether the last target begins where generation would, and nothing but special tokens follows it."""
        if example.is_target is None:
            return True
        runs = list(_runs(example.is_target))
        if not runs:
            return False
        start, end = runs[-1]
        if start != max(example.prompt_length, 1) or len(runs) > _num_targets(record):
            return False
        tail = example.input_ids[end:]
        return not tail or not self._texts([tail])[0]

    def _texts(self, sequences: Sequence[list[int]]) -> list[str]:
        texts = self._tokenizer.batch_decode(list(sequences), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [_squeezed(text) for text in texts]


def paired(
    records: Sequence[Record], examples: Sequence[Example], task_type: TaskType
) -> tuple[list[tuple[Record, Example]], list[Record]]:
    """Each example with the record that it was made of, and the records that have none; both lists are in the order read.

    An encoder–decoder's examples have one target each, and so do the records that come back with them.
    """
    if task_type == "SEQ_2_SEQ_LM":
        records = one_target_each(records)
    if len(records) == len(examples):
        return list(zip(records, examples, strict=True)), []
    pairs, lost = [], []
    waiting = iter(examples)
    example = next(waiting, None)
    for record in records:
        if example is not None and (example.id, example.answers) == (record.id, record.answers):
            pairs.append((record, example))
            example = next(waiting, None)
        else:
            lost.append(record)
    return pairs, lost


def _num_targets(record: Record) -> int:
    return sum(segment.is_target for segment in record.segments)


def _num_runs(example: Example) -> int:
    return sum(1 for _ in _runs(example.is_target or []))


def _num_gone(uncut: Example, example: Example) -> tuple[int, int]:
    """How many of the uncut example's targets a stretch without which it is ``example`` holds, at least and at most."""
    after = _num_common(reversed(uncut.input_ids), reversed(example.input_ids))
    before = _num_common(uncut.input_ids, example.input_ids)
    starts = [start for start, _ in _runs(uncut.is_target or [])]
    least, most = (
        sum(start < len(uncut.input_ids) - kept for start in starts)
        for kept in (after, min(after, len(example.input_ids) - before))
    )
    return least, most


def _num_common(first: Iterable[int], second: Iterable[int]) -> int:
    """How many tokens the two begin with alike."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))


def _targets_of(example: Example) -> list[int]:
    if example.target_ids is not None:
        return example.target_ids
    return list(compress(example.input_ids, example.is_target or []))


def _runs(is_target: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and stop of each unbroken row of targets."""
    start = 0
    for marked, members in groupby(is_target):
        length = len(list(members))
        if marked:
            yield start, start + length
        start += length


def _closing_tokens(example: Example) -> list[int]:
    """The last token of every target."""
    if example.target_ids is not None:
        return example.target_ids[-1:]
    return [example.input_ids[stop - 1] for _, stop in _runs(example.is_target or [])]


def _squeezed(text: str) -> str:
    return _EMPTY_TAGS.sub("", "".join(text.split()))


def _places(records: Iterable[Record]) -> list[str]:
    return [record.where for record in records]


def _figures(split: str, records: Sequence[Record], examples: Sequence[Example] | None) -> SplitFigures:
    repeated_targets = num_repeated_targets(records)
    if examples is None:
        return SplitFigures(split, len(records), num_repeated_targets=repeated_targets)
    lengths = sorted(len(example.input_ids) for example in examples)
    targets = sum(len(_targets_of(example)) for example in examples if example.label is None)
    return SplitFigures(
        split,
        len(records),
        len(examples),
        sum(lengths),
        targets,
        lengths[len(lengths) // 2] if lengths else None,
        lengths[-1] if lengths else None,
        repeated_targets,
        _histogram(lengths),
    )


def _histogram(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """At most sixteen bars of equal width, a round number."""
    if not lengths:
        return ()
    width = next(width for width in _widths() if lengths[-1] / width <= _BARS)
    counts = Counter((length - 1) // width for length in lengths)
    bars = range(min(counts), max(counts) + 1)
    return tuple((bar * width + 1, (bar + 1) * width, counts[bar]) for bar in bars)


def _widths() -> Iterator[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10
