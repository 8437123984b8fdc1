"""Writes the tables of the README from results.json: scores by method and share, and how much of the gap is closed.

python -m experiments.inner_product.figure
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import drawing, records

HERE = Path(__file__).parent
WITHOUT_DATA = (
    "weighed, noise",
    "alternate, noise",
    "alternate, noise, uniform",
    "alternate, noise, least damage",
    "alternate, stored",
)
WITH_DATA = ("published, 128 samples", "published, 128 samples, uniform")
CONTROL = "global magnitude"
NAMES = {
    "minilm": "MiniLM-L6",
    "vit_s14": "ViT-S/14",
    "efficientnet": "EfficientNet-Lite0",
    "whisper": "Whisper tiny.en",
    "vit_cifar": "the small ViT",
    "toy": "toy",
}


def value(cells: list[dict[str, Any]], method: str, rate: float, score: str) -> tuple[float, float] | None:
    """Returns a score on the half that reports, and its standard error; None where the cell failed, or is not there."""
    cells = [c for c in cells if c["method"] == method and c["rate"] == rate and score in c["scores"]]
    return next(((c["scores"][score]["report"]["value"], c["scores"][score]["report"]["error"]) for c in cells), None)


def scores_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row for the dense model and one for each method: the headline and the cosine at each share."""
    cells, dense = found["cells"], found["dense"]["scores"]
    first = next(iter(dense))
    shown = [first, *(["cosine"] if "cosine" in dense and first != "cosine" else [])]
    rates = sorted({c["rate"] for c in cells})
    whole = " / ".join(f"{dense[name]['report']['value']:.3f}" for name in shown)
    rows = [[" / ".join(shown), *(f"{r:.0%}" for r in rates)], ["dense", *[whole] * len(rates)]]
    for method in dict.fromkeys(c["method"] for c in cells):
        row = [method]
        for rate in rates:
            of = [value(cells, method, rate, score) for score in shown]
            row.append(" / ".join("–" if v is None else f"{v[0]:.3f} ± {v[1]:.3f}" for v in of))
        rows.append(row)
    return rows


def gap_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns the share of the gap from global magnitude to the published step with samples that is closed without.

    The gap is that to the better one of the two published budgets, in the headline, or in the cosine where the headline
    does not tell them apart by two of its errors.
    """
    rows = [["model", "share of zeros", "score", *WITHOUT_DATA]]
    for job, result in results.items():
        name, kind = job.split()
        if kind != "zeros" or name == "toy":
            continue
        cells = result["sweep"]["cells"]
        for rate in sorted({c["rate"] for c in cells}):
            score = headline(result["sweep"], rate)
            low = value(cells, CONTROL, rate, score)[0]
            high = max((value(cells, m, rate, score)[0] for m in WITH_DATA), key=lambda v: abs(v - low))
            of = [value(cells, m, rate, score) for m in WITHOUT_DATA]
            shares = ["" if v is None else f"{(v[0] - low) / (high - low):.0%}" for v in of]
            rows.append([NAMES[name], f"{rate:.0%}", score, *shares])
    return rows


def headline(found: Mapping[str, Any], rate: float) -> str:
    """Returns the score that the gap is measured in at a share of zeros."""
    first = next(iter(found["dense"]["scores"]))
    low = value(found["cells"], CONTROL, rate, first)
    for method in WITH_DATA:
        high = value(found["cells"], method, rate, first)
        if abs(high[0] - low[0]) > 2 * (high[1] ** 2 + low[1] ** 2) ** 0.5:
            return first
    return "cosine"


def tables(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Returns all tables by their marks in the README."""
    return {"gap": gap_table(results)} | {job: scores_table(result["sweep"]) for job, result in results.items()}


def main() -> None:
    """Fills the tables."""
    drawing.fill(HERE, tables(records.read(HERE / "results.json")["results"]))


if __name__ == "__main__":
    main()
