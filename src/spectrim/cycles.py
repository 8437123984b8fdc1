"""The classical pruning cycles of a trained model, without data: vectors thinned out, entries cut, weights decayed.

A generator over a live model: each turn is one cycle, after which the model is the user's, to score, to save, to keep.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from .handover import parameters_of
from .linalg import shared_out
from .modules import of_module, prunable
from .onecycle import STEPS, Classical, Treated, treat
from .sites import Site, check_only, listed
from .survey import Progress
from .trim import Change

CYCLES = 34  # of the authors' script; that of the paper is lost
WORKERS = 4  # matrices at a time, one thread each
IN_HAND = 1 << 26  # entries of the matrices that are worked on at once: some 3 GiB with their factors


@dataclass(frozen=True)
class Cycle:
    """What one cycle did.

    `changes` has one `Change` for each matrix that was judged: its zeros now, and how far it moved in this cycle.
    `misfits` and `bulk_shares` are mu and gamma by name, as the cycle met them. `kept` names the matrices that were
    left alone, each with the reason. `zeros` of `entries` are those of the judged matrices, `nonzeros` of `params`
    those of the whole model. `returned` counts the entries that were zero before the cycle and no longer are.
    `seconds` are those of reading, vectors, pruning and decay, summed over the matrices, of which several may be
    worked on at a time; `elapsed` is the whole cycle. Where vectors are thinned out, a matrix is read from their
    factors.
    """

    number: int
    changes: tuple[Change, ...]
    zeros: int
    entries: int
    nonzeros: int
    params: int
    returned: int
    misfits: Mapping[str, float]
    bulk_shares: Mapping[str, float]
    kept: Mapping[str, str]
    seconds: Mapping[str, float]
    elapsed: float

    @property
    def share(self) -> float:
        """The share of zeros in the judged matrices, in [0, 1]."""
        return self.zeros / self.entries if self.entries else 0.0

    def __str__(self) -> str:
        lines = [
            f"cycle {self.number}: {self.zeros} of {self.entries} entries are zero ({self.share:.1%}); the model keeps "
            f"{self.nonzeros} of {self.params} parameters ({self.nonzeros / self.params:.1%}); {self.elapsed:.1f} s"
        ]
        for c in self.changes:
            mu, gamma = self.misfits[c.name], self.bulk_shares[c.name]
            what = f"{c.zeros} zeros, misfit {mu:.3f}, bulk {gamma:.3f}, moved by {c.relative_error:.3f}"
            lines.append(f"  {c.name:<48} {what}")
        lines += [f"  {name:<48} kept: {why}" for name, why in self.kept.items()]
        return "\n".join(lines)


def classical(
    model: nn.Module,
    settings: Classical | None = None,
    *,
    cycles: int | None = None,
    first: int = 1,
    only: Callable[[str], bool] | None = None,
    progress: Progress | None = None,
) -> Iterator[Cycle]:
    """Returns a generator: each turn carries one cycle out on the model, in place, and gives its `Cycle`.

    Stop it when you like; nothing is to be closed. Between two turns the model is yours, to score, save or train. A
    matrix with no verdict (too small, all zero, more spikes than bulk), a pair left by a split, and what a survey
    skips, embeddings and norms among it, are not pruned. Biases never are; they count in nnz.

    An interrupt within a cycle leaves matrices that are done and others that are not.

    Args:
        model: a live module, not compiled and not wrapped for several processes. Its parameters stay the same objects.
        settings: `Classical()` unless told otherwise.
        cycles: how many; 34, as in the script, unless told otherwise.
        first: the number of the first one, to go on with a model that has been through some.
        only: a function of a matrix's name that says whether it may be touched; None for all.
        progress: wraps the iteration over the matrices of a cycle, for instance `tqdm`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(60, 90), nn.ReLU(), nn.Linear(90, 60))
        >>> for p in net.parameters(): _ = nn.init.normal_(p, std=0.1, generator=generator)
        >>> for cycle in classical(net, cycles=3): print(cycle.number, f"{cycle.share:.2f}")
        1 0.06
        2 0.12
        3 0.17

    References:
        arXiv 2503.01922, sections 3.1 and 3.2.
    """
    settings = Classical() if settings is None else settings
    if not isinstance(settings, Classical):
        raise TypeError(f"settings are a Classical, not {type(settings).__name__}")
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"cycles work on a live module as it was built, not on a {type(model).__name__}")
    check_only(only)
    cycles, first = CYCLES if cycles is None else operator.index(cycles), operator.index(first)
    if cycles < 0 or first < 1:
        raise ValueError(f"cycles is a count and they are numbered from 1, got cycles={cycles}, first={first}")
    # What is refused is refused now, not at the first turn.
    if settings.decay is not None and not settings.loop and cycles:
        settings.decay_of(first + cycles - 1).check_constant()
    _sites(model, settings, only)
    return (_cycle(model, settings, i, only, progress or iter) for i in range(first, first + cycles))


def _cycle(
    model: nn.Module, settings: Classical, i: int, only: Callable[[str], bool] | None, progress: Progress
) -> Cycle:
    began = time.perf_counter()
    sites, kept = _sites(model, settings, only)
    bad = [site.name for site in sites if not torch.isfinite(site.get()).all()]
    if bad:
        raise ValueError(f"cycle {i}: {listed(bad)} hold NaN or infinite entries; nothing was changed in this cycle")
    changes, found = [], {}
    with torch.inference_mode(False), torch.no_grad():
        for site, treated in _worked_on(sites, partial(_treated, model, settings, i), progress):
            if isinstance(treated, str):
                kept[site.name] = treated
                continue
            site.put(treated.W)
            total = round(sum(treated.seconds.values()), 4)
            sizes = (site.params, site.params, treated.zeros, treated.moved, total)
            changes.append(Change(site.name, "zeros", None, *sizes))
            found[site.name] = replace(treated, W=None)
        seconds = {step: sum(t.seconds[step] for t in found.values()) for step in STEPS}
        start = time.perf_counter()
        if settings.everything and settings.decay is not None:
            judged = {site: settings.strength_of(i, found[site.name].misfit) for site in sites if site.name in found}
            _decay_the_rest(model, settings, i, judged, only)
        seconds["decay"] += time.perf_counter() - start
    return Cycle(
        number=i,
        changes=tuple(changes),
        zeros=sum(change.zeros for change in changes),
        entries=sum(site.rows * site.cols for site in sites if site.name in found),
        nonzeros=sum(int(p.count_nonzero()) for p in model.parameters()),
        params=sum(p.numel() for p in model.parameters()),
        returned=sum(t.returned for t in found.values()),
        misfits={name: t.misfit for name, t in found.items()},
        bulk_shares={name: t.bulk for name, t in found.items()},
        kept=kept,
        seconds=seconds,
        elapsed=time.perf_counter() - began,
    )


def _sites(
    model: nn.Module, settings: Classical, only: Callable[[str], bool] | None
) -> tuple[list[Site], dict[str, str]]:
    """The matrices that may be pruned, and by name those that may not, each with the reason; ValueError if none may."""
    chosen, kept = prunable(model, settings.fused, only)
    kept |= {s.name: "a pair of layers: its product takes no zeros" for s in chosen if s.pair_rank is not None}
    sites = [site for site in chosen if site.pair_rank is None]
    if not sites:
        raise ValueError(f"{type(model).__name__} has no matrix that could be pruned: its layers are pairs already")
    half = [site.name for site in sites if site.get().element_size() < 4]
    if settings.rounded and half:
        raise ValueError(
            f"the script's decay is that of float32, and {listed(half)} {'is' if len(half) == 1 else 'are'} stored in "
            "16 bits, which would hold none of its steps: take model.float(), or settings with rounded=False"
        )
    return sites, kept


def _worked_on(
    sites: Sequence[Site], work: Callable[[Site], Treated | str], progress: Progress
) -> Iterator[tuple[Site, Treated | str]]:
    """Yields each matrix with what became of it, in order.

    Several at a time, one thread each: a decomposition gains little from a second thread, and waits in vain for one
    that other work holds up. Matrices too large for that are done one by one, with all threads.
    """
    largest = max(site.rows * site.cols for site in sites)
    workers = min(WORKERS, torch.get_num_threads(), IN_HAND // largest)
    stream = iter(progress(sites))
    if workers < 2:
        yield from ((site, work(site)) for site in stream)
        return
    yield from shared_out(stream, lambda site: partial(work, site), workers)


def _treated(model: nn.Module, settings: Classical, i: int, site: Site) -> Treated | str:
    bias = _bias(model, site)
    try:
        return treat(site.get(), settings, i, 0 if bias is None else int(bias.count_nonzero()))
    except ValueError as error:
        return str(error)


def _bias(model: nn.Module, site: Site) -> Tensor | None:
    """The part of its layer's bias that belongs to a matrix, a view of the parameter, or None."""
    owner, _, tensor = site.layer.name.rpartition(".")
    path, name = (
        (owner, tensor.replace("weight", "bias")) if site.layer.form == "parameter" else (site.layer.name, "bias")
    )
    bias = model.get_submodule(path)._parameters.get(name)
    if bias is None or bias.numel() != sum(part.rows for part in site.layer.parts):
        return None
    start = sum(part.rows for part in site.layer.parts[: site.part])
    return bias.detach()[start : start + site.rows]


def _decay_the_rest(
    model: nn.Module,
    settings: Classical,
    i: int,
    judged: Mapping[Site, float | None],
    only: Callable[[str], bool] | None,
) -> None:
    """Decays what is no judged matrix: biases of judged layers at their strength, all else without one."""
    done: set[int] = set()
    for site, strength in judged.items():
        bias = _bias(model, site)
        if bias is not None:
            bias.copy_(settings.decay_tensor(bias, i, strength))
        done |= {p.data_ptr() for p in parameters_of(model, site.layer).values()}
        done |= set() if bias is None else {bias.untyped_storage().data_ptr()}
    if only is not None:
        refused = (site for site in of_module(model, settings.fused).sites if not only(site.name))
        done |= {p.data_ptr() for site in refused for p in parameters_of(model, site.layer).values()}
    for p in model.parameters():
        if p.data_ptr() not in done and p.is_floating_point():
            p.copy_(settings.decay_tensor(p.detach(), i, None))
