"""The best values for the zeros that are there, matrix after matrix, by least squares on the moments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..calibrate import sequential
from ..calibrate.gather import Batch
from ..inner.damage import relative_damage
from ..inner.obs import refit
from ..modules import of_module
from ..moments import Moments
from ..sites import Site
from .record import Fit

STEPS = 30  # of conjugate gradients on all rows at once, from the values that are there


def fitted(
    model: nn.Module, dense: nn.Module, held: list[Batch], only: Callable[[str], bool] | None
) -> tuple[list[Fit], dict[str, str]]:
    """Return what was fitted, in the order of the model, and what could not be, by name with the reason."""
    before = {site.name: site for site in of_module(dense).sites}
    found: dict[str, Fit] = {}
    there = [site for site in of_module(model).sites if only is None or only(site.name)]
    wanted = [site for site in there if site.pair_rank is None and bool((site.get() == 0).any())]

    def cut(sites: list[Site], moments: Moments) -> None:
        for site in sites:
            found[site.name] = _fit(site, before.get(site.name), moments, model, dense)

    missing = sequential(model, held, cut, sites=wanted).missing if wanted else {}
    return [found[site.name] for site in wanted if site.name in found], missing


def _fit(site: Site, other: Site | None, moments: Moments, model: nn.Module, dense: nn.Module) -> Fit:
    new = site.get().clone()
    if other is None or (other.rows, other.cols) != (site.rows, site.cols):
        raise ValueError(f"the dense model has no {site.rows} x {site.cols} matrix {site.name}: is it another model?")
    W, moment = other.get().to(new.device), moments[site.name]
    cost = relative_damage(W, new, moment)
    if not _same_bias(site, model, dense):
        return Fit(site.name, cost, cost, "left alone: its bias was corrected for the weights that it has")
    if not cost > 0:
        return Fit(site.name, cost, cost, "left alone: nothing is lost on these inputs")
    best = refit(W, new == 0, moment, start=new, steps=STEPS).to(new.dtype)
    after = relative_damage(W, best, moment)
    if not after < cost:
        return Fit(site.name, cost, cost, "left alone: its values are the best for its zeros already")
    site.put(best)
    return Fit(site.name, cost, after)


def _same_bias(site: Site, model: nn.Module, dense: nn.Module) -> bool:
    try:
        one, two = (m.get_submodule(site.layer.name).bias for m in (model, dense))
    except AttributeError:  # no such attribute, or a parameter of attention: nothing there is corrected
        return True
    return not isinstance(one, Tensor) or not isinstance(two, Tensor) or torch.equal(one.cpu(), two.cpu())
