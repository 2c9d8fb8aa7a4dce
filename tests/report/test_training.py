"""Cost, curves and updates by layer are drawn of every configuration that has them."""

import pytest

from lorascope.report.training import cost_section, curves_section, layers_section
from lorascope.report.words import decimals_for


def test_scores_are_held_against_three_costs(study_of, written, findings_of):
    section = cost_section(findings_of(written(study_of())))
    assert section is not None
    figures = section.blocks[0].figures
    assert [figure.title for figure in figures] == [
        "Accuracy against parameters",
        "Accuracy against time",
        "Accuracy against memory",
    ]
    for figure in figures:
        assert figure.picture.count('class="dot') == 3
        assert figure.caption.startswith("On the front: r 4 · query + value (")


def test_the_best_and_the_baseline_stand_out_among_the_curves(study_of, written, findings_of):
    section = curves_section(findings_of(written(study_of())))
    assert section is not None
    legend = [meaning for _, meaning in section.blocks[0].figures[0].legend]
    assert legend == ["best: r 16 · all-linear", "baseline: r 4 · query + value", "others", "loss on validation"]
    small = section.blocks[1].figures
    assert [figure.title for figure in small] == ["r 16 · all-linear", "r 4 · query + value", "r 8 · query + value"]
    assert 'id="all-curves"' in small[0].picture
    assert all('href="#all-curves"' in figure.picture for figure in small[1:])


def test_a_study_that_has_not_begun_has_no_curves(study_of, written, findings_of):
    found = findings_of(written(study_of(), ended={number: {"status": "planned"} for number in range(9)}))
    assert curves_section(found) is None
    assert cost_section(found) is None
    assert layers_section(found) is None


def test_an_adapter_that_cannot_be_read_is_told(study_of, written, findings_of):
    study = study_of()
    directory = written(study)
    from lorascope.store import Store

    with Store.create(directory, study, resume=True) as store:
        for row in store.trials():
            store.update(row.trial, adapter=f"trials/{row.trial}/adapter")
            path = directory / "trials" / row.trial / "adapter"
            path.mkdir()
            (path / "adapter_config.json").write_text("{", encoding="utf-8")
    section = layers_section(findings_of(directory))
    assert section is not None
    assert section.blocks[0].items[0].startswith("The adapters could not be read:")


@pytest.mark.parametrize("family", ["bert"])
def test_norms_are_those_of_inspect(family, study_of, written, findings_of, tiny_model):
    import torch

    from lorascope.analysis.updates import read_adapters
    from lorascope.lora.peft_io import write_adapter
    from lorascope.lora.stack import Placement, Slot, Stack
    from lorascope.lora.targets import resolve
    from lorascope.store import Store

    study = study_of(design={"kind": "list", "trials": [{"r": 4}]}, seeds=[1])
    directory = written(study)
    with Store.create(directory, study, resume=True) as store:
        trial = store.trials()[0].trial
        store.update(trial, adapter=f"trials/{trial}/adapter")
    model = tiny_model(family, dtype=torch.float32)
    placements = tuple(Placement(target, 4, 2.0) for target in resolve(model, ["query", "value"], ("classifier",)))
    slot = Slot("adapter", 1, placements)
    stack = Stack(model, [slot], ("classifier",))
    weights = stack.read(0)
    stack.detach()
    for number, value in enumerate(weights.lora_B.values()):
        value.fill_(0.1 * (number + 1))
    path = directory / "trials" / trial / "adapter"
    path.mkdir()
    write_adapter(path, weights, slot, model, heads=("classifier",), base_model="org/model", task_type="SEQ_CLS",
                  labels=["a", "b", "c"])  # fmt: skip
    section = layers_section(findings_of(directory))
    assert section is not None
    (one,) = read_adapters([path])
    norms = []
    for module in one.modules:
        lora_A_RD, lora_B_OR, scaling = one.factors(module)
        norms.append(float((scaling * lora_B_OR.double() @ lora_A_RD.double()).norm()))
    picture = section.blocks[0].figures[0].picture
    assert len(norms) == 4
    places = decimals_for([max(norms)]) - 1
    for norm in norms:
        assert f"{norm:.{places}f}</" in picture
    assert section.blocks[0].figures[1].title.startswith("Effective rank / r")
