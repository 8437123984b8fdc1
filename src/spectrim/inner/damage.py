"""What a change of a matrix costs on the inputs that its layer sees, and the metric in which that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from spectrim.linalg import Matrix, as_tensor
from spectrim.moments import Moment

Second: TypeAlias = "Tensor | Moment | None"


@dataclass(frozen=True, eq=False)
class Metric:
    """The inner product of the errors of one matrix: tr(diag(rows) E C E^T).

    Args:
        second: C, cols x cols float64, or its diagonal, (cols,), or None for the identity.
        rows: weights of the outputs, (rows,) float64, or None where all count the same.

    Example:
        >>> metric(torch.zeros(2, 3), torch.tensor([1.0, 2.0, 0.5])).second.tolist()
        [1.0, 2.0, 0.5]
    """

    second: Tensor | None
    rows: Tensor | None

    @property
    def classical(self) -> bool:
        """Whether every entry counts the same, so that magnitudes and the plain decomposition decide."""
        return not self.dense and all(t is None or bool((t == t[:1]).all()) for t in (self.second, self.rows))

    @property
    def dense(self) -> bool:
        """Whether errors in different columns can make up for one another."""
        return self.second is not None and self.second.ndim == 2

    def diagonal(self, W: Tensor) -> Tensor:
        """Return the diagonal of C, (cols,), float64, for this matrix."""
        if self.second is None:
            return torch.ones(W.shape[1], dtype=torch.float64, device=W.device)
        return self.second.diagonal() if self.dense else self.second

    def times(self, E: Tensor) -> Tensor:
        """Return E C, rows x cols, float64."""
        E = E.to(torch.float64)
        if self.second is None:
            return E
        return E @ self.second if self.dense else E * self.second

    def energy(self, E: Tensor) -> Tensor:
        """Return the cost of each row of an error, (rows,), float64, >= 0."""
        E = E.to(torch.float64)
        found = (self.times(E) * E).sum(1).clamp_min(0)
        return found if self.rows is None else found * self.rows

    def damped(self, share: float, notes: list[str] | None = None) -> Metric:
        """Return the metric with C + share * mean(diag C) * I, in which a step decides.

        A C that is zero altogether says nothing: the identity takes its place, and `notes` a line.

        Example:
            >>> Metric(torch.tensor([1.0, 3.0]), None).damped(0.5).second.tolist()
            [2.0, 4.0]
        """
        if not 0 <= share < float("inf"):
            raise ValueError(f"damping is a share of the mean square of an input, >= 0, got {share!r}")
        if self.second is None:
            return self
        diagonal = self.second.diagonal() if self.dense else self.second
        if not bool(diagonal.any()):
            if notes is not None:
                notes.append("its inputs were zero at every position: done as without moments")
            return Metric(None, self.rows)
        if not share:
            return self
        second, more = self.second.clone(), share * diagonal.mean()
        (second.diagonal() if self.dense else second).add_(more)
        return Metric(second, self.rows)


def metric(W: Matrix, C: Second, rows: Tensor | None = None) -> Metric:
    """Return the metric that C and the weights of the rows stand for, checked against W; a diagonal C as a vector.

    Args:
        W: rows x cols, the matrix.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.

    Example:
        >>> metric(torch.zeros(2, 2), 3 * torch.eye(2)).classical
        True
    """
    W = as_tensor(W)
    if not bool(torch.isfinite(W).all()):
        raise ValueError(f"{int((~torch.isfinite(W)).sum())} of {W.numel()} weights are not finite")
    if isinstance(C, Moment):
        rows = C.rows if rows is None else rows
        C = C.second
    if rows is not None:
        rows = rows.detach().to(W.device, torch.float64)
        if tuple(rows.shape) != (W.shape[0],) or not bool(((rows > 0) & torch.isfinite(rows)).all()):
            raise ValueError(f"rows has one finite weight > 0 for each of the {W.shape[0]} rows")
    if C is None:
        return Metric(None, rows)
    cols = W.shape[1]
    if tuple(C.shape) not in ((cols,), (cols, cols)):
        raise ValueError(
            f"a second moment of {cols} inputs is {cols} x {cols} or a diagonal ({cols},), got {tuple(C.shape)}: "
            "are these the moments of this matrix?"
        )
    second = C.detach().to(W.device, torch.float64)
    diagonal = second.diagonal() if second.ndim == 2 else second
    if not bool(torch.isfinite(second).all()) or bool((diagonal < 0).any()):
        raise ValueError("a second moment is finite and its diagonal >= 0, and this is not: look for NaN in the inputs")
    if second.ndim == 2:
        if float((second - second.T).abs_().max()) > 1e-4 * max(float(second.max()), -float(second.min())):
            raise ValueError("a second moment is symmetric, and this is not: give E[x x^T]")
        if int(torch.count_nonzero(second)) == int(torch.count_nonzero(diagonal)):
            second = diagonal.clone()
    return Metric(second, rows)


def damage(W: Matrix, new: Matrix, C: Second = None, rows: Tensor | None = None) -> float:
    """Return the mean square of the change of a layer's output when its matrix W becomes `new`.

        tr(diag(rows) (W - W') C (W - W')^T) = E ||(W - W') x||^2

    Without C it is the squared Frobenius norm of W - W'.

    Args:
        W, new: rows x cols, any float type.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        rows: weights of the outputs, (rows,), > 0.

    Example:
        >>> damage(torch.tensor([[3.0, 1.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.5], [0.5, 4.0]]))
        4.0
    """
    m, _, error = _compared(W, new, C, rows)
    return float(m.energy(error).sum())


def relative_damage(W: Matrix, new: Matrix, C: Second = None, rows: Tensor | None = None) -> float:
    """Return the damage as a share of the mean square of the output, tr(W C W^T): 1 where W' is zero.

    NaN where the layer puts out nothing, W = 0 or C = 0.

    Example:
        >>> W = torch.tensor([[3.0, 1.0]])
        >>> relative_damage(W, torch.tensor([[0.0, 1.0]]))
        0.9
    """
    cost, whole = cost_and_whole(W, new, C, rows)
    return cost / whole if whole else float("nan")


def cost_and_whole(W: Matrix, new: Matrix, C: Second = None, rows: Tensor | None = None) -> tuple[float, float]:
    """Return the damage, and the mean square of the whole output, tr(W C W^T), which it is a share of.

    Example:
        >>> cost_and_whole(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
        (9.0, 10.0)
    """
    m, W, error = _compared(W, new, C, rows)
    return float(m.energy(error).sum()), float(m.energy(W).sum())


def _compared(W: Matrix, new: Matrix, C: Second, rows: Tensor | None) -> tuple[Metric, Tensor, Tensor]:
    """The metric, the matrix and the error, both float64."""
    W, new = as_tensor(W), as_tensor(new)
    if W.shape != new.shape:
        raise ValueError(f"a matrix and what becomes of it have one shape, got {tuple(W.shape)} and {tuple(new.shape)}")
    m = metric(W, C, rows)
    W = W.to(torch.float64)
    return m, W, W - new.to(torch.float64)
