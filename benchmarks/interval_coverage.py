"""How often the 90 per cent interval of `Bema` holds the end of the law of the noise: simulation, planted truth.

    python benchmarks/interval_coverage.py benchmarks/results/interval_coverage.json    # a quarter of an hour, one core
    python benchmarks/interval_coverage.py out.json --quick                              # a minute

Truth: sigma (sqrt(n) + sqrt(p)), sigma the standard deviation that the noise was drawn with; of an equalised matrix the
root mean square of the noise in W~, whose norm is fixed. Spikes are spaced linearly in units of the transition. `lean`
is the mean distance of the middle of the interval from the truth in half-widths, `spread` its standard deviation (.61
if the width is right); `wide` tells the mean half-width over the edge.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import spectrim
from spectrim.edges import Bema
from spectrim.planted import critical, planted
from spectrim.reading import read_equalised, read_spectrum

# p, n, planted, weakest, strongest (times the transition), log-sd of row and column scales (0: not equalised), draws
CELLS = (
    (300, 900, 0, 1.5, 4.0, 0.0, 600),
    (384, 384, 0, 1.5, 4.0, 0.0, 600),
    (500, 1000, 5, 1.5, 4.0, 0.0, 600),
    (1000, 1000, 10, 1.5, 4.0, 0.0, 300),
    (384, 1536, 10, 1.5, 4.0, 0.0, 600),
    (500, 1000, 5, 1.5, 4.0, 0.3, 300),
    (500, 1000, 20, 1.5, 4.0, 0.0, 300),  # 4 per cent of the values
    (200, 400, 8, 1.5, 4.0, 0.0, 600),
    (200, 400, 20, 1.5, 4.0, 0.0, 600),  # 10 per cent
    (200, 400, 50, 1.5, 6.0, 0.0, 300),  # a quarter
    (200, 400, 0, 1.5, 4.0, 0.3, 600),
    (200, 400, 8, 1.5, 4.0, 0.3, 600),
    (200, 400, 8, 1.1, 2.0, 0.0, 600),  # some are missed, and raise sigma
    (100, 100, 4, 1.5, 4.0, 0.0, 600),
    (20, 40, 0, 1.5, 4.0, 0.0, 600),
    (80, 200, 2, 1.5, 4.0, 0.3, 600),
)


def cell(p: int, n: int, planted_count: int, weak: float, strong: float, log_sd: float, draws: int) -> dict:
    """Returns the coverage in one setting."""
    generator = np.random.default_rng([2026, p, n, planted_count, int(10 * weak), int(10 * log_sd)])
    ladder = np.linspace(weak, strong, planted_count) * critical(p, n)
    leans, counts, wide = [], [], []
    for _ in range(draws):
        made = planted(p, n, ladder, row_log_sd=log_sd, col_log_sd=log_sd, generator=generator)
        sigma = 1.0
        if log_sd:
            spectrum, even = read_equalised(made.W, Bema())
            signal = made.row_scales[:, None] * ((made.U * made.strengths) @ made.Vh) * made.col_scales
            sigma = float(np.sqrt(np.mean((even.rows[:, None] * (made.W - signal) * even.cols) ** 2)))
        else:
            spectrum = read_spectrum(made.W)
        fit = Bema()(spectrum)
        low, high = fit.edge_interval
        leans.append(((low + high) / 2 - sigma * (p**0.5 + n**0.5)) / ((high - low) / 2))
        counts.append(fit.spikes)
        wide.append((high - low) / (high + low))
    inside = float(np.mean(np.abs(leans) <= 1))
    return {
        "p": p, "n": n, "planted": planted_count, "weakest": weak, "strongest": strong, "log_sd": log_sd,
        "draws": draws,
        "coverage": round(inside, 4), "error": round((inside * (1 - inside) / draws) ** 0.5, 4),
        "lean": round(float(np.mean(leans)), 3), "spread": round(float(np.std(leans)), 3),
        "wide": float(f"{np.mean(wide):.3g}"), "count": round(float(np.mean(counts)), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the draws")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, cells = time.perf_counter(), []
    for setting in CELLS:
        *what, draws = setting
        cells.append(cell(*what, max(10, draws // 20) if args.quick else draws))
        print(cells[-1], flush=True)
    record = {
        "spectrim": spectrim.__version__,
        "numpy": np.__version__,
        "quick": args.quick,
        "seconds": round(time.perf_counter() - start),
        "cells": cells,
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
