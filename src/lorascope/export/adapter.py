"""An adapter's directory, ready to be published: PEFT's files, the card, and a study that repeats the training.

Only files that are known to belong to an adapter are taken; optimiser states, training arguments and whatever else lies beside
them stay where they are. Floor: ``export``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from lorascope.config import SECTIONS, Study, TrialConfig
from lorascope.export.described import Wishes, described
from lorascope.export.source import Source
from lorascope.lora.beside import TOKENIZER_FILES, copy_files
from lorascope.lora.peft_io import CONFIG_FILE, WEIGHTS_FILE, SavedAdapter, read_adapter, write_record
from lorascope.model_card import CardFacts, Privacy, privacy_of, public_card, public_study
from lorascope.store import Store, TrialRow, atomic_directory

CARD_FILE = "README.md"


def write_adapter_directory(source: Source, saved: SavedAdapter, out: Path, wishes: Wishes) -> CardFacts:
    """Write the adapter for PEFT with its card; whole or not at all.

    Args:
        saved: what lies in ``source.adapter``.
        out: is not there, or is an empty directory.

    Returns:
        What the card says.

    Raises:
        UsageError: the base is not known.
        StoreError: it cannot be written.
    """
    facts = described(source, saved, wishes)
    privacy = privacy_for(source, saved, wishes)
    with atomic_directory(out, replace=False) as directory:
        shutil.copyfile(source.adapter / WEIGHTS_FILE, directory / WEIGHTS_FILE)
        base = facts.base
        config = {**saved.config, "base_model_name_or_path": base.name, "revision": base.revision}
        _write_json(directory / CONFIG_FILE, dict(sorted(privacy.clean_places(config).items())))
        origin = {"checksum": base.checksum, "dtype": base.dtype, "quantization": base.quantization}
        if saved.origin.get("unpacked_checksum") is not None:
            origin["unpacked_checksum"] = saved.origin["unpacked_checksum"]
        if saved.labels or base.checksum is not None:
            write_record(directory, saved.labels, None if base.checksum is None else origin)
        # As trainers save it with the adapter; its tokens or template may be its own.
        copy_files(source.adapter, directory, TOKENIZER_FILES)
        if (directory / "tokenizer_config.json").is_file():
            privacy.clean_json(directory / "tokenizer_config.json")
        write_papers(directory, source, facts, privacy)
        read_adapter(directory)
    return facts


def write_papers(directory: Path, source: Source, facts: CardFacts, privacy: Privacy) -> None:
    """The card and, for a trial that was trained, the study that repeats it."""
    (directory / CARD_FILE).write_text(public_card(facts, privacy), encoding="utf-8")
    if facts.study_file is not None and source.study is not None and source.trial is not None:
        with Store.open(source.study) as store:
            text = privacy.without_secrets(_study_file(store.study, source.trial, facts, privacy))
        (directory / facts.study_file).write_text(text, encoding="utf-8")


def privacy_for(source: Source, saved: SavedAdapter, wishes: Wishes) -> Privacy:
    """What knows the places that could turn up in an export of this source."""
    places = [str(source.adapter), *filter(None, (saved.base_model, wishes.base))]
    if source.study is None:
        return Privacy(places)
    with Store.open(source.study) as store:
        if source.trial is not None:
            places += [str(value) for name in ("model", "path") if (value := source.trial.config.get(name))]
        return privacy_of(store, *places)


def _study_file(study: Study, row: TrialRow, facts: CardFacts, privacy: Privacy) -> str:
    """The trial as a study of its own, its base, data and judge by their public names.

    All else is as it was, less the machine's places and secrets, which leave every text but class names.
    """
    trial = TrialConfig.from_flat(row.config, row.seed)
    document: dict[str, Any] = study.model_dump(mode="json", exclude={"tracking", "controls", "design"})
    for section in SECTIONS:
        document[section] = getattr(trial, section).model_dump(mode="json", exclude_none=True)
    document |= {"seeds": [row.seed], "design": {"kind": "list", "trials": [{}]}}
    document["base"]["model"] = facts.base.name
    document = public_study(document, study, privacy)
    if trial.adapter.method != "lora":
        document["adapter"] = {"method": trial.adapter.method}
    checked = Study.model_validate(document).model_dump(mode="json", exclude_none=True, exclude={"tracking", "controls"})
    comments = [f"# Trial {row.trial} of the study {study.name!r}."]
    comments += [f"# Data, SHA-256 of the records: {row.data_checksum}"] if row.data_checksum else []
    comments += [f"# Base, SHA-256 of the weights: {row.base_checksum}"] if row.base_checksum else []
    return "\n".join(comments) + "\n" + yaml.safe_dump(checked, sort_keys=False, allow_unicode=True)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
