"""A card as Markdown: the Hub's metadata block, then what people read. Floor: ``model_card``.

The metadata are made and checked by ``huggingface_hub``; the code blocks are executed by the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorascope.amounts import seconds_text
from lorascope.model_card.facts import CardFacts, MetricFacts
from lorascope.model_card.privacy import Privacy
from lorascope.model_card.usage import loading

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_PIPELINES = {"SEQ_CLS": "text-classification", "CAUSAL_LM": "text-generation", "SEQ_2_SEQ_LM": "text2text-generation"}
# Our metrics by the Hub's identifiers; the others keep their own name and are no entry of ``metrics:``.
_HUB_METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "exact_match": "exact_match",
    "rouge_l": "rouge",
    "perplexity": "perplexity",
}
_GLUE = ("sst2", "mrpc", "rte")
# The Hub takes a type for a dataset's id, and wants one: a task's name would lead to someone else's data.
_NOT_ON_THE_HUB = "not-on-the-hub"
_MIB, _GIB = 1 << 20, 1 << 30


def public_card(facts: CardFacts, privacy: Privacy) -> str:
    """The card without what must not leave the machine.

    Facts are cleaned before they are written out: once they are text, nobody tells a path from a class ``/r/books``. The
    adapter's own, its classes and settings, hold no places.

    Raises:
        ValueError: the facts make no valid metadata.
    """
    cleaned: CardFacts = privacy.clean_values(facts)
    return privacy.without_secrets(model_card(replace(cleaned, adapter=facts.adapter)))


def model_card(facts: CardFacts) -> str:
    """The card, ready to be ``README.md``, places and secrets included (``public_card`` leaves them out).

    Raises:
        ValueError: the facts make no valid metadata.
    """
    sections = [
        f"# {facts.name}",
        _introduction(facts),
        _base(facts),
        _data(facts),
        _results(facts),
        loading(facts),
        _training(facts),
        _cost(facts),
        _list("Limitations", facts.limitations),
        _list("Warnings", facts.warnings),
        _reproduce(facts),
        _licence(facts),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}\n"


def metadata(facts: CardFacts) -> ModelCardData:
    """The card's metadata.

    Raises:
        ValueError: ``huggingface_hub`` refuses them.
    """
    from huggingface_hub import ModelCardData

    results = _eval_results(facts)
    licence = facts.licence
    named = licence if licence is not None and licence.identifier == "other" else None
    metrics = dict.fromkeys(one.metric_type for one in results if one.metric_type in _HUB_METRICS.values())
    return ModelCardData(
        # A directory's name would be taken for a model of the Hub, someone else's as likely as not.
        base_model=None if facts.base.is_local else facts.base.name,
        base_model_relation=None if facts.base.is_local else "adapter" if facts.form == "adapter" else "finetune",
        library_name="peft" if facts.form == "adapter" else "transformers",
        license=None if licence is None else licence.identifier,
        license_name=None if named is None else named.name,
        license_link=None if named is None else named.link,
        pipeline_tag=None if facts.task_type is None else _PIPELINES[facts.task_type],
        datasets=list(facts.data.hub_ids) if facts.data is not None and facts.data.hub_ids else None,
        metrics=list(metrics) or None,
        tags=["lora", "lorascope", *([] if facts.form == "adapter" else ["merged"])],
        model_name=facts.name if results else None,
        eval_results=results or None,
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    data = facts.data
    if data is None or facts.task_type is None:
        return []
    arguments = {"checksum": data.checksum, "examples": data.num_eval}
    return [
        EvalResult(
            task_type=_PIPELINES[facts.task_type],
            dataset_type=data.hub_ids[0] if data.hub_ids else _NOT_ON_THE_HUB,
            dataset_name=data.task,
            dataset_config=data.task if data.hub_ids and data.task in _GLUE else None,
            dataset_split=data.split,
            dataset_args={name: value for name, value in arguments.items() if value is not None} or None,
            metric_type=_HUB_METRICS.get(metric.name, metric.name),
            metric_name=metric.name,
            metric_value=round(metric.value, 6),
            metric_args=None if metric.low is None or metric.high is None else _interval_arguments(metric.low, metric.high),
        )
        for metric in facts.metrics
        if math.isfinite(metric.value)
    ]


def _interval_arguments(low: float, high: float) -> dict[str, Any]:
    return {"interval": [round(low, 6), round(high, 6)], "level": 0.95, "over": "examples"}


def _introduction(facts: CardFacts) -> str:
    merged = facts.form == "merged"
    what = "A model with a LoRA adapter merged into its weights" if merged else "A LoRA adapter in PEFT's format"
    if facts.study is None:
        unknown = "It does not come from a study of Lorascope: what it learned, how, and how good it is, is not known here."
        text = f"{what}, for the base model `{facts.base.name}`. {facts.made_from or unknown}"
    else:
        task = "" if facts.data is None else f" on the task `{facts.data.task}`"
        text = (
            f"{what}, for the base model `{facts.base.name}`, trained{task} by Lorascope {facts.version}: trial "
            f"`{facts.trial}` of the study `{facts.study}`, seed {facts.seed}."
        )
    later = (
        "Written while the study ran. `lorascope export` writes the whole card: intervals, costs, limits, licence, how to "
        "repeat the training."
    )
    paragraphs = [text, facts.certificate, facts.selection, None if facts.is_whole else later]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph is not None)


def _base(facts: CardFacts) -> str:
    base = facts.base
    where = "a local directory of that name when this was trained" if base.is_local else "on the Hub"
    where = "it comes with Lorascope" if base.comes_along else where
    unpinned = None if base.is_local else "not pinned; the checksum tells the weights"
    rows = {
        "name": f"`{base.name}` ({where})",
        "revision": f"`{base.revision}`" if base.revision else unpinned,
        "SHA-256 of its weights, heads left out": None if base.checksum is None else f"`{base.checksum}`",
        "held in": base.dtype + ("" if base.quantization is None else f", its blocks packed as {base.quantization}"),
    }
    return "## Base model\n\n" + _table(("", ""), rows.items())


def _data(facts: CardFacts) -> str:
    data = facts.data
    if data is None:
        return ""
    limits = ", ".join(f"{name} {value}" for name, value in data.limits.items())
    rows = {
        "task": f"`{data.task}`",
        "read from": ", ".join(f"`{place}`" for place in data.places) or None,
        "form": data.shape,
        "trained on": None if data.num_train is None else f"{data.num_train:,} examples",
        "scored on": f"{data.split}" + ("" if data.num_eval is None else f", {data.num_eval:,} examples"),
        "limits": limits or None,
        "SHA-256 of the records in use": None if data.checksum is None else f"`{data.checksum}`",
    }
    return "## Data\n\n" + _table(("", ""), rows.items())


def _results(facts: CardFacts) -> str:
    if not facts.metrics or facts.data is None:
        return ""
    has_seeds = any(metric.seeds is not None for metric in facts.metrics)
    headings = ["metric", "value"]
    headings += ["95 % over examples", "how"] if facts.is_whole else []
    headings += ["over seeds of this configuration"] if has_seeds else []
    rows = []
    for metric in facts.metrics:
        better = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
        row = [f"{metric.name}{better}", number(metric.value)]
        if facts.is_whole:
            row += [_interval(metric.low, metric.high), metric.method or ""]
        rows.append(row + ([_over_seeds(metric)] if has_seeds else []))
    lines = [f"## Results on {facts.data.split}", "", _table(headings, rows)]
    if facts.is_whole:
        lines += ["", "The intervals say how far a score would move on other examples of the same kind. ↑ higher is better."]
    if has_seeds:
        lines += ["", "Over seeds: the mean and Student's 95 % interval of it, for these very examples, and the range."]
    return "\n".join(lines)


def _over_seeds(metric: MetricFacts) -> str:
    seeds = metric.seeds
    if seeds is None:
        return "—"
    none = f"no interval from {seeds.num_seeds} seeds"
    interval = none if seeds.low is None or seeds.high is None else _interval(seeds.low, seeds.high)
    return f"{number(seeds.mean)} ({interval}); {number(seeds.lowest)} to {number(seeds.highest)}, {seeds.num_seeds} seeds"


def _training(facts: CardFacts) -> str:
    adapter = facts.adapter
    rows: dict[str, Any] = {name: _setting(value) for name, value in adapter.settings.items()}
    rows["adapted modules"] = adapter.modules
    if adapter.heads:
        rows["trained whole"] = ", ".join(f"`{head}`" for head in adapter.heads)
    if adapter.labels:
        rows["classes, in order"] = ", ".join(adapter.labels)
    rows |= {name: _setting(value) for name, value in facts.training.items()}
    text = "## Configuration\n\n" + _table(("", ""), rows.items())
    if facts.versions:
        text += "\n\n" + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + "."
    return text


def _cost(facts: CardFacts) -> str:
    cost, adapter = facts.cost, facts.adapter
    if not facts.is_whole:
        return ""
    percent = "" if cost.trainable_percent is None else f" ({cost.trainable_percent:.3f} % of all)"
    others = (cost.num_together or 1) - 1
    together = f", together with {others} other trials" if others else ""
    rows = {
        "trained parameters": None if cost.trainable_params is None else f"{cost.trainable_params:,}{percent}",
        "parameters with the base": None if cost.total_params is None else f"{cost.total_params:,}",
        "numbers in the adapter's file": None if adapter.num_parameters is None else f"{adapter.num_parameters:,}",
        "size of the adapter's file": None if adapter.num_bytes is None else size(adapter.num_bytes),
        "training time": None if cost.train_seconds is None else f"{seconds_text(cost.train_seconds)}{together}",
        "peak memory": None if cost.peak_memory_bytes is None else f"{size(cost.peak_memory_bytes)}{together}",
        "an epoch, alone": None if cost.solo_seconds_per_epoch is None else seconds_text(cost.solo_seconds_per_epoch),
        "peak memory, alone": None if cost.solo_peak_memory_bytes is None else size(cost.solo_peak_memory_bytes),
        "measured on": cost.hardware,
    }
    return "## Parameters, memory and time\n\n" + _table(("", ""), rows.items())


def _reproduce(facts: CardFacts) -> str:
    if facts.study_file is None or facts.study is None:
        return ""
    changes = []
    if facts.base.is_local and not facts.base.comes_along:
        changes.append("--set base.model=DIRECTORY")
    if facts.data is not None and not facts.data.hub_ids:
        changes.append("--set task.data=PATH")
    needs = " The paths of base and data are your own." if changes else ""
    return (
        f"## Repeat the training\n\n`{facts.study_file}` beside this card is this trial as a study.{needs}\n\n"
        f"```console\nlorascope run {' '.join([facts.study_file, *changes])}\n```"
    )


def _licence(facts: CardFacts) -> str:
    licence, base = facts.licence, facts.base.licence
    if licence is None:
        return ""
    lines = ["## Licence", ""]
    if licence.identifier == "unknown":
        lines.append("Unknown: ask the base's authors. Neither the base's README nor its configuration states a licence here.")
    elif licence.source == "--licence":
        lines.append(f"{licence.shown}, set by who exported this.")
        if base is None:
            lines.append("What the base's own licence allows is not known here: ask its authors.")
        elif base.shown.lower() != licence.shown.lower():
            lines.append(f"The base's is {base.shown} ({base.source}); whether it allows this one was not checked.")
    else:
        lines.append(f"{licence.shown}, quoted from {licence.source}.")
    if facts.data is not None:
        lines.append("The data's licence was not looked at.")
    return "\n".join(lines)


def _list(heading: str, items: Sequence[str]) -> str:
    return f"## {heading}\n\n" + "\n".join(f"- {_line(item)}" for item in items) if items else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; rows whose second cell is None are left out."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    lines += [f"| {' | '.join(_line(cell).replace('|', '¦') for cell in row)} |" for row in rows if row[1] is not None]
    return "\n".join(lines)


def _line(value: Any) -> str:
    return " ".join(str(value).split())


def _setting(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or None
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or None
    if isinstance(value, float):
        return f"{value:g}"
    return None if value is None else str(value)


def _interval(low: float | None, high: float | None) -> str:
    return "—" if low is None or high is None else f"{number(low)} to {number(high)}"


def number(value: float) -> str:
    """Four significant digits, or four decimals below ten."""
    if not math.isfinite(value):
        return "no number"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def size(num_bytes: float) -> str:
    """Bytes as people read them."""
    if num_bytes >= _GIB:
        return f"{num_bytes / _GIB:.2f} GiB"
    return f"{num_bytes / _MIB:.1f} MiB" if num_bytes >= _MIB else f"{num_bytes / 1024:.1f} KiB"
