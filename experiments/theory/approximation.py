"""The approximation lemma of arXiv 2310.03165: how near the cut matrix is to the signal, applied to a vector.

We have a summary of that paper and not the text, so the statement is a reconstruction: W = R + S, the singular values
of S above the critical strength, W' what is left of W above the edge; then ||(W' - S) z||**2 is bounded with high
probability for a fixed vector z. The sharp constant follows from the spike maps: for a fixed unit vector z

    ||(W' - S) z||**2  ->  sum_i <v_i, z>**2 along(theta_i)

where v_i are the right vectors of S. It is zero for a z that is spread over all directions, and not for the v_i.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from experiments.theory.noises import draw, rate
from numpy.typing import NDArray

from spectrim.laws import cosines, critical_strength, observed, shrink
from spectrim.planted import frame

Array = NDArray[np.float64]

STRENGTHS = (4.0, 2.5, 1.5)  # times the critical one
VECTORS = 50  # z drawn at random


def along(theta: Array, c: float) -> Array:
    """Returns the limit of ||(W' - S) v||**2 for the right vector v, of length n, of a signal of that strength.

        rho**2 b - 2 rho theta sqrt(a b) + theta**2,   a, b the squared cosines on the sides of p and n

    On square matrices it is 1 + theta**-2 - theta**-4, where ||(W - S) v||**2 = ||R v||**2 -> 1 (c for W of p x n).

    Example:
        >>> along(np.array([2.0]), 1.0).round(4).tolist()
        [1.1875]
    """
    long, short = cosines(theta, c)
    rho = observed(theta, c)
    return rho**2 * long - 2 * rho * theta * np.sqrt(short * long) + theta**2


def worst(theta: Array, c: float) -> Array:
    """Returns the limit of ||W' - S||**2 over all z that the signal of that strength alone can make: a 2 x 2 matrix."""
    long, short = cosines(theta, c)
    found = []
    for t, rho, a, b in zip(theta, observed(theta, c), short, long, strict=True):
        u, v = np.array([sqrt(a), sqrt(1 - a)]), np.array([sqrt(b), sqrt(1 - b)])
        found.append(np.linalg.norm(rho * np.outer(u, v) - np.diag([t, 0.0]), 2) ** 2)
    return np.array(found)


def one(law: str, p: int, n: int, generator: np.random.Generator) -> dict[str, Any]:
    """Returns squared lengths for one draw: cut, untouched and shrunk matrix, along the signal and at random."""
    c, k = p / n, len(STRENGTHS)
    theta = np.array(STRENGTHS) * critical_strength(c)
    left, right = frame(p, k, generator=generator), frame(n, k, generator=generator)
    noise = draw(law, p, n, generator)
    S = (left * theta) @ right.T
    W = S + noise
    squares, U = np.linalg.eigh(W @ W.T)
    s, U = np.sqrt(np.maximum(squares[::-1], 0)), U[:, ::-1]
    # Two per cent above the edge, so that a value of the noise next to it is not kept by chance.
    kept = int(np.count_nonzero(s > 1.02 * (1 + sqrt(c))))
    V = W.T @ U[:, :kept] / s[:kept]
    z = generator.standard_normal((n, VECTORS))
    z /= np.linalg.norm(z, axis=0)
    out: dict[str, Any] = {"kept": float(kept)}
    for name, matrix in (
        ("cut", (U[:, :kept] * s[:kept]) @ V.T),
        ("whole", W),
        ("shrunk", (U[:, :kept] * shrink(s[:kept], c)) @ V.T),
    ):
        rest = matrix - S
        out[f"{name}, along"] = np.sum((rest @ right) ** 2, axis=0)
        out[f"{name}, random"] = float(np.mean(np.sum((rest @ z) ** 2, axis=0)))
    out["cut, random, largest"] = float(np.max(np.sum(((U[:, :kept] * s[:kept]) @ (V.T @ z) - S @ z) ** 2, axis=0)))
    out["cut, worst"] = float(np.linalg.norm((U[:, :kept] * s[:kept]) @ V.T - S, 2) ** 2)
    return out


def cell(law: str, c: float, sizes: list[tuple[int, int]], seed: int) -> dict[str, Any]:
    """Returns means and standard errors over the draws of each size (p, draws), the limits, and how often they hold."""
    theta = np.array(STRENGTHS) * critical_strength(c)
    limit, most = along(theta, c), worst(theta, c)
    coarse = (2 * (1 + sqrt(c))) ** 2  # ||W' - W|| and ||R|| are at most the edge each
    out: dict[str, Any] = {
        **{"law": law, "c": c, "theta": list(STRENGTHS), "limit along": limit, "limit worst": float(most.max())},
        **{"coarse bound": coarse, "sizes": []},
    }
    for p, draws in sizes:
        rows = [
            one(law, p, round(p / c), np.random.default_rng([seed, p, index, round(100 * c), *law.encode()]))
            for index in range(draws)
        ]
        table: dict[str, Any] = {"p": p, "draws": draws}
        for key in rows[0]:
            x = np.array([row[key] for row in rows])
            table[key] = [x.mean(0), x.std(0, ddof=1) / sqrt(draws)]
        table["rms error along"] = np.sqrt(np.mean([(row["cut, along"] / limit - 1) ** 2 for row in rows], axis=0))
        table["over coarse bound"] = float(np.mean([row["cut, worst"] > coarse for row in rows]))
        out["sizes"].append(table)
    ps = [p for p, _ in sizes]
    out["rate, along"] = [rate(ps, [t["rms error along"][i] for t in out["sizes"]]) for i in range(len(STRENGTHS))]
    out["rate, random"] = rate(ps, [float(t["cut, random"][0]) for t in out["sizes"]])
    return out
