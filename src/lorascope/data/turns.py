"""A conversation so far, or a text, as the token ids after which a model writes.

The same text as training reads (``conversation``): through the tokenizer's chat template, or in the plain format where it has
none; an encoder reads the plain format without end tokens. Does not know records, targets or batches. Floor: data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorascope.data.conversation import Renderer, encoder_text, exchanges, without_oldest
from lorascope.data.record import Segment
from lorascope.data.tokens import beginning, end_token, special_ids, tokenise
from lorascope.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHERE = "prompt"


@dataclass(frozen=True)
class Prompt:
    """What a model is given.

    Attributes:
        form: how the text was written: by the tokenizer's chat template, in the plain format, or as it is.
        ends: ids that close a turn of the assistant in this form, beside the model's own end tokens.
        num_left_out: exchanges at the beginning that did not fit.
        notices: what the template refused, and what was done instead.
    """

    ids: list[int]
    form: Literal["template", "plain", "raw"]
    ends: tuple[int, ...] = ()
    num_left_out: int = 0
    notices: tuple[str, ...] = ()


class TurnEncoder:
    """Prompts for one tokenizer's model.

    Args:
        reads_apart: an encoder reads the prompt, and a decoder writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reads_apart: bool) -> None:
        self._tokenizer = tokenizer
        self._reads_apart = reads_apart
        self._renderer = Renderer(tokenizer)
        self._ends: tuple[int, ...] | None = None

    @property
    def form(self) -> Literal["template", "plain"]:
        """How conversations are written."""
        return "template" if self._renderer.has_template and not self._reads_apart else "plain"

    def raw(self, text: str) -> Prompt:
        """The text as it is, with the special tokens that the model knows texts with.

        Raises:
            DataError: it has no tokens.
        """
        if self._reads_apart:
            return Prompt(_not_empty(self._ids(text)), "raw")
        return Prompt(_not_empty([*beginning(self._tokenizer), *tokenise([text], self._tokenizer)[text]]), "raw")

    def encode(self, turns: tuple[Segment, ...]) -> Prompt:
        """The turns, each with a role, and the beginning of the assistant's next one.

        Raises:
            DataError: the chat template cannot render them.
            ModelError: the chat template goes beyond its limits, or the plain format lacks an end token.
        """
        if self._reads_apart:
            return Prompt(_not_empty(self._ids(encoder_text(turns))), "plain")
        rendered = self._renderer.prompt(turns, WHERE)
        ids_of = tokenise((piece.text for piece in rendered.segments), self._tokenizer)
        ids = [] if rendered.templated else list(beginning(self._tokenizer))
        for piece in rendered.segments:
            ids += ids_of[piece.text]
            if piece.role == "assistant":
                ids.append(end_token(self._tokenizer))
        notices = {
            "the chat template refuses a system message; the first user message begins with it": rendered.system_moved,
            "the chat template refuses an assistant that begins; an empty user message comes first": rendered.opened,
        }
        told = tuple(notice for notice, holds in notices.items() if holds)
        return Prompt(_not_empty(ids), self.form, self._closing(), notices=told)

    def fitted(self, turns: tuple[Segment, ...], room: int | None, least: int) -> Prompt:
        """The turns without as few of the oldest exchanges as make room for the answer; the system message stays.

        Args:
            room: most tokens of the prompt, so that an answer of the length wished fits behind it; None for any number.
            least: as many as the last exchange alone may have, and still be answered in brief.

        Raises:
            UsageError: the last exchange alone has more.
        """
        starts = exchanges(turns)
        prompt = self.encode(turns)
        if room is None or len(prompt.ids) <= room:
            return prompt
        for num_left_out in range(1, len(starts)):
            shorter = self.encode(without_oldest(turns, num_left_out))
            prompt = Prompt(shorter.ids, shorter.form, shorter.ends, num_left_out, shorter.notices)
            if len(prompt.ids) <= room:
                return prompt
        if len(prompt.ids) > least:
            raise too_long(len(prompt.ids), least)
        return prompt

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids

    def _closing(self) -> tuple[int, ...]:
        """The special token that a template closes the assistant's turns with: what an adapter has learned to end with."""
        if self._ends is None:
            turns = (Segment("a", role="user"), Segment("b", is_target=True, role="assistant"))
            try:
                last = self._renderer.render(turns, WHERE).segments[-1].text
            except DataError:  # a template that writes prompts, and no such conversation
                last = ""
            ids = tokenise([last], self._tokenizer)[last]
            self._ends = tuple(ids[-1:]) if set(ids[-1:]) & special_ids(self._tokenizer) else ()
        return self._ends


def too_long(num_tokens: int, most: int) -> UsageError:
    """The error for a prompt that the model has no positions for."""
    what = f"the prompt has {num_tokens} tokens, and the model can read {most} and write one more"
    return UsageError(what, where=WHERE, fix="shorten it")


def _not_empty(ids: Sequence[int]) -> list[int]:
    if not ids:
        raise DataError("the text has no tokens", where=WHERE, fix="write something")
    return list(ids)
