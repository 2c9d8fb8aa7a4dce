"""``python -m benchmarks.map_cost DIR…``: what one-run maps cost and how far they are right, from finished studies alone.

Cost: the seconds of one map, training and reading, against those of retraining the coalitions that it is held against: one
after another (each configuration as it was measured alone) and in stacks (as the study trained them). Retraining counts
training alone, so its share would be larger still with evaluation. Agreement: each seed's map against that seed's retrained
coalitions, and retraining with itself under another seed, which is the ceiling.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.study_time import stacked_seconds
from lorascope.attribution.document import shapley_document
from lorascope.attribution.players import stored_game
from lorascope.store import Store, merge_results

_FIGURES = ("kendall_tau", "pearson", "spearman")


def cost_table(cost: Mapping[str, Any], retrained_in_stacks: float) -> str:
    """Seconds for one seed, in Markdown; ``cost`` as results show it."""
    if "reason" in cost:
        return f"cost: {cost['reason']}"
    of_map = cost["map_train_seconds"] + cost["map_read_seconds"]
    alone = cost["seconds_per_retrained_coalition"] * cost["num_retrained"]
    rows = {
        f"map: training {cost['map_train_seconds']:.1f} s, reading {cost['num_read']:g} coalitions": of_map,
        f"retraining {cost['num_retrained']} coalitions one after another": alone,
        "the same in stacks": retrained_in_stacks,
    }
    lines = ["| one seed | s | map's share |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {seconds:.1f} | {_share(of_map, seconds)} |" for what, seconds in rows.items())])


def agreement_table(agreement: Mapping[str, Any]) -> str:
    """Every comparison in Markdown, and the map's mean over the seeds as a share of the ceiling's."""
    rows = [
        *((f"map, seed {each['seed']}, against retraining with it", each) for each in agreement["by_seed"]),
        ("means over the seeds", agreement["of_means"]),
        ("players' additive effects", agreement["of_effects"]),
        *(
            (f"retraining, seeds {each['seeds'][0]} and {each['seeds'][1]}", each)
            for each in agreement["retraining_with_itself"]
        ),
    ]
    lines = ["| | Kendall's τ | Pearson | Spearman |", "|---|---|---|---|"]
    lines += [f"| {what} | {' | '.join(_number(each[key]) for key in _FIGURES)} |" for what, each in rows if each is not None]
    shares = [_share_of_means(agreement["by_seed"], agreement["retraining_with_itself"], key) for key in _FIGURES]
    return "\n".join([*lines, f"| **map's mean ÷ ceiling's mean** | {' | '.join(shares)} |"])


def _share_of_means(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], key: str) -> str:
    known = [[each[key] for each in side if each[key] is not None] for side in (one, other)]
    return _share(*map(mean, known)) if all(known) else "–"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main() -> None:
    """Print the tables of one study, over its shards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.map_cost", description="What one-run maps cost and are worth.")
    parser.add_argument("directories", type=Path, nargs="+", help="a study's directory, or those of its shards")
    directories = parser.parse_args().directories
    with ExitStack() as opened:
        stores = [opened.enter_context(Store.open(directory)) for directory in directories]
        document = shapley_document(stores)
        rows = merge_results(stores)
        study = stores[0].study
    if document.get("game") != "one_run":
        raise SystemExit("no study of the game one_run")
    game = stored_game(study, rows)
    retrained = [row for row in rows if game.coalition_of(row.config) is not None]
    print(cost_table(document["cost"], stacked_seconds(retrained) / len(study.seeds)))
    for name, metric in document["metrics"].items():
        found = metric["agreement"]
        print(f"\n**{name}**, {found['num_retrained']} retrained coalitions\n\n{agreement_table(found)}")


if __name__ == "__main__":
    main()
