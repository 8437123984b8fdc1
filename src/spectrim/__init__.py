"""spectrim tells signal from noise in the weights of trained networks, with random matrix theory, and trims the noise.

>>> import spectrim, torch
>>> model = torch.nn.Sequential(torch.nn.Linear(96, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
>>> found = spectrim.survey(model)                 # a live module, a checkpoint's path, or a dict of matrices
>>> plan = spectrim.plan(found, params=0.5)        # a file that a person can read, edit and replay
>>> done = spectrim.trim(model, plan)              # checks that what was achieved is what was planned
>>> done.params_after < done.params_before
True
"""

__version__ = "0.5.0"

from . import budgets, calibrate, cycles, edges, laws, penalties, planted, schedules, sparsify
from .edges import Bema
from .factored import load
from .frozen import frozen_zeros
from .moments import Moments
from .plan import Plan
from .pruner import Pruner
from .reading import equalize, read_spectrum
from .readings import Reading
from .restore import Restore
from .spectrum import NoiseFit, Spectrum
from .survey import Survey
from .trim import Changes
from .verdict import Verdict

# The verbs share their names with their modules: they are bound last, so that `spectrim.plan` is the function.
from .survey import survey  # isort: skip
from .compare import compare  # isort: skip
from .plan import plan  # isort: skip
from .trim import trim  # isort: skip
from .sweep import sweep  # isort: skip
from .recover import recover  # isort: skip
from .undo import undo  # isort: skip

__all__ = [
    "Bema",
    "Changes",
    "Moments",
    "NoiseFit",
    "Plan",
    "Pruner",
    "Reading",
    "Restore",
    "Spectrum",
    "Survey",
    "Verdict",
    "budgets",
    "calibrate",
    "compare",
    "cycles",
    "edges",
    "equalize",
    "frozen_zeros",
    "laws",
    "load",
    "penalties",
    "plan",
    "planted",
    "read_spectrum",
    "recover",
    "schedules",
    "sparsify",
    "survey",
    "sweep",
    "trim",
    "undo",
]
