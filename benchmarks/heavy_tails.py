"""Tail exponents next to WeightWatcher's on the same matrices, and which spectra the rule calls heavy-tailed.

Writes JSON; docs/ends.md prints it as tables. Wants the extra `bench` (weightwatcher). About a minute on one core:

    python benchmarks/heavy_tails.py benchmarks/results/heavy_tails.json --model FOLDER_OR_FILE.safetensors
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
import torch

from spectrim.edges import Bema
from spectrim.planted import critical, frame, noise, planted, scales
from spectrim.reading import read_equalised, read_spectrum
from spectrim.tails import Tail, is_heavy, power_tail
from spectrim.verdict import judge

SIZES = ((200, 200), (128, 512), (384, 384))


def power_law(exponent: float) -> Callable:
    """A matrix of Haar vectors whose eigenvalues s**2 / n have a density that falls like x**-exponent from 1 on."""

    def draw(p: int, n: int, generator: np.random.Generator) -> np.ndarray:
        values = (1 - generator.random(p)) ** (-1 / (exponent - 1))
        left, right = frame(p, p, generator=generator), frame(n, p, generator=generator)
        return (left * np.sqrt(n * values)) @ right.T

    return draw


def log_normal(p: int, n: int, generator: np.random.Generator) -> np.ndarray:
    left, right = frame(p, p, generator=generator), frame(n, p, generator=generator)
    return (left * np.sqrt(n * np.exp(generator.standard_normal(p)))) @ right.T


def uneven(p: int, n: int, generator: np.random.Generator) -> np.ndarray:
    d1, d2 = scales(p, 1.0, generator=generator), scales(n, 1.0, generator=generator)
    return d1[:, None] * noise(p, n, generator=generator) * d2


PLANTED: dict[str, Callable] = {
    "power law, exponent 2": power_law(2),
    "power law, exponent 3": power_law(3),
    "power law, exponent 4": power_law(4),
    "power law, exponent 6": power_law(6),
    "log-normal eigenvalues": log_normal,
    "Gaussian entries": lambda p, n, g: noise(p, n, generator=g),
    "Student t(2.5) entries": lambda p, n, g: g.standard_t(2.5, (p, n)),
    "Student t(3) entries": lambda p, n, g: g.standard_t(3, (p, n)),
    "Student t(4.5) entries": lambda p, n, g: g.standard_t(4.5, (p, n)),
    "Pareto(1.5) entries": lambda p, n, g: g.pareto(1.5, (p, n)) * g.choice([-1, 1], (p, n)),
    "scales of log-sd 1": uneven,
    "20 spikes, 1.3 to 6 x": lambda p, n, g: planted(p, n, np.linspace(1.3, 6, 20) * critical(p, n), generator=g).W,
    "20 spikes, 1.3 to 30 x": lambda p, n, g: planted(p, n, np.geomspace(1.3, 30, 20) * critical(p, n), generator=g).W,
}


def theirs(matrices: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """WeightWatcher's exponent of each matrix, through its front door: a model of linear layers."""
    import weightwatcher

    logging.disable(logging.CRITICAL)
    model = torch.nn.ModuleList()
    for W in matrices.values():
        layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
        layer.weight.data = torch.from_numpy(np.asarray(W, np.float32))
        model.append(layer)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        frame = weightwatcher.WeightWatcher(model=model).analyze(plot=False)
    if len(frame) != len(matrices):
        raise RuntimeError(f"WeightWatcher read {len(frame)} of {len(matrices)} matrices")
    return {
        name: {"alpha": float(row.alpha), "count": int(row.num_pl_spikes), "distance": float(row.D)}
        for name, (_, row) in zip(matrices, frame.iterrows(), strict=True)
    }


def figures(tail: Tail | None) -> dict | None:
    if tail is None:
        return None
    return {name: round(getattr(tail, name), 4) for name in ("exponent", "stderr", "count", "distance", "span")} | {
        "heavy": is_heavy(tail)
    }


def ours(W: np.ndarray) -> dict:
    plain, even = read_spectrum(W), read_equalised(W, Bema())[0]
    found = {}
    for way, spectrum in (("plain", plain), ("equalised", even)):
        verdict = judge(spectrum, Bema()(spectrum), panel={})
        found[way] = {"kind": verdict.kind, "misfit": verdict.misfit, "tail": figures(verdict.tail)}
    found["tail"] = figures(power_tail(plain.eigenvalues))
    return found


def agreement(rows: list[dict]) -> dict:
    """How far apart the two exponents lie, over matrices where both found one."""
    pairs = np.array([(r["ours"]["tail"]["exponent"], r["theirs"]["alpha"]) for r in rows if r["ours"]["tail"]])
    errors = np.array([r["ours"]["tail"]["stderr"] for r in rows if r["ours"]["tail"]])
    gap = np.abs(pairs[:, 0] - pairs[:, 1])
    same = [r["ours"]["tail"]["count"] == r["theirs"]["count"] for r in rows if r["ours"]["tail"]]
    return {
        "matrices": len(pairs),
        "same start": round(float(np.mean(same)), 3),
        "median gap": round(float(np.median(gap)), 4),
        "largest gap": round(float(gap.max()), 3),
        "gap within one stderr": round(float(np.mean(gap <= errors)), 3),
        "gap where the start is the same": round(float(gap[np.array(same)].max(initial=0.0)), 5),
        "correlation": round(float(np.corrcoef(pairs.T)[0, 1]), 4) if len(pairs) > 2 else None,
    }


def tables(rows: list[dict]) -> dict:
    """Medians and counts of verdicts, by kind of matrix."""
    out = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        here = [row for row in rows if row["kind"] == kind]
        out[kind] = {"matrices": len(here)} | agreement(here)
        out[kind]["exponent"] = round(float(np.median([r["ours"]["tail"]["exponent"] for r in here])), 2)
        out[kind]["weightwatcher"] = round(float(np.median([r["theirs"]["alpha"] for r in here])), 2)
        for way in ("plain", "equalised"):
            kinds = [row["ours"][way]["kind"] for row in here]
            out[kind][way] = {name: kinds.count(name) for name in dict.fromkeys(kinds)}
            out[kind][way + ", tail alone heavy"] = sum(row["ours"][way]["tail"]["heavy"] for row in here)
    return out


def null(p: int, draws: int, seed: int) -> dict:
    """Distance times sqrt(count) of fitted tails where all values follow a power law: what `CLOSE` is drawn from."""
    generator = np.random.default_rng([seed, p])
    found = []
    for exponent in (2, 3, 5):
        for _ in range(draws):
            tail = power_tail((1 - generator.random(p)) ** (-1 / (exponent - 1)))
            found.append(tail.distance * sqrt(tail.count))
    levels = {str(q): round(float(np.quantile(found, q)), 3) for q in (0.5, 0.9, 0.95, 0.99)}
    return {"values": p, "draws": 3 * draws, "quantiles": levels}


def model_matrices(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    file = path / "model.safetensors" if path.is_dir() else path
    with safe_open(file, "pt") as tensors:
        every = {name: tensors.get_tensor(name).float().numpy() for name in tensors.keys()}  # noqa: SIM118
    return {name: W for name, W in every.items() if W.ndim == 2 and min(W.shape) >= 50 and max(W.shape) <= 4096}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--model", type=Path, help="safetensors file, or a folder with one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=5, help="planted matrices a kind and size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"seed": args.seed, "weightwatcher": "0.7.7"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind, draw in PLANTED.items():
        matrices = {
            f"{p} x {n}, {i}": draw(p, n, np.random.default_rng([args.seed, p, n, i]))
            for p, n in SIZES
            for i in range(args.draws)
        }
        peer = theirs(matrices)
        rows += [{"kind": kind, "name": m, "theirs": peer[m], "ours": ours(W)} for m, W in matrices.items()]
        print(kind, flush=True)
    result["planted"] = tables(rows)
    result["planted, all"] = agreement(rows)
    if args.model:
        matrices = model_matrices(args.model)
        peer = theirs(matrices)
        rows = [{"kind": "model", "name": m, "theirs": peer[m], "ours": ours(W)} for m, W in matrices.items()]
        result["model"] = tables(rows)["model"] | {"each": rows}
    result["null"] = [null(p, draws, args.seed) for p, draws in ((50, 1000), (200, 700), (800, 150))]
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
