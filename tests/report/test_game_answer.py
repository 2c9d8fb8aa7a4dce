"""What a game's headline claims is what its intervals allow: order, signs, and how far a map is confirmed."""

import pytest

from lorascope.cli.study import results_of
from lorascope.report.answer import answer_of
from lorascope.report.game_answer import game_answer
from lorascope.store import Store

SHAPLEY = {"kind": "shapley", "players": ["query", "key", "value"], "values": ["accuracy"]}
SIZES = {"query": 0.05, "key": 0.15, "value": 0.30}
SEEDS = {"query": 0, "key": 1, "value": 2}


def figure(estimate, half):
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def a_map(tau=0.8, effects=0.7, calibrated=None, **changes):
    """A one-run map of two players, of which one is told to be better."""
    values = {"query": figure(0.02, 0.01), "value": figure(0.20, 0.02)}
    apart = {"query": figure(0.03, 0.02), "value": figure(0.18, 0.03)}
    metric = {
        "higher_is_better": True,
        "exact": False,
        "num_coalitions": 3,
        "num_seeds": 2,
        "confidence": 0.95,
        "values": values,
        "full": figure(0.22, 0.01),
        "differences": [{"players": ["query", "value"], **figure(-0.18, 0.02), "p_value": 0.001}],
        "ranking": [["value"], ["query"]],
        "verdict": "value > query",
        "recommended": None,
        "notes": [],
        "agreement": {
            "num_retrained": 40,
            "of_means": {"kendall_tau": tau, "pearson": 0.9},
            "of_effects": {"kendall_tau": effects, "pearson": 0.9},
            "retraining_with_itself": [{"kendall_tau": 0.9}],
        },
        "calibrated": {"num_retrained": 40, "values": apart} if calibrated is None else calibrated,
    }
    return {"game": "one_run", "what": "one run: an estimate", "metrics": {"accuracy": metric | changes}}


def test_a_game_is_answered_by_its_ranking(study_of, written, findings_of):
    directory = written(study_of(design=SHAPLEY))
    said = answer_of(findings_of(directory))
    with Store.open(directory) as store:
        metric = results_of([store])["shapley"]["metrics"]["accuracy"]
    assert metric["ranking"][0] == ["value"]
    assert said.is_clear
    assert said.headline.startswith("Value adds more to accuracy than ")
    assert any(f"{metric['values']['value']['estimate']:+.2f}" in text for text in said.evidence)
    assert any(text.startswith("Recommended: ") and metric["recommended"]["why"] in text for text in said.evidence)


def test_a_game_of_one_seed_claims_no_order(study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(design=SHAPLEY, seeds=[1]))))
    assert said.headline == "One seed puts the players in the order value > query > key for accuracy; another seed may not."
    assert not said.is_clear


def test_a_game_with_a_missing_coalition_says_why_it_has_no_values(study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(design=SHAPLEY, seeds=[1]), ended={7: {"status": "diverged"}})))
    assert said.headline == "No Shapley values yet: 7 of 8 coalitions are valued; all are needed."
    assert not said.is_clear


def test_players_that_all_hurt_are_not_said_to_add(study_of, written, findings_of):
    def worth(coalition, seed):
        return 0.9 - sum(SIZES[player] + 0.005 * ((seed + SEEDS[player]) % 3) for player in coalition)

    said = answer_of(findings_of(written(study_of(design=SHAPLEY), worth=worth)))
    assert said.headline == "Query costs less accuracy than key, and key less than value; every player hurts."
    assert said.is_clear
    assert any("Recommended: no player" in text for text in said.evidence)


def test_a_loss_that_all_players_raise_is_not_said_to_be_lowered(study_of, written, findings_of):
    def worth(coalition, seed):
        return 0.9 - sum(SIZES[player] + 0.005 * ((seed + SEEDS[player]) % 3) for player in coalition)

    study = study_of(design=SHAPLEY | {"values": ["eval_loss"]})
    said = answer_of(findings_of(written(study, worth=worth)))
    assert said.headline == "Query raises the validation loss less than key, and key less than value; every player hurts."


def test_one_that_hurts_among_those_that_help_is_named(study_of, written, findings_of):
    signs = {"query": 0.1, "key": -0.15, "value": 0.25}

    def worth(coalition, seed):
        return 0.6 + sum(signs[player] + 0.005 * ((seed + SEEDS[player]) % 3) for player in coalition)

    said = answer_of(findings_of(written(study_of(design=SHAPLEY), worth=worth)))
    assert said.headline == "Value adds more to accuracy than query, and query more than key."
    assert "Key hurts: accuracy is worse with than without." in said.cautions


def test_a_player_that_is_not_told_to_help_is_not_said_to_add(study_of, written, findings_of):
    signs = {"query": 0.0, "key": -0.3, "value": -0.3}

    def worth(coalition, seed):
        noise = {"query": 0.01 * ((seed % 3) - 1), "key": 0.005 * (seed % 3), "value": 0.005 * (2 * seed % 3)}
        return 0.9 + sum(signs[player] + noise[player] for player in coalition)

    said = answer_of(findings_of(written(study_of(design=SHAPLEY), worth=worth)))
    assert said.headline.startswith("Query is better for accuracy than ")
    assert said.headline.endswith("; no player is told to help.")


def test_a_map_that_retraining_confirms_is_clear():
    said = game_answer(a_map(), "accuracy")
    assert said.headline == "Value adds more to accuracy than query — an estimate from 2 trainings, one a seed."
    assert said.is_clear
    assert "Agreement with 40 retrained coalitions: Kendall’s τ 0.80, τ 0.70 over the players’ additive effects; " in " ".join(
        said.cautions
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"calibrated": {"num_retrained": 40, "values": {"query": figure(0.03, 0.1), "value": figure(0.18, 0.1)}}},
         "Of 1 pair of players that the map tells apart, none can be told apart once it is calibrated by 40 retrained"),
        ({"calibrated": {"reason": "needs 5 retrained coalitions"}}, "calibration needs 5 retrained coalitions."),
        ({"tau": -0.1}, "agrees weakly with retraining (Kendall’s τ −0.10, less than 0.5)"),
        ({"effects": 0.3}, "agrees weakly with retraining (Kendall’s τ 0.30, less than 0.5)"),
        ({"tau": None, "effects": None}, "How far the map is to be believed is not known"),
    ],
    ids=["overlap", "too few", "against", "effects", "unknown"],
)  # fmt: skip
def test_a_map_that_retraining_does_not_confirm_is_not_clear(changes, text):
    said = game_answer(a_map(**changes), "accuracy")
    assert not said.is_clear
    assert said.headline.endswith("— an estimate from 2 trainings, one a seed, not confirmed by retraining.")
    assert any(text in caution for caution in said.cautions)


def test_the_chance_of_sampled_coalitions_is_said():
    values = next(text for text in game_answer(a_map(), "accuracy").evidence if text.startswith("Shapley values"))
    over = "(95 % interval over 2 seeds and the coalitions that were sampled; that of all together is over the seeds alone)."
    assert values.endswith(over)
    one = game_answer(a_map(num_seeds=1, full={"estimate": 0.22, "low": None, "high": None}), "accuracy")
    assert any("95 % interval over the coalitions that were sampled, of one seed" in text for text in one.evidence)
    assert "— an estimate from one training" in one.headline


def test_a_game_speaks_of_metrics_as_people_call_them(study_of, written, findings_of):
    said = answer_of(findings_of(written(study_of(design=SHAPLEY | {"values": ["eval_loss"]}))))
    assert any("whose mean validation loss over the seeds" in text for text in said.evidence)
    assert not any("eval_loss" in text for text in (*said.evidence, *said.cautions, said.headline))
    assert any(text.startswith("Usefulness: every coalition") for text in said.evidence)
