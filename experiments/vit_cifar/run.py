"""Prunes a small vision transformer trained on CIFAR-10 and fine-tunes it with its zeros frozen for one epoch.

    python -m experiments.vit_cifar.train --cifar ARCHIVE --out FOLDER                  # once, 20 minutes
    python -m experiments vit_cifar --model FOLDER --cifar ARCHIVE                      # --toy: seconds, needs no files
    python -m experiments.vit_cifar.figure

What arXiv 2503.01922, sections 3.3 to 3.6, and the tables of its successor, arXiv 2606.02608, do with ImageNet, at a
size that a laptop trains: accuracy before pruning, after pruning 20 to 80 % of all matrix entries, and after one epoch
in which what is zero stays zero. Methods: the smallest magnitudes of all matrices together, the same share of each, at
random; the budgets that --methods names; and the classical cycles of the paper, stopped at the first cycle that
reaches the share and cut to it exactly by magnitude. A dense network that is trained for the same epoch says what the
epoch alone gives.

One fine-tuning recipe for all arms, not tuned for any: AdamW, rate 3e-4 falling to 0 as a cosine, batch 128, moved and
flipped images, label smoothing as in training, the same order of the images in every arm of one seed. Fine-tuning as in
the paper (SGD, 3e-5, batch 64) is `examples/finetune.py`; its rate is made for networks trained on millions of images.

COST on one core: 1 min an arm and seed, of which the epoch takes 50 s; 29 arms.

EXPECTED OUTCOME, written down before the first run. (1) At 20 and 40 % every method but chance is within 2 points of
the dense network before and within 1 after the epoch. (2) At 60 and 80 % the order before the epoch is: global
magnitude and the classical cycles best and within 3 points of each other, uniform behind, chance far behind, at the
level of guessing by 60 %. (3) One epoch brings back most of it: at 80 % global magnitude is within 6 points of the
dense network that had the epoch too, chance stays 10 points behind it. (4) No zero moves.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import data, jobs
from experiments.jobs import Job
from experiments.tasks import vit_cifar
from experiments.vit_cifar import net as nets
from experiments.vit_cifar import train as training
from numpy.typing import NDArray
from torch import nn

from spectrim import survey
from spectrim.budgets import GlobalMagnitude
from spectrim.cycles import classical
from spectrim.frozen import frozen_zeros
from spectrim.survey import inventory
from spectrim.sweep import CONTROLS, Zeros, known, resample

RATES = (0.2, 0.4, 0.6, 0.8)
METHODS = ("lamp", "spectral edge", "least damage")
EPOCH = training.Settings(epochs=1, rate=3e-4, warmup=0.05)
CLASSICAL = "classical cycles"
DENSE = "dense"
DRAWS = 1000


@dataclass(frozen=True)
class Cut:
    """What happened to a network: zeros by matrix, of so many entries, and cycles where the procedure has them."""

    zeros: dict[str, int]
    entries: int
    cycles: int | None = None


def cut(model: nn.Module, method: str, rate: float, seed: int) -> Cut:
    """Returns what was cut; the model is changed in place. At rate 0, nothing."""
    cycles = None
    found = survey(model)
    if rate > 0 and method == CLASSICAL:
        cycles = by_cycles(model, rate)
    elif rate > 0:
        known()[method](model, found, rate, torch.Generator().manual_seed(seed))
    sites = inventory(model).sites
    zeros = {site.name: int((site.get() == 0).sum()) for site in sites}
    return Cut(zeros, sum(site.rows * site.cols for site in sites), cycles)


def by_cycles(model: nn.Module, rate: float, most: int = 80) -> int:
    """Returns the number of the cycle of the classical procedure in which the share of zeros reached the rate.

    That cycle goes too far. It is undone, and what is missing to the exact share after the cycle before it goes by
    magnitude, over all matrices together.
    """
    total = sum(site.rows * site.cols for site in inventory(model).sites)
    before = copy.deepcopy(model.state_dict())
    for cycle in classical(model, cycles=most):
        zeros = sum(int((site.get() == 0).sum()) for site in inventory(model).sites)
        if zeros >= rate * total:
            model.load_state_dict(before)
            Zeros(GlobalMagnitude())(model, survey(model), rate, torch.Generator())
            return cycle.number
        before = copy.deepcopy(model.state_dict())
    raise RuntimeError(f"{most} classical cycles left {zeros / total:.0%} zeros, fewer than {rate:.0%}")


def arm(
    model: Path | None, cifar: Path | None, method: str, rate: float, seed: int, epoch: training.Settings = EPOCH
) -> dict[str, Any]:
    """Returns the record of one arm: accuracy and cosine before, after the cut and after the epoch, and zeros."""
    images = jobs.images("toy colour" if cifar is None else "cifar", cifar)
    model = toy(images) if model is None else nets.load(model)
    task = vit_cifar.made(copy.deepcopy(model), images.test, images.test_labels)
    found: dict[str, Any] = {"dense": {k: v for k, v in scores(task, task.model).items() if k != "hits"}}
    found["images"] = len(task.labels)
    done = cut(model, method, rate, seed)
    found["pruned"] = scores(task, model)
    optimizer = training.optimiser(model, epoch.rate, 0.0)
    settings = replace(epoch, seed=epoch.seed + seed)
    prepared = nets.prepared(images)
    if rate > 0:
        with frozen_zeros(model, all_zero=True) as frozen:
            loss = training.epoch(model, optimizer, prepared, settings, 0)
        held = sum(frozen.zeros.values())
    else:
        loss, held = training.epoch(model, optimizer, prepared, settings, 0), 0
    found["tuned"] = scores(task, model.eval())
    after = {site.name: int((site.get() == 0).sum()) for site in inventory(model).sites}
    moved = sum(max(0, done.zeros[name] - after[name]) for name in after)
    return found | {"cut": asdict(done), "frozen": held, "zeros_lost": moved, "loss": loss}


def scores(task: vit_cifar.CifarViT, model: nn.Module) -> dict[str, Any]:
    """Returns accuracy with its standard error, cosine, and the hits, so that arms can be compared image by image."""
    found = task.measure(model)
    drawn = resample(found["accuracy"], "accuracy", 0, DRAWS)["all"]
    hits = packed(found["accuracy"].table[:, 0])
    return {"accuracy": drawn.value, "error": drawn.error, "cosine": found["cosine"].value, "hits": hits}


def packed(hits: NDArray[np.float64]) -> str:
    """Returns hits, 0 or 1, as text: four of them a character."""
    return np.packbits(hits.astype(np.uint8)).tobytes().hex()


def unpacked(text: str) -> NDArray[np.uint8]:
    """Returns what `packed` took, with up to seven zeros behind it.

    Example:
        >>> unpacked(packed(np.array([1.0, 0.0, 1.0])))[:3].tolist()
        [1, 0, 1]
    """
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))


def toy(images: data.Images) -> nn.Module:
    """Returns a tiny network trained for two epochs on the images of a toy run."""
    size = nets.Size(side=images.train.shape[-1], patch=4, width=32, blocks=1, heads=2)
    model = nets.network(size, torch.Generator().manual_seed(0))
    settings = training.Settings(size=size, epochs=2, batch=32, rate=3e-3, dtype="float32")
    optimizer = training.optimiser(model, settings.rate, settings.decay)
    for index in range(2):
        training.epoch(model, optimizer, nets.prepared(images), settings, index)
    return model.eval()


def make_jobs(
    scale: str, model: Path | None, cifar: Path | None, methods: tuple[str, ...], seeds: int
) -> dict[str, Job]:
    """Returns the jobs, the rates of all methods for one seed before the next."""
    rates = (0.6,) if scale == "toy" else RATES
    epoch = replace(EPOCH, batch=32, dtype="float32") if scale == "toy" else EPOCH
    found: dict[str, Job] = {}
    for seed in range(seeds):
        common: Mapping[str, Any] = {"model": model, "cifar": cifar, "seed": seed, "epoch": epoch}
        found[f"{DENSE}, seed {seed}"] = Job(arm, {**common, "method": DENSE, "rate": 0.0}, 60)
        for rate in rates:
            for method in (*CONTROLS, *methods, CLASSICAL):
                found[f"{method} {rate:.0%}, seed {seed}"] = Job(arm, {**common, "method": method, "rate": rate}, 60)
    return found


def main() -> None:
    """Runs the jobs and writes the results."""
    parser = jobs.arguments(__doc__.splitlines()[0], Path(__file__).parent)
    parser.add_argument("--model", type=Path, help="folder that train.py wrote")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="names as in `spectrim sweep`, with commas between"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="orders of the images of the epoch, draws of the random zeros"
    )
    options = parser.parse_args()
    if not options.toy and (options.model is None or options.cifar is None) and not options.list:
        parser.error("--model and --cifar are needed, or --toy")
    scale = "toy" if options.toy else options.scale
    methods = tuple(name.strip() for name in options.methods.split(",") if name.strip())
    unknown = sorted(set(methods) - set(known()))
    if unknown:
        parser.error(f"no method is called {', '.join(unknown)}; there are: {'; '.join(known())}")
    config: dict[str, Any] = {"scale": scale, "epoch": asdict(EPOCH), "methods": list(methods), "seeds": options.seeds}
    if options.model is not None and (options.model / "training.json").exists():
        config["training"] = json.loads((options.model / "training.json").read_text())
    places = (None, None) if options.toy else (options.model, options.cifar)
    jobs.execute(options, make_jobs(scale, *places, methods, options.seeds), config)


if __name__ == "__main__":
    main()
