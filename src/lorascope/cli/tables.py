"""Tables for people: the plan of a study and its results. Floor: cli."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorascope.amounts import bytes_text, counted, seconds_text
from lorascope.config import AdapterConfig, configuration_of
from lorascope.embedded import is_embedded

# Shown in every table, whether they vary or not.
_ALWAYS = ("r", "lora_alpha", "targets")

_ADAPTER_KEYS = frozenset(AdapterConfig.model_fields)
# Words rather than numbers; the column without a header holds bars, whose scale begins on the left.
_LEFT = ("trial", "status", "configuration", "against", "verdict", "")

# A word of a folding column that is longer than this may be broken.
_LONGEST_WORD = 16


def varying_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys worth a column: rank, alpha and targets, and whatever differs between trials."""
    keys = dict.fromkeys(key for config in configs for key in config)
    varying = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return [*(key for key in _ALWAYS if key in keys), *(key for key in varying if key not in _ALWAYS)]


def print_plan(console: Console, document: Mapping[str, Any]) -> None:
    """The output of ``lorascope plan``."""
    trials = document["trials"]
    columns = {
        "trial": [trial["trial"] for trial in trials],
        **_config_columns(trials),
        "trainable": [f"{trial['trainable_params']:,}" for trial in trials],
        "all": [f"{trial['total_params']:,}" for trial in trials],
        "%": [f"{trial['trainable_percent']:.4f}" for trial in trials],
        "memory": [bytes_text(trial["memory_bytes"]) for trial in trials],
        "time": [seconds_text(trial["train_seconds"]) for trial in trials],
        "fits": ["yes" if trial["fits"] else "no" for trial in trials],
    }
    config = _config_columns(trials)
    print_table(console, _title(document), columns, config.keys(), ("all", "%", *_by_need(config), "trainable", "time"))
    if document.get("shapley"):
        game = document["shapley"]
        console.print(f"{game['game']}: {game['how']}", markup=False, highlight=False, soft_wrap=True)
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        if trial["reason"]:
            reasons.setdefault(trial["reason"], []).append(trial["trial"])
    if "search" in document:
        _print_space(console, document["search"])
    lines = [f"{'' if len(names) == len(trials) else ', '.join(names) + ': '}{reason}" for reason, names in reasons.items()]
    lines += [*dropped_lines(document.get("dropped", ())), *_total_lines(document)]
    if document.get("refused"):
        lines.append(f"a run within this is refused: {document['refused']['what']}; {document['refused']['fix']}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def dropped_lines(dropped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Reason by reason, the configurations that are dropped."""
    reasons: dict[str, dict[str, None]] = {}
    for one in dropped:
        reasons.setdefault(one["reason"], {})[configuration_of(one["trial"])] = None
    return [f"dropped: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _total_lines(document: Mapping[str, Any]) -> list[str]:
    """What training takes in all, and what that rests on."""
    total = document.get("train_seconds_total")
    if total is None:
        return []
    speedup = document["speedup"]
    cohorts = speedup["measured_cohorts"]
    how = f"as measured on {counted(cohorts, 'cohort')}" if cohorts else "assumed: none was measured"
    share = f"trials of one cohort together {speedup['value']:.2f} times as fast as one after the other ({how})"
    scope = document["train_seconds_scope"]
    return [f"training of {scope}: about {seconds_text(total)}; times {document['train_seconds_from']}; {share}"]


def print_results(console: Console, document: Mapping[str, Any]) -> None:
    """The output of ``lorascope results``."""
    trials = document["trials"]
    metrics = list(dict.fromkeys(name for trial in trials for name in trial["metrics"]))
    columns = {
        "trial": [trial["trial"] for trial in trials],
        "status": [trial["status"] for trial in trials],
        **_config_columns(trials),
        **{name: [number_text(trial["metrics"].get(name)) for trial in trials] for name in metrics},
        "trainable": ["–" if (n := trial["trainable_params"]) is None else f"{n:,}" for trial in trials],
        "%": [number_text(trial["trainable_percent"]) for trial in trials],
        "alone: s/epoch": [seconds_text(trial["solo_train_seconds_per_epoch"]) for trial in trials],
        "ex/s": [number_text(trial["solo_examples_per_second"], 1) for trial in trials],
        "memory": [bytes_text(trial["solo_peak_memory_bytes"]) for trial in trials],
    }
    # A column is whole or absent: half a number looks like another one.
    config = _config_columns(trials)
    costs = ("ex/s", "%", "memory", "alone: s/epoch", "trainable")
    status = ("status",) if all(trial["status"] == "done" for trial in trials) else ()
    dispensable = (*costs, *reversed(metrics[1:]), *status, *_by_need(config))
    print_table(console, _title(document), columns, config.keys(), dispensable)
    print_comparisons(console, document)
    print_decodings(console, document)
    print_ablation(console, document)
    print_controls(console, document)
    if "search" in document:
        print_search(console, document)
    if "c_score" in metrics:
        print_judge(console, document["judge"])
    if document.get("shapley"):
        print_shapley(console, document)
    unsettled = [trial for trial in trials if trial["status"] != "done"]
    if unsettled:
        counts = ", ".join(
            f"{sum(trial['status'] == status for trial in unsettled)} {status}"
            for status in dict.fromkeys(trial["status"] for trial in unsettled)
        )
        console.print(f"{len(unsettled)} of {len(trials)} trials have no score: {counts}", highlight=False)


def print_search(console: Console, document: Mapping[str, Any]) -> None:
    """A search's configurations, best first, how its best score grew, and which keys mattered."""
    search = document["search"]
    rows = search["configurations"]
    name = search["objective"]
    columns = {
        "configuration": [row["configuration"] for row in rows],
        "proposed": [str(row["number"] + 1) for row in rows],
        **{key: [text_of(row["values"][key]) for row in rows] for key in (rows[0]["values"] if rows else ())},
        name: [number_text(row["objective"]) for row in rows],
        "status": [
            row["status"] if (rung := row["last_rung"]) is None or row["objective"] is not None
            else f"{row['status']} at step {rung['step']}: {rung['objective']:.4f}"
            for row in rows
        ],
    }  # fmt: skip
    title = f"{document['study']}: {counted(len(rows), 'configuration')} by {search['sampler']}, best first"
    values = dict(rows[0]["values"]) if rows else {}
    print_table(console, title, columns, {*values, "status"}, ("proposed", "status", *_by_need(values)))
    if search["best"] is not None:
        grown = [step for step, before in zip(search["course"], [None, *search["course"]], strict=False)
                 if step["best"] is not None and (before is None or step["best"] != before["best"])]  # fmt: skip
        steps = ", ".join(f"{step['best']:.4f} ({step['proposed']})" for step in grown)
        console.print(f"best: {search['best']}; {name} by configurations proposed: {steps}", highlight=False, soft_wrap=True)
        chosen = f"it was chosen on {search['chosen_on']}, the split that it is scored on: expect less of it on other data"
        console.print(chosen, highlight=False, soft_wrap=True)
    if search["reason"] is not None:
        console.print(f"no best configuration: {search['reason']}", markup=False, highlight=False, soft_wrap=True)
    if search["importances"]:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in search["importances"].items())
        over = f"over {search['finished']} finished configurations"
        console.print(f"share of each key in {name} (fANOVA, {over}): {shares}", highlight=False, soft_wrap=True)


def _print_space(console: Console, search: Mapping[str, Any]) -> None:
    """What a search's plan adds: how much is proposed, and what the cheapest and the costliest configurations take."""
    text = f"{counted(search['configurations'], 'configuration')} in all, {search['batch']} at a time; the first are shown"
    console.print(f"{text}: they depend on no result", highlight=False, soft_wrap=True)
    for which in ("cheapest", "costliest"):
        row = search[which]
        cost = (
            f"{row['trainable_params']:,} parameters, {bytes_text(row['memory_bytes'])}, {seconds_text(row['train_seconds'])}"
        )
        console.print(f"{which}: {cost}", highlight=False, soft_wrap=True)
    for config in search["does_not_fit"]:
        values = ", ".join(f"{key} {_config_text(config, key)}" for key in search["over"])
        console.print(f"does not fit: {values}", markup=False, highlight=False, soft_wrap=True)


def print_comparisons(console: Console, document: Mapping[str, Any]) -> None:
    """Which configurations differ, and how sure that is; nothing where there is one configuration."""
    compared = document.get("comparisons") or {"rows": []}
    rows = compared["rows"]
    if not rows:
        return
    fewest, metrics = compared["fewest_seeds"], ", ".join(compared["metrics"])
    if all(row["verdict"] == "too few seeds" for row in rows):
        message = f"no verdict on {metrics}: no two configurations have {fewest} seeds in common, the fewest that tell luck"
        console.print(message, markup=False, highlight=False, soft_wrap=True)
        return
    configs = {configuration_of(trial["trial"]): trial["config"] for trial in document["trials"]}
    chosen = [{"config": configs[row["configuration"]]} for row in rows]
    varying = _config_columns([*chosen, *({"config": configs[row["against"]]} for row in rows)])
    columns = {
        "configuration": [row["configuration"] for row in rows],
        **({"against": [row["against"] for row in rows]} if compared["baseline"] is None else {}),
        **{key: cells[: len(rows)] for key, cells in varying.items()},
        **({"metric": [row["metric"] for row in rows]} if len(compared["metrics"]) > 1 else {}),
        "difference": [_signed_text(row["difference"]) for row in rows],
        f"{compared['level']:.0%} interval": [
            "–" if row["low"] is None else f"{_signed_text(row['low'])} … {_signed_text(row['high'])}" for row in rows
        ],
        "p": [number_text(row["p_holm"]) for row in rows],
        "verdict": [row["verdict"] for row in rows],
        "seeds": [str(row["seeds"]) for row in rows],
        "examples": ["–" if row["examples"] is None else f"{row['examples']:,}" for row in rows],
    }
    against = "every two configurations" if compared["baseline"] is None else f"against {compared['baseline']}"
    if compared["baseline"] is not None:
        against += f" ({', '.join(f'{key} {cells[-1]}' for key, cells in varying.items())}; {compared['baseline_chosen']})"
    title = f"{document['study']}: {metrics} {against}"
    print_table(console, title, columns, varying.keys(), ("examples", "p", *_by_need(varying)))
    lines = [f"p and verdict: {compared['correction']}; intervals: each for itself"]
    lines += dict.fromkeys(row["note"] for row in rows if row["note"])
    for name, counts in compared["configurations"].items():
        lost = ", ".join(f"{number} {status}" for status, number in counts.items() if status != "done")
        lines += [f"{name}: {lost} of {counted(sum(counts.values()), 'seed')}"] if lost else []
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_decodings(console: Console, document: Mapping[str, Any]) -> None:
    """Adapter × way of decoding, where there are several ways: score, diversity, length and speed."""
    rows = [(trial, one) for trial in document["trials"] for one in trial["decoding"]]
    if all(len(trial["decoding"]) < 2 for trial in document["trials"]):
        return
    metrics = list(dict.fromkeys(name for _, one in rows for name in one["metrics"]))
    columns = {
        "trial": [trial["trial"] for trial, _ in rows],
        "decoding": [one["label"] for _, one in rows],
        **{name: [number_text(one["metrics"].get(name)) for _, one in rows] for name in metrics},
        "tokens": [number_text(one["tokens_per_answer"], 1) for _, one in rows],
        "answers/s": [number_text(one["answers_per_second"], 1) for _, one in rows],
        "unfinished": [str(one["unfinished"]) for _, one in rows],
    }
    title = f"{document['study']}: {counted(len({one['label'] for _, one in rows}), 'decoding')}"
    dispensable = ("unfinished", *reversed(metrics))
    print_table(console, title, columns, {"decoding"}, dispensable)


def print_ablation(console: Console, document: Mapping[str, Any]) -> None:
    """Factor by factor: the mean over seeds, and the difference to the baseline."""
    ablation = document.get("ablation")
    if ablation is None:
        return
    rows, metric = ablation["rows"], ablation["metric"]
    columns = {
        "factor": [row["factor"] for row in rows],
        "value": ["" if row["factor"] == "baseline" else text_of(row["value"]) for row in rows],
        metric: [mean_text(row["mean"], row["interval"]) for row in rows],
        "Δ to baseline": [
            "baseline"
            if row["configuration"] == rows[0]["configuration"]
            else mean_text(row["delta"], row["delta_interval"], "+")
            for row in rows
        ],
        "seeds": [_seeds_text(row) for row in rows],
    }
    percent = f"{ablation['confidence']:.0%}"
    print_table(console, f"{document['study']}: one factor at a time (± {percent} over seeds)", columns, {"value"}, ("seeds",))


def print_controls(console: Console, document: Mapping[str, Any]) -> None:
    """How far each adapter falls short of full fine-tuning, and of a head alone."""
    controls = document.get("controls")
    if controls is None:
        return
    metric, margin = controls["metric"], controls["margin_percent"]
    for method, found in controls["methods"].items():
        best = found["chosen"]
        if best is None:
            line = f"{method}: no configuration has a score with every seed, so there is nothing to hold adapters against"
        else:
            rates = counted(len(found["tried"]), "configuration")
            edge = "; it is the first or last that was tried, a better one may lie beyond" if found["at_edge"] else ""
            score = f"{metric} {mean_text(best['mean'], best['interval'])} over {counted(best['num_seeds'], 'seed')}"
            line = f"{method}: {score} at learning rate {best['learning_rate']:g}, the best of {rates}{edge}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    rows = controls["shortfalls"]
    if rows:
        config, against = _config_columns(rows), dict.fromkeys(row["against"] for row in rows)
        columns = {
            "configuration": [row["configuration"] for row in rows],
            **config,
            metric: [mean_text(row["mean"], row["interval"]) for row in rows],
            **({"against": [row["against"] for row in rows]} if len(against) > 1 else {}),
            "shortfall": [mean_text(row["shortfall"], row["interval_of_shortfall"], "+") for row in rows],
            "%": [_percent_text(row) for row in rows],
            f"within {margin:g} %": [{None: "not known", True: "yes", False: "no"}[row["within_margin"]] for row in rows],
            "seeds": [_seeds_text({**row, "num_seeds": row["paired_seeds"]}) for row in rows],
        }
        title = f"{document['study']}: shortfall against {'controls' if len(against) > 1 else ''.join(against)}"
        print_table(console, title, columns, config.keys(), (metric, "seeds", *_by_need(config), "%"))
        level = f"{controls['confidence']:.0%}"
        how = f"yes and no: every seed has a score, and the {level} interval lies on one side of {margin:g} %"
        console.print(how, markup=False, highlight=False, soft_wrap=True)
    console.print(f"a control is the best by {controls['chosen_on']}", markup=False, highlight=False, soft_wrap=True)


def _percent_text(row: Mapping[str, Any]) -> str:
    """A shortfall in percent, with its interval where that is known."""
    if row["percent"] is None:
        return "–"
    ends = row["percent_interval"]
    return f"{row['percent']:+.2f}" + ("" if ends is None else f" ({ends[0]:+.2f} … {ends[1]:+.2f})")


def _seeds_text(row: Mapping[str, Any]) -> str:
    """``3``, or ``2 of 3`` where a trial has no score."""
    return str(row["num_seeds"]) if row["num_seeds"] == row["num_trials"] else f"{row['num_seeds']} of {row['num_trials']}"


def mean_text(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    """``0.9123 ± 0.0040``; no interval where there was one value, or all were the same."""
    if value is None:
        return "–"
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.4f}"
    return f"{value:{sign}.4f}{half}"


def print_judge(console: Console, judge: Mapping[str, Any] | None) -> None:
    """Whose opinion a C-score is, and how often it is right."""
    if judge is None:
        return
    name = judge["model"] if judge["revision"] is None else f"{judge['model']} at {judge['revision'][:12]}"
    adapter = judge["adapter"]
    if adapter is not None:
        name = adapter if is_embedded(adapter) else f"{name} with {adapter}"
    check = judge["check"]
    known = (
        "its accuracy was not measured (give evaluate.judge.check)"
        if check is None
        else f"accuracy {check['accuracy']:.4f} on {check['num_examples']:,} examples of {check['task']} ({check['split']})"
    )
    console.print(f"c_score is judged by {name}: {known}", markup=False, highlight=False, soft_wrap=True)


def print_shapley(console: Console, document: Mapping[str, Any]) -> None:
    """What each player adds: for every metric a table with bars, the ranking, interactions, and the recommendation."""
    game = document["shapley"]
    seeds = counted(len(game["seeds"]), "seed")
    console.print(f"{document['study']}: {game['what']}; {seeds}", markup=False, highlight=False, soft_wrap=True)
    for name, metric in game["metrics"].items():
        if "values" not in metric:
            console.print(f"{name}: no values, {metric['reason']}", markup=False, highlight=False, soft_wrap=True)
            continue
        _print_values(console, name, metric)
        lines = [metric["verdict"], *_interaction_lines(metric), *metric["notes"], *_agreement_lines(metric)]
        if metric["recommended"] is not None:
            chosen = metric["recommended"]
            members = " ".join(chosen["players"]) or "(none)"
            lines.append(f"recommended: {members} ({name} {number_text(chosen['mean'])}): {chosen['why']}")
        for line in lines:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    for line in [*_latency_lines(game["latency"]), *_cost_lines(game.get("cost"))]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_values(console: Console, name: str, metric: Mapping[str, Any]) -> None:
    order = [player for group in metric["ranking"] for player in group]
    values = [metric["values"][player] for player in order]
    columns = {
        "player": order,
        "value": [_signed_text(value["estimate"]) for value in values],
        "95 % interval": [_interval_text(value) for value in values],
        "": _bars(values),
        "per M parameters": [number_text(value["per_million_parameters"]) for value in values],
        "per s of an epoch": [number_text(value["per_second"]) for value in values],
        "per ms of latency": [number_text(value["per_ms_latency"]) for value in values],
    }
    calibrated = metric.get("calibrated", {}).get("values")
    if calibrated:
        columns["calibrated"] = [_signed_text(calibrated[player]["estimate"]) for player in order]
        columns["its interval"] = [_interval_text(calibrated[player]) for player in order]
    columns = {header: cells for header, cells in columns.items() if set(cells) - {"–", ""}}
    better = "higher is better" if metric["higher_is_better"] else "lower is better: a negative value helps"
    coalitions = counted(metric["num_coalitions"], "coalition")
    whole = f"{_signed_text(metric['full']['estimate'])} {_interval_text(metric['full'])}"
    title = f"{name} ({better}; {coalitions}{'' if metric['exact'] else ', sampled'}); all together {whole}"
    print_table(console, title, columns, {"player"}, ("per ms of latency", "per s of an epoch", "per M parameters", ""))


def _latency_lines(latency: Mapping[str, Any]) -> list[str]:
    """What each player adds to a pass, and how that was measured."""
    if "players" not in latency:
        return [f"latency: {latency['reason']}"]
    parts = [f"{player} {_signed_text(one['ms'])} {_interval_text(one)}" for player, one in latency["players"].items()]
    return [f"latency in ms: {'; '.join(parts)}", f"  ({latency['what']})"]


_BAR = 25


def _bars(values: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Each interval as a line with the estimate on it and zero marked, all on one scale."""
    ends = [value[end] for value in values for end in ("estimate", "low", "high") if value[end] is not None]
    low, high = min(0.0, *(end for end in ends if end is not None)), max(0.0, *(end for end in ends if end is not None))
    span = (high - low) or 1.0

    def place(value: float) -> int:
        return round((value - low) / span * (_BAR - 1))

    bars = []
    for value in values:
        cells = [" "] * _BAR
        if value["low"] is not None and value["high"] is not None:
            cells[place(value["low"]) : place(value["high"]) + 1] = "─" * (place(value["high"]) - place(value["low"]) + 1)
        cells[place(0.0)] = "│"
        assert value["estimate"] is not None
        cells[place(value["estimate"])] = "●"
        bars.append("".join(cells))
    return bars


_INTERACTIONS = 6


def _interaction_lines(metric: Mapping[str, Any]) -> list[str]:
    """The pairs that add more, or less, together than apart: the largest, and how many can be told from zero."""
    pairs = sorted(metric["interactions"], key=lambda pair: -abs(pair["estimate"] or 0.0))
    known = [pair for pair in pairs if pair["low"] is not None and pair["high"] is not None]
    clear = [pair for pair in known if pair["low"] > 0.0 or pair["high"] < 0.0]
    lines = [
        f"interaction of {' and '.join(pair['players'])}: {_signed_text(pair['estimate'])} {_interval_text(pair)}"
        for pair in (clear or pairs)[:_INTERACTIONS]
        if pair["estimate"] is not None
    ]
    if known:
        lines.append(f"{len(clear)} of {counted(len(pairs), 'interaction')} can be told from zero, each for itself")
    return lines


def _agreement_lines(metric: Mapping[str, Any]) -> list[str]:
    """How far a one-run map is to be believed."""
    found = metric.get("agreement")
    if found is None:
        return []
    told = {
        f"the map against retraining ({found['num_retrained']} coalitions, means over the seeds)": [found["of_means"]],
        "the map against retraining, one seed each": found["by_seed"],
        "retraining against itself with another seed": found["retraining_with_itself"],
        "the players' additive effects, by the map and by retraining": [found["of_effects"]] if found["of_effects"] else [],
    }
    lines = []
    for what, figures in told.items():
        taus = [each["kendall_tau"] for each in figures if each["kendall_tau"] is not None]
        correlations = [each["pearson"] for each in figures if each["pearson"] is not None]
        if taus:
            tau, correlation = sum(taus) / len(taus), sum(correlations) / len(correlations)
            lines.append(f"{what}: Kendall's tau {tau:.2f}, correlation {correlation:.2f}")
    calibrated = metric["calibrated"]
    if "values" in calibrated:
        many = counted(calibrated["num_retrained"], "retrained coalition")
        lines.append(f"calibrated: usefulness by the map as a control variate for {many} (slope {calibrated['slope']:.2f})")
    return lines or ["agreement with retraining: not known, no retrained coalition is done"]


def _cost_lines(cost: Mapping[str, Any] | None) -> list[str]:
    if cost is None:
        return []
    if "reason" in cost:
        return [f"cost against retraining: {cost['reason']}"]
    share = cost["share_of_retraining_as_many_as_read"]
    return [
        f"cost of a map: {seconds_text(cost['map_train_seconds'])} of training and {seconds_text(cost['map_read_seconds'])} "
        f"of reading {cost['num_read']:g} coalitions; to retrain as many takes "
        f"{seconds_text(cost['seconds_per_retrained_coalition'] * cost['num_read'])} alone, {1.0 / share:.1f} times as long"
    ]


def _signed_text(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _interval_text(value: Mapping[str, float | None]) -> str:
    return "" if value["low"] is None else f"[{_signed_text(value['low'])}, {_signed_text(value['high'])}]"


def _title(document: Mapping[str, Any]) -> str:
    return f"{document['study']}: {counted(len(document['trials']), 'trial')}"


def _config_columns(trials: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    keys = varying_keys([trial["config"] for trial in trials])
    return {key: [_config_text(trial["config"], key) for trial in trials] for key in keys}


def _config_text(config: Mapping[str, Any], key: str) -> str:
    """What a trial that has no adapter says of one is a default that acts on nothing."""
    idle = key != "method" and key in _ADAPTER_KEYS and config.get("method", "lora") != "lora"
    return text_of(None if idle else config.get(key))


def print_table(
    console: Console,
    title: str,
    columns: Mapping[str, Sequence[str]],
    folding: Set[str],
    dispensable: Sequence[str],
) -> None:
    """Print the columns; on a narrow terminal the folding ones fold, and then the dispensable ones go, by name.

    Of ``dispensable``, names of columns that there are not say nothing. What folds does so between words.
    """
    shown = dict(columns)
    hidden = []
    for name in (one for one in dispensable if one in columns):
        if sum(_width(header, cells, header in folding) for header, cells in shown.items()) < console.width:
            break
        hidden.append(name)
        del shown[name]
    table = Table(title=escape(title), title_justify="left")
    for header in shown:
        left = "left" if header in folding or header in _LEFT else "right"
        least = _width(header, shown[header], header in folding) - 3
        table.add_column(
            escape(header),
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=header not in folding,
            min_width=least,
        )
    for row in zip(*shown.values(), strict=True):
        table.add_row(*map(escape, row))
    console.print(table)
    if hidden:
        console.print(f"no room for: {', '.join(hidden)} (--json has all)", markup=False, highlight=False)


def _width(header: str, cells: Sequence[str], folds: bool) -> int:
    """Characters that a column takes with its padding and border."""
    if not folds:
        return 3 + max(map(cell_len, (header, *cells)))
    words = [min(cell_len(word), _LONGEST_WORD) for cell in cells for word in cell.split()]
    return 3 + max(cell_len(header), *words, 1)


def _by_need(config: Collection[str]) -> list[str]:
    """A configuration's keys in the order in which a narrow table does without them: the id of the row tells them too."""
    last = [key for key in ("lora_alpha", "r", "targets") if key in config]
    return [*(key for key in config if key not in last), *last]


def text_of(value: Any) -> str:
    """A configuration's value in a cell."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "(none)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number_text(value: float | None, digits: int = 4) -> str:
    """A metric in a cell."""
    return "–" if value is None else f"{value:.{digits}f}"
