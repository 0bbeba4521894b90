"""Crystals in one memory-mapped file: a training store, or the crystals of a template library.

The file is safetensors. Its metadata hold one JSON text: the kind of file, the sources with their
SHA-256, every structure left out with the reason, and the SHA-256 of the whole file, header
included, with its own 64 digits as zeros. Arrays: lattice (float64, columns, Å), frac_coords
(float64), atomic_numbers (uint8), n_atoms (int32), first_atom (int64), and texts as two arrays.
Files of version 0.1, which had a layout of their own, are opened too.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from crystal_fidelity.cells import least_distance, niggli_reduce
from crystal_fidelity.errors import ReadingError
from crystal_fidelity.files import atomic_path, disk_errors, file_digest
from crystal_fidelity.options import MIN_DISTANCE
from crystal_fidelity.reading import iter_structures
from crystal_fidelity.structures import (
    MAX_ATOMIC_NUMBER,
    MAX_LENGTH,
    Crystal,
    Entry,
    ReadFailure,
)
from crystal_fidelity.workers import map_in_order
from crystorus.data.convert import join
from crystorus.geometry import Crystals

MIN_VOLUME_PER_ATOM = 0.5
"""Å³; solid hydrogen at a megabar still has more than 1."""
MOST_ATOMS = 20_000
"""Per cell; the surroundings of templates, of all pairs of atoms, take a minute there."""
_KEY = "crystorus"
_BLANK = "0" * 64
_NAMED_SKIPS = 1000
_OLD_ALIGNMENT = 64


@dataclass(frozen=True)
class FileKind:
    """A kind of file of arrays.

    Attributes:
        name: What to call it.
        command: What makes one.
        old_magic: The first 8 bytes of files of version 0.1.
    """

    name: str
    command: str
    old_magic: bytes

    @property
    def remedy(self) -> str:
        """What to do where one is damaged, as an imperative."""
        return f"build it again with `{self.command}`"


STORE = FileKind("crystal store", "crystorus data build", b"CRYSTOR1")


@dataclass(frozen=True, eq=False)
class CrystalStore:
    """Crystals in a memory-mapped file, Niggli-reduced and validated.

    Attributes:
        path: The file.
        header: What the file says of itself; `sha256` is the digest of its content.
        arrays: The mapped arrays by name.
    """

    path: Path
    header: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return len(self.n_atoms)

    def __getitem__(self, index: int) -> Crystals:
        if not -len(self) <= index < len(self):
            raise IndexError(f"crystal {index} of {len(self)}: use 0 to {len(self) - 1}")
        return self.select([index])

    def __reduce__(self) -> tuple[Callable[..., "CrystalStore"], tuple[Path]]:
        return partial(open_store, verify=False), (self.path,)

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of each crystal, int32."""
        return self.arrays["n_atoms"]

    @property
    def ids(self) -> list[str]:
        """Names of the crystals."""
        return _texts(self.arrays, "id")

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of the structures left out, the first thousand of them."""
        return [(name, reason) for name, reason in self.header["skipped"]]

    @property
    def extra_columns(self) -> list[str]:
        """Names of the extra columns of the source."""
        return [*self.header["extra"]]

    def extra(self, column: str) -> np.ndarray | list[str]:
        """Return an extra column: float64 (empty cells are NaN), or texts if it is not numeric.

        Args:
            column: Of the source's table.

        Raises:
            KeyError: If there is no such column.
        """
        if column not in self.header["extra"]:
            raise KeyError(
                f"no column {column!r} in {self.path}: it has {', '.join(self.extra_columns)}"
            )
        if self.header["extra"][column] == "float":
            return self.arrays[f"extra:{column}"]
        return _texts(self.arrays, f"extra:{column}")

    def select(
        self, indices: Sequence[int] | np.ndarray, *, dtype: torch.dtype = torch.float32
    ) -> Crystals:
        """Return the crystals at `indices` as one batch, in that order.

        Args:
            indices: Numbers of crystals, from 0, [chosen].
            dtype: Of cells and positions.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        counts = self.n_atoms[chosen].astype(np.int64)
        ends = np.cumsum(counts)
        shift = self.arrays["first_atom"][chosen] - (ends - counts)
        atoms = np.arange(ends[-1] if len(ends) else 0) + np.repeat(shift, counts)
        return Crystals(
            torch.from_numpy(self.arrays["lattice"][chosen]).to(dtype),
            torch.from_numpy(self.arrays["frac_coords"][atoms]).to(dtype),
            torch.from_numpy(self.arrays["atomic_numbers"][atoms].astype(np.int64)),
            torch.from_numpy(counts),
        )


def build_store(
    source: Path | Sequence[Path],
    out: Path,
    *,
    n_workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> CrystalStore:
    """Read structures, reduce and validate them, and write them as a store.

    Structures that cannot be used are left out and listed in the store's `skipped`.

    Args:
        source: Anything that `crystal_fidelity.reading` reads, or several of them.
        out: The file to write; it appears only when complete.
        n_workers: Processes that parse and reduce.
        progress: Called with the number of structures read so far.

    Returns:
        The store, opened.

    Raises:
        ReadingError: If a source is broken as a whole, nothing usable is in it, or `out` is a
            folder or a source.
        FileError: If the file cannot be written; nothing is left behind.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    check_target(out, sources)
    entries = (entry for path in sources for entry in iter_structures(path, workers=n_workers))
    crystals: list[Crystal] = []
    skipped: list[tuple[str, str]] = []
    for done, entry in enumerate(map_in_order(usable, entries, n_workers), start=1):
        if isinstance(entry, ReadFailure):
            skipped.append((entry.name, entry.reason))
        else:
            crystals.append(entry)
        if progress is not None:
            progress(done)
    if not crystals:
        first = "; ".join(f"{name}: {why}" for name, why in skipped[:3]) or "it is empty"
        raise ReadingError(f"no usable structure in {', '.join(map(str, sources))} ({first})")
    described = [{"name": path.name, "sha256": digest_of(path)} for path in sources]
    store = store_of(crystals, out, skipped=skipped, sources=described)
    write_arrays(out, STORE, store.arrays, store.header | {"min_distance": MIN_DISTANCE})
    return open_store(out, verify=False)


def usable(entry: Entry) -> Entry:
    """Return a crystal in its Niggli-reduced cell, or why it cannot be used.

    Args:
        entry: What a reader gave.
    """
    if isinstance(entry, ReadFailure):
        return entry
    if len(entry) > MOST_ATOMS:
        return ReadFailure(entry.name, f"it has {len(entry)} atoms, limit {MOST_ATOMS}")
    smallest = MIN_VOLUME_PER_ATOM * len(entry)
    if entry.volume < smallest:
        return ReadFailure(
            entry.name,
            f"its cell has {entry.volume:.3g} Å³ for {len(entry)} atoms, below "
            f"{MIN_VOLUME_PER_ATOM} Å³ each: it is singular, or not in Å",
        )
    try:
        reduced = niggli_reduce(entry)
    except ReadingError as error:
        return ReadFailure(entry.name, str(error))
    distance = least_distance(reduced, reduced=True)
    if distance < MIN_DISTANCE:
        reason = f"two atoms are {distance:.3f} Å apart, below {MIN_DISTANCE} Å"
        return ReadFailure(entry.name, reason)
    return reduced


def store_of(
    crystals: Sequence[Crystal],
    path: Path,
    *,
    skipped: Sequence[tuple[str, str]] = (),
    sources: Sequence[Mapping[str, str]] = (),
) -> CrystalStore:
    """Return reduced crystals as a store in memory; `path` merely names it.

    Args:
        crystals: As `usable` returns them.
        path: What messages call the store.
        skipped: Name and reason of the structures left out.
        sources: Name and SHA-256 of the files that the crystals came from.
    """
    batch = join(crystals)
    n_atoms = batch.n_atoms.numpy().astype("<i4")
    arrays = {
        "lattice": batch.lattice.numpy(),
        "frac_coords": batch.frac_coords.numpy(),
        "atomic_numbers": batch.atomic_numbers.numpy().astype("u1"),
        "n_atoms": n_atoms,
        "first_atom": (np.cumsum(n_atoms, dtype="<i8") - n_atoms).astype("<i8"),
        **_text_arrays("id", [crystal.name for crystal in crystals]),
    }
    kinds = {}
    for column in dict.fromkeys(column for crystal in crystals for column in crystal.info):
        cells = [crystal.info.get(column, "") for crystal in crystals]
        try:
            arrays[f"extra:{column}"] = np.array([float(c) if c else np.nan for c in cells], "<f8")
            kinds[column] = "float"
        except ValueError:
            arrays |= _text_arrays(f"extra:{column}", cells)
            kinds[column] = "text"
    header = {
        "sources": [*sources],
        "crystals": len(crystals),
        "n_skipped": len(skipped),
        "skipped": [*skipped[:_NAMED_SKIPS]],
        "extra": kinds,
    }
    return CrystalStore(path, header, arrays)


def open_store(path: Path, *, verify: bool = True) -> CrystalStore:
    """Map a store into memory.

    Args:
        path: A file that `build_store` wrote.
        verify: Compare the digest, which reads the whole file once. The size is always checked.

    Raises:
        ReadingError: If the file is missing, not a store, cut short, or altered.
    """
    return store_from(path, STORE, *open_arrays(path, STORE, verify=verify))


def store_from(
    path: Path, kind: FileKind, header: dict[str, Any], arrays: dict[str, np.ndarray]
) -> CrystalStore:
    """Return the crystals among the arrays of a file.

    Args:
        path: Named in errors.
        kind: What sort of file it is.
        header: As the file has it.
        arrays: By name.

    Raises:
        ReadingError: If the arrays do not belong together or are no crystals: a file's digest says
            that it is whole, not who made it.
    """
    try:
        _check(header, arrays)
    except (ValueError, TypeError, KeyError, AttributeError, np.linalg.LinAlgError) as error:
        raise contradiction(path, kind, error) from error
    return CrystalStore(path, {"n_skipped": len(header["skipped"]), **header}, arrays)


def _check(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise one of Python's errors where header and arrays are not those of crystals."""
    n_atoms = arrays["n_atoms"].astype(np.int64)
    lattice, frac, numbers = (arrays[name] for name in ("lattice", "frac_coords", "atomic_numbers"))
    n, atoms = len(n_atoms), int(n_atoms.sum())
    if frac.shape != (atoms, 3) or numbers.shape != (atoms,) or lattice.shape != (n, 3, 3):
        raise ValueError(f"{atoms} atoms are announced and others are there")
    if not n or n_atoms.min() < 1 or (np.cumsum(n_atoms) - n_atoms != arrays["first_atom"]).any():
        raise ValueError("its crystals do not follow one another")
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        raise ValueError(f"atomic numbers are {numbers.min()} to {numbers.max()}")
    longest = np.abs(lattice).max()
    if not (longest <= MAX_LENGTH and frac.min() >= 0 and frac.max() <= 1):
        raise ValueError("a cell or a coordinate is beyond all limits")
    if (np.abs(np.linalg.det(lattice)) < 0.99 * MIN_VOLUME_PER_ATOM * n_atoms).any():
        raise ValueError("a cell is singular")
    for column, form in header["extra"].items():
        if form == "float" and arrays[f"extra:{column}"].shape != (n,):
            raise ValueError(f"column {column} has not a number for each crystal")
    texts = [f"extra:{column}" for column, form in header["extra"].items() if form != "float"]
    for name in ("id", *texts):
        text, ends = arrays[f"{name}:text"], arrays[f"{name}:end"]
        if len(ends) != n or (np.diff(ends, prepend=0) < 0).any() or ends[-1] > text.size:
            raise ValueError(f"column {name} has not a text for each crystal")
        _texts(arrays, name)
    [(str(name), str(reason)) for name, reason in header["skipped"]]
    [str(source["sha256"]) for source in header["sources"]]
    if not header["crystals"] == n or not isinstance(header.get("n_skipped", 0), int):
        raise ValueError(f"{header['crystals']} crystals are announced, {n} are there")


def open_or_build(
    source: Path,
    cache: Path,
    *,
    n_workers: int = 1,
    progress: Callable[[int], None] | None = None,
    remedy: str = "delete it to build it again",
) -> CrystalStore:
    """Open a store; of anything else open the one built before, or build it.

    Args:
        source: A store, or anything `build_store` reads.
        cache: Where a store that is built is kept.
        n_workers: Processes that parse.
        progress: Called with the number of structures read so far.
        remedy: What to do about a store that was built from another file.

    Raises:
        ReadingError: If the source is broken or holds nothing usable, or is not what the cached
            store was built from.
    """
    if is_kind(source, STORE):
        return open_store(source)
    if not cache.is_file():
        return build_store(source, cache, n_workers=n_workers, progress=progress)
    store = open_store(cache)
    if source.exists() and [s["sha256"] for s in store.header["sources"]] != [digest_of(source)]:
        raise ReadingError(
            f"{cache} was built from another file than {source}: {remedy}, or put the file that it "
            "was built from back"
        )
    return store


def check_target(out: Path, sources: Sequence[Path]) -> None:
    """Refuse to write where a source is.

    Args:
        out: To be written.
        sources: To be read.

    Raises:
        ReadingError: If `out` is a folder, one of the sources, or inside one of them.
    """
    if out.is_dir():
        raise ReadingError(f"{out} is a folder: name a file to write, such as {out / 'x.store'}")
    place = out.resolve()
    for source in sources:
        if place == source.resolve() or (out.exists() and source.resolve() in place.parents):
            raise ReadingError(f"{out} would overwrite its own source: name another file")


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and contents.

    Args:
        path: A file or a folder.
    """
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def write_arrays(
    out: Path, kind: FileKind, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Write named arrays and what there is to say of them; the file appears only when complete.

    Args:
        out: The file.
        kind: What sort of file it is.
        arrays: By name.
        about: The header, in JSON's types.

    Raises:
        FileError: If the file cannot be written; nothing is left behind.
    """
    # One metadata entry: their order in the header is not defined, and equal content is to give
    # equal files. Its first field has a fixed width and is filled in last.
    header = {"sha256": _BLANK, "kind": kind.name, **about}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = memoryview(save(contiguous, {_KEY: json.dumps(header)}))
    _, digest, place = _digest(io.BytesIO(content))
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as aside, aside.open("wb") as stream:
            stream.write(content[:place])
            stream.write(digest.encode())
            stream.write(content[place + len(digest) :])


def open_arrays(
    path: Path, kind: FileKind, *, verify: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Map a file that `write_arrays` wrote; returns what it says of itself and its arrays.

    Args:
        path: The file.
        kind: What it should be.
        verify: Compare the digest, which reads the whole file once. The size is always checked.

    Raises:
        ReadingError: If it is missing, of another kind or version, cut short, or altered.
    """
    if path.is_dir():
        raise ReadingError(f"{path} is a folder, not a {kind.name}: name the file")
    if not path.is_file():
        raise ReadingError(f"{path} does not exist: build it with `{kind.command}`")
    with path.open("rb") as stream:
        if stream.read(8) == kind.old_magic:
            return _open_old(path, kind, verify=verify)
        stream.seek(0)
        if not stream.read(16)[8:].startswith(b"{"):
            raise ReadingError(f"{path} is not a {kind.name}: {kind.remedy}")
    damaged = f"{path} is cut short or altered, {kind.remedy}"
    try:
        with safe_open(path, framework="pt") as tensors:
            header = json.loads((tensors.metadata() or {}).get(_KEY, "{}"))
            names = tensors.keys()
            arrays = {name: tensors.get_tensor(name).numpy() for name in names}
    except (SafetensorError, ValueError, TypeError, OSError, RecursionError) as error:
        raise ReadingError(damaged) from error
    header = header if isinstance(header, dict) else {}
    if header.get("kind") != kind.name:
        found = header.get("kind", "file of another program")
        raise ReadingError(f"{path} is a {found}, not a {kind.name}: {kind.remedy}")
    if verify:
        with path.open("rb") as stream:
            recorded, digest, _ = _digest(stream)
        if recorded != digest:
            raise ReadingError(f"{path} does not match its digest: it was altered, {kind.remedy}")
    return header, arrays


def is_kind(path: Path, kind: FileKind) -> bool:
    """Tell whether a path is a file of this kind, as far as its beginning says.

    Args:
        path: Any path.
        kind: What sort of file is asked for.
    """
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        start = stream.read(8)
        if start == kind.old_magic:
            return True
        length = int.from_bytes(start, "little")
        if not 0 < length < path.stat().st_size:
            return False
        return f'\\"kind\\": \\"{kind.name}\\"'.encode() in stream.read(length)


def contradiction(path: Path, kind: FileKind, error: Exception) -> ReadingError:
    """Return the error for a file whose arrays are not what its header says.

    Args:
        path: Of the file.
        kind: What sort of file it is.
        error: What was found.
    """
    return ReadingError(f"{path} contradicts its header ({error}): {kind.remedy}")


def _digest(stream: io.BufferedIOBase) -> tuple[str, str, int]:
    """Return the digest that a file records, the one it has, and where the first is written.

    The header is inside the digest: altered shapes, offsets or sources are found.
    """
    stream.seek(0)
    start = stream.read(8)
    header = bytearray(stream.read(int.from_bytes(start, "little")))
    mark = b'{\\"sha256\\": \\"'
    place = header.find(mark) + len(mark)
    recorded = header[place : place + len(_BLANK)].decode("ascii", "replace")
    header[place : place + len(_BLANK)] = _BLANK.encode()
    digest = hashlib.sha256(start + header)
    while piece := stream.read(1 << 20):
        digest.update(piece)
    return recorded, digest.hexdigest(), len(start) + place


def _open_old(
    path: Path, kind: FileKind, *, verify: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Map a file of version 0.1: magic, length of the header, header (JSON), aligned arrays."""
    with path.open("rb") as stream:
        stream.seek(len(kind.old_magic))
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ReadingError(f"{path} is cut short inside its header: {kind.remedy}")
        text = stream.read(length)
    start = -(-(16 + length) // _OLD_ALIGNMENT) * _OLD_ALIGNMENT
    try:
        header = json.loads(text)
        if path.stat().st_size != start + header["bytes"]:
            raise ReadingError(f"{path} is cut short or altered, {kind.remedy}")
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=start)
        arrays = {}
        for name, entry in header["arrays"].items():
            dtype, shape, first = np.dtype(entry["dtype"]), entry["shape"], entry["offset"]
            last = first + dtype.itemsize * math.prod(shape)
            if dtype.kind not in "fiu" or not 0 <= first <= last <= len(data):
                raise ValueError(f"bytes {first} to {last} of {len(data)} as {dtype}")
            arrays[name] = data[first:last].view(dtype).reshape(shape)
        recorded = header["sha256"]
    except ReadingError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise contradiction(path, kind, error) from error
    if verify and hashlib.sha256(data.data).hexdigest() != recorded:
        raise ReadingError(f"{path} does not match its digest: it was altered, {kind.remedy}")
    return header, arrays


def _text_arrays(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return texts as two arrays: their UTF-8 bytes and where each of them ends."""
    encoded = [text.encode() for text in texts]
    return {
        f"{name}:text": np.frombuffer(b"".join(encoded), dtype="u1"),
        f"{name}:end": np.cumsum([len(text) for text in encoded], dtype="<i8"),
    }


def _texts(arrays: Mapping[str, np.ndarray], name: str) -> list[str]:
    """Return the texts that `_text_arrays` laid out."""
    data = arrays[f"{name}:text"].tobytes()
    ends = [0, *arrays[f"{name}:end"].tolist()]
    return [data[i:j].decode() for i, j in pairwise(ends)]
