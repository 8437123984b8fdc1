"""Theorems 4.2 and 5.3, corollary 4.3, lemmas 4.4, 5.4 and B.5: what the removal of noise from a trained layer does.

W2 = S + R with a trained S of small rank (`network`) and noise R with N x N entries of variance g / N, in three ways to
widen one and the same function to N units: "fixed" (the trained units, the rest silent), "root" (copies of them that
use about sqrt(N) of the width), "all" (copies that use all of it). ||W3||_inf ||W1 s||_2 stays, grows as N**(1/4), and
as sqrt(N), so the quantity (16) goes to zero in the first two and not in the third.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from experiments import jobs
from experiments.theory.network import Net, bounds, cross_entropy, margins, smeared, trained, widened
from experiments.theory.noises import draw, rate, rate_error, rms
from numpy.typing import NDArray

Array = NDArray[np.float64]

SPREADS = ("fixed", "root", "all")
SCALED = 0.5  # kappa of corollary 4.3


def copies_of(spread: str, width: int, units: int) -> int:
    """Returns how often each trained unit stands in a layer of that width."""
    return {"fixed": 1, "root": max(1, round(sqrt(width / units))), "all": width // units}[spread]


def noise_of(law: str, net: Net, g: float, generator: np.random.Generator) -> tuple[Array, float]:
    """Returns (the noise on the units in use, squared Frobenius norm of all of it), entries of variance g / N.

    `along` is the control: all of the norm in one direction that the data have, of a random image. It is no noise in
    the sense of the theorems.
    """
    used = len(net.S)
    if law == "along":
        mean = net.hidden.mean(0)
        image = generator.standard_normal(net.width)[:used] / sqrt(net.width)
        return sqrt(g * net.width) * np.outer(image, mean / np.linalg.norm(mean)), g * net.width
    R = sqrt(g) * draw(law, net.width, net.width, generator)
    return R[:used, :used], float(np.sum(R**2))


def one(net: Net, clean: Array, law: str, g: float, penalty: float, generator: np.random.Generator) -> dict[str, Any]:
    """Returns what one draw of noise changes, `clean` being the outputs without any."""
    R, square = noise_of(law, net, g, generator)
    out = net.outputs(R)
    half = net.outputs(SCALED * R)
    change = np.abs(out - clean).max(1)
    cross = 2 * penalty * float(np.sum(net.S * R))
    entropy, scaled = cross_entropy(out, net.labels), cross_entropy(half, net.labels)
    loss = {
        "change of entropy": entropy - cross_entropy(clean, net.labels),
        "cross term": cross,
        "penalty": penalty * square,
    }
    gap = sum(loss.values())
    # L(W) - L(S + kappa R) for the two readings of "proportionally".
    part = entropy - scaled + (1 - SCALED) * cross + (1 - SCALED**2) * penalty * square
    met = np.abs(net.hidden @ R.T).max(1) / net.lengths()
    right = margins(clean, net.labels) > 0
    found: dict[str, Any] = loss | {
        "gap": gap,
        "residual": gap - penalty * square,
        "lower": float(gap > 0),
        "scaled, squares": part - (1 - SCALED**2) * penalty * square,
        "scaled, linear": part - (1 - SCALED) * penalty * square,
        "largest change": float(change.max()),
        "mean change": float(change.mean()),
        "accuracy": float(np.mean(margins(out, net.labels) > 0)),
        "flipped": float(np.mean((margins(out, net.labels) > 0) != right)),
        # Assumption 5 with the later form's d1(N) = 2 sqrt(2 log(2N) / N), g = 1.
        "over d1": float(np.mean(met > 2 * sqrt(2 * np.log(2 * net.width) / net.width))),
    }
    for name, bound in bounds(net, g).items():
        found[f"over {name}"] = float(np.mean(change > bound))
        found[f"any over {name}"] = float(np.any(change > bound))
        found[f"share of {name}"] = float(np.mean(change / bound))
        found[f"worst share of {name}"] = float(np.max(change / bound))  # the lemma is on every sample
    tau = bounds(net)["later"]
    found["entropy over bound"] = float(abs(loss["change of entropy"]) > 2 * float(tau.mean()))
    found["entropy, share of bound"] = abs(loss["change of entropy"]) / (2 * float(tau.mean()))
    # The later form's corollary: only samples with a margin under 2 tau can change sides.
    open_to = np.abs(margins(out, net.labels)) <= 2 * tau
    found["open to change"] = float(np.mean(open_to))
    found["flipped against it"] = float(np.mean(((margins(out, net.labels) > 0) != right) & ~open_to))
    return found


def cell(
    spread: str,
    law: str,
    g: float,
    penalty: float,
    widths: list[int],
    draws: int,
    settings: dict[str, float],
    seed: int,
    name: str,
    path: Path | None,
) -> dict[str, Any]:
    """Returns means and standard errors over the draws at every width, and the rate of what should vanish."""
    base = trained(jobs.images(name, path), seed=seed, **settings)
    clean = base.outputs()
    s = np.linalg.svd(base.S, compute_uv=False)
    out: dict[str, Any] = {
        **{"spread": spread, "law": law, "g": g, "penalty": penalty, "widths": []},
        "strengths": s[: int(settings["rank"])],
        "squared norm of S": float(np.sum(s**2)),
        "accuracy": float(np.mean(margins(clean, base.labels) > 0)),
        "entropy": cross_entropy(clean, base.labels),
        "outputs": float(np.abs(clean).mean()),
        "widest output": float(clean.max()),
    }
    for width in widths:
        net = widened(base, width, copies_of(spread, width, len(base.S)))
        rows = [
            one(net, clean, law, g, penalty, np.random.default_rng([seed, width, index, *law.encode()]))
            for index in range(draws)
        ]
        table: dict[str, Any] = {"N": width, "draws": draws, "used": len(net.S)}
        for key in rows[0]:
            x = np.array([row[key] for row in rows])
            table[key] = [x.mean(), x.std(ddof=1) / sqrt(draws)]
            if key.startswith("worst") or key == "entropy, share of bound":
                table[f"{key}, any draw"] = x.max()
        for key in ("residual", "cross term", "change of entropy", "scaled, squares", "scaled, linear"):
            table[f"rms {key}"], table[f"error of rms {key}"] = map(float, rms([row[key] for row in rows]))
        mean = smeared(net, g)
        table["mean field, change of entropy"] = cross_entropy(mean, net.labels) - out["entropy"]
        table["mean field, mean change"] = float(np.abs(mean - clean).max(1).mean())
        table["a"] = float(np.max(bounds(net)["later"])) / (2 * sqrt(2))
        table["a printed"] = float(np.max(bounds(net)["printed"]))
        out["widths"].append(table)
    for key in ("rms residual", "rms cross term", "rms change of entropy", "a"):
        column = [t[key] for t in out["widths"]]
        out[f"rate of {key}"] = rate(widths, column)
        if key != "a":  # which has no chance in it
            errors = [t[f"error of {key}"] for t in out["widths"]]
            out[f"error of rate of {key}"] = rate_error(widths, column, errors)
    out["rate of largest change"] = rate(widths, [t["largest change"][0] for t in out["widths"]])
    return out
