"""A running study's screen: bounded to the terminal, drawn in the characters that it has."""

from io import StringIO

import pytest
from rich.console import Console

from lorascope.cli.display import Bar, Display, Row, sparkline

NAMES = [f"0123456{number:x}-s42" for number in range(12)]


def row(name, losses, num_steps=40, status=""):
    made = Row(name, "r 8 · query+value · learning rate 0.001", num_steps, status)
    for step, loss in enumerate(losses):
        made.add(step, loss)
    return made


def display(rows):
    return Display(
        study=Bar("study", 5, 8, "1 of 12 trials · 4.1 min left"),
        activity=Bar("training c1", 20, 40, "step 20/40 · 33.0 s left"),
        rows=rows,
        pace="12,345 examples/s · 370,350 tokens/s · 612 MiB (700 MiB foreseen)",
        message="saving after the step in progress; interrupt again to end at once",
    )


class Ascii(StringIO):
    encoding = "ascii"


def lines_of(shown, width=100, height=40, file=None, **options):
    console = Console(file=file or StringIO(), width=width, height=height, **options)
    console.print(shown)
    return console.file.getvalue().splitlines()


FALLING = [1.0 - step / 40 for step in range(20)]


@pytest.mark.parametrize("width", [30, 40, 60, 79, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal_and_names_and_losses_are_whole(width):
    lines = lines_of(display([row(name, FALLING) for name in NAMES[:3]]), width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 2 + 3 + 1 + (1 if width > 65 else 2 if width > 35 else 3)  # the message is whole
    assert "to end at once" in " ".join(line.strip() for line in lines)
    if width >= 60:
        for name in NAMES[:3]:
            assert any(name in line for line in lines)
        assert sum("0.5250" in line for line in lines) == 3
        assert "4.1 min left" in lines[0]
        assert "33.0 s left" in lines[1]


@pytest.mark.parametrize("height", [5, 8, 12, 24])
def test_no_more_lines_than_the_terminal_is_high_those_that_train_first(height):
    ended = [row(name, FALLING, status="diverged") for name in NAMES[:6]]
    lines = lines_of(display([*ended, *(row(name, FALLING) for name in NAMES[6:])]), height=height)
    room = max(1, height - 7)
    shown = [line for line in lines if any(name in line for name in NAMES)]
    assert len(shown) == min(12, room)
    assert len(lines) <= max(height - 2, 6)
    if room < 12:
        assert f"  and {12 - room} more" in lines
        assert sum(name in line for name in NAMES[6:] for line in lines) == min(6, room)


def test_a_curve_grows_to_the_right_as_training_goes_on():
    (line,) = [line for line in lines_of(display([row(NAMES[0], FALLING)])) if NAMES[0] in line]
    curve = next(part for part in line.split("  ") if "█" in part)
    assert curve.rstrip("·") == "".join(sorted(curve.rstrip("·"), reverse=True))
    assert abs(curve.count("·") - len(curve) / 2) <= 1  # half of the steps are to come


def test_curves_of_a_cohort_share_one_scale_which_a_diverged_one_does_not_spoil():
    rows = [row(NAMES[0], [1.0] * 20), row(NAMES[1], [0.5] * 20), row(NAMES[2], [1e6] * 20, status="diverged")]
    one, half, diverged = lines_of(display(rows))[2:5]
    assert set(one) & set("▁▂▃▄▅▆▇█") == {"█"}
    assert set(half) & set("▁▂▃▄▅▆▇█") == {"▁"}
    assert set(diverged) & set("▁▂▃▄▅▆▇█") == {"█"}
    assert "1e+06" in diverged
    assert diverged.rstrip().endswith("diverged")


def test_a_loss_that_is_not_finite_is_shown_but_in_no_curve():
    made = row(NAMES[0], [1.0, float("nan"), float("inf"), 1.0], num_steps=4)
    made.add(3, float("nan"))
    assert made.curve(4) == [1.0, None, None, 1.0]
    assert any("nan" in line for line in lines_of(display([made])))


@pytest.mark.parametrize("num_steps", [0, 1, 3, 40, 512, 513, 100_000])
@pytest.mark.parametrize("width", [1, 6, 32])
def test_a_finished_training_has_no_hole_in_its_curve(num_steps, width):
    made = Row("a-s1", "", num_steps)
    for step in range(0, max(1, num_steps), max(1, num_steps // 4096)):
        made.add(step, float(step))
    curve = made.curve(width)
    assert len(curve) == min(width, max(1, num_steps))
    assert None not in curve
    assert curve == sorted(curve)


def test_a_sparkline_spans_its_scale_and_stays_within():
    assert sparkline([0.0, 0.5, 1.0, None], [0.0, 1.0]) == "▁▅█·"
    assert sparkline([-1.0, 2.0], [0.0, 1.0]) == "▁█"
    assert sparkline([3.0, 3.0], [3.0]) == "▅▅"
    assert sparkline([], []) == ""


def test_a_terminal_without_block_elements_has_a_display_in_ascii():
    rows = [row(NAMES[0], FALLING), row(NAMES[1], [])]
    lines = lines_of(display(rows), file=Ascii())
    assert all(line.isascii() for line in lines)
    assert any("@" in line and "_" in line for line in lines)


def test_without_colour_there_is_none_and_the_words_say_all():
    rows = [row(NAMES[0], FALLING), row(NAMES[1], FALLING, status="diverged")]
    terminal = {"force_terminal": True}
    coloured = "".join(lines_of(display(rows), **terminal, _environ={"TERM": "xterm-256color"}))
    plain = "".join(lines_of(display(rows), **terminal, _environ={"TERM": "xterm-256color", "NO_COLOR": "1"}))
    assert "\x1b[1;31mdiverged" in coloured
    assert "31m" not in plain
    assert "diverged" in plain
