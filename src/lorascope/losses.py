"""From rows to losses: one forward pass over padded rows or over prefix trees, and the loss of every example in it.

Knows how a model is called, where its logits are needed, and whether its attention can follow a tree. Does not know
optimisers, steps or metrics. Floor: above ``lora``, ``data`` and ``base_model``, below ``train``, ``decode`` and ``evaluate``.

Legend: N slots, B rows (of all slots), E examples of a slot, T tokens, S decoder tokens, D hidden, K supervised positions, C
columns of rows, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorascope.base_model import BaseModel, last_hidden_states
from lorascope.data.packing import Batch, collate, concatenate
from lorascope.data.record import Example
from lorascope.data.tree import SHORTEST_SHARED, Forest, plant
from lorascope.errors import RunError
from lorascope.lora.attention import Block, TreeAttention, blocks_of, steered, why_unsteerable
from lorascope.lora.frozen import Product, product_of
from lorascope.lora.last_block import only_at, read_places
from lorascope.lora.layer import Places, StackedLinear

# Logits of so many positions exist at a time.
LOGIT_CHUNK = 512
# The last block is computed at single places where they are at most this part of a row: taking them out costs time too.
_FEW_PLACES = 0.5
# How torch's CPU allocator says that there is no memory left; on CUDA the error has a type of its own.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator")
# The self-check looks at so many examples of a batch, in so many tokens at most.
_CHECK_EXAMPLES = 4
_CHECK_TOKENS = 1024
# Largest relative difference of an example's loss, packed against alone, that rounding explains.
_CHECK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}


def padded_losses(base: BaseModel, batch: Batch) -> Tensor:
    """Summed cross-entropy of each row's supervised tokens (a decoder's targets), or of its label, ``[B]``."""
    if base.task_type == "SEQ_CLS":
        assert batch.labels_B is not None
        return F.cross_entropy(_at_least_fp32(class_logits(base, batch)), batch.labels_B.to(base.device), reduction="none")
    inputs = model_inputs(batch, base.device)
    if base.task_type == "SEQ_2_SEQ_LM":
        assert batch.target_ids_BS is not None, "an encoder-decoder learns target_ids"
        assert batch.target_mask_BS is not None
        target_ids_BS, predicts_BT = batch.target_ids_BS.to(base.device), batch.target_mask_BS.to(base.device)
        targets_K = target_ids_BS[predicts_BT]
        # Padding needs no mask: it comes last, and a decoder looks only back.
        inputs["decoder_input_ids"] = F.pad(target_ids_BS[:, :-1], (1, 0), value=base.start_id)
    else:
        assert batch.is_target_BT is not None
        predicts_BT = batch.is_target_BT[:, 1:].to(base.device)
        targets_K = inputs["input_ids"][:, 1:][predicts_BT]
    row_K, place_K = predicts_BT.nonzero().unbind(1)
    losses_K = _token_losses(base, inputs, row_K, place_K, targets_K)
    return torch.zeros(len(predicts_BT), dtype=losses_K.dtype, device=base.device).index_add(0, row_K, losses_K)


def tree_losses(base: BaseModel, forests: Sequence[Forest | None]) -> Tensor:
    """Summed cross-entropy of each example's supervised tokens, ``[N, E]``.

    Args:
        forests: one per slot, None where a slot has no example in this pass; slots of one seed share the very object.

    Returns:
        Losses in the order of each forest's ``rows``; a slot with fewer examples than others ends in zeros.
    """
    width = max(forest.num_tokens for forest in forests if forest is not None)
    most = max(len(forest.rows) for forest in forests if forest is not None)
    ids_NT = np.full((len(forests), width), base.pad_id)
    positions_NT = np.zeros((len(forests), width), dtype=np.int64)
    row_K, place_K, target_K, owner_K = [], [], [], []
    for slot, forest in enumerate(forests):
        if forest is None:
            continue
        ids_NT[slot, : forest.num_tokens] = forest.input_ids_T
        positions_NT[slot, : forest.num_tokens] = forest.position_T
        row_K.append(np.full(len(forest.predictor_K), slot))
        place_K.append(forest.predictor_K)
        target_K.append(forest.target_K)
        owner_K.append(forest.example_K + slot * most)
    row, place, target, owner = (_joined(parts, base.device) for parts in (row_K, place_K, target_K, owner_K))
    inputs = {
        "input_ids": torch.from_numpy(ids_NT).to(base.device),
        "position_ids": torch.from_numpy(positions_NT).to(base.device),
    }
    with steered(base.model):
        losses_K = _token_losses(base, {**inputs, "tree": tree_attention(base, forests, width)}, row, place, target)
    sums = torch.zeros(len(forests) * most, dtype=losses_K.dtype, device=base.device).index_add(0, owner, losses_K)
    return sums.reshape(len(forests), most)


def tree_attention(base: BaseModel, forests: Sequence[Forest | None], width: int) -> TreeAttention:
    """What the slots' rows look at; rows of one forest are looked at together."""
    groups: list[tuple[slice, list[Block]]] = []
    for slot, forest in enumerate(forests):
        if slot and forest is forests[slot - 1]:
            groups[-1] = (slice(groups[-1][0].start, slot + 1), groups[-1][1])
            continue
        trees, ends = ([], []) if forest is None else (forest.trees, forest.end_T)
        groups.append((slice(slot, slot + 1), blocks_of(trees, ends, width, base.model.dtype, base.device)))
    return TreeAttention(groups)


def follows_trees(base: BaseModel, examples: Sequence[Example], num_slots: int = 1) -> bool:
    """Whether this base may be trained on prefix trees; found once, on these examples, and remembered with the base.

    The losses of a few examples in one packed row are compared with those of padded rows. Where they differ, or the
    architecture cannot be steered, rows are padded from then on, and ``base.warnings`` says so.

    Args:
        num_slots: of the stack that is on the base; 1 where there is none.
    """
    if base.task_type != "CAUSAL_LM":
        return False
    if base.packs is None:
        reason = why_unsteerable(base.model) or _tried(base, examples, num_slots)
        base.packs = reason is None
        if reason is not None:
            base.warnings.append(f"prefixes are not shared: {reason}; every example is a padded row, which is slower")
    return base.packs


def _tried(base: BaseModel, examples: Sequence[Example], num_slots: int) -> str | None:
    """As ``_difference`` says; where memory does not allow a look at real examples, of made ones alone.

    Raises:
        RunError: there is no memory for those either.
    """
    made = _made_examples(examples[0])
    for tried in (_check_examples(examples) + made, made):
        try:
            return _difference(base, tried, num_slots)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(base.device)
        base.warnings.append("memory ran out while prefix trees were tried on real examples; short made ones were compared")
    raise RunError("memory ran out at the first pass", where="base.model", fix="free some, or choose a smaller base or dtype")


@torch.no_grad()
def _difference(base: BaseModel, examples: Sequence[Example], num_slots: int) -> str | None:
    """How packed rows go wrong on this model; None where they do not.

    What a token must not see may matter less to an untrained model than low precision does; so the packed losses must also be
    nearer to the padded ones than to those of a row in which every token sees all before it.
    """
    forest = plant(examples, range(len(examples)))
    blurred = replace(forest, end_T=np.full_like(forest.end_T, forest.num_tokens), trees=[(0, forest.num_tokens)])
    padded = padded_losses(base, concatenate([collate(examples, forest.rows, base.pad_id)] * num_slots)).reshape(num_slots, -1)
    try:
        packed, leaking = (tree_losses(base, [one] * num_slots) for one in (forest, blurred))
    except Exception as error:  # whatever a model's own code raises when it is called in an unusual way
        if is_out_of_memory(error):
            raise
        return " ".join(str(error).split())[:200] or type(error).__name__
    differences, from_leaking = ((packed - other) / padded.abs().clamp(min=1e-3) for other in (padded, leaking))
    worst = float(differences.abs().max())
    if worst <= _CHECK_TOLERANCE.get(base.model.dtype, 5e-2) and bool(differences.norm() <= from_leaking.norm()):
        return None
    return f"a packed row's loss differs from a padded row's by {worst:.1e} (relative)"


def _check_examples(examples: Sequence[Example]) -> list[Example]:
    """Neighbours in lexicographic order, which share most, and the example farthest from them."""
    order = sorted(range(min(len(examples), 512)), key=lambda index: examples[index].input_ids)
    chosen: list[int] = []
    total = 0
    for index in [*order[: _CHECK_EXAMPLES - 1], order[-1]]:
        total += len(examples[index].input_ids)
        if index not in chosen and (not chosen or total <= _CHECK_TOKENS):
            chosen.append(index)
    return [examples[index] for index in chosen]


def _made_examples(example: Example) -> list[Example]:
    """A trunk with two branches and a stranger to it, of one example's tokens: the check must be good for others too."""
    num_made = 2 * SHORTEST_SHARED
    ids = (example.input_ids * num_made)[:num_made]
    made = [ids, ids[:SHORTEST_SHARED] + ids[: SHORTEST_SHARED - 1 : -1], ids[::-1]]
    return [Example("check", one, [True] * num_made, None, 1) for one in made]


def class_logits(base: BaseModel, batch: Batch) -> Tensor:
    """A classifier's logits, ``[B, classes]``."""
    inputs = model_inputs(batch, base.device)
    with _reading(base, partial(read_places, base.model, inputs["input_ids"])):
        logits: Tensor = base.model(**inputs).logits
    return logits


def column_logits(base: BaseModel, inputs: Mapping[str, Any], columns_C: Tensor | None) -> Tensor:
    """Next-token logits ``[B, C, V]`` of the tokens at ``columns_C`` of every row, as the model scales and caps them.

    Args:
        inputs: what the model's ``forward`` is given.
        columns_C: distinct columns; None for all.
    """
    if columns_C is None:
        logits: Tensor = base.model(**inputs, use_cache=False).logits
        return logits
    with _reading(base, partial(Places.columns, columns_C, *inputs["input_ids"].shape)):
        if base.plain_head:
            hidden_BTD = last_hidden_states(base.model, inputs)
            logits = base.model.get_output_embeddings()(_scaled(base, hidden_BTD[:, columns_C]))
        elif "logits_to_keep" in inspect.signature(base.model.forward).parameters:
            logits = base.model(**inputs, use_cache=False, logits_to_keep=columns_C).logits
        else:
            logits = base.model(**inputs, use_cache=False).logits[:, columns_C]
    return logits


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """What the model's ``forward`` is given for padded rows."""
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    if batch.token_type_ids_BT is not None:
        inputs["token_type_ids"] = batch.token_type_ids_BT
    return {name: value.to(device) for name, value in inputs.items()}


def _token_losses(base: BaseModel, inputs: Mapping[str, Any], row_K: Tensor, place_K: Tensor, targets_K: Tensor) -> Tensor:
    """Cross-entropy of target tokens ``[K]``; logits exist for the positions that predict one, and nowhere else."""
    output = base.model.get_output_embeddings()
    # A trained output head sees whole rows: it tells slots apart by their place in the batch.
    if base.plain_head and not isinstance(output, StackedLinear):
        with _reading(base, partial(Places, row_K, place_K, *inputs["input_ids"].shape)):
            hidden_BTD = last_hidden_states(base.model, inputs)
        hidden_KD = _scaled(base, hidden_BTD[row_K, place_K])
        if output.weight.requires_grad:
            return _trained_losses(output, hidden_KD, targets_K)
        return _frozen_losses(output, hidden_KD, targets_K, base.scratch)
    columns_C, column_K = place_K.unique(return_inverse=True)
    logits_KV = column_logits(base, inputs, columns_C)[row_K, column_K]
    return F.cross_entropy(_at_least_fp32(logits_KV), targets_K, reduction="none")


def _scaled(base: BaseModel, hidden: Tensor) -> Tensor:
    """As the output embeddings take it."""
    return hidden if base.head_scale == 1.0 else hidden * base.head_scale


def _reading(base: BaseModel, places: Callable[[], Places]) -> AbstractContextManager[None]:
    """Nothing but ``places`` is read of the last hidden states; where those are few, the last block computes no others."""
    if base.last_block is None:
        return nullcontext()
    read = places()
    few = read.num_places <= _FEW_PLACES * read.width
    return only_at(base.model, base.last_block, read) if few else nullcontext()


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a frozen output layer's logits, a chunk at a time, in memory that every chunk uses again.

    The layer takes no gradient, so the gradient of the hidden states is known as soon as the logits are: softmax less the
    target, times the weight. It is computed on the spot, and backward only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, targets_K: Tensor, bias: Tensor | None, product: Product, scratch: dict[str, Tensor]
    ) -> Tensor:
        losses, gradients = [], []
        num_logits = product.weight_OD.shape[0]
        wide = torch.promote_types(hidden_KD.dtype, torch.float32)
        for hidden, targets in zip(hidden_KD.split(LOGIT_CHUNK), targets_K.split(LOGIT_CHUNK), strict=True):
            shape = (len(hidden), num_logits)
            logits = product.forward(hidden, bias, _reused(scratch, "logits", shape, hidden.dtype, hidden.device))
            scores = _reused(scratch, "scores", shape, wide, hidden.device)
            torch.log_softmax(logits.to(wide), dim=-1, out=scores)
            losses.append(-scores.gather(1, targets[:, None])[:, 0])
            if ctx.needs_input_grad[0]:
                scores.exp_()
                scores[torch.arange(len(targets)), targets] -= 1.0
                gradients.append(product.backward(scores.to(logits.dtype)))
        ctx.save_for_backward(*gradients)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KD = torch.cat(ctx.saved_tensors)
        return (hidden_KD * gradients[0][:, None]).to(hidden_KD.dtype), None, None, None, None


def _frozen_losses(output: nn.Module, hidden_KD: Tensor, targets_K: Tensor, scratch: dict[str, Tensor]) -> Tensor:
    bias: Any = output.bias
    product = product_of(output)
    assert isinstance(product, Product), "output embeddings are never packed into 4 bits"
    result: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_KD, targets_K, bias, product, scratch
    )
    return result


def _trained_losses(output: nn.Module, hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
    """With an output layer that is trained with the whole model; backward computes each chunk's logits again."""

    def of_chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_at_least_fp32(output(hidden)), targets, reduction="none")

    chunks = zip(hidden_KD.split(LOGIT_CHUNK), targets_K.split(LOGIT_CHUNK), strict=True)
    return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


def _reused(scratch: dict[str, Tensor], name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that is kept from one pass to the next: new pages, cleared by the system, cost a quarter of the head's time."""
    kept = scratch.get(name)
    if kept is None or len(kept) < shape[0] or kept.dtype != dtype or kept.device != device:
        scratch.pop(name, None)
        del kept  # or it would lie beside the new one
        kept = scratch[name] = torch.empty(shape, dtype=dtype, device=device)
    return kept[: shape[0]]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give back what the device's allocator keeps of a pass that failed."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _joined(parts: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
