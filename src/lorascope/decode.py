"""Answers from every slot of a stack at once: what a context shares is read once, and finished questions leave the batch.

Knows prompts, how the next token is chosen and where an answer ends. Does not know gold answers or scores. A model whose
attention cannot follow a prefix tree is decoded by transformers' ``generate``, padded; the choice of tokens is the same.
``generate`` gives whole answers, ``stream`` the same ones piece by piece. Floor: beside ``train``.

Legend: N slots, B rows, E open questions, T tokens, V vocabulary.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from lorascope.base_model import BaseModel
from lorascope.config import DecodingConfig
from lorascope.data.packing import collate, evaluation_batches
from lorascope.data.task import Example
from lorascope.data.tokens import special_ids
from lorascope.data.tree import Forest, cut, plant
from lorascope.errors import AdapterError
from lorascope.lora import streams
from lorascope.lora.attention import PrefixCache, blocks_of, steered
from lorascope.lora.frozen import slow_bfloat16
from lorascope.lora.stack import Stack
from lorascope.losses import column_logits, follows_trees


@dataclass(frozen=True)
class Answer:
    """The text before the end token; ``finished`` is False where ``max_new_tokens`` came first. ``tokens`` are its ids."""

    text: str
    finished: bool
    tokens: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Piece:
    """What an answer has grown by; an answer's pieces make up its text. ``answer`` is set on the last, which may be empty."""

    slot: int
    question: int
    text: str
    answer: Answer | None = None


# How SentencePiece writes a token that is one byte.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Per slot, the new token of each question of a batch that some slot still answers.
Step = tuple[Sequence[int], list[list[int]]]


@torch.no_grad()
def generate(
    stack: Stack, base: BaseModel, examples: Sequence[Example], decoding: DecodingConfig, batch_tokens: int
) -> Iterator[tuple[list[int], list[list[Answer]]]]:
    """Answer each example's prompt with every slot.

    Greedy decoding takes the likeliest token. The others draw with a stream of the slot's seed, the example's id and the
    number of the sample, so that neither neighbours nor batches change an answer.

    Args:
        batch_tokens: most tokens in one batch, of prompts and answers, all slots together. A single example may need more.

    Yields:
        The questions of a batch, and for each slot their answers. Question ``samples · e + s`` is sample s of example e; its
        prompt is read once for all samples of a batch where prefixes are shared.
    """
    answer = _with_trees if follows_trees(base, examples, stack.num_slots) else _with_padding
    ends = end_tokens(base, examples)
    questions = [_question(example, sample) for example in examples for sample in range(decoding.samples)]
    for rows, tokens in answer(stack, base, questions, decoding, max(1, batch_tokens // stack.num_slots), ends):
        yield rows, [[_answer(base, ids, ends) for ids in of_slot] for of_slot in tokens]


@torch.no_grad()
def stream(
    stack: Stack,
    base: BaseModel,
    examples: Sequence[Example],
    decoding: DecodingConfig,
    more_ends: Sequence[int] = (),
    *,
    continues: bool = False,
) -> Iterator[Piece]:
    """The answers of ``generate``, as they come: all slots and all prompts in one batch, a token of each at a time.

    A cache holds what was read, so that a token costs one pass over one token. Left early, nothing goes on behind.

    Args:
        more_ends: ids that end an answer too.
        continues: the text goes on with the prompt's, so that space at its ends is a part of it.

    Yields:
        For every token, slot by slot, what the text has grown by; questions are numbered as ``generate`` does.

    Raises:
        AdapterError: a slot's logits are not finite.
    """
    ends = sorted({*end_tokens(base, examples), *more_ends})
    questions = [_question(example, sample) for example in examples for sample in range(decoding.samples)]
    if follows_trees(base, examples, stack.num_slots):
        forest = plant(questions, range(len(questions)))
        rows: Sequence[int] = forest.rows
        choice = _NumbersOnly(stack, decoding, [questions[row].id for row in rows])
        steps = _forest_steps(stack, base, forest, choice, decoding.max_new_tokens, ends)
    else:
        rows = range(len(questions))
        choice = _NumbersOnly(stack, decoding, [question.id for question in questions])
        steps = _padded_steps(stack, base, questions, choice, _settings(base, decoding, ends))
    growing = [
        [
            _Growing(base, slot, row, ends, decoding.max_new_tokens, questions[row].input_ids if continues else ())
            for row in rows
        ]
        for slot in range(stack.num_slots)
    ]
    try:
        for still_open, tokens in steps:
            for of_slot, of_slots_answers in zip(tokens, growing, strict=True):
                for index, token in zip(still_open, of_slot, strict=True):
                    if not of_slots_answers[index].is_over:
                        yield of_slots_answers[index].add(token)
    finally:
        steps.close()


def end_tokens(base: BaseModel, examples: Sequence[Example] = ()) -> list[int]:
    """Ids that end an answer: the tokenizer's, those of the model's own generation config, and what targets end with.

    A chat template may close a turn with another special token than the tokenizer's end token; that is then what is learned.
    """
    declared = getattr(base.model.generation_config, "eos_token_id", None)
    ends = {base.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
    closing = {example.target_ids[-1] if example.target_ids else example.input_ids[-1] for example in examples}
    taught = closing & special_ids(base.tokenizer) if any(example.num_targets for example in examples) else set()
    return sorted(int(end) for end in {*ends, *taught} if end is not None)


class TokenChoice:
    """The next token of every question, for all slots.

    Args:
        seeds: one per slot.
        ids: of the questions.
    """

    def __init__(self, decoding: DecodingConfig, seeds: Sequence[int], ids: Sequence[str]) -> None:
        self._decoding = decoding
        self._draws_NET: Tensor | None = None
        if decoding.strategy != "greedy":
            draws = [
                [streams.generator(seed, "decode", question).random(decoding.max_new_tokens) for question in ids]
                for seed in seeds
            ]
            self._draws_NET = torch.from_numpy(np.array(draws))

    def choose(self, logits_NEV: Tensor, questions: Sequence[int], step: int) -> Tensor:
        """``[N, E]`` token ids.

        Args:
            questions: which of the ids the logits belong to.
            step: how many tokens each has already got.
        """
        if self._draws_NET is None:
            return logits_NEV.argmax(dim=-1)
        # In the vocabulary's order: in that of the probabilities, rounding would swap tokens that are almost equally likely.
        probabilities_NEV = self._kept(logits_NEV)
        cumulative_NEV = probabilities_NEV.cumsum(dim=-1)
        draws_NE = self._draws_NET[:, list(questions), step].to(logits_NEV.device)
        # The last token that has any probability ends the line: rounding must not carry a draw beyond it.
        possible = logits_NEV.shape[-1] - 1 - (probabilities_NEV > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
        reached = (draws_NE[..., None] * cumulative_NEV[..., -1:]).contiguous()
        return torch.searchsorted(cumulative_NEV, reached, right=True)[..., 0].minimum(possible)

    def _kept(self, logits_NEV: Tensor) -> Tensor:
        """Probabilities after temperature and cutting off, in that order, as transformers' warpers have it."""
        logits_NEV = logits_NEV.double()
        scaled = (logits_NEV - logits_NEV.amax(dim=-1, keepdim=True)) / self._decoding.temperature
        if self._decoding.strategy == "top_k":
            least = scaled.topk(min(self._decoding.top_k, scaled.shape[-1]), dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, float("-inf"))
        if self._decoding.strategy == "nucleus":
            ascending, order = scaled.sort(dim=-1)
            # The likeliest token stays even where its probability alone exceeds top_p.
            beyond = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - self._decoding.top_p
            beyond[..., -1] = False
            scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
        return scaled.softmax(dim=-1)


class _NumbersOnly(TokenChoice):
    """Chooses as ``TokenChoice`` does, unless a slot has nothing to choose from."""

    def __init__(self, stack: Stack, decoding: DecodingConfig, ids: Sequence[str]) -> None:
        super().__init__(decoding, stack.context.seeds, ids)
        self._names = [slot.name for slot in stack.slots]

    def choose(self, logits_NEV: Tensor, questions: Sequence[int], step: int) -> Tensor:
        # NaN and +inf are the greatest of their row; -inf is only where there is nothing else.
        broken_N = (~logits_NEV.amax(dim=-1).isfinite()).any(dim=1).tolist()
        if any(broken_N):
            name = self._names[broken_N.index(True)]
            raise AdapterError("the outputs are not finite", where=name, fix="train it again, or use another dtype")
        return super().choose(logits_NEV, questions, step)


def _with_trees(
    stack: Stack,
    base: BaseModel,
    questions: Sequence[Example],
    decoding: DecodingConfig,
    most_tokens: int,
    ends: Sequence[int],
) -> Iterator[tuple[list[int], list[list[list[int]]]]]:
    for forest in cut(questions, range(len(questions)), None, most_tokens, tokens_to_come=decoding.max_new_tokens):
        choice = TokenChoice(decoding, stack.context.seeds, [questions[row].id for row in forest.rows])
        yield forest.rows, _decode_forest(stack, base, forest, choice, decoding.max_new_tokens, ends)


def _decode_forest(
    stack: Stack, base: BaseModel, forest: Forest, choice: TokenChoice, most_new: int, end_ids: Sequence[int]
) -> list[list[list[int]]]:
    """The new tokens of every slot's questions; what comes after a slot's own end token is another slot's waiting time."""
    new: list[list[list[int]]] = [[[] for _ in forest.rows] for _ in range(stack.num_slots)]
    for questions, tokens in _forest_steps(stack, base, forest, choice, most_new, end_ids):
        for slot, of_slot in enumerate(tokens):
            for question, token in zip(questions, of_slot, strict=True):
                new[slot][question].append(token)
    return new


def _forest_steps(
    stack: Stack, base: BaseModel, forest: Forest, choice: TokenChoice, most_new: int, end_ids: Sequence[int]
) -> Generator[Step, None, None]:
    num_slots, num_questions = stack.num_slots, len(forest.rows)
    blocks = blocks_of(forest.trees, forest.end_T, forest.num_tokens, base.model.dtype, base.device)
    dtype = torch.float32 if slow_bfloat16(next(base.model.parameters())) else base.model.dtype
    cache = PrefixCache(blocks, forest.end_T, forest.last_E, most_new, dtype)
    ends = torch.tensor(end_ids, device=base.device)
    ids_NT = torch.from_numpy(forest.input_ids_T).to(base.device).expand(num_slots, -1)
    position_T = torch.from_numpy(forest.position_T).to(base.device)
    last_E = torch.from_numpy(forest.last_E).to(base.device)
    logits_NEV = _logits(base, cache, ids_NT, position_T.expand(num_slots, -1), last_E)
    next_position_E = position_T[last_E] + 1
    open_questions = list(range(num_questions))
    ended_NE = torch.zeros(num_slots, num_questions, dtype=torch.bool, device=base.device)
    for step in range(most_new):
        tokens_NE = choice.choose(logits_NEV, open_questions, step)
        yield open_questions, tokens_NE.tolist()
        ended_NE |= torch.isin(tokens_NE, ends)
        going_on = (~ended_NE.all(dim=0)).tolist()
        if step + 1 == most_new or not any(going_on):
            break
        cache.advance(going_on)
        kept = torch.tensor(going_on, device=base.device).nonzero()[:, 0]
        open_questions = [question for question, goes_on in zip(open_questions, going_on, strict=True) if goes_on]
        ended_NE, tokens_NE = ended_NE[:, kept], tokens_NE[:, kept]
        next_position_E = next_position_E[kept]
        logits_NEV = _logits(base, cache, tokens_NE, next_position_E.expand(num_slots, -1))
        next_position_E = next_position_E + 1


def _logits(
    base: BaseModel, cache: PrefixCache, ids_NT: Tensor, position_NT: Tensor, columns_C: Tensor | None = None
) -> Tensor:
    with steered(base.model):
        return column_logits(base, {"input_ids": ids_NT, "position_ids": position_NT, "tree": cache}, columns_C)


def _with_padding(
    stack: Stack,
    base: BaseModel,
    questions: Sequence[Example],
    decoding: DecodingConfig,
    most_tokens: int,
    ends: Sequence[int],
) -> Iterator[tuple[list[int], list[list[list[int]]]]]:
    """Transformers' ``generate`` on left-padded prompts, or on an encoder's right-padded inputs, where positions may count."""
    settings = _settings(base, decoding, ends)
    lengths = [question.prompt_length + decoding.max_new_tokens for question in questions]
    for rows in evaluation_batches(lengths, most_tokens):
        choice = TokenChoice(decoding, stack.context.seeds, [questions[row].id for row in rows])
        tokens_BT = _decode_padded(stack, base, [questions[row] for row in rows], choice, settings)
        yield rows, tokens_BT.reshape(stack.num_slots, len(rows), -1).tolist()


def _decode_padded(
    stack: Stack,
    base: BaseModel,
    questions: Sequence[Example],
    choice: TokenChoice,
    settings: GenerationConfig,
    report: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The new tokens of all questions for all slots, ``[N·E, T]``, padded behind their end.

    Args:
        report: told of each step's tokens ``[N, E]`` before the next is computed.
    """
    decodes = base.task_type == "SEQ_2_SEQ_LM"
    batch = collate(questions, range(len(questions)), base.pad_id, side="right" if decodes else "left")
    # A decoder's tokens follow its start token, others their prompt.
    width = 1 if decodes else batch.input_ids_BT.shape[1]
    # Left to itself, transformers makes room for as many decoder layers as a T5's encoder has.
    cache = {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())} if decodes else {}
    with _only(settings, base.model):
        output_BT: Tensor = cast(Any, base.model).generate(
            input_ids=batch.input_ids_BT.repeat(stack.num_slots, 1).to(base.device),
            attention_mask=batch.attention_mask_BT.repeat(stack.num_slots, 1).to(base.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_OnlyChosen(choice, stack.num_slots, width, report)]),
            **cache,
        )
    return output_BT[:, width:]


class _Abandoned(Exception):
    """Nobody wants further tokens."""


def _padded_steps(
    stack: Stack, base: BaseModel, questions: Sequence[Example], choice: TokenChoice, settings: GenerationConfig
) -> Generator[Step, None, None]:
    """``generate`` in a thread of its own: it does not return between two tokens."""
    steps: SimpleQueue[list[list[int]] | BaseException | None] = SimpleQueue()
    abandoned = threading.Event()

    def report(tokens_NE: Tensor) -> None:
        if abandoned.is_set():
            raise _Abandoned
        steps.put(tokens_NE.tolist())

    def work() -> None:
        try:
            _decode_padded(stack, base, questions, choice, settings, report)
            steps.put(None)
        except BaseException as error:  # whatever it is, it is the reader's
            steps.put(error)

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield range(len(questions)), step
    finally:
        abandoned.set()
        thread.join()


def _question(example: Example, sample: int) -> Example:
    """The example's prompt, with a name of its own for every sample."""
    name = f"{example.id}#{sample}" if sample else example.id
    return Example(name, example.input_ids[: example.prompt_length], None, None, example.prompt_length)


class _OnlyChosen(LogitsProcessor):
    """Leaves ``generate`` nothing but the token that ``choice`` takes, so that its greedy search follows."""

    def __init__(
        self, choice: TokenChoice, num_slots: int, width: int, report: Callable[[Tensor], None] | None = None
    ) -> None:
        self._choice = choice
        self._num_slots = num_slots
        self._width = width
        self._report = report

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_NEV = scores.reshape(self._num_slots, -1, scores.shape[-1])
        chosen = self._choice.choose(scores_NEV, range(scores_NEV.shape[1]), input_ids.shape[1] - self._width)
        if self._report is not None:
            self._report(chosen)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen.reshape(-1, 1), 0.0)


def _settings(base: BaseModel, decoding: DecodingConfig, ends: Sequence[int]) -> GenerationConfig:
    """Nothing is taken from the model's generation config but its end tokens: its sampling defaults are not asked for."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=base.pad_id,
        eos_token_id=list(ends) or None,
        decoder_start_token_id=base.start_id if base.task_type == "SEQ_2_SEQ_LM" else None,
    )


@contextmanager
def _only(settings: GenerationConfig, model: Any) -> Iterator[None]:
    """What ``settings`` leave open, transformers fills in from the model's own (a repetition penalty, say): put it aside."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _answer(base: BaseModel, tokens: list[int], ends: Sequence[int], before: Sequence[int] = ()) -> Answer:
    """Tokens as an answer; behind others, the text that they add to those, spaces included."""
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    text, head = _decoded(base, tokens[:stop]), _decoded(base, before)
    whole = _decoded(base, [*before, *tokens[:stop]])
    if not before:
        text = text.strip()
    elif whole.startswith(head):  # SentencePiece's first word has lost its space where it stands alone
        text = whole[len(head) :]
    return Answer(text, finished=stop < len(tokens), tokens=tuple(tokens[:stop]))


def _decoded(base: BaseModel, tokens: Sequence[int]) -> str:
    return str(base.tokenizer.decode(list(tokens), skip_special_tokens=True))


class _Growing:
    """An answer while it grows: tokens in, text out that will not be taken back.

    A token may be a part of a character, or of no character, or a word whose form depends on the one before it. So text is
    what a window of tokens decodes to beyond what its beginning did, once it ends with a whole character. SentencePiece's
    bytes wait for the end of their run, which no special token ends: one byte too many, and it decodes to nothing but
    replacement characters. Space at either end waits for what follows, for an answer's text has none there, unless it goes on
    with the text of other tokens.

    Args:
        before: those tokens; none where the answer stands for itself.

    Source: the window is that of Hugging Face's text-generation-inference (``decode_token``).
    """

    def __init__(
        self, base: BaseModel, slot: int, question: int, ends: Sequence[int], most_new: int, before: Sequence[int] = ()
    ) -> None:
        self._base = base
        self._slot, self._question = slot, question
        self._ends = ends
        self._most_new = most_new
        self._silent = special_ids(base.tokenizer)
        self._before = before
        self._tokens = list(before)
        self._window, self._read = 0, len(before)
        self._said = self._waiting = ""
        self.is_over = False

    def add(self, token: int) -> Piece:
        """The piece that one more token makes."""
        self._tokens.append(token)
        new = self._tokens[len(self._before) :]
        if token not in self._ends and len(new) < self._most_new:
            text = self._settled()
            self._said += text
            return Piece(self._slot, self._question, text)
        self.is_over = True
        answer = _answer(self._base, new, self._ends, self._before)
        return Piece(self._slot, self._question, answer.text[len(self._said) :], answer)

    def _settled(self) -> str:
        last = self._tokens[-1]
        name = None if last in self._silent else self._base.tokenizer.convert_ids_to_tokens(last)
        if name is None or _BYTE.fullmatch(str(name)):
            return ""
        before = _decoded(self._base, self._tokens[self._window : self._read])
        now = _decoded(self._base, self._tokens[self._window :])
        if now.endswith("\N{REPLACEMENT CHARACTER}") or len(now) <= len(before):
            return ""
        self._window, self._read = self._read, len(self._tokens)
        text = self._waiting + now[len(before) :]
        if self._before:
            return text
        text = text if self._said else text.lstrip()
        self._waiting = text[len(text.rstrip()) :]
        return text.rstrip()
