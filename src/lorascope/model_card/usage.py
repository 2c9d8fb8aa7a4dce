"""How to load what the card describes: code that runs as it stands, from the directory that holds the export.

Floor: ``model_card``.
"""

from __future__ import annotations

import json

from lorascope.model_card.facts import CardFacts

_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def loading(facts: CardFacts) -> str:
    """The section on loading, for PEFT or for transformers, and what is known of vLLM."""
    code = _unknown_task(facts) if facts.task_type is None else "\n".join([*_load(facts), *_use(facts)])
    lines = ["## How to load", "", f"```python\n{code}\n```"]
    if facts.task_type is not None and facts.study is not None:
        lines += ["", "The input has to look as in training; `lorascope data preview` shows it, token by token."]
    if facts.form == "adapter" and facts.is_whole:
        place = facts.base.name if facts.base.comes_along else "DIRECTORY-OF-THE-BASE"
        base = f" --base {place}" if facts.base.is_local else ""
        lines += ["", f"Merged into the base: `lorascope export {facts.name} --merged{base} --out DIRECTORY`."]
    if facts.serving:
        lines += ["", "vLLM (it was not run here; this is what its documentation and sources say):", ""]
        lines += [f"- {item}" for item in facts.serving]
    return "\n".join(lines)


def _load(facts: CardFacts) -> list[str]:
    assert facts.task_type is not None
    auto = _AUTO_CLASSES[facts.task_type]
    peft = ["from peft import PeftModel"] if facts.form == "adapter" else []
    imports = [*peft, f"from transformers import {auto}, AutoTokenizer", ""]
    if facts.form == "merged":
        name = json.dumps(facts.name)
        load = f"model = {auto}.from_pretrained({name}).eval()"
        return [*imports, f"tokenizer = AutoTokenizer.from_pretrained({name})", load]
    base = facts.base
    own = ["from lorascope.embedded import located"] if base.comes_along else []
    place = f"located({json.dumps(base.name)})" if base.comes_along else json.dumps(base.name)
    unknown = base.is_local and not base.comes_along
    comment = "  # a local directory when this was trained; give your copy's" if unknown else ""
    revision = f", revision={json.dumps(base.revision)}" if base.revision else ""
    labels = _labels(facts)
    return [
        *own,
        *imports,
        f"base = {place}{comment}",
        f"tokenizer = AutoTokenizer.from_pretrained(base{revision})",
        f"model = {auto}.from_pretrained(base{revision}, dtype={json.dumps(base.dtype)}{labels})",
        f"model = PeftModel.from_pretrained(model, {json.dumps(facts.name)}).eval()",
    ]


def _labels(facts: CardFacts) -> str:
    adapter = facts.adapter
    if adapter.labels:
        return f", id2label={dict(enumerate(adapter.labels))!r}"
    return f", num_labels={adapter.num_labels}" if adapter.num_labels is not None else ""


def _use(facts: CardFacts) -> list[str]:
    if facts.task_type == "SEQ_CLS":
        return [
            'inputs = tokenizer("a text", return_tensors="pt")',
            "logits = model(**inputs).logits[0]",
            "print(model.config.id2label[int(logits.argmax())])",
        ]
    start = "" if facts.task_type == "SEQ_2_SEQ_LM" else "[inputs['input_ids'].shape[1] :]"
    return [
        'inputs = tokenizer("a prompt", return_tensors="pt")',
        "output = model.generate(**inputs, max_new_tokens=32, do_sample=False)",
        f"print(tokenizer.decode(output[0]{start}, skip_special_tokens=True))",
    ]


def _unknown_task(facts: CardFacts) -> str:
    """Of an adapter that does not say what it is for: the base is loaded by who knows."""
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModel\n\n"
        f"base = AutoModel.from_pretrained({json.dumps(facts.base.name)})  # or the class that the adapter was trained on\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(facts.name)}).eval()"
    )
