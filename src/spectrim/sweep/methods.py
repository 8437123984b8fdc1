"""The methods of a sweep: what changes a model so that a given share of its candidates' entries is gone.

A method is any function of (model, survey of the dense model, rate, generator) that changes the model in place. Those
here are frozen dataclasses, so that their `repr` is a complete configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import budgets
from ..budgets.thresholds import threshold_counts
from ..calibrate.sources import WITHOUT_DATA, moments_of
from ..entries import Step
from ..moments import Moments
from ..plan import Plan, plan
from ..survey import Survey, inventory
from ..trim import trim

Method = Callable[[nn.Module, Survey, float, torch.Generator], Any]
CONTROLS = ("uniform", "global magnitude", "random")


@dataclass(frozen=True)
class Zeros:
    """Sets this share of the entries to zero: how many of each matrix the budget says, and of these the smallest."""

    budget: Any
    basis: Literal["plain", "equalised"] = "plain"

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> Plan:
        """Change the model in place and return the plan."""
        chosen = plan(found, zeros=rate, budget=self.budget, basis=self.basis)
        trim(model, chosen)
        return chosen


@dataclass(frozen=True)
class Ranks:
    """Cuts ranks until this share of the numbers stored is gone, and stores pairs of thinner matrices."""

    basis: Literal["plain", "equalised"] = "plain"

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> Plan:
        """Change the model in place and return the plan."""
        chosen = plan(found, params=1 - rate, basis=self.basis, gate=1)
        trim(model, chosen)
        return chosen


@dataclass(frozen=True, repr=False)
class Reconstructed:
    """Cuts in the inner product of the layers' inputs: zeros by one step, or ranks.

    Args:
        source: "synthetic" or "stored", which take no data; or the moments of samples, from `calibrate.gather`.
        budget: how many zeros each matrix gets; None leaves it to the plan.
        step: how they are chosen and made up for, see `spectrim.inner`.
        ranks: cut ranks until this share of the numbers stored is gone, in place of zeros.
    """

    source: str | Moments
    budget: Any = None
    step: Step = "alternate"
    ranks: bool = False
    _made: dict[str, Moments] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.source, Moments) and self.source not in WITHOUT_DATA:
            raise ValueError(f"source is one of {', '.join(WITHOUT_DATA)}, or moments, not {self.source!r:.60}")

    def __repr__(self) -> str:
        told = self.source if isinstance(self.source, str) else f"{self.source.source} {self.source.fingerprint[:12]}"
        return f"Reconstructed({told}, " + (
            "ranks)" if self.ranks else f"{'usual budget' if self.budget is None else repr(self.budget)}, {self.step})"
        )

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> Plan:
        """Change the model in place and return the plan."""
        moments = self._moments(model, found)
        if self.ranks:
            chosen = plan(found, params=1 - rate, moments=moments)
        else:
            chosen = plan(found, zeros=rate, budget=self.budget, moments=moments, step=self.step)
        trim(model, chosen, moments=moments)
        return chosen

    def _moments(self, model: nn.Module, found: Survey) -> Moments:
        if isinstance(self.source, Moments):
            return self.source
        if found.fingerprint not in self._made:  # every cell begins from the same dense model
            names = {r.name for r in found.fitted}
            self._made.clear()
            self._made[found.fingerprint] = moments_of(model, self.source, only=names.__contains__)
        return self._made[found.fingerprint]


@dataclass(frozen=True)
class Random:
    """Sets this share of the entries to zero, drawn at random over all matrices together: the control that knows least.

    A larger rate of the same generator's seed holds the entries of a smaller one. Entries that are zero already count,
    and go first.
    """

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> None:
        """Change the model in place."""
        named = {site.name: site for site in inventory(model, found.fused).sites}
        sites = [named[t.name] for t in budgets.candidates(found)]
        seeds = torch.randint(1 << 62, (len(sites),), generator=generator).tolist()

        def drawn(i: int) -> Tensor:  # drawn again where it is needed: one matrix in memory at a time
            generator = torch.Generator().manual_seed(seeds[i])
            drawn = torch.rand(sites[i].rows, sites[i].cols, generator=generator, dtype=torch.float64)
            return drawn.masked_fill_(sites[i].get().cpu() == 0, 0.0)

        total = round(rate * sum(site.rows * site.cols for site in sites))
        counts = threshold_counts([partial(drawn, i) for i in range(len(sites))], total)
        for i, (site, zeros) in enumerate(zip(sites, counts, strict=True)):
            W = site.get().clone().contiguous()
            first = torch.sort(drawn(i).reshape(-1), stable=True).indices[:zeros]
            W.view(-1)[first.to(W.device)] = 0
            site.put(W)


def controls() -> dict[str, Method]:
    """Return what every sweep holds: the same share of every matrix, the smallest of all matrices, and chance."""
    methods = (Zeros(budgets.Uniform()), Zeros(budgets.GlobalMagnitude()), Random())
    return dict(zip(CONTROLS, methods, strict=True))


def defaults() -> dict[str, Method]:
    """Return the methods of a sweep that is told none: the controls, every budget, global magnitude evened out."""
    found = controls()
    for name in budgets.__all__:
        made = getattr(budgets, name)
        if isinstance(made, type) and name.title() != name.lower() and _budget(made) is not None:
            found.setdefault(words(name), Zeros(_budget(made)))
    found["global magnitude (equalised)"] = Zeros(budgets.GlobalMagnitude(), basis="equalised")
    return found


def _budget(made: type) -> Any | None:
    """A budget with its default settings, None where the class is no budget."""
    try:
        return found if callable(found := made()) else None
    except TypeError:
        return None


def known() -> dict[str, Method]:
    """Return every method that has a name: the defaults; beside them low rank, and cuts with moments without data."""
    more: dict[str, Method] = {"ranks": Ranks(), "ranks (equalised)": Ranks("equalised")}
    for source in WITHOUT_DATA:
        more[f"zeros ({source})"] = Reconstructed(source)
        more[f"ranks ({source})"] = Reconstructed(source, ranks=True)
    return defaults() | more


def named(names: Iterable[str]) -> dict[str, Method]:
    """Return the methods of these names; case, spaces, hyphens and brackets make no difference.

    Example:
        >>> list(named(["Global-Magnitude"]))
        ['global magnitude']
    """
    every = known()
    plain = {_plain(name): name for name in every}
    unknown = [name for name in names if _plain(name) not in plain]
    if unknown:
        raise ValueError(f"no method is called {', '.join(map(repr, unknown))}; there are: {'; '.join(every)}")
    return {plain[_plain(name)]: every[plain[_plain(name)]] for name in names}


def complete(methods: Mapping[str, Method] | None) -> dict[str, Method]:
    """Return the methods of a sweep: the controls first, then what was asked for. TypeError for what is no method."""
    if methods is None:
        return defaults()
    if not isinstance(methods, Mapping):
        raise TypeError(
            f"methods is a dict of functions by name, not a {type(methods).__name__}: {{'lamp': Zeros(Lamp())}}"
        )
    for name, method in methods.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"a method's name is a text, not {name!r}")
        if isinstance(method, type) or not callable(method):
            raise TypeError(f"{name}: a method is a function of (model, survey, rate, generator), not {method!r}")
    found = controls()
    for name, method in methods.items():
        if name in found and repr(method) != repr(found[name]):
            raise ValueError(f"{name!r} is a control that every sweep holds: give the method another name")
    return found | dict(methods)


def words(name: str) -> str:
    """Returns the name of a class in words.

    Example:
        >>> words("SpectralEdge"), words("Lamp")
        ('spectral edge', 'lamp')
    """
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())
