"""From a study's design and controls to its trials.

Knows what ``list``, ``grid``, ``ablation`` and ``controls`` mean and which keys may vary. Does not know models or data, nor
what trials gave (``effects``). Floor: above ``cohort``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorascope.config import (
    SECTIONS,
    AblationDesign,
    GridDesign,
    ListDesign,
    Study,
    TrialConfig,
    design_keys,
    section_of,
    validate,
)
from lorascope.errors import UsageError, did_you_mean


def expand(study: Study) -> list[TrialConfig]:
    """The design's trials, then the controls, each configuration with every seed; equal configurations count once.

    Of a search and of a Shapley design, whose trials are proposed as the study goes on, the controls alone.

    Raises:
        UsageError: a key that no section has, or a value that the section refuses.
    """
    trials: dict[str, TrialConfig] = {}
    for overrides, where in (*_overrides(study), *_controls(study)):
        sections = apply(study, overrides, where)
        # An adapter that comes trained has no seed of its own; it is evaluated once.
        seeds = study.seeds[:1] if sections["adapter"].path is not None else study.seeds
        for seed in seeds:
            trial = TrialConfig(**sections, seed=seed)
            trials.setdefault(trial.trial, trial)
    return list(trials.values())


def factors(study: Study) -> list[tuple[str, Any, str]]:
    """Of an ablation, the factor, its value and the configuration of each row of its table; the baseline comes first.

    A value that is the baseline's own has the baseline's configuration. No rows for other designs.
    """
    if not isinstance(study.design, AblationDesign):
        return []

    def configuration(overrides: Mapping[str, Any]) -> str:
        return TrialConfig(**apply(study, overrides, "design"), seed=study.seeds[0]).configuration

    rows: list[tuple[str, Any, str]] = [("baseline", None, configuration({}))]
    for key, values in study.design.over.items():
        rows += [(key, value, configuration(_one_factor(study, study.design, key, value))) for value in values]
    return rows


def shard(trials: Sequence[TrialConfig], index: int, count: int) -> list[TrialConfig]:
    """The ``index``-th of ``count`` parts, from 1; the parts are disjoint and together hold every trial."""
    return list(trials[index - 1 :: count])


def parse_shard(text: str) -> tuple[int, int]:
    """``"2/4"`` as (2, 4).

    Raises:
        UsageError: it is no pair I/N with 1 ≤ I ≤ N.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"{text!r} is no shard", where="--shard", fix="write I/N with I from 1 to N, for example 1/4")
    return int(index), int(count)


def _overrides(study: Study) -> Iterator[tuple[Mapping[str, Any], str]]:
    design = study.design
    if isinstance(design, ListDesign):
        for index, trial in enumerate(design.trials):
            yield trial, study.place("design", "trials", str(index))
    elif isinstance(design, GridDesign):
        for combination in itertools.product(*design.over.values()):
            yield dict(zip(design.over, combination, strict=True)), study.place("design", "over")
    elif isinstance(design, AblationDesign):
        yield {}, "design"
        for key, values in design.over.items():
            for value in values:
                yield _one_factor(study, design, key, value), study.place("design", "over", key)


def _controls(study: Study) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each control with every combination of the values of its lists; a learning rate of its own, for example."""
    for index, control in enumerate(study.controls):
        where = study.place("controls", str(index))
        method = control.get("method")
        if method not in ("full", "head"):
            fix = "give it method: full or method: head; other trials belong into the design"
            raise UsageError(f"a control has method {method!r}", where=where, fix=fix)
        values = [value if isinstance(value, list) else [value] for value in control.values()]
        for combination in itertools.product(*values):
            yield dict(zip(control, combination, strict=True)), where


def _one_factor(study: Study, design: AblationDesign, key: str, value: Any) -> dict[str, Any]:
    """One changed factor; along with ``r``, alpha keeps the baseline's ratio to it, as ``2r`` does by itself."""
    if key == "r" and isinstance(value, int | float) and not isinstance(study.adapter.lora_alpha, str):
        return {"r": value, "lora_alpha": study.adapter.alpha * value / study.adapter.r}
    return {key: value}


def apply(study: Study, overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The study's ``adapter``, ``train`` and ``base`` with some keys replaced, as ``TrialConfig`` takes them.

    Raises:
        UsageError: a key that no section has, or a value that the section refuses; names ``where``.
    """
    sections: dict[str, dict[str, Any]] = {
        "adapter": study.adapter.model_dump(),
        "train": study.train.model_dump(),
        "base": study.base.model_dump(),
    }
    for key, value in overrides.items():
        section = section_of(key)
        if section is None:
            raise UsageError(f"no section has a key {key!r}", where=where, fix=did_you_mean(key, design_keys()))
        sections[section][key] = value
    made = {name: validate(SECTIONS[name], values, where) for name, values in sections.items()}
    if made["adapter"].method == "full" and made["base"].quantization is not None:
        fix = "give that trial quantization: null, or leave full fine-tuning out"
        raise UsageError("method full trains the base's weights, which nf4 packs into 4 bits", where=where, fix=fix)
    return made
