"""Small entries of a trained model to zero: once, or over a grid of thresholds with a score beside each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .modules import of_module
from .sites import Site, listed
from .trim import Change


@dataclass(frozen=True)
class Point:
    """One threshold: the entries of all matrices that are not zero under it, their share, and the score."""

    threshold: float
    nonzeros: int
    share: float
    score: Any


def grid(first: float = 1.0, count: int = 50) -> tuple[float, ...]:
    """Returns the thresholds first / (1 + k) for k = 0 .. count - 1, falling.

    Args:
        first: the largest, in the unit of a weight, > 0. The papers' scripts use 1 for fully connected networks and
            1/20 for convolutional ones.
        count: how many, >= 1.

    Example:
        >>> grid(first=1 / 20, count=4)
        (0.05, 0.025, 0.016666666666666666, 0.0125)

    References:
        Scripts of arXiv 2310.03165; arXiv 2503.01922, figure 4.
    """
    if not 0 < first < math.inf or count < 1:
        raise ValueError(f"a grid starts at a positive threshold and has one point at least, got {first!r}, {count!r}")
    return tuple(first / (1 + k) for k in range(count))


def sparsify(model: nn.Module, threshold: float) -> list[Change]:
    """Returns what was done: in every matrix of `model`, all entries with |w| <= threshold are now zero, in place.

    The matrices are those that a survey reads: linear and convolutional layers, attention, recurrent layers, each
    stored tensor once. Biases, norms and embeddings stay as they are, and so does what a survey skips. Of a pair of
    layers both halves lose their own small entries; its product then has no zeros, and the relative error of the
    `Change` is the product's. Parameters are not fewer: zeros save nothing before they are stored as such.

    There is one `Change` for each matrix that lost an entry; its `zeros` are all the zeros that it has now, and its
    `rank` is None, or the inner size of a pair.

    Args:
        model: a live module; nothing is changed if one of its matrices holds NaN.
        threshold: in the unit of a weight, >= 0; compared in the dtype of the weight.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> with torch.no_grad(): _ = net[0].weight.copy_(torch.tensor([[0.5, -0.1], [0.05, -0.8]]))
        >>> [(change.name, change.zeros) for change in sparsify(net, 0.1)]
        [('0', 2)]
        >>> net[0].weight.tolist()
        [[0.5, 0.0], [0.0, -0.800000011920929]]

    References:
        arXiv 2503.01922, section E.6 (algorithm 5).
    """
    (threshold,) = _checked([threshold])
    changes = []
    for site in _readable(model):
        start = time.perf_counter()
        before = site.get().clone()
        stored = [(read(), write) for read, write in _tensors(site)]
        fresh = sum(int(((T.abs() <= threshold) & (T != 0)).sum()) for T, _ in stored)
        if not fresh:
            continue
        for T, write in stored:
            write(T.masked_fill(T.abs() <= threshold, 0))
        zeros = sum(int((read() == 0).sum()) for read, _ in _tensors(site))
        whole = float(_norm(before))
        error = float(_norm(before - site.get())) / whole if whole else 0.0
        seconds = round(time.perf_counter() - start, 4)
        changes.append(Change(site.name, "zeros", site.pair_rank, site.params, site.params, zeros, error, seconds))
    return changes


def curve(model: nn.Module, thresholds: Iterable[float], score: Callable[[nn.Module], Any]) -> list[Point]:
    """Returns one `Point` a threshold, in their order: how many entries stay, and what `score` says of the model then.

    The model is left as it was, to the bit: parameters, buffers and training modes, also where `score` raises. Each
    threshold is applied to the original entries; what `sparsify` says of the matrices holds here.

    Args:
        model: a live module.
        thresholds: see `grid`; 0 is the model as it is.
        score: called with the sparsified model; what it returns is kept as it is, a number or a dict.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad(): _ = net[0].weight.copy_(torch.tensor([[3.0, 1.0]]))
        >>> for point in curve(net, [0, 1, 3], lambda net: net(torch.ones(2)).item()): print(point)
        Point(threshold=0.0, nonzeros=2, share=1.0, score=4.0)
        Point(threshold=1.0, nonzeros=1, share=0.5, score=3.0)
        Point(threshold=3.0, nonzeros=0, share=0.0, score=0.0)

    References:
        arXiv 2503.01922, figure 4.
    """
    thresholds = _checked(thresholds)
    sites = _readable(model)
    originals = [(read().clone(), write) for site in sites for read, write in _tensors(site)]
    entries = sum(T.numel() for T, _ in originals)
    points = []
    for threshold in thresholds:
        with _put_back(model):
            nonzeros = 0
            for T, write in originals:
                small = T.abs() <= threshold
                write(T.masked_fill(small, 0))
                nonzeros += T.numel() - int(small.sum())
            points.append(Point(threshold, nonzeros, nonzeros / entries, score(model)))
    return points


def _checked(thresholds: Iterable[float]) -> list[float]:
    found = [float(threshold) for threshold in thresholds]
    if not found:
        raise ValueError("there are no thresholds: give at least one, or grid()")
    bad = [threshold for threshold in found if not 0 <= threshold < math.inf]
    if bad:
        raise ValueError(f"a threshold is a magnitude, >= 0 and finite, got {bad[0]!r}; 0 leaves all as it is")
    return found


def _readable(model: nn.Module) -> tuple[Site, ...]:
    sites = of_module(model).sites
    if not sites:
        raise ValueError(f"{type(model).__name__} has no matrix to sparsify: no linear, convolutional, attention layer")
    broken = [s.name for s in sites if not all(torch.isfinite(read()).all() for read, _ in _tensors(s))]
    if broken:
        raise ValueError(f"NaN or infinite entries in {listed(broken)}: nothing was changed")
    return sites


def _tensors(site: Site) -> list[tuple[Callable[[], Tensor], Callable[[Tensor], object]]]:
    """How each stored tensor of a matrix is read and written: the matrix, or the two halves of a pair."""
    if site.pair_rank is None:
        return [(site.get, site.put)]
    load = site.layer.load
    keys = [site.layer.key(site.part, half) for half in (1, 0)]
    return [(partial(load, key), partial(_write, load, key)) for key in keys]


def _write(load: Callable[[str], Tensor], key: str, value: Tensor) -> None:
    load(key).copy_(value)


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, parameters, buffers and training modes are afterwards what they were."""
    tensors = [*model.parameters(), *model.buffers()]
    values = [t.detach().clone() for t in tensors]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, values, strict=True):
                tensor.copy_(before)
        for module, training in modes:
            module.training = training


def _norm(W: Tensor) -> Tensor:
    return torch.linalg.norm(W.to(torch.float64))
