"""Files that are whole or absent: temporary name, fsync, rename. POSIX. Floor: store."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorascope.errors import StoreError, UsageError

# What lies beside a merged model and says how it was merged (``certify``).
CERTIFICATE_FILE = "merge-certificate.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: a reader sees the old contents or the new, also after a power cut.

    Args:
        path: the file; its parents are created.
        data: bytes, or text that is written as UTF-8.

    Raises:
        StoreError: the file cannot be written (disk full, read-only, a directory of that name).
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = temporary_beside(path)
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync(path.parent)


def check_new(out: Path) -> None:
    """Refuse a directory for results that holds something already; an empty one is taken.

    Raises:
        UsageError: something is there.
    """
    if (out.exists() or out.is_symlink()) and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("something is there already", where=str(out), fix="give a new directory")


@contextmanager
def atomic_directory(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A directory that appears complete or not at all.

    Fill the yielded temporary sibling; when the block ends it takes the place of ``path``, and of what was there. No
    portable call swaps two directories, so a reader may find none for an instant, but never half of one.

    Args:
        replace: False where nothing but an empty directory may be there; what came to be there while the block ran then stays.

    Raises:
        StoreError: the block could not read or write a file, or the directory cannot take its place.
    """
    path = path.resolve()
    temporary = temporary_beside(path)
    with file_errors(path):
        temporary.mkdir(parents=True)
    try:
        with _errors_of_block(path, temporary):
            yield temporary
        with file_errors(path):
            for directory, _, files in os.walk(temporary):
                for file in files:
                    fsync(Path(directory, file))
                fsync(Path(directory))
            _take_place(temporary, path, replace=replace)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _take_place(temporary: Path, path: Path, *, replace: bool) -> None:
    """Rename, and have the name on the disk."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not replace:
        try:
            temporary.rename(path)  # onto an empty directory at most: the system refuses any other
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            what = "something came to be there meanwhile, and is kept"
            raise StoreError(what, where=str(path), fix="give a new directory") from error
        fsync(path.parent)
        return
    replaced = temporary_beside(path)
    with suppress(FileNotFoundError):
        path.rename(replaced)
    try:
        temporary.rename(path)
    except BaseException:
        if replaced.exists():
            replaced.rename(path)
        raise
    fsync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _errors_of_block(path: Path, temporary: Path) -> Iterator[None]:
    """The system's errors while a directory is filled: of a file that is read elsewhere that is the place, not ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own, and none of the system's
            raise
        place = None if error.filename is None else Path(os.fsdecode(error.filename)).resolve()
        # A copy that fills the disk names the file that it reads.
        if place is None or place.is_relative_to(temporary) or error.errno in _NO_SPACE:
            with file_errors(path):
                raise
        what, fix = f"cannot be used ({error.strerror})", "check that it is there and can be read"
        raise StoreError(what, where=str(place), fix=fix) from error


def temporary_beside(path: Path) -> Path:
    """An unused name in the directory of ``path``, from where a rename is atomic."""
    return path.parent / f".{secrets.token_hex(8)}.part"


def remove_unfinished(directory: Path) -> None:
    """Remove what a killed process left below ``directory`` under temporary names; nobody else may be writing there."""
    for path in list(directory.rglob(".*.part")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Have the file or directory on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_errors(path: Path, action: str = "write") -> Iterator[None]:
    """The system's errors as a StoreError that names ``path`` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            fix = "free some space, then start again (a study goes on with --resume)"
        else:
            fix = f"choose a place that you can {action}"
        raise StoreError(f"cannot {action} ({error.strerror or error})", where=str(path), fix=fix) from error
