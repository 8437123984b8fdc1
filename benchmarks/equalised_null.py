"""How far the top of equalised noise strays, how often it is called signal, and what is found when signal is there.

Writes JSON; docs/equalisation.md prints it as tables.  About 12 minutes on one core with the defaults:

    python benchmarks/equalised_null.py benchmarks/results/equalised_null.json
    python benchmarks/equalised_null.py out.json --quick          # a minute, a tenth of the draws
"""

from __future__ import annotations

import argparse
import json
import time
from math import sqrt
from pathlib import Path

import numpy as np
import torch

from spectrim.edges import Bema, Known, Median
from spectrim.laws import evened, top_eigenvalue
from spectrim.planted import critical, noise, planted, scales
from spectrim.reading import read_equalised, read_spectrum
from spectrim.spectrum import Spectrum

# Short side, long side, draws. The small sizes are there to see the law fail; the large ones to see it hold.
SIZES = (
    (10, 10, 3000),
    (10, 40, 3000),
    (20, 20, 3000),
    (20, 200, 2000),
    (50, 50, 3000),
    (50, 100, 2000),
    (50, 500, 2000),
    (100, 100, 2000),
    (100, 300, 2000),
    (200, 200, 1500),
    (200, 800, 1000),
    (384, 384, 1000),
    (384, 1536, 400),
    (800, 800, 300),
)
ENTRIES = {  # all of unit variance; kurtosis 3, 1.8, 1 and 6
    "gaussian": lambda generator, shape: noise(*shape, generator=generator),
    "uniform": lambda generator, shape: generator.uniform(-sqrt(3), sqrt(3), shape),
    "signs": lambda generator, shape: generator.choice([-1.0, 1.0], shape),
    "laplace": lambda generator, shape: generator.laplace(scale=sqrt(0.5), size=shape),
}
PLANTED = ((100, 300), (384, 384), (384, 1536))


def null(p: int, n: int, draws: int, log_sd: float, seed: int, entries: str = "gaussian") -> dict[str, object]:
    """Top eigenvalues of independent and of equalised noise in Tracy-Widom units, and how often each is a spike."""
    g = p / n
    centre, unit = (1 + sqrt(g)) ** 2, n ** (-2 / 3) * g ** (-1 / 6) * (1 + sqrt(g)) ** (4 / 3)
    tops, shifts, sigmas = [], [], []
    spiky = {"plain": 0, "uncorrected": 0, "corrected": 0, "whole path": 0, "known": 0, "median": 0}
    generator = np.random.default_rng([seed, p, n])
    for _ in range(draws):
        N = ENTRIES[entries](generator, (p, n))
        W = scales(p, log_sd, generator=generator)[:, None] * N * scales(n, log_sd, generator=generator)
        plain = read_spectrum(N)
        even = read_equalised(W)[0]
        # Equalised noise keeps the norm of W; divided by that of N its sigma is one again.
        gain = np.linalg.norm(W) / np.linalg.norm(N)
        even = Spectrum(even.s / gain, p, n, equalised=True, spread=even.spread)
        tops.append((plain.eigenvalues[0], even.eigenvalues[0]))
        shifts.append((even.eigenvalues[0] / plain.eigenvalues[0] - 1) * sqrt(n * p))
        as_plain = Spectrum(even.s, p, n)
        raw, fit = Bema()(as_plain), Bema()(even)
        sigmas.append((Bema()(plain).sigma ** 2, raw.sigma**2, fit.sigma**2))
        spiky["plain"] += Bema()(plain).spikes > 0
        spiky["uncorrected"] += raw.spikes > 0
        spiky["corrected"] += fit.spikes > 0
        spiky["known"] += Known(1.0)(even).spikes > 0
        spiky["median"] += Median()(even).spikes > 0
        # The whole path differs only where there is something to take out.
        spiky["whole path"] += fit.spikes > 0 and Bema()(read_equalised(W, Bema())[0]).spikes > 0
    standard = (np.array(tops) - centre) / unit
    predicted = (float(evened(centre, p, n)) / centre - 1) * sqrt(n * p)
    return {
        "p": p,
        "n": n,
        "draws": draws,
        "log_sd": log_sd,
        "entries": entries,
        "tw_mean": standard.mean(0).round(4).tolist(),
        "tw_sd": standard.std(0).round(4).tolist(),
        "relative_shift_times_root_np": round(float(np.mean(shifts)), 3),
        "its_standard_error": round(float(np.std(shifts) / sqrt(draws)), 3),
        "predicted_at_the_edge": round(predicted, 3),
        "sigma2": np.mean(sigmas, axis=0).round(5).tolist(),
        "rates": {name: round(count / draws, 4) for name, count in spiky.items()},
        "beta": 0.1,
        "edge": round(top_eigenvalue(p, n, 0.1), 5),
    }


def counts(p: int, n: int, draws: int, spacing: str, where: str, seed: int) -> dict[str, object]:
    """Spikes found where twenty are planted, at each stage of the path."""
    ladder = {"linear": np.linspace(1.3, 6, 20), "geometric": np.geomspace(1.3, 6, 20)}[spacing] * critical(p, n)
    found: dict[str, list[int]] = {"plain": [], "biwhitened": [], "whole path": [], "scales known": []}
    sigmas, rounds = [], []
    for draw in range(draws):
        generator = np.random.default_rng([seed, p, n, draw])
        if where == "inside":  # W = D1 (S + N) D2
            made = planted(p, n, ladder, row_log_sd=0.3, col_log_sd=0.3, generator=generator)
            W, bare = made.W, made.W / made.row_scales[:, None] / made.col_scales
        else:  # W = S + D1 N D2
            made = planted(p, n, ladder, generator=generator)
            d1, d2 = scales(p, 0.3, generator=generator)[:, None], scales(n, 0.3, generator=generator)
            signal = (made.U * made.strengths) @ made.Vh
            W = signal + d1 * (made.W - signal) * d2
            bare = W / d1 / d2
        found["plain"].append(Bema()(read_spectrum(W)).spikes)
        found["biwhitened"].append(Bema()(read_equalised(W)[0]).spikes)
        spectrum, record = read_equalised(W, Bema())
        found["whole path"].append(Bema()(spectrum).spikes)
        rounds.append(record.rounds)
        oracle = Bema()(read_spectrum(bare))
        found["scales known"].append(oracle.spikes)
        sigmas.append(oracle.sigma**2)
    return {
        "p": p,
        "n": n,
        "draws": draws,
        "spacing": spacing,
        "signal": where,
        "mean": {name: round(float(np.mean(v)), 2) for name, v in found.items()},
        "range": {name: [min(v), max(v)] for name, v in found.items()},
        "rounds": round(float(np.mean(rounds)), 2),
        "sigma2_scales_known": round(float(np.mean(sigmas)), 4),
    }


def bias(p: int, n: int, count: int, draws: int, seed: int) -> dict[str, object]:
    """Estimated over true sigma**2 beside planted signal: fitted once, refitted, and on the equalised matrix."""
    ladder = np.linspace(1.3, 6, count) * critical(p, n)
    ratios, spikes = [], []
    for draw in range(draws):
        generator = np.random.default_rng([seed, p, n, count, draw])
        made = planted(p, n, ladder, generator=generator)
        d1, d2 = scales(p, 0.3, generator=generator)[:, None], scales(n, 0.3, generator=generator)
        spectrum = read_spectrum(made.W)
        middle = spectrum.eigenvalues[::-1][(inside := (np.abs((np.arange(p) + 0.5) / p - 0.5) <= 0.3))]
        law = spectrum.noise_quantiles()[inside]
        fit = Bema()(spectrum)
        even_spectrum, even = read_equalised(d1 * made.W * d2, Bema())
        even_fit = Bema()(even_spectrum)
        # The noise in W~ alone, under the scales that were found: its mean square is the true sigma**2 of W~.
        rest = even.apply(d1 * (made.W - (made.U * made.strengths) @ made.Vh) * d2)
        truth = float(rest.square().mean())
        ratios.append(
            (law @ middle / (law @ law), fit.sigma**2, Median()(spectrum).sigma ** 2, even_fit.sigma**2 / truth)
        )
        spikes.append((fit.spikes, even_fit.spikes))
    names = ("no refit", "bema", "median", "bema, equalised")
    return {
        "p": p,
        "n": n,
        "planted": count,
        "draws": draws,
        "sigma2_over_truth": dict(zip(names, np.mean(ratios, axis=0).round(4).tolist(), strict=True)),
        "sd": dict(zip(names, np.std(ratios, axis=0).round(4).tolist(), strict=True)),
        "mean_spikes": dict(zip(("bema", "bema, equalised"), np.mean(spikes, axis=0).tolist(), strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=40, help="planted draws a size")
    parser.add_argument("--only", choices=("planted", "null", "bias"), help="remake one part of an existing file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small; threads would only wait for one another
    share = 10 if args.quick else 1
    result: dict[str, object] = json.loads(args.out.read_text()) if args.only else {}
    result |= {"seed": args.seed} | {kind: [] for kind in ((args.only,) if args.only else ("planted", "bias", "null"))}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    jobs = [
        ("planted", counts, (p, n, max(4, args.draws // share), spacing, where, args.seed))
        for p, n in PLANTED
        for where in ("inside", "outside")
        for spacing in ("linear", "geometric")
    ]
    jobs += [("null", null, (p, n, draws // share, 0.0, args.seed)) for p, n, draws in SIZES]
    jobs += [
        ("null", null, (p, n, draws // share, sd, args.seed))
        for p, n, draws in ((100, 300, 1000), (384, 384, 400))
        for sd in (0.3, 0.6)
    ]
    jobs += [
        ("null", null, (p, n, draws // share, 0.3, args.seed, entries))
        for p, n, draws in ((100, 100, 1000), (100, 300, 1000), (384, 384, 300))
        for entries in ("uniform", "signs", "laplace")
    ]
    jobs += [
        ("bias", bias, (p, n, count, max(4, 20 // share), args.seed))
        for p, n, count in ((100, 300, 20), (400, 400, 20), (500, 1000, 20), (250, 1000, 40), (768, 768, 60))
    ]
    for kind, job, settings in jobs:
        if args.only not in (None, kind):
            continue
        start = time.perf_counter()
        row = job(*settings)
        result[kind].append(row)
        print(f"{time.perf_counter() - start:5.0f} s  {json.dumps(row)}", flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
