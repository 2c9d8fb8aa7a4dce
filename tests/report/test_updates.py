"""Norms and singular values on the page are those of the adapters' files."""

import pytest
import torch

from lorascope.analysis.updates import places_of, read_adapters
from lorascope.lora.peft_io import write_adapter
from lorascope.lora.stack import Placement, Slot, Stack
from lorascope.lora.targets import resolve
from lorascope.report.updates import layers_section
from lorascope.report.words import decimals_for
from lorascope.store import Store


@pytest.fixture
def adapted(study_of, written, tiny_model):
    """``adapted(study)``: the directory of its study, whose trials have adapters of rank 4 on a tiny BERT."""

    def make(study):
        directory = written(study)
        model = tiny_model("bert", dtype=torch.float32)
        placements = tuple(Placement(target, 4, 2.0) for target in resolve(model, ["query", "value"], ("classifier",)))
        slot = Slot("adapter", 1, placements)
        stack = Stack(model, [slot], ("classifier",))
        weights = stack.read(0)
        stack.detach()
        generator = torch.Generator().manual_seed(3)
        for number, value in enumerate(weights.lora_B.values()):
            value.copy_(0.1 * (number + 1) * torch.randn(value.shape, generator=generator))
        with Store.create(directory, study, resume=True) as store:
            for row in store.trials():
                store.update(row.trial, adapter=f"trials/{row.trial}/adapter")
                path = directory / "trials" / row.trial / "adapter"
                path.mkdir()
                write_adapter(path, weights, slot, model, heads=("classifier",), base_model="org/model",
                              task_type="SEQ_CLS", labels=["a", "b", "c"])  # fmt: skip
        return directory

    return make


def only_one(study_of):
    return study_of(design={"kind": "list", "trials": [{"r": 4}]}, seeds=[1])


def updates_of(directory):
    """By module, the whole matrix."""
    (path,) = directory.glob("trials/*/adapter")
    (one,) = read_adapters([path])
    found = {}
    for module in one.modules:
        lora_A_RD, lora_B_OR, scaling = one.factors(module)
        found[module] = scaling * lora_B_OR.double() @ lora_A_RD.double()
    return found


def test_a_study_without_adapters_has_no_such_section(study_of, written, findings_of):
    assert layers_section(findings_of(written(study_of()))) is None


def test_norms_are_those_of_the_whole_updates(study_of, adapted, findings_of):
    directory = adapted(only_one(study_of))
    section = layers_section(findings_of(directory))
    assert section is not None
    norms = [float(update.norm()) for update in updates_of(directory).values()]
    picture = section.blocks[0].figures[0].picture
    assert len(norms) == 4
    places = decimals_for([max(norms)]) - 1
    for norm in norms:
        assert f"{norm:.{places}f}</" in picture
    assert section.blocks[0].figures[1].title.startswith("Effective rank / r")


def test_spectra_are_the_singular_values_of_the_whole_updates(study_of, adapted, findings_of):
    directory = adapted(only_one(study_of))
    section = layers_section(findings_of(directory))
    assert section is not None
    updates = updates_of(directory)
    places = places_of(updates)
    drawn = {figure.title: figure for figure in section.blocks[1].figures}
    assert list(drawn) == ["query", "value"]
    for module, update in updates.items():
        values = torch.linalg.svdvals(update)[:4].tolist()
        told = f"layer {places[module].layer}: {', '.join(f'{value:.3g}' for value in values)}</title>"
        assert told in drawn[places[module].kind].picture
    largest = max(float(torch.linalg.svdvals(update)[0]) for name, update in updates.items() if places[name].kind == "value")
    assert drawn["value"].caption.startswith(f"at most {largest:.3g} in layer ")
    assert drawn["value"].caption.endswith(" of 4 ranks")


def test_an_adapter_that_cannot_be_read_is_told_without_its_path_and_hides_no_other(study_of, adapted, findings_of):
    directory = adapted(study_of())
    found = findings_of(directory)
    broken = directory / "trials" / found.best.trials[0]["trial"] / "adapter" / "adapter_model.safetensors"
    broken.write_bytes(b"{")
    section = layers_section(found)
    assert section is not None
    (note,) = section.blocks[-1].items
    assert note.startswith(f"The adapter of {found.best.label} (seed 1) could not be read: ")
    assert str(directory) not in note
    assert "/" not in note.replace("r / ", "")
    assert [figure.title for figure in section.blocks[0].figures if figure.title.startswith("‖ΔW‖")] == [
        f"‖ΔW‖, {one.label} (seed 1)" for one in found.ranked if one is not found.best
    ]


def test_adapters_none_of_which_can_be_read_are_told(study_of, adapted, findings_of):
    directory = adapted(only_one(study_of))
    for path in directory.glob("trials/*/adapter/adapter_config.json"):
        path.write_text("{", encoding="utf-8")
    section = layers_section(findings_of(directory))
    assert section is not None
    (block,) = section.blocks
    assert block.items[0].startswith("The adapter of ")
    assert section.lead == ""
