"""What the charts of one spectrum are drawn from: a histogram, its noise law, every spike and a thinned bulk."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrim.laws import MarchenkoPastur
from spectrim.report.figures import number, numbers

BINS = 80  # bars of a histogram at most
POINTS = 250  # of the bulk in a scree plot; every spike is kept besides
CURVE = 61  # nodes of the drawn law
CELLS = 24  # cells of the map of the whole model between 0 and the edge
TOP = 120  # cells at most in one column of that map


def view(spectrum: Any, fit: Any, kept: Sequence[int] | None = None, also: Sequence[int] = ()) -> dict[str, Any]:
    """Returns the chart data and the figures of one spectrum with its verdict, ready for JSON.

    The law drawn is the one of what is left when the K spikes are gone: p - K values s**2 / (n - K) of ratio
    (p - K) / (n - K), in the unit of the singular values, where the density at s is pdf(s**2 / m) 2 s / m, m = n - K.

    Args:
        spectrum: a `Spectrum`.
        fit: its `NoiseFit`, or None: then there is neither an edge nor a law.
        kept: positions of the values that a plan keeps (0 is the largest of all), or None where it cuts none.
        also: those among them that it names one by one.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> s = Record(s=np.array([5.0, 1.5, 1.0, 0.5]), rows=4, cols=4, p=4, n=4, equalised=False)
        >>> shown = view(s, Record(sigma=0.5, edge=2.0, edge_interval=None, misfit=None, spikes=1, method="Known"))
        >>> shown["spikes"], shown["spike_values"], shown["bulk_share"]
        (1, [5.0], 0.75)

    References:
        V. A. Marchenko and L. A. Pastur, Math. USSR-Sb. 1 (1967) 457, eq. (1.14), with s = sqrt(m x).
    """
    s = np.asarray(spectrum.s, np.float64)
    p, n = int(spectrum.p), int(spectrum.n)
    edge = number(getattr(fit, "edge", None), 8)
    sigma = number(getattr(fit, "sigma", None))
    k = int((s > fit.edge).sum()) if edge is not None else 0
    energy = np.cumsum(s**2)
    total = float(energy[-1]) if s.size else 0.0
    hist = _histogram(s, edge)
    shown = np.unique(np.linspace(k, s.size - 1, min(POINTS, s.size - k)).round().astype(int))
    out = {
        "basis": "equalised" if getattr(spectrum, "equalised", False) else "plain",
        "rows": int(spectrum.rows),
        "cols": int(spectrum.cols),
        "values": int(s.size),
        "sigma": sigma,
        "edge": edge,
        "edge_interval": _interval(getattr(fit, "edge_interval", None)),
        "misfit": number(getattr(fit, "misfit", None)),
        "method": getattr(fit, "method", None),
        "spikes": k if edge is not None else None,
        "bulk_share": number(1 - k / s.size) if edge is not None and s.size else None,
        "largest": number(s[0]) if s.size else None,
        "spike_energy": number(float(energy[k - 1]) / total if k else 0.0) if total and edge is not None else None,
        "stable_rank": number(total / float(s[0]) ** 2) if total else None,
        "hist": hist,
        "spike_values": numbers(s[:k]),
        "bulk_index": shown.tolist(),
        "bulk_values": numbers(s[shown], 5),
        "law": None,
        "kept": _kept(s, k, kept, also),
        "map": columns(s, edge),
    }
    m, left = n - k, p - k
    if sigma and left > 1 and s.size == p:  # a law for what is left needs all of what is left
        law = MarchenkoPastur(left / m, sigma)
        low, high = sqrt(m * law.lower), sqrt(m * law.upper)
        # Nodes crowd at both ends, where the density rises and falls like a square root; the ends themselves are
        # moved inwards by a hair because the density of s at 0 is a limit when the matrix is square.
        nodes = low + (high - low) * (0.5 - 0.5 * np.cos(np.linspace(1e-4, np.pi, CURVE)))
        per_bar = left * hist["width"] * law.pdf(nodes**2 / m) * 2 * nodes / m
        levels = 1 - (shown - k + 0.5) / left
        expected = np.sqrt(m * law.ppf(np.clip(levels, 0, 1)))
        out["law"] = {
            "s": numbers(nodes, 5),
            "count": numbers(per_bar, 4),
            "expected": numbers(expected, 5),
        }
    return out


def height(ratio: float) -> float:
    """Returns where the map of the model puts a value of so many edges: linear below 1, natural logarithm above.

    Value and slope are continuous at the edge, so the bulk keeps its shape and a spike of 30 edges still fits.

    Example:
        >>> height(0.5), height(1.0), round(height(2.0), 3)
        (0.5, 1.0, 1.693)
    """
    return ratio if ratio <= 1 else 1 + log(ratio)


def columns(s: NDArray[np.float64], edge: float | None) -> list[list[int]]:
    """Returns the cells of one matrix in the map of the model, as pairs of cell and count.

    Cell i covers the heights i / CELLS to (i + 1) / CELLS; the edge is the border below cell CELLS.

    Args:
        s: singular values.
        edge: the noise edge in the same unit, or None: then there are no cells.

    Example:
        >>> columns(np.array([2.0, 0.5, 0.51]), 1.0)
        [[12, 2], [40, 1]]
    """
    if not edge or edge <= 0:
        return []
    ratio = s / edge
    high = np.where(ratio <= 1, ratio, 1 + np.log(np.maximum(ratio, 1)))
    # A value on the edge is bulk: its cell is the last one below.
    cell = np.where(ratio <= 1, np.minimum(np.floor(high * CELLS), CELLS - 1), np.floor(high * CELLS))
    cells, counts = np.unique(np.minimum(cell, TOP - 1).astype(int), return_counts=True)
    return np.stack([cells, counts], axis=1).tolist()


def _histogram(s: NDArray[np.float64], edge: float | None) -> dict[str, Any]:
    """Bars of one width, with the edge on a border, so that no bar mixes bulk and spikes; what lies past the last bar
    is counted in `beyond`: the spikes are drawn one by one anyway."""
    if not s.size:
        return {"start": 0.0, "width": 1.0, "counts": [], "bulk_bars": 0, "beyond": 0}
    low, high = float(s[-1]), float(s[0])
    bulk = int((s <= edge).sum()) if edge else 0
    bars = int(np.clip(round(1.6 * sqrt(max(bulk, 1))), 6, 40))
    if edge and bulk and edge > low:
        width = (edge - low) / bars
        start = edge - bars * width
    else:
        width, start, bars = max((high - low) / 40, 1e-12 * max(high, 1e-300), 1e-300), low, 0
    total = int(np.clip(ceil((high - start) / width - 1e-9), max(bars, 1), BINS))
    borders = start + width * np.arange(total + 1)
    if bars:
        borders[bars] = edge
    inside = s[s <= borders[-1] * (1 + 1e-12)]
    # Right-closed bars: a value exactly on the edge is bulk.
    which = np.clip(np.searchsorted(borders, inside, side="left") - 1, 0, total - 1)
    counts = np.bincount(which, minlength=total)
    return {
        "start": number(start, 8),
        "width": number(width, 8),
        "counts": counts.tolist(),
        "bulk_bars": bars,
        "beyond": int(s.size - inside.size),
    }


def _kept(s: NDArray[np.float64], k: int, kept: Sequence[int] | None, also: Sequence[int]) -> dict[str, Any] | None:
    """What a cut keeps of this spectrum, spikes and bulk apart; None without a cut. `top` are the largest values, kept
    without a gap, `others` the positions kept below them, `named` the rank and value of those that the plan names."""
    if kept is None or not s.size:
        return None
    kept = np.array(sorted({i for i in kept if 0 <= i < s.size}), int)
    top = int(np.count_nonzero(kept == np.arange(kept.size)))
    threshold = s[0] * 1.02 if top == 0 else s[-1] * 0.98 if top == s.size else 0.5 * (s[top - 1] + s[top])
    spikes = int(np.count_nonzero(kept < k))
    total = float(np.sum(s**2))
    return {
        "rank": kept.size,
        "top": top,
        "others": kept[top:].tolist(),
        "named": [[int(i) + 1, number(float(s[i]))] for i in sorted(also) if 0 <= i < s.size],
        "threshold": number(threshold),
        "energy": number(float(np.sum(s[kept] ** 2)) / total if total else 0.0),
        "spikes_kept": spikes,
        "bulk_kept": kept.size - spikes,
        "spikes_cut": k - spikes,
        "bulk_cut": int(s.size - k - (kept.size - spikes)),
    }


def _interval(pair: Any) -> list[float | None] | None:
    return None if pair is None else [number(x) for x in pair]
