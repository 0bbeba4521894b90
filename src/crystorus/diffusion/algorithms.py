"""Algorithm 1 (training) and Algorithm 2 (sampling) with its corrected variants.

Nothing here knows a network: a denoiser is anything that maps (crystals, t) to a `Prediction`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crystorus.diffusion.log_lattice_process import LogLatticeProcess
from crystorus.diffusion.noise import CrystalNoise
from crystorus.diffusion.schedule import sampling_times
from crystorus.diffusion.strain_process import StrainProcess
from crystorus.diffusion.torus_process import TorusProcess
from crystorus.geometry import Crystals, Prediction
from crystorus.geometry.torus import wrap, wrap_displacement

SamplerName = Literal["paper", "bridge", "ode"]
Precision = Literal["fp32", "bf16"]


SETTLING = 0.2
"""Share of T that a crystal that settles is taken to be noised to."""


@runtime_checkable
class Denoiser(Protocol):
    """f_θ: noisy crystals and their step t = 1 … T to a prediction of the clean ones (Eq. 7)."""

    def __call__(self, crystals: Crystals, t: Int[Tensor, " crystals"], /) -> Prediction:
        """Predict the clean cell and the displacements towards the clean positions."""
        ...


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The forward process on a whole crystal: torus and cell side by side."""

    torus: TorusProcess
    cell: StrainProcess | LogLatticeProcess

    @property
    def steps(self) -> int:
        """Number of noise levels T."""
        return self.torus.steps


@dataclass(frozen=True)
class SamplerConfig:
    """How to walk back from noise."""

    name: SamplerName = "bridge"
    """"paper" is Algorithm 2, "bridge" draws from the exact posterior, "ode" is deterministic."""
    steps: int = 100
    """Network evaluations."""
    anti_annealing: float = 0.0
    """The drift is multiplied by 1 + anti_annealing · (1 - t/T)."""
    first: float = 1.0
    """Share of the noise levels at which a walk from noise begins, above 0 to 1."""
    last: float = 0.0
    """The levels fall evenly from the first towards this share of it; the last step ends at 0."""
    temperature: float = 1.0
    """Factor on the noise that steps add; below 1 the walk seeks the likeliest crystals."""
    stretch: float = 1.0
    """Factor on the moves of atoms but the last: above 1 they pass the mean of what is likely."""
    settle: int = 0
    """Further, deterministic evaluations at the end, as from `SETTLING` of T but without noise:
    they change little but the symmetry, which what is random breaks."""
    precision: Precision = "fp32"
    """Precision of the products inside the default network's blocks; geometry stays fp32."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where a walk begins if not at pure noise: known crystals, noised part of the way.

    Attributes:
        crystals: What is known.
        level: t to which each of them is noised, 0 … T; 0 leaves a crystal as it is.
        held_atoms: Atoms that stay where they are; None lets all of them move.
        held_cells: Crystals whose cell stays; None lets all of them change.
        noised: Whether noise is added; without it the walk takes how far the crystal is from
            what the network expects for the noise of `level`. A deterministic walk then keeps
            every symmetry of the crystal.
    """

    crystals: Crystals
    level: Int[Tensor, " crystals"]
    held_atoms: Bool[Tensor, " atoms"] | None = None
    held_cells: Bool[Tensor, " crystals"] | None = None
    noised: bool = True

    def to(self, device: torch.device | str) -> "Start":
        """Move to a device."""
        return replace(
            self,
            crystals=self.crystals.to(device),
            level=self.level.to(device),
            held_atoms=None if self.held_atoms is None else self.held_atoms.to(device),
            held_cells=None if self.held_cells is None else self.held_cells.to(device),
        )


@dataclass(frozen=True, eq=False)
class Losses:
    """L^ρ and L^x of every crystal of a batch (Eqs 15 and 20)."""

    cell: Float[Tensor, " crystals"]
    torus: Float[Tensor, " crystals"]


def add_noise(
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    normal_atoms: Float[Tensor, "atoms 3"],
    normal_cells: Float[Tensor, "crystals 6"],
) -> tuple[Crystals, Float[Tensor, "crystals 3 3"]]:
    """Draw M_t ~ q(M_t | M_0): lines 3 and 4 of Algorithm 1. Returns M_t and the strain drawn."""
    lattice, strain = diffusion.cell.noise(crystals.lattice, t, normal_cells)
    frac_coords = diffusion.torus.noise(crystals, t, normal_atoms)
    return crystals.with_geometry(lattice, frac_coords), strain


def training_losses(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    generator: torch.Generator,
) -> Losses:
    """Evaluate both losses on one batch: Algorithm 1, lines 3 to 6.

    Args:
        denoiser: The network.
        diffusion: The forward process.
        crystals: Clean crystals.
        t: Step of each crystal, 1 … T.
        generator: Source of the noise, on the CPU.
    """
    atoms, cells = draw_normals(crystals, generator)
    return losses_at_noise(denoiser, diffusion, crystals, t, atoms, cells)


def draw_normals(
    crystals: Crystals, generator: torch.Generator
) -> tuple[Float[Tensor, "atoms 3"], Float[Tensor, "crystals 6"]]:
    """Draw the noise of Algorithm 1, line 3, on the CPU: the same numbers for any device."""
    device, dtype = crystals.lattice.device, crystals.lattice.dtype
    atoms = torch.randn(crystals.frac_coords.shape, generator=generator).to(device, dtype)
    cells = torch.randn(len(crystals), 6, generator=generator).to(device, dtype)
    return atoms, cells


def losses_at_noise(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    normal_atoms: Float[Tensor, "atoms 3"],
    normal_cells: Float[Tensor, "crystals 6"],
) -> Losses:
    """Evaluate both losses with given noise: Algorithm 1, lines 4 to 6."""
    noisy, strain = add_noise(diffusion, crystals, t, normal_atoms, normal_cells)
    prediction = denoiser(noisy, t)
    cell = diffusion.cell.loss(prediction, crystals, noisy, t, strain)
    return Losses(cell, diffusion.torus.loss(prediction.displacement, crystals, noisy, t))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    diffusion: Diffusion,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    sampler: SamplerConfig,
    seeds: Sequence[int],
    *,
    start: Start | None = None,
    on_step: Callable[[int, int, Crystals], None] | None = None,
) -> Crystals:
    """Turn compositions into crystals: Algorithm 2 or one of its variants.

    Args:
        denoiser: The trained network.
        diffusion: The process it was trained on.
        atomic_numbers: z; the composition of the result is this, atom by atom.
        n_atoms: Number of atoms of each crystal.
        sampler: Which walk, and in how many steps.
        seeds: One per crystal; a crystal depends on its own seed only.
        start: Known crystals of these compositions to walk from; pure noise without it.
        on_step: Called with (steps done, steps, present crystals) after each step, those of
            settling included.

    Raises:
        ValueError: If the sampler has more steps than the process has levels, begins at none of
            them, or adds no possible noise.
    """
    check_sampler(sampler)
    noise = CrystalNoise(seeds, n_atoms)
    if start is None:
        crystals = _prior(diffusion, atomic_numbers, n_atoms, noise)
        level = torch.full_like(n_atoms, max(round(sampler.first * diffusion.steps), 1))
    else:
        crystals, level = _noised(diffusion, start, noise), start.level
        if not bool(level.any()):
            return crystals
    times = sampling_times(sampler.steps, diffusion.steps)
    shares = [sampler.last + (1 - sampler.last) * n / diffusion.steps for n in times[:-1]] + [0.0]
    for done, (now, then) in enumerate(itertools.pairwise(shares), start=1):
        t, s = (level * now).round().long(), (level * then).round().long()
        moved = _step(denoiser, diffusion, crystals, t, s, sampler, noise)
        crystals = moved if start is None else _hold(start, crystals, moved, t)
        if on_step is not None:
            on_step(done, sampler.steps + sampler.settle, crystals)
    return settle(denoiser, diffusion, crystals, sampler, seeds, start=start, on_step=on_step)


def start_settling(crystals: Crystals, steps: int) -> Start:
    """Return where finished crystals start from to come to rest, in a process of `steps` levels."""
    level = torch.full_like(crystals.n_atoms, max(round(SETTLING * steps), 1))
    return Start(crystals, level, noised=False)


def settle(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    sampler: SamplerConfig,
    seeds: Sequence[int],
    *,
    start: Start | None = None,
    on_step: Callable[[int, int, Crystals], None] | None = None,
) -> Crystals:
    """Let finished crystals come to rest: `sampler.settle` steps of the probability flow.

    Args:
        denoiser: The trained network.
        diffusion: The process it was trained on.
        crystals: What a walk of `sampler` ended in.
        sampler: That walk; nothing is done if its `settle` is 0.
        seeds: One per crystal; no random number is drawn.
        start: What the walk began with: what was held is held on.
        on_step: Called with (steps done, steps, present crystals), the walk's steps counted.
    """
    if not sampler.settle:
        return crystals
    resting = start_settling(crystals, diffusion.steps)
    if start is not None:
        resting = replace(resting, held_atoms=start.held_atoms, held_cells=start.held_cells)
    total = sampler.steps + sampler.settle

    def later(done: int, _: int, present: Crystals) -> None:
        if on_step is not None:
            on_step(sampler.steps + done, total, present)

    return sample(
        denoiser,
        diffusion,
        crystals.atomic_numbers,
        crystals.n_atoms,
        SamplerConfig("ode", min(sampler.settle, diffusion.steps)),
        seeds,
        start=resting,
        on_step=later,
    )


def check_sampler(sampler: SamplerConfig) -> None:
    """Refuse numbers that describe no walk.

    Raises:
        ValueError: If one is out of its range.
    """
    if not 0 < sampler.first <= 1:
        raise ValueError(f"first = {sampler.first}: give a share of the noise, above 0 to 1")
    if not 0 <= sampler.last < 1:
        raise ValueError(f"last = {sampler.last}: give a share of the first level, 0 to below 1")
    for name in ("temperature", "stretch"):
        if not 0 <= getattr(sampler, name) < math.inf:
            raise ValueError(f"{name} = {getattr(sampler, name)}: give a number from 0 up")
    if sampler.settle < 0:
        raise ValueError(f"settle = {sampler.settle}: give a number of steps, 0 or more")
    if not math.isfinite(sampler.anti_annealing):
        raise ValueError(f"anti_annealing = {sampler.anti_annealing}: give a finite number")


def _prior(
    diffusion: Diffusion,
    atomic_numbers: Int[Tensor, " atoms"],
    n_atoms: Int[Tensor, " crystals"],
    noise: CrystalNoise,
) -> Crystals:
    """Draw M_T: Algorithm 2, line 1."""
    empty = Crystals(
        torch.zeros(len(n_atoms), 3, 3, device=n_atoms.device),
        noise.uniform_atoms(),
        atomic_numbers,
        n_atoms,
    )
    cell = diffusion.cell.prior(empty, noise.normal_cells(), noise.normal_cells())
    return empty.with_geometry(cell, diffusion.torus.prior(empty.frac_coords))


def _noised(diffusion: Diffusion, start: Start, noise: CrystalNoise) -> Crystals:
    """Draw M_t of known crystals, all that is held left as it is."""
    known = start.crystals
    if not start.noised:
        return known
    noisy, _ = add_noise(diffusion, known, start.level, noise.normal_atoms(), noise.normal_cells())
    return _hold(start, known, noisy, start.level)


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


def _step(
    denoiser: Denoiser,
    diffusion: Diffusion,
    crystals: Crystals,
    t: Int[Tensor, " crystals"],
    s: Int[Tensor, " crystals"],
    sampler: SamplerConfig,
    noise: CrystalNoise,
) -> Crystals:
    """Take one step from levels t to levels s ≤ t."""
    t = t.clamp_min(1)  # what is at 0 is held where it is
    prediction = denoiser(crystals, t)
    drift = 1 + sampler.anti_annealing * (1 - t.to(crystals.lattice) / diffusion.steps)
    of_cells, of_atoms = drift[:, None], drift[crystals.crystal_of_atom, None]
    stretch = torch.where(s > 0, sampler.stretch, 1.0).to(drift)[crystals.crystal_of_atom, None]
    x, displacement, lattice = crystals, stretch * prediction.displacement, crystals.lattice
    if sampler.name == "ode":
        frac = diffusion.torus.flow(x, displacement, t, s, drift=of_atoms)
        cell = diffusion.cell.flow(lattice, prediction, t, s, drift=of_cells)
        return crystals.with_geometry(cell, frac)
    atoms = sampler.temperature * noise.normal_atoms()
    cells = sampler.temperature * noise.normal_cells()
    if sampler.name == "paper":
        frac = diffusion.torus.jump(x, displacement, t, s, atoms)
    else:
        frac = diffusion.torus.reverse(x, displacement, t, s, atoms, drift=of_atoms)
    cell = diffusion.cell.reverse(lattice, prediction, t, s, cells, drift=of_cells)
    return crystals.with_geometry(cell, frac)
