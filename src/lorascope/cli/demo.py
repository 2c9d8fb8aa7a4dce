"""The first run: which attention projections does persona dialogue need? A Shapley study on what comes with Lorascope.

Knows the study and writes its data, a little world. Does not train or print. Floor: cli.
"""

from __future__ import annotations

import json
from pathlib import Path

from lorascope.embedded import located, located_adapter
from lorascope.store import atomic_directory, write_atomically
from lorascope.world.files import DEFAULT_SIZE, world, write

_SEED = 0
_BASE, _JUDGE = "lorascope:small", "lorascope:judge"
_STUDY = """\
# Which attention projections does persona dialogue need? Every coalition of query, key and value, three seeds.
# Model and judge come with Lorascope; `lorascope data world` made the data. Change anything, and `lorascope run` this file.
name: query-key-value
base: {{model: "{base}"}}
task: {{name: personachat, data: {dialogues}, max_train: 320, max_eval: 60, max_length: 384}}
adapter: {{r: 8, lora_alpha: 16}}
train: {{epochs: 1, batch_size: 16, learning_rate: 5.0e-3}}
seeds: [42, 1337, 2024]
design: {{kind: shapley, players: [query, key, value], values: [eval_loss, c_score, rouge_l]}}
evaluate:
  decoding: [{{strategy: greedy, max_new_tokens: 32}}]
  judge: {{model: "{judge}", check: {{task: dialogue_nli, data: {pairs}, max_eval: 300}}}}
"""


def prepare_demo(directory: Path) -> Path:
    """Make the data and, last, the study file, unless it is there; returns the study file's path.

    Raises:
        ModelError: this build of Lorascope ships no model.
        AdapterError: it ships no judge.
        StoreError: the files cannot be written.
    """
    study = directory / "study.yaml"
    if study.is_file():
        return study
    located(_BASE)
    located_adapter(_JUDGE)
    data = directory.resolve() / "world"
    with atomic_directory(directory / "world") as unfinished:
        write(world(_SEED, dialect=True), _SEED, DEFAULT_SIZE, unfinished, dialect=True)
    # JSON's quotes are YAML's, too: the place may have any name.
    dialogues, pairs = (json.dumps(str(data / folder)) for folder in ("personachat", "dialogue_nli"))
    write_atomically(study, _STUDY.format(base=_BASE, judge=_JUDGE, dialogues=dialogues, pairs=pairs))
    return study
