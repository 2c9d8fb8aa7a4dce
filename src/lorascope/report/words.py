"""How numbers, units, configurations and text from elsewhere are written on the page. Floor: ``report``."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from lorascope.amounts import counted
from lorascope.config import AdapterConfig, in_layers, split_layers

MINUS = "−"
NONE = "–"
# Characters that change the direction of the text around them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MOST_DECIMALS = 6
# Of a list that is told in a sentence.
FEW = 4

# By metric: what people call it, and its unit.
_METRICS = {
    "accuracy": ("accuracy", "share of examples"),
    "f1": ("F1", ""),
    "exact_match": ("exact match", "%"),
    "has_ans_exact_match": ("exact match, answerable", "%"),
    "has_ans_f1": ("F1, answerable", "%"),
    "no_ans_exact_match": ("exact match, unanswerable", "%"),
    "no_ans_f1": ("F1, unanswerable", "%"),
    "best_exact_match": ("exact match, best threshold", "%"),
    "best_f1": ("F1, best threshold", "%"),
    "rouge_l": ("ROUGE-L", "0–1"),
    "token_f1": ("token F1", "0–1"),
    "distinct_1": ("distinct-1", "0–1"),
    "distinct_2": ("distinct-2", "0–1"),
    "self_bleu": ("self-BLEU", "0–100"),
    "eval_loss": ("validation loss", "nats"),
    "perplexity": ("perplexity", ""),
    "hits_at_1": ("hits@1", "share of examples"),
    "c_score": ("C-score", "points a reply"),
    "turn_end": ("turn ended", "share of replies"),
}
_TARGETS_IN_FULL = 4
_ADAPTER_KEYS = frozenset(AdapterConfig.model_fields) - {"method", "path"}
# The order in which a configuration is told; other keys follow.
_TOLD_FIRST = ("method", "path", "r", "targets", "quantization", "lora_alpha", "lora_dropout", "bias", "learning_rate")
_SHORT = {
    "r": "r {}",
    "lora_alpha": "α {}",
    "lora_dropout": "dropout {}",
    "bias": "bias {}",
    "learning_rate": "lr {}",
    "batch_size": "batch {}",
    "dtype": "{}",
    "model": "{}",
    "path": "from {}",
}
_METHODS = {"full": "full fine-tuning", "head": "head only", "lora": "LoRA"}


def clean(value: Any) -> Any:
    r"""Any document with its strings made safe to show: what a terminal or a browser would obey is seen instead.

    Line ends and tabs stay; control characters, halves of surrogate pairs and direction marks become ``\u…`` escapes.
    """
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else "".join(map(_seen, value))
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def _seen(char: str) -> str:
    hidden = unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"
    return f"\\u{ord(char):04x}" if hidden or char in _BIDI or char in "\ufffe\uffff" else char


def shortened(text: str, most: int) -> str:
    """At most so many characters, the last one an ellipsis where some were left out."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def capital(text: str) -> str:
    """With a capital at its start, unless that is a sign or a name such as r, lr or ``query.L0``."""
    first = text.partition(" ")[0].rstrip(",;:.")
    return text[:1].upper() + text[1:] if len(first) > 2 and first.replace("-", "").isalpha() else text


def few(words: Sequence[str]) -> list[str]:
    """The first of many, and how many more there are."""
    return [*words] if len(words) <= FEW + 1 else [*words[:FEW], f"{len(words) - FEW} more"]


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def decimals_for(values: Iterable[float | None], halves: Iterable[float | None] = ()) -> int:
    """Decimals of a column: two significant digits of a typical interval's half, or else four of the largest value."""
    widths = [half for half in halves if half is not None and math.isfinite(half) and half > 0]
    if widths:
        wanted = 1 - math.floor(math.log10(median(widths)))
    else:
        sizes = [abs(value) for value in values if value is not None and math.isfinite(value) and value]
        wanted = 3 - math.floor(math.log10(max(sizes))) if sizes else 3
    return min(max(wanted, 0), _MOST_DECIMALS)


def decimals_of_measured(values: Iterable[float | None]) -> int:
    """Decimals of a column of measured times and speeds: two significant digits of a typical one, and one at least."""
    sizes = [abs(value) for value in values if value is not None and math.isfinite(value) and value]
    return min(max(1 - math.floor(math.log10(median(sizes))), 1), _MOST_DECIMALS) if sizes else 1


def number(value: float | None, decimals: int, sign: bool = False) -> str:
    """A figure with so many decimals; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not any(char in "123456789" for char in text):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def brief(value: float | None, sign: bool = False) -> str:
    """A figure by itself, three significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:{'+' if sign else ''}.2e}".replace("-", MINUS)
    size = math.floor(math.log10(abs(value))) if value else 0
    return number(value, min(max(2 - size, 0), _MOST_DECIMALS), sign)


def with_interval(value: float, low: float | None, high: float | None, sign: bool = False) -> str:
    """``0.783 (0.755 to 0.809)``."""
    known = low is not None and high is not None
    decimals = decimals_for([value], [(high - low) / 2] if low is not None and high is not None else [])
    interval = f" ({number(low, decimals, sign)} to {number(high, decimals, sign)})" if known else ""
    return number(value, decimals, sign) + interval


def compact(value: float) -> str:
    """A mark of an axis: ``770``, ``38k``, ``1.2M``, ``0.05``."""
    value = float(f"{value:.3g}")  # rounded first: 999,700 is 1M, not 1e+03k
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def mebibytes(value: float | None) -> float | None:
    """Bytes as MiB."""
    return None if value is None else value / 2**20


def metric_name(metric: str) -> str:
    """What people call a metric."""
    return _METRICS.get(metric, (metric.replace("_", " "), ""))[0]


def metric_unit(metric: str, task: str) -> str:
    """Its unit; F1 of a class is a share, SQuAD's a percentage, however small."""
    if metric == "f1":
        return "%" if task == "squad" else "0–1"
    return _METRICS.get(metric, ("", ""))[1]


def span_text(metric: Mapping[str, Any]) -> str:
    """Of a game's metric, what the intervals of its values are over; or why there is none."""
    seeds, has_intervals = metric["num_seeds"], any(value["low"] is not None for value in metric["values"].values())
    if metric["exact"]:
        none = "one seed gives no interval" if seeds == 1 else "no interval: the seeds agree to the last digit"
        return f"95 % interval over {counted(seeds, 'seed')}" if has_intervals else none
    if not has_intervals:
        return "too few coalitions for an interval"
    if seeds == 1:
        return "95 % interval over the coalitions that were sampled, of one seed"
    return f"95 % interval over {counted(seeds, 'seed')} and the coalitions that were sampled"


def named_in_words(text: str, metric: str) -> str:
    """A sentence of a document with the metric's key as people call it."""
    return re.sub(rf"\b{re.escape(metric)}\b", lambda _: metric_name(metric), text)


def configuration_labels(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By configuration a short text that tells it from the others: what differs between them, and no more.

    Args:
        configs: by the configuration's name its flat settings.
    """
    keys = _telling_keys(list(configs.values()))
    lists = [targets for config in configs.values() if isinstance(targets := config.get("targets"), list)]
    every = list(dict.fromkeys(target for targets in lists for target in targets))
    labels = {name: _label(config, keys, every) for name, config in configs.items()}
    twice = {label for label in labels.values() if sum(other == label for other in labels.values()) > 1}
    return {name: f"{label} ({name})" if label in twice else label for name, label in labels.items()}


def _telling_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys([*_TOLD_FIRST, *(key for config in configs for key in config)])
    keys = [key for key in names if len({repr(_effective(config, key)) for config in configs} - {"'idle'"}) > 1]
    ratios = {
        config["lora_alpha"] / config["r"] for config in configs if _effective(config, "r") != "idle" and config.get("r")
    }
    if "r" in keys and len(ratios) == 1:
        keys = [key for key in keys if key != "lora_alpha"]
    return keys or ["r", "targets"]


def _effective(config: Mapping[str, Any], key: str) -> Any:
    """A setting, or ``idle`` where it acts on nothing."""
    return "idle" if key in _ADAPTER_KEYS and config.get("method", "lora") != "lora" else config.get(key)


def _label(config: Mapping[str, Any], keys: Sequence[str], every_target: Sequence[str]) -> str:
    method = config.get("method", "lora")
    parts = [_METHODS.get(method, str(method))] if method != "lora" else []
    told = [(key, value) for key in keys if key != "method" and (value := _effective(config, key)) != "idle"]
    parts += [targets_text(value, every_target) if key == "targets" else setting_text(key, value) for key, value in told]
    return " · ".join(part for part in parts if part) or "as the study has it"


def setting_text(key: str, value: Any) -> str:
    """A setting in a label; nothing where it is off."""
    if key == "targets":
        return targets_text(value)
    if key == "quantization":
        return "not quantised" if value is None else str(value).upper()
    if key == "use_rslora":
        return "rsLoRA" if value else ""
    if value is None:
        return ""
    if key in ("path", "model"):
        value = str(value).rstrip("/").rpartition("/")[2]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return _SHORT[key].format(text) if key in _SHORT else f"{key} {text}"


def targets_text(targets: Any, every: Sequence[str] = ()) -> str:
    """What an adapter adapts: ``query + value``, ``query.L0-3 + key.L2``, ``all but key.L0``, ``7 targets``, ``no module``.

    Args:
        every: all targets that configurations of the study have; many are told by those that lack.
    """
    if not isinstance(targets, list):
        return str(targets)
    if len(targets) <= _TARGETS_IN_FULL:
        return " + ".join(map(str, targets)) or "no module"
    left_out = [target for target in every if target not in targets]
    present, missing = _joined(targets), _joined(left_out)
    if not left_out and len(every) > _TARGETS_IN_FULL and len(present) > 1:
        return f"all {len(targets)} targets"
    if missing and len(missing) <= _TARGETS_IN_FULL and len(missing) < len(present):
        return f"all but {', '.join(missing)}"
    return " + ".join(present) if len(present) <= _TARGETS_IN_FULL + 1 else f"{len(targets)} targets"


def _joined(targets: Sequence[str]) -> list[str]:
    """Targets with runs of layers that follow each other as one: ``query.L0-1`` and ``query.L2-3`` are ``query.L0-3``."""
    runs: dict[str, list[tuple[int, int]]] = {}
    whole = []
    for target in map(str, targets):
        name, layers = split_layers(target)
        if layers is None:
            whole.append(target)
        else:
            runs.setdefault(name, []).append(layers)
    parts = []
    for name, places in runs.items():
        merged: list[tuple[int, int]] = []
        for first, last in sorted(places):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        parts += [in_layers(name, *place) for place in merged]
    return [*whole, *parts]
