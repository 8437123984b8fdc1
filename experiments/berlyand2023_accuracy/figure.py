"""Draws results.json and fills the tables of the README.

python -m experiments.berlyand2023_accuracy.figure
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from experiments import drawing, records
from experiments.berlyand2025_appendix.figure import runs, sum_of, within
from scipy.stats import f as ratio
from scipy.stats import t as student

HERE = Path(__file__).parent
ARMS = {
    "fashion": (
        *("fashion", "fashion pruned", "fashion L1 + L2", "fashion pruned L1 + L2", "fashion pruned by chance"),
        *("fashion L1 + L2, last ReLU", "fashion pruned L1 + L2, last ReLU"),
    ),
    "mnist": ("mnist", "mnist pruned by default", "mnist pruned", "mnist pruned L1 + L2"),
    "cifar": ("cifar", "cifar pruned"),
}
TITLES = {"fashion": "Fashion-MNIST", "mnist": "MNIST", "cifar": "CIFAR-10"}
# What is compared start by start: with, without.
PAIRS = (
    ("fashion pruned", "fashion"),
    ("fashion pruned L1 + L2", "fashion L1 + L2"),
    ("fashion pruned L1 + L2, last ReLU", "fashion L1 + L2, last ReLU"),
    ("fashion pruned", "fashion pruned, as small from the start"),
    ("fashion pruned", "fashion pruned by chance"),
    ("fashion L1 + L2", "fashion"),
    ("mnist pruned by default", "mnist"),
    ("mnist pruned by default", "mnist pruned by default, as small from the start"),
    ("mnist pruned", "mnist"),
    ("mnist pruned L1 + L2", "mnist"),
    ("cifar pruned", "cifar"),
)


def nets(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of every arm, start by start; the nets that were small from the start have their own."""
    found: dict[str, list[dict[str, Any]]] = {}
    for names in ARMS.values():
        for name in names:
            found[name] = runs(results, name)
            small = [run["smaller"] for run in found[name] if "smaller" in run]
            if small:
                found[f"{name}, as small from the start"] = small
    return {name: records_ for name, records_ in found.items() if records_}


def figures(found: list[dict[str, Any]]) -> dict[str, float]:
    """Returns mean, standard error, standard deviation and range of the test accuracy in %, and the parameters."""
    accuracy = np.array([100 * run["test_accuracy"] for run in found])
    spread = float(accuracy.std(ddof=1)) if len(accuracy) > 1 else float("nan")
    return {
        "mean": float(accuracy.mean()),
        "stderr": spread / sqrt(len(accuracy)),
        "spread": spread,
        "range": float(np.ptp(accuracy)),
        "train": float(np.mean([100 * run["train_accuracy"] for run in found])),
        "params": float(np.mean([run["epochs"]["params"][-1] for run in found])),
    }


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> tuple[float, float]:
    """Returns the mean difference of the test accuracies, start by start, in points, and half its 95 % interval."""
    gains = [100 * (a["test_accuracy"] - b["test_accuracy"]) for a, b in zip(one, other, strict=False)]
    return records.interval(gains)


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables of the README."""
    found = nets(results)
    accuracy = [
        ["arm", "starts", "test %", "standard error", "standard deviation", "range", "train %", "parameters", "kept %"]
    ]
    for name, runs_ in found.items():
        one = figures(runs_)
        whole = sum_of(found[name.partition(" ")[0]][0]["start"])
        numbers = (f"{one[key]:.2f}" for key in ("mean", "stderr", "spread", "range", "train"))
        accuracy.append([name, str(len(runs_)), *numbers, f"{one['params']:.0f}", f"{100 * one['params'] / whole:.1f}"])
    pairs = [
        ["with", "without", "difference of the means, points, 95 %", "ratio of the variances", "95 % of equal ones"]
    ]
    for one, other in PAIRS:
        if one in found and other in found:
            mean, half = difference(found[one], found[other])
            a, b = figures(found[one])["spread"], figures(found[other])["spread"]
            pairs.append(
                [one, other, f"{mean:+.2f} ± {half:.2f}", f"{(a / b) ** 2:.2f}" if b else "", between(len(found[one]))]
            )
    sparse = [["arm", "non-zero within .5 points, % of the weights at the start", "within 2 points"]]
    for name, runs_ in found.items():
        if "sparse" in runs_[0]:
            whole = [run["parameters"]["weights"] / run["start"]["weights"] for run in runs_]
            shares = [
                np.mean([100 * within(run["sparse"], points) * part for run, part in zip(runs_, whole, strict=True)])
                for points in (0.5, 2)
            ]
            sparse.append([name, *(f"{share:.1f}" for share in shares)])
    layers = [["arm", "layers, as the pruner left them, first start"]]
    for name, runs_ in found.items():
        if runs_[0]["changes"] or "small" in name:
            chain = ("→".join(map(str, sizes)) for sizes in runs_[0]["architecture"].values())
            layers.append([name, ", ".join(chain)])
    tables = {"accuracy": accuracy, "pairs": pairs, "sparse": sparse, "layers": layers}
    return tables | {"answers": answers(results)}


def answers(results: dict[str, Any]) -> list[list[str]]:
    """Returns each expectation of run.py with what was measured of it."""
    found = nets(results)

    def gain(one: str, other: str) -> str:
        if one not in found or other not in found:
            return "not run"
        mean, half = difference(found[one], found[other])
        return f"{mean:+.2f} ± {half:.2f}"

    def kept(name: str) -> str:
        shares = [100 * run["epochs"]["params"][-1] / sum_of(run["start"]) for run in found.get(name, ())]
        return f"{min(shares):.0f} to {max(shares):.0f} %" if shares else "not run"

    def variances(one: str, other: str) -> str:
        if one not in found or other not in found or len(found[other]) < 2:
            return "not run"
        return f"{(figures(found[one])['spread'] / figures(found[other])['spread']) ** 2:.2f}"

    def lost(name: str) -> str:
        return ", ".join(str(run["dead"]) for run in found.get(name, ())) or "not run"

    default, fashion, small = "mnist pruned by default", "fashion pruned", ", as small from the start"
    closed = " L1 + L2, last ReLU"
    cut = sorted({c["name"] for run in found.get("cifar pruned", ()) for c in run["changes"]})
    return [
        ["expected", "found"],
        [
            "MNIST: pruned nets keep 40 to 60 % of the parameters, means within .3 points",
            f"by default {kept(default)}, {gain(default, 'mnist')} points; alpha .25, beta .9: {kept('mnist pruned')}, "
            f"{gain('mnist pruned', 'mnist')}",
        ],
        [
            "Fashion-MNIST: within .5 points, either sign; L1 + L2 add up to .5",
            f"pruned {gain(fashion, 'fashion')}, with L1 + L2 {gain(fashion + ' L1 + L2', 'fashion L1 + L2')}; "
            f"L1 + L2 alone {gain('fashion L1 + L2', 'fashion')}",
        ],
        [
            "the spread over starts is not smaller with pruning",
            f"ratio of the variances: MNIST {variances(default, 'mnist')}, "
            f"Fashion-MNIST {variances(fashion, 'fashion')}, "
            f"with L1 + L2 {variances(fashion + ' L1 + L2', 'fashion L1 + L2')}",
        ],
        [
            "a net as small from the start does as well, within .3 points",
            f"pruned against small: MNIST {gain(default, default + small)}, "
            f"Fashion-MNIST {gain(fashion, fashion + small)}",
        ],
        [
            "any part of the bulk is no more than .3 points worse",
            f"largest against any: {gain(fashion, fashion + ' by chance')}",
        ],
        [
            "a ReLU after the last layer: lost classes, not the pruning, rule mean and spread",
            f"pruned {gain(fashion + closed, 'fashion' + closed)} points; classes lost, start by start: "
            f"{lost('fashion' + closed)}, pruned {lost(fashion + closed)}",
        ],
        [
            "CIFAR-10: the linear layer alone is cut, less than two points",
            f"cut: {', '.join(cut) or 'nothing'}; {gain('cifar pruned', 'cifar')}; {kept('cifar pruned')} are kept",
        ],
    ]


def between(starts: int) -> str:
    """Returns where the ratio of the variances of two equal normal samples lies in 95 of 100 cases."""
    if starts < 2:
        return ""
    low, high = ratio.ppf([0.025, 0.975], starts - 1, starts - 1)
    return f"{low:.2f} to {high:.1f}"


def main() -> None:
    """Writes figure.svg beside the results, and the tables into the README."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    found = nets(results)
    figure, axes = drawing.panels(2, 3, (13.0, 7.2))
    for column, (source, title) in enumerate(TITLES.items()):
        above, below = axes[0][column], axes[1][column]
        names = [name for name in found if name.partition(" ")[0] == source]
        for place, name in enumerate(names):
            colour = drawing.INK[place % len(drawing.INK)]
            accuracy = [100 * run["test_accuracy"] for run in found[name]]
            one = figures(found[name])
            above.plot(accuracy, np.full(len(accuracy), place) + 0.15, ".", color=colour)
            half = one["stderr"] * student.ppf(0.975, max(1, len(accuracy) - 1)) if len(accuracy) > 1 else 0
            above.errorbar(one["mean"], place, xerr=half, fmt="o", markersize=4, color=colour)
            for k, run in enumerate(found[name]):
                if "sparse" in run:
                    shares = np.array(run["sparse"]["nonzeros"]) / run["start"]["weights"]
                    values = 100 * np.array(run["sparse"]["accuracy"])
                    below.plot(shares, values, color=colour, linewidth=0.9, label=name if k == 0 else None)
        labels = [name.removeprefix(source).strip() or "plain" for name in names]
        above.set_yticks(range(len(names)), labels, fontsize=7)
        above.set(xlabel="test accuracy, %; bar: mean, 95 %", title=title)
        above.invert_yaxis()
        below.set(xscale="log", xlabel="non-zero weights / weights at the start", ylabel="test accuracy, %")
        below.set_xlim(left=0.005)
        if names:
            below.legend(fontsize=7)
    drawing.save(figure, HERE)


if __name__ == "__main__":
    main()
