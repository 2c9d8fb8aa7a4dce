"""A task on which only the value projection can help, and its three games carried out once."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorascope.attribution.maps import draw_maps
from lorascope.attribution.players import design_trials, read_game
from lorascope.cohort.run import run_study
from lorascope.config import Study
from lorascope.lora import frozen

KNOWN_ANSWER = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "known_answer.py"))


@pytest.fixture(scope="session", autouse=True)
def plain_kernels() -> Iterator[None]:
    """Which path is the fastest for models this small is chance, and paths round differently."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "choose", lambda *_: frozen.Choice("plain", {"plain": 1.0}, {"plain": 0.0}))
        yield


@pytest.fixture(scope="session")
def known_answer() -> dict[str, Any]:
    """The names of ``benchmarks/known_answer.py``."""
    return KNOWN_ANSWER


@pytest.fixture(scope="session")
def known_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model and the data."""
    directory = tmp_path_factory.mktemp("known")
    KNOWN_ANSWER["make_task"](directory)
    return directory


@pytest.fixture(scope="session")
def known_study(known_task: Path) -> Callable[..., Study]:
    """``known_study(game, seeds, **design)``: a study of that task, a shorter one than the benchmark's."""

    def make(game: str, seeds: tuple[int, ...] = (1, 2), sections: Any = None, **design: Any) -> Study:
        values = KNOWN_ANSWER["study_values"](known_task, seeds, game)
        values["train"] = {**values["train"], "epochs": 4}
        values["design"] = {**values["design"], "length": 2.0, **design}
        return Study.model_validate({**values, **(sections or {})})

    return make


@pytest.fixture(scope="session")
def play() -> Callable[..., list[Any]]:
    """``play(study, directory)``: the study's trials and maps, to the end; the maps' events."""

    def carried_out(study: Study, directory: Path, resume: bool = False) -> list[Any]:
        game = read_game(study)
        list(run_study(study, design_trials(game), directory, resume=resume))
        return [] if study.design.game == "usefulness" else list(draw_maps(game, directory))

    return carried_out


@pytest.fixture(scope="session")
def games(known_study: Callable[..., Study], play: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of the three games, finished; not to be written to."""
    directories = {game: tmp_path_factory.mktemp(game) / "run" for game in ("usefulness", "reliance", "one_run")}
    for game, directory in directories.items():
        play(known_study(game), directory)
    return directories
