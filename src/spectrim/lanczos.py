"""The spectrum of a huge matrix from products with it: its spikes one by one, its bulk as a density.

No Gram matrix is formed and nothing of cubic cost is done. A block of random vectors spans a Krylov space; the largest
values that have converged in it are measured, and how the vectors spread over the others gives their distribution, as a
quadrature. Errors, and when this is worth it: docs/approximate.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from .drivers import eigensystem, orthonormal
from .edges import Bema
from .linalg import Matrix, as_tensor, block_on, column_blocks
from .spectrum import NoiseFit, Spectrum

FROM = 2048  # rows of the short side; below, the exact spectrum takes about as long or less
PROBES = 32  # vectors a block: as many samples of the density, and enough columns for the matrix product
START, GROWTH = 12, 1.4  # steps before the first look at the spectrum, and from one look to the next
LIMIT = 1 / 3  # of p: vectors after which the exact spectrum would have cost about as much
WORTH = 4  # vectors a spike; a basis holds half as many converged values as vectors at best, and then nothing is saved
TOL = 1e-3  # residual of a measured eigenvalue, relative to it: its error is at most that, and mostly the square


@dataclass(frozen=True, eq=False)
class Approximation:
    """A spectrum found from products with its matrix.

    Args:
        spectrum: its `measured` largest values are singular values; the others are quantiles of their density.
        vectors: p x measured, float64, the singular vectors of the short side that belong to the measured ones.
        error: standard error of sigma, relative, that the choice of random vectors has left, >= 0.
        products: vectors that the matrix and its transpose were multiplied with, a count.

    Example:
        >>> W = torch.randn(500, 600, generator=torch.Generator().manual_seed(0)) + 1
        >>> found = approximate(W, limit=1.0)
        >>> found.spectrum.measured > 1, found.error < 0.01
        (True, True)

    References:
        As `approximate`.
    """

    spectrum: Spectrum
    vectors: torch.Tensor
    error: float
    products: int


def approximate(
    W: Matrix,
    edge: Callable[[Spectrum], NoiseFit] | None = None,
    r: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    spread: float = 2.0,
    seed: int = 0,
    limit: float = LIMIT,
    notes: list[str] | None = None,
) -> Approximation | None:
    """Returns the spectrum of X = diag(r) W diag(c) by block Lanczos, or None, and the reason in `notes`.

    A = X X^T on the short side, Q1 a block of b random orthonormal vectors, Q = [Q1 .. Qm] with Q^T Q = I the basis of
    their Krylov space, T = Q^T A Q = Y diag(theta) Y^T. Steps are added until the K largest theta have converged and
    one of them lies under the edge. The density of the others is a quadrature with nodes theta_i and weights

        w_i = (1 + t (theta_i - mean)) sum_j Y_ji**2 / b,   j over the rows of Q1

    the mean of two rules, of the last T but one (Gauss) and of the last with sqrt(2) times its last off-diagonal block
    (anti-Gauss), whose errors cancel. In the mean over all vectors it is exact for polynomials of degree 2 m - 3; t
    makes up for the choice of b of them: with it the sum of all eigenvalues is ||X||_F**2, which is known. The p - K
    values are its quantiles at the levels (i - 1/2) / (p - K).

    Error of the edge, against the exact spectrum: about 1e-3 at p = 2048, falling as 1 / sqrt(p); `error` estimates it
    for the matrix at hand. Values above the edge are right to about 2e-6, the smallest of all are not known. None
    is returned where the values above the edge need more than `limit` of the p vectors, as they may where they are more
    than a twelfth of all, and for matrices of low rank.

    Args:
        W: rows x cols, any float type, without zero rows and columns. Products are in float32, for float64 in float64.
        edge: estimator whose spikes are to be measured; `Bema()` unless told otherwise.
        r: factors of the rows, > 0, float64; None for ones. With them the spectrum counts as equalised.
        c: factors of the columns.
        spread: of the equalised spectrum.
        seed: of the random vectors.
        limit: share of the short side that the basis may reach, in (0, 1].
        notes: a list that takes a line if there is no result.

    Example:
        >>> notes = []
        >>> approximate(torch.eye(1200), notes=notes), notes
        (None, ['no approximation: its Krylov space ends after 1 steps of 32 vectors, as of a matrix of low rank'])

    References:
        G. Golub and C. Van Loan, Matrix Computations, 4th ed., section 10.3, for block Lanczos; L. Lin, Y. Saad and
        C. Yang, SIAM Rev. 58 (2016) 34, for the density; S. Ubaru, J. Chen and Y. Saad, SIAM J. Matrix Anal. Appl. 38
        (2017) 1075, for its error; D. Laurie, Math. Comp. 65 (1996) 739, for the two rules.
    """
    W, edge = as_tensor(W), edge or Bema()
    turned = W.shape[0] > W.shape[1]
    X, r, c = (W.T, c, r) if turned else (W, r, c)
    p = X.shape[0]
    unit, most = _mean_eigenvalue(X, r, c), int(limit * p)
    lines = [] if notes is None else notes
    if most < START * PROBES:
        lines.append(f"no approximation: {p} rows are too few for {START} steps of {PROBES} vectors")
        return None
    basis = _Basis(X, r, c, unit, seed, most)
    steps = START
    while True:
        if not basis.grow(steps):
            ended = f"its Krylov space ends after {basis.steps} steps of {PROBES} vectors, as of a matrix of low rank"
            lines.append(f"no approximation: {ended}")
            return None
        found = basis.look()
        s = np.concatenate([np.sqrt(found.top), found.rest(found.weights.mean(0))])
        spectrum = Spectrum(
            s * sqrt(unit), *W.shape, equalised=r is not None or c is not None, spread=spread, measured=len(found.top)
        )
        try:
            spikes = edge(spectrum).spikes
        except ValueError as error:
            lines.append(f"no approximation: {error}")
            return None
        if spikes < spectrum.measured:
            return Approximation(spectrum, found.vectors, found.error(), basis.steps * PROBES)
        steps = min(int(GROWTH * basis.steps), most // PROBES)
        if steps == basis.steps or WORTH * spikes > most:
            lines.append(f"no approximation: about {spikes} of its {p} values stand above the edge, too many")
            return None


@dataclass(frozen=True, eq=False)
class _Look:
    """What a Krylov space tells: converged eigenvalues from the largest on, and nodes and weights for the others."""

    p: int
    top: NDArray[np.float64]
    vectors: torch.Tensor
    nodes: NDArray[np.float64]  # ascending
    weights: NDArray[np.float64]  # one row a probe

    def rest(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The square roots of the p - K eigenvalues that are not measured, descending, in a unit of mean one."""
        count = self.p - len(self.top)
        w = weights / weights.sum()
        mean = w @ self.nodes
        known = max(0.0, (self.p - self.top.sum()) / count)
        w = w * (1 + (known - mean) / (w @ (self.nodes - mean) ** 2) * (self.nodes - mean)).clip(0)
        w /= w.sum()
        levels = (np.arange(count) + 0.5) / count
        # Between nodes the root is the smoother function: a law that ends at zero has a density of it there.
        return np.interp(levels, np.cumsum(w) - w / 2, np.sqrt(self.nodes))[::-1]

    def error(self) -> float:
        """Half the relative standard error of sum q**2 over the middle of the bulk, by leaving out one probe each."""
        inside = slice(int(0.2 * (self.p - len(self.top))), int(0.8 * (self.p - len(self.top))))
        total, b = self.weights.sum(0), len(self.weights)
        q = self.rest(total)[inside] ** 2
        left = np.array([q @ self.rest((total - one) / (b - 1))[inside] ** 2 for one in self.weights])
        return 0.5 * float(np.sqrt((b - 1) * np.mean((left - left.mean()) ** 2)) / (q @ q))


class _Basis:
    """The working state: orthonormal rows `Q`, the block tridiagonal `T`, and the block that comes next."""

    def __init__(self, X: torch.Tensor, r, c, unit: float, seed: int, most: int) -> None:
        self.X, self.r, self.c, self.unit, self.steps = X, r, c, unit, 0
        self.working = torch.float64 if X.dtype == torch.float64 else torch.float32
        p, room = X.shape[0], most + PROBES
        self.Q = torch.empty(room, p, dtype=torch.float64, device=X.device)  # rows: memory is taken as they come
        self.T = torch.zeros(room, room, dtype=torch.float64, device=X.device)
        drawn = torch.randn(p, PROBES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.Q[:PROBES] = orthonormal(drawn.to(X.device))[0].T

    def grow(self, steps: int) -> bool:
        """Adds blocks until there are so many steps; False where no new direction is left."""
        while self.steps < steps:
            low, high = self.steps * PROBES, (self.steps + 1) * PROBES
            Z = self._times(self.Q[low:high])
            basis = self.Q[:high]
            inner = basis @ Z
            self.T[low:high, low:high] = 0.5 * (inner[low:] + inner[low:].T)
            new, beyond = orthonormal(Z.addmm_(basis.T, inner, alpha=-1))
            self.steps += 1
            if float(beyond.diagonal().abs().min()) <= 1e-6 * float(inner[low:].diagonal().max()):
                return False
            self.Q[high : high + PROBES] = new.T
            self.T[high : high + PROBES, low:high] = beyond
            self.T[low:high, high : high + PROBES] = beyond.T
        return True

    def look(self) -> _Look:
        d, b = self.steps * PROBES, PROBES
        theta, Y = eigensystem(self.T[:d, :d])
        beyond = (self.T[d : d + b, d - b : d] @ Y[-b:]).norm(dim=0)
        converged = (beyond <= TOL * theta).flip(0)
        top = d if bool(converged.all()) else int((~converged).int().argmax())
        # The nodes of one rule come in waves of one step each, which puts levels off by up to .03. Those of a second
        # rule, whose last off-diagonal block is sqrt(2) times as large, lie between them.
        last = self.T[:d, :d].clone()
        last[d - b :, d - 2 * b : d - b] *= sqrt(2)
        last[d - 2 * b : d - b, d - b :] *= sqrt(2)
        rules = [eigensystem(self.T[: d - b, : d - b]), eigensystem(last)]
        nodes = torch.cat([at[: len(at) - top] for at, _ in rules]).clamp_min(0)
        weights = torch.cat([vectors[:b, : len(at) - top].square() / 2 for at, vectors in rules], dim=1)
        nodes, order = nodes.sort()
        vectors = self.Q[:d].T @ Y[:, d - top :].flip(1)
        measured = theta[d - top :].flip(0).cpu().numpy()
        return _Look(self.X.shape[0], measured, vectors, nodes.cpu().numpy(), weights[:, order].cpu().numpy())

    def _times(self, V: torch.Tensor) -> torch.Tensor:
        """X X^T V^T / unit, p x b: each block of columns in the working precision, their sum in float64."""
        right = (V.T if self.r is None else V.T * self.r[:, None]).to(self.working)
        total = torch.zeros(V.shape[1], V.shape[0], dtype=torch.float64, device=V.device)
        for part in column_blocks(*self.X.shape, block_on(self.X)):
            block = self.X[:, part].to(self.working)
            # Divided half-way: the squares of huge or tiny entries must fit into float32.
            inner = (block.T @ right).double() / self.unit
            if self.c is not None:
                inner *= self.c[part, None].square()
            total += block @ inner.to(self.working)
        return total if self.r is None else total * self.r[:, None]


def _mean_eigenvalue(X: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor | None) -> float:
    """||X||_F**2 / p for X = diag(r) X diag(c)."""
    rows = torch.zeros(X.shape[0], dtype=torch.float64, device=X.device)
    for part in column_blocks(*X.shape, block_on(X)):
        squares = X[:, part].to(torch.float64).square()
        rows += squares.sum(1) if c is None else squares @ c[part].square()
    return float(rows.sum() if r is None else rows @ r.square()) / X.shape[0]
