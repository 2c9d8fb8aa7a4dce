"""The scripts that make the shipped models, and a tiny library for them to read."""

import lzma
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "models").is_dir():
    collect_ignore_glob = ["test_*.py"]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def books(tmp_path_factory):
    """Twenty-two short books with conversations in them, as the real ones come."""
    names = ("Ann", "Ben", "Clara", "Daniel")
    told = []
    for number in range(22):
        paragraphs = [
            f"CHAPTER {number}",
            f"The old mill of {names[number % 4]} stood by the river, and the year was {1800 + number}.",
        ]
        for turn in range(6):
            paragraphs.append(f"“Shall we go to the mill {turn} times?” said {names[(number + turn) % 4]}.")
        paragraphs.append("And so they went down to the water together, and the sun was low.")
        told.append("\n\n".join(paragraphs * 3))
    path = tmp_path_factory.mktemp("books") / "books.txt.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write("\n<|book|>\n".join(told))
    return path
