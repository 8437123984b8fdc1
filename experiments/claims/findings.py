"""What the tables come to for somebody who trains or cuts networks; every number from the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from experiments.claims import berlyand2023, nishikawa2025, shmalo2023
from experiments.claims.claim import PENDING, gain, lost, percent, percents

HERE = Path(__file__).parents[1]

Results = dict[str, Any]


def picture(folder: str, words: str) -> str:
    """Returns the figure of a folder, or that it is still to come."""
    if (HERE / folder / "figure.svg").exists():
        return f"![{words}](../experiments/{folder}/figure.svg)"
    return f"(The figure of experiments/{folder} is drawn when its runs are there.)"


def last_layer(files: dict[str, Results]) -> str:
    """Returns the finding on the last ReLU."""
    seen = files["shmalo2023_rmt_svd"].get("results", {})
    closed = shmalo2023.tested(shmalo2023.cells(seen, ("notebook", "text")))
    free = shmalo2023.tested(shmalo2023.cells(seen, ("notebook, no last ReLU", "text, no last ReLU")))
    one = [run for run in closed if len(run["dead"]) == 1]
    mnist = PENDING
    if closed and free and one:
        mnist = (
            f"{lost(closed)} starts of two small nets lose a class with it and {lost(free)} without; "
            f"where it is one class, the accuracy is {percents(percent(one, 'accuracy'), planned=0)}"
        )
    nets = [run for name, run in files["berlyand2025_appendix"].get("results", {}).items() if name.startswith("A1 ")]
    relu = [[run for run in nets if run["recipe"]["last_relu"] == flag] for flag in (True, False)]
    fashion = f"{lost(relu[0])} with it and {lost(relu[1])} without" if all(relu) else PENDING
    return f"""### Leave the last layer linear, and look at each class

A ReLU before the softmax lets an output die: zero for every image, it passes no gradient on, and its class is never
named again. On MNIST, {mnist}.
Of the nets of A.1 on Fashion-MNIST: {fashion}.
An accuracy that stands still just under 90 or 80 %, with ten classes, is a reason to print the recall of each before
one speaks of overfitting, or of what a cut has mended.

{picture("shmalo2023_rmt_svd", "Accuracy of every start; dead classes that came back; accuracy by epoch")}
"""


def pruning(files: dict[str, Results]) -> str:
    """Returns the finding on pruning while training."""
    nets = berlyand2023.nets(files["berlyand2023_accuracy"].get("results", {}))
    lines = []
    for title, names in berlyand2023.ALL.items():
        gains, left = berlyand2023.pair(nets, names), berlyand2023.share(nets, names[0])
        if gains:
            small = berlyand2023.pair(nets, (names[0], names[0] + berlyand2023.SMALL))
            against = f"; against a net as small from the start {gain(small)}" if small else ""
            lines.append(f"- {title}: {np.mean(left):.0f} % of the parameters, {gain(gains)} points{against}")
    body = "\n".join(lines) or f"- {PENDING}"
    return f"""### Pruning while training saves parameters; judge it beside a smaller net

Fully connected nets without a ReLU on the last layer, equal epochs; points of test accuracy, pruned less not pruned,
with half the 95 % interval of the mean over the starts:

{body}

The comparison that decides is the one with a net that has as few parameters from its start. To say anything of the
variance over starts takes many more than five.

{picture("berlyand2023_accuracy", "Accuracy of every start, and accuracy against the weights that are left")}
"""


def even_noise(files: dict[str, Results]) -> str:
    """Returns the finding on uneven noise."""
    seen = files["berlyand2025_regression"].get("results", {})
    numbers = f"{PENDING}."
    if seen:
        text, grid = seen["random"]["summary"], seen["grid"]["summary"]
        kept = [" to ".join(map(str, sorted({min(s["kept"]), max(s["kept"])}))) for s in (grid, text)]
        numbers = (
            f"with 16 true directions: on an even grid of samples the edge keeps {kept[0]} and the error is "
            f"{grid['mse']['pruning'][0]:.3f};\nat random places it keeps {kept[1]} and the error is "
            f"{text['mse']['pruning'][0]:.3f}, with the noise made even first "
            f"{text['mse']['pruning, whitened'][0]:.3f}.\n"
            f"The misfits are {grid['misfit'][0]:.3f} and {text['misfit'][0]:.3f}, and a gate of .1 passes both."
        )
    return f"""### The edge is that of even noise

A Marchenko-Pastur edge is right where the entries of the noise are alike. In the regression of B.1,
{numbers}
A small misfit in the middle of the bulk says little of its end. What helps is to make rows and columns even
([equalisation](equalisation.md)), or to shrink values in place of cutting them.

{picture("berlyand2025_regression", "Spectra of one draw with their edges, and the errors of the arms")}
"""


def function_of(files: dict[str, Results]) -> str:
    """Returns the finding on noise that the function needs."""
    networks = files["nishikawa2025_thresholds"].get("results", {}).get("networks", [])
    cost = time = PENDING
    if networks:
        worst = [max(nishikawa2025.losses(networks, decay)) for decay in (False, True)]
        cost = f"up to {worst[0]:.1f} points at the edge without weight decay, {worst[1]:.1f} at most with it"
    if files["theory"]:
        example = files["theory"]["config"]["example A.1"]
        time = (
            f"with the L2 and the epochs of example A.1 {100 * example['left']:.1f} % of it is left at the end,\n"
            f"and to leave a tenth L2 would have to be {example['l2 for a tenth']:.1e}"
        )
    figures = (
        picture("nishikawa2025_thresholds", "Spectra by batch size; spectrum, score and accuracy of five networks"),
        picture("theory", "Bulk sigma by epoch; the rest of theorem 4.2; lemma 4.4 and its bound; eq. 77"),
    )
    return f"""### Noise in the weights is not always noise to the function

What lies under the edge after a short training is the random start. The later layers were trained on top of it, so
taking it away can cost: in MLPs on MNIST, one matrix cut and nothing trained after, {cost}.
Weight decay lets the start fade, as theorem 4.1 says, and takes 1 / (2 rate L2) steps for it:
{time}.
So cut where the start has faded, or train on after the cut.

{figures[0]}

{figures[1]}
"""


ALL = (last_layer, pruning, even_noise, function_of)
