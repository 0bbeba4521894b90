"""Features of structures from a network, with the identity of that network attached.

Features of two networks, two sets of weights or two graph modes must never be compared, so the
identity travels with the numbers and is checked wherever two sets meet.
"""

import json
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Literal, Protocol, runtime_checkable
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from crystal_fidelity.files import atomic_path
from crystal_fidelity.options import MIN_DISTANCE, FeaturizerName
from crystal_fidelity.scores import Progress, silent
from crystal_fidelity.structures import (
    Crystal,
    Entry,
    ReadFailure,
    as_entries,
    digest,
    element_symbol,
)
from crystal_fidelity.validity import closest_contacts

FLUSH_EVERY = 512
"""Structures between two writes of the cache."""
_TORN = (
    ValueError, LookupError, TypeError, AttributeError, EOFError, OSError, RuntimeError, BadZipFile,
    MemoryError, OverflowError, SyntaxError, SystemError, TokenError, zlib.error,
)  # fmt: skip
"""What numpy raises on damaged .npz files."""
DISTANCE_NAMES = {
    "chgnet": "Fréchet CHGNet distance",
    "alignn": "Fréchet ALIGNN Distance (FAD)",
    "alignn-invariant": "Fréchet ALIGNN Distance (tie-tolerant graph)",
}


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

    identity: Identity
    """What makes the features."""
    dimension: int
    """Length of a feature vector."""

    def features(self, structures: Sequence[object]) -> "FeatureSet":
        """Return one vector per structure it can handle, and reasons for the others.

        Args:
            structures: Crystals, failures, pymatgen structures or ASE atoms.
        """
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
    """Keep the rows without a reason; a row that is not finite is a failure too.

    Args:
        rows: (structures, dimension).
        names: Of all structures.
        reasons: Why a structure has no features, empty where it has.
        identity: What made them.
    """
    kept, failures = [], []
    for i, (row, name, reason) in enumerate(zip(rows, names, reasons, strict=True)):
        if reason or not np.isfinite(row).all():
            failures.append((name, reason or "features are not finite"))
        else:
            kept.append(i)
    found = rows[kept].astype(np.float64)
    return FeatureSet(found, tuple(names[i] for i in kept), identity, tuple(failures))


def require_same(left: Identity, right: Identity) -> None:
    """Refuse to compare features of two different networks.

    Args:
        left: Of one set.
        right: Of the other.

    Raises:
        ValueError: the identities differ.
    """
    if left != right:
        raise ValueError(f"features of ({left}) cannot be compared with features of ({right})")


def save_features(path: str | Path, features: FeatureSet) -> None:
    """Write features with their identity to .npz.

    Args:
        path: Ends in .npz.
        features: With their identity.
    """
    with atomic_path(path) as target, target.open("wb") as file:
        np.savez_compressed(
            file,
            features=features.features,
            names=np.array(features.names, dtype=str),
            identity=np.array(json.dumps(asdict(features.identity))),
            failures=np.array(features.failures, dtype=str).reshape(-1, 2),
        )


def load_features(path: str | Path) -> FeatureSet:
    """Read features written by `save_features`; nothing in the file is executed.

    Args:
        path: The file.

    Raises:
        ValueError: the file is not such an .npz, or holds numbers that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            features = np.asarray(content["features"], dtype=np.float64)
            identity = Identity(**json.loads(str(content["identity"])))
            names = tuple(str(name) for name in content["names"])
            failures = tuple((str(a), str(b)) for a, b in content["failures"])
    except _TORN as error:
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


class CachedRows:
    """A row of numbers per structure, computed once per content and kept in one .npz per identity.

    What has a row in the cache was inside the limits when it was computed and is not screened
    again. New structures are computed in batches of similar size.

    Args:
        folder: Where the cache lies; None is the default folder.
        identity: What makes the rows.
        width: Numbers in a row.
        compute: Gives (crystals, width) rows, NaN where it cannot.
        limits: Domain of the network.
        batch: Crystals computed at once.
        on_progress: Called with what is being done.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: Identity,
        width: int,
        compute: Callable[[Sequence[Crystal]], NDArray[np.float32]],
        limits: "Limits",
        *,
        batch: int,
        on_progress: Progress = silent,
    ) -> None:
        text = f"{identity.name}-{identity.graph}-{identity.weights_sha256[:16]}"
        slug = "".join(c if c.isalnum() or c in "-." else "_" for c in text)
        self._path = (folder or default_cache()) / f"{slug}.npz"
        self._width, self._compute, self._limits = width, compute, limits
        self._batch, self._on_progress = batch, on_progress
        self._rows: dict[str, NDArray[np.float32]] = {}
        # A cache that cannot be read is rebuilt: it holds nothing that cannot be computed again.
        if self._path.exists():
            with suppress(*_TORN), np.load(self._path, allow_pickle=False) as content:
                digests, rows = content["digests"], content["rows"]
                if rows.ndim == 2 and rows.shape[1] == width and len(rows) == len(digests):
                    keys = [key.decode() for key in digests.tolist()]
                    self._rows = dict(zip(keys, rows, strict=True))

    def __call__(
        self, structures: Sequence[object]
    ) -> tuple[NDArray[np.float64], list[str], list[str]]:
        """Return the rows of structures, computing only what the cache has not.

        Args:
            structures: Crystals, read failures, pymatgen structures or ASE atoms.

        Returns:
            (structures, width) rows, NaN for failures; the reason of each structure outside the
            limits, empty for the others; the names of all.
        """
        entries = as_entries(structures)
        keys = [digest(e) if isinstance(e, Crystal) else "" for e in entries]
        new = [i for i, key in enumerate(keys) if not key or key not in self._rows]
        reasons = [""] * len(entries)
        for i, reason in zip(new, screen([entries[i] for i in new], self._limits), strict=True):
            reasons[i] = reason
        missing = {keys[i]: entries[i] for i in new if not reasons[i]}
        todo = sorted(missing.items(), key=lambda item: len(item[1]))  # type: ignore[arg-type]
        unsaved = 0
        for start in range(0, len(todo), self._batch):
            chunk = dict(todo[start : start + self._batch])
            self._on_progress(f"features: {start} of {len(todo)}")
            rows = self._compute(list(chunk.values()))  # type: ignore[arg-type]
            self._rows |= zip(chunk, rows, strict=True)
            unsaved += len(chunk)
            if unsaved >= FLUSH_EVERY:
                self._save()
                unsaved = 0
        if unsaved:
            self._save()
        found = np.full((len(entries), self._width), np.nan)
        for i, (key, reason) in enumerate(zip(keys, reasons, strict=True)):
            if not reason:
                found[i] = self._rows[key]
        return found, reasons, [entry.name for entry in entries]

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = np.array(list(self._rows.values()), dtype=np.float32)
        with atomic_path(self._path) as target, target.open("wb") as file:
            np.savez(file, digests=np.array(list(self._rows), dtype="S64"), rows=rows)


# What a network must not be asked: it would answer nonsense, or ask for 14 GB


@dataclass(frozen=True)
class Limits:
    """The domain of a network."""

    max_atomic_number: int
    min_distance: float = MIN_DISTANCE
    """Å; closer atoms give finite nonsense, coincident ones NaN."""
    max_atoms_per_volume: float = 1.0
    """Atoms per Å³ (diamond has 0.18); more would exhaust memory through the neighbour list."""
    max_nearest_neighbour: float = 5.5
    """Å; every atom needs a neighbour (or image) this close, isolated atoms have no graph."""


def screen(entries: Sequence[Entry], limits: Limits) -> list[str]:
    """Return why each structure is outside the limits, empty where it is inside.

    Args:
        entries: Structures.
        limits: Domain of a network.
    """
    reasons = [_cheap_reason(entry, limits) for entry in entries]
    open_ones = [i for i, reason in enumerate(reasons) if not reason]
    crystals = [entry for i in open_ones if isinstance(entry := entries[i], Crystal)]
    for index, crystal, contact in zip(
        open_ones, crystals, closest_contacts(crystals), strict=True
    ):
        if contact < limits.min_distance:
            reasons[index] = f"contact {contact:.3f} Å < {limits.min_distance} Å"
        elif (alone := isolated_atom_index(crystal, limits.max_nearest_neighbour)) is not None:
            reasons[index] = (
                f"atom {alone} has no neighbour within {limits.max_nearest_neighbour} Å"
            )
    return reasons


def _cheap_reason(entry: Entry, limits: Limits) -> str:
    if isinstance(entry, ReadFailure):
        return f"unreadable: {entry.reason}"
    heaviest = int(entry.atomic_numbers.max())
    if heaviest > limits.max_atomic_number:
        symbol = element_symbol(heaviest)
        return f"element {symbol} (Z = {heaviest}) > {limits.max_atomic_number}"
    volume = entry.volume
    if volume < 1e-9 or len(entry) / volume > limits.max_atoms_per_volume:
        return f"{len(entry)} atoms in {volume:.3g} Å³ > {limits.max_atoms_per_volume} per Å³"
    return ""


def isolated_atom_index(crystal: Crystal, cutoff: float) -> int | None:
    """Return the index of an atom without neighbour or image within `cutoff` Å, if any.

    Args:
        crystal: One crystal.
        cutoff: Å.
    """
    if np.linalg.norm(crystal.lattice, axis=1).min() <= cutoff:
        return None
    from ase.neighborlist import primitive_neighbor_list

    centres = primitive_neighbor_list(
        "i", (True, True, True), crystal.lattice, crystal.frac_coords @ crystal.lattice, cutoff
    )
    alone = np.setdiff1d(np.arange(len(crystal)), centres)
    return int(alone[0]) if len(alone) else None


def make_featurizer(
    name: FeaturizerName,
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    on_progress: Progress = silent,
) -> Featurizer:
    """Return the featurizer of a name.

    Args:
        name: As on the command line.
        weights: File of its weights, for ALIGNN.
        cache: Folder of cached rows; None is the default folder.
        on_progress: Called with what is being done.

    Raises:
        ImportError: Its extra is not installed.
        ValueError: It needs weights and none are given, or the file does not hold them.
    """
    if name == "chgnet":
        from crystal_fidelity.features.chgnet import ChgnetModel

        return ChgnetModel(cache, on_progress=on_progress)
    if weights is None:
        raise ValueError(
            f"featurizer {name} needs weights: give --weights FILE, made once by "
            "`crystal-fidelity weights fetch mp_e_form_alignn FILE`"
        )
    try:
        from crystal_fidelity.features.alignn import AlignnFeaturizer
    except ImportError as error:
        raise ImportError(
            "ALIGNN features need torch and safetensors: pip install 'crystal-fidelity[alignn]'"
        ) from error
    mode: Literal["official", "tie-tolerant"] = "official" if name == "alignn" else "tie-tolerant"
    return AlignnFeaturizer(weights, mode, cache, on_progress=on_progress)
