"""The three networks of the experiment, their Glorot start and their training loop."""

from __future__ import annotations

from itertools import pairwise
from math import prod, sqrt

import torch
from experiments import networks
from torch import nn
from torch.nn import functional as F

ROOT_OF_THREE = sqrt(3.0)


def mlp(sizes: tuple[int, ...] = (784, 512, 512, 10)) -> nn.Sequential:
    """Returns fully connected layers fc1, fc2, ... with ReLU between them, none after the last."""
    return networks.mlp(sizes)


def lenet5() -> nn.Sequential:
    """Returns LeNet-5 for 28 x 28: two 5 x 5 convolutions (6, 16) with max pooling, then 400-120-84-10; ReLU."""
    net = nn.Sequential()
    for i, (inputs, outputs, padding) in enumerate(((1, 6, 2), (6, 16, 0)), start=1):
        net.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 5, padding=padding))
        net.add_module(f"relu{i}", nn.ReLU())
        net.add_module(f"pool{i}", nn.MaxPool2d(2))
    for name, layer in mlp((400, 120, 84, 10)).named_children():
        net.add_module(f"{name}_fc" if name.startswith("relu") else name, layer)
    return net


def small_alexnet() -> nn.Sequential:
    """Returns five 3 x 3 convolutions (16, 32, 64, 64, 32), pooled after 1, 2 and 5, then 512-384-192-10; ReLU.

    The plan of AlexNet, brought down to 32 x 32 images and two processor cores; no dropout.
    """
    net = nn.Sequential()
    widths = (3, 16, 32, 64, 64, 32)
    for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        net.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, padding=1))
        net.add_module(f"relu{i}", nn.ReLU())
        if i in (1, 2, 5):
            net.add_module(f"pool{i}", nn.MaxPool2d(2))
    for name, layer in mlp((512, 384, 192, 10)).named_children():
        net.add_module(f"{name}_fc" if name.startswith("relu") else name, layer)
    return net


NETS = {"mlp": mlp, "lenet5": lenet5, "small_alexnet": small_alexnet}


@torch.no_grad()
def glorot(net: nn.Module, generator: torch.Generator) -> None:
    """Draws every weight uniformly with variance 2 / (fan in + fan out); biases become zero."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            kernel = prod(layer.weight.shape[2:])
            sigma = sqrt(2.0 / (kernel * (layer.weight.shape[0] + layer.weight.shape[1])))
            layer.weight.uniform_(-ROOT_OF_THREE * sigma, ROOT_OF_THREE * sigma, generator=generator)
            layer.bias.zero_()


def train(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    batch: int,
    epochs: int,
    rate: float,
    momentum: float,
    decay: float,
    generator: torch.Generator,
) -> None:
    """Stochastic gradient descent at a constant rate on the cross-entropy; a last, smaller batch is kept."""
    optimiser = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(batch):
            loss = F.cross_entropy(net(images[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, chunk: int = 2000) -> float:
    """Returns the share of images whose largest output is their label."""
    parts = zip(images.split(chunk), labels.split(chunk), strict=True)
    return sum(int((net(x).argmax(1) == y).sum()) for x, y in parts) / len(images)
