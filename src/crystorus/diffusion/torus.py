"""Diffusion of atom positions on the torus: noise, target, loss and reverse step."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crystorus.config import TorusTarget
from crystorus.geometry import Crystals
from crystorus.geometry.torus import centre, shortest_displacement, wrap, wrap_displacement

_IMAGES = 4
"""Images summed on either side: beyond, weights are below exp(-4²/2) even at σ = 1."""


def image_mean(
    displacement: Float[Tensor, "*n"], sigma: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Average x_0 + k - x_t over the images k, weighted by their likelihood, per component.

    The density of x_t on the torus is p(x_t) = Σ_k N(x_t; x_0 + k, σ²). Its score is
    ∂ log p/∂x_t = Σ_k w_k (x_0 + k - x_t)/σ² with w_k ∝ exp(-(x_0 + k - x_t)²/2σ²), so that this
    mean is σ² times the score, and E[x_0 + k - x_t | x_t, x_0]. It is what the mean of the reverse
    step needs; it is smooth, and it vanishes where the noise is uniform.

    Args:
        displacement: x_0 - x_t, any image, fractional.
        sigma: Noise level s_t, fractional, broadcastable.

    Returns:
        The mean, fractional.

    Source: [Klipfel24] Appendix C
    Source: [Jing22], score of the wrapped normal; [Jiao23], the same for crystals
    """
    nearest = wrap_displacement(displacement)
    shifts = torch.arange(-_IMAGES, _IMAGES + 1, device=nearest.device, dtype=nearest.dtype)
    images = nearest[..., None] + shifts
    weights = torch.softmax(-0.5 * (images / sigma[..., None]) ** 2, -1)
    return (weights * images).sum(-1)


def image_mean_rms(sigma: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
    """Return the root mean square of `image_mean` per component, by quadrature.

    Args:
        sigma: Noise levels, fractional.
    """
    # The integrand is smooth and periodic: the midpoint rule converges faster than any power.
    grid = (torch.arange(256, dtype=torch.float64) + 0.5) / 256 - 0.5
    shifts = torch.arange(-_IMAGES, _IMAGES + 1, dtype=torch.float64)
    rms = sigma.double().clone()  # where no image overlaps the target is the noise itself
    for places in torch.nonzero(rms >= 0.02)[:, 0].split(64):
        level = rms[places, None]
        density = torch.exp(-0.5 * ((grid[:, None] + shifts) / level[..., None]) ** 2).sum(-1)
        square = image_mean(grid.expand(len(level), -1), level.expand(-1, len(grid))) ** 2
        rms[places] = ((density * square).sum(-1) / density.sum(-1)).sqrt()
    return rms


class TorusProcess:
    """Variance-exploding diffusion on T^n: q(x_t | x_0) = [N(x_0, s_t² I)].

    Args:
        sigma: s_0 = 0 … s_T, fractional.
        target: What the network learns: the mean over images ("posterior_mean"), the shortest
            path of Eq. 20 ("shortest"), or x_0 - x_t without the torus (Table 4 (e)).
        centred: Whether noise and target have zero mean per crystal: translations are a symmetry.
        weighted: Whether errors are measured in units of the target at each level (Eq. 19);
            Eq. 20 measures them in fractions of the cell.
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
            uniform = math.sqrt(1 / 12)  # of a coordinate uniform in [-½, ½)
            self.target_rms = self.sigma * uniform / (self.sigma**2 + uniform**2).sqrt()

    @property
    def steps(self) -> int:
        """Number of noise levels T."""
        return len(self.sigma) - 1

    def level(self, t: Int[Tensor, " crystals"], crystals: Crystals) -> Float[Tensor, "atoms 1"]:
        """Return s_t of every atom, fractional.

        Args:
            t: Noise level of each crystal, 0 … T.
            crystals: Say how many atoms each has.
        """
        per_crystal = self.sigma.to(t.device)[t].to(crystals.lattice.dtype)
        return per_crystal[crystals.crystal_of_atom, None]

    def noise(
        self, crystals: Crystals, t: Int[Tensor, " crystals"], normal: Float[Tensor, "atoms 3"]
    ) -> Float[Tensor, "atoms 3"]:
        """Draw x_t ~ q(x_t | x_0) = [N(x_0, s_t² I)].

        Args:
            crystals: x_0.
            t: Level, 0 … T.
            normal: Standard normal numbers.

        Returns:
            x_t, fractional in [0, 1).

        Source: [Klipfel24] Eq. 16
        Deviation: the first line of the equation is centred on x_0 by mistake; steps centred on
            x_{t-1} with variance s_t² - s_{t-1}² add up to its second line, s_t² = 1 - ᾱ_t.
        """
        normal = centre(normal, crystals) if self.centred else normal
        return wrap(crystals.frac_coords + self.level(t, crystals) * normal)

    def target(
        self, crystals: Crystals, noisy: Crystals, t: Int[Tensor, " crystals"]
    ) -> Float[Tensor, "atoms 3"]:
        """Return the displacement x_0 + k - x_t the network is asked for at x_t.

        Args:
            crystals: x_0.
            noisy: x_t and ρ_t; the nearest image is nearest in this cell.
            t: Level.

        Returns:
            Fractional displacements.

        Source: [Klipfel24] Eq. 20
        Deviation: the default takes the mean over all images, not the nearest one.
        """
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
        """Return the squared error of a predicted displacement ε_θ, per crystal.

        The reverse step and the posterior are Gaussians of one variance, whose Kullback-Leibler
        divergence (Eq. 18) is the square of the distance of their means over twice that variance;
        both means are x_t plus one factor times a displacement, so that the error of the
        displacement is all that is learnt from. `weighted`, it is divided by the mean square of
        the target at each level, per degree of freedom: a network that predicts nothing has loss
        1 at every level. Without, it is ‖·‖² in fractions of the cell.

        Args:
            displacement: ε_θ, fractional.
            clean: x_0.
            noisy: x_t and ρ_t.
            t: Level.

        Source: [Klipfel24] Eq. 18
        Source: [Klipfel24] Eq. 19
        Source: [Klipfel24] Appendix E
        Deviation: the weight of Eq. 19, 1/2σ_t², becomes that of the target, which is bounded
            where the noise is uniform.
        """
        error = displacement - self.target(clean, noisy, t)
        atom = clean.crystal_of_atom
        if self.weighted:
            error = error / self.target_rms.to(t.device)[t].to(error.dtype)[atom, None] / 3**0.5
        square = error.square().sum(-1)
        total = square.new_zeros(len(clean)).index_add_(0, atom, square)
        # Centred, one atom has no place relative to the others: nothing to predict.
        free = clean.n_atoms - 1 if self.centred else clean.n_atoms
        return torch.where(free > 0, total / free.clamp_min(1), torch.zeros_like(total))

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

        Lifted from the torus to the image k of x_0 that the path started from, x_s and x_t are
        sums of independent steps: x_s = x_0 + k + a, x_t = x_s + b with variances s_s² of a and
        s_t² - s_s² of b. Given x_t, the regression of a on a + b has slope r = s_s²/s_t² and
        leaves the variance s_s²(s_t² - s_s²)/s_t². Hence
        x_s ~ N(x_t + (1 - r)(x_0 + k - x_t), s_s²(1 - r)), wrapped.

        Args:
            noisy: x_t and its cell.
            displacement: x_0 + k - x_t, the image included, fractional.
            t: Present level.
            s: Next level, smaller.
            normal: Standard normal numbers.
            drift: Factor on the drift, above 1 at anti-annealing; one number, or one per atom.

        Returns:
            x_s, fractional in [0, 1).

        Source: [Klipfel24] Eq. 17
        Deviation: the printed posterior [N(x_0, β̃)] does not depend on x_t.
        """
        high, low = self.level(t, noisy), self.level(s, noisy)
        ratio = (low / high) ** 2
        # What is taken of the displacement, never more than all of it.
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

        Args and result are those of `reverse`.

        Source: [Klipfel24] Algorithm 2, line 5
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

        Where the displacement is that of one image, its length is proportional to s_t along the
        path, so that x_s = x_t + (1 - s_s/s_t) · displacement is exact for any step.

        Args and result are those of `reverse`.

        Source: [Song21], probability-flow ODE; [Karras22], the same in σ
        """
        high, low = self.level(t, noisy), self.level(s, noisy)
        pull = (drift * (1 - low / high)).clamp(max=1.0)
        return wrap(noisy.frac_coords + pull * displacement)
