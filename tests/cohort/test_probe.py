"""What a configuration costs alone, and how peak memory is measured."""

import gc
import sys
import weakref

import psutil
import pytest
import torch

from lorascope.base_model import load_base, weights_checksum
from lorascope.cohort import probe
from lorascope.cohort.probe import Heap, MemoryMeter, measure_alone
from lorascope.data.task import encode_task, read_task
from lorascope.design import expand
from lorascope.lora.stack import Stack
from lorascope.plan import slot_of
from lorascope.train import train

CPU = torch.device("cpu")
MEBIBYTE = 2**20


@pytest.fixture(params=["bert", "gpt2"])
def prepared(request, make_study):
    """A loaded base, an encoded task, and a trial with its slot."""
    study = make_study(request.param, [{"targets": "all-linear", "lora_dropout": 0.1}])
    raw = read_task(study.task)
    base = load_base(study.base, raw.task_type, raw.labels)
    trial = expand(study)[0]
    return base, encode_task(raw, base.tokenizer, 32), trial, slot_of(trial, base.model, base.heads)


def test_a_configuration_is_measured_and_nothing_stays(prepared):
    base, task, trial, slot = prepared
    modules, generator = dict(base.model.named_modules()), torch.get_rng_state()
    cost = measure_alone(base, slot, trial.train, task.train)
    assert cost.seconds_per_epoch > 0
    assert cost.examples_per_second == pytest.approx(len(task.train) / cost.seconds_per_epoch)
    assert cost.peak_memory_bytes > 100 * MEBIBYTE  # torch itself
    assert dict(base.model.named_modules()) == modules
    assert weights_checksum(base.model, base.heads) == base.checksum
    assert torch.equal(torch.get_rng_state(), generator)


def test_one_batch_is_enough_to_measure(prepared):
    base, task, trial, slot = prepared
    settings = trial.train.model_copy(update={"batch_size": 1000})
    assert measure_alone(base, slot, settings, task.train[:3]).seconds_per_epoch > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the high-water mark be reset")
def test_the_peak_is_what_was_used_since_the_meter_was_made():
    earlier = torch.ones(200 * MEBIBYTE // 4)
    del earlier
    meter = MemoryMeter(CPU)
    start = meter.peak_bytes()
    block = torch.ones(64 * MEBIBYTE // 4)
    del block
    assert 60 * MEBIBYTE < meter.peak_bytes() - start < 90 * MEBIBYTE
    assert MemoryMeter(CPU).peak_bytes() < start + 30 * MEBIBYTE


def test_a_stack_is_freed_with_its_last_user(prepared):
    """The meter collects no garbage: a stack in a reference cycle would count for the next configuration."""
    base, task, trial, slot = prepared
    gc.disable()
    try:
        stack = Stack(base.model, [slot], base.heads, base.initial_head, base_dropout=True)
        for _ in train(stack, base, task.train, {slot.name: trial.train.model_copy(update={"max_steps": 2})}):
            pass
        numbers = weakref.ref(stack.parameters.values_NP), weakref.ref(stack.parameters.gradients_NP)
        stack.detach()
        del stack, _
        assert [number() for number in numbers] == [None, None]
    finally:
        gc.enable()


def in_pieces():
    """A heap of 100 MiB of which the last block alone is in use."""
    blocks = [torch.ones(MEBIBYTE // 4) for _ in range(100)]
    return blocks.pop()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_a_heap_in_pieces_above_the_limit_goes_back_to_the_system():
    last = in_pieces()
    before = psutil.Process().memory_info().rss
    Heap(before + 50 * MEBIBYTE).settle()
    assert psutil.Process().memory_info().rss > before - 5 * MEBIBYTE
    Heap(0).settle()
    assert psutil.Process().memory_info().rss < before - 50 * MEBIBYTE
    assert bool((last == 1).all())


def test_a_heap_in_use_is_not_searched_after_every_step(monkeypatch):
    trims = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(probe, "_trim", lambda: trims.append(1))
    heap = Heap(0)
    for _ in range(5):
        heap.settle()
    assert len(trims) == 1
