"""Given structures as requests: repaired or perturbed by the model, with parts held fixed."""

from collections.abc import Sequence

import torch

from crystal_fidelity.structures import Crystal
from crystorus.data.compositions import Composition, symbol_of
from crystorus.data.convert import join
from crystorus.errors import RequestError
from crystorus.geometry.crystals import Crystals
from crystorus.geometry.lattice import reduce_lattice
from crystorus.sample.options import RefineOptions
from crystorus.sample.requests import Request, make_requests
from crystorus.sample.start import StartingStructure

LEAST_PER_ATOM, MOST_PER_ATOM = 2.0, 300.0  # Å³; MP-20 has 5.8 to 202
MIN_LENGTH = 1.5  # Å, of a lattice vector; MP-20 has 2.26 and more


def refine_requests(structures: Sequence[Crystal], options: RefineOptions) -> tuple[Request, ...]:
    """Return `options.n` requests per structure.

    Args:
        structures: With a name each.
        options: How far back to go, and what is held.

    Raises:
        RequestError: If a cell is none that the network can look at, what is to be held is not in
            it, nothing is left to move, or there is no structure.
    """
    if not structures:
        raise RequestError("no structures to refine: give at least one")
    return make_requests(
        [Composition.of(structure.atomic_numbers.tolist()) for structure in structures],
        n=options.n,
        seed=options.seed,
        starts=[starting_structure(structure, options) for structure in structures],
    )


def starting_structure(structure: Crystal, options: RefineOptions) -> StartingStructure:
    """Return a structure as a start, its atoms in the order of its composition.

    Args:
        structure: As it was read.
        options: Level, noise, and what is held.

    Raises:
        RequestError: If its cell is far from that of any crystal, what is to be held is not in it,
            or nothing is left to move.
    """
    name, numbers = structure.name, structure.atomic_numbers.tolist()
    crystal = join([structure], dtype=torch.float32)
    per_atom = float(crystal.volume[0]) / len(numbers)
    if not LEAST_PER_ATOM <= per_atom <= MOST_PER_ATOM:
        raise RequestError(
            f"{name} has {per_atom:.3g} Å³ per atom, limits {LEAST_PER_ATOM:g} to "
            f"{MOST_PER_ATOM:g}: correct its cell or take it out"
        )
    shortest = float(reduce_lattice(crystal.lattice)[0].norm(dim=1).min())
    if shortest < MIN_LENGTH:
        raise RequestError(
            f"{name} repeats every {shortest:.3g} Å, limit {MIN_LENGTH:g}: correct its cell or "
            "take it out"
        )
    places = Composition.of(numbers).order(numbers)
    held = held_atoms(options.hold, structure)
    if options.hold_cell and len(held) == len(numbers):
        raise RequestError(f"--hold {options.hold} --hold-cell: nothing of {name} is left to move")
    return StartingStructure(
        name,
        Crystals(
            crystal.lattice,
            crystal.frac_coords[places],
            crystal.atomic_numbers[places],
            crystal.n_atoms,
        ),
        options.level,
        options.noised,
        held_atoms=tuple(new for new, old in enumerate(places) if old in held),
        held_cell=options.hold_cell,
        same_composition=True,
    )


def held_atoms(text: str | None, structure: Crystal) -> set[int]:
    """Read which atoms are to be held.

    Args:
        text: Symbols of elements and numbers of atoms of the file, from 0, comma-separated; None
            holds nothing.
        structure: Where they are; the images of an atom of the file are held with it.

    Returns:
        Numbers of atoms of the structure, from 0.

    Raises:
        RequestError: If the structure has no such element or atom.
    """
    held: set[int] = set()
    symbols = [symbol_of(z) for z in structure.atomic_numbers.tolist()]
    listed = range(len(symbols)) if structure.sites is None else structure.sites.tolist()
    for part in [part.strip() for part in (text or "").split(",") if part.strip()]:
        number = int(part) if part.isdecimal() else -1
        if number in listed or part in symbols:
            found = zip(symbols, listed, strict=True)
            held.update(
                i for i, (symbol, site) in enumerate(found) if part == symbol or number == site
            )
        else:
            raise RequestError(
                f"--hold {text}: {structure.name} has no {part!r}; name one of its elements "
                f"({', '.join(dict.fromkeys(symbols))}) or atoms 0 to {max(listed)} of its file"
            )
    return held
