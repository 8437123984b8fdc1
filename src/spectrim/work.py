"""One matrix cut as the entry of a plan says, and held against it: before anything is written, and after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .cut import ranked, zeroed
from .entries import Entry
from .linalg import Factors
from .moments import Moment, Moments
from .reading import Equalised, equalize
from .readings import Edge
from .sites import Site

SLACK = 1e-3  # between the relative error that a plan states and the one found anew: other threads, other rounding
Piece = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Change:
    """What was done to one matrix. `relative_error` is ||W - W'||_F / ||W||_F, as stored.

    `fresh` names the parameters that took the place of others: an optimiser knows nothing of them yet.
    """

    name: str
    action: str
    rank: int | None
    params_before: int
    params_after: int
    zeros: int | None
    relative_error: float
    seconds: float
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True)
class How:
    """What the cuts of a plan need besides the matrices: the estimator behind its scales, the moments of its inputs."""

    edge: Edge | None
    moments: Moments | None

    def moment(self, entry: Entry) -> Moment | None:
        """Return the moment that this entry is cut in, or None."""
        if entry.basis != "moments":
            return None
        try:
            return self.moments[entry.name]
        except KeyError as error:
            raise ValueError(f"{entry.name} is cut in the inner product of its inputs: {error.args[0]}") from None


class Work:
    """One matrix cut as its entry says, and held against it; RuntimeError where they differ.

    Args:
        site: where it stands.
        entry: of the plan.
        how: what the cut needs.
        aside: a file that what the layer takes waits in; it stays in memory where None.
    """

    def __init__(self, site: Site, entry: Entry, how: How, aside: Path | None = None):
        start = time.perf_counter()
        self.site, self.entry, self.aside = site, entry, aside
        W = site.get()
        self.zeros = int((W == 0).sum())
        scales = equalize(W, edge=how.edge) if entry.basis == "equalised" else None
        moment = how.moment(entry)
        if entry.action == "zeros":
            more = {} if moment is None else {"damping": how.moments.damping}
            piece: Piece = zeroed(W, entry.zeros, scales, moment, entry.step, **more)
            self.error = _norm(W - piece) / (_norm(W) or 1.0)
            self._check_damage(self.error)
        else:
            factors = ranked(W, entry.rank, scales, entry.also, moment)
            if entry.action == "split":
                piece = tuple(half.to(W.dtype).contiguous() for half in factors.split())
            else:
                piece = factors.dense().to(W.dtype)
            self._check(W, piece, factors, scales)
        self._piece = None if aside is not None else piece
        if aside is not None:
            self.device = site.get().device
            _write(piece, aside)
        self.seconds = time.perf_counter() - start

    @property
    def piece(self) -> Piece:
        """What the layer takes: two halves, or a dense matrix."""
        if self.aside is None:
            return self._piece
        return torch.load(self.aside, map_location=self.device, weights_only=True)

    def _check(self, W: Tensor, piece: Piece, factors: Factors, scales: Equalised | None) -> None:
        """Hold the cut, as it will be stored, against the factors, and its cost against the plan; RuntimeError."""
        limits = torch.finfo(W.dtype)
        W, ideal = W.to(torch.float64), factors.dense()
        halves = [half.to(torch.float64) for half in (piece if isinstance(piece, tuple) else (piece,))]
        new = halves[0] if len(halves) == 1 else halves[0] @ halves[1]
        # Rounding an entry errs by half an eps of it at most, in either half, or by a subnormal step. In the basis of
        # the cut the directions of one half are orthonormal, so these errors do not add up beyond the norm.
        steps = limits.smallest_normal * limits.eps * (halves[0].numel() + halves[-1].numel()) ** 0.5
        loud = 1.0 if scales is None else float(scales.rows.max() * scales.cols.max())
        allowed = 4 * max(limits.eps, 1e-12) * _norm(ideal, scales) + steps * loud * max(1.0, *map(_norm, halves))
        if not _norm(new - ideal, scales) <= allowed:
            raise self._differs("what would be stored is not the cut that was computed")
        self._check_damage(_norm(W - ideal, scales) / _norm(W, scales))
        self.error = _norm(W - new) / _norm(W)

    def _check_damage(self, found: float) -> None:
        e = self.entry
        if e.damage is not None and e.decision == e.decided and abs(found - e.damage) > SLACK:
            raise self._differs(f"the cut costs {found:.4f} of the norm, the plan says {e.damage:.4f}")

    def _differs(self, what: str) -> RuntimeError:
        return RuntimeError(f"{self.entry.name}: what was achieved is not what was planned: {what}")

    def verify(self, after: Site) -> Change:
        """Hold what now stands in the model against the entry; RuntimeError where they differ."""
        e, piece, zeros = self.entry, self.piece, None
        if e.action == "split":
            if after.pair_rank != e.rank or after.params != e.rank * (e.rows + e.cols):
                raise self._differs(f"{after.params} numbers are stored at inner size {after.pair_rank}, not {e.rank}")
            if not all(torch.equal(a, b) for a, b in zip(after.layer.factors(after.part), piece, strict=True)):
                raise self._differs("its halves are not the ones that were computed")
        elif not torch.equal(new := after.get(), piece):
            raise self._differs("its entries are not the ones that were computed")
        if e.action == "zeros":
            zeros = int((new == 0).sum())
            least = max(e.zeros, self.zeros)
            # A weight that makes up for others may round to zero itself; a magnitude that stays is no zero.
            if zeros < e.zeros if e.basis == "moments" else zeros != least:
                raise self._differs(f"{zeros} entries are zero, {e.zeros} were planned")
        return Change(
            e.name, e.action, e.rank, e.params_before, after.params, zeros, self.error, round(self.seconds, 4)
        )


def _norm(W: Tensor, scales: Equalised | None = None) -> float:
    return float(torch.linalg.norm(W.to(torch.float64) if scales is None else scales.apply(W)))


def _write(piece: Piece, file: Path) -> None:
    """Write a piece to a file; OSError where the disk does not take it."""
    try:
        torch.save(piece, file)
    except RuntimeError as error:
        raise OSError(f"{file} could not be written: is {file.parent.parent} full?") from error
