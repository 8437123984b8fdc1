"""How often noise falls below the lower edge, how often departures and structure are found where there are none.

Writes JSON; docs/ends.md prints it as tables. About three minutes on one core:

    python benchmarks/lower_end.py benchmarks/results/lower_end.json --model FOLDER_OR_FILE.safetensors
    python benchmarks/lower_end.py out.json --quick              # a tenth of the draws
"""

from __future__ import annotations

import argparse
import json
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from scipy.linalg import eigvalsh_tridiagonal

from spectrim.edges import Bema
from spectrim.haar import departures, lower_edge, randomness, structured
from spectrim.linalg import svd, without_zero_lines
from spectrim.planted import critical, noise, planted, scales
from spectrim.reading import equalize, read_equalised, read_spectrum
from spectrim.spectrum import Spectrum

# Short side, long side, draws.
EDGES = (
    *((10, 10, 20000), (10, 12, 20000), (10, 30, 20000), (50, 50, 10000), (50, 51, 10000), (50, 55, 10000)),
    *((50, 100, 10000), (100, 300, 6000), (384, 384, 2000), (384, 388, 2000), (384, 400, 2000)),
    *((384, 450, 2000), (384, 768, 2000), (384, 1536, 2000)),
)
DEPARTURES = (
    *((50, 50, 0, 1000), (50, 55, 0, 1000), (100, 300, 0, 600), (200, 220, 0, 300), (384, 384, 0, 100)),
    *((100, 300, 5, 600), (200, 200, 10, 300), (200, 800, 10, 200)),
)
VECTORS = ((10, 200000), (64, 100000), (384, 40000), (1536, 10000))
FINDS = ((50, 80, 400), (100, 300, 200), (200, 200, 120))


def smallest(p: int, n: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Squares of the smallest singular values of Gaussian noise, from its bidiagonal form (Dumitriu and Edelman)."""
    out = np.empty(draws)
    for i in range(draws):
        across = generator.chisquare(n - np.arange(p))
        below = generator.chisquare(np.arange(p - 1, 0, -1))
        diagonal = across + np.r_[0.0, below]
        out[i] = eigvalsh_tridiagonal(diagonal, np.sqrt(across[:-1] * below), select="i", select_range=(0, 0))[0]
    return out


def edge_rates(p: int, n: int, draws: int, seed: int) -> dict:
    squares = smallest(p, n, draws, np.random.default_rng([seed, p, n]))
    shape = Spectrum(np.ones(p), p, n)
    rates = {str(b): round(float(np.mean(squares < lower_edge(shape, 1.0, b) ** 2)), 4) for b in (0.01, 0.1, 0.3)}
    order = 2 * ((n - 0.5) * (p - 0.5)) ** 0.25 * (sqrt(n - 0.5) - sqrt(p - 0.5))
    return {"p": p, "n": n, "draws": draws, "order": round(order, 1), "rates": rates}


def departure_rates(p: int, n: int, spikes: int, draws: int, seed: int) -> dict:
    found = {"plain": 0, "equalised": 0}
    for draw in range(draws):
        generator = np.random.default_rng([seed, p, n, spikes, draw])
        W = planted(p, n, np.linspace(1.3, 4, spikes) * critical(p, n), generator=generator).W
        spectrum = read_spectrum(W)
        found["plain"] += departures(spectrum, Bema()(spectrum)) > 0
        W = scales(p, 0.3, generator=generator)[:, None] * W * scales(n, 0.3, generator=generator)
        spectrum = read_equalised(W, Bema())[0]
        found["equalised"] += departures(spectrum, Bema()(spectrum)) > 0
    return {"p": p, "n": n, "spikes": spikes, "draws": draws} | {k: round(v / draws, 3) for k, v in found.items()}


def vector_rates(d: int, draws: int, seed: int) -> dict:
    generator, odds = np.random.default_rng([seed, d]), []
    for _ in range(20):
        odds.append(randomness(generator.standard_normal((d, draws // 20))))
    all_odds = np.concatenate(odds)
    return {"d": d, "draws": draws} | {str(a): round(float(np.mean(all_odds < a)) / a, 2) for a in (0.1, 0.01, 0.001)}


def find_rates(p: int, n: int, draws: int, seed: int) -> dict:
    found = {"Gaussian": 0, "equalised": 0, "Student t(5)": 0}
    for draw in range(draws):
        generator = np.random.default_rng([seed, p, n, draw])
        N = noise(p, n, generator=generator)
        uneven = scales(p, 0.3, generator=generator)[:, None] * N * scales(n, 0.3, generator=generator)
        cases = {"Gaussian": N, "equalised": equalize(uneven).apply(uneven).numpy()}
        cases["Student t(5)"] = generator.standard_t(5, (p, n))
        for name, W in cases.items():
            U, s, Vh = np.linalg.svd(W, full_matrices=False)
            spectrum = Spectrum(s, p, n, equalised=name == "equalised")
            found[name] += bool(structured(spectrum, Bema()(spectrum), U, Vh, level=0.05))
    return {"p": p, "n": n, "draws": draws, "level": 0.05} | {k: round(v / draws, 3) for k, v in found.items()}


def model_counts(path: Path) -> list[dict]:
    """What is found in the matrices of a model, equalised: spikes, values below, structured directions of the bulk."""
    rows = []
    with safe_open(path / "model.safetensors" if path.is_dir() else path, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            W = tensors.get_tensor(name)
            if W.ndim != 2 or min(W.shape) < 50 or max(W.shape) > 4096:
                continue
            spectrum, even = read_equalised(W, Bema())
            fit, factors = Bema()(spectrum), svd(without_zero_lines(even.apply(W))[0])
            found = structured(spectrum, fit, factors.U.numpy(), factors.Vh.numpy())
            low = departures(spectrum, fit)
            below = sum(position >= spectrum.p - low for position in found)
            row = {"name": name, "values": spectrum.p, "spikes": fit.spikes, "below": low}
            rows.append(row | {"structured": len(found), "structured below": below})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--model", type=Path, help="safetensors file, or a folder with one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"seed": args.seed}
    jobs = {
        "lower edge": (edge_rates, EDGES),
        "vectors": (vector_rates, VECTORS),
        "finds": (find_rates, FINDS),
        "departures": (departure_rates, DEPARTURES),
    }
    for name, (job, sizes) in jobs.items():
        result[name] = []
        for *size, draws in sizes:
            result[name].append(job(*size, max(20, draws // (10 if args.quick else 1)), args.seed))
            print(name, json.dumps(result[name][-1]), flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.model:
        result["model"] = model_counts(args.model)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
