"""The options that several commands share, and the estimators behind their names."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EdgeName(StrEnum):
    """The estimators that need no further figure."""

    bema = "bema"
    median = "median"
    broadening = "broadening"
    gavish_donoho = "gavish-donoho"
    screenot = "screenot"


class Fused(StrEnum):
    """How weights that hold several matrices are read."""

    split = "split"
    whole = "whole"
    heads = "heads"


class BasisName(StrEnum):
    """In which basis ranks are cut and magnitudes compared."""

    plain = "plain"
    equalised = "equalised"


class CutName(StrEnum):
    """What goes, where as much may go as an error of the model allows."""

    zeros = "zeros"
    ranks = "ranks"


class StepName(StrEnum):
    """How zeros are chosen in the inner product of the inputs, and made up for."""

    wanda = "wanda"
    obs = "obs"
    alternate = "alternate"


class BudgetName(StrEnum):
    """The budgets of zeros, each with its usual settings."""

    uniform = "uniform"
    global_magnitude = "global"
    lamp = "lamp"
    erdos_renyi = "erdos-renyi"
    layer_normalised = "layer-normalised"
    spectral_edge = "spectral-edge"
    heavy_tail = "heavy-tail"
    misfit = "misfit"
    bulk_share = "bulk-share"
    least_damage = "least-damage"


Model = Annotated[
    str,
    typer.Argument(
        help="Folder or file of safetensors, transformers folder, or state dict (.pt, .pth, .bin).", metavar="MODEL"
    ),
]
Edge = Annotated[EdgeName, typer.Option("--edge", help="Estimator of the noise edge.")]
Alpha = Annotated[float, typer.Option(help="BEMA: share of the spectrum left out at each end of the fit, in [0, 0.5).")]
Beta = Annotated[
    float, typer.Option(help="BEMA, median: share of pure-noise matrices in which a spike may be seen, in (0, 1).")
]
FusedOption = Annotated[
    Fused, typer.Option("--fused", help="Read fused weights as q, k, v and gates, whole, or by heads.")
]
Plain = Annotated[
    bool, typer.Option("--no-equalize", help="Judge matrices as they are, row and column scales included.")
]
Vectors = Annotated[
    bool,
    typer.Option(
        "--vectors", help="Look at singular vectors too: directions of the bulk that are not random (slower)."
    ),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report to this file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file; - for standard output.")]


def estimator(name: EdgeName, alpha: float, beta: float):
    """Return the estimator of that name; alpha and beta go to those that have them."""
    from ..edges import Bema, Broadening, GavishDonoho, Median, ScreeNot

    made = {
        EdgeName.bema: lambda: Bema(alpha, beta),
        EdgeName.median: lambda: Median(beta),
        EdgeName.broadening: Broadening,
        EdgeName.gavish_donoho: GavishDonoho,
        EdgeName.screenot: ScreeNot,
    }
    return made[name]()


def budget(name: BudgetName | None):
    """Return the budget of that name, with its usual settings; None is left to the plan."""
    from .. import budgets

    return None if name is None else getattr(budgets, name.name.title().replace("_", ""))()
