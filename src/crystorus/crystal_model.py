"""A whole system from one configuration: network, process, and the training cells behind them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crystorus.config import Config, DiffusionConfig, PaperDiffusionConfig
from crystorus.diffusion.algorithms import Diffusion, Precision, SamplerConfig, Start, sample
from crystorus.diffusion.likelihood import denoising_error
from crystorus.diffusion.log_lattice_process import LogLatticeProcess
from crystorus.diffusion.schedule import cumulative_alpha, geometric_levels, linear_betas
from crystorus.diffusion.strain_process import CellStatistics, StrainProcess
from crystorus.diffusion.torus_process import TorusProcess
from crystorus.geometry import Crystals
from crystorus.geometry.reduction import inverse_change, reduce_lattice
from crystorus.geometry.torus import wrap
from crystorus.networks.denoiser import FieldDenoiser
from crystorus.networks.fieldnet import FieldNet, FieldNetConfig
from crystorus.networks.gemsnet import GemsNetConfig, GemsNetDenoiser
from crystorus.networks.judge import Judge

JudgedBy = Literal["confidence", "denoising_error"]


def build_diffusion(config: Config, statistics: CellStatistics) -> Diffusion:
    """Return the forward process a configuration describes."""
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


def build_denoiser(config: Config, diffusion: Diffusion) -> nn.Module:
    """Return an untrained f_θ."""
    if isinstance(config.network, GemsNetConfig):
        return GemsNetDenoiser(config.network)
    assert isinstance(config.network, FieldNetConfig)
    assert isinstance(config.diffusion, DiffusionConfig)
    assert isinstance(diffusion.cell, StrainProcess)
    return FieldDenoiser(
        FieldNet(config.network, steps=config.diffusion.steps),
        displacement_rms=diffusion.torus.target_rms,
        strain_sigma=diffusion.cell.sigma,
    )


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
        judge: Tells the right of several crystals from the others, if one was trained.
    """

    config: Config
    denoiser: nn.Module
    diffusion: Diffusion
    statistics: CellStatistics
    card: dict[str, Any] = field(default_factory=dict)
    trained_elements: frozenset[int] = frozenset()
    max_atoms: int = 20
    digest: str = ""
    judge: Judge | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def sample(
        self,
        atomic_numbers: Int[Tensor, " atoms"],
        n_atoms: Int[Tensor, " crystals"],
        *,
        seeds: Sequence[int],
        sampler: SamplerConfig | None = None,
        start: Start | None = None,
        on_step: Callable[[int, int, Crystals], None] | None = None,
    ) -> Crystals:
        """Generate one crystal per composition; see `diffusion.algorithms.sample`.

        The cells come out reduced: a walk through strains ends in whatever basis it began with.
        Where a cell is held, all stay in their bases.
        """
        self.denoiser.eval()
        sampler = sampler or self.config.sampling
        with products_in(self.denoiser, sampler.precision):
            crystals = sample(
                self.denoiser,
                self.diffusion,
                atomic_numbers.to(self.device),
                n_atoms.to(self.device),
                sampler,
                seeds,
                start=start.to(self.device) if start is not None else None,
                on_step=on_step,
            )
        held = start is not None and start.held_cells is not None
        return crystals if held else in_reduced_cell(crystals)

    @property
    def judge_digest(self) -> str:
        """SHA-256 of the judge's weights, empty without one."""
        return "" if self.judge is None else self.judge.digest

    @property
    def judged_by(self) -> JudgedBy:
        """What `judging_error` is: the judge's lack of confidence, or the denoising error."""
        return "denoising_error" if self.judge is None else "confidence"

    @torch.no_grad()
    def judging_error(
        self, crystals: Crystals, *, seeds: Sequence[int], precision: Precision = "fp32"
    ) -> Float[Tensor, " crystals"]:
        """Judge finished crystals; the least of several of one composition is the likeliest.

        Args:
            crystals: Finished crystals.
            seeds: One per crystal, for the noise of the denoising error; a judge needs none.
            precision: Of the network's products.

        Returns:
            -log of the judge's confidence, or, without a judge, what the network loses on them
            when they are noised (`diffusion.likelihood`).
        """
        if self.judge is not None:
            self.judge.eval()
            with products_in(self.judge, precision):
                odds = self.judge(crystals.to(device=self.device))
            return torch.nn.functional.softplus(-odds.float())
        self.denoiser.eval()
        with products_in(self.denoiser, precision):
            return denoising_error(
                self.denoiser, self.diffusion, crystals.to(device=self.device), seeds
            )


@contextmanager
def products_in(module: nn.Module, precision: Precision) -> Iterator[None]:
    """Set the precision of a network's products for a while; `paper` has fp32 only."""
    if not isinstance(module, FieldDenoiser | Judge):
        yield
        return
    network, before = module.network, module.network.bf16
    network.bf16 = precision == "bf16"
    try:
        yield
    finally:
        network.bf16 = before


def in_reduced_cell(crystals: Crystals) -> Crystals:
    """Re-tile every crystal to the shortest basis of its lattice; the crystal stays the same."""
    reduced, change = reduce_lattice(crystals.lattice)
    inverse = inverse_change(change).to(crystals.frac_coords)
    frac_coords = torch.einsum(
        "aij,aj->ai", inverse[crystals.crystal_of_atom], crystals.frac_coords
    )
    return crystals.with_geometry(reduced, wrap(frac_coords))


def build_model(config: Config, statistics: CellStatistics) -> CrystalModel:
    """Return an untrained system."""
    diffusion = build_diffusion(config, statistics)
    return CrystalModel(
        config,
        build_denoiser(config, diffusion),
        diffusion,
        statistics,
        max_atoms=config.data.max_atoms,
    )
