"""Records of causal language models as token ids: segments, targets, chat templates, truncation.

Each segment is tokenised on its own, so that two questions on one paragraph share their leading tokens. An
end-of-sequence token closes every target. A beginning-of-sequence token is put first exactly when the tokenizer would
do so itself. With a chat template, the template writes all special tokens. Only the segment that says so
(``Segment.cut``) loses tokens.

Does not know file formats or batches. Floor: data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorascope.data.record import Example, Notice, Record, Segment
from lorascope.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendered:
    """A record's segments as plain text; ``templated`` when a chat template wrote the special tokens into it."""

    segments: tuple[Segment, ...]
    templated: bool = False


@dataclass
class _Tally:
    """What happened while encoding one split, by number of records."""

    truncated: int = 0
    tokens: int = 0
    answers_lost: int = 0
    dropped_answer: int = 0
    dropped_long: int = 0
    unpredictable: int = 0
    endless: int = 0
    lacking: int = 0
    places: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, record: Record) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.places.setdefault(kind, record.where)


def encode_records(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str,
    *,
    training: bool,
    generates: bool,
) -> tuple[list[Example], list[Notice]]:
    """Token ids of causal language model records.

    An example longer than ``max_length`` loses tokens from the segment that may be cut. A training example whose answer
    was cut away, or which does not fit even so, is dropped. An evaluation example that generates keeps its place: its
    prompt is cut to ``max_length`` less the longest first answer of the split, the same room for all, so that the
    prompt does not tell how long the answer is. Everything is counted in the notices.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, or cannot say which characters a token covers.
        DataError: a chat template that cannot be used, or a question that does not fit.
    """
    rendered = [render(record, tokenizer) for record in records]
    if tokenizer.eos_token_id is None and not all(item.templated for item in rendered):
        place = tokenizer.name_or_path or "tokenizer"
        raise ModelError("the tokenizer has no end-of-sequence token", where=place, fix="set eos_token")
    ids_of = _tokenise((segment.text for item in rendered for segment in item.segments), tokenizer)
    pieces_of = [_pieces(item, ids_of, tokenizer.eos_token_id) for item in rendered]
    bos = beginning(tokenizer)
    cuts_prompt_only = generates and not training
    room = max((len(pieces[-1]) for pieces in pieces_of), default=0) if cuts_prompt_only else 0
    tally = _Tally()
    cutter = _Cutter(tokenizer, tally, training)
    examples = []
    for record, item, pieces in zip(records, rendered, pieces_of, strict=True):
        head = [] if item.templated else bos
        measured = sum(map(len, pieces[:-1] if cuts_prompt_only else pieces)) + len(head)
        excess = measured - (max_length - room)
        fitted = pieces if excess <= 0 else cutter.fit(record, item.segments, pieces, excess)
        if fitted is None:
            continue
        if item.templated and not _ends(item, tokenizer):
            tally.add("endless", record)
        examples.append(_example(record, item.segments, head, fitted, tally))
    if tally.dropped_long and cuts_prompt_only:
        raise DataError(
            f"max_length {max_length} is too small for {tally.dropped_long} {split} questions and an answer",
            where=tally.places["dropped_long"],
            fix=f"set task.max_length to {max_length + tally.lacking} or more",
        )
    return examples, _notices(tally, split, max_length, training)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text (usually one BOS, or none)."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def render(record: Record, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The record's text pieces; chat messages through the tokenizer's chat template, or a plain one where it has none.

    Raises:
        DataError: the template cannot render the conversation, or rewrites earlier turns when one is added.
    """
    if not any(segment.role is not None for segment in record.segments):
        return Rendered(record.segments)
    if tokenizer.chat_template:
        return Rendered(_templated(record, tokenizer), templated=True)
    return Rendered(_plain_chat(record.segments))


def _plain_chat(turns: Sequence[Segment]) -> tuple[Segment, ...]:
    r"""``"User: …\n"``, ``"Assistant:"``, ``" …"``; what precedes the first answer is one segment, cut at its start."""
    segments: list[Segment] = []
    lead = ""
    for turn in turns:
        if not turn.is_target:
            lead += f"{(turn.role or 'user').capitalize()}: {turn.text}\n"
            continue
        if lead:
            segments.append(Segment(lead, cut=None if segments else "start"))
            lead = ""
        segments += [Segment("Assistant:"), Segment(f" {turn.text.strip()}", is_target=True)]
    return tuple(segments)  # what follows the last answer teaches nothing


def _templated(record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[Segment, ...]:
    """Each assistant turn is what the template adds to its generation prompt, up to the token that ends the turn."""
    messages = [{"role": str(turn.role), "content": turn.text} for turn in record.segments]
    segments: list[Segment] = []
    done = ""
    for index, turn in enumerate(record.segments):
        if not turn.is_target:
            continue
        prompt = _apply(messages[:index], tokenizer, record, prompt=True)
        whole = _apply(messages[: index + 1], tokenizer, record, prompt=False)
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise DataError(
                f"the chat template rewrites earlier text when turn {index + 1} is added",
                where=record.where,
                fix="use a template whose output only grows, or data with one answer a record",
            )
        target = whole[len(prompt) :]
        ended = target.rstrip()
        # A newline after the end token is not part of what a model must produce to stop.
        target = ended if ended.endswith(_special_tokens(tokenizer)) else target
        segments.append(Segment(prompt[len(done) :], cut=None if segments else "start"))
        segments.append(Segment(target, is_target=True))
        done = prompt + target
    return tuple(segments)


def _apply(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, record: Record, *, prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # jinja2's errors, and whatever a template raises
        reason = str(error) or type(error).__name__
        raise DataError(
            f"the chat template cannot render this conversation ({reason})", where=record.where, fix="reorder its turns"
        ) from None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple({*tokenizer.all_special_tokens, *added})


def _ends(item: Rendered, tokenizer: PreTrainedTokenizerBase) -> bool:
    return all(piece.text.endswith(_special_tokens(tokenizer)) for piece in item.segments if piece.is_target)


def _tokenise(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encoded: Any = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return dict(zip(distinct, encoded["input_ids"], strict=True))


def _pieces(item: Rendered, ids_of: dict[str, list[int]], eos: int | None) -> list[list[int]]:
    end = [] if item.templated or eos is None else [eos]
    return [ids_of[piece.text] + (end if piece.is_target else []) for piece in item.segments]


class _Cutter:
    """Takes tokens from the one segment that may lose them, and tells which answers go with them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tally: _Tally, training: bool) -> None:
        self.tokenizer = tokenizer
        self.tally = tally
        self.training = training
        self._offsets: dict[str, list[tuple[int, int]]] = {}

    def fit(self, record: Record, segments: Sequence[Segment], pieces: list[list[int]], excess: int) -> list[list[int]] | None:
        """The pieces without ``excess`` tokens; None where the record has to be dropped."""
        lacking = self.lacking(segments, pieces, excess)
        if lacking > 0:
            self.tally.add("dropped_long", record)
            self.tally.lacking = max(self.tally.lacking, lacking)
            return None
        lost = self.lost(record, segments, excess)
        if lost and self.training:
            self.tally.add("dropped_answer", record)
            return None
        if lost:
            self.tally.add("answers_lost", record)
        self.tally.add("truncated", record)
        self.tally.tokens += excess
        return self.cut(segments, pieces, excess)

    def cut(self, segments: Sequence[Segment], pieces: list[list[int]], excess: int) -> list[list[int]]:
        """The pieces without ``excess`` tokens of the one that may lose them."""
        index = _cut_index(segments)
        assert index is not None, "only pieces that lack nothing are cut"
        ids = pieces[index]
        fixed = self._fixed(ids)
        kept = ids[: len(ids) - excess] if segments[index].cut == "end" else ids[:fixed] + ids[fixed + excess :]
        return [*pieces[:index], kept, *pieces[index + 1 :]]

    def lacking(self, segments: Sequence[Segment], pieces: list[list[int]], excess: int) -> int:
        """How many tokens too many remain when all that may go is gone."""
        index = _cut_index(segments)
        if index is None:
            return excess
        if segments[index].cut == "end":
            return excess - len(pieces[index])
        # One token of a prompt that is cut from its start stays: it predicts what follows.
        return excess - max(0, len(pieces[index]) - max(1, self._fixed(pieces[index])))

    def lost(self, record: Record, segments: Sequence[Segment], excess: int) -> bool:
        """Whether the cut removed the answer: the first one in training, every one in evaluation."""
        spans = record.answer_spans[:1] if self.training else record.answer_spans
        index = _cut_index(segments)
        if not spans or index is None:
            return False
        kept_end = self._kept_end(segments[index].text, excess)
        return not any(span is not None and span[1] <= kept_end for span in spans)

    def _fixed(self, ids: list[int]) -> int:
        """A chat template's BOS stays in front."""
        return int(bool(ids) and ids[0] == self.tokenizer.bos_token_id)

    def _kept_end(self, text: str, excess: int) -> int:
        """How many characters of ``text`` are wholly kept when its last ``excess`` tokens go."""
        if text not in self._offsets:
            if not self.tokenizer.is_fast:
                raise ModelError(
                    "this tokenizer cannot say which answers a cut removes",
                    where="task.max_length",
                    fix="use a fast one",
                )
            encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            self._offsets[text] = encoded["offset_mapping"]
        offsets = self._offsets[text]
        kept, gone = offsets[: len(offsets) - excess], offsets[len(offsets) - excess :]
        # A character of several tokens is kept only if all of them are.
        return min(max((end for _, end in kept), default=0), min(start for start, _ in gone))


def _cut_index(segments: Sequence[Segment]) -> int | None:
    return next((index for index, segment in enumerate(segments) if segment.cut is not None), None)


def _example(record: Record, segments: Sequence[Segment], head: list[int], pieces: list[list[int]], tally: _Tally) -> Example:
    input_ids = list(head)
    is_target = [False] * len(head)
    prompt_length = 0
    for segment, ids in zip(segments, pieces, strict=True):
        if segment.is_target:
            prompt_length = len(input_ids)
        input_ids += ids
        is_target += [segment.is_target] * len(ids)
    if is_target[0]:
        is_target[0] = False
        tally.add("unpredictable", record)
    return Example(record.id, input_ids, is_target, None, prompt_length, record.answers)


def _notices(tally: _Tally, split: str, max_length: int, training: bool) -> list[Notice]:
    notices = []

    def note(kind: str, counter: str, message: str) -> None:
        count = getattr(tally, counter)
        if count:
            first = tally.places.get(counter)
            told = f"{count} {split} {message}{f' (first: {first})' if first else ''}."
            notices.append(Notice(kind, count, split, told, (first,) if first else ()))

    note("truncated", "truncated", f"examples were cut to max_length {max_length}, losing {tally.tokens} prompt tokens")
    if not training:
        note("answer_lost", "answers_lost", "examples are scored although the cut removed every gold answer from them")
    note("dropped", "dropped_answer", f"examples were dropped: max_length {max_length} cuts their answer away")
    note("dropped", "dropped_long", f"examples were dropped: they do not fit max_length {max_length} even when cut")
    note("first_token", "unpredictable", "examples have an empty prompt, so their first token is not learned")
    note("no_end", "endless", "examples have an answer that the chat template ends with no special token")
    return notices
