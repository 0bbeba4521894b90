"""Algorithm 2 and its corrected variants: from noise, or from known crystals, to crystals."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crystorus.config import SamplerConfig
from crystorus.diffusion.noise_levels import CrystalNoise, sampling_times
from crystorus.diffusion.process import Denoiser, Diffusion
from crystorus.diffusion.space_groups import SpaceGroups, SymmetricNoise
from crystorus.geometry import Crystals
from crystorus.geometry.torus import wrap, wrap_displacement

REFINEMENT_LEVEL = 0.2
"""Fraction of T from which finished crystals are refined, without noise."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where a sampling run begins if not at pure noise: known crystals, noised part of the way.

    Attributes:
        crystals: What is known.
        level: t to which each of them is noised, 0 … T; 0 leaves a crystal as it is.
        held_atoms: Atoms that stay where they are; None lets all of them move.
        held_cells: Crystals whose cell stays; None lets all of them change.
        noised: If False, no noise is added: the sampler treats the crystal as if it were noised
            to `level` and denoises it deterministically, which preserves its symmetry.
    """

    crystals: Crystals
    level: Int[Tensor, " crystals"]
    held_atoms: Bool[Tensor, " atoms"] | None = None
    held_cells: Bool[Tensor, " crystals"] | None = None
    noised: bool = True

    def to(self, device: torch.device | str) -> "Start":
        """Move to a device.

        Args:
            device: Such as cpu or cuda:1.
        """
        return replace(
            self,
            crystals=self.crystals.to(device),
            level=self.level.to(device),
            held_atoms=None if self.held_atoms is None else self.held_atoms.to(device),
            held_cells=None if self.held_cells is None else self.held_cells.to(device),
        )


def trajectory(
    denoiser: Denoiser,
    diffusion: Diffusion,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    sampler: SamplerConfig,
    seeds: Sequence[int],
    *,
    start: Start | None = None,
    groups: SpaceGroups | None = None,
) -> Iterator[Crystals]:
    """Turn compositions into crystals, step by step: Algorithm 2 or one of its variants.

    Args:
        denoiser: The trained network f_θ.
        diffusion: The process it was trained on.
        atomic_numbers: z; the composition of the result is this, atom by atom.
        n_atoms: Number of atoms of each crystal.
        sampler: Which sampler, and in how many steps.
        seeds: One per crystal; a crystal depends on its own seed only.
        start: Known crystals of these compositions to begin with; pure noise without it.
        groups: Space groups and sites that the crystals keep at every step; a start has to have
            them.

    Yields:
        The crystals after each of the `steps + final_refinement_steps` steps; the last ones are
        the result. A start of which nothing is noised is yielded once, as it is.

    Raises:
        ValueError: If the sampler has more steps than the process has levels, or there is not one
            seed per crystal.

    Source: [Klipfel24] Algorithm 2
    """
    noise = CrystalNoise(seeds, n_atoms)
    if groups is not None:
        noise = SymmetricNoise(seeds, n_atoms, groups)
        noise.lattice = None if start is None else start.crystals.lattice
    if start is None:
        with torch.no_grad():
            crystals = diffusion.prior(atomic_numbers, n_atoms, noise)
            if isinstance(noise, SymmetricNoise):
                noise.lattice = noise.groups.compatible_cells(crystals.lattice)
                crystals = crystals.with_geometry(noise.lattice, crystals.frac_coords)
        level = torch.full_like(n_atoms, max(round(sampler.first_fraction * diffusion.steps), 1))
    else:
        crystals, level = _noised(diffusion, start, noise), start.level
        if not bool(level.any()):
            yield crystals
            return
    times, last = sampling_times(sampler.steps, diffusion.steps), sampler.last_fraction
    fractions = [last + (1 - last) * t / diffusion.steps for t in times[:-1]] + [0.0]
    for now, then in itertools.pairwise(fractions):
        t, s = (level * now).round().long(), (level * then).round().long()
        moved = _step(denoiser, diffusion, crystals, t, s, sampler, noise)
        if groups is not None:
            # Symmetric already, but for rounding, which would grow from step to step.
            displacement = wrap_displacement(moved.frac_coords - crystals.frac_coords)
            frac_coords = wrap(crystals.frac_coords + groups.project_atoms(displacement))
            strained = moved.lattice @ torch.linalg.inv(crystals.lattice)
            lattice = groups.project_strain(strained, crystals.lattice) @ crystals.lattice
            moved = moved.with_geometry(lattice, frac_coords)
        crystals = moved if start is None else _hold(start, crystals, moved, t)
        yield crystals
    if sampler.final_refinement_steps:
        refined = refinement_start(crystals, diffusion.steps)
        if start is not None:
            refined = replace(
                refined,
                level=torch.where(start.level > 0, refined.level, 0),
                held_atoms=start.held_atoms,
                held_cells=start.held_cells,
            )
        steps = min(sampler.final_refinement_steps, diffusion.steps)
        yield from trajectory(
            denoiser,
            diffusion,
            atomic_numbers,
            n_atoms,
            SamplerConfig("ode", steps),
            seeds,
            start=refined,
            groups=groups,
        )


def sample(
    denoiser: Denoiser,
    diffusion: Diffusion,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    sampler: SamplerConfig,
    seeds: Sequence[int],
    *,
    start: Start | None = None,
    groups: SpaceGroups | None = None,
    on_step: Callable[[int, int, Crystals], None] | None = None,
) -> Crystals:
    """Turn compositions into crystals: the end of a `trajectory`.

    The arguments are those of `trajectory`; `on_step`, besides, is called with (steps done, steps,
    present crystals) after each step.

    Returns:
        One crystal per composition.
    """
    total = sampler.steps + sampler.final_refinement_steps
    frames = trajectory(
        denoiser, diffusion, atomic_numbers, n_atoms, sampler, seeds, start=start, groups=groups
    )
    for done, crystals in enumerate(frames, start=1):
        if on_step is not None:
            on_step(done, total, crystals)
    return crystals


def refinement_start(crystals: Crystals, steps: int) -> Start:
    """Return where finished crystals start for a final deterministic refinement.

    Args:
        crystals: What a sampling run ended in.
        steps: Noise levels T of the process.
    """
    level = torch.full_like(crystals.n_atoms, max(round(REFINEMENT_LEVEL * steps), 1))
    return Start(crystals, level, noised=False)


@torch.no_grad()
def _noised(diffusion: Diffusion, start: Start, noise: CrystalNoise) -> Crystals:
    """Draw M_t of known crystals, all that is held left as it is."""
    known = start.crystals
    if not start.noised:
        return known
    noisy, _ = diffusion.noise(known, start.level, noise.normal_atoms(), noise.normal_cells())
    return _hold(start, known, noisy, start.level)


@torch.no_grad()
def _hold(start: Start, before: Crystals, after: Crystals, t: Int[Tensor, " crystals"]) -> Crystals:
    """Undo a move of what is held, and of crystals that are at t = 0.

    Where atoms are held the whole crystal is shifted back by their mean move first, so that the
    others keep their places relative to them.
    """
    known, atom = start.crystals, after.crystal_of_atom
    still = t == 0
    cells = still if start.held_cells is None else still | start.held_cells
    lattice = torch.where(cells[:, None, None], before.lattice, after.lattice)
    frac_coords = after.frac_coords
    if start.held_atoms is not None:
        held = start.held_atoms[:, None].to(frac_coords)
        drift = wrap_displacement(frac_coords - known.frac_coords) * held
        total = drift.new_zeros(len(after), 3).index_add_(0, atom, drift)
        count = held.new_zeros(len(after), 1).index_add_(0, atom, held).clamp_min(1)
        frac_coords = wrap(frac_coords - (total / count)[atom])
        frac_coords = torch.where(start.held_atoms[:, None], known.frac_coords, frac_coords)
    frac_coords = torch.where(still[atom, None], before.frac_coords, frac_coords)
    return after.with_geometry(lattice, frac_coords)


@torch.no_grad()
def _step(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    s: Int[Tensor, " crystals"],
    sampler: SamplerConfig,
    noise: CrystalNoise,
) -> Crystals:
    """Take one step from levels t to levels s ≤ t: lines 4 to 7 of Algorithm 2."""
    t = t.clamp_min(1)  # what is at 0 is held where it is
    prediction = denoiser(crystals, t)
    atom, lattice = crystals.crystal_of_atom, crystals.lattice
    # Anti-annealing [Jiao23]: the quieter the level, the more the drift outweighs the noise.
    drift = 1 + sampler.anti_annealing * (1 - t.to(lattice) / diffusion.steps)
    relaxation = torch.where(s > 0, sampler.over_relaxation, 1.0).to(drift)
    displacement = relaxation[atom, None] * prediction.displacement
    of_cells, of_atoms = drift[:, None], drift[atom, None]
    if sampler.name == "ode":
        frac = diffusion.torus.flow(crystals, displacement, t, s, drift=of_atoms)
        cell = diffusion.cell.flow(lattice, prediction, t, s, drift=of_cells)
        return crystals.with_geometry(cell, frac)
    atoms = sampler.temperature * noise.normal_atoms()
    cells = sampler.temperature * noise.normal_cells()
    if sampler.name == "paper":
        frac = diffusion.torus.jump(crystals, displacement, t, s, atoms)
    else:
        frac = diffusion.torus.reverse(crystals, displacement, t, s, atoms, drift=of_atoms)
    cell = diffusion.cell.reverse(lattice, prediction, t, s, cells, drift=of_cells)
    return crystals.with_geometry(cell, frac)
