"""Writing to a disk that may fill up, be cut off or be shared: whole files, synced, locked."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from crystorus.sample.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has no file locks of this kind: two writers are not noticed there
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what an operating-system error on `path` means for the run.

    Raises:
        OutputError: For any OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path if path.exists() else path.parent).free
            raise OutputError(
                f"no space left for {path} ({free / 2**20:.1f} MiB free): make room and run the "
                "same command again; the finished crystals are kept"
            ) from error
        raise OutputError(
            f"cannot write {error.filename or path}: {error.strerror or error}; "
            "choose another --out"
        ) from error


def append(path: Path, text: str) -> None:
    """Append to a file and wait until it is on disk."""
    with path.open("ab") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def lock_folder(path: Path) -> int:
    """Lock the folder itself until the descriptor is closed, by us or by a kill."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(
            f"{path} is being written by another run: wait for it, or choose another --out"
        ) from error
    except OSError:  # a file system without locks
        pass
    return descriptor
