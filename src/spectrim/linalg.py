"""Singular values, factors, and the steps between them; the drivers behind them stand in `drivers`.

Weights of any float type come in, numpy or torch; decompositions run in float64; a Gram matrix is built from blocks of
columns, so no float64 copy of W is ever made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from .drivers import accelerated, eigenvalues, eigenvectors, gesvd, small, thin_svd

Matrix: TypeAlias = "torch.Tensor | NDArray[np.floating]"
T, R = TypeVar("T"), TypeVar("R")

BLOCK = 1 << 20  # entries of a float64 block, 8 MiB: long enough for the matrix product, small beside W
STRIPES = 4  # of the Gram matrix; only blocks on and under the diagonal are formed, 5/8 of the work


@dataclass(frozen=True, eq=False)
class Factors:
    """The singular value decomposition W = U diag(s) Vh, or what is left of it.

    Args:
        U: rows x k, float64.
        s: k values, descending, float64.
        Vh: k x cols, float64.

    Example:
        >>> found = svd(torch.diag(torch.tensor([3.0, 2.0])))
        >>> found.truncate(1).dense().tolist()
        [[3.0, 0.0], [0.0, 0.0]]

    References:
        Optimality of the truncation: C. Eckart and G. Young, Psychometrika 1 (1936) 211.
    """

    U: torch.Tensor
    s: torch.Tensor
    Vh: torch.Tensor

    @property
    def rank(self) -> int:
        """The number k of values held, a count."""
        return self.s.numel()

    def dense(self) -> torch.Tensor:
        """Returns the matrix U diag(s) Vh, rows x cols, float64."""
        return (self.U * self.s) @ self.Vh

    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (left, right), rows x k and k x cols, with left @ right the matrix and sqrt(s) in each."""
        root = self.s.sqrt()
        return self.U * root, root[:, None] * self.Vh

    def truncate(self, k: int) -> Factors:
        """Returns the factors of the k largest values."""
        if not 0 <= k <= self.rank:
            raise ValueError(f"these factors hold {self.rank} values, so k must lie in 0..{self.rank}, got {k}")
        return Factors(self.U[:, :k], self.s[:k], self.Vh[:k])

    def select(self, positions: Sequence[int]) -> Factors:
        """Returns the factors of the values at these positions, 0 the largest."""
        at = torch.as_tensor(sorted(positions), device=self.U.device)
        return Factors(self.U[:, at], self.s[at], self.Vh[at])

    def rescale(self, rows: Matrix, cols: Matrix) -> Factors:
        """Returns factors of ``matrix / (rows x cols)``; their columns are no longer orthonormal.

        Args:
            rows: the factors that the rows were multiplied by, one a row, > 0.
            cols: the same for the columns.
        """
        r = torch.as_tensor(np.array(rows), dtype=self.U.dtype, device=self.U.device)
        c = torch.as_tensor(np.array(cols), dtype=self.U.dtype, device=self.U.device)
        return replace(self, U=self.U / r[:, None], Vh=self.Vh / c)


def singular_values(W: Matrix, notes: list[str] | None = None) -> NDArray[np.float64]:
    """Returns the singular values of W, descending, float64.

    They are square roots of the eigenvalues of the float64 Gram matrix of the short side. That keeps every value above
    3e-8 of the largest; smaller ones carry noise of that size.

    Args:
        W: rows x cols, any float type, numpy or torch, any device.
        notes: a list that takes a line for every fallback to another driver or device.

    Example:
        >>> singular_values(np.diag([1.0, 3.0])).tolist()
        [3.0, 1.0]

    References:
        G. Golub and C. Van Loan, Matrix Computations, 4th ed., section 8.6.
    """
    W = as_tensor(W)
    _check_finite(W)
    if min(W.shape) == 0:
        return np.zeros(0)
    return roots(eigenvalues(gram_of(W, None, None), notes, directly(W, None, None)))


def svd(W: Matrix, notes: list[str] | None = None) -> Factors:
    """Returns the thin singular value decomposition of W, float64, on the device of W.

    Args:
        W: rows x cols, any float type, numpy or torch.
        notes: a list that takes a line for every fallback to another driver or device.

    Example:
        >>> found = svd(np.array([[0.0, 2.0], [1.0, 0.0]]))
        >>> found.s.tolist()
        [2.0, 1.0]

    References:
        G. Golub and C. Van Loan, Matrix Computations, 4th ed., section 8.6.
    """
    W = as_tensor(W)
    _check_finite(W)
    return Factors(*thin_svd(W.to(torch.float64), notes))


def leading(W: Matrix, k: int, notes: list[str] | None = None) -> Factors:
    """Returns the factors of the k largest singular values of W, from the Gram matrix of its short side.

        G = W W^T = U diag(s**2) U^T,   diag(s) Vh = U^T W

    Takes a fraction of the time of `svd`. A Gram matrix squares what is lost to rounding: relative to the largest
    singular value the smallest ones are right to 1e-8, where `svd` is to 1e-16. The product is as near to W as k values
    allow, to 1e-8; beyond the numerical rank the vectors of one side are no longer orthonormal.

    Args:
        W: rows x cols, any float type, numpy or torch.
        k: number of values, 1 to min(rows, cols).
        notes: a list that takes a line for every fallback to another driver or device.

    Example:
        >>> leading(np.diag([3.0, 2.0, 1.0]), 1).dense().tolist()
        [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]

    References:
        G. Golub and C. Van Loan, Matrix Computations, 4th ed., section 8.6.
    """
    W = as_tensor(W)
    _check_finite(W)
    if not 1 <= k <= min(W.shape):
        raise ValueError(f"a {W.shape[0]} x {W.shape[1]} matrix has 1 to {min(W.shape)} values to give, not {k}")
    turned = W.shape[0] > W.shape[1]
    short = W.T if turned else W
    U = eigenvectors(gram_of(W, None, None), k, notes).flip(1)
    rest = U.T @ short.to(torch.float64)
    s = rest.norm(dim=1)
    order = torch.argsort(s, descending=True, stable=True)
    U, s, rest = U[:, order], s[order], rest[order]
    Vh = rest / s.clamp_min(torch.finfo(s.dtype).tiny)[:, None]
    return Factors(Vh.T, s, U.T) if turned else Factors(U, s, Vh)


def cholesky(C: torch.Tensor, notes: list[str] | None = None) -> torch.Tensor:
    """Returns L, lower triangular, with C = L L^T, in the dtype of C, of which the lower triangle counts.

    A second moment of few positions is singular, and rounding may tip it over. Where it does, the least of 1e-12,
    1e-10, ..., 1e-4 of the mean of the diagonal that suffices is added to the diagonal, and `notes` takes a line.

    Args:
        C: n x n, symmetric, positive definite or nearly so, float32 or float64.
        notes: a list that takes a line for every addition.

    Example:
        >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 2.0]])).tolist()
        [[2.0, 0.0], [1.0, 1.0]]

    References:
        G. Golub and C. Van Loan, Matrix Computations, 4th ed., section 4.2.
    """
    level = float(C.diagonal().mean())
    for share in (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4):
        L, failed = torch.linalg.cholesky_ex(C + share * level * torch.eye(len(C)).to(C) if share else C)
        if not int(failed):
            if share and notes is not None:
                notes.append(f"a singular second moment: {share:g} of its mean diagonal was added to the diagonal")
            return L
    raise ValueError(
        "this matrix is no second moment: it has negative eigenvalues beyond rounding (1e-4 of its mean diagonal)"
    )


def inverse_diagonal(C: torch.Tensor, notes: list[str] | None = None) -> torch.Tensor:
    """Returns the diagonal of C^-1, (n,): what an entry alone costs where all others make up for it is its inverse.

    Example:
        >>> inverse_diagonal(torch.tensor([[4.0, 2.0], [2.0, 2.0]])).tolist()
        [0.5, 1.0]
    """
    return torch.cholesky_inverse(cholesky(C, notes)).diagonal()


def inverse_root(C: torch.Tensor, notes: list[str] | None = None) -> torch.Tensor:
    """Returns U, upper triangular, with U^T U = C^-1: rows j.. of it are those of the trailing block of C from j on.

    Example:
        >>> U = inverse_root(torch.diag(torch.tensor([4.0, 16.0])))
        >>> U.tolist()
        [[0.5, 0.0], [0.0, 0.25]]
    """
    # C = R R^T with R upper, by Cholesky from the last row up; the inverse of C is never formed.
    R = cholesky(C.flip(0, 1), notes).flip(0, 1)
    unit = torch.eye(len(C), dtype=C.dtype, device=C.device).T  # columns are lines of memory: solved in place
    return torch.linalg.solve_triangular(R, unit, upper=True, out=unit)


def as_tensor(W: Matrix) -> torch.Tensor:
    """Returns W as a torch tensor of two dimensions; a copy only where numpy forbids writing."""
    # Nothing here writes to W, but torch takes no read-only array without a warning.
    W = W.detach() if isinstance(W, torch.Tensor) else torch.from_numpy(np.require(W, requirements="W"))
    if W.ndim != 2:
        raise ValueError(f"a weight matrix has two dimensions, got shape {tuple(W.shape)}")
    if not W.is_floating_point():
        raise ValueError(f"a weight matrix holds real floating-point numbers, got {W.dtype}")
    return W.cpu() if W.device.type == "mps" else W  # which has no float64


def without_zero_lines(W: torch.Tensor) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Returns W without its zero rows and columns, and their indices; no copy where there are none."""
    _check_finite(W)
    filled_rows, filled_cols = W.any(dim=1), W.any(dim=0)
    zero_rows = torch.nonzero(~filled_rows).ravel().cpu().numpy()
    zero_cols = torch.nonzero(~filled_cols).ravel().cpu().numpy()
    if zero_rows.size == W.shape[0]:
        raise ValueError(f"this {W.shape[0]} x {W.shape[1]} matrix is all zero")
    if zero_rows.size:
        W = W[filled_rows]
    if zero_cols.size:
        W = W[:, filled_cols]
    return W, zero_rows, zero_cols


def _check_finite(W: torch.Tensor) -> None:
    bad = W.numel() - int(torch.isfinite(W).sum())
    if bad:
        raise ValueError(f"{bad} of {W.numel()} entries are not finite")


def block_on(W: torch.Tensor) -> int:
    """Returns how many entries a block of W may have where it lies: a GPU wants long products, and has the memory."""
    return 32 * BLOCK if accelerated(W) else BLOCK


def column_blocks(p: int, n: int, entries: int = BLOCK) -> list[slice]:
    """Returns slices over n columns, of about `entries` entries each at p rows."""
    width = max(1, entries // p)
    return [slice(start, start + width) for start in range(0, n, width)]


def gram_of(W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
    """Returns X X^T, p x p, float64, for X = diag(r) W diag(c) with its short side first; its lower triangle counts."""
    if W.shape[0] > W.shape[1]:
        W, r, c = W.T, c, r
    p, n = W.shape
    gram = torch.zeros(p, p, dtype=torch.float64, device=W.device)
    by_numpy = small(gram)
    cuts = [0, p] if p < 256 else [p * i // STRIPES for i in range(STRIPES + 1)]
    for part in column_blocks(p, n, max(BLOCK, 4 * p * p) if by_numpy else block_on(W)):
        block = W[:, part].to(torch.float64)
        if c is not None:
            block = block * c[part]
        if by_numpy:
            gram += torch.from_numpy(block.numpy() @ block.numpy().T)  # which numpy does in half the work (syrk)
            continue
        for low, high in pairwise(cuts):
            gram[low:high, :high].addmm_(block[low:high], block[:high].T)
    if r is not None:
        gram *= r[:, None]
        gram *= r
    return gram


def directly(W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None) -> Callable[[], torch.Tensor]:
    """Returns what finds the eigenvalues of `gram_of` with the same arguments, ascending, without a Gram matrix."""

    def squares() -> torch.Tensor:
        X = W.to(torch.float64)
        X = X if r is None else X * r[:, None]
        return gesvd(X if c is None else X * c)[1].flip(0).square()

    return squares


def roots(squares: torch.Tensor) -> NDArray[np.float64]:
    """Returns the singular values behind the ascending eigenvalues of a Gram matrix, descending."""
    return squares.flip(0).clamp_min(0).sqrt().numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Holds the numerical libraries to one thread each: for several workers, each with a matrix of its own.

    A decomposition of a few hundred rows gains little from a second thread, and the pools of torch, numpy and scipy
    wait for one another in busy loops. Torch's setting is per process; it is put back at the end.
    """
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def shared_out(items: Iterable[T], begin: Callable[[T], Callable[[], R]], workers: int) -> Iterator[tuple[T, R]]:
    """Yields each item with its result, in order, with so many of them worked on at a time, one thread each.

    `begin` is called here, by one thread, and returns what a worker does; never more than a few items are begun.
    """
    waiting: deque[tuple[T, Future]] = deque()
    with ExitStack() as held:
        held.enter_context(one_thread())
        pool = held.enter_context(ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)))
        held.callback(lambda: pool.shutdown(wait=True, cancel_futures=True))
        for item in items:
            waiting.append((item, pool.submit(begin(item))))
            if len(waiting) > workers:
                first, done = waiting.popleft()
                yield first, done.result()
        for item, done in waiting:
            yield item, done.result()
