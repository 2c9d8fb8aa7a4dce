"""What records have in common: repetitions within a split, contradictions, and evaluation records that train holds.

Four grades of leakage, the first that applies to an evaluation record:

    exact        everything but identity and place is equal
    normalised   all text is equal when case, punctuation and whitespace are taken away (a label is no text)
    input        so is the input alone, but the answer differs
    13-gram      thirteen words in a row, in lower case and without punctuation, occur in a training record

The last is GPT-3's definition (Brown et al. 2020, appendix C; lm-evaluation-harness follows it), and so is what it leaves
aside: what more than ten training documents hold is a common phrase. Here a document is a group (a paragraph with its
questions, a dialogue with its replies), and what more than half of them hold (a system prompt, the wording of an
instruction) is left aside too. Passages are compared on their own: the segments of a prompt, the two texts of a pair, a system
prompt, the turns of a chat together. Within a split, sharing is legitimate and only exact repetition is looked for.

Does not know tokenizers or what a finding is worth. Texts without spaces between words have no 13-grams. Floor: data.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lorascope.data.record import Record

Grade = Literal["exact", "normalised", "input", "13-gram"]
_WORDS_IN_A_ROW = 13
_COMMON = 10
_INSTRUCTING = ("system", "developer")
_NO_LETTERS = re.compile(r"[\W_]+")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class Shared:
    """A record, the earlier or training record that it shares something with, and how much."""

    record: Record
    source: Record
    grade: Grade = "exact"

    @property
    def place(self) -> str:
        """Both places, in words."""
        return f"{self.record.where}, like {self.source.where}"


def repeated(records: Sequence[Record]) -> list[Shared]:
    """Records that equal an earlier one."""
    first: dict[bytes, Record] = {}
    keyed = ((record, _digest(record.content)) for record in records)
    return [Shared(record, source) for record, key in keyed if (source := first.setdefault(key, record)) is not record]


def contradicting(records: Sequence[Record]) -> list[Shared]:
    """Records whose input equals an earlier one's exactly, but not the answer or label."""
    first: dict[bytes, Record] = {}
    found = []
    for record in records:
        source = first.setdefault(_digest(_input(record)), record)
        if source is not record and _output(source) != _output(record):
            found.append(Shared(record, source, "input"))
    return found


def num_repeated_targets(records: Sequence[Record]) -> int | None:
    """How many texts to be learned equal an earlier one, spaces around them aside; None where there are none to be learned."""
    seen: set[bytes] = set()
    num_targets = 0
    for record in records:
        for segment in record.segments:
            if segment.is_target:
                num_targets += 1
                seen.add(_digest(segment.text.strip()))
    return num_targets - len(seen) if num_targets else None


def leaked(train: Sequence[Record], evaluation: Sequence[Record]) -> list[Shared]:
    """Evaluation records that train holds, whole or in part, in their order."""
    exact = _first_by(train, [_digest(record.content) for record in train])
    normalised = _first_by(train, [_digest(letters(record)) for record in train])
    given = [_digest(_given(record)) for record in train]
    inputs = _first_by(train, given)
    common = _common_inputs(train, given)
    phrases = _shared_phrases(train, evaluation)
    found = []
    for record, phrase in zip(evaluation, phrases, strict=True):
        if (source := exact.get(_digest(record.content))) is not None:
            found.append(Shared(record, source, "exact"))
        elif (source := normalised.get(_digest(letters(record)))) is not None:
            found.append(Shared(record, source, "normalised"))
        elif record.segments and (own := _digest(_given(record))) not in common and (source := inputs.get(own)) is not None:
            found.append(Shared(record, source, "input"))
        elif phrase is not None:
            found.append(Shared(record, phrase, "13-gram"))
    return found


def _first_by(records: Sequence[Record], keys: Sequence[bytes]) -> dict[bytes, Record]:
    first: dict[bytes, Record] = {}
    for key, record in zip(keys, records, strict=True):
        first.setdefault(key, record)
    return first


def _input(record: Record) -> tuple[object, ...]:
    given = tuple((segment.text, segment.role) for segment in record.segments if not segment.is_target)
    return (record.text, record.text_pair, given, record.persona)


def _output(record: Record) -> tuple[object, ...]:
    return (record.label, tuple(segment.text for segment in record.segments if segment.is_target), record.answers)


def letters(record: Record) -> tuple[str, ...]:
    """The record's texts in lower case without punctuation and whitespace: records that agree in them are near copies."""
    if not record.segments:
        return (_letters(record.text), _letters(record.text_pair or ""))
    return ("".join(_letters(segment.text) for segment in record.segments),)


def _given(record: Record) -> tuple[str, ...]:
    """As ``letters``, without answers."""
    if not record.segments:
        return letters(record)
    return ("".join(_letters(segment.text) for segment in record.segments if not segment.is_target),)


@lru_cache(maxsize=4096)  # neighbours share paragraphs and histories
def _letters(text: str) -> str:
    # What has no letter at all (an emoji, an ellipsis) equals only itself.
    return _NO_LETTERS.sub("", text.casefold()) or text.strip()


def _digest(content: object) -> bytes:
    """Sixteen bytes in the place of what a whole split says: equal where the contents are."""
    return hashlib.blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _documents(records: Sequence[Record]) -> list[str | int]:
    return [record.group or number for number, record in enumerate(records)]


def _is_common(count: int, num_documents: int) -> bool:
    return count > _COMMON or (count > 1 and 2 * count > num_documents)


def _common_inputs(train: Sequence[Record], given: Sequence[bytes]) -> set[bytes]:
    """Inputs that so many training documents have that they say nothing: no prompt at all, one greeting."""
    documents = _documents(train)
    holders: dict[bytes, set[str | int]] = {}
    for texts, document in zip(given, documents, strict=True):
        holders.setdefault(texts, set()).add(document)
    num_documents = len(set(documents))
    return {_digest(("",))} | {texts for texts, of in holders.items() if _is_common(len(of), num_documents)}


def _shared_phrases(train: Sequence[Record], evaluation: Sequence[Record]) -> list[Record | None]:
    """For each evaluation record, the first training record that shares a 13-gram with it.

    Only evaluation's 13-grams are held in memory, by their hash; a text that several records share is cut up once.
    """
    grams_of: dict[bytes, array[int]] = {}
    for record in evaluation:
        for text in _passages(record):
            if (key := _digest(text)) not in grams_of:
                grams_of[key] = array("q", set(_grams(text)))
    wanted = frozenset[int]().union(*grams_of.values())
    documents = _documents(train)
    first: dict[int, int] = {}
    holders: dict[int, set[str | int]] = {}
    hits_of: dict[bytes, frozenset[int]] = {}
    for index, record in enumerate(train):
        for text in _passages(record):
            if (key := _digest(text)) not in hits_of:
                hits_of[key] = wanted.intersection(_grams(text))
            for gram in hits_of[key]:
                first.setdefault(gram, index)
                holders.setdefault(gram, set()).add(documents[index])
    num_documents = len(set(documents))
    telling = {gram for gram, of in holders.items() if not _is_common(len(of), num_documents)}
    source_of = {text: [first[gram] for gram in grams if gram in telling] for text, grams in grams_of.items()}
    sources = [[index for text in _passages(record) for index in source_of[_digest(text)]] for record in evaluation]
    return [train[min(indices)] if indices else None for indices in sources]


def _passages(record: Record) -> Iterator[str]:
    """The texts that may share a phrase. A chat's turns are short, so they are one text, but for what instructs them."""
    turns = [segment for segment in record.segments if segment.role is not None]
    spoken = " ".join(turn.text for turn in turns if turn.role not in _INSTRUCTING)
    others = [segment.text for segment in record.segments if segment.role is None or segment.role in _INSTRUCTING]
    yield from (text for text in (record.text, record.text_pair, spoken, *others) if text)


def _grams(text: str) -> Iterator[int]:
    words = _PUNCTUATION.sub("", text.lower()).split()
    # Rows of the same words, one further on each, read side by side.
    return map(hash, zip(*(words[start:] for start in range(_WORDS_IN_A_ROW)), strict=False))
