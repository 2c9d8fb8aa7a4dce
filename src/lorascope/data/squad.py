r"""SQuAD v1.1 (Rajpurkar et al. 2016) as generation: official JSON or hub rows become context, question and answer.

A prompt is ``"{context}"`` + ``"\nQuestion: {question}\nAnswer:"`` and the target ``" {answer}"``; the context is the
only piece that may be cut, from its end, so that question and answer stay whole. Training learns the first answer; all
of them are kept for scoring. Floor: data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.config import TaskConfig
from lorascope.data.record import Notice, Reading, Record, Segment
from lorascope.data.source import Published, Source
from lorascope.data.table import checked_text, parse_json, read_text
from lorascope.errors import DataError

SQUAD_PUBLISHED = Published({"train": ("train*.json",), "validation": ("dev*.json",), "test": ("test*.json",)})


@dataclass(frozen=True)
class _Question:
    """A question with its context and answers, whichever form it was published in."""

    id: str
    where: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


def read_squad(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of SQuAD.

    Raises:
        DataError: the file does not have the official form, or holds unanswerable questions (v2.0).
    """
    if config.labels is not None:
        raise DataError("squad has no labels", where="task.labels", fix="remove the key")
    splits: dict[str, list[Record]] = {}
    notices: list[Notice] = []
    forms: dict[str, None] = {}
    for split, source in sources.items():
        official = source.path is not None and source.path.suffix.lower() == ".json"
        forms["official JSON" if official else f"{_form(source)}"] = None
        questions = list(_official(source) if official else _rows(source))
        if not questions:
            raise DataError("the file holds no questions", where=source.where, fix="give one that holds data")
        splits[split] = [_record(question) for question in questions]
        misplaced = sum(_misplaced(question) for question in questions)
        if misplaced:
            message = f"{misplaced} {split} questions have an answer_start that does not point at the answer's text."
            notices.append(Notice("misplaced_answer", misplaced, source.where, message))
    shape = f"SQuAD v1.1 {' and '.join(forms)}"
    return Reading("CAUSAL_LM", splits, shape, notices=tuple(notices), generates=True, metric_names=("exact_match", "f1"))


def _form(source: Source) -> str:
    return "dataset rows" if source.path is None else f"{source.path.suffix.removeprefix('.')} rows"


def _official(source: Source) -> Iterator[_Question]:
    """Questions of ``{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}``."""
    assert source.path is not None
    document = parse_json(read_text(source.path), source.path)
    for number, article in enumerate(_list(document, "data", source.where)):
        where = f"{source.where}, article {number}"
        for position, paragraph in enumerate(_list(article, "paragraphs", where)):
            place = f"{where}, paragraph {position}"
            context = checked_text(_value(paragraph, "context", place), "context", place)
            for item in _list(paragraph, "qas", place):
                yield _question(item, context, place, source.where)


def _question(item: Any, context: str, place: str, file: str) -> _Question:
    identity = checked_text(_value(item, "id", place), "id", place)
    where = f"{file}, question {identity}"
    question = checked_text(_value(item, "question", where), "question", where)
    answers = _list(item, "answers", where)
    if item.get("is_impossible") or not answers:
        raise _unanswerable(where)
    pairs = tuple((_value(answer, "text", where), _value(answer, "answer_start", where)) for answer in answers)
    return _Question(identity, where, context, question, _checked_answers(pairs, where))


def _rows(source: Source) -> Iterator[_Question]:
    """Questions of rows ``{"id", "context", "question", "answers": {"text": […], "answer_start": […]}}``."""
    table = source.table()
    table.require("id", "context", "question", "answers")
    for row in table.rows:
        answers = row.values.get("answers")
        texts = _list(answers, "text", row.where)
        starts = _list(answers, "answer_start", row.where)
        if not texts:
            raise _unanswerable(row.where)
        if len(texts) != len(starts):
            raise DataError(f"{len(texts)} answers but {len(starts)} positions", where=row.where, fix="correct the row")
        pairs = _checked_answers(tuple(zip(texts, starts, strict=True)), row.where)
        yield _Question(row.text("id"), row.where, row.text("context"), row.text("question"), pairs)


def _checked_answers(pairs: tuple[tuple[Any, Any], ...], where: str) -> tuple[tuple[str, int], ...]:
    checked = []
    for text, start in pairs:
        checked.append((checked_text(text, "an answer", where), start))
        if not text.strip():
            raise DataError("an answer is empty", where=where, fix="correct or remove the question")
        if not isinstance(start, int) or isinstance(start, bool):
            raise DataError(f"answer_start is {start!r}, not an integer", where=where, fix="correct the question")
    return tuple(checked)


def _unanswerable(where: str) -> DataError:
    return DataError(
        "a question without an answer (SQuAD v2.0), which is not supported yet", where=where, fix="use SQuAD v1.1"
    )


def _record(question: _Question) -> Record:
    segments = (
        Segment(question.context, cut="end"),
        # The newline is not the context's, so that a cut context still ends its line.
        Segment(f"\nQuestion: {question.question.strip()}\nAnswer:"),
        Segment(f" {question.answers[0][0].strip()}", is_target=True),
    )
    return Record(
        question.id,
        question.where,
        segments=segments,
        answers=tuple(text for text, _ in question.answers),
        answer_spans=tuple(_span(question.context, text, start) for text, start in question.answers),
        group=question.context,
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
        raise DataError(f"no {key!r} here, so this is not SQuAD's form", where=where, fix="see the official v1.1 files")
    return node[key]


def _list(node: Any, key: str, where: str) -> list[Any]:
    value = _value(node, key, where)
    if not isinstance(value, list):
        raise DataError(f"{key!r} is no list, so this is not SQuAD's form", where=where, fix="see the official v1.1 files")
    return value
