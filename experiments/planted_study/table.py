"""Writes the tables of the planted study into docs/choosing.md.

    python -m experiments.planted_study.table

What stands between the two marks of the page is replaced; the prose around it is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/choosing.md"
MARKS = ("<!-- planted study: begin -->\n", "<!-- planted study: end -->")
NAMES = ("Known", "Bema", "Median", "Broadening", "GavishDonoho", "ScreeNot", "BemaGamma", "shuffled")

Key = tuple[int, float, int, str, str, str]  # p, gamma, rank, strength, scales, entries


def key(p: int, rank: int = 0, strength: str = "none", scales: str = "even", entries: str = "gaussian") -> Key:
    """Returns the key of a cell with gamma = 1/2."""
    return p, 0.5, rank, strength, scales, entries


NOISE = {
    "128, even": key(128),
    "384, even": key(384),
    "128, uneven, plain": key(128, scales="uneven"),
    "128, uneven, equalised": key(128, scales="equalised"),
    "128, Student": key(128, entries="student"),
    "128, sparse": key(128, entries="sparse"),
    "128, blocks": key(128, entries="blocks"),
    "128, correlated": key(128, entries="correlated"),
}
SIGNAL = {
    "128, 20 weak": key(128, 20, "weak"),
    "384, 20 weak": key(384, 20, "weak"),
    "128, 20 strong": key(128, 20, "strong"),
    "128, 60 weak": key(128, 60, "weak"),
    "128, 60 strong": key(128, 60, "strong"),
    "384, 60 strong": key(384, 60, "strong"),
    "128, 20 weak, uneven, plain": key(128, 20, "weak", "uneven"),
    "128, 20 weak, uneven, equalised": key(128, 20, "weak", "equalised"),
}


def cells_of(record: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    """Returns the cells of a results file by their keys."""
    cells = record["results"]["cells"]
    return {(c["p"], c["gamma"], c["rank"], c["strength"], c["scales"], c["entries"]): c for c in cells}


def tables(record: dict[str, Any]) -> str:
    """Returns the tables as markdown; a cell that was not run is a dash."""
    cells = cells_of(record)

    def table(title: str, columns: dict[str, Key], show: Callable[[dict[str, Any]], str], names=NAMES) -> str:
        lines = [title, "", "| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
        for name in names:
            row = []
            for column in columns.values():
                figures = cells.get(column, {}).get("estimators", {}).get(name)
                row.append(show(figures) if figures else "–")
            lines.append(f"| {name} | " + " | ".join(row) + " |")
        return "\n".join(lines) + "\n"

    def number(figures: dict[str, Any], name: str, form: str, factor: float = 1.0, error: bool = True) -> str:
        if name not in figures:
            return "–"
        mean, spread = figures[name]
        return f"{factor * mean:{form}}" + (f" ± {factor * spread:{form.lstrip('+')}}" if error and spread else "")

    return "\n".join(
        (
            table(
                "Noise alone: mean number of false spikes ± its standard error (p, then the kind of noise).",
                NOISE,
                lambda f: number(f, "false", ".2f"),
            ),
            table(
                "Share of the planted values found, in per cent, and false spikes beside them.",
                SIGNAL,
                lambda f: number(f, "power", ".0f", 100) + " / " + number(f, "false", ".1f", error=False),
            ),
            table(
                "Error of sigma, in per cent.",
                SIGNAL,
                lambda f: number(f, "sigma_error", "+.1f", 100),
                tuple(name for name in NAMES if name not in ("Known", "ScreeNot")),
            ),
            table(
                "Squared error over the energy of the signal, in per cent: values above the edge kept / values shrunk.",
                SIGNAL,
                lambda f: number(f, "truncated", ".1f", 100, False) + " / " + number(f, "shrunk", ".1f", 100, False),
                (*NAMES, "best cut"),
            ),
        )
    )


def main() -> None:
    """Rewrites the page."""
    record = json.loads((HERE / "results.json").read_text())
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(before + MARKS[0] + tables(record) + MARKS[1] + after)


if __name__ == "__main__":
    main()
