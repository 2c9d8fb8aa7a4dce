"""Studies written to a file and read, or refused."""

import pytest

from lorascope.config import Study, load_study
from lorascope.errors import UsageError


@pytest.fixture
def load(tmp_path):
    """``load(text, overrides=None)``: the study in a file of this text (or these bytes)."""

    def loaded(text: str | bytes, overrides=None) -> Study:
        path = tmp_path / "study.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_study(path, overrides)

    return loaded


@pytest.fixture
def refusal(load):
    """``refusal(text, overrides=None)``: the message with which the study is refused, one line."""

    def message(text: str | bytes, overrides=None) -> str:
        with pytest.raises(UsageError) as caught:
            load(text, overrides)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    return message
