"""What can be done to one matrix: cut its rank, shrink its values, thin out its vectors, set entries to zero.

Plain functions; their input is not changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from .laws import shrink as optimal
from .linalg import Factors, leading, svd, without_zero_lines
from .reading import Equalised


def truncate(W: Tensor, rank: int, scales: Equalised | None = None, also: Sequence[int] = ()) -> Factors:
    """Return the factors of the best approximation of W that has this rank, or that keeps some smaller values instead.

    Without `scales` it minimises ||W - W'||_F; with them it minimises ||D1 (W - W') D2||_F, where D1 and D2 are the
    scales that make W even, so that a loud row does not decide what the others keep.

    Args:
        W: rows x cols, any float type.
        rank: values kept, 1 to min(rows, cols).
        scales: row and column scales from `reading.equalize`.
        also: positions of values that are kept before the largest of the others, 0 the largest of all; they count in
            `rank`.

    Example:
        >>> W = torch.outer(torch.arange(1.0, 4.0), torch.arange(1.0, 3.0))
        >>> torch.allclose(truncate(W, 1).dense(), W.double())
        True

    References:
        C. Eckart and G. Young, Psychometrika 1 (1936) 211; the weighted form by substitution.
    """
    factors = svd(W if scales is None else scales.apply(W))
    kept = factors.select(kept_positions(factors.rank, rank, also)) if also else factors.truncate(rank)
    return kept if scales is None else kept.rescale(scales.rows, scales.cols)


def kept_positions(values: int, rank: int, also: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the positions of the `rank` values kept of so many, ascending: `also`, and then the largest of the others.

    Example:
        >>> kept_positions(10, 4, also=(7, 9))
        (0, 1, 7, 9)
    """
    first = set(also)
    others = (i for i in range(values) if i not in first)
    return tuple(sorted([*also, *islice(others, rank - len(also))]))


def shrink(W: Tensor, sigma: float, loss: str = "frobenius", scales: Equalised | None = None) -> Factors:
    """Return the factors of the best estimate of the signal in W when its noise has standard deviation sigma.

        W' = sigma sqrt(n) sum_i eta(s_i / (sigma sqrt(n))) u_i v_i^T

    eta takes each singular value back to what the signal behind it is worth in the given norm, and everything up to the
    edge sigma (sqrt(n) + sqrt(p)) to zero. Truncation keeps the values as they are seen, too long and along vectors
    that are partly noise; on planted signal the squared error of W' is a quarter to a third smaller. W' estimates the
    signal: as an approximation of W itself it is no better.

    Values that become zero are dropped. Where nothing stands above the edge the rank is 0, and `dense` all zeros.

    With `scales` the noise of D1 W D2 has standard deviation sigma (an equalised fit says so); its values are shrunk
    and the factors un-scaled. The loss is then that of D1 (S - W') D2.

    Args:
        W: rows x cols, any float type.
        sigma: standard deviation of a noise entry, in the unit of W (of D1 W D2 with `scales`), > 0.
        loss: "frobenius", "operator" or "nuclear", the norm of S - W' that is to be small.
        scales: row and column scales from `reading.equalize`.

    Example:
        >>> W = torch.diag(torch.tensor([8.0, 1.0, 0.5, 0.1]))
        >>> found = shrink(W, sigma=1.0)
        >>> found.rank, round(float(found.s[0]), 3)
        (1, 6.928)

    References:
        M. Gavish and D. Donoho, IEEE Trans. Inform. Theory 63 (2017) 2137, eq. (7), (9) and (10).
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma!r}; it is a standard deviation")
    # The law is that of the rows and columns that hold anything, as in a spectrum; the others change no value.
    p, n = sorted(without_zero_lines(W)[0].shape)
    found = svd(W if scales is None else scales.apply(W))
    unit = sigma * math.sqrt(n)
    values = unit * torch.from_numpy(optimal(found.s.cpu().numpy() / unit, p / n, loss)).to(found.s.device)
    kept = found.truncate(int((values > 0).sum()))
    kept = replace(kept, s=values[: kept.rank])
    return kept if scales is None else kept.rescale(scales.rows, scales.cols)


def sparsify_vectors(
    W: Tensor | Factors, edge: float, rho: float, *, scale: float = 1.125e-5, floor: float = 1 / 750, power: float = 30
) -> Factors:
    """Return the factors of W with the small entries of its singular vectors at zero, its singular values untouched.

        T_i = theta max(floor, (1 - s_i / edge)_+ ** power),   theta = scale rho rows cols

    Entries of u_i and v_i with a magnitude of at most T_i become zero, and W' = U' diag(s) V'^T; the vectors are no
    longer orthonormal or of length one. A spike, s_i >= edge, meets the floor alone. So does nearly all of the bulk:
    the power of 30 leaves something of the rise only for s_i below about a tenth of the edge. As theta grows with the
    number of entries and not with the length of a vector, it does much to large matrices and next to nothing to small
    ones; `sparsify_bulk_vectors` has no such dependence.

    Args:
        W: rows x cols, any float type; or all of its factors, which are not changed.
        edge: upper end of the noise in singular-value units, > 0.
        rho: share of the entries that the cycle is to remove, >= 0; 0 changes nothing.
        scale: theta per entry and unit of rho: 750 times 1.5e-8 in the authors' script; the paper says only that the
            threshold depends on the sides of the matrix.
        floor: share of theta that every vector meets; 1/750 in the script and in the authors' later text.
        power: 30 in both.

    Example:
        >>> W = torch.diag(torch.tensor([4.0, 1.0])) + 1e-4 * torch.ones(2, 2)
        >>> sparsify_vectors(W, edge=2.0, rho=0.06, scale=1.0).Vh.abs().round(decimals=6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    References:
        arXiv 2503.01922, eqs. (10) and (11) and section E.5; the constants: that paper's scripts, and arXiv 2606.02608.
    """
    factors = _whole(W, edge)
    if not 0 <= rho < math.inf:
        raise ValueError(f"rho is the share of entries that a cycle removes, >= 0, got {rho!r}")
    theta = scale * rho * factors.U.shape[0] * factors.Vh.shape[1]
    limits = theta * (1 - factors.s / edge).clamp_min(0).pow(power).clamp_min(floor)
    return _thinned(factors, limits, limits)


def sparsify_bulk_vectors(W: Tensor | Factors, edge: float, z: float = 0.1407, cut: float = 0.76) -> Factors:
    """Return the factors of W with the small entries of its bulk vectors at zero, the same share at every size.

    The entries of u_i and v_i with magnitudes of at most z / sqrt(rows) and z / sqrt(cols), where s_i < cut edge. A
    random direction has entries of standard deviation 1 / sqrt(length): z = .1407 takes 11.2 % of them, whatever the
    sides. Values from cut edge on keep their vectors.

    Args:
        W: rows x cols, any float type; or all of its factors, which are not changed.
        edge: upper end of the noise in singular-value units, > 0.
        z: threshold in standard deviations of an entry, >= 0.
        cut: share of the edge below which vectors are thinned out, in [0, 1].

    Example:
        >>> W = torch.diag(torch.tensor([4.0, 1.0])) + 1e-4 * torch.ones(2, 2)
        >>> found = sparsify_bulk_vectors(W, edge=2.0)
        >>> (found.Vh != 0).tolist()
        [[True, True], [False, True]]

    References:
        Scripts of arXiv 2606.02608, the authors' later search for an alternative to eq. (11) of arXiv 2503.01922.
    """
    factors = _whole(W, edge)
    if not (0 <= z < math.inf and 0 <= cut <= 1):
        raise ValueError(f"z is a number of standard deviations, >= 0, and cut a share of the edge, got {z!r}, {cut!r}")
    bulk = (factors.s < cut * edge) * z
    return _thinned(factors, bulk / math.sqrt(factors.U.shape[0]), bulk / math.sqrt(factors.Vh.shape[1]))


def _whole(W: Tensor | Factors, edge: float) -> Factors:
    if not 0 < edge < math.inf:
        raise ValueError(f"the edge must be positive and finite, in singular-value units, got {edge!r}")
    # The directions of the smallest values are right to 1e-8 of the largest only, which no threshold here can see.
    return W if isinstance(W, Factors) else leading(W, min(W.shape))


def _thinned(factors: Factors, left: Tensor, right: Tensor) -> Factors:
    """Return the factors without the entries of at most these magnitudes; one threshold a vector, 0 leaves it alone."""
    U = factors.U.masked_fill(factors.U.abs() <= left, 0)
    return replace(factors, U=U, Vh=factors.Vh.masked_fill(factors.Vh.abs() <= right[:, None], 0))


def smallest_to_zero(W: Tensor, zeros: int, scales: Equalised | None = None) -> Tensor:
    """Return W with its `zeros` entries of smallest magnitude at zero; of equal ones the first in row order go first.

    Entries that are zero already count, and are the first to be taken. With `scales` the magnitudes are those of the
    evened-out matrix D1 W D2.

    Example:
        >>> smallest_to_zero(torch.tensor([[3.0, -1.0], [2.0, -4.0]]), 2)
        tensor([[ 3.,  0.],
                [ 0., -4.]])
    """
    out = W.clone().contiguous()
    flat = out.view(-1)
    if zeros:
        size = flat.abs() if scales is None else scales.apply(W).reshape(-1).abs()
        flat[lowest(size, zeros)] = 0
    return out


def lowest(figures: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` smallest of a line of figures; of equal ones the first.

    Example:
        >>> lowest(torch.tensor([2.0, 1.0, 2.0]), 2).tolist()
        [True, True, False]
    """
    if not count:
        return torch.zeros_like(figures, dtype=torch.bool)
    # One order statistic takes a tenth of the time of a sort; numpy's, of the types it has, half of torch's.
    if figures.is_cpu and figures.dtype in (torch.float32, torch.float64):
        level = float(np.partition(figures.detach().numpy(), count - 1)[count - 1])
    else:
        level = torch.kthvalue(figures, count).values
    mask = figures < level
    mask[(figures == level).nonzero()[: count - int(mask.sum()), 0]] = True
    return mask
