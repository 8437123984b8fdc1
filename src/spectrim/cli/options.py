"""The options that several commands share, and the estimators behind their names."""

from __future__ import annotations

import re
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


class EngineName(StrEnum):
    """Who works on many matrices at once."""

    local = "local"
    ray = "ray"


class ShapeName(StrEnum):
    """The shapes of a trimmed folder."""

    split = "split"
    dense = "dense"
    adapter = "adapter"
    packed = "packed"


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


Device = Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Where matrices are decomposed.")]
Approximate = Annotated[
    bool,
    typer.Option("--approximate", help="Read huge matrices by products with them, to a stated error, where that pays."),
]
Workers = Annotated[int | None, typer.Option(help="Matrices worked on at a time (default: one a core).")]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What all matrices in work may take together, such as 16GiB, beside 300 MiB."),
]
Processes = Annotated[bool, typer.Option("--processes", help="A process for each worker, not a thread.")]
Engine = Annotated[
    EngineName | None, typer.Option(help="Work on this machine, or on a Ray cluster (docs/machines.md).")
]
Address = Annotated[str | None, typer.Option(metavar="auto|HOST:PORT", help="With --engine ray: the cluster to join.")]
SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def crew(workers: int | None, memory: str | None, processes: bool, engine: EngineName | None, address: str | None):
    """Return the engine that the options ask for, None where none of them is given."""
    from ..engines import Local, Ray

    if address is not None and engine is not EngineName.ray:
        raise ValueError("--address is that of a Ray cluster: give --engine ray")
    if engine is EngineName.ray:
        if processes:
            raise ValueError("--processes is of this machine: leave it out with --engine ray")
        return Ray(address, workers, nbytes(memory))
    if engine is None and workers is None and memory is None and not processes:
        return None
    return Local(workers, nbytes(memory), processes)


def nbytes(size: str | None) -> int | None:
    """Return the bytes that a size names, such as 16GiB or 500MB; None for None.

    Example:
        >>> nbytes("1.5GiB"), nbytes("500 MB"), nbytes("4096")
        (1610612736, 500000000, 4096)
    """
    if size is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", size.lower())
    if not found or not float(found[1]):
        raise ValueError(f"--memory is a size such as 16GiB or 500MB, not {size!r}")
    return int(float(found[1]) * SIZES[found[2] or ""])
