"""One matrix of a model looked at: its spectrum, where the noise ends in it, or why it showed nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .haar import departures, structured
from .linalg import svd, without_zero_lines
from .metrics import bulk_share
from .reading import read_equalised, read_spectrum
from .sites import Site, Skipped
from .spectrum import NoiseFit, Spectrum
from .verdict import Verdict, judge

Edge = Callable[[Spectrum], NoiseFit]
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


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256 of a matrix as it is stored: dtype, shape and entries, row by row, of each of its tensors."""
    digest = hashlib.sha256()
    for W in tensors:
        W = W.detach().cpu().contiguous()
        digest.update(f"{W.dtype} {tuple(W.shape)}".encode())
        digest.update(W.view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Look:
    """What a survey was asked to do with each matrix."""

    edge: Edge
    equalize: bool
    vectors: bool
    approximate: bool = False


def skipped(tensor: Skipped) -> Reading:
    """Return the reading of a tensor that is no weight matrix, which has the reason and no figures."""
    rows = tensor.shape[0] if tensor.shape else 1
    cols = torch.Size(tensor.shape[1:]).numel()
    about = {"note": tensor.reason, "params": rows * cols, "skipped": True, "splittable": False}
    return Reading(tensor.name, tensor.kind, rows, cols, **about)


def fetched(site: Site) -> tuple[Tensor, ...] | Exception:
    """The tensors of a site, or what kept them from being read: one bad layer does not end a survey."""
    try:
        return site.stored()
    except (ValueError, RuntimeError, OSError) as error:
        return error


def read_site(
    site: Site, stored: tuple[Tensor, ...] | Exception, how: Look, device: torch.device | None = None
) -> Reading:
    """Return the reading of a matrix: with its verdicts, or with the reason why there is none.

    Args:
        site: where it stands.
        stored: its tensors, as `fetched` returned them.
        how: what is asked of it.
        device: where it was to be decomposed.
    """
    if isinstance(stored, Exception):
        about = {"params": site.params, "splittable": False, "note": f"it could not be read: {stored}"}
        return Reading(site.name, site.kind, site.rows, site.cols, **about)
    W = stored[0] if len(stored) == 1 else stored[0] @ stored[1]
    notes = [site.note] if site.note else []
    if device is not None and W.device.type != device.type:
        notes.append(f"{device} had no room for it: it was read on the CPU instead")
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
        plain_spectrum = read_spectrum(W, notes=notes, approximate=how.approximate, edge=how.edge)
        if cut:
            plain_spectrum = plain_spectrum.largest(site.pair_rank)
            notes.append(f"a pair: judged by the {site.pair_rank} values that a cut has left, as it is")
        plain = _asked(how.edge, plain_spectrum)
        if not how.equalize or cut:  # what is left of noise is no longer even over rows and columns
            if how.vectors:
                known["structured"] = _structured(W, plain_spectrum, plain, notes)
            return Reading(**known, spectrum=plain_spectrum, fit=plain, note="; ".join(notes), **_zero_lines(W))
        spectrum, even = read_equalised(W, how.edge, EVEN, notes, approximate=how.approximate)
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
