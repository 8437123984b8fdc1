"""The only caller of decompositions: singular values, factors, and equalisation of rows and columns.

Dtype, device, tolerance and driver are decided here. Weights of any float type come in, numpy or torch; decompositions
run in float64; a Gram matrix is built from blocks of columns, so no float64 copy of W is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.linalg import svd as dense_svd

from spectrim.spectrum import NoiseFit, Spectrum

Matrix: TypeAlias = "torch.Tensor | NDArray[np.floating]"

BLOCK = 1 << 20  # entries of a float64 block, 8 MiB: long enough for the matrix product, small beside W
STRIPES = 4  # of the Gram matrix; only blocks on and under the diagonal are formed, 5/8 of the work
SWEEPS = 100  # of the equalisation; about five are needed, and more than a hundred only with many structural zeros
ROUNDS = 3  # of taking spikes out and evening the rest; one does nearly all of the work, and the count then stands
PRIOR = 0.01  # share of ordinary noise that steadies the scale of a row which the spikes explain altogether


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
    _check_finite(W)
    if min(W.shape) == 0:
        return np.zeros(0)
    return _values(_gram(W, None, None), W, None, None, notes)


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
    full = W.to(torch.float64)
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

    Sinkhorn's iteration on the squared entries. With an edge estimator, the mean squares of the noise are made even
    instead, those of what the spikes leave over: see `read_equalised`.

    Args:
        W: rows x cols, any float type, numpy or torch.
        tol: largest relative departure of a row or column mean square that is left, > 0.
        edge: estimator that finds the spikes, or None for plain biwhitening.

    Example:
        >>> W = np.array([[1.0, 10.0], [2.0, 20.0]])
        >>> np.round(equalize(W).apply(W).numpy(), 2).tolist()
        [[11.24, 11.24], [11.24, 11.24]]

    References:
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1; R. Sinkhorn and P. Knopp, Pacific J. Math. 21 (1967) 343.
    """
    if edge is not None:
        return read_equalised(W, edge, tol)[1]
    return _Scaling(_tensor(W), tol).record()


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
        return read_equalised(W, notes=notes)[0]
    kept = _trimmed(_tensor(W))[0]
    return Spectrum(_values(_gram(kept, None, None), kept, None, None, notes), *kept.shape)


def read_equalised(
    W: Matrix,
    edge: Callable[[Spectrum], NoiseFit] | None = None,
    tol: float = 1e-3,
    notes: list[str] | None = None,
) -> tuple[Spectrum, Equalised]:
    """Returns the equalised spectrum of W and the scales behind it.

    First the mean squares of W are made even, signal and noise together. Where the edge estimator then finds spikes,
    their share is uneven over the rows and columns, so the noise beside them has become uneven in turn, and uneven
    noise shows false spikes. So the spikes are taken out, the mean squares of the rest (counted by the degrees of
    freedom that are left to each row and column) are made even, and the spectrum of W is read again under those
    scales; this is repeated until the count stands still, at most three times.

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
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1, for the first reading; docs/equalisation.md for the rest.
    """
    scaling = _Scaling(_tensor(W), tol)
    spectrum = scaling.read(notes)
    spikes = _count(edge, spectrum)
    while spikes and scaling.rounds < ROUNDS:
        scaling.even_out_rest(spikes, notes)
        spectrum = scaling.read(notes)
        spikes, before = _count(edge, spectrum), spikes
        if spikes == before:
            break
    return spectrum, scaling.record()


def _count(edge: Callable[[Spectrum], NoiseFit] | None, spectrum: Spectrum) -> int:
    """The spikes to take out: none where the estimator refuses, or where no majority of noise is left to even out."""
    if edge is None:
        return 0
    try:
        spikes = edge(spectrum).spikes
    except ValueError:  # the caller asks the same estimator for its verdict and meets the reason there
        return 0
    return spikes if spikes <= spectrum.p // 2 else 0


class _Scaling:
    """Working state of an equalisation: the matrix without its zero rows and columns, and the scales so far."""

    def __init__(self, W: torch.Tensor, tol: float) -> None:
        self.shape = (W.shape[0], W.shape[1])
        self.W, self.zero_rows, self.zero_cols = _trimmed(W)
        self.tol, self.rounds = tol, 0
        working = torch.float64 if self.W.dtype == torch.float64 else torch.float32
        top = self.W.abs().max().to(working)
        squares = (self.W.to(working) / top).square_()
        total = squares.sum(dtype=torch.float64)
        r, c, self.uneven = _sinkhorn(squares, tol)
        after = r @ (squares @ c.to(working)).double()
        self.energy = float(total) * float(top) ** 2  # squared Frobenius norm of W, which the scales keep
        self.r, self.c = (r * (total / after)).sqrt(), c.sqrt()

    def record(self) -> Equalised:
        scales = []
        for found, dropped, count in zip((self.r, self.c), (self.zero_rows, self.zero_cols), self.shape, strict=True):
            full = np.ones(count)
            full[np.setdiff1d(np.arange(count), dropped)] = found.cpu().numpy()
            scales.append(full)
        return Equalised(*scales, self.zero_rows, self.zero_cols, self.uneven, self.rounds)

    def read(self, notes: list[str] | None) -> Spectrum:
        self.gram = gram = _gram(self.W, self.r, self.c)
        if self.rounds:  # the first scales keep the norm as they come
            gain = self.energy / float(gram.diagonal().sum())
            gram *= gain
            self.r = self.r * gain**0.5
        return Spectrum(_values(gram, self.W, self.r, self.c, notes), *self.W.shape, equalised=True)

    def even_out_rest(self, spikes: int, notes: list[str] | None) -> None:
        """Finds the scales that even out what is left of W~ when its `spikes` largest values are taken out."""
        turned = self.W.shape[0] > self.W.shape[1]
        W, r, c = (self.W.T, self.c, self.r) if turned else (self.W, self.r, self.c)
        p, n = W.shape
        U = _top_vectors(self.gram, spikes, notes)
        del self.gram  # spent, and at float32 it weighs twice the matrix
        seen = torch.empty(spikes, n, dtype=torch.float64, device=W.device)  # diag(s) Vh of the spikes
        rest = torch.empty(p, n, dtype=torch.float32 if W.dtype != torch.float64 else torch.float64, device=W.device)
        for part in _parts(p, n, BLOCK // 4):
            block = r[:, None] * W[:, part].to(torch.float64) * c[part]
            seen[:, part] = U.T @ block
            rest[:, part] = block.addmm_(U, seen[:, part], alpha=-1).square_().to(rest.dtype)
        # Taking K directions out leaves a row the share free of its noise energy, which must not be read as quiet
        # noise. Where nearly nothing is left nothing can be estimated: a hundredth of ordinary noise is added to both
        # sides of the account, and such a row stays near where it was.
        free_short = 1 - U.square().sum(1) + PRIOR
        free_long = 1 - (seen.square() / seen.square().sum(1, keepdim=True)).sum(0) + PRIOR
        rest += PRIOR * rest.sum(dtype=torch.float64) / ((p - spikes) * (n - spikes))
        a, b, self.uneven = _sinkhorn(rest, self.tol)
        r, c = r * (a * free_short).sqrt(), c * (b * free_long).sqrt()
        self.r, self.c = (c, r) if turned else (r, c)
        self.rounds += 1


def _tensor(W: Matrix) -> torch.Tensor:
    # Nothing here writes to W, but torch takes no read-only array without a warning.
    W = W.detach() if isinstance(W, torch.Tensor) else torch.from_numpy(np.require(W, requirements="W"))
    if W.ndim != 2:
        raise ValueError(f"a weight matrix has two dimensions, got shape {tuple(W.shape)}")
    if not W.is_floating_point():
        raise ValueError(f"a weight matrix holds real floating-point numbers, got {W.dtype}")
    return W.cpu() if W.device.type == "mps" else W  # which has no float64


def _trimmed(W: torch.Tensor) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """W without its zero rows and columns, and their indices; no copy where there are none."""
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


def _sinkhorn(squares: torch.Tensor, tol: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Factors r, c of rows and columns of `squares` after which all their means are one, within tol."""
    if squares.shape[0] > squares.shape[1]:  # start from the same side for a matrix and its transpose
        c, r, uneven = _sinkhorn(squares.T, tol)
        return r, c, uneven
    rows, cols = squares.shape
    # A row whose entries lie 1e-15 below the largest one, where float32 squares fade out, counts as that quiet.
    floor = 1e-30
    c = torch.ones(cols, dtype=torch.float64, device=squares.device)
    for _ in range(SWEEPS):
        r = cols / (squares @ c.to(squares.dtype)).double().clamp_min(floor)
        means = (r.to(squares.dtype) @ squares).double() * c / rows  # of columns; the rows are even now
        uneven = float((means - 1).abs().max())
        if uneven <= 0.5 * tol:  # half: the float32 products take their share
            break
        c = c / means.clamp_min(floor)
    return r, c, uneven


def _parts(p: int, n: int, entries: int = BLOCK) -> list[slice]:
    width = max(1, entries // p)
    return [slice(start, start + width) for start in range(0, n, width)]


def _gram(W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
    """X X^T for X = diag(r) W diag(c), its short side first; float64; of the upper triangle only stripes are filled."""
    if W.shape[0] > W.shape[1]:
        W, r, c = W.T, c, r
    p, n = W.shape
    gram = torch.zeros(p, p, dtype=torch.float64, device=W.device)
    cuts = [p * i // STRIPES for i in range(STRIPES + 1)] if p >= 256 else [0, p]
    for part in _parts(p, n):
        block = W[:, part].to(torch.float64)
        if c is not None:
            block = block * c[part]
        for low, high in pairwise(cuts):
            gram[low:high, :high].addmm_(block[low:high], block[:high].T)
    if r is not None:
        gram *= r[:, None]
        gram *= r
    return gram


def _values(
    gram: torch.Tensor, W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None, notes: list[str] | None
) -> NDArray[np.float64]:
    attempts = [("eigvalsh", lambda: torch.linalg.eigvalsh(gram))]
    if gram.is_cuda:
        attempts.append(("eigvalsh on the CPU", lambda: torch.linalg.eigvalsh(gram.cpu())))
    attempts.append(("LAPACK gesvd", lambda: _gesvd(_scaled(W, r, c))[1].flip(0).square()))
    return _first(attempts, notes).flip(0).clamp_min(0).sqrt().cpu().numpy()


def _top_vectors(gram: torch.Tensor, k: int, notes: list[str] | None) -> torch.Tensor:
    """Eigenvectors of the k largest eigenvalues, p x k; only the lower triangle of `gram` is read, and it is spent."""
    p = gram.shape[0]

    def subset(driver: str, last: bool) -> torch.Tensor:
        # The transpose is in LAPACK's order, so nothing is copied; its upper triangle is our lower one.
        found = eigh(
            gram.cpu().numpy().T,
            lower=False,
            subset_by_index=[p - k, p - 1],
            driver=driver,
            overwrite_a=last,
            check_finite=False,
        )
        return torch.from_numpy(found[1]).to(gram.device)

    spare = p <= 2048  # a second try needs the matrix; above, a copy of it would be the peak of the memory
    attempts = [("eigh (evr)", lambda: subset("evr", not spare))]
    if spare:
        attempts.append(("eigh (evx)", lambda: subset("evx", True)))
    if gram.is_cuda:
        attempts.insert(0, ("eigh", lambda: torch.linalg.eigh(gram)[1][:, p - k :]))
    return _first(attempts, notes)


def _scaled(W: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None) -> torch.Tensor:
    X = W.to(torch.float64)
    X = X if r is None else X * r[:, None]
    return X if c is None else X * c


def _gesvd(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # QR iteration: slower than divide and conquer, and without its rare failures to converge.
    U, s, Vh = dense_svd(X.cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
    return torch.from_numpy(U), torch.from_numpy(s), torch.from_numpy(Vh)


def _first(attempts: list[tuple[str, Callable[[], Any]]], notes: list[str] | None) -> Any:
    """The first result that comes without LinAlgError; each failure is a line in `notes`."""
    for (name, attempt), (following, _) in pairwise([*attempts, ("", None)]):
        try:
            return attempt()
        except (torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
            if not following:
                raise
            if notes is not None:
                notes.append(f"{name} failed ({str(error).splitlines()[0][:120]}); used {following} instead")
    raise AssertionError("there is always one attempt")
