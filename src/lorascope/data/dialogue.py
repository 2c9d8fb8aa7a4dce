r"""Teacher–student dialogue as MathDial publishes it (Macina et al. 2023), and what all dialogue tasks share: their records.

A dialogue becomes one record per reply of the modelled speaker: a system message, all earlier turns as history, and the
reply as last segment and only target. The modelled speaker's turns are ``assistant`` messages, the other's ``user``; turns
that follow one another by one speaker are one message, joined by a newline, because chat templates want roles to alternate.
The prefix tree packs a dialogue's records into one chain, so its text is read once.

MathDial: turns are joined by ``|EOM|`` and begin with ``Teacher:`` or ``Student:``, or with the student's own name; a
teacher's move, ``(focus)``, is no part of the text. Turns that hold nothing but the move are left out and counted. The
system message states the problem; to the teacher also its correct solution and the student's wrong one. Records of one
problem share their group, because problems recur and the solution is in the prompt.

Does not know tokenizers or chat templates. Floor: data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lorascope.config import TaskConfig
from lorascope.data.record import Notice, Reading, Record, Segment
from lorascope.data.source import Published, Source, published_names
from lorascope.data.table import Row
from lorascope.errors import DataError

DIALOGUE_METRICS = ("rouge_l", "token_f1", "distinct_1", "distinct_2", "turn_end")
TUTORING_PUBLISHED = Published(published_names("{}.jsonl", "{}.csv", "{}.json", "{}.parquet"))
TUTORING_SPEAKERS = ("teacher", "student")
_SYSTEM = {
    "teacher": "You are a teacher. Help the student to find and correct the mistake.",
    "student": "You are a student. You work on a problem with your teacher.",
}
_STATED = {
    "teacher": (
        ("question", "Problem"),
        ("ground_truth", "Correct solution"),
        ("student_incorrect_solution", "Student's solution"),
    ),
    "student": (("question", "Problem"),),
}
_TURN = re.compile(r"\s*(?P<name>[^\W\d_][\w .'’-]{0,39}?)\s*:(?P<text>.*)", re.DOTALL)
_MOVE = re.compile(r"\s*\((?:generic|focus|probing|telling)\)")


@dataclass(frozen=True)
class Turn:
    """What one side says; ``candidates`` of a reply are those that it is ranked among, itself the last."""

    text: str
    is_modelled: bool
    where: str
    candidates: tuple[str, ...] = ()


@dataclass
class _Findings:
    """Places of what was not taken as it stood, in one split."""

    blank: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    strangers: dict[str, str] = field(default_factory=dict)


def reply_records(
    turns: Sequence[Turn], identity: str, system: str, group: str, persona: tuple[str, ...] = ()
) -> list[Record]:
    """One record for every turn of the modelled speaker."""
    messages = _messages(turns, system)
    replies = [index for index, turn in enumerate(turns) if turn.is_modelled]
    return [
        _record(messages[: index + 1], turns[index], f"{identity}-{number}", group, persona)
        for number, index in enumerate(replies)
    ]


def reply_record(turns: Sequence[Turn], identity: str, system: str, group: str, persona: tuple[str, ...] = ()) -> Record:
    """The record of the last turn alone; earlier replies are history."""
    return _record(_messages(turns[:-1], system), turns[-1], identity, group, persona)


def _messages(turns: Sequence[Turn], system: str) -> list[Segment]:
    spoken = [Segment(turn.text, role="assistant" if turn.is_modelled else "user") for turn in turns]
    return [Segment(system, role="system"), *spoken]


def _record(history: Sequence[Segment], reply: Turn, identity: str, group: str, persona: tuple[str, ...]) -> Record:
    return Record(
        identity,
        reply.where,
        segments=(*history, Segment(reply.text, is_target=True, role="assistant")),
        answers=(reply.text,),
        group=group,
        persona=persona,
        candidates=reply.candidates,
    )


def joined(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with those of one speaker in succession made one."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].is_modelled == turn.is_modelled:
            merged[-1] = replace(merged[-1], text=f"{merged[-1].text}\n{turn.text}")
        else:
            merged.append(turn)
    return merged


def place_notice(kind: str, places: Sequence[str], split: str, message: str) -> list[Notice]:
    """A notice that counts ``places`` and names the first; none where there are none."""
    message = f"{len(places)} {split} {message} (first: {places[0]})." if places else ""
    return [Notice(kind, len(places), split, message, tuple(places[:3]))] if places else []


def read_tutoring(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of the teacher's turns, or of the student's (``task.speaker``).

    Raises:
        DataError: a column is missing, or a turn names no speaker.
    """
    speaker = config.speaker or TUTORING_SPEAKERS[0]
    splits: dict[str, list[Record]] = {}
    counts: dict[str, dict[str, int]] = {}
    notices: list[Notice] = []
    formats: dict[str, None] = {}
    for split, source in sources.items():
        table = source.table()
        table.require("conversation", *(column for column, _ in _STATED[speaker]))
        formats[table.format] = None
        findings = _Findings()
        records: list[Record] = []
        num_dialogues = num_replies = 0
        for index, row in enumerate(table.rows):
            for record in _tutoring_records(row, str(index), speaker, findings):
                num_replies += 1
                if source.wants(len(records)):
                    records.append(record)
            num_dialogues += 1
        splits[split] = records
        counts[split] = {"dialogues": num_dialogues, "replies": num_replies}
        notices += _tutoring_notices(findings, split, speaker)
    shape = f"MathDial {'/'.join(formats)}, the {speaker}'s turns"
    return Reading(
        "CAUSAL_LM", splits, shape, notices=tuple(notices), generates=True, metric_names=DIALOGUE_METRICS, counts=counts
    )


def _tutoring_records(row: Row, identity: str, speaker: str, findings: _Findings) -> list[Record]:
    turns = []
    for number, piece in enumerate(row.text("conversation").split("|EOM|"), 1):
        where = f"{row.where}, turn {number}"
        found = _TURN.match(piece)
        if found is None:
            raise DataError(
                f"turn {number} of the conversation names no speaker",
                where=row.where,
                fix="begin it with 'Teacher:' or 'Student:'",
            )
        role, text = _role(found["name"], row, findings), found["text"]
        text = (_MOVE.sub("", text, count=1) if role == "teacher" and _MOVE.match(text) else text).strip()
        if not text:
            findings.blank.append(where)
            continue
        turns.append(Turn(text, role == speaker, where))
    records = reply_records(joined(turns), identity, _system(row, speaker), row.text("question").strip())
    if not records:
        findings.silent.append(row.where)
    return records


def _role(name: str, row: Row, findings: _Findings) -> str:
    """``teacher``, or ``student`` for any other name; one that is not the student's by the profile is told about."""
    if name.casefold() in TUTORING_SPEAKERS:
        return name.casefold()
    profile = row.values.get("student_profile")
    if not isinstance(profile, str) or name not in profile:
        findings.strangers.setdefault(name, row.where)
    return "student"


def _system(row: Row, speaker: str) -> str:
    lines = [_SYSTEM[speaker]]
    for column, title in _STATED[speaker]:
        # A dialogue may lack a solution, never the problem.
        if column == "question" or row.values.get(column) is not None:
            lines.append(f"{title}: {row.text(column).strip()}")
    return "\n".join(lines)


def _tutoring_notices(findings: _Findings, split: str, speaker: str) -> list[Notice]:
    notices = place_notice("blank_turn", findings.blank, split, "turns hold no text and were left out")
    notices += place_notice("dropped", findings.silent, split, f"dialogues were left out: the {speaker} says nothing")
    if findings.strangers:
        names, place = ", ".join(findings.strangers), next(iter(findings.strangers.values()))
        message = f"{split}: turns by {names} were taken as the student's (first: {place})."
        notices.append(Notice("speaker", len(findings.strangers), split, message))
    return notices
