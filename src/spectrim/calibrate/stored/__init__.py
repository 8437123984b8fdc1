"""Moments from what a network has stored about its own activations: no data, and no forward pass of any."""

from .propagated import stored

__all__ = ["stored"]
