"""Tokenizers for the data tests: small ones trained here, and GPT-2's and BERT's where the shared data are."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SHARED_TOKENIZERS = Path(__file__).parents[2].parent / "shared" / "data" / "tokenizers"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = ["the cat sat on the mat", "Question: who sat on the mat?\nAnswer: the cat", "a dog ran to the cat and sat"]


def byte_level_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Encodes any text, merges a few English words, knows ChatML's marks; with ``bos`` it puts one before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def metaspace_tokenizer(prepend_scheme: str = "first") -> PreTrainedTokenizerFast:
    """Unigram pieces as SentencePiece writes them, a space as the first character of a word; falls back to bytes."""
    words = ["the", "cat", "sat", "on", "mat", "a", "dog", "ran", "to", "who", "hi", "yo", "bye", "user", "assistant"]
    marks = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    pieces = ["▁", *(f"▁{word}" for word in words), *words, *map(chr, range(33, 127)), "\n"]
    vocabulary = [*((mark, 0.0) for mark in marks), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    vocabulary += [(piece, -1.0 - 1.0 / len(piece)) for piece in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend_scheme)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": marks[3:]})
    return fast


def word_piece_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """BERT's uncased tokenizer on this vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def causal() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer()
    assert tokenizer.decode(tokenizer("the cat")["input_ids"]) == "the cat"
    return tokenizer


@pytest.fixture(scope="session")
def causal_with_bos() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(bos=True)


@pytest.fixture
def chat() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def metaspace() -> PreTrainedTokenizerFast:
    tokenizer = metaspace_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("the cat é")["input_ids"]) == ["▁the", "▁cat", "▁", "<0xC3>", "<0xA9>"]
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def templated() -> list[PreTrainedTokenizerFast]:
    """Tokenizers that write a space in different ways, with one template."""
    tokenizers = [byte_level_tokenizer(), metaspace_tokenizer(), metaspace_tokenizer("always")]
    for tokenizer in tokenizers:
        tokenizer.chat_template = CHATML
    return tokenizers


@pytest.fixture
def encoder_decoder() -> PreTrainedTokenizerFast:
    """As T5's: no beginning, an end token after every text."""
    tokenizer = metaspace_tokenizer()
    ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = ending
    assert tokenizer("the cat")["input_ids"][-1] == tokenizer.eos_token_id
    return tokenizer


@pytest.fixture(scope="session")
def encoder() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "cat", "dog", "sat", "ran", "on", "mat"]
    return word_piece_tokenizer({word: number for number, word in enumerate(words)})


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    if not SHARED_TOKENIZERS.is_dir():
        pytest.skip(f"no published vocabularies at {SHARED_TOKENIZERS}")
    vocabulary = json.loads((SHARED_TOKENIZERS / "gpt2" / "vocab.json").read_text(encoding="utf-8"))
    lines = (SHARED_TOKENIZERS / "gpt2" / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines[1:] if line]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    assert fast("Hello world")["input_ids"] == [15496, 995]
    return fast


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerFast:
    if not SHARED_TOKENIZERS.is_dir():
        pytest.skip(f"no published vocabularies at {SHARED_TOKENIZERS}")
    words = (SHARED_TOKENIZERS / "bert" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    fast = word_piece_tokenizer({word: number for number, word in enumerate(words)})
    assert fast("hello")["input_ids"] == [101, 7592, 102]
    return fast
