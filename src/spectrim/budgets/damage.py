"""Least damage: a weighted sum of the squared errors of all matrices, at its minimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from spectrim.laws import critical_strength, strength
from spectrim.survey import Survey
from spectrim.verdict import GATE

from .allotment import NONE, Allotment, Target, candidates, check_gate, told, unfit
from .magnitude import by_weight

Norm = Literal["signal", "spikes", "edge", "frobenius", "spectral", "top tenth", "mean square"]
Size = Literal["longer side", "entries"]
OF_THE_LAW = ("signal", "spikes", "edge")  # read off the noise edge, which means nothing where the bulk does not fit


@dataclass(frozen=True)
class LeastDamage:
    """The zeros of least estimated damage: the sum over matrices of a ||W - W'||_F^2.

        a = size^power / ||W||^2

    By default an error counts beside the signal in the matrix, Sigma l_i^2, not beside all of the matrix: noise says
    nothing of what an error costs. l_i is the strength of the direction behind the spike s_i, by the map of the spiked
    model from s_i and the noise level. The sum is one of single entries, a w^2 for each that goes, so one threshold for
    sqrt(a) |w| over all matrices is its minimum at any number of zeros. It is an estimate without data: which weight
    tells best what an error costs the model is a matter of experiment. A scale of a matrix cancels.

    Args:
        power: finite; 0 counts the relative errors of all matrices alike, 1 by their size.
        norm: of W: "signal", the root of Sigma l_i^2; "spikes", the Frobenius norm of the part above the edge (the
            edge itself where nothing stands above it); "edge", the largest value that noise explains; "frobenius";
            "spectral", the largest singular value; "top tenth", the Frobenius norm of the largest tenth of them; "mean
            square", the root of it over the entries.
        size: "longer side" of the matrix, n = max(rows, cols), or its "entries", rows cols.
        gate: largest misfit at which the edge is believed, in [0, 1], by the survey's verdict, which evens a matrix out
            first. Other matrices take, for a norm that needs the edge, the usual share of their Frobenius norm: the
            geometric mean over those that fit. If none fits, all are taken by plain magnitude.

    Example:
        >>> LeastDamage(norm="spectral")
        LeastDamage(power=0.5, norm='spectral', size='longer side', gate=0.1)

    References:
        Greedy is optimal for a separable sum; weights by relative error: LayerNormalised. F. Benaych-Georges and R. R.
        Nadakuditi, J. Multivariate Anal. 111 (2012) 120, for the map from s_i to l_i. How the default was chosen, and
        what it is worth: docs/budgets.md.
    """

    power: float = 0.5
    norm: Norm = "signal"
    size: Size = "longer side"
    gate: float = GATE

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm is one of {', '.join(get_args(Norm))}, not {self.norm!r}")
        if self.size not in get_args(Size):
            raise ValueError(f"size is one of {', '.join(get_args(Size))}, not {self.size!r}")
        if not isinstance(self.power, int | float) or not math.isfinite(self.power):
            raise ValueError(f"power is a finite number, not {self.power!r}")
        check_gate(self.gate)

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        closed = unfit((t.reading for t in targets), self.gate) if self.norm in OF_THE_LAW else {}
        norms = {t.name: norm_of(t, self.norm) for t in targets if t.name not in closed}
        for t in targets:  # zero altogether, or an edge of a user's own estimator
            if t.name in norms and not (norms[t.name] > 0 and t.norm > 0):
                closed[t.name] = f"its {self.norm} norm is {norms.pop(t.name):g}"
        if not norms:
            reasons = {name: f"plain magnitude: {why}" for name, why in closed.items()}
            return by_weight(targets, zeros, {}, reasons, [NONE])
        usual = math.exp(np.mean([math.log(norms[t.name] / t.norm) for t in targets if t.name in norms]))
        reasons = {}
        for t in targets:
            if t.name in closed:
                norms[t.name] = usual * t.norm
                reasons[t.name] = f"its norm taken as {usual:.2g} of the Frobenius norm, {closed[t.name]}"
            else:
                bare = self.norm in ("spikes", "signal") and not t.fit.spikes
                reasons[t.name] = f"{'no spike, ' if bare else ''}{self.norm} norm {norms[t.name]:.4g}"
        sides = self.size == "longer side"
        sizes = {t.name: max(t.reading.rows, t.reading.cols) if sides else t.entries for t in targets}
        largest = max(sizes.values())  # a common factor changes nothing, and keeps large powers finite
        weights = {n: (sizes[n] / largest) ** (self.power / 2) / norm for n, norm in norms.items() if norm > 0}
        return by_weight(targets, zeros, weights, reasons, told(closed, "the usual share of their Frobenius norm"))


@dataclass(frozen=True)
class LayerNormalised:
    """One threshold, over all matrices, for |W| / ||W||_F: least sum of the squared relative errors.

    The same as LeastDamage(power=0, norm="frobenius").

    Example:
        >>> import torch, spectrim
        >>> torch.manual_seed(0) and None
        >>> found = spectrim.survey({"quiet": torch.randn(30, 40), "loud": 100 * torch.randn(30, 40)})
        >>> abs(LayerNormalised()(found, 0.5).counts["quiet"] - 600) < 30
        True
    """

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        return LeastDamage(0.0, norm="frobenius")(found, zeros)


def norm_of(t: Target, norm: Norm) -> float:
    """Return that norm of a matrix, read off its spectrum and its noise edge, > 0."""
    s = t.spectrum.s
    if norm == "spectral":
        return float(s[0])
    if norm == "edge":
        return t.fit.edge
    if norm == "top tenth":
        return math.sqrt(float((s[: math.ceil(len(s) / 10)] ** 2).sum()))
    if norm == "signal":
        return signal(t)
    if norm == "spikes":
        return math.sqrt(float((s[s > t.fit.edge] ** 2).sum())) or t.fit.edge
    return t.norm / math.sqrt(t.entries) if norm == "mean square" else t.norm


def signal(t: Target) -> float:
    """Return the root of Sigma l_i^2 over the spikes, l_i the strength of the direction behind the singular value s_i.

    With u = sigma sqrt(n), l_i = u strength(s_i / u, gamma), at least that of the transition, u gamma^(1/4), below
    which no signal can be seen; where there is no spike, that alone, so that the first spike to appear changes
    nothing. Where the estimator saw no noise, the values themselves count: s_i for l_i, and the edge where nothing
    stands above it.
    """
    spikes = t.spectrum.s[t.spectrum.s > t.fit.edge]
    if not t.fit.sigma:
        return math.sqrt(float((spikes**2).sum())) or t.fit.edge
    unit, gamma = t.fit.sigma * math.sqrt(t.spectrum.n), t.spectrum.gamma
    least = critical_strength(gamma)
    found = np.maximum(strength(spikes / unit, gamma), least) if len(spikes) else np.array([least])
    return unit * math.sqrt(float((found**2).sum()))
