"""Make a GPT-2 directory with the real tokenizer and seeded random weights: right for shapes and speed, not for answers.

python examples/seeded_gpt2.py --tokenizer DIR_WITH_VOCAB_AND_MERGES --out DIR [--layers 12] [--width 768] [--seed 0]
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def read_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE from ``vocab.json`` and ``merges.txt``.

    ``GPT2TokenizerFast(vocab_file=…, merges_file=…)`` gives an empty vocabulary in transformers 5 and says nothing.
    """
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    lines = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    text = "Which NFL team won Super Bowl 50?"
    if fast.decode(fast(text)["input_ids"]) != text:
        raise SystemExit(f"{directory}: the tokenizer does not give back what it encoded")
    return fast


def main() -> None:
    """Write the directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    config = GPT2Config(n_layer=arguments.layers, n_embd=arguments.width, n_head=arguments.width // 64)
    GPT2LMHeadModel(config).save_pretrained(arguments.out)
    read_tokenizer(arguments.tokenizer).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
