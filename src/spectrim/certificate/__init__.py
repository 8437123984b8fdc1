"""Which predictions a cut provably cannot change, from the dense model and the weights alone; the truth beside it.

found = certify(model, plan, samples, radius=0.1)      # never runs the cut model
found.share, print(found)
changed(model, plan, samples)                          # runs it
"""

from .certify import METHODS, certify, changed, cut_copy
from .record import Certificate
from .rounding import Rounding

__all__ = ["METHODS", "Certificate", "Rounding", "certify", "changed", "cut_copy"]
