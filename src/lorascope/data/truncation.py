"""Records that are too long: what goes first, what has to be dropped, and what is counted.

A conversation loses its oldest exchanges, as many as it takes; then tokens go from the one segment that says so
(``Segment.cut``), behind the system message wherever that can be told apart. Does not know how text becomes ids
(``prompt``). Floor: data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lorascope.data.conversation import Rendered, exchanges, is_chat, taught, without_oldest
from lorascope.data.record import Notice, Record
from lorascope.data.tokens import Offsets, with_offsets
from lorascope.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Tally:
    """What happened while encoding one split, by number of records (targets, candidates where the name says so)."""

    truncated: int = 0
    tokens: int = 0
    answers_lost: int = 0
    dropped_answer: int = 0
    dropped_long: int = 0
    dropped_targets: int = 0
    cut_systems: int = 0
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
        """Count it, and remember where it happened first."""
        setattr(self, kind, getattr(self, kind) + count)
        self.places.setdefault(kind, record.where)


@dataclass(frozen=True)
class Cut:
    """The tokens ``[start, stop)`` that may go, from which side, and the text they are of; ``keep`` of them must stay.

    ``offsets``: characters of the text that they cover, where that is known already; ``takes_system``: a system message is
    among them.
    """

    start: int
    stop: int
    side: Literal["start", "end"]
    text: str
    keep: int = 0
    offsets: Offsets | None = None
    takes_system: bool = False

    @property
    def most(self) -> int:
        """How many tokens may go."""
        return max(0, self.stop - self.start - self.keep)


@dataclass(frozen=True)
class Encoded:
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
    cut: Cut | None
    whole: bool = False
    seam: bool = False
    ended: bool = True

    @property
    def target_ids(self) -> list[int]:
        """The last target's ids."""
        return self.input_ids[self.prompt_length :]

    def shortened(self, excess: int) -> Encoded:
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


class Fitter:
    """Shortens what is longer than ``limit``, and counts what goes with it."""

    def __init__(
        self,
        encode: Callable[[Record], Encoded],
        tokenizer: PreTrainedTokenizerBase,
        tally: Tally,
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

    def fit(self, record: Record, encoded: Encoded) -> Encoded | None:
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
        if excess > 0 and shorter.cut is not None and shorter.cut.takes_system:
            self._tally.add("cut_systems", record)
        self._tally.tokens += self._measure(encoded) - self._measure(fitted)
        if num_targets_dropped:
            self._tally.add("dropped_targets", record, num_targets_dropped)
        return fitted

    def _measure(self, encoded: Encoded) -> int:
        return encoded.prompt_length if self._prompt_only else len(encoded.input_ids)

    def _without_exchanges(self, record: Record, encoded: Encoded) -> tuple[Encoded, int]:
        """Without as few of the oldest exchanges as it takes, or all but the last; and how many targets went."""
        segments = taught(record.segments)
        droppable = len(exchanges(segments)) - 1 if is_chat(segments) else 0
        if not droppable:
            return encoded, 0
        tried: dict[int, Encoded] = {}

        def fits(num_dropped: int) -> bool:
            tried[num_dropped] = self._encode(replace(record, segments=without_oldest(segments, num_dropped)))
            return self._measure(tried[num_dropped]) <= self._limit

        fewest = bisect_left(range(1, droppable), True, key=fits) + 1
        if fewest not in tried:
            fits(fewest)
        num_targets = sum(segment.is_target for segment in segments)
        kept = without_oldest(segments, fewest)
        return tried[fewest], num_targets - sum(segment.is_target for segment in kept)

    def _loses_answer(self, record: Record, encoded: Encoded, excess: int) -> bool:
        """Whether the cut removes the answer: the first one in training, every one in evaluation."""
        spans = record.answer_spans[:1] if self._training else record.answer_spans
        if not spans or encoded.cut is None or encoded.cut.side != "end":
            return False
        kept_end = self._kept_end(encoded.cut, excess)
        return not any(span is not None and span[1] <= kept_end for span in spans)

    def _kept_end(self, cut: Cut, excess: int) -> int:
        """How many characters of the text are wholly kept when its last ``excess`` tokens go."""
        offsets = cut.offsets
        if offsets is None:
            if not self._tokenizer.is_fast:
                raise needs_fast("this tokenizer cannot say which answers a cut removes")
            if cut.text not in self._offsets:
                [(_, self._offsets[cut.text])] = with_offsets([cut.text], self._tokenizer)
            offsets = self._offsets[cut.text]
        kept, gone = offsets[: len(offsets) - excess], offsets[len(offsets) - excess :]
        # A character of several tokens is kept only if all of them are.
        return min(max((end for _, end in kept), default=0), min(start for start, _ in gone))


def needs_fast(what: str) -> ModelError:
    return ModelError(what, where="task.max_length", fix="use a fast one")


def too_small(tally: Tally, split: str, max_length: int) -> DataError:
    return DataError(
        f"max_length {max_length} is too small for {tally.dropped_long} {split} questions and an answer",
        where=tally.places["dropped_long"],
        fix=f"set task.max_length to {max_length + tally.lacking} or more",
    )


def notices_of(tally: Tally, split: str, max_length: int, training: bool) -> list[Notice]:
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
    note("target_dropped", "dropped_targets", f"targets went with the oldest exchanges, cut to max_length {max_length}")
    note(
        "system_cut", "cut_systems", "conversations lost text of their system message, for it is not found apart from the rest"
    )
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
