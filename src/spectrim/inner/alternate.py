"""A better mask than one pass can find: the entries that stay are chosen together, not one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectrim.linalg import Matrix, as_tensor, cholesky, inverse_diagonal
from spectrim.steps import smallest_to_zero

from .damage import Metric, Second, metric
from .obs import DAMPING, STEPS, Scope, check_zeros, refit, sizes, smallest

LEVELS = (0.1, 0.3, 1.0)
ROUNDS = 5


def alternate(
    W: Matrix,
    C: Second = None,
    zeros: int = 0,
    *,
    scope: Scope = "layer",
    damping: float = DAMPING,
    levels: tuple[float, ...] = LEVELS,
    rounds: int = ROUNDS,
    steps: int | None = STEPS,
    rows: Tensor | None = None,
    notes: list[str] | None = None,
) -> Tensor:
    """Return W with `zeros` entries at zero, mask and values sought together by alternating directions (ADMM).

        X <- argmin damage(W, X) + rho ||X - (Z - Y)||^2,   Z <- X + Y without its smallest entries,   Y <- Y + X - Z

    in columns scaled so that the diagonal of C^-1 is 1, where the size of an entry is the root of what its removal
    costs; then least squares on the mask that is reached. A single pass decides each column before the later ones;
    here a decision can be taken back. At 50 and 60 % zeros the damage is half that of SparseGPT's pass on layers of
    MiniLM-L6 and a third on ViT-S/14; on other samples than those of C, .6 and .4; least squares on the mask of the
    pass gets to .7 and .5. The problem is not convex: this is no optimum, and no bound holds for a single matrix.

    Where C is not that of the user's inputs (noise run through the model), damping=.1 was better than .01.

    The mask is sought in float32: products with an inverse, one a round. Without C, with a diagonal one, or with a
    multiple of the identity, this is `obs`, hence `steps.smallest_to_zero`, bit for bit.

    Args:
        W: rows x cols, any float type.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        zeros: entries at zero, 0 to rows cols, those included that are zero already.
        scope: where the total is exact: "layer", "row", or "block" of 128 columns.
        damping: share of the mean square of an input that is added to all of them, >= 0.
        levels: values of rho in turn, > 0, in mean diagonals of the scaled C.
        rounds: at each level.
        steps: of conjugate gradients at the end, see `refit`; None solves exactly.
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.
        notes: a list that takes a line for every fallback.

    Example:
        >>> W, C = torch.tensor([[2.0, 1.0]]), torch.tensor([[4.0, 2.0], [2.0, 2.0]])
        >>> alternate(W, C, 1, damping=0)
        tensor([[2.5000, 0.0000]])

    References:
        X. Meng et al., arXiv 2406.07831, for alternating directions with C, and V. Boza, arXiv 2401.02938, for a given
        number of zeros; the scale by the diagonal of C^-1 instead of C and the few levels are ours.
    """
    W = as_tensor(W)
    check_zeros(W, zeros)
    m = metric(W, C, rows).damped(damping, notes)
    if not m.dense:
        if m.classical and scope == "layer":
            return smallest_to_zero(W, zeros)
        return W.masked_fill(smallest(W.abs() if m.classical else sizes(W, m, "wanda"), zeros, scope), 0)
    mask, start = sought(W, m, lambda size: smallest(size, zeros, scope), levels, rounds, notes)
    return refit(W, mask, m.second, damping=0, start=start, steps=steps, notes=notes)


def sought(
    W: Tensor,
    m: Metric,
    select: Callable[[Tensor], Tensor],
    levels: tuple[float, ...] = LEVELS,
    rounds: int = ROUNDS,
    notes: list[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (mask, values to begin a refit from, float64) that alternating directions reach.

    Args:
        W: rows x cols.
        m: a metric with a dense C, damped.
        select: sizes, rows x cols -> mask of the entries that go.
        levels, rounds, notes: as for `alternate`.
    """
    if not levels or min(levels) <= 0 or rounds < 1:
        raise ValueError(f"levels are numbers > 0 and rounds >= 1, got {levels!r} and {rounds!r}")
    column = inverse_diagonal(m.second, notes).rsqrt()
    row = 1.0 if m.rows is None else m.rows.sqrt()[:, None]
    even = m.second / column
    even /= column[:, None]
    unit = even.diagonal().mean()
    X = W.to(torch.float64) * column * row
    top = X.abs().max().clamp_min(torch.finfo(X.dtype).tiny)  # float32 must hold the figures
    X /= top
    aim, Z = (X @ even).div_(unit).float(), X.float()
    C = even.div_(unit).float()
    del even, X  # in float64 the largest
    Y, before = torch.zeros_like(Z), 0.0
    for rho in levels:
        inverse = None  # that of the level before
        lifted = C.clone()
        lifted.diagonal().add_(rho)
        inverse = torch.cholesky_inverse(cholesky(lifted, notes))
        del lifted
        Y *= before / rho
        before = rho
        for _ in range(rounds):
            X = torch.addmm(Y, aim + rho * (Z - Y), inverse)  # with the multiplier added
            mask = select(X.abs())
            Z = X.masked_fill(mask, 0)
            Y = X - Z
    return mask, Z.to(torch.float64) * top / column / row
