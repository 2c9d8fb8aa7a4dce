"""Records as token ids: targets, special tokens, candidates.

Plain segments are tokenised each on its own, so that two questions on one paragraph share their leading tokens; an
end-of-sequence token closes every target; a beginning-of-sequence token is put first exactly when the tokenizer would
do so itself. A conversation that a chat template wrote is tokenised whole, and what is to be learned follows from the
characters that each token covers. Where one token covers the end of a prompt and the start of its answer, that record
is tokenised apart there, which is counted.

An encoder–decoder reads what precedes a target as one plain text, with its own special tokens, and has one example for
each target.

Does not know file formats or batches, what a conversation looks like as text (``conversation``), or what goes where a
record is too long (``truncation``). Floor: data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from lorascope.data.conversation import Rendered, Renderer, encoder_text, is_chat, system_text, taught
from lorascope.data.record import Example, Notice, Record, Segment
from lorascope.data.tokens import (
    Offsets,
    batches,
    beginning,
    end_token,
    first_at,
    special_ids,
    special_texts,
    tokenise,
    widened,
    with_offsets,
)
from lorascope.data.truncation import Cut, Encoded, Fitter, Tally, needs_fast, notices_of, too_small
from lorascope.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNCUT = 10**9  # a max_length that cuts nothing


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
    tally = Tally()
    fitter = Fitter(encoder.encode_one, tokenizer, tally, max_length - room, training=training, prompt_only=cuts_prompt_only)
    examples = []
    for record, encoded in zip(records, encoded_records, strict=True):
        fitted = fitter.fit(record, encoded)
        if fitted is None:
            continue
        _count_rendering(tally, record, fitted)
        candidates, num_apart = ([], 0) if training else encoder.candidates(record, fitted)
        if num_apart:
            tally.add("seams", record)
        within = _within(candidates, max_length - fitted.prompt_length, record, tally)
        examples.append(_example(record, fitted, within, tally))
    if tally.dropped_long and cuts_prompt_only:
        raise too_small(tally, split, max_length)
    return examples, notices_of(tally, split, max_length, training)


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
    single = one_target_each(records)
    if training:  # candidates are ranked, not learned
        single = [replace(record, candidates=()) for record in single]
    texts = [text.strip() for record in single for text in (record.segments[-1].text, *record.candidates)]
    ids_of = tokenise(texts, tokenizer)
    tally = Tally()
    reader = _Reader(tokenizer, max_length)
    fitter = Fitter(reader.encode_one, tokenizer, tally, max_length, training=training, prompt_only=True)
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
                group=record.group_key,
            )
        )
    if tally.lacking and generates and not training:
        raise too_small(tally, split, max_length)
    return examples, notices_of(tally, split, max_length, training)


def one_target_each(records: Sequence[Record]) -> list[Record]:
    """The records as an encoder–decoder sees them: one for each target, with what precedes it.

    A record's last target has its candidates, and its identity if it is the only one.
    """
    return [one for record in records for one in _by_target(record)]


def _by_target(record: Record) -> list[Record]:
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


class _Encoder:
    """Token ids of a decoder's records, by one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._beginning = beginning(tokenizer)
        self._special_ids = special_ids(tokenizer)
        self._special_texts = special_texts(tokenizer)

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        rendered = [self._renderer.render(taught(record.segments), record.where) for record in records]
        if not all(item.templated for item in rendered):
            end_token(self.tokenizer)
        encoded: list[Encoded | None] = [None] * len(rendered)
        if self.tokenizer.is_fast:
            whole = [index for index, item in enumerate(rendered) if item.templated]
            texts = ("".join(piece.text for piece in rendered[index].segments) for index in whole)
            for index, (ids, offsets) in zip(whole, with_offsets(texts, self.tokenizer), strict=True):
                encoded[index] = self._from_offsets(rendered[index], ids, offsets)
        apart = [index for index, item in enumerate(encoded) if item is None]
        ids_of = tokenise((piece.text for index in apart for piece in rendered[index].segments), self.tokenizer)
        for index in apart:
            seam = rendered[index].templated and self.tokenizer.is_fast
            encoded[index] = self._from_pieces(rendered[index], ids_of, seam)
        return [item for item in encoded if item is not None]

    def encode_one(self, record: Record) -> Encoded:
        [encoded] = self.encode([record])
        return encoded

    def candidates(self, record: Record, encoded: Encoded) -> tuple[list[list[int]], int]:
        """Each candidate's ids in the place of the last target, and how many had to be tokenised apart from the prompt."""
        if not record.candidates:
            return [], 0
        texts = [self._renderer.target_text(encoded.rendered, text, record.where) for text in record.candidates]
        in_place = self._in_place(encoded, texts) if encoded.whole else [None] * len(texts)
        ids_of = tokenise((text for text, ids in zip(texts, in_place, strict=True) if ids is None), self.tokenizer)
        end = [] if encoded.rendered.templated else [end_token(self.tokenizer)]
        found = [ids_of[text] + end if ids is None else ids for text, ids in zip(texts, in_place, strict=True)]
        return found, in_place.count(None) if encoded.whole else 0

    def _from_pieces(self, rendered: Rendered, ids_of: dict[str, list[int]], seam: bool) -> Encoded:
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
                cut = replace(cut, takes_system=rendered.has_system)
            input_ids += ids
            is_target += [segment.is_target] * len(ids)
        return Encoded(rendered, input_ids, is_target, prompt_length, cut, seam=seam, ended=ended)

    def _from_offsets(self, rendered: Rendered, ids: list[int], offsets: Offsets) -> Encoded | None:
        """The targets' tokens by the characters they cover; None where one covers both sides of a target's edge."""
        is_target = [False] * len(ids)
        ended = True
        position = prompt_length = 0
        cut = None
        for segment in rendered.segments:
            first, last = first_at(offsets, position), first_at(offsets, position + len(segment.text))
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
                if rendered.cuttable is not None:
                    cut = _within_characters(cut, offsets, *rendered.cuttable)
                elif rendered.has_system:
                    cut = replace(cut, takes_system=True)
            position += len(segment.text)
        return Encoded(rendered, ids, is_target, prompt_length, cut, whole=True, ended=ended)

    def _cut(self, segment: Segment, ids: list[int], start: int) -> Cut:
        stop = start + len(ids)
        if segment.cut == "end":
            return Cut(start, stop, "end", segment.text)
        # A chat template's BOS stays in front, or else one token of the prompt: it predicts what follows.
        if ids and ids[0] == self.tokenizer.bos_token_id:
            return Cut(start + 1, stop, "start", segment.text)
        return Cut(start, stop, "start", segment.text, keep=1)

    def _in_place(self, encoded: Encoded, texts: list[str]) -> list[list[int] | None]:
        """The texts' ids after the prompt; None where one runs into it.

        Only what follows the prompt's last special token is tokenised again, where that gives the record's own ids.
        """
        *before, own = (piece.text for piece in encoded.rendered.segments)
        prompt = "".join(before)
        anchor = max((prompt.rfind(special) for special in self._special_texts), default=0)
        for tail in (prompt[max(anchor, 0) :], prompt):
            (ids, offsets), *others = with_offsets((tail + text for text in (own, *texts)), self.tokenizer)
            first = first_at(offsets, len(tail))
            if first is not None and ids[first:] == encoded.target_ids:
                return [
                    found[first:] if found[:first] == ids[:first] and first_at(spans, len(tail)) == first else None
                    for found, spans in others
                ]
        return [None] * len(texts)


class _Reader:
    """Token ids of what an encoder reads: everything before a record's one target, as one text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length

    def encode_one(self, record: Record) -> Encoded:
        [encoded] = self.encode([record])
        return encoded

    def encode(self, records: Sequence[Record]) -> Iterator[Encoded]:
        texts = (encoder_text(record.segments[:-1]) for record in records)
        fast = self._tokenizer.is_fast
        numbered = iter(records)
        for batch in batches(texts):
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
                        raise needs_fast("this tokenizer cannot say which tokens a cut removes")
                    cut = self._cut(record, encoded["offset_mapping"][row], encoded["special_tokens_mask"][row])
                yield Encoded(Rendered(record.segments), ids, [False] * len(ids), len(ids), cut)

    def _cut(self, record: Record, offsets: Offsets, is_special: list[int]) -> Cut | None:
        """The tokens within the segment that may be cut; of a conversation, all behind its system message, from the start."""
        before = record.segments[:-1]
        num_head = next((index for index, special in enumerate(is_special) if not special), len(is_special))
        inner = [widened(start, stop) for (start, stop), special in zip(offsets, is_special, strict=True) if not special]
        if is_chat(before):
            system = len(system_text(before))
            # The line break before the next turn may be part of that turn's first token.
            later = (index for index, (start, stop) in enumerate(inner) if stop > system and start >= system - 1)
            first = next(later, len(inner)) if system else 0
            return Cut(num_head + first, num_head + len(inner), "start", "", keep=1)
        position = 0
        for segment in before:
            if segment.cut is not None:
                end = position + len(segment.text)
                covering = [index for index, (start, stop) in enumerate(inner) if position <= start and stop <= end]
                first, last = (covering[0], covering[-1] + 1) if covering else (0, 0)
                relative = [(start - position, stop - position) for start, stop in inner[first:last]]
                keep = int(segment.cut == "start")
                return Cut(num_head + first, num_head + last, segment.cut, segment.text, keep, relative)
            position += len(segment.text)
        return None


def _within_characters(cut: Cut, offsets: Offsets, start: int, stop: int) -> Cut:
    """The cut of those tokens only that cover nothing but these characters; all of them may go."""
    covering = [index for index, (first, last) in enumerate(offsets) if start <= first and last <= stop]
    return replace(cut, start=covering[0], stop=covering[-1] + 1, keep=0) if covering else replace(cut, stop=cut.start)


def _count_rendering(tally: Tally, record: Record, encoded: Encoded) -> None:
    flags = {
        "seams": encoded.seam,
        "endless": encoded.rendered.templated and not encoded.ended,
        "system_moved": encoded.rendered.system_moved,
        "opened": encoded.rendered.opened,
    }
    for kind, raised in flags.items():
        if raised:
            tally.add(kind, record)


def _within(candidates: Sequence[list[int]], room: int, record: Record, tally: Tally) -> tuple[tuple[int, ...], ...]:
    long = sum(len(ids) > room for ids in candidates)
    if long:
        tally.add("cut_candidates", record, long)
    return tuple(tuple(ids[:room]) for ids in candidates)


def _example(record: Record, encoded: Encoded, candidates: tuple[tuple[int, ...], ...], tally: Tally) -> Example:
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
        group=record.group_key,
    )
