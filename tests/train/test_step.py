"""One step: noise levels and seeds in closed form, and pieces with the gradients of the whole."""

import math

import pytest
import torch
from prototypes import all_prototypes
from runs import NETWORKS, config, outcome, same
from scipy.stats import chisquare, kstest

from crystorus.config import config_from_dict
from crystorus.crystal_model import build_model
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.geometry import Crystals
from crystorus.train.loop import (
    accumulate_gradients,
    batch_pieces,
    draw_steps,
    step_generator,
    train,
)

BATCH = Crystals.concat(list(all_prototypes().values()))


def draws(share, steps=50, count=50_000):
    generator = torch.Generator().manual_seed(0)
    return draw_steps(count, steps, high_noise_fraction=share, generator=generator)


def test_a_fifth_in_the_noisiest_fifth_is_uniform():
    counts = torch.bincount(draws(0.2), minlength=51)
    assert counts[0] == 0
    assert len(counts) == 51
    assert chisquare(counts[1:]).pvalue > 0.01


@pytest.mark.parametrize("share", [0.0, 0.12, 0.6, 1.0])
def test_the_noisiest_fifth_gets_its_share_and_each_part_is_uniform(share):
    t = draws(share)
    high = t > 40
    assert abs(high.double().mean() - share) < 0.01
    for part, least, most in ((t[high], 41, 50), (t[~high], 1, 40)):
        if len(part):
            counts = torch.bincount(part - least, minlength=most - least + 1)
            assert chisquare(counts).pvalue > 0.001


def test_seeds_of_steps_and_processes_give_independent_noise():
    first = [float(torch.rand(1, generator=step_generator(0, k, 0))) for k in range(2000)]
    assert kstest(first, "uniform").pvalue > 0.01
    keys = [(s, k, r) for s in range(3) for k in range(20) for r in range(3)]
    assert len({step_generator(*key).initial_seed() for key in keys}) == len(keys)
    assert step_generator(1, 2, 3).initial_seed() == step_generator(1, 2, 3).initial_seed()


def gradients(preset, piece_atoms, limit=math.inf):
    """Losses of every crystal and gradients of one model on one batch with one noise."""
    torch.manual_seed(0)
    tree = {"preset": preset, "diffusion": {"steps": 20}, "network": NETWORKS[preset]}
    model = build_model(config_from_dict(tree), CellStatistics.neutral())
    denoiser = model.denoiser.double()
    losses = accumulate_gradients(
        denoiser,
        model.diffusion,
        BATCH,
        torch.arange(len(BATCH)) % 20 + 1,
        torch.Generator().manual_seed(3),
        cell_weight=0.7,
        limit=limit,
        piece_atoms=piece_atoms,
    )
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in denoiser.parameters()]
    return losses, torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_pieces_have_the_gradients_of_the_whole(preset):
    losses, expected = gradients(preset, 0)
    for piece_atoms in (1, 9, len(BATCH.atomic_numbers) - 1):
        in_pieces, found = gradients(preset, piece_atoms)
        torch.testing.assert_close(in_pieces.cell, losses.cell, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(in_pieces.torus, losses.torus, rtol=1e-8, atol=1e-12)
        assert (found - expected).norm() < 1e-8 * expected.norm()
    # What one crystal adds is far above that: a lost piece would show.
    limited = gradients(preset, 9, limit=float(losses.torus.max()) * 0.9)[1]
    assert (limited - expected).norm() > 1e-3 * expected.norm()


def test_pieces_have_at_most_so_many_atoms_or_one_crystal():
    for limit in (1, 9, 30):
        pieces = batch_pieces(BATCH, limit)
        atoms = [BATCH.select(range(len(BATCH))[chosen]).atomic_numbers for chosen, _ in pieces]
        assert torch.equal(torch.cat(atoms), BATCH.atomic_numbers)
        for (chosen, rows), numbers in zip(pieces, atoms, strict=True):
            assert torch.equal(BATCH.atomic_numbers[rows], numbers)
            assert len(numbers) <= limit or chosen.stop - chosen.start == 1
    assert len(batch_pieces(BATCH, 0)) == 1


def test_a_training_in_pieces_ends_where_the_whole_does(stores, tmp_path):
    ends = []
    for name, cpu_atoms in (("whole", 0), ("pieces", 5), ("again", 5)):
        settings = config(stores, preset="paper", cpu_atoms=cpu_atoms, epochs=1)
        train(settings, tmp_path / name)
        ends.append(outcome(tmp_path / name))
    assert same(ends[1], ends[2])
    assert not same(ends[0]["last"], ends[1]["last"])  # rounding: another path was taken
    for name, weight in ends[0]["last"].items():
        torch.testing.assert_close(ends[1]["last"][name], weight, rtol=1e-3, atol=1e-4)
