"""What the small base reads: old books, their conversations in the chat format, and a share of texts of little worlds.

The worlds are those of seeds from ``PRETRAINING_SEEDS`` on, train splits only, and their texts are in no task's form:

    people's sentences    as a paragraph, without the talk that they belong to
    persona dialogues     in the chat format, without the persona
    lessons               in the chat format, without the sum
    passages              as a system message, their questions and answers as a conversation about it

So the base has met these people's words, and has looked things up in what stands before; what a task asks for it has never
done. No pair for a judge and no opinion is read at all, and no label. What shares thirteen words in a row with any evaluation
text of the worlds of seed 0, which the demo and the examples use, is left out, common phrases included. People, towns and a
quarter of the wordings of those splits never occur here, because no train split has them.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from lorascope.embedded import PRETRAINING_SEEDS
from lorascope.store.files import write_atomically
from lorascope.world.files import Sets, world
from lorascope.world.wording import runs

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 8192
DEMO_SEED = 0
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPEECH = re.compile(r"[\"“]([^\"“”]{2,400})[\"”]")
# Conversations of fewer turns teach little about taking turns.
_FEWEST_TURNS = 4
_ROLES = ("user", "assistant")
# What a corpus is made of and was made into; the rest of ``corpus.json`` counts.
_FACTS, _STREAM, _TOKENIZER = "corpus.json", "stream.npy", "tokenizer.json"

# Role and content.
Turn = tuple[str, str]


@dataclass(frozen=True)
class Recipe:
    """What a corpus is made of.

    Attributes:
        books: xz text, books divided by ``<|book|>``.
        world_share: of all characters, those of worlds.
        world_size: of each world that is read, as ``lorascope data world --size`` takes it.
        evaluated_sizes: those of the worlds of seed 0 whose evaluation splits must stay unread.
    """

    books: Path
    world_share: float
    world_size: int
    evaluated_sizes: tuple[int, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """The same by value: the books by their checksum."""
        return {
            "books_sha256": sha256(self.books),
            "world_share": self.world_share,
            "world_size": self.world_size,
            "evaluated_sizes": list(self.evaluated_sizes),
        }


@dataclass(frozen=True)
class Corpus:
    """Token ids in one row, and what they came from."""

    stream: np.ndarray
    facts: dict[str, Any]

    @property
    def identity(self) -> dict[str, str]:
        """Checksums of the ids and of the tokenizer that made them: a run goes on with equal ones alone."""
        return {name: self.facts[name] for name in ("stream_sha256", "tokenizer_sha256")}


def sha256(path: Path) -> str:
    """A file's checksum."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_books(path: Path) -> tuple[list[str], list[str]]:
    """Books to train on, and those held out: one in twenty."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        books = [book.strip() for book in file.read().split("<|book|>") if book.strip()]
    return [book for index, book in enumerate(books) if index % 20 != 7], books[7::20]


def conversations(book: str) -> Iterator[str]:
    """Runs of paragraphs that hold direct speech, as conversations in the chat format."""
    turns: list[str] = []
    for paragraph in [*book.split("\n\n"), ""]:
        speech = " ".join(match.strip() for match in _SPEECH.findall(paragraph))
        if speech:
            turns.append(speech)
            continue
        if len(turns) >= _FEWEST_TURNS:
            yield chat([(_ROLES[number % 2], turn) for number, turn in enumerate(turns)])
        turns = []


def chat(turns: Sequence[Turn]) -> str:
    """Turns as the chat template writes them."""
    return "".join(f"{TURN_START}{role}\n{content}{TURN_END}\n" for role, content in turns)


def world_texts(most_characters: int, size: int, evaluated_sizes: Sequence[int]) -> tuple[list[str], dict[str, int]]:
    """Texts of as many worlds as it takes to reach the number of characters, and counts of them and of what was left out.

    Args:
        size: of each world.
        evaluated_sizes: those of the worlds of seed 0 with whose evaluation splits nothing may be shared.
    """
    unread = evaluation_runs(evaluated_sizes)
    texts: list[str] = []
    characters = num_left_out = 0
    seed = PRETRAINING_SEEDS
    while characters < most_characters:
        for spoken, written in _texts(world(seed, size)["train"]):
            if any(hash(run) in unread for run in runs(spoken)):
                num_left_out += 1
            elif characters < most_characters:
                texts.append(written)
                characters += len(written)
        seed += 1
    counts = {"worlds": seed - PRETRAINING_SEEDS, "world_texts": len(texts), "world_texts_left_out": num_left_out}
    return texts, counts | {"evaluation_runs": len(unread)}


def _texts(sets: Sets) -> Iterator[tuple[str, str]]:
    """The words of each text that is read, and the text as it is written. A speaker's sentences lie far from their talk."""
    for dialogue in sets.dialogues:
        yield (" ".join(dialogue.persona),) * 2
    for dialogue in sets.dialogues:
        turns = [turn for made in dialogue.exchanges for turn in zip(_ROLES, (made.said, made.reply), strict=True)]
        yield " ".join(text for _, text in turns), chat(turns)
    for passage in sets.passages:
        asked = [question for question in passage.questions if question.answer is not None]
        turns = [turn for one in asked for turn in zip(_ROLES, (one.text, str(one.answer)), strict=True)]
        told = [("system", passage.text), *turns]
        yield " ".join(text for _, text in told), chat(told)
    for talk in sets.talks:
        said = [("assistant" if speaker == "Teacher" else "user", text) for speaker, _, text in talk.turns]
        yield " ".join(text for _, text in said), chat(said)


def evaluation_runs(sizes: Sequence[int]) -> frozenset[int]:
    """Hashes of every thirteen words in a row of every text of validation and test of the worlds of seed 0."""
    return frozenset(
        hash(run)
        for size in sizes
        for split, sets in world(DEMO_SEED, size).items()
        if split != "train"
        for text in _evaluated(sets)
        for run in runs(text)
    )


def _evaluated(sets: Sets) -> Iterator[str]:
    """All that an evaluation split tells, in the rows in which its words stand."""
    for dialogue in sets.dialogues:
        yield " ".join(dialogue.persona)
        yield " ".join(text for made in dialogue.exchanges for text in (made.said, made.reply))
    for pair in sets.pairs:
        yield f"{pair.reply} {pair.sentence}"
    for passage in sets.passages:
        for question in passage.questions:
            yield f"{passage.text} {question.text} {question.answer or ''}"
    for talk in sets.talks:
        yield from (talk.question, talk.solution, talk.mistaken, talk.confusion)
        yield " ".join(text for _, _, text in talk.turns)
    for opinion in sets.opinions:
        yield opinion.text


def train_tokenizer(texts: Sequence[str], out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the chat format's tokens; an answer's end is a turn's, and so is that of each text of a pair."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Without an end between them, the two texts of a pair would run into each other.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {TURN_END} $B {TURN_END}", special_tokens=[(TURN_END, tokenizer.token_to_id(TURN_END))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    return fast


def prepare(recipe: Recipe, work: Path) -> Corpus:
    """Tokenizer and token stream in ``work``, made once.

    Raises:
        SystemExit: what lies there was made of something else, or is no longer what was made.
    """
    if (work / _FACTS).is_file():
        return _prepared(recipe, work)
    train_books, _ = read_books(recipe.books)
    spoken = ["".join(conversations(book)) for book in train_books]
    num_characters = sum(map(len, (*train_books, *spoken)))
    wanted = round(num_characters * recipe.world_share / (1 - recipe.world_share))
    told, counts = world_texts(wanted, recipe.world_size, recipe.evaluated_sizes)
    texts = [text for text in (*train_books, *spoken, *told) if text]
    tokenizer = train_tokenizer(texts, work)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    pieces = [
        np.array([*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], end], dtype=np.uint16)
        for text in texts
    ]
    stream = np.concatenate(pieces)
    np.save(work / _STREAM, stream)
    facts = {
        **recipe.facts,
        "books": len(train_books),
        "book_characters": sum(map(len, train_books)),
        "conversation_characters": sum(map(len, spoken)),
        **counts,
        "world_characters": sum(map(len, told)),
        "world_tokens": sum(map(len, pieces[len(pieces) - len(told) :])),
        "tokens": len(stream),
        "stream_sha256": sha256(work / _STREAM),
        "tokenizer_sha256": sha256(work / _TOKENIZER),
    }
    write_atomically(work / _FACTS, json.dumps(facts, indent=2) + "\n")
    return Corpus(stream, facts)


def _prepared(recipe: Recipe, work: Path) -> Corpus:
    facts = json.loads((work / _FACTS).read_text(encoding="utf-8"))
    refuse_changes(work / _FACTS, facts, recipe.facts)
    for name, file in (("stream_sha256", _STREAM), ("tokenizer_sha256", _TOKENIZER)):
        if sha256(work / file) != facts[name]:
            raise SystemExit(f"{work / file} is not what {_FACTS} tells of it; give another --work, or remove all in this one")
    return Corpus(np.load(work / _STREAM, mmap_mode="r"), facts)


def refuse_changes(place: Path, was: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """End with the names and old values of what is given differently now.

    Raises:
        SystemExit: something is.
    """
    changed = [name for name, value in given.items() if was.get(name) != value]
    if changed:
        old = ", ".join(f"{name} {was.get(name)}" for name in changed)
        raise SystemExit(f"{place} was made with {old}; give the same, or another --work")
