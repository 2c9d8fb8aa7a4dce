"""``lorascope chat``: lines in, answers out, commands to the chat itself, and Ctrl-C."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorascope import inference
from lorascope.cli.chat import COMMANDS

LINES = "the river\n"


@pytest.fixture
def talk(cli, monkeypatch, model_directory):
    """``talk("line", "line", …)``: how a session with these lines on stdin ended."""

    def run(*lines, arguments=(), base="gpt2"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return cli("chat", "--base", model_directory(base), "--max-new-tokens", 6, *arguments)

    return run


def saved(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_line_is_answered_in_one_and_the_end_of_the_input_ends_the_session(talk, tmp_path):
    ended = talk("the river", "", "and London", f"/save {tmp_path / 'said.jsonl'}")
    assert ended.code == 0
    record = saved(tmp_path / "said.jsonl")
    roles = [message["role"] for message in record["messages"]]
    assert roles == ["user", "assistant"] * 2
    answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
    assert ended.out == "".join(f"{answer}\n" for answer in answers)
    assert record["speakers"] == ["base", "base"]
    assert "the model has no chat template: a plain format (User: …, Assistant: …)" in ended.err


def test_a_saved_conversation_is_data_for_a_study(talk, tmp_path):
    from lorascope.config import TaskConfig
    from lorascope.data.task import read_task

    talk("the river", "and London", f"/save {tmp_path / 'said.jsonl'}", arguments=["--system", "be kind"])
    task = read_task(TaskConfig(name="file", data=str(tmp_path / "said.jsonl")), with_train=False)
    assert [segment.role for segment in task.eval[-1].segments] == ["system", *["user", "assistant"] * 2]


def test_the_same_session_without_its_last_question_is_as_if_it_had_never_been_asked(talk, tmp_path):
    talk("the river", "and London", f"/save {tmp_path / 'one'}")
    ended = talk("the river", "something else", "/undo", "and London", f"/save {tmp_path / 'two'}")
    assert saved(tmp_path / "one") == saved(tmp_path / "two")
    assert "the last question is forgotten" in ended.err
    ended = talk("something else", "/reset", "/undo", "the river", "and London", f"/save {tmp_path / 'three'}")
    assert saved(tmp_path / "one") == saved(tmp_path / "three")
    assert "there is nothing to undo" in ended.err


def test_settings_are_shown_and_changed_and_act(talk, tmp_path):
    ended = talk(
        "/decode", "/decode temperature,temperature=2,max_new_tokens=5", "/seed", "/seed 7", "/system", "/system be kind",
        "/system", "the river", f"/save {tmp_path / 'one'}",
    )  # fmt: skip
    assert ended.out.splitlines()[:6] == [
        "greedy max 6", "temperature T=2 max 5", "0", "7", "no system message", "be kind"
    ]  # fmt: skip
    options = ["--decode", "temperature,temperature=2", "--max-new-tokens", 5, "--seed", 7, "--system", "be kind"]
    talk("the river", f"/save {tmp_path / 'two'}", arguments=options)
    assert saved(tmp_path / "one") == saved(tmp_path / "two")
    talk("/seed 8", "the river", f"/save {tmp_path / 'three'}", arguments=options)
    assert saved(tmp_path / "one") != saved(tmp_path / "three")
    ended = talk("/system off", "the river", f"/save {tmp_path / 'four'}", arguments=options)
    assert saved(tmp_path / "four")["messages"][0]["role"] == "user"


def test_a_mistyped_command_gets_a_suggestion_and_the_session_goes_on(talk):
    ended = talk(
        "/adaptor x", "/frobnicate", "/adapter nobody", "/adapter", "/seed x", "/decode gredy", "/undo now", "the river"
    )
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 1
    for what in (
        "no command '/adaptor'; did you mean '/adapter'?",
        "no command '/frobnicate'; known: ",
        "no adapter 'nobody'",
        "/adapter takes NAME; write /adapter NAME",
        "'x' is no seed",
        "/decode: strategy",
        "/undo takes nothing",
    ):
        assert what in ended.err


def test_adapters_made_by_peft_take_turns_in_one_conversation(talk, cli, causal_adapter, tmp_path):
    a, b = causal_adapter("a", 1), causal_adapter("b", 2)
    arguments = ["--adapter", a, "--adapter", b]
    ended = talk("/adapters", "the river", "/adapter b", "the river", "/base", "the river", f"/save {tmp_path / 'said'}",
                 arguments=arguments)  # fmt: skip
    assert ended.code == 0
    record = saved(tmp_path / "said")
    assert record["speakers"] == ["a", "b", "base"]
    assert len({message["content"] for message in record["messages"][1::2]}) == 3
    assert [line.split() for line in ended.out.splitlines()[:3]] == [
        ["base", record["base"]], ["*", "a", str(a)], ["b", str(b)]
    ]  # fmt: skip
    # The first turn of each, alone: what /compare shows side by side.
    alone = {name: talk(f"/adapter {name}", "the river", arguments=arguments).out for name in ("base", "a", "b")}
    compared = talk("/compare the river", arguments=arguments)
    assert compared.out == "\n".join(f"[{name}]\n{text}" for name, text in alone.items())


def test_help_names_every_command(talk):
    ended = talk("/help", "/quit", "this is never asked")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == len(COMMANDS)
    assert all(any(line.startswith(command) for line in ended.out.splitlines()) for command in COMMANDS)


def test_the_documentation_names_every_command():
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
    assert all(f"`{f'{command} {takes}'.rstrip()}`" in page.replace("\\|", "|") for command, (takes, _) in COMMANDS.items())


def test_two_slashes_begin_a_message_that_begins_with_one(talk, tmp_path):
    talk("//quit is a word", f"/save {tmp_path / 'said'}")
    assert saved(tmp_path / "said")["messages"][0]["content"] == "/quit is a word"


def test_an_existing_file_is_not_overwritten_but_by_the_session_that_wrote_it(talk, tmp_path):
    (tmp_path / "mine").write_text("precious")
    ended = talk(
        "/save x", "the river", f"/save {tmp_path / 'mine'}", f"/save {tmp_path / 'new'}", f"/save {tmp_path / 'new'}"
    )
    assert (tmp_path / "mine").read_text() == "precious"
    assert "there is such a file already" in ended.err
    assert "there is nothing to save" in ended.err
    assert ended.err.count("saved: ") == 2


def test_a_history_that_no_longer_fits_is_cut_with_a_notice_that_comes_once(talk):
    ended = talk(*["too slow too long and far too little " * 2] * 6, arguments=["--max-new-tokens", 20])
    assert ended.code == 0
    notices = [line for line in ended.err.splitlines() if "are left out" in line]
    assert notices
    assert len(notices) == len(set(notices))
    assert "the model's 128 positions" in notices[0]
    too_long = talk("too slow " * 200, "the river")
    assert "tokens, and the model can read 127" in too_long.err
    assert len(too_long.out.splitlines()) == 1


def test_an_encoder_decoder_chats_too(talk):
    ended = talk("the river", "and London", base="t5")
    assert ended.code == 0


def interrupting(monkeypatch, after, times=1):
    """Ctrl-C comes so many pieces into the first answer."""
    original = inference.stream
    come = []

    def stream(*arguments, **named):
        for piece in original(*arguments, **named):
            come.append(piece)
            if len(come) == after:
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(inference, "stream", stream)


def test_ctrl_c_ends_an_answer_and_not_the_session(talk, monkeypatch, tmp_path):
    whole = talk("the river").out
    interrupting(monkeypatch, after=3)
    ended = talk("the river", "and London", f"/save {tmp_path / 'said'}")
    assert ended.code == 0
    assert "stopped" in ended.err
    first = ended.out.splitlines()[0]
    assert whole.startswith(first)
    assert len(first) < len(whole.rstrip("\n"))
    assert saved(tmp_path / "said")["messages"][1]["content"] == first
    assert len(saved(tmp_path / "said")["messages"]) == 4


def test_a_second_ctrl_c_ends_the_session_with_130(talk, cli, monkeypatch, model_directory):
    handler = signal.getsignal(signal.SIGINT)
    interrupting(monkeypatch, after=2, times=2)
    ended = talk("the river", "and London")
    assert ended.code == 130
    assert "interrupted" in ended.err
    monkeypatch.undo()

    class Waiting(io.StringIO):
        """Ctrl-C while nothing is typed."""

        def readline(self, *_):
            os.kill(os.getpid(), signal.SIGINT)
            return ""

    monkeypatch.setattr(sys, "argv", ["lorascope", "chat", "--base", str(model_directory("gpt2"))])
    monkeypatch.setattr(sys, "stdin", Waiting())
    from lorascope.cli import app, main

    monkeypatch.setattr(app, "_quieten_libraries", lambda: None)
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 130
    assert signal.getsignal(signal.SIGINT) == handler, "whoever comes next has its own handler again"


class Terminal:
    """Python on a terminal of its own."""

    def __init__(self, *arguments):
        self._own, theirs = pty.openpty()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        command = [sys.executable, *map(str, arguments)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        os.close(theirs)
        self.seen = ""

    def until(self, text, seconds=240):
        """What appears up to this text."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self._own], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._own, 65536).decode(errors="replace")
                except OSError:  # its other end is closed
                    break
        before, found, self.seen = self.seen.partition(text)
        assert found, before
        return before

    def type(self, line):
        os.write(self._own, f"{line}\n".encode())

    def end_of_input(self):
        os.write(self._own, b"\x04")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._own)


# Between the prompt and the wait for a key C alone runs, as it does when a signal comes from outside: no handler of Python's.
INTERRUPTED_AT_EVERY_PROMPT = """
import ctypes, functools, readline, signal, sys
from types import SimpleNamespace
from lorascope.cli.chat import Chat

readline.set_pre_input_hook(functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT))
session = SimpleNamespace(model="a model", names=("base",), turns=SimpleNamespace(form="template"))
try:
    Chat(SimpleNamespace(session=session, speaker="base")).run()
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_ctrl_c_between_the_prompt_and_the_wait_for_a_key_is_not_lost():
    terminal = Terminal("-c", INTERRUPTED_AT_EVERY_PROMPT)
    try:
        terminal.until("[base] > ")
        terminal.until("Ctrl-C once more", seconds=60)
        terminal.until("[base] > ")
        assert terminal.process.wait(60) == 130
    finally:
        terminal.close()


def test_after_a_stopped_answer_it_is_told_what_one_more_ctrl_c_does(talk, monkeypatch):
    interrupting(monkeypatch, after=3)
    ended = talk("the river", "and London")
    assert ended.err.count("Ctrl-C once more, or /quit, ends the session") == 1


@pytest.mark.slow
def test_on_a_terminal_a_prompt_names_who_answers_and_answers_stand_side_by_side(model_directory):
    terminal = Terminal("-m", "lorascope", "chat", "--base", model_directory("gpt2"), "--max-new-tokens", 5)
    try:
        assert "/help lists commands" in terminal.until("[base] > ")
        terminal.type("the river")
        terminal.until("[base] > ")
        terminal.type("/compare and London")
        assert "┏" in terminal.until("[base] > ")
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.until("Ctrl-C once more")
        terminal.until("[base] > ")
        terminal.end_of_input()
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()
