"""The networks of the experiments, their starts, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt

import torch
from torch import nn
from torch.nn.utils import skip_init


def mlp(sizes: Sequence[int], last_relu: bool = False, generator: torch.Generator | None = None) -> nn.Sequential:
    """Returns flat, fc1, relu1, fc2, ...; without a generator the weights are not set."""
    net = nn.Sequential()
    net.add_module("flat", nn.Flatten())
    for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        net.add_module(f"fc{i}", skip_init(nn.Linear, inputs, outputs))
        if last_relu or i < len(sizes) - 1:
            net.add_module(f"relu{i}", nn.ReLU())
    if generator is not None:
        start(net, "torch", generator)
    return net


def convolutional(
    channels: Sequence[int],
    pools: Sequence[int],
    sizes: Sequence[int],
    side: int,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Returns 3 x 3 convolutions with BatchNorm and ReLU, max pooling after some, then fully connected layers.

    `sizes` are those of the fully connected layers; the first is replaced by what the convolutions leave of an image of
    that side. Dropout stands before each of them.
    """
    net = nn.Sequential()
    for i, (inputs, outputs) in enumerate(pairwise(channels), start=1):
        net.add_module(f"conv{i}", skip_init(nn.Conv2d, inputs, outputs, 3, padding=1))
        net.add_module(f"norm{i}", nn.BatchNorm2d(outputs))
        net.add_module(f"act{i}", nn.ReLU())
        if i in pools:
            net.add_module(f"pool{i}", nn.MaxPool2d(2))
            side //= 2
    for name, layer in mlp((channels[-1] * side * side, *sizes[1:])).named_children():
        if dropout and name.startswith("fc"):
            net.add_module(f"drop{name[2:]}", nn.Dropout(dropout))
        net.add_module(name, layer)
    if generator is not None:
        start(net, "torch", generator)
    return net


@torch.no_grad()
def start(net: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draws weights and biases: "torch" is its default, uniform within 1 / sqrt(inputs)."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            inputs = prod(layer.weight.shape[1:])
            if init == "torch":
                for tensor in (layer.weight, layer.bias):
                    tensor.uniform_(-1 / sqrt(inputs), 1 / sqrt(inputs), generator=generator)
            elif init in ("normal", "small"):
                layer.weight.normal_(0, 1 / sqrt(inputs) if init == "normal" else 1 / inputs, generator=generator)
                layer.bias.zero_()
            else:
                raise ValueError(f"init is 'torch', 'normal' or 'small', not {init!r}")


def matrices(net: nn.Module) -> list[nn.Parameter]:
    """Returns the weights of the linear and convolutional layers, both halves of a split one."""
    return [layer.weight for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def count(net: nn.Module) -> dict[str, int]:
    """Returns the numbers held in weight matrices and elsewhere (biases, BatchNorm), and the weights that are zero."""
    weights = matrices(net)
    inside = sum(w.numel() for w in weights)
    zeros = sum(int((w == 0).sum()) for w in weights)
    return {"weights": inside, "other": sum(p.numel() for p in net.parameters()) - inside, "zeros": zeros}


def architecture(net: nn.Module) -> dict[str, list[int]]:
    """Returns, layer by layer, [inputs, outputs], or [inputs, rank, outputs] of a split one (channels where it has)."""
    found: dict[str, list[int]] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs, inputs = layer.weight.shape[:2]
            parent, _, half = name.rpartition(".")
            if parent in found and half == "1":
                found[parent].append(outputs)
            elif half == "0" and parent:
                found[parent] = [inputs, outputs]
            else:
                found[name] = [inputs, outputs]
    return found
