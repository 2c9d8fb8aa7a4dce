"""The picture of an inspection: it holds what the document says, and is the same each time."""

import xml.etree.ElementTree as ET

import pytest

from lorascope.analysis.overlap import overlap_document
from lorascope.analysis.pictures import picture
from lorascope.analysis.updates import adapter_document, places_of, read_adapters

DRIFT = {
    "task": "sst2",
    "split": "validation",
    "adapters": [
        {
            "label": "a",
            "layers": [
                {"layer": "embeddings", "cka_debiased": None, "relative_norm": 0.0},
                {"layer": "layer 0", "cka_debiased": 0.9, "relative_norm": 0.2},
            ],
        }
    ],
}


@pytest.fixture
def document_of(adapter, random_factors):
    """``document_of("a", "b")``: the document of so many random adapters."""

    def make(*names, **more):
        tensors = [random_factors(seed=seed) for seed in range(len(names))]
        read = read_adapters([adapter(name, each) for name, each in zip(names, tensors, strict=True)])
        places = places_of(read[0].modules)
        adapters = [adapter_document(one, places) for one in read]
        return {"adapters": adapters, "overlap": overlap_document(read, places), "representations": None, **more}

    return make


def texts_of(svg):
    return [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_picture_has_a_map_for_each_figure_and_the_energy_of_each_rank(document_of):
    document = document_of("a")
    texts = texts_of(picture(document, ["effective_rank", "norm"], "svg"))
    assert {"a: effective rank", "a: ‖ΔW‖ (Frobenius)", "a: energy kept at each rank"} <= set(texts)
    for row in document["adapters"][0]["modules"]:
        assert f"{row['effective_rank']:.1f}" in texts
        assert f"{row['norm']:.3g}" in texts
    assert {"q_proj", "down_proj"} <= set(texts)


def test_two_adapters_have_maps_of_their_overlap_and_more_have_a_table(document_of):
    document = document_of("a", "b")
    texts = texts_of(picture(document, ["norm"], "svg"))
    assert {"overlap of leading directions, outputs written", "overlap of leading directions, inputs read"} <= set(texts)
    assert f"{document['overlap']['pairs'][0]['modules'][0]['left']['leading']:.2f}" in texts
    three = document_of("c", "d", "e")
    texts = texts_of(picture(three, ["norm"], "svg"))
    for pair in three["overlap"]["pairs"]:
        assert texts.count(f"{pair['mean']['left']['leading']:.2f}") >= 2  # both ways round


def test_hidden_states_are_drawn_where_they_were_compared(document_of):
    texts = texts_of(picture(document_of("a", representations=DRIFT), ["norm"], "svg"))
    assert {"linear CKA of adapter and base, debiased (sst2, validation)", "embeddings"} <= set(texts)


def test_a_picture_is_the_same_each_time_and_comes_as_png_too(document_of):
    document = document_of("a", "b")
    assert picture(document, ["norm"], "svg") == picture(document, ["norm"], "svg")
    assert picture(document, ["norm"], "png").startswith(b"\x89PNG\r\n\x1a\n")


def test_updates_of_zero_and_modules_that_lack_are_drawn(adapter, random_factors):
    tensors = {key: value for key, value in random_factors().items() if "layers.1.mlp" not in key}
    for key in [key for key in tensors if "lora_B" in key]:
        tensors[key].zero_()
    read = read_adapters([adapter("zero", tensors), adapter("other")])
    places = places_of(read[1].modules)
    adapters = [adapter_document(one, places) for one in read]
    document = {"adapters": adapters, "overlap": overlap_document(read, places), "representations": None}
    assert texts_of(picture(document, ["effective_rank"], "svg")).count("0.0") >= 5
