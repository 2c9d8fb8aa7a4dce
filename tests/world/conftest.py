"""A small world and its files, made once."""

import pytest

from lorascope.world.files import documents, world

SEED, SIZE = 3, 40


@pytest.fixture(scope="session")
def sets():
    return world(SEED, SIZE)


@pytest.fixture(scope="session")
def world_directory(sets, tmp_path_factory):
    """The files of that world."""
    directory = tmp_path_factory.mktemp("world")
    for name, text in documents(sets, SEED, SIZE).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    return directory
