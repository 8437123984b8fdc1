"""What a sweep found: one cell a method and rate, with its scores, their errors and what was counted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..checkpoint import write_whole
from .counting import Counts
from .resampling import HALVES, Gain

SCHEMA = "spectrim.sweep/1"
ERRORS = 2.0  # standard errors above chance from which on a score tells one method from another


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
    so many `items` through the model.
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

    def counts_at(self, rate: float, score: str | None = None) -> bool:
        """Return whether some method is two standard errors better than chance at this rate.

        Where none is, differences between methods say nothing about them. Cells that are flagged have no say: a method
        that changed nothing is far above chance. True where no chance level is known.
        """
        score = score or self.headline
        info = self.scores[score]
        if info.chance is None:
            return True
        sign = 1 if info.better == "higher" else -1
        able = (c for c in self.cells if c.rate == rate and score in c.scores and not c.flag)
        figures = (c.scores[score]["all"] for c in able)
        return any(sign * (f.value - info.chance) > ERRORS * f.error for f in figures)

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

        return _finite({"schema": SCHEMA, "version": __version__} | asdict(self))

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Return the sweep as JSON, and write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            write_whole(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Sweep:
        """Return the sweep in a file. ValueError where it is none."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        told = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        if told != SCHEMA:
            raise ValueError(f"{path} is not a sweep of schema {SCHEMA!r} (found {told!r})")
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
