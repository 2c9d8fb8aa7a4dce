"""Numbers have sensible digits, configurations telling names, and text nothing that a browser obeys."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope.report import words


@given(st.text())
def test_clean_text_holds_nothing_that_is_obeyed(text):
    shown = words.clean(text)
    shown.encode("utf-8")
    assert all(char.isprintable() or char in "\n\t" or ord(char) >= 160 for char in shown)
    assert words.clean(shown) == shown


def test_cleaning_keeps_ordinary_text_and_reaches_into_documents():
    family = "\U0001f468\u200d\U0001f469"  # a joined emoji
    assert words.clean(f"naïve – {family}\n\tü") == f"naïve – {family}\n\tü"
    document = {"a\x00": ["\u202eb", 1, None, ("\ud800",)]}
    assert words.clean(document) == {"a\\u0000": ["\\u202eb", 1, None, ["\\ud800"]]}


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [(0.78325, 0.0124, "0.783"), (0.78325, 0.0824, "0.783"), (81.25, 3.2, "81.2"), (0.0004, None, "0.000400"),
     (37634.0, None, "37,634"), (-0.5, 0.1, "−0.50"), (None, None, "–"), (math.nan, None, "–"), (0.0, 0.01, "0.000")],
)  # fmt: skip
def test_a_figure_has_the_digits_that_its_interval_allows(value, half, text):
    assert words.number(value, words.decimals_for([value], [half])) == text


def test_a_rounded_zero_has_no_sign():
    assert words.number(-0.0001, 2) == "0.00"
    assert words.number(0.0001, 2, sign=True) == "0.00"


def test_a_label_says_what_differs_and_no_more():
    base = {"method": "lora", "r": 8, "lora_alpha": 16.0, "targets": ["query", "value"], "quantization": None, "bias": "none"}
    four = base | {"r": 4, "lora_alpha": 8.0}
    assert words.configuration_labels({"a": base, "b": four}) == {"a": "r 8", "b": "r 4"}
    packed = base | {"quantization": "nf4"}
    assert words.configuration_labels({"a": base, "b": packed}) == {"a": "not quantised", "b": "NF4"}
    assert words.configuration_labels({"a": base}) == {"a": "r 8 · query + value"}
    none = base | {"targets": []}
    assert words.configuration_labels({"a": base, "b": none}) == {"a": "query + value", "b": "no module"}


def test_what_acts_on_nothing_is_not_told():
    lora = {"method": "lora", "r": 8, "lora_alpha": 16.0, "targets": ["query"], "learning_rate": 1e-3}
    full = {"method": "full", "r": 1, "lora_alpha": 16.0, "targets": [], "learning_rate": 1e-5}
    assert words.configuration_labels({"a": lora, "b": full}) == {"a": "lr 0.001", "b": "full fine-tuning · lr 1e-05"}


def test_labels_that_would_be_alike_carry_the_name():
    many = [f"query.L{layer}" for layer in range(6)]
    one = {"r": 8, "lora_alpha": 16.0, "targets": many}
    other = one | {"targets": [*many[:5], "value.L0"]}
    assert words.configuration_labels({"aa": one, "bb": other}) == {"aa": "6 targets (aa)", "bb": "6 targets (bb)"}


def test_f1_is_a_share_or_a_percentage():
    assert words.metric_unit("f1", [0.8]) == "0–1"
    assert words.metric_unit("f1", [80.0, None]) == "%"
