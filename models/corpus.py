"""What the small base reads: old books, their conversations in the chat format, and a share of texts of little worlds.

The worlds are those of seeds from ``WORLD_SEEDS`` on, train splits only, in the very form in which a study's tasks are
encoded; what shares thirteen words in a row with an evaluation split of the world of seed 0, which the demo uses, is left out.
People, towns and a quarter of the wordings of those splits never occur here, because no train split has them.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from lorascope.config import TaskConfig
from lorascope.data.overlap import leaked
from lorascope.data.record import Record
from lorascope.data.task import read_task
from lorascope.world.files import DEFAULT_SIZE, documents, world

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 8192
WORLD_SEEDS = 1000
DEMO_SEED = 0
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPEECH = re.compile(r"[\"“]([^\"“”]{2,400})[\"”]")
# Conversations of fewer turns teach little about taking turns.
_FEWEST_TURNS = 4
# Task, its directory in a world, and the key by which records are one text.
_TASKS = (("personachat", "personachat"), ("squad", "squad_v2"), ("teacher_student", "teacher_student"))
_PAIRS = ("dialogue_nli", "dialogue_nli")
# Of a passage's questions, and of the pairs, so many are read: they repeat what the rest says.
_QUESTIONS_OF_A_PASSAGE = 2
_EVERY_SO_MANY_PAIRS = 3


@dataclass(frozen=True)
class Corpus:
    """Token ids in one row, and what they came from."""

    stream: np.ndarray
    facts: dict[str, int]


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
            roles = ("user", "assistant")
            yield "".join(f"{TURN_START}{roles[n % 2]}\n{turn}{TURN_END}\n" for n, turn in enumerate(turns))
        turns = []


def world_texts(most_characters: int, size: int = DEFAULT_SIZE) -> tuple[list[str], int]:
    """Texts of as many worlds as it takes to reach the number of characters, and how many were left out as leaks.

    Args:
        size: of each world, as ``lorascope data world --size`` takes it.
    """
    evaluation = _evaluation_records(size)
    texts: list[str] = []
    characters = num_leaked = 0
    seed = WORLD_SEEDS
    while characters < most_characters:
        records = _records(seed, size)
        leaks = {id(shared.record) for shared in leaked(evaluation, records)}
        for record in records:
            if id(record) in leaks:
                num_leaked += 1
            elif characters < most_characters:
                texts.append(_written(record))
                characters += len(texts[-1])
        seed += 1
    return texts, num_leaked


def _records(seed: int, size: int, splits: Sequence[str] = ("train",)) -> list[Record]:
    """One record for each text of a world: of a dialogue the last, which holds all of it."""
    found: list[Record] = []
    with tempfile.TemporaryDirectory() as name:
        for path, text in documents(world(seed, size), seed, size).items():
            (Path(name) / path).parent.mkdir(exist_ok=True)
            (Path(name) / path).write_text(text, encoding="utf-8")
        for split in splits:
            for task, folder in (*_TASKS, _PAIRS):
                raw = read_task(TaskConfig(name=task, data=str(Path(name) / folder)), split, with_train=False)
                found += _kept(task, raw.eval)
    return found


def _kept(task: str, records: Sequence[Record]) -> list[Record]:
    if task == "dialogue_nli":
        return list(records[::_EVERY_SO_MANY_PAIRS])
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group or record.id, []).append(record)
    if task == "squad":
        return [record for group in groups.values() for record in group[-_QUESTIONS_OF_A_PASSAGE:]]
    return [group[-1] for group in groups.values()]


def _evaluation_records(size: int) -> list[Record]:
    return _records(DEMO_SEED, size, ("validation", "test"))


def _written(record: Record) -> str:
    """A record as its tokens will stand in a study, with the end token after what is answered."""
    if record.text_pair is not None:
        # As a classifier reads a pair; the class stands where its head looks.
        assert record.label is not None
        return (
            f"{record.text}{TURN_END}{record.text_pair}{TURN_END} {('entailment', 'neutral', 'contradiction')[record.label]}"
        )
    if all(segment.role is None for segment in record.segments):
        return "".join(segment.text for segment in record.segments) + TURN_END
    return "".join(f"{TURN_START}{segment.role}\n{segment.text}{TURN_END}\n" for segment in record.segments)


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


def prepare(books: Path, work: Path, world_share: float, world_size: int = DEFAULT_SIZE) -> Corpus:
    """Tokenizer and token stream in ``work``, made once.

    Args:
        world_share: of all characters, those of worlds.
    """
    done = work / "corpus.json"
    if done.is_file():
        return Corpus(np.load(work / "stream.npy", mmap_mode="r"), json.loads(done.read_text(encoding="utf-8")))
    train_books, _ = read_books(books)
    spoken = ["".join(conversations(book)) for book in train_books]
    num_characters = sum(map(len, (*train_books, *spoken)))
    wanted = round(num_characters * world_share / (1 - world_share))
    told, num_leaked = world_texts(wanted, world_size) if wanted else ([], 0)
    texts = [text for text in (*train_books, *spoken, *told) if text]
    tokenizer = train_tokenizer(texts, work)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    pieces = [[*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], end] for text in texts]
    stream = np.concatenate([np.array(piece, dtype=np.uint16) for piece in pieces])
    num_told = sum(map(len, pieces[len(pieces) - len(told) :])) if told else 0
    facts = {
        "books": len(train_books),
        "book_characters": sum(map(len, train_books)),
        "conversation_characters": sum(map(len, spoken)),
        "world_texts": len(told),
        "world_texts_left_out": num_leaked,
        "world_tokens": num_told,
        "tokens": len(stream),
    }
    np.save(work / "stream.npy", stream)
    write(done, json.dumps(facts, indent=2) + "\n")
    return Corpus(stream, facts)


def write(path: Path, text: str) -> None:
    """A file that is whole or absent."""
    with (temporary := path.with_name(f".{path.name}.part")).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
