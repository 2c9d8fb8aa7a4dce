"""Options that several commands take come to what a study file says."""

import pytest

from lorascope.cli.merge import OnTask
from lorascope.cli.options import Answers, Examples
from lorascope.errors import UsageError


def test_ways_to_decode_have_the_length_that_was_given_unless_they_say_their_own():
    assert Answers().decodings() == [{"strategy": "greedy"}]
    given = Answers(max_new_tokens=5, decode=["greedy", "top_k,top_k=4,max_new_tokens=7"]).decodings()
    assert given == [
        {"strategy": "greedy", "max_new_tokens": 5},
        {"strategy": "top_k", "top_k": 4, "max_new_tokens": 7},
    ]
    with pytest.raises(UsageError, match="'top_k' has no value"):
        Answers(decode=["nucleus,top_k"]).decodings()


@pytest.mark.parametrize("kind", [Examples, OnTask])
def test_classes_that_are_given_go_before_those_that_are_known(kind):
    assert kind(labels="no, yes").task_config("file", "x", "here", ("a", "b")).labels == ["no", "yes"]
    assert kind().task_config("file", "x", "here", ("a, too", "b")).labels == ["a, too", "b"]
    assert kind().task_config("file", "x", "here").labels is None


def test_what_is_not_given_is_as_a_study_file_has_it():
    config = Examples(max_eval=3).task_config("file", "x", "here")
    assert (config.max_eval, config.max_length) == (3, 512)
    assert Examples().evaluation() == {}
    assert Examples(split="test").evaluation() == {"split": "test"}
