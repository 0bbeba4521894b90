"""Diffusion of atom positions on the torus: noise, target, prior, reverse step (Eqs 16 to 20)."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.geometry import Crystals
from crystorus.geometry.torus import centre, shortest_displacement, wrap, wrap_displacement

TorusTarget = Literal["posterior_mean", "shortest", "unwrapped"]
_IMAGES = 4


def image_mean(
    displacement: Float[Tensor, "*n"], sigma: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Average x_0 + k - x_t over the images k, weighted by their likelihood, per component.

    E[x_0 + k - x_t | x_t, x_0] with weights exp(-|x_0 + k - x_t|² / 2σ²): σ² times the score of
    the wrapped normal. It is what the mean of the reverse step (Eq. 17) needs, it is smooth,
    and it vanishes where the noise is uniform.

    Args:
        displacement: x_0 - x_t, any image, fractional.
        sigma: Noise level s_t, broadcastable.
    """
    nearest = wrap_displacement(displacement)
    shifts = torch.arange(-_IMAGES, _IMAGES + 1, device=nearest.device, dtype=nearest.dtype)
    images = nearest[..., None] + shifts
    weights = torch.softmax(-0.5 * (images / sigma[..., None]) ** 2, -1)
    return (weights * images).sum(-1)


def image_mean_rms(sigma: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
    """Return the root mean square of `image_mean` per component, by quadrature."""
    grid = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024 - 0.5
    shifts = torch.arange(-_IMAGES, _IMAGES + 1, dtype=torch.float64)
    rms = []
    for level in sigma.double():
        if level < 0.02:  # no image overlaps: the target is the noise itself
            rms.append(level)
            continue
        density = torch.exp(-0.5 * ((grid[:, None] + shifts) / level) ** 2).sum(-1)
        target = image_mean(grid, level.expand_as(grid))
        rms.append(((density * target**2).sum() / density.sum()).sqrt())
    return torch.stack(rms)


class TorusProcess:
    """Variance-exploding diffusion on T^n: q(x_t | x_0) = [N(x_0, s_t² I)].

    Args:
        sigma: s_0 = 0 … s_T, fractional.
        target: What the network learns: the mean over images ("posterior_mean"), the shortest
            path of Eq. 20 ("shortest"), or x_0 - x_t without the torus (Table 4 (e)).
        centred: Whether noise and target have zero mean per crystal.
        weighted: Whether errors are measured in units of the target at each level; Eq. 20
            measures them in fractions of the cell.

    Source: Eqs 16 to 20, Appendices C to E.
    Deviation: Eq. 16's first line is centred on x_{t-1} with variance s_t² - s_{t-1}².
    """

    def __init__(
        self,
        sigma: Float[Tensor, " levels"],
        *,
        target: TorusTarget = "posterior_mean",
        centred: bool = True,
        weighted: bool = True,
    ) -> None:
        self.sigma = sigma.double()
        self.target_kind: TorusTarget = target
        self.centred = centred
        self.weighted = weighted
        if target == "posterior_mean":
            self.target_rms = image_mean_rms(self.sigma)
        else:
            uniform = math.sqrt(1 / 12)
            self.target_rms = self.sigma * uniform / (self.sigma**2 + uniform**2).sqrt()

    @property
    def steps(self) -> int:
        """Number of noise levels T."""
        return len(self.sigma) - 1

    def level(self, t: Int[Tensor, " crystals"], crystals: Crystals) -> Float[Tensor, "atoms 1"]:
        """Return s_t of every atom."""
        per_crystal = self.sigma.to(t.device)[t].to(crystals.lattice.dtype)
        return per_crystal[crystals.crystal_of_atom, None]

    def noise(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], normal: Float[Tensor, "atoms 3"]
    ) -> Float[Tensor, "atoms 3"]:
        """Draw x_t ~ q(x_t | x_0) (Eq. 16)."""
        normal = centre(normal, crystals) if self.centred else normal
        return wrap(crystals.frac_coords + self.level(t, crystals) * normal)

    def target(
        self, crystals: Crystals, noisy: Crystals, t: Int[Tensor, " crystals"]
    ) -> Float[Tensor, "atoms 3"]:
        """Return the displacement the network is asked for at x_t (Eq. 20)."""
        start, end = noisy.frac_coords, crystals.frac_coords
        if self.target_kind == "posterior_mean":
            sigma = self.level(t, crystals).expand_as(start).clamp_min(1e-8)
            displacement = image_mean(end - start, sigma)
        elif self.target_kind == "shortest":
            displacement = shortest_displacement(start, end, noisy)
        else:
            displacement = end - start
        return centre(displacement, crystals) if self.centred else displacement

    def loss(
        self,
        displacement: Float[Tensor, "atoms 3"],
        clean: Crystals,
        noisy: Crystals,
        t: Int[Tensor, " crystals"],
    ) -> Float[Tensor, " crystals"]:
        """Return the mean squared error of a predicted displacement, per crystal.

        Weighted, it is per degree of freedom in units of the mean square of the target: a
        network that predicts nothing has loss 1 at every level. Otherwise ‖·‖² of Eq. 20.

        Source: L^x, Eq. 20.
        """
        error = displacement - self.target(clean, noisy, t)
        atom = clean.crystal_of_atom
        if self.weighted:
            error = error / self.target_rms.to(t.device)[t].to(error.dtype)[atom, None] / 3**0.5
        square = error.square().sum(-1)
        total = square.new_zeros(len(clean)).index_add_(0, atom, square)
        free = clean.n_atoms - 1 if self.centred else clean.n_atoms
        return torch.where(free > 0, total / free.clamp_min(1), torch.zeros_like(total))

    def prior(self, uniform: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
        """Return x_T: uniform on the torus (Lemma 1)."""
        return wrap(uniform)

    def reverse(
        self,
        noisy: Crystals,
        displacement: Float[Tensor, "atoms 3"],
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        normal: Float[Tensor, "atoms 3"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "atoms 3"]:
        """Draw x_s ~ q(x_s | x_t, x_0) for s < t: a Brownian bridge to x_t + displacement.

        Mean x_t + (1 - s_s²/s_t²)(x_0 + k - x_t), variance s_s²(s_t² - s_s²)/s_t².

        Args:
            noisy: x_t and its cell.
            displacement: x_0 + k - x_t, the image included.
            t: Present step.
            s: Next step, smaller.
            normal: Standard normal numbers.
            drift: Factor on the drift, above 1 at anti-annealing; one number, or one per row.

        Source: Eqs 5 and 17.
        Deviation: the printed posterior [N(x_0, β̃)] does not depend on x_t.
        """
        high, low = self.level(t, noisy), self.level(s, noisy)
        ratio = (low / high) ** 2
        pull = (drift * (1 - ratio)).clamp(max=1.0)
        normal = centre(normal, noisy) if self.centred else normal
        spread = low * (1 - ratio).clamp_min(0).sqrt()
        return wrap(noisy.frac_coords + pull * displacement + spread * normal)

    def jump(
        self,
        noisy: Crystals,
        displacement: Float[Tensor, "atoms 3"],
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        normal: Float[Tensor, "atoms 3"],
    ) -> Float[Tensor, "atoms 3"]:
        """Jump to the predicted x_0 and add the noise of one step: Algorithm 2, line 5.

        x_s = [x' + σ ε] with σ² = s_t² - s_s² (√β_t for consecutive steps), none at the last
        step. Far less noise than level s has: repeated one-shot denoising.
        """
        high, low = self.level(t, noisy), self.level(s, noisy)
        spread = (high**2 - low**2).clamp_min(0).sqrt() * (low > 0)
        normal = centre(normal, noisy) if self.centred else normal
        return wrap(noisy.frac_coords + displacement + spread * normal)

    def flow(
        self,
        noisy: Crystals,
        displacement: Float[Tensor, "atoms 3"],
        t: Int[Tensor, " crystals"],
        s: Int[Tensor, " crystals"],
        *,
        drift: float | Tensor = 1.0,
    ) -> Float[Tensor, "atoms 3"]:
        """Move along the probability-flow ODE dx/ds_t = -E[x_0 + k - x_t]/s_t from t to s.

        The step is exact where the displacement is that of one image.
        """
        high, low = self.level(t, noisy), self.level(s, noisy)
        pull = (drift * (1 - low / high)).clamp(max=1.0)
        return wrap(noisy.frac_coords + pull * displacement)
