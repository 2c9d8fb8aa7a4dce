"""Answers on a screen: in order, whole, side by side, and never what a terminal would obey."""

import io

from rich.console import Console

from lorascope.cli.answers import Answers, columns, print_columns, print_lines
from lorascope.decode import Answer, Piece

END = Answer("", True)


def pieces_of(*parts):
    """(slot, sample, text) with a True behind it where that is the end."""
    return [Piece(slot, sample, text, END if end else None) for slot, sample, text, *end in parts]


def test_a_lone_answer_comes_as_it_is_without_a_heading(capsys):
    shown = []

    def telling():
        for piece in pieces_of((0, 0, "the"), (0, 0, " cat"), (0, 0, "", True)):
            yield piece
            shown.append(capsys.readouterr().out)

    print_lines(Answers(["a"], 1), telling())
    assert shown == ["the", " cat", "\n"]


def test_several_answers_come_whole_one_after_the_other(capsys):
    answers = Answers(["base", "a"], 2, "nucleus")
    order = [(1, 1, "v"), (0, 0, "s"), (1, 0, "t"), (0, 1, "u"), (0, 1, "U", True), (0, 0, "S", True), (1, 1, "V", True)]
    print_lines(answers, pieces_of(*order, (1, 0, "T", True)))
    assert capsys.readouterr().out == (
        "[base, nucleus, sample 1]\nsS\n\n[base, nucleus, sample 2]\nuU\n"
        "\n[a, nucleus, sample 1]\ntT\n\n[a, nucleus, sample 2]\nvV\n"
    )


def test_what_came_before_a_stop_is_shown_and_nothing_later(capsys):
    answers = Answers(["base", "a"], 1)
    came = iter(pieces_of((0, 0, "s"), (1, 0, "t"), (0, 0, "S")))
    print_lines(answers, came, lambda: answers.all[1].text == "t")
    assert capsys.readouterr().out == "[base]\ns\n\n[a]\nt\n"
    assert next(came).text == "S"


def test_columns_stand_side_by_side_and_show_no_markup_or_escapes():
    answers = Answers(["base", "a"], 1)
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    print_columns(console, answers, pieces_of((0, 0, "[red]one"), (1, 0, "two\x1b[2J\x07"), (0, 0, "!", True)))
    text = console.file.getvalue()
    last = text[text.rindex("┏") :]
    assert "[red]one!" in last
    assert "two[2J …" in last, "the escape itself is gone, and the answer is marked as not over"
    [row] = [line for line in last.splitlines() if "one!" in line]
    assert "two" in row
    assert columns(answers).columns[0].header.plain == "base"
