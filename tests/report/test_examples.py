"""Examples side by side: counted whole, chosen from both sides, differences marked."""

import json

from hypothesis import given
from hypothesis import strategies as st

from lorascope.report.examples import _text, examples_section
from lorascope.report.words import clean, shortened
from lorascope.store import Store


def pairs_of(section):
    return next((block.pairs for block in section.blocks if block.form == "pairs"), [])


def counts(section):
    return {row[0][1].text: row[1][1].value for row in section.blocks[0].rows}


def test_every_example_is_counted_and_both_sides_are_shown(study_of, written, findings_of):
    directory = written(study_of())
    found = findings_of(directory)
    section = examples_section(found, 8)
    assert section is not None
    best, baseline = found.best, found.baseline
    rows = []
    for one in (best, baseline):
        path = directory / "trials" / one.trials[0]["trial"] / "predictions.jsonl"
        rows.append([json.loads(line)["correct"] for line in path.read_text(encoding="utf-8").splitlines()])
    both = list(zip(*rows, strict=True))
    assert list(counts(section).values()) == [both.count(each) for each in
                                              ((True, True), (True, False), (False, True), (False, False))]  # fmt: skip
    shown = section.blocks[1].rows
    assert len(shown) == min(8, both.count((True, False)) + both.count((False, True)))
    for (_, _), (_, wanted), (_, one), (_, other) in shown:
        assert {one.kind, other.kind} == {"good", "bad"}
        assert one.more.startswith("right, p = 0.95" if one.text == wanted.text else "wrong, p = 0.95")


def test_what_the_other_answer_lacks_is_marked(study_of, entered, tmp_path, findings_of):
    study = study_of(design={"kind": "list", "trials": [{"r": 4}, {"r": 8}]}, seeds=[1])
    answers = ("the Thames in London", "the Seine in London")
    with Store.create(tmp_path / "run", study) as store:
        from lorascope.design import expand

        trials = expand(study)
        store.add_trials(trials)
        for number, (trial, answer) in enumerate(zip(trials, answers, strict=True)):
            score = 0.9 - number / 2
            row = {
                "id": "q",
                "prediction": answer,
                "answers": list("abcde"),
                "rouge_l": score,
                "loss": 1.0,
                "target_tokens": 3,
            }
            entered(store, trial, [row], {"rouge_l": score, "eval_loss": 1.0})
    section = examples_section(findings_of(tmp_path / "run"), 8)
    assert section is not None
    (pair,) = pairs_of(section)
    assert pair.one.pieces == [("the ", False), ("Thames", True), (" in London", False)]
    assert pair.other.pieces == [("the ", False), ("Seine", True), (" in London", False)]
    assert pair.one.verdict == "ROUGE-L 0.900"
    assert pair.gold == ["a", "b", "c", "… and 2 more"]
    assert counts(section) == {"r 4 better": 1.0, "equal": 0.0, "r 8 better": 0.0}


def test_without_predictions_there_is_no_such_section(study_of, written, findings_of):
    directory = written(study_of())
    for path in directory.glob("trials/*/predictions.jsonl"):
        path.unlink()
    assert examples_section(findings_of(directory), 8) is None


def test_answers_that_are_all_alike_say_so(study_of, entered, tmp_path, findings_of):
    study = study_of(design={"kind": "list", "trials": [{"r": 4}, {"r": 8}]}, seeds=[1])
    row = {"id": "a", "prediction": "x", "label": "x", "correct": True, "logits": [1.0, 0.0], "loss": 0.1}
    with Store.create(tmp_path / "run", study) as store:
        from lorascope.design import expand

        store.add_trials(expand(study))
        for trial in expand(study):
            entered(store, trial, [row], {"accuracy": 1.0, "eval_loss": 0.1})
    section = examples_section(findings_of(tmp_path / "run"), 8)
    assert section is not None
    assert section.blocks[1].items == ["Both answered every example alike."]


@given(st.text(max_size=40), st.integers(1, 30))
def test_what_is_left_out_of_a_text_need_not_be_looked_at(text, most):
    assert _text(text, most) == shortened(clean(text), most)


def test_names_and_wanted_answers_are_as_short_as_answers(study_of, entered, tmp_path, findings_of):
    study = study_of(design={"kind": "list", "trials": [{"r": 4}, {"r": 8}]}, seeds=[1])
    with Store.create(tmp_path / "run", study) as store:
        from lorascope.design import expand

        store.add_trials(expand(study))
        for number, trial in enumerate(expand(study)):
            row = {"id": "i" * 9000, "prediction": f"{number} " * 9000, "answers": ["w" * 9000], "rouge_l": number / 2}
            entered(store, trial, [row | {"loss": 1.0}], {"rouge_l": number / 2})
    section = examples_section(findings_of(tmp_path / "run"), 8)
    assert section is not None
    (pair,) = pairs_of(section)
    assert len(pair.name) == 60
    assert [len(text) for text in pair.gold] == [600]
    assert all(len("".join(text for text, _ in side.pieces)) == 600 for side in (pair.one, pair.other))
