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
    many = [f"layers.{layer}.dense_{layer}" for layer in range(12)]
    one, other = ({"r": 8, "lora_alpha": 16.0, "targets": half} for half in (many[:6], many[6:]))
    assert words.configuration_labels({"aa": one, "bb": other}) == {"aa": "6 targets (aa)", "bb": "6 targets (bb)"}


def test_many_targets_are_told_by_those_that_lack():
    every = [f"{module}.L{first}-{first + 1}" for module in ("query", "key", "value", "output") for first in (0, 2, 4)]
    base = {"r": 8, "lora_alpha": 16.0}
    configs = {
        "all": base | {"targets": every},
        "but one": base | {"targets": [one for one in every if one != "key.L0-1"]},
        "but two": base | {"targets": [one for one in every if one not in ("key.L0-1", "value.L2-3")]},
        "runs": base | {"targets": every[:6]},
    }
    assert words.configuration_labels(configs) == {
        "all": "all 12 targets",
        "but one": "all but key.L0-1",
        "but two": "all but key.L0-1, value.L2-3",
        "runs": "query.L0-5 + key.L0-5",
    }


@given(st.lists(st.sets(st.integers(0, 11), min_size=1), min_size=2, max_size=6, unique_by=frozenset))
def test_labels_of_coalitions_tell_them_apart(coalitions):
    every = [f"{module}.L{first}-{first + 1}" for module in ("query", "key", "value", "output") for first in (0, 2, 4)]
    configs = {
        f"c{index}": {"r": 8, "lora_alpha": 16.0, "targets": [every[p] for p in sorted(its)]}
        for index, its in enumerate(coalitions)
    }
    labels = words.configuration_labels(configs)
    assert len(set(labels.values())) == len(labels)


def test_f1_is_a_share_of_classes_and_a_percentage_of_answers():
    assert words.metric_unit("f1", "mrpc") == "0–1"
    assert words.metric_unit("f1", "squad") == "%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(999_700, "1M"), (999.7, "1k"), (999.4, "999"), (38_200, "38.2k"), (1_234_000, "1.23M"), (-1500, "−1.5k")],
)
def test_a_mark_of_an_axis_is_rounded_before_its_letter(value, text):
    assert words.compact(value) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("usefulness: every coalition", "Usefulness: every coalition"), ("one run: an estimate", "One run: an estimate"),
     ("r 8 is it", "r 8 is it"), ("query.L0 is it", "query.L0 is it"), ("ROUGE-L", "ROUGE-L")],
)  # fmt: skip
def test_a_sentence_begins_with_a_capital_and_a_name_with_its_own(text, shown):
    assert words.capital(text) == shown


@pytest.mark.parametrize(("values", "decimals"), [([45.53, 12.1], 1), ([0.0123, None], 3), ([2.4], 1), ([0.51], 2), ([], 1)])
def test_measured_times_keep_two_digits_however_short(values, decimals):
    assert words.decimals_of_measured(values) == decimals
