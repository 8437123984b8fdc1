"""The spectrum of a weight matrix, as it is or with its row and column scales evened out.

Equalisation is biwhitening: D1 W D2 with even row and column mean squares. Why the scales are found from what the
spikes leave over, and what evening does to the law of noise, stands in docs/equalisation.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .linalg import BLOCK, Matrix, as_tensor, column_blocks, gram_of, top_vectors, values_of, without_zero_lines
from .spectrum import NoiseFit, Spectrum

SWEEPS = 100  # of the equalisation; about five are needed, and more than a hundred only with many structural zeros
ROUNDS = 3  # of taking spikes out and evening the rest; one does nearly all of the work, and the count then stands
PATIENCE = 10  # sweeps without progress before an equalisation is given up
PRIOR = 0.01  # share of ordinary noise that steadies the scale of a row which the spikes explain altogether


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
        W = as_tensor(W)
        r = torch.as_tensor(self.rows, device=W.device)
        c = torch.as_tensor(self.cols, device=W.device)
        return r[:, None] * W.to(torch.float64) * c


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
    return _Scaling(as_tensor(W), tol).record()


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
    kept = without_zero_lines(as_tensor(W))[0]
    return Spectrum(values_of(gram_of(kept, None, None), kept, None, None, notes), *kept.shape)


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
    scaling = _Scaling(as_tensor(W), tol)
    spectrum = scaling.read(notes)
    spikes = _count(edge, spectrum)
    while spikes and scaling.rounds < ROUNDS and scaling.uneven <= 2 * tol:
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
        self.W, self.zero_rows, self.zero_cols = without_zero_lines(W)
        self.tol, self.rounds = tol, 0
        working = torch.float64 if self.W.dtype == torch.float64 else torch.float32
        top = self.W.abs().max().to(working)
        squares = (self.W.to(working) / top).square_()
        total = squares.sum(dtype=torch.float64)
        r, c, self.uneven = _sinkhorn(squares, tol)
        after = r @ (squares @ c.to(working)).double()
        self.energy = float(total) * float(top) ** 2  # squared Frobenius norm of W, which the scales keep
        self.r, self.c = (r * (total / after)).sqrt(), c.sqrt()
        self.spread = min(2.0, max(0.0, _kurtosis(squares, r, c) - 1))

    def record(self) -> Equalised:
        scales = []
        for found, dropped, count in zip((self.r, self.c), (self.zero_rows, self.zero_cols), self.shape, strict=True):
            full = np.ones(count)
            full[np.setdiff1d(np.arange(count), dropped)] = found.cpu().numpy()
            scales.append(full)
        return Equalised(*scales, self.zero_rows, self.zero_cols, self.uneven, self.rounds)

    def read(self, notes: list[str] | None) -> Spectrum:
        self.gram = gram = gram_of(self.W, self.r, self.c)
        if self.rounds:  # the first scales keep the norm as they come
            gain = self.energy / float(gram.diagonal().sum())
            gram *= gain
            self.r = self.r * gain**0.5
        return Spectrum(
            values_of(gram, self.W, self.r, self.c, notes), *self.W.shape, equalised=True, spread=self.spread
        )

    def even_out_rest(self, spikes: int, notes: list[str] | None) -> None:
        """Finds the scales that even out what is left of W~ when its `spikes` largest values are taken out."""
        turned = self.W.shape[0] > self.W.shape[1]
        W, r, c = (self.W.T, self.c, self.r) if turned else (self.W, self.r, self.c)
        p, n = W.shape
        U = top_vectors(self.gram, spikes, notes)
        del self.gram  # spent, and at float32 it weighs twice the matrix
        seen = torch.empty(spikes, n, dtype=torch.float64, device=W.device)  # diag(s) Vh of the spikes
        rest = torch.empty(p, n, dtype=torch.float32 if W.dtype != torch.float64 else torch.float64, device=W.device)
        unit = (self.energy / (p * n)) ** 0.5  # the squares of huge or tiny entries must fit into float32
        for part in column_blocks(p, n, BLOCK // 4):
            block = (r / unit)[:, None] * W[:, part].to(torch.float64) * c[part]
            seen[:, part] = U.T @ block
            rest[:, part] = block.addmm_(U, seen[:, part], alpha=-1).square_().to(rest.dtype)
        # Taking K directions out leaves a row the share free of its noise energy, which must not be read as quiet
        # noise. Where nearly nothing is left nothing can be estimated: a hundredth of ordinary noise is added to both
        # sides of the account, and such a row stays near where it was.
        free_short = 1 - U.square().sum(1) + PRIOR
        free_long = 1 - (seen.square() / seen.square().sum(1, keepdim=True)).sum(0) + PRIOR
        rest += PRIOR * rest.sum(dtype=torch.float64) / ((p - spikes) * (n - spikes))
        a, b, _ = _sinkhorn(rest, self.tol)  # `uneven` stays that of W itself
        r, c = r * (a * free_short).sqrt(), c * (b * free_long).sqrt()
        self.r, self.c = (c, r) if turned else (r, c)
        self.rounds += 1


def _kurtosis(squares: torch.Tensor, r: torch.Tensor, c: torch.Tensor) -> float:
    """Returns the fourth moment of the evened entries: 3 for Gaussian noise, whose own evening is accounted for."""
    rows, cols = squares.shape
    second = fourth = 0.0
    for part in column_blocks(rows, cols):
        even = r[:, None] * squares[:, part].double() * c[part]
        second += float(even.sum())
        fourth += float(even.square().sum())
    return rows * cols * fourth / second**2 * (1 + 2 / rows) * (1 + 2 / cols)


def _sinkhorn(squares: torch.Tensor, tol: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Factors r, c of rows and columns of `squares` after which all their means are one, within tol."""
    if squares.shape[0] > squares.shape[1]:  # start from the same side for a matrix and its transpose
        c, r, uneven = _sinkhorn(squares.T, tol)
        return r, c, uneven
    rows, cols = squares.shape
    # A row whose entries lie 1e-15 below the largest one, where float32 squares fade out, counts as that quiet.
    floor = 1e-30
    c = torch.ones(cols, dtype=torch.float64, device=squares.device)
    best, age = (torch.ones(rows, dtype=torch.float64, device=squares.device), c, float("inf")), 0
    for _ in range(SWEEPS):
        r = cols / (squares @ c.to(squares.dtype)).double().clamp_min(floor)
        means = (r.to(squares.dtype) @ squares).double() * c / rows  # of columns; the rows are even now
        uneven = float((means - 1).abs().max())
        best, age = ((r, c, uneven), 0) if uneven < best[2] else (best, age + 1)
        # Half: the float32 products take their share. Blocks of zeros can make it impossible, and the scales run away.
        if uneven <= 0.5 * tol or age == PATIENCE:
            break
        c = c / means.clamp_min(floor)
    return best
