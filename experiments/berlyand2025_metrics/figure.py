"""Draws results.json: bulk share and misfit, averaged over the matrices of a model, against alpha.

python -m experiments.berlyand2025_metrics.figure
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import drawing, records

HERE = Path(__file__).parent
SHOWN = ("MiniLM-L6", "ViT-S/14, qkv as one")
NAMES = {"bulk_share": "bulk share", "misfit": "misfit"}


IN_TABLE = (0.01, 0.1, 0.16, 0.25, 0.35, 0.49)


def tables(found: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables of the README, bulk share and misfit: a row a model and variant, a column an alpha."""
    alphas, out = found["config"]["alphas"], {}
    for key, paper in found["config"]["paper"].items():
        rows = [["model", "variant", *(f"{alpha:g}" for alpha in IN_TABLE)]]
        known = {float(alpha): value for alpha, value in paper.items()}
        rows.append(["ViT-B", "the paper", *(f"{known[a]:.3f}" if a in known else "" for a in IN_TABLE)])
        for model, result in found["results"].items():
            for variant, figures in result["means"].items():
                means, spreads = figures[key]["mean"], figures[key]["stderr"]
                cells = [f"{means[i]:.3f} ± {spreads[i]:.3f}" for i in map(alphas.index, IN_TABLE)]
                rows.append([f"{model} ({len(result['layers'])})", variant, *cells])
        out[key] = rows
    return out


def main() -> None:
    """Writes figure.svg beside the results, and the tables into the README."""
    found = records.read(HERE / "results.json")
    drawing.fill(HERE, tables(found))
    alphas = found["config"]["alphas"]
    figure, axes = drawing.panels(2, 2, (9.5, 6.4))
    for col, model in enumerate(SHOWN):
        for row, (key, label) in enumerate(NAMES.items()):
            ax = axes[row][col]
            for colour, (variant, figures) in zip(drawing.INK, found["results"][model]["means"].items(), strict=False):
                mean, stderr = figures[key]["mean"], figures[key]["stderr"]
                ax.errorbar(alphas, mean, stderr, color=colour, marker=".", label=variant, capsize=2)
            paper = found["config"]["paper"][key]
            ax.plot([float(a) for a in paper], list(paper.values()), "kx", label="paper, ViT-B (another model)")
            ax.set(xlabel="alpha, share left out at each end", ylabel=f"{label}, mean over matrices", title=model)
            ax.set_ylim(0.7 if key == "bulk_share" else 0, 1)
    axes[0][0].legend()
    drawing.save(figure, HERE)


if __name__ == "__main__":
    main()
