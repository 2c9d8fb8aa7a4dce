"""Make a T5 directory of t5-small's shape with seeded random weights and a tokenizer trained on SQuAD's own text.

python examples/seeded_t5.py --squad train-v1.1.json --out DIR [--layers 6] [--width 512] [--seed 0]

The tokenizer is of T5's kind (Unigram over SentencePiece's spaces, `</s>` after every text), with 8,000 pieces.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration


def texts(squad: Path) -> Iterator[str]:
    """Contexts and questions of an official file."""
    for article in json.loads(squad.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]
            yield from (question["question"] for question in paragraph["qas"])


def train_tokenizer(squad: Path) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with T5's special tokens at T5's ids: pad 0, end 1, unknown 2."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=8000, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts(squad), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    text = "Which NFL team won Super Bowl 50?"
    if fast.decode(fast(text)["input_ids"], skip_special_tokens=True) != text:
        raise SystemExit(f"{squad}: the tokenizer does not give back what it encoded")
    return fast


def main() -> None:
    """Write the directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    config = T5Config(
        vocab_size=32128,
        d_model=arguments.width,
        d_ff=4 * arguments.width,
        num_layers=arguments.layers,
        num_heads=arguments.width // 64,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(arguments.out)
    train_tokenizer(arguments.squad).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
