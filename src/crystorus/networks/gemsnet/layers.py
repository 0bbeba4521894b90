"""GemNet's dense layers, without biases and without passes over memory that they can do without.

A residual layer has a hand-written derivative: it keeps three tensors where automatic
differentiation keeps five, and folds all constants into its small weight matrices.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

SILU_SCALE = 1 / 0.6
"""GemNet divides SiLU by 0.6 to keep the variance of a standard normal input."""

SQRT_HALF = math.sqrt(0.5)
"""Sums of two terms of equal variance are multiplied by 1/√2."""


def he_orthogonal_(weight: Tensor) -> Tensor:
    """Fill a weight [out, in] with decorrelated rows of variance 1/in (GemNet's start).

    Args:
        weight: Filled in place.
    """
    with torch.no_grad():
        torch.nn.init.orthogonal_(weight)
        spread, mean = torch.std_mean(weight, dim=1, keepdim=True, correction=0)
        return weight.sub_(mean).div_(spread).mul_(weight.shape[1] ** -0.5)


class Dense(torch.nn.Module):
    """y = σ(W x) without bias, σ the scaled SiLU or nothing."""

    def __init__(self, size_in: int, size_out: int, *, activation: bool):
        super().__init__()
        self.activation = activation
        self.weight = torch.nn.Parameter(he_orthogonal_(torch.empty(size_out, size_in)))

    def forward(self, x: Float[Tensor, "rows size_in"]) -> Float[Tensor, "rows size_out"]:
        """Apply the layer to every row.

        Args:
            x: Features.
        """
        return scaled_silu_(self.linear(x)) if self.activation else self.linear(x)

    def linear(self, x: Float[Tensor, "rows size_in"]) -> Float[Tensor, "rows size_out"]:
        """Return W x.

        Args:
            x: Features.
        """
        return functional.linear(x, self.weight)


def scaled_silu_(x: Tensor) -> Tensor:
    """Return SiLU(x) / 0.6, in place of x where no gradient is wanted.

    Args:
        x: Of any shape.
    """
    return functional.silu(x, inplace=not torch.is_grad_enabled()).mul_(SILU_SCALE)


class Residual(torch.nn.Module):
    """y = (x + σ(W₂ σ(W₁ x))) / √2."""

    def __init__(self, size: int):
        super().__init__()
        self.inner = Dense(size, size, activation=True)
        self.outer = Dense(size, size, activation=True)

    def forward(self, x: Float[Tensor, "rows size"]) -> Float[Tensor, "rows size"]:
        """Apply the layer to every row.

        Args:
            x: Features.
        """
        y: Tensor = _Residual.apply(x, self.inner.weight, self.outer.weight)
        return y


class _Residual(torch.autograd.Function):
    """The residual layer; W₁ x and W₂ σ(W₁ x) are kept, their SiLUs are taken again."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        first = x @ inner.mT
        second = functional.silu(first) @ (SILU_SCALE * outer).mT
        ctx.save_for_backward(x, inner, outer, first, second)
        return torch.add(x, functional.silu(second), alpha=SILU_SCALE).mul_(SQRT_HALF)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, inner, outer, first, second = ctx.saved_tensors  # type: ignore[attr-defined]
        scale = SQRT_HALF * SILU_SCALE**2
        at_second = torch.ops.aten.silu_backward(grad, second)
        of_outer = at_second.mT @ functional.silu(first)
        at_first = torch.ops.aten.silu_backward(at_second @ (scale * outer), first)
        of_x = torch.addmm(grad, at_first, inner, beta=SQRT_HALF)
        return of_x, at_first.mT @ x, of_outer.mul_(scale)


def residuals(size: int, count: int) -> torch.nn.Sequential:
    """Chain residual layers.

    Args:
        size: Width of every layer.
        count: How many.
    """
    return torch.nn.Sequential(*(Residual(size) for _ in range(count)))


class JoinedDense(torch.nn.Module):
    """y = σ(W [h_j, h_i, m_γ]): atoms at both ends of an edge joined with edge features.

    W is kept whole; its two atom parts are applied per atom and then gathered, which is the
    same sum for a third of the products.
    """

    def __init__(self, size_atom: int, size_edge: int, size_out: int):
        super().__init__()
        self.size_atom = size_atom
        self.weight = torch.nn.Parameter(
            he_orthogonal_(torch.empty(size_out, 2 * size_atom + size_edge))
        )

    def per_atom(self, atoms: Float[Tensor, "atoms n"]) -> tuple[Tensor, Tensor]:
        """Return the atoms' shares as sources and as targets.

        Args:
            atoms: Features h.
        """
        source, target, _ = self._parts()
        return functional.linear(atoms, source), functional.linear(atoms, target)

    def forward(
        self,
        edges: Float[Tensor, "edges size_edge"],
        sources: Float[Tensor, "edges size_out"],
        targets: Float[Tensor, "edges size_out"],
    ) -> Float[Tensor, "edges size_out"]:
        """Return new edge features from the edges and the shares of their two atoms.

        Args:
            edges: Features m_γ.
            sources: Share of each edge's source, of `per_atom`.
            targets: Share of its target.
        """
        shares = sources + targets
        return scaled_silu_(shares.addmm_(edges, self._parts()[2].mT))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        n = self.size_atom
        source, target, edge = self.weight.split([n, n, self.weight.shape[1] - 2 * n], dim=1)
        return source, target, edge


class FilteredDense(torch.autograd.Function):
    """m ∘ (W r) for wide m and narrow r; the filter W r is taken again in backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, wide: Tensor, narrow: Tensor, weight: Tensor) -> Tensor:
        """Return the product, [rows, wide].

        Args:
            wide: m, [rows, wide].
            narrow: r, [rows, narrow].
            weight: W, [wide, narrow].
            ctx: Keeps what `backward` needs.
        """
        ctx.save_for_backward(wide, narrow, weight)
        return (narrow @ weight.mT).mul_(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients with respect to m, r and W.

        Args:
            grad: Gradient with respect to the product, [rows, wide].
            ctx: Has what `forward` kept.
        """
        wide, narrow, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        at_filter = grad * wide
        of_wide = (narrow @ weight.mT).mul_(grad)
        return of_wide, at_filter @ weight, at_filter.mT @ narrow


def filtered(
    wide: Float[Tensor, "rows wide"], narrow: Float[Tensor, "rows narrow"], layer: Dense
) -> Float[Tensor, "rows wide"]:
    """Return `wide` times the filter that a layer without activation makes of `narrow`.

    Args:
        wide: m.
        narrow: r.
        layer: Holds W.
    """
    product: Tensor = FilteredDense.apply(wide, narrow, layer.weight)
    return product
