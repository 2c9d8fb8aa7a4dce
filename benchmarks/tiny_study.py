"""A study that ends in seconds, made here: a BERT of two layers, made-up sentences, three configurations of two seeds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from lorascope.store import atomic_directory, write_atomically

_SUBJECTS = ("the film", "the acting", "the plot", "this story", "the music", "every scene", "the ending", "the cast")
_GOOD = ("charming", "moving", "funny", "warm", "brilliant", "gripping", "tender", "fresh", "graceful", "wise")
_BAD = ("wooden", "dull", "tedious", "cold", "clumsy", "stale", "hollow", "noisy", "shallow", "lazy")
_LINKS = ("and", "yet never", "if sometimes", "but hardly")
_STUDY = """\
# Which projections does a small sentiment classifier need?
name: tiny
base: {{model: {model}}}
task: {{name: file, data: {{train: {train}, validation: {validation}}}, labels: [negative, positive], max_length: 32}}
train: {{epochs: 3, batch_size: 16, learning_rate: 3.0e-3}}
seeds: [42, 1337]
design:
  kind: list
  trials:
    - {{r: 4, targets: [query]}}
    - {{r: 8, targets: [query, value]}}
    - {{r: 16, targets: all-linear}}
"""


def prepare_study(directory: Path) -> Path:
    """Make the model, the data and, last, the study file, unless it is there; returns the study file's path.

    Raises:
        StoreError: they cannot be written.
    """
    study = directory / "study.yaml"
    if study.is_file():
        return study
    model = directory / "model"
    with atomic_directory(model) as unfinished:
        _make_model(unfinished)
    paths = {"model": model}
    rows = _sentences(1000, seed=1)
    for split, of_split in (("train", rows[:800]), ("validation", rows[800:])):
        paths[split] = directory / f"{split}.jsonl"
        write_atomically(paths[split], "".join(json.dumps(row) + "\n" for row in of_split))
    quoted = {name: json.dumps(str(path)) for name, path in paths.items()}
    write_atomically(study, _STUDY.format(**quoted))
    return study


def _sentences(count: int, seed: int) -> list[dict[str, str]]:
    """Sentences such as ``the plot is warm yet never dull``: a link may deny the second word, so words alone do not tell.

    All differ, so that none is evaluated that was trained on.
    """
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label = draw.choice(("positive", "negative"))
        kind, other = (_GOOD, _BAD) if label == "positive" else (_BAD, _GOOD)
        link = draw.choice(_LINKS)
        second = draw.choice(kind if link == "and" else other)
        rows[f"{draw.choice(_SUBJECTS)} is {draw.choice(kind)} {link} {second}"] = label
    return [{"text": text, "label": label} for text, label in rows.items()]


def _make_model(directory: Path) -> None:
    """A BERT of two layers with seeded random weights and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({word for phrase in (*_SUBJECTS, *_GOOD, *_BAD, *_LINKS, "is") for word in phrase.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data *= 4.0  # random features that differ enough to be told apart
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(directory)
