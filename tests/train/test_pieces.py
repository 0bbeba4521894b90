"""A batch in pieces has the loss and the gradients of the whole."""

import pytest
import torch
from prototypes import all_prototypes
from runs import NETWORKS, config, outcome, same

from crystorus.config import config_from_dict
from crystorus.crystal_model import build_model
from crystorus.diffusion.strain_process import CellStatistics
from crystorus.geometry import Crystals
from crystorus.train import train
from crystorus.train.pieces import loss_by_pieces

BATCH = Crystals.concat(list(all_prototypes().values()))


def gradients(preset, piece_atoms, limit=float("inf")):
    """Loss, losses of every crystal and gradients of one model on one batch with one noise."""
    torch.manual_seed(0)
    tree = {"preset": preset, "diffusion": {"steps": 20}, "network": NETWORKS[preset]}
    model = build_model(config_from_dict(tree), CellStatistics.neutral())
    denoiser = model.denoiser.double()
    t = torch.arange(len(BATCH)) % 20 + 1
    total, losses = loss_by_pieces(
        denoiser,
        model.diffusion,
        BATCH,
        t,
        torch.Generator().manual_seed(3),
        objective=lambda x: x.torus.clamp(max=limit).sum() + 0.7 * x.cell.clamp(max=limit).sum(),
        piece_atoms=piece_atoms,
    )
    (2 * total).backward()
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in denoiser.parameters()]
    return total.detach(), losses, torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_pieces_have_the_gradients_of_the_whole(preset):
    whole, losses, expected = gradients(preset, 0)
    for piece_atoms in (1, 9, len(BATCH.atomic_numbers) - 1):
        total, in_pieces, found = gradients(preset, piece_atoms)
        torch.testing.assert_close(total, whole, rtol=1e-10, atol=0)
        torch.testing.assert_close(in_pieces.cell, losses.cell, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(in_pieces.torus, losses.torus, rtol=1e-8, atol=1e-12)
        assert (found - expected).norm() < 1e-8 * expected.norm()
    # What one crystal adds is far above that: a lost piece would show.
    limited = gradients(preset, 9, limit=float(losses.torus.detach().max()) * 0.9)[2]
    assert (limited - expected).norm() > 1e-3 * expected.norm()


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
