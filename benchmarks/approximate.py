"""The approximate spectrum against the exact one: error of the edge and of the count of spikes, and the time of both.

    OMP_NUM_THREADS=1 python benchmarks/approximate.py benchmarks/results/approximate.json [--models NAME=FOLDER ...]

Times are CPU seconds of one thread, the exact and the approximate reading of a matrix one after the other in the same
process. About ten minutes. Real weights of a few hundred rows are too small for the shortcut; there blocks are smaller
than usual (8 vectors in place of 32), and only the errors count.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from spectrim import lanczos
from spectrim.checkpoint import open_checkpoint
from spectrim.edges import Bema
from spectrim.names import of_checkpoint
from spectrim.planted import critical, frame, planted
from spectrim.reading import read_equalised, read_spectrum

SIZES = [(1024, 1024), (1536, 1536), (2048, 2048), (2048, 4096), (3072, 3072), (4096, 4096)]
SHARES = [0.01, 0.03, 0.06, 0.1, 0.15]
SEEDS = 3


def timed(work: Callable):
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def compared(W: torch.Tensor, seeds: int = SEEDS) -> dict:
    """The plain spectrum, exactly once and approximately with several seeds."""
    seconds, exact = timed(lambda: read_spectrum(W))
    fit, p = Bema()(exact), exact.p
    rows = []
    for seed in range(seeds):
        notes: list[str] = []
        spent, found = timed(partial(lanczos.approximate, W, seed=seed, notes=notes))
        if found is None:
            rows.append({"seconds": spent, "given_up": notes[-1]})
            continue
        near, k = Bema()(found.spectrum), found.spectrum.measured
        levels = np.searchsorted(np.sort(exact.s), np.sort(found.spectrum.s)) / p - (np.arange(p) + 0.5) / p
        rows.append(
            {
                "seconds": spent,
                "ratio": seconds / spent,
                "edge_error": near.edge / fit.edge - 1,
                "stated_error": found.error,
                "spikes": near.spikes,
                "measured": k,
                "values_error": float(np.max(np.abs(found.spectrum.s[:k] / exact.s[:k] - 1))),
                "level_error": float(np.max(np.abs(levels))),
                "misfit": near.misfit,
                "products": found.products,
            }
        )
    return {
        "rows": W.shape[0],
        "cols": W.shape[1],
        "exact": {"seconds": seconds, "edge": fit.edge, "spikes": fit.spikes, "misfit": fit.misfit},
        "approximate": rows,
    }


def compared_equalised(W: torch.Tensor) -> dict:
    """The equalised verdict both ways, rounds of taking spikes out included."""
    notes: list[str] = []
    spent, (near, even) = timed(lambda: read_equalised(W, Bema(), notes=notes, approximate=True))
    seconds, (exact, scales) = timed(lambda: read_equalised(W, Bema()))
    fit, wanted = Bema()(near), Bema()(exact)
    return {
        "rows": W.shape[0],
        "cols": W.shape[1],
        "exact": {"seconds": seconds, "spikes": wanted.spikes, "rounds": scales.rounds},
        "approximate": {"seconds": spent, "spikes": fit.spikes, "rounds": even.rounds, "measured": near.measured},
        "ratio": seconds / spent,
        "edge_error": fit.edge / wanted.edge - 1,
        "notes": notes,
    }


def made(rows: int, cols: int, count: int, seed: int = 0, log_sd: float = 0.0) -> torch.Tensor:
    strengths = np.linspace(1.3, 6, count) * critical(rows, cols)
    g = np.random.default_rng(seed)
    return torch.from_numpy(planted(rows, cols, strengths, 1.0, log_sd, log_sd, generator=g).W).float()


def enlarged(s: np.ndarray, rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """A matrix with the quantiles of a measured spectrum and uniformly distributed vectors."""
    g, p = np.random.default_rng(seed), min(rows, cols)
    levels = (np.arange(p) + 0.5) / p
    values = np.interp(levels, (np.arange(len(s)) + 0.5) / len(s), np.sort(s))
    U, V = frame(rows, p, generator=g), frame(cols, p, generator=g)
    return torch.from_numpy((U * values) @ V.T).float()


def weights(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    for site in of_checkpoint(open_checkpoint(folder)).sites:
        if min(site.rows, site.cols) >= 256 and max(site.rows, site.cols) <= 8192:
            yield site.name, site.get().float()


def of_model(folder: str) -> dict:
    """Errors on real weights, plain and equalised, with blocks of eight vectors and no limit."""
    usual = lanczos.PROBES, lanczos.FROM, lanczos.approximate.__kwdefaults__["limit"]
    lanczos.PROBES, lanczos.FROM, lanczos.approximate.__kwdefaults__["limit"] = 8, 0, 0.7
    rows = []
    try:
        for _, W in weights(folder):
            for equalised in (False, True):
                if equalised:
                    exact, near = (read_equalised(W, Bema(), approximate=how)[0] for how in (False, True))
                else:
                    exact, near = (read_spectrum(W, approximate=how) for how in (False, True))
                wanted, fit = Bema()(exact), Bema()(near)
                rows.append(
                    {
                        "equalised": equalised,
                        "given_up": near.measured is None,
                        "spikes": [wanted.spikes, fit.spikes],
                        "edge_error": fit.edge / wanted.edge - 1,
                    }
                )
    finally:
        lanczos.PROBES, lanczos.FROM, lanczos.approximate.__kwdefaults__["limit"] = usual
    return {
        "matrices": len(rows) // 2,
        "plain": summary([row for row in rows if not row["equalised"]]),
        "equalised": summary([row for row in rows if row["equalised"]]),
    }


def summary(rows: list[dict]) -> dict:
    """How far the approximate verdicts are from the exact ones; the edge in units of the exact one."""
    done = [row for row in rows if not row["given_up"]]
    off = [row["spikes"][1] - row["spikes"][0] for row in done]
    errors = sorted(abs(row["edge_error"]) for row in done)
    return {
        "given_up": len(rows) - len(done),
        "edge_error_median": statistics.median(errors),
        "edge_error_nine_of_ten": errors[int(0.9 * len(errors))],
        "edge_error_worst": errors[-1],
        "same_count": sum(d == 0 for d in off),
        "off_by_one": sum(abs(d) == 1 for d in off),
        "off_by_more": sum(abs(d) > 1 for d in off),
        "worst_count": max(map(abs, off)),
        "spikes": [sum(row["spikes"][i] for row in done) for i in (0, 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="*", default=[], help="NAME=FOLDER of safetensors")
    parser.add_argument("--largest", type=int, default=4096, help="short side of the largest planted matrix")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict = {"settings": {"probes": lanczos.PROBES, "start": lanczos.START, "limit": lanczos.LIMIT}}

    def say(what: str, row: dict) -> None:
        print(what, json.dumps(row)[:600], flush=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")

    warm = made(1200, 1200, 5)
    compared(warm, 1)
    found["sizes"] = []
    for rows, cols in SIZES:
        if min(rows, cols) <= options.largest:
            found["sizes"].append(compared(made(rows, cols, 20)))
            say("size", found["sizes"][-1])
    found["shares"] = []
    for share in SHARES:
        found["shares"].append({"share": share} | compared(made(2048, 2048, round(share * 2048)), 1))
        say("share", found["shares"][-1])
    if options.largest >= 4096:
        found["shares"].append({"share": 0.06} | compared(made(4096, 4096, 246), 1))
        say("share", found["shares"][-1])
    found["equalised"] = []
    for rows, cols in ((2048, 2048), (4096, 4096)):
        if min(rows, cols) <= options.largest:
            found["equalised"].append(compared_equalised(made(rows, cols, 20, log_sd=0.3)))
            say("equalised", found["equalised"][-1])
    found["models"], found["enlarged"] = {}, []
    for option in options.models:
        name, _, folder = option.partition("=")
        found["models"][name] = of_model(folder)
        say(name, found["models"][name])
        label, W = max(weights(folder), key=lambda pair: pair[1].numel())
        s = read_equalised(W, Bema())[0].s
        large = enlarged(s, 2048, 2048 * max(W.shape) // min(W.shape))
        found["enlarged"].append({"model": name, "matrix": label} | compared(large, 1))
        say("enlarged", found["enlarged"][-1])


if __name__ == "__main__":
    main()
