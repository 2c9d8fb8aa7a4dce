"""One matrix with a row per slot: views, who trains what, and slots that leave."""

import pytest
import torch

from lorascope.lora.parameters import ParameterSpec, SlotParameters


def values(start, *shape):
    count = torch.Size(shape).numel()
    return torch.arange(start, start + count, dtype=torch.float64).reshape(shape)


def three_slots():
    """``w`` trains in all, ``b`` in the first and last; 8 numbers a slot."""
    specs = [
        ParameterSpec("w", (2, 3), [values(10 * slot, 2, 3) for slot in range(3)], (True, True, True), decays=True),
        ParameterSpec("b", (2,), None, (True, False, True), decays=False),
    ]
    return SlotParameters(specs, 3, torch.float64, torch.device("cpu"))


def loss_of(parameters):
    """Its gradient is ``w`` for w, and the slot's number + 1 for b."""
    numbers = torch.arange(1.0, len(parameters.values_NP) + 1, dtype=torch.float64)
    return (parameters["w"] ** 2).sum() / 2 + (numbers[:, None] * parameters["b"]).sum()


def test_a_row_holds_a_slots_numbers_one_parameter_after_the_other():
    parameters = three_slots()
    assert parameters.values_NP.shape == (3, 8)
    assert parameters.values_NP[1].tolist() == [10, 11, 12, 13, 14, 15, 0, 0]
    assert parameters.decays_P.tolist() == [True] * 6 + [False] * 2
    assert torch.equal(parameters["w"][2], values(20, 2, 3))
    assert parameters["w"].is_leaf
    assert parameters["w"].requires_grad


def test_a_parameter_and_the_matrix_share_memory():
    parameters = three_slots()
    parameters.values_NP[1, 7] = 5.0
    assert parameters["b"].tolist() == [[0, 0], [0, 5], [0, 0]]
    parameters.set_value("w", 0, torch.full((2, 3), 9.0))
    assert parameters.values_NP[0].tolist() == [9] * 6 + [0, 0]
    assert parameters.values_NP[1, :6].tolist() == [10, 11, 12, 13, 14, 15]


def test_a_value_that_was_read_does_not_change_afterwards():
    parameters = three_slots()
    copy = parameters.value("w", 1)
    parameters.values_NP += 1.0
    assert torch.equal(copy, values(10, 2, 3))
    assert not copy.requires_grad


def test_gradients_add_up_until_they_are_cleared():
    parameters = three_slots()
    for times in (1, 2):
        parameters.accumulate_gradients(loss_of(parameters))
        assert torch.equal(parameters.gradients_NP[:, :6], times * parameters.values_NP[:, :6])
        assert parameters.gradients_NP[:, 6].tolist() == [times, 2 * times, 3 * times]
    parameters.zero_gradients()
    assert not parameters.gradients_NP.any()


def test_a_parameter_that_the_loss_does_not_touch_has_no_gradient():
    parameters = three_slots()
    parameters.accumulate_gradients(parameters["b"].sum())
    assert not parameters.gradients_NP[:, :6].any()
    assert bool((parameters.gradients_NP[:, 6:] == 1).all())


def test_what_a_slot_does_not_train_gets_no_gradient():
    parameters = three_slots()
    parameters.accumulate_gradients(loss_of(parameters))
    parameters.mask_gradients()
    assert parameters.gradients_NP[:, 6:].tolist() == [[1, 1], [0, 0], [3, 3]]
    assert torch.equal(parameters.gradients_NP[:, :6], parameters.values_NP[:, :6])


@pytest.mark.parametrize("kept", [[0, 2], [2], [1, 2]])
def test_slots_that_stay_keep_their_values_moments_and_masks(kept):
    parameters = three_slots()
    parameters.first_moment_NP += values(100, 3, 8)
    parameters.second_moment_NP += values(200, 3, 8)
    parameters.accumulate_gradients(loss_of(parameters))
    names = ("values_NP", "gradients_NP", "first_moment_NP", "second_moment_NP")
    before = {name: getattr(parameters, name).clone() for name in names}
    parameters.keep(kept)
    for name in names:
        assert torch.equal(getattr(parameters, name), before[name][kept]), name
    assert torch.equal(parameters["w"].detach(), before["values_NP"][kept, :6].reshape(-1, 2, 3))

    parameters.zero_gradients()
    parameters.accumulate_gradients(parameters["b"].sum())
    parameters.mask_gradients()
    assert parameters.gradients_NP[:, 6].tolist() == [0.0 if slot == 1 else 1.0 for slot in kept]
    parameters.values_NP += 1.0
    assert torch.equal(parameters["w"].detach(), before["values_NP"][kept, :6].reshape(-1, 2, 3) + 1.0)


def test_when_every_slot_has_left_nothing_remains():
    parameters = three_slots()
    parameters.keep([])
    assert parameters.values_NP.shape == (0, 8)
    assert parameters["w"].shape == (0, 2, 3)


def test_a_stack_that_trains_nothing_has_rows_without_numbers():
    parameters = SlotParameters([], 2, torch.float32, torch.device("cpu"))
    assert parameters.values_NP.shape == (2, 0)
    parameters.accumulate_gradients(torch.tensor(1.0))
    parameters.mask_gradients()
    parameters.keep([1])
    assert parameters.values_NP.shape == (1, 0)


def test_state_goes_into_another_matrix_in_place_and_only_where_it_fits():
    source, target = three_slots(), three_slots()
    source.values_NP += 3.0
    source.first_moment_NP.fill_(2.0)
    source.second_moment_NP.fill_(4.0)
    target.load_state(source.state(with_moments=True).items())
    assert torch.equal(target["w"][1], values(10, 2, 3) + 3.0)
    assert (target.first_moment_NP.unique().tolist(), target.second_moment_NP.unique().tolist()) == ([2.0], [4.0])
    assert list(source.state(with_moments=False)) == ["values"]
    with pytest.raises(ValueError, match=r"values is torch.float64 \(2, 8\), not torch.float64 \(3, 8\)"):
        target.load_state([("values", source.values_NP[:2])])
