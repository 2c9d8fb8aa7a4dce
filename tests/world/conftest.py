"""A small world and its files, made once."""

import pytest

from lorascope.world.files import world, write

SEED, SIZE = 3, 40


@pytest.fixture(scope="session")
def sets():
    return world(SEED, SIZE)


@pytest.fixture(scope="session")
def world_directory(sets, tmp_path_factory):
    """The files of that world."""
    directory = tmp_path_factory.mktemp("world")
    write(sets, SEED, SIZE, directory)
    return directory
