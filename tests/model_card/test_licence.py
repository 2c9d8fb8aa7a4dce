"""Licences are quoted or set, never invented."""

import json

import pytest

from lorascope.errors import UsageError
from lorascope.model_card import chosen_licence, stated_licence


@pytest.mark.parametrize(
    ("text", "identifier", "name"),
    [
        ("Apache-2.0", "apache-2.0", None),
        ("mit", "mit", None),
        ("llama3.1", "llama3.1", None),
        ("GPL-3.0-or-later", "other", "GPL-3.0-or-later"),
        ("apache-2.0 AND mit", "other", "Apache-2.0 AND MIT"),
        ("LicenseRef-Ours", "other", "LicenseRef-Ours"),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_an_spdx_expression(text, identifier, name):
    found = chosen_licence(text)
    assert (found.identifier, found.name, found.source) == (identifier, name, "--licence")


@pytest.mark.parametrize(("text", "fix"), [("apache2.0", "did you mean 'apache-2.0'"), ("free", "SPDX"), ("", "SPDX")])
def test_anything_else_is_refused_with_a_suggestion(text, fix):
    with pytest.raises(UsageError, match="no licence that SPDX") as raised:
        chosen_licence(text)
    assert fix in str(raised.value)


def base(directory, readme=None, config=None):
    directory.mkdir()
    if readme is not None:
        (directory / "README.md").write_text(readme, encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    return str(directory)


def test_a_bases_own_licence_is_quoted_with_where_it_stands(tmp_path):
    found = stated_licence(base(tmp_path / "a", "---\nlicense: Apache-2.0\n---\n# A\n", {"license": "mit"}))
    assert (found.identifier, found.source) == ("apache-2.0", "the base's README.md")
    found = stated_licence(base(tmp_path / "b", "# no metadata\n", {"license": "mit"}))
    assert (found.identifier, found.source) == ("mit", "the base's config.json")
    own = "---\nlicense: other\nlicense_name: house-rules\nlicense_link: LICENSE\n---\n"
    found = stated_licence(base(tmp_path / "c", own))
    assert (found.identifier, found.shown, found.link) == ("other", "house-rules", None)
    found = stated_licence(base(tmp_path / "d", "---\nlicense: [mit, apache-2.0]\n---\n"))
    assert found.identifier == "mit"
    found = stated_licence(base(tmp_path / "e", "---\nlicense: research-only\nlicense_link: https://host/x\n---\n"))
    assert (found.identifier, found.name, found.link) == ("other", "research-only", "https://host/x")


@pytest.mark.parametrize(
    "readme", [None, "# text\n", "---\nlicense: unknown\n---\n", "---\n: [\n---\n", "---\nlicense: 3\n---\n"]
)
def test_where_nothing_is_stated_nothing_is_made_up(readme, tmp_path):
    assert stated_licence(base(tmp_path / "a", readme)) is None


def test_a_hub_id_that_cannot_be_read_states_none():
    assert stated_licence("nobody/nothing-of-the-kind") is None
