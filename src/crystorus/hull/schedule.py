"""Which structure is relaxed next, and for how long structures are relaxed.

Known phases come first, then the candidate that promises most per atom to be one more phase near
their hull, by what was found of its composition so far. Nothing but the finished rows of the
database decides, so that a campaign that was broken off goes on as it would have.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice

from ase import Atoms
from ase.db.row import AtomsRow
from pymatgen.core import Composition

from crystal_fidelity.workers import Lost, Workers, run
from crystorus.errors import CalculatorError, CampaignError, ReferencesError
from crystorus.hull.campaign import WAITING, Campaign
from crystorus.hull.candidates import GENERATED, REFERENCE
from crystorus.hull.matching import Comparable, StructureIndex, reduced_formula
from crystorus.hull.rank import METASTABLE, Hull, Phase
from crystorus.hull.references import check_span
from crystorus.hull.relax import USABLE, RelaxJob, RelaxOutcome, relax_together

PRIOR = 2.0
"""Relaxations of a composition that the share of all compositions counts for."""
_MAX_FAILURES = 10  # structures in a row, from the first, that a calculator may throw on


class Queue:
    """The structures of a campaign that wait, known phases first, then the most promising.

    Where s distinct phases within 0.1 eV/atom of the hull came of n relaxations of a composition,
    the next one finds another with the chance (s + k p) / (n + k): the mean of a beta distribution
    whose prior is worth k = 2 relaxations with the share p = (S + 1) / (N + 2) of all compositions
    (Laplace's rule of succession). A relaxation in progress counts as one that found nothing, so
    that several at a time spread. The price of one grows with its atoms: the greatest chance per
    atom is next. Where known phases make no hull, the order of the rows stays.

    Args:
        campaign: Whose structures.
    """

    def __init__(self, campaign: Campaign) -> None:
        references, candidates = campaign.relaxed(REFERENCE), campaign.relaxed(GENERATED)
        self._references = deque(row for row in references if row.status == WAITING)
        self._candidates = dict[str, deque[AtomsRow]]()
        self._unknown = {row.id for row in self._references}
        self._elements = sorted({s for row in (*references, *candidates) for s in row.symbols})
        self._phases = [_phase(r.toatoms(), r.energy_per_atom) for r in references if _usable(r)]
        self._hull: Hull | None = None
        self._unjudged = list[tuple[Atoms, float]]()
        self._index = StructureIndex()
        self._begun, self._found, self._finished = Counter[str](), Counter[str](), 0
        for row in candidates:
            atoms = row.toatoms()
            if row.status == WAITING:
                self._candidates.setdefault(reduced_formula(atoms), deque()).append(row)
            else:
                self._begun[reduced_formula(atoms)] += 1
                self.learn(row.id, atoms, row.energy_per_atom if _usable(row) else None)

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._references) + sum(map(len, self._candidates.values()))

    def learn(self, row: int, atoms: Atoms, energy: float | None) -> None:
        """Take in how a relaxation ended.

        Args:
            row: Its number.
            atoms: Relaxed.
            energy: eV/atom; None if it failed.
        """
        if row not in self._unknown:
            self._finished += 1
            self._unjudged += [] if energy is None else [(atoms, energy)]
            return
        self._unknown.remove(row)
        self._phases += [] if energy is None else [_phase(atoms, energy)]

    def pop(self) -> AtomsRow | None:
        """Return what is relaxed next, None where nothing waits."""
        if self._references:
            return self._references.popleft()
        if not self._candidates:
            return None
        self._judge()
        share = (self._found.total() + 1) / (self._finished + 2)

        def promise(formula: str) -> tuple[float, int]:
            first, n = self._candidates[formula][0], self._begun[formula]
            chance = (self._found[formula] + PRIOR * share) / (n + PRIOR)
            return chance / first.natoms if self._hull else 0.0, -first.id

        best = max(self._candidates, key=promise)
        row = self._candidates[best].popleft()
        if not self._candidates[best]:
            del self._candidates[best]
        self._begun[best] += 1
        return row

    def _judge(self) -> None:
        """Count the phases among what was learnt, once all known phases are relaxed."""
        if self._unknown:
            return
        if self._hull is None:
            try:
                check_span((p.composition for p in self._phases), self._elements, "known phases")
                self._hull = Hull(self._phases, self._elements)
            except (ReferencesError, CampaignError):
                self._unjudged.clear()
                return
        for atoms, energy in self._unjudged:
            if self._hull.energy_above(_phase(atoms, energy)) <= METASTABLE:
                shape = Comparable.of(atoms)
                if not self._index.find(shape):
                    self._index.add(shape.formula, shape)
                    self._found[shape.formula] += 1
        self._unjudged.clear()


def _phase(atoms: Atoms, energy: float) -> Phase:
    return Phase("", Composition(atoms.get_chemical_formula()), energy)


def _usable(row: AtomsRow) -> bool:
    return row.status in USABLE


def relax_waiting(
    campaign: Campaign,
    workers: Workers,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    batch: int = 1,
    minutes: float = math.inf,
) -> None:
    """Relax what waits, the most promising first, each outcome committed as it comes.

    As long as a calculator has thrown on everything, nothing is recorded: the structures are not
    to blame, and wait for a calculator that works.

    Args:
        campaign: Whose rows.
        workers: Where.
        on_progress: Called with the finished and all relaxations of the campaign.
        batch: Structures per call of the potential.
        minutes: After the first candidate is begun, none is begun any more; 0 for known phases
            alone.

    Raises:
        CalculatorError: If it cannot be had, or throws on all of the first structures.
        WorkersError: If the workers cannot be had.
    """
    settings = campaign.relaxation
    queue = Queue(campaign)
    finished = campaign.count(f"stage=relaxed,status!={WAITING}")
    total, held = finished + len(queue), list[RelaxOutcome]()
    proven = finished > 0

    def jobs() -> Iterator[RelaxJob]:
        end: float | None = None
        while (row := queue.pop()) is not None:
            if row.kind == GENERATED:
                now = time.monotonic()
                end = now + 60 * minutes if end is None else end
                if now >= end:
                    return
            yield RelaxJob(row.id, row.toatoms(), settings)

    on_progress(finished, total)
    for result in _outcomes(jobs(), workers, batch):
        held.append(result)
        proven = proven or result.status not in ("failed", "lost worker")
        enthalpy = result.enthalpy
        queue.learn(
            result.id, result.atoms, None if enthalpy is None else enthalpy / len(result.atoms)
        )
        if proven:
            campaign.record(held)
            finished += len(held)
            held = []
        elif len(held) >= _MAX_FAILURES:
            break
        on_progress(finished, total)
    if held:
        raise CalculatorError(
            f"--potential {settings.potential} failed on all of the first {len(held)} "
            f"structures, the first time with: {held[0].reason}. Nothing of this was recorded; "
            "mend it and run the same command again"
        )


def _outcomes(jobs: Iterator[RelaxJob], workers: Workers, batch: int) -> Iterator[RelaxOutcome]:
    """Relax in chunks that keep a batch full; what took a worker with it is tried again alone."""
    size = batch if batch == 1 else 4 * batch
    flying = dict[int, list[RelaxJob]]()

    def chunks() -> Iterator[list[RelaxJob]]:
        for number in count():
            flying[number] = list(islice(jobs, size))
            if not flying[number]:
                return
            yield flying[number]

    alone: list[RelaxJob] = []
    for number, found in run(partial(relax_together, batch=batch), chunks(), workers):
        chunk = flying.pop(number)
        if not isinstance(found, Lost):
            yield from found
        elif len(chunk) > 1:
            alone += chunk
        else:
            yield RelaxOutcome(chunk[0].id, "lost worker", found.reason, chunk[0].atoms)
    if alone:
        yield from _outcomes(iter(alone), workers, 1)
