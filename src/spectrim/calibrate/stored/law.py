"""What is known of a vector of features: means and covariances, and their way through functions of one variable.

A `Law` holds the first two moments of K features. A `Spread` is a tensor of a network seen through a law: an index of
the tensor's own shape says which feature stands at each entry, so whatever only moves entries (views, transposes,
slices, concatenations) is done to the index and needs no rule of its own. Functions of one variable are carried as
their values on a grid of a standard normal variable, so x * sigmoid(x) is one function of x and not a product of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

EXACT, GAUSSIAN, APPROXIMATE = 0, 1, 2
TRUST = ("exact", "gaussian", "approximate")
FULL = 4096  # features up to which the covariance is a matrix: 128 MiB in float64
POINTS = (
    513  # of the grid on [-8, 8]; at a kink of slope 1 the rule is wrong by less than step^2 / 12 = 8e-5 deviations
)
ORDER = 6  # terms of the Hermite series of a covariance
GRID = torch.linspace(-8, 8, POINTS, dtype=torch.float64)
DENSITY = torch.exp(-(GRID**2) / 2)
DENSITY /= DENSITY.sum()


@dataclass(frozen=True, eq=False)
class Law:
    """First two moments of K features.

    Args:
        mean: (K,), float64.
        cov: covariance, K x K, or the variances alone, (K,).
        mean_trust, cov_trust: of the means and of the variances: 0 stored or linear in what is stored, 1 that if the
            features under a pointwise function are Gaussian, 2 approximate. Correlations are always approximate.
        origin: (law of z, A) where the features are A z + constant; it tells how two such laws vary together.
        near: correlation that is assumed between one feature at neighbouring places of a map.
    """

    mean: Tensor
    cov: Tensor
    mean_trust: int = APPROXIMATE
    cov_trust: int = APPROXIMATE
    origin: tuple[Law, Tensor] | None = None
    near: float = 0.5

    @property
    def size(self) -> int:
        """The number K of features."""
        return self.mean.numel()

    @property
    def var(self) -> Tensor:
        """The variances, (K,), never negative."""
        return (self.cov if self.cov.ndim == 1 else self.cov.diagonal()).clamp_min(0)

    def weaker(self, other: Law, **kept) -> Law:
        """Return this law, trusted no more than the other."""
        trusts = {"mean_trust": max(self.mean_trust, other.mean_trust)}
        trusts["cov_trust"] = max(self.cov_trust, other.cov_trust)
        return replace(self, **(trusts | kept), origin=None)

    def gather(self, at: Tensor, between: float = 0.5) -> Law:
        """Return the law of the features at these positions, (E,); `between` is explained at `apart`.

        A feature that is named twice stands for two places of one channel: they are alike, and not the same.
        """
        if at.numel() == self.size and torch.equal(at, torch.arange(self.size)):
            return self
        mean = self.mean[at]
        if self.cov.ndim == 1 or at.numel() > FULL:
            return replace(self, mean=mean, cov=self.var[at], origin=None)
        cov = self.cov[at][:, at]
        copy = copies(at)
        if int(copy.max()):
            cov = cov * torch.where(copy[:, None] == copy[None], 1.0, between)
        origin = None if self.origin is None else (self.origin[0], self.origin[1][at])
        return replace(self, mean=mean, cov=cov, origin=origin)

    def mapped(self, A: Tensor, bias: Tensor | None = None) -> Law:
        """Return the law of A x + bias: mean A m + bias, covariance A C A^T; A is rows x K."""
        A = A.to(torch.float64)
        mean = A @ self.mean
        if bias is not None:
            mean = mean + bias.to(torch.float64)
        if len(A) > FULL:
            cov = (A * A) @ self.cov if self.cov.ndim == 1 else ((A @ self.cov) * A).sum(1)
        else:
            cov = (A * self.cov) @ A.T if self.cov.ndim == 1 else A @ self.cov @ A.T
        # Variances of sums follow from correlations, which are never stored.
        return replace(self, mean=mean, cov=cov, cov_trust=APPROXIMATE, origin=(self, A))

    def scaled(self, factor: Tensor) -> Law:
        """Return the law of factor * x, (K,), without its means being moved."""
        cov = self.cov * factor**2 if self.cov.ndim == 1 else factor[:, None] * self.cov * factor
        origin = None if self.origin is None else (self.origin[0], factor[:, None] * self.origin[1])
        return replace(self, mean=self.mean * factor, cov=cov, origin=origin)

    def second(self) -> Tensor:
        """Return E[x x^T], K x K, or E[x^2], (K,), where the covariances are not known."""
        return self.cov + (self.mean**2 if self.cov.ndim == 1 else torch.outer(self.mean, self.mean))


def together(x: Law, y: Law) -> Tensor:
    """Return the covariances of two laws, x.size x y.size: from their common origin; zero where there is none."""
    if x is y and x.cov.ndim == 2:
        return x.cov
    if x.origin is not None and y.origin is not None and x.origin[0] is y.origin[0]:
        (source, A), (_, B) = x.origin, y.origin
        return (A * source.cov) @ B.T if source.cov.ndim == 1 else A @ source.cov @ B.T
    return x.mean.new_zeros(x.size, y.size)


def copies(at: Tensor) -> Tensor:
    """Return how often each entry of `at`, (E,), occurred before it.

    Example:
        >>> copies(torch.tensor([5, 2, 5, 5])).tolist()
        [0, 0, 1, 2]
    """
    order = torch.argsort(at, stable=True)
    ranked = at[order]
    place = torch.arange(at.numel())
    first = torch.where(torch.cat([torch.ones(1, dtype=torch.bool), ranked[1:] != ranked[:-1]]), place, 0)
    out = torch.empty_like(place)
    out[order] = place - torch.cummax(first, 0).values
    return out


def alike(*laws: Law) -> list[Law]:
    """Return the laws with covariances of one form: matrices where one has a matrix, what is not known there zero."""
    if len({law.cov.ndim for law in laws}) == 1:
        return list(laws)
    return [law if law.cov.ndim == 2 else replace(law, cov=law.cov.diag(), origin=None) for law in laws]


def added(x: Law, y: Law, sign: float = 1.0) -> Law:
    """Return the law of x + sign * y for independent x and y of one size: means and covariances add."""
    x, y = alike(x, y)
    cov = x.cov + y.cov
    # The mean of a sum needs no independence; its covariance does.
    return x.weaker(y, mean=x.mean + sign * y.mean, cov=cov, cov_trust=APPROXIMATE)


def multiplied(x: Law, y: Law) -> Law:
    """Return the law of x * y, entry by entry, for independent x and y: means and second moments multiply."""
    x, y = alike(x, y)
    mean = x.mean * y.mean
    second = x.second() * y.second()
    cov = second - (mean**2 if second.ndim == 1 else torch.outer(mean, mean))
    return Law(mean, cov)


def constant(values: Tensor) -> Law:
    """Return the law of features that never change, (K,)."""
    values = values.to(torch.float64).flatten()
    return Law(values, torch.zeros_like(values), EXACT, EXACT)


def population(rows: Tensor, weights: Tensor | None = None) -> Law:
    """Return the law of a row drawn from a table, n x K, with these weights, (n,), that sum to one; evenly if None."""
    rows = rows.to(torch.float64)
    w = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) if weights is None else weights
    mean = w @ rows
    centred = rows - mean
    cov = (w[:, None] * centred).T @ centred if rows.shape[1] <= FULL else w @ centred**2
    return Law(mean, cov)


def mixed(laws: list[Law], shares: Tensor) -> Law:
    """Return the law of a vector that follows each of these laws with these shares, (n,), that sum to one."""
    if len(laws) == 1:
        return laws[0]
    means = torch.stack([law.mean for law in laws])
    between = population(means, shares)
    laws = alike(*laws)
    cov = sum(share * law.cov for share, law in zip(shares, laws, strict=True))
    cov = cov + (between.var if cov.ndim == 1 else between.cov)
    return Law(between.mean, cov, max(law.mean_trust for law in laws), max(law.cov_trust for law in laws))


def on_grid(law: Law) -> Tensor:
    """Return the values of K Gaussian features on the grid of a standard normal variable, K x POINTS."""
    return law.mean[:, None] + law.var.sqrt()[:, None] * GRID


def through(base: Law, values: Tensor) -> Law:
    """Return the law of f_i(x_i), given on the grid, for jointly Gaussian x.

    With a_k = E[f(m + s z) He_k(z)], the covariance of two features is sum_k a_k a'_k rho^k / k!, rho their
    correlation (Mehler's formula); the diagonal is exact, the rest stops at k = 6.

    Args:
        base: law of x.
        values: f_i(m_i + s_i z) at the points of the grid, K x POINTS, float64.

    References:
        F. G. Mehler, J. reine angew. Math. 66 (1866) 161. The rule of the grid: L. N. Trefethen and J. A. C. Weideman,
        SIAM Review 56 (2014) 385.
    """
    mean = values @ DENSITY
    centred = values - mean[:, None]
    var = (centred**2) @ DENSITY
    slope = centred @ (DENSITY * GRID)
    size = values.abs().amax(1).clamp_min(1e-30)
    straight = ((centred - slope[:, None] * GRID).abs().amax(1) <= 1e-9 * size).all()
    if straight:  # a x + b: what is known of x is known of it
        deviation = base.var.sqrt()
        factor = torch.where(deviation > 0, slope / deviation.clamp_min(1e-300), torch.zeros_like(slope))
        return replace(base.scaled(factor), mean=mean)
    trust = max(base.mean_trust, base.cov_trust, GAUSSIAN)
    if base.cov.ndim == 1:
        return Law(mean, var, trust, trust)
    deviation = base.var.sqrt()
    scale = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-300), torch.zeros_like(deviation))
    rho = (scale[:, None] * base.cov * scale).clamp(-1, 1)
    before, he = torch.ones_like(GRID), GRID
    power, cov = rho, torch.outer(slope, slope) * rho
    for k in range(2, ORDER + 1):
        before, he = he, GRID * he - (k - 1) * before
        a = (centred @ (DENSITY * he)) / math.sqrt(math.factorial(k))
        power = power * rho
        cov += torch.outer(a, a) * power
    cov.diagonal().copy_(var)
    return Law(mean, cov, trust, max(trust, base.cov_trust))


@dataclass(frozen=True, eq=False)
class Spread:
    """A tensor of the network, as far as it is known: which feature stands where, and the law of the features.

    Args:
        index: integer tensor of the tensor's shape (mostly a broadcast view).
        base: law of the features.
        values: a function of each feature, on the grid, K x POINTS; None: the features themselves.
    """

    index: Tensor
    base: Law
    values: Tensor | None = None

    def grid(self) -> Tensor:
        """Return the values on the grid, K x POINTS."""
        return on_grid(self.base) if self.values is None else self.values

    def law(self) -> Law:
        """Return the law of the features as they stand."""
        return self.base if self.values is None else through(self.base, self.values)

    def settled(self) -> Spread:
        """Return the same with its functions worked out."""
        return Spread(self.index, self.law())

    def pointwise(self, function: Callable[[Tensor], Tensor]) -> Spread:
        """Return the tensor after a function of one variable."""
        return replace(self, values=function(self.grid()))


def compressed(index: Tensor) -> Tensor:
    """Return the index with size 1 along every dimension on which it does not depend."""
    for dim in range(index.ndim):
        if index.shape[dim] > 1:
            head = index.narrow(dim, 0, 1)
            if index.stride(dim) == 0 or torch.equal(index, head.expand_as(index)):
                index = head
    return index


def spread_of(law: Law, shape: tuple[int, ...], dim: int = -1) -> Spread:
    """Return a tensor of this shape whose features run along one dimension."""
    index = torch.arange(law.size)
    index = index.view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))])
    return Spread(index.expand(shape), law)


def vector(spread: Spread, dims: tuple[int, ...] = (-1,)) -> Law:
    """Return the law of the vector along these dimensions (flattened in their order), over all other positions."""
    law, index = spread.law(), compressed(spread.index)
    dims = tuple(d % index.ndim for d in dims)
    shape = [spread.index.shape[d] for d in dims]
    others = [d for d in range(index.ndim) if d not in dims]
    index = index.permute(*others, *dims).expand(*[index.shape[d] for d in others], *shape)
    rows, counts = torch.unique(index.reshape(-1, math.prod(shape)), dim=0, return_counts=True)
    shares = counts.to(torch.float64) / counts.sum()
    return mixed([law.gather(row) for row in rows], shares)
