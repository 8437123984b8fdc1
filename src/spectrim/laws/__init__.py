"""The laws that describe noise: pure mathematics on numbers and arrays, without a matrix in sight."""

from spectrim.laws.coloured import coloured_top
from spectrim.laws.equalised import evened
from spectrim.laws.finite import mean_shift, sum_variance
from spectrim.laws.marchenko_pastur import MarchenkoPastur
from spectrim.laws.spiked import (
    SHRINKERS,
    cosines,
    critical_strength,
    hard_threshold,
    observed,
    shrink,
    spectral_shift,
    strength,
)
from spectrim.laws.tracy_widom import TracyWidom, top_eigenvalue

__all__ = [
    "SHRINKERS",
    "MarchenkoPastur",
    "TracyWidom",
    "coloured_top",
    "cosines",
    "critical_strength",
    "evened",
    "hard_threshold",
    "mean_shift",
    "observed",
    "shrink",
    "spectral_shift",
    "strength",
    "sum_variance",
    "top_eigenvalue",
]
