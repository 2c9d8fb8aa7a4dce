r"""SQuAD v1.1 and v2.0 (Rajpurkar et al. 2016, 2018) as generation: official JSON or hub rows.

A prompt is ``"{context}"`` + ``"\nQuestion: {question}\nAnswer:"`` and the target ``" {answer}"``; the context is the
only piece that may be cut, from its end, so that question and answer stay whole. Training learns the first answer; all
of them are kept for scoring.

The data are v2.0 where a question is unanswerable. Its target is ``" unanswerable"`` and it has no answers; every
question then has that target as a candidate, whose likelihood tells how sure the model is that there is no answer.
Floor: data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorascope.config import TaskConfig
from lorascope.data.record import Notice, Reading, Record, Segment
from lorascope.data.source import Published, Source
from lorascope.data.table import checked_text, parse_json, read_text
from lorascope.errors import DataError

NO_ANSWER = "unanswerable"
SQUAD_PUBLISHED = Published({"train": ("train*.json",), "validation": ("dev*.json",), "test": ("test*.json",)})


@dataclass(frozen=True)
class _Question:
    """A question with its context and answers (none: unanswerable), whichever form it was published in."""

    id: str
    where: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


@dataclass
class _Found:
    """A split's questions as far as they are used, and what it holds of all kinds (a file of rows has no articles)."""

    form: str
    source: Source
    questions: list[_Question] = field(default_factory=list)
    num_questions: int = 0
    num_unanswerable: int = 0
    num_misplaced: int = 0
    num_paragraphs: int = 0
    num_articles: int | None = None

    def add(self, question: _Question) -> None:
        self.num_questions += 1
        self.num_unanswerable += not question.answers
        self.num_misplaced += _misplaced(question)
        if self.source.wants(len(self.questions)):
            self.questions.append(question)

    @property
    def shape(self) -> str:
        return f"v{'2.0' if self.num_unanswerable else '1.1'} {self.form}"

    @property
    def counts(self) -> dict[str, int]:
        counts = {"questions": self.num_questions, "paragraphs": self.num_paragraphs}
        if self.num_articles is not None:
            counts["articles"] = self.num_articles
        return counts | ({"unanswerable": self.num_unanswerable} if self.num_unanswerable else {})


def read_squad(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of SQuAD.

    Raises:
        DataError: the file does not have the official form, or does not agree with itself on what is unanswerable.
    """
    found: dict[str, _Found] = {}
    notices: list[Notice] = []
    for split, source in sources.items():
        official = source.path is not None and source.path.suffix.lower() == ".json"
        found[split] = _official(source) if official else _rows(source)
        if not found[split].num_questions:
            raise DataError("the file holds no questions", where=source.where, fix="give one that holds data")
        misplaced = found[split].num_misplaced
        if misplaced:
            message = f"{misplaced} {split} questions have an answer_start that does not point at the answer's text."
            notices.append(Notice("misplaced_answer", misplaced, source.where, message))
    has_unanswerable = any(one.num_unanswerable for one in found.values())
    candidates = (f" {NO_ANSWER}",) if has_unanswerable else ()
    return Reading(
        "CAUSAL_LM",
        {split: [_record(question, candidates) for question in one.questions] for split, one in found.items()},
        f"SQuAD {' and '.join(dict.fromkeys(one.shape for one in found.values()))}",
        notices=tuple(notices),
        generates=True,
        metric_names=("squad_v2",) if has_unanswerable else ("exact_match", "f1"),
        counts={split: one.counts for split, one in found.items()},
    )


def _form(source: Source) -> str:
    return "dataset rows" if source.path is None else f"{source.path.suffix.removeprefix('.')} rows"


def _official(source: Source) -> _Found:
    """Questions of ``{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}``."""
    assert source.path is not None
    document = parse_json(read_text(source.path), source.path)
    articles = _list(document, "data", source.where)
    found = _Found("official JSON", source, num_articles=len(articles))
    for number, article in enumerate(articles):
        where = f"{source.where}, article {number}"
        for position, paragraph in enumerate(_list(article, "paragraphs", where)):
            place = f"{where}, paragraph {position}"
            context = checked_text(_value(paragraph, "context", place), "context", place)
            for item in _list(paragraph, "qas", place):
                found.add(_question(item, context, place, source.where))
            found.num_paragraphs += 1
    return found


def _question(item: Any, context: str, place: str, file: str) -> _Question:
    identity = checked_text(_value(item, "id", place), "id", place)
    where = f"{file}, question {identity}"
    question = checked_text(_value(item, "question", where), "question", where)
    answers = _list(item, "answers", where)
    if bool(item.get("is_impossible")) == bool(answers):
        what = "it has answers, but is_impossible is set" if answers else "it has no answers, but is_impossible is not set"
        raise DataError(what, where=where, fix="correct or remove the question")
    pairs = tuple((_value(answer, "text", where), _value(answer, "answer_start", where)) for answer in answers)
    return _Question(identity, where, context, question, _checked_answers(pairs, where))


def _rows(source: Source) -> _Found:
    """Questions of rows ``{"id", "context", "question", "answers": {"text": […], "answer_start": […]}}``."""
    table = source.table()
    table.require("id", "context", "question", "answers")
    found = _Found(_form(source), source)
    contexts: set[bytes] = set()
    for row in table.rows:
        answers = row.values.get("answers")
        texts = _list(answers, "text", row.where)
        starts = _list(answers, "answer_start", row.where)
        if len(texts) != len(starts):
            raise DataError(f"{len(texts)} answers but {len(starts)} positions", where=row.where, fix="correct the row")
        pairs = _checked_answers(tuple(zip(texts, starts, strict=True)), row.where)
        question = _Question(row.text("id"), row.where, row.text("context"), row.text("question"), pairs)
        found.add(question)
        contexts.add(hashlib.sha256(question.context.encode()).digest())
    found.num_paragraphs = len(contexts)
    return found


def _checked_answers(pairs: tuple[tuple[Any, Any], ...], where: str) -> tuple[tuple[str, int], ...]:
    checked = []
    for text, start in pairs:
        checked.append((checked_text(text, "an answer", where), start))
        if not text.strip():
            raise DataError("an answer is empty", where=where, fix="correct or remove the question")
        if not isinstance(start, int) or isinstance(start, bool):
            raise DataError(f"answer_start is {start!r}, not an integer", where=where, fix="correct the question")
    return tuple(checked)


def _record(question: _Question, candidates: tuple[str, ...]) -> Record:
    segments = (
        Segment(question.context, cut="end"),
        # The newline is not the context's, so that a cut context still ends its line.
        Segment(f"\nQuestion: {question.question.strip()}\nAnswer:"),
        Segment(f" {question.answers[0][0].strip() if question.answers else NO_ANSWER}", is_target=True),
    )
    return Record(
        question.id,
        question.where,
        segments=segments,
        answers=tuple(text for text, _ in question.answers),
        answer_spans=tuple(_span(question.context, text, start) for text, start in question.answers),
        group=question.context,
        candidates=candidates,
    )


def _span(context: str, text: str, start: int) -> tuple[int, int] | None:
    """The answer's characters: where it was said to be, else its first occurrence, else None."""
    if not _points_at(context, text, start):
        start = context.find(text)
    return None if start < 0 else (start, start + len(text))


def _misplaced(question: _Question) -> bool:
    return not all(_points_at(question.context, text, start) for text, start in question.answers)


def _points_at(context: str, text: str, start: int) -> bool:
    return start >= 0 and context[start : start + len(text)] == text


def _value(node: Any, key: str, where: str) -> Any:
    if not isinstance(node, dict) or key not in node:
        raise DataError(f"no {key!r} here, so this is not SQuAD's form", where=where, fix="see the official files")
    return node[key]


def _list(node: Any, key: str, where: str) -> list[Any]:
    value = _value(node, key, where)
    if not isinstance(value, list):
        raise DataError(f"{key!r} is no list, so this is not SQuAD's form", where=where, fix="see the official files")
    return value
