"""Repeats the comparison of Berlyand, Sandier, Shmalo and Zhang, arXiv 2310.03165: accuracy and spread, pruned or not.

    python -m experiments berlyand2023_accuracy --mnist FOLDER --fashion FOLDER --cifar ARCHIVE --workers 2  # --toy
    python -m experiments.berlyand2023_accuracy.figure

The paper says that pruning the bulk while training makes fully connected nets smaller without loss, raises their
accuracy and lowers its variance over starts, and that it works for convolutions too. Here: fully connected nets on
MNIST and on Fashion-MNIST and a convolutional net on CIFAR-10, five starts each, as many epochs with pruning as
without; on Fashion-MNIST also with and without L1 + L2. Two controls: a net that has as few parameters from the
start, and a pruner that keeps as much of the bulk by chance. After training, each net is made sparse over a grid of
thresholds.

The paper's text was not at hand, its scripts' settings are: pixels (x - .5) / .5, batch 128, SGD with momentum .9,
rate .02 times .96 an epoch, L1 = L2 = 5e-6, [784, 1000, 1000, 10] for 20 epochs, alpha .25, beta .9; [1, 32, 64, 128,
256, 512] convolutions of 3 x 3 with BatchNorm, ReLU and dropout .35, then [.., 1000, 10], 30 epochs, cuts every 11,
alpha .2; a ReLU after the last layer too (the arms "last ReLU"). Chosen here: the portion 1 - epoch / 20, cuts every 3
epochs, so that the last is two epochs before the end; the gate is the library's own, the scripts cut all linear layers.

REDUCED SIZE: hidden widths / 4 ([784, 250, 250, 10]), all 20 epochs and all images; the convolutions (3, 8, 16, 32,
32, 64) pooled after 1, 3 and 5, then [1024, 128, 10], 10 epochs on 20000 images, cuts every 2. `--scale full` has the
scripts' sizes.

COST on one core: 45 s a fully connected run, 55 runs; 2 min a convolutional one, 10 runs: 65 min.

EXPECTED OUTCOME, written down before the first run. (1) MNIST: pruned nets keep 40 to 60 % of the parameters, and the
mean accuracies differ by less than .3 points. (2) Fashion-MNIST: the difference of the means is within .5 points and
of the sign that the noise of five seeds gives it; regularisation at 5e-6 adds up to half a point. (3) The spread over
starts is not smaller with pruning: five starts could not show less than a factor of three anyway. (4) A net as small
from the start does as well as the pruned one, within .3 points. (5) The random part of the bulk is no more than .3
points worse at the end. (6) CIFAR-10: the convolutions are too small for their noise to be measured; what is cut is
the linear layer, and the accuracy changes by less than two points. (7) Added before those arms were run: with a ReLU
after the last layer too, as the scripts have it, lost classes rule mean and spread of both arms alike.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from experiments import controls, data, jobs, sparse, training
from experiments.jobs import Job
from experiments.training import Pruning, Recipe

from spectrim.verdict import GATE

CUTS = Pruning("linear", 20, every=3, gate=GATE, alpha=0.25, beta=0.9)
PLAIN = Recipe(
    sizes=(784, 1000, 1000, 10), centred=True, batch=128, epochs=20, rate=0.02, decay=0.96, decay_every=1, momentum=0.9
)
# What a user adds: Pruner(net, optimizer, linear(20), every=3), all else at its default.
DEFAULT = Pruning("linear", 20, every=3, gate=GATE, alpha=0.2, beta=0.1)
MU = {"l1": 5e-6, "l2": 5e-6}
CONV = Recipe(
    sizes=(0, 1000, 10),
    channels=(3, 32, 64, 128, 256, 512),
    pools=(3, 5),
    dropout=0.35,
    centred=True,
    epochs=30,
    rate=0.02,
    decay=0.96,
)
CONV_CUTS = Pruning("linear", 30, every=11, gate=0.6, alpha=0.2, beta=0.9)
SMALL_CONV = replace(
    CONV, sizes=(0, 128, 10), channels=(3, 8, 16, 32, 32, 64), pools=(1, 3, 5), epochs=10, decay=0.96**3
)
SMALL_CONV_CUTS = replace(CONV_CUTS, value=10, every=2)
SEEDS = range(5)


def one(
    recipe: Recipe,
    source: str,
    place: Path | None,
    items: int | None,
    seed: int,
    device: str,
    control: str = "",
    leader: Path | None = None,
) -> dict[str, Any]:
    """Returns the record of one net and its sparse versions.

    `control` is "by chance", for a random part of the bulk, as much as in the training whose file is `leader`, or
    "smaller", for a second net that has as many parameters from its start as the pruned one has at its end; its record
    is under that name.
    """
    images = jobs.images(source, place)
    if items is not None:  # the same of every start; the archive is ordered by class
        some = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(0))[:items]
        images = data.Images(images.train[some], images.train_labels[some], images.test, images.test_labels)
    cut = controls.follow(recipe, images, seed, device, leader) if control == "by chance" else None
    net, found = training.fit(recipe, images, seed, cut=cut, device=device)
    found["sparse"] = sparse.curve(net, training.prepared(recipe, images, device))
    if control == "smaller":
        small = replace(recipe, sizes=smaller(recipe.sizes, found["epochs"]["params"][-1]), pruning=None)
        found["smaller"] = training.train(small, images, seed, device=device)
    return found


def smaller(sizes: tuple[int, ...], parameters: int) -> tuple[int, ...]:
    """Returns sizes with all hidden widths shrunk by one factor, the largest that need no more parameters."""
    first, *hidden, last = sizes
    best = (first, *(1 for _ in hidden), last)
    for width in range(1, max(hidden) + 1):
        tried = (first, *(max(1, round(size * width / max(hidden))) for size in hidden), last)
        if sum(a * b + b for a, b in pairwise(tried)) > parameters:
            break
        best = tried
    return best


def make_jobs(scale: str, places: dict[str, Path | None], device: str, work: Path = Path()) -> dict[str, Job]:
    """Returns the jobs in the order of their importance, all arms of one start before the next."""
    found: dict[str, Job] = {}

    def add(name: str, source: str, recipe: Recipe, seed: int, items: int | None = None, control: str = "") -> None:
        if scale == "toy":
            recipe, source, items = toy(recipe), "toy colour" if recipe.channels else "toy", None
        kwargs = {"recipe": recipe, "source": source, "place": places.get(source), "items": items, "device": device}
        count, side = {"toy": (600, 8), "toy colour": (600, 8), "cifar": (items or 50000, 32)}.get(source, (60000, 28))
        seconds = training.estimate(recipe, count, side) * (1.5 if control == "smaller" else 1)
        more = {"leader": work / f"fashion pruned, seed {seed}.json"} if control == "by chance" else {}
        found[f"{name}, seed {seed}"] = Job(one, {**kwargs, "seed": seed, "control": control, **more}, seconds)

    plain = replace(PLAIN, sizes=(784, 250, 250, 10)) if scale == "reduced" else PLAIN
    pruned = replace(plain, pruning=CUTS)
    seeds = list(SEEDS)[: 1 if scale == "toy" else None]
    for seed in seeds:
        add("fashion", "fashion", plain, seed)
        add("fashion pruned", "fashion", pruned, seed, control="smaller")
        add("fashion L1 + L2", "fashion", replace(plain, **MU), seed)
        add("fashion pruned L1 + L2", "fashion", replace(pruned, **MU), seed)
    for seed in seeds:
        add("mnist", "mnist", plain, seed)
        add("mnist pruned by default", "mnist", replace(plain, pruning=DEFAULT), seed, control="smaller")
        add("mnist pruned", "mnist", pruned, seed)
    for seed in seeds:
        add("fashion pruned by chance", "fashion", pruned, seed, control="by chance")
    for seed in seeds:
        add("fashion L1 + L2, last ReLU", "fashion", replace(plain, last_relu=True, **MU), seed)
        add("fashion pruned L1 + L2, last ReLU", "fashion", replace(pruned, last_relu=True, **MU), seed)
    conv, cuts, items = (SMALL_CONV, SMALL_CONV_CUTS, 20000) if scale == "reduced" else (CONV, CONV_CUTS, None)
    for seed in seeds:
        add("cifar", "cifar", conv, seed, items)
        add("cifar pruned", "cifar", replace(conv, pruning=cuts), seed, items)
    for seed in seeds:
        add("mnist pruned L1 + L2", "mnist", replace(pruned, **MU), seed)
    return found


def toy(recipe: Recipe) -> Recipe:
    """Returns a recipe for images of 8 x 8, at once."""
    pruning = recipe.pruning and replace(recipe.pruning, value=6, every=2, gate=1.0)
    if recipe.channels:
        return replace(recipe, sizes=(0, 32, 10), channels=(3, 8, 16), pools=(2,), epochs=3, batch=32, pruning=pruning)
    return replace(recipe, sizes=(64, 48, 48, 10), epochs=6, rate=0.05, batch=32, pruning=pruning)


def main() -> None:
    """Runs what is not there yet and writes the results."""
    options = jobs.arguments("Accuracy and its spread over starts, pruned or not.", Path(__file__).parent).parse_args()
    scale = "toy" if options.toy else options.scale
    if options.toy:
        torch.set_num_threads(1)
    places = {"mnist": options.mnist, "fashion": options.fashion, "cifar": options.cifar}
    config = {"scale": scale, "plain": asdict(PLAIN), "cuts": asdict(CUTS), "default": asdict(DEFAULT), "mu": MU}
    config |= {"convolutions": asdict(SMALL_CONV if scale == "reduced" else CONV), "seeds": len(SEEDS)}
    options.work, options.output = jobs.places(options)
    jobs.execute(options, make_jobs(scale, places, options.device, options.work), config)


if __name__ == "__main__":
    main()
