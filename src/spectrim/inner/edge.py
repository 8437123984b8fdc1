"""Where noise ends among the whitened values: W L has columns of its own colour, and no Marchenko-Pastur law."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import numpy as np
from torch import Tensor

from spectrim.edges import Bema, Known, ScreeNot
from spectrim.laws import TracyWidom, coloured_top
from spectrim.linalg import Matrix, as_tensor, singular_values
from spectrim.spectrum import ZERO, NoiseFit, Spectrum

from .damage import Second, metric
from .whiten import whitened_values

Noise = Literal["coloured", "screenot"]


def whitened_edge(
    W: Matrix,
    C: Second = None,
    noise: Noise = "coloured",
    *,
    sigma: float | None = None,
    beta: float = 0.1,
    rank_bound: float = 0.25,
    rows: Tensor | None = None,
) -> NoiseFit:
    """Return where noise ends among the values of `whitened_values`, and how many of them lie above.

    With W = S + R, the entries of R independent of standard deviation sigma, the whitened noise diag(s)^1/2 R L,
    C = L L^T, has rows of variance s_i and, turned, columns whose variances are the eigenvalues c_j of C. What it looks
    like is thus known, and its end is that of

        "coloured"   noise with entries of variance sigma^2 s_i c_j, `laws.coloured_top`, sigma measured on W itself
        "screenot"   any noise, `edges.ScreeNot`, which is told nothing of C

    An edge estimator that expects even noise takes the colour for signal. Without C and s it is the edge of W.

    Args:
        W: rows x cols, any float type.
        C: second moment of the inputs, cols x cols; its diagonal, (cols,); a `Moment`; or None for the identity.
        noise: what is assumed.
        sigma: standard deviation of a noise entry of W, > 0; with "coloured", that of `edges.Bema` unless given.
        beta: upper-tail probability in (0, 1), with "coloured".
        rank_bound: largest share of the values, or count, that may be signal, with "screenot".
        rows: weights of the outputs, (rows,), > 0; those of the `Moment` where None.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> W = torch.randn(60, 80, generator=generator)
        >>> whitened_edge(W, torch.linspace(0.1, 9, 80)).spikes
        0

    References:
        As for `laws.coloured_top` and `edges.ScreeNot`.
    """
    W = as_tensor(W)
    if noise not in ("coloured", "screenot"):
        raise ValueError(f"noise is 'coloured' or 'screenot', not {noise!r}")
    m = metric(W, C, rows)
    s = singular_values(W) if m.classical else whitened_values(W, m.second, rows=m.rows).cpu().numpy()
    colours = singular_values(m.second) if m.dense else m.diagonal(W).cpu().numpy()  # of C, which is not negative
    if noise == "screenot":
        # Directions that no input has, of fewer samples than inputs, are no columns of noise.
        cols = int((colours > ZERO * colours.max()).sum())
        return ScreeNot(rank_bound)(Spectrum(s[: min(W.shape[0], cols)], W.shape[0], cols))
    if sigma is None:
        sigma = Bema()(Spectrum(s if m.classical else singular_values(W), *W.shape)).sigma
    known = Known(sigma, beta)
    if m.classical:
        return known(Spectrum(s, *W.shape))
    weights = np.ones(W.shape[0]) if m.rows is None else m.rows.cpu().numpy()
    top, unit = coloured_top(weights, colours)
    edge = known.sigma * sqrt(max(top + TracyWidom().ppf(1 - known.beta) * unit, 0.0))
    return NoiseFit(known.sigma, edge, None, None, int((s > edge).sum()), f"whitened_edge(beta={known.beta!r})")
