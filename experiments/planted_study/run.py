"""Measures every edge estimator on matrices with a known truth: what it finds, what it invents, what its cut is worth.

    python -m experiments.planted_study.run [--output results.json] [--quick]

W = D1 (S + N) D2: signal of a given rank and strength along Haar vectors; noise of unit variance with entries that are
Gaussian, Student or sparse, in loud and quiet blocks, or correlated; rows and columns even or with log-normal scales;
read plain or equalised. Each matrix is decomposed once, and all estimators see that one spectrum.

COST: about a minute on one idle core, most of it for the estimator by simulation (--quick: seconds).

EXPECTED OUTCOME, written down before the first run. On even Gaussian noise all edges by Tracy-Widom show a spike in one
draw of ten, the bare one in under one of six, the two hard thresholds in none; the hard thresholds miss the weak
signals that lie between the edge and the cut (a sixth of strengths from 1.3 to 3). Signal in a sixth of the values
raises every sigma that is not refitted by 5 to 20 per cent, that of the shuffled null most. Uneven rows and columns
read plain give dozens of spikes to every estimator but the Gamma model; equalised, none. Sparse entries of kurtosis 30
give false spikes where p is small. Correlated noise shows spikes under every law of even noise; blocks do not, for the
law needs even rows and columns only. Shrinkage has a quarter to a third less squared error than truncation at the edge.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from experiments import records
from numpy.typing import NDArray
from scipy.signal import lfilter

from spectrim import nulls
from spectrim.edges import Bema, BemaGamma, Broadening, Edge, GavishDonoho, Known, Median, ScreeNot
from spectrim.laws import shrink
from spectrim.planted import critical, frame, scales
from spectrim.reading import read_equalised
from spectrim.spectrum import Spectrum

Array = NDArray[np.float64]

STRENGTHS = {"weak": (1.3, 3.0), "strong": (3.0, 8.0)}  # evenly spaced, times the critical strength
SPARSE = 0.1  # share of the entries that are not zero
FREEDOM = 4.5  # degrees of freedom of Student's law: a kurtosis of 15
CONTRAST = 0.8  # of the blocks: variances 1.8 and .2
CORRELATION = 0.3  # of neighbours in a row
LOG_SD = 0.3  # of uneven row and column scales
CONFIG = {
    **{"strengths": STRENGTHS, "sparse": SPARSE, "freedom": FREEDOM},
    **{"contrast": CONTRAST, "correlation": CORRELATION, "log_sd": LOG_SD},
}


@dataclass(frozen=True)
class Cell:
    """One kind of matrix."""

    p: int
    gamma: float
    rank: int = 0
    strength: str = "none"
    scales: str = "even"  # "even", "uneven" (on both sides, read plain) or "equalised"
    entries: str = "gaussian"  # of the noise; or "student", "sparse", "blocks", "correlated"

    @property
    def simulated(self) -> bool:
        """Whether `BemaGamma` takes part, which simulates."""
        return self.shuffled and self.entries == "gaussian" and (self.rank, self.strength) in SOME[:2]

    @property
    def shuffled(self) -> bool:
        """Whether the null takes part, which costs one more decomposition."""
        return self.p == 128 and self.gamma == 0.5


SIGNALS = [(0, "none"), *((rank, strength) for rank in (5, 20, 60) for strength in STRENGTHS)]
SOME = [(0, "none"), (20, "weak"), (20, "strong"), (60, "strong")]
CELLS = [
    *(Cell(384, gamma, *signal) for gamma in (0.5, 1.0, 0.25) for signal in SOME),
    *(Cell(384, 0.5, *signal, scales) for signal in SOME for scales in ("uneven", "equalised")),
    *(Cell(384, 0.5, *signal, entries=entries) for signal in SOME[:2] for entries in ("student", "sparse")),
    *(Cell(128, gamma, *signal) for gamma in (0.5, 1.0, 0.25) for signal in SIGNALS),
    *(Cell(128, 0.5, *signal, scales) for signal in SOME for scales in ("uneven", "equalised")),
    *(Cell(128, 0.5, *signal, entries=entries) for signal in SOME for entries in ("student", "sparse")),
    *(Cell(128, 0.5, scales=scales, entries="correlated") for scales in ("even", "equalised")),
    Cell(128, 0.5, entries="blocks"),
    *(Cell(768, 0.5, *signal) for signal in SOME[:2]),
]
DRAWS = 20  # matrices in a cell
SIMULATED_DRAWS = 10  # of which `BemaGamma` sees this many


@dataclass(frozen=True, eq=False)
class Drawn:
    """A matrix in the basis where it is measured: its values and left vectors, and its signal left @ right.T."""

    W: Array
    spectrum: Spectrum
    U: Array
    left: Array
    right: Array


def draw(cell: Cell, generator: np.random.Generator) -> Drawn:
    """Returns one matrix of that kind."""
    p, n = cell.p, round(cell.p / cell.gamma)
    strengths = np.linspace(*STRENGTHS.get(cell.strength, (1.0, 1.0)), cell.rank) * critical(p, n)
    left = frame(p, cell.rank, generator=generator) * strengths
    right = frame(n, cell.rank, generator=generator)
    if cell.entries == "student":
        N = generator.standard_t(FREEDOM, (p, n)) / sqrt(FREEDOM / (FREEDOM - 2))
    else:
        N = generator.standard_normal((p, n))
    if cell.entries == "sparse":
        N *= (generator.random((p, n)) < SPARSE) / sqrt(SPARSE)
    if cell.entries == "blocks":  # two loud quarters and two quiet ones, so that rows and columns are even
        N *= np.sqrt(1 + CONTRAST * np.kron([[1, -1], [-1, 1]], np.ones((p // 2, n // 2))))
    if cell.entries == "correlated":  # each entry with the one before it in its row
        N[:, 1:] *= sqrt(1 - CORRELATION**2)
        N = lfilter([1.0], [1.0, -CORRELATION], N, axis=1)
    W, even = left @ right.T + N, None
    if cell.scales != "even":
        d1, d2 = (scales(count, LOG_SD, generator=generator) for count in (p, n))
        W, left, right = d1[:, None] * W * d2, d1[:, None] * left, d2[:, None] * right
    if cell.scales == "equalised":
        spectrum, even = read_equalised(W, Bema())
        W, left, right = even.apply(W).numpy(), even.rows[:, None] * left, even.cols[:, None] * right
    values, U = np.linalg.eigh(W @ W.T)
    if even is None:
        spectrum = Spectrum(np.sqrt(np.maximum(values, 0)), p, n)
    return Drawn(W, spectrum, U[:, ::-1], left, right)


def estimators(sigma: float, simulated: bool) -> dict[str, Edge]:
    """Returns the estimators by name; only `Known` is told sigma."""
    quick = {
        "Known": Known(sigma),
        "Bema": Bema(),
        "Median": Median(),
        "Broadening": Broadening(),
        "GavishDonoho": GavishDonoho(),
        "ScreeNot": ScreeNot(rank_bound=0.25),
    }
    return quick | ({"BemaGamma": BemaGamma()} if simulated else {})


def measure(cell: Cell, generator: np.random.Generator, simulated: bool) -> dict[str, dict[str, float | None]]:
    """Returns for each estimator what it says of one fresh matrix; None where it has nothing to say."""
    made = draw(cell, generator)
    spectrum, p, n = made.spectrum, made.spectrum.p, made.spectrum.n
    sigma = float(np.linalg.norm(made.W - made.left @ made.right.T)) / sqrt(p * n)
    fits: dict[str, Any] = {}
    for name, edge in estimators(sigma, simulated).items():
        try:
            fits[name] = edge(spectrum)
        except ValueError:
            fits[name] = None
    if cell.shuffled:
        null = nulls.shuffled(made.W, generator, equalize=spectrum.equalised)
        fits["shuffled"] = nulls.against(spectrum, null, Bema())

    # The squared error of any estimate sum eta_i u_i v_i^T follows from c_i = u_i^T S v_i, for all cuts at once.
    energy = float(np.sum((made.left.T @ made.left) * (made.right.T @ made.right)))
    c = np.sum((made.U.T @ made.left) * ((made.W @ made.right).T @ made.U).T, axis=1) / spectrum.s
    truncated = energy + np.concatenate([[0.0], np.cumsum(spectrum.s**2 - 2 * spectrum.s * c)])

    def row(fit: Any) -> dict[str, float | None]:
        error = shrunk = None
        if cell.rank and fit is not None:
            error = float(truncated[fit.spikes]) / energy
            if fit.sigma is not None:
                unit = fit.sigma * sqrt(n)
                eta = unit * shrink(spectrum.s / unit, spectrum.gamma)
                shrunk = float(energy + np.sum(eta**2 - 2 * eta * c)) / energy
        return {
            "refused": float(fit is None),
            "any_false": None if fit is None else float(fit.spikes > cell.rank),
            "false": None if fit is None else float(max(0, fit.spikes - cell.rank)),
            "power": min(fit.spikes, cell.rank) / cell.rank if cell.rank and fit is not None else None,
            "sigma_error": fit.sigma / sigma - 1 if fit is not None and fit.sigma is not None else None,
            "misfit": fit.misfit if fit is not None else None,
            "truncated": error,
            "shrunk": shrunk,
        }

    best = {"truncated": float(truncated.min()) / energy if cell.rank else None}
    return {name: row(fit) for name, fit in fits.items()} | {"best cut": best}


def summary(cell: Cell, draws: int) -> dict[str, Any]:
    """Returns mean and standard error of every figure over the draws of one cell."""
    # The seed is the cell, so that a cell can be repeated alone.
    seed = [cell.p, round(100 * cell.gamma), cell.rank, *f"{cell.strength} {cell.scales} {cell.entries}".encode()]
    rows = [
        measure(cell, np.random.default_rng([*seed, index]), cell.simulated and index < SIMULATED_DRAWS)
        for index in range(draws)
    ]
    out: dict[str, Any] = {}
    for name in rows[0]:
        out[name] = {}
        for figure in rows[0][name]:
            values = [row[name][figure] for row in rows if name in row and row[name][figure] is not None]
            if values:
                spread = float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else None
                out[name][figure] = [float(np.mean(values)), spread]
    return asdict(cell) | {"draws": draws, "estimators": out}


def main() -> None:
    """Runs every cell and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--size", type=int, help="only the cells of this p; each cell has its own seed")
    parser.add_argument(
        "--quick", "--toy", dest="quick", action="store_true", help="three draws a cell, the smallest matrices only"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    done, started = [], perf_counter()
    for cell in CELLS:
        if chosen.size not in (None, cell.p) or (chosen.quick and (cell.p > 128 or cell.simulated)):
            continue
        done.append(summary(cell, 3 if chosen.quick else DRAWS))
        print(f"{perf_counter() - started:6.0f} s  {cell}", flush=True)
        records.write(chosen.output, CONFIG | {"quick": chosen.quick}, {"cells": done})


if __name__ == "__main__":
    main()
