"""The cut of arXiv 2303.08986 as its public notebook carries it out, in plain torch; and the controls of equal rank.

Where notebook (jtj5311/NN-RMT-SVD) and text differ, this file follows the notebook:

- of the values under the edge 45 % are kept, not removed;
- the values under the edge are counted as one fewer, so rank = above + 1 + int(.45 (below - 1)), and 10 at least;
- the Tracy-Widom term is (1 + sqrt(gamma))**4 / 3 and the goodness of fit falls to nearly one where the fit reaches
  beyond the edge: `Bema(compat="authors")`, alpha = .2, beta = .1;
- a layer that fits but would not become smaller is replaced by its truncation;
- the two new layers are layers like all others at the next cut, so splits nest;
- the optimiser is made anew, so its momentum starts from zero.

The notebook gives the first of two new layers no bias. The totals that the paper prints count one for every layer, so
here both have one, the first starting from zero, unless `biases` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from spectrim import Bema, Spectrum

EDGE = Bema(alpha=0.2, beta=0.1, compat="authors")
WAYS = ("largest", "random", "halve")


@dataclass(frozen=True)
class Cut:
    """What became of one layer: its shape, the reading, and the rank kept; `action` is why or how."""

    rows: int
    cols: int
    action: str  # "split", "dense", "halved", "does not fit", "not measured"
    above: int = 0
    rank: int | None = None
    misfit: float | None = None
    relative_error: float = 0.0


def linears(net: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Returns every linear layer in the order of the forward, with its parent and its name there."""
    found = []
    for parent in net.modules():
        found += [(parent, name, part) for name, part in parent.named_children() if isinstance(part, nn.Linear)]
    order = {id(part): i for i, part in enumerate(p for p in net.modules() if isinstance(p, nn.Linear))}
    return sorted(found, key=lambda entry: order[id(entry[2])])


def sizes(net: nn.Module) -> tuple[int, ...]:
    """Returns the sizes of a chain of linear layers as the paper prints them, checking that they follow each other."""
    layers = [layer for _, _, layer in linears(net)]
    for a, b in pairwise(layers):
        if a.out_features != b.in_features:
            raise ValueError(f"a layer of {a.out_features} outputs is followed by one of {b.in_features} inputs")
    return (layers[0].in_features, *(layer.out_features for layer in layers))


def number_kept(above: int, p: int, portion: float = 0.45, floor: int = 10) -> int:
    """Returns the rank that the notebook keeps of p values of which `above` stand over the edge."""
    below = p - above - 1
    return max(p - below + int(portion * below), floor)


def cut_layer(
    layer: nn.Linear,
    gate: float,
    way: str = "largest",
    biases: str = "both",
    portion: float = 0.45,
    generator: torch.Generator | None = None,
) -> tuple[nn.Module, Cut]:
    """Returns what takes the place of a layer, and the account of it.

    Args:
        layer: left as it is.
        gate: the fit is good below this.
        way: "largest", the notebook's main cut; "random", which keeps the values above the edge and as many of the
            others as "largest" does, drawn by chance; "halve", which halves all values under the edge and splits
            nothing. The last two follow further functions of the notebook; there the random cut keeps more, above +
            rank of them, here the rank is the same, so that the draw alone differs.
        biases: "both" or "second", see the head of this file.
        portion: share of the values under the edge that is kept.
        generator: draws for "random", on the CPU wherever the layer is, so that the draw is the same.
    """
    W = layer.weight.detach()
    rows, cols = W.shape
    U, s, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    try:
        fit = EDGE(Spectrum(s.cpu().numpy(), rows, cols))
    except ValueError:
        return layer, Cut(rows, cols, "not measured")
    above, misfit = fit.spikes, float(fit.misfit or 0.0)
    if not misfit < gate:
        return layer, Cut(rows, cols, "does not fit", above, None, misfit)
    rank = min(number_kept(above, s.numel(), portion), s.numel())
    kept = torch.arange(rank, device=W.device)
    if way == "random":
        rest = torch.randperm(s.numel() - above, generator=generator, device="cpu")[: rank - above] + above
        kept = torch.cat([kept[:above], rest.sort().values.to(W.device)])
    elif way == "halve":
        halved = torch.where(s > fit.edge, s, s / 2)
        with torch.no_grad():
            new = _linear((U * halved) @ Vh, layer.bias)
        error = float((halved - s).norm() / s.norm())
        return new, Cut(rows, cols, "halved", above, s.numel(), misfit, error)
    elif way != "largest":
        raise ValueError(f"the ways to cut are {WAYS}, got {way!r}")
    root = s[kept].sqrt()
    second, first = U[:, kept] * root, root[:, None] * Vh[kept]
    error = float((s.square().sum() - s[kept].square().sum()).clamp_min(0).sqrt() / s.norm())
    if rows * cols < rank * (rows + cols):
        return _linear(second @ first, layer.bias), Cut(rows, cols, "dense", above, rank, misfit, error)
    own = torch.zeros(rank, device=W.device) if biases == "both" else None
    pair = nn.Sequential(_linear(first, own), _linear(second, layer.bias))
    return pair, Cut(rows, cols, "split", above, rank, misfit, error)


def cut_net(net: nn.Module, gate: float, **settings: Any) -> list[Cut]:
    """Cuts every linear layer of the net once, in place; returns one account a layer."""
    done = []
    for parent, name, layer in linears(net):
        new, account = cut_layer(layer, gate, **settings)
        parent._modules[name] = new
        done.append(account)
    return done


def renew(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    """Makes a plain optimiser as if built anew on the net: same settings, no memory."""
    optimizer.state.clear()
    optimizer.param_groups[0]["params"] = list(net.parameters())


def cutter(every: int, gate: float, **settings: Any) -> Callable[..., list[dict[str, Any]]]:
    """Returns the function of (net, optimizer, epoch), epochs from 0, that cuts after every `every` of them."""

    def cut(net: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> list[dict[str, Any]]:
        if (epoch + 1) % every:
            return []
        done = cut_net(net, gate, **settings)
        renew(optimizer, net)
        return [asdict(account) for account in done]

    return cut


def _linear(W: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(W.shape[1], W.shape[0], bias=bias is not None, device=W.device)
    with torch.no_grad():
        layer.weight.copy_(W)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
