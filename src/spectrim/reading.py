"""The spectrum of a weight matrix, as it is or with its row and column scales evened out.

Equalisation is biwhitening: D1 W D2 with even row and column mean squares. Why the scales are found from what the
spikes leave over, and what evening does to the law of noise, stands in docs/equalisation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from . import lanczos
from .drivers import eigenvalues, eigenvalues_of_many, eigenvectors, with_room
from .linalg import Matrix, as_tensor, block_on, column_blocks, directly, gram_of, roots, without_zero_lines
from .spectrum import NoiseFit, Spectrum

Edge: TypeAlias = Callable[[Spectrum], NoiseFit]
# Steps to a spectrum: they yield Gram matrices, each with what does without it, and are sent the eigenvalues.
Asked: TypeAlias = tuple[torch.Tensor, Callable[[], torch.Tensor]]
Steps: TypeAlias = Generator[Asked, torch.Tensor, Any]
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


def equalize(W: Matrix, tol: float = 1e-3, edge: Edge | None = None) -> Equalised:
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


def read_spectrum(
    W: Matrix,
    equalize: bool = False,
    notes: list[str] | None = None,
    *,
    approximate: bool = False,
    edge: Edge | None = None,
) -> Spectrum:
    """Returns the spectrum of W without its zero rows and columns, plain or after biwhitening.

    Args:
        W: rows x cols, any float type, numpy or torch.
        equalize: whether to even out the row and column mean squares first.
        notes: a list that takes a line for every fallback to another driver or device, and for every approximation.
        approximate: whether a matrix of at least `lanczos.FROM` rows and columns may be read from products with it:
            its spikes one by one, its bulk as a density (see `lanczos`). Smaller ones are read exactly.
        edge: the estimator whose spikes an approximation has to find; `Bema()` unless told otherwise.

    Example:
        >>> read_spectrum(np.eye(12)[:, :11])
        Spectrum(11 x 11, 11 values, largest 1)

    References:
        The unit rule of `spectrum`.
    """

    def work(W: torch.Tensor) -> Spectrum:
        return _alone(_plain(W, edge, notes, approximate), notes)

    if equalize:
        return read_equalised(W, notes=notes, approximate=approximate)[0]
    return with_room(work, as_tensor(W), notes)


def read_equalised(
    W: Matrix,
    edge: Edge | None = None,
    tol: float = 1e-3,
    notes: list[str] | None = None,
    *,
    approximate: bool = False,
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
        notes: a list that takes a line for every fallback to another driver or device, and for every approximation.
        approximate: whether a huge matrix may be read from products with it; see `read_spectrum`.

    Example:
        >>> spectrum, even = read_equalised(np.eye(12))
        >>> spectrum.equalised, even.zero_rows.size
        (True, 0)

    References:
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1, for the first reading; docs/equalisation.md for the rest.
    """

    def work(W: torch.Tensor) -> tuple[Spectrum, Equalised]:
        return _alone(_even(W, edge, tol, notes, approximate), notes)

    return with_room(work, as_tensor(W), notes)


def read_many(
    Ws: Sequence[Matrix],
    edge: Edge | None = None,
    equalize: bool = True,
    tol: float = 1e-3,
    notes: Sequence[list[str] | None] | None = None,
) -> list[tuple[Spectrum, Equalised | None] | Exception]:
    """Returns what `read_equalised`, or `read_spectrum` and None, returns for each matrix, or why it has no spectrum.

    On a GPU the Gram matrices of one size are decomposed in one call, round by round, which is what makes small ones
    fast there; on the CPU this is a loop.

    Args:
        Ws: matrices, any float type, numpy or torch; all of them and their Gram matrices are in memory at once.
        edge: estimator that finds the spikes, or None for plain biwhitening.
        equalize: False for the plain spectra.
        tol: largest relative departure of a row or column mean square that is left, > 0.
        notes: one list a matrix, which takes a line for every fallback to another driver or device.

    Example:
        >>> [found] = read_many([np.eye(12)])
        >>> found[0].equalised
        True

    References:
        As `read_equalised`.
    """
    lines = [None] * len(Ws) if notes is None else list(notes)
    running: dict[int, Steps] = {}
    answers: dict[int, torch.Tensor | None] = {}
    done: dict[int, tuple[Spectrum, Equalised | None] | Exception] = {}
    for i, W in enumerate(Ws):
        running[i] = _even(W, edge, tol, lines[i]) if equalize else _plain(W, edge, lines[i])
        answers[i] = None
    while running:
        asked: dict[tuple, list[tuple[int, Asked]]] = {}
        for i, steps in list(running.items()):
            try:
                wanted = steps.send(answers.pop(i))
                asked.setdefault((wanted[0].shape, wanted[0].device), []).append((i, wanted))
                continue
            except StopIteration as end:
                done[i] = end.value if equalize else (end.value, None)
            except (ValueError, RuntimeError) as error:
                done[i] = error
            del running[i]
        for group in asked.values():
            places, wanted = zip(*group, strict=True)
            grams, others = zip(*wanted, strict=True)
            for i, found in zip(places, eigenvalues_of_many(grams, [lines[i] for i in places], others), strict=True):
                if isinstance(found, Exception):
                    done[i] = found
                    del running[i]
                else:
                    answers[i] = found
    return [done[i] for i in range(len(Ws))]


def _alone(steps: Steps, notes: list[str] | None) -> Any:
    """What the steps return in the end, their Gram matrices decomposed one by one."""
    values = None
    while True:
        try:
            gram, rescue = steps.send(values)
        except StopIteration as end:
            return end.value
        values = eigenvalues(gram, notes, rescue)


def _plain(W: Matrix, edge: Edge | None, notes: list[str] | None, approximate: bool = False) -> Steps:
    """Steps to a plain spectrum."""
    kept = without_zero_lines(as_tensor(W))[0]
    found = _approximated(kept, edge, None, None, 2.0, notes) if approximate else None
    if found is not None:
        return found.spectrum
    values = yield gram_of(kept, None, None), directly(kept, None, None)
    return Spectrum(roots(values), *kept.shape)


def _even(W: Matrix, edge: Edge | None, tol: float, notes: list[str] | None, approximate: bool = False) -> Steps:
    """Steps to an equalised spectrum and its scales."""
    scaling = _Scaling(as_tensor(W), tol, edge, approximate)
    spectrum = yield from scaling.read(notes)
    spikes = _count(edge, spectrum)
    while spikes and scaling.rounds < ROUNDS and scaling.uneven <= 2 * tol:
        scaling.even_out_rest(spikes, notes)
        spectrum = yield from scaling.read(notes)
        spikes, before = _count(edge, spectrum), spikes
        if spikes == before:
            break
    return spectrum, scaling.record()


def _count(edge: Edge | None, spectrum: Spectrum) -> int:
    """The spikes to take out: none where the estimator refuses, or where no majority of noise is left to even out."""
    if edge is None:
        return 0
    try:
        spikes = edge(spectrum).spikes
    except ValueError:  # the caller asks the same estimator for its verdict and meets the reason there
        return 0
    return spikes if spikes <= spectrum.p // 2 else 0


def _approximated(
    W: torch.Tensor,
    edge: Edge | None,
    r: torch.Tensor | None,
    c: torch.Tensor | None,
    spread: float,
    notes: list[str] | None,
) -> lanczos.Approximation | None:
    """The approximation, with what it is worth in the notes; None, and why, where the exact spectrum is the way."""
    lines: list[str] = []
    found = None
    if min(W.shape) < lanczos.FROM:
        lines.append(f"read exactly: under {lanczos.FROM} rows an approximation saves no time")
    else:
        found = lanczos.approximate(W, edge, r, c, spread=spread, notes=lines)
        if found is None:
            lines[-1] += "; read exactly"
        else:
            known = f"{found.spectrum.measured} values measured, the others from their density"
            lines.append(f"approximate: {known}; sigma is known to {found.error:.1g} of it")
    if notes is not None:
        notes[:] = [line for line in notes if line.split(":")[0] not in ("approximate", "read exactly")]
        notes += [line for line in lines if line not in notes]
    return found


class _Scaling:
    """Working state of an equalisation: the matrix without its zero rows and columns, and the scales so far."""

    def __init__(self, W: torch.Tensor, tol: float, edge: Edge | None = None, approximate: bool = False) -> None:
        self.shape = (W.shape[0], W.shape[1])
        self.W, self.zero_rows, self.zero_cols = without_zero_lines(W)
        self.tol, self.rounds, self.edge, self.approximate = tol, 0, edge, approximate
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

    def read(self, notes: list[str] | None) -> Steps:
        self.found = None
        if self.approximate:
            self.found = _approximated(self.W, self.edge, self.r, self.c, self.spread, notes)
            self.approximate = self.found is not None  # once refused, refused for good
        if self.found is not None:
            found = self.found.spectrum
            gain = self.energy / float((found.s**2).sum()) if self.rounds else 1.0
            self.r = self.r * gain**0.5
            return replace(found, s=found.s * gain**0.5)
        self.gram = gram = gram_of(self.W, self.r, self.c)
        if self.rounds:  # the first scales keep the norm as they come
            gain = self.energy / float(gram.diagonal().sum())
            gram *= gain
            self.r = self.r * gain**0.5
        values = yield gram, directly(self.W, self.r, self.c)
        return Spectrum(roots(values), *self.W.shape, equalised=True, spread=self.spread)

    def even_out_rest(self, spikes: int, notes: list[str] | None) -> None:
        """Finds the scales that even out what is left of W~ when its `spikes` largest values are taken out."""
        turned = self.W.shape[0] > self.W.shape[1]
        W, r, c = (self.W.T, self.c, self.r) if turned else (self.W, self.r, self.c)
        p, n = W.shape
        if self.found is not None:
            U = self.found.vectors[:, :spikes]  # whose spikes are all measured
        else:
            U = eigenvectors(self.gram, spikes, notes)
            del self.gram  # spent, and at float32 it weighs twice the matrix
        seen = torch.empty(spikes, n, dtype=torch.float64, device=W.device)  # diag(s) Vh of the spikes
        rest = torch.empty(p, n, dtype=torch.float32 if W.dtype != torch.float64 else torch.float64, device=W.device)
        unit = (self.energy / (p * n)) ** 0.5  # the squares of huge or tiny entries must fit into float32
        for part in column_blocks(p, n, block_on(W) // 4):
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
    for part in column_blocks(rows, cols, block_on(squares)):
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
