"""Draws results.json: the analogues of figures 1 (spectrum), 2 (score and accuracy) and 3 (batch sizes) of the paper.

python -m experiments.nishikawa2025_thresholds.figure
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from experiments import drawing, records

from spectrim.laws import MarchenkoPastur

HERE = Path(__file__).parent
BLUE, RED, GREEN, PURPLE = drawing.INK[0], drawing.INK[1], drawing.INK[2], drawing.INK[3]


def density(sigma: float, p: int, n: int, x: np.ndarray) -> np.ndarray:
    """Returns the density of the singular values of noise."""
    return MarchenkoPastur(p / n, sigma).pdf(x**2 / n) * 2 * x / n


def spectrum(ax: Any, layer: dict[str, Any], title: str) -> None:
    """Draws a histogram of singular values, both laws and both edges."""
    s, p, n = np.array(layer["s"]), min(layer["rows"], layer["cols"]), max(layer["rows"], layer["cols"])
    bulk = layer["estimators"]["bema"]["sigma"] * (sqrt(n) + sqrt(p))
    shown = min(float(s[0]), 3 * bulk)
    ax.hist(np.minimum(s, shown), 80, density=True, color="#cccccc", histtype="stepfilled")
    x = np.linspace(1e-6, shown, 600)
    for name, colour, style in (("bema", RED, "-"), ("broadening", BLUE, "--")):
        fit = layer["estimators"][name]
        ax.plot(x, density(fit["sigma"], p, n, x), color=colour, linestyle=style, label=name)
        ax.axvline(fit["edge"], color=colour, linestyle=style, linewidth=0.8)
    ax.set(title=title, xlabel="singular value", ylabel="density")


def score(ax: Any, layer: dict[str, Any], title: str) -> None:
    """Draws Ave_w and the accuracy against the rank kept, with both edges, the knee and what the accuracy needs."""
    ave, known = layer["ave"], layer.get("known")
    ranks = np.arange(1, len(ave) + 1)
    ax.plot(ranks, ave, color=GREEN, label="Ave_w, estimated")
    if known:
        ax.plot(ranks, known["ave"], color=GREEN, linestyle=":", label="Ave_w, from the known start")
    table = layer["truncation"]["accuracy"]
    ax.plot([int(r) for r in table], list(table.values()), ".-", color=PURPLE, label="accuracy, largest values kept")
    if "controls" in layer:
        magnitude, chance = layer["controls"]["magnitude"], layer["controls"]["random"]
        ax.plot([int(r) for r in magnitude], list(magnitude.values()), "+", color="k", label="largest weights kept")
        ax.plot(
            [int(r) for r in chance], [np.mean(v) for v in chance.values()], "x", color="k", label="random values kept"
        )
    if "on_start" in layer:
        table = layer["on_start"]
        ax.plot([int(r) for r in table], list(table.values()), ":", color=PURPLE, label="start + learned part of rank")
    for name, colour, style in (("bema", RED, "-"), ("broadening", BLUE, "--")):
        ax.axvline(layer["estimators"][name]["spikes"], color=colour, linestyle=style, linewidth=0.8)
    ax.axvline(layer["estimators"]["bema"]["knee"], color=GREEN, linewidth=0.8)
    ax.axvline(layer["truncation"]["needed"]["within_half_a_point"], color=PURPLE, linewidth=0.8)
    ax.set(title=title, xscale="log", xlabel="singular values kept", ylim=(0, 1))


def beside_the_start(layer: dict[str, Any], full: float) -> str:
    """Returns the smallest rank tried of the learned part that keeps the accuracy within half a point."""
    if "on_start" not in layer:
        return ""
    return next((rank for rank, kept in layer["on_start"].items() if kept >= full - 0.005), "more")


def tables(networks: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """Returns the tables of the README: fc1 of the MLPs by batch size, and one row a matrix of every network."""
    mlps = [found for found in networks if found["run"]["net"] == "mlp" and not found["run"]["decay"]]
    by_batch = [["batch", "test accuracy", "s1", "s2", "s1 / edge", "spikes", "learned", "misfit", "sigma / start"]]
    for batch in sorted({found["run"]["batch"] for found in mlps}):
        same = [found for found in mlps if found["run"]["batch"] == batch]
        layers = [found["layers"]["fc1"] for found in same]
        fits = [layer["estimators"]["bema"] for layer in layers]
        columns = [
            [f"{found['test_accuracy']:.4f}" for found in same],
            [f"{layer['s'][0]:.2f}" for layer in layers],
            [f"{layer['s'][1]:.2f}" for layer in layers],
            [f"{layer['s'][0] / fit['edge']:.2f}" for layer, fit in zip(layers, fits, strict=True)],
            [str(fit["spikes"]) for fit in fits],
            [str(layer["known"]["learned"]) for layer in layers],
            [f"{fit['misfit']:.3f}" for fit in fits],
            [f"{fit['sigma'] / layer['known']['sigma']:.3f}" for layer, fit in zip(layers, fits, strict=True)],
        ]
        by_batch.append([str(batch), *(", ".join(cells) for cells in columns)])
    head = [
        "network, images, batch, seed",
        "matrix",
        "rank needed",
        "1 stderr",
        "beside the start",
        "knee",
        "peak",
        "BEMA",
    ]
    rows = [[*head, "broadening", "learned", "points lost at BEMA", "misfit"]]
    for found in networks:
        run = found["run"]
        decay = f", decay {run['decay']:g}" if run["decay"] else ""
        for name, layer in found["layers"].items():
            bema, needed = layer["estimators"]["bema"], layer["truncation"]["needed"]
            kept = layer["truncation"]["accuracy"].get(str(bema["spikes"]))
            rows.append(
                [
                    f"{run['net']} {run['images']} {run['batch']}{decay}, seed {run['seed']}",
                    f"{name} {layer['rows']} x {layer['cols']}",
                    *(str(needed[key]) for key in ("within_half_a_point", "within_one_stderr")),
                    beside_the_start(layer, found["test_accuracy"]),
                    *(str(bema[key]) for key in ("knee", "peak", "spikes")),
                    str(layer["estimators"]["broadening"]["spikes"]),
                    str(layer["known"]["learned"]) if "known" in layer else "",
                    f"{100 * (layer['truncation']['full'] - kept):.1f}" if kept is not None else "",
                    f"{bema['misfit']:.3f}" if bema["misfit"] is not None else "",
                ]
            )
    return {"batches": by_batch, "ranks": rows}


def main() -> None:
    """Writes figure.svg beside the results, and the tables into the README."""
    networks = records.read(HERE / "results.json")["results"]["networks"]
    drawing.fill(HERE, tables(networks))
    first = [found for found in networks if found["run"]["seed"] == 0]
    mlps = [found for found in first if found["run"]["net"] == "mlp" and not found["run"]["decay"]]
    middle = next(found for found in mlps if found["run"]["batch"] == 256)
    faded = next(found for found in first if found["run"]["decay"])
    others = [found for found in first if found["run"]["net"] != "mlp"]
    shown = [("MLP, batch 256", middle), ("MLP, batch 256, weight decay", faded)]
    shown += [(f"{found['run']['net']}, {found['run']['images']}", found) for found in others]
    figure, axes = drawing.panels(2 + len(shown), 3, (13, 3.1 * (2 + len(shown))))
    for ax, found in zip(axes[:2].ravel(), [found for found in mlps if found is not middle], strict=False):
        spectrum(ax, found["layers"]["fc1"], f"MLP fc1, batch {found['run']['batch']}")
    for row, (name, found) in zip(axes[2:], shown, strict=True):
        spectrum(row[0], found["layers"]["fc1"], f"{name}, fc1")
        score(row[1], found["layers"]["fc1"], f"{name}, fc1")
        score(row[2], found["layers"]["fc2"], f"{name}, fc2")
    axes[0][0].legend()
    figure.legend(*axes[2][1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    drawing.save(figure, HERE)


if __name__ == "__main__":
    main()
