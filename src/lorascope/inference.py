"""Talking to a base and its adapters: one model in memory, every adapter a slot of one stack, answers piece by piece.

Before: a base model (or a merged one), and any number of PEFT adapters on disk.
After ``open_session``: ``Session.stream`` answers a prompt with any of them, or with several at once in one pass a token;
``Dialogue`` keeps the turns of a conversation, which another adapter may go on with.

Knows which adapters belong together, what a prompt leaves room for, and whose turn it is. Does not know terminals, or how
tokens are chosen (``decode``). Floor: beside ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from lorascope.adapter import BASE, agreed_base, stack_several
from lorascope.base_model import BaseModel, check_writes, load_base, num_positions, read_config
from lorascope.config import DecodingConfig
from lorascope.data.record import Example, Segment
from lorascope.data.turns import Prompt, TurnEncoder, too_long
from lorascope.decode import Piece, stream
from lorascope.errors import AdapterError, ModelError, RunError, UsageError, did_you_mean
from lorascope.lora.peft_io import CONFIG_FILE, SavedAdapter, read_adapter
from lorascope.lora.stack import Slot
from lorascope.losses import is_out_of_memory, release_memory

# The part of a model's positions that a history leaves to the answer, where that may be longer still.
_ANSWERS_SHARE = 4


class Session:
    """One frozen base and saved adapters on it; ``base`` is the model without any. A context manager: ends with ``close``.

    Args:
        saved: adapters by name, in the order of the slots.
        adapters: by name, the directories that they are from.

    Attributes:
        names: who can answer.
        warnings: what is to be said of the base and what is on it.

    Raises:
        AdapterError: one does not fit the base.
        ModelError: there is no adapter, and the checkpoint lacks a part of the model.
    """

    def __init__(self, base: BaseModel, saved: Mapping[str, SavedAdapter], adapters: Mapping[str, Path]) -> None:
        self.base = base
        if base.new_parameters and not saved:
            what = f"the checkpoint holds no {base.new_parameters[0]!r}, so that the model would write noise"
            raise ModelError(what, where=self.model, fix="give an adapter that brings it, or another checkpoint")
        alone = [] if base.new_parameters else [Slot(BASE, 0, ())]
        self.adapters = dict(adapters)
        self.names = (*(slot.name for slot in alone), *adapters)
        self.num_positions = num_positions(base.model.config)
        self.turns = TurnEncoder(base.tokenizer, self.encodes)
        self._stack = stack_several(base, {str(adapters[name]): one for name, one in saved.items()}, alone)
        self.warnings = list(base.warnings)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def model(self) -> str:
        """The base's directory or hub id."""
        return str(self.base.model.name_or_path)

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder writes."""
        return self.base.task_type == "SEQ_2_SEQ_LM"

    def close(self) -> None:
        """Give the base back as it was."""
        self._stack.detach()

    def slot(self, name: str) -> int:
        """The index of who answers under this name.

        Raises:
            UsageError: nobody does.
        """
        if name not in self.names:
            raise UsageError(f"no adapter {name!r}", where="adapter", fix=did_you_mean(name, list(self.names)))
        return self.names.index(name)

    def room(self, prompt: Prompt, decoding: DecodingConfig) -> int:
        """How many tokens an answer may have behind the prompt: those asked for, or as many as there are positions.

        Raises:
            UsageError: there is none.
        """
        if self.num_positions is None:
            return decoding.max_new_tokens
        if self.encodes:
            if len(prompt.ids) > self.num_positions:
                raise too_long(len(prompt.ids), self.num_positions)
            return min(decoding.max_new_tokens, self.num_positions)
        left = self.num_positions - len(prompt.ids)
        if left < 1:
            raise too_long(len(prompt.ids), self.num_positions - 1)
        return min(decoding.max_new_tokens, left)

    def history(self, turns: tuple[Segment, ...], decoding: DecodingConfig) -> Prompt:
        """The turns as a prompt, without those of the oldest exchanges that leave an answer no room.

        Raises:
            UsageError: the last exchange alone is too long.
        """
        if self.num_positions is None:
            return self.turns.encode(turns)
        if self.encodes:
            return self.turns.fitted(turns, self.num_positions, self.num_positions)
        wished = min(decoding.max_new_tokens, max(1, self.num_positions // _ANSWERS_SHARE))
        return self.turns.fitted(turns, self.num_positions - wished, self.num_positions - 1)

    def stream(
        self, prompt: Prompt, decoding: DecodingConfig, names: Sequence[str], seed: int = 0, name: str = "prompt"
    ) -> Generator[Piece, None, None]:
        """The answers of ``names`` to one prompt, all at once; a piece's slot is an index of ``names``.

        Greedy or not, an answer depends on nothing but its adapter, the prompt, the decoding, the seed and the prompt's name;
        adapters draw alike.

        Args:
            name: of the prompt; the same question under another name is drawn anew.

        Raises:
            UsageError: nobody has such a name, or the prompt leaves no room.
            RunError: memory ran out.
        """
        indices = [self.slot(one) for one in names]
        most = self.room(prompt, decoding)
        decoding = decoding if most == decoding.max_new_tokens else decoding.model_copy(update={"max_new_tokens": most})
        no_target = None if self.encodes else [False] * len(prompt.ids)
        example = Example(name, prompt.ids, no_target, None, len(prompt.ids))
        self._stack.context.seeds = [seed] * len(self.names)
        try:
            with self._stack.running(indices):
                # A prompt that is given as it is is a text that goes on; an encoder's is another one than its decoder's.
                continues = prompt.form == "raw" and not self.encodes
                yield from stream(self._stack, self.base, [example], decoding, prompt.ends, continues=continues)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory(self.base.device)
            fix = "ask fewer adapters at once, or for fewer new tokens or samples"
            raise RunError(f"memory ran out with {len(prompt.ids)} tokens and {len(names)} answers", fix=fix) from None


@dataclass
class Dialogue:
    """A conversation; who answers, how, and what stands above it may change from turn to turn.

    Attributes:
        speaker: who answers.
        said: turns so far, a user's and the assistant's by turns.
        speakers: who said each of the assistant's turns.
        asked: the prompt of the last answer.
    """

    session: Session
    speaker: str
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    system: str | None = None
    seed: int = 0
    said: list[Segment] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    asked: Prompt | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as role and content, the system message first."""
        return [{"role": str(turn.role), "content": turn.text} for turn in (*self._system(), *self.said)]

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """The speaker's answer, which becomes a part of the conversation; one that is left early does as far as it came.

        Of several samples the first one stays. An answer without text leaves no trace.

        Raises:
            UsageError: it is too long.
            DataError: the chat template cannot render the conversation.
        """
        question = Segment(text, role="user")
        answer = ""
        try:
            with closing(self._asked(question, [self.speaker])) as pieces:
                for piece in pieces:
                    answer += piece.text if piece.question == 0 else ""
                    yield piece
        except GeneratorExit:
            self._keep(question, answer)
            raise
        self._keep(question, answer)

    def compare(self, text: str) -> Generator[Piece, None, None]:
        """What everybody would answer, all at once; the conversation stays as it is."""
        return self._asked(Segment(text, role="user"), self.session.names)

    def undo(self) -> bool:
        """Forget the last question and its answer; whether there was one."""
        if not self.said:
            return False
        del self.said[-2:]
        self.speakers.pop()
        return True

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.said.clear()
        self.speakers.clear()

    def _keep(self, question: Segment, answer: str) -> None:
        if answer:
            self.said += [question, Segment(answer, role="assistant")]
            self.speakers.append(self.speaker)

    def _asked(self, question: Segment, names: Sequence[str]) -> Generator[Piece, None, None]:
        self.asked = self.session.history((*self._system(), *self.said, question), self.decoding)
        return self.session.stream(self.asked, self.decoding, names, self.seed, f"turn {len(self.speakers)}")

    def _system(self) -> tuple[Segment, ...]:
        return () if self.system is None else (Segment(self.system, role="system"),)


def open_session(
    base: str | None,
    adapters: Mapping[str, Path],
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    device: str = "cpu",
) -> Session:
    """Load a base and adapters on it.

    Args:
        base: a model's directory or hub id, a merged one too; by default what the adapters name as theirs.
        adapters: PEFT adapters' directories, by the names that they are called by.

    Raises:
        UsageError: there is neither a base nor an adapter, or adapters name different bases.
        AdapterError: one cannot be read, classifies, or does not fit the base.
        ModelError: the base cannot be loaded, or writes nothing.
    """
    saved = {name: _read(path, name) for name, path in adapters.items()}
    by_place = {str(adapters[name]): one for name, one in saved.items()}
    config = agreed_base(by_place, base, dtype=dtype, quantization=quantization)
    check_writes(read_config(config), config.model)
    return Session(load_base(config, "CAUSAL_LM", device=device), saved, adapters)


def _read(path: Path, name: str) -> SavedAdapter:
    if not (path / CONFIG_FILE).is_file() and (path / "config.json").is_file():
        raise AdapterError("this is a whole model, no adapter", where=str(path), fix="give it with --base")
    saved = read_adapter(path, name)
    if saved.task_type not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        what = f"this adapter writes nothing: it was trained for {saved.task_type}"
        raise AdapterError(what, where=str(path), fix="score it with lorascope evaluate")
    return saved
