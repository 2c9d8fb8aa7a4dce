"""Licences: what a base's own card states, and what the user sets. Never invented. Floor: ``model_card``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorascope.embedded import located
from lorascope.errors import UsageError, did_you_mean

# The identifiers that the Hub accepts: https://huggingface.co/docs/hub/repositories-licenses
_HUB = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0 gpl-3.0
isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa
odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
HUB_LICENCES = frozenset(_HUB.split())


@dataclass(frozen=True)
class Licence:
    """A licence as the Hub's metadata hold it.

    Attributes:
        identifier: one of ``HUB_LICENCES``.
        name, link: of a licence that the Hub has no identifier for; then ``identifier`` is ``other``.
        source: who says so, for people.
    """

    identifier: str
    name: str | None = None
    link: str | None = None
    source: str = ""

    @property
    def shown(self) -> str:
        """What people read."""
        return self.name or self.identifier


UNKNOWN_LICENCE = Licence("unknown", source="nobody stated one")


def chosen_licence(text: str) -> Licence:
    """The licence that a user names: a Hub identifier or an SPDX expression, in any case.

    Raises:
        UsageError: it is neither.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if text.strip().lower() in HUB_LICENCES:
        return Licence(text.strip().lower(), source="--licence")
    try:
        return Licence("other", name=str(canonicalize_license_expression(text)), source="--licence")
    except InvalidLicenseExpression:
        hint = did_you_mean(text.strip().lower(), sorted(HUB_LICENCES)) if text.strip() else ""
        fix = hint if hint.startswith("did you mean") else "give an SPDX identifier such as Apache-2.0, or LicenseRef-NAME"
        raise UsageError(f"{text!r} is no licence that SPDX or the Hub knows", where="--licence", fix=fix) from None


def stated_licence(model: str, revision: str | None = None) -> Licence | None:
    """The licence that a model's README or config.json states; None where neither does or neither can be read.

    Args:
        model: a directory, one that comes with Lorascope, or a hub id whose README lies in the cache or can be fetched.
    """
    directory = Path(located(model)).expanduser()
    readme = directory / "README.md" if directory.is_dir() else _hub_readme(model, revision)
    if readme is not None:
        stated = _from_metadata(_front_matter(readme), "the base's README.md")
        if stated is not None:
            return stated
    if not directory.is_dir():
        return None
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _from_metadata(config if isinstance(config, dict) else {}, "the base's config.json")


def readme_licence(readme: Path, source: str) -> Licence | None:
    """The licence in a card's metadata; None where it states none."""
    return _from_metadata(_front_matter(readme), source)


def _hub_readme(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "README.md", revision=revision))
    except Exception:  # offline, gated, absent: each of them its own kind of error; a licence that cannot be read is not known
        return None


def _front_matter(readme: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load

    try:
        return metadata_load(readme) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _from_metadata(metadata: dict[str, Any], source: str) -> Licence | None:
    stated = metadata.get("license") or metadata.get("licence")
    stated = stated[0] if isinstance(stated, list) and stated else stated
    if not isinstance(stated, str) or stated.strip().lower() in ("", "unknown"):
        return None
    name, link = metadata.get("license_name"), metadata.get("license_link")
    name = name if isinstance(name, str) else None
    # A relative link leads to a file beside the base's card, which is not beside ours.
    link = link if isinstance(link, str) and "://" in link else None
    if stated.strip().lower() in HUB_LICENCES:
        return Licence(stated.strip().lower(), name, link, source)
    return Licence("other", name or stated.strip(), link, source)
