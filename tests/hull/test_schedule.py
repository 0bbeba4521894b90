"""Which structure of a campaign is relaxed next, on a campaign whose energies are made up."""

from dataclasses import asdict

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from crystorus.hull.campaign import Campaign
from crystorus.hull.candidates import GENERATED, REFERENCE, VALID, InputStructure
from crystorus.hull.options import RelaxSettings
from crystorus.hull.relax import RelaxOutcome
from crystorus.hull.schedule import Queue

FORMULAS = ("Cu3Au", "CuAu3", "Cu2Au2", "Cu5Au", "CuAu5", "Cu4Au2", "Cu2Au4", "Cu7Au")
EACH = 5


@pytest.fixture
def made_up(tmp_path):
    """Eight compositions, one of which has phases on the hull; the others lie 1 eV/atom above."""
    chance = np.random.default_rng(0)
    elements = [bulk("Cu"), bulk("Au")]
    structures = [InputStructure(str(a.symbols), REFERENCE, a, VALID, "") for a in elements]
    for number in range(EACH):
        for formula in FORMULAS:
            atoms = Atoms(formula, cell=5 * np.eye(3), pbc=True)
            atoms.set_scaled_positions(chance.random((len(atoms), 3)))
            structures.append(InputStructure(f"{number}-{formula}", GENERATED, atoms, VALID, ""))
    with Campaign(tmp_path / "run", {"relaxation": asdict(RelaxSettings())}, {}) as campaign:
        campaign.add(structures)
        campaign.set_aside()
        yield campaign


def energies(campaign):
    """Of candidates by their row, eV/atom."""
    rows = campaign.relaxed(GENERATED)
    return {row.id: 0.0 if row.name.endswith("Cu2Au4") else 1.0 for row in rows}


def outcome(row, energy):
    atoms = row.toatoms()
    atoms.calc = SinglePointCalculator(atoms, energy=energy * len(atoms))
    return RelaxOutcome(row.id, "relaxed", "", atoms)


def order(campaign, told):
    """Row numbers of the candidates in the order in which they are chosen, one at a time."""
    queue, chosen = Queue(campaign), []
    while (row := queue.pop()) is not None:
        queue.learn(row.id, row.toatoms(), told.get(row.id, 0.0))
        chosen += [row.id] if row.kind == GENERATED else []
    return chosen


def middle(chosen, energy):
    """Return the share of the campaign after which half of the phases on the hull are found."""
    places = [place for place, row in enumerate(chosen, start=1) if energy[row] == 0.0]
    return np.median(places) / len(chosen)


def test_a_good_composition_is_exhausted_early_and_only_because_of_what_it_gave(made_up):
    energy = energies(made_up)
    assert sum(value == 0.0 for value in energy.values()) == EACH
    found = middle(order(made_up, energy), energy)
    rows = list(energy)
    shuffled = []
    for seed in range(20):
        told = np.random.default_rng(seed).permutation(list(energy.values()))
        chosen = order(made_up, dict(zip(rows, told.tolist(), strict=True)))
        shuffled.append(middle(chosen, energy))
    in_rows = middle(rows, energy)
    assert found < 0.5 * in_rows
    assert np.mean(shuffled) > 0.9 * in_rows


def test_a_campaign_that_is_broken_off_chooses_as_it_would_have(made_up):
    """All that decides is in the database."""
    energy, queue = energies(made_up), Queue(made_up)
    for n in range(len(queue)):
        again = Queue(made_up)
        assert len(again) == len(queue)
        row, same = queue.pop(), again.pop()
        assert row.id == same.id, n
        one = outcome(row, energy.get(row.id, 0.0))
        queue.learn(row.id, one.atoms, energy.get(row.id, 0.0))
        made_up.record([one])
    assert queue.pop() is None


def test_those_in_progress_spread_over_compositions(made_up):
    queue = Queue(made_up)
    for row in (queue.pop(), queue.pop()):
        queue.learn(row.id, row.toatoms(), 0.0)
    together = [queue.pop() for _ in range(len(FORMULAS))]
    assert len({row.formula for row in together}) > len(FORMULAS) // 2


def test_without_a_hull_the_order_of_rows_stays(made_up):
    """The relaxation of gold failed, so nothing is known of what lies near a hull."""
    queue, chosen = Queue(made_up), []
    while (row := queue.pop()) is not None:
        queue.learn(row.id, row.toatoms(), 0.0 if "Cu" in row.symbols else None)
        chosen.append(row.id)
    assert chosen == sorted(chosen)
