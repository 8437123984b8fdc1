"""Draws results.json: the spectra of one draw with their edges, and the errors of the arms.

python -m experiments.berlyand2025_regression.figure
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from experiments import drawing, records

HERE = Path(__file__).parent
PAPER = {"none": 2.5735, "l2": 2.5627, "l1": 0.4157, "pruning": 0.1491}
TITLES = {"random": "samples at random places", "grid": "samples on an even grid"}


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the table of the README: mean error of each arm, 95 % interval, and what was kept."""
    rows = [["arm", "the paper, one draw", *TITLES.values()]]
    summaries = [results[design]["summary"] for design in TITLES]
    for name in summaries[0]["mse"]:
        means = [f"{mean:.4f} ± {half:.4f}" for mean, half in (summary["mse"][name] for summary in summaries)]
        rows.append([name, f"{PAPER[name]:.4f}" if name in PAPER else "", *means])
    gains = [f"{mean:.2f} ± {half:.2f}" for mean, half in (summary["gain"] for summary in summaries)]
    rows.append(["none / pruning", f"{PAPER['none'] / PAPER['pruning']:.2f}", *gains])
    seeds = [len(results[design]["draws"]) for design in TITLES]
    ordered = [f"{summary['ordered']} of {count}" for summary, count in zip(summaries, seeds, strict=True)]
    rows.append(["draws with pruning < l1 < l2 < none", "1 of 1", *ordered])
    for key, label in (("kept", "values kept, truth 16"), ("kept, whitened", "kept, whitened, truth 16")):
        rows.append([label, "", *(f"{min(s[key])} to {max(s[key])}" for s in summaries)])
    rows.append(["misfit of the bulk", "", *(f"{s['misfit'][0]:.4f} ± {s['misfit'][1]:.4f}" for s in summaries)])
    return {"errors": rows}


def main() -> None:
    """Writes figure.svg beside the results, and the table into the README."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    figure, axes = drawing.panels(2, 2, (9.5, 6.4))
    for row, (design, title) in enumerate(TITLES.items()):
        first = results[design]["draws"][0]
        left, right = axes[row]
        for colour, name in zip(drawing.INK, ("none", "l2", "l1"), strict=False):
            s = np.sort(first["spectra"][name])
            left.plot(np.maximum(s, 1e-6), (np.arange(s.size) + 1) / s.size, color=colour, label=name)
            edge = first["fits"][name]["edge"]
            if edge:
                left.axvline(edge, color=colour, linestyle=":")
        left.set(xscale="log", xlabel="singular value of W", ylabel="share at or below", title=f"{title}, seed 0")
        left.set_xlim(left=1e-3)
        left.legend(title="dotted: edge by Bema()")
        errors = results[design]["summary"]["mse"]
        place = np.arange(len(errors))
        means, halves = zip(*errors.values(), strict=True)
        right.errorbar(means, place, xerr=halves, fmt="o", markersize=4, color=drawing.INK[0])
        for i, name in enumerate(errors):
            if name in PAPER:
                right.plot(PAPER[name], i, "k|", markersize=14)
        right.set(
            xscale="log", yticks=place, yticklabels=list(errors), xlabel="mean squared error; mark: the paper's draw"
        )
        right.invert_yaxis()
        right.set_title(f"{title}, {len(results[design]['draws'])} seeds")
    drawing.save(figure, HERE)


if __name__ == "__main__":
    main()
