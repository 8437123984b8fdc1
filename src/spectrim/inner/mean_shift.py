"""The part of an error that lies along the mean of the inputs, and putting it back where a model adds a constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..linalg import Matrix, as_tensor
from ..moments import Moment


class Place(Protocol):
    """Where a constant can be added to the outputs of a matrix: see `calibrate.places`."""

    rows: int

    def target(self, model: nn.Module) -> Tensor:
        """Return the stretch of the model's tensor, (rows,)."""
        ...

    def sign(self) -> float:
        """Return 1 where the tensor is added to the outputs, -1 where it is subtracted."""
        ...


def shift(W: Matrix, new: Matrix, mean: Tensor | Moment) -> Tensor:
    """Return what a bias must gain so that the mean of the outputs stays where it was.

        (W - W') m,   m = E[x]

    Args:
        W: rows x cols, the matrix as it was.
        new: rows x cols, what takes its place.
        mean: E[x], (cols,), or the moment that holds it.

    Returns (rows,), float64, on the device of W.

    Example:
        >>> W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> shift(W, torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([0.5, 10.0])).tolist()
        [20.0, 1.5]

    References:
        M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, arXiv
        1906.04721, equation 17.
    """
    W, new = as_tensor(W), as_tensor(new)
    mean = mean.mean if isinstance(mean, Moment) else torch.as_tensor(mean)
    if W.shape != new.shape:
        raise ValueError(f"both matrices have one shape: got {tuple(W.shape)} and {tuple(new.shape)}")
    if tuple(mean.shape) != (W.shape[1],):
        raise ValueError(f"mean has one figure for each of the {W.shape[1]} inputs, got {tuple(mean.shape)}")
    return (W.to(torch.float64) - new.to(torch.float64)) @ mean.to(W.device, torch.float64)


@dataclass(frozen=True, eq=False)
class Corrected:
    """What `correct` did: the shifts that were added, and those that had no place.

    `undo` puts the constants back, bit for bit; the matrices are left as they are.
    """

    added: dict[str, Tensor]
    without_place: tuple[str, ...]
    before: dict[str, tuple[Tensor, Tensor]] = field(repr=False)

    @torch.no_grad()
    def undo(self) -> None:
        """Put back the constants as they were before the correction."""
        for target, value in reversed(self.before.values()):
            target.copy_(value)


@torch.no_grad()
def correct(model: nn.Module, places: Mapping[str, Place], shifts: Mapping[str, Tensor]) -> Corrected:
    """Add shifts to a live model, in place, each where its matrix has a place for it; return what was done.

    Nothing is changed where any shift has the wrong size or is not finite.

    Args:
        model: the live module that the places were found in.
        places: from `calibrate.shift_places`, by the name of the matrix.
        shifts: name of the matrix -> (rows,), as `shift` returns it.

    Example:
        >>> from spectrim.calibrate import shift_places
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> x = torch.ones(1, 3)
        >>> before = net[0](x)
        >>> done = correct(net, shift_places(net, x), {"0": torch.tensor([1.0, -2.0])})
        >>> (net[0](x) - before).round(decimals=4).tolist()
        [[1.0, -2.0]]
        >>> done.undo()
        >>> torch.equal(net[0](x), before)
        True
    """
    for name, value in shifts.items():
        place = places.get(name)
        if place is not None and tuple(value.shape) != (place.rows,):
            raise ValueError(
                f"{name}: a shift has one figure for each of {place.rows} outputs, got {tuple(value.shape)}"
            )
    bad = [name for name, value in shifts.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(
            f"shifts that are not finite: {', '.join(bad[:3])}; look for NaN in the moments or in the matrices"
        )
    added, before, none = {}, {}, []
    for name, value in shifts.items():
        if name not in places:
            none.append(name)
            continue
        place = places[name]
        target = place.target(model)
        before[name] = (target, target.clone())
        # Added in float64, rounded once: a bfloat16 bias would lose most of a small shift that is rounded first.
        target.copy_(target.to(torch.float64) + place.sign() * value.to(target.device, torch.float64))
        added[name] = value
    return Corrected(added, tuple(none), before)
