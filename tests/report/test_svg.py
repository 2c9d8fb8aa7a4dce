"""SVG is escaped by construction, and axes have round marks."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from lorascope.report import svg


def test_strings_are_escaped_in_attributes_and_children():
    drawn = svg.tag("text", "<b>&", Markup("<title>t</title>"), aria_label='"><script>', class_="x", fill=None)
    assert drawn == '<text aria-label="&#34;&gt;&lt;script&gt;" class="x">&lt;b&gt;&amp;<title>t</title></text>'


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_marks_are_few_round_and_inside(low, width):
    scale = svg.scale_of([low, low + width], 0, 100)
    marks = scale.ticks(5)
    assert 1 <= len(marks) <= 6
    assert all(scale.low - 1e-6 * width <= mark <= scale.high + 1e-6 * width for mark in marks)
    assert all(0 <= scale(mark) <= 100 for mark in marks)


@given(st.floats(1e-3, 1e6), st.floats(20, 1e6))
def test_a_logarithmic_axis_has_marks_inside(low, ratio):
    scale = svg.scale_of([low, low * ratio], 0, 100, log=True)
    marks = scale.ticks(5)
    assert 1 <= len(marks) <= 8
    assert all(scale.low <= mark <= scale.high for mark in marks)


def test_one_value_has_an_axis_too():
    scale = svg.scale_of([0.5], 0, 100)
    assert scale(0.5) == pytest.approx(50)
    assert svg.scale_of([0.0], 0, 100).ticks(5)


def test_zeros_alone_have_an_axis_with_zero():
    scale = svg.scale_of([0.0, 0.0], 0, 100, zero=True)
    assert scale(0.0) == pytest.approx(50)
    assert scale.ticks(5)


def test_a_scale_with_zero_holds_it():
    scale = svg.scale_of([2.0, 3.0], 0, 100, zero=True)
    assert scale(0.0) == 0.0
    below = svg.scale_of([-2.0, -1.0], 0, 100, zero=True)
    assert below(0.0) == 100.0


def test_texts_are_shortened_to_their_room():
    assert svg.fitted("short", 200) == "short"
    text = svg.fitted("a long configuration of many words", 80)
    assert text.endswith("…")
    assert svg.width_of(text) <= 80


def test_marks_of_a_narrow_axis_are_told_apart():
    drawn = svg.y_axis(svg.scale_of([0.84112, 0.84131], 0, 100), 40, 100)
    told = re.findall(r">([^<>]+)</text>", "".join(drawn))
    assert len(told) > 1
    assert len(set(told)) == len(told)
