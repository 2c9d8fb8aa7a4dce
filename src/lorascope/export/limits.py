"""What is not known of an export, in sentences for its card. Floor: ``export``."""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.export.source import Source
from lorascope.model_card import CardFacts
from lorascope.store import Store


def limitations(facts: CardFacts, source: Source) -> Iterator[str]:
    """The limitations that follow from the facts; nothing is softened and nothing is guessed."""
    if facts.data is None or source.study is None or source.trial is None:
        yield "Nothing of it was evaluated here. What it was trained on, and what it may have memorised, is not known."
        if facts.base.checksum is None:
            yield "Whether it was trained on these very weights of the base is not known: it came without a checksum."
        return
    data = facts.data
    counted = "" if data.num_eval is None else f" ({data.num_eval:,} examples)"
    yield f"Scored on {data.split} of {data.task}{counted} and on nothing else: no other task, domain or language."
    yield "Bias, toxicity, safety, robustness and memorised training data were not evaluated; the base's limits hold here too."
    yield "The data were not searched for personal or protected content."
    if "max_eval" in data.limits:
        yield f"Only the first {data.limits['max_eval']:,} examples of the split were scored."
    with Store.open(source.study) as store:
        rows, decodings, judge = store.trials(), store.decodings(source.trial.trial), store.info("judge")
    seeds = [row for row in rows if row.configuration == source.trial.configuration and row.status == "done"]
    if len(seeds) < 2:
        yield "One seed: how far another seed would have come out elsewhere is not known."
    if source.choice is None and len(rows) > 1:
        yield f"It is one of {len(rows)} trials; if it was picked by its score, that score is optimistic."
    without = [metric.name for metric in facts.metrics if metric.low is None]
    if without:
        yield f"No interval over examples for {', '.join(without)}."
    if facts.base.quantization is not None:
        packed = f"Packed as {facts.base.quantization} again, the merged model was not compared."
        full = packed if facts.form == "merged" else "On the base in full precision it was not scored."
        yield f"Trained and scored on a base packed as {facts.base.quantization}. {full}"
    if facts.form == "merged":
        yield "The scores are the adapter's on its base; the certificate says how near the merged weights come to that."
    unfinished = decodings[0].get("unfinished", 0) if decodings else 0
    if unfinished:
        yield f"{unfinished} answers were cut at max_new_tokens {decodings[0]['max_new_tokens']}, before their end token."
    if judge is not None and any(metric.name == "c_score" for metric in facts.metrics):
        check = judge.get("check") or {}
        right = f"right in {check['accuracy']:.1%} of labelled pairs" if "accuracy" in check else "not tried on labelled pairs"
        yield f"The C-score is a model's judgement; the judge was {right}."
