"""The verbs: what provably cannot change, and what does change."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..modules import of_module
from ..plan import Plan
from ..sites import listed
from ..trim import trim
from .bounds import How, State, backward, forward
from .chain import Affine, Bend, Chain, Largest, read_chain
from .curves import enclosure, response
from .norms import margins_of, norm_bound
from .record import Certificate
from .rounding import EXACT, Rounding

METHODS = ("norms", "response", "enclosure")
ENTRIES = 1 << 24  # of the largest float64 block: functionals x samples x entries of the widest result, 128 MiB

Cut = nn.Module | Plan | Mapping[str, Tensor]
Progress = Callable[[Iterable], Iterable]


def certify(
    model: nn.Module,
    cut: Cut,
    samples: Tensor,
    *,
    radius: float = 0.0,
    method: str = "response",
    refine: bool = False,
    rounding: Rounding | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Return the `Certificate` of a cut on some samples: which predictions it provably cannot change.

        margin'(x) >= margin(x0) + g . (W - W' as seen by the dense activations) - what is not known,  ||x - x0|| <= r

    It goes from the dense model's activations and margins and from the weights; the cut model is never run. Certified
    is that for each x in the ball the cut model, run in its own arithmetic, predicts the class that the model predicts
    at the sample: also that the class is the same all over the ball.

    "norms" is the plain data path: operator norms of the cut layers times the norm of what came in. "response" carries
    the change itself through each activation that provably keeps its linear piece, puts a band around those that may
    leave it, from the dense point to wherever they can be (the smaller of a bound entry by entry and one in l2, over
    units that may be on), and takes what is not known back from each pair of classes to the layer where it comes in.
    "enclosure" has its bands around the activations of the cut model alone. At radius 0 that is the arithmetic of a run
    of the cut model, with its rounding enclosed, and says what such a run says; in a ball it is sharper for deep cuts.

    Args:
        model: a live module that gives one row of scores a sample: Linear, Conv2d, BatchNorm, pooling, activations
            entry by entry, flatten, dropout, sums of branches; taken in evaluation mode, and not changed.
        cut: a `Plan`; or new matrices by the names of a survey; or the cut model itself, whose weights are read.
        samples: n x anything, what `model` takes; no labels.
        radius: of the l2 ball around each sample, >= 0, in the unit of the samples.
        method: "norms", "response" or "enclosure".
        refine: bounds each unit of the hidden linear layers by a functional of its own. Sharper in a ball, at a cost of
            as many passes back as there are units.
        rounding: units of the arithmetic in which the cut model runs, `Rounding.of` its dtype unless given. Sums may be
            taken in any order; elementary functions are trusted to 16 units. TF32 is `Rounding(2**-11, 2**-11)`.
        progress: wraps the iteration over the batches.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.1], [0.1, 1.0]])), net[0].bias.zero_()
        >>> found = certify(net, {"0": torch.eye(2)}, torch.tensor([[1.0, 0.0], [1.0, 0.9]]), radius=0.1)
        >>> found.certified.tolist(), found.margin.round(decimals=3).tolist()
        ([True, False], [0.9, 0.09])

    References:
        E. Wong and J. Kolter, ICML 2018, and H. Zhang et al., NeurIPS 2018 (bounds by linear functionals, taken back);
        C. Szegedy et al., ICLR 2014, section 4.3 (products of norms).
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius < math.inf:
        raise ValueError(f"radius is the l2 distance from a sample, >= 0 and finite, got {radius!r}")
    _check_samples(samples)
    dense, other = _copy(model), cut_copy(model, cut)
    chain = read_chain(dense, other)
    classes, scores = _predicted(dense, samples)
    rounding = rounding or Rounding.of(next(other.parameters()).dtype)
    x = samples.detach().to(next(dense.parameters()).device, torch.float64)
    how = How(float(radius), rounding, *_bands(method), refine)
    pieces = []
    with torch.no_grad():
        parts = torch.arange(len(x)).split(_at_once(chain, x, scores.shape[1]))
        for some in progress(parts) if progress else parts:
            if method == "norms":
                pieces.append(_by_norms(chain, x[some], classes[some], scores[some], how))
            else:
                pieces.append(_by_functionals(chain, x[some], classes[some], scores[some], how))
    found = _joined(pieces)
    fixed = {name: float(share.mean()) for name, share in found.pop("fixed").items()}
    return Certificate(
        model=type(model).__name__,
        method=method,
        radius=float(radius),
        classes=classes.cpu(),
        fixed=fixed,
        seconds=time.perf_counter() - started,
        **found,
    )


@torch.no_grad()
def changed(model: nn.Module, cut: Cut, samples: Tensor) -> Tensor:
    """Return for each sample whether the cut model predicts another class than the model: the truth, by running both.

    Args:
        model: as for `certify`, of any architecture.
        cut: as for `certify`.
        samples: n x anything.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> changed(net, {"0": -net[0].weight.detach()}, torch.ones(1, 2)).tolist()
        [True]
    """
    _check_samples(samples)
    dense, other = _copy(model), cut_copy(model, cut)
    return (_scores(dense, samples).argmax(1) != _scores(other, samples).argmax(1)).cpu()


def cut_copy(model: nn.Module, cut: Cut) -> nn.Module:
    """Return a copy of the model with the weights of the cut, in evaluation mode; neither is changed or run."""
    if isinstance(cut, nn.Module):
        if type(cut) is not type(model):
            raise ValueError(f"the cut model is a {type(cut).__name__}, the model a {type(model).__name__}")
        other = _copy(cut)
    elif isinstance(cut, Plan):
        other = _copy(model)
        trim(other, cut)
    elif isinstance(cut, Mapping):
        other = _copy(model)
        sites = {site.name: site for site in of_module(other).sites}
        if unknown := [str(name) for name in cut if name not in sites]:
            raise ValueError(
                f"{listed(unknown)} is no matrix of this model as a survey names them; there are {listed(list(sites))}"
            )
        for name, W in cut.items():
            if not isinstance(W, Tensor) or tuple(W.shape) != (sites[name].rows, sites[name].cols):
                told = tuple(W.shape) if isinstance(W, Tensor) else type(W).__name__
                raise ValueError(f"{name} takes a {sites[name].rows} x {sites[name].cols} matrix, not {told}")
            sites[name].put(W.detach())
    else:
        raise TypeError(
            "a cut is a Plan, the cut model, or a mapping of names to new matrices, not a " + type(cut).__name__
        )
    for name, p in [*other.named_parameters(), *other.named_buffers()]:
        if p.is_floating_point() and not torch.isfinite(p).all():
            raise ValueError(f"{name} of the cut model holds NaN or infinite entries")
    return other


def _copy(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"a certificate is of a live module, not of a {type(model).__name__}")
    try:
        found = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be copied ({error}): a certificate works on copies") from None
    found = found.cpu() if any(p.device.type == "mps" for p in found.parameters()) else found  # which has no float64
    return found.eval()


def _check_samples(samples: Tensor) -> None:
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        told = samples.dtype if isinstance(samples, Tensor) else type(samples).__name__
        raise TypeError(f"samples are a tensor of floating-point numbers, n x what the model takes, not {told}")
    if samples.ndim < 2 or not len(samples):
        raise ValueError(f"samples are n x what the model takes, n >= 1, not of shape {tuple(samples.shape)}")
    if not torch.isfinite(samples).all():
        raise ValueError("samples hold NaN or infinite entries")


def _scores(model: nn.Module, samples: Tensor) -> Tensor:
    p = next(model.parameters(), None)
    place = samples.device if p is None else p.device
    try:
        found = [model(part.to(place)) for part in samples.detach().split(256)]
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} does not take samples of shape {tuple(samples.shape[1:])}: {error}"
        ) from None
    if not all(isinstance(part, Tensor) and part.ndim == 2 and part.shape[1] > 1 for part in found):
        shape = tuple(found[0].shape) if isinstance(found[0], Tensor) else type(found[0]).__name__
        raise ValueError(f"a model to be certified gives samples x two or more classes, not {shape}")
    return torch.cat(found)


def _predicted(dense: nn.Module, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that the model predicts as it runs, and its scores."""
    with torch.no_grad():
        scores = _scores(dense, samples)
    if not torch.isfinite(scores).all():
        raise ValueError("the model gives scores that are NaN or infinite for some samples")
    return scores.argmax(1), scores.to(torch.float64)


def _bands(method: str) -> tuple[Callable, bool]:
    return (enclosure, True) if method == "enclosure" else (response, False)


def _at_once(chain: Chain, x: Tensor, classes: int) -> int:
    """How many samples fit into one block, from the results of the first sample."""
    states = forward(chain, x[:1], How(0.0, Rounding(EXACT, EXACT), response))
    return max(1, ENTRIES // (classes * max(state.c.numel() for state in states)))


def _checked(chain: Chain, c: Tensor, scores: Tensor) -> None:
    """RuntimeError where the steps, run in float64, do not give what the model gives: it was not read rightly."""
    if c.shape != scores.shape:
        raise RuntimeError(f"the steps read from the model give {tuple(c.shape)}, the model {tuple(scores.shape)}")
    if chain.soft:
        c = c.softmax(1)
        scores = scores.exp() if bool((scores <= 0).all()) else scores
    # Far above rounding, far below anything that a step taken for another would do.
    if not torch.allclose(c, scores, rtol=0.02, atol=0.02 * float(c.abs().max())):
        raise RuntimeError(
            "the steps read from the model do not give what the model gives (by up to "
            f"{float((c - scores).abs().max()):.3g}): something in it changes its input in place, or has a state"
        )


def _by_norms(chain: Chain, x: Tensor, classes: Tensor, scores: Tensor, how: How) -> dict:
    bound, dense, c = norm_bound(chain, x, classes, how.radius, how.rounding)
    _checked(chain, c, scores)
    if chain.soft:
        bound = bound - _soft(c.abs().amax(1) + (dense - bound).abs().amax(1), c.shape[1], how.rounding)[:, None]
    nearest = _nearest(bound, classes)
    nothing = torch.zeros(len(x), dtype=torch.float64)
    picked = {"margin": dense.gather(1, nearest), "bound": torch.nan_to_num(bound, -torch.inf).gather(1, nearest)}
    found = {key: value[:, 0].cpu() for key, value in picked.items()}
    return {**found, "damage": {}, "remainder": {}, "ball": nothing, "rounding": nothing, "fixed": {}}


def _by_functionals(chain: Chain, x: Tensor, classes: Tensor, scores: Tensor, how: How) -> dict:
    states = forward(chain, x, how)
    last = states[-1]
    _checked(chain, last.c, scores)
    kinds = last.c.shape[1]
    # One functional for each class and sample: the score of the sample's class minus that of the other.
    eye = torch.eye(kinds, dtype=torch.float64, device=x.device)
    seen = backward(chain, states, len(chain.steps), eye[classes][None] - eye[:, None], how.radius)
    dense, known = margins_of(last.c, classes), margins_of(last.v, classes)
    # What float64 may lose in the functionals themselves, against what they would be without any cancellation.
    slack = 1e-9 * (last.b + last.b.gather(1, classes[:, None])) + 16 * EXACT * (last.c.abs() + last.v.abs() + 1)
    rounded = seen.rounded.T + slack
    if chain.soft:
        reach = (last.c.abs() + last.v.abs() + last.b).amax(1)
        rounded = rounded + _soft(reach, kinds, how.rounding)[:, None]
    bound = dense + known - (seen.rest.T - seen.rounded.T) - rounded
    nearest = _nearest(bound, classes)

    def at(values: Tensor) -> Tensor:
        return values.gather(1, nearest)[:, 0].cpu()

    damage, remainder, fixed = {}, {}, {}
    for i, step in enumerate(chain.steps, start=1):
        if isinstance(step, Affine | Bend | Largest) and i in seen.own:
            damage[step.name] = damage.get(step.name, 0) + at(seen.own[i].T)
        if i in seen.half:
            remainder[step.name] = remainder.get(step.name, 0) + at(seen.half[i].T)
            fixed[step.name] = _kept(states[i])
    found = {"margin": at(dense), "bound": at(torch.nan_to_num(bound, -torch.inf))}
    more = {"ball": at(seen.ball.T), "rounding": at(rounded)}
    return {**found, "damage": damage, "remainder": remainder, **more, "fixed": fixed}


def _kept(state: State) -> Tensor:
    """The share of each sample's units whose remainder is none."""
    return (state.half == 0).flatten(1).double().mean(1).cpu()


def _soft(reach: Tensor, classes: int, rounding: Rounding) -> Tensor:
    """By how much scores must differ to differ still after a softmax that is rounded."""
    return 32 * rounding.stored * (2 * reach + math.log(classes) + 1)


def _nearest(bound: Tensor, classes: Tensor) -> Tensor:
    others = torch.nan_to_num(bound, nan=-torch.inf).scatter(1, classes[:, None], torch.inf)
    return others.argmin(1, keepdim=True)


def _joined(pieces: list[dict]) -> dict:
    found = {}
    for key, value in pieces[0].items():
        parts = [piece[key] for piece in pieces]
        found[key] = _joined(parts) if isinstance(value, dict) else torch.cat(parts)
    return found
