"""Getting back what a cut has cost, without labels: least squares on the moments, then block after block as the dense.

An optional last step after zeros or splits. What is zero stays zero; only what the dense model does on some inputs,
samples or noise, is imitated.
"""

from .record import Block, Fit, Recovered
from .verb import recover

__all__ = ["Block", "Fit", "Recovered", "recover"]
