"""The table of workloads and sides: which data, model and adapters, and who is measured on them.

Knows names and settings only. Light to import: neither torch nor Lorascope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Side:
    """One competitor with one set of settings.

    Attributes:
        program: ``lorascope``, ``trainer`` (PEFT + Trainer), ``sft`` (TRL) or ``generate`` (transformers).
        role: ``subject`` is Lorascope; a target on the best peer looks at every other role, one on defaults at ``default``.
        grouped: batches of similar length. For ``generate``: sorted by length.
        medium: ``torch.set_float32_matmul_precision("medium")``.
        autocast: fp32 weights under bf16 autocast (``bf16=True``) instead of bf16 weights.
        checkpointing: gradient checkpointing, which TRL switches on by default.
        padding_free: TRL's flattened batches.
        dialogues: one row per dialogue with all replies as targets, instead of one row per reply.
        merged: ``generate`` with the adapter merged into the weights.
        batch_size: where it differs from the workload's.
        dtype: where it differs from the workload's.
        parity: whose losses and gradient norms are compared step by step on Lorascope's own batches.
    """

    name: str
    program: Literal["lorascope", "trainer", "sft", "generate"]
    role: Literal["subject", "default", "best"]
    about: str
    grouped: bool = False
    medium: bool = False
    autocast: bool = False
    checkpointing: bool = False
    padding_free: bool = False
    dialogues: bool = False
    merged: bool = False
    quantization: str | None = None
    batch_size: int | None = None
    dtype: Dtype | None = None
    parity: bool = False


@dataclass(frozen=True)
class Configuration:
    """One LoRA configuration; ``targets`` in Lorascope's words, ``scaling`` is ``lora_alpha / r``."""

    r: int
    lora_alpha: int
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return f"r={self.r} alpha={self.lora_alpha} on {'+'.join(self.targets)}"


@dataclass(frozen=True)
class Workload:
    """What is trained or decoded, and by whom.

    Attributes:
        unit: what a rate counts; ``configurations`` trained together count once each.
        peer_configuration: the one that peers train where Lorascope trains several (their time is multiplied, said so).
        target: the factor aimed at, in words.
    """

    name: str
    about: str
    kind: Literal["train", "decode"]
    data: Literal["squad", "squad-dev", "persona", "sst2"]
    model: Literal["gpt2", "qwen2", "minilm"]
    dtype: Dtype
    configurations: tuple[Configuration, ...]
    sides: tuple[Side, ...]
    unit: str
    batch_size: int = 8
    max_length: int = 512
    max_new_tokens: int = 16
    learning_rate: float = 2e-4
    peer_configuration: int = 0
    target: str = ""

    def side(self, name: str) -> Side:
        """The side called ``name``."""
        return next(side for side in self.sides if side.name == name)


_C_ATTN = (Configuration(8, 16, ("c_attn",)),)
_OURS = Side("lorascope", "lorascope", "subject", "Lorascope")
_PEFT_DEFAULT = Side(
    "peft-default", "trainer", "default", "PEFT + Trainer: random order, padded to the longest, default precision", parity=True
)
_PEFT_BEST = Side(
    "peft-best", "trainer", "best", "PEFT + Trainer: length-grouped batches, medium precision", grouped=True, medium=True
)
_PEFT_AUTOCAST = Side(
    "peft-best-autocast",
    "trainer",
    "best",
    "PEFT + Trainer: as peft-best, but fp32 weights under bf16=True",
    grouped=True,
    medium=True,
    autocast=True,
)
_PEFT_FP32 = Side(
    "peft-default-fp32", "trainer", "default", "PEFT + Trainer at its defaults, which means fp32", dtype="float32"
)
_TRL_DEFAULT = Side(
    "trl-default", "sft", "default", "TRL SFTTrainer: its defaults (gradient checkpointing on)", checkpointing=True
)
_TRL_BEST = Side(
    "trl-best", "sft", "best", "TRL SFTTrainer: length-grouped, medium, no checkpointing", grouped=True, medium=True
)
_TRL_PADDING_FREE = Side(
    "trl-padding-free",
    "sft",
    "best",
    "TRL SFTTrainer: padding_free, medium, no checkpointing",
    medium=True,
    padding_free=True,
)
_DIALOGUE_DEFAULT = Side(
    "peft-dialogue-default",
    "trainer",
    "default",
    "PEFT + Trainer, one row per dialogue, all replies targets (8 dialogues a step)",
    dialogues=True,
)
_DIALOGUE_BEST = Side(
    "peft-dialogue-best",
    "trainer",
    "best",
    "the same, length-grouped and medium precision",
    dialogues=True,
    grouped=True,
    medium=True,
)
_GENERATE = (
    Side("generate-default", "generate", "default", "transformers generate, left padding, batch 8, adapters in turn"),
    Side(
        "generate-best",
        "generate",
        "best",
        "sorted by length, batch 32, medium precision",
        grouped=True,
        medium=True,
        batch_size=32,
    ),
    Side(
        "generate-merged",
        "generate",
        "best",
        "as generate-best, each adapter merged first",
        grouped=True,
        medium=True,
        merged=True,
        batch_size=32,
    ),
)
_SST2 = tuple(
    Configuration(r, 2 * r, tuple(targets.split("+")))
    for r, targets in (
        (4, "query"),
        (4, "query+value"),
        (8, "query"),
        (8, "query+value"),
        (8, "query+key+value"),
        (8, "query+key+value+output"),
        (16, "query+value"),
        (16, "query+key+value+output"),
    )
)
_NF4_SIDES = (
    Side("lorascope", "lorascope", "subject", "Lorascope, NF4 base", quantization="nf4"),
    Side("lorascope-plain", "lorascope", "default", "Lorascope, unquantised base"),
)


def _squad(name: str, dtype: Dtype, sides: tuple[Side, ...], target: str) -> Workload:
    about = f"SQuAD train subset, 80 paragraphs; GPT-2 shape, r=8 on c_attn, batch 8, {dtype}"
    return Workload(name, about, "train", "squad", "gpt2", dtype, _C_ATTN, sides, "examples/s", max_length=1024, target=target)


def _persona(name: str, dtype: Dtype, sides: tuple[Side, ...]) -> Workload:
    about = f"PersonaChat, 100 dialogues, every reply a target; Qwen2 architecture (8 × 384), r=8 on q+v, {dtype}"
    configurations = (Configuration(8, 16, ("query", "value")),)
    target = "≥ 12× the best peer with one row per reply, ≥ 3× one row per dialogue; stretch 25×, 5×"
    return Workload(name, about, "train", "persona", "qwen2", dtype, configurations, sides, "replies/s", target=target)


def _decode(name: str, dtype: Dtype) -> Workload:
    about = f"greedy answers to 200 SQuAD dev questions, 16 new tokens, 2 adapters on c_attn; GPT-2 shape, {dtype}"
    sides = (_OURS, *_GENERATE)
    target = "≥ 8× the best peer; stretch 20×"
    return Workload(
        name, about, "decode", "squad-dev", "gpt2", dtype, _C_ATTN * 2, sides, "answers/s", max_length=1000, target=target
    )


def _nf4(name: str, dtype: Dtype) -> Workload:
    about = f"4 slots on the GPT-2 shape, SQuAD: NF4 base against the unquantised one, {dtype}"
    target = "training time per adapter ≤ 1.3× the unquantised stack's; stretch 1.15×"
    return Workload(
        name,
        about,
        "train",
        "squad",
        "gpt2",
        dtype,
        _C_ATTN * 4,
        _NF4_SIDES,
        "configuration-examples/s",
        max_length=1024,
        target=target,
    )


_TRAIN_FP32 = (_OURS, _PEFT_DEFAULT, _PEFT_BEST, _TRL_DEFAULT, _TRL_BEST, _TRL_PADDING_FREE)
_TRL_DEFAULT_BF16 = Side(
    "trl-default",
    "sft",
    "default",
    "TRL SFTTrainer: its defaults (bf16=True on fp32 weights, gradient checkpointing)",
    checkpointing=True,
    autocast=True,
)
_TRAIN_BF16 = (_OURS, _PEFT_DEFAULT, _PEFT_BEST, _PEFT_AUTOCAST, _PEFT_FP32, _TRL_DEFAULT_BF16, _TRL_BEST, _TRL_PADDING_FREE)
_PERSONA = (_OURS, _PEFT_DEFAULT, _PEFT_BEST, _DIALOGUE_DEFAULT, _DIALOGUE_BEST)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        _squad("squad-fp32", "float32", _TRAIN_FP32, "≥ 8× the best peer, ≥ 15× PEFT + Trainer's defaults; stretch 12×, 25×"),
        _squad(
            "squad-bf16",
            "bfloat16",
            _TRAIN_BF16,
            "≥ 12× the best bf16 peer, ≥ 25× the fp32 defaults, ≥ 50 % of the probed rate; stretch 20×, 40×, 70 %",
        ),
        _persona("persona-fp32", "float32", _PERSONA),
        _persona("persona-bf16", "bfloat16", (*_PERSONA, _PEFT_AUTOCAST)),
        Workload(
            "sst2",
            "SST-2, 8,000 sentences, MiniLM, 8 configurations in one cohort, batch 32, fp32",
            "train",
            "sst2",
            "minilm",
            "float32",
            _SST2,
            (_OURS, _PEFT_DEFAULT, _PEFT_BEST),
            "configuration-examples/s",
            batch_size=32,
            max_length=128,
            peer_configuration=3,
            target="≥ 2× the best peer, ≥ 6× its defaults; stretch 3×, 10×",
        ),
        _decode("decode-fp32", "float32"),
        _decode("decode-bf16", "bfloat16"),
        _nf4("nf4", "float32"),
        _nf4("nf4-bf16", "bfloat16"),
    )
}
