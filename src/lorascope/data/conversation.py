r"""Conversations as text: through a chat template or a plain format, and what to do where a template refuses one.

The plain format, for tokenizers without a template, writes a system message as it is, and every other as who said what:

    be kind\n
    User: hi\n
    Assistant: hello<end>User: bye\n
    Assistant: see you<end>

An end token closes every turn of the assistant, learned or not, so that the record of one reply begins the record of
the next. A template writes all special tokens itself. Where it refuses a system message, the first user message begins
with it; where it refuses a conversation that the assistant begins, an empty user message (or that system message) comes
first. An encoder's input is the plain format without end tokens.

Does not know token ids. Floor: data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorascope.data.record import Segment
from lorascope.data.tokens import special_texts
from lorascope.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorascope.data.chat import ChatTemplate

SYSTEM_ROLES = ("system", "developer")
Message = dict[str, str]


@dataclass(frozen=True)
class Rendered:
    """A record's segments as text, in order.

    Attributes:
        templated: a chat template wrote the special tokens into it.
        system_moved: the system message stands in the first user message.
        opened: an empty user message was put before an assistant that begins.
        messages: what the template rendered, without the last target.
        cuttable: the characters of the first piece that may go before its system message does; None where they are not known.
        has_system: a system message stands in the first piece, and a cut of that piece begins with it unless ``cuttable``.
    """

    segments: tuple[Segment, ...]
    templated: bool = False
    system_moved: bool = False
    opened: bool = False
    messages: tuple[Message, ...] = ()
    cuttable: tuple[int, int] | None = None
    has_system: bool = False


class Renderer:
    """Writes records as one tokenizer's model reads them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._ends = special_texts(tokenizer)
        self._template: ChatTemplate | None = None
        if tokenizer.chat_template:
            from lorascope.data.chat import ChatTemplate

            self._template = ChatTemplate(tokenizer)

    def render(self, segments: tuple[Segment, ...], where: str) -> Rendered:
        """The segments as text; those of a chat as the template, or the plain format, writes them.

        Raises:
            DataError: the template cannot render the conversation, or rewrites earlier turns when one is added.
            ModelError: the template goes beyond its limits.
        """
        if not is_chat(segments):
            return Rendered(segments)
        if self._template is None:
            return Rendered(plain_chat(segments))
        from lorascope.data.chat import Refusal

        reason = ""
        for system_moved, opened in _adaptations(segments):
            turns = _adapted(segments, system_moved, opened)
            try:
                pieces = self._pieces(turns, where)
            except Refusal as refusal:
                reason = reason or str(refusal)
                continue
            messages = _messages(turns[: _last_target(turns)])
            has_system = segments[0].role in SYSTEM_ROLES
            cuttable = _behind_system(segments, pieces[0].text) if has_system else None
            return Rendered(pieces, True, system_moved, opened, messages, cuttable, has_system)
        raise DataError(f"the chat template cannot render this conversation ({reason})", where=where, fix="reorder its turns")

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer brings a chat template; without one, chats are written in the plain format."""
        return self._template is not None

    def prompt(self, turns: tuple[Segment, ...], where: str) -> Rendered:
        """What a model reads before it says the assistant's next turn; the assistant's turns so far are history.

        Raises:
            DataError: the template cannot render the conversation.
            ModelError: the template goes beyond its limits.
        """
        if self._template is None:
            return Rendered(plain_chat((*turns, Segment("", is_target=True, role="assistant")))[:-1])
        from lorascope.data.chat import Refusal

        reason = ""
        for system_moved, opened in _adaptations(turns):
            adapted = _adapted(turns, system_moved, opened)
            try:
                text = self._template.render(_messages(adapted), generation_prompt=True)
                _check_system(adapted, text)
            except Refusal as refusal:
                reason = reason or str(refusal)
                continue
            return Rendered((Segment(text),), True, system_moved, opened)
        raise DataError(f"the chat template cannot render this conversation ({reason})", where=where, fix="reorder its turns")

    def target_text(self, rendered: Rendered, text: str, where: str) -> str:
        """What the last target would be if ``text`` were said in its place.

        Raises:
            DataError: the template cannot render it there.
        """
        if not rendered.templated:
            last = rendered.segments[-1]
            return _said(text) if last.role == "assistant" else text
        from lorascope.data.chat import Refusal

        assert self._template is not None
        prompt = "".join(piece.text for piece in rendered.segments[:-1])
        try:
            whole = self._template.render(
                (*rendered.messages, {"role": "assistant", "content": text}), generation_prompt=False
            )
        except Refusal as refusal:
            raise DataError(
                f"the chat template cannot render a candidate ({refusal})", where=where, fix="correct it"
            ) from None
        return self._target(prompt, whole, len(rendered.messages), where)

    def _pieces(self, turns: Sequence[Segment], where: str) -> tuple[Segment, ...]:
        """Each target is what the template adds to its generation prompt, up to the token that ends the turn."""
        assert self._template is not None
        messages = _messages(turns)
        pieces: list[Segment] = []
        done = ""
        for index, turn in enumerate(turns):
            if not turn.is_target:
                continue
            prompt = self._template.render(messages[:index], generation_prompt=True)
            if not pieces:
                _check_system(turns[:index], prompt)
            whole = self._template.render(messages[: index + 1], generation_prompt=False)
            if not prompt.startswith(done):
                raise _rewritten(index, where)
            target = self._target(prompt, whole, index, where)
            pieces.append(Segment(prompt[len(done) :], cut=None if pieces else "start"))
            pieces.append(Segment(target, is_target=True))
            done = prompt + target
        return tuple(pieces)

    def _target(self, prompt: str, whole: str, index: int, where: str) -> str:
        if not whole.startswith(prompt):
            raise _rewritten(index, where)
        target = whole[len(prompt) :]
        ended = target.rstrip()
        # A newline after the end token is not part of what a model must produce to stop.
        return ended if ended.endswith(self._ends) else target


def is_chat(segments: Sequence[Segment]) -> bool:
    return any(segment.role is not None for segment in segments)


def taught(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The segments up to the last target: what follows it teaches nothing."""
    return segments[: _last_target(segments) + 1] if is_chat(segments) else segments


def exchanges(segments: Sequence[Segment]) -> list[int]:
    """Where each exchange begins: others' turns with the assistant's answer to them; system messages at the top are none."""
    first = next((index for index, turn in enumerate(segments) if turn.role not in SYSTEM_ROLES), len(segments))
    later = range(first + 1, len(segments))
    turning = [index for index in later if segments[index].role != "assistant" and segments[index - 1].role == "assistant"]
    return [first, *turning]


def without_oldest(segments: tuple[Segment, ...], num_dropped: int) -> tuple[Segment, ...]:
    """The conversation after its system messages without so many exchanges."""
    starts = exchanges(segments)
    return segments[: starts[0]] + segments[starts[num_dropped] :]


def plain_chat(turns: Sequence[Segment]) -> tuple[Segment, ...]:
    """System messages at the top stay whole, what else precedes the first reply is cut at its start.

    An end token follows each of role ``assistant``.
    """
    first = exchanges(turns)[0]
    system = "".join(_line(turn) for turn in turns[:first])
    segments: list[Segment] = [Segment(system)] if system else []
    num_system = len(segments)
    lead = ""
    for turn in turns[first:]:
        if turn.role != "assistant" and not turn.is_target:
            lead += _line(turn)
            continue
        if lead:
            segments.append(Segment(lead, cut=None if len(segments) > num_system else "start"))
            lead = ""
        segments += [Segment("Assistant:"), Segment(_said(turn.text), is_target=turn.is_target, role="assistant")]
    return tuple(segments)


def encoder_text(turns: Sequence[Segment]) -> str:
    """Turns before a target as the text that an encoder reads."""
    if not is_chat(turns):
        return "".join(turn.text for turn in turns)
    return "".join(_line(turn) for turn in turns)


def system_text(turns: Sequence[Segment]) -> str:
    """The system messages at the top, as an encoder reads them."""
    return encoder_text(turns[: exchanges(turns)[0]])


def _behind_system(turns: Sequence[Segment], prompt: str) -> tuple[int, int] | None:
    """Where the first message of a user stands in the prompt, behind the system messages; None where it does not."""
    position = 0
    for turn in turns[: exchanges(turns)[0] + 1]:
        text = turn.text.strip()
        start = prompt.find(text, position)
        if start < 0 or turn.is_target:
            return None
        position = start + len(text)
    return start, position


def _line(turn: Segment) -> str:
    if turn.role in SYSTEM_ROLES:
        return f"{turn.text}\n"
    text = turn.text.strip() if turn.role == "assistant" else turn.text
    return f"{(turn.role or 'user').capitalize()}: {text}\n"


def _said(text: str) -> str:
    return f" {text.strip()}"


def _messages(turns: Sequence[Segment]) -> tuple[Message, ...]:
    return tuple({"role": str(turn.role), "content": turn.text} for turn in turns)


def _last_target(turns: Sequence[Segment]) -> int:
    return max(index for index, turn in enumerate(turns) if turn.is_target)


def _adaptations(turns: Sequence[Segment]) -> list[tuple[bool, bool]]:
    """System moved or not, conversation opened or not: as it is, then with as little change as may help."""
    has_system = turns[0].role in SYSTEM_ROLES
    speaker = next((turn.role for turn in turns if turn.role not in SYSTEM_ROLES), None)
    opened = [False, True] if speaker == "assistant" else [False]
    moved = [False, True] if has_system else [False]
    # To move the system message before an assistant that begins is to open the conversation.
    return [(move, first) for first in opened for move in moved if first or not (move and speaker == "assistant")]


def _adapted(turns: tuple[Segment, ...], system_moved: bool, opened: bool) -> tuple[Segment, ...]:
    first = exchanges(turns)[0]
    system, rest = turns[:first], turns[first:]
    if opened:
        rest = (Segment("", role="user"), *rest)
    if not system_moved:
        return system + rest
    text = "\n\n".join([*(turn.text.strip() for turn in system), *([rest[0].text] if rest[0].text else [])])
    return (Segment(text, role=rest[0].role), *rest[1:])


def _check_system(turns: Sequence[Segment], prompt: str) -> None:
    """Some templates drop a system message without a word; that is a refusal too."""
    from lorascope.data.chat import Refusal

    for turn in turns:
        if turn.role in SYSTEM_ROLES and turn.text.strip() not in prompt:
            raise Refusal(f"it leaves out the {turn.role} message")


def _rewritten(index: int, where: str) -> DataError:
    return DataError(
        f"the chat template rewrites earlier text when turn {index + 1} is added",
        where=where,
        fix="use a template whose output only grows, or data with one answer a record",
    )
