"""What one study speaks for: verdicts as `compare` has them, seeds counted, luck called luck."""

import pytest

from lorascope.recommend.evidence import about, choose, leader_of, neighbours, varied

SMALL, MIDDLE, LARGE = {"r": 4}, {"r": 8}, {"r": 16}


def three(scores=((0.80, 0.81), (0.82, 0.83), (0.821, 0.831))):
    return {"small000": (SMALL, scores[0]), "middle00": (MIDDLE, scores[1]), "large000": (LARGE, scores[2])}


def test_the_smallest_that_is_surely_as_good_takes_the_best_ones_place(evidence):
    study = evidence(three(), {("small000", "large000"): "worse"})
    chosen = choose(study, "default")
    assert chosen.tried.name == "middle00"
    assert chosen.strength == "told apart"
    assert [rival.name for rival in chosen.rivals] == ["large000"]
    assert "accuracy 0.8250 over 2 seeds" in chosen.why
    assert "not distinguishable (-0.0010, -0.0060 … +0.0040, 2 seeds)" in chosen.why
    assert chosen.moved
    assert leader_of(study) == "large000"


def test_better_takes_the_best_mean_whatever_its_size(evidence):
    chosen = choose(evidence(three(), {("small000", "large000"): "worse"}), "better")
    assert chosen.tried.name == "large000"
    assert "1 of the others are worse, 1 not distinguishable (Holm over 3 comparisons)" in chosen.why


def test_not_distinguishable_is_not_equal_where_the_interval_is_wide(evidence):
    study = evidence(three(), half=0.05)
    chosen = choose(study, "default")
    assert (chosen.tried.name, chosen.strength, chosen.moved) == ("large000", "not distinguishable", False)
    assert choose(study, "faster").tried.name == "small000"


def test_a_much_worse_mean_is_not_taken_for_its_size(evidence):
    study = evidence(three(((0.5, 0.9), (0.82, 0.83), (0.83, 0.84))))
    assert choose(study, "default").tried.name == "middle00"
    assert choose(study, "faster").tried.name == "middle00"


def test_one_seed_gives_the_best_score_and_is_called_one_seed(evidence):
    chosen = choose(evidence(three(((0.80,), (0.82,), (0.821,)))), "default")
    assert (chosen.tried.name, chosen.strength) == ("large000", "one seed")
    assert "one seed: the next could come out otherwise" in chosen.why
    assert choose(evidence(three(((0.80,), (0.82,), (0.821,)))), "faster").tried.name == "small000"


def test_a_lower_loss_is_a_better_one(evidence):
    study = evidence(three(((0.5, 0.5), (0.4, 0.41), (0.6, 0.6))), metric="eval_loss")
    assert choose(study, "better").tried.name == "middle00"
    assert choose(study, "default").tried.name == "middle00"
    near = evidence(three(((0.406, 0.406), (0.4, 0.41), (0.6, 0.6))), metric="eval_loss")
    assert choose(near, "default").tried.name == "small000"


@pytest.mark.parametrize("status", ["diverged", "failed", "pruned", "interrupted", "planned"])
def test_a_configuration_without_all_of_its_seeds_is_never_chosen(evidence, status):
    study = evidence(three(((0.80, 0.81), (0.82, 0.83), (0.99, status))))
    chosen = choose(study, "better")
    assert chosen.tried.name == "middle00"
    named = [note for note in chosen.notes if note.startswith(status)]
    if status in ("interrupted", "planned"):
        assert named == []
    else:
        assert named == [f"{status}: large000 (r 16) at 1 of 2 seeds; never chosen"]
    assert study.counts() == {"done": 5, status: 1}


def test_one_finished_configuration_compares_nothing(evidence):
    assert "nothing to choose from" in choose(evidence({"small000": (SMALL, (0.8, 0.9))}), "default")
    assert choose(evidence(three((("failed",), ("failed",), ("planned",)))), "default") == "nothing in it has a score"


def test_a_head_alone_that_is_as_good_is_said(evidence):
    configurations = three() | {"head0000": ({"method": "head", "targets": []}, (0.825, 0.83))}
    chosen = choose(evidence(configurations), "default")
    assert chosen.tried.name == "middle00"
    assert chosen.notes == (
        "a head alone (head0000) is not distinguishable (+0.0015, -0.0035 … +0.0065, 2 seeds) from the best adapter: "
        "the adapter may not pay at all",
    )
    told = evidence(configurations, {("head0000", one): "worse" for one in three()})
    assert choose(told, "default").notes == ()


def test_neighbours_differ_in_one_group_alone_and_are_told_with_their_verdicts(evidence):
    study = evidence(
        three() | {"other000": (MIDDLE | {"targets": ["query"], "lora_dropout": 0.1}, (0.7, 0.7))},
        {("small000", "middle00"): "worse"},
    )
    chosen = study.tried[1]
    assert varied(study) == ["rank", "targets", "lora_dropout"]
    assert [one.name for one in neighbours(study, chosen, "rank")] == ["small000", "large000"]
    text, names = about(study, chosen, "rank")
    assert text == (
        "r 4 is worse (-0.0200, -0.0250 … -0.0150, 2 seeds); r 16 is not distinguishable (+0.0010, -0.0040 … +0.0060, 2 seeds)"
    )
    assert names == ("middle00", "small000", "large000")
    assert about(study, chosen, "lora_dropout")[0] == "chosen with the whole configuration; no other one differs in this alone"


def search_of(best):
    return {"search": {"best": best, "sampler": "tpe"}}


def test_a_searchs_best_is_taken(evidence):
    chosen = choose(evidence(three(), more=search_of("large000")), "default")
    assert chosen.tried.name == "large000"
    assert "that tpe proposed" in chosen.why


def game(targets, kind="usefulness"):
    recommended = {
        "players": targets, "targets": targets, "mean": 0.82, "best": {"players": ["query", "value"], "mean": 0.83},
        "margin": 0.02, "why": "the fewest parameters within the margin",
    }  # fmt: skip
    metrics = {"accuracy": {"verdict": "value > query", "recommended": recommended}}
    return {"shapley": {"game": kind, "players": {"query": ["query"], "value": ["value"]}, "metrics": metrics}}


def coalitions():
    return {
        "none0000": ({"targets": []}, (0.5, 0.5)),
        "query000": ({"targets": ["query"]}, (0.7, 0.7)),
        "value000": ({"targets": ["value"]}, (0.82, 0.82)),
        "both0000": ({"targets": ["value", "query"]}, (0.83, 0.83)),
    }


def test_a_shapley_studys_recommended_coalition_is_taken_and_its_best_for_better(evidence):
    study = evidence(coalitions(), more=game(["value"]))
    assert choose(study, "default").tried.name == "value000"
    assert "ranking of the players: value > query" in choose(study, "default").why
    assert choose(study, "better").tried.name == "both0000"
    assert "the fewest parameters within the margin" in choose(study, "faster").why


def test_where_no_projection_at_all_is_recommended_the_best_adapter_is_taken(evidence):
    chosen = choose(evidence(coalitions(), more=game([])), "better")
    assert chosen.tried.is_adapter
    assert choose(evidence(coalitions(), more=game([])), "default").tried.config["targets"]


def test_a_map_read_by_masking_is_called_one(evidence):
    study = evidence({"query000": ({"targets": ["query"]}, (0.7, 0.7))}, more=game(["value"], "one_run"))
    chosen = choose(study, "default")
    assert (chosen.strength, chosen.tried.config["targets"]) == ("map", ["value"])
    assert varied(study) == ["targets"]


@pytest.mark.parametrize("status", ["diverged", "failed", "pruned", "planned"])
def test_what_did_not_finish_compares_nothing(evidence, status):
    finished = {"r8": (MIDDLE, (0.8, 0.8)), "r8b1": (MIDDLE | {"bias": "all"}, (0.8, 0.8))}
    study = evidence(finished | {"r16": (LARGE, (0.9, status))})
    assert varied(study) == ["bias"]
    assert study.tried[2].has_answered == (status in ("diverged", "pruned"))
