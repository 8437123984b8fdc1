"""Second moments of what a layer reads: the inner product in which an error of its matrix is small or large.

A layer sees inputs x. Replacing its matrix W by W' changes its output by (W - W') x, and on average by

    E ||(W - W') x||**2 = tr((W - W') C (W - W')^T),   C = E[x x^T]

of which the part along the mean, (W - W') E[x], can be taken back by a bias. Magnitude pruning and the plain SVD are
the case C = I. Where C comes from is another matter: nothing, the scales of the matrix itself, what the network has
stored, noise run through it, or samples.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .linalg import Matrix, as_tensor
from .reading import Equalised

OPTIONAL = ("kurtosis", "largest", "rows")  # tensors of a Moment that may be absent


@dataclass(frozen=True, eq=False)
class Moment:
    """The second moment of the inputs of one matrix, their mean, and what is known of their tails.

    Args:
        second: C = E[x x^T], cols x cols, symmetric; or its diagonal alone, (cols,), where the rest counts as zero.
        mean: m = E[x], (cols,).
        count: positions seen (tokens, pixels), >= 0; 0 where C was not measured.
        kurtosis: E[(x - m)^4] / E[(x - m)^2]^2 of each input, (cols,): 3 for a Gaussian, 0 for a constant; or None.
        largest: the largest |x| of each input, (cols,), or None.
        rows: weights of the outputs, (rows,), where they do not all count the same: the cost is then
            tr(diag(rows) (W - W') C (W - W')^T); or None.

    Matrices that read the same inputs (q, k and v) may hold the same object.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> found = Moment(x.T @ x / 2, x.mean(0), count=2)
        >>> found.dense().tolist(), found.covariance().tolist()
        ([[5.0, 1.0], [1.0, 2.0]], [[1.0, -1.0], [-1.0, 1.0]])
    """

    second: Tensor
    mean: Tensor
    count: int
    kurtosis: Tensor | None = None
    largest: Tensor | None = None
    rows: Tensor | None = None

    def __post_init__(self):
        cols = self.mean.numel()
        if self.mean.ndim != 1 or tuple(self.second.shape) not in ((cols,), (cols, cols)):
            raise ValueError(
                f"a second moment is cols x cols or, a diagonal, (cols,), and the mean (cols,): "
                f"got {tuple(self.second.shape)} and {tuple(self.mean.shape)}"
            )
        for name in ("kurtosis", "largest"):
            given = getattr(self, name)
            if given is not None and tuple(given.shape) != (cols,):
                raise ValueError(f"{name} has one figure for each of the {cols} inputs, got {tuple(given.shape)}")
        bad = sum(int((~torch.isfinite(t)).sum()) for t in (self.second, self.mean))
        if bad:
            raise ValueError(f"{bad} entries of the moments are not finite")
        if bool((self.diagonal < 0).any()):
            raise ValueError("the diagonal of a second moment holds means of squares: it cannot be negative")
        if self.count < 0:
            raise ValueError(f"count is a number of positions, >= 0, got {self.count}")

    @property
    def cols(self) -> int:
        """The number of inputs."""
        return self.mean.numel()

    @property
    def is_diagonal(self) -> bool:
        """Whether only the diagonal of C is held."""
        return self.second.ndim == 1

    @property
    def dead(self) -> bool:
        """Whether every input was zero at every position: C has rank 0, and no change of the matrix has a cost."""
        return not bool(self.diagonal.any())

    @property
    def diagonal(self) -> Tensor:
        """The mean squares E[x_j^2], (cols,), float64."""
        return (self.second if self.is_diagonal else self.second.diagonal()).to(torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is held, by the names of the fields."""
        named = {key: getattr(self, key) for key in ("second", "mean", *OPTIONAL)}
        return {key: t for key, t in named.items() if t is not None}

    @property
    def digest(self) -> str:
        """A hash over all figures, worked out anew each time."""
        found = hashlib.sha256(str(self.count).encode())
        for key, t in self.tensors().items():
            t = t.detach().cpu().contiguous()
            found.update(f"{key} {t.dtype} {tuple(t.shape)}".encode())
            found.update(t.view(torch.uint8).numpy())
        return found.hexdigest()

    def dense(self) -> Tensor:
        """Return C, cols x cols, float64."""
        return self.diagonal.diag() if self.is_diagonal else self.second.to(torch.float64)

    def covariance(self) -> Tensor:
        """Return C - m m^T, cols x cols, float64; of a diagonal C the variances, (cols,). No variance is below zero."""
        m = self.mean.to(torch.float64)
        if self.is_diagonal:
            return (self.diagonal - m.square()).clamp_min(0)
        found = torch.addr(self.dense(), m, m, alpha=-1)
        found.diagonal().clamp_min_(0)
        return found

    def damped(self, share: float) -> Tensor:
        """Return C + share * mean(diag C) * I, float64, in the shape of `second`.

        A dead layer has no scale to take a share of: the identity comes back, so that a step falls back to what it
        would do without moments.

        Args:
            share: of the mean square of an input, >= 0; .01 is usual, more is better where few positions were seen.

        Example:
            >>> Moment(torch.tensor([1.0, 3.0]), torch.zeros(2), 8).damped(0.5).tolist()
            [2.0, 4.0]
        """
        if not 0 <= share < float("inf"):
            raise ValueError(f"share is a share of the mean square of an input, >= 0, got {share!r}")
        if self.dead:
            ones = torch.ones(self.cols, dtype=torch.float64, device=self.second.device)
            return ones if self.is_diagonal else ones.diag()
        more = share * float(self.diagonal.mean())
        if self.is_diagonal:
            return self.diagonal + more
        out = self.second.to(torch.float64, copy=True)
        out.diagonal().add_(more)
        return out

    def loud(self, times: float = 10.0) -> list[int]:
        """Return the inputs whose root mean square is more than `times` the median one, the loudest first.

        Example:
            >>> Moment(torch.tensor([1.0, 4.0e4, 1.0, 1.0]), torch.zeros(4), 8).loud()
            [1]
        """
        level = self.diagonal.sqrt()
        order = torch.argsort(level, descending=True, stable=True)
        return [int(j) for j in order if level[j] > times * level.median()]


def identity(cols: int) -> Moment:
    """Return the moment of white inputs, C = I with mean zero: every entry of a matrix costs the same.

    Example:
        >>> identity(2).dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return Moment(torch.ones(cols), torch.zeros(cols), 0)


def equalised(W: Matrix, scales: Equalised) -> Moment:
    """Return the diagonal metric that the scales of a matrix stand for.

        ||D1 (W - W') D2||_F^2 = tr(D1^2 (W - W') C (W - W')^T),   C = D2^2

    so that the error counts in the matrix whose rows and columns are even; D1^2 are the weights of the outputs, `rows`.

    Args:
        W: rows x cols, the matrix that was evened out.
        scales: from `reading.equalize`.

    Example:
        >>> from spectrim.reading import equalize
        >>> W = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        >>> found = equalised(W, equalize(W))
        >>> round(float(found.second[0] / found.second[1]), 2), round(float(found.rows[0] / found.rows[1]), 2)
        (16.0, 4.0)

    References:
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1, for the scales.
    """
    W = as_tensor(W)
    if tuple(W.shape) != (len(scales.rows), len(scales.cols)):
        raise ValueError(
            f"these scales are of a {len(scales.rows)} x {len(scales.cols)} matrix, this one is {tuple(W.shape)}"
        )
    r, c = (torch.as_tensor(part, dtype=torch.float64, device=W.device).square() for part in (scales.rows, scales.cols))
    return Moment(c, torch.zeros_like(c), 0, rows=r)
