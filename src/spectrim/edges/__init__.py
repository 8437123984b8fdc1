"""Estimators of the edge between noise and signal: each a frozen dataclass, called with a Spectrum, giving a NoiseFit.

    Edge = Callable[[Spectrum], NoiseFit]

Any function of that signature will do in their place.
"""

from collections.abc import Callable

from spectrim.edges.bema import Bema
from spectrim.edges.known import Known
from spectrim.edges.median import Median
from spectrim.spectrum import NoiseFit, Spectrum

Edge = Callable[[Spectrum], NoiseFit]

__all__ = ["Bema", "Edge", "Known", "Median"]
