"""Which entries go to zero, and what the others become, in the inner product of a layer's inputs.

Removing an entry costs what the others of its row cannot make up for. `wanda` lets nothing be made up for; `obs` goes
through the columns once and lets the later ones make up for each; `refit` gives the best values for a mask. A better
mask than one pass can find is in `alternate.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from spectrim.linalg import Matrix, as_tensor, cholesky, inverse_diagonal, inverse_root
from spectrim.steps import lowest, smallest_to_zero

from .damage import Metric, Second, metric

Scope = Literal["layer", "row", "block"]
Order = Literal["quiet first", "loud first", "given"]
Select = Callable[[int, Tensor], Tensor]  # (first column, sizes of a block) -> mask of the block
BLOCK = 128
DAMPING = 0.01
STEPS = 5  # of conjugate gradients: from where alternating directions end, within 1 % of the least damage


def scores(
    W: Matrix,
    C: Second = None,
    kind: Literal["wanda", "obs"] = "obs",
    *,
    damping: float = DAMPING,
    rows: Tensor | None = None,
) -> Tensor:
    """Return what the removal of each entry alone would cost, rows x cols, float64, >= 0.

        wanda: w_ij^2 C_jj          nothing makes up for it
        obs:   w_ij^2 / [C^-1]_jj   the other entries of its row do, as well as they can

    Times the weight of the row, where rows have weights. Without C both are the squares of the entries.

    Args:
        W: rows x cols, any float type.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        kind: "wanda" or "obs".
        damping: share of the mean square of an input that is added to all of them, >= 0; for "obs" alone.
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.

    Example:
        >>> W, C = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.8], [0.8, 4.0]])
        >>> scores(W, C, "wanda").tolist(), scores(W, C, damping=0).round(decimals=2).tolist()
        ([[4.0, 4.0]], [[3.36, 3.36]])

    References:
        M. Sun et al., arXiv 2306.11695, eq. (1), whose score is the root of "wanda"; B. Hassibi and D. Stork,
        NIPS 5 (1992) 164, eq. (5), for "obs".
    """
    if kind not in ("wanda", "obs"):
        raise ValueError(f"kind is 'wanda' or 'obs', not {kind!r}")
    W = as_tensor(W)
    return sizes(W, metric(W, C, rows).damped(damping if kind == "obs" else 0.0), kind).square()


def sizes(W: Tensor, m: Metric, kind: str, notes: list[str] | None = None) -> Tensor:
    """Return the roots of the scores in that metric: |w| times a factor of its column and of its row, float64."""
    column = inverse_diagonal(m.second, notes).rsqrt() if kind == "obs" and m.dense else m.diagonal(W).sqrt()
    found = W.abs().to(torch.float64) * column
    return found if m.rows is None else found * m.rows.sqrt()[:, None]


def smallest(size: Tensor, zeros: int, scope: Scope = "layer", block: int = BLOCK) -> Tensor:
    """Return the mask of exactly `zeros` smallest entries, True where one goes; of equal ones the first go first.

    Args:
        size: rows x cols, >= 0.
        zeros: entries that go, 0 to rows cols.
        scope: "layer", of all together; "row", the same number in every row, and if that is no whole number one more in
            those rows where the next one is smallest; "block", the same share of every block of so many columns.
        block: columns of a block, for that scope.

    Example:
        >>> smallest(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2, "row").tolist()
        [[True, False], [True, False]]
    """
    rows, cols = size.shape
    if isinstance(zeros, bool) or not isinstance(zeros, int) or not 0 <= zeros <= size.numel():
        raise ValueError(f"zeros is a number of entries, 0 to {size.numel()} of {rows} x {cols}, got {zeros!r}")
    if scope == "layer":
        return lowest(size.reshape(-1), zeros).view(rows, cols)
    if scope == "block":
        parts = [lowest(part.reshape(-1), count).view(part.shape) for part, count in _blocks(size, zeros, block)]
        return torch.cat(parts, 1)
    if scope != "row":
        raise ValueError(f"scope is 'layer', 'row' or 'block', not {scope!r}")
    each, more = divmod(zeros, rows)
    rank = ranks(size)
    if more:
        following = size.gather(1, (rank == each).to(torch.uint8).argmax(1, keepdim=True))[:, 0]
        return rank < (each + lowest(following, more).long())[:, None]
    return rank < each


def wanda(
    W: Matrix,
    C: Second = None,
    zeros: int = 0,
    scope: Scope = "row",
    *,
    rows: Tensor | None = None,
    notes: list[str] | None = None,
) -> Tensor:
    """Return W with `zeros` entries at zero, those with the smallest |w_ij| sqrt(C_jj); the others stay as they are.

    Args:
        W: rows x cols, any float type.
        C: second moment of the inputs, or its diagonal, (cols,); a `Moment`; or None for the identity.
        zeros: entries at zero, those included that are zero already, which go first.
        scope: "row", as published; "layer"; "block" of 128 columns.
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.
        notes: a list that takes a line where C says nothing.

    Example:
        >>> wanda(torch.tensor([[2.0, 1.0]]), torch.tensor([1.0, 9.0]), 1)
        tensor([[0., 1.]])

    References:
        M. Sun et al., arXiv 2306.11695, eq. (1).
    """
    W = as_tensor(W)
    m = metric(W, C, rows).damped(0.0, notes)
    if m.classical and scope == "layer":
        check_zeros(W, zeros)
        return smallest_to_zero(W, zeros)
    return W.masked_fill(smallest(W.abs() if m.classical else sizes(W, m, "wanda"), zeros, scope), 0)


def obs(
    W: Matrix,
    C: Second = None,
    zeros: int | None = None,
    *,
    mask: Tensor | None = None,
    scope: Scope = "layer",
    order: Order = "quiet first",
    damping: float = DAMPING,
    block: int = BLOCK,
    rows: Tensor | None = None,
    notes: list[str] | None = None,
) -> Tensor:
    """Return W with `zeros` entries at zero, where the columns that follow make up for each as well as they can.

        C^-1 = U^T U,   e_ij = w_ij / U_jj if it goes,   w_ik <- w_ik - e_ij U_jk  for k >= j

    column by column: the optimal brain surgeon, with the entries of earlier columns held. The damage in the damped C is
    the sum of e_ij^2. A block of columns chooses by e_ij^2, as it stands when the block begins.

    How many go in each block is given by its share (scope "block": the published form), or found by a first pass of
    that form, whose e_ij^2 of all blocks are ranked together (scopes "layer" and "row"). Quiet columns first costs less
    than any other order then: what they leave, loud ones can make up for.

    Without C, or with a multiple of the identity, this is `steps.smallest_to_zero`; with a diagonal C, `wanda`.

    Args:
        W: rows x cols, any float type; worked on in float64.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        zeros: entries at zero, 0 to rows cols; or give a `mask`.
        mask: rows x cols, True where an entry goes: only the values of the others are found then.
        scope: where the total is exact: "layer", "row", or "block".
        order: "quiet first", columns by ascending C_jj; "loud first", descending ("activation order"); "given".
        damping: share of the mean square of an input that is added to all of them, >= 0.
        block: columns whose entries are chosen at a time.
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.
        notes: a list that takes a line for every fallback.

    Example:
        >>> W, C = torch.tensor([[2.0, 1.0]]), torch.tensor([[4.0, 2.0], [2.0, 2.0]])
        >>> obs(W, C, mask=torch.tensor([[True, False]]), order="given", damping=0)
        tensor([[0., 3.]])

    References:
        E. Frantar and D. Alistarh, arXiv 2301.00774, Algorithm 1 (scope "block", order "given", damping .01);
        B. Hassibi and D. Stork, NIPS 5 (1992) 164.
    """
    W = as_tensor(W)
    if (zeros is None) is (mask is None):
        raise ValueError("say how many entries go, zeros=..., or which, mask=...: one of the two")
    if mask is not None:
        _check_mask(W, mask)
    else:
        check_zeros(W, zeros)
    if scope not in ("layer", "row", "block"):
        raise ValueError(f"scope is 'layer', 'row' or 'block', not {scope!r}")
    if order not in ("quiet first", "loud first", "given"):
        raise ValueError(f"order is 'quiet first', 'loud first' or 'given', not {order!r}")
    if block < 1:
        raise ValueError(f"block is a number of columns, >= 1, got {block!r}")
    m = metric(W, C, rows).damped(damping, notes)
    if not m.dense:
        if mask is not None:
            return W.masked_fill(mask, 0)
        if m.classical and scope == "layer":
            return smallest_to_zero(W, zeros)
        size = W.abs() if m.classical else sizes(W, m, "wanda")
        return W.masked_fill(smallest(size, zeros, scope, block), 0)
    at = columns(m, order)
    X, U = W.to(torch.float64)[:, at], inverse_root(m.second[at][:, at], notes)
    weight = None if m.rows is None else m.rows.sqrt()[:, None]
    if mask is not None:
        done = surgeon(X, U, lambda first, size: mask[:, at[first : first + size.shape[1]]], block, weight)[0]
    else:
        counts = [count for _, count in _blocks(X, zeros, block)]
        done, _, size = surgeon(X, U, lambda first, s: _of(s, counts[first // block]), block, weight)
        if scope != "block":
            chosen = smallest(size, zeros, scope)
            per = [part.sum(1) if scope == "row" else int(part.sum()) for part in chosen.split(block, 1)]
            done = surgeon(X, U, lambda first, s: _of(s, per[first // block]), block, weight)[0]
    out = torch.empty_like(W, memory_format=torch.contiguous_format)
    out[:, at] = done.to(W.dtype)
    return out


def columns(m: Metric, order: Order) -> Tensor:
    """Return the order in which the columns are gone through, as indices."""
    level = m.second.diagonal()
    if order == "given":
        return torch.arange(len(level), device=level.device)
    return torch.argsort(level, descending=order == "loud first", stable=True)


def surgeon(
    X: Tensor, U: Tensor, select: Select, block: int = BLOCK, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (new matrix, mask, sizes as they stood at each block's turn) of one pass over the columns.

    Args:
        X: rows x cols, float64, columns in the order of the pass.
        U: upper triangular with U^T U = C^-1, in that order.
        select: first column of a block and the sizes of its entries -> the mask of the block.
        block: columns of a block.
        weight: a factor of each row's sizes, rows x 1.
    """
    X, mask = X.clone(), torch.zeros(X.shape, dtype=torch.bool, device=X.device)
    size = torch.empty_like(X)
    diagonal = U.diagonal()
    for first in range(0, X.shape[1], block):
        at = slice(first, first + block)
        size[:, at] = X[:, at].abs() / diagonal[at]
        if weight is not None:
            size[:, at] *= weight
        mask[:, at] = select(first, size[:, at])
        part, inner = X[:, at].T.contiguous(), U[at, at]  # a column is a line of memory
        gone, error = mask[:, at].T, torch.zeros_like(part)
        for i in range(len(part)):
            error[i] = torch.where(gone[i], part[i] / inner[i, i], 0)
            part[i + 1 :].addr_(inner[i, i + 1 :], error[i], alpha=-1)
        X[:, at] = part.masked_fill(gone, 0).T
        X[:, first + block :].addmm_(error.T, U[at, first + block :], alpha=-1)
    return X, mask, size


def refit(
    W: Matrix,
    mask: Tensor,
    C: Second = None,
    *,
    damping: float = DAMPING,
    start: Tensor | None = None,
    steps: int | None = None,
    notes: list[str] | None = None,
) -> Tensor:
    """Return the matrix nearest to W in the metric that is zero on the mask: least squares, row by row.

        w'_S = w C_{.S} C_SS^-1   on the kept entries S of a row

    The weights of rows change nothing here. Without C the others stay as they are.

    Args:
        W: rows x cols, any float type; worked on in float64.
        mask: rows x cols, True where an entry is zero.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        damping: share of the mean square of an input that is added to all of them, >= 0.
        start: where conjugate gradients begin, W on the kept entries where None.
        steps: of conjugate gradients on all rows at once, each worth one product with C; None solves exactly, by one
            Cholesky decomposition a row.
        notes: a list that takes a line for every fallback.

    Example:
        >>> W, C = torch.tensor([[2.0, 1.0]]), torch.tensor([[4.0, 2.0], [2.0, 2.0]])
        >>> refit(W, torch.tensor([[True, False]]), C, damping=0)
        tensor([[0., 3.]])

    References:
        M. Hestenes and E. Stiefel, J. Res. NBS 49 (1952) 409, for the steps, preconditioned by the diagonal.
    """
    W = as_tensor(W)
    _check_mask(W, mask)
    m = metric(W, C).damped(damping, notes)
    if not m.dense:
        return W.masked_fill(mask, 0)
    X = W.to(torch.float64)
    if steps is not None:
        begin = X if start is None else start.to(X)
        return _gradients(X, begin.masked_fill(mask, 0), ~mask, m.second, steps).to(W.dtype)
    out, aims = torch.zeros_like(X), m.times(X)
    for row, aim, kept in zip(out, aims, ~mask, strict=True):
        S = kept.nonzero()[:, 0]
        if len(S):
            row[S] = torch.cholesky_solve(aim[S, None], cholesky(m.second[S][:, S], notes))[:, 0]
    return out.to(W.dtype)


def _gradients(X: Tensor, found: Tensor, kept: Tensor, C: Tensor, steps: int) -> Tensor:
    tiny = torch.finfo(X.dtype).tiny
    scale = C.diagonal().clamp_min(tiny)
    residual = ((X - found) @ C) * kept
    direction = even = residual / scale
    level = (residual * even).sum(1, keepdim=True)
    for _ in range(steps):
        curved = (direction @ C) * kept
        step = level / (direction * curved).sum(1, keepdim=True).clamp_min(tiny)
        found = found + step * direction
        residual = residual - step * curved
        even = residual / scale
        before, level = level, (residual * even).sum(1, keepdim=True)
        direction = even + level / before.clamp_min(tiny) * direction
    return found


def ranks(size: Tensor) -> Tensor:
    """Return the place of each entry in the ascending order of its row; of equal ones the first is lower."""
    order = torch.argsort(size, dim=1, stable=True)
    places = torch.arange(size.shape[1], device=size.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _of(size: Tensor, count: int | Tensor) -> Tensor:
    """The mask of the smallest entries of a block: so many of all, or so many of each row."""
    if isinstance(count, Tensor):
        return ranks(size) < count[:, None]
    return lowest(size.reshape(-1), count).view(size.shape)


def _blocks(size: Tensor, zeros: int, block: int) -> list[tuple[Tensor, int]]:
    """The blocks of columns, each with its share of the zeros, rounded so that the total is exact."""
    cols, found, given = size.shape[1], [], 0
    for first in range(0, cols, block):
        reached = (zeros * min(cols, first + block) + cols // 2) // cols
        found.append((size[:, first : first + block], reached - given))
        given = reached
    return found


def check_zeros(W: Tensor, zeros: int) -> None:
    """Return nothing; ValueError where `zeros` is no number of entries of W."""
    if isinstance(zeros, bool) or not isinstance(zeros, int) or not 0 <= zeros <= W.numel():
        raise ValueError(f"zeros is a number of entries, 0 to {W.numel()} of {tuple(W.shape)}, got {zeros!r}")


def _check_mask(W: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.shape != W.shape:
        raise ValueError(
            f"a mask is of bool, True where an entry goes, and {tuple(W.shape)} as the matrix, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
