"""The sweep: methods by rates on one task, with standard errors, paired differences to the controls, and counts.

A task says how a model is measured; a sweep prunes copies of it in every way that it is told and measures each. The
files, from the bottom up: `score` (what a task hands over), `resampling` (errors), `counting` (zeros, parameters,
multiply-adds), `methods`, `keeping` (finished cells as files), `record` (the result), `run`.
"""

from spectrim.sweep.counting import Counts, count, watched
from spectrim.sweep.methods import (
    CONTROLS,
    Method,
    Random,
    Ranks,
    Reconstructed,
    Zeros,
    controls,
    defaults,
    known,
    named,
)
from spectrim.sweep.record import Cell, Figure, ScoreInfo, Sweep, errors_among
from spectrim.sweep.resampling import Gain, resample
from spectrim.sweep.run import RATES, Stopped, sweep
from spectrim.sweep.score import Score, Task, mean, pearson, ratio, spearman

__all__ = [
    "CONTROLS",
    "RATES",
    "Cell",
    "Counts",
    "Figure",
    "Gain",
    "Method",
    "Random",
    "Ranks",
    "Reconstructed",
    "Score",
    "ScoreInfo",
    "Stopped",
    "Sweep",
    "Task",
    "Zeros",
    "controls",
    "count",
    "defaults",
    "errors_among",
    "known",
    "mean",
    "named",
    "pearson",
    "ratio",
    "resample",
    "spearman",
    "sweep",
    "watched",
]
