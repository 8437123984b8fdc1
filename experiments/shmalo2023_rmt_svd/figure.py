"""Draws results.json and fills the tables of the README; works with whatever part of the jobs is there.

python -m experiments.shmalo2023_rmt_svd.figure
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from experiments import drawing, records
from experiments.shmalo2023_rmt_svd import examples, printed, run, starts

HERE = Path(__file__).parent
BLUE, RED, GREEN, PURPLE, BROWN, GREY = drawing.INK
COLOURS = {"non-split": GREY, "as executed": BLUE, "text": GREEN, "random": RED, "halve": BROWN}
Results = dict[str, Any]
Table = list[list[str]]


def percent(values: list[float]) -> str:
    """Returns accuracies in per cent, one a seed."""
    return ", ".join(f"{100 * value:.1f}" for value in values)


def many(dead: list[int]) -> str:
    """Returns how often each class is in the list, most frequent first."""
    return ", ".join(f"{c}: {n}" for c, n in sorted(Counter(dead).items(), key=lambda entry: (-entry[1], entry[0])))


def printed_table() -> Table:
    """Returns the examples as printed, with the number of values above the edge that explains each first cut."""
    rows = [["example", "net", "first cuts", "above the edge then", "numbers, printed and counted", "split, the same"]]
    for name, example in printed.EXAMPLES.items():
        first = [(r, p) for r, p in printed.cuts(example.sizes, example.split) if p in example.sizes]
        rows.append(
            [
                name,
                "-".join(map(str, example.sizes)),
                ", ".join(f"{rank} of {side}" for rank, side in first),
                ", ".join(str(printed.spikes_behind(*cut)) for cut in first),
                f"{example.params:,} and {printed.count(example.sizes):,}",
                f"{example.params_split:,} and {printed.count(example.split):,}",
            ]
        )
    return rows


def first_table(found: Results) -> Table:
    """Returns what is silent before any training."""
    rows = [["net", "starts with a silent logit", "silent logits, mean", "negative biases, mean", "fixed share"]]
    for name, kept in found.get("at the start", {}).items():
        seen = kept["starts"]
        still = [len(s["silent"]) for s in seen]
        negative = np.mean([s["negative_bias"] for s in seen])
        rows.append(
            [
                f"{name}: {'-'.join(map(str, kept['sizes']))}",
                f"{sum(n > 0 for n in still)} of {len(seen)}",
                f"{np.mean(still):.1f}",
                f"{negative:.1f}",
                f"{np.mean([s['fixed'] for s in seen]):.2f}",
            ]
        )
    return rows


def start_rows(found: Results) -> list[tuple[str, str, Results]]:
    """Returns (net, cell, result) of the jobs about starts that are there."""
    cells = [(net, name) for net in ("shallow", "deep") for name, *_ in run.CELLS]
    cells += [("whole", "notebook"), ("whole", "text")]
    return [(net, name, found[f"starts {net} {name}"]) for net, name in cells if f"starts {net} {name}" in found]


def starts_table(found: Results) -> Table:
    """Returns how often classes die."""
    head = ["net", "setting", "silent logits at first", "starts with a dead class", "dead classes a start"]
    rows = [
        [*head, "silent and still dead", "not silent and dead", "accuracy, lowest, median, highest", "ties of the dead"]
    ]
    for net, name, kept in start_rows(found):
        runs = kept["runs"]
        dead = [run["test"]["dead"] for run in runs]
        silent = [run["silent"][0] for run in runs]
        both = sum(len(set(s) & set(d)) for s, d in zip(silent, dead, strict=True))
        total, first = sum(map(len, dead)), sum(map(len, silent))
        accuracy = np.sort([100 * run["test"]["accuracy"] for run in runs])
        tied = [run["test"]["tied"] for run in runs if run["test"]["tied"] is not None]
        rows.append(
            [
                f"{net} {'-'.join(map(str, kept['case']['sizes']))}",
                name,
                f"{first / len(runs):.1f} of 10",
                f"{sum(map(bool, dead))} of {len(runs)}",
                f"{total / len(runs):.2f}",
                f"{both} of {first}",
                f"{total - both} of {10 * len(runs) - first}",
                f"{accuracy[0]:.1f}, {np.median(accuracy):.1f}, {accuracy[-1]:.1f}",
                f"{np.mean(tied):.2f}" if tied else "",
            ]
        )
    return rows


def ceiling_table(found: Results) -> Table:
    """Returns the accuracies by number of dead classes, over all starts with a ReLU on the last layer."""
    grouped: dict[int, list[Results]] = {}
    for _, _, kept in start_rows(found):
        if kept["case"]["last_relu"]:
            for one in kept["runs"]:
                grouped.setdefault(len(one["test"]["dead"]), []).append(one["test"])
    rows = [["dead classes", "starts", "accuracy, lowest, median, highest", "with ties to a dead class", "which die"]]
    for count, tests in sorted(grouped.items()):
        accuracy = [100 * test["accuracy"] for test in tests]
        resolved = np.median([100 * test["accuracy_ties"] for test in tests])
        rows.append(
            [
                str(count),
                str(len(tests)),
                f"{min(accuracy):.1f}, {np.median(accuracy):.1f}, {max(accuracy):.1f}",
                f"{resolved:.1f}" if count else "",
                many([c for test in tests for c in test["dead"]]),
            ]
        )
    return rows


def revival_table(found: Results) -> Table:
    """Returns what became of dead classes under each treatment."""
    head = ["net", "treatment", "dead classes", "logit awake at once", "back after training on", "newly dead"]
    rows = [[*head, "accuracy before", "at once", "later"]]
    for net in ("shallow", "deep"):
        runs = found.get(f"revivals {net}", {"runs": []})["runs"]
        for way in starts.WAYS:
            seen = [(one, one["ways"][way]) for one in runs if way in one["ways"]]
            if not seen:
                continue
            dead = sum(len(one["test"]["dead"]) for one, _ in seen)
            awake = sum(len(set(one["test"]["dead"]) - set(done["silent"])) for one, done in seen)
            fresh = sum(len(set(done["dead_later"]) - set(one["test"]["dead"])) for one, done in seen)
            rows.append(
                [
                    net,
                    way,
                    f"{dead} in {len(seen)} nets",
                    str(awake),
                    str(sum(len(done["revived"]) for _, done in seen)),
                    str(fresh),
                    f"{np.mean([100 * one['test']['accuracy'] for one, _ in seen]):.1f}",
                    f"{np.mean([100 * done['accuracy'] for _, done in seen]):.1f}",
                    f"{np.mean([100 * done['accuracy_later'] for _, done in seen]):.1f}",
                ]
            )
    return rows


def curves(found: Results, last_relu: bool) -> list[Results]:
    """Returns the results of example 4.1, by seed."""
    name = "last ReLU" if last_relu else "no last ReLU"
    return [kept for key, kept in found.items() if key.startswith(f"4.1 {name}")]


def curve_table(found: Results) -> Table:
    """Returns the accuracy against the values kept, beside the notebook's."""
    seeds, free = curves(found, True), curves(found, False)
    rows = [["values kept", "notebook", "here", "without the last ReLU", "random directions", "largest numbers"]]
    if not seeds:
        return rows
    for rank in (*range(0, 60, 5), 75, 95, 128, 256, 512):
        key = str(rank)
        if any(key not in s["accuracy"] for s in (*seeds, *free)):
            continue
        rows.append(
            [
                key,
                f"{printed.CURVE[rank]:.1f}" if rank in printed.CURVE else "",
                percent([s["accuracy"][key] for s in seeds]),
                percent([s["accuracy"][key] for s in free]),
                percent([float(np.mean(s["random"][key])) for s in seeds]),
                percent([s["magnitude"][key] for s in seeds]),
            ]
        )
    for label, key, theirs in (
        ("predicted: notebook's", "notebook", f"{printed.CURVE_RANK}"),
        ("library's", "library", ""),
    ):
        ranks, at = [s["predicted"][key] for s in seeds], [s["accuracy"][str(s["predicted"][key])] for s in seeds]
        also = [s["predicted"][key] for s in free]
        rows.append([label, theirs, f"{', '.join(map(str, ranks))}: {percent(at)}", ", ".join(map(str, also)), "", ""])
    full = percent([s["full"] for s in seeds])
    return [*rows, ["all", f"{printed.CURVE_FULL}", full, percent([s["full"] for s in free]), "", ""]]


def arms(found: Results, example: str, arm: str, setting: str, last_relu: bool) -> list[Results]:
    """Returns the seeds of one arm that are there; an untouched net of 4.4 is that of 4.5."""
    relu = "last ReLU" if last_relu else "no last ReLU"
    name = "4.5" if (example, arm) == ("4.4", "non-split") else example
    return [kept for key, kept in found.items() if key.startswith(f"{name} {arm}, {setting}, {relu}, ")]


def each_arm(found: Results) -> list[tuple[str, str, str, bool, list[Results]]]:
    """Returns every arm of every example that has a result."""
    rows = []
    for example in printed.EXAMPLES:
        for setting in examples.SETTINGS:
            for relu in (True, False):
                for arm in examples.ARMS:
                    kept = arms(found, example, arm, setting, relu)
                    if kept:
                        rows.append((example, arm, setting, relu, kept))
    return rows


def examples_table(found: Results) -> Table:
    """Returns one row an arm of the examples: accuracies, dead classes, parameters, the first seed's sizes."""
    head = ["example", "arm", "last ReLU", "test accuracy by seed", "dead classes by seed", "training accuracy"]
    rows = [[*head, "paper", "numbers left", "sizes, first seed"]]
    for example, arm, setting, relu, kept in each_arm(found):
        text = printed.EXAMPLES[example]
        paper = {"non-split": f"{text.plain_accuracy:g}", "as executed": f"{text.split_accuracy:g}"}.get(arm, "")
        left = np.mean([k["epochs"]["params"][-1] / k["params_start"] for k in kept])
        dead = [" ".join(map(str, k["dead"])) or "none" for k in kept]
        rows.append(
            [
                example,
                arm if setting == "notebook" or arm == "text" else f"{arm}, step of the text",
                "yes" if relu else "no",
                percent([k["test_accuracy"] for k in kept]),
                "; ".join(dead),
                percent([k["train_accuracy"] for k in kept]),
                paper if setting == "notebook" and relu else "",
                f"{100 * left:.0f} %" if arm != "non-split" else "",
                "-".join(map(str, kept[0]["sizes"][-1])),
            ]
        )
    return rows


def recall_table(found: Results) -> Table:
    """Returns the recall of each class, first seed, of the main arms."""
    rows = [["example", "arm", "last ReLU", *map(str, range(10))]]
    for example, arm, setting, relu, kept in each_arm(found):
        if setting == "notebook" and arm in ("non-split", "as executed"):
            first = min(kept, key=lambda one: one["seed"])
            rows.append([example, arm, "yes" if relu else "no", *(f"{100 * r:.0f}" for r in first["recall"])])
    return rows


def gate_table(found: Results) -> Table:
    """Returns how the layers read at the first cut of the first seed."""
    rows = [["example", "gate", "first cut, first seed, last ReLU"]]
    for example in printed.EXAMPLES:
        kept = arms(found, example, "as executed", "notebook", True)
        if kept:
            first = [line.partition(": ")[2] for line in kept[0]["cuts"] if line.startswith("epoch 0:")]
            rows.append([example, f"{printed.EXAMPLES[example].gate:g}", "; ".join(first)])
    return rows


def tables(found: Results) -> dict[str, Table]:
    """Returns all tables of the README."""
    made: dict[str, Callable[[Results], Table]] = {
        "starts": starts_table,
        "ceilings": ceiling_table,
        "first": first_table,
        "revivals": revival_table,
        "curve": curve_table,
        "examples": examples_table,
        "recall": recall_table,
        "gates": gate_table,
    }
    return {"printed": printed_table()} | {name: table(found) for name, table in made.items()}


def draw_curve(ax: Any, found: Results) -> None:
    """Draws example 4.1."""
    for last_relu, colour in ((True, BLUE), (False, GREEN)):
        for i, seed in enumerate(curves(found, last_relu)):
            label = f"largest values, {'' if last_relu else 'no '}last ReLU" if i == 0 else None
            inside = [(int(r), 100 * a) for r, a in seed["accuracy"].items() if int(r) <= 100]
            ax.plot(*zip(*inside, strict=True), color=colour, linewidth=1, label=label)
            if last_relu:
                ax.axvline(
                    seed["predicted"]["notebook"], color=RED, linewidth=0.8, label=None if i else "predicted rank"
                )
                chance = [(int(r), 100 * float(np.mean(a))) for r, a in seed["random"].items() if int(r) <= 100]
                ax.plot(*zip(*chance, strict=True), "x", color=GREY, markersize=3, label=None if i else "random")
                large = [(int(r), 100 * a) for r, a in seed["magnitude"].items() if int(r) <= 100]
                ax.plot(
                    *zip(*large, strict=True), "+", color=PURPLE, markersize=4, label=None if i else "largest numbers"
                )
    ax.plot(list(printed.CURVE), list(printed.CURVE.values()), "o", color="k", markersize=2.5, label="notebook")
    ax.set(title="4.1: values kept of the first layer", xlabel="values kept", ylabel="test accuracy, %")
    if curves(found, True):
        ax.legend(fontsize=7, loc="lower right")


def draw_starts(ax: Any, found: Results) -> None:
    """Draws every start as a point: accuracy, coloured by the number of dead classes."""
    shown = start_rows(found)
    for y, (_, _, kept) in enumerate(shown):
        for i, one in enumerate(kept["runs"]):
            dead = len(one["test"]["dead"])
            ax.plot(100 * one["test"]["accuracy"], y + 0.02 * (i - 10), ".", color=drawing.INK[min(dead, 5)])
    for count in range(6):
        ax.plot([], [], ".", color=drawing.INK[count], label=f"{count}{' or more' if count == 5 else ''} dead")
    ax.set(title="accuracy of every start", xlabel="test accuracy, %")
    ax.set_yticks(range(len(shown)), [f"{net}: {name}" for net, name, _ in shown], fontsize=7)
    ax.invert_yaxis()
    ax.legend(fontsize=7, loc="upper left", ncols=2)


def draw_revivals(ax: Any, found: Results) -> None:
    """Draws the share of dead classes that came back, by treatment."""
    for offset, (net, colour) in enumerate((("shallow", BLUE), ("deep", RED))):
        runs = found.get(f"revivals {net}", {"runs": []})["runs"]
        for y, way in enumerate(starts.WAYS):
            seen = [one for one in runs if way in one["ways"]]
            total = sum(len(one["test"]["dead"]) for one in seen)
            back = sum(len(one["ways"][way]["revived"]) for one in seen)
            label = net if y == 0 else None
            ax.barh(y + 0.35 * offset, back / total if total else 0, 0.33, color=colour, label=label)
    ax.set_yticks([y + 0.17 for y in range(len(starts.WAYS))], starts.WAYS, fontsize=7)
    ax.set(title="dead classes that came back", xlabel="share", xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(fontsize=7)


def draw_example(ax: Any, found: Results, example: str) -> None:
    """Draws the accuracy by epoch: solid without, dashed with the last ReLU."""
    for name, arm, setting, relu, kept in each_arm(found):
        if name == example and setting == "notebook":
            for i, one in enumerate(kept):
                course = [100 * a for a in one["epochs"]["test_accuracy"]]
                style, label = ("--", None) if relu else ("-", arm if i == 0 else None)
                ax.plot(range(1, len(course) + 1), course, style, color=COLOURS[arm], linewidth=1, label=label)
    ax.set(title=example, xlabel="epoch", ylabel="test accuracy, %")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, loc="lower right")


def main() -> None:
    """Writes figure.svg beside the results, and the tables into the README."""
    found = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(found))
    figure, axes = drawing.panels(3, 3, (14, 12))
    draw_starts(axes[0][0], found)
    draw_revivals(axes[0][1], found)
    draw_curve(axes[0][2], found)
    for ax, example in zip(axes[1:].ravel(), printed.EXAMPLES, strict=False):
        draw_example(ax, found, example)
    axes[2][2].axis("off")
    drawing.save(figure, HERE)


if __name__ == "__main__":
    main()
