"""How well the noise is measured from the values that a cut has left: bias of sigma, false and lost spikes.

    python benchmarks/cut_spectra.py benchmarks/results/cut_spectra.json

Matrices of unit noise with planted signal; of each spectrum the spikes and a share of the bulk are kept, the largest
values, and `Bema` reads what is left. Three cases: no signal, signal well over the transition, and signal around it,
which hides at the top of the bulk. One thread: two minutes.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from spectrim import Bema, Spectrum
from spectrim.planted import critical, planted

SHAPES = ((300, 300), (200, 400), (150, 1500))
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
# Strengths in units of the transition.
SIGNALS = {"none": (), "clear": tuple(np.linspace(2, 5, 12)), "hidden": tuple(np.linspace(1.05, 1.6, 40))}


def cell(rows: int, cols: int, signal: str, draws: int) -> list[dict]:
    """Returns for each share kept the means and standard errors over the draws."""
    found = {share: [] for share in SHARES}
    refused = dict.fromkeys(SHARES, 0)
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        made = planted(rows, cols, np.array(SIGNALS[signal]) * critical(rows, cols), generator=generator)
        whole = Spectrum(np.linalg.svd(made.W, compute_uv=False), rows, cols)
        first = Bema()(whole).spikes
        for share in SHARES:
            left = whole.largest(first + round(share * (whole.p - first)))
            try:
                fit = Bema()(left)
            except ValueError:
                refused[share] += 1
                continue
            found[share].append((fit.sigma**2, fit.spikes, first, fit.misfit or 0.0))
    out = []
    for share in SHARES:
        x = np.array(found[share], float)
        if len(x) < 2:
            out.append({"share": share, "refused": refused[share]})
            continue
        out.append(
            {
                "share": share,
                "variance": [float(x[:, 0].mean()), float(x[:, 0].std(ddof=1) / len(x) ** 0.5)],
                "spikes": float(x[:, 1].mean()),
                "spikes_whole": float(x[:, 2].mean()),
                "false_rate": float((x[:, 1] > len(SIGNALS[signal])).mean()),
                "misfit_max": float(x[:, 3].max()),
                "refused": refused[share],
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    results = {
        f"{rows} x {cols}, {signal}": cell(rows, cols, signal, options.draws)
        for rows, cols in SHAPES
        for signal in SIGNALS
    }
    options.output.write_text(json.dumps({"draws": options.draws, "cells": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
