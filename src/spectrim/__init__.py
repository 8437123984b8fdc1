"""spectrim tells signal from noise in the weights of trained networks, with random matrix theory, and trims the noise.

>>> import spectrim, torch
>>> model = torch.nn.Sequential(torch.nn.Linear(96, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
>>> found = spectrim.survey(model)                 # a live module, a checkpoint's path, or a dict of matrices
>>> plan = spectrim.plan(found, params=0.5)        # a file that a person can read, edit and replay
>>> done = spectrim.trim(model, plan)              # checks that what was achieved is what was planned
>>> done.params_after < done.params_before
True
"""

__version__ = "0.1.0"

from . import edges, laws, planted
from .edges import Bema, Known, Median
from .factored import load
from .laws import MarchenkoPastur, TracyWidom
from .linalg import Factors
from .plan import Entry, Plan
from .reading import Equalised, equalize, read_spectrum
from .sites import Site
from .spectrum import NoiseFit, Spectrum
from .survey import Reading, Survey
from .trim import Change, Changes

# The three verbs share their names with their modules: they are bound last, so that `spectrim.plan` is the function.
from .survey import survey  # isort: skip
from .plan import plan  # isort: skip
from .trim import trim  # isort: skip

__all__ = [
    "Bema",
    "Change",
    "Changes",
    "Entry",
    "Equalised",
    "Factors",
    "Known",
    "MarchenkoPastur",
    "Median",
    "NoiseFit",
    "Plan",
    "Reading",
    "Site",
    "Spectrum",
    "Survey",
    "TracyWidom",
    "edges",
    "equalize",
    "laws",
    "load",
    "plan",
    "planted",
    "read_spectrum",
    "survey",
    "trim",
]
