"""What a cut is held against: the same number of values, not the largest of the bulk but any of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from experiments import training
from experiments.data import Images
from experiments.training import Pruning, Recipe
from torch import Tensor, nn

from spectrim import NoiseFit, Spectrum
from spectrim.linalg import Factors, svd
from spectrim.pruner import Pruner

FAR = 2 * 10**6  # from the seeds of the starts


class RandomBulk:
    """A cut that keeps of each matrix as many values as another training kept: its spikes, and any of the bulk.

    When, where and how much is taken from the changes of that training, and so is the number of spikes. A bulk that was
    thinned out by chance has another shape: left to itself, the pruner would count more spikes in it, or refuse it.
    """

    def __init__(self, pruning: Pruning, leader: Sequence[Mapping[str, Any]], seed: int) -> None:
        self.share, self.leader = training.schedule(pruning), leader
        self.draw = torch.Generator().manual_seed(FAR + seed)
        self.held: dict[str, int] = {}

    def __call__(self, net: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> Sequence[Any]:
        """Returns what was changed after this epoch."""
        changes: list[Any] = []
        for change in self.leader:
            name, rank = change["name"], change["rank"]
            if change["epoch"] != epoch:
                continue
            layer = net.get_submodule(name)
            W = layer.weight.detach().flatten(1).clone()
            held = self.held.get(name, min(W.shape))
            spikes = spikes_behind(rank, min(W.shape), self.share(epoch))
            # The library's own pruner makes the pair and tells the optimiser; then its values are replaced.
            only = lambda site, name=name: site == name  # noqa: E731
            pruner = Pruner(net, optimizer, 0.0, edge=nothing_stands_out, gate=1.0, only=only, floor=rank)
            made = pruner.step(epoch)
            cut = net.get_submodule(name)
            overwrite(cut, svd(W).select(chosen(held, spikes, rank, self.draw)))
            # What the pruner wrote down is the error of its own cut, which the values drawn here have not.
            changes += [replace(one, relative_error=distance(W, cut)) for one in made]
            self.held[name] = rank
        return changes


def nothing_stands_out(spectrum: Spectrum) -> NoiseFit:
    """Returns a fit without spikes, so that the pruner keeps its floor."""
    return NoiseFit(1.0, inf, None, None, 0, "nothing_stands_out")


def spikes_behind(rank: int, p: int, share: float) -> int:
    """Returns the smallest number of spikes K with K + int(share (p - K)) >= rank."""
    return next((K for K in range(rank) if K + int(share * (p - K)) >= rank), rank)


def chosen(held: int, spikes: int, rank: int, draw: torch.Generator) -> list[int]:
    """Returns the positions kept of so many values: those of the spikes, and any of the others."""
    drawn: Tensor = torch.randperm(held - spikes, generator=draw)[: rank - spikes]
    return [*range(spikes), *sorted((spikes + drawn).tolist())]


@torch.no_grad()
def overwrite(layer: nn.Module, part: Factors) -> None:
    """Puts these factors into a layer, or into the two halves of one."""
    if isinstance(layer, nn.Sequential):
        for half, values in zip(layer, reversed(part.split()), strict=True):
            half.weight.copy_(values.reshape(half.weight.shape))
    else:
        layer.weight.copy_(part.dense().reshape(layer.weight.shape))


@torch.no_grad()
def distance(W: Tensor, layer: nn.Module) -> float:
    """Returns ||W - W'|| / ||W||, W' being the matrix that a layer, or the product of its two halves, stands for."""
    halves = [half.weight.flatten(1).double() for half in (layer if isinstance(layer, nn.Sequential) else [layer])]
    left = halves[0] if len(halves) == 1 else halves[1] @ halves[0]
    return float((W.double() - left).norm() / W.double().norm())


def follow(recipe: Recipe, images: Images, seed: int, device: str, record: Path | None = None) -> RandomBulk:
    """Returns the cut that follows the pruner's own training of this recipe and start.

    Args:
        recipe: with its pruning.
        images: of that training.
        seed: of that training.
        device: where it runs, if it has to be repeated.
        record: the file of that training's result; where there is none, it is trained anew.
    """
    if record is not None and record.exists():
        changes = json.loads(record.read_text())["result"]["changes"]
    else:
        changes = training.train(recipe, images, seed, device=device)["changes"]
    return RandomBulk(recipe.pruning, changes, seed)
