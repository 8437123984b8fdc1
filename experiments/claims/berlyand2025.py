"""Claims of arXiv 2503.01922 (Berlyand, Bourdais, Owhadi, Shmalo), A.1 to A.3 and B.3: nets on Fashion-MNIST."""

from __future__ import annotations

from typing import Any

import numpy as np
from experiments.berlyand2025_appendix.figure import FIGURE5, PAPER, by_width, noisy, runs, sum_of, within
from experiments.claims.claim import (
    NONE,
    PENDING,
    Claim,
    dead,
    differences,
    each,
    gain,
    graded,
    lost,
    measured,
    percent,
    percents,
    row,
    waits,
)

FOLDER = "berlyand2025_appendix"
HALF = 0.5  # points of test accuracy below which a difference is none
OPEN = ("none, open", "MP, open", "MP + L1 + L2, open")  # arms without a ReLU on the last layer
LABELS = {"MP": "MP pruning", "SR": "stable rank", "none": "neither pruning nor regularisation"}
NAMES = {"normal": "N(0, 1 / inputs)", "small": "N(0, 1 / inputs²)"}  # starts of B.3
SEEN = 52.0  # the loss of figure 5 at eps = .005, read off

Results = dict[str, Any]


def claims(found: Results) -> list[Claim]:
    """Returns the rows of the table."""
    rows = [*(arm(found, name) for name in PAPER), *gains(found), last_relu(found), left(found), sparse(found)]
    return [claim.at(FOLDER) for claim in (*rows, example_a2(found), *noise(found), *widths(found))]


def name_of(name: str) -> str:
    """Returns an arm in words."""
    return " + ".join(LABELS.get(part, part) for part in name.split(" + "))


def arm(found: Results, name: str) -> Claim:
    """Returns one of the nine rows of tables 2 and 3."""
    train, test, loss = PAPER[name]
    ours, free = runs(found, f"A1 {name}"), [run for arm in OPEN for run in runs(found, f"A1 {arm}")]
    ceiling = 10 * (int(train) // 10 + 1)  # with one class more lost, no net could reach the printed figure
    verdict = waits()
    if ours and ceiling == 100:
        alive = sum(not count for count in dead(ours))
        verdict = (
            graded(alive, len(ours)),
            f"{alive} of {len(ours)} starts keep all classes, as a net at {train:g} % must",
        )
    elif ours and free:
        words = (
            f"{lost(ours)} starts lose a class; without the last ReLU {lost(free)}, and they reach "
            f"{percents(percent(free), planned=0)} of the test set; "
            f"with {(100 - ceiling) // 10} dead {ceiling} % of the training set is the most"
        )
        verdict = ("confirmed in part" if any(dead(ours)) else "not reproduced", words)
        if any(dead(ours)) and not any(dead(free)):
            verdict = ("artefact", words)
    cell = PENDING
    if ours:
        losses = measured([run["train"]["loss"] for run in ours], 4)
        accuracies = f"{percents(percent(ours, 'train_accuracy'))} / {percents(percent(ours))}"
        cell = f"{accuracies}; loss {losses}; dead classes {', '.join(map(str, dead(ours)))}"
    printed = f"train / test {train:.2f} / {test:.2f} %, loss {loss:g}"
    return row(f"A.1, tables 2 and 3: {name_of(name)}", printed, cell, NONE, verdict)


def gains(found: Results) -> list[Claim]:
    """Returns the rows on what pruning adds, arm by arm, and the same without the last ReLU."""
    rows, plain = [], runs(found, "A1 none, open")
    regular = differences(runs(found, "A1 MP + L1 + L2, open"), plain)
    free = differences(runs(found, "A1 MP, open"), plain)
    for one, other, control in (("MP + L1 + L2", "L1 + L2", regular), ("MP + L2", "L2", regular), ("MP", "none", free)):
        ours = differences(runs(found, f"A1 {one}"), runs(found, f"A1 {other}"))
        verdict = waits()
        if ours and control:
            word = "artefact" if np.mean(control) <= HALF else "confirmed"
            which = "pruning alone" if control is free else "pruning with L1 + L2"
            words = f"without the last ReLU {which} gains {gain(control)} over neither"
            verdict = ("not reproduced" if np.mean(ours) <= HALF else word, words)
        rows.append(
            row(
                f"A.1, table 2: {name_of(one)} against {name_of(other)}, points of test accuracy",
                f"{PAPER[one][1] - PAPER[other][1]:+.2f} (one start)",
                gain(ours, planned=3) + (f"; by start {each(ours, 2)}" if ours else ""),
                NONE,
                verdict,
            )
        )
    return rows


def last_relu(found: Results) -> Claim:
    """Returns the row on the ReLU after the last layer."""
    ours = differences(runs(found, "A1 MP + L1 + L2"), runs(found, "A1 MP + L1 + L2, open"))
    up = sum(value > 0 for value in ours)
    return row(
        "A.1: with MP pruning the best accuracy comes with a ReLU on the last layer too",
        "90.53 %; without it less (the number is lost)",
        f"with less without: {gain(ours, planned=3)} points" if ours else PENDING,
        NONE,
        (graded(up, len(ours)), f"higher in {up} of {len(ours)} starts") if ours else waits(),
    )


def left(found: Results) -> Claim:
    """Returns the row on the parameters of A.1."""
    shares = {
        name: [100 * run["epochs"]["params"][-1] / sum_of(run["start"]) for run in runs(found, f"A1 {name}")]
        for name in ("MP", "MP + L1 + L2")
    }
    every = [value for values in shares.values() for value in values]
    verdict = waits()
    if every:
        word = "confirmed" if max(every) < 90 else "confirmed in part" if min(every) < 100 else "not reproduced"
        verdict = (word, "(47) ends at half of the bulk, where a square layer begins to be smaller as a pair")
    cell = "; ".join(f"{name_of(name)} {percents(values)}" for name, values in shares.items())
    claim = "A.1: the reduced rank reduces the parameters"
    return row(claim, "no number", f"left: {cell}" if every else PENDING, NONE, verdict)


def sparse(found: Results) -> Claim:
    """Returns the row on figure 4."""
    needed: dict[str, list[float]] = {}
    for name in ("none", "MP", "L1 + L2", "MP + L1 + L2"):
        needed[name] = [
            100 * within(run["sparse"], HALF) * run["sparse"]["nonzeros"][0] / run["start"]["weights"]
            for run in runs(found, f"A1 {name}")
        ]
    pairs = [(needed[a], needed[b]) for a, b in (("MP", "none"), ("MP + L1 + L2", "L1 + L2"))]
    fewer = [np.mean(one) < np.mean(other) for one, other in pairs if one and other]
    cell = "; ".join(f"{name_of(name)} {percents(values, 0)}" for name, values in needed.items())
    words = f"pruned nets need fewer in {sum(fewer)} of {len(fewer)} pairs of arms"
    return row(
        "A.1, figure 4: after training, small weights can be set to zero",
        "curves, no number in the text at hand",
        f"weights needed within half a point: {cell}" if fewer else PENDING,
        NONE,
        (graded(sum(fewer), len(fewer)), words) if fewer else waits(),
    )


def example_a2(found: Results) -> Claim:
    """Returns the row on example A.2."""
    one, other = runs(found, "A2 MP + L1 + L2"), runs(found, "A2 L1 + L2")
    ours = differences(one, other)
    verdict, cell = waits(), PENDING
    if ours:
        width, epochs = one[0]["recipe"]["sizes"][1], one[0]["recipe"]["epochs"]
        cell = f"{percents(percent(one))} against {percents(percent(other))}"
        word = "confirmed" if np.mean(percent(one)) >= 91 and np.mean(ours) > HALF else "not reproduced"
        why = f"here {width} wide for 5000, {epochs} epochs for 1000; pruned less not pruned {gain(ours)} points"
        verdict = (word if width == 5000 else "not run at full size", why)
    return row(
        "A.2: [784, 5000 x 7, 10], 1000 epochs, no last ReLU: pruning with L1 + L2 against L1 + L2",
        "91.37 against < 90.5 % (figures: arXiv 2606.02608)",
        cell,
        NONE,
        verdict,
    )


def noise(found: Results) -> list[Claim]:
    """Returns the rows on example A.3."""
    sweeps = noisy(found)
    flat, growth, cell, squares = waits(), waits(), PENDING, PENDING
    if sweeps:
        steady, ends, entropies = [], {"train": [], "test": []}, []
        for sweep in sweeps:
            whole = sweep["test"][0][0]
            at = max(k for k, eps in enumerate(sweep["eps"]) if eps <= 0.01)
            accuracies = zip(sweep["eps"], sweep["test"], strict=True)
            steady.append(max(eps for eps, (mean, _) in accuracies if mean >= whole - 0.01))
            entropies.append((sweep["test_loss"][0][0], sweep["test_loss"][at][0]))
            for key in ends:
                ends[key].append(100 * sweep[key][at][0])
        before, after = np.mean(entropies, axis=0)
        cell = (
            f"at {sweeps[0]['eps'][at]:g} train {percents(ends['train'])}, test {percents(ends['test'])}; "
            f"cross-entropy of the test set {before:.2f} to {after:.2f}"
        )
        good = sum(eps >= 0.002 for eps in steady)
        words = f"test accuracy within a point up to {', '.join(f'{eps:g}' for eps in steady)}"
        flat = (graded(good, len(steady)), words)
        ratios = [sweep["slope"] / sweep["entries"] for sweep in sweeps]
        squares = f"growth of the sum of squares over eps² times the entries: {each(ratios, 4)}"
        parabola, line = FIGURE5[0] + (FIGURE5[1] - FIGURE5[0]) / 4, (FIGURE5[0] + FIGURE5[1]) / 2
        reading = "standard deviation" if abs(SEEN - parabola) < abs(SEEN - line) else "variance"
        words = f"between the ends read off, a parabola has {parabola:.1f} and a line {line:.1f}: "
        growth = (
            graded(sum(abs(ratio - 1) < 0.01 for ratio in ratios), len(ratios)),
            f"{words}eps is a {reading} in the figure, where the text has N(0, eps)",
        )
    return [
        row(
            "A.3, figure 5: noise added to the weights changes accuracy and cross-entropy little at first",
            "train 100 to 92, test 90.3 to 85 %, cross-entropy .74 to 1.3 from eps = 0 to .01 (read off)",
            cell,
            NONE,
            flat,
        ),
        row(
            "A.3, figure 5: but the loss with L2 grows",
            f"{FIGURE5[0]:g}, {SEEN:g}, {FIGURE5[1]:g} at eps = 0, .005, .01 (read off)",
            squares,
            NONE,
            growth,
        ),
    ]


def widths(found: Results) -> list[Claim]:
    """Returns the rows on B.3."""
    starts = {"normal": by_width(found, "normal"), "small": by_width(found, "small")}
    verdicts, cells = [waits()] * 3, [PENDING] * 3
    # Widths come one after another: no verdict while one start has some that the other has not.
    if starts["normal"].keys() == starts["small"].keys() and len(starts["normal"]) > 1:
        low, high = min(starts["normal"]), max(starts["normal"])

        def change(name: str, key: str, when: str) -> list[float]:
            both = zip(starts[name][low], starts[name][high], strict=False)
            return [wide[when][key] / narrow[when][key] for narrow, wide in both]

        lowest = {}
        for i, (name, key) in enumerate((("normal", "a"), ("small", "a_prime"))):
            before, after = change(name, key, "before"), change(name, key, "after")
            cells[i] = (
                f"N = {low} to {high}: times {measured(after, 2, 2)} after training, "
                f"{measured(before, 2, 2)} at the start"
            )
            verdicts[i] = (graded(sum(value < 1 for value in after), len(after)), "rates and penalties are ours")
            lowest[name] = np.mean(after)
        if verdicts[1][0] == "confirmed" and lowest["small"] >= lowest["normal"]:
            verdicts[1] = ("confirmed in part", "it falls, but not faster")
        rises = []
        for name, part in starts.items():
            ends = [percent(part[N]) for N in (low, high)]
            rises.append(
                (
                    np.mean(ends[1]) > np.mean(ends[0]),
                    f"{NAMES[name]} {' to '.join(percents(e, planned=2) for e in ends)}",
                )
            )
        cells[2] = f"N = {low} to {high}, start " + "; ".join(words for _, words in rises)
        verdicts[2] = (graded(sum(up for up, _ in rises), len(rises)), "")
    claimed = (
        (
            "B.3, figure 11: a(N), the quantity (16), falls as the width grows",
            "0.585 to 0.057, N = 500 to 20,000 (read off)",
        ),
        ("B.3, figure 13: a'(N), start N(0, 1 / inputs²), falls faster", "1.49 to 0.135, N = 500 to 20,000 (read off)"),
        ("B.3, figure 14: the accuracy grows with the width", "a curve"),
    )
    return [
        row(claim, printed, cell, NONE, verdict)
        for (claim, printed), cell, verdict in zip(claimed, cells, verdicts, strict=True)
    ]
