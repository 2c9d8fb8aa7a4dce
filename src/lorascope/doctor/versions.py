"""Which packages are installed, and what a table can still say where they cannot be imported. Floor: doctor.

Imports nothing that may be missing or broken on a user's machine.
"""

from __future__ import annotations

import platform
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lorascope.doctor.finding import Check, Finding, Setting

_SHOWN = ("torch", "transformers", "peft")


def versions(setting: Setting) -> Finding:
    """Every package that Lorascope needs is there, in a version that it supports; those of its extras too, where installed."""
    installed = f"Python {platform.python_version()}"
    try:
        about = metadata.metadata("lorascope")
        requirements = [Requirement(text) for text in metadata.requires("lorascope") or ()]
    except metadata.PackageNotFoundError:
        what = "Lorascope runs from its source and is not installed, so nothing says which versions it needs"
        return Finding(installed, {}, warnings=(what,), fix="pip install . in its directory")
    wrong: list[str] = []
    warnings: list[str] = []
    found = {"python": platform.python_version()}
    if not SpecifierSet(about["Requires-Python"] or "").contains(platform.python_version(), prereleases=True):
        wrong.append(f"Python {platform.python_version()}, {about['Requires-Python']} is needed")
    needed = 0
    for requirement in requirements:
        is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        version = version_of(requirement.name)
        needed += is_needed
        if version is None:
            if is_needed:
                wrong.append(f"{requirement.name} is missing")
            continue
        found[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            what = f"{requirement.name} {version}, {requirement.specifier} is needed"
            (wrong if is_needed else warnings).append(what)
    shown = ", ".join(f"{name} {found[name]}" for name in _SHOWN if name in found)
    showed = f"{installed}, {shown}; all {needed} packages as needed"
    return Finding(showed, found, tuple(dict.fromkeys(wrong)), tuple(dict.fromkeys(warnings)))


def version_of(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def unimportable(error: BaseException) -> tuple[Check, ...]:
    """The checks that are left where the others cannot even be imported: why, and what is not as it should be."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())

    def importing(setting: Setting) -> Finding:
        return Finding("", wrong=(reason,))

    fix = "make setup, or pip install the package that cannot be loaded; then again"
    return VERSIONS, Check("imports", "every package can be loaded", importing, fix)


VERSIONS = Check(
    "versions", "packages are those that Lorascope supports", versions, "pip install -r requirements.lock, or make setup"
)
