"""Writes the tables of the README and of docs/recover.md from results.json: what came back, for how many seconds.

python -m experiments.recover.figure
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import drawing, records
from experiments.inner_product.figure import NAMES

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "recover.md"
MODELS = ("minilm", "vit_cifar", "efficientnet", "vit_s14")
KINDS = ("zeros", "ranks")
SAMPLES, NOISE = "128 samples", "noise"
WAITING = [["not run yet"]]


def value(result: Mapping[str, Any], way: str, score: str) -> tuple[float, float] | None:
    """Returns a score on the half that reports, and its standard error; None where the cell failed."""
    cell = next(c for c in result["sweep"]["cells"] if c["method"] == way)
    found = cell["scores"].get(score)
    return (found["report"]["value"], found["report"]["error"]) if found else None


def headline(result: Mapping[str, Any]) -> str:
    """Returns the name of the model's own score."""
    return next(iter(result["sweep"]["dense"]["scores"]))


def dense(result: Mapping[str, Any], score: str) -> float:
    """Returns a score of the dense model."""
    return result["sweep"]["dense"]["scores"][score]["report"]["value"]


def back(result: Mapping[str, Any], way: str, score: str) -> tuple[float, float] | None:
    """Returns the share of what a cut has cost that came back, and its standard error; None where nothing was lost.

        s = (x - y) / (d - y),   error^2 = [e_x^2 + (1 - s)^2 e_y^2 - 2 (1 - s) c] / (d - y)^2

    y after the cut, x after the recovery, d of the dense model, which is exact in the cosine; c is the covariance of x
    and y, from the error of their difference in pairs: e^2 = e_x^2 + e_y^2 - 2 c.
    """
    cut = result["ways"][way][0]
    gain = result["gains"].get(score, {}).get(way, {}).get(cut)
    before, after = value(result, cut, score), value(result, way, score)
    if gain is None or before is None or after is None:
        return None
    lost = dense(result, score) - before[0]
    if lost <= 2 * before[1]:
        return None
    found = gain["value"] / lost
    common = (after[1] ** 2 + before[1] ** 2 - gain["error"] ** 2) / 2
    variance = after[1] ** 2 + (1 - found) ** 2 * before[1] ** 2 - 2 * (1 - found) * common
    return found, max(variance, 0.0) ** 0.5 / lost


def seconds(result: Mapping[str, Any], way: str) -> float | None:
    """Returns the seconds of the processor that a recovery took."""
    cell = next(c for c in result["sweep"]["cells"] if c["method"] == way)
    found = [re.fullmatch(r"([\d.]+) core seconds", note) for note in cell["notes"]]
    return next((float(m[1]) for m in found if m), None)


def share(found: tuple[float, float] | None) -> str:
    """Returns a share and its error as text."""
    return "–" if found is None else f"{found[0]:.1%} ± {100 * found[1]:.1f}"


def ways_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row for each cut and recovery: scores, the gain over the bare cut, what came back, seconds."""
    first = headline(result)
    rows = [["cut", "afterwards", first, "gain, 95 %", "cosine", "of the lost cosine back", "core seconds"]]
    rows.append(["none", "nothing", f"{dense(result, first):.3f}", "", f"{dense(result, 'cosine'):.4f}", "", ""])
    for way, (cut, how, given) in result["ways"].items():
        one, two = (value(result, way, score) for score in (first, "cosine"))
        row = [cut, f"{how}, {given}" if how else "nothing"]
        row.append("–" if one is None else f"{one[0]:.3f} ± {one[1]:.3f}")
        gain = result["gains"].get(first, {}).get(way, {}).get(cut) if how else None
        row.append("" if gain is None else f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
        row.append("–" if two is None else f"{two[0]:.4f} ± {two[1]:.4f}")
        took = seconds(result, way)
        rows.append([*row, share(back(result, way, "cosine")) if how else "", "" if took is None else f"{took:.0f}"])
    return rows


def back_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns the share of the lost cosine that came back after 60 % zeros by global magnitude, a row a model."""
    columns = [(how, given) for given in (SAMPLES, NOISE) for how in ("fit", "train", "both")]
    rows = [["model", "cosine after the cut", *(f"{how}, {given}" for how, given in columns)]]
    for name in MODELS:
        if result := results.get(f"{name} zeros"):
            cut = "global magnitude"
            shares = [share(back(result, f"{cut} + {how}, {given}", "cosine")) for how, given in columns]
            rows.append([NAMES[name], f"{value(result, cut, 'cosine')[0]:.4f}", *shares])
    return rows if len(rows) > 1 else WAITING


def chosen_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns the recovery of each cut that was chosen on one half of the items, with its figures on the other."""
    rows = [["model", "cut", "chosen", "score", "nothing", "recovered", "dense"]]
    for name in MODELS:
        for result in (results[f"{name} {kind}"] for kind in KINDS if f"{name} {kind}" in results):
            first = headline(result)
            for cut, best in result["chosen"].items():
                both = [value(result, way, first) for way in (cut, best["way"])]
                told = [f"{v[0]:.3f} ± {v[1]:.3f}" for v in both]
                rows.append([NAMES[name], cut, best["recovery"], first, *told, f"{dense(result, first):.3f}"])
    return rows if len(rows) > 1 else WAITING


def tables(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Returns all tables by their marks in the README."""
    found = {"back": back_table(results), "chosen": chosen_table(results)}
    for job in (f"{name} {kind}" for name in MODELS for kind in KINDS):
        found[job] = ways_table(results[job]) if job in results else WAITING
    return found


def main() -> None:
    """Fills the tables."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    drawing.fill(PAGE.parent, {"back": back_table(results)}, PAGE.name)


if __name__ == "__main__":
    main()
