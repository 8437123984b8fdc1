"""Repeats A.1, A.2, A.3 and B.3 of Berlyand, Bourdais, Owhadi and Shmalo, arXiv 2503.01922: pruning while training.

    python -m experiments berlyand2025_appendix --fashion FOLDER --workers 2        # --toy: seconds, no files
    python -m experiments.berlyand2025_appendix.figure

A.1. A fully connected net, ReLU after every layer and after the last one too, on Fashion-MNIST; nine arms: with and
without pruning, L1, L2, and the stable rank as terms of the loss. Three arms more without the last ReLU, and one that
keeps as much of the bulk by chance. After training, each net is made sparse over a grid of thresholds (figure 4).

A.2. A deeper net without the last ReLU, momentum .97, cosine rate: pruning with L1 + L2 against L1 + L2.

A.3. Random matrices added to all layers but the last of the pruned nets of A.1.

B.3. The bounds a(N), a'(N) and the accuracy of [784, N, N, 10] against N.

As text and tables say: A.1 [784, 3000 x 4, 500, 10], 100 epochs, SGD with momentum .9, rate .01 times .96 every 4
epochs, mu1 = mu2 = 1e-6, stable rank 1e-6 in every sixth epoch, cuts every 4 epochs that keep 1 - epoch / 200 of the
bulk. From the authors' scripts: alpha .25, beta .9, no gate, ten values always kept, batch 128. Open, chosen here:
A.2's rate (.01), L1 = L2 (1e-6), portion (1 - epoch / 1000) and period; B.3's rates, penalties (1e-7) and second
norm.

REDUCED SIZE, which is what results.json holds: hidden widths / 4, epochs / 3; periods of cuts, decay and stable rank
stay in epochs; the decay is .96^3, so that the rate ends where the paper's does, and the portion 1 - epoch / 66.7.
A.2: widths / 20, 25 epochs for 1000, cuts every 2. `--scale full` runs the paper's sizes.

COST on one core: A.1 7 min a run, 39 runs; A.2 2 min, 6 runs; B.3 3 s to 2 min a run, 24 runs: five hours.

EXPECTED OUTCOME, written down before the first run. (1) With the last ReLU some runs lose classes for good, their
recall being 0: each costs a tenth of the accuracy, which is where the paper's 78, 87 and 88 % of the training set
come from. Which arms lose classes is a matter of the start more than of the arm: the arms of one seed share start and
order of the images, and mu = 1e-6 and the stable rank change next to nothing. (2) Without the last ReLU no class
dies, and arms with and without pruning lie within half a point of each other. (3) A cut of the bulk does not bring a
dead class back often: the bias of a dead output stays. (4) The random part of the bulk, of the same size, is worse
just after a cut and, after the epochs that follow, within a point of the pruner's. (5) A square layer becomes a pair
below half of its values, and the portion ends at a half and the spikes: at no size does (47) make one smaller in 100
epochs. Only the first layer and the last but one are split; the nets keep more than 85 % of their parameters. (6)
Sparse nets: pruned or not, half of the weights can go within a point. (7) A.3: accuracy is flat up to some eps and
falls then; the sum of squares grows by eps^2 times the number of entries within 1 %: "N(0, eps)" is a standard
deviation. (8) B.3: at the start a(N) grows with N under N(0, 1 / inputs), since both norms grow like sqrt(N) and the
bracket falls more slowly; a'(N) falls slowly. Under N(0, 1 / inputs^2) both fall at the start. With inputs of norm
.05 plain SGD learns little in ten epochs.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from experiments import controls, jobs, sparse, training
from experiments.berlyand2025_appendix import noise, widths
from experiments.jobs import Job
from experiments.training import Pruning, Recipe

FULL = Recipe(
    sizes=(784, 3000, 3000, 3000, 3000, 500, 10),
    last_relu=True,
    batch=128,
    epochs=100,
    rate=0.01,
    decay=0.96,
    decay_every=4,
)
CUTS = Pruning("linear", 200, every=4, alpha=0.25, beta=0.9)
MU = 1e-6
# In the order in which they are run; the two that the claim is about first.
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "MP + L1 + L2": {"pruning": CUTS, "l1": MU, "l2": MU},
    "L1 + L2": {"l1": MU, "l2": MU},
    "MP": {"pruning": CUTS},
    "none, open": {"last_relu": False},
    "MP + L1 + L2, open": {"last_relu": False, "pruning": CUTS, "l1": MU, "l2": MU},
    "MP by chance": {"pruning": CUTS},
    "MP, open": {"last_relu": False, "pruning": CUTS},
    "L1": {"l1": MU},
    "L2": {"l2": MU},
    "MP + L2": {"pruning": CUTS, "l2": MU},
    "SR": {"stable_rank": MU},
    "MP + L1 + L2 + SR": {"pruning": CUTS, "l1": MU, "l2": MU, "stable_rank": MU},
}
DEEP = Recipe(
    sizes=(784, *(7 * (5000,)), 10), epochs=1000, rate=0.01, momentum=0.97, cosine=True, l1=MU, l2=MU, batch=128
)
DEEP_CUTS = Pruning("linear", 1000, every=13, alpha=0.25, beta=0.9)
# Starts of B.3: the text's first (variance 1 / inputs, norm .05), the same with Adam, and the second (variance
# 1 / inputs^2), whose norm did not survive: 10 is about that of an image as it is.
STARTS = {
    "normal": Recipe(sizes=(), init="normal", largest_norm=0.05, epochs=10, rate=0.1, l1=1e-7, l2=1e-7),
    "normal, Adam": Recipe(
        sizes=(), init="normal", largest_norm=0.05, epochs=10, rate=0.001, adam=True, l1=1e-7, l2=1e-7
    ),
    "small": Recipe(sizes=(), init="small", largest_norm=10.0, epochs=10, rate=0.1, l1=1e-7, l2=1e-7),
}
WIDTHS = {"toy": (32, 64), "reduced": (125, 250, 500, 1000), "full": (500, 1000, 1500, 2000, 3000, 4000, 5000, 7000)}
SEEDS = (0, 1, 2)


def arm(
    recipe: Recipe,
    chance: bool,
    source: str,
    place: Path | None,
    seed: int,
    device: str,
    levels: tuple[float, ...],
    leader: Path | None = None,
) -> dict[str, Any]:
    """Returns the record of one net of A.1: its training, its sparse versions, and, given levels, A.3.

    `leader` is the file of the pruned net that an arm by chance follows.
    """
    images = jobs.images(source, place)
    cut = controls.follow(recipe, images, seed, device, leader) if chance else None
    net, found = training.fit(recipe, images, seed, cut=cut, device=device)
    data = training.prepared(recipe, images, device)
    found["sparse"] = sparse.curve(net, data)
    if levels:
        found["noise"] = noise.sweep(net, data, recipe.l2 or MU, seed, levels)
    return found


def bound(recipe: Recipe, source: str, place: Path | None, seed: int, device: str) -> dict[str, Any]:
    """Returns the record of one net of B.3."""
    return widths.one(recipe, jobs.images(source, place), seed, device)


def deep(scale: str) -> tuple[Recipe, Pruning]:
    """Returns A.2's recipe and cuts at a scale."""
    if scale == "full":
        return DEEP, DEEP_CUTS
    epochs, width = {"reduced": (25, 250), "toy": (6, 24)}[scale]
    return replace(DEEP, sizes=(784, *(7 * (width,)), 10), epochs=epochs), replace(DEEP_CUTS, value=epochs, every=2)


def toy(recipe: Recipe) -> Recipe:
    """Returns a recipe for images of 8 x 8, at once."""
    pruning = recipe.pruning and replace(recipe.pruning, value=12, every=3)
    hidden = [max(24, min(size, 48)) for size in recipe.sizes[1:-1]]
    return replace(recipe, sizes=(64, *hidden, 10), epochs=6, rate=0.05, batch=32, pruning=pruning)


def make_jobs(scale: str, fashion: Path | None, device: str, work: Path = Path()) -> dict[str, Job]:
    """Returns the jobs in the order of their importance, all arms of one seed before the next."""
    source = "toy" if scale == "toy" else "fashion"
    common = {"source": source, "place": fashion, "device": device}
    size = {"full": lambda r: r, "reduced": lambda r: training.reduced(r, width=4, time=3), "toy": toy}[scale]
    found: dict[str, Job] = {}

    def add(name: str, call: Any, recipe: Recipe, **more: Any) -> None:
        kwargs = {"recipe": recipe, **common, **more}
        found[name] = Job(call, kwargs, training.estimate(recipe, 600 if scale == "toy" else 60000))

    seeds = SEEDS[:1] if scale == "toy" else SEEDS
    for seed in seeds:
        for name, settings in ARMS.items():
            levels = noise.LEVELS if name == "MP + L1 + L2" else ()
            chance = name == "MP by chance"
            add(
                f"A1 {name}, seed {seed}",
                arm,
                size(replace(FULL, **settings)),
                chance=chance,
                seed=seed,
                levels=levels if scale != "toy" else levels[:4],
                **({"leader": work / f"A1 MP, seed {seed}.json"} if chance else {}),
            )
    for seed in seeds:
        recipe, cuts = deep(scale)
        recipe = replace(toy(recipe), last_relu=False) if scale == "toy" else recipe
        add(f"A2 MP + L1 + L2, seed {seed}", arm, replace(recipe, pruning=cuts), chance=False, seed=seed, levels=())
        add(f"A2 L1 + L2, seed {seed}", arm, recipe, chance=False, seed=seed, levels=())
    for seed in seeds[:2]:
        for N in WIDTHS[scale]:
            for name, recipe in STARTS.items():
                sized = replace(recipe, sizes=(64 if scale == "toy" else 784, N, N, 10))
                add(
                    f"B3 {name}, N {N}, seed {seed}",
                    bound,
                    replace(sized, epochs=2) if scale == "toy" else sized,
                    seed=seed,
                )
    return found


def main() -> None:
    """Runs what is not there yet and writes the results."""
    options = jobs.arguments("Pruning while training, on Fashion-MNIST.", Path(__file__).parent).parse_args()
    scale = "toy" if options.toy else options.scale
    if options.toy:
        torch.set_num_threads(1)
    config = {"scale": scale, "full": asdict(FULL), "cuts": asdict(CUTS), "deep": asdict(DEEP)}
    options.work, options.output = jobs.places(options)
    jobs.execute(options, make_jobs(scale, options.fashion, options.device, options.work), config)


if __name__ == "__main__":
    main()
