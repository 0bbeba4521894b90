"""Which crystals are wanted, with which seed each, and in which batches they are made.

A crystal's seed depends on the user's seed, its composition and its number among the samples of
that composition: not on its place in a list or in a batch.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from crystorus.data.compositions import Composition, symbol_of
from crystorus.geometry import Crystals
from crystorus.sample.errors import RequestError

MAX_CRYSTALS = 1_000_000  # of one run, whose requests and records are held in memory
WINDOW_BATCHES = 16  # batches are sorted by size within windows, so that files grow in order


@dataclass(frozen=True, eq=False)
class Known:
    """A known crystal to start from, and how.

    Attributes:
        name: What to call it in the table: a template's id, a file.
        crystal: The crystal, a batch of one, of the composition wanted, atom by atom.
        level: Share of the noise levels to go back to, 0 to 1.
        noised: Whether noise is added; see `Start`.
        held_atoms: Atoms that stay, by place; none by default.
        held_cell: Whether the cell stays.
        share: Of all votes, those for this prototype.
        same_composition: Whether it is a known crystal of this very composition.
        exchange: Elements of the template and what stands for them, such as "Sr>Ba Ti>Zr".
    """

    name: str
    crystal: Crystals
    level: float
    noised: bool = False
    held_atoms: tuple[int, ...] = ()
    held_cell: bool = False
    share: float = 1.0
    same_composition: bool = False
    exchange: str = ""


@dataclass(frozen=True, eq=False)
class Phase:
    """A crystal of a library that has the reduced formula of a request.

    Attributes:
        name: Its id in the library.
        crystal: The crystal, a batch of one.
    """

    name: str
    crystal: Crystals


@dataclass(frozen=True)
class Request:
    """One crystal to make. `index` is its number in every file, `seed` its own noise."""

    index: int
    sample: int
    seed: int
    composition: Composition
    known: Known | None = None
    """What to start from; pure noise without it."""
    phases: tuple[Phase, ...] = ()
    """Known phases of its reduced formula, to be told from new ones."""

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the cell."""
        return self.composition.n_atoms


def crystal_seed(seed: int, composition: Composition, sample: int) -> int:
    """Derive one crystal's seed, 0 … 2⁶³ - 1, from what it is and not from where it stands."""
    text = f"crystorus {seed} {sample} {composition.hill_formula}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_requests(
    compositions: Iterable[Composition], *, n: int = 1, seed: int = 0
) -> tuple[Request, ...]:
    """Ask for `n` crystals of every composition; a repeated composition gets further samples.

    Raises:
        RequestError: If `n` is below 1, the seed is negative, there is no composition, or the
            crystals are more than one run can hold.
    """
    if n < 1:
        raise RequestError(f"{n} crystals per composition were asked for: ask for 1 or more")
    if seed < 0:
        raise RequestError(f"the seed is {seed}: give a whole number from 0 up")
    wanted = list(compositions)
    if n * len(wanted) > MAX_CRYSTALS:
        raise RequestError(
            f"{n} crystals of each of {len(wanted)} compositions were asked for, a run makes at "
            f"most {MAX_CRYSTALS}: lower --n, or split the request into several runs"
        )
    taken: Counter[Composition] = Counter()
    requests: list[Request] = []
    for composition in wanted:
        for _ in range(n):
            sample = taken[composition]
            noise = crystal_seed(seed, composition, sample)
            requests.append(Request(len(requests), sample, noise, composition))
            taken[composition] += 1
    if not requests:
        raise RequestError("no composition was given: name a formula, a table or a system")
    return tuple(requests)


def check_requests(
    requests: Sequence[Request],
    *,
    max_atoms: int,
    trained_elements: frozenset[int],
    large: bool = False,
) -> list[str]:
    """Refuse what the model was not made for; return warnings on what it never saw.

    Args:
        requests: What is wanted.
        max_atoms: Atoms of the largest training crystal.
        trained_elements: Atomic numbers of the training crystals.
        large: Only warn of cells with more atoms.

    Raises:
        RequestError: If a cell has more atoms than the model was trained for.
    """
    distinct = list(dict.fromkeys(request.composition for request in requests))
    larger = [c for c in distinct if c.n_atoms > max_atoms]
    warnings = []
    if larger:
        worst = max(larger, key=lambda c: c.n_atoms)
        others = f", and {len(larger) - 1} other compositions too" if len(larger) > 1 else ""
        what = (
            f"{worst.formula} has {worst.n_atoms} atoms in the cell{others}, but this checkpoint "
            f"was trained on at most {max_atoms}"
        )
        if not large:
            raise RequestError(
                f"{what}: ask for fewer formula units (--z), a lower --max-atoms, a table without "
                "them, or say --large"
            )
        warnings.append(f"{what}: expect little of it")
    unseen = sorted({z for c in distinct for z, _ in c.counts} - trained_elements)
    return warnings + [_unseen_element(z, distinct) for z in unseen]


def _unseen_element(atomic_number: int, compositions: Sequence[Composition]) -> str:
    symbol = symbol_of(atomic_number)
    formulas = dict.fromkeys(c.reduced_formula for c in compositions if symbol in c.elements)
    named = ", ".join(list(formulas)[:3]) + (", …" if len(formulas) > 3 else "")
    return f"{symbol} was never seen in training: expect little of the crystals of {named}"


def plan_batches(requests: Sequence[Request], *, batch_atoms: int) -> list[tuple[Request, ...]]:
    """Group requests of similar size into batches of at most `batch_atoms` padded atoms.

    Requests are sorted by size only within windows of consecutive indices, so that the files can
    grow in the order of the requests. The plan depends on its arguments alone: a resumed run
    makes the batches that an uninterrupted one makes.

    Raises:
        RequestError: If `batch_atoms` is below 1.
    """
    if batch_atoms < 1:
        raise RequestError(f"batches of {batch_atoms} atoms were asked for: give 1 or more")
    batches: list[tuple[Request, ...]] = []
    for window in _windows(requests, WINDOW_BATCHES * batch_atoms):
        window.sort(key=lambda request: request.n_atoms)
        for known in (False, True):  # a batch begins at noise or at known crystals
            alike = [request for request in window if (request.known is not None) == known]
            batches += _fill(alike, batch_atoms)
    return batches


def padded_atoms(batch: Sequence[Request]) -> int:
    """Rows that a batch fills when each crystal is padded to its largest."""
    return len(batch) * max(request.n_atoms for request in batch)


def _windows(requests: Sequence[Request], window_atoms: int) -> list[list[Request]]:
    total = 0
    labelled = []
    for request in requests:
        labelled.append((total // window_atoms, request))
        total += request.n_atoms
    return [[r for _, r in group] for _, group in groupby(labelled, key=lambda pair: pair[0])]


def _fill(requests: Iterable[Request], batch_atoms: int) -> list[tuple[Request, ...]]:
    batches: list[tuple[Request, ...]] = []
    current: list[Request] = []
    for request in requests:
        if current and padded_atoms([*current, request]) > batch_atoms:
            batches.append(tuple(current))
            current = []
        current.append(request)
    return [*batches, tuple(current)] if current else batches
