"""The network of the theorems, |W3 |W2 |W1 s|||, trained on images, and the same function in wider layers.

W2 is learned as a product of two factors, so it is a signal S of a small rank. Its scale is set afterwards (and undone
in W3, which the absolute value allows), so that its smallest singular value stands above the edge of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from experiments.data import Images
from numpy.typing import NDArray
from scipy.special import erf
from torch.nn import functional as F

Array = NDArray[np.float64]

ABOVE = 1.5  # the smallest singular value of S, in units of the edge 2 of noise with entries of variance 1 / N


@dataclass(frozen=True, eq=False)
class Net:
    """What the data meet: units of the two hidden layers that are in use, of `width` units that there are.

    Args:
        hidden: |W1 s| of every sample, samples x units in use; all other units are silent.
        S: the middle matrix on the units in use.
        W3: classes x units in use; zero on all other units.
        width: N, units in each hidden layer.
        labels: of the samples.
    """

    hidden: Array
    S: Array
    W3: Array
    width: int
    labels: NDArray[np.int64]

    def outputs(self, noise: Array | None = None) -> Array:
        """Returns |W3 |(S + noise) hidden||, samples x classes; the noise is that on the units in use."""
        middle = self.S if noise is None else self.S + noise
        return np.abs(np.abs(self.hidden @ middle.T) @ self.W3.T)

    def lengths(self) -> Array:
        """Returns ||W1 s||_2 of every sample."""
        return np.linalg.norm(self.hidden, axis=1)


def trained(images: Images, units: int, rank: int, epochs: int, items: int, seed: int, above: float = ABOVE) -> Net:
    """Returns the network trained on the images, read on the first `items` of the test set; width as trained.

    Adam at .003, batches of 128, no biases, images scaled so that the longest of the training set has length 1;
    `above` is the smallest singular value of S in units of the edge of the noise.
    """
    drawn, order = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    longest = images.train.flatten(1).norm(dim=1).max()
    x, test = images.train.flatten(1) / longest, images.test[:items].flatten(1) / longest
    classes = int(images.train_labels.max()) + 1
    sizes = ((units, x.shape[1]), (units, rank), (rank, units), (classes, units))
    weights = [torch.randn(size, generator=drawn) / size[1] ** 0.5 for size in sizes]
    weights[0] *= 5  # so that short images give outputs of order one from the start
    for w in weights:
        w.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=order).split(128):
            w1, a, b, w3 = weights
            out = (((x[chosen] @ w1.T).abs() @ b.T @ a.T).abs() @ w3.T).abs()
            loss = F.cross_entropy(out, images.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    w1, a, b, w3 = (w.detach().double().numpy() for w in weights)
    S = a @ b
    scale = 2 * above / np.linalg.svd(S, compute_uv=False)[rank - 1]
    return Net(np.abs(test.double().numpy() @ w1.T), S * scale, w3 / scale, units, images.test_labels[:items].numpy())


def widened(net: Net, width: int, copies: int) -> Net:
    """Returns the same function with N = `width` units a layer, each unit of the old net standing `copies` times.

    Copies of a unit share its input weights, and its output weights are divided among them: S becomes S (x) J / copies
    with J of ones, its singular values stay, ||W3||_inf stays, ||W1 s||_2 grows as sqrt(copies).
    """
    if copies * len(net.S) > width:
        raise ValueError(f"{copies} copies of {len(net.S)} units do not fit into {width}")
    return replace(
        net,
        hidden=np.repeat(net.hidden, copies, axis=1),
        S=np.repeat(np.repeat(net.S, copies, axis=0), copies, axis=1) / copies,
        W3=np.repeat(net.W3, copies, axis=1) / copies,
        width=width,
    )


def smeared(net: Net, g: float) -> Array:
    """Returns the outputs that copies without end tend to, where every unit stands for the mean of |h + noise|.

    The noise of a unit has the variance g ||W1 s||**2 / N, and |h + noise| follows a folded normal law.
    """
    sigma = sqrt(g / net.width) * net.lengths()[:, None] + 1e-300
    h = net.hidden @ net.S.T
    mean = sigma * sqrt(2 / np.pi) * np.exp(-0.5 * (h / sigma) ** 2) + h * erf(h / sigma / sqrt(2))
    return np.abs(mean @ net.W3.T)


def cross_entropy(out: Array, labels: NDArray[np.int64]) -> float:
    """Returns the mean of log sum exp(out) - out[label]."""
    top = out.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(out - top).sum(1)) + top[:, 0] - out[np.arange(len(out)), labels]))


def margins(out: Array, labels: NDArray[np.int64]) -> Array:
    """Returns X_C - max of the others: the classification confidence, positive where the class is right (eq. 68)."""
    rows = np.arange(len(out))
    others = out.copy()
    others[rows, labels] = -np.inf
    return out[rows, labels] - others.max(1)


def bounds(net: Net, g: float = 1.0, delta: float = 0.05) -> dict[str, Array]:
    """Returns, for every sample, what ||X(W) - X(S)||_inf should not exceed, by the readings of lemma 4.4.

        printed     ||W3|| ||W1 s|| (sqrt(2 log(2N) / N) + N**(-3/8))     with probability 1 - 2 exp(-N**(1/4) / 2)
        later       2 sqrt(2) ||W3|| ||W1 s|| sqrt(log(2N) / N)           with probability 1 - 1 / N
        confidence  ||W3|| ||W1 s|| sqrt(2 g log(2N |T| / delta) / N)     with probability 1 - delta, all samples

    ||W3|| is the largest row sum of absolute values; `printed, column` has the largest column sum, the norm that is
    induced by the l1 norm, and `printed, entries` the sum over all entries: what else "the L1 norm of W3" may say.
    """
    N, w3, size = net.width, np.abs(net.W3), net.lengths()
    rows, columns, entries = w3.sum(1).max(), w3.sum(0).max(), w3.sum()
    bracket = sqrt(2 * np.log(2 * N) / N) + N**-0.375
    return {
        "printed": rows * size * bracket,
        "printed, column": columns * size * bracket,
        "printed, entries": entries * size * bracket,
        "later": 2 * sqrt(2) * rows * size * sqrt(np.log(2 * N) / N),
        "confidence": rows * size * sqrt(2 * g * np.log(2 * N * len(size) / delta) / N),
    }
