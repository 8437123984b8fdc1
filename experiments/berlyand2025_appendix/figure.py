"""Draws results.json of A.1, A.2, A.3 and B.3, and fills the tables of the README.

python -m experiments.berlyand2025_appendix.figure
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from experiments import drawing, records
from experiments.berlyand2025_appendix.run import ARMS, STARTS

HERE = Path(__file__).parent
# Accuracy in % on training and test set, and the loss on the training set: tables 2 and 3. Two labels of the rows did
# not survive in the text at hand: which of 87.42 and 87.37 is L1, and that 79.01 is the stable rank alone.
PAPER = {
    "none": (78.03, 71.64, 0.629775),
    "MP": (88.12, 81.22, 0.170905),
    "MP + L1 + L2": (99.82, 90.53, 0.003104),
    "L1 + L2": (87.57, 81.70, 0.325156),
    "L1": (87.42, 81.46, 0.399908),
    "L2": (87.37, 81.31, 0.431001),
    "MP + L1 + L2 + SR": (99.97, 90.16, 0.001134),
    "SR": (79.01, 71.38, 0.476791),
    "MP + L2": (99.98, 90.16, 0.001588),
}
# Figure 5: the loss with the L2 term at eps = 0 and at .01, and the widths of the net.
FIGURE5 = (44.5, 75.0, (784, 3000, 3000, 3000, 3000, 500))


def runs(results: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Returns the records of one arm, in the order of the seeds."""
    found = {key: value for key, value in results.items() if key.rpartition(", seed ")[0] == name}
    return [found[key] for key in sorted(found, key=lambda key: int(key.rpartition(" ")[2]))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns the mean and, in brackets, the smallest and the largest."""
    low, high = min(values), max(values)
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({low:.{digits}f} to {high:.{digits}f})"


def percent(found: Iterable[dict[str, Any]], key: str) -> list[float]:
    """Returns an accuracy of every run in %."""
    return [100 * run[key] for run in found]


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables of the README."""
    return {
        "arms": arms(results),
        "dead": dead(results),
        "pairs": pairs(results),
        "deep": deep(results),
        "noise": noise(results),
        "law": law(results),
        "widths": bounds(results),
        "sparse": sparse(results),
        "answers": answers(results),
    }


def arms(results: dict[str, Any]) -> list[list[str]]:
    """Returns the nine arms of tables 2 and 3 and the controls."""
    rows = [
        ["arm", "paper, train / test %", "train %", "test %", "paper, loss", "train loss", "dead classes", "kept %"]
    ]
    for name in ARMS:
        found = runs(results, f"A1 {name}")
        if found:
            paper = PAPER.get(name)
            kept = [100 * run["epochs"]["params"][-1] / sum_of(run["start"]) for run in found]
            rows.append(
                [
                    name,
                    f"{paper[0]:.2f} / {paper[1]:.2f}" if paper else "",
                    spread(percent(found, "train_accuracy")),
                    spread(percent(found, "test_accuracy")),
                    f"{paper[2]:.4f}" if paper else "",
                    spread([run["train"]["loss"] for run in found], 4),
                    ", ".join(str(run["dead"]) for run in found),
                    spread(kept, 1),
                ]
            )
    return rows


def sum_of(counted: dict[str, int]) -> int:
    """Returns all numbers of a net."""
    return counted["weights"] + counted["other"]


def dead(results: dict[str, Any]) -> list[list[str]]:
    """Returns the recall of each class on the test set for the start that lost most classes."""
    rows = [["arm", "seed", *map(str, range(10)), "accuracy", "of ten tenths"]]
    for name in ARMS:
        for run in runs(results, f"A1 {name}"):
            if run["dead"]:
                recall = [f"{100 * value:.0f}" for value in run["test"]["recall"]]
                ceiling = f"{100 * run['test_accuracy'] / (1 - run['dead'] / 10):.2f}"
                rows.append([name, str(run["seed"]), *recall, f"{100 * run['test_accuracy']:.2f}", ceiling])
    return rows


# Arms that differ in one thing: what it is, with it, without it.
PAIRS = (
    ("pruning, last ReLU", "MP", "none"),
    ("pruning, last ReLU, L1 + L2", "MP + L1 + L2", "L1 + L2"),
    ("pruning, last ReLU, L2", "MP + L2", "L2"),
    ("pruning, no last ReLU", "MP, open", "none, open"),
    ("L1 + L2, last ReLU", "L1 + L2", "none"),
    ("stable rank, last ReLU", "SR", "none"),
    ("no last ReLU, no pruning", "none, open", "none"),
    ("no last ReLU, pruning, L1 + L2", "MP + L1 + L2, open", "MP + L1 + L2"),
    ("largest of the bulk, not any", "MP", "MP by chance"),
)


def pairs(results: dict[str, Any]) -> list[list[str]]:
    """Returns what one change does to the test accuracy, start by start, in points."""
    rows = [["what", "with", "without", "test accuracy, points, start by start", "dead classes, with and without"]]
    for what, one, other in PAIRS:
        both = list(zip(runs(results, f"A1 {one}"), runs(results, f"A1 {other}"), strict=False))
        if both:
            gains = ", ".join(f"{100 * (a['test_accuracy'] - b['test_accuracy']):+.2f}" for a, b in both)
            lost = ", ".join(f"{a['dead']} and {b['dead']}" for a, b in both)
            rows.append([what, one, other, gains, lost])
    return rows


def deep(results: dict[str, Any]) -> list[list[str]]:
    """Returns A.2."""
    rows = [["arm", "paper, test %", "train %", "test %", "dead classes", "kept %"]]
    for name, paper in (("MP + L1 + L2", "91.37"), ("L1 + L2", "< 90.5")):
        found = runs(results, f"A2 {name}")
        if found:
            kept = [100 * run["epochs"]["params"][-1] / sum_of(run["start"]) for run in found]
            lost = ", ".join(str(run["dead"]) for run in found)
            accuracies = (spread(percent(found, key)) for key in ("train_accuracy", "test_accuracy"))
            rows.append([name, paper, *accuracies, lost, spread(kept, 1)])
    return rows


def noisy(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the sweeps of A.3."""
    return [run["noise"] for run in runs(results, "A1 MP + L1 + L2") if "noise" in run]


def noise(results: dict[str, Any]) -> list[list[str]]:
    """Returns A.3: accuracies and losses against eps, means over the nets."""
    found = noisy(results)
    rows = [["eps", "train %", "test %", "train cross-entropy", "test cross-entropy", "sum of squares"]]
    for i, eps in enumerate(found[0]["eps"] if found else ()):

        def mean(key: str, at: int = i) -> float:
            return float(np.mean([sweep[key][at][0] for sweep in found]))

        accuracies = [f"{100 * mean(key):.2f}" for key in ("train", "test")]
        losses = [f"{mean(key):.4f}" for key in ("train_loss", "test_loss")]
        rows.append([f"{eps:g}", *accuracies, *losses, f"{mean('squares'):.1f}"])
    return rows


def law(results: dict[str, Any]) -> list[list[str]]:
    """Returns the growth of the sum of squares with eps^2 against the number of entries, and the paper's figure 5."""
    rows = [["net", "fitted", "entries", "fitted / entries", "allowed by chance"]]
    for seed, sweep in enumerate(noisy(results)):
        ratio, chance = sweep["slope"] / sweep["entries"], sweep["slope_stderr"] / sweep["entries"]
        cells = [f"{sweep['slope']:.0f}", str(sweep["entries"]), f"{ratio:.4f}", f"± {chance:.4f}"]
        rows.append([f"start {seed}", *cells])
    before, after, sizes = FIGURE5
    entries = sum(a * b for a, b in pairwise(sizes))
    rows.append(
        [
            "paper, figure 5",
            f"{(after - before) / 1e-4:.0f} / mu2",
            str(entries),
            "1 at mu2 = " + f"{(after - before) / 1e-4 / entries:.5f}",
            "",
        ]
    )
    return rows


def bounds(results: dict[str, Any]) -> list[list[str]]:
    """Returns B.3."""
    rows = [["start", "N", "a(N) at the start", "a'(N) at the start", "a(N) after", "a'(N) after", "test %"]]
    for name in STARTS:
        for N, found in by_width(results, name).items():
            cells = [
                spread([run[when][key] for run in found], 4) for when in ("before", "after") for key in ("a", "a_prime")
            ]
            rows.append([name, str(N), *cells, spread(percent(found, "test_accuracy"))])
    return rows


def by_width(results: dict[str, Any], name: str) -> dict[int, list[dict[str, Any]]]:
    """Returns the runs of B.3 that began so, by width."""
    widths = {int(key.partition(", N ")[2].partition(",")[0]) for key in results if key.startswith(f"B3 {name}, N ")}
    return {N: runs(results, f"B3 {name}, N {N}") for N in sorted(widths)}


def within(curve: dict[str, list[float]], points: float) -> float:
    """Returns the smallest share of the weights with which the accuracy is within so many points of that with all."""
    whole, first = curve["accuracy"][0], curve["nonzeros"][0]
    return min(
        count / first
        for count, accuracy in zip(curve["nonzeros"], curve["accuracy"], strict=True)
        if accuracy >= whole - points / 100
    )


def sparse(results: dict[str, Any]) -> list[list[str]]:
    """Returns how many weights each arm needs within half a point and within two, by thresholds after training."""
    rows = [["arm", "non-zero within .5 points, %", "within 2 points, %"]]
    for name in ARMS:
        found = runs(results, f"A1 {name}")
        if found:
            cells = [spread([100 * within(run["sparse"], points) for run in found], 1) for points in (0.5, 2)]
            rows.append([name, *cells])
    return rows


def answers(results: dict[str, Any]) -> list[list[str]]:
    """Returns each expectation of run.py with what was measured of it."""
    arms_ = {name: runs(results, f"A1 {name}") for name in ARMS}
    closed = [(name, run) for name, found in arms_.items() if "open" not in name for run in found]
    opened = [run for name, found in arms_.items() if "open" in name for run in found]
    by_start: dict[int, list[int]] = {}
    for _, run in closed:
        by_start.setdefault(run["seed"], []).append(run["dead"])
    starts = "; ".join(f"start {seed}: {', '.join(map(str, lost))}" for seed, lost in sorted(by_start.items()))
    with_dead = [run for _, run in closed if run["dead"]]
    back = [
        name
        for name, run in closed
        if name.startswith("MP") and run["dead"] < min(run["epochs"]["dead"][4:5], default=0)
    ]
    cut = [run for name, found in arms_.items() if name.startswith("MP") for run in found]
    kept = [100 * run["epochs"]["params"][-1] / sum_of(run["start"]) for run in cut]
    square = sum(c["action"] == "split" and c["name"] in ("fc2", "fc3", "fc4") for run in cut for c in run["changes"])
    halves = [within(run["sparse"], 1) for found in arms_.values() for run in found]
    sweeps = noisy(results)
    ratios = ", ".join(f"{sweep['slope'] / sweep['entries']:.4f}" for sweep in sweeps)
    flat = [
        max(e for e, (x, _) in zip(w["eps"], w["test"], strict=True) if x >= w["test"][0][0] - 0.01) for w in sweeps
    ]
    return [
        ["expected", "found"],
        ["with the last ReLU some nets lose classes", f"{len(with_dead)} of {len(closed)} nets"],
        ["... by the start more than by the arm", f"dead classes of the arms, in their order: {starts}"],
        [
            "without it no class dies, and pruning changes less than half a point",
            f"{sum(run['dead'] > 0 for run in opened)} of {len(opened)} nets lost one; pruning: "
            f"{gains(arms_['MP, open'], arms_['none, open'])} points",
        ],
        [
            "cuts do not bring dead classes back often",
            f"{len(back)} of {sum(name.startswith('MP') for name, _ in closed)} end with fewer than after 5 epochs",
        ],
        [
            "any part of the bulk does as well, within a point",
            f"largest against any: {gains(arms_['MP'], arms_['MP by chance'])}",
        ],
        [
            "no square layer is split, more than 85 % of the parameters stay",
            f"{square} of their cuts were; {min(kept):.1f} to {max(kept):.1f} % stay" if kept else "not run",
        ],
        [
            "half of the weights can go within a point",
            f"{100 * min(halves):.0f} to {100 * max(halves):.0f} % are needed" if halves else "not run",
        ],
        [
            "accuracy is flat and falls then; squares grow by eps^2 times the entries within 1 %",
            f"within a point up to eps = {', '.join(f'{e:g}' for e in flat)}; ratios {ratios}" if sweeps else "not run",
        ],
        ["a(N) grows at the start under N(0, 1 / inputs), falls under N(0, 1 / inputs^2)", growth(results)],
    ]


def gains(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Returns the differences of the test accuracy in points, start by start."""
    both = zip(one, other, strict=False)
    return ", ".join(f"{100 * (a['test_accuracy'] - b['test_accuracy']):+.2f}" for a, b in both) or "not run"


def growth(results: dict[str, Any]) -> str:
    """Returns how a(N) and a'(N) at the start change from the smallest width to the largest, and the accuracy there."""
    parts = []
    for name in STARTS:
        found = by_width(results, name)
        if len(found) > 1:
            low, high = min(found), max(found)
            ratios = [
                np.mean([run["before"][key] for run in found[high]])
                / np.mean([run["before"][key] for run in found[low]])
                for key in ("a", "a_prime")
            ]
            accuracy = np.mean(percent(found[high], "test_accuracy"))
            parts.append(
                f"{name}: a times {ratios[0]:.2f}, a' times {ratios[1]:.2f} from {low} to {high}, then {accuracy:.1f} %"
            )
    return "; ".join(parts) or "not run"


def main() -> None:
    """Writes figure.svg beside the results, and the tables into the README."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    figure, axes = drawing.panels(2, 3, (13.0, 7.2))
    (course, sparser, noise_accuracy), (noise_loss, width_bound, width_accuracy) = axes
    shown = ("none", "MP", "MP + L1 + L2", "none, open", "MP + L1 + L2, open")
    for colour, name in zip(drawing.INK, shown, strict=False):
        for k, run in enumerate(runs(results, f"A1 {name}")):
            label = name if k == 0 else None
            style = {"color": colour, "label": label, "linewidth": 1.1}
            epochs = np.arange(1, len(run["epochs"]["loss"]) + 1)
            course.plot(epochs, 100 * np.array(run["epochs"]["test_accuracy"]), **style)
            nonzeros = np.array(run["sparse"]["nonzeros"])
            sparser.plot(nonzeros / sum_of(run["start"]), 100 * np.array(run["sparse"]["accuracy"]), **style)
    course.set(xlabel="epoch", ylabel="test accuracy, %", title="A.1: three starts an arm")
    course.legend(fontsize=7)
    sparser.set(
        xscale="log",
        xlabel="non-zero weights / parameters at the start",
        ylabel="test accuracy, %",
        title="A.1, figure 4",
    )
    sparser.set_xlim(left=0.005)
    for k, sweep in enumerate(noisy(results)):
        colour, eps = drawing.INK[k], np.array(sweep["eps"])
        for key, line in (("train", "-"), ("test", "--")):
            values = np.array(sweep[key])
            noise_accuracy.errorbar(
                eps, 100 * values[:, 0], 100 * values[:, 1], color=colour, linestyle=line, label=f"start {k}, {key}"
            )
            noise_loss.plot(
                eps, np.array(sweep[f"{key}_loss"])[:, 0], color=colour, linestyle=line, label=f"cross-entropy, {key}"
            )
        grown = np.array(sweep["squares"])[:, 0] - sweep["squares"][0][0]
        noise_loss.plot(
            eps, grown / sweep["entries"] / max(eps) ** 2, ":", color=colour, label="growth of the L2 term, scaled"
        )
    noise_accuracy.set(xlabel="standard deviation of what is added", ylabel="accuracy, %", title="A.3")
    noise_accuracy.legend(fontsize=7)
    noise_loss.set(xlabel="standard deviation of what is added", ylabel="loss", title="A.3")
    noise_loss.legend(*first_of_each(noise_loss), fontsize=7)
    widths = {name: found for name in STARTS if (found := by_width(results, name))}
    scale = "log" if widths else "linear"  # no axis of nothing is logarithmic
    for colour, (name, found) in zip(drawing.INK, widths.items(), strict=False):
        N = list(found)
        for key, line in (("a", "-"), ("a_prime", ":")):
            for when, mark in (("before", "o"), ("after", "x")):
                means = [np.mean([run[when][key] for run in found[n]]) for n in N]
                label = f"{name}, {'a' if key == 'a' else 'a′'}, {when}"
                width_bound.plot(N, means, line, marker=mark, markersize=4, color=colour, label=label)
        means = [np.mean(percent(found[n], "test_accuracy")) for n in N]
        width_accuracy.plot(N, means, "-o", markersize=4, color=colour, label=name)
    width_bound.set(
        xscale=scale, yscale=scale, xlabel="N", ylabel="a(N), a′(N)", title="B.3, before and after training"
    )
    width_bound.legend(fontsize=6)
    width_accuracy.set(xscale=scale, xlabel="N", ylabel="test accuracy, %", title="B.3")
    width_accuracy.legend(fontsize=7)
    drawing.save(figure, HERE)


def first_of_each(axis: Any) -> tuple[list[Any], list[str]]:
    """Returns handles and labels without repetitions."""
    found = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    return list(found.values()), list(found)


if __name__ == "__main__":
    main()
