"""What the small base reads: books, their conversations, and worlds that hold nothing of the demo's evaluation."""

import pytest
from models.corpus import TURN_END, TURN_START, conversations, prepare, read_books, world_texts

from lorascope.config import TaskConfig
from lorascope.data.record import Record
from lorascope.data.task import encode_task, read_task
from lorascope.world.files import documents, world
from models import corpus

SIZE = 10


def test_one_book_in_twenty_is_held_out(books):
    train, held_out = read_books(books)
    assert (len(train), len(held_out)) == (21, 1)
    assert not set(train) & set(held_out)


def test_neighbouring_speech_becomes_a_conversation_of_two(books):
    text = "“One.”\n\n“Two,” she said.\n\n“Three.”\n\n“Four.”\n\nNobody spoke.\n\n“Too short.”"
    (found,) = conversations(text)
    turns = ["One.", "Two,", "Three.", "Four."]
    roles = ["user", "assistant"] * 2
    assert found == "".join(f"{TURN_START}{role}\n{turn}{TURN_END}\n" for role, turn in zip(roles, turns, strict=True))


def test_what_shares_words_with_the_demos_evaluation_is_left_out(monkeypatch):
    first, _ = world_texts(3000, SIZE)
    spoken = next(text for text in first if "<|im_start|>" in text)
    # As if the demo evaluated on a text that these worlds hold.
    words = spoken.replace(TURN_START, " ").replace(TURN_END, " ")
    monkeypatch.setattr(corpus, "_evaluation_records", lambda size: [Record("0", "here:1", words)])
    second, num_leaked = world_texts(3000, SIZE)
    assert num_leaked >= 1
    assert spoken not in second


@pytest.fixture(scope="module")
def prepared(books, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return work, prepare(books, work, 0.3, SIZE)


def test_the_share_of_worlds_is_about_that_asked_for(prepared):
    _, found = prepared
    assert 0.2 < found.facts["world_tokens"] / found.facts["tokens"] < 0.4
    assert found.facts["tokens"] == len(found.stream)


def test_a_corpus_is_made_once(prepared, books, monkeypatch):
    work, found = prepared
    monkeypatch.setattr(corpus, "train_tokenizer", None)
    again = prepare(books, work, 0.3, SIZE)
    assert (again.stream == found.stream).all()
    assert again.facts == found.facts


@pytest.mark.parametrize(
    ("task", "folder"), [("personachat", "personachat"), ("squad", "squad_v2"), ("dialogue_nli", "dialogue_nli")]
)
def test_a_text_has_the_very_tokens_with_which_a_study_encodes_it(task, folder, prepared, tmp_path):
    from transformers import AutoTokenizer

    work, _ = prepared
    tokenizer = AutoTokenizer.from_pretrained(work)
    for name, text in documents(world(4, SIZE), 4, SIZE).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    raw = read_task(TaskConfig(name=task, data=str(tmp_path / folder)))
    encoded = encode_task(raw, tokenizer, 1024)
    assert [notice.kind for notice in encoded.notices] == []
    for record, example in list(zip(raw.train, encoded.train, strict=True))[-20:]:
        ids = tokenizer(corpus._written(record), add_special_tokens=False)["input_ids"]
        assert list(example.input_ids) == ids[: len(example.input_ids)]
        # What follows is the line end of the chat format, or the class's name.
        assert len(ids) - len(example.input_ids) <= (8 if task == "dialogue_nli" else 1)
