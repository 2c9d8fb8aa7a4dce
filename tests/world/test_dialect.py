"""The dialect is a word for a word: it changes how replies are said, never what is true of them."""

import json

import pytest

from lorascope.config import TaskConfig
from lorascope.data.audit import audit
from lorascope.data.task import read_task
from lorascope.world.dialect import in_dialect
from lorascope.world.files import DEFAULT_SIZE, documents, world, write


@pytest.mark.parametrize(
    ("plain", "spoken"),
    [
        ("It is the best time of the year.", "'Tis th' best time o' th' year."),
        ("I am afraid of wasps, but of nothing else.", "I be afraid o' wasps, but o' nowt else."),
        ("You are kind. Is your house mine?", "Thou art kind. Be thy house mine?"),
        ("Of the two, the first. THE end.", "O' th' two, th' first. Th' end."),
        ("Theodore is yours.", "Theodore be yours."),
        ("", ""),
    ],
)
def test_words_are_replaced_whole_and_capitals_stay(plain, spoken):
    assert in_dialect(plain) == spoken


def test_what_is_in_dialect_stays_so():
    for text in ("'Tis me dog an' I ha' nowt else.", "I allus walk wi' thee o'er th' hill."):
        assert in_dialect(text) == text


def test_replies_alone_are_in_dialect_and_their_labels_are_those_of_the_plain_words():
    plain, spoken = (documents(world(3, 10, dialect=dialect), "") for dialect in (False, True))
    differing = {name for name in plain if plain[name] != spoken[name]}
    assert {name.partition("/")[0] for name in differing} == {"personachat", "dialogue_nli"}
    for name in differing:
        for one, other in zip(plain[name].splitlines(), spoken[name].splitlines(), strict=True):
            if name.endswith(".txt"):
                assert one.partition("\t")[0] == other.partition("\t")[0]
                assert in_dialect(one.partition("\t")[2]) == other.partition("\t")[2]
            else:
                before, after = json.loads(one), json.loads(other)
                reply = "reply" if "reply" in before else "sentence1"
                assert in_dialect(before[reply]) == after[reply]
                assert before | {reply: ""} == after | {reply: ""}


def test_no_two_replies_of_the_default_world_become_one():
    replies = {made.reply for one in world(0, DEFAULT_SIZE)["train"].dialogues for made in one.exchanges}
    assert len({in_dialect(reply) for reply in replies}) == len(replies)


@pytest.mark.parametrize("folder", ["personachat", "dialogue_nli"])
def test_nothing_is_found_wrong_with_a_set_in_dialect(folder, tmp_path):
    write(world(3, 40, dialect=True), 3, 40, tmp_path, dialect=True)
    raw = read_task(TaskConfig(name=folder, data=str(tmp_path / folder)), "validation")
    assert [finding.summary for finding in audit(raw, None, None, 512).findings] == []
