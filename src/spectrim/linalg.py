"""The only caller of decompositions: singular values, factors, and equalisation of rows and columns.

Dtype, device, tolerance and driver are decided here. Weights of any float type come in, numpy or torch; decompositions
run in float64; a Gram matrix is built from blocks of columns, so no float64 copy of W is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectrim.spectrum import NoiseFit, Spectrum

Matrix: TypeAlias = "torch.Tensor | NDArray[np.floating]"

BLOCK = 1 << 21  # entries of a float64 block, 16 MiB: long enough for the matrix product, small beside W
STRIPES = 4  # of the Gram matrix; only blocks on and under the diagonal are formed, 5/8 of the work
SWEEPS = 500  # of the equalisation; matrices without structural zeros need about five


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

    def rescale(self, rows: Matrix, cols: Matrix) -> Factors:
        """Returns factors of ``matrix / (rows x cols)``; their columns are no longer orthonormal.

        Args:
            rows: the factors that the rows were multiplied by, one a row, > 0.
            cols: the same for the columns.
        """
        r = torch.as_tensor(np.array(rows), dtype=self.U.dtype, device=self.U.device)
        c = torch.as_tensor(np.array(cols), dtype=self.U.dtype, device=self.U.device)
        return replace(self, U=self.U / r[:, None], Vh=self.Vh / c)


@dataclass(frozen=True, eq=False)
class Equalised:
    """Scales that make the mean squares of rows and columns even: W~ = rows[:, None] * W * cols.

    Args:
        rows: one factor a row, > 0, float64; 1 on zero rows.
        cols: one factor a column, > 0, float64; 1 on zero columns.
        zero_rows: indices of rows that are zero altogether; they are not measured.
        zero_cols: the same for columns.
        uneven: largest relative departure of a row or column mean square from their common value.
        rounds: how often the scales were found anew from what spikes leave over; 0 for plain biwhitening.

    Example:
        >>> W = torch.outer(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0]))
        >>> (even := equalize(W)).apply(W).abs().std().item() < 1e-3
        True

    References:
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1.
    """

    rows: NDArray[np.float64]
    cols: NDArray[np.float64]
    zero_rows: NDArray[np.int64]
    zero_cols: NDArray[np.int64]
    uneven: float = 0.0
    rounds: int = 0

    def apply(self, W: Matrix) -> torch.Tensor:
        """Returns W~ = rows[:, None] * W * cols, float64, all rows and columns kept."""
        W = _tensor(W)
        r = torch.as_tensor(self.rows, device=W.device)
        c = torch.as_tensor(self.cols, device=W.device)
        return r[:, None] * W.to(torch.float64) * c


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
    W = _tensor(W)
    if min(W.shape) == 0:
        return np.zeros(0)
    return _values(W, None, None, notes)


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
    W = _tensor(W)
    _check_finite(W)
    full = W.to(torch.float64) if W.device.type != "mps" else W.cpu().to(torch.float64)
    attempts: list[tuple[str, Callable[[], tuple[torch.Tensor, ...]]]] = [
        ("svd", lambda: torch.linalg.svd(full, full_matrices=False)),
    ]
    if full.is_cuda:
        attempts.append(("svd (gesvd)", lambda: torch.linalg.svd(full, full_matrices=False, driver="gesvd")))
        attempts.append(("svd on the CPU", lambda: torch.linalg.svd(full.cpu(), full_matrices=False)))
    attempts.append(("LAPACK gesvd", lambda: _gesvd(full)))
    U, s, Vh = (part.to(full.device) for part in _first(attempts, notes))
    return Factors(U, s, Vh)


def equalize(W: Matrix, tol: float = 1e-3, edge: Callable[[Spectrum], NoiseFit] | None = None) -> Equalised:
    """Returns the scales that even out the row and column mean squares of W and keep its Frobenius norm.

    Sinkhorn's iteration on the squared entries. With an edge estimator, the mean squares of what the spikes leave over
    are made even instead, those of the noise: see `read_equalised`.

    Args:
        W: rows x cols, any float type, numpy or torch.
        tol: largest relative departure of a row or column mean square that is left, > 0.
        edge: estimator that finds the spikes, or None for plain biwhitening.

    Example:
        >>> even = equalize(np.array([[1.0, 10.0], [2.0, 20.0]]))
        >>> np.round(np.mean(np.square(even.apply([[1.0, 10.0], [2.0, 20.0]]).numpy()), axis=0), 2).tolist()
        [126.25, 126.25]

    References:
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1; R. Sinkhorn and P. Knopp, Pacific J. Math. 21 (1967) 343.
    """
    if edge is not None:
        return read_equalised(W, edge, tol)[1]
    return _biwhiten(*_trimmed(_tensor(W)), tol)


def read_spectrum(W: Matrix, equalize: bool = False, notes: list[str] | None = None) -> Spectrum:
    """Returns the spectrum of W without its zero rows and columns, plain or after biwhitening.

    Args:
        W: rows x cols, any float type, numpy or torch.
        equalize: whether to even out the row and column mean squares first.
        notes: a list that takes a line for every fallback to another driver or device.

    Example:
        >>> read_spectrum(np.eye(12)[:, :11])
        Spectrum(11 x 11, 11 values, largest 1)

    References:
        The unit rule of `spectrum`.
    """
    if equalize:
        return read_equalised(W, None, notes=notes)[0]
    kept, *_ = _trimmed(_tensor(W))
    return Spectrum(_values(kept, None, None, notes), *kept.shape)


def read_equalised(
    W: Matrix,
    edge: Callable[[Spectrum], NoiseFit] | None = None,
    tol: float = 1e-3,
    notes: list[str] | None = None,
) -> tuple[Spectrum, Equalised]:
    """Returns the equalised spectrum of W and the scales behind it.

    Args:
        W: rows x cols, any float type, numpy or torch.
        edge: estimator that finds the spikes, or None for plain biwhitening.
        tol: largest relative departure of a row or column mean square that is left, > 0.
        notes: a list that takes a line for every fallback to another driver or device.

    Example:
        >>> spectrum, even = read_equalised(np.eye(12))
        >>> spectrum.equalised, even.zero_rows.size
        (True, 0)

    References:
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1.
    """
    kept, zero_rows, zero_cols, shape = _trimmed(_tensor(W))
    even = _biwhiten(kept, zero_rows, zero_cols, shape, tol)
    r, c = _on(even.rows, zero_rows, kept.device), _on(even.cols, zero_cols, kept.device)
    return Spectrum(_values(kept, r, c, notes), *kept.shape, equalised=True), even


def _tensor(W: Matrix) -> torch.Tensor:
    W = W.detach() if isinstance(W, torch.Tensor) else torch.as_tensor(np.asarray(W))
    if W.ndim != 2:
        raise ValueError(f"a weight matrix has two dimensions, got shape {tuple(W.shape)}")
    if not W.is_floating_point():
        raise ValueError(f"a weight matrix holds real floating-point numbers, got {W.dtype}")
    return W


def _trimmed(W: torch.Tensor) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64], tuple[int, int]]:
    """W without its zero rows and columns, their indices, and the shape before; no copy where there are none."""
    _check_finite(W)
    filled_rows, filled_cols = W.any(dim=1), W.any(dim=0)
    zero_rows = torch.nonzero(~filled_rows).ravel().cpu().numpy()
    zero_cols = torch.nonzero(~filled_cols).ravel().cpu().numpy()
    shape = (W.shape[0], W.shape[1])
    if zero_rows.size == shape[0]:
        raise ValueError(f"this {shape[0]} x {shape[1]} matrix is all zero")
    if zero_rows.size:
        W = W[filled_rows]
    if zero_cols.size:
        W = W[:, filled_cols]
    return W, zero_rows, zero_cols, shape


def _check_finite(W: torch.Tensor) -> None:
    bad = W.numel() - int(torch.isfinite(W).sum())
    if bad:
        raise ValueError(f"{bad} of {W.numel()} entries are not finite")


def _on(full: NDArray[np.float64], dropped: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.as_tensor(np.delete(full, dropped), device=device)


def _biwhiten(
    W: torch.Tensor, zero_rows: NDArray[np.int64], zero_cols: NDArray[np.int64], shape: tuple[int, int], tol: float
) -> Equalised:
    top = W.abs().max().to(torch.float32 if W.dtype != torch.float64 else torch.float64)
    squares = (W / top.to(W.dtype) if W.dtype in (torch.float32, torch.float64) else W.to(torch.float32) / top) ** 2
    r, c, uneven = _sinkhorn(squares, tol)
    rows, cols = np.ones(shape[0]), np.ones(shape[1])
    # The scales of W~ are roots of those of its squares; their product is fixed by the norm of W.
    r, c = r.sqrt(), c.sqrt()
    norm = float((squares.sum().double() / (r.square() @ (squares @ c.square().to(squares.dtype)).double())).sqrt())
    rows[np.setdiff1d(np.arange(shape[0]), zero_rows)] = (r * norm).cpu().numpy()
    cols[np.setdiff1d(np.arange(shape[1]), zero_cols)] = c.cpu().numpy()
    return Equalised(rows, cols, zero_rows, zero_cols, uneven)


def _sinkhorn(squares: torch.Tensor, tol: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Factors r, c of rows and columns of `squares` after which all their means are one, within tol."""
    rows, cols = squares.shape
    c = torch.ones(cols, dtype=torch.float64, device=squares.device)
    uneven = float("inf")
    for _ in range(SWEEPS):
        r = cols / (squares @ c.to(squares.dtype)).double()
        means = (r.to(squares.dtype) @ squares).double() * c / rows  # of columns; the rows are even now
        uneven = float((means - 1).abs().max())
        if uneven <= 0.5 * tol:  # half: the float32 products and the last rescaling take their share
            break
        c = c / means
    return r, c, uneven


def _gram(W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
    """Lower triangle (in stripes) of X X^T, float64, where X is diag(r) W diag(c) turned to have the short side first."""
    if W.shape[0] > W.shape[1]:
        W, r, c = W.T, c, r
    p, n = W.shape
    gram = torch.zeros(p, p, dtype=torch.float64, device=W.device)
    cuts = [p * i // STRIPES for i in range(STRIPES + 1)] if p >= 256 else [0, p]
    width = max(1, BLOCK // p)
    for start in range(0, n, width):
        block = W[:, start : start + width].to(torch.float64)
        if c is not None:
            block = block * c[start : start + width]
        for low, high in zip(cuts, cuts[1:], strict=False):
            gram[low:high, :high].addmm_(block[low:high], block[:high].T)
    if r is not None:
        gram *= r[:, None]
        gram *= r
    return gram


def _values(
    W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None, notes: list[str] | None
) -> NDArray[np.float64]:
    if W.device.type == "mps":  # has no float64
        W, r, c = W.cpu(), None if r is None else r.cpu(), None if c is None else c.cpu()
    gram = _gram(W, r, c)
    attempts = [("eigvalsh", lambda: torch.linalg.eigvalsh(gram))]
    if W.is_cuda:
        attempts.append(("eigvalsh on the CPU", lambda: torch.linalg.eigvalsh(gram.cpu())))
    attempts.append(("svdvals", lambda: _svdvals(W, r, c)))
    eigenvalues = _first(attempts, notes)
    return eigenvalues.flip(0).clamp_min(0).sqrt().cpu().numpy()


def _svdvals(W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
    X = W.to(torch.float64)
    X = X if r is None else X * r[:, None]
    X = X if c is None else X * c
    return _gesvd(X)[1].flip(0).square()


def _gesvd(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # QR iteration: slower than divide and conquer, and without its rare failures to converge.
    from scipy.linalg import svd as lapack

    U, s, Vh = lapack(X.cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
    return torch.from_numpy(U), torch.from_numpy(s), torch.from_numpy(Vh)


def _first(attempts: list[tuple[str, Callable[[], object]]], notes: list[str] | None):
    """The first result that comes without LinAlgError; each failure is a line in `notes`."""
    for place, (name, attempt) in enumerate(attempts):
        try:
            return attempt()
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
            if place + 1 == len(attempts):
                raise
            if notes is not None:
                notes.append(f"{name} failed ({str(error).splitlines()[0][:120]}); used {attempts[place + 1][0]}")
    raise AssertionError("there is always one attempt")
