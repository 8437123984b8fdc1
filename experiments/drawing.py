"""How the figures of the experiments look, and how they are written: SVG files that do not change from run to run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

INK = ("#1b5e8c", "#c4561e", "#3f7d3a", "#7a4a9e", "#8a6d1f", "#555555")  # dark enough to read on white and in grey


def panels(rows: int, cols: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Returns (figure, array of axes) in the common style; needs matplotlib, of the extra `experiments`."""
    try:
        import matplotlib
    except ImportError as missing:
        raise SystemExit("the figures need matplotlib: pip install 'spectrim[experiments]'") from missing
    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "svg.hashsalt": "spectrim",  # else every run names the parts of the file anew
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "axes.prop_cycle": pyplot.cycler(color=INK),
        }
    )
    return pyplot.subplots(rows, cols, figsize=size, squeeze=False, layout="constrained")


def save(figure: Any, folder: Path) -> None:
    """Writes figure.svg into the folder, without a date, with the digest of the results it was drawn from."""
    figure.savefig(folder / "figure.svg", metadata={"Date": None, "Description": digest(folder)})


def digest(folder: Path) -> str:
    """Returns what a figure says about the results.json beside it."""
    return "results.json sha256 " + hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()


def fill(folder: Path, tables: dict[str, list[list[str]]], page: str = "README.md") -> None:
    """Puts the tables, rows of cells, between their marks in the README of the folder, or in another page there."""
    readme = folder / page
    text = readme.read_text()
    for name, rows in tables.items():
        before, start, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not start or not end:
            raise ValueError(f"{readme} has no marks for the table {name!r}")
        text = before + start + markdown(rows) + end + after
    readme.write_text(text)


def markdown(rows: list[list[str]]) -> str:
    """Returns rows of cells, the first the head, as a table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    return "\n".join(lines) + "\n"
