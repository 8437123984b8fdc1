"""How operations on tensors act on what is known of them: the rules that `stored` applies along a run of the model.

A rule takes the arguments of one operation and gives back the `Spread` of its first output, or None where nothing is
known of it. An operation without a rule makes what comes out of it unknown, until a normalisation restarts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .law import (
    APPROXIMATE,
    EXACT,
    FULL,
    GRID,
    Law,
    Spread,
    added,
    compressed,
    constant,
    multiplied,
    population,
    spread_of,
    vector,
)

BELIEVED = 0.7  # MiniLM, 60 % zeros, optimal brain surgeon: cosine .70; .66 with .5, .65 with 1, .56 with 0


@dataclass(frozen=True, eq=False)
class Scores:
    """Products of queries and keys, times a scale, and what they become under a softmax along the last dimension.

    Args:
        queries, keys: (..., positions, head size); None: not known.
        scale: of the products.
    """

    queries: Spread | None = None
    keys: Spread | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Unknown:
    """A tensor that depends on the input, and why nothing more is known of it."""

    reason: str


Known = Spread | Scores | None


def shape_of(x: Tensor) -> tuple[int, ...]:
    """Returns the shape as plain numbers."""
    return tuple(int(s) for s in x.shape)


# ---------------------------------------------------------------- normalisation: where the moments start anew


def batch_norm(x: Tensor, known: Known, weight, bias, mean, var, eps: float) -> Spread:
    """Returns mean beta and variance gamma^2, whatever comes in; the correlations are those that came in."""
    channels = x.shape[1]
    beta = torch.zeros(channels, dtype=torch.float64) if bias is None else bias.double()
    gamma = torch.ones(channels, dtype=torch.float64) if weight is None else weight.double()
    if var is not None:
        gamma = gamma * (var.double() / (var.double() + eps)).clamp_min(0).sqrt()
    cov = correlations(known, channels, (1,))
    cov = gamma**2 if cov.ndim == 1 else gamma[:, None] * cov * gamma
    return spread_of(Law(beta, cov, EXACT, EXACT), shape_of(x), 1)


def correlations(known: Known, size: int, dims: tuple[int, ...]) -> Tensor:
    """Returns the correlations of the features along these dimensions, or ones on a diagonal, (size,)."""
    law = vector(known, dims) if isinstance(known, Spread) else None
    if law is None or law.cov.ndim == 1:
        return torch.ones(size, dtype=torch.float64)
    scale = law.var.sqrt()
    scale = torch.where(scale > 0, 1 / scale.clamp_min(1e-300), torch.zeros_like(scale))
    cov = scale[:, None] * law.cov * scale
    cov.diagonal().fill_(1)
    return cov


def layer_norm(x: Tensor, known: Known, shape, weight, bias, eps: float, centre: bool = True) -> Spread:
    """Returns g z + b with z = (x - mean x) / std x over the features, the moments of x put for their figures.

    The mean of z over the features is 0 and its mean square 1; what each feature has of them follows from the moments
    that come in, of which a part is believed (`doubted`). Nothing known of x: mean 0 and variance 1 each.
    """
    size = math.prod(shape)
    dims = tuple(range(x.ndim - len(shape), x.ndim))
    law = vector(known, dims) if isinstance(known, Spread) else None
    if law is None:
        law = Law(torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64))
    law = doubted(normalised(law, eps, centre))
    if weight is not None:
        law = law.scaled(weight.double().flatten())
    if bias is not None:
        law = replace(law, mean=law.mean + bias.double().flatten())
    index = torch.arange(size).view(*(1,) * (x.ndim - len(shape)), *shape).expand(shape_of(x))
    return Spread(index, law)


def normalised(law: Law, eps: float, centre: bool) -> Law:
    """Returns the law of (x - mean x) / std x, mean and std being taken over the features of one x."""
    mean, cov = law.mean, law.cov
    if centre:
        mean = mean - mean.mean()
        if cov.ndim == 1:
            cov = cov * (1 - 2 / law.size) + cov.mean() / law.size
        else:
            along = cov.mean(1)
            cov = cov - along[:, None] - along + along.mean()
    scale = (mean.square() + (cov if cov.ndim == 1 else cov.diagonal())).mean() + eps
    return Law(mean / scale.sqrt(), cov / scale)


def doubted(law: Law, believed: float = BELIEVED) -> Law:
    """Return a law drawn towards mean 0, variance 1 and no correlation: believed * mean, var^believed, believed * rho.

    What is worked out from layer to layer goes wrong by a factor a layer (the means of MiniLM's inputs correlate with
    the measured ones by .9 behind the first block and by .1 behind the third); white inputs go nowhere.
    """
    cov = law.cov if law.cov.ndim == 2 else law.cov.diag() if law.size <= FULL else law.cov
    var = law.var.clamp_min(1e-12)
    factor = var ** ((believed - 1) / 2)
    if cov.ndim == 1:
        return Law(believed * law.mean, var**believed)
    cov = believed * factor[:, None] * cov * factor
    cov.diagonal().copy_(var**believed)
    return Law(believed * law.mean, cov)


def group_norm(x: Tensor, known: Known, weight, bias, groups: int, eps: float) -> Spread:
    """Returns a layer norm over the channels of each group; with one channel a group, the stored figures, exactly."""
    channels = x.shape[1]
    each = channels // groups
    if each == 1:
        return batch_norm(x, known, weight, bias, None, None, eps)
    if isinstance(known, Spread):
        law = vector(known, (1,))
    else:
        law = Law(torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64))
    factor, shift = [], []
    for g in range(groups):
        part = slice(g * each, (g + 1) * each)
        one = Law(law.mean[part], law.var[part])
        # Over a map of many pixels the scale is that of the whole group, so it is nearly a constant.
        level = one.mean.mean()
        scale = ((one.mean - level).square() + one.var).mean() + eps
        factor.append(torch.full((each,), float(scale.rsqrt()), dtype=torch.float64))
        shift.append(level.expand(each))
    scale, centre = torch.cat(factor), torch.cat(shift)
    law = replace(law, mean=law.mean - centre).scaled(scale)
    law = replace(law, mean_trust=APPROXIMATE, cov_trust=APPROXIMATE)
    if weight is not None:
        law = law.scaled(weight.double())
    if bias is not None:
        law = replace(law, mean=law.mean + bias.double())
    return spread_of(law, shape_of(x), 1)


# ---------------------------------------------------------------- sums, products, means


def with_constant(x: Spread, c: Tensor, shape: tuple[int, ...], times: bool) -> Spread:
    """Returns x + c or x * c; a constant that changes along positions counts as one drawn at random from them."""
    x = replace(x, index=x.index.expand(shape))
    if compressed(x.index).numel() > FULL:
        x = thinned(x)
    index = x.index
    small = compressed(index)
    c = c.to(torch.float64).expand(shape)
    free = [d for d in range(len(shape)) if small.shape[d] == 1 and shape[d] > 1]
    rows = c.permute(*free, *[d for d in range(len(shape)) if d not in free])
    rows = rows.reshape(math.prod(shape[d] for d in free), small.numel())
    flat = small.flatten()
    if len(rows) > 1 and bool((rows != rows[:1]).any()):
        drawn = population(rows)
        own = x.law().gather(flat)
        out = multiplied(own, drawn) if times else added(own, drawn)
        return Spread(torch.arange(flat.numel()).view(small.shape).expand(shape), out)
    values = rows[0]
    if flat.unique().numel() == flat.numel():
        grid = x.grid().clone()
        grid[flat] = grid[flat] * values[:, None] if times else grid[flat] + values[:, None]
        return Spread(index, x.base, grid)
    law = x.law()
    if values.numel() and bool((values == values[0]).all()):
        grid = x.grid()
        return Spread(index, x.base, grid * values[0] if times else grid + values[0])
    law = law.gather(flat)
    law = law.scaled(values) if times else replace(law, mean=law.mean + values)
    return Spread(torch.arange(flat.numel()).view(small.shape).expand(shape), law)


def thinned(x: Spread) -> Spread:
    """Returns the tensor with positions taken for alike along dimensions on which few kinds of them repeat.

    A class token before the patches makes two kinds of positions, and a table of positions would make each its own.
    """
    small = compressed(x.index)
    for dim in range(small.ndim):
        size = small.shape[dim]
        if size > 1 and 2 * len(torch.unique(small.movedim(dim, 0).reshape(size, -1), dim=0)) <= size:
            dims = tuple(d for d in range(small.ndim) if small.shape[d] > 1 and d != dim)
            law = vector(x, dims)
            shape = [small.shape[d] if d in dims else 1 for d in range(small.ndim)]
            return Spread(torch.arange(law.size).view(shape).expand(x.index.shape), law)
    return x


def combined(x: Spread, y: Spread, shape: tuple[int, ...], function, independent) -> Spread:
    """Returns a function of two tensors: exact where both are functions of the same features, else independent."""
    ix, iy = x.index.expand(shape), y.index.expand(shape)
    if x.base is y.base and torch.equal(compressed(ix), compressed(iy)):
        return Spread(ix, x.base, function(x.grid(), y.grid()))
    cx, cy = compressed(ix), compressed(iy)
    cx, cy = torch.broadcast_tensors(cx, cy)
    law = independent(x.law().gather(cx.flatten()), y.law().gather(cy.flatten()))
    return Spread(torch.arange(cx.numel()).view(cx.shape).expand(shape), law)


def averaged(x: Spread, dims: tuple[int, ...], keep: bool, effective: float | None = None) -> Spread:
    """Returns the mean over some dimensions: over positions the covariance falls by their effective number.

    Pixels and tokens of one input are alike; of n of them sqrt(n) are counted as independent, where nothing else is
    said.
    """
    law, ndim = x.law(), x.index.ndim
    dims = tuple(sorted(d % ndim for d in dims))
    small = compressed(x.index)
    n = math.prod(x.index.shape[d] for d in dims if small.shape[d] == 1)
    fewer = math.sqrt(n) if effective is None else effective
    rest = [d for d in range(ndim) if d not in dims]
    rows = small.permute(*rest, *dims).reshape(math.prod(small.shape[d] for d in rest), -1)
    if rows.shape[1] == 1:
        law = replace(law, cov=law.cov / fewer, cov_trust=APPROXIMATE if fewer > 1 else law.cov_trust, origin=None)
        index = small
    else:
        A = torch.zeros(len(rows), law.size, dtype=torch.float64)
        A.scatter_add_(1, rows, torch.full(rows.shape, 1 / rows.shape[1], dtype=torch.float64))
        law = law.mapped(A)
        law = replace(law, cov=law.cov / fewer, cov_trust=APPROXIMATE, origin=None)
        sizes = [1 if d in dims else small.shape[d] for d in range(ndim)]
        index = torch.arange(len(rows)).view(sizes)
    sizes = [1 if d in dims else x.index.shape[d] for d in range(ndim)]
    index = index.expand(sizes)
    if not keep:
        index = index.squeeze(dims)
    return Spread(index, law)


def largest(x: Spread, dims: tuple[int, ...], size: int, shape: tuple[int, ...]) -> Spread:
    """Returns the largest of a window of `size` entries of one channel, sqrt(size) of them counted as independent."""
    power = math.sqrt(size)
    cdf = torch.special.ndtr(GRID)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), (cdf[1:] + cdf[:-1]) / 2, cdf.new_ones(1)])
    weights = (edges**power).diff()
    values = x.grid().sort(1).values
    mean = values @ weights
    var = (values - mean[:, None]).square() @ weights
    law = x.law()
    scale = torch.where(law.var > 0, (var / law.var.clamp_min(1e-300)).sqrt(), torch.zeros_like(var))
    law = replace(law.scaled(scale), mean=mean, mean_trust=APPROXIMATE, cov_trust=APPROXIMATE, origin=None)
    return Spread(resized(x.index, dims, shape), law)


def resized(index: Tensor, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Returns the index of a tensor that was pooled or resampled along some dimensions."""
    small = compressed(index)
    for dim in dims:
        if small.shape[dim] not in (1, shape[dim]):
            at = torch.linspace(0, small.shape[dim] - 1, shape[dim]).round().long()
            small = small.index_select(dim, at)
    return small.expand(shape)


def joined(parts: list[Spread | Tensor], dim: int) -> Spread:
    """Returns the concatenation of tensors, known ones and constants; different sources count as independent."""
    indices, laws, start = [], [], 0
    spreads = [part for part in parts if isinstance(part, Spread)]
    first = spreads[0]
    if len(spreads) == len(parts) and all(p.base is first.base and p.values is first.values for p in spreads):
        return replace(first, index=torch.cat([p.index for p in parts], dim))
    for part in parts:
        if isinstance(part, Spread):
            index, law = part.index, part.law()
        else:
            values, index = torch.unique(part.to(torch.float64), return_inverse=True)
            law = constant(values)
        indices.append(index)
        laws.append(law)
        start += law.size
    starts = torch.tensor([0] + [law.size for law in laws]).cumsum(0).tolist()
    indices = [index + first for index, first in zip(indices, starts, strict=False)]
    mean = torch.cat([law.mean for law in laws])
    if start <= FULL and any(law.cov.ndim == 2 for law in laws):
        cov = torch.block_diag(*[law.cov if law.cov.ndim == 2 else law.cov.diag() for law in laws])
    else:
        cov = torch.cat([law.var for law in laws])
    trusts = max(law.mean_trust for law in laws), max(law.cov_trust for law in laws)
    return Spread(torch.cat(indices, dim), Law(mean, cov, *trusts))
