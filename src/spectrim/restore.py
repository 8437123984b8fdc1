"""Prune past the goal, let the removed entries train for a moment, and put those back that moved the most."""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .budgets.thresholds import magnitudes, threshold_counts
from .held import Held, bare, live, pieces
from .modules import of_module
from .sites import Site, check_only, listed
from .steps import lowest, smallest_to_zero
from .trim import Change

OVER = 0.03


class _Taken(NamedTuple):
    """One matrix while it is worked on: as it was, and which of its entries may come back."""

    site: Site
    original: Tensor
    reservoir: Tensor  # bool, rows x cols


class Restore:
    """Takes a model to an exact share of zeros by way of more zeros, a short selection, and a return of the best.

    `prune` removes the smallest magnitudes up to the share zeros + over. In `selecting` only the removed entries train:
    your own loop runs, and whatever else its optimiser touches (survivors, biases, norms, buffers) is put back.
    `finish` ranks them by how far they have moved, and puts back as many as takes the share of zeros down to the goal:

        score of entry ij of matrix l = rho_l |w_ij(after) - w_ij(before)|

    Exact to one entry: round(zeros * entries) of them are zero at the end. Equal scores go to the earlier matrix, and
    in it to the earlier entry in row order. Afterwards fine-tune under `frozen_zeros`.

    Use plain SGD without weight decay in the selection, made anew: movement is then the gradient, summed. Adam moves
    every entry by about its rate, and decay moves the large ones; both hide what is asked.

    Args:
        model: a live module; wrapped for several processes or not, but not sharded.
        zeros: share of zeros at the end, in (0, 1), of the entries of all matrices that are not pairs.
        over: share of entries removed past that, 0.03 unless told. With `counts` it follows from them.
        counts: zeros of each matrix after the over-pruning, by name (the `counts` of a budget at the share
            zeros + over); only these matrices are touched. Without it the smallest magnitudes of all go.
        only: a function of a matrix's name that says whether it may be touched; None for all.
        start: where removed entries start in the selection: "zero", or "value", the one that they had.
        back: what comes back: the "original" value, or the one that it has "moved" to. An entry that was zero already
            has no value to come back: it always returns as what it moved to.
        multipliers: rho_l by name of the matrix, > 0, 1 for those not named; 1 / w_l of a spectral edge budget in the
            paper.
        earlier: whether entries that were zero before may come back too.
        plain_below: goals below this share are met by the smallest magnitudes alone, with no selection; 0 for never.

    Attributes:
        movement: |w(after) - w(before)| by matrix, rows x cols, once the selection is over; what `finish` ranks.
        selects: whether there is a selection: not below `plain_below`.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad(): _ = net[0].weight.copy_(torch.tensor([[0.1, 0.2], [0.3, 4.0]]))
        >>> restore = Restore(net, zeros=0.5, over=0.25)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with restore.selecting():
        ...     net(torch.tensor([[1.0, 0.0]]))[0, 0].backward()
        ...     sgd.step()
        >>> [(change.name, change.zeros) for change in restore.finish()]
        [('0', 2)]
        >>> net[0].weight.tolist() == torch.tensor([[0.1, 0.0], [0.0, 4.0]]).tolist()
        True

    References:
        Spectral edge reintroduction of arXiv 2606.02608, appendix F: a reservoir of 3 % of all entries, plain magnitude
        below 20 % zeros ("hybrid"), rho_l from the spectral edge budget.
    """

    def __init__(
        self,
        model: nn.Module,
        zeros: float,
        *,
        over: float | None = None,
        counts: Mapping[str, int] | None = None,
        only: Callable[[str], bool] | None = None,
        start: Literal["zero", "value"] = "zero",
        back: Literal["original", "moved"] = "original",
        multipliers: Mapping[str, float] | None = None,
        earlier: bool = True,
        plain_below: float = 0.2,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"a live module is pruned and restored, not a {type(model).__name__}")
        shares = {"zeros": zeros, "plain_below": plain_below} | ({} if over is None else {"over": over})
        for name, share in shares.items():
            if not isinstance(share, Real):
                raise TypeError(f"{name} is a share, a number from 0 to 1, not {share!r}")
        if not 0 < zeros < 1:
            raise ValueError(f"zeros is the share of zeros at the end, above 0 and below 1, not {zeros!r}")
        if start not in ("zero", "value") or back not in ("original", "moved"):
            raise ValueError(f"start is 'zero' or 'value', back 'original' or 'moved', not {start!r} and {back!r}")
        if counts is not None and over is not None:
            raise ValueError("over and counts both say how much is removed: give one of them")
        self.selects = zeros >= plain_below
        if counts is not None and not self.selects:
            raise ValueError(
                f"below {plain_below:.0%} zeros nothing is removed past the goal, so counts have no use: trim with a "
                "plan of that budget, or pass plain_below=0"
            )
        over = (OVER if over is None else over) if self.selects else 0.0
        if self.selects and counts is None and not 0 < over <= 1 - zeros:
            raise ValueError(f"over is removed past the goal, above 0 and at most 1 - zeros, not {over!r}")
        if any(hasattr(p, "placements") for p in model.parameters()):
            raise ValueError("the model is sharded (DTensor): prune and restore it before fully_shard")
        counts = None if counts is None else {name: _whole(name, count) for name, count in counts.items()}
        self.model, self.start, self.back, self.earlier = bare(model), start, back, earlier
        self._sites = self._chosen(only, counts)
        entries = sum(site.rows * site.cols for site in self._sites.values())
        self._goal = round(zeros * entries)
        self._counts = counts
        self._removed = round((zeros + over) * entries) if counts is None else sum(counts.values())
        if self._removed < self._goal:
            raise ValueError(
                f"counts remove {self._removed} entries, fewer than the {self._goal} that are zero at the end: ask the "
                "budget for a larger share than zeros"
            )
        self._rho = self._weights(multipliers)
        self.movement: dict[str, Tensor] = {}
        self._moved: dict[str, Tensor] = {}
        self._taken: dict[str, _Taken] = {}
        self._state = "new"

    def prune(self) -> list[Change]:
        """Return what was removed, past the goal; ValueError, with nothing changed, if the model has more zeros yet."""
        self._want("new")
        begin = time.perf_counter()
        there = sum(int((site.get() == 0).sum()) for site in self._sites.values())
        if there > self._goal:
            raise ValueError(f"{there} entries are zero already, more than the {self._goal} that are asked for")
        bad = [site.name for site in self._sites.values() if not torch.isfinite(site.get()).all()]
        if bad:
            raise ValueError(f"NaN or infinite entries in {listed(bad)}: nothing was changed")
        counts = self._counts
        if counts is None:
            sizes = [magnitudes(lambda site=site: site.get().cpu()) for site in self._sites.values()]
            counts = dict(zip(self._sites, threshold_counts(sizes, self._removed), strict=True))
        for name, site in self._sites.items():
            original = site.get().clone()
            site.put(smallest_to_zero(original, counts[name]))
            reservoir = site.get() == 0
            self._taken[name] = _Taken(site, original, reservoir if self.earlier else reservoir & (original != 0))
        self._state = "pruned"
        return self._changes(begin)

    @contextmanager
    def selecting(self) -> Iterator[Restore]:
        """Open the selection: a few steps of your own loop, in which only removed entries train.

        Prunes first if `prune` was not called. Afterwards the model is the over-pruned one again; after an error too,
        and the selection can be repeated then.
        """
        if self._state == "new":
            self.prune()
        self._want("pruned")
        with torch.no_grad():
            values = {name: p.detach().clone() for name, p in live(self.model).items()}
            buffers = [
                (module, name, buffer, None if buffer is None else buffer.clone())
                for module in self.model.modules()
                for name, buffer in module._buffers.items()
            ]
            if self.start == "value":
                self._put(lambda t: t.original)
        before = {name: t.site.get().clone() for name, t in self._taken.items()}
        held = Held(self.model, self._masks(), values, "the selection")
        held.open()
        try:
            yield self
            broken = held.broken()
            held.apply()
            if broken:
                warnings.warn(
                    f"{sum(broken.values())} entries of {listed(list(broken))} were changed that take no part in the "
                    "selection, outside the steps of a torch optimiser; they are put back, but have trained in between",
                    stacklevel=3,
                )
            for name, t in self._taken.items():
                moved = t.site.get()
                self.movement[name] = ((moved - before[name]).abs() * t.reservoir).to(torch.float32)
                if self.back == "moved" or bool((t.reservoir & (t.original == 0)).any()):
                    self._moved[name] = moved.clone()
            self._state = "selected"
        finally:
            held.close()
            with torch.no_grad():
                for name, p in live(self.model).items():
                    p.copy_(values[name])
                    p.grad = None  # of the removed entries alone
                for module, name, buffer, value in buffers:
                    # A forward pass may have put another tensor in its place; .to(...) does.
                    now = module._buffers.get(name)
                    if buffer is not None and now is not None and now.device != buffer.device:
                        buffer = value.to(now.device)
                    elif buffer is not None:
                        buffer.copy_(value)
                    module._buffers[name] = buffer

    def finish(self) -> list[Change]:
        """Return what was done in all, one `Change` a matrix, after the best of the removed entries were put back.

        RuntimeError, with nothing changed, where nothing has moved, or too few entries have a value to come back with.
        """
        if self._state == "new" and not self.selects:
            self.prune()
        begin = time.perf_counter()
        if self.selects:
            self._want("selected")
            self._bring_back()
        else:
            self._want("pruned", "selected")
        self._state = "done"
        zeros = sum(int((t.site.get() == 0).sum()) for t in self._taken.values())
        if zeros != self._goal:
            raise RuntimeError(f"{zeros} entries are zero at the end, {self._goal} were asked for")
        changes = self._changes(begin)
        self._taken.clear()
        self._moved.clear()
        return changes

    def _bring_back(self) -> None:
        if not any(bool(m.any()) for m in self.movement.values()):
            raise RuntimeError(
                "no removed entry has moved in the selection: run some steps of an optimiser that holds the model's "
                "parameters inside selecting()"
            )
        values = {name: self._value(name, t) for name, t in self._taken.items()}
        open_to = {name: t.reservoir & (values[name] != 0) for name, t in self._taken.items()}
        zeros = sum(int((t.site.get() == 0).sum()) for t in self._taken.values())
        budget, there = zeros - self._goal, sum(int(mask.sum()) for mask in open_to.values())
        if there < budget:
            raise RuntimeError(
                f"{budget} entries are to come back, and only {there} have a value to come back with: select for "
                "longer, or with back='original', earlier=True"
            )
        scores = {
            name: (self.movement[name].to(torch.float64) * self._rho[name])[mask].cpu()
            for name, mask in open_to.items()
        }
        # Of equal scores those of later matrices stay zero: the order is turned round for that.
        names = list(scores)[::-1]
        stay = threshold_counts([lambda name=name: scores[name] for name in names], there - budget)
        for name, zero in zip(names, stay, strict=True):
            t, mask = self._taken[name], open_to[name]
            back = _largest(scores[name], len(scores[name]) - zero)
            chosen = torch.zeros_like(mask)
            chosen[mask] = back.to(mask.device)
            t.site.put(torch.where(chosen, values[name], t.site.get()))

    def _value(self, name: str, t: _Taken) -> Tensor:
        if self.back == "moved":
            return self._moved[name]
        if name in self._moved:
            return torch.where(t.original == 0, self._moved[name], t.original)
        return t.original

    def _masks(self) -> dict[str, Tensor | None]:
        """What is held in the selection: everything but the removed entries."""
        masks: dict[str, Tensor | None] = {}
        named, now, met = pieces(self.model), live(self.model), set()
        for name, p in now.items():
            if id(p) in met:
                continue  # tied: once is enough, under the name that a survey reads
            met.add(id(p))
            masks[name] = None
            for piece in named.get(name, ()):
                if piece.matrix in self._taken:
                    if masks[name] is None:
                        masks[name] = torch.ones(p.shape, dtype=torch.bool, device=p.device)
                    piece.of(masks[name]).copy_(~self._taken[piece.matrix].reservoir)
        return masks

    def _put(self, of: Callable[[_Taken], Tensor]) -> None:
        for t in self._taken.values():
            t.site.put(torch.where(t.reservoir, of(t), t.site.get()))

    def _chosen(self, only: Callable[[str], bool] | None, counts: Mapping[str, int] | None) -> dict[str, Site]:
        check_only(only)
        sites = {site.name: site for site in of_module(self.model).sites if site.pair_rank is None}
        if counts is not None:
            if unknown := [name for name in counts if name not in sites]:
                raise ValueError(f"counts names {listed(unknown)}, which the model has not, or has as a pair of layers")
            wrong = [n for n, count in counts.items() if not 0 <= count <= sites[n].rows * sites[n].cols]
            if wrong:
                raise ValueError(f"the count of {listed(wrong)} is below 0 or more than the entries that it has")
        chosen = {
            name: site
            for name, site in sites.items()
            if (only is None or only(name)) and (counts is None or name in counts)
        }
        if counts is not None and len(chosen) < len(counts):
            raise ValueError("only= leaves out matrices that counts names: leave them out of one or the other")
        if not chosen:
            raise ValueError("there is no matrix to prune: pairs of layers take no zeros, and only= may leave out all")
        return chosen

    def _weights(self, multipliers: Mapping[str, float] | None) -> dict[str, float]:
        given = dict(multipliers or {})
        if unknown := [name for name in given if name not in self._sites]:
            raise ValueError(f"multipliers names {listed(unknown)}, which is not among the matrices that are pruned")
        if wrong := [name for name, rho in given.items() if not 0 < rho < math.inf]:
            raise ValueError(f"the multiplier of {listed(wrong)} is not positive and finite")
        return {name: float(given.get(name, 1.0)) for name in self._sites}

    def _want(self, *states: str) -> None:
        if self._state not in states:
            order = "prune(), then `with selecting():`, then finish(), each once"
            raise RuntimeError(f"the order is {order}; this one is {self._state}")

    def _changes(self, begin: float) -> list[Change]:
        seconds = round((time.perf_counter() - begin) / max(1, len(self._taken)), 4)
        changes = []
        for name, t in self._taken.items():
            W, size = t.site.get(), t.site.params
            norm = float(torch.linalg.norm(t.original.to(torch.float64)))
            error = float(torch.linalg.norm((t.original - W).to(torch.float64))) / norm if norm else 0.0
            changes.append(Change(name, "zeros", None, size, size, int((W == 0).sum()), error, seconds))
        return changes


def _whole(name: str, count: int) -> int:
    try:
        return operator.index(count)
    except TypeError:
        raise TypeError(f"counts are whole numbers of zeros: that of {name} is {count!r}") from None


def _largest(scores: Tensor, count: int) -> Tensor:
    """A mask of the `count` largest of a vector; of equal ones the first."""
    return lowest(-scores, count)
