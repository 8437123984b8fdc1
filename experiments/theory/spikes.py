"""The spike maps: theorems D.1 to D.8 and eq. 77 against simulation, for noise of several laws."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from experiments.theory.noises import draw, rate, rate_error, rms
from experiments.theory.transform import Transform
from numpy.typing import NDArray

from spectrim.laws import cosines, critical_strength, observed
from spectrim.planted import frame

Array = NDArray[np.float64]

STRENGTHS = (3.5, 2.2, 1.4, 0.6)  # times the critical one, in one matrix; the last is hidden


def one(law: str, p: int, n: int, g: float, generator: np.random.Generator) -> dict[str, Any]:
    """Returns what one draw of sqrt(g) R + S shows, and what is expected of it from R and from the draw itself.

    The signal has Haar vectors, so what holds for bi-unitarily invariant noise holds for noise of any law.
    """
    k = len(STRENGTHS)
    theta = np.array(STRENGTHS) * critical_strength(p / n) * sqrt(g)
    left, right = frame(p, k, generator=generator), frame(n, k, generator=generator)
    noise = sqrt(g) * draw(law, p, n, generator)
    W = (left * theta) @ right.T + noise
    squares, U = np.linalg.eigh(W @ W.T)
    s, U = np.sqrt(np.maximum(squares[::-1], 0)), U[:, ::-1][:, : k - 1]
    V = W.T @ U / s[: k - 1]
    own = Transform(np.sqrt(np.maximum(np.linalg.eigvalsh(noise @ noise.T), 0)), n)
    # The inverse needs no R: the values that are left stand for those of the noise.
    rest = Transform(s[k - 1 :], n)
    short, long = own.cosines(theta[:-1])
    return {
        "values": s[:k],
        "short": np.sum(U * left[:, :-1], axis=0) ** 2,
        "long": np.sum(V * right[:, :-1], axis=0) ** 2,
        "from noise": own.seen(theta),
        "short from noise": short,
        "long from noise": long,
        "strength from rest": rest.strength(s[: k - 1]) / theta[:-1],
        "top of noise": own.values[-1],
        "frobenius": float(np.sum(noise**2)),
    }


def cell(law: str, c: float, g: float, sizes: list[tuple[int, int]], seed: int) -> dict[str, Any]:
    """Returns means and standard errors over the draws of each size (p, draws), limits, and the rate of the errors."""
    out: dict[str, Any] = {"law": law, "c": c, "g": g, "theta": list(STRENGTHS), "sizes": []}
    strong, critical = np.array(STRENGTHS[:-1]), critical_strength(c)
    long, short = cosines(strong * critical, c)
    out["limit"] = {
        "values": sqrt(g) * observed(np.array(STRENGTHS) * critical, c),
        **{"short": short, "long": long, "top of noise": sqrt(g) * (1 + sqrt(c))},
    }
    for p, draws in sizes:
        rows = [
            one(
                law,
                p,
                round(p / c),
                g,
                np.random.default_rng([seed, p, index, round(100 * c), round(100 * g), *law.encode()]),
            )
            for index in range(draws)
        ]
        table: dict[str, Any] = {"p": p, "draws": draws}
        for key in rows[0]:
            x = np.array([row[key] for row in rows])
            table[key] = [x.mean(0), x.std(0, ddof=1) / sqrt(draws)]
        # In each draw against what its own noise says: this error has no part from the law.
        for key, source in (("values", "from noise"), ("short", "short from noise"), ("long", "long from noise")):
            x = np.array([row[key] - row[source] for row in rows])
            table[f"{key} less own"] = [x.mean(0), x.std(0, ddof=1) / sqrt(draws)]
        limit = out["limit"]["values"]
        x = np.array([row["values"][:3] / limit[:3] - 1 for row in rows])
        table["rms error"], table["rms error, its error"] = rms(x)
        x = np.array([row["values"][:3] / row["from noise"][:3] - 1 for row in rows])
        table["rms error, own"], table["rms error, own, its error"] = rms(x)
        out["sizes"].append(table)
    ps = [p for p, _ in sizes]
    for key in ("rms error", "rms error, own"):
        columns = [[t[key][i] for t in out["sizes"]] for i in range(3)]
        errors = [[t[f"{key}, its error"][i] for t in out["sizes"]] for i in range(3)]
        out[f"rate of {key}"] = [rate(ps, column) for column in columns]
        out[f"error of rate of {key}"] = [rate_error(ps, *both) for both in zip(columns, errors, strict=True)]
    out["rate of top of noise"] = rate(ps, [float(t["top of noise"][0]) for t in out["sizes"]])
    return out
