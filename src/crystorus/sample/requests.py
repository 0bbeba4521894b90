"""Which crystals are wanted: compositions from formulas, files or a chemical system, with seeds.

Nothing here imports torch, so that a misspelt formula is answered at once.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crystorus.data.compositions import (
    Composition,
    count_system,
    enumerate_system,
    expand,
    symbol_of,
)
from crystorus.errors import RequestError
from crystorus.sample.options import SampleOptions

if TYPE_CHECKING:
    from crystal_fidelity.structures import Crystal
    from crystorus.crystal_model import CrystalModel
    from crystorus.geometry.crystals import Crystals
    from crystorus.sample.start import StartingStructure
    from crystorus.templates.skeletons import WeightedSkeleton

MAX_CRYSTALS = 1_000_000  # of one run, whose requests are held in memory


@dataclass(frozen=True, eq=False)
class Request:
    """One crystal to make.

    Attributes:
        index: Its number in every file, from 0.
        sample: Its number among the samples of its composition, from 0.
        seed: Of its own noise, 0 … 2⁶³ - 1.
        composition: How many atoms of each element the cell holds.
        start: What to start from; None is pure noise.
        skeletons: Space groups and sites to keep, the likeliest first, one per candidate, each with
            its weight; empty for no symmetry. Of a finished crystal the one that was kept.
        space_group: What was asked for as `space_group`; empty where it starts at a structure.
        known_phases: Name and crystal (a batch of one) of every phase of its reduced formula that
            the library holds; None if there is no library to compare with.
    """

    index: int
    sample: int
    seed: int
    composition: Composition
    start: "StartingStructure | None" = None
    skeletons: "tuple[WeightedSkeleton, ...]" = ()
    space_group: str = ""
    known_phases: "tuple[tuple[str, Crystals], ...] | None" = None

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the cell."""
        return self.composition.n_atoms


def crystal_seed(seed: int, composition: Composition, sample: int) -> int:
    """Derive one crystal's seed from what it is, not from its place in a list or a batch.

    Args:
        seed: The user's.
        composition: What the cell holds.
        sample: Number among the samples of that composition, from 0.

    Returns:
        A whole number, 0 … 2⁶³ - 1.
    """
    return derived_seed(f"crystorus {seed} {sample} {composition.hill_formula}")


def derived_seed(text: str) -> int:
    """Derive a seed, 0 … 2⁶³ - 1, from the first 63 bits of the SHA-256 of a text.

    Args:
        text: What it is the seed of. It decides the crystals, so its words stay as they are.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_requests(
    compositions: Iterable[Composition],
    *,
    n: int = 1,
    seed: int = 0,
    starts: "Sequence[StartingStructure]" = (),
) -> tuple[Request, ...]:
    """Ask for `n` crystals of every composition; a repeated composition gets further samples.

    Args:
        compositions: What is wanted, in the order of the files.
        n: Crystals of each, from 1 up.
        seed: The user's, from 0 up.
        starts: What each composition starts from; noise if there are none.

    Raises:
        RequestError: If there is no composition, or more crystals than one run can hold.
    """
    wanted = list(compositions)
    if n < 1:
        raise RequestError(f"{n} crystals per composition were asked for: ask for 1 or more")
    if seed < 0:
        raise RequestError(f"the seed is {seed}: give a whole number from 0 up")
    if n * len(wanted) > MAX_CRYSTALS:
        raise RequestError(
            f"{n} crystals of each of {len(wanted)} compositions were asked for, a run makes at "
            f"most {MAX_CRYSTALS}: lower --n, or split the request into several runs"
        )
    if not wanted:
        raise RequestError("no composition was given: name a formula, a table or a system")
    taken: Counter[Composition] = Counter()
    requests: list[Request] = []
    begun: Sequence[StartingStructure | None] = starts or [None] * len(wanted)
    for composition, start in zip(wanted, begun, strict=True):
        for _ in range(n):
            sample = taken[composition]
            noise = crystal_seed(seed, composition, sample)
            requests.append(Request(len(requests), sample, noise, composition, start))
            taken[composition] += 1
    return tuple(requests)


def choose_compositions(formulas: Sequence[str], options: SampleOptions) -> list[Composition]:
    """Return the compositions asked for, refusing options that would be ignored.

    Args:
        formulas: Such as "LiFeO2" or "Ca(OH)2".
        options: Name a file or a chemical system instead.

    Raises:
        RequestError: If none or several of formulas, --like and --system are given, an option has
            nothing to act on, or a structure cannot be read.
        FormulaError: If a formula or the system cannot be read.
        ReadingError: If the file as a whole cannot be read.
    """
    named = {
        "formulas": bool(formulas),
        "--like": options.like is not None,
        "--system": options.system is not None,
    }
    given = [name for name, present in named.items() if present]
    if len(given) != 1:
        raise RequestError(
            f"{' and '.join(given) or 'no composition'} given: give either formulas, or --like "
            "FILE, or --system Li-Fe-O"
        )
    if options.z != (1,) and not formulas:
        z = ",".join(map(str, options.z))
        raise RequestError(f"--z {z} says nothing about {given[0]}: leave it out")
    if options.max_atoms is not None and options.system is None:
        raise RequestError(f"--max-atoms {options.max_atoms} goes with --system only: leave it out")
    if options.like is not None:
        from crystal_fidelity.options import MIN_DISTANCE
        from crystal_fidelity.validity import closest_contacts

        like = usable_structures(options.like)
        for crystal, distance in zip(like, closest_contacts(like), strict=True):
            if distance < MIN_DISTANCE:
                raise RequestError(
                    f"{options.like}, {crystal.name}: two atoms are {distance:.3f} Å apart, below "
                    f"{MIN_DISTANCE} Å, so its formula may count one twice; correct it or take it "
                    "out"
                )
        return [Composition.of(crystal.atomic_numbers.tolist()) for crystal in like]
    if options.system is not None:
        if options.max_atoms is None:
            raise RequestError(f"--system {options.system} needs --max-atoms, as in --max-atoms 20")
        return system_compositions(options.system, options.max_atoms)
    return [composition for formula in formulas for composition in expand(formula, options.z)]


def system_compositions(system: str, max_atoms: int) -> list[Composition]:
    """Return every composition of a chemical system with at most `max_atoms` atoms per cell.

    Args:
        system: Such as Li-Fe-O.
        max_atoms: Atoms per cell, 1 or more.

    Raises:
        FormulaError: If the system cannot be read.
        RequestError: If it has more compositions than one run can make.
    """
    count = count_system(system, max_atoms)
    if count > MAX_CRYSTALS:
        raise RequestError(
            f"--system {system} has {count} compositions of at most {max_atoms} atoms, a run makes "
            f"at most {MAX_CRYSTALS}: lower --max-atoms or name fewer elements"
        )
    return list(enumerate_system(system, max_atoms))


def usable_structures(path: Path) -> "list[Crystal]":
    """Return every structure of a file or folder, in its order.

    Args:
        path: A file or folder in any format that crystal-fidelity reads.

    Raises:
        RequestError: If one of them cannot be read, or there is none.
        ReadingError: If the file as a whole cannot be read.
    """
    from crystal_fidelity.reading import read_structures
    from crystal_fidelity.structures import Crystal

    crystals = []
    for entry in read_structures(path):
        if not isinstance(entry, Crystal):
            raise RequestError(f"{path}, {entry.name}: {entry.reason}; correct it or take it out")
        crystals.append(entry)
    if not crystals:
        raise RequestError(f"{path} holds no structures: give at least one")
    return crystals


def default_folder(formulas: Sequence[str], options: SampleOptions) -> Path:
    """Name the output folder after what is asked for: out/LiFeO2, out/Li-Fe-O, out/my-structures.

    Args:
        formulas: Formulas that can be read.
        options: With the file or the system, if one is named.
    """
    if options.system is not None:
        return Path("out") / "-".join(part.strip() for part in options.system.split("-"))
    if options.like is not None:
        return Path("out") / (options.like.resolve().name.split(".")[0] or "like")
    names = list(dict.fromkeys(expand(formula, (1,))[0].formula for formula in formulas))
    more = f"-and-{len(names) - 3}-more" if len(names) > 3 else ""
    return Path("out") / ("-".join(names[:3]) + more)


def check_requests(
    requests: Sequence[Request], model: "CrystalModel", *, large: bool = False, remedy: str = ""
) -> list[str]:
    """Refuse what the model was not made for; return warnings on what it never saw.

    Args:
        requests: What is wanted.
        model: Of whose training crystals the largest and the elements count.
        large: Only warn of cells with more atoms.
        remedy: What to do about cells with more atoms; without it what the commands allow.

    Raises:
        RequestError: If a cell has more atoms than the model was trained for.
    """
    distinct = list(dict.fromkeys(request.composition for request in requests))
    larger = [c for c in distinct if c.n_atoms > model.max_atoms]
    warnings = []
    if larger:
        worst = max(larger, key=lambda c: c.n_atoms)
        others = f", and {len(larger) - 1} other compositions too" if len(larger) > 1 else ""
        what = (
            f"{worst.formula} has {worst.n_atoms} atoms in the cell{others}, but this checkpoint "
            f"was trained on at most {model.max_atoms}"
        )
        if not large:
            given = all(request.start is not None for request in requests)  # structures to refine
            fewer = "" if given else " (--z)"
            remedy = (
                remedy or f"say --large to make it all the same, or ask for smaller cells{fewer}"
            )
            raise RequestError(f"{what}: {remedy}")
        warnings.append(f"{what}: results for such cells are unreliable")
    for z in sorted({z for c in distinct for z, _ in c.counts} - model.trained_elements):
        symbol = symbol_of(z)
        formulas = list(dict.fromkeys(c.reduced_formula for c in distinct if symbol in c.elements))
        named = ", ".join(formulas[:3]) + (", …" if len(formulas) > 3 else "")
        warnings.append(f"{symbol} was never seen in training: results for {named} are unreliable")
    return warnings
