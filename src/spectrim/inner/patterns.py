"""k:n patterns: of every n neighbours in a row at most k stay, which hardware can skip (2:4) or index (8:16)."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.linalg import Matrix, as_tensor, inverse_root

from .alternate import sought
from .damage import Second, metric
from .obs import DAMPING, STEPS, ranks, refit, sizes, surgeon

ROUNDS = 64  # of pairings of groups: a second of one core for 384 x 1536


def pattern_mask(score: Tensor, keep: int, of: int, permutation: Tensor | None = None) -> Tensor:
    """Return the mask with the smallest of every `of` neighbours in a row at True, all but `keep`: they go to zero.

    No other mask of this pattern keeps a larger sum. Of equal scores the first go first.

    Args:
        score: rows x cols; cols a multiple of `of`.
        keep: entries that stay in a group, 0 to `of`.
        of: entries of a group.
        permutation: order of the columns in which neighbours are counted; the mask is in the order of `score`.

    Example:
        >>> pattern_mask(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 2, 4).tolist()
        [[True, False, True, False]]
    """
    rows, cols = score.shape
    _check_pattern(cols, keep, of)
    at = torch.arange(cols, device=score.device) if permutation is None else _permutation(permutation, cols, score)
    found = ranks(score[:, at].reshape(-1, of)) < of - keep
    mask = torch.empty(rows, cols, dtype=torch.bool, device=score.device)
    mask[:, at] = found.view(rows, cols)
    return mask


def pattern(
    W: Matrix,
    C: Second = None,
    keep: int = 2,
    of: int = 4,
    *,
    method: str = "alternate",
    permutation: Tensor | None = None,
    damping: float = DAMPING,
    rows: Tensor | None = None,
    notes: list[str] | None = None,
) -> Tensor:
    """Return W with at most `keep` of every `of` neighbours in a row left, and the others compensated for.

    "obs" goes through the columns, choosing each group by w_ij^2 / U_jj^2 when it comes to it, as SparseGPT does;
    "alternate" seeks the pattern and the values together, as `alternate` does for free zeros; "wanda" changes nothing
    else. Without C, or with a diagonal one, all three are the choice by |w| or |w_ij| sqrt(C_jj), nothing updated.

    Args:
        W: rows x cols, any float type; cols a multiple of `of`.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        keep, of: 2 and 4 for 2:4; 4:8, 8:16, 1:4 and so on.
        method: "alternate", "obs" or "wanda".
        permutation: order of the columns in which neighbours are counted, such as `permute` finds. The matrix comes
            back in its own order: whoever stores it must permute the outputs of the layer before.
        damping: share of the mean square of an input that is added to all of them, >= 0.
        rows: weights of the outputs, (rows,), > 0; they change no choice within a row, only the search as a whole.
        notes: a list that takes a line for every fallback.

    Example:
        >>> pattern(torch.tensor([[1.0, -4.0, 2.0, 3.0]]))
        tensor([[ 0., -4.,  0.,  3.]])

    References:
        A. Mishra et al., arXiv 2104.08378, for 2:4; E. Frantar and D. Alistarh, arXiv 2301.00774, section 3.4.
    """
    W = as_tensor(W)
    _check_pattern(W.shape[1], keep, of)
    if method not in ("alternate", "obs", "wanda"):
        raise ValueError(f"method is 'alternate', 'obs' or 'wanda', not {method!r}")
    m = metric(W, C, rows).damped(damping if method != "wanda" else 0.0, notes)
    if method == "wanda" or not m.dense:
        size = W.abs() if m.classical else sizes(W, m, "wanda")
        return W.masked_fill(pattern_mask(size, keep, of, permutation), 0)
    if method == "alternate":
        mask, start = sought(W, m, lambda size: pattern_mask(size, keep, of, permutation), notes=notes)
        return refit(W, mask, m.second, damping=0, start=start, steps=STEPS, notes=notes)
    at = torch.arange(W.shape[1], device=W.device)
    at = at if permutation is None else _permutation(permutation, W.shape[1], W)
    X, U = W.to(torch.float64)[:, at], inverse_root(m.second[at][:, at], notes)
    # A group must be whole, and is chosen when the pass comes to it: blocks of one group.
    done = surgeon(X, U, lambda first, size: ranks(size) < of - keep, of)[0]
    out = torch.empty_like(W, memory_format=torch.contiguous_format)
    out[:, at] = done.to(W.dtype)
    return out


def permute(score: Tensor, keep: int = 2, of: int = 4, rounds: int = ROUNDS) -> Tensor:
    """Return an order of the columns in which a k:n pattern keeps more of the score than in the given order.

    Where the large entries of a row crowd into one group, some must go though small ones stay elsewhere. Columns start
    where they are; every group meets others in turn, and the exchange of one column each that raises the kept sum
    most is made, if any does. The kept sum never falls; it ends when a full turn finds no exchange, or after `rounds`.

    Args:
        score: rows x cols, >= 0, such as `scores(W, C, "wanda")`; cols a multiple of `of`.
        keep, of: as for `pattern`.
        rounds: pairings of all groups, at most; there are one fewer than groups in a full turn.

    Example:
        >>> crowded = torch.tensor([[3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0]])
        >>> found = permute(crowded)
        >>> float(crowded[~pattern_mask(crowded, 2, 4, found)].sum())
        12.0

    References:
        J. Pool and C. Yu, NeurIPS 2021, "Channel permutations for N:M sparsity", whose search also leaves local optima.
    """
    cols = score.shape[1]
    _check_pattern(cols, keep, of)
    groups = cols // of
    order = torch.arange(cols, device=score.device).view(groups, of)
    if groups < 2 or keep in (0, of):
        return order.reshape(-1)
    score = score.T.contiguous()
    turn, idle = groups - 1 + groups % 2, 0
    for at in range(rounds):
        left, right = _pairs(groups, at % turn, score.device)
        idle = 0 if _exchange(score, order, left, right, keep) else idle + 1
        if idle == turn:
            break
    return order.reshape(-1)


def _pairs(groups: int, turn: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All groups in disjoint pairs, another pairing each turn, so that every two meet once (the circle method)."""
    whole = groups + groups % 2
    circle = [0, *(1 + (i + turn) % (whole - 1) for i in range(whole - 1))]
    pairs = [(a, b) for a, b in zip(circle, reversed(circle), strict=True)][: whole // 2]
    met = [(a, b) for a, b in pairs if max(a, b) < groups]
    return tuple(torch.tensor(side, device=device) for side in zip(*met, strict=True))


def _exchange(score: Tensor, order: Tensor, left: Tensor, right: Tensor, keep: int) -> bool:
    """Make in every pair of groups the exchange that raises the kept sum most; return whether there was one."""
    of = order.shape[1]
    A, B = score[order[left]], score[order[right]]  # pairs x of x rows
    # What a group keeps with one column replaced: the best keep - 1 of the others, and the next or the newcomer.
    (held_a, sure_a, last_a), (held_b, sure_b, last_b) = _others(A, keep), _others(B, keep)
    gains = []
    for i in range(of):
        for j in range(of):
            newcomers = torch.maximum(last_a[:, i], B[:, j]) + torch.maximum(last_b[:, j], A[:, i])
            gains.append(sure_a[:, i] + sure_b[:, j] + newcomers.sum(1) - held_a - held_b)
    before = held_a + held_b
    gain, which = torch.stack(gains, 1).max(1)
    pays = gain > 1e-12 * before
    for pair in pays.nonzero()[:, 0].tolist():
        i, j = divmod(int(which[pair]), of)
        a, b = int(left[pair]), int(right[pair])
        order[a, i], order[b, j] = order[b, j].item(), order[a, i].item()
    return bool(pays.any())


def _others(part: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of groups x columns x rows: what each keeps, and without one column after the other: the sum of the keep - 1
    largest of the rest over the rows, groups x columns, and the next largest in each row."""
    top = part.sort(dim=1, descending=True).values[:, : keep + 1]
    held, least = top[:, :keep].sum(1, keepdim=True), top[:, keep - 1 : keep]
    among = part >= least  # of equal ones it makes no difference which is taken to be there
    sure = torch.where(among, held - part, held - least)
    return held.sum((1, 2)), sure.sum(2), torch.where(among, top[:, keep : keep + 1], least)


def _permutation(permutation: Tensor, cols: int, like: Tensor) -> Tensor:
    at = torch.as_tensor(permutation, device=like.device)
    if at.shape != (cols,) or not torch.equal(at.sort().values, torch.arange(cols, device=like.device)):
        raise ValueError(f"permutation holds the columns 0 to {cols - 1} once each")
    return at


def _check_pattern(cols: int, keep: int, of: int) -> None:
    if not (isinstance(keep, int) and isinstance(of, int) and 0 <= keep <= of and of >= 1):
        raise ValueError(f"a pattern keeps 0 <= keep <= of entries of every `of`, got {keep!r}:{of!r}")
    if cols % of:
        raise ValueError(f"{cols} columns make no whole groups of {of}: leave this matrix out, or pad its inputs")
