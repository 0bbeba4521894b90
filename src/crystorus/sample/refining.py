"""Given structures as requests: repaired or perturbed by the model, with parts held fixed."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from crystorus.data.compositions import Composition, symbol_of
from crystorus.data.io import read_crystals
from crystorus.geometry import Crystals
from crystorus.geometry.lattice import reduce_lattice
from crystorus.sample.errors import RequestError
from crystorus.sample.guiding import GUIDED_LEVEL
from crystorus.sample.plan import Known, Request, crystal_seed
from crystorus.sample.run import DEFAULT_BATCH_ATOMS

MIN_VOLUME, MAX_VOLUME = 2.0, 300.0  # Å³ per atom; MP-20 has 5.8 to 202
MIN_LENGTH = 1.5  # Å, of a lattice vector; MP-20 has 2.26 and more


@dataclass(frozen=True)
class RefineOrder:
    """What a user asked to be refined, and how."""

    files: tuple[Path, ...]
    """Structure files."""
    out: Path
    """Folder of the run."""
    level: float = GUIDED_LEVEL
    """Share of the noise levels to go back to."""
    noised: bool = False
    """Whether noise of that level is added."""
    hold: str | None = None
    """Elements, or places of atoms in the file from 0, that stay; comma-separated."""
    hold_cell: bool = False
    """Whether the cell stays."""
    n: int = 1
    """Crystals per structure."""
    seed: int = 0
    """Seed of the whole run."""
    checkpoint: Path | None = None
    """A checkpoint folder."""
    device: str = "cpu"
    """Where the network runs."""
    batch_atoms: int = DEFAULT_BATCH_ATOMS
    """Atoms per batch."""
    workers: int = 1
    """Processes that sample."""
    symprec: float = 0.1
    """Symmetry tolerance in Å."""
    overwrite: bool = False
    """Whether to replace another run in the folder."""


def structure_requests(order: RefineOrder) -> tuple[Request, ...]:
    """Return `n` requests per structure of the files.

    Raises:
        RequestError: If a structure cannot be read, there is none, or what is to be held is not
            in it.
        ReadingError: If a file as a whole cannot be read.
    """
    if order.n < 1:
        raise RequestError(f"{order.n} crystals per structure were asked for: ask for 1 or more")
    if order.seed < 0:
        raise RequestError(f"the seed is {order.seed}: give a whole number from 0 up")
    if order.n > 1 and not order.noised:
        raise RequestError(
            f"--n {order.n} without noise gives the same crystal {order.n} times: add --noised"
        )
    requests: list[Request] = []
    taken: Counter[Composition] = Counter()
    for path in order.files:
        for name, crystal in read_crystals(path):
            if isinstance(crystal, ValueError):
                raise RequestError(f"{path}, {name}: {crystal}; correct it or take it out")
            known = known_of(name, crystal, order)
            composition = Composition.of(crystal.atomic_numbers.tolist())
            for _ in range(order.n):
                sample = taken[composition]
                seed = crystal_seed(order.seed, composition, sample)
                requests.append(Request(len(requests), sample, seed, composition, known))
                taken[composition] += 1
    if not requests:
        raise RequestError(f"{', '.join(map(str, order.files))}: no structures; give at least one")
    return tuple(requests)


def known_of(name: str, crystal: Crystals, order: RefineOrder) -> Known:
    """Return a structure as a start, its atoms in the order of its composition.

    Raises:
        RequestError: If its cell is none that the network can look at, what is to be held is not
            in it, or nothing is left to move.
    """
    _check_cell(name, crystal)
    numbers = crystal.atomic_numbers.tolist()
    places = Composition.of(numbers).order(numbers)
    held = _held(order.hold, numbers, name)
    if order.hold_cell and len(held) == len(numbers):
        raise RequestError(f"--hold {order.hold} --hold-cell: nothing of {name} is left to move")
    ordered = Crystals(
        crystal.lattice,
        crystal.frac_coords[places],
        crystal.atomic_numbers[places],
        crystal.n_atoms,
    ).to(dtype=torch.float32)
    return Known(
        name,
        ordered,
        order.level,
        order.noised,
        held_atoms=tuple(new for new, old in enumerate(places) if old in held),
        held_cell=order.hold_cell,
        same_composition=True,
    )


def _check_cell(name: str, crystal: Crystals) -> None:
    """Refuse cells far from those of any crystal."""
    per_atom = float(crystal.volume[0]) / int(crystal.n_atoms[0])
    if not MIN_VOLUME <= per_atom <= MAX_VOLUME:
        raise RequestError(
            f"{name} has {per_atom:.3g} Å³ per atom, limits {MIN_VOLUME:g} to {MAX_VOLUME:g}: "
            "correct its cell or take it out"
        )
    shortest = float(reduce_lattice(crystal.lattice)[0].norm(dim=1).min())
    if shortest < MIN_LENGTH:
        raise RequestError(
            f"{name} repeats every {shortest:.3g} Å, limit {MIN_LENGTH:g}: correct its cell or "
            "take it out"
        )


def _held(text: str | None, numbers: list[int], name: str) -> set[int]:
    """Read what is to be held: symbols and places, as places in the file."""
    held: set[int] = set()
    if text is not None and not text.replace(",", "").strip():
        raise RequestError("--hold is empty: name elements or places of atoms, or leave it out")
    symbols = [symbol_of(z) for z in numbers]
    for part in [part.strip() for part in (text or "").split(",") if part.strip()]:
        if part.isdecimal() and int(part) < len(numbers):
            held.add(int(part))
        elif part in symbols:
            held.update(place for place, symbol in enumerate(symbols) if symbol == part)
        else:
            raise RequestError(
                f"--hold {text}: {name} has no {part!r}; name one of its elements "
                f"({', '.join(dict.fromkeys(symbols))}) or atoms 0 to {len(numbers) - 1}"
            )
    return held
