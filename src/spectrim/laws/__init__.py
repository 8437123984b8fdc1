"""The laws that describe noise: pure mathematics on numbers and arrays, without a matrix in sight."""

from spectrim.laws.equalised import evened
from spectrim.laws.marchenko_pastur import MarchenkoPastur
from spectrim.laws.spiked import (
    SHRINKERS,
    cosines,
    critical_strength,
    hard_threshold,
    observed,
    shrink,
    strength,
)
from spectrim.laws.tracy_widom import TracyWidom, top_eigenvalue

__all__ = [
    "SHRINKERS",
    "MarchenkoPastur",
    "TracyWidom",
    "cosines",
    "critical_strength",
    "evened",
    "hard_threshold",
    "observed",
    "shrink",
    "strength",
    "top_eigenvalue",
]
