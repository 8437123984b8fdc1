"""What a sweep found: one cell a method and rate, with its scores, their errors and what was counted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import NormalDist

from ..checkpoint import read_record
from ..writing import write_whole
from .counting import Counts
from .resampling import HALVES, Drawn, Gain

SCHEMA = "spectrim.sweep/1"
ERRORS = 2.0  # standard errors above chance from which on a score tells one method from another


def errors_among(methods: int) -> float:
    """Returns how many standard errors above chance the best of so many methods is as rarely as one alone is two.

        x with Phi(x)^k = Phi(2) = 1 - .023

    This takes the scores of the k methods for independent. They are measured on the same items, so luck is rarer still.

    Args:
        methods: k, 1 or more.

    Example:
        >>> [round(errors_among(k), 2) for k in (1, 3, 8, 20)]
        [2.0, 2.43, 2.76, 3.05]

    References:
        Z. Sidak, J. Amer. Statist. Assoc. 62 (1967) 626.
    """
    normal = NormalDist()
    return normal.inv_cdf(normal.cdf(ERRORS) ** (1 / methods))


@dataclass(frozen=True)
class Figure:
    """One score on one set of items: its value, its standard error, and the gains over "dense" and the controls."""

    value: float
    error: float
    gains: dict[str, Gain] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One method at one rate. `scores[name][half]` is a `Figure`, half one of "all", "choose", "report".

    `failed` says why there are no scores; `flag` what is odd about a cell that has them: a share that was not reached,
    a method that changed nothing. `seconds` are those of the method and of the measure.
    """

    method: str
    rate: float
    config: str = ""
    control: bool = False
    scores: dict[str, dict[str, Figure]] = field(default_factory=dict)
    counts: Counts | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()
    flag: str = ""
    failed: str = ""

    @property
    def name(self) -> str:
        """The method and the rate, for a progress bar."""
        return f"{self.method} {self.rate:.0%}"

    @property
    def achieved(self) -> float | None:
        """Share of the candidates' numbers that is gone: at zero, or not stored any more."""
        return None if self.counts is None else 1 - self.counts.kept


@dataclass(frozen=True)
class ScoreInfo:
    """What holds for one score in all cells: its direction, its chance level and its number of items."""

    better: str
    chance: float | None
    items: int
    square: bool = False


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep, the dense model's own among them as `dense`, and the conditions that they hold under.

    `scores` describes the scores, the headline first. `counts.macs_*` of a cell are those of one `measure`, which puts
    so many `items` through the model. `draws` holds what each cell scored on every draw of items, by (method, rate), in
    memory only: it is what `gain` is made from, and no part of the file.
    """

    task: str
    dense: Cell
    cells: tuple[Cell, ...]
    scores: dict[str, ScoreInfo]
    rates: tuple[float, ...]
    seed: int
    bootstrap: int
    items: int
    fingerprint: str
    conditions: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    draws: Mapping[tuple[str, float], Mapping[str, Mapping[str, Drawn]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def headline(self) -> str:
        """The name of the first score."""
        return next(iter(self.scores))

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods, the controls first."""
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def failed(self) -> tuple[Cell, ...]:
        """The cells that have no scores."""
        return tuple(cell for cell in self.cells if cell.failed)

    def cell(self, method: str, rate: float) -> Cell:
        """Return the cell of a method at a rate. KeyError where there is none."""
        for cell in self.cells:
            if cell.method == method and cell.rate == rate:
                return cell
        raise KeyError(f"no cell {method!r} at {rate}: there are {', '.join(self.methods)} at {self.rates}")

    def gain(self, one: Cell, other: Cell, score: str | None = None, half: str = "all") -> Gain:
        """Return by how much one cell is better than another, in pairs: any method and rate, or `dense`.

        Only a sweep that was run in this process has it, for a file does not hold the draws: `sweep` with the same
        `work` folder reads finished cells from there and draws them again, the same.

        Args:
            one: a cell of this sweep.
            other: another.
            score: its name; the headline unless told.
            half: "all", "choose" or "report".
        """
        score = score or self.headline
        if score not in self.scores or half not in HALVES:
            raise ValueError(f"{score!r} on {half!r}: scores are {', '.join(self.scores)}, halves {', '.join(HALVES)}")
        for cell in (one, other):
            if not any(cell is own for own in (self.dense, *self.cells)):
                name = getattr(cell, "name", repr(cell))
                raise ValueError(f"{name} is no cell of this sweep: take .dense, .cell(method, rate) or .best(rate)")
            if score not in cell.scores:
                raise ValueError(f"{cell.name} has no {score}: {cell.failed}")
        if not self.draws:
            raise ValueError(
                "a sweep that was read from a file has no draws, only the gains over the controls, in its cells' "
                "scores: call sweep() again with the work folder that it had, which measures the dense model alone"
            )
        first, second = (self.draws[cell.method, cell.rate][score][half] for cell in (one, other))
        return first.gain(second)

    def counts_at(self, rate: float, score: str | None = None, errors: float = ERRORS) -> bool:
        """Return whether some method is two standard errors better than chance at this rate.

        Where none is, differences between methods say nothing about them. Cells that are flagged have no say: a method
        that changed nothing is far above chance. True where no chance level is known.

        Any of the methods will do, and each is there by luck in 2.3 % of cases: of k that know nothing, one is in up to
        k times as many, 17 % for 8. `errors=errors_among(k)` keeps that at 2.3 % in all.
        """
        score = score or self.headline
        info = self.scores[score]
        if info.chance is None:
            return True
        sign = 1 if info.better == "higher" else -1
        able = (c for c in self.cells if c.rate == rate and score in c.scores and not c.flag)
        figures = (c.scores[score]["all"] for c in able)
        return any(sign * (f.value - info.chance) > errors * f.error for f in figures)

    def best(self, rate: float, score: str | None = None, half: str = "choose") -> Cell:
        """Return the best cell at a rate: chosen on one half of the items, to be reported on the other.

        A cell that failed or that stopped short of the rate takes no part. The figure to quote is
        ``best.scores[score]["report"]``: chosen among many, a method looks better on the items it was chosen by.
        """
        if half not in HALVES:
            raise ValueError(f"half is one of {', '.join(HALVES)}, not {half!r}")
        score = score or self.headline
        if score not in self.scores:
            raise ValueError(f"there is no score {score!r}: {', '.join(self.scores)}")
        sign = 1 if self.scores[score].better == "higher" else -1
        able = [c for c in self.cells if c.rate == rate and score in c.scores and not c.flag]
        able = [c for c in able if math.isfinite(c.scores[score][half].value)]
        if not able:
            raise ValueError(f"no cell at rate {rate} has a {score}; the rates are {self.rates}")
        return max(able, key=lambda c: sign * c.scores[score][half].value)

    def to_dict(self) -> dict:
        """Return the sweep as its file holds it; a figure that is not finite is None."""
        from .. import __version__

        told = asdict(replace(self, draws={}))
        del told["draws"]
        return _finite({"schema": SCHEMA, "version": __version__} | told)

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Return the sweep as JSON, and write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            write_whole(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Sweep:
        """Return the sweep in a file. ValueError where it is none."""
        raw = read_record(path, "sweep", SCHEMA)
        try:
            return cls(
                **{key: raw[key] for key in ("task", "seed", "bootstrap", "items", "fingerprint", "conditions")},
                dense=_cell(raw["dense"]),
                cells=tuple(_cell(cell) for cell in raw["cells"]),
                scores={name: ScoreInfo(**info) for name, info in raw["scores"].items()},
                rates=tuple(raw["rates"]),
                notes=tuple(raw["notes"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} lacks a part of a sweep, or holds one that is unknown: {error}") from None

    def to_html(self, path: str | os.PathLike, title: str | None = None) -> Path:
        """Write the page to `path`, one self-contained HTML file, and return the path."""
        from ..report import write_sweep

        return Path(write_sweep(path, self, title=title))

    def __str__(self) -> str:
        head = f"{self.task}: {self.headline} by share of the entries gone (dense {_text(self.dense, self.headline)})"
        width = max(len("method"), *(len(name) for name in self.methods))
        lines = [head, "  ".join([f"{'method':<{width}}", *(f"{rate:>15.0%}" for rate in self.rates)])]
        cells = {(c.method, c.rate): c for c in self.cells}
        for name in self.methods:
            row = (cells.get((name, rate)) for rate in self.rates)
            lines.append("  ".join([f"{name:<{width}}", *(f"{_text(c, self.headline):>15}" for c in row)]))
        lines += [f"{c.name} failed: {c.failed}" for c in self.failed]
        lines += [f"{c.name}: {c.flag}" for c in self.cells if c.flag]
        return "\n".join([*lines, *self.notes])


def _text(cell: Cell | None, score: str) -> str:
    if cell is None or score not in cell.scores:
        return "failed" if cell is not None and cell.failed else "–"
    figure = cell.scores[score]["all"]
    return f"{figure.value:.4g} ± {figure.error:.2g}" + ("*" if cell.flag else "")


def _cell(raw: dict) -> Cell:
    scores = {
        name: {
            half: Figure(_float(f["value"]), _float(f["error"]), {k: _gain(g) for k, g in f["gains"].items()})
            for half, f in halves.items()
        }
        for name, halves in raw["scores"].items()
    }
    counts = raw["counts"] and Counts(**raw["counts"] | {"missing": tuple(raw["counts"]["missing"])})
    more = {"scores": scores, "counts": counts, "seconds": tuple(raw["seconds"]), "notes": tuple(raw["notes"])}
    return Cell(**raw | more)


def _gain(raw: dict) -> Gain:
    return Gain(**{key: _float(x) for key, x in raw.items()})


def _float(x: float | None) -> float:
    return math.nan if x is None else x


def _finite(x):
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
