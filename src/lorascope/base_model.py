"""The frozen base: loading it, knowing its heads, and proving that it did not change.

Knows transformers' loading code, tokenizers, which modules are newly initialised, and the checksum. Does not know adapters.
Floor: above ``lora``, below ``train``.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from lorascope.config import BaseModelConfig, TaskType
from lorascope.errors import AdapterError, ModelError
from lorascope.lora.beside import larger_vocabulary
from lorascope.lora.last_block import LastBlock, find_last_block
from lorascope.lora.linear import linear_modules
from lorascope.lora.quantised import check_installed, quantise
from lorascope.lora.stored_tensors import INDEX_FILE, WEIGHTS_FILE, read_header, read_index

_AUTO_CLASSES = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}
# Classification heads, by the names that transformers gives them; a family has one or two of these.
HEAD_NAMES = ("pre_classifier", "classifier", "score")


@dataclass
class BaseModel:
    """A frozen model ready for a stack.

    Attributes:
        heads: modules that are trained whole, newly initialised ones always among them.
        new_parameters: full names of the parameters that no checkpoint provided.
        checksum: SHA-256 of all weights outside the heads.
        source: what it was loaded from; None for a model that never was on disk.
        unpacked_checksum: the same before they were packed in four bits; None where they were not.
        plain_head: logits are exactly ``output_embeddings(head_scale · last_hidden_state)``, so they can be computed for some
            positions alone; False where the model scales or caps them otherwise.
        packs: whether prefix trees give this model's losses; None until it was tried.
        scratch: memory that passes use again, by name; what it holds means nothing.
        last_block: how to compute the last block only where it is read; None where that is not known.
        head_scale: what the last hidden states are multiplied with before the output embeddings; 1 but for a T5.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task_type: TaskType
    heads: tuple[str, ...]
    new_parameters: tuple[str, ...]
    checksum: str
    plain_head: bool
    warnings: list[str] = field(default_factory=list)
    packs: bool | None = None
    last_block: LastBlock | None = None
    head_scale: float = 1.0
    unpacked_checksum: str | None = None
    source: BaseModelConfig | None = None
    scratch: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of their numbers; empty unless SEQ_CLS."""
        return label_names(self.model.config) if self.task_type == "SEQ_CLS" else ()

    @property
    def pad_id(self) -> int:
        """The id that fills short rows; classifiers of causal models look for it to find a row's last token."""
        return int(self.model.config.pad_token_id)

    @property
    def start_id(self) -> int:
        """The token that an encoder–decoder's decoder starts with."""
        return int(self.model.config.decoder_start_token_id)

    def initial_head(self, module: str, seed: int) -> Mapping[str, Tensor]:
        """Initial values of a head's own parameters: drawn anew for the seed where no checkpoint provided them.

        The draw is the model's own initialisation, seeded for (seed, module) and leaving the global generator as it was.
        """
        original = self.model.get_submodule(module)
        original = getattr(original, "frozen", original)
        own = dict(original.named_parameters(recurse=False))
        if not any(f"{module}.{name}" in self.new_parameters for name in own):
            return {name: value.detach() for name, value in own.items()}
        fresh = copy.deepcopy(original).float()
        digest = hashlib.blake2b(repr((seed, "head", module)).encode(), digest_size=7).digest()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest, "big"))
            self.model._init_weights(fresh)
        return {name: value.detach() for name, value in fresh.named_parameters()}


def read_config(base: BaseModelConfig) -> PretrainedConfig:
    """The model's ``config.json``, from a directory or the hub.

    Raises:
        ModelError: there is none, its ``model_type`` is unknown, or its checkpoint is quantised already.
    """
    _check_directory(base.place, "config.json")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(base.place, revision=base.revision)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded("configuration", base, error) from None
    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        kind = packed.get("quant_method", "unknown") if isinstance(packed, dict) else type(packed).__name__
        fix = "give the original checkpoint (a study packs it itself: base.quantization: nf4)"
        raise ModelError(f"the checkpoint is quantised already ({kind})", where=base.model, fix=fix)
    return config


def task_type_of(config: PretrainedConfig, wanted: TaskType) -> TaskType:
    """What a task's type becomes on this base: an encoder–decoder produces a text from a text, where others continue one."""
    return "SEQ_2_SEQ_LM" if wanted == "CAUSAL_LM" and getattr(config, "is_encoder_decoder", False) else wanted


def check_writes(config: PretrainedConfig, where: str) -> None:
    """Refuse a model that produces no text.

    Raises:
        ModelError: it is an encoder, or was saved with a classifier's head.
    """
    what = None
    if not getattr(config, "is_encoder_decoder", False) and not getattr(config, "is_decoder", False):
        kind = config.model_type
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            what = f"{kind} is no causal model"
    named = config.architectures or ()
    other = next((name for name in named if "Classification" in name or "QuestionAnswering" in name), None)
    if what is None and other is not None:
        what = f"it was saved as {other}"
    if what is not None:
        fix = "give a causal model or an encoder-decoder, or score this one with lorascope evaluate"
        raise ModelError(f"this model writes nothing: {what}", where=where, fix=fix)


def skeleton(config: PretrainedConfig, task_type: TaskType, num_labels: int = 2) -> PreTrainedModel:
    """The model on the meta device: every shape and no weights."""
    config = type(config).from_dict(config.to_dict())
    if task_type == "SEQ_CLS":
        config.num_labels = num_labels
    try:
        with torch.device("meta"):
            return _AUTO_CLASSES[task_type].from_config(config)  # type: ignore[no-any-return]
    except ValueError as error:
        raise ModelError(
            f"a {config.model_type} model has no {task_type} form",
            where="base.model",
            fix="choose another base or task",
        ) from error


def head_modules(model: nn.Module, task_type: TaskType) -> tuple[str, ...]:
    """The classification head's modules; empty for a model that produces text."""
    if task_type != "SEQ_CLS":
        return ()
    return tuple(name for name, _ in model.named_children() if name in HEAD_NAMES)


def label_names(config: PretrainedConfig) -> tuple[str, ...]:
    """A classifier's class names in the order of their numbers; ``LABEL_0`` and so on where nobody named them."""
    return tuple(str(name) for _, name in sorted((int(number), name) for number, name in (config.id2label or {}).items()))


def num_positions(config: PretrainedConfig) -> int | None:
    """Tokens of the longest row that the model has positions for; None where nothing bounds it."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in ("roberta", "xlm-roberta"):
        positions -= 2  # their positions start after the padding id
    return positions


def load_tokenizer(base: BaseModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or the one that was saved with an adapter of it (``base.tokenizer_beside``).

    Raises:
        ModelError: there is none, or it encodes nothing (an empty vocabulary is a known trap).
    """
    beside = base.tokenizer_beside
    where = base if beside is None else base.model_copy(update={"model": str(beside), "revision": None})
    # A tokenizer's class may be told by the model's configuration alone, which does not lie beside an adapter.
    more = {} if beside is None else {"config": read_config(base)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where.place, revision=where.revision, **more)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise _not_loaded("tokenizer", where, error) from None
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ModelError("the tokenizer knows no words", where=where.model, fix="check tokenizer.json and its vocabulary")
    return tokenizer


def tokenizer_difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """In what two tokenizers write texts or conversations otherwise; None where they do not. Pad tokens are not compared."""
    if one.get_vocab() != other.get_vocab():
        return "another vocabulary"
    if one.chat_template != other.chat_template:
        return "another chat template"
    if (one.bos_token, one.eos_token) != (other.bos_token, other.eos_token):
        return "other tokens for beginning and end"
    ids = sorted(one.get_vocab().values())
    texts = ("The quick brown fox, 12.5 % of it.", one.decode(ids[:: max(1, len(ids) // 64)]))
    differing = any(one(text)["input_ids"] != other(text)["input_ids"] for text in texts)
    return "other tokens for the same text" if differing else None


def load_base(base: BaseModelConfig, task_type: TaskType, labels: Sequence[str] = (), device: str = "cpu") -> BaseModel:
    """Load weights and tokenizer, freeze everything, find what is newly initialised, quantise, and take the checksum.

    What is quantised is every linear layer but heads and output embeddings: what transformers would, less what is trained.

    Args:
        task_type: what the task wants; the base's own is ``task_type_of`` it.

    Raises:
        ModelError: something is missing, damaged, holds NaN, or is newly initialised outside what can be trained.
        AdapterError: the adapter's tokenizer has more tokens than the base has embeddings.
    """
    if base.quantization is not None:
        check_installed()
    config = read_config(base)
    task_type = task_type_of(config, task_type)
    tokenizer = load_tokenizer(base)
    if task_type == "SEQ_CLS":
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    model, missing, mismatched = _load_weights(base, config, task_type)
    if base.quantization is None:
        cast(nn.Module, model).to(device)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    _set_pad_token(model, tokenizer, task_type, base.model)
    if task_type == "SEQ_2_SEQ_LM":
        _set_start_token(model, base.model)
    heads = head_modules(model, task_type)
    new, warnings = _new_parameters(model, missing, mismatched, heads, base)
    for name in new:
        if not any(name.startswith(f"{head}.") for head in heads):
            owner = name.rpartition(".")[0]
            heads = (*heads, owner)
            warnings.append(f"{owner} is not in the checkpoint; it is newly initialised and trained with every adapter")
    _check_finite(model, base)
    _check_vocabulary(model, tokenizer, base)
    if base.tokenizer_beside is not None:
        warnings.append(f"the tokenizer is the one that was saved with the adapter ({base.tokenizer_beside})")
    unpacked = None
    if base.quantization is not None:
        unpacked = weights_checksum(model, heads)
        # Packed layer by layer on their way to the device, which never holds the weights in full.
        quantise(model, list(linear_modules(model, heads)), device)
        _leave_checkpoint(model)
        cast(nn.Module, model).to(device)
    scale = 1.0 if task_type == "SEQ_CLS" else head_scale(model)
    if scale is None:
        warnings.append("the model scales its logits; those of a batch are all kept for the backward pass")
    checksum = weights_checksum(model, heads)
    last_block, reason = find_last_block(model, task_type)
    if reason is not None:
        warnings.append(f"the last block is computed for every token: {reason}")
    return BaseModel(
        model, tokenizer, task_type, heads, new, checksum, scale is not None, warnings,
        last_block=last_block, head_scale=1.0 if scale is None else scale, unpacked_checksum=unpacked, source=base,
    )  # fmt: skip


def last_hidden_states(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """What the output embeddings are given, ``[B, T, D]``, before any scaling; an encoder–decoder's are its decoder's.

    Args:
        inputs: what the model's ``forward`` is given.
    """
    if "decoder_input_ids" not in inputs:
        return cast(Tensor, model.base_model(**inputs, use_cache=False).last_hidden_state)
    mask = inputs["attention_mask"]
    encoded = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    decoded = model.get_decoder()(
        input_ids=inputs["decoder_input_ids"],
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        use_cache=False,
    )
    return cast(Tensor, decoded.last_hidden_state)


@torch.no_grad()
def head_scale(model: PreTrainedModel) -> float | None:
    """By what the output embeddings' input is the last hidden states, tried on four tokens; None where logits differ still.

    A T5 of the first version, whose embeddings are tied, divides by √D.
    """
    output = model.get_output_embeddings()
    if output is None:
        return None
    ids = torch.arange(4, device=model.device).reshape(1, 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    scales = [1.0]
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids.flip(1)
        scales.append(float(model.config.hidden_size) ** -0.5)
    hidden = last_hidden_states(model, inputs)
    logits = model(**inputs, use_cache=False).logits.float()
    fitting = (scale for scale in scales if torch.allclose(output(hidden * scale).float(), logits, rtol=1e-4, atol=1e-4))
    return next(fitting, None)


def weights_checksum(model: nn.Module, heads: Sequence[str]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every base weight and persistent buffer outside the heads.

    Works on a stacked model too: wrappers are looked through, so it is equal before, while and after adapters are on.
    """
    digest = hashlib.sha256()
    tensors = {name.replace(".frozen.", "."): value for name, value in model.state_dict().items()}
    for name in sorted(tensors):
        if any(name.startswith(f"{head}.") for head in heads):
            continue
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def checkpoint_keys(directory: str) -> set[str] | None:
    """Tensor names in a local checkpoint's safetensors headers; None where there is none to read."""
    path = Path(directory)
    try:
        if (path / WEIGHTS_FILE).is_file():
            return set(read_header(path / WEIGHTS_FILE))
        return set(read_index(path / INDEX_FILE))
    except ModelError:
        return None


def unties_head(base: BaseModelConfig, config: PretrainedConfig) -> bool:
    """Whether a T5 has an output layer of its own when its weights are loaded.

    transformers declares every T5 tied, and yet loads two matrices where the checkpoint holds two, as those of T5 v1.1 and its
    successors do. Where there is no local checkpoint, ``config.json`` says what it was written with.
    """
    if config.model_type not in ("t5", "mt5"):
        return False
    keys = checkpoint_keys(base.place)
    if keys is not None:
        return {"lm_head.weight", "shared.weight"} <= keys
    written, _ = PretrainedConfig.get_config_dict(base.place, revision=base.revision)
    return written.get("tie_word_embeddings") is False


def _load_weights(
    base: BaseModelConfig, config: PretrainedConfig, task_type: TaskType
) -> tuple[PreTrainedModel, set[str], set[str]]:
    verbosity = transformers_logging.get_verbosity()
    # Missing and mismatched weights are reported by Lorascope itself, with what it does about them.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, info = _AUTO_CLASSES[task_type].from_pretrained(
            base.place,
            config=config,
            revision=base.revision,
            dtype=getattr(torch, base.dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # safetensors, torch and transformers each raise their own kinds for a bad checkpoint
        raise _not_loaded("weights", base, error) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    return model, set(info["missing_keys"]), mismatched


def _new_parameters(
    model: PreTrainedModel, missing: set[str], mismatched: set[str], heads: Sequence[str], base: BaseModelConfig
) -> tuple[tuple[str, ...], list[str]]:
    parameters = [name for name, _ in model.named_parameters()]
    wrong = [name for name in mismatched if not any(name.startswith(f"{head}.") for head in heads)]
    if wrong:
        raise ModelError(f"{min(wrong)!r} in the checkpoint has another shape than config.json says", where=base.model)
    new = [name for name in parameters if name in missing | mismatched]
    if len(new) > len(parameters) // 2:
        raise ModelError(
            f"the checkpoint lacks {len(new)} of the model's {len(parameters)} parameters ({new[0]}, …)",
            where=base.model,
            fix="check that weights and config.json belong together",
        )
    warnings = [f"{name} has another shape in the checkpoint; it starts anew" for name in sorted(mismatched)]
    return tuple(new), warnings


def _set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task_type: TaskType, where: str) -> None:
    """Give tokenizer and model one pad token; a base without one (GPT-2, Llama) pads with its end token, masked."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None and task_type == "SEQ_CLS":
            raise ModelError("the tokenizer has neither a pad nor an end token", where=where, fix="give it a pad_token")
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _set_start_token(model: PreTrainedModel, where: str) -> None:
    """Have model and generation agree on the token that the decoder starts with; where none is declared, a T5 pads.

    Raises:
        ModelError: neither the model's configuration nor its family says.
    """
    config: Any = model.config
    declared = [getattr(one, "decoder_start_token_id", None) for one in (config, model.generation_config)]
    start = next((one for one in declared if isinstance(one, int)), None)
    if start is None and config.model_type in ("t5", "mt5"):
        start = config.pad_token_id
    if start is None:
        what = "the model does not say with which token its decoder starts"
        raise ModelError(what, where=where, fix="set decoder_start_token_id in config.json")
    config.decoder_start_token_id = start
    cast(Any, model.generation_config).decoder_start_token_id = start


def _check_finite(model: PreTrainedModel, base: BaseModelConfig) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{name!r} holds NaN or infinite numbers", where=base.model, fix="use another checkpoint")


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: BaseModelConfig) -> None:
    largest = max(tokenizer.get_vocab().values(), default=0)
    num_embeddings = len(cast(Tensor, model.get_input_embeddings().weight))
    if largest >= num_embeddings:
        beside = base.tokenizer_beside
        if beside is not None:
            what, fix = larger_vocabulary(largest + 1, num_embeddings)
            raise AdapterError(what, where=str(beside), fix=fix)
        raise ModelError(
            f"the tokenizer has id {largest}, the model {num_embeddings} embeddings",
            where=base.model,
            fix="use the tokenizer that belongs to the model",
        )


def _leave_checkpoint(model: nn.Module) -> None:
    """Copy the parameters: as long as one is a view of the mapped checkpoint, all of its pages stay in memory."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _check_directory(model: str, file: str) -> None:
    """A path that does not exist must not be asked of the hub."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / file).is_file():
            raise ModelError(f"the directory has no {file}", where=model, fix="give a directory that save_pretrained wrote")
    elif path.is_file() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError("no such model directory", where=model, fix="give a directory or a hub id such as gpt2")


def _not_loaded(what: str, base: BaseModelConfig, error: Exception) -> ModelError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    local = Path(base.place).is_dir()
    fix = "check the directory's files" if local else "check the name, or that the hub can be reached"
    return ModelError(f"cannot load the {what} ({reason[:200]})", where=base.model, fix=fix)


def settled_clock(base: BaseModel) -> float:
    """Seconds of ``perf_counter``, once the base's device has done all that it was asked."""
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    return time.perf_counter()


def hardware() -> dict[str, Any]:
    """What a measurement was taken on: processor, cores, memory, torch and its threads."""
    import platform

    import psutil

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
