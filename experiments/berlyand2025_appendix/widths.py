"""The bounds a(N) and a'(N) and the accuracy of [784, N, N, 10] against its width (B.3).

    a(N)  = ||W3||_inf max_s ||W1 s||_2 (sqrt(2 log(2 N) / N) + N^(-3/8))
    a'(N) = the same with N^2 in the place of N in the bracket

||W3||_inf is the largest sum of magnitudes of a row; the maximum runs over the training set. The printed formula did
not survive in the text at hand: this is the form of the later rewrite, where the first term of the bracket bounds a
mean and the second a deviation. That text calls the norm of W3 its L1 norm; the sum over all entries, `entrywise`, is
kept beside it.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Any

import torch
from experiments import networks, training
from experiments.data import Images
from torch import nn


def bracket(N: float) -> float:
    """Returns sqrt(2 log(2 N) / N) + N^(-3/8)."""
    return sqrt(2 * log(2 * N) / N) + N ** (-3 / 8)


@torch.no_grad()
def bounds(net: nn.Sequential, x: torch.Tensor) -> dict[str, float]:
    """Returns a(N), a'(N) and the norms in them, for a network of three matrices and images as it takes them."""
    W1, W2, W3 = (w.detach() for w in networks.matrices(net))
    N = W2.shape[1]
    rows = float(W3.abs().sum(1).max())
    longest = max(float((part.flatten(1) @ W1.T).norm(dim=1).max()) for part in x.split(5000))
    return {
        "a": rows * longest * bracket(N),
        "a_prime": rows * longest * bracket(N * N),
        "rows": rows,
        "entrywise": float(W3.abs().sum()),
        "longest": longest,
    }


def one(recipe: training.Recipe, images: Images, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Returns the record of a training with the bounds at its start and after every epoch."""
    x = training.prepared(recipe, images, device).train

    def watch(net: nn.Module, epoch: int) -> dict[str, float] | None:
        return bounds(net, x) if epoch in (-1, recipe.epochs - 1) else None

    found = training.train(recipe, images, seed, watch=watch, device=device)
    watched = found.pop("watched")
    return found | {"before": watched[0], "after": watched[-1]}
