"""Every estimator on every matrix of a survey: what each says, whether they agree, and how much hangs on a setting."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np

from . import scores
from .edges import Bema, from_repr
from .readings import Edge, Reading, figures_of
from .spectrum import NoiseFit, Spectrum
from .survey import Survey, inventory
from .verdict import NOISE, PANEL, Verdict, judge
from .writing import write_whole

SCHEMA = "spectrim.edges/1"
ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
BETAS = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
POINTS = 160  # of a score curve at most: all ranks up to a half of them, and then ever wider steps
Progress = Callable[[Iterable[Reading]], Iterable[Reading]]


@dataclass(frozen=True)
class Row:
    """One matrix: its reading, its verdict (None where there is no fit), and what each estimator found or refused."""

    reading: Reading
    verdict: Verdict | None = None
    fits: Mapping[str, NoiseFit] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Return the reading as the survey file holds it, with `estimators` and `verdict` beside its figures."""
        told = {name: figures(fit) for name, fit in self.fits.items()}
        told |= {name: figures(None) | {"refused": reason} for name, reason in self.refused.items()}
        low = {} if self.reading.structured is None else {"low": self.reading.low}
        return self.reading.to_dict() | {"estimators": told, "verdict": self.verdict and self.verdict.to_dict(), **low}


@dataclass(frozen=True)
class Curves:
    """How an edge moves with BEMA's two settings, and two scores of every number of values kept.

    `alpha` and `beta` hold (setting, edge, spikes), the other setting as chosen. `ranks` are numbers of largest values
    kept; `average` is Ave_w(phi) there and `gain` the functional that peaks, as a share of the squared norm.
    """

    alpha: tuple[tuple[float, float, int], ...]
    beta: tuple[tuple[float, float, int], ...]
    chosen: tuple[float, float]
    ranks: tuple[int, ...] = ()
    average: tuple[float, ...] = ()
    gain: tuple[float, ...] = ()
    peak: int | None = None
    knee: int | None = None


@dataclass(frozen=True)
class Comparison:
    """A survey and, for each of its matrices in the same order, what every estimator says."""

    survey: Survey
    rows: tuple[Row, ...]
    seconds: float

    @property
    def estimators(self) -> tuple[str, ...]:
        """The names of the estimators; the one that the survey used is the first."""
        return tuple(dict.fromkeys(name for row in self.rows for name in (*row.fits, *row.refused)))

    @property
    def totals(self) -> dict:
        """Counts over the matrices: kinds of verdict, median agreement, spikes by estimator, and who stands apart.

        `spikes` are summed over the matrices for which every estimator has an edge, `compared` of them: sums over
        unequal sets could not be compared. One that has an edge for none of them is left out. `apart` counts, for
        each estimator of the noise's edge, the matrices in which it lies furthest from their median, by ratio; where
        all lie within one per cent it counts for nobody.
        """
        judged = [row for row in self.rows if row.verdict is not None]
        agreements = [row.verdict.agreement for row in judged if row.verdict.agreement is not None]
        apart = Counter(name for row in judged if (name := furthest(row.fits)) is not None)
        able = [name for name in self.estimators if any(name in row.fits for row in judged)]
        common = [row for row in judged if all(name in row.fits for name in able)]
        return {
            "matrices": len(self.survey.matrices),
            "judged": len(judged),
            "kinds": dict(Counter(row.verdict.kind for row in judged).most_common()),
            "agreement": median(agreements) if agreements else None,
            "compared": len(common),
            "spikes": {name: sum(row.fits[name].spikes for row in common) for name in able} if common else {},
            "refused": {name: k for name in self.estimators if (k := sum(name in row.refused for row in judged))},
            "apart": dict(apart.most_common()),
        }

    def curves(self, progress: Progress | None = None) -> dict[str, Curves]:
        """Return the curves of each matrix that has a fit, by its name: some twenty fits a matrix."""
        return {r.name: curves(r) for r in (progress or iter)(self.survey.fitted)}

    def to_dict(self) -> dict:
        """Return the comparison as its file holds it: the survey's fields, and more in each reading."""
        told = {row.reading.name: row for row in self.rows}
        readings = [told[r.name].to_dict() if r.name in told else r.to_dict() for r in self.survey.readings]
        more = {"schema": SCHEMA, "estimators": list(self.estimators), "comparison": self.totals}
        return self.survey.to_dict() | more | {"readings": readings}

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Return the comparison as JSON, and write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            write_whole(path, text + "\n")
        return text

    def to_html(self, path: str | os.PathLike, *, progress: Progress | None = None, **more) -> Path:
        """Write the report to `path`, with every edge and how it depends on its settings, and return the path."""
        from .report import write_html

        return Path(write_html(path, survey=self.survey, comparison=self, curves=self.curves(progress), **more))

    def __str__(self) -> str:
        lines = [f"{self.survey.model}: {sentence(self)}"]
        for row in self.rows:
            name, verdict = row.reading.name, row.verdict
            if verdict is None:
                lines.append(f"  {name:<48} {row.reading.note or 'no verdict'}")
                continue
            counts = ", ".join(f"{key} {fit.spikes}" for key, fit in row.fits.items())
            lines.append(f"  {name:<48} {verdict.kind}: {counts}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def compare(
    found: Survey,
    panel: Mapping[str, Edge] | None = None,
    *,
    slow: bool = False,
    generator: np.random.Generator | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Return the `Comparison` of a survey: every estimator of the panel on the spectra that the survey has measured.

    No spectrum is computed again, except for the shuffled null of `slow`.

    Args:
        found: the survey.
        panel: estimators by name; those of `verdict.PANEL` unless told.
        slow: also `BemaGamma` and the edge built on the shuffled matrix: seconds a matrix, and the matrices are read
            anew. They stand beside the verdict and take no part in it.
        generator: shuffles the entries; one that starts from 0 unless told.
        progress: wraps the iteration over the readings, for instance `tqdm`.

    Example:
        >>> import spectrim, torch
        >>> W = torch.randn(60, 90, generator=torch.Generator().manual_seed(0))
        >>> told = compare(spectrim.survey({"noise": W}))
        >>> told.rows[0].verdict.kind, told.estimators[0]
        ('noise-like', 'bema')
    """
    start = time.perf_counter()
    if not isinstance(found, Survey):
        kind = type(found).__name__
        raise TypeError(f"a comparison is made from a survey, not from a {kind}: compare(survey(model), ...)")
    if panel is not None and not (isinstance(panel, Mapping) and all(map(callable, panel.values()))):
        raise TypeError(
            'a panel is a mapping of names to estimators, such as {"narrow": Bema(0.3), "wide": Bema(0.1)}, '
            f"not {panel!r}"
        )
    if slow and found.source is None:
        raise ValueError("the slow estimators need the matrices themselves: compare a survey made in this process")
    sites = {site.name: site for site in inventory(found.source, found.fused).sites} if slow else {}
    generator = generator or np.random.default_rng(0)
    panel = _with_own(found.edge) if panel is None else panel
    rows = []
    for r in (progress or iter)(found.matrices):
        if r.fit is None:
            rows.append(Row(r))
            continue
        verdict = r.verdict if panel is None else judge(r.spectrum, r.fit, panel)
        row = Row(r, verdict, own_first(r.fit, verdict.fits), dict(verdict.refused))
        rows.append(_slowly(row, sites[r.name].get(), found.equalised, generator) if slow else row)
    return Comparison(found, tuple(rows), time.perf_counter() - start)


def _with_own(text: str) -> Mapping[str, Edge] | None:
    """The usual panel with the survey's estimator as it was set; None where it is the usual one, or the user's own."""
    try:
        own = from_repr(text)
    except ValueError:
        return None
    panel = {name: own if type(edge) is type(own) else edge for name, edge in PANEL.items()}
    return None if panel == dict(PANEL) else panel


def _slowly(row: Row, W, equalise: bool, generator: np.random.Generator) -> Row:
    from .edges import BemaGamma
    from .nulls import against, shuffled

    fits, refused, r = dict(row.fits), dict(row.refused), row.reading
    own = _chosen(r.fit.method)
    members = {
        "bema-gamma": lambda: BemaGamma(own.alpha, own.beta)(r.spectrum),
        "shuffled": lambda: against(r.spectrum, shuffled(W, generator, equalize=equalise), own),
    }
    for name, run in members.items():
        try:
            fits[name] = run()
        except (ValueError, ArithmeticError, RuntimeError) as error:
            refused[name] = str(error)
    return replace(row, fits=fits, refused=refused)


def own_first(fit: NoiseFit, fits: Mapping[str, NoiseFit]) -> dict[str, NoiseFit]:
    """Return the fits with the survey's own in the first place: under its name in the panel, else that of its class.

    Example:
        >>> own, other = NoiseFit(1.0, 2.0, None, None, 3, "Bema(0.3)"), NoiseFit(1.0, 2.1, None, None, 2, "Bema(0.2)")
        >>> list(own_first(own, {"median": other, "mine": own})), list(own_first(own, {"bema": other}))
        (['mine', 'median'], ['survey', 'bema'])
    """
    named = next((name for name, other in fits.items() if other.method == fit.method), None)
    of_class = fit.method.partition("(")[0].lower()
    name = named or (of_class if of_class and of_class not in fits else "survey")
    return {name: fit} | {key: other for key, other in fits.items() if key != name}


def furthest(fits: Mapping[str, NoiseFit]) -> str | None:
    """Return which estimator of the noise's edge lies furthest, by ratio, from their median; None within 1 per cent.

    Example:
        >>> edges = {"bema": 2.0, "median": 2.02, "broadening": 3.0, "screenot": 9.0}
        >>> furthest({name: NoiseFit(1.0, edge, None, None, 0, name) for name, edge in edges.items()})
        'broadening'
    """
    found = {name: fit.edge for name, fit in fits.items() if name in NOISE}
    if len(found) < 3:  # two cannot say which of them stands apart
        return None
    middle = median(found.values())
    away = {name: abs(np.log(edge / middle)) for name, edge in found.items()}
    name = max(away, key=away.get)
    return name if away[name] > 0.01 else None


def figures(fit: NoiseFit | None) -> dict:
    """Return the figures of one estimator as they stand in the file, all None where it refused."""
    interval = list(fit.edge_interval) if fit and fit.edge_interval else None
    return figures_of(fit) | {"edge_interval": interval, "method": fit.method if fit else None}


def sentence(comparison: Comparison) -> str:
    """Return in one sentence how many matrices got which verdict, and how far the estimators agree."""
    t = comparison.totals
    if not t["judged"]:
        return f"none of its {t['matrices']} matrices has a verdict"
    kinds = ", ".join(f"{k} {kind}" for kind, k in t["kinds"].items())
    agreed = "" if t["agreement"] is None else f"; median agreement {t['agreement']:.0%}"
    apart = next(iter(t["apart"].items()), None)
    who = f"; {apart[0]} most often stands apart, in {apart[1]}" if apart else ""
    return f"{t['judged']} of {t['matrices']} matrices judged: {kinds}{agreed}{who}"


def curves(reading: Reading) -> Curves:
    """Return how the edge of this reading depends on BEMA's settings, and its scores against rank.

    The settings that are held are those of the reading's own fit if that is BEMA's, else its defaults.
    """
    spectrum, fit = reading.spectrum, reading.fit
    chosen = _chosen(fit.method)

    def scan(settings: Iterable[float], made: Callable[[float], Bema]) -> tuple[tuple[float, float, int], ...]:
        found = []
        for x in settings:
            try:
                told = made(x)(spectrum)
            except (ValueError, ArithmeticError):
                continue
            found.append((x, told.edge, told.spikes))
        return tuple(found)

    return Curves(
        alpha=scan(sorted({*ALPHAS, chosen.alpha}), lambda x: Bema(x, chosen.beta)),
        beta=scan(sorted({*BETAS, chosen.beta}), lambda x: Bema(chosen.alpha, x)),
        chosen=(chosen.alpha, chosen.beta),
        **(_scored(spectrum, fit.sigma) if fit.sigma else {}),
    )


def _chosen(method: str) -> Bema:
    try:
        own = from_repr(method)
    except ValueError:
        return Bema()
    return own if isinstance(own, Bema) else Bema()


def _scored(spectrum: Spectrum, sigma: float) -> dict:
    average, gain = scores.average(spectrum, sigma), scores.gain(spectrum, sigma)
    half = np.arange(1, POINTS // 2 + 1)
    far = np.geomspace(POINTS // 2, max(len(spectrum.s), POINTS // 2), POINTS // 2).round().astype(int)
    ranks = np.unique(np.concatenate([half, far]))
    ranks = ranks[ranks <= len(spectrum.s)]
    return {
        "ranks": tuple(ranks.tolist()),
        "average": tuple(average[ranks - 1].tolist()),
        "gain": tuple((gain[ranks - 1] / float(np.sum(spectrum.s**2))).tolist()),
        "peak": scores.peak(gain),
        "knee": scores.knee(average),
    }
