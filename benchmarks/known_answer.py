"""A task on which only the value projection can help, and whether each game finds that out, seed by seed.

Every text is one word said several times, and the model has no positions: all tokens of a text are alike, so attention takes
the mean of equal values whatever queries and keys are, and their adapters change nothing but rounding. Labels are random by
word, more than a linear head can learn from so few features. Run ``python benchmarks/known_answer.py --out DIR``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [f"{first}{second}" for first in "bdfgklmn" for second in ("a", "e", "i", "o", "u")]
PLAYERS = ["query", "key", "value"]


def make_task(directory: Path) -> None:
    """The model and the data, seeded: a BERT of two layers without positions, words as tokens, no special tokens in texts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = BertModel(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 10.0  # features that differ enough to be told apart
        model.embeddings.position_embeddings.weight.zero_()
    model.save_pretrained(directory / "model")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(directory / "model")
    labels = np.random.default_rng(0).permutation(len(WORDS)) % 2
    for split, times in (("train", range(1, 5)), ("validation", range(5, 7))):
        rows = [
            {"text": " ".join([word] * count), "label": ("no", "yes")[label]}
            for count in times
            for word, label in zip(WORDS, labels.tolist(), strict=True)
        ]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def study_values(directory: Path, seeds: Sequence[int], game: str) -> dict[str, Any]:
    """The study, as its file would say."""
    return {
        "name": f"known-answer-{game}",
        "base": {"model": str(directory / "model")},
        "task": {
            "name": "file",
            "data": {split: str(directory / f"{split}.jsonl") for split in ("train", "validation")},
            "labels": ["no", "yes"],
            "max_length": 16,
        },
        "adapter": {"r": 4},
        "train": {"epochs": 10, "batch_size": 16, "learning_rate": 0.02},
        "seeds": list(seeds),
        "design": {"kind": "shapley", "players": PLAYERS, "values": ["eval_loss"], "game": game, "retrained": 4},
    }


def values_by_seed(document: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Each seed's own Shapley values of ``eval_loss``, from the ``shapley`` section of a study's results."""
    from lorascope.shapley import exact_values

    coalitions = document["metrics"]["eval_loss"]["coalitions"]
    return {
        seed: exact_values(PLAYERS, {frozenset(one["players"]): one["worths"][index] for one in coalitions})
        for index, seed in enumerate(document["seeds"])
    }


def main() -> None:
    """Run all three games and print in how many seeds the value projection comes first."""
    from lorascope.attribution.players import design_trials, read_game
    from lorascope.cli.study import run_and_report
    from lorascope.config import Study

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    make_task(options.out)
    for game in ("usefulness", "reliance", "one_run"):
        study = Study.model_validate(study_values(options.out, range(1, options.seeds + 1), game))
        document = run_and_report(study, design_trials(read_game(study)), options.out / game)["shapley"]
        found = values_by_seed(document)
        firsts = sum(min(values, key=values.__getitem__) == "value" for values in found.values())
        others = max(abs(values[player]) for values in found.values() for player in ("query", "key"))
        helped = [-values["value"] for values in found.values()]
        print(
            f"{game}: value first in {firsts} of {len(found)} seeds; it lowers the loss by {min(helped):.3f} to "
            f"{max(helped):.3f}, query and key change it by {others:.1e} at most; "
            f"ranking {document['metrics']['eval_loss']['ranking']}"
        )


if __name__ == "__main__":
    main()
