"""Versions are compared with what the package declares; and where nothing can be imported, that is what is told."""

import subprocess
import sys
from importlib import metadata

from lorascope.doctor.finding import Setting, examine
from lorascope.doctor.versions import unimportable


def test_nothing_is_wrong_here(check):
    result = check("versions")
    assert result.status in ("passed", "warning"), result.showed
    assert metadata.version("torch") in result.showed


def requiring(monkeypatch, *requirements, python=">=3.10"):
    monkeypatch.setattr(metadata, "requires", lambda name: list(requirements))
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": python})


def test_versions_are_compared_with_what_the_package_declares(check, monkeypatch):
    requiring(monkeypatch, "torch>=2", "nonesuch>=1", "pytest<1", "rich>=1; extra == 'more'", "pytest<2; extra == 'more'")
    result = check("versions")
    assert result.status == "failed"
    assert result.showed.split("; ") == ["nonesuch is missing", f"pytest {metadata.version('pytest')}, <1 is needed"]
    assert result.fix.startswith("pip install")


def test_an_extras_old_version_is_a_warning_and_a_missing_one_is_nothing(check, monkeypatch):
    requiring(monkeypatch, "pytest<1; extra == 'more'", "nonesuch; extra == 'more'")
    result = check("versions")
    assert result.status == "warning"
    assert "<1 is needed" in result.showed
    assert "nonesuch" not in result.showed


def test_an_old_python_is_caught(check, monkeypatch):
    requiring(monkeypatch, python=">=9")
    result = check("versions")
    assert result.status == "failed"
    assert ">=9 is needed" in result.showed


def test_a_source_tree_that_nobody_installed_is_said_to_be_one(check, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    result = check("versions")
    assert (result.status, result.fix) == ("warning", "pip install . in its directory")


def test_what_cannot_be_imported_is_told_beside_the_versions(monkeypatch):
    requiring(monkeypatch, "nonesuch>=1")
    versions, imports = examine(unimportable(ImportError("No module named\n 'nonesuch'")), Setting())
    assert (versions.status, versions.showed) == ("failed", "nonesuch is missing")
    assert (imports.status, imports.showed) == ("failed", "ImportError: No module named 'nonesuch'")
    assert "make setup" in imports.fix


def test_versions_are_read_without_importing_what_they_are_of():
    script = "import sys, lorascope.doctor.versions; print(not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "True"
