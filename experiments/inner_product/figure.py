"""Writes the tables of the README from results.json: scores by method and share, and how much of the gap is closed.

python -m experiments.inner_product.figure
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
WITHOUT_DATA = ("alternate, noise", "alternate, noise, uniform", "alternate, noise, least damage", "alternate, stored")
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
    """Returns a score on the half that reports, and its standard error; None where the cell failed."""
    cell = next(c for c in cells if c["method"] == method and c["rate"] == rate)
    found = cell["scores"].get(score)
    return (found["report"]["value"], found["report"]["error"]) if found else None


def scores_table(job: str, found: Mapping[str, Any]) -> str:
    """Returns one row a method: the headline and the cosine at each share."""
    cells, infos = found["cells"], list(found["dense"]["scores"])
    shown = [infos[0], *(["cosine"] if "cosine" in infos[1:] else [])]
    rates = sorted({c["rate"] for c in cells})
    dense = ", ".join(f"{name} {found['dense']['scores'][name]['report']['value']:.3f}" for name in shown)
    name, kind = job.split()
    lines = [f"### {NAMES[name]}, {kind}", "", f"Dense: {dense}. Cells: {' / '.join(shown)}.", ""]
    lines += ["| method | " + " | ".join(f"{r:.0%}" for r in rates) + " |", "|---|" + "---|" * len(rates)]
    for method in dict.fromkeys(c["method"] for c in cells):
        row = []
        for rate in rates:
            of = [value(cells, method, rate, score) for score in shown]
            row.append(" / ".join("–" if v is None else f"{v[0]:.3f} ± {v[1]:.3f}" for v in of))
        lines.append(f"| {method} | {' | '.join(row)} |")
    return "\n".join(lines)


def gap_table(results: Mapping[str, Any]) -> str:
    """Returns the share of the gap from global magnitude to the published step with samples that is closed without.

    The gap is that to the better one of the two published budgets, in the headline, or in the cosine where the headline
    does not tell them apart by two of its errors.
    """
    lines = ["| model | share of zeros | score | " + " | ".join(WITHOUT_DATA) + " |"]
    lines.append("|---|---|---|" + "---|" * len(WITHOUT_DATA))
    for job, result in results.items():
        name, kind = job.split()
        if kind != "zeros" or name == "toy":
            continue
        cells = result["sweep"]["cells"]
        for rate in sorted({c["rate"] for c in cells}):
            score = headline(result["sweep"], rate)
            low = value(cells, CONTROL, rate, score)[0]
            high = max((value(cells, m, rate, score)[0] for m in WITH_DATA), key=lambda v: abs(v - low))
            shares = [f"{(value(cells, m, rate, score)[0] - low) / (high - low):.0%}" for m in WITHOUT_DATA]
            lines.append(f"| {NAMES[name]} | {rate:.0%} | {score} | {' | '.join(shares)} |")
    return "\n".join(lines)


def headline(found: Mapping[str, Any], rate: float) -> str:
    """Returns the score that the gap is measured in at a share of zeros."""
    first = next(iter(found["dense"]["scores"]))
    low = value(found["cells"], CONTROL, rate, first)
    for method in WITH_DATA:
        high = value(found["cells"], method, rate, first)
        if abs(high[0] - low[0]) > 2 * (high[1] ** 2 + low[1] ** 2) ** 0.5:
            return first
    return "cosine"


def text(results: Mapping[str, Any]) -> str:
    """Returns all tables."""
    parts = ["### How much of the gap is closed without data", "", gap_table(results), ""]
    for job, result in results.items():
        parts += [scores_table(job, result["sweep"]), ""]
    return "\n".join(parts).rstrip()


def filled(readme: str, results: Mapping[str, Any]) -> str:
    """Returns the page with its tables made anew."""
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{text(results)}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Writes the tables."""
    results = json.loads((HERE / "results.json").read_text())["results"]
    page = HERE / "README.md"
    page.write_text(filled(page.read_text(), results))


if __name__ == "__main__":
    main()
