"""The page as a whole: well-formed, alone, complete, escaped, of bounded size."""

import base64
import hashlib
import json
import re

import pytest

from lorascope.cli.study import results_of
from lorascope.errors import UsageError
from lorascope.report import MOST_BYTES, report_page, write_report
from lorascope.search import proposer
from lorascope.store import Store

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
SHAPLEY = {"kind": "shapley", "players": ["query", "key", "value"], "values": ["accuracy", "eval_loss"]}
SEARCH = {"kind": "search", "over": {"r": [4, 8, 16], "learning_rate": {"log": [1e-4, 1e-3]}}, "trials": 4,
          "objective": "accuracy", "pruner": "successive_halving"}  # fmt: skip
ABLATION = {"kind": "ablation", "over": {"r": [4, 16], "bias": ["lora_only"]}}


def a_search(study_of, entered, directory):
    """Four configurations of one seed, one of them pruned."""
    study = study_of(design=SEARCH, seeds=[1])
    with Store.create(directory, study) as store:
        proposals = proposer(study)
        while trials := proposals.propose(store.trials()):
            store.add_trials(trials)
            for trial in trials:
                number = len([row for row in store.trials() if row.status != "planned"])
                rows = [{"id": f"e{i}", "prediction": "a", "label": "a", "correct": i % 3 < 2, "loss": 0.1} for i in range(30)]
                entered(store, trial, rows, {"accuracy": 20 / 30 + number / 100, "eval_loss": 0.5})
                store.set_rung(trial.trial, 10, {"accuracy": 0.5, "eval_loss": 0.8})
                if number == 2:
                    store.clear_trial(trial.trial, first_step=12)
                    store.update(trial.trial, status="pruned")
    return directory


def decoded(study_of, entered, directory):
    """A causal model's answers in two ways, with texts that differ."""
    study = study_of(
        design={"kind": "list", "trials": [{"r": 4}, {"r": 8}]}, evaluate={"decoding": [{}, {"strategy": "top_k"}]}
    )
    with Store.create(directory, study) as store:
        for number, trial in enumerate(trials_in(store, study)):
            texts = ["London lies on the Thames", "Paris lies on the Seine", f"answer {number}"]
            rows = [{"id": f"q{i}", "prediction": text, "answers": ["London lies on the river"], "rouge_l": 0.5 + number / 20,
                     "loss": 1.0, "target_tokens": 4} for i, text in enumerate(texts)]  # fmt: skip
            entered(store, trial, rows, {"rouge_l": 0.5 + number / 20, "eval_loss": 1.0, "perplexity": 2.718})
            store.set_decodings(trial.trial, [
                {"label": label, "metrics": {"rouge_l": score, "distinct_1": 0.4}, "tokens_per_answer": 5.0,
                 "answers_per_second": 12.0, "unfinished": 1}
                for label, score in (("greedy", 0.5), ("top_k k=50", 0.3))
            ])  # fmt: skip
    return directory


def trials_in(store, study):
    from lorascope.design import expand

    store.add_trials(expand(study))
    return expand(study)


@pytest.fixture
def a_study(request, study_of, written, entered, tmp_path):
    """The directory of one kind of study."""
    ended = {
        1: {"status": "diverged", "error": "the loss was no number at step 3"},
        4: {"status": "failed", "error": f"memory ran out {EVIL}"},
        5: {"status": "pruned"},
    }
    makers = {
        "list": lambda: written(study_of()),
        "ablation": lambda: written(study_of(design=ABLATION, controls=[{"method": "full"}, {"method": "head"}])),
        "shapley": lambda: written(study_of(design=SHAPLEY)),
        "search": lambda: a_search(study_of, entered, tmp_path / "search"),
        "decodings": lambda: decoded(study_of, entered, tmp_path / "decodings"),
        "failures": lambda: written(study_of(), ended=ended),
        "one trial": lambda: written(study_of(design={"kind": "list", "trials": [{}]}, seeds=[1])),
        "one seed": lambda: written(study_of(seeds=[1])),
        "nothing finished": lambda: written(study_of(), ended={number: {"status": "planned"} for number in range(9)}),
        "nothing scored": lambda: written(study_of(), ended={number: {"status": "diverged"} for number in range(9)}),
    }
    return makers[request.param]()


KINDS = ["list", "ablation", "shapley", "search", "decodings", "failures", "one trial", "one seed", "nothing finished",
         "nothing scored"]  # fmt: skip
every_study = pytest.mark.parametrize("a_study", KINDS, indirect=True)


@every_study
def test_a_page_of_any_study_is_well_formed_and_fetches_nothing(a_study, page_of):
    page = page_of(a_study)
    assert page.source.startswith("<!doctype html>")
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "style", "data", "poster", "action"} & attributes.keys(), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"@import|url\(|https?://", page.source)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes} <= set(ids)


@every_study
def test_a_browser_would_run_the_script_that_sorts_and_no_other(a_study, page_of):
    page = page_of(a_study)
    scripts = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(one["content"] for _, one in page.elements if one.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


@every_study
def test_every_picture_has_words(a_study, page_of):
    page = page_of(a_study)
    pictures = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("class") == "chart"]
    assert all(one["role"] == "img" and len(one["aria-label"]) > 20 for one in pictures)
    signs = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("class") != "chart"]
    assert all(one["aria-hidden"] == "true" for one in signs)
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", " ".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)))


@every_study
def test_every_table_has_a_name_of_its_own_and_the_headline_is_the_title(a_study, page_of):
    page = page_of(a_study)
    for section in {table["section"] for table in page.tables}:
        captions = [table["caption"] for table in page.tables if table["section"] == section]
        assert all(captions)
        assert len(set(captions)) == len(captions)
    assert [attributes["class"] for tag, attributes in page.elements if tag == "h1"] == ["headline"]


def test_what_columns_mean_can_be_read_without_a_pointer(study_of, written, page_of):
    page = page_of(written(study_of()))
    hints = {attributes["title"] for tag, attributes in page.elements if tag == "th" and "title" in attributes}
    assert "corrected by Holm’s method" in hints
    assert all(hint in page.text for hint in hints)


@every_study
def test_every_trial_is_in_the_table_with_the_figures_of_results(a_study, page_of):
    page = page_of(a_study)
    with Store.open(a_study) as store:
        results = results_of([store])
    rows = {row["trial"]["text"].strip(): row for row in page.table("trials")}
    assert list(rows) == [trial["trial"] for trial in results["trials"]]
    columns = {"accuracy": "accuracy ↑", "eval_loss": "validation loss ↓", "rouge_l": "ROUGE-L ↑"}
    for trial in results["trials"]:
        row = rows[trial["trial"]]
        assert row["status"]["text"] == trial["status"]
        assert float(row["seed"]["value"]) == trial["seed"]
        for name, value in trial["metrics"].items():
            if name in columns:
                assert float(row[columns[name]]["value"]) == value
        if trial["trainable_params"] is not None:
            assert float(row["trainable"]["value"]) == trial["trainable_params"]
            assert float(row["time alone"]["value"]) == trial["solo_train_seconds_per_epoch"]
            assert float(row["memory alone"]["value"]) == trial["solo_peak_memory_bytes"] / 2**20


@every_study
def test_trials_without_a_score_are_counted_as_the_store_counts_them(a_study, page_of):
    with Store.open(a_study) as store:
        statuses = [row.status for row in store.trials()]
    rows = page_of(a_study).table("troubles")
    assert {row["status"]["text"]: float(row["trials"]["value"]) for row in rows} == {
        status: statuses.count(status) for status in statuses
    }


def test_what_went_wrong_is_told(study_of, written, page_of):
    ended = {0: {"status": "diverged", "error": "the loss was no number at step 3"}, 4: {"status": "failed", "error": EVIL}}
    directory = written(study_of(), ended=ended)
    with Store.create(directory, study_of(), resume=True) as store:
        for row in store.trials()[1:3]:
            store.add_warning(row.trial, "truncated", 7, "train", "7 targets were cut off")
    page = page_of(directory)
    told = {row["status"]["text"]: row["what happened"]["text"] for row in page.table("troubles", 1)}
    assert told == {"diverged": "the loss was no number at step 3", "failed": EVIL}
    warnings = page.table("troubles", 2)
    assert [(row["warning"]["text"], row["count"]["value"], row["of"]["text"]) for row in warnings] == [
        ("7 targets were cut off", "7.0", "2 trials")
    ]
    assert "1 diverged and 1 failed of 9 trials have no score" in page.text


def test_what_data_and_models_say_is_text(study_of, entered, tmp_path, page_of):
    study = study_of(design={"kind": "list", "trials": [{"targets": [EVIL]}, {"targets": ["value"]}]}, seeds=[1],
                     task={"name": "sst2", "data": f"{EVIL}.jsonl", "labels": [EVIL, "b"]},
                     base={"model": f"org/{EVIL}", "revision": EVIL})  # fmt: skip
    with Store.create(tmp_path / "run", study) as store:
        for number, trial in enumerate(trials_in(store, study)):
            guesses = [f"{EVIL} \x1b[31mred\x07 \u202eright {number}", EVIL]
            rows = [{"id": f"{EVIL}{i}", "prediction": text, "label": EVIL, "correct": number == 0, "loss": 0.5}
                    for i, text in enumerate(guesses)]  # fmt: skip
            entered(store, trial, rows, {"accuracy": float(number == 0), EVIL: 1.0}, error=EVIL)
            path = store.directory / "trials" / trial.trial / "predictions.jsonl"
            path.write_bytes(path.read_bytes() + b'{"id": "bad", "prediction": "\xff\xfe\\ud83d", "correct": true}\nno json\n')
            store.add_warning(trial.trial, EVIL, 1, EVIL, EVIL)
        store.set_info("versions", {EVIL: EVIL})
    page = page_of(tmp_path / "run")
    assert "<script>alert" not in page.source
    assert "<img" not in page.source
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert EVIL in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202e]", page.source)
    assert r"\u001b[31mred\u0007 \u202eright" in page.text
    assert "2 lines of the predictions could not be read" in page.text
    page.source.encode("utf-8")


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(study_of, written, page_of):
    directory = written(study_of(seeds=list(range(200))))
    whole = page_of(directory)
    assert len(whole.source.encode()) <= MOST_BYTES
    assert len(whole.table("trials")) == 600
    less = page_of(directory, most_bytes=150_000)
    assert len(less.source.encode()) <= 150_000
    assert len(less.table("trials")) == 50
    assert "The page has room for 50 of 600 rows" in less.text
    assert "The page would be too large with examples" in less.text
    sections = [[one["id"] for tag, one in page.elements if tag == "section"] for page in (whole, less)]
    assert sections[0] == sections[1]
    assert less.text.count("The page has no room for these pictures.") == len({"cost", "curves"} & {*sections[0]}) == 2


def test_the_same_store_gives_the_same_page(study_of, written):
    directory = written(study_of())
    pages = []
    for _ in range(2):
        with Store.open(directory) as store:
            pages.append(report_page([store], results_of([store])))
    assert pages[0] == pages[1]


def test_shards_make_one_page(study_of, written, page_of, entered, tmp_path):
    study = study_of()
    whole = written(study)
    first = written(study, "first", ended={number: {"status": "planned"} for number in range(5, 9)})
    second = written(study, "second", ended={number: {"status": "planned"} for number in range(5)})
    page, alone = page_of(first, second), page_of(whole)
    assert page.table("trials") == alone.table("trials")
    assert page.table("configurations") == alone.table("configurations")
    stores = [Store.open(first), Store.open(written(study_of(seeds=[7]), "other"))]
    with stores[0] as one, stores[1], pytest.raises(UsageError, match="another study"):
        report_page(stores, results_of([one]))


def test_a_page_names_no_path_of_the_machine(study_of, written, page_of):
    study = study_of(base={"model": "/home/somebody/models/tiny"}, task={"name": "sst2", "data": "/home/somebody/data/sst2"})
    ended = {0: {"status": "failed", "error": "/home/somebody/models/tiny/config.json: no such file"}}
    page = page_of(written(study, ended=ended))
    assert "/home/somebody" not in page.source
    assert "tiny (float32)" in page.text
    assert "--set base.model=DIR" in page.text


def test_a_report_is_written_whole(study_of, written, tmp_path, read_page):
    directory = written(study_of())
    with Store.open(directory) as store:
        write_report([store], results_of([store]), tmp_path / "deep" / "page.html")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]
    assert read_page((tmp_path / "deep" / "page.html").read_text(encoding="utf-8")).text.count("How to reproduce it") == 2


def test_the_study_file_on_the_page_is_the_study(study_of, written, page_of):
    import yaml

    from lorascope.config import Study

    study = study_of(design=SHAPLEY)
    source = page_of(written(study)).source
    folded = re.search(r"<details><summary>study.yaml</summary><pre>(.*?)</pre>", source, re.DOTALL)
    assert folded is not None
    from html import unescape

    again = Study.model_validate(yaml.safe_load(unescape(folded[1])))
    assert again.hash == study.hash
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(study.model_dump(mode="json"))
