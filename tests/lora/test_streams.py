import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorascope.lora import streams


def mask(rows, width, p=0.5, seed=1, features=12, key=(3, "m")):
    return streams.keep_mask(p, features, [[row] for row in rows], width, *key, seed=seed)


def test_streams_are_pure_functions_of_their_key():
    assert (streams.generator(1, "a", 2, "m").random(4) == streams.generator(1, "a", 2, "m").random(4)).all()
    draws = [
        streams.generator(*key).random() for key in ((1, "a", 2, "m"), (2, "a", 2, "m"), (1, "b", 2, "m"), (1, "a", 3, "m"))
    ]
    assert len(set(draws)) == 4


def test_the_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = mask([(0, 4)], 4)
    streams.kaiming_uniform((2, 8), 5, "m")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    torch.manual_seed(99)
    assert torch.equal(mask([(0, 4)], 4), first)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    padding=st.integers(0, 3),
    features=st.integers(1, 9),
    data=st.data(),
)
def test_a_tokens_mask_depends_on_neither_padding_nor_micro_batch_nor_order(lengths, padding, features, data):
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist()
    rows = list(zip(starts, lengths, strict=True))
    whole = mask(rows, max(lengths) + padding, features=features)
    chosen = data.draw(st.permutations(range(len(rows))))
    for index in chosen[:2]:
        alone = mask([rows[index]], lengths[index], features=features)
        assert torch.equal(alone[0], whole[index, : lengths[index]])
    shuffled = mask([rows[index] for index in chosen], max(lengths), features=features)
    assert all(torch.equal(shuffled[at], whole[index, : max(lengths)]) for at, index in enumerate(chosen))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_dropout_keeps_the_expectation(p):
    drawn = mask([(0, 4000)], 4000, p=p, features=64)
    assert float((drawn == 0).float().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / drawn.numel()) ** 0.5)
    assert float(drawn.mean()) == pytest.approx(1.0, abs=5e-3)


def test_lora_a_is_drawn_as_peft_draws_it_and_lower_ranks_are_its_first_rows():
    wide = streams.kaiming_uniform((8, 4096), 42, "layer")
    bound = 1 / 4096**0.5
    assert float(wide.abs().max()) <= bound
    assert float(wide.var()) == pytest.approx(bound**2 / 3, rel=0.03)
    assert torch.equal(streams.kaiming_uniform((3, 4096), 42, "layer"), wide[:3])
    assert not torch.equal(streams.kaiming_uniform((3, 4096), 43, "layer"), wide[:3])
