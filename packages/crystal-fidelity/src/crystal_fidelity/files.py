"""Files that appear whole or not at all, their digests, and what a full disk means."""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crystal_fidelity.errors import FidelityError

ASIDE = ".part"
"""Suffix of what is being written."""


class FileError(FidelityError):
    """A file or folder that cannot be written."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; it takes the place of `path` when the block ends without error.

    A process that is killed in the middle leaves the old file, or none. The yielded name is
    hidden, ends in `.part` and is of this process alone, so that two writers never share it.
    A pipe or a device is written to directly; a link is kept and its target replaced.

    Args:
        path: The file to replace; its folder must exist.

    Yields:
        The path to write. Tell writers that choose a format by the suffix which one is meant.
    """
    target = Path(os.path.realpath(path))  # resolve() of Python below 3.13 fails on loops of links
    if target.exists() and not target.is_file():
        yield target
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(3)}{ASIDE}")
    try:
        yield aside
        # On disk before it has its name: otherwise a power cut could leave an empty file.
        _sync(aside)
        aside.replace(target)
        if os.name == "posix":
            _sync(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that it is either complete and on disk, or as it was before.

    Args:
        path: The file; its folder must exist.
        content: All of it; text is written as UTF-8 with the line ends it has.
    """
    with atomic_path(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_asides(folder: Path) -> None:
    """Delete what writers that were killed left in a folder; call it when no other one writes.

    Args:
        folder: Of the files.
    """
    for aside in folder.glob(f".*{ASIDE}"):
        aside.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Args:
        path: The file.
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def disk_errors(path: str | Path, *, remedy: str = "choose another path") -> Iterator[None]:
    """Say what an operating-system error inside the block means for `path`.

    Args:
        path: The file or folder being written.
        remedy: What to do when the path itself is the problem.

    Raises:
        FileError: For any OSError inside the block; a full disk is told with its free space.
    """
    path = Path(path)
    try:
        yield
    except FidelityError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FileError(
                f"no space left for {path} ({_free_mib(path)}): make room and run the same "
                "command again; finished work is kept"
            ) from error
        raise FileError(
            f"cannot write {error.filename or path}: {error.strerror or error}; {remedy}"
        ) from error


def check_writable(folder: str | Path, *, remedy: str = "choose another path") -> None:
    """Refuse a folder that could not be written later, before the work rather than after it.

    A nameless file is made in it, or in the nearest folder above that exists; nothing is left.

    Args:
        folder: It need not exist.
        remedy: What to do about it.

    Raises:
        FileError: If no file can be made there.
    """
    path = Path(folder)
    with disk_errors(path, remedy=remedy):
        try:
            for there in (path, *path.absolute().parents):
                with suppress(FileNotFoundError, NotADirectoryError):
                    there.lstat()  # not exists(): a link to what is missing is in the way
                    break
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:  # which may name the nameless file
            raise OSError(error.errno, error.strerror, str(path)) from error


def _free_mib(path: Path) -> str:
    there = next((p for p in (path, *path.parents) if p.exists()), Path())
    return f"{shutil.disk_usage(there).free / 2**20:.1f} MiB free"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
