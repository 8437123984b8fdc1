"""Training for the experiments: a network, a recipe that says everything of one run, and what is written down of it.

Images stay on the device, batches are picked by index, and every draw (start, order of the images) comes from two
generators of the run's seed, so that the arms of one seed share both. The penalties mu1 sum |w| + mu2 sum w^2 are taken
over all weight matrices, both halves of a split layer included, biases left out; their gradients are added after the
backward pass, which is the same as adding the terms to the loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from itertools import pairwise
from math import cos, pi
from typing import Any

import torch
from experiments.data import Images
from experiments.networks import architecture, convolutional, count, matrices, mlp, start
from torch import Tensor, nn
from torch.nn import functional as F

from spectrim import Bema, penalties, schedules
from spectrim.pruner import Pruner

DEAD = 0.005  # a class whose recall is below this is dead

Cut = Callable[[nn.Module, torch.optim.Optimizer, int], Sequence[Any]]
Watch = Callable[[nn.Module, int], dict[str, Any] | None]


@dataclass(frozen=True)
class Pruning:
    """When and how much `spectrim.Pruner` cuts; `schedule` "constant" keeps `value`, "linear" 1 - epoch / `value`."""

    schedule: str = "constant"
    value: float = 0.45
    every: int = 1
    gate: float = 1.0
    alpha: float = 0.2
    beta: float = 0.1
    compat: str | None = None
    split: bool = True
    floor: int = 10  # the outputs of the network, as in the authors' scripts


@dataclass(frozen=True)
class Recipe:
    """Everything of one training. The rate is multiplied by `decay` every `decay_every` epochs, or follows a cosine."""

    sizes: tuple[int, ...]  # of the fully connected part; with `channels` the first is left to the convolutions
    channels: tuple[int, ...] = ()  # of the convolutions, the images' own first
    pools: tuple[int, ...] = ()  # max pooling after these convolutions, counted from 1
    dropout: float = 0.0
    last_relu: bool = False
    init: str = "torch"  # "normal": N(0, 1 / inputs); "small": N(0, 1 / inputs^2); both with zero biases
    centred: bool = False  # pixels (x - .5) / .5
    largest_norm: float | None = None  # images scaled so that the longest of the training set is this long
    batch: int = 128
    epochs: int = 10
    rate: float = 0.01
    decay: float = 1.0
    decay_every: int = 1
    cosine: bool = False
    momentum: float = 0.9
    adam: bool = False  # in the place of stochastic gradient descent
    l1: float = 0.0
    l2: float = 0.0
    stable_rank: float = 0.0
    stable_rank_every: int = 6  # the term is part of the loss in every sixth epoch, the sixth first
    pruning: Pruning | None = field(default=None)

    def rate_at(self, epoch: int) -> float:
        """Returns the rate of an epoch, counted from 0."""
        if self.cosine:
            return self.rate * (1 + cos(pi * epoch / self.epochs)) / 2
        return self.rate * self.decay ** (epoch // self.decay_every)


def reduced(recipe: Recipe, width: int = 4, time: int = 3) -> Recipe:
    """Returns the recipe at hidden widths / `width` and epochs / `time`, rate and portion ending where they did.

    The periods of pruning, of the decay and of the stable rank stay as they are, in epochs: a network needs as long
    after a cut. So the decay is raised to the power `time`, and the end of a linear schedule divided by it.
    """
    first, *hidden, last = recipe.sizes
    pruning = recipe.pruning
    if pruning is not None and pruning.schedule == "linear":
        pruning = replace(pruning, value=pruning.value / time)
    return replace(
        recipe,
        sizes=(first, *(round(size / width) for size in hidden), last),
        channels=(*recipe.channels[:1], *(round(size / width) for size in recipe.channels[1:])),
        epochs=max(1, round(recipe.epochs / time)),
        decay=recipe.decay**time,
        pruning=pruning,
    )


def build(recipe: Recipe, side: int, generator: torch.Generator) -> nn.Sequential:
    """Returns the network of a recipe at its start; `side` is that of the images."""
    if recipe.channels:
        net = convolutional(recipe.channels, recipe.pools, recipe.sizes, side, recipe.dropout)
    else:
        net = mlp(recipe.sizes, recipe.last_relu)
    start(net, recipe.init, generator)
    return net


@torch.no_grad()
def add_penalty_gradients(weights: Sequence[Tensor], l1: float, l2: float) -> None:
    """Adds l1 sign(w) + 2 l2 w to the gradient of every weight, as l1 sum |w| + l2 sum w^2 in the loss would."""
    for w in weights:
        if l2:
            w.grad.add_(w, alpha=2 * l2)
        if l1:
            w.grad.add_(w.sign(), alpha=l1)


def prepared(recipe: Recipe, images: Images, device: str = "cpu") -> Images:
    """Returns the images on the device, centred or scaled as the recipe says."""
    both = [images.train.to(device), images.test.to(device)]
    if recipe.centred:
        both = [(x - 0.5) / 0.5 for x in both]
    if recipe.largest_norm is not None:
        scale = recipe.largest_norm / float(both[0].flatten(1).norm(dim=1).max())
        both = [x * scale for x in both]
    return Images(both[0], images.train_labels.to(device), both[1], images.test_labels.to(device))


def chunks(x: Tensor, y: Tensor, size: int = 2000) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns images and labels in pieces, for evaluation."""
    return zip(x.split(size), y.split(size), strict=True)


@torch.no_grad()
def evaluate(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Returns the mean cross-entropy, the accuracy and the recall of each of ten classes, in evaluation mode."""
    mode = net.training
    net.eval()
    hits, loss = torch.zeros(10, device=y.device), torch.zeros((), dtype=torch.float64, device=y.device)
    for part, labels in chunks(x, y):
        out = net(part)
        loss += F.cross_entropy(out, labels, reduction="sum")
        hits += torch.bincount(labels[out.argmax(1) == labels], minlength=10)
    net.train(mode)
    recall = (hits / torch.bincount(y, minlength=10).clamp_min(1)).tolist()
    return {"loss": float(loss) / len(y), "accuracy": float(hits.sum()) / len(y), "recall": recall}


def estimate(recipe: Recipe, items: int = 60000, side: int = 28) -> float:
    """Returns the seconds of a training on one core: arithmetic at a rate that was measured, and 1.4 ms a step.

    70 GFLOP/s in the linear layers and 36 in the convolutions, on an AMD EPYC with AVX-512. What pruning saves, and the
    evaluation after the last epoch, are left out.
    """
    linear, convolved = 0, 0
    sizes = list(recipe.sizes)
    for i, (inputs, outputs) in enumerate(pairwise(recipe.channels), start=1):
        convolved += 9 * inputs * outputs * side * side
        side = side // 2 if i in recipe.pools else side
    if recipe.channels:
        sizes[0] = recipe.channels[-1] * side * side
    linear = sum(a * b for a, b in pairwise(sizes))
    seconds = 6 * items * (linear / 70e9 + convolved / 36e9) + 0.0014 * items / recipe.batch
    return 1.06 * recipe.epochs * seconds


def schedule(pruning: Pruning) -> Callable[[int], float]:
    """Returns the portion of the bulk that is kept as a function of the epoch."""
    return {"constant": schedules.constant, "linear": schedules.linear}[pruning.schedule](pruning.value)


def make_pruner(pruning: Pruning, net: nn.Module, optimizer: torch.optim.Optimizer) -> Pruner:
    """Returns the pruner of these settings."""
    return Pruner(
        net,
        optimizer,
        schedule(pruning),
        every=pruning.every,
        edge=Bema(pruning.alpha, pruning.beta, pruning.compat),
        gate=pruning.gate,
        split=pruning.split,
        floor=pruning.floor,
    )


class PrunerCut:
    """The cut that `spectrim.Pruner` makes; network and optimiser are those of the first call."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning, self.pruner = pruning, None

    def __call__(self, net: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> Sequence[Any]:
        """Returns what this epoch's step changed."""
        if self.pruner is None:
            self.pruner = make_pruner(self.pruning, net, optimizer)
        return self.pruner.step(epoch)


def fit(
    recipe: Recipe,
    images: Images,
    seed: int,
    *,
    cut: Cut | None = None,
    watch: Watch | None = None,
    device: str = "cpu",
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Returns the trained network and the record of its training, which is what `train` returns.

    Args:
        recipe: the settings.
        images: as read; moved and scaled here.
        seed: of the start and of the order of the images.
        cut: called as cut(net, optimizer, epoch) after every epoch, returns what it changed; takes the place of the
            recipe's pruning.
        watch: called as watch(net, epoch) after every epoch and its cut, and with epoch -1 before the first; what it
            returns is kept in the record.
        device: where it runs.
    """
    data = prepared(recipe, images, device)
    drawn, order = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    net = build(recipe, images.train.shape[-1], drawn).to(device)
    if recipe.dropout:
        torch.manual_seed(seed)  # dropout draws from the global generator and takes no other
    if recipe.adam:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), lr=recipe.rate)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=recipe.rate, momentum=recipe.momentum)
    if cut is None and recipe.pruning is not None:
        cut = PrunerCut(recipe.pruning)
    record: dict[str, Any] = {"recipe": asdict(recipe), "seed": seed, "start": count(net)}
    history: dict[str, list[Any]] = {
        key: [] for key in ("loss", "running_accuracy", "test_accuracy", "dead", "params", "rate")
    }
    changes: list[dict[str, Any]] = []
    watched = [watch(net, -1)] if watch else []
    seconds = {"training": 0.0, "pruning": 0.0}
    vectors: dict[Any, Any] = {}  # of the largest singular values, from step to step
    for epoch in range(recipe.epochs):
        begun = time.perf_counter()
        loss, accuracy = _epoch(recipe, net, optimizer, data, order, epoch, vectors)
        seconds["training"] += time.perf_counter() - begun
        if cut is not None:
            begun = time.perf_counter()
            changes += [
                {"epoch": epoch} | (asdict(c) if is_dataclass(c) else dict(c)) for c in cut(net, optimizer, epoch)
            ]
            seconds["pruning"] += time.perf_counter() - begun
        tested = evaluate(net, data.test, data.test_labels)
        row = (
            loss,
            accuracy,
            tested["accuracy"],
            _dead(tested),
            sum(p.numel() for p in net.parameters()),
            recipe.rate_at(epoch),
        )
        for key, value in zip(history, row, strict=True):
            history[key].append(value)
        if watch:
            watched.append(watch(net, epoch))
    pruner = getattr(cut, "pruner", None)
    if pruner is not None:
        seconds["decomposing"] = pruner.decomposing
    final = {"train": evaluate(net, data.train, data.train_labels), "test": evaluate(net, data.test, data.test_labels)}
    weights = matrices(net)
    terms = {
        "l1": sum(w.detach().abs().sum().item() for w in weights),
        "l2": sum(w.detach().square().sum().item() for w in weights),
    }
    record |= {
        "epochs": history,
        "train": final["train"],
        "test": final["test"],
        "train_accuracy": final["train"]["accuracy"],
        "test_accuracy": final["test"]["accuracy"],
        "dead": _dead(final["test"]),
        "sums": terms,  # sum |w| and sum w^2
        "regularised_loss": final["train"]["loss"] + recipe.l1 * terms["l1"] + recipe.l2 * terms["l2"],
        "parameters": count(net),
        "architecture": architecture(net),
        "changes": changes,
        "left_alone": dict(pruner.kept) if pruner else {},
        "seconds": seconds,
    }
    return net, record | ({"watched": watched} if watch else {})


def train(recipe: Recipe, images: Images, seed: int, **options: Any) -> dict[str, Any]:
    """Returns the record of one training: settings, course by epoch, final figures, cuts, seconds; options as `fit`."""
    return fit(recipe, images, seed, **options)[1]


def _dead(tested: dict[str, Any]) -> int:
    return sum(recall < DEAD for recall in tested["recall"])


def _epoch(
    recipe: Recipe,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Images,
    order: torch.Generator,
    epoch: int,
    vectors: dict[Any, Any],
) -> tuple[float, float]:
    """One pass over the training set; the mean loss, penalties left out, and the accuracy, both while it went."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate_at(epoch)
    ranked = recipe.stable_rank and (epoch + 1) % recipe.stable_rank_every == 0
    weights = matrices(net)
    net.train()
    total = torch.zeros((), dtype=torch.float64, device=data.train.device)
    hits = torch.zeros((), dtype=torch.int64, device=data.train.device)
    for chosen in torch.randperm(len(data.train), generator=order).to(data.train.device).split(recipe.batch):
        labels = data.train_labels[chosen]
        out = net(data.train.index_select(0, chosen))
        loss = F.cross_entropy(out, labels)
        total += loss.detach() * len(chosen)
        hits += (out.detach().argmax(1) == labels).sum()
        if ranked:
            loss = loss + recipe.stable_rank * penalties.stable_rank(weights, vectors=vectors)
        optimizer.zero_grad()
        loss.backward()
        add_penalty_gradients(weights, recipe.l1, recipe.l2)
        optimizer.step()
    if not torch.isfinite(total):
        raise FloatingPointError(f"the loss of epoch {epoch} is not finite")
    return float(total) / len(data.train), int(hits) / len(data.train)
