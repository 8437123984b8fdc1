"""Moments from what a network has stored about its own activations: no data, and no forward pass of any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...moments import Moment, Moments
from ...sites import Site, listed
from ..gather import Batch, chosen_sites, model_fingerprint
from ..signature import first_with_weights
from .law import TRUST, Law, mixed
from .memory import Memory
from .run import Weights, run, stand_in, tensors_of


def stored(
    model: nn.Module,
    example: Batch | None = None,
    *,
    sites: Sequence[Site] | None = None,
    only: Callable[[str], bool] | None = None,
) -> Moments:
    """Return the moments of what each matrix reads, worked out from the figures that the network itself carries.

    A batch normalisation gives mean beta and variance gamma^2 whatever comes in; a layer normalisation g z + b, the
    mean of z over its features being 0 and the mean square 1; embeddings have the mean and covariance of their table.
    From there means and covariances are carried through the operations of one run on a stand-in, of which only the
    shapes count: linear maps and convolutions (A m, A C A^T), functions of one variable (of Gaussians, by quadrature),
    sums (covariances add), products, averages, attention (weights that do not depend on what they average). An
    operation that has no rule makes what comes behind it unknown, until the next normalisation.

    How far a mean can be trusted stands in `recipe["trust"][name]`:

    - "exact": it follows from stored figures by linear steps alone;
    - "gaussian": a function of one variable lies between, whose inputs have stored mean and variance and are taken as
      normal;
    - "approximate": something else was assumed: what goes into the model (mean 0, variance 1; pixels alike, features
      independent), how tokens are distributed (evenly), that two branches are independent, what attention attends to.
      Such means should not be put back by a bias: on language and vision transformers that made things worse or no
      better, where "exact" and "gaussian" ones did what measured ones do.

    Args:
        model: a live module.
        example: one batch as the model takes it; only its shapes count. None: made from the model's signature.
        sites: matrices whose moments are wanted; all that the model has, if not given.
        only: a function of a name, that lets a matrix take part.

    Matrices with more than 4096 inputs have the diagonal of C alone. Those behind something unknown are in `missing`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = stored(net)
        >>> found.recipe["trust"]["3"], round(float(found["3"].mean[0]), 3)  # E[max(z, 0)] = 1 / sqrt(2 pi)
        ('gaussian', 0.399)

    References:
        M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, arXiv
        1906.04721, section 4.2: means behind batch normalisation, there for ReLU.
    """
    chosen = chosen_sites(model, sites, only)
    met = Met(chosen)
    memory = Memory(met)
    try:
        batch = stand_in(model, example)
        first = first_with_weights(model)
        for tensor in tensors_of(batch):
            upright = tensor.ndim > 3 or (tensor.ndim == 3 and isinstance(first, nn.Conv1d))
            memory.input(tensor, 1 if upright else -1)
        run(model, batch, memory.seen)
    except ValueError as error:
        if example is not None:
            raise
        reason = f"the run that shows the model's operations failed: {error}"
        return Moments({}, "stored", {}, model_fingerprint(model), {site.name: reason for site in chosen})
    for weight, reason in memory.unseen:
        met.unseen(weight, reason)
    by_name, trust = met.moments()
    missing = {s.name: met.reasons.get(s.name, "no operation of the run has read it") for s in chosen}
    missing = {name: reason for name, reason in missing.items() if name not in by_name}
    recipe: dict = {"trust": trust, "model": type(model).__name__}
    if memory.without_rule:
        recipe["notes"] = [f"operations without a rule: {listed(sorted(memory.without_rule))}"]
    return Moments(by_name, "stored", recipe, model_fingerprint(model), missing)


class Met:
    """The matrices that are looked for, told by where their weights are stored, and what each was seen to read."""

    def __init__(self, sites: Sequence[Site]):
        self.weights = Weights(sites)
        self.laws: dict[str, list[tuple[tuple[int, int | None], Law]]] = {}
        self.order = [site.name for site in sites]
        self.reasons: dict[str, str] = dict(self.weights.hidden)
        self.kept: dict[tuple[int, int | None], Law] = {}
        self.calls = 0

    def __call__(self, weight: Tensor, law: Callable[[int | None], Law]) -> None:
        """Take in what one use of a weight reads."""
        self.calls += 1
        for site, group in self.weights.used(weight):
            key = (self.calls, group)
            if key not in self.kept:
                self.kept[key] = law(group)
            if self.kept[key].size == site.cols:
                self.laws.setdefault(site.name, []).append((key, self.kept[key]))
            else:
                self.reasons[site.name] = f"it was seen to read {self.kept[key].size} inputs, not {site.cols}"

    def unseen(self, weight: Tensor, reason: str) -> None:
        """Note why what a weight reads is not known."""
        for site, _ in self.weights.used(weight):
            self.reasons.setdefault(site.name, f"what it reads is not known: {reason}")

    def moments(self) -> tuple[dict[str, Moment], dict[str, str]]:
        """Return the moments by name, one object where matrices read the same, and how far each is trusted."""
        by_name, trust, made = {}, {}, {}
        for name in self.order:
            if name not in self.laws:
                continue
            keys = tuple(key for key, _ in self.laws[name])
            if keys not in made:
                laws = [law for _, law in self.laws[name]]
                law = mixed(laws, torch.full((len(laws),), 1 / len(laws), dtype=torch.float64))
                made[keys] = Moment(law.second().float(), law.mean.float(), 0), TRUST[law.mean_trust]
            by_name[name], trust[name] = made[keys]
        return by_name, trust
