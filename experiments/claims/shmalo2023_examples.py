"""Claims of arXiv 2303.08986, examples 4.3 to 4.7: nets that are split while they train, and nets left alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from experiments.claims.claim import (
    NONE,
    PENDING,
    Claim,
    dead,
    differences,
    gain,
    graded,
    lost,
    percent,
    percents,
    row,
    waits,
)
from experiments.shmalo2023_rmt_svd import figure, printed

NEAR = 3.0  # points within which an accuracy at these sizes is the paper's
HALF = 0.5  # points below which a difference is none
BY_TEXT = {"non-split": ("4.3", "4.4", "4.5"), "text": ("4.3", "4.5")}  # run from one start

Results = dict[str, Any]


def claims(found: Results) -> list[Claim]:
    """Returns the rows of the table."""
    rows = []
    for name in printed.EXAMPLES:
        rows += [plain(found, name), split(found, name), smaller(found, name)]
        if name == "4.5":
            rows.append(fall(found))
    return rows


def arm(found: Results, example: str, name: str, setting: str, last_relu: bool) -> list[Results]:
    """Returns the runs of an arm, each with its best accuracy of any epoch as "peak"."""
    runs = figure.arms(found, example, name, setting, last_relu)
    return [run | {"peak": max(run["epochs"]["test_accuracy"])} for run in runs]


def told(runs: list[Results], key: str, example: str, name: str, setting: str) -> str:
    """Returns accuracies and dead classes of an arm, or that it is not run, or not planned."""
    if runs:
        accuracies = percents(percent(runs, key), planned=1 if setting == "text" else 3)
        return f"{accuracies}; dead classes {', '.join(map(str, dead(runs)))}"
    return PENDING if setting == "notebook" or example in BY_TEXT[name] else NONE


def said_of(example: str) -> str:
    """Returns what the accuracies of an example are of, where they are not of the test set."""
    return " (of the training set)" if example == "4.6" else ""


def plain(found: Results, example: str) -> Claim:
    """Returns the row on the net left alone."""
    said = printed.EXAMPLES[example]
    parts = {setting: arm(found, example, "non-split", setting, True) for setting in ("text", "notebook")}
    closed = [run for part in parts.values() for run in part]
    free = [run for setting in parts for run in arm(found, example, "non-split", setting, False)]
    ceiling = 10 * (int(said.plain_accuracy) // 10 + 1)
    verdict = waits()
    if closed and free:
        words = (
            f"{lost(closed)} starts lose a class; without the last ReLU {lost(free)}, and they reach "
            f"{percents(percent(free), planned=0)}; with {(100 - ceiling) // 10} dead {ceiling} % is the most"
        )
        close = abs(np.mean(percent(closed)) - said.plain_accuracy) <= NEAR
        verdict = ("confirmed" if close else "not reproduced", words)
        if any(dead(closed)) and not any(dead(free)):
            verdict = ("artefact", words)
    return row(
        f"Example {example}, {net_in_words(said.sizes)}: not split, it plateaus",
        f"{said.plain_accuracy:g} %{said_of(example)}",
        *(told(part, "test_accuracy", example, "non-split", setting) for setting, part in parts.items()),
        verdict,
    )


def split(found: Results, example: str) -> Claim:
    """Returns the row on the gain by splitting."""
    said = printed.EXAMPLES[example]
    names = {"text": "text", "notebook": "as executed"}
    parts = {setting: arm(found, example, name, setting, True) for setting, name in names.items()}
    alone = {relu: arm(found, example, "non-split", "notebook", relu) for relu in (True, False)}
    closed = differences(parts["notebook"], alone[True], "peak")
    free = differences(arm(found, example, "as executed", "notebook", False), alone[False], "peak")
    chance = differences(arm(found, example, "random", "notebook", True), alone[True], "peak")
    verdict = waits()
    if closed and free:
        words = f"split less not split, points of the best epoch: {gain(closed)}; without the last ReLU {gain(free)}"
        words += f"; random values of the bulk kept {gain(chance)}" if chance else ""
        word = "artefact" if np.mean(free) <= HALF else "confirmed"
        verdict = ("not reproduced" if np.mean(closed) <= HALF else word, words)
    return row(
        f"Example {example}: split, it peaks higher",
        f"{said.split_accuracy:g} %{said_of(example)}",
        *(told(part, "peak", example, "text", setting) for setting, part in parts.items()),
        verdict,
    )


def smaller(found: Results, example: str) -> Claim:
    """Returns the row on the parameters left."""
    said = printed.EXAMPLES[example]
    share = 100 * said.params_split / said.params
    runs = [arm(found, example, "text", "text", True), arm(found, example, "as executed", "notebook", True)]
    text, script = ([100 * r["epochs"]["params"][-1] / r["params_start"] for r in part] for part in runs)
    verdict = waits()
    if script:
        word = "confirmed in part" if np.mean(script) < 95 else "not reproduced"
        why = f"gate {said.gate:g}; what chance adds to a misfit is larger in narrower layers"
        verdict = ("confirmed", "") if abs(np.mean(script) - share) <= 10 else (word, why)
    return row(
        f"Example {example}: parameters left",
        f"{share:.0f} % ({said.params_split:,} of {said.params:,})",
        percents(text, 0, 1) if text or example in BY_TEXT["text"] else NONE,
        percents(script, 0),
        verdict,
    )


def fall(found: Results) -> Claim:
    """Returns the row on the collapse of example 4.5."""
    shown = {}
    for setting, name in (("text", "text"), ("notebook", "as executed")):
        runs = arm(found, "4.5", name, setting, True)
        shown[setting] = [(100 * run["peak"], 100 * run["test_accuracy"]) for run in runs]
    fallen = [best - last > 10 for best, last in shown["notebook"]]
    words = [", ".join(f"{best:.1f} then {last:.1f}" for best, last in part) or PENDING for part in shown.values()]
    many = f"{sum(fallen)} of {len(fallen)} starts fall by more than ten points"
    return row(
        "Example 4.5: with a weak gate it peaks, then falls",
        "95, then 20 %",
        *words,
        (graded(sum(fallen), len(fallen)), many) if fallen else waits(),
    )


def net_in_words(sizes: tuple[int, ...]) -> str:
    """Returns the sizes of a net, equal ones that follow each other taken together.

    Example:
        >>> net_in_words((784, 500, 500, 10))
        '[784, 500 x 2, 10]'
    """
    parts, many = [], 1
    for a, b in pairwise((*sizes, -1)):
        if a == b:
            many += 1
        else:
            parts.append(f"{a} x {many}" if many > 1 else str(a))
            many = 1
    return f"[{', '.join(parts)}]"
