"""Draws figure.svg and fills the tables of the README from results.json: how estimates and scores go together.

python -m experiments.model_error.figure
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from experiments import drawing, records
from experiments.inner_product.figure import NAMES
from experiments.model_error.run import ESTIMATES, NOISE, SAMPLES, WEIGHED

HERE = Path(__file__).parent
MODELS = ("minilm", "vit_cifar", "efficientnet", "vit_s14")
WAITING = [["not run yet"]]
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
SMALL = 0.5  # errors below this are called small


def headline(result: Mapping[str, Any]) -> str:
    """Returns the name of the model's own score."""
    return next(iter(result["sweep"]["dense"]["scores"]))


def value(result: Mapping[str, Any], method: str, rate: str, score: str) -> tuple[float, float]:
    """Returns a score over all items, and its standard error."""
    cells = result["sweep"]["cells"]
    found = next(c for c in cells if c["method"] == method and f"{c['rate']:g}" == rate)["scores"][score]["all"]
    return found["value"], found["error"]


def held_out(result: Mapping[str, Any], method: str, rate: str) -> float:
    """Returns the relative error of the outputs that are scored, from their mean cosine to the dense ones.

    The part of a unit vector across another at cosine c is sqrt(1 - c^2): what is left at the best scale.
    """
    c = min(max(value(result, method, rate, "cosine")[0], 0.0), 1.0)
    return (1 - c * c) ** 0.5


def points(result: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, float], float]]:
    """Yields (share, method, estimates, error of the outputs scored)."""
    for rate, of in result["estimates"].items():
        for method, prices in of.items():
            yield rate, method, prices, held_out(result, method, rate)


def told(found: Mapping[str, float | None], sign: str = "") -> str:
    """Returns a figure and its interval as text."""
    if None in (found["value"], found["low"], found["high"]):
        return "–"
    return f"{found['value']:{sign}.2f} [{found['low']:{sign}.2f}, {found['high']:{sign}.2f}]"


def rank_table(results: Mapping[str, Any], own: bool) -> list[list[str]]:
    """Returns the correlations of the estimates with the cosine, or with the model's own score."""
    rows = [["model", "zeros", "score", "cuts", *ESTIMATES]]
    for name, result in there(results):
        score = headline(result) if own else "cosine"
        for rate, of in result["correlations"][score].items():
            shown = [told(of[estimate]) for estimate in ESTIMATES]
            rows.append([NAMES[name], f"{float(rate):.0%}", score, str(len(result["estimates"][rate])), *shown])
    return rows if len(rows) > 1 else WAITING


def behind_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns by how much the correlation of each other estimate with the cosine is behind the weighed one's."""
    others = [estimate for estimate in ESTIMATES if estimate != WEIGHED]
    rows = [["model", "zeros", *others]]
    for name, result in there(results):
        for rate, of in result["correlations"]["cosine"].items():
            rows.append([NAMES[name], f"{float(rate):.0%}", *(told(of[e]["behind"], "+") for e in others)])
    return rows if len(rows) > 1 else WAITING


def ratios(result: Mapping[str, Any], estimate: str, against: str, small: bool) -> list[float]:
    """Returns estimate over error of all cuts whose error is small, or is not: "seen" on samples, or "held out"."""
    pairs = ((prices[estimate], prices["seen"] if against == "seen" else off) for *_, prices, off in points(result))
    return sorted(guess / error for guess, error in pairs if (error < SMALL) is small and error > 0)


def number_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns how many times too large the estimates are, by model and source."""
    heads = [
        f"{who}, {'below' if small else 'from'} {SMALL:g}" for who in ("seen", "held out") for small in (True, False)
    ]
    rows = [["model", "estimate from", *heads]]
    for name, result in there(results):
        for source in (SAMPLES, NOISE):
            row = [NAMES[name], source]
            for against in ("seen", "held out"):
                for small in (True, False):
                    found = ratios(result, f"weighed, {source}", against, small)
                    row.append(f"{median(found):.2f} ({found[0]:.2f}–{found[-1]:.2f}), {len(found)}" if found else "–")
            rows.append(row)
    return rows if len(rows) > 1 else WAITING


def cells_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row a cut: at each share the cosine, and the errors estimated, seen, and of the outputs scored."""
    rates = list(result["estimates"])
    rows = [["cosine: estimate, from noise, seen, held out", *(f"{float(r):.0%}" for r in rates)]]
    for method in dict.fromkeys(m for of in result["estimates"].values() for m in of):
        row = [method]
        for rate in rates:
            if (prices := result["estimates"][rate].get(method)) is None:
                row.append("–")
                continue
            errors = [prices[WEIGHED], prices[f"weighed, {NOISE}"], prices["seen"], held_out(result, method, rate)]
            score, error = value(result, method, rate, "cosine")
            row.append(f"{score:.3f} ± {error:.3f}: " + ", ".join(f"{e:.2f}" for e in errors))
        rows.append(row)
    return rows


def there(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the models that have results, in order; a toy run stands for itself."""
    return [(name, results[name]) for name in (*MODELS, "toy") if name in results]


def tables(results: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Returns all tables by their marks in the README."""
    found = {"cosine": rank_table(results, False), "own": rank_table(results, True), "behind": behind_table(results)}
    found["number"] = number_table(results)
    return found | {name: cells_table(results[name]) if name in results else WAITING for name in MODELS}


def draw(results: Mapping[str, Any]) -> Any:
    """Returns the figure: the error of the outputs scored against the estimate, a panel a model."""
    shown = there(results)
    figure, axes = drawing.panels(1, len(shown), (3.4 * len(shown), 3.4))
    for ax, (name, result) in zip(axes[0], shown, strict=True):
        for ink, rate in zip(drawing.INK, result["estimates"], strict=False):
            for source, mark in ((SAMPLES, "o"), (NOISE, "x")):
                at = [(p[f"weighed, {source}"], y) for r, _, p, y in points(result) if r == rate]
                label = f"{float(rate):.0%} zeros, {source}"
                ax.plot(*zip(*at, strict=True), mark, color=ink, markersize=4, alpha=0.8, label=label)
        least = min(min(p[WEIGHED], y) for *_, p, y in points(result))
        ax.plot([least, 1], [least, 1], color="#999999", linewidth=1)
        ax.set(xscale="log", yscale="log", title=NAMES[name], xlabel="estimated error of the output")
        ax.minorticks_off()
        for limits, put in ((ax.get_xlim(), ax.set_xticks), (ax.get_ylim(), ax.set_yticks)):
            at = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
            put(at, [f"{tick:g}" for tick in at])
    axes[0, 0].set_ylabel("error of the outputs scored, √(1 − cos²)")
    axes[0, -1].legend(fontsize=6)
    return figure


def main() -> None:
    """Draws the figure and fills the tables."""
    results = records.read(HERE / "results.json")["results"]
    drawing.save(draw(results), HERE)
    drawing.fill(HERE, tables(results))


if __name__ == "__main__":
    main()
