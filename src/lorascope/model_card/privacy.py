"""What of the user's machine must not leave it: paths, tokens, passwords. Floor: ``model_card``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.embedded import embedded_name, is_embedded

_HIDDEN = "[removed]"
_FEWEST_LETTERS = 8
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_TOKENS = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|xox[abp]-[A-Za-z0-9-]{10,})")
_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_IN_QUERY = re.compile(r"(?<=[?&])((?:access_)?token|key|signature|sig|password)=[^&\s\"'`)]+", re.IGNORECASE)
# Keys of configurations that say where something lay: name_or_path, tokenizer_file, cache_dir.
_PLACE = re.compile(r"(?:^|_)(?:path|file|dir|directory|folder)$", re.IGNORECASE)
_PART = r"/[^\s/'\"`,;:()<>|*\[\]{}]+"
# Two components at least, so that "</s>" and "1/2" are none. What comes before tells a URL or a hub id.
_ABSOLUTE = re.compile(rf"(?:file://|(?<![\w./~\-<])~?){_PART}(?:{_PART})+/?|(?<![\w./~])~(?:{_PART})+/?")


def public_name(place: str) -> str:
    """A hub id or URL as it is, what comes with Lorascope by its name, another path by its last part alone."""
    if "://" in place:
        return place
    known = embedded_name(place)
    if known is not None:
        return known
    path = Path(place).expanduser()
    if is_local(place):
        return path.resolve().name or "root"
    return place


def is_local(place: str) -> bool:
    """Whether it is a path rather than a hub id: it exists here, comes with Lorascope, or is written as only paths are."""
    path = Path(place).expanduser()
    return is_embedded(place) or place.startswith((".", "/", "~")) or place.count("/") > 1 or path.exists()


class Privacy:
    """Takes this machine's paths and secrets out of text that will be published.

    Args:
        places: paths that are known to occur, as they are written.
        environment: where secrets are looked for; the process's own by default.
    """

    def __init__(self, places: Iterable[str | Path] = (), environment: Mapping[str, str] | None = None) -> None:
        given = [*map(str, places), str(Path.home()), str(Path.cwd())]
        local = [place for place in given if is_local(place)]
        written = {*local, *(str(Path(place).expanduser().resolve()) for place in local)}
        # Longest first: a directory inside another goes before it.
        self._paths = sorted((place for place in written if len(place) > 1), key=len, reverse=True)
        variables = os.environ if environment is None else environment
        values = {value for name, value in variables.items() if _SECRET_VARIABLE.search(name)}
        self._secrets = sorted((value for value in values if len(value) >= _FEWEST_LETTERS), key=len, reverse=True)

    def without_secrets(self, text: str) -> str:
        """The text with secrets removed, and its paths as they are."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        text = _TOKENS.sub(_HIDDEN, text)
        text = _IN_URL.sub("", text)
        return _IN_QUERY.sub(rf"\1={_HIDDEN}", text)

    def clean(self, text: str) -> str:
        """The text with paths by their last part and secrets removed: for prose, in which nothing else looks like a path."""
        text = self.without_secrets(text)
        for path in self._paths:
            # Not inside a longer name: /home/me is no part of /home/melissa. What follows goes with it.
            text = re.sub(rf"(?<![\w./~-]){re.escape(path)}(?![\w.-])(?:{_PART})*/?", _last_part, text)
        return _ABSOLUTE.sub(_last_part, text)

    def clean_values(self, value: Any) -> Any:
        """The same for every string in a JSON document or a record; keys stay."""
        if isinstance(value, str):
            return self.clean(value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{one.name: self.clean_values(getattr(value, one.name)) for one in fields(value)})
        if isinstance(value, tuple):
            return tuple(self.clean_values(item) for item in value)
        if isinstance(value, Mapping):
            return {key: self.clean_values(item) for key, item in value.items()}
        return [self.clean_values(item) for item in value] if isinstance(value, list) else value

    def clean_places(self, value: Any) -> Any:
        """The same for those strings of a configuration alone whose key says that they are a place.

        Everything else in it means something to who loads it: a class may be called ``/r/books``, a template may write a path.
        """
        if isinstance(value, Mapping):
            of_places = {key: isinstance(item, str) and _PLACE.search(str(key)) is not None for key, item in value.items()}
            return {key: self.clean(item) if of_places[key] else self.clean_places(item) for key, item in value.items()}
        return [self.clean_places(item) for item in value] if isinstance(value, list | tuple) else value

    def clean_json(self, path: Path) -> None:
        """The same for a configuration's file, in place; one that holds nothing to hide keeps its bytes."""
        document = json.loads(path.read_text(encoding="utf-8"))
        cleaned = self.clean_places(document)
        if cleaned != document:
            path.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _last_part(found: re.Match[str]) -> str:
    return found[0].rstrip("/").rpartition("/")[2]
