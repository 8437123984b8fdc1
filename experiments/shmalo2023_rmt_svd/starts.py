"""What a ReLU on the last layer does: how often a class dies, what of it is lost, and what brings it back.

A logit that is negative for every image passes no gradient to its own weights. While it lasts, the class can never have
the largest output: at best all outputs are zero together, a tie, which goes to the first of the ten.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from experiments import jobs, networks, training
from experiments.data import Images
from experiments.shmalo2023_rmt_svd import as_executed
from torch import nn
from torch.nn import functional as F

LOOKED_AT = 10000  # training images on which a logit is called silent if it is nowhere positive
BEFORE = ("none", "cut", "random", "scaled")
WAYS = ("none", "renew", "cut", "random", "halve", "noise", "noise last but one", "lift")


@dataclass(frozen=True)
class Case:
    """One net and how it is trained; `bias` "zero" starts the last layer without biases, "torch" as torch does."""

    sizes: tuple[int, ...]
    rate: float
    momentum: float
    last_relu: bool
    bias: str = "torch"
    batch: int = 128


def made(case: Case, seed: int) -> tuple[nn.Sequential, torch.Generator]:
    """Returns the net at its start and the generator of the order of the images, as `training.fit` draws both."""
    drawn, order = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    net = networks.mlp(case.sizes, case.last_relu, drawn)
    if case.bias == "zero":
        nn.init.zeros_(last(net).bias)
    elif case.bias != "torch":
        raise ValueError(f"bias is 'torch' or 'zero', got {case.bias!r}")
    return net, order


def last(net: nn.Module) -> nn.Linear:
    """Returns the last linear layer."""
    return as_executed.linears(net)[-1][2]


def optimizer_of(case: Case, net: nn.Module) -> torch.optim.SGD:
    """Returns plain gradient descent on the net."""
    return torch.optim.SGD(net.parameters(), lr=case.rate, momentum=case.momentum, fused=True)


def one_epoch(
    case: Case, net: nn.Module, optimizer: torch.optim.Optimizer, images: Images, order: torch.Generator
) -> None:
    """Trains for one pass over the images."""
    for chosen in torch.randperm(len(images.train), generator=order).split(case.batch):
        loss = F.cross_entropy(net(images.train.index_select(0, chosen)), images.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def logits(net: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Returns the last layer's values before its ReLU, if it has one."""
    body = net[:-1] if isinstance(net[-1], nn.ReLU) else net
    return torch.cat([body(part) for part in x.split(2000)])


def judged(z: torch.Tensor, labels: torch.Tensor, last_relu: bool) -> dict[str, Any]:
    """Returns what follows from logits: accuracy, recall, dead classes, and the accuracy if ties went to the dead.

    A tie is an image whose outputs are all zero. `torch.argmax` gives it to class 0; `accuracy_ties` is the accuracy
    if it goes to that dead class which gains most. `tied` is the share of the images of dead classes that are ties.
    """
    out = z.clamp_min(0) if last_relu else z
    guess = out.argmax(1)
    total = torch.bincount(labels, minlength=10).clamp_min(1)
    recall = torch.bincount(labels[guess == labels], minlength=10) / total
    dead = [c for c in range(10) if recall[c] < training.DEAD]
    found = {"accuracy": (guess == labels).float().mean().item(), "recall": recall.tolist(), "dead": dead}
    tie = (out == 0).all(1) if last_relu else torch.zeros(len(z), dtype=torch.bool)
    lost = torch.isin(labels, torch.tensor(dead, dtype=labels.dtype))
    found["tied"] = tie[lost].float().mean().item() if dead else None
    resolved = [(torch.where(tie, c, guess) == labels).float().mean().item() for c in dead]
    found["accuracy_ties"] = max(resolved, default=found["accuracy"])
    return found


def silent(net: nn.Sequential, images: Images) -> tuple[list[int], list[float]]:
    """Returns the classes whose logit is positive for none of the training images looked at, and the largest logits."""
    z = logits(net, images.train[:LOOKED_AT])
    return [c for c in range(10) if not (z[:, c] > 0).any()], z.max(0).values.tolist()


def deaths(
    source: str,
    path: Path | None,
    case: dict[str, Any],
    seeds: Sequence[int],
    epochs: int,
    before: str = "none",
    gate: float = 1.0,
) -> dict[str, Any]:
    """Returns, for each start, which logits are silent and which classes dead, by epoch; a job.

    Args:
        source: the images, and `path` their place.
        path: None for those made here.
        case: of `Case`.
        seeds: of the starts.
        epochs: of training.
        before: what is done before any training: "none"; "cut", the notebook's cut of every layer that fits, as in its
            own comparison; "random", the same rank with directions drawn by chance; "scaled", the matrices that "cut"
            would change are multiplied down to the norm it would leave.
        gate: of the cut.
    """
    images, runs = jobs.images(source, path), []
    settings = Case(**case)
    for seed in seeds:
        net, order = made(settings, seed)
        bias = last(net).bias.tolist()
        at_first = silent(net, images)[0]
        change_start(net, before, gate, seed)
        optimizer = optimizer_of(settings, net)
        run: dict[str, Any] = {"seed": seed, "last_bias": bias, "silent_uncut": at_first}
        run |= {"silent": [silent(net, images)[0]], "sizes": as_executed.sizes(net), "accuracy": []}
        for _ in range(epochs):
            one_epoch(settings, net, optimizer, images, order)
            run["silent"].append(silent(net, images)[0])
            tested = judged(logits(net, images.test), images.test_labels, settings.last_relu)
            run["accuracy"].append(tested["accuracy"])
        trained = judged(logits(net, images.train), images.train_labels, settings.last_relu)
        runs.append(run | {"test": tested, "train_accuracy": trained["accuracy"]})
    return {"case": case, "before": before, "epochs": epochs, "runs": runs}


def at_the_start(
    source: str, path: Path | None, nets: dict[str, Sequence[int]], seeds: Sequence[int], items: int = 1000
) -> dict[str, Any]:
    """Returns, for untrained nets, the silent classes of each start on the first images, and the biases behind them.

    `fixed` is the share of the variance of the logits, over classes and images, that does not depend on the image:
    what the biases and the mean of the hidden values decide.
    """
    images, found = jobs.images(source, path), {}
    for name, sizes in nets.items():
        rows = []
        for seed in seeds:
            net, _ = made(Case(tuple(sizes), 0.0, 0.0, True), seed)
            z, bias = logits(net, images.train[:items]), last(net).bias.detach()
            still = [c for c in range(10) if not (z[:, c] > 0).any()]
            centred = z - z.mean()
            fixed = (z.mean(0) - z.mean()).square().mean() / centred.square().mean()
            rows.append({"silent": still, "negative_bias": int((bias < 0).sum()), "fixed": fixed.item()})
        found[name] = {"sizes": list(sizes), "starts": rows}
    return found


def change_start(net: nn.Sequential, before: str, gate: float, seed: int) -> None:
    """Does to an untrained net what `deaths` says under `before`."""
    if before in ("cut", "random"):
        way = "largest" if before == "cut" else "random"
        as_executed.cut_net(net, gate, way=way, generator=torch.Generator().manual_seed(1000 + seed))
    elif before == "scaled":
        accounts = as_executed.cut_net(copy.deepcopy(net), gate)
        with torch.no_grad():
            for (_, _, layer), account in zip(as_executed.linears(net), accounts, strict=True):
                layer.weight.mul_(sqrt(1 - account.relative_error**2))
    elif before != "none":
        raise ValueError(f"what is done before is one of {BEFORE}, got {before!r}")


def revivals(
    source: str,
    path: Path | None,
    case: dict[str, Any],
    seeds: Sequence[int],
    epochs: int,
    more: int,
    gate: float = 1.0,
    most: int = 10,
) -> dict[str, Any]:
    """Returns, for starts in which a class died, what each of `WAYS` did to it and where further training led; a job.

    Args:
        source: the images, and `path` their place.
        path: None for those made here.
        case: of `Case`.
        seeds: of the starts that are tried.
        epochs: of training before.
        more: of training after.
        gate: of the cut.
        most: so many starts with a dead class are followed.
    """
    images, runs, tried = jobs.images(source, path), [], 0
    settings = Case(**case)
    for seed in seeds:
        if len(runs) == most:
            break
        tried += 1
        net, order = made(settings, seed)
        optimizer = optimizer_of(settings, net)
        for _ in range(epochs):
            one_epoch(settings, net, optimizer, images, order)
        tested = judged(logits(net, images.test), images.test_labels, settings.last_relu)
        if not tested["dead"]:
            continue
        silent_now, highest = silent(net, images)
        run: dict[str, Any] = {"seed": seed, "test": tested, "silent": silent_now, "highest": highest, "ways": {}}
        for way in WAYS:
            if way == "noise last but one" and len(settings.sizes) < 4:
                continue  # the same as "noise"
            changed, state = copy.deepcopy(net), torch.Generator()
            state.set_state(order.get_state())
            moved = optimizer_of(settings, changed)
            if way == "none":
                moved.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            else:
                intervene(changed, way, tested["dead"], images, gate, seed)
                moved = optimizer_of(settings, changed)
            after, highest_after = silent(changed, images)
            at_once = judged(logits(changed, images.test), images.test_labels, settings.last_relu)
            for _ in range(more):
                one_epoch(settings, changed, moved, images, state)
            finally_ = judged(logits(changed, images.test), images.test_labels, settings.last_relu)
            run["ways"][way] = {
                "silent": after,
                "highest": highest_after,
                "accuracy": at_once["accuracy"],
                "accuracy_later": finally_["accuracy"],
                "dead_later": finally_["dead"],
                "revived": [c for c in tested["dead"] if finally_["recall"][c] > 0.5],
                "sizes": as_executed.sizes(changed),
            }
        runs.append(run)
    return {"case": case, "epochs": epochs, "more": more, "tried": tried, "runs": runs}


@torch.no_grad()
def intervene(net: nn.Sequential, way: str, dead: Sequence[int], images: Images, gate: float, seed: int) -> None:
    """Changes the net in one of `WAYS`: cuts it, moves it by chance as far as the cut would, or lifts the dead biases.

    "noise" adds to every matrix that the cut would change Gaussian noise of the norm of that change; "noise last but
    one" to the layer before the last alone; "lift" raises the bias of each dead class until its logit is positive for
    one training image in a hundred. "renew" leaves the weights as they are.
    """
    generator = torch.Generator().manual_seed(2000 + seed)
    cuts = {"cut": "largest", "random": "random", "halve": "halve"}
    if way in cuts:
        as_executed.cut_net(net, gate, way=cuts[way], generator=generator)
    elif way.startswith("noise"):
        accounts = as_executed.cut_net(copy.deepcopy(net), gate)
        layers = [layer for _, _, layer in as_executed.linears(net)]
        chosen = range(len(layers)) if way == "noise" else [len(layers) - 2]
        for i in chosen:
            draw = torch.randn(layers[i].weight.shape, generator=generator)
            norm = accounts[i].relative_error * layers[i].weight.norm()
            layers[i].weight.add_(draw * (norm / draw.norm()))
    elif way == "lift":
        z = logits(net, images.train[:LOOKED_AT])
        for c in dead:
            last(net).bias[c] -= torch.quantile(z[:, c], 0.99)
    elif way not in ("none", "renew"):
        raise ValueError(f"the ways are {WAYS}, got {way!r}")
