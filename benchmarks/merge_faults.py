"""Does the merge certificate catch faulty merges, and let good ones through?

Each fault changes a good merge on the disk as a real mistake would; the certificate sees what the mistake leaves behind, and
nothing else. The first thirty were chosen before any was tried; those from ``pad token of another`` on came of reading the
certificate's code for what it did not see.

A good merge is certified with all that ``lorascope merge`` compares: in memory, reloaded, and of some a task's score and four
bits.

    python -m benchmarks.merge_faults              # all faults, all good merges
    python -m benchmarks.merge_faults --quick      # some of both
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.merge_scenes import (
    CLASSES,
    FAMILIES,
    WORDS,
    Scene,
    edit_json,
    merge_with_lorascope,
    merge_with_peft,
    minilm_directory,
)
from lorascope.certify import Certificate, certify
from lorascope.config import BaseModelConfig, TaskConfig


def nothing_merged(scene: Scene) -> None:
    scene.reweigh(lambda name: 0.0)


def half_of_the_modules(scene: Scene) -> None:
    names = sorted(scene.deltas())
    scene.reweigh(lambda name: float(names.index(name) % 2))


def one_module_left_out(scene: Scene) -> None:
    last = max(scene.deltas())
    scene.reweigh(lambda name: float(name != last))


def alpha_doubled(scene: Scene) -> None:
    scene.reweigh(lambda name: 2.0)


def rank_stabilised_scaling_ignored(scene: Scene) -> None:
    # lora_alpha / r where the adapter says lora_alpha / √r.
    scene.reweigh(lambda name: 4**-0.5)


def alpha_pattern_ignored(scene: Scene) -> None:
    scene.reweigh(lambda name: 0.8 if "q_proj" in name else 1.0)


def sign_reversed(scene: Scene) -> None:
    scene.reweigh(lambda name: -1.0)


def fused_projection_transposed(scene: Scene) -> None:
    """ΔW of the fused ``c_attn``, computed as ``[O, D]``, laid into ``[D, O]`` number by number."""
    base, deltas = scene.base_state(), scene.deltas()

    def change(tensors: dict[str, Tensor]) -> None:
        for name, delta in deltas.items():
            if "c_attn" in name:
                tensors[name] = (base[name] + delta.T.reshape(delta.shape)).to(tensors[name].dtype)

    scene.edit(change)


def square_projection_transposed(scene: Scene) -> None:
    base, deltas = scene.base_state(), scene.deltas()

    def change(tensors: dict[str, Tensor]) -> None:
        for name, delta in deltas.items():
            if delta.shape[0] == delta.shape[1]:
                tensors[name] = (base[name] + delta.T).to(tensors[name].dtype)

    scene.edit(change)


def fused_slices_swapped(scene: Scene) -> None:
    """Query's rows of ΔW on the outputs that are gate's neighbours: the halves of ``gate_up_proj`` change places."""
    base, deltas = scene.base_state(), scene.deltas()

    def change(tensors: dict[str, Tensor]) -> None:
        for name, delta in deltas.items():
            if "gate_up_proj" in name:
                tensors[name] = (base[name] + delta.roll(len(delta) // 2, 0)).to(tensors[name].dtype)

    scene.edit(change)


def layers_shifted(scene: Scene) -> None:
    """Every layer gets its neighbour's update."""
    base, deltas = scene.base_state(), scene.deltas()

    def change(tensors: dict[str, Tensor]) -> None:
        for name in deltas:
            other = re.sub(r"\.(\d)\.", lambda layer: f".{1 - int(layer[1])}.", name)
            tensors[name] = (base[name] + deltas[other]).to(tensors[name].dtype)

    scene.edit(change)


def one_nan(scene: Scene) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[next(iter(scene.deltas()))][0, 0] = float("nan")

    scene.edit(change)


def overflows(scene: Scene) -> None:
    """An adapter whose sums no 16-bit float holds; what is written is infinite."""
    edit_json(scene.adapter / "adapter_config.json", {"lora_alpha": 8e6})
    scene.reweigh(lambda name: 1.0)


def output_layer_tied(scene: Scene) -> None:
    """An output layer of its own, saved as tied: the file leaves it out."""
    scene.edit(lambda tensors: tensors.__delitem__("lm_head.weight"))
    scene.configure(tie_word_embeddings=True)


def tie_lost(scene: Scene) -> None:
    """A tied output layer, saved untied and stale."""

    def change(tensors: dict[str, Tensor]) -> None:
        embeddings = next(value for name, value in tensors.items() if "embed_tokens" in name or "wte" in name)
        tensors["lm_head.weight"] = embeddings.flip(0)

    scene.edit(change)
    scene.configure(tie_word_embeddings=False)


def other_base(scene: Scene) -> None:
    """The right update on the weights of another model of the same shape."""
    other = Scene(scene.root, scene.family, scene.size, scene.dtype, seed=scene.seed + 7)
    base, deltas = other.base_state(), scene.deltas()

    def change(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name in base:
                tensors[name] = (base[name] + deltas.get(name, 0.0)).to(tensors[name].dtype)

    scene.edit(change)


def base_has_moved_on(scene: Scene) -> None:
    """The merge is right for the base at hand; but that base changed by a little after the adapter was trained on it."""
    from lorascope.base_model import weights_checksum

    origin = {"checksum": weights_checksum(scene.load(), ()), "dtype": "float32", "quantization": None}
    (scene.adapter / "lorascope.json").write_text(json.dumps({"base": origin}))
    path = scene.base / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "norm" in name.lower() and name.endswith("weight"))
    tensors[name] = tensors[name] * 1.001
    save_file(tensors, path, metadata={"format": "pt"})
    merge_with_peft(scene)


def wrong_revision(scene: Scene) -> dict[str, Any]:
    """Trained on one revision of a hub's model, merged into the newest."""
    edit_json(scene.adapter / "adapter_config.json", {"base_model_name_or_path": "lab/model", "revision": "a1b2c3d"})
    return {"base": BaseModelConfig(model="lab/model")}


def keys_match_nothing(scene: Scene) -> None:
    """An adapter whose names lack the body's prefix, of which a merge that does not look finds none."""
    path = scene.adapter / "adapter_model.safetensors"
    tensors = {name.replace(".model.bert.", ".model."): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    scene.edit(
        lambda merged: merged.update({n: scene.base_state()[n].to(v.dtype) for n, v in merged.items() if "layer." in n})
    )


def half_of_the_tensors(scene: Scene) -> None:
    """Every second tensor is not in the file: loaders fill the places with random numbers."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in sorted(tensors)[::2]:
            del tensors[name]

    scene.edit(change)


def head_not_carried_over(scene: Scene) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in tensors:
            if name.startswith("classifier"):
                tensors[name] = (0.02 * torch.randn(tensors[name].shape, generator=generator)).to(tensors[name].dtype)

    scene.edit(change)


def trained_biases_lost(scene: Scene) -> None:
    base = scene.base_state()
    scene.edit(
        lambda tensors: tensors.update(
            {name: base[name].to(value.dtype) for name, value in tensors.items() if name.endswith("_lin.bias")}
        )
    )


def rounded_on_the_way(scene: Scene) -> None:
    """float32 was asked for and is written; the sums were made in bfloat16."""
    names = scene.deltas()
    scene.edit(lambda tensors: tensors.update({name: tensors[name].bfloat16().float() for name in names}))


def stale_shard(scene: Scene) -> None:
    """Two shards, of which one is of an earlier merge with another adapter."""
    tensors = load_file(scene.merged / "model.safetensors")
    names = sorted(tensors)
    other = Scene(scene.root, scene.family, scene.size, scene.dtype, seed=scene.seed, lora={"r": 2, "lora_alpha": 2})
    merge_with_peft(other)
    earlier = load_file(other.merged / "model.safetensors")
    half = len(names) // 2
    weight_map = {}
    for number, (part, source) in enumerate(((names[:half], tensors), (names[half:], earlier)), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: source[name] for name in part}, scene.merged / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (scene.merged / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (scene.merged / "model.safetensors.index.json").write_text(json.dumps(index))


def merged_into_packed_base(scene: Scene) -> None:
    """The update added to what four bits left of the weights, and the result called the base plus the adapter."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    base, deltas = scene.base_state(), scene.deltas()

    def change(tensors: dict[str, Tensor]) -> None:
        for name, delta in deltas.items():
            packed, state = quantize_4bit(base[name].float().contiguous(), blocksize=64, quant_type="nf4")
            tensors[name] = (dequantize_4bit(packed, state).double() + delta).to(tensors[name].dtype)

    scene.edit(change)


def configuration_changed(scene: Scene) -> None:
    key = "layer_norm_eps" if scene.family == "roberta" else "rms_norm_eps"
    scene.configure(**{key: 1e-2})


def classes_in_another_order(scene: Scene) -> None:
    scene.configure(id2label={str(i): name for i, name in enumerate(sorted(CLASSES, reverse=True))})


def tokenizer_of_another_model(scene: Scene) -> None:
    path = scene.merged / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary[WORDS[0]], vocabulary[WORDS[1]] = vocabulary[WORDS[1]], vocabulary[WORDS[0]]
    path.write_text(json.dumps(content), encoding="utf-8")


def one_number_changed(scene: Scene) -> None:
    """In a tensor that no update concerns."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[next(name for name in tensors if "norm" in name.lower() and name.endswith("weight"))][3] += 0.01

    scene.edit(change)


def lost_in_rounding(scene: Scene) -> None:
    """Done as it should be, in a dtype that is too coarse for so small an adapter: the update is gone all the same."""
    path = scene.adapter / "adapter_model.safetensors"
    tensors = {name: value * 1e-3 if "lora_B" in name else value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    merge_with_peft(scene)


def pad_token_of_another(scene: Scene) -> None:
    scene.configure(pad_token_id=7)


def pad_token_forgotten(scene: Scene) -> None:
    scene.configure(pad_token_id=None)


def class_not_named(scene: Scene) -> None:
    scene.configure(architectures=None)


def another_class_named(scene: Scene) -> None:
    scene.configure(architectures=["LlamaForSequenceClassification"])


def other_end_of_text(scene: Scene) -> None:
    """In the generation settings alone: answers that do not end."""
    edit_json(scene.merged / "generation_config.json", {"eos_token_id": 9})


def other_start_of_decoder(scene: Scene) -> None:
    scene.configure(decoder_start_token_id=5)


def factors_left_in_the_file(scene: Scene) -> None:
    """The adapter's own tensors beside the merged ones, under names that no model has."""
    scene.edit(lambda tensors: tensors.update(load_file(scene.adapter / "adapter_model.safetensors")))


def tensor_of_nan_left_in_the_file(scene: Scene) -> None:
    scene.edit(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.old": torch.full((3,), float("nan"))}))


def packed_base_has_moved_on(scene: Scene) -> None:
    """As ``base has moved on``, for an adapter that was trained on the base in four bits."""
    base_has_moved_on(scene)
    path = scene.adapter / "lorascope.json"
    origin = json.loads(path.read_text())["base"]
    origin |= {"quantization": "nf4", "unpacked_checksum": origin["checksum"], "checksum": "of the packed weights"}
    path.write_text(json.dumps({"base": origin}))


def experts_swapped(scene: Scene) -> None:
    """Two experts of a layer change places, and the router does not know."""

    def change(tensors: dict[str, Tensor]) -> None:
        first = [name for name in tensors if ".layers.0." in name and ".experts.1." in name]
        for name in first:
            other = name.replace(".experts.1.", ".experts.2.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    scene.edit(change)


@dataclass(frozen=True)
class Fault:
    """A mistake, and the merge that it is planted in."""

    plant: Callable[[Scene], dict[str, Any] | None]
    family: str
    size: str
    dtype: str = "float32"
    lora: dict[str, Any] = field(default_factory=dict)
    quick: bool = False

    @property
    def name(self) -> str:
        """In words."""
        return self.plant.__name__.replace("_", " ")


FAULTS = [
    Fault(nothing_merged, "llama", "small", quick=True),
    Fault(half_of_the_modules, "bert", "large", "bfloat16", quick=True),
    Fault(one_module_left_out, "roberta", "small", "float16"),
    Fault(alpha_doubled, "qwen2", "small", "bfloat16", quick=True),
    Fault(rank_stabilised_scaling_ignored, "distilbert", "large", lora={"use_rslora": True}),
    Fault(alpha_pattern_ignored, "llama", "large", "float16", {"alpha_pattern": {"q_proj": 10}}),
    Fault(sign_reversed, "t5", "small"),
    Fault(fused_projection_transposed, "gpt2", "small", quick=True),
    Fault(square_projection_transposed, "gpt2", "large", "bfloat16"),
    Fault(fused_slices_swapped, "phi3", "small", "float16"),
    Fault(layers_shifted, "distilbert", "large", "bfloat16"),
    Fault(one_nan, "bert", "large", quick=True),
    Fault(overflows, "llama", "large", "float16", quick=True),
    Fault(output_layer_tied, "llama", "small", "bfloat16", quick=True),
    Fault(tie_lost, "gpt2", "small", "float16", quick=True),
    Fault(other_base, "qwen2", "small", quick=True),
    Fault(base_has_moved_on, "phi3", "large", quick=True),
    Fault(wrong_revision, "gpt2", "large", quick=True),
    Fault(keys_match_nothing, "bert", "small", quick=True),
    Fault(half_of_the_tensors, "roberta", "large", quick=True),
    Fault(head_not_carried_over, "bert", "small", "bfloat16"),
    Fault(trained_biases_lost, "distilbert", "small", lora={"bias": "lora_only"}),
    Fault(rounded_on_the_way, "t5", "large"),
    Fault(stale_shard, "qwen2", "large"),
    Fault(merged_into_packed_base, "llama", "large", quick=True),
    Fault(configuration_changed, "roberta", "small"),
    Fault(classes_in_another_order, "distilbert", "large"),
    Fault(tokenizer_of_another_model, "phi3", "small", "bfloat16"),
    Fault(one_number_changed, "t5", "small", "bfloat16"),
    Fault(lost_in_rounding, "qwen2", "small", "bfloat16", quick=True),
    Fault(pad_token_of_another, "gpt2-classifier", "large", quick=True),
    Fault(pad_token_forgotten, "gpt2-classifier", "small", "bfloat16", quick=True),
    Fault(class_not_named, "bert", "large"),
    Fault(another_class_named, "llama", "small", quick=True),
    Fault(other_end_of_text, "llama", "large", "bfloat16", quick=True),
    Fault(other_start_of_decoder, "t5", "small"),
    Fault(factors_left_in_the_file, "qwen2", "large", "float16", quick=True),
    Fault(tensor_of_nan_left_in_the_file, "phi3", "large", quick=True),
    Fault(packed_base_has_moved_on, "llama", "small", quick=True),
    Fault(experts_swapped, "mixtral", "large", quick=True),
]


@dataclass(frozen=True)
class Good:
    """A merge that is right.

    Attributes:
        prepare: changes base or adapter before the merge, and returns what the order says beside.
        as_base: merged without a dtype that was asked for.
        scored: certified with a task.
    """

    family: str
    size: str
    dtype: str = "float32"
    base_dtype: str | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Scene], dict[str, Any] | None] | None = None
    as_base: bool = False
    scored: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """In words."""
        kept = "" if self.base_dtype in (None, self.dtype) else f" from {self.base_dtype}"
        special = [] if self.prepare is None else [self.prepare.__name__.replace("_", " ")]
        special += ["with a task"] * self.scored
        return " ".join([self.family, self.size, f"{self.dtype}{kept}", *(f"{k}={v}" for k, v in self.lora.items()), *special])


def configuration_names_another_dtype(scene: Scene) -> None:
    """As checkpoints that somebody widened: float32 files, and a config.json that says float16."""
    edit_json(scene.base / "config.json", {"dtype": "float16"})


def configuration_as_on_the_hub(scene: Scene) -> None:
    """Keys that published models have and ``from_config`` does not write: code of their own, and what older versions left."""
    own = {"AutoConfig": "configuration_mine.MyConfig", "AutoModelForCausalLM": "modeling_mine.MyModel"}
    left = {"_name_or_path": "lab/model", "_num_labels": 5, "dtype": None, "torch_dtype": "float32", "output_past": True}
    more = {"transformers.js_config": {"dtype": "q4"}, "finetuning_task": "sst2", "task_specific_params": {"a": {"b": 1}}}
    edit_json(scene.base / "config.json", {"auto_map": own, **left, **more})


def head_in_float32(scene: Scene) -> None:
    """A body in 16 bits below a head of the base's own in 32."""
    path = scene.base / "model.safetensors"
    head = {"classifier.weight": torch.ones(len(CLASSES), 32), "classifier.bias": torch.zeros(len(CLASSES))}
    save_file(load_file(path) | head, path, metadata={"format": "pt"})


def embeddings_saved_along(scene: Scene) -> None:
    """PEFT saves embeddings with the adapter where it believes that they changed; here they are the base's, and tied."""
    path = scene.adapter / "adapter_model.safetensors"
    name = "model.embed_tokens.weight"
    embeddings = load_file(scene.base / "model.safetensors")[name]
    save_file(load_file(path) | {f"base_model.model.{name}": embeddings}, path, metadata={"format": "pt"})


def four_bits_asked_for(scene: Scene) -> dict[str, Any]:
    return {"quantization": "nf4"}


def trained_in_four_bits(scene: Scene) -> None:
    from lorascope.base_model import weights_checksum

    checksum = weights_checksum(scene.load(), ())
    origin = {"checksum": "of the packed weights", "unpacked_checksum": checksum, "dtype": "float32", "quantization": "nf4"}
    (scene.adapter / "lorascope.json").write_text(json.dumps({"base": origin}))


def head_in_the_tokenizer_s_padding(scene: Scene) -> None:
    """A base whose config.json names no pad token: the merge gives the classifier its tokenizer's."""
    edit_json(scene.base / "config.json", {"pad_token_id": None})


def write_task(scene: Scene) -> TaskConfig:
    """Twelve texts with classes."""
    rows = [{"text": " ".join(WORDS[n : n + 3 + n % 7]), "label": CLASSES[n % len(CLASSES)]} for n in range(12)]
    (scene.home / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TaskConfig(name="file", data=str(scene.home / "validation.jsonl"), labels=CLASSES, max_length=32)


def good_merges() -> list[Good]:
    """Every family in every dtype, sizes in turn, and special kinds of bases and adapters."""
    families = [*FAMILIES, *(["minilm"] if minilm_directory() is not None else [])]
    found = []
    for column, dtype in enumerate(("float32", "bfloat16", "float16")):
        for row, family in enumerate(families):
            size = ("small", "large")[(row + column) % 2]
            quick = dtype == "bfloat16" and family in ("gpt2", "bert", "t5", "mixtral")
            found.append(Good(family, size, dtype, quick=quick))
    found += [
        Good("llama", "large", "bfloat16", "float32", quick=True),
        Good("distilbert", "large", "float32", lora={"use_rslora": True, "bias": "lora_only"}, quick=True),
        Good("phi3", "small", "float32", lora={"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"qkv_proj": 3}}),
        Good("llama", "small", "bfloat16", "float32"),
        Good("llama", "large", prepare=configuration_names_another_dtype, as_base=True, quick=True),
        Good("phi3", "large", prepare=configuration_as_on_the_hub, as_base=True, quick=True),
        Good("bert", "small", prepare=configuration_as_on_the_hub, as_base=True),
        Good("bert", "large", "bfloat16", prepare=head_in_float32, as_base=True, quick=True),
        Good("qwen2", "large", prepare=embeddings_saved_along, as_base=True, quick=True),
        Good("gpt2-classifier", "large", prepare=head_in_the_tokenizer_s_padding, quick=True),
        Good("bert", "large", scored=True, quick=True),
        Good("distilbert", "small", "bfloat16", scored=True),
    ]
    if find_spec("bitsandbytes") is not None:
        found += [
            Good("llama", "large", prepare=four_bits_asked_for, quick=True),
            Good("phi3", "large", prepare=trained_in_four_bits),
            Good("llama", "small", prepare=trained_in_four_bits, quick=True),
        ]
    return found


def certify_good(good: Good, root: Path) -> Certificate:
    """Merge as it should be, and certify."""
    scene = Scene(root, good.family, good.size, good.dtype, good.base_dtype, lora=good.lora)
    order = {} if good.prepare is None else good.prepare(scene) or {}
    if good.scored:
        order["task"] = write_task(scene)
    return merge_with_lorascope(scene, "as-base" if good.as_base else good.dtype, **order)


def certify_fault(fault: Fault, root: Path) -> Certificate:
    """Merge as it should be, plant the fault, and certify."""
    scene = _unharmed(fault, root)
    return certify(scene.claim(**(fault.plant(scene) or {})))


def certify_control(fault: Fault, root: Path) -> Certificate:
    """The same merge without the fault: were it refused, the fault would not be what is caught."""
    return certify(_unharmed(fault, root).claim())


def _unharmed(fault: Fault, root: Path) -> Scene:
    scene = Scene(root, fault.family, fault.size, fault.dtype, lora=fault.lora)
    merge_with_peft(scene)
    return scene


def main() -> int:
    """Plant, merge, certify, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few of both")
    parser.add_argument("--only", metavar="TEXT", help="those whose name has this in it")
    parser.add_argument("--part", metavar="I/N", default="1/1", help="every N-th, from the I-th on")
    parser.add_argument("--controls", action="store_true", help="certify every faulty merge without its fault too")
    arguments = parser.parse_args()
    first, step = (int(number) for number in arguments.part.split("/"))
    started = time.perf_counter()
    caught = faults = alarms = goods = controls = refused = 0
    for fault in FAULTS[first - 1 :: step]:
        if (arguments.quick and not fault.quick) or (arguments.only and arguments.only not in fault.name):
            continue
        with tempfile.TemporaryDirectory() as root:
            certificate = certify_fault(fault, Path(root))
        faults += 1
        caught += not certificate.holds
        by = ", ".join(failure.partition(":")[0] for failure in certificate.failures) or "NOT CAUGHT"
        print(f"| {fault.name} | {fault.family}, {fault.size}, {fault.dtype} | {by} |", flush=True)
        if arguments.controls:
            with tempfile.TemporaryDirectory() as root:
                control = certify_control(fault, Path(root))
            controls += 1
            refused += not control.holds
            if not control.holds:
                print(f"| without it | | REFUSED: {'; '.join(control.failures)} |", flush=True)
    for good in good_merges()[first - 1 :: step]:
        if (arguments.quick and not good.quick) or (arguments.only and arguments.only not in good.name):
            continue
        with tempfile.TemporaryDirectory() as root:
            certificate = certify_good(good, Path(root))
        goods += 1
        alarms += not certificate.holds
        print(f"| {good.name} | {_margins(certificate)} | {'; '.join(certificate.failures) or 'holds'} |", flush=True)
    print(f"\n{caught} of {faults} faults caught; {alarms} false alarms over {goods} good merges")
    if arguments.controls:
        print(f"{refused} false alarms over {controls} merges of PEFT's before a fault was planted in them")
    print(f"{time.perf_counter() - started:.0f} seconds")
    return 0 if caught == faults and not alarms + refused else 3


def _margins(certificate: Certificate) -> str:
    """Effect, worst module, and how much of the tolerance of KL is used."""
    effect = certificate.document["effect"]
    ratio = max((module["ratio"] or 0.0 for module in certificate.document["modules"]), default=0.0)
    used = max((check["value"] / check["tolerance"] for check in certificate.document["checks"]
                if check["name"].startswith("kl") and check["value"] is not None), default=float("nan"))  # fmt: skip
    seen = effect.get("kl")
    return f"effect KL {seen if seen is None else f'{seen:.1e}'}, worst ratio {ratio:.3f}, KL {used:.2f} of its tolerance"


if __name__ == "__main__":
    sys.exit(main())
