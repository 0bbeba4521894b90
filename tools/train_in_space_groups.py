"""Go on training a checkpoint with noise inside the crystals' own space groups.

    python tools/train_in_space_groups.py train.store runs/symmetric --cpu-minutes 54

Of the crystals 70 % are noised inside their space groups, in the cells of the store, the others
freely. The learning rate is constant at first and falls to zero over the last 60 % of the processor
time; the weights are averaged. What is written is a checkpoint with the skeletons of the training
crystals. The weights that ship were trained so.
"""

import argparse
import copy
import itertools
import logging
import time
from pathlib import Path

import moyopy
import numpy as np
import torch

from crystorus.checkpoint import SHIPPED, load_checkpoint, save_checkpoint, save_skeletons
from crystorus.data.batches import plan_batches
from crystorus.data.convert import split
from crystorus.data.store import open_store
from crystorus.diffusion.losses import losses_at_noise
from crystorus.diffusion.space_groups import SpaceGroups
from crystorus.geometry.lattice import from_coefficients, to_coefficients
from crystorus.geometry.space_groups import orbits_of
from crystorus.templates.skeletons import SYMPREC, skeletons_of
from crystorus.train.loop import draw_steps

AVERAGE, LOSS_LIMIT, CLIP = 0.999, 20.0, 1.0


def site_arrays(crystal):
    """Return representative, A, b of every atom, and the point group, in the crystal's own cell.

    The same as `geometry.space_groups.orbit` gives for standard cells; P1 where no group is found.
    """
    n = len(crystal.atomic_numbers)
    cell = moyopy.Cell(
        crystal.lattice.tolist(), crystal.frac_coords.tolist(), crystal.atomic_numbers.tolist()
    )
    try:
        found = moyopy.MoyoDataset(cell, symprec=SYMPREC).operations
    except ValueError:
        return np.arange(n), np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3)), np.eye(3)[None]
    rotations, translations = np.array(found.rotations, float), np.array(found.translations)
    representative, linear, offset = np.full(n, -1), np.empty((n, 3, 3)), np.empty((n, 3))
    parts = crystal.lattice, crystal.frac_coords, crystal.atomic_numbers
    for one in orbits_of(*parts, rotations, translations):
        for atom in np.unique(one.images):
            g = int(np.argmax(one.images == atom))
            representative[atom] = one.first
            moved = atom != one.first
            linear[atom] = (rotations[g] if moved else np.eye(3)) @ one.projector
            offset[atom] = rotations[g] @ one.centre + one.shifts[g] if moved else one.centre
    return representative, linear, offset, np.unique(rotations, axis=0)


def lay_out(parts, free):
    """Return the space groups of a batch; those of crystals marked free are left out."""
    chosen = []
    for part, without in zip(parts, free, strict=True):
        n = len(part[0])
        trivial = (np.arange(n), np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3)), np.eye(3)[None])
        chosen.append(trivial if without else part)
    starts = np.cumsum([0] + [len(part[0]) for part in chosen[:-1]])
    return SpaceGroups.from_arrays(
        np.concatenate([part[0] + start for part, start in zip(chosen, starts, strict=True)]),
        np.concatenate([part[1] for part in chosen]),
        np.concatenate([part[2] for part in chosen]),
        [part[3] for part in chosen],
    )


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--cpu-minutes", type=float, default=54.0)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--free", type=float, default=0.3, help="fraction noised freely")
    parser.add_argument("--crystals", type=int, default=0, help="the first of the store; 0: all")
    a = parser.parse_args()
    logging.getLogger("moyo").setLevel(logging.ERROR)
    store, model = open_store(a.store), load_checkpoint(a.checkpoint)
    crystals = store.select(range(a.crystals or len(store)), dtype=torch.float64)
    several = split(crystals)
    skeletons, sites = skeletons_of(several), [site_arrays(one) for one in several]
    network, diffusion = model.denoiser.train(), model.diffusion
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=a.learning_rate, betas=(0.9, 0.99))
    sizes = crystals.n_atoms.numpy()
    began, step = time.process_time(), 0
    for epoch in itertools.count():
        order = plan_batches(
            sizes, np.random.default_rng([11, epoch]), batch_size=96, batch_pairs=9000
        )
        for chosen in order:
            spent = (time.process_time() - began) / 60 / a.cpu_minutes
            if spent >= 1:
                model.denoiser, model.card = average, model.card | {"steps": step}
                save_checkpoint(model, a.out)
                save_skeletons(skeletons, a.out)
                return
            generator = torch.Generator().manual_seed(step * 7919 + 13)
            batch = store.select(chosen)
            free = torch.rand(len(chosen), generator=generator) < a.free
            groups = lay_out([sites[i] for i in chosen], free.tolist())
            t = draw_steps(
                len(chosen), diffusion.steps, high_noise_fraction=0.12, generator=generator
            )
            atoms = groups.project_atoms(torch.randn(batch.frac_coords.shape, generator=generator))
            strain = from_coefficients(torch.randn(len(batch), 6, generator=generator))
            cells = to_coefficients(groups.project_strain(strain, batch.lattice))
            losses = losses_at_noise(network, diffusion, batch, t, atoms, cells)
            total = losses.torus.clamp(max=LOSS_LIMIT) + losses.cell.clamp(max=LOSS_LIMIT)
            optimizer.zero_grad()
            total.mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            for group in optimizer.param_groups:
                group["lr"] = a.learning_rate * min(1.0, (step + 1) / 200, (1 - spent) / 0.6)
            if torch.isfinite(norm):
                optimizer.step()
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(value, 1 - AVERAGE)
            step += 1
            if step % 200 == 0:
                print(  # noqa: T201
                    f"step {step}, {100 * spent:.0f} %, loss {float(total.mean()):.4f}", flush=True
                )


if __name__ == "__main__":
    main()
