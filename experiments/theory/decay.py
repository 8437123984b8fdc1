"""Theorems 4.1 and 5.2: noise goes where there is a penalty. Bulk sigma and tail by epoch, with and without L2.

With the penalty mu2 ||W||_F**2 each step of plain SGD multiplies what no gradient of the data reaches by
1 - 2 lr mu2, so after t steps the noise of the start should be left with

    sigma(t) / sigma(0) = (1 - 2 lr mu2)**t,   about exp(-2 lr mu2 t);   momentum m: lr / (1 - m) in place of lr
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import jobs
from experiments.data import Images
from experiments.theory.noises import draw
from experiments.training import Recipe, fit
from torch import nn

from spectrim import Bema, Spectrum

LAYER = "fc2"
TOP = 10  # directions that are not counted as tail: as many as there are classes


def left(recipe: Recipe, steps: int, epoch: int) -> float:
    """Returns the factor that the closed form leaves of the noise after that epoch, counted from 0; -1 is the start."""
    factor = 1.0
    for passed in range(epoch + 1):
        factor *= (1 - 2 * recipe.rate_at(passed) / (1 - recipe.momentum) * recipe.l2) ** steps
    return factor


class Watch:
    """Keeps what becomes of the start of one layer; the start is drawn anew where a law is named.

    What is kept of it: the bulk by Bema, the median singular value, the share of ||W||_F**2 beyond the ten largest, and
    how much of the start the matrix still holds, <W(t), W(0)> / ||W(0)||_F**2.
    """

    def __init__(self, law: str | None, generator: np.random.Generator, every: int = 1) -> None:
        self.law, self.generator, self.every = law, generator, every
        self.first: np.ndarray | None = None

    def __call__(self, net: nn.Module, epoch: int) -> dict[str, Any] | None:
        """Returns the figures of the epoch, None where it is passed over."""
        weight = net.get_submodule(LAYER).weight
        if epoch < 0 and self.law is not None:
            rows, cols = weight.shape
            fresh = draw(self.law, min(rows, cols), max(rows, cols), self.generator)
            # The variance of the default start, 1 / (3 inputs); `draw` gives 1 over the long side.
            fresh = (fresh if rows <= cols else fresh.T) * sqrt(max(rows, cols) / (3 * cols))
            with torch.no_grad():
                weight.copy_(torch.from_numpy(fresh))
        if (epoch + 1) % self.every:
            return None
        W = weight.detach().double().numpy().copy()
        if self.first is None:
            self.first = W
        s = np.linalg.svd(W, compute_uv=False)
        reading = Bema()(Spectrum(s, *W.shape))
        return {
            **{"epoch": epoch, "sigma": reading.sigma, "misfit": reading.misfit, "spikes": reading.spikes},
            **{"median": float(np.median(s)), "norm": float(np.linalg.norm(s)), "top": float(s[0])},
            "tail": float(np.linalg.norm(s[TOP:])),
            "start kept": float(np.sum(W * self.first) / np.sum(self.first**2)),
        }


def course(recipe: Recipe, seed: int, law: str | None, name: str, path: Path | None) -> dict[str, Any]:
    """Returns the course of one training, each epoch beside the closed form."""
    images = jobs.images(name, path)
    watch = Watch(law, np.random.default_rng([seed, 41]))
    record = fit(recipe, images, seed, watch=watch)[1]
    return summary(record, recipe, -(-len(images.train) // recipe.batch)) | {"law": law or "default", "seed": seed}


def settled(
    recipe: Recipe, items: int, pool: int, every: int, seed: int, name: str, path: Path | None
) -> dict[str, Any]:
    """Returns the course of full-batch descent on a few small images, and how far from a minimum it ends.

    Images are averaged over pool x pool pixels; the batch is all of them, so an epoch is a step. `slope` is the norm of
    the gradient of the whole objective at the end, `pull` that of its penalty alone, 2 mu2 ||W||_F over all matrices:
    at a minimum the data would hold the penalty in balance and the first would vanish beside the second.
    """
    whole = jobs.images(name, path)
    chosen = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(seed))[:items]
    small = nn.functional.avg_pool2d
    images = Images(
        small(whole.train[chosen], pool), whole.train_labels[chosen], small(whole.test[:100], pool),
        whole.test_labels[:100],
    )  # fmt: skip
    recipe = replace(recipe, batch=items)
    net, record = fit(recipe, images, seed, watch=Watch(None, np.random.default_rng([seed, 41]), every))
    net.zero_grad()
    squares = sum(m.weight.square().sum() for m in net if isinstance(m, nn.Linear))
    objective = nn.functional.cross_entropy(net(images.train), images.train_labels) + recipe.l2 * squares
    objective.backward()
    record["watched"] = [row for row in record["watched"] if row is not None]
    slope = sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
    return summary(record, recipe, 1) | {
        **{"seed": seed, "slope": slope, "pull": 2 * recipe.l2 * sqrt(float(squares.detach()))},
        **{"objective": float(objective.detach()), "values": min(net.get_submodule(LAYER).weight.shape)},
    }


def summary(record: Mapping[str, Any], recipe: Recipe, steps: int) -> dict[str, Any]:
    """Returns the columns of the course, every epoch that was watched, relative to the start where that says more."""
    rows = record["watched"]
    epochs = [row["epoch"] for row in rows]
    out: dict[str, Any] = {
        **{"l2": recipe.l2, "rate": recipe.rate, "momentum": recipe.momentum, "steps": steps, "epoch": epochs},
        "expected": [left(recipe, steps, epoch) for epoch in epochs],
        **{key: [row[key] / rows[0][key] for row in rows] for key in ("sigma", "median", "tail", "norm")},
        **{key: [row[key] for row in rows] for key in ("start kept", "misfit", "spikes", "top")},
        "sigma at the start": rows[0]["sigma"],
        **{key: record[key] for key in ("train_accuracy", "test_accuracy")},
        **{"train loss": record["train"]["loss"]},
    }
    return out


def paper_factor() -> dict[str, float]:
    """Returns what the closed form leaves of the noise at the settings of example A.1, batches of 128 assumed."""
    recipe = Recipe(sizes=(784, 10), rate=0.01, decay=0.96, decay_every=4, momentum=0.9, epochs=100, l2=1e-6, batch=128)
    return {"left": left(recipe, -(-60000 // 128), 99), "l2 for a tenth": needed(recipe, 469, 99, 0.1)}


def needed(recipe: Recipe, steps: int, epoch: int, share: float) -> float:
    """Returns the weight mu2 at which the closed form leaves that share of the noise."""
    low, high = 0.0, 1e-1
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if left(replace(recipe, l2=middle), steps, epoch) > share else (low, middle)
    return high
