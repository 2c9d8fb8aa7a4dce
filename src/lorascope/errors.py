"""The one hierarchy of errors: what is wrong, where, and what to do about it.

Floor: the lowest; imports nothing of the project. The command line turns each error into one line on stderr and its
``exit_code``; anything else that escapes is a bug.
"""

from __future__ import annotations


class LorascopeError(Exception):
    """A failure that a user can act on.

    Args:
        what: what is wrong, one sentence without a final full stop.
        where: the file, key, line, module or trial concerned.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        # One argument, so that a process pool can pickle the error and make it again.
        super().__init__(what)

    def __str__(self) -> str:
        message = self.what if self.where is None else f"{self.where}: {self.what}"
        message = message if self.fix is None else f"{message}; {self.fix}"
        return " ".join(message.split())


class UsageError(LorascopeError):
    """Wrong options, a study file that does not hold together, or a directory used twice."""

    exit_code = 2


class DataError(LorascopeError):
    """A dataset that cannot be read as what it was said to be."""

    exit_code = 2


class MissingSplit(DataError):
    """The data hold no such split."""


class ModelError(LorascopeError):
    """A base model, tokenizer or target name that cannot be used."""

    exit_code = 2


class AdapterError(LorascopeError):
    """An adapter directory that cannot be read, does not fit the base, or holds numbers that are none."""

    exit_code = 2


class StoreError(LorascopeError):
    """The study's directory cannot be written, is in use, or belongs to another study."""


class RunError(LorascopeError):
    """A study that could not be carried out."""


class OutOfMemory(RunError):
    """Memory ran out, on whatever device, where nothing smaller was left to try."""


class CheckFailed(LorascopeError):
    """A property that Lorascope guarantees did not hold, for example a base weight that changed."""

    exit_code = 3


def did_you_mean(word: str, known: list[str]) -> str:
    """``"did you mean 'x'?"`` for a near miss, else the list of what is known."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
