"""The survey of a model: for every weight matrix its spectrum, and where the noise ends in it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, of_state, open_checkpoint, write_whole
from .edges import Bema
from .haar import departures, structured
from .linalg import shared_out, svd, without_zero_lines
from .metrics import bulk_share
from .modules import of_module
from .names import of_checkpoint
from .reading import read_equalised, read_spectrum
from .sites import Inventory, Site, Skipped
from .spectrum import NoiseFit, Spectrum
from .verdict import Verdict, judge

if TYPE_CHECKING:
    from .plan import Plan

Edge = Callable[[Spectrum], NoiseFit]
Model = nn.Module | str | os.PathLike | Mapping[str, Tensor]
SCHEMA = "spectrim.survey/1"
SMALL = 1 << 22  # entries of a matrix that one thread judges while others judge the next ones: 2048 x 2048
Progress = Callable[[Iterable[Site]], Iterable[Site]]
EVEN = 1e-3  # how far row and column mean squares may differ once they are evened out


@dataclass(frozen=True)
class Reading:
    """What one weight matrix showed, or why it showed nothing.

    `fit` is the default verdict, on `spectrum` (equalised unless the survey was told otherwise); `plain` is the verdict
    without equalisation, on `plain_spectrum`. `params` counts the numbers stored now, `item` the bytes of one of them.
    `structured` are the positions in `spectrum` (0 is the largest) of values in the bulk whose vectors are not random,
    where the survey looked at vectors; `uneven` is how far rows and columns still differ where they could not be evened
    out.
    """

    name: str
    kind: str
    rows: int
    cols: int
    spectrum: Spectrum | None = None
    fit: NoiseFit | None = None
    plain: NoiseFit | None = None
    zero_rows: int = 0
    zero_cols: int = 0
    note: str = ""
    plain_spectrum: Spectrum | None = field(default=None, repr=False)
    params: int = 0
    item: int = 4
    fingerprint: str = ""
    skipped: bool = False
    splittable: bool = True
    structured: tuple[int, ...] | None = None
    uneven: float | None = None

    @cached_property
    def verdict(self) -> Verdict | None:
        """What to make of this matrix, with several estimators side by side; None where there is no fit."""
        return None if self.fit is None else judge(self.spectrum, self.fit, uneven=self.uneven)

    @cached_property
    def low(self) -> int | None:
        """How many values lie below the lower edge of the noise, or None where there is no fit or no noise level."""
        return None if self.fit is None or self.fit.sigma is None else departures(self.spectrum, self.fit)

    @property
    def small(self) -> tuple[int, ...]:
        """The positions in `structured` that lie below the lower edge of the noise: small, and no noise."""
        return tuple(i for i in self.structured or () if i >= len(self.spectrum.s) - (self.low or 0))

    @property
    def bulk_share(self) -> float | None:
        """Share of the singular values below the edge, in [0, 1], or None where there is no fit."""
        return None if self.fit is None else bulk_share(self.spectrum, self.fit.edge)

    def to_dict(self) -> dict:
        """Return the figures of this reading as they stand in the survey file."""
        return {
            "name": self.name,
            "kind": self.kind,
            "rows": self.rows,
            "cols": self.cols,
            **figures_of(self.fit),
            "edge_interval": list(self.fit.edge_interval) if self.fit and self.fit.edge_interval else None,
            "bulk_share": self.bulk_share,
            "method": self.fit.method if self.fit else None,
            "plain": figures_of(self.plain) if self.plain else None,
            "params": self.params,
            "zero_rows": self.zero_rows,
            "zero_cols": self.zero_cols,
            "skipped": self.skipped,
            "fingerprint": self.fingerprint or None,
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "structured": None if self.structured is None else list(self.structured),
            "note": self.note,
        }


def figures_of(fit: NoiseFit | None) -> dict:
    """Return the four figures of a fit as they stand in every file, all None where there is no fit."""
    return {key: getattr(fit, key, None) for key in ("sigma", "edge", "spikes", "misfit")}


@dataclass(frozen=True)
class Survey:
    """The readings of all tensors of a model, in its order; skipped ones carry their reason and count in no total."""

    model: str
    readings: tuple[Reading, ...]
    params: int
    bytes: int
    edge: str
    equalised: bool
    seconds: float
    source: object = field(default=None, repr=False, compare=False)
    fused: str = "split"

    @property
    def matrices(self) -> tuple[Reading, ...]:
        """The readings of weight matrices, those without a fit included."""
        return tuple(r for r in self.readings if not r.skipped)

    @property
    def fitted(self) -> tuple[Reading, ...]:
        """The readings that have a verdict."""
        return tuple(r for r in self.readings if r.fit is not None)

    @property
    def fingerprint(self) -> str:
        """A hash over the names and values of all weight matrices."""
        return hash_of((r.name, r.fingerprint) for r in self.matrices)

    @property
    def totals(self) -> dict:
        """Counts over the fitted matrices: matrices, params, values, spikes, plain spikes, bulk share."""
        values = sum(r.spectrum.p for r in self.fitted)
        spikes = sum(r.fit.spikes for r in self.fitted)
        return {
            "matrices": len(self.matrices),
            "fitted": len(self.fitted),
            "skipped": len(self.readings) - len(self.matrices),
            "params": sum(r.params for r in self.fitted),
            "values": values,
            "spikes": spikes,
            "plain_spikes": sum(r.plain.spikes for r in self.fitted if r.plain),
            "bulk_share": 1 - spikes / values if values else None,
        }

    def to_dict(self) -> dict:
        """Return the survey as its file holds it."""
        from . import __version__

        return {
            "schema": SCHEMA,
            "version": __version__,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "params": self.params,
            "bytes": self.bytes,
            "edge": self.edge,
            "equalised": self.equalised,
            "seconds": round(self.seconds, 3),
            "totals": self.totals,
            "readings": [r.to_dict() for r in self.readings],
        }

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Return the survey as JSON, and write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            write_whole(path, text + "\n")
        return text

    def to_html(self, path: str | os.PathLike, plan: Plan | None = None, **more) -> Path:
        """Write the report to `path`, one self-contained HTML file, and return the path."""
        from .report import write_html

        return Path(write_html(path, survey=self, plan=plan, **more))

    def __str__(self) -> str:
        lines = [f"{self.model}: {_sentence(self.totals)}"]
        for r in self.matrices:
            if r.fit is None:
                lines.append(f"  {r.name:<48} {r.rows} x {r.cols}: {r.note}")
            else:
                plain = r.plain.spikes if r.plain else "-"
                misfit = "-" if r.fit.misfit is None else f"{r.fit.misfit:.3f}"
                sigma = "-" if r.fit.sigma is None else f"{r.fit.sigma:.4g}"
                lines.append(
                    f"  {r.name:<48} {r.rows} x {r.cols}: {r.fit.spikes} spikes above {r.fit.edge:.4g} "
                    f"(sigma {sigma}, misfit {misfit}, plain {plain}): {r.verdict.kind}"
                )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _sentence(totals: dict) -> str:
    if not totals["fitted"]:
        return f"none of its {totals['matrices']} matrices has a verdict"
    return (
        f"{totals['fitted']} of {totals['matrices']} matrices judged; {totals['spikes']} of {totals['values']} "
        f"singular values ({1 - totals['bulk_share']:.1%}) stand above the noise edge; {totals['skipped']} skipped"
    )


def survey(
    model: Model,
    edge: Edge | None = None,
    *,
    equalize: bool = True,
    fused: str = "split",
    vectors: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Return the `Survey` of a model: every weight matrix with its spectrum, its noise level and its spikes.

    Args:
        model: a live module; the path of a folder or file of safetensors, of a transformers folder or of a state dict
            saved by torch; or a dict of matrices.
        edge: the estimator that separates noise from signal; `Bema()` unless told otherwise.
        equalize: judge each matrix with its row and column scales evened out, and keep the plain verdict beside it.
        fused: how weights that hold several matrices are read: "split" (q, k, v; gates), "whole" or "heads".
        vectors: look at the singular vectors too, and record which directions of the bulk are not random (slower).
        progress: wraps the iteration over the sites, for instance `tqdm`.

    A matrix that cannot be judged (NaN, all zero, too small) is recorded with the reason, and the survey goes on.

    Example:
        >>> import torch, spectrim
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        >>> [reading.name for reading in spectrim.survey(net).matrices]
        ['0', '2']
    """
    start = time.perf_counter()
    edge = Bema() if edge is None else edge
    if isinstance(edge, type) or not callable(edge):
        raise TypeError(f"edge is an estimator such as Bema(), a function of a Spectrum, not {edge!r}")
    source = open_model(model)
    found = inventory(source, fused)
    readings = _read_all(found.sites, _How(edge, equalize, vectors), progress or iter)
    readings += [_skip(skipped) for skipped in found.skipped]
    return Survey(
        model=found.label,
        readings=tuple(readings),
        params=found.params,
        bytes=found.bytes,
        edge=getattr(edge, "__qualname__", None) or repr(edge),  # a function's repr would hold its address
        equalised=equalize,
        seconds=time.perf_counter() - start,
        source=source,
        fused=fused,
    )


def open_model(model: Model | Checkpoint) -> nn.Module | Checkpoint:
    """Return what `survey` and `trim` read: the module itself, or the checkpoint at a path or over a dict."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("a scripted module is compiled: survey the module that it was made of, or its state_dict()")
    if isinstance(model, nn.Module | Checkpoint):
        return model
    if isinstance(model, str | os.PathLike):
        return open_checkpoint(model)
    if isinstance(model, Mapping):
        if not model:
            raise ValueError("the dict of matrices is empty")
        return of_state(model)
    raise TypeError(f"expected a module, a path or a dict of matrices, not {type(model).__name__}")


def inventory(source: nn.Module | Checkpoint, fused: str = "split") -> Inventory:
    """Return the sites of what `open_model` returned."""
    return of_module(source, fused) if isinstance(source, nn.Module) else of_checkpoint(source, fused)


def hash_of(matrices: Iterable[tuple[str, str]]) -> str:
    """Return the hash that stands for a model: over the names and fingerprints of its matrices, in any order."""
    return hashlib.sha256("\n".join(sorted(" ".join(pair) for pair in matrices)).encode()).hexdigest()


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256 of a matrix as it is stored: dtype, shape and entries, row by row, of each of its tensors."""
    digest = hashlib.sha256()
    for W in tensors:
        W = W.detach().cpu().contiguous()
        digest.update(f"{W.dtype} {tuple(W.shape)}".encode())
        digest.update(W.view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class _How:
    """What a survey was asked to do with each matrix."""

    edge: Edge
    equalize: bool
    vectors: bool


def _skip(skipped: Skipped) -> Reading:
    rows = skipped.shape[0] if skipped.shape else 1
    cols = torch.Size(skipped.shape[1:]).numel()
    return Reading(
        skipped.name, skipped.kind, rows, cols, note=skipped.reason, params=rows * cols, skipped=True, splittable=False
    )


def _read_all(sites: tuple[Site, ...], how: _How, progress: Progress) -> list[Reading]:
    """The readings in the order of the sites. Small matrices are shared out, one thread each; large ones take them all.

    Tensors are fetched here, so that a file is read by one thread and never more than a few matrices are in memory.
    """
    workers = torch.get_num_threads()
    small = [i for i, site in enumerate(sites) if workers > 1 and site.rows * site.cols <= SMALL]
    large = sorted(set(range(len(sites))) - set(small))
    position = {id(site): i for i, site in enumerate(sites)}
    stream = iter(progress([sites[i] for i in (*small, *large)]))
    readings: dict[int, Reading] = {}
    if small:
        first = islice(stream, len(small))
        for site, reading in shared_out(first, lambda site: partial(_read, site, _fetched(site), how), workers):
            readings[position[id(site)]] = reading
    for site in stream:
        readings[position[id(site)]] = _read(site, _fetched(site), how)
    return [readings[i] for i in range(len(sites))]


def _fetched(site: Site) -> tuple[Tensor, ...] | Exception:
    """The tensors of a site, or what kept them from being read: one bad layer does not end a survey."""
    try:
        return site.stored()
    except (ValueError, RuntimeError, OSError) as error:
        return error


def _read(site: Site, stored: tuple[Tensor, ...] | Exception, how: _How) -> Reading:
    if isinstance(stored, Exception):
        about = {"params": site.params, "splittable": False, "note": f"it could not be read: {stored}"}
        return Reading(site.name, site.kind, site.rows, site.cols, **about)
    W = stored[0] if len(stored) == 1 else stored[0] @ stored[1]
    notes = [site.note] if site.note else []
    known = {
        "name": site.name,
        "kind": site.kind,
        "rows": site.rows,
        "cols": site.cols,
        "params": site.params,
        "item": W.element_size(),
        "fingerprint": fingerprint(*stored),
        "splittable": site.split is not None,
    }
    plain, cut = None, site.pair_rank is not None and site.pair_rank < min(site.rows, site.cols)
    try:
        plain_spectrum = read_spectrum(W, notes=notes)
        if cut:
            plain_spectrum = plain_spectrum.largest(site.pair_rank)
            notes.append(f"a pair: judged by the {site.pair_rank} values that a cut has left, as it is")
        plain = _asked(how.edge, plain_spectrum)
        if not how.equalize or cut:  # what is left of noise is no longer even over rows and columns
            if how.vectors:
                known["structured"] = _structured(W, plain_spectrum, plain, notes)
            return Reading(**known, spectrum=plain_spectrum, fit=plain, note="; ".join(notes), **_zero_lines(W))
        spectrum, even = read_equalised(W, how.edge, EVEN, notes)
        fit = _asked(how.edge, spectrum)
        if how.vectors:
            known["structured"] = _structured(even.apply(W), spectrum, fit, notes)
        if even.uneven > 2 * EVEN:  # many structural zeros, as in a triangular matrix
            known["uneven"] = even.uneven
            notes.append(f"its rows and columns cannot be evened out: mean squares differ by {even.uneven:.0%}")
    except (ValueError, ArithmeticError, RuntimeError, LookupError, TypeError) as error:
        if plain is not None:
            notes.append("judged without equalisation, which failed")
            known |= {"spectrum": plain_spectrum, "fit": plain, "plain": plain, "plain_spectrum": plain_spectrum}
            known |= _zero_lines(W)
        notes.append(str(error) if isinstance(error, ValueError | RuntimeError) else repr(error))
        return Reading(**known, note="; ".join(notes))
    if fit.spikes > spectrum.p // 2 and spectrum.complete:
        notes.append("more than half of its values stand above the edge: sigma is an upper bound")
    return Reading(
        **known,
        spectrum=spectrum,
        fit=fit,
        plain=plain,
        plain_spectrum=plain_spectrum,
        zero_rows=len(even.zero_rows),
        zero_cols=len(even.zero_cols),
        note="; ".join(dict.fromkeys(notes)),
    )


def _asked(edge: Edge, spectrum: Spectrum) -> NoiseFit:
    """The estimator's answer, if it is one: a user's own may return anything."""
    fit = edge(spectrum)
    figures = (
        (fit.edge, fit.sigma, fit.misfit, *(fit.edge_interval or ())) if isinstance(fit, NoiseFit) else (math.nan,)
    )
    if not all(x is None or math.isfinite(x) for x in figures) or fit.edge is None:
        raise ValueError(f"the estimator has no finite edge for it: {fit!r}")
    return fit


def _structured(W: Tensor, spectrum: Spectrum, fit: NoiseFit, notes: list[str]) -> tuple[int, ...]:
    factors = svd(without_zero_lines(W)[0], notes).truncate(len(spectrum.s))
    return structured(spectrum, fit, factors.U.cpu().numpy(), factors.Vh.cpu().numpy())


def _zero_lines(W: Tensor) -> dict[str, int]:
    there = W != 0
    return {"zero_rows": int((~there.any(1)).sum()), "zero_cols": int((~there.any(0)).sum())}
