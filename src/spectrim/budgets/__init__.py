"""Budgets: who gives how much. Functions (survey, share of zeros) -> Allotment; ranks.py has the one for ranks.

Any function of that form is a budget. These are frozen dataclasses, so that the repr of one is a complete
configuration. All reach the share asked for to one entry; docs/budgets.md has formulas and sources.

>>> import torch, spectrim
>>> found = spectrim.survey({"a": torch.randn(30, 40), "b": 3 * torch.randn(30, 40)})
>>> Uniform()(found, 0.5).counts
{'a': 600, 'b': 600}
"""

from .allotment import Allotment, Budget, Target, candidates, evened
from .bulk import BulkShare, Misfit
from .damage import LayerNormalised, LeastDamage
from .heavy_tail import HeavyTail
from .lamp import Lamp
from .magnitude import GlobalMagnitude
from .marginal import MarginalDamage
from .shapes import ErdosRenyi, Uniform
from .spectral_edge import SpectralEdge

__all__ = [
    "Allotment",
    "Budget",
    "BulkShare",
    "ErdosRenyi",
    "GlobalMagnitude",
    "HeavyTail",
    "Lamp",
    "LayerNormalised",
    "LeastDamage",
    "MarginalDamage",
    "Misfit",
    "SpectralEdge",
    "Target",
    "Uniform",
    "candidates",
    "evened",
]
