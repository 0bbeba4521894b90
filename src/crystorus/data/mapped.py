"""Named arrays in one flat file that is mapped into memory, not read.

Layout, little-endian: 8 bytes of magic, the last one its version; the length of the header as
uint64; the header, JSON; zeros to the next multiple of 64; the arrays, each starting at a
multiple of 64. The header names every array with its dtype, shape and offset from the first
array, and holds the SHA-256 of all bytes after it beside whatever the writer has to say.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from crystorus.data.arrays import ReadingError

_ALIGN = 64


@dataclass(frozen=True)
class FileKind:
    """A kind of mapped file.

    Attributes:
        magic: Its first 8 bytes.
        name: What to call it.
        remedy: What to do where one is missing or damaged, as an imperative.
    """

    magic: bytes
    name: str
    remedy: str


def write_mapped(
    out: Path, kind: FileKind, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Write arrays and a header; the file appears only when complete.

    Raises:
        OSError: If the file cannot be written; nothing is left behind.
    """
    entries, offset = {}, 0
    digest = hashlib.sha256()
    for name, array in arrays.items():
        entries[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": offset}
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
        digest.update(_padded(array))
    header = {**about, "arrays": entries, "bytes": offset, "sha256": digest.hexdigest()}
    text = json.dumps(header).encode()
    head = kind.magic + len(text).to_bytes(8, "little") + text
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(head + bytes(-len(head) % _ALIGN))
            stream.writelines(_padded(array) for array in arrays.values())
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(out)
    except OSError as error:  # that of a write does not say where
        raise OSError(error.errno, error.strerror, str(out)) from error
    finally:
        partial.unlink(missing_ok=True)


def map_file(
    path: Path, kind: FileKind, *, verify: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Map a file that `write_mapped` wrote; returns its header and its arrays.

    Args:
        path: The file.
        kind: What it should be.
        verify: Compare the digest, which reads the whole file once. The size is always checked.

    Raises:
        ReadingError: If it is missing, of another kind or version, cut short, or altered.
    """
    header, start = _read_header(path, kind)
    size = path.stat().st_size
    if size != start + header["bytes"]:
        raise ReadingError(
            f"{path} has {size} bytes, its header says {start + header['bytes']}: it is cut "
            f"short or altered, {kind.remedy}"
        )
    if not header["bytes"]:
        raise ReadingError(f"{path} holds no arrays: {kind.remedy}")
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=start)
    if verify and hashlib.sha256(data.data).hexdigest() != header["sha256"]:
        raise ReadingError(f"{path} does not match its digest: it was altered, {kind.remedy}")
    try:
        return header, {name: _view(data, entry) for name, entry in header["arrays"].items()}
    except (ValueError, TypeError, KeyError) as error:
        raise contradiction(path, kind, error) from error


def is_kind(path: Path, kind: FileKind) -> bool:
    """Tell whether a path is a file that begins as this kind does."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(kind.magic)) == kind.magic


def contradiction(path: Path, kind: FileKind, error: Exception) -> ReadingError:
    """Return the error for a file whose arrays are not what its header says."""
    return ReadingError(f"{path} contradicts its header ({error}): {kind.remedy}")


def text_arrays(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return texts as two arrays: their UTF-8 bytes and where each of them ends."""
    encoded = [t.encode() for t in texts]
    return {
        f"{name}:text": np.frombuffer(b"".join(encoded), dtype="u1"),
        f"{name}:end": np.cumsum([len(t) for t in encoded], dtype="<i8"),
    }


def texts_of(arrays: Mapping[str, np.ndarray], name: str) -> list[str]:
    """Return the texts that `text_arrays` laid out."""
    data = arrays[f"{name}:text"].tobytes()
    ends = [0, *arrays[f"{name}:end"].tolist()]
    return [data[i:j].decode() for i, j in pairwise(ends)]


def _padded(array: np.ndarray) -> bytes:
    data = array.tobytes()
    return data + bytes(-len(data) % _ALIGN)


def _read_header(path: Path, kind: FileKind) -> tuple[dict[str, Any], int]:
    if path.is_dir():
        raise ReadingError(f"{path} is a folder, not a {kind.name}: name the file")
    if not path.is_file():
        raise ReadingError(f"{path} does not exist: {kind.remedy}")
    version = kind.magic.decode()[-1]
    foreign = f"{path} is not a {kind.name} of version {version}: {kind.remedy}"
    with path.open("rb") as stream:
        if stream.read(len(kind.magic)) != kind.magic:
            raise ReadingError(foreign)
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ReadingError(f"{path} is cut short inside its header: {kind.remedy}")
        try:
            header = json.loads(stream.read(length))
            start = -(-(len(kind.magic) + 8 + length) // _ALIGN) * _ALIGN
            int(header["bytes"]), dict(header["arrays"]), str(header["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise ReadingError(foreign) from error
    return header, start


def _view(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape, start = np.dtype(entry["dtype"]), tuple(entry["shape"]), int(entry["offset"])
    stop = start + dtype.itemsize * math.prod(shape)
    if dtype.kind not in "fiu" or start < 0 or stop > len(data):
        raise ValueError(f"bytes {start} to {stop} of {len(data)} as {dtype}")
    return data[start:stop].view(dtype).reshape(shape)
