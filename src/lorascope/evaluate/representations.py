"""How far adapters move the hidden states of each layer on real inputs, by linear CKA and by relative distance.

All slots see the same rows in one pass; the last slot is the base, which the others are compared with. Only products of
features are kept, ``[D, D]`` in float64, never the states of a whole split: layers for which those do not fit into half of
the free memory together are read in several passes. Padding counts nowhere.

Knows how hidden states are read off a model. Does not know adapters' files. Floor: ``evaluate``.

Legend: N slots, B rows, T tokens, M tokens that are no padding, D hidden.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lorascope.base_model import BaseModel
from lorascope.config import EvaluateConfig
from lorascope.data.packing import Batch, collate, concatenate, evaluation_batches
from lorascope.data.task import Example, Task
from lorascope.errors import AdapterError
from lorascope.evaluate.result import EvaluationStep
from lorascope.lora.stack import Stack
from lorascope.losses import model_inputs
from lorascope.memory import free_bytes

# Of free memory, the products of all layers that are read in one pass; and of the hidden states of one batch.
_PRODUCT_SHARE = 0.5
_MOST_STATE_BYTES = 2**29
# An unbiased estimate divides by one less than three tokens.
_FEWEST_TOKENS = 4


@dataclass(frozen=True)
class LayerDrift:
    """How far one adapter moves the hidden states of one layer.

    Attributes:
        layer: ``embeddings``, ``layer 0`` and so on, of an encoder–decoder after ``encoder`` or ``decoder``. The last layer of
            most families is read behind the model's final norm.
        cka: linear centred kernel alignment of adapter and base over tokens, 1 where one is a rotation and scaling of the
            other; None where the states do not vary (Kornblith et al. 2019). Far too high with fewer tokens than ten times
            the width.
        cka_debiased: the same of estimates that are right on average with any number of tokens, and so may be a little below
            0 or above 1; None where it cannot be told, with fewer than four tokens too (Song et al. 2012).
        relative_norm: ``‖h_a − h_b‖ / ‖h_b‖``, mean over tokens.
        relative_norm_overall: the same of all tokens' states as one matrix, which the longest states rule.
        num_tokens: that were compared.
        width: of a hidden state.
    """

    layer: str
    cka: float | None
    cka_debiased: float | None
    relative_norm: float
    relative_norm_overall: float
    num_tokens: int
    width: int


DriftRun = Generator[EvaluationStep, None, list[list[LayerDrift]]]


class _Products:
    """Sums over tokens for one layer: all that the figures of every slot need.

    States are taken from a shift near the base's mean, so that the centring at the end cancels little. ``squares`` are the
    states' squared norms, each token's own part of a product, which debiased figures leave out.
    """

    def __init__(self, first_NMD: Tensor) -> None:
        num_slots, _, width = first_NMD.shape
        self.shift_D = first_NMD[-1].double().mean(dim=0)
        self.num_tokens = 0
        self.sums_ND = self.shift_D.new_zeros(num_slots, width)
        self.own_NDD = self.shift_D.new_zeros(num_slots, width, width)
        self.cross_NDD = self.shift_D.new_zeros(num_slots - 1, width, width)
        # Σ x·‖x‖² of a slot with itself, and of each slot's x with the base's norms and the other way round; Σ ‖x‖²‖y‖².
        self.own_thirds_ND = self.shift_D.new_zeros(num_slots, width)
        self.cross_thirds_ND = self.shift_D.new_zeros(num_slots - 1, 2, width)
        self.own_fourths_N = self.shift_D.new_zeros(num_slots)
        self.cross_fourths_N = self.shift_D.new_zeros(num_slots - 1)
        self.own_squares_N = self.shift_D.new_zeros(num_slots)
        self.ratios_N = self.shift_D.new_zeros(num_slots - 1)
        self.squares_N = self.shift_D.new_zeros(num_slots - 1)
        self.base_square = self.shift_D.new_zeros(())

    def add(self, states_NMD: Tensor) -> None:
        """Count a batch's tokens in; the last slot is the base."""
        base_MD = states_NMD[-1].double()
        base_norm_M = torch.linalg.vector_norm(base_MD, dim=1)
        shifted_base_MD = base_MD - self.shift_D
        self.num_tokens += len(base_MD)
        self.base_square += base_norm_M.square().sum()
        base_squares_M = self._add_own(-1, shifted_base_MD)
        for slot in range(len(states_NMD) - 1):
            adapted_MD = states_NMD[slot].double()
            distance_M = torch.linalg.vector_norm(adapted_MD - base_MD, dim=1)
            self.squares_N[slot] += distance_M.square().sum()
            # A state of zero that stays zero has not moved.
            self.ratios_N[slot] += torch.where(distance_M == 0.0, 0.0, distance_M / base_norm_M).sum()
            shifted_MD = adapted_MD - self.shift_D
            squares_M = self._add_own(slot, shifted_MD)
            self.cross_NDD[slot].addmm_(shifted_MD.T, shifted_base_MD)
            self.cross_thirds_ND[slot, 0] += base_squares_M @ shifted_MD
            self.cross_thirds_ND[slot, 1] += squares_M @ shifted_base_MD
            self.cross_fourths_N[slot] += squares_M @ base_squares_M

    def _add_own(self, slot: int, shifted_MD: Tensor) -> Tensor:
        squares_M = shifted_MD.square().sum(dim=1)
        self.sums_ND[slot] += shifted_MD.sum(dim=0)
        self.own_NDD[slot].addmm_(shifted_MD.T, shifted_MD)
        self.own_thirds_ND[slot] += squares_M @ shifted_MD
        self.own_fourths_N[slot] += squares_M @ squares_M
        self.own_squares_N[slot] += squares_M.sum()
        return squares_M

    def drift(self, slot: int, layer: str) -> LayerDrift:
        """The figures of one slot."""
        cross = self._centred(self.cross_NDD[slot], slot, -1)
        spread = float(self._centred(self.own_NDD[slot], slot, slot) * self._centred(self.own_NDD[-1], -1, -1))
        return LayerDrift(
            layer,
            min(1.0, float(cross.square()) / spread) if spread > 0.0 else None,
            self._debiased(slot),
            float(self.ratios_N[slot]) / self.num_tokens,
            float((self.squares_N[slot] / self.base_square).sqrt()),
            self.num_tokens,
            len(self.shift_D),
        )

    def _debiased(self, slot: int) -> float | None:
        """CKA of unbiased estimates; None where one of a slot with itself is not above zero."""
        if self.num_tokens < _FEWEST_TOKENS:
            return None
        own = self._unbiased(self.own_NDD[slot], (slot, slot), (self.own_thirds_ND[slot],) * 2, self.own_fourths_N[slot])
        base = self._unbiased(self.own_NDD[-1], (-1, -1), (self.own_thirds_ND[-1],) * 2, self.own_fourths_N[-1])
        thirds = self.cross_thirds_ND[slot, 0], self.cross_thirds_ND[slot, 1]
        cross = self._unbiased(self.cross_NDD[slot], (slot, -1), thirds, self.cross_fourths_N[slot])
        # Of states that do not vary rounding alone is left.
        least = 1e-12 * float(self.own_fourths_N[slot] * self.own_fourths_N[-1]) ** 0.5
        return cross / (own * base) ** 0.5 if min(own, base) > least else None

    def _unbiased(self, product_DD: Tensor, slots: tuple[int, int], thirds: tuple[Tensor, Tensor], fourths: Tensor) -> float:
        """``(n − 3) n`` times the unbiased estimate of HSIC of two slots, from sums over tokens.

        With K and L the Gram matrices of both without their diagonals it is ``tr(KL) + 1ᵀK1·1ᵀL1 / ((n − 1)(n − 2)) −
        2·1ᵀKL1 / (n − 2)`` (Song et al. 2012, equation 5). A product of features gives each of the three terms with the
        diagonals, and the third and fourth powers take these out. A shift of all states does not change it.
        """
        n = self.num_tokens
        sums = [self.sums_ND[slot] for slot in slots]
        squares = [self.own_squares_N[slot] for slot in slots]
        traces = product_DD.square().sum() - fourths
        wholes = (sums[0].square().sum() - squares[0]) * (sums[1].square().sum() - squares[1])
        rows = sums[0] @ product_DD @ sums[1] - sums[0] @ thirds[0] - sums[1] @ thirds[1] + fourths
        return float(traces + wholes / ((n - 1) * (n - 2)) - 2.0 * rows / (n - 2))

    def _centred(self, product_DD: Tensor, slot: int, other: int) -> Tensor:
        """Frobenius norm of a product of two slots' states, had their means been taken off."""
        means = torch.outer(self.sums_ND[slot], self.sums_ND[other]) / self.num_tokens
        norm: Tensor = torch.linalg.matrix_norm(product_DD - means)
        return norm


def representation_drift(stack: Stack, base: BaseModel, task: Task, settings: EvaluateConfig) -> DriftRun:
    """Compare every slot's hidden states with those of the last slot, which must be the base alone.

    Yields:
        Progress; where not all layers fit into memory, in several passes.

    Returns:
        For each slot but the last one drift per layer, the embeddings first.

    Raises:
        AdapterError: hidden states are not finite.

    Sources: Kornblith et al. 2019, section 3 (linear CKA as ``‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F)``); Song et al. 2012, "Feature
    selection via dependence maximization", equation 5 (the unbiased estimate).
    """
    stack.context.dropout = None
    lengths = [example.num_tokens for example in task.eval]
    shortest = [min(range(len(lengths)), key=lengths.__getitem__)]
    seen = _states(stack, base, task.eval, shortest)
    width = max(states.shape[-1] for states in seen.values())
    groups = _groups(list(seen), stack.num_slots, width, _PRODUCT_SHARE * free_bytes(str(base.device)))
    token_bytes = sum(states.shape[-1] * states.element_size() for states in seen.values())
    most_tokens = min(settings.batch_tokens, _MOST_STATE_BYTES // token_bytes) // stack.num_slots
    batches = evaluation_batches(lengths, max(1, most_tokens))
    found: list[list[LayerDrift]] = [[] for _ in range(stack.num_slots - 1)]
    for number, layers in enumerate(groups):
        products: dict[str, _Products] = {}
        done = number * len(lengths)
        for rows in batches:
            states = _states(stack, base, task.eval, rows)
            for layer in layers:
                _check_finite(stack, states[layer], layer)
                products.setdefault(layer, _Products(states[layer])).add(states[layer])
            done += len(rows)
            yield EvaluationStep("comparing hidden states", done, len(groups) * len(lengths))
        for slot, drifts in enumerate(found):
            drifts += [products[layer].drift(slot, layer) for layer in layers]
    return found


def _groups(layers: Sequence[str], num_slots: int, width: int, most_bytes: float) -> list[list[str]]:
    """Layers that are read in one pass."""
    layer_bytes = (2 * num_slots - 1) * width * width * 8
    size = max(1, int(most_bytes / layer_bytes))
    return [list(layers[start : start + size]) for start in range(0, len(layers), size)]


@torch.no_grad()
def _states(stack: Stack, base: BaseModel, examples: Sequence[Example], rows: Sequence[int]) -> dict[str, Tensor]:
    """Hidden states ``[N, M, D]`` of every layer by its name; padding is left out."""
    batch = concatenate([collate(examples, rows, base.pad_id)] * stack.num_slots)
    is_token_BT = batch.attention_mask_BT[: len(rows)].bool().to(base.device)
    inputs = {**model_inputs(batch, base.device), "output_hidden_states": True}
    if base.task_type == "SEQ_2_SEQ_LM":
        return _of_both_sides(base, batch, inputs, stack.num_slots, is_token_BT)
    output = base.model.base_model(**inputs, **({"use_cache": False} if base.task_type == "CAUSAL_LM" else {}))
    if getattr(output, "decoder_hidden_states", None) is not None:  # a classifier gives its decoder the same tokens
        sides = {"encoder ": output.encoder_hidden_states, "decoder ": output.decoder_hidden_states}
        return {
            prefix + name: states
            for prefix, hidden in sides.items()
            for name, states in _named(hidden, stack.num_slots, is_token_BT).items()
        }
    return _named(output.hidden_states, stack.num_slots, is_token_BT)


def _of_both_sides(
    base: BaseModel, batch: Batch, inputs: Mapping[str, Any], num_slots: int, is_token_BT: Tensor
) -> dict[str, Tensor]:
    """An encoder–decoder's states; the decoder is fed the targets, as in training."""
    assert batch.target_ids_BS is not None, "an encoder-decoder learns target_ids"
    assert batch.target_mask_BS is not None
    encoded = base.model.get_encoder()(**inputs)
    fed_BS = F.pad(batch.target_ids_BS.to(base.device)[:, :-1], (1, 0), value=base.start_id)
    decoded = base.model.get_decoder()(
        input_ids=fed_BS,
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=inputs["attention_mask"],
        use_cache=False,
        output_hidden_states=True,
    )
    is_target_BS = batch.target_mask_BS[: len(is_token_BT)].bool().to(base.device)
    encoder = _named(encoded.hidden_states, num_slots, is_token_BT)
    decoder = _named(decoded.hidden_states, num_slots, is_target_BS)
    return {
        **{f"encoder {name}": states for name, states in encoder.items()},
        **{f"decoder {name}": states for name, states in decoder.items()},
    }


def _named(hidden: Sequence[Tensor], num_slots: int, is_token_BT: Tensor) -> dict[str, Tensor]:
    names = ["embeddings", *(f"layer {number}" for number in range(len(hidden) - 1))]
    return {
        name: states.reshape(num_slots, *is_token_BT.shape, -1)[:, is_token_BT]
        for name, states in zip(names, hidden, strict=True)
    }


def _check_finite(stack: Stack, states_NMD: Tensor, layer: str) -> None:
    finite_N = torch.isfinite(states_NMD).flatten(1).all(dim=1)
    if not bool(finite_N.all()):
        name = stack.slots[int(finite_N.int().argmin())].name
        raise AdapterError(f"hidden states of {layer} are not finite", where=name, fix="train the adapter again")
