"""Writes a world's four sets in the forms in which the published ones come, with a page that says what they are.

    personachat/       train, valid, test _self_original.txt (ParlAI); …_entailment.jsonl: every reply × persona sentence
    dialogue_nli/      dialogue_nli_train, _dev, _test .jsonl: pairs of a reply and a persona sentence
    squad/             train-, dev-, test-v1.1.json       squad_v2/   the same with questions that have no answer
    teacher_student/   train, validation, test .jsonl (MathDial)
    sst2/              train, dev, test .tsv

Knows file formats and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.errors import UsageError
from lorascope.world.dialect import in_dialect
from lorascope.world.facts import POINTS, Fact
from lorascope.world.nli import Pair, pairs
from lorascope.world.opinions import Opinion, opinions
from lorascope.world.passages import Passage, passages
from lorascope.world.persona import Dialogue, dialogues
from lorascope.world.tutoring import Talk, talks
from lorascope.world.wording import SPLITS, Novelty, Split

# Training dialogues of the default world, and how many of everything else go with one of them.
DEFAULT_SIZE = 400
_LEAST, _MOST = 10, 2000
_OF_ONE = {"dialogues": 1.0, "passages": 0.6, "talks": 0.5, "opinions": 2.5}
_HELD_OUT = 0.2
_DNLI_LABELS = {"entailment": "positive", "neutral": "neutral", "contradiction": "negative"}
_DNLI_SPLITS: Mapping[Split, str] = {"train": "train", "validation": "dev", "test": "test"}
_PERSONA_SPLITS: Mapping[Split, str] = {"train": "train", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class Sets:
    """One split of a world."""

    dialogues: list[Dialogue]
    pairs: list[Pair]
    passages: list[Passage]
    talks: list[Talk]
    opinions: list[Opinion]

    def in_dialect(self) -> Sets:
        """The same with replies in dialect, those of pairs too."""
        spoken = [
            replace(one, exchanges=tuple(replace(made, reply=in_dialect(made.reply)) for made in one.exchanges))
            for one in self.dialogues
        ]
        return replace(self, dialogues=spoken, pairs=[replace(pair, reply=in_dialect(pair.reply)) for pair in self.pairs])

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each."""
        return {
            "dialogues": len(self.dialogues),
            "replies": sum(len(one.exchanges) for one in self.dialogues),
            "pairs": len(self.pairs),
            "patterns": len({pair.pattern for pair in self.pairs}),
            "passages": len(self.passages),
            "questions": sum(len(one.questions) for one in self.passages),
            "talks": len(self.talks),
            "opinions": len(self.opinions),
        }


def world(seed: int, size: int = DEFAULT_SIZE, *, dialect: bool = False) -> dict[Split, Sets]:
    """All sets of a world: a pure function of seed and size; a larger one begins with a smaller one's training split.

    Args:
        size: training dialogues; the other sets and splits go with it.
        dialect: who replies in a conversation speaks dialect.

    Raises:
        UsageError: the size is out of bounds.
    """
    if not _LEAST <= size <= _MOST:
        raise UsageError(f"a world of size {size} cannot be made", where="--size", fix=f"give {_LEAST} to {_MOST}")
    known = {name: Novelty() for name in (*_OF_ONE, "pairs")}
    sets: dict[Split, Sets] = {}
    for split in SPLITS:
        share = 1.0 if split == "train" else _HELD_OUT
        number = {name: max(2, round(size * each * share)) for name, each in _OF_ONE.items()}
        conversations = dialogues(seed, split, number["dialogues"], known["dialogues"])
        sets[split] = Sets(
            conversations,
            pairs(seed, split, conversations, known["pairs"]),
            passages(seed, split, number["passages"], known["passages"]),
            talks(seed, split, number["talks"], known["talks"]),
            opinions(seed, split, number["opinions"], known["opinions"]),
        )
    return {split: each.in_dialect() for split, each in sets.items()} if dialect else sets


def write(sets: Mapping[Split, Sets], seed: int, size: int, directory: Path, *, dialect: bool = False) -> list[str]:
    """Write a world's files into a directory that is there; their relative paths.

    Args:
        seed: with ``size`` and ``dialect``, what it was made from, which its page tells.

    Raises:
        OSError: one cannot be written.
    """
    command = f"lorascope data world --seed {seed} --size {size}{' --dialect' if dialect else ''}"
    files = documents(sets, command)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(files)


def documents(sets: Mapping[Split, Sets], command: str) -> dict[str, str]:
    """The files of a world by their relative path; its page tells the command that makes it."""
    files = {"README.md": _readme(sets, command)}
    for split, of in sets.items():
        persona = f"personachat/{_PERSONA_SPLITS[split]}"
        files[f"{persona}_self_original.txt"] = "".join(map(_parlai, of.dialogues))
        files[f"{persona}_entailment.jsonl"] = _lines(
            row for number, one in enumerate(of.dialogues) for row in _labels(number, one)
        )
        files[f"dialogue_nli/dialogue_nli_{_DNLI_SPLITS[split]}.jsonl"] = _lines(map(_pair, range(len(of.pairs)), of.pairs))
        name = "dev" if split == "validation" else split
        files[f"squad/{name}-v1.1.json"] = _squad(of.passages, split, "1.1")
        files[f"squad_v2/{name}-v2.0.json"] = _squad(of.passages, split, "v2.0")
        files[f"teacher_student/{split}.jsonl"] = _lines(map(_talk, range(len(of.talks)), of.talks))
        rows = "".join(f"{one.text}\t{int(one.is_positive)}\n" for one in of.opinions)
        files[f"sst2/{name}.tsv"] = f"sentence\tlabel\n{rows}"
    return files


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _parlai(dialogue: Dialogue) -> str:
    lines = [f"your persona: {sentence}" for sentence in dialogue.persona]
    lines += [f"{one.said}\t{one.reply}" for one in dialogue.exchanges]
    return "".join(f"{number} {line}\n" for number, line in enumerate(lines, 1))


def _labels(number: int, dialogue: Dialogue) -> Iterable[dict[str, Any]]:
    """What each reply says of each persona sentence, and the C-score that a perfect judge would give it."""
    for place, exchange in enumerate(dialogue.exchanges):
        labels = dialogue.labels(exchange)
        yield {
            "id": f"{number}-{place}",
            "reply": exchange.reply,
            "persona": list(dialogue.persona),
            "labels": labels,
            "c_score": sum(POINTS[label] for label in labels),
        }


def _pair(number: int, pair: Pair) -> dict[str, Any]:
    claim = next((claim for claim in pair.claims if claim.slot == pair.fact.slot), None)
    return {
        "id": str(number),
        "label": _DNLI_LABELS[pair.label],
        "sentence1": pair.reply,
        "sentence2": pair.sentence,
        "triple1": _triple(claim),
        "triple2": _triple(pair.fact),
        "group": pair.pattern,
    }


def _triple(fact: Fact | None) -> list[str]:
    if fact is None:
        return ["<none>", "<none>", "<none>"]
    return ["i", fact.slot, fact.value if fact.name is None else f"{fact.value} called {fact.name}"]


def _squad(found: Sequence[Passage], split: Split, version: str) -> str:
    """Official JSON: an article for every town, in v1.1 without the questions that have no answer."""
    articles: dict[str, list[dict[str, Any]]] = {}
    for number, passage in enumerate(found):
        asked: list[dict[str, Any]] = []
        for place, question in enumerate(passage.questions):
            answers = [] if question.answer is None else [{"text": question.answer, "answer_start": question.start}]
            item: dict[str, Any] = {"id": f"{split}-{number}-{place}", "question": question.text, "answers": answers}
            if version == "1.1" and not answers:
                continue
            asked.append(item if version == "1.1" else item | {"is_impossible": not answers})
        articles.setdefault(passage.town, []).append({"context": passage.text, "qas": asked})
    data = [{"title": town, "paragraphs": paragraphs} for town, paragraphs in articles.items()]
    return json.dumps({"version": version, "data": data}, ensure_ascii=False, indent=1) + "\n"


def _talk(number: int, talk: Talk) -> dict[str, Any]:
    turns = (f"{speaker}: {'' if move is None else f'({move})'}{text}" for speaker, move, text in talk.turns)
    return {
        "qid": number,
        "question": talk.question,
        "ground_truth": talk.solution,
        "student_incorrect_solution": talk.mistaken,
        "student_profile": talk.profile,
        "teacher_described_confusion": talk.confusion,
        "conversation": "|EOM|".join(turns),
    }


_README = """\
# A little world

Towns, their people, trades, pets and days, made up by `{command}`. Nobody in it exists.
The texts are free of any licence (CC0). All sets of a split are about the same towns and people.

| set | task | format | train | validation | test |
|---|---|---|---|---|---|
{rows}

- **train** and the other splits have no person, surname, pet's name or town in common, and, but for a few
  questions, no thirteen words in a row within a set.
- One wording in four is never used in train: half of **validation** is made of these, all of **test**.
- Pairs are of three classes in equal parts. Few wordings make many of them: behind the number of pairs stands in how many
  sentence patterns, and `group` names a pair's. An accuracy is one of so many patterns rather than of so many pairs.
- `personachat/*_entailment.jsonl` tells for every reply and persona sentence whether it is entailed or contradicted. The
  labels follow from the facts that the sentences were made of; nobody judged them by ear.
- Sentences are made from a stock of wordings. A model that does well here has not shown that it would on people's talk.
"""
_SETS = (
    ("personachat", "`personachat`", "ParlAI text, dialogues", "dialogues"),
    ("dialogue_nli", "`dialogue_nli`", "JSONL, pairs (sentence patterns)", "pairs"),
    ("squad, squad_v2", "`squad`", "official JSON, passages", "passages"),
    ("teacher_student", "`teacher_student`", "MathDial's JSONL, talks", "talks"),
    ("sst2", "`sst2`", "TSV, sentences", "opinions"),
)


def _readme(sets: Mapping[Split, Sets], command: str) -> str:
    def told(split: Split, key: str) -> str:
        counts = sets[split].counts
        return f"{counts[key]:,} ({counts['patterns']})" if key == "pairs" else f"{counts[key]:,}"

    rows = (
        f"| {name} | {task} | {form} | {' | '.join(told(split, key) for split in SPLITS)} |" for name, task, form, key in _SETS
    )
    return _README.format(command=command, rows="\n".join(rows))
