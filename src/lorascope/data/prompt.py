"""Records as token ids: targets, special tokens, candidates, truncation.

Plain segments are tokenised each on its own, so that two questions on one paragraph share their leading tokens; an
end-of-sequence token closes every target; a beginning-of-sequence token is put first exactly when the tokenizer would
do so itself. A conversation that a chat template wrote is tokenised whole, and what is to be learned follows from the
characters that each token covers. Where one token covers the end of a prompt and the start of its answer, that record
is tokenised apart there, which is counted.

What is too long loses its oldest exchanges, then tokens of the one segment that says so (``Segment.cut``). An
encoder–decoder reads what precedes a target as one plain text, with its own special tokens, and has one example for
each target.

Does not know file formats, batches or what a conversation looks like as text (``conversation``). Floor: data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from lorascope.data.conversation import Rendered, Renderer, encoder_text, exchanges, is_chat, taught, without_oldest
from lorascope.data.record import Example, Notice, Record, Segment
from lorascope.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]
BATCH_TEXTS = 256  # tokenised at a time: offsets of a whole split would fill the memory


@dataclass
class _Tally:
    """What happened while encoding one split, by number of records (targets, candidates where the name says so)."""

    truncated: int = 0
    tokens: int = 0
    answers_lost: int = 0
    dropped_answer: int = 0
    dropped_long: int = 0
    dropped_targets: int = 0
    cut_targets: int = 0
    cut_candidates: int = 0
    unpredictable: int = 0
    endless: int = 0
    seams: int = 0
    system_moved: int = 0
    opened: int = 0
    lacking: int = 0
    places: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, record: Record, count: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + count)
        self.places.setdefault(kind, record.where)


@dataclass(frozen=True)
class _Cut:
    """The tokens ``[start, stop)`` that may go, from which side, and the text they are of; ``keep`` of them must stay.

    ``offsets``: characters of the text that they cover, where that is known already.
    """

    start: int
    stop: int
    side: Literal["start", "end"]
    text: str
    keep: int = 0
    offsets: Offsets | None = None

    @property
    def most(self) -> int:
        return max(0, self.stop - self.start - self.keep)


@dataclass(frozen=True)
class _Encoded:
    """A rendered record as token ids.

    Attributes:
        whole: the text was tokenised in one piece.
        seam: it could not be, for a token covers the end of a prompt and the start of its answer.
        ended: a special token ends every target.
    """

    rendered: Rendered
    input_ids: list[int]
    is_target: list[bool]
    prompt_length: int
    cut: _Cut | None
    whole: bool = False
    seam: bool = False
    ended: bool = True

    @property
    def target_ids(self) -> list[int]:
        return self.input_ids[self.prompt_length :]

    def shortened(self, excess: int) -> _Encoded:
        """Without ``excess`` of the tokens that may go."""
        if excess <= 0:
            return self
        assert self.cut is not None, "only what lacks nothing is cut"
        first = self.cut.stop - excess if self.cut.side == "end" else self.cut.start
        kept = [*range(first), *range(first + excess, len(self.input_ids))]
        return replace(
            self,
            input_ids=[self.input_ids[index] for index in kept],
            is_target=[self.is_target[index] for index in kept],
            prompt_length=self.prompt_length - excess,
            cut=None,
        )


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

    An example longer than ``max_length`` loses its oldest exchanges where it is a conversation, else tokens from the
    segment that may be cut. A training example whose answer was cut away, or which does not fit even so, is dropped. An
    evaluation example that generates keeps its place: its prompt is cut to ``max_length`` less the longest first answer
    of the split, the same room for all, so that the prompt does not tell how long the answer is. A candidate that does
    not fit loses its end. Everything is counted in the notices.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, or cannot say which characters a token covers; its chat
            template goes beyond its limits.
        DataError: a chat template that cannot be used, or a question that does not fit.
    """
    encoder = _Encoder(tokenizer)
    encoded_records = encoder.encode(records)
    cuts_prompt_only = generates and not training
    room = max((len(item.target_ids) for item in encoded_records), default=0) if cuts_prompt_only else 0
    tally = _Tally()
    fitter = _Fitter(encoder.encode_one, tokenizer, tally, max_length - room, training=training, prompt_only=cuts_prompt_only)
    examples = []
    for record, encoded in zip(records, encoded_records, strict=True):
        fitted = fitter.fit(record, encoded)
        if fitted is None:
            continue
        _count_rendering(tally, record, fitted)
        candidates, num_apart = encoder.candidates(record, fitted)
        if num_apart:
            tally.add("seams", record)
        within = _within(candidates, max_length - fitted.prompt_length, record, tally)
        examples.append(_example(record, fitted, within, tally))
    if tally.dropped_long and cuts_prompt_only:
        raise _too_small(tally, split, max_length)
    return examples, _notices(tally, split, max_length, training)


def encode_pairs(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str,
    *,
    training: bool,
    generates: bool,
) -> tuple[list[Example], list[Notice]]:
    """Token ids for an encoder–decoder: one example for each target, what precedes it as the encoder's input.

    The input is cut as a decoder's prompt is, to ``max_length``. An example whose target is longer than that is dropped,
    but for one that is generated, whose target loses its end. Everything is counted in the notices.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, or cannot say which characters a token covers.
        DataError: a question does not fit, or has no tokens.
    """
    end = end_token(tokenizer)
    single = [one for record in records for one in _one_target_each(record)]
    texts = [text.strip() for record in single for text in (record.segments[-1].text, *record.candidates)]
    ids_of = _tokenise(texts, tokenizer)
    tally = _Tally()
    reader = _Reader(tokenizer, max_length)
    fitter = _Fitter(reader.encode_one, tokenizer, tally, max_length, training=training, prompt_only=True)
    examples = []
    for record, encoded in zip(single, reader.encode(single), strict=True):
        target_ids = [*ids_of[record.segments[-1].text.strip()], end]
        if len(target_ids) > max_length:
            if training or not generates:
                tally.add("dropped_long", record)
                continue
            tally.add("cut_targets", record)
        fitted = fitter.fit(record, encoded)
        if fitted is None:
            continue
        if not fitted.input_ids:
            raise DataError("the text before the answer has no tokens", where=record.where, fix="remove the record")
        candidates = _within([[*ids_of[text.strip()], end] for text in record.candidates], max_length, record, tally)
        examples.append(
            Example(
                record.id,
                fitted.input_ids,
                None,
                None,
                len(fitted.input_ids),
                record.answers,
                target_ids=target_ids[:max_length],
                persona=record.persona,
                candidate_ids=candidates,
            )
        )
    if tally.lacking and generates and not training:
        raise _too_small(tally, split, max_length)
    return examples, _notices(tally, split, max_length, training)


def _one_target_each(record: Record) -> list[Record]:
    """A record for each target, with what precedes it; the last has the candidates, and the identity if it is the only one."""
    indices = [index for index, segment in enumerate(record.segments) if segment.is_target]
    if len(indices) == 1:
        return [replace(record, segments=record.segments[: indices[0] + 1])]
    records = []
    for number, index in enumerate(indices, 1):
        before = tuple(replace(segment, is_target=False) for segment in record.segments[:index])
        is_last = index == indices[-1]
        one = replace(
            record,
            id=f"{record.id}.{number}",
            segments=(*before, record.segments[index]),
            answers=record.answers if is_last else (record.segments[index].text,),
            candidates=record.candidates if is_last else (),
        )
        records.append(one)
    return records


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text (usually one BOS, or none)."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


class _Encoder:
    """Token ids of a decoder's records, by one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._beginning = beginning(tokenizer)
        self._special_ids = special_ids(tokenizer)
        self._special_texts = tuple(text for text in tokenizer.convert_ids_to_tokens(sorted(self._special_ids)) if text)

    def encode(self, records: Sequence[Record]) -> list[_Encoded]:
        rendered = [self._renderer.render(taught(record.segments), record.where) for record in records]
        if not all(item.templated for item in rendered):
            end_token(self.tokenizer)
        encoded: list[_Encoded | None] = [None] * len(rendered)
        if self.tokenizer.is_fast:
            whole = [index for index, item in enumerate(rendered) if item.templated]
            texts = ("".join(piece.text for piece in rendered[index].segments) for index in whole)
            for index, (ids, offsets) in zip(whole, _with_offsets(texts, self.tokenizer), strict=True):
                encoded[index] = self._from_offsets(rendered[index], ids, offsets)
        apart = [index for index, item in enumerate(encoded) if item is None]
        ids_of = _tokenise((piece.text for index in apart for piece in rendered[index].segments), self.tokenizer)
        for index in apart:
            seam = rendered[index].templated and self.tokenizer.is_fast
            encoded[index] = self._from_pieces(rendered[index], ids_of, seam)
        return [item for item in encoded if item is not None]

    def encode_one(self, record: Record) -> _Encoded:
        [encoded] = self.encode([record])
        return encoded

    def candidates(self, record: Record, encoded: _Encoded) -> tuple[list[list[int]], int]:
        """Each candidate's ids in the place of the last target, and how many had to be tokenised apart from the prompt."""
        if not record.candidates:
            return [], 0
        texts = [self._renderer.target_text(encoded.rendered, text, record.where) for text in record.candidates]
        in_place = self._in_place(encoded, texts) if encoded.whole else [None] * len(texts)
        ids_of = _tokenise((text for text, ids in zip(texts, in_place, strict=True) if ids is None), self.tokenizer)
        end = [] if encoded.rendered.templated else [end_token(self.tokenizer)]
        found = [ids_of[text] + end if ids is None else ids for text, ids in zip(texts, in_place, strict=True)]
        return found, in_place.count(None) if encoded.whole else 0

    def _from_pieces(self, rendered: Rendered, ids_of: dict[str, list[int]], seam: bool) -> _Encoded:
        """Every piece tokenised on its own."""
        input_ids = [] if rendered.templated else list(self._beginning)
        is_target = [False] * len(input_ids)
        prompt_length = 0
        cut = None
        ended = True
        for segment in rendered.segments:
            ids = ids_of[segment.text]
            if not rendered.templated and (segment.is_target or segment.role == "assistant"):
                ids = [*ids, end_token(self.tokenizer)]
            if segment.is_target:
                prompt_length = len(input_ids)
                ended &= bool(ids) and ids[-1] in self._special_ids
            if segment.cut is not None and cut is None:
                cut = self._cut(segment, ids, len(input_ids))
            input_ids += ids
            is_target += [segment.is_target] * len(ids)
        return _Encoded(rendered, input_ids, is_target, prompt_length, cut, seam=seam, ended=ended)

    def _from_offsets(self, rendered: Rendered, ids: list[int], offsets: Offsets) -> _Encoded | None:
        """The targets' tokens by the characters they cover; None where one covers both sides of a target's edge."""
        is_target = [False] * len(ids)
        ended = True
        position = prompt_length = 0
        cut = None
        for segment in rendered.segments:
            first, last = _first_at(offsets, position), _first_at(offsets, position + len(segment.text))
            if first is None or last is None:
                return None
            if segment.is_target:
                covered = all(
                    position <= start and stop <= position + len(segment.text) for start, stop in offsets[first:last]
                )
                if not covered or (first == last and segment.text.strip()):
                    return None
                is_target[first:last] = [True] * (last - first)
                ended &= last > first and ids[last - 1] in self._special_ids
                prompt_length = first
            elif segment.cut is not None:
                cut = self._cut(segment, ids[first:last], first)
            position += len(segment.text)
        return _Encoded(rendered, ids, is_target, prompt_length, cut, whole=True, ended=ended)

    def _cut(self, segment: Segment, ids: list[int], start: int) -> _Cut:
        stop = start + len(ids)
        if segment.cut == "end":
            return _Cut(start, stop, "end", segment.text)
        # A chat template's BOS stays in front, or else one token of the prompt: it predicts what follows.
        if ids and ids[0] == self.tokenizer.bos_token_id:
            return _Cut(start + 1, stop, "start", segment.text)
        return _Cut(start, stop, "start", segment.text, keep=1)

    def _in_place(self, encoded: _Encoded, texts: list[str]) -> list[list[int] | None]:
        """The texts' ids after the prompt; None where one runs into it.

        Only what follows the prompt's last special token is tokenised again, where that gives the record's own ids.
        """
        *before, own = (piece.text for piece in encoded.rendered.segments)
        prompt = "".join(before)
        anchor = max((prompt.rfind(special) for special in self._special_texts), default=0)
        for tail in (prompt[max(anchor, 0) :], prompt):
            (ids, offsets), *others = _with_offsets((tail + text for text in (own, *texts)), self.tokenizer)
            first = _first_at(offsets, len(tail))
            if first is not None and ids[first:] == encoded.target_ids:
                return [
                    found[first:] if found[:first] == ids[:first] and _first_at(spans, len(tail)) == first else None
                    for found, spans in others
                ]
        return [None] * len(texts)


class _Reader:
    """Token ids of what an encoder reads: everything before a record's one target, as one text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length

    def encode_one(self, record: Record) -> _Encoded:
        [encoded] = self.encode([record])
        return encoded

    def encode(self, records: Sequence[Record]) -> Iterator[_Encoded]:
        texts = (encoder_text(record.segments[:-1]) for record in records)
        fast = self._tokenizer.is_fast
        numbered = iter(records)
        for batch in _batches(texts):
            encoded: Any = self._tokenizer(
                batch,
                return_attention_mask=False,
                return_offsets_mapping=fast,
                return_special_tokens_mask=True,
                verbose=False,
            )
            for row, (record, ids) in enumerate(zip(islice(numbered, len(batch)), encoded["input_ids"], strict=True)):
                cut = None
                if len(ids) > self._max_length:
                    if not fast:
                        raise _needs_fast("this tokenizer cannot say which tokens a cut removes")
                    cut = self._cut(record, encoded["offset_mapping"][row], encoded["special_tokens_mask"][row])
                yield _Encoded(Rendered(record.segments), ids, [False] * len(ids), len(ids), cut)

    def _cut(self, record: Record, offsets: Offsets, is_special: list[int]) -> _Cut | None:
        """The tokens within the segment that may be cut; of a conversation, all of them, from the start."""
        before = record.segments[:-1]
        num_head = next((index for index, special in enumerate(is_special) if not special), len(is_special))
        inner = [_widened(start, stop) for (start, stop), special in zip(offsets, is_special, strict=True) if not special]
        if is_chat(before):
            return _Cut(num_head, num_head + len(inner), "start", "", keep=1)
        position = 0
        for segment in before:
            if segment.cut is not None:
                end = position + len(segment.text)
                covering = [index for index, (start, stop) in enumerate(inner) if position <= start and stop <= end]
                first, last = (covering[0], covering[-1] + 1) if covering else (0, 0)
                relative = [(start - position, stop - position) for start, stop in inner[first:last]]
                keep = int(segment.cut == "start")
                return _Cut(num_head + first, num_head + last, segment.cut, segment.text, keep, relative)
            position += len(segment.text)
        return None


class _Fitter:
    """Shortens what is longer than ``limit``, and counts what goes with it."""

    def __init__(
        self,
        encode: Callable[[Record], _Encoded],
        tokenizer: PreTrainedTokenizerBase,
        tally: _Tally,
        limit: int,
        *,
        training: bool,
        prompt_only: bool,
    ) -> None:
        self._encode = encode
        self._tokenizer = tokenizer
        self._tally = tally
        self._limit = limit
        self._training = training
        self._prompt_only = prompt_only
        self._offsets: dict[str, Offsets] = {}

    def fit(self, record: Record, encoded: _Encoded) -> _Encoded | None:
        """The record within the limit; None where it has to be dropped."""
        if self._measure(encoded) <= self._limit:
            return encoded
        shorter, num_targets_dropped = self._without_exchanges(record, encoded)
        excess = self._measure(shorter) - self._limit
        lacking = excess - (shorter.cut.most if shorter.cut else 0)
        if lacking > 0:
            self._tally.add("dropped_long", record)
            self._tally.lacking = max(self._tally.lacking, lacking)
            return None
        if excess > 0 and self._loses_answer(record, shorter, excess):
            if self._training:
                self._tally.add("dropped_answer", record)
                return None
            self._tally.add("answers_lost", record)
        fitted = shorter.shortened(excess)
        self._tally.add("truncated", record)
        self._tally.tokens += self._measure(encoded) - self._measure(fitted)
        if num_targets_dropped:
            self._tally.add("dropped_targets", record, num_targets_dropped)
        return fitted

    def _measure(self, encoded: _Encoded) -> int:
        return encoded.prompt_length if self._prompt_only else len(encoded.input_ids)

    def _without_exchanges(self, record: Record, encoded: _Encoded) -> tuple[_Encoded, int]:
        """Without as few of the oldest exchanges as it takes, or all but the last; and how many targets went."""
        segments = taught(record.segments)
        droppable = len(exchanges(segments)) - 1 if is_chat(segments) else 0
        if not droppable:
            return encoded, 0
        tried: dict[int, _Encoded] = {}

        def fits(num_dropped: int) -> bool:
            tried[num_dropped] = self._encode(replace(record, segments=without_oldest(segments, num_dropped)))
            return self._measure(tried[num_dropped]) <= self._limit

        fewest = bisect_left(range(1, droppable), True, key=fits) + 1
        if fewest not in tried:
            fits(fewest)
        num_targets = sum(segment.is_target for segment in segments)
        kept = without_oldest(segments, fewest)
        return tried[fewest], num_targets - sum(segment.is_target for segment in kept)

    def _loses_answer(self, record: Record, encoded: _Encoded, excess: int) -> bool:
        """Whether the cut removes the answer: the first one in training, every one in evaluation."""
        spans = record.answer_spans[:1] if self._training else record.answer_spans
        if not spans or encoded.cut is None or encoded.cut.side != "end":
            return False
        kept_end = self._kept_end(encoded.cut, excess)
        return not any(span is not None and span[1] <= kept_end for span in spans)

    def _kept_end(self, cut: _Cut, excess: int) -> int:
        """How many characters of the text are wholly kept when its last ``excess`` tokens go."""
        offsets = cut.offsets
        if offsets is None:
            if not self._tokenizer.is_fast:
                raise _needs_fast("this tokenizer cannot say which answers a cut removes")
            if cut.text not in self._offsets:
                [(_, self._offsets[cut.text])] = _with_offsets([cut.text], self._tokenizer)
            offsets = self._offsets[cut.text]
        kept, gone = offsets[: len(offsets) - excess], offsets[len(offsets) - excess :]
        # A character of several tokens is kept only if all of them are.
        return min(max((end for _, end in kept), default=0), min(start for start, _ in gone))


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-sequence token."""
    if tokenizer.eos_token_id is None:
        place = tokenizer.name_or_path or "tokenizer"
        raise ModelError("the tokenizer has no end-of-sequence token", where=place, fix="set eos_token")
    return int(tokenizer.eos_token_id)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of every token that a tokenizer marks as special."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *added])


def _tokenise(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    encoded: Any = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return dict(zip(distinct, encoded["input_ids"], strict=True))


def _with_offsets(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], Offsets]]:
    """Each text's ids and the characters that each covers, without special tokens around."""
    for batch in _batches(texts):
        encoded: Any = tokenizer(
            batch, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield ids, [_widened(start, stop) for start, stop in offsets]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, BATCH_TEXTS)):
        yield batch


def _widened(start: int, stop: int) -> tuple[int, int]:
    """A token that covers nothing stands for the space that its tokenizer left out of the offsets, just before."""
    return (start - 1, stop) if start == stop and start > 0 else (start, stop)


def _first_at(offsets: Offsets, position: int) -> int | None:
    """The first token behind a place in the text; None where one covers both sides."""
    for index, (start, stop) in enumerate(offsets):
        if stop > position:
            return index if start >= position else None
    return len(offsets)


def _needs_fast(what: str) -> ModelError:
    return ModelError(what, where="task.max_length", fix="use a fast one")


def _count_rendering(tally: _Tally, record: Record, encoded: _Encoded) -> None:
    flags = {
        "seams": encoded.seam,
        "endless": encoded.rendered.templated and not encoded.ended,
        "system_moved": encoded.rendered.system_moved,
        "opened": encoded.rendered.opened,
    }
    for kind, raised in flags.items():
        if raised:
            tally.add(kind, record)


def _within(candidates: Sequence[list[int]], room: int, record: Record, tally: _Tally) -> tuple[tuple[int, ...], ...]:
    long = sum(len(ids) > room for ids in candidates)
    if long:
        tally.add("cut_candidates", record, long)
    return tuple(tuple(ids[:room]) for ids in candidates)


def _example(record: Record, encoded: _Encoded, candidates: tuple[tuple[int, ...], ...], tally: _Tally) -> Example:
    is_target = encoded.is_target
    if is_target[0]:
        is_target = [False, *is_target[1:]]
        tally.add("unpredictable", record)
    return Example(
        record.id,
        encoded.input_ids,
        is_target,
        None,
        encoded.prompt_length,
        record.answers,
        persona=record.persona,
        candidate_ids=candidates,
    )


def _too_small(tally: _Tally, split: str, max_length: int) -> DataError:
    return DataError(
        f"max_length {max_length} is too small for {tally.dropped_long} {split} questions and an answer",
        where=tally.places["dropped_long"],
        fix=f"set task.max_length to {max_length + tally.lacking} or more",
    )


def _notices(tally: _Tally, split: str, max_length: int, training: bool) -> list[Notice]:
    notices = []

    def note(kind: str, counter: str, message: str) -> None:
        count = getattr(tally, counter)
        if count:
            first = tally.places.get(counter)
            notices.append(Notice(kind, count, split, f"{count} {split} {message}{f' (first: {first})' if first else ''}."))

    note("truncated", "truncated", f"examples were cut to max_length {max_length}, losing {tally.tokens} prompt tokens")
    if not training:
        note("answer_lost", "answers_lost", "examples are scored although the cut removed every gold answer from them")
    note("dropped", "dropped_answer", f"examples were dropped: max_length {max_length} cuts their answer away")
    note("dropped", "dropped_long", f"examples were dropped: they do not fit max_length {max_length} even when cut")
    note("target_dropped", "dropped_targets", f"targets went with the oldest exchanges, cut to max_length {max_length}")
    note("target_cut", "cut_targets", f"targets were cut to max_length {max_length}")
    note("candidate_cut", "cut_candidates", f"candidates lost their end to max_length {max_length}")
    note("first_token", "unpredictable", "examples have an empty prompt, so their first token is not learned")
    note("no_end", "endless", "examples have an answer that the chat template ends with no special token")
    note("seam", "seams", "examples have an answer that runs into its prompt; the two were tokenised apart")
    note("system_role", "system_moved", "conversations have a system message that the chat template refuses; it opens them")
    note(
        "opening_turn", "opened", "conversations begin with the assistant, which the chat template refuses; a user opens them"
    )
    return notices
