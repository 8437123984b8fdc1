"""Claims of arXiv 2310.03165 (Berlyand, Sandier, Shmalo, Zhang; J. Mach. Learn. 3, 2024), from its abstract."""

from __future__ import annotations

from typing import Any

import numpy as np
from experiments.berlyand2023_accuracy.figure import between, figures, nets
from experiments.berlyand2025_appendix.figure import sum_of, within
from experiments.claims.claim import (
    NONE,
    PENDING,
    Claim,
    differences,
    gain,
    graded,
    measured,
    percent,
    percents,
    row,
    waits,
)
from experiments.records import interval
from scipy.stats import f as ratio

FOLDER = "berlyand2023_accuracy"
STARTS = 5
LOSS = 0.5  # points by which a mean may be lower without being a loss, if its interval reaches zero
SMALL = ", as small from the start"
# Pruned as the authors' scripts estimate the edge, and not pruned.
SCRIPTS = {
    "MNIST": ("mnist pruned", "mnist"),
    "Fashion-MNIST": ("fashion pruned", "fashion"),
    "Fashion-MNIST, L1 + L2": ("fashion pruned L1 + L2", "fashion L1 + L2"),
    "the same with a last ReLU": ("fashion pruned L1 + L2, last ReLU", "fashion L1 + L2, last ReLU"),
}
LIBRARY = ("mnist pruned by default", "mnist")  # what three lines do
ALL = {**SCRIPTS, "MNIST, library": LIBRARY}
CONVOLUTIONS = ("cifar pruned", "cifar")

Results = dict[str, Any]


def claims(results: Results) -> list[Claim]:
    """Returns the rows of the table."""
    found = nets(results)
    rows = [parameters(found), no_loss(found), accuracy(found), variance(found), convolutions(found), thresholds(found)]
    landscape = row("Abstract: the gain is due to a simpler loss landscape", "no number", NONE, NONE, waits())
    return [*(claim.at(FOLDER) for claim in rows), landscape]


def pair(found: Results, names: tuple[str, str]) -> list[float]:
    """Returns the differences of the test accuracies, start by start."""
    return differences(*(found.get(name, []) for name in names))


def share(found: Results, name: str) -> list[float]:
    """Returns the share of the parameters at the start that is left, in %."""
    return [100 * run["epochs"]["params"][-1] / sum_of(run["start"]) for run in found.get(name, [])]


def listed(cells: dict[str, str], unit: str = "") -> str:
    """Returns what was measured on each data set, or that nothing was."""
    if all(cell.startswith(PENDING) for cell in cells.values()):
        return PENDING
    return "; ".join(f"{title} {cell}" for title, cell in cells.items()) + unit


def by_default(found: Results) -> str:
    """Returns what the library's default did to the accuracy."""
    return listed({"MNIST": gain(pair(found, LIBRARY))}, " points")


def parameters(found: Results) -> Claim:
    """Returns the row on the parameters left."""
    left = {title: share(found, names[0]) for title, names in SCRIPTS.items()}
    seen = [np.mean(values) for values in left.values() if values]
    small = {t: gain(pair(found, (n[0], n[0] + SMALL))) for t, n in ALL.items() if n[0] + SMALL in found}
    half = sum(value < 50 for value in seen)
    words = f"less than half left in {half} of {len(seen)}; pruned less a net as small from the start, points: "
    return row(
        "Abstract: a drastic reduction of parameters",
        "no number",
        listed({"MNIST": percents(share(found, LIBRARY[0]), 0, STARTS)}, " left"),
        listed({title: percents(values, 0, STARTS) for title, values in left.items()}, " left"),
        (graded(half, len(seen)), words + listed(small)) if seen else waits(),
    )


def no_loss(found: Results) -> Claim:
    """Returns the row on accuracy that is not lost."""
    gains = {title: pair(found, names) for title, names in ALL.items()}
    bands = [interval(values) for values in gains.values() if len(values) > 1]
    good = sum(mean >= -LOSS and mean + half >= 0 for mean, half in bands)
    words = f"no loss beyond {LOSS:g} points or the 95 % interval in {good} of {len(bands)} comparisons"
    return row(
        "Abstract: without loss of accuracy",
        "no number",
        by_default(found),
        listed({title: gain(gains[title]) for title in SCRIPTS}, " points"),
        (graded(good, len(bands)), words) if bands else waits(),
    )


def accuracy(found: Results) -> Claim:
    """Returns the row on accuracy that grows."""
    bands = [interval(values) for names in ALL.values() if len(values := pair(found, names)) > 1]
    up = sum(mean - half > 0 for mean, half in bands)
    down = sum(mean + half < 0 for mean, half in bands)
    words = f"of {len(bands)} differences {up} are above zero beyond their 95 % interval, {down} below"
    numbers = {
        title: " against ".join(measured(percent(found.get(name, [])), 2, STARTS) for name in names)
        for title, names in SCRIPTS.items()
    }
    return row(
        "Abstract: pruning increases the accuracy of fully connected nets",
        "no number",
        by_default(found),
        listed(numbers),
        (graded(up, len(bands)), words) if bands else waits(),
    )


def variance(found: Results) -> Claim:
    """Returns the row on the variance over starts."""
    ratios, low, starts = {}, [], STARTS
    for title, names in ALL.items():
        many = min(len(found.get(name, [])) for name in names)
        if many > 1:
            a, b = (figures(found[name])["spread"] for name in names)
            ratios[title] = f"{(a / b) ** 2:.2f}"
            low.append((a / b) ** 2 < ratio.ppf(0.025, many - 1, many - 1))
            starts = min(starts, many)
    words = (
        f"{starts} starts a side: the ratio of equal variances lies in {between(starts)} in 95 of 100 cases. With "
        "the ReLU that the scripts have after the last layer, lost classes rule the spread"
    )
    return row(
        "Abstract: and decreases the variance over random starts",
        "no number",
        NONE,
        "variance pruned over not pruned: " + listed(ratios) if ratios else PENDING,
        (graded(sum(low), len(low)), words) if low else waits(),
    )


def convolutions(found: Results) -> Claim:
    """Returns the row on convolutional nets."""
    gains, left = pair(found, CONVOLUTIONS), share(found, CONVOLUTIONS[0])
    verdict = waits()
    if gains:
        names = sorted({change["name"] for run in found[CONVOLUTIONS[0]] for change in run["changes"]})
        small, same = np.mean(left) < 50, np.mean(gains) > -2 * LOSS
        words = " and ".join(("smaller" if small else "not smaller", "without loss" if same else "not without loss"))
        verdict = (graded(small + same, 2), f"{words}; layers cut: {', '.join(names) or 'none'}")
    return row(
        "Abstract: the same for convolutional nets, without loss",
        "no number",
        NONE,
        f"CIFAR-10 {gain(gains)} points, {percents(left, 0, STARTS)} left" if gains else PENDING,
        verdict,
    )


def thresholds(found: Results) -> Claim:
    """Returns the row on zeros after training, as arXiv 2503.01922 tells it of this paper."""
    cells, better = {}, []
    for title, names in SCRIPTS.items():
        if all(name in found for name in names):
            shares = [
                [
                    100 * within(run["sparse"], 0.5) * run["parameters"]["weights"] / run["start"]["weights"]
                    for run in found[name]
                ]
                for name in names
            ]
            cells[title] = " against ".join(measured(values, 0, STARTS) for values in shares)
            better.append(np.mean(shares[0]) < np.mean(shares[1]))
    return row(
        "arXiv 2503.01922, A.1, of this paper: with a threshold after training, far fewer weights",
        "the number is lost in the text at hand",
        NONE,
        "% of the weights needed within half a point, pruned against not: " + listed(cells) if cells else PENDING,
        (graded(sum(better), len(better)), f"fewer in {sum(better)} of {len(better)}") if better else waits(),
    )
