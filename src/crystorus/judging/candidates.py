"""Several crystals of every composition that is known, and which of them are the known one.

They are kept in parts, one file each, so that an interrupted run goes on from the finished ones.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from pymatgen.analysis.structure_matcher import StructureMatcher
from torch import Tensor

from crystorus.crystal_model import CrystalModel
from crystorus.data.compositions import Composition
from crystorus.data.files import write_whole
from crystorus.data.io import crystals_to_structures
from crystorus.data.store import CrystalStore
from crystorus.diffusion.algorithms import SamplerConfig
from crystorus.geometry import Crystals
from crystorus.sample.choosing import candidate_seed
from crystorus.sample.plan import crystal_seed
from crystorus.sample.texts import valid_crystals
from crystorus.sample.workers import Crew, share_out

PART = 64
"""Compositions per part."""
MATCHER = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10.0)
"""What counts as the known crystal: the field's tolerances."""


@dataclass(frozen=True, eq=False)
class Group:
    """Candidates of one composition.

    Attributes:
        crystals: K finished crystals.
        right: Which of them are the known one.
    """

    crystals: Crystals
    right: Bool[Tensor, " candidates"]


@dataclass(frozen=True)
class Part:
    """Known crystals as a process is given them."""

    number: int
    known: Crystals
    seeds: tuple[int, ...]
    sampler: SamplerConfig
    candidates: int


def make_groups(
    store: CrystalStore,
    order: Sequence[int],
    folder: Path,
    crew: Crew,
    *,
    sampler: SamplerConfig,
    candidates: int,
    seed: int,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Group]:
    """Make what is missing of the candidates and return all of them.

    Args:
        store: The known crystals.
        order: Which of them, by number.
        folder: Where the parts are kept.
        crew: Who makes them, with which checkpoint.
        sampler: How they are made.
        candidates: Crystals per composition.
        seed: Decides their noise.
        on_done: Called with the number of compositions finished so far.

    Raises:
        GenerationError: If a worker dies.
        OSError: If a part cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_size = sorted(order, key=lambda n: (int(store.n_atoms[n]), n))
    starts = range(0, len(by_size), PART)
    parts = [(number, by_size[start : start + PART]) for number, start in enumerate(starts)]
    waiting = [
        _part(number, store, chosen, seed, sampler, candidates)
        for number, chosen in parts
        if not _path(folder, number).is_file()
    ]
    done = len(by_size) - sum(len(part.seeds) for part in waiting)
    on_done(done)
    for number, crystals, right in share_out(make_part, waiting, crew) if waiting else ():
        _write(_path(folder, number), crystals, right)
        done += len(right)
        on_done(done)
    return [group for number, _ in parts for group in _read(_path(folder, number))]


def make_part(model: CrystalModel, part: Part) -> tuple[int, Crystals, Bool[Tensor, "n k"]]:
    """Make all candidates of a part, those of one composition side by side, and compare them."""
    walks = [
        model.sample(
            part.known.atomic_numbers,
            part.known.n_atoms,
            seeds=[candidate_seed(seed, number) for seed in part.seeds],
            sampler=part.sampler,
        ).split()
        for number in range(part.candidates)
    ]
    known = part.known.split()
    beside = [[walk[n] for walk in walks] for n in range(len(known))]
    right = [
        [matches(made, truth) for made in some] for some, truth in zip(beside, known, strict=True)
    ]
    crystals = Crystals.concat([crystal for some in beside for crystal in some])
    return part.number, crystals, torch.tensor(right)


def matches(made: Crystals, known: Crystals) -> bool:
    """Tell whether a crystal is the known one; a crystal that is not valid never is."""
    if not valid_crystals(made)[0]:
        return False
    one, other = crystals_to_structures(Crystals.concat([made, known]))
    # By root mean square, as match rates are; `fit` asks it of the farthest atom.
    return MATCHER.get_rms_dist(one, other) is not None


def _part(
    number: int,
    store: CrystalStore,
    chosen: Sequence[int],
    seed: int,
    sampler: SamplerConfig,
    candidates: int,
) -> Part:
    known = store.select(chosen)
    numbers = [crystal.atomic_numbers.tolist() for crystal in known.split()]
    seeds = tuple(
        crystal_seed(seed, Composition.of(z), n) for n, z in zip(chosen, numbers, strict=True)
    )
    return Part(number, known, seeds, sampler, candidates)


def _path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.npz"


def _write(path: Path, crystals: Crystals, right: Bool[Tensor, "n k"]) -> None:
    """Write one part, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        lattice=crystals.lattice.numpy(),
        frac_coords=crystals.frac_coords.numpy(),
        atomic_numbers=crystals.atomic_numbers.numpy().astype("u1"),
        n_atoms=crystals.n_atoms.numpy().astype("<i4"),
        right=right.numpy(),
    )
    write_whole(path, buffer.getvalue())


def _read(path: Path) -> Iterator[Group]:
    with np.load(path, allow_pickle=False) as file:
        crystals = Crystals(
            torch.from_numpy(file["lattice"]),
            torch.from_numpy(file["frac_coords"]),
            torch.from_numpy(file["atomic_numbers"].astype(np.int64)),
            torch.from_numpy(file["n_atoms"].astype(np.int64)),
        )
        right = torch.from_numpy(file["right"])
    candidates = right.shape[1]
    for n, row in enumerate(right):
        yield Group(crystals.select(range(n * candidates, (n + 1) * candidates)), row)
