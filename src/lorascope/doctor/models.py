"""Tiny seeded models, examples and adapters, made here: no file, no network. And what they must compute, in plain products.

Floor: doctor.

Legend: D in, O out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from lorascope.base_model import BaseModel, head_modules, weights_checksum
from lorascope.config import TaskType
from lorascope.data.record import Example
from lorascope.lora.linear import features, is_transposed
from lorascope.lora.stack import AdapterWeights, Placement, Slot, Stack
from lorascope.lora.targets import resolve

Family = Literal["gpt2", "llama", "bert"]
# [PAD], [UNK], [CLS], [SEP] and words.
VOCABULARY = 64
NUM_SPECIAL = 4
END_ID = 3
_WIDTH, _INNER, _LAYERS, _HEADS, _POSITIONS = 32, 48, 2, 4, 128
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0}
# Weights are this much larger than transformers draws them, so that a model of two layers tells its inputs apart.
_SPREAD = 10.0


def config_of(family: Family) -> PretrainedConfig:
    """The configuration of a model of two layers and 32 features."""
    if family == "gpt2":
        sizes: dict[str, Any] = {"n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": _POSITIONS}
        return GPT2Config(**_COMMON, **sizes, bos_token_id=END_ID, eos_token_id=END_ID)
    sizes = {
        "hidden_size": _WIDTH, "intermediate_size": _INNER, "num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS,
        "max_position_embeddings": _POSITIONS,
    }  # fmt: skip
    if family == "llama":
        return LlamaConfig(**_COMMON, **sizes, num_key_value_heads=2, bos_token_id=2, eos_token_id=END_ID)
    return BertConfig(**_COMMON, **sizes)


def make(family: Family, dtype: torch.dtype = torch.float64, device: str = "cpu") -> PreTrainedModel:
    """The model with its seeded weights, frozen; the same numbers in every dtype, up to rounding."""
    auto: Any = AutoModelForSequenceClassification if family == "bert" else AutoModelForCausalLM
    model: nn.Module = _drawn(lambda: auto.from_config(config_of(family)))
    return cast(PreTrainedModel, model.to(device=device, dtype=dtype).eval().requires_grad_(False))


def body() -> PreTrainedModel:
    """A BERT without a head: what a study loads."""
    return _drawn(lambda: BertModel(cast(BertConfig, config_of("bert"))))


def write(model: PreTrainedModel, directory: Path) -> None:
    """The model's files and its tokenizer's."""
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)


def tokenizer() -> PreTrainedTokenizerBase:
    """Words ``w4``, ``w5``, … whose numbers are their ids."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, *(f"w{index}" for index in range(NUM_SPECIAL, VOCABULARY))]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", END_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]"
    )


def as_base(model: PreTrainedModel, task_type: TaskType = "CAUSAL_LM", packs: bool | None = None) -> BaseModel:
    """The model as a base whose head, where it has one, is newly initialised.

    Args:
        packs: whether examples are stored as prefix trees; None to have it tried.
    """
    heads = head_modules(model, task_type)
    new = tuple(name for name, _ in model.named_parameters() if any(name.startswith(f"{head}.") for head in heads))
    checksum = weights_checksum(model, heads)
    return BaseModel(model, tokenizer(), task_type, heads, new, checksum, plain_head=True, packs=packs)


def random_ids(length: int, seed: int) -> list[int]:
    """Token ids of words."""
    generator = torch.Generator().manual_seed(seed)
    return cast(list[int], torch.randint(NUM_SPECIAL, VOCABULARY, (length,), generator=generator).tolist())


def continued(name: str, ids: list[int], first_target: int) -> Example:
    """An example of a causal model that learns everything from ``first_target`` on."""
    return Example(name, ids, [place >= first_target for place in range(len(ids))], None, first_target)


def rows(count: int = 8) -> list[Example]:
    """Texts of different lengths that share nothing; the last tokens of each are learned."""
    return [continued(str(index), ids := random_ids(5 + index % 5, index), len(ids) - 3) for index in range(count)]


def classified(count: int = 16) -> list[Example]:
    """Texts of two classes: those of the second hold the word 5."""
    examples = []
    for index in range(count):
        words = [word for word in random_ids(4 + index % 4, 100 + index) if word != 5]
        label = index % 2
        examples.append(Example(str(index), [2, *words, *([5] * label), END_ID], None, label, 0))
    return examples


def branching() -> list[Example]:
    """A dialogue whose every reply is learned, and questions about one context: much is shared."""
    history, context = random_ids(44, 1), random_ids(24, 2)
    chain = [continued(f"reply {stop}", history[:stop], stop - 4) for stop in (20, 30, 44)]
    star = [continued(f"question {n}", context + random_ids(n, 10 + n), 24 + n // 2) for n in (2, 5, 7)]
    return [*chain, *star]


def slot(
    model: PreTrainedModel,
    name: str,
    seed: int,
    targets: Sequence[str] | str = ("query", "value"),
    r: int = 4,
    *,
    scaling: float = 2.0,
    dropout: float = 0.0,
    bias: Literal["none", "lora_only", "all"] = "none",
) -> Slot:
    """An adapter of rank ``r`` at the places that ``targets`` name."""
    found = resolve(model, targets if isinstance(targets, str) else list(targets), ())
    return Slot(name, seed, tuple(Placement(target, r, scaling) for target in found), dropout, bias)


@contextmanager
def installed(base: BaseModel, slots: Sequence[Slot], spread: float = 0.2) -> Iterator[Stack]:
    """The slots on the base while it lasts, with random numbers where a training begins with zeros.

    Args:
        spread: of those numbers; 0 leaves everything as a training begins.
    """
    stack = Stack(base.model, slots, base.heads)
    try:
        for index, one in enumerate(slots) if spread else ():
            weights = stack.read(index)
            generator = torch.Generator().manual_seed(1000 + one.seed)
            for group in (weights.lora_B, weights.biases, weights.heads):
                for value in group.values():
                    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                    value += (spread * noise).to(value)
            stack.write(index, weights)
        yield stack
    finally:
        stack.detach()


def gradients(stack: Stack, index: int) -> dict[str, Tensor]:
    """A slot's gradients by the parameter's name, padding included."""
    found: dict[str, Tensor] = {}
    start = 0
    for spec in stack.parameters.specs:
        size = torch.Size(spec.shape).numel()
        found[spec.name] = stack.parameters.gradients_NP[index, start : start + size].reshape(spec.shape).clone()
        start += size
    return found


def adapted_weights(model: nn.Module, weights: AdapterWeights) -> dict[str, Tensor]:
    """``W + (alpha / r)·B·A`` in float64 of every layer that has an adapter, by the weight's name; autograd follows.

    Args:
        model: without a stack on it.

    Source: Hu et al. 2021, section 4.1.
    """
    found: dict[str, Tensor] = {}
    for placement in weights.placements:
        key, name = placement.target.key, f"{placement.target.module}.weight"
        layer = model.get_submodule(placement.target.module)
        start, stop = placement.target.part or (0, features(layer)[1])
        update_OD = placement.scaling * (weights.lora_B[key].double() @ weights.lora_A[key].double())
        update_OD = F.pad(update_OD, (0, 0, start, features(layer)[1] - stop))
        own = found.get(name, cast(Tensor, layer.weight).double())
        found[name] = own + (update_OD.T if is_transposed(layer) else update_OD)
    return found


def relative(found: Tensor, exact: Tensor) -> float:
    """The largest difference in units of the largest exact number."""
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max().clamp(min=1e-300))


def ids_batch(device: str, length: int = 9) -> Tensor:
    """Two rows of token ids without padding, ``[2, T]``."""
    return torch.tensor([random_ids(length, 20), random_ids(length, 21)], device=device)


def changed(before: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """The parameters and buffers whose bits are not what they were."""
    now = dict(model.state_dict())
    return [name for name, value in before.items() if name not in now or not torch.equal(now[name].cpu(), value)]


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, copied to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _drawn(build: Any) -> PreTrainedModel:
    """A model whose weights are drawn with a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = cast(PreTrainedModel, build())
        for parameter in model.parameters():
            # transformers starts biases at zero and norms at one; a trained base has neither.
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.dim() == 1 else (_SPREAD - 1.0) * parameter)
    return model
