"""Draws, wordings kept from training, templates that know where their parts stand."""

import pytest

from lorascope.errors import DataError
from lorascope.world.wording import Novelty, a, count, drawn, fields, fill, listed, number_word, runs, stream, wordings


def test_a_stream_depends_on_its_names_alone():
    assert stream(1, "train").random() == stream(1, "train").random()
    assert stream(1, "train").random() != stream(1, "test").random()


def test_test_wordings_are_never_trains_and_validation_has_all():
    options = list("abcdefghij")
    assert set(wordings(options, "train")).isdisjoint(wordings(options, "test"))
    assert sorted([*wordings(options, "train"), *wordings(options, "test")]) == options
    assert wordings(options, "validation") == options
    assert wordings(["one", "two"], "test") == ["one", "two"]


def test_a_filled_template_knows_where_its_fields_stand():
    filled = fill("{he} met {name} and {name}.", {"he": "she", "name": "Ann"})
    assert filled.text == "She met Ann and Ann."
    assert filled.text[filled.places["name"] :].startswith("Ann and")
    assert filled.places["he"] == 0
    assert fields("{he} met {name} and {name}.") == {"he", "name"}


def test_a_field_without_a_value_is_an_error():
    with pytest.raises(KeyError):
        fill("{nobody} knows", {})


def test_what_shares_thirteen_words_with_training_is_not_new():
    known = Novelty()
    known.learn(["One two three four five six seven eight nine ten eleven twelve, thirteen!"])
    assert not known.is_new("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen")
    assert known.is_new("one two three four five six seven eight nine ten eleven twelve")
    assert len(list(runs("a b c"))) == 0


def test_a_whole_text_is_not_new_whatever_its_case_and_punctuation():
    known = Novelty()
    known.learn(["I live here."])
    assert not known.is_new("I LIVE, here")


def test_drawing_ends_with_an_error_where_nothing_new_is_left():
    with pytest.raises(DataError, match="no more than 3 things"):
        drawn(lambda attempt: attempt if attempt < 3 else None, 4, "things")


def test_words_of_numbers_and_lists():
    assert (a("owl"), a("dog")) == ("an owl", "a dog")
    assert (count(1, "egg"), count(3, "egg"), count(20, "loaf", "loaves")) == ("one egg", "three eggs", "20 loaves")
    assert (number_word(0), number_word(12), number_word(13)) == ("no", "twelve", "13")
    assert (listed(["a"]), listed(["a", "b", "c"])) == ("a", "a, b and c")
