"""``lorascope inspect --speed``: the table and the document say what was measured, on what."""

import json

import pytest

QUICK = ("--prompt-tokens", 6, "--max-new-tokens", 2, "--repeats", 2, "--slots", 2)


def test_generation_is_timed_as_prefill_and_per_token_in_every_configuration(cli, small_adapter):
    adapters = [small_adapter(name, "llama") for name in ("one", "two")]
    ended = cli("inspect", *adapters, "--speed", *QUICK, "--batch", 3, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)["speed"]
    assert (document["phases"], document["dtype"], document["device_type"]) == (["prefill", "per_token"], "float32", "cpu")
    assert document["threads"] >= 1
    assert document["device"]
    named = [row["configuration"] for row in document["configurations"]]
    assert named[:5] == ["base alone", "one, merged", "one, unmerged", "two, merged", "two, unmerged"]
    assert named[-1] == "2 adapters at once"
    for row in document["configurations"]:
        for phase in row["phases"].values():
            assert phase["low"] <= phase["seconds"] <= phase["high"]
            assert len(phase["all_seconds"]) == 2
    merged, together = document["configurations"][1], document["configurations"][-1]
    assert {phase["times_merged"] for phase in merged["phases"].values()} == {1.0}
    assert (merged["rows"], together["rows"]) == (3, 6)
    prefill = together["phases"]["prefill"]
    assert prefill["tokens_per_second"] == pytest.approx(6 * 6 / prefill["seconds"])
    assert prefill["times_merged_one_after_another"] == pytest.approx(prefill["times_merged"] / 2)
    assert [one["adapter"] for one in document["agreement"]] == ["one", "two"]
    assert all(one["difference"] < 1e-3 * one["effect"] for one in document["agreement"])
    assert all(one["holds"] for one in document["agreement"])
    assert document["warnings"] == []
    assert "round 2 of 2" in ended.err


def test_a_classifier_is_timed_in_one_pass_and_the_table_says_on_what(cli, small_adapter):
    ended = cli("inspect", small_adapter(), "--speed", *QUICK)
    assert ended.code == 0, ended.err
    assert "one pass, ms" in ended.out
    assert "per token" not in ended.out
    assert "threads, float32; 2 rounds in turns" in ended.out
    assert "logits merged and unmerged differ by" in ended.out


def test_adapters_of_different_bases_rows_too_long_and_idle_options_are_refused(cli, small_adapter):
    one, other = small_adapter("one"), small_adapter("two", "llama")
    cases = [
        ((one, other, "--speed", *QUICK), "adapters of different bases"),
        ((other, "--speed", "--prompt-tokens", 120, "--max-new-tokens", 20),
         "120 prompt tokens + 20 new tokens exceed the model's 128 positions; ask for fewer"),
        ((one, "--batch", 2), "--batch: it belongs to --speed; add --speed"),
        ((one, "--speed", "--task", "sst2", "--data", "x"), "--task: it has no effect with --speed"),
    ]  # fmt: skip
    for options, message in cases:
        ended = cli("inspect", *options)
        assert (ended.code, ended.out) == (2, ""), options
        assert message in ended.err


def test_a_cut_is_timed_beside_the_adapter_that_it_was_made_of(cli, small_adapter, tmp_path):
    ended = cli("inspect", small_adapter(), "--truncate", 1e-9, "--out", tmp_path / "cut", "--speed", *QUICK, "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["truncation"]["directions"] == 12
    assert document["speed"]["adapters"] == {"adapter": str(tmp_path / "adapter"), "cut": str(tmp_path / "cut")}
    named = {row["configuration"] for row in document["speed"]["configurations"]}
    assert {"adapter, merged", "adapter, unmerged", "cut, merged", "cut, unmerged"} <= named
    assert f"written to {tmp_path / 'cut'}" in ended.err
