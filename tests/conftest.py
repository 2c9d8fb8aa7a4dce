"""Tiny models of every supported family, tokenizers and data, made by the tests: no network, no weights to download."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
VOCABULARY = 160
_ROTARY = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 130, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "pad_token_id": 0,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "dropout_rate": 0.1, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20, "encoder_attention_heads": 2, "decoder_attention_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=128, bos_token_id=2, eos_token_id=2),
    "bert": BertConfig(**_ENCODER),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=4, hidden_dim=24, max_position_embeddings=128, pad_token_id=0
    ),
    "roberta": RobertaConfig(**{**_ENCODER, "pad_token_id": 0, "type_vocab_size": 1}),
    "llama": LlamaConfig(**_ROTARY),
    "qwen2": Qwen2Config(**_ROTARY),
    "phi3": Phi3Config(**_ROTARY),
    "t5": T5Config(**_T5),
    "gated-t5": T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": BartConfig(**_BART),
}
SEQ_CLS_FAMILIES = ("gpt2", "bert", "distilbert", "roberta", "llama", "qwen2")
CAUSAL_FAMILIES = ("gpt2", "llama", "qwen2", "phi3")
SEQ_2_SEQ_FAMILIES = ("t5", "gated-t5", "bart")
SENTENCES = (
    "a charming and often affecting journey",
    "the acting is wooden and the plot goes nowhere",
    "it is a bright funny film with a warm heart",
    "too slow too long and far too little",
    "who wrote the first engine paper in London",
    "Ada Lovelace wrote about the engine of Charles Babbage",
    "the river Thames flows through the city of London",
    "Question: where does it flow Answer: through the city",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    reason = f"the shared datasets are not at {SHARED_DATA}"
    if os.environ.get("LORASCOPE_REQUIRE_SHARED_DATA"):
        raise pytest.UsageError(f"LORASCOPE_REQUIRE_SHARED_DATA is set, but {reason}")
    for item in items:
        if "shared_data" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def shared_data() -> Path:
    """The directory of real datasets; the test must carry the marker of the same name."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared datasets are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """``tiny_model(family, task_type="SEQ_CLS", dtype=torch.float64, num_labels=3)``: seeded random weights, eval mode."""

    def make(
        family: str, task_type: str = "SEQ_CLS", dtype: torch.dtype = torch.float64, num_labels: int = 3
    ) -> PreTrainedModel:
        config = type(CONFIGS[family]).from_dict(CONFIGS[family].to_dict())
        auto = AutoModelForSeq2SeqLM if task_type == "SEQ_2_SEQ_LM" else AutoModelForCausalLM
        if task_type == "SEQ_CLS":
            config.num_labels = num_labels
            auto = AutoModelForSequenceClassification
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = auto.from_config(config).to(dtype).eval()
            for name, parameter in model.named_parameters():
                # transformers starts biases at zero and norms at one; a trained base has neither.
                if name.endswith("bias") or "norm" in name.lower() or ".ln_" in name:
                    parameter.data += 0.1 * torch.randn_like(parameter)
                elif parameter.dim() == 2:
                    parameter.data *= 5.0
        return model

    return make


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE without pad token (``causal``), or with one and ``</s>`` behind every text (``encoder-decoder``); or a
    WordPiece with [CLS] and [SEP] (``encoder``). The ids are the same in every process.
    """
    from tokenizers.processors import TemplateProcessing

    if kind != "encoder":
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<unk>", "<s>", "<|endoftext|>"] if kind == "causal" else ["<pad>", "</s>", "<unk>"]
        alphabet = sorted({c for s in SENTENCES for c in s} | set("\nĊĠ0123456789?!.,'\"():;-"))
        words = [list(word) for sentence in SENTENCES for word, _ in splitter.pre_tokenize_str(sentence)]
        vocabulary, merges = _learned(words, [*special, *alphabet], "")
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = token_decoders.ByteLevel()
        tokenizer.add_special_tokens(special)
        if kind == "causal":
            return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>")
        end = [("</s>", 1)]
        tokenizer.post_processor = TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=end)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    from tokenizers.normalizers import BertNormalizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    splitter = pre_tokenizers.BertPreTokenizer()
    texts = [word for sentence in SENTENCES for word, _ in splitter.pre_tokenize_str(sentence.lower())]
    words = [[word[0], *(f"##{char}" for char in word[1:])] for word in texts]
    alphabet = sorted({char for word in texts for char in word}) + sorted({piece for word in words for piece in word[1:]})
    vocabulary, _ = _learned(words, [*special, *alphabet], "##")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _learned(words: list[list[str]], begun: Sequence[str], inside: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of `VOCABULARY` tokens with the merges that made them; of equally frequent pairs the first by its text.

    Not the tokenizers library's own trainers: they take such pairs in the order of a hash, which every process has its own of.

    Args:
        words: as characters.
        begun: the vocabulary's first tokens.
        inside: what a token begins with that does not begin a word.
    """
    tokens, merges = list(begun), []
    while len(tokens) < VOCABULARY:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        whole = first + second.removeprefix(inside)
        merges.append((first, second))
        if whole not in tokens:
            tokens.append(whole)
        words = [_merged(word, first, second, whole) for word in words]
    return {token: index for index, token in enumerate(tokens)}, merges


def _merged(word: list[str], first: str, second: str, whole: str) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and merged[-1] == first and piece == second:
            merged[-1] = whole
        else:
            merged.append(piece)
    return merged


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``model_directory(family)``: a directory as ``save_pretrained`` writes it, with tokenizer; the body only, no head."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            from transformers import AutoModel

            directory = tmp_path_factory.mktemp(family)
            kinds = {**dict.fromkeys(CAUSAL_FAMILIES, "causal"), **dict.fromkeys(SEQ_2_SEQ_FAMILIES, "encoder-decoder")}
            autos = {"causal": AutoModelForCausalLM, "encoder-decoder": AutoModelForSeq2SeqLM, "encoder": AutoModel}
            kind = kinds.get(family, "encoder")
            with torch.random.fork_rng():
                torch.manual_seed(11)
                model = autos[kind].from_config(CONFIGS[family])
                for parameter in model.parameters():
                    if parameter.dim() == 2:
                        parameter.data *= 3.0
            model.save_pretrained(directory)
            tokenizer = make_tokenizer(kind)
            assert len(tokenizer) <= VOCABULARY
            assert tokenizer("the acting")["input_ids"]
            tokenizer.save_pretrained(directory)
            made[family] = directory
        return made[family]

    return make


@pytest.fixture
def peft_adapter(model_directory: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """``peft_adapter(family, task_type="SEQ_CLS", base=None, name="adapter", **config)``: an adapter of random numbers as PEFT
    writes it, heads included, and the PEFT model that it is on. ``config`` goes to ``LoraConfig``; a classifier has 3 labels.
    """
    import peft

    from lorascope.base_model import head_modules
    from lorascope.lora.targets import resolve

    def make(
        family: str, task_type: str = "SEQ_CLS", base: Path | None = None, name: str = "adapter", **config: Any
    ) -> tuple[Path, Any]:
        more = {"num_labels": 3} if task_type == "SEQ_CLS" else {}
        autos = {"SEQ_CLS": AutoModelForSequenceClassification, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM}
        generator = torch.Generator().manual_seed(23)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = autos.get(task_type, AutoModelForCausalLM).from_pretrained(base or model_directory(family), **more)
            heads = head_modules(model, task_type)
            targets = sorted({target.module for target in resolve(model, ["query", "down"], heads)})
            values = {"r": 4, "lora_alpha": 12, "target_modules": targets, "modules_to_save": list(heads) or None}
            values |= {"task_type": task_type, "init_lora_weights": False, "fan_in_fan_out": family == "gpt2"}
            wrapped = peft.get_peft_model(model, peft.LoraConfig(**(values | config))).eval()
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        wrapped.save_pretrained(tmp_path / name)
        return tmp_path / name, wrapped

    return make


@pytest.fixture(scope="session")
def three_directions_in_bfloat16() -> Callable[..., None]:
    """Overwrites every update of a saved adapter by three directions of one size, mixed among the factors, in bfloat16."""

    def overwrite(directory: Path, *, seed: int) -> None:
        path = directory / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        tensors = load_file(path)
        r = next(len(value) for key, value in tensors.items() if "lora_A" in key)
        mixed_RS = torch.linalg.qr(torch.randn(r, 3, generator=generator))[0]
        for key in [key for key in tensors if ".lora_" in key]:
            size = tensors[key].shape[1] if "lora_A" in key else tensors[key].shape[0]
            outer = torch.linalg.qr(torch.randn(size, 3, generator=generator))[0]
            tensors[key] = (mixed_RS @ outer.T if "lora_A" in key else outer @ mixed_RS.T).bfloat16().contiguous()
        save_file(tensors, path, metadata={"format": "pt"})

    return overwrite
