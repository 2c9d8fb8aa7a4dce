r"""Persona dialogue: PersonaChat (Zhang et al. 2018; ConvAI2) and Synthetic-Persona-Chat (Jandaghi et al. 2023).

Knows the forms they are published in:

- ParlAI text: ``N your persona: …``, ``N partner's persona: …`` and ``N partner TAB reply TAB TAB candidates joined by |``;
  a dialogue starts where N is 1. Files without candidates are read too, those without a persona are not.
- ``personality`` + ``utterances`` (a list of ``history`` and ``candidates``, the right one last) a dialogue, as Hugging
  Face's JSON and its copies on the hub have it; that JSON, ``{"train": […], "valid": […]}``, holds two splits.
- ``personality``, ``history``, ``candidates`` a row: the same, one row per reply.
- Synthetic-Persona-Chat's CSV, whose conversation is lines ``User 1: …``; ``task.speaker`` says who is modelled.

Every reply becomes a record as ``dialogue`` describes it. Its system message reads ``Your persona:`` and a line ``- …`` for
each sentence, which a chat template renders as the system turn and which says as much to a base model; the partner's persona
follows in the same way where a file tells it to the speaker. The sentences are in ``Record.persona`` too.

In the synthetic data a line without a speaker continues the turn above it (lists, recipes). Lines in brackets or asterisks
(``[Later]``), and lines before the first speaker, are said by nobody; they are left out and counted.

Does not know tokenizers or metrics. Floor: data.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.config import TaskConfig
from lorascope.data.dialogue import DIALOGUE_METRICS, Turn, joined, place_notice, reply_record, reply_records
from lorascope.data.record import Notice, Reading, Record
from lorascope.data.source import SPLIT_ALIASES, Published, Source, published_names
from lorascope.data.table import Row, checked_text, parse_json, read_text, text_lines
from lorascope.errors import DataError, UsageError

PERSONA_SPEAKERS = ("user 2", "user 1")
_BOTH_SPLITS = "personachat_self_original.json"
_NAMES = published_names(
    *(f"{{}}_{persona}.txt" for persona in ("self_original", "self_revised", "both_original", "both_revised")),
    "Synthetic-Persona-Chat_{}.csv",
    *(f"{{}}.{suffix}" for suffix in ("txt", "jsonl", "json", "csv", "parquet")),
)
_OTHER_TEXTS = published_names("{}_*.txt")
PERSONA_PUBLISHED = Published(
    {split: (*names, _BOTH_SPLITS, *_OTHER_TEXTS[split]) for split, names in _NAMES.items()},
    config_name="full",
    collections=("personachat_truecased",),
)
_SPLIT_NAMES = {alias: split for split, aliases in SPLIT_ALIASES.items() for alias in aliases}
_SYNTHETIC = ("user 1 personas", "user 2 personas", "Best Generated Conversation")
_DIALOGUES = ("personality", "utterances")
_ROWS = ("personality", "history", "candidates")
_PERSONA_LINE = re.compile(r"(your|partner's) persona:(.*)")
_SPOKEN_LINE = re.compile(r"(?P<stars>[\s*]*)(?P<name>User [12]):(?P<text>.*)")
_STAGE_DIRECTION = re.compile(r"\s*(\[.*|\(.*\)|\*[^*]+\*)\s*")
# What stands in for the partner where the modelled speaker begins.
_SILENCE = re.compile(r"__ ?SILENCE ?__")


@dataclass
class _Dialogue:
    """One dialogue as far as its form tells: exchanges carry their own history, so that none has to be guessed."""

    where: str
    persona: list[str] = field(default_factory=list)
    partner_persona: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    exchanges: list[list[Turn]] = field(default_factory=list)


@dataclass
class _Findings:
    """Places of what was not taken as it stood, in one split."""

    unspoken: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)


def read_persona(sources: Mapping[str, Source], config: TaskConfig) -> Reading:
    """Records of persona dialogues.

    Raises:
        UsageError: a speaker is named where the data leave no choice.
        DataError: no known form, or a dialogue that breaks its form.
    """
    splits: dict[str, list[Record]] = {}
    counts: dict[str, dict[str, int]] = {}
    notices: list[Notice] = []
    forms: dict[str, None] = {}
    for asked, source in sources.items():
        form, parts = _parts(source, config)
        forms[form] = None
        for split, (dialogues, findings) in parts.items():
            if split != asked and (split in sources or split in splits):
                continue
            # The limit is the asked split's; what a file holds beside it may be wanted whole.
            splits[split], counts[split] = _read_records(dialogues, findings, source if split == asked else None)
            notices += _notices(findings, split)
    return Reading(
        "CAUSAL_LM",
        splits,
        f"persona dialogues, {' and '.join(forms)}",
        notices=tuple(notices),
        generates=True,
        metric_names=DIALOGUE_METRICS,
        counts=counts,
    )


def _read_records(
    dialogues: Iterable[_Dialogue], findings: _Findings, source: Source | None
) -> tuple[list[Record], dict[str, int]]:
    """The records that are used, and how many dialogues and replies there are."""
    records: list[Record] = []
    num_dialogues = num_replies = 0
    for index, dialogue in enumerate(dialogues):
        for record in _records(dialogue, str(index), findings):
            num_replies += 1
            if source is None or source.wants(len(records)):
                records.append(record)
        num_dialogues += 1
    return records, {"dialogues": num_dialogues, "replies": num_replies}


_Parts = dict[str, tuple[Iterable[_Dialogue], _Findings]]


def _parts(source: Source, config: TaskConfig) -> tuple[str, _Parts]:
    """The form in words, and the dialogues by split: those of the split asked for unless the file names splits itself."""
    findings = _Findings()
    if source.path is not None and source.path.suffix.lower() == ".txt":
        _refuse_speaker(config, "ParlAI text")
        return "ParlAI text", {source.split: (_parlai(source.path), findings)}
    if source.path is not None and source.path.suffix.lower() == ".json" and _names_splits(source.path):
        _refuse_speaker(config, "this form of PersonaChat")
        parts = _both_splits(source.path)
        if source.split not in parts:
            raise DataError(f"the file holds no {source.split} split", where=source.where, fix="name another file")
        return f"{' + '.join(_DIALOGUES)} JSON", parts
    table = source.table()
    columns = set(table.columns)
    if set(_SYNTHETIC) <= columns:
        speaker = config.speaker or PERSONA_SPEAKERS[0]
        dialogues = (_synthetic(row, speaker, findings) for row in table.rows)
        return f"Synthetic-Persona-Chat {table.format}, {speaker}'s turns", {source.split: (dialogues, findings)}
    for form, read in ((_DIALOGUES, _whole), (_ROWS, _by_reply)):
        if set(form) <= columns:
            _refuse_speaker(config, "this form of PersonaChat")
            return f"{' + '.join(form)} {table.format}", {source.split: (read(table.rows), findings)}
    there = ", ".join(repr(column) for column in table.columns)
    known = "; ".join(", ".join(form) for form in (_DIALOGUES, _ROWS, _SYNTHETIC))
    raise DataError(f"the columns {there} fit no known form of PersonaChat", where=table.where, fix=f"known: {known}")


def _names_splits(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(80).decode("utf-8-sig", errors="ignore")
    found = re.match(r'\s*\{\s*"(\w+)"\s*:\s*\[', start)
    return found is not None and found[1] in _SPLIT_NAMES


def _both_splits(path: Path) -> _Parts:
    """``{"train": […], "valid": […]}``, which is one line of 200 MB as published."""
    document = parse_json(read_text(path), path)
    parts: _Parts = {}
    for name, value in document.items():
        if name not in _SPLIT_NAMES:
            known = ", ".join(_SPLIT_NAMES)
            raise DataError(f"{name!r} is no split", where=str(path), fix=f"known: {known}")
        items = _list(value, f"split {name!r}", str(path))
        # A list, because a generator would name the split of the last round.
        rows = [Row(f"{path}, {name} item {number}", item) for number, item in enumerate(items, 1)]
        parts[_SPLIT_NAMES[name]] = (_whole(rows), _Findings())
    return parts


def _refuse_speaker(config: TaskConfig, form: str) -> None:
    if config.speaker is not None:
        raise UsageError(f"{form} holds the replies of one speaker only", where="task.speaker", fix="remove the key")


def _records(dialogue: _Dialogue, identity: str, findings: _Findings) -> list[Record]:
    if not dialogue.persona:
        raise DataError(
            "the dialogue states no persona of the speaker who is modelled",
            where=dialogue.where,
            fix="use data that hold it, such as ParlAI's *_self_original.txt",
        )
    system = _stated("Your persona:", dialogue.persona)
    if dialogue.partner_persona:
        system += "\n" + _stated("Your partner's persona:", dialogue.partner_persona)
    persona = tuple(dialogue.persona)
    if dialogue.exchanges:
        group = _opening(max(dialogue.exchanges, key=len))
        return [
            reply_record(turns, f"{identity}-{number}", system, group, persona)
            for number, turns in enumerate(dialogue.exchanges)
        ]
    records = reply_records(dialogue.turns, identity, system, _opening(dialogue.turns), persona)
    if not records:
        findings.silent.append(dialogue.where)
    return records


def _stated(title: str, sentences: Sequence[str]) -> str:
    return "\n".join((title, *(f"- {sentence}" for sentence in sentences)))


def _opening(turns: Sequence[Turn]) -> str:
    """Names a dialogue by its first four turns: ConvAI2's train holds each once from either side, with different ends."""
    return "\n".join(turn.text for turn in turns[:4])


def _parlai(path: Path) -> Iterator[_Dialogue]:
    dialogue: _Dialogue | None = None
    previous = 0
    for line_number, line in text_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{line_number}"
        found = re.match(r"([0-9]{1,9}) (.*)", line, re.DOTALL)
        if found is None:
            raise DataError("the line does not begin with its number in the dialogue", where=where, fix="write 'N text'")
        number, rest = int(found[1]), found[2]
        if number == 1:
            if dialogue is not None:
                yield _complete(dialogue)
            dialogue = _Dialogue(where)
        elif dialogue is None or number != previous + 1:
            after = f"follows {previous}" if previous else "begins the file"
            raise DataError(f"line number {number} {after}", where=where, fix="number a dialogue's lines 1, 2, 3, …")
        assert dialogue is not None
        previous = number
        persona = _PERSONA_LINE.fullmatch(rest)
        if persona is not None:
            if dialogue.turns:
                raise DataError("a persona sentence after the first turn", where=where, fix="state personas first")
            sentences = dialogue.persona if persona[1] == "your" else dialogue.partner_persona
            sentences.append(_filled(persona[2], "persona sentence", where))
        else:
            dialogue.turns += _parlai_turns(rest.split("\t"), where, first=not dialogue.turns)
    if dialogue is not None:
        yield _complete(dialogue)


def _complete(dialogue: _Dialogue) -> _Dialogue:
    if not dialogue.turns:
        raise DataError("a dialogue without a turn", where=dialogue.where, fix="complete or remove it")
    return dialogue


def _parlai_turns(fields: Sequence[str], where: str, *, first: bool) -> list[Turn]:
    if len(fields) < 2:
        raise DataError("no reply after the partner's turn", where=where, fix="separate the two by a tab")
    partner, reply = _filled(fields[0], "partner's turn", where), _filled(fields[1], "reply", where)
    candidates = _candidates(fields[3].split("|"), reply, where) if len(fields) > 3 and fields[3].strip() else ()
    turns = [Turn(partner, False, where), Turn(reply, True, where, candidates)]
    return turns[1:] if first and _SILENCE.fullmatch(partner) else turns


def _candidates(texts: Sequence[str], reply: str, where: str) -> tuple[str, ...]:
    """The candidates with the right one last."""
    # Candidates are other dialogues' replies, met over and over.
    stripped = [sys.intern(_filled(text, "candidate", where)) for text in texts]
    if reply not in stripped:
        raise DataError("the reply is not among its candidates", where=where, fix="add it as the last candidate")
    if stripped[-1] != reply:
        stripped.remove(reply)
        stripped.append(reply)
    return tuple(stripped)


def _whole(rows: Iterable[Row]) -> Iterator[_Dialogue]:
    """Rows ``personality``, ``utterances``: a list of objects, or the object of lists that ``datasets`` may make of it."""
    for row in rows:
        if not isinstance(row.values, dict):
            raise DataError("no dialogue here", where=row.where, fix="write personality and utterances")
        utterances = row.values.get("utterances")
        if isinstance(utterances, dict) and {"history", "candidates"} <= set(utterances):
            pairs = list(zip(*(_list(utterances[key], key, row.where) for key in ("history", "candidates")), strict=False))
        else:
            pairs = [_pair(item, row.where) for item in _list(utterances, "utterances", row.where)]
        if not pairs:
            raise DataError("a dialogue without a turn", where=row.where, fix="complete or remove it")
        exchanges = [
            _exchange(history, candidates, f"{row.where}, reply {number}")
            for number, (history, candidates) in enumerate(pairs, 1)
        ]
        yield _Dialogue(row.where, _sentences(row), exchanges=exchanges)


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(item, dict) or not {"history", "candidates"} <= set(item):
        raise DataError("an utterance lacks 'history' or 'candidates'", where=where, fix="write both")
    return item["history"], item["candidates"]


def _by_reply(rows: Iterable[Row]) -> Iterator[_Dialogue]:
    """Rows ``personality``, ``history``, ``candidates``: those whose history goes on are one dialogue."""
    dialogue: _Dialogue | None = None
    for row in rows:
        exchange = _exchange(row.values.get("history"), row.values.get("candidates"), row.where)
        sentences = _sentences(row)
        if dialogue is not None and dialogue.persona == sentences and _goes_on(dialogue.exchanges[-1], exchange):
            dialogue.exchanges.append(exchange)
            continue
        if dialogue is not None:
            yield dialogue
        dialogue = _Dialogue(row.where, sentences, exchanges=[exchange])
    if dialogue is not None:
        yield dialogue


def _goes_on(earlier: Sequence[Turn], later: Sequence[Turn]) -> bool:
    return len(later) > len(earlier) and all(a.text == b.text for a, b in zip(earlier, later, strict=False))


def _exchange(history: Any, candidates: Any, where: str) -> list[Turn]:
    """The history, which ends with the partner's turn and alternates, and the reply."""
    texts = [_filled(text, "turn", where) for text in _list(history, "history", where)]
    choices = _list(candidates, "candidates", where)
    if not choices:
        raise DataError("no candidates, of which the last is the reply", where=where, fix="complete or remove the row")
    reply = _filled(choices[-1], "reply", where)
    # Seen from its end, so that the partner's are the last, the last but two, …
    turns = [
        Turn(sys.intern(text), is_modelled, where)
        for text, is_modelled in zip(texts, _sides(len(texts)), strict=True)
        if not _SILENCE.fullmatch(text)
    ]
    ranked = _candidates(choices, reply, where) if len(choices) > 1 else ()
    return [*turns, Turn(reply, True, where, ranked)]


def _sides(num_turns: int) -> list[bool]:
    return [(num_turns - index) % 2 == 0 for index in range(num_turns)]


def _synthetic(row: Row, speaker: str, findings: _Findings) -> _Dialogue:
    persona = [line.strip() for line in row.text(f"{speaker} personas").split("\n") if line.strip()]
    turns = []
    for number, (name, lines) in enumerate(_spoken(row, findings), 1):
        where = f"{row.where}, turn {number}"
        text = "\n".join(line for line in lines if line)
        if text:
            turns.append(Turn(text, name == speaker, where))
        else:
            findings.blank.append(where)
    return _Dialogue(row.where, persona, turns=joined(turns))


def _spoken(row: Row, findings: _Findings) -> list[tuple[str, list[str]]]:
    """The turns by name, as lines."""
    turns: list[tuple[str, list[str]]] = []
    for line in row.text("Best Generated Conversation").split("\n"):
        found = _SPOKEN_LINE.fullmatch(line)
        if found is not None:
            # *User 1:* sets off the name, * User 1: … * the whole line.
            text = found["text"].strip("* \t\r") if "*" in found["stars"] else found["text"].strip()
            turns.append((found["name"].lower(), [text]))
        elif not line.strip("* \t\r"):
            continue
        elif _STAGE_DIRECTION.fullmatch(line) or not turns:
            findings.unspoken.append(row.where)
        else:
            turns[-1][1].append(line.strip())
    return turns


def _sentences(row: Row) -> list[str]:
    sentences = _list(row.values.get("personality"), "personality", row.where)
    return [_filled(sentence, "persona sentence", row.where) for sentence in sentences]


def _filled(value: Any, name: str, where: str) -> str:
    text = checked_text(value, f"the {name}", where).strip()
    if not text:
        raise DataError(f"the {name} is empty", where=where, fix="correct or remove it")
    return text


def _list(value: Any, name: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        kind = "missing" if value is None else type(value).__name__
        raise DataError(f"{name} is {kind}, not a list", where=where, fix="correct the record")
    return value


def _notices(findings: _Findings, split: str) -> list[Notice]:
    message = "lines of conversations are said by nobody (stage directions) and were left out"
    notices = place_notice("unspoken", findings.unspoken, split, message)
    notices += place_notice("blank_turn", findings.blank, split, "turns hold no text and were left out")
    return notices + place_notice(
        "dropped", findings.silent, split, "dialogues were left out: the speaker says nothing in them"
    )
