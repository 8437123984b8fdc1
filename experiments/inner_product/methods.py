"""Ways to set entries to zero, or to cut ranks, in the inner product of a layer's inputs, as a sweep takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectrim import budgets, cut, plan, trim
from spectrim.calibrate import sequential
from spectrim.inner.edge import whitened_edge
from spectrim.inner.mean_shift import correct, shift
from spectrim.inner.obs import obs
from spectrim.inner.whiten import low_rank
from spectrim.moments import Moment, Moments
from spectrim.planning.ranks import whitened
from spectrim.sites import Site
from spectrim.survey import Survey, inventory

Step = Literal["magnitude", "wanda", "obs", "published", "alternate"]


@dataclass(eq=False)
class Source:
    """Moments, made when they are first needed: its label is what a cell is known by.

    Args:
        label: what they are of.
        make: makes them.
        damping: share of the mean square of an input, that steps add to C.
        inputs: what they are gathered from, for cuts that gather as they go.
    """

    label: str
    make: Callable[[], Moments] = field(repr=False)
    damping: float = 0.01
    inputs: Any = field(default=None, repr=False)

    @cached_property
    def moments(self) -> Moments:
        """The moments."""
        return self.make()


MARGINAL = "marginal damage"  # the budget that needs the moments themselves
NOTHING = Source("no moments", lambda: Moments({}, "identity"))


def zeroed(W: Tensor, zeros: int, moment: Moment | None, step: Step, damping: float) -> Tensor:
    """Returns the matrix with so many entries at zero; without a moment the smallest go."""
    if moment is None:
        step = "magnitude"
    if step == "published":  # SparseGPT as its authors have it
        return obs(W, moment, zeros, scope="block", order="given", damping=damping)
    return cut.zeroed(W, zeros, moment=moment, step=step, damping=damping)


@dataclass(frozen=True, eq=False, repr=False)
class Zeroed:
    """Zeros as a budget shares them out, each matrix by one step, with moments taken once or layer after layer.

    Args:
        step: how entries are chosen, and whether the others make up for them.
        source: the moments.
        budget: how many each matrix gets; "marginal damage" is `budgets.MarginalDamage` of the source.
        in_turn: each layer's moments are taken after the earlier ones were cut.
        places: where a bias can take back the mean of what is lost, which then counts for nothing: C is the covariance.
    """

    step: Step
    source: Source
    budget: Any = field(default_factory=budgets.GlobalMagnitude)
    in_turn: bool = False
    places: Callable[[], Any] | None = None

    def __repr__(self) -> str:
        more = ", in turn" * self.in_turn + ", shift" * (self.places is not None)
        return f"Zeroed({self.step}, {self.source.label}, {self.budget!r}, damping={self.source.damping:g}{more})"

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> None:
        """Change the model in place."""
        budget = budgets.MarginalDamage(self.source.moments) if self.budget == MARGINAL else self.budget
        counts = budget(found, rate).counts
        sites = [site for site in inventory(model, found.fused).sites if site.name in counts]
        places = self.places() if self.places else {}

        def act(group: list[Site], moments: Moments) -> None:
            for site in group:
                W, moment = site.get().clone(), moments.get(site.name)
                trusted = moment is not None and moments.recipe.get("trust", {}).get(site.name) != "approximate"
                seen = replace(moment, second=moment.covariance()) if trusted and site.name in places else moment
                new = zeroed(W, counts[site.name], seen, self.step, self.source.damping)
                site.put(new)
                if trusted and site.name in places:
                    correct(model, places, {site.name: shift(W, new, moment)})

        if not self.in_turn:
            act(sites, self.source.moments)
            return
        done = sequential(model, self.source.inputs, act, sites=sites)
        reached = {name for group in done.groups for name in group}
        act([site for site in sites if site.name not in reached], NOTHING.moments)


@dataclass(frozen=True, eq=False, repr=False)
class Ranked:
    """Ranks cut until this share of the numbers stored is gone, as the plan shares them out.

    Args:
        source: the moments.
        first: what is kept first: "spikes", in each matrix those of the matrix as it is, at the ranks of the plan; or,
            in the plan, the whitened values above an edge, "coloured" or "screenot".
    """

    source: Source
    first: str = ""

    def __repr__(self) -> str:
        told = {"": "", "spikes": ", spikes first"}.get(self.first, f", {self.first} edge first")
        return f"Ranked({self.source.label}, damping={self.source.damping:g}{told})"

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> None:
        """Change the model in place."""
        moments = self.source.moments
        if not self.first:
            trim(model, plan(found, params=1 - rate, moments=moments), moments=moments)
            return
        sites = {site.name: site for site in inventory(model, found.fused).sites}
        fits = {r.name: r.plain or r.fit for r in found.fitted}
        above = {}
        if self.first != "spikes":
            above = {n: whitened_edge(sites[n].get(), m, self.first).spikes for n, m in moments.items() if n in sites}
        for entry in whitened(found, 1 - rate, dense=False, moments=moments, first=above)[1]:
            if entry.action != "keep":
                spikes = min(entry.rank, fits[entry.name].spikes) if self.first == "spikes" else 0
                factors = low_rank(sites[entry.name].get(), moments.get(entry.name), entry.rank, spikes=spikes)
                sites[entry.name].split(*(half.float() for half in factors.split()))
