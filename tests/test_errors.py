"""Every error is one line that says what, where and what to do, and has an exit code of its own kind."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorascope import errors
from lorascope.errors import LorascopeError, ModelError, UsageError, did_you_mean

EXIT_CODES = {
    "LorascopeError": 1, "UsageError": 2, "DataError": 2, "MissingSplit": 2, "ModelError": 2, "AdapterError": 2,
    "StoreError": 1, "RunError": 1, "OutOfMemory": 1, "CheckFailed": 3,
}  # fmt: skip


def kinds():
    return {n: k for n, k in vars(errors).items() if isinstance(k, type) and issubclass(k, Exception)}


def test_every_error_has_the_exit_code_that_the_command_line_documents():
    assert {name: kind.exit_code for name, kind in kinds().items()} == EXIT_CODES
    assert all(issubclass(kind, LorascopeError) for kind in kinds().values())


def test_an_error_says_what_where_and_what_to_do():
    error = UsageError("unknown key 'rr'", where="study.yaml, line 3", fix="did you mean 'r'?")
    assert str(error) == "study.yaml, line 3: unknown key 'rr'; did you mean 'r'?"
    assert str(UsageError("unknown key 'rr'")) == "unknown key 'rr'"
    assert str(UsageError("unknown key 'rr'", fix="remove it")) == "unknown key 'rr'; remove it"


@given(st.text(), st.none() | st.text(), st.none() | st.text())
def test_an_error_is_one_line_whatever_it_quotes(what, where, fix):
    assert len(str(ModelError(what, where=where, fix=fix)).splitlines()) <= 1


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_an_error_survives_the_way_between_processes(again):
    for kind in kinds().values():
        error = again(kind("bad", where="here", fix="mend it"))
        assert type(error) is kind
        assert (error.what, error.where, error.fix) == ("bad", "here", "mend it")
        assert str(error) == "here: bad; mend it"


def test_a_near_miss_is_suggested_and_else_everything_known_is_listed():
    assert did_you_mean("learning_rte", ["learning_rate", "epochs"]) == "did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["learning_rate", "epochs"]) == "known: epochs, learning_rate"
