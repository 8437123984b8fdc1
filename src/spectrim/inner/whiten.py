"""Low rank in the inner product of a layer's inputs, alone and beside sparse entries."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from spectrim.linalg import Factors, Matrix, as_tensor, cholesky, svd
from spectrim.steps import truncate

from .alternate import alternate
from .damage import Metric, Second, metric
from .obs import DAMPING, obs

SILENT = 1e-10  # of the largest whitened value: a direction under it was not seen, and its share of W is rounding


def low_rank(
    W: Matrix,
    C: Second = None,
    rank: int = 1,
    *,
    damping: float = 0.0,
    spikes: int = 0,
    rows: Tensor | None = None,
    notes: list[str] | None = None,
) -> Factors:
    """Return the factors of the matrix of that rank whose outputs are nearest to those of W.

        W L = U diag(s) V^T,   C = L L^T,   W' = U_k U_k^T W,   tr((W - W') C (W - W')^T) = sum of s_i^2 over i > k

    Truncated SVD after whitening; no inverse of L is needed, so C may be singular. `Vh` is (U^T W) / s, whose rows are
    not orthonormal; `s` are the whitened values, so that the tail can be read off `whitened_values`.

    With `spikes`, that many leading singular directions of W itself are kept whole first, and the rest of the rank goes
    to what remains, by the same rule. This can only cost more in the given C; it is for a C that is not trusted.

    Args:
        W: rows x cols, any float type.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        rank: values kept, 1 to min(rows, cols).
        damping: share of the mean square of an input that is added to all of them, >= 0.
        spikes: plain singular directions kept first, 0 to rank.
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.
        notes: a list that takes a line for every fallback.

    Example:
        >>> W = torch.diag(torch.tensor([3.0, 2.0]))
        >>> low_rank(W, torch.tensor([1.0, 9.0]), 1).dense().round(decimals=6).tolist()
        [[0.0, 0.0], [0.0, 2.0]]

    References:
        X. Wang et al., arXiv 2403.07378 (SVD-LLM), section 3.2.
    """
    W = as_tensor(W)
    if not 1 <= rank <= min(W.shape):
        raise ValueError(f"a {W.shape[0]} x {W.shape[1]} matrix has a rank of 1 to {min(W.shape)} to keep, got {rank}")
    if not 0 <= spikes <= rank:
        raise ValueError(f"spikes are kept within the rank: 0 to {rank}, got {spikes}")
    m = metric(W, C, rows).damped(damping, notes)
    if m.classical:
        return truncate(W, rank)  # whose first directions are the spikes
    if not spikes:
        return _whitened(W.to(torch.float64), m, notes).truncate(rank)
    first = truncate(W, spikes)
    if spikes == rank:
        return first
    rest = _whitened(W.to(torch.float64) - first.dense(), m, notes).truncate(rank - spikes)
    return Factors(torch.cat([first.U, rest.U], 1), torch.cat([first.s, rest.s]), torch.cat([first.Vh, rest.Vh]))


def whitened_values(
    W: Matrix, C: Second = None, *, damping: float = 0.0, rows: Tensor | None = None, notes: list[str] | None = None
) -> Tensor:
    """Return the singular values of W L, C = L L^T, descending, float64: what each further rank takes off the damage.

    Args:
        W, C, damping, rows, notes: as for `low_rank`.

    Example:
        >>> whitened_values(torch.diag(torch.tensor([3.0, 2.0])), torch.tensor([1.0, 9.0])).tolist()
        [6.0, 3.0]
    """
    W = as_tensor(W)
    return svd(_times_root(W.to(torch.float64), metric(W, C, rows).damped(damping, notes), notes)).s


def low_rank_plus_sparse(
    W: Matrix,
    C: Second = None,
    stored: int = 0,
    *,
    share: float = 0.1,
    rounds: int = 3,
    sparse: Literal["alternate", "obs"] = "alternate",
    damping: float = DAMPING,
    rows: Tensor | None = None,
    notes: list[str] | None = None,
) -> tuple[Factors, Tensor]:
    """Return (factors, sparse matrix) whose sum is near W and which together store `stored` numbers at most.

    The factors store rank (rows + cols) numbers, the sparse matrix its entries; where these stand is not counted. In
    each round the factors are `low_rank` of what the sparse matrix leaves over, and that is fitted to what they leave.

    Args:
        W: rows x cols, any float type.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        stored: numbers, 0 to rows cols.
        share: of them for the factors, in [0, 1]; rounded down to a rank.
        rounds: >= 1; 1 is low rank first, then the rest.
        sparse: "alternate" or "obs", the step that fits the sparse matrix.
        damping: share of the mean square of an input that is added to all of them, >= 0.
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.
        notes: a list that takes a line for every fallback.

    Example:
        >>> W = torch.arange(30.0).view(5, 6).cos()
        >>> factors, spare = low_rank_plus_sparse(W, stored=20, share=0.6)
        >>> factors.rank, int((spare != 0).sum())
        (1, 9)

    References:
        T. Zhou and D. Tao, ICML 2011 (GoDec), for the alternation in C = I.
    """
    W = as_tensor(W)
    if isinstance(stored, bool) or not isinstance(stored, int) or not 0 <= stored <= W.numel():
        raise ValueError(f"stored is a count of numbers, 0 to {W.numel()}, got {stored!r}")
    if not 0 <= share <= 1 or rounds < 1:
        raise ValueError(f"share lies in [0, 1] and rounds >= 1, got {share!r} and {rounds!r}")
    if sparse not in ("alternate", "obs"):
        raise ValueError(f"sparse is 'alternate' or 'obs', not {sparse!r}")
    m = metric(W, C, rows).damped(damping, notes)
    X = W.to(torch.float64)
    rank = min(int(share * stored) // sum(W.shape), min(W.shape))
    zeros = W.numel() - (stored - rank * sum(W.shape))
    fit = alternate if sparse == "alternate" else obs
    spare, factors = torch.zeros_like(X), Factors(X[:, :0], X.new_zeros(0), X[:0])
    for _ in range(rounds if rank and zeros < W.numel() else 1):
        if rank:
            factors = low_rank(X - spare, m.second, rank, rows=m.rows, notes=notes)
        spare = fit(X - factors.dense(), m.second, zeros, damping=0, rows=m.rows, notes=notes)
    return factors, spare.to(W.dtype)


def _times_root(X: Tensor, m: Metric, notes: list[str] | None) -> Tensor:
    X = X if m.rows is None else X * m.rows.sqrt()[:, None]
    if m.second is None:
        return X
    return X @ cholesky(m.second, notes) if m.dense else X * m.second.sqrt()


def _whitened(X: Tensor, m: Metric, notes: list[str] | None) -> Factors:
    found = svd(_times_root(X, m, notes))
    row = None if m.rows is None else m.rows.sqrt()[:, None]
    seen = (found.s > SILENT * found.s[:1]).to(X.dtype)
    right = (found.U.T @ (X if row is None else X * row)) * (seen / found.s.clamp_min(1e-300))[:, None]
    return Factors(found.U if row is None else found.U / row, found.s, right)
