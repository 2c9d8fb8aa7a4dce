"""``python -m benchmarks.merge_memory``: merge a model that is larger than the memory that the process may have.

A seeded Llama checkpoint is written shard by shard, an adapter on three projections of every layer beside it. Then ``lorascope
merge`` runs under ``ulimit -v``, and so does a control that loads the same model with transformers: it must run out of memory,
or the limit shows nothing. Prints one JSON document; exit code 1 where the merge failed or the control did not.

python -m benchmarks.merge_memory [--gigabytes 3] [--limit 2GB] [--place DIR] [--keep]
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.config import parse_memory

WIDTH, INNER, VOCABULARY, RANK = 2048, 8192, 160, 8
ADAPTED = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH), "mlp.down_proj": (WIDTH, INNER)}
CONTROL = "import sys, torch; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1]).float()"


def shapes(num_layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensors of one shard after the other: the embeddings, then a layer each."""
    yield {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "lm_head.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(num_layers):
        start = f"model.layers.{layer}."
        square = {f"{start}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        wide = {f"{start}mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        norms = {f"{start}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        yield {**square, **wide, f"{start}mlp.down_proj.weight": (WIDTH, INNER), **norms}


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], numbers: Iterator[np.ndarray]) -> int:
    """A float32 file of these shapes, filled from ``numbers``; returns its tensors' bytes."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        written = 0
        while written < end:
            block = memoryview(next(numbers)).cast("B")[: end - written]
            written += file.write(block)
    return end


def blocks(seed: int) -> Iterator[np.ndarray]:
    """Numbers without end: one random block, scaled anew each time, for drawing gigabytes takes longer than merging them."""
    generator = np.random.default_rng(seed)
    block = (0.02 * generator.standard_normal(1 << 22)).astype(np.float32)
    while True:
        yield block * np.float32(generator.uniform(0.5, 1.5))


def write_base(directory: Path, num_layers: int) -> int:
    """The checkpoint with its configuration and a small tokenizer; returns the bytes of its weights."""
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": num_layers, "num_attention_heads": 16, "num_key_value_heads": 16,
        "vocab_size": VOCABULARY, "max_position_embeddings": 128, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    numbers, weight_map, total = blocks(1), {}, 0
    for index, tensors in enumerate(shapes(num_layers), 1):
        name = f"model-{index:05d}-of-{num_layers + 1:05d}.safetensors"
        total += write_safetensors(directory / name, tensors, numbers)
        weight_map |= dict.fromkeys(tensors, name)
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (directory / "model.safetensors.index.json").write_text(index_text)
    _write_tokenizer(directory)
    return total


def write_adapter(directory: Path, base: Path, num_layers: int) -> None:
    """An adapter in PEFT's format, of random numbers."""
    directory.mkdir(parents=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "bias": "none", "lora_dropout": 0.0,
        "base_model_name_or_path": str(base), "target_modules": sorted(name.rpartition(".")[2] for name in ADAPTED),
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        for name, (num_outputs, num_inputs) in ADAPTED.items():
            start = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{start}.lora_A.weight"] = (RANK, num_inputs)
            tensors[f"{start}.lora_B.weight"] = (num_outputs, RANK)
    write_safetensors(directory / "adapter_model.safetensors", tensors, blocks(2))


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog"], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(directory)


def limited(command: list[str], limit_bytes: int) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run under ``ulimit -v``; the result and the seconds that it took."""
    started = time.monotonic()
    shell = ["bash", "-c", f'ulimit -v {limit_bytes // 1024} && exec "$@"', "bash", *command]
    return subprocess.run(shell, capture_output=True, text=True, check=False), time.monotonic() - started


def measure(place: Path, num_bytes: int, limit_bytes: int) -> dict[str, Any]:
    """Make the model, merge it under the limit, try to load it under the limit."""
    num_layers = max(1, round(num_bytes / (4 * sum(map(math.prod, list(shapes(1))[1].values())))))
    base, adapter, out = place / "base", place / "adapter", place / "merged"
    total = write_base(base, num_layers)
    write_adapter(adapter, base, num_layers)
    command = [sys.executable, "-m", "lorascope", "merge", str(adapter), "--out", str(out), "--json"]
    merged, seconds = limited(command, limit_bytes)
    loaded, _ = limited([sys.executable, "-c", CONTROL, str(base)], limit_bytes)
    document: dict[str, Any] = {
        "model_bytes": total,
        "limit_bytes": limit_bytes,
        "exit_code": merged.returncode,
        "seconds": round(seconds, 1),
        "stderr": merged.stderr.strip()[-300:] or None,
        "control_exit_code": loaded.returncode,
        "control_error": loaded.stderr.strip().rpartition("\n")[2][-300:],
    }
    if merged.returncode == 0:
        certificate = json.loads(merged.stdout)["certificate"]
        document |= {name: certificate[name] for name in ("holds", "level", "why_level")}
        document["largest_error"] = max(module["ratio"] for module in certificate["modules"])
    return document


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--limit", default="2GB")
    parser.add_argument("--place", type=Path, default=None)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="lorascope-merge-", dir=arguments.place))
    try:
        document = measure(place, int(arguments.gigabytes * 1e9), parse_memory(arguments.limit, "--limit"))
    finally:
        if not arguments.keep:
            shutil.rmtree(place, ignore_errors=True)
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.exit(0 if document["exit_code"] == 0 and document["control_exit_code"] != 0 else 1)


if __name__ == "__main__":
    main()
