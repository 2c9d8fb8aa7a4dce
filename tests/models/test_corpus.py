"""What the small base reads: books, their conversations, and worlds in no task's form that share nothing with evaluations."""

import lzma
import re

import pytest
from models.corpus import (
    TURN_END,
    TURN_START,
    Recipe,
    conversations,
    evaluation_runs,
    prepare,
    read_books,
    world_texts,
)
from transformers import AutoTokenizer

from lorascope.embedded import PRETRAINING_SEEDS
from lorascope.world.files import world
from lorascope.world.wording import runs
from models import corpus

SIZE = 10


@pytest.fixture(scope="module")
def worlds():
    """Enough texts to hold the whole of the first world."""
    return world_texts(60_000, SIZE, [SIZE])


@pytest.fixture(scope="module")
def first():
    """The train split of the first world that is read."""
    return world(PRETRAINING_SEEDS, SIZE)["train"]


def test_one_book_in_twenty_is_held_out(books):
    train, held_out = read_books(books)
    assert (len(train), len(held_out)) == (21, 1)
    assert not set(train) & set(held_out)


def test_neighbouring_speech_becomes_a_conversation_of_two():
    text = "“One.”\n\n“Two,” she said.\n\n“Three.”\n\n“Four.”\n\nNobody spoke.\n\n“Too short.”"
    (found,) = conversations(text)
    turns = ["One.", "Two,", "Three.", "Four."]
    roles = ["user", "assistant"] * 2
    assert found == "".join(f"{TURN_START}{role}\n{turn}{TURN_END}\n" for role, turn in zip(roles, turns, strict=True))


def test_no_labelled_pair_is_read(worlds, first):
    texts, _ = worlds
    whole = "\n".join(texts)
    assert not [word for word in ("entailment", "neutral", "contradiction") if word in whole]
    # Nor two texts of a pair one after the other, as a judge reads them.
    assert not [pair for pair in first.pairs if f"{pair.reply}{TURN_END}{pair.sentence}" in whole]


def test_no_text_holds_a_persona_with_its_talk(worlds, first):
    texts, _ = worlds
    alone = {" ".join(dialogue.persona) for dialogue in first.dialogues}
    assert len(alone & set(texts)) > SIZE / 2
    for dialogue in first.dialogues:
        spoken = [text for text in texts if all(made.reply in text for made in dialogue.exchanges)]
        assert all(text.startswith(f"{TURN_START}user") and "persona" not in text for text in spoken)


def test_a_passage_is_told_before_its_questions_and_each_is_answered(worlds, first):
    texts, _ = worlds
    told = {passage.text: passage for passage in first.passages}
    asked = {text.partition("\n")[2].partition(TURN_END)[0]: text for text in texts if text.startswith(f"{TURN_START}system")}
    found = [(asked[passage], of) for passage, of in told.items() if passage in asked]
    assert found
    for text, passage in found:
        answered = [one for one in passage.questions if one.answer is not None]
        assert text.count(f"{TURN_START}assistant") == len(answered)
        assert all(f"{one.text}{TURN_END}\n{TURN_START}assistant\n{one.answer}{TURN_END}" in text for one in answered)


def test_nothing_is_read_that_shares_thirteen_words_with_any_evaluation_text(worlds):
    texts, counts = worlds
    splits = world(0, SIZE)
    sets = [splits["validation"], splits["test"]]
    told = [" ".join(one.persona) for each in sets for one in each.dialogues]
    told += [" ".join(f"{made.said} {made.reply}" for made in one.exchanges) for each in sets for one in each.dialogues]
    told += [f"{pair.reply} {pair.sentence}" for each in sets for pair in each.pairs]
    told += [passage.text for each in sets for passage in each.passages]
    told += [f"{passage.text} {asked.text}" for each in sets for passage in each.passages for asked in passage.questions]
    told += [" ".join(text for _, _, text in talk.turns) for each in sets for talk in each.talks]
    told += [text for each in sets for talk in each.talks for text in (talk.question, talk.solution, talk.mistaken)]
    told += [opinion.text for each in sets for opinion in each.opinions]
    unread = {run for text in told for run in runs(text)}
    assert {hash(run) for run in unread} <= evaluation_runs([SIZE])
    assert counts["evaluation_runs"] == len(evaluation_runs([SIZE]))
    words = [re.sub(rf"{re.escape(TURN_START)}\w+\n|{re.escape(TURN_END)}", " ", text) for text in texts]
    assert not [text for text in words if unread.intersection(runs(text))]


def test_a_phrase_that_many_evaluation_texts_share_is_no_exception(monkeypatch, worlds):
    texts, counts = worlds
    spoken = next(text for text in texts if TURN_START not in text)
    original = corpus._evaluated

    def common(sets):
        # As if more evaluation texts than an audit would still take for a leak began alike.
        yield from original(sets)
        yield from [f"{spoken} And so on, {number}." for number in range(30)]

    monkeypatch.setattr(corpus, "_evaluated", common)
    again, more = world_texts(60_000, SIZE, [SIZE])
    assert spoken not in again
    assert more["world_texts_left_out"] > counts["world_texts_left_out"]


def test_every_size_that_is_evaluated_is_looked_at():
    small, large = evaluation_runs([SIZE]), evaluation_runs([2 * SIZE])
    assert large - small
    assert evaluation_runs([SIZE, 2 * SIZE]) == small | large


@pytest.fixture(scope="module")
def prepared(books, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return work, prepare(Recipe(books, 0.3, SIZE, (SIZE,)), work)


def test_the_share_of_worlds_is_about_that_asked_for(prepared):
    _, found = prepared
    assert 0.2 < found.facts["world_tokens"] / found.facts["tokens"] < 0.4
    assert found.facts["tokens"] == len(found.stream)


def test_a_corpus_of_books_alone_can_be_made(books, tmp_path):
    found = prepare(Recipe(books, 0.0, SIZE, (SIZE,)), tmp_path)
    assert (found.facts["world_texts"], found.facts["world_tokens"]) == (0, 0)


def test_a_corpus_is_made_once(prepared, books, monkeypatch):
    work, found = prepared
    monkeypatch.setattr(corpus, "train_tokenizer", None)
    again = prepare(Recipe(books, 0.3, SIZE, (SIZE,)), work)
    assert (again.stream == found.stream).all()
    assert again.facts == found.facts


def test_a_corpus_of_something_else_is_refused(prepared, books, tmp_path):
    work, _ = prepared
    for share, size, sizes, was in ((0.2, SIZE, (SIZE,), "world_share 0.3"), (0.3, 11, (SIZE,), "world_size 10")):
        with pytest.raises(SystemExit, match=f"was made with {was}; give the same, or another --work"):
            prepare(Recipe(books, share, size, sizes), work)
    with pytest.raises(SystemExit, match=r"evaluated_sizes \[10\]"):
        prepare(Recipe(books, 0.3, SIZE, (SIZE, 12)), work)
    others = tmp_path / "others.txt.xz"
    with lzma.open(others, "wt", encoding="utf-8") as file:
        file.write("Another book altogether.")
    with pytest.raises(SystemExit, match="books_sha256"):
        prepare(Recipe(others, 0.3, SIZE, (SIZE,)), work)


@pytest.mark.parametrize("name", ["stream.npy", "tokenizer.json"])
def test_a_corpus_that_was_altered_is_refused(name, prepared, books, tmp_path):
    work, _ = prepared
    for path in work.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    altered = bytearray((tmp_path / name).read_bytes())
    altered[-2] ^= 1
    (tmp_path / name).write_bytes(altered)
    with pytest.raises(SystemExit, match=rf"{name} is not what corpus\.json tells of it"):
        prepare(Recipe(books, 0.3, SIZE, (SIZE,)), tmp_path)


def test_a_talk_is_written_as_the_chat_template_writes_it(prepared, worlds):
    work, _ = prepared
    tokenizer = AutoTokenizer.from_pretrained(work)
    text = next(text for text in worlds[0] if text.startswith(f"{TURN_START}system"))
    turns = [turn.partition("\n") for turn in text.removeprefix(TURN_START).split(f"{TURN_END}\n{TURN_START}")]
    messages = [{"role": role, "content": content.removesuffix(f"{TURN_END}\n")} for role, _, content in turns]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    assert len(tokenizer(f"{TURN_START}{TURN_END}", add_special_tokens=False)["input_ids"]) == 2
