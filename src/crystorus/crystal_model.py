"""`CrystalModel`: a denoising network, its forward process and the prior of its cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystorus.config import (
    Config,
    FieldNetConfig,
    GemsNetConfig,
    PaperDiffusionConfig,
    Precision,
    SamplerConfig,
)
from crystorus.diffusion.cell_log import LogLatticeProcess
from crystorus.diffusion.cell_prior import CellStatistics
from crystorus.diffusion.cell_strain import StrainProcess
from crystorus.diffusion.losses import denoising_error
from crystorus.diffusion.noise_levels import cumulative_alpha, geometric_levels, linear_betas
from crystorus.diffusion.process import Denoiser, Diffusion
from crystorus.diffusion.sampling import Start, sample
from crystorus.diffusion.space_groups import Skeletons, SpaceGroups
from crystorus.diffusion.torus import TorusProcess
from crystorus.geometry import Crystals
from crystorus.geometry.lattice import inverse_change, reduce_lattice, spans_space
from crystorus.geometry.torus import wrap
from crystorus.networks.fieldnet import FieldDenoiser, FieldNet
from crystorus.networks.gemsnet import GemsNetDenoiser
from crystorus.networks.scorer import LEAST_WEIGHT, Scorer

ScoredBy = Literal["confidence", "denoising_error"]


@dataclass(eq=False)
class CrystalModel:
    """A network with its process, ready to sample.

    Attributes:
        config: The settings it was built from.
        denoiser: f_θ.
        diffusion: The forward process.
        statistics: The training cells, for the prior.
        card: Provenance: data, budget, commit, figures.
        trained_elements: Atomic numbers present in the training crystals.
        max_atoms: Atoms of the largest training crystal.
        digest: SHA-256 of the weights file, empty before there is one.
        scorer: Tells the right of several crystals from the others, if one was trained.
        skeletons: Space group and sites of every training crystal, if they were kept.
    """

    config: Config
    denoiser: nn.Module
    diffusion: Diffusion
    statistics: CellStatistics
    card: dict[str, Any] = field(default_factory=dict)
    trained_elements: frozenset[int] = frozenset()
    max_atoms: int = 20
    digest: str = ""
    scorer: Scorer | None = None
    skeletons: Skeletons = field(default_factory=lambda: Skeletons.of(()))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    @property
    def scorer_digest(self) -> str:
        """SHA-256 of the scorer's weights, empty without one."""
        return "" if self.scorer is None else self.scorer.digest

    @property
    def scored_by(self) -> ScoredBy:
        """What `scorer_error` is: the scorer's lack of confidence, or the denoising error."""
        return "denoising_error" if self.scorer is None else "confidence"

    def sample(
        self,
        atomic_numbers: Int[Tensor, " atoms"],
        n_atoms: Int[Tensor, " crystals"],
        *,
        seeds: Sequence[int],
        sampler: SamplerConfig | None = None,
        start: Start | None = None,
        groups: SpaceGroups | None = None,
        on_step: Callable[[int, int, Crystals], None] | None = None,
    ) -> Crystals:
        """Generate one crystal per composition; see `diffusion.sampling.trajectory`.

        Args:
            atomic_numbers: Elements of all crystals, one crystal after the other.
            n_atoms: Number of atoms of each crystal.
            seeds: One per crystal; a crystal depends on its own seed only.
            sampler: Which sampler, and in how many steps; that of the configuration by default.
            start: Known crystals of these compositions to begin with.
            groups: Space groups and sites that the crystals keep.
            on_step: Called with (steps done, steps, present crystals) after each step.

        Returns:
            Crystals in reduced cells, since sampling ends in whatever basis it began with. Where
            a cell is held, all stay in their bases; inside space groups, in the standard ones.

        Raises:
            ValueError: If the sampler has more steps than the process has noise levels, or there
                is not one seed per crystal.
        """
        self.denoiser.eval()
        sampler = sampler or self.config.sampling
        crystals = sample(
            in_precision(self.denoiser, sampler.precision),
            self.diffusion,
            atomic_numbers.to(self.device),
            n_atoms.to(self.device),
            sampler,
            seeds,
            start=start.to(self.device) if start is not None else None,
            groups=groups.to(self.device) if groups is not None else None,
            on_step=on_step,
        )
        held = start is not None and start.held_cells is not None
        # Vectors of symmetric cells are equally long: rounding would decide which come first.
        return crystals if held or groups is not None else in_reduced_cell(crystals)

    @torch.no_grad()
    def scorer_error(
        self,
        crystals: Crystals,
        *,
        seeds: Sequence[int],
        weights: Float[Tensor, " crystals"] | None = None,
        precision: Precision = "fp32",
    ) -> Float[Tensor, " crystals"]:
        """Score finished crystals; the least of several of one composition is the likeliest.

        Args:
            crystals: Finished crystals.
            seeds: One per crystal, for the noise of the denoising error; a scorer needs none.
            weights: Of the skeletons that they were made in, 0 to 1; NaN, or None for all of them,
                without symmetry.
            precision: Of the network's products.

        Returns:
            -log of the scorer's confidence, or, without a scorer, what the network loses on them
            when they are noised (`diffusion.losses.denoising_error`), less the logarithm of the
            weight.
        """
        crystals = crystals.to(device=self.device)
        weights = torch.full((len(crystals),), torch.nan) if weights is None else weights
        weights = weights.to(self.device)
        if self.scorer is not None:
            odds = self.scorer.eval()(crystals, weights, precision)
            return torch.nn.functional.softplus(-odds.float())
        self.denoiser.eval()
        error = denoising_error(
            in_precision(self.denoiser, precision), self.diffusion, crystals, seeds
        )
        return error - weights.clamp_min(LEAST_WEIGHT).log().nan_to_num(0.0)


def in_precision(denoiser: nn.Module, precision: Precision) -> Denoiser:
    """Return f_θ with the products of its blocks in a precision.

    Args:
        denoiser: Either network; the paper's has fp32 only.
        precision: "fp32" or "bf16".
    """
    if precision == "bf16" and isinstance(denoiser, FieldDenoiser):
        return partial(denoiser, precision=precision)
    return denoiser


def in_reduced_cell(crystals: Crystals) -> Crystals:
    """Re-tile every crystal to the shortest basis of its lattice.

    Args:
        crystals: Any batch; what has no lattice, as cells that are not finite, stays as it is.

    Returns:
        The same crystals.
    """
    cells = spans_space(crystals.lattice)[:, None, None]
    eye = torch.eye(3).to(crystals.lattice)
    reduced, change = reduce_lattice(torch.where(cells, crystals.lattice, eye))
    inverse = inverse_change(change).to(crystals.frac_coords)
    frac_coords = torch.einsum(
        "aij,aj->ai", inverse[crystals.crystal_of_atom], crystals.frac_coords
    )
    return crystals.with_geometry(torch.where(cells, reduced, crystals.lattice), wrap(frac_coords))


def build_diffusion(config: Config, statistics: CellStatistics) -> Diffusion:
    """Return the forward process a configuration describes.

    Args:
        config: Its `diffusion` section is read.
        statistics: The training cells; the paper's process has no use for them.
    """
    d = config.diffusion
    if isinstance(d, PaperDiffusionConfig):
        torus_alpha = cumulative_alpha(linear_betas(*d.torus_betas, d.steps))
        cell_alpha = cumulative_alpha(linear_betas(*d.cell_betas, d.steps))
        return Diffusion(
            TorusProcess((1 - torus_alpha).sqrt(), target=d.target, centred=False, weighted=False),
            LogLatticeProcess(cell_alpha, space=d.lattice_space),
        )
    return Diffusion(
        TorusProcess(
            geometric_levels(d.torus_lowest, d.torus_highest, d.steps),
            target=d.target,
            centred=d.centred,
            weighted=d.weighted,
        ),
        StrainProcess(
            geometric_levels(d.strain_lowest, d.shape_highest, d.steps),
            geometric_levels(d.strain_lowest, d.volume_highest, d.steps),
            statistics,
        ),
    )


def build_denoiser(config: Config, diffusion: Diffusion, *, max_atoms: int = 0) -> nn.Module:
    """Return an untrained f_θ.

    Args:
        config: Its `network` section is read.
        diffusion: Its process, which sets the scales of what the network predicts.
        max_atoms: Atoms of the largest training crystal, 0 if unknown; see `FieldNet`.
    """
    if isinstance(config.network, GemsNetConfig):
        return GemsNetDenoiser(config.network)
    assert isinstance(config.network, FieldNetConfig)
    assert isinstance(diffusion.cell, StrainProcess)
    return FieldDenoiser(
        FieldNet(config.network, steps=diffusion.steps, max_atoms=max_atoms),
        displacement_rms=diffusion.torus.target_rms,
        strain_sigma=diffusion.cell.sigma,
    )


def build_model(config: Config, statistics: CellStatistics, *, max_atoms: int = 0) -> CrystalModel:
    """Return an untrained model.

    Args:
        config: All settings.
        statistics: The training cells, for the prior.
        max_atoms: Atoms of the largest training crystal, 0 if unknown.
    """
    diffusion = build_diffusion(config, statistics)
    return CrystalModel(
        config,
        build_denoiser(config, diffusion, max_atoms=max_atoms),
        diffusion,
        statistics,
        max_atoms=max_atoms or config.data.max_atoms,
    )
