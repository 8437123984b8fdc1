"""Entries that cut ranks: which values each matrix keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..budgets import candidates as targets_of
from ..budgets.ranks import Candidate, allocate
from ..cut import ranked
from ..entries import Basis, Entry
from ..inner.whiten import whitened_values
from ..moments import Moments
from ..readings import Reading
from ..sites import READ_ONLY
from ..survey import Survey
from .by_error import largest
from .entry import entry_of, errors, kept, lost, why_not


class _Ordered(NamedTuple):
    """A matrix that may be split, its values in the order in which they are kept: spikes, structured, other bulk."""

    candidate: Candidate
    order: tuple[int, ...]
    spikes: int

    def also(self, k: int) -> tuple[int, ...]:
        """The positions among k values kept that are not the largest ones of all."""
        chosen = set(self.order[:k])
        top = next(i for i in range(k + 1) if i not in chosen)
        return tuple(sorted(i for i in chosen if i > top))


def _candidates(found: Survey, basis: Basis, dense: bool, closed: dict[str, str]) -> dict[str, _Ordered]:
    chosen = {}
    for r in found.fitted:
        if (r.splittable or dense) and r.kind != READ_ONLY and r.name not in closed:
            plain = basis == "plain" and r.plain_spectrum is not None
            spectrum, fit = (r.plain_spectrum, r.plain) if plain else (r.spectrum, r.fit)
            first = [*range(fit.spikes), *(() if plain and r.spectrum.equalised else r.small)]
            order = (*first, *sorted(set(range(len(spectrum.s))) - set(first)))
            s = spectrum.s[np.array(order, int)]
            chosen[r.name] = _Ordered(
                Candidate(r.rows, r.cols, r.params, s, len(first), r.rows * r.cols), order, fit.spikes
            )
    return chosen


def ranks(
    found: Survey, share: float, basis: Basis, dense: bool, closed: dict[str, str]
) -> tuple[list[Entry], list[str]]:
    """Return the entries that cut ranks by the matrices' own values, all bulk before any spike, and notes.

    Args:
        found: a survey.
        share: of the numbers stored that stay, in (0, 1].
        basis: "plain" or "equalised".
        dense: rebuild in place instead of splitting.
        closed: matrices that must stay as they are, with the reason.
    """
    ordered = _candidates(found, basis, dense, closed)
    values = _allocated(found, {name: o.candidate for name, o in ordered.items()}, share)
    readings = {r.name: r for r in found.matrices}
    notes = []
    entries = {name: _rank_entry(readings[name], o, values[name], basis, dense) for name, o in ordered.items()}
    cut = sum(e.spikes_cut for e in entries.values())
    if cut:
        notes.append(f"the target lies below the noise: {cut} spikes are cut too, the smallest first")
    small = sum(len(r.small) for r in found.fitted)
    if small and basis == "plain" and found.equalised:
        notes.append(
            f"{small} small directions that are not random were found in the equalised matrices; a cut in the plain "
            "basis does not know them: basis='equalised' (--basis equalised) keeps them"
        )
    return [entries.get(r.name) or kept(r, closed.get(r.name) or why_not(r)) for r in found.matrices], notes


def whitened(
    found: Survey,
    share: float | None,
    dense: bool,
    moments: Moments,
    error: float | None = None,
    first: Mapping[str, int] | None = None,
) -> tuple[float, list[Entry], list[str]]:
    """Return the share of the numbers stored that stays, the entries that cut ranks with moments, and notes.

    The values are those of W L, C = L L^T, and the damage that is least in total the sum over matrices of rows cols
    tr((W - W') C (W - W')^T) / tr(W C W^T); with weights of the outputs, those of diag(s)^1/2 W L, and the sum of
    tr(diag(s) (W - W') C (W - W')^T), which is what the model's output has of it. No law of noise is asked: W L has
    none.

    Args:
        found: a survey that still knows its model.
        share: of the numbers stored that stay, in (0, 1]; or None.
        dense: rebuild in place instead of splitting.
        moments: of the inputs; a matrix that has none is cut by its own values.
        error: of the model, with moments whose outputs are weighed; as much is cut as it allows.
        first: how many values of a matrix stay while any other value can go, such as those above `inner.edge`.
    """
    first = first or {}
    targets = {t.name: t for t in targets_of(found) if t.reading.splittable or dense}
    lacking = {name: why for name in targets if (why := moments.lacking(name, targets[name].reading.cols))}
    found_values = {}
    for name, t in targets.items():
        moment = None if name in lacking else moments[name]
        found_values[name] = whitened_values(t.stored()[0], moment).cpu().numpy()
    weighed = {name for name in found_values if name not in lacking and name in moments.rows}
    weights = _weights({name: t.reading for name, t in targets.items()}, found_values, weighed)
    ready = {
        name: Candidate(
            t.reading.rows, t.reading.cols, t.reading.params, found_values[name], first.get(name, 0), weights[name]
        )
        for name, t in targets.items()
    }
    if error is not None:
        share = _allowed(found, ready, error, weighed)
    values = _allocated(found, ready, share)
    entries = {}
    for name, c in ready.items():
        r, k = targets[name].reading, values[name]
        if not c.pays(k):
            even = r.rows * r.cols / c.side
            why = f"nothing of it had to go; a split pays below {even:.0f} of its {len(c.s)} values"
            entries[name] = kept(r, why, r.fit.spikes)
            continue
        W, moment = targets[name].stored()[0], None if name in lacking else moments[name]
        new = ranked(W, k, moment=moment).dense()
        why = f"keeps {k} of {len(c.s)} values in the inner product of its inputs"
        if moment is None:
            why = f"keeps {k} of {len(c.s)} values, its own: {lacking[name]}"
        entries[name] = entry_of(
            r,
            action="dense" if dense else "split",
            rank=k,
            basis="plain" if moment is None else "moments",
            params_after=r.params if dense else k * c.side,
            macs_after=r.params if dense else k * c.side,
            damage=lost(W, new),
            spikes=r.fit.spikes,
            reason=why,
            **errors(W, new, moment),
        )
    notes = [f"{len(lacking)} matrices have no moments and are cut by their own values"] if lacking else []
    return share, [entries.get(r.name) or kept(r, why_not(r)) for r in found.matrices], notes


def _weights(readings: dict[str, Reading], values: dict[str, np.ndarray], weighed: set[str]) -> dict[str, float]:
    """What the whole of each matrix counts: its part of the output, or what is usual for its size if none is known."""
    sizes = {name: float(r.rows * r.cols) for name, r in readings.items()}
    energy = {name: float((values[name] ** 2).sum()) for name in weighed}
    usual = float(np.median([energy[name] / sizes[name] for name in weighed])) if weighed else 1.0
    return {name: energy.get(name, usual * size) for name, size in sizes.items()}


def _allowed(found: Survey, ready: dict[str, Candidate], error: float, weighed: set[str]) -> float:
    """The share that stays where as much is cut as an error of the model allows; 1 where nothing can be."""

    def cost(gone: float) -> float:
        values = _allocated(found, ready, 1 - gone)
        tails = [ready[n].s[values[n] :] for n in weighed if ready[n].pays(values[n])]
        return math.sqrt(sum(float((tail**2).sum()) for tail in tails))

    gone = largest(cost, error, high=1 - _least(ready))
    if not gone:
        raise ValueError(f"error={error:g} is out of reach: the least cut of ranks costs more of the model's output")
    return 1 - gone


def _least(ready: dict[str, Candidate]) -> float:
    """The share of the numbers stored that is left with one value in every matrix."""
    return sum(c.cost(1) for c in ready.values()) / sum(c.params for c in ready.values())


def _allocated(found: Survey, ready: dict[str, Candidate], share: float) -> dict[str, int]:
    """How many values each matrix keeps; ValueError where there is none to cut, or the target is out of reach."""
    if not ready:
        why = next((r.note for r in found.fitted if r.note), "nothing is known of their layers")
        raise ValueError(
            f"no matrix of this model can be split ({why}): rebuild them at lower rank in place with dense=True "
            "(--dense), or plan zeros"
        )
    total = sum(c.params for c in ready.values())
    if (least := _least(ready)) > share * (1 + 1e-9):
        raise ValueError(f"params={share} is out of reach: with one value in every matrix {least:.2%} is left")
    return dict(zip(ready, allocate(list(ready.values()), share * total), strict=True))


def _rank_entry(r: Reading, ordered: _Ordered, k: int, basis: Basis, dense: bool) -> Entry:
    c, spikes = ordered.candidate, ordered.spikes
    even = r.rows * r.cols / c.side
    if not c.pays(k):
        if spikes >= even:
            why = f"its {spikes} spikes alone would fill a pair: a split pays below {even:.0f} values"
        else:
            why = f"nothing of it had to go; a split pays below {even:.0f} of its {len(c.s)} values"
        return kept(r, why, spikes)
    cut = max(0, spikes - k)
    structured = c.spikes - spikes
    bulk = max(0, k - spikes)
    why = f"keeps {k} of {len(c.s)} values: {min(k, spikes)} of {spikes} spikes and {bulk} of the bulk"
    if structured:
        why += f", {min(structured, bulk)} of the {structured} among them that are not random"
    if cut:
        why += f"; {cut} spikes are cut, for the target lies below them"
    energy = c.s**2
    return entry_of(
        r,
        action="dense" if dense else "split",
        rank=k,
        also=ordered.also(k),
        basis=basis if r.spectrum.equalised else "plain",  # a pair is judged as it is
        params_after=r.params if dense else k * c.side,
        macs_after=r.params if dense else k * c.side,
        damage=float(np.sqrt(energy[k:].sum() / energy.sum())),
        spikes=spikes,
        spikes_cut=cut,
        reason=why,
    )
