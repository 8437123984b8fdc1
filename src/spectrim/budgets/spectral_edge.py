"""The spectral edge budget: layers whose noise reaches far give more, the others less."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from spectrim.survey import Survey
from spectrim.verdict import GATE

from .allotment import NONE, Allotment, Target, asked, candidates, check_gate, told, unfit
from .heavy_tail import exponent
from .magnitude import by_weight

Signal = Literal["edge", "sigma", "relative edge", "exponent"]


class Regime(NamedTuple):
    """What holds up to a share of zeros: the signal, how strongly it acts in either kind of layer, where it ends."""

    until: float
    signal: Signal
    beta_attention: float
    beta_mlp: float
    end: float


REGIMES = (
    Regime(0.20, "exponent", 0.5, 0.5, 0.3),
    Regime(0.40, "edge", 1.0, 1.0, 0.5),
    Regime(0.55, "edge", 1.25, 1.25, 0.7),
    Regime(1.00, "edge", 1.0, 2.0, 0.85),
)
# The path component that tells, from the innermost outwards: BERT keeps attention.output.dense beside output.dense.
ATTENTION = re.compile(
    r"att(n|ention)|(^|_)mha($|_)|^(q|k|v|o)(_?proj(_weight)?|_lin)$|^w?qkv|^to_(q|k|v|qkv|out)$|^in_proj(_weight)?$"
    r"|^query_key_value$|^(query|key|value)$|\[[qkv](\.\d+)?\]$",
    re.IGNORECASE,
)
MLP = re.compile(
    r"mlp|ffn|feed_?forward|intermediate|^fc\d*$|^c_fc$|^densereludense$|^linear\d$|^(gate|up|down)_proj$|expert",
    re.IGNORECASE,
)


def is_attention(name: str) -> bool:
    """Return whether a matrix belongs to an attention layer, by its name.

    The innermost part of the path that tells decides: attn, attention, self_attn, mha, q_proj, qkv, query, in_proj, or
    a fused part [q], [k], [v] say yes; mlp, ffn, fc1, intermediate, linear1, up_proj, experts say no. Where none does,
    the answer is no.

    Args:
        name: as in the survey.

    Example:
        >>> [is_attention(name) for name in ("encoder.0.attention.output.dense", "encoder.0.output.dense")]
        [True, False]
        >>> [is_attention(name) for name in ("blocks.3.attn.qkv[q]", "blocks.3.mlp.fc1", "head")]
        [True, False, False]
    """
    for part in reversed(re.split(r"\.(?![^\[]*\])", name)):
        if ATTENTION.search(part):
            return True
        if MLP.search(part):
            return False
    return False


@dataclass(frozen=True)
class SpectralEdge:
    """One threshold, over all matrices, for |W| / w, where w grows with the noise edge of the matrix.

        w = max(floor, 1 + beta z d),   z = (signal - mean) / sd over the matrices,   d = max(0, 1 - zeros / end)

    With beta = 0, or from zeros = end on, it is the plain threshold for |W|. What is None is taken from the four
    regimes that the authors found on vision transformers:

        zeros     signal     beta (attention, MLP)   end
        to .20    exponent   .5                      .3
        to .40    edge       1                       .5
        to .55    edge       1.25                    .7
        above     edge       1, 2                    .85

    Args:
        signal: "edge", in the unit of singular values; "sigma", the noise level of an entry; "relative edge", the edge
            over the Frobenius norm; "exponent", that of the heavy tail (see `HeavyTail`).
        beta_attention: strength in attention layers, finite.
        beta_mlp: strength in all other layers, finite.
        end: share of zeros from which the budget is plain magnitude, > 0.
        floor: smallest w, > 0.
        gate: largest misfit of a bulk whose edge is believed, in [0, 1]. Other matrices have w = 1 and take no part in
            mean and sd; if none fits, all are taken by plain magnitude.
        attention: tells attention layers by name; `is_attention` unless given.

    Example:
        >>> SpectralEdge(signal="edge", end=0.9).regime(0.5)
        Regime(until=0.55, signal='edge', beta_attention=1.25, beta_mlp=1.25, end=0.9)

    References:
        arXiv 2606.02608, appendix F. The sd is that of the whole (no n - 1).
    """

    signal: Signal | None = None
    beta_attention: float | None = None
    beta_mlp: float | None = None
    end: float | None = None
    floor: float = 0.1
    gate: float = GATE
    attention: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        if self.signal not in (None, *get_args(Signal)):
            raise ValueError(f"signal is one of {', '.join(get_args(Signal))}, not {self.signal!r}")
        for name in ("beta_attention", "beta_mlp"):
            beta = getattr(self, name)
            if beta is not None and not np.isfinite(beta):
                raise ValueError(f"{name} is a finite number, not {beta!r}")
        if self.end is not None and not self.end > 0:
            raise ValueError(f"end is a share of zeros above 0, not {self.end!r}")
        if not 0 < self.floor < np.inf:
            raise ValueError(f"floor is a positive weight, not {self.floor!r}")
        check_gate(self.gate)

    def regime(self, zeros: float) -> Regime:
        """Return the settings that hold at this share of zeros."""
        usual = next(r for r in REGIMES if zeros <= r.until)
        given = {name: getattr(self, name) for name in Regime._fields[1:]}
        return usual._replace(**{name: value for name, value in given.items() if value is not None})

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        asked(targets, zeros)
        closed = unfit((t.reading for t in targets), self.gate)
        regime = self.regime(zeros)
        signals = {}
        for t in targets:
            if t.name not in closed:
                try:
                    signals[t.name] = signal_of(t, regime.signal)
                except ValueError as error:
                    closed[t.name] = str(error)
        reasons = {name: f"w = 1: {why}" for name, why in closed.items()}
        if not signals:
            return by_weight(targets, zeros, {}, reasons, [NONE])
        values = np.array(list(signals.values()))
        mean, sd = float(values.mean()), float(values.std())
        fade = max(0.0, 1 - zeros / regime.end)
        weights = {}
        for name, value in signals.items():
            z = (value - mean) / sd if sd > 1e-12 * abs(mean) else 0.0
            beta = regime.beta_attention if (self.attention or is_attention)(name) else regime.beta_mlp
            w = max(self.floor, 1 + beta * z * fade)
            weights[name] = 1 / w
            reasons[name] = f"w = {w:.2f}: {regime.signal} {value:.4g}, {z:+.1f} sd"
        notes = list(told(closed, "w = 1 for them"))
        if fade == 0:
            notes.append(f"from {regime.end:.0%} zeros on the spectral edge budget is plain magnitude")
        return by_weight(targets, zeros, weights, reasons, notes)


def signal_of(t: Target, signal: Signal) -> float:
    """Return the figure that the budget goes by; ValueError where the matrix has none."""
    if signal == "exponent":
        return exponent(t.spectrum)
    if signal == "sigma":
        if t.fit.sigma is None:
            raise ValueError(f"{t.fit.method} tells no noise level")
        return t.fit.sigma
    if signal == "edge":
        return t.fit.edge
    if not t.norm:
        raise ValueError("it is all zero")
    return t.fit.edge / t.norm
