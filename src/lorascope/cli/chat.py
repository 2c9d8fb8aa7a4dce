"""The dialogue of ``lorascope chat``: lines in, answers out, and what is said to the chat itself. Floor: cli.

On a terminal there is a prompt that names who answers. Elsewhere every line of stdin is a message or a command, and stdout
holds the answers. The first Ctrl-C ends an answer; one more, before anything else is typed, ends the session.

A signal that comes after the prompt was written and before the wait for a key begins interrupts nothing: Python notes it, and
its handler would run once something is typed. So while something is read, a timer wakes the wait up, and Python looks.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from lorascope.cli.answers import Answers, print_columns, print_lines
from lorascope.cli.console import stdout, tell
from lorascope.cli.generate import checked, decoding_from, plain_format, unfinished
from lorascope.errors import LorascopeError, UsageError, did_you_mean

if TYPE_CHECKING:
    from lorascope.decode import Piece
    from lorascope.inference import Dialogue

# Command, what it takes, what it does.
COMMANDS = {
    "/adapter": ("NAME", "answer with this adapter from now on"),
    "/base": ("", "answer with the base alone"),
    "/adapters": ("", "who can answer"),
    "/compare": ("TEXT", "everybody's answer, side by side; the conversation stays as it is"),
    "/system": ("[TEXT | off]", "show, set or remove the system message"),
    "/decode": ("[STRATEGY,K=V…]", "show or set how answers are generated, e.g. nucleus,top_p=0.9,max_new_tokens=100"),
    "/seed": ("[N]", "show or set the seed of what is drawn"),
    "/undo": ("", "forget the last question and its answer"),
    "/reset": ("", "forget the conversation"),
    "/save": ("FILE", "write the conversation as a line of JSON, which a study can train on"),
    "/help": ("", "this list; a message that begins with a slash is written with two"),
    "/quit": ("", "end the session"),
}
_WIDTH = 24
# So often Python looks for a Ctrl-C while it waits for a key.
_LOOK_SECONDS = 0.2


class Interrupts:
    """Counts Ctrl-C since something was last typed; the first one, unless something is being read, interrupts nothing."""

    def __init__(self) -> None:
        self.count = 0
        self.is_told = False
        self._reading = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]
        handlers = {signal.SIGINT: self._note, signal.SIGALRM: lambda *_: None}
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin_reading(self) -> None:
        """Ctrl-C raises from now on, and is acted upon soon whenever it comes."""
        self._reading = True
        signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)

    def end_reading(self) -> None:
        """Ctrl-C is counted from now on."""
        self._reading = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def forget(self) -> None:
        """Something was typed."""
        self.count, self.is_told = 0, False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._reading or self.count > 1:
            raise KeyboardInterrupt


class Chat:
    """A dialogue with somebody at a terminal, or with the lines of a file."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._interrupts = Interrupts()
        self._num_left_out = 0
        self._saved: set[Path] = set()
        self._obeys: dict[str, Callable[[str], None]] = {
            "/adapter": self._speak_as,
            "/base": lambda _: self._speak_as("base"),
            "/adapters": lambda _: self._list_adapters(),
            "/compare": self._compare,
            "/system": self._system,
            "/decode": self._decode,
            "/seed": self._seed,
            "/undo": lambda _: self._undo(),
            "/reset": lambda _: self._reset(),
            "/save": self._save,
            "/help": lambda _: self._help(),
        }

    def run(self) -> None:
        """Until ``/quit`` or the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C came twice.
        """
        self._greet()
        with self._interrupts:
            for line in self._lines():
                self._interrupts.forget()
                try:
                    if line.split(maxsplit=1)[0] == "/quit":
                        return
                    self._take(line)
                except LorascopeError as error:
                    tell(str(error))

    def _take(self, line: str) -> None:
        if not line.startswith("/") or line.startswith("//"):
            self._ask(checked(line[1:] if line.startswith("//") else line, "message"))
            return
        command, _, rest = line.partition(" ")
        if command not in self._obeys:
            raise UsageError(f"no command {command!r}", where="chat", fix=did_you_mean(command, list(COMMANDS)))
        takes, rest = COMMANDS[command][0], rest.strip()
        if bool(rest) != bool(takes) and not takes.startswith("["):
            raise UsageError(f"{command} takes {takes or 'nothing'}", where="chat", fix=f"write {command} {takes}".rstrip())
        self._obeys[command](rest)

    def _lines(self) -> Iterator[str]:
        """What is typed, without empty lines."""
        while True:
            if self._interrupts.count and not self._interrupts.is_told:
                tell("Ctrl-C once more, or /quit, ends the session")
                self._interrupts.is_told = True
            try:
                self._interrupts.begin_reading()
                line = self._read()
            except EOFError:
                return
            except UnicodeDecodeError:
                raise UsageError("the text is no UTF-8", where="stdin", fix="save it as UTF-8") from None
            except KeyboardInterrupt:
                if self._interrupts.count > 1:
                    raise
                tell("")  # what is told next begins a line
                continue
            finally:
                self._interrupts.end_reading()
            if line.strip():
                yield line.strip()

    def _read(self) -> str:
        if self._on_terminal:
            try:
                return input(f"[{self._dialogue.speaker}] > ")
            except EOFError:
                print()
                raise
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def _greet(self) -> None:
        session = self._dialogue.session
        if self._on_terminal:
            with suppress(ImportError):
                import readline  # noqa: F401 - editing and recalling lines: input() uses it once it is loaded
            tell(f"{session.model}: {', '.join(session.names)}. /help lists commands, Ctrl-D ends the session.")
        if session.turns.form == "plain":
            tell(plain_format(session))

    def _ask(self, text: str) -> None:
        dialogue = self._dialogue
        answers = Answers([dialogue.speaker], dialogue.decoding.samples)
        self._show(answers, dialogue.ask(text), side_by_side=False)
        if not answers.all[0].text:
            tell("the answer is empty: the conversation stays as it was")
        elif dialogue.decoding.samples > 1:
            tell("the conversation goes on with sample 1")

    def _compare(self, text: str) -> None:
        dialogue = self._dialogue
        answers = Answers(dialogue.session.names, dialogue.decoding.samples)
        self._show(answers, dialogue.compare(checked(text, "/compare")), side_by_side=self._on_terminal)

    def _show(self, answers: Answers, pieces: Generator[Piece, None, None], side_by_side: bool) -> None:
        with closing(pieces):
            # Once the first piece is there, it is known what became of the prompt.
            first = next(pieces)
            self._tell_of_prompt()
            if side_by_side:
                print_columns(stdout(), answers, chain([first], pieces), self._is_interrupted)
            else:
                print_lines(answers, chain([first], pieces), self._is_interrupted)
        if self._is_interrupted():
            tell("stopped")
        asked = self._dialogue.asked
        assert asked is not None
        for line in unfinished(answers, self._dialogue.session, asked, self._dialogue.decoding, "/decode"):
            tell(line)

    def _is_interrupted(self) -> bool:
        return self._interrupts.count > 0

    def _tell_of_prompt(self) -> None:
        asked = self._dialogue.asked
        assert asked is not None
        for notice in asked.notices:
            tell(notice)
        if asked.num_left_out > self._num_left_out:
            session = self._dialogue.session
            tell(
                f"the first {asked.num_left_out} exchanges are left out: with them, the conversation and an answer do not fit "
                f"the model's {session.num_positions} positions"
            )
        self._num_left_out = asked.num_left_out

    def _speak_as(self, name: str) -> None:
        self._dialogue.session.slot(name)
        self._dialogue.speaker = name
        tell(f"{name} answers from now on")

    def _list_adapters(self) -> None:
        session = self._dialogue.session
        for name in session.names:
            mark = "*" if name == self._dialogue.speaker else " "
            print(f"{mark} {name:<{_WIDTH}} {session.adapters.get(name, session.model)}")

    def _system(self, text: str) -> None:
        if not text:
            print(self._dialogue.system or "no system message")
            return
        self._dialogue.system = None if text == "off" else checked(text, "/system")
        tell("no system message from now on" if text == "off" else "the system message holds from now on, for all turns")

    def _decode(self, text: str) -> None:
        if text:
            most = self._dialogue.decoding.max_new_tokens
            self._dialogue.decoding = decoding_from(text, most, "/decode")
        print(self._dialogue.decoding.label)

    def _seed(self, text: str) -> None:
        if text:
            if not text.isdecimal():
                raise UsageError(f"{text!r} is no seed", where="/seed", fix="give a number from 0")
            self._dialogue.seed = int(text)
        print(self._dialogue.seed)

    def _undo(self) -> None:
        tell("the last question is forgotten" if self._dialogue.undo() else "there is nothing to undo")

    def _reset(self) -> None:
        self._dialogue.reset()
        self._num_left_out = 0
        tell("the conversation is forgotten")

    def _save(self, name: str) -> None:
        """Refuses to overwrite what this session did not write."""
        from lorascope.store import write_atomically

        path = Path(name).expanduser()
        dialogue = self._dialogue
        if not dialogue.said:
            raise UsageError("there is nothing to save", where="/save", fix="say something first")
        if path.exists() and path.resolve() not in self._saved:
            raise UsageError("there is such a file already", where=str(path), fix="give another name")
        record = {"messages": dialogue.messages, "speakers": dialogue.speakers, "base": dialogue.session.model}
        write_atomically(path, json.dumps(record, ensure_ascii=False) + "\n")
        self._saved.add(path.resolve())
        tell(f"saved: {path}")

    def _help(self) -> None:
        for command, (takes, does) in COMMANDS.items():
            print(f"{f'{command} {takes}'.rstrip():<{_WIDTH}} {does}")
