"""Features of structures from a network, with the identity of that network attached.

Features of two networks, two sets of weights or two graph modes must never be compared, so the
identity travels with the numbers and is checked wherever two sets meet.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.files import whole_file
from crystal_fidelity.screening import Limits, screen
from crystal_fidelity.structures import Crystal, Entry, ReadFailure, as_entries, digest

FLUSH_EVERY = 512
"""Structures between two writes of the cache."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Identity:
    """What made the features."""

    name: str
    weights_sha256: str
    graph: str
    """How neighbours were chosen, where the network leaves a choice."""

    def __str__(self) -> str:
        return f"{self.name}, weights {self.weights_sha256[:12]}, {self.graph}"


@runtime_checkable
class Featurizer(Protocol):
    """A map from crystals to vectors."""

    @property
    def identity(self) -> Identity:
        """What makes the features."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""
        ...

    def features(self, structures: Sequence[object]) -> "FeatureSet":
        """Return one vector per structure it can handle, and reasons for the others."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of structures; those that failed are named, not filled in."""

    features: NDArray[np.float64]
    """(kept, dimension), finite."""
    names: tuple[str, ...]
    """(kept,)."""
    identity: Identity
    failures: tuple[tuple[str, str], ...] = ()
    """Name and reason of every structure without features."""

    def __len__(self) -> int:
        return len(self.features)


def feature_set(
    rows: NDArray[np.float64], names: Sequence[str], reasons: Sequence[str], identity: Identity
) -> FeatureSet:
    """Keep the rows without a reason; a row that is not finite is a failure too."""
    finite: list[bool] = [bool(np.isfinite(row).all()) for row in rows]
    why = [
        reason or ("" if ok else "features are not finite")
        for reason, ok in zip(reasons, finite, strict=True)
    ]
    kept: NDArray[np.bool_] = np.array([not reason for reason in why], dtype=bool)
    return FeatureSet(
        rows[kept].astype(np.float64),
        tuple(name for name, ok in zip(names, kept, strict=True) if ok),
        identity,
        tuple((name, reason) for name, reason in zip(names, why, strict=True) if reason),
    )


def require_same(left: Identity, right: Identity) -> None:
    """Refuse to compare features of two different networks.

    Raises:
        ValueError: the identities differ.
    """
    if left != right:
        raise ValueError(f"features of ({left}) cannot be compared with features of ({right})")


def save_features(path: str | Path, features: FeatureSet) -> None:
    """Write features with their identity to .npz."""
    with whole_file(path) as target, target.open("wb") as file:
        np.savez_compressed(
            file,
            features=features.features,
            names=np.array(features.names, dtype=str),
            identity=np.array(json.dumps(asdict(features.identity))),
            failures=np.array(features.failures, dtype=str).reshape(-1, 2),
        )


def load_features(path: str | Path) -> FeatureSet:
    """Read features written by `save_features`; nothing in the file is executed.

    Raises:
        ValueError: the file is not such an .npz, or holds numbers that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            features = np.asarray(content["features"], dtype=np.float64)
            identity = Identity(**json.loads(str(content["identity"])))
            names = tuple(str(name) for name in content["names"])
            failures = tuple((str(a), str(b)) for a, b in content["failures"])
    except (ValueError, KeyError, TypeError, EOFError, OSError, BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a feature file of this package: {error}") from error
    if features.ndim != 2 or len(names) != len(features) or not np.isfinite(features).all():
        raise ValueError(f"{path}: features of shape {features.shape} must be finite, one row each")
    return FeatureSet(features, names, identity, failures)


def default_cache() -> Path:
    """Return the folder of cached network outputs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "crystal-fidelity"


class RowCache:
    """Rows of numbers by content digest of the structure, in one .npz per identity."""

    def __init__(self, folder: Path | None, identity: Identity, width: int) -> None:
        self._path = folder / f"{_slug(identity)}.npz" if folder else None
        self._width = width
        self._rows: dict[str, NDArray[np.float32]] = {}
        self._unsaved = 0
        if self._path and self._path.exists():
            self._rows = self._load(self._path)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def get(self, key: str) -> NDArray[np.float32]:
        """Return the row of a digest."""
        return self._rows[key]

    def put(self, key: str, row: NDArray[np.float32]) -> None:
        """Keep a row; it reaches the disk with the next flush."""
        self._rows[key] = row
        self._unsaved += 1
        if self._unsaved >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the cache, atomically, if something changed."""
        if self._path is None or self._unsaved == 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = np.array(list(self._rows.values()), dtype=np.float32)
        with whole_file(self._path) as target, target.open("wb") as file:
            np.savez(file, digests=np.array(list(self._rows), dtype="S64"), rows=rows)
        self._unsaved = 0

    def _load(self, path: Path) -> dict[str, NDArray[np.float32]]:
        """A cache that cannot be read is rebuilt, as it holds nothing that cannot be recomputed."""
        try:
            with np.load(path, allow_pickle=False) as content:
                digests, rows = content["digests"], content["rows"]
        except (ValueError, KeyError, EOFError, OSError, BadZipFile):
            return {}
        if rows.ndim != 2 or rows.shape[1] != self._width or len(rows) != len(digests):
            return {}
        return {key.decode(): row for key, row in zip(digests.tolist(), rows, strict=True)}


def _slug(identity: Identity) -> str:
    text = f"{identity.name}-{identity.graph}-{identity.weights_sha256[:16]}"
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)


def cached_rows(
    structures: Sequence[object],
    cache: RowCache,
    compute: Callable[[Sequence[Crystal]], NDArray[np.float32]],
    width: int,
    *,
    batch: int,
    on_progress: Progress = lambda _text: None,
) -> NDArray[np.float64]:
    """Return (structures, width) rows, computing only what the cache has not; NaN for failures.

    New structures are computed in batches of similar size, each content once.
    """
    entries = as_entries(structures)
    keys = [digest(e) if isinstance(e, Crystal) else "" for e in entries]
    missing = {
        key: entry
        for key, entry in zip(keys, entries, strict=True)
        if isinstance(entry, Crystal) and key not in cache
    }
    todo = sorted(missing.items(), key=lambda item: len(item[1]))
    for start in range(0, len(todo), batch):
        chunk = todo[start : start + batch]
        on_progress(f"features: {start} of {len(todo)}")
        rows = compute([crystal for _, crystal in chunk])
        for (key, _), row in zip(chunk, rows, strict=True):
            cache.put(key, row)
    cache.flush()
    nothing = np.full(width, np.nan, dtype=np.float32)
    return np.array([cache.get(k) if k else nothing for k in keys], np.float64).reshape(-1, width)


def screened_rows(
    structures: Sequence[object],
    cache: RowCache,
    compute: Callable[[Sequence[Crystal]], NDArray[np.float32]],
    width: int,
    limits: Limits,
    *,
    batch: int,
    on_progress: Progress = lambda _text: None,
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Return `cached_rows` of what is inside the limits, the reasons of the others, all names.

    What has a row in the cache was inside when it was computed and is not screened again.
    """
    entries = as_entries(structures)
    new = [
        i
        for i, entry in enumerate(entries)
        if not isinstance(entry, Crystal) or digest(entry) not in cache
    ]
    reasons = [""] * len(entries)
    for i, reason in zip(new, screen([entries[i] for i in new], limits), strict=True):
        reasons[i] = reason
    allowed: list[Entry] = [
        ReadFailure(entry.name, reason) if reason else entry
        for entry, reason in zip(entries, reasons, strict=True)
    ]
    rows = cached_rows(allowed, cache, compute, width, batch=batch, on_progress=on_progress)
    return rows, reasons, [entry.name for entry in entries]
