"""What one matrix may lose at a step of the pruner: it is read, the rank is decided, and the cut made ready."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .linalg import leading
from .reading import Equalised, read_equalised, read_spectrum
from .readings import Edge, Reading
from .sites import Site
from .spectrum import SMALLEST
from .trim import Change
from .verdict import judge

# How far the noise level of what is left may rise above that of the last cut. Signal at the transition that has lost
# the bulk below it raises it by 6 per cent and more (300 x 300, 40 to 80 values at 1.05 to 1.6 times the transition),
# the training of an MLP on images, at high rates, by 2 between cuts.
LOUDER = 1.05


class Left(NamedTuple):
    """What the last cut left of a matrix: values, those of them beside the spikes, and the noise level it showed."""

    rank: int
    bulk: int
    sigma: float


@dataclass(frozen=True)
class Rule:
    """How each matrix is judged and cut; the settings are those of `Pruner`."""

    edge: Edge
    gate: float
    split: bool
    rebuild: bool
    equalize: bool
    floor: int

    def read(self, site: Site, left: Left | None) -> tuple[Reading, Equalised | None]:
        """Return what a matrix shows, by the values that earlier cuts have left, and its scales if they are evened."""
        about = {"name": site.name, "kind": site.kind, "rows": site.rows, "cols": site.cols, "params": site.params}
        whole = min(site.rows, site.cols)
        held, scales, notes = min(site.pair_rank or whole, left.rank if left else whole), None, []
        if site.note:
            notes.append(site.note)
        try:
            W = site.get()
            if self.equalize and held == whole:
                spectrum, scales = read_equalised(W, self.edge, notes=notes)
            else:  # a cut leaves noise that is no longer even over rows and columns
                spectrum = read_spectrum(W, notes=notes).largest(held)
        except ValueError as error:
            return Reading(**about, note=str(error)), None
        try:
            return Reading(**about, spectrum=spectrum, fit=self.edge(spectrum), note="; ".join(notes)), scales
        except ValueError as error:
            return Reading(**about, spectrum=spectrum, note=str(error)), scales

    def decide(self, site: Site, reading: Reading, left: Left | None, share: float) -> tuple[int, bool] | str:
        """Return the rank to cut to and whether as a pair, or why the matrix is left alone."""
        fit = reading.fit
        if fit is None:
            return f"no verdict: {reading.note}"
        # A few spikes alone would pass for the top of some louder noise, and no misfit can tell.
        if left and left.bulk < SMALLEST:
            return f"its last cut left {left.bulk} values beside its spikes: too few to measure noise"
        if left and fit.sigma is not None and fit.sigma > LOUDER * left.sigma:
            return (
                f"its noise level seems to have risen from {left.sigma:.3g} to {fit.sigma:.3g} since the last cut: "
                "what is left of it is not noise alone"
            )
        if self.gate < 1:
            verdict = judge(reading.spectrum, fit, panel={}, gate=self.gate)
            if not verdict.cuttable:
                return f"{verdict.kind}: {verdict.reason}"
        p, held = reading.spectrum.p, len(reading.spectrum.s)  # rows and columns of zeros do not count
        rank = max(min(self.floor, p), fit.spikes + int(share * (p - fit.spikes)))
        paired = site.pair_rank is not None
        if rank >= held and (paired or reading.spectrum.complete):
            return f"nothing had to go: it holds {held} values, {fit.spikes} of them spikes, and may hold {rank}"
        rank = min(rank, held)
        if paired and site.split is None:
            return f"a pair that cannot be cut again: {site.note}"
        smaller = rank * (site.rows + site.cols) < site.rows * site.cols
        if paired or (self.split and site.split is not None and smaller):
            return rank, True
        if not self.rebuild:
            return f"a pair of {rank} values would be no smaller" if self.split and site.split else site.note
        return rank, False

    def cut(self, site: Site, reading: Reading, scales: Equalised | None, rank: int, pair: bool) -> Cut:
        """Return the cut of a matrix to this rank, ready to be written."""
        began = time.perf_counter()
        W = site.get()
        factors = leading(W if scales is None else scales.apply(W), rank)
        seconds = time.perf_counter() - began
        if scales is not None:
            factors = factors.rescale(scales.rows, scales.cols)
        halves = tuple(half.to(W.dtype).contiguous() for half in factors.split())
        fine = torch.promote_types(W.dtype, torch.float32)  # the product of halves of 16 bits is not rounded again
        dense = halves[0].to(fine) @ halves[1].to(fine) if pair else factors.dense().to(W.dtype)
        error = float(torch.linalg.norm((W - dense).double()) / torch.linalg.norm(W.double()))
        # Once it was cut a matrix is read plain, and shows another level than with its scales evened out.
        level = math.inf if scales is not None else reading.fit.sigma or math.inf
        left = Left(rank, rank - reading.fit.spikes, level)
        return Cut(site, halves if pair else dense, left, error, seconds)


@dataclass(frozen=True)
class Cut:
    """One matrix cut and ready to be written: a pair (left, right) or a dense matrix, and what is left of it."""

    site: Site
    piece: Tensor | tuple[Tensor, Tensor]
    left: Left
    error: float
    seconds: float

    def change(self, after: Site, fresh: tuple[str, ...]) -> Change:
        """Return the record of the cut, which now stands in the model."""
        action = "split" if isinstance(self.piece, tuple) else "dense"
        before = self.site.params
        return Change(
            self.site.name, action, self.left.rank, before, after.params, None, self.error, self.seconds, fresh
        )
