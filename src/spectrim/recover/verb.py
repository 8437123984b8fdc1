"""The verb."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from ..calibrate.gather import Batch, batches, moved, quiet
from ..held import bare
from ..sites import check_only
from .finding import units_of
from .fitting import fitted
from .imitating import Aim, trained_like
from .norms import settled
from .record import Block, Recovered


def recover(
    model: nn.Module,
    dense: nn.Module,
    inputs: Iterable[Batch],
    *,
    fit: bool = True,
    train: bool = True,
    only: Callable[[str], bool] | None = None,
    blocks: Sequence[str] | None = None,
    aim: Aim = "dense",
    steps: int = 100,
    rate: float = 0.01,
    biases: bool = True,
    norms: bool = False,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Recovered:
    """Return the record of what was done to bring a cut model back to the dense one, in place, without labels.

    First each matrix with zeros gets the values that are best for its zeros, its turn coming when the matrices before
    it have theirs (`inner.obs.refit` inside `calibrate.sequential`):

        min over W' of E ||(W - W') x||^2,  W' zero where it was,  x what the cut model's layer reads

    Then each block of a stack (the items of a ModuleList or Sequential that hold layers; the whole model if there is no
    such stack) is trained by Adam, in the order in which they run, on what the cut model hands it, to give what the
    dense one gives. Of what it passes through, that with the least error on held-out batches is kept; where it does not
    fall, it is begun anew at a quarter of the rate, then at a sixteenth, and undone in the end. Zeros stay zero, pairs
    keep their inner size; a matrix that was rebuilt dense at a lower rank does not keep that.

    Args:
        model: the cut model, changed in place; its mode, hooks and `requires_grad` are afterwards what they were.
        dense: the model before the cut, not changed.
        inputs: batches as `calibrate.gather` takes them; no labels. They are held: run several times. What
            `calibrate.synthetic` restates of BatchNorm is that of the dense model, for both.
        fit, train: whether to take the first step, and the second.
        only: a function of a matrix's name that lets it take part; the biases and norms of a block go with any of its
            matrices.
        blocks: names of the modules to train, in their order, instead of those found.
        aim: what a block is to give: "dense", what the dense model's gives in its own run, so that it also makes up for
            the blocks before it; "own", what the dense block gives on the inputs of the cut model.
        steps: of Adam for each block and rate, one batch each, >= 1.
        rate: of a step, as a share of the root mean square of a parameter; falls to 0 along a cosine.
        biases, norms: whether biases, and the gains and shifts of norms, are trained too.
        seed: of the order of the batches.
        progress: wraps the iteration over the blocks.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> cut = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> _ = cut.load_state_dict(dense.state_dict())
        >>> with torch.no_grad(): _ = cut[0].weight.masked_fill_(cut[0].weight.abs() < 0.15, 0)
        >>> done = recover(cut, dense, torch.randn(64, 8), steps=20)
        >>> done.fits[0].after < done.fits[0].before, done.blocks[0].held[1] < done.blocks[0].held[0]
        (True, True)

    References:
        Least squares for a mask: E. Frantar and D. Alistarh, arXiv 2301.00774, section 2; blocks taught by the dense
        ones on unlabelled inputs: Y. Li et al., arXiv 2102.05426 (of quantised networks).
    """
    began = time.perf_counter()
    _check(model, dense, steps, rate, aim)
    check_only(only)
    held = [moved(model, batch, None) for batch in batches(inputs)]
    if not held:
        raise ValueError("inputs holds no batch: recovering needs at least one")
    with quiet(dense):
        held = [settled(batch, dense, i) for i, batch in enumerate(held)]
    notes: list[str] = []
    units: dict[str, list[nn.Parameter]] = {}
    if train:  # all that can be refused is refused before anything changes
        units = units_of(model, dense, held, blocks, only, biases, norms)
        if not any(units.values()):
            raise ValueError("nothing is left to train: see only=, biases= and norms=")
    fits, left = fitted(model, dense, held, only) if fit else ([], {})
    notes += [f"{name} was not fitted: {why}" for name, why in left.items()]
    done: list[Block] = []
    trained: set[int] = set()
    with quiet(model), quiet(dense):
        for name in (progress or iter)(list(units)):
            parameters = [p for p in units[name] if id(p) not in trained]
            trained |= {id(p) for p in parameters}
            if parameters:
                done.append(trained_like(model, dense, held, name, parameters, aim, steps, rate, seed))
    if train and all(block.note for block in done):
        notes.append("no training made the held-out error smaller: try a smaller rate, or more inputs")
    return Recovered(tuple(fits), tuple(done), time.perf_counter() - began, tuple(notes))


def _check(model: nn.Module, dense: nn.Module, steps: int, rate: float, aim: str) -> None:
    for what in (model, dense):
        if not isinstance(what, nn.Module):
            raise TypeError(f"recover takes live modules, the cut one and the dense one, not a {type(what).__name__}")
    if model is dense or {id(p) for p in model.parameters()} & {id(p) for p in dense.parameters()}:
        raise ValueError("the cut model and the dense one share parameters: copy.deepcopy the model before it is cut")
    if bare(model) is not model or bare(dense) is not dense:
        raise ValueError("the model is compiled or wrapped: recover the module inside, and wrap it afterwards")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is a count of optimiser steps a block, >= 1, got {steps!r}; or train=False")
    if not 0 < rate < 1:
        raise ValueError(f"rate is the share of a parameter's size that a step may move it, in (0, 1), got {rate!r}")
    if aim not in ("dense", "own"):
        raise ValueError(f"aim is 'dense' or 'own', not {aim!r}")
