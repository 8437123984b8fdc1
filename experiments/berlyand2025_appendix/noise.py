"""Adds random matrices to the weights of a trained network: accuracy, cross-entropy and regularised loss (A.3).

To every weight matrix but the last, R = eps Z is added, Z with independent entries N(0, 1); a layer that was split
stands as the product of its halves, as one matrix. Of the sum of squares the law is exact,

    ||W + eps Z||^2 = ||W||^2 + 2 eps <W, Z> + eps^2 ||Z||^2

so its mean grows by eps^2 times the number of entries, and the regularised loss by mu2 times that, beside what the
cross-entropy does.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from experiments import networks, training
from experiments.data import Images
from torch import nn

LEVELS = (0.0, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03)

FAR = 10**6  # the start of a net is drawn with a small seed: the same seed would draw noise that is correlated with it


def merged(net: nn.Sequential) -> nn.Sequential:
    """Returns a copy in which every split linear layer is one layer again, the product of its halves."""
    out = nn.Sequential()
    for name, layer in net.named_children():
        if isinstance(layer, nn.Linear) or hasattr(layer, "out_features"):
            whole = nn.Linear(layer.in_features, layer.out_features, device=layer.weight.device)
            with torch.no_grad():
                whole.weight.copy_(layer.weight)
                whole.bias.copy_(layer.bias)
            layer = whole
        out.add_module(name, layer)
    return out


@torch.no_grad()
def sweep(
    net: nn.Sequential, data: Images, l2: float, seed: int, levels: tuple[float, ...] = LEVELS, draws: int = 3
) -> dict[str, Any]:
    """Returns mean and standard deviation over draws of R of accuracy and loss against the standard deviation of R.

    Args:
        net: trained; left as it is.
        data: images as the network takes them, on its device.
        l2: mu2 of the regularised loss.
        seed: of the draws, which share their shape from level to level: R = eps Z.
        levels: eps.
        draws: matrices Z for each layer.
    """
    net = merged(net).eval()
    *noisy, _ = networks.matrices(net)
    before = [w.clone() for w in noisy]
    rows: dict[str, list[Any]] = {key: [] for key in ("train", "test", "train_loss", "test_loss", "squares")}
    for eps in levels:
        found: dict[str, list[float]] = {key: [] for key in rows}
        for k in range(draws if eps else 1):
            generator = torch.Generator().manual_seed(FAR + 1000 * seed + k)
            for w, kept in zip(noisy, before, strict=True):
                w.copy_(kept + eps * torch.randn(kept.shape, generator=generator).to(kept.device))
            for split, x, y in (
                ("train", data.train[:20000], data.train_labels[:20000]),
                ("test", data.test, data.test_labels),
            ):
                result = training.evaluate(net, x, y)
                found[split].append(result["accuracy"])
                found[f"{split}_loss"].append(result["loss"])
            found["squares"].append(sum(float(w.double().square().sum()) for w in networks.matrices(net)))
        for key, values in found.items():
            rows[key].append([float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0])
    for w, kept in zip(noisy, before, strict=True):
        w.copy_(kept)
    entries = sum(w.numel() for w in noisy)
    squares = np.array([mean for mean, _ in rows["squares"]])
    x = np.array(levels) ** 2
    slope = float(x @ (squares - squares[0]) / (x @ x))
    return {
        "eps": list(levels),
        "draws": draws,
        **rows,
        "l2": l2,
        "entries": entries,
        "slope": slope,  # of the sum of squares against eps^2
        "slope_expected": entries,
        "slope_stderr": sqrt(2 * entries / draws) + 2 * sqrt(squares[0] / draws) * float(np.sum(x**1.5) / (x @ x)),
        "regularised": [loss[0] + l2 * sum_[0] for loss, sum_ in zip(rows["train_loss"], rows["squares"], strict=True)],
    }
