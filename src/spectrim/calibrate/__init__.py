"""Where the moments of a layer's inputs come from: samples, noise, or what the network itself has stored."""

from .gather import gather
from .inputs import Inputs, synthetic
from .matched import inverted
from .places import Place, shift_places
from .recipes import replay
from .sensitivity import weighed
from .sequential import Passes, sequential
from .sources import moments_of
from .stored import stored
from .streamed import streamed

__all__ = [
    "Inputs",
    "Passes",
    "Place",
    "gather",
    "inverted",
    "moments_of",
    "replay",
    "sequential",
    "shift_places",
    "stored",
    "streamed",
    "synthetic",
    "weighed",
]
