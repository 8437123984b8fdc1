"""The plan: what each matrix of a model may lose, as a file that a person can read, edit and replay."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from numbers import Real
from operator import index
from typing import NamedTuple, get_args

import numpy as np
import torch

from .budgets import Allotment, Budget, GlobalMagnitude, Target, candidates, evened
from .budgets.allotment import asked, lifted, unfit
from .budgets.ranks import Candidate, allocate
from .entries import Basis, Entry, Plan, Subject
from .steps import smallest_to_zero
from .survey import Reading, Survey
from .verdict import GATE

DEFAULT_ZEROS: Budget = GlobalMagnitude()


def plan(
    found: Survey,
    *,
    params: float | None = None,
    zeros: float | None = None,
    budget: Budget | None = None,
    dense: bool = False,
    basis: Basis = "plain",
    gate: float | None = None,
) -> Plan:
    """Return the `Plan` that reaches a target: fewer parameters by low rank, or entries at zero.

    With `params` the matrices whose bulk fits the law of noise keep at most that share of the numbers they store,
    reached from below within one rank step. The ranks k are those of least total damage for the numbers stored. Damage
    is the squared error in units of the mean square of an entry, the sum over matrices of rows cols ||W - W_k||^2 /
    ||W||^2; stored are k (rows + cols) for a pair, and rows cols where no pair is smaller, that is for
    k >= rows cols / (rows + cols). All bulk goes before any spike.

    With `zeros` that share of the entries of all matrices with a verdict is zero, to one entry: a budget shares the
    zeros out, and in each matrix the smallest magnitudes go. Entries that are zero already count: a matrix that holds
    more of them than its share keeps them, and the others get that much less, in proportion to what they had.

    Args:
        found: a survey; for `zeros` the model that it was made of is read again.
        params: share kept, in (0, 1].
        zeros: share at zero, in (0, 1].
        budget: who gives how many zeros, one of `spectrim.budgets` or any function (survey, share) -> Allotment;
            `budgets.GlobalMagnitude()` unless given: no other was ahead on every model (docs/budgets.md).
        dense: rebuild matrices at the lower rank in place instead of splitting them (same size, any runtime).
        basis: cut ranks of the matrix as it is ("plain"), or with its row and column scales evened out ("equalised").
            The spikes that stay are those of the verdict in that basis. Plain is the default because it did less harm
            on the model of the demo; a low-rank cut by energy wants the loud rows that equalisation turns down. With
            `zeros` the magnitudes are those of that basis, for the budget and within a matrix.
        gate: largest misfit of a bulk that may be cut, in [0, 1]; see `spectrim.Verdict`. No rank is cut of what does
            not fit the law of noise, or is heavy-tailed; 1 lets everything through. With `zeros` it is the gate of the
            budget, if that has one: magnitudes need no law, so the matrix takes part all the same. Unless given it is
            .1 for ranks, and what the budget says.

    The gate speaks of the matrix as the survey judges it, equalised unless it was told otherwise, whatever the basis of
    the cut: uneven rows and columns are no reason against a cut, and rank does not depend on them.

    Directions below the lower edge of the noise that the survey found not to be random (`survey(..., vectors=True)`)
    are kept beside the spikes and named in the entry, where the basis of the cut is the one that they were found in:
    "equalised", or "plain" after a survey without equalisation. What that is worth: docs/ends.md.
    """
    if not isinstance(found, Survey):
        raise TypeError(f"a plan is made from a survey, not from a {type(found).__name__}: plan(survey(model), ...)")
    if (params is None) == (zeros is None):
        raise ValueError(
            "give one target: params=0.5 (share of the parameters kept) or zeros=0.5 (share of zero entries)"
        )
    share = params if params is not None else zeros
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
        raise ValueError(f"a target lies in (0, 1], not {share!r}: 0.5 means one half")
    if gate is not None and (isinstance(gate, bool) or not isinstance(gate, Real) or not 0 <= gate <= 1):
        raise ValueError(f"a gate lies in [0, 1], not {gate!r}: the largest misfit of a bulk that may be cut")
    share, gate = float(share), gate if gate is None else float(gate)
    if basis not in get_args(Basis):
        raise ValueError(f"basis is one of {', '.join(get_args(Basis))}, not {basis!r}")
    if budget is not None and zeros is None:
        raise ValueError("a budget shares out zeros: give zeros=0.5, or leave the budget out")
    if not found.fitted:
        raise ValueError(f"{found.model} has no matrix with a verdict, so there is nothing to plan for")
    if zeros is not None:
        chosen = _gated(DEFAULT_ZEROS if budget is None else budget, gate)
        entries, notes = _zeros(found, share, chosen, basis)
        gate = getattr(chosen, "gate", GATE)
        return _finish(found, {"zeros": share}, entries, notes, gate, _described(chosen))
    gate = GATE if gate is None else gate
    closed = unfit(found.fitted, gate)
    if len(closed) == len(found.fitted):
        worst = min((r.fit.misfit for r in found.fitted if r.fit.misfit is not None), default=None)
        best = "" if worst is None else f" (the best has misfit {worst:.2f})"
        raise ValueError(
            f"no matrix of {found.model} has a bulk that fits the law of noise{best}: "
            "gate=1 (--gate 1) plans for all of them anyway"
        )
    if basis == "equalised" and not found.equalised:
        raise ValueError("the survey was made without equalisation: survey again with equalize=True, or basis='plain'")
    entries, more = _ranks(found, share, basis, dense, closed)
    return _finish(found, {"params": share}, entries, _told(closed) + more, gate)


def _told(closed: dict[str, str]) -> list[str]:
    if not closed:
        return []
    who = "1 matrix does not fit the law of noise and stays as it is"
    if len(closed) > 1:
        who = f"{len(closed)} matrices do not fit the law of noise and stay as they are"
    return [f"{who}; the target is of the others. gate=1 (--gate 1) plans for all"]


class _Ordered(NamedTuple):
    """A matrix that may be split, its values in the order in which they are kept: spikes, structured, other bulk."""

    candidate: Candidate
    order: tuple[int, ...]
    spikes: int

    def also(self, k: int) -> tuple[int, ...]:
        """The positions among k values kept that are not the largest ones of all."""
        kept = set(self.order[:k])
        top = next(i for i in range(k + 1) if i not in kept)
        return tuple(sorted(i for i in kept if i > top))


def _candidates(found: Survey, basis: Basis, dense: bool, closed: dict[str, str]) -> dict[str, _Ordered]:
    chosen = {}
    for r in found.fitted:
        if (r.splittable or dense) and r.name not in closed:
            plain = basis == "plain" and r.plain_spectrum is not None
            spectrum, fit = (r.plain_spectrum, r.plain) if plain else (r.spectrum, r.fit)
            first = [*range(fit.spikes), *(() if plain and r.spectrum.equalised else r.small)]
            order = (*first, *sorted(set(range(len(spectrum.s))) - set(first)))
            s = spectrum.s[np.array(order, int)]
            chosen[r.name] = _Ordered(
                Candidate(r.rows, r.cols, r.params, s, len(first), r.rows * r.cols), order, fit.spikes
            )
    return chosen


def _ranks(
    found: Survey, share: float, basis: Basis, dense: bool, closed: dict[str, str]
) -> tuple[list[Entry], list[str]]:
    ordered = _candidates(found, basis, dense, closed)
    candidates = {name: o.candidate for name, o in ordered.items()}
    if not candidates:
        why = next((r.note for r in found.fitted if r.note), "nothing is known of their layers")
        raise ValueError(
            f"no matrix of this model can be split ({why}): rebuild them at lower rank in place with dense=True "
            "(--dense), or plan zeros"
        )
    total = sum(c.params for c in candidates.values())
    least = sum(c.cost(1) for c in candidates.values())
    if least > share * total:
        raise ValueError(f"params={share} is out of reach: with one value in every matrix {least / total:.2%} is left")
    kept = dict(zip(candidates, allocate(list(candidates.values()), share * total), strict=True))
    readings = {r.name: r for r in found.matrices}
    notes = []
    entries = {name: _rank_entry(readings[name], o, kept[name], basis, dense) for name, o in ordered.items()}
    cut = sum(e.spikes_cut for e in entries.values())
    if cut:
        notes.append(f"the target lies below the noise: {cut} spikes are cut too, the smallest first")
    if dense:
        notes.append("rebuilt dense: the rank falls, the size does not")
    small = sum(len(r.small) for r in found.fitted)
    if small and basis == "plain" and found.equalised:
        notes.append(
            f"{small} small directions that are not random were found in the equalised matrices; a cut in the plain "
            "basis does not know them: basis='equalised' (--basis equalised) keeps them"
        )
    return [entries.get(r.name) or _kept(r, closed.get(r.name) or _why_not(r)) for r in found.matrices], notes


def _rank_entry(r: Reading, ordered: _Ordered, k: int, basis: Basis, dense: bool) -> Entry:
    c, spikes = ordered.candidate, ordered.spikes
    even = r.rows * r.cols / c.side
    if not c.pays(k):
        if spikes >= even:
            why = f"its {spikes} spikes alone would fill a pair: a split pays below {even:.0f} values"
        else:
            why = f"nothing of it had to go; a split pays below {even:.0f} of its {len(c.s)} values"
        return _kept(r, why, spikes)
    cut = max(0, spikes - k)
    structured = c.spikes - spikes
    bulk = max(0, k - spikes)
    why = f"keeps {k} of {len(c.s)} values: {min(k, spikes)} of {spikes} spikes and {bulk} of the bulk"
    if structured:
        why += f", {min(structured, bulk)} of the {structured} among them that are not random"
    if cut:
        why += f"; {cut} spikes are cut, for the target lies below them"
    energy = c.s**2
    return _entry(
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


def _zeros(found: Survey, share: float, budget: Budget, basis: Basis) -> tuple[list[Entry], list[str]]:
    found = evened(found) if basis == "equalised" else found
    targets = {t.name: t for t in candidates(found)}
    there = {name: int((t.stored()[0] == 0).sum()) for name, t in targets.items()}
    total, wanted = sum(t.entries for t in targets.values()), asked(tuple(targets.values()), share)
    if (held := sum(there.values())) > wanted:
        enough = math.ceil(held / total * 1e4) / 1e4
        raise ValueError(
            f"{found.model} holds {held} zeros already, {held / total:.2%} of the entries that can be zero, and "
            f"zeros={share:g} asks for {wanted} in all: ask for zeros={enough:g} or more"
        )
    allotment = budget(found, share)
    given = _checked(allotment, targets, wanted, budget)
    counts = lifted(given, there)
    entries = []
    for r in found.matrices:
        if r.name not in targets:
            why = "a pair of layers: its product takes no zeros" if r.fit is not None else _why_not(r)
            entries.append(_kept(r, why))
            continue
        why = [allotment.reasons.get(r.name), _moved(given[r.name], counts[r.name])]
        entries.append(_zero_entry(targets[r.name], counts[r.name], _name(budget), "; ".join(filter(None, why))))
    return entries, list(allotment.notes)


def _moved(given: int, count: int) -> str:
    """Why a matrix has another count than the budget gave it; an empty text where it has that one."""
    if count > given:
        return f"its share was {given}, but {count} are zero already"
    return f"{given - count} fewer than its share, for others hold more than theirs" if count < given else ""


def _zero_entry(t: Target, count: int, budget: str, why: str) -> Entry:
    W, scales = t.stored()
    whole = float(torch.linalg.norm(W.to(torch.float64)))
    lost = W - smallest_to_zero(W, count, scales)  # exact: an entry, or zero
    return _entry(
        t.reading,
        action="zeros",
        zeros=count,
        basis="plain" if scales is None else "equalised",
        damage=float(torch.linalg.norm(lost.to(torch.float64))) / whole if whole else 0.0,
        spikes=t.reading.fit.spikes,
        reason=f"{count / t.entries:.1%} of its entries, by {budget}" + (f": {why}" if why else ""),
    )


def _checked(allotment: Allotment, targets: dict[str, Target], wanted: int, budget: Budget) -> dict[str, int]:
    """The counts of a budget, which may be a user's own, as they will be carried out; ValueError where they cannot."""
    if not isinstance(allotment, Allotment):
        raise TypeError(f"a budget returns an Allotment, and {_name(budget)} a {type(allotment).__name__}")
    counts = dict.fromkeys(targets, 0)
    for name, count in allotment.counts.items():
        if name not in targets:
            raise ValueError(f"{_name(budget)} gives zeros to {name!r}, which is no matrix that can take any")
        try:
            counts[name] = index(count)
        except TypeError:
            raise TypeError(f"{_name(budget)} gives {name} {count!r} zeros, which is no count") from None
        if not 0 <= counts[name] <= targets[name].entries:
            raise ValueError(f"{_name(budget)} gives {name} {count} zeros, and it has {targets[name].entries} entries")
    if (given := sum(counts.values())) != wanted:
        raise ValueError(f"{_name(budget)} gives {given} zeros, and {wanted} were asked for: the total must be exact")
    return counts


def _gated(budget: Budget, gate: float | None) -> Budget:
    """The budget, under this gate if it has one and a gate was given."""
    if isinstance(budget, type) or not callable(budget):
        raise TypeError(f"a budget is a function of a survey and a share, such as budgets.Lamp(), not {budget!r}")
    if gate is None or not is_dataclass(budget) or "gate" not in {f.name for f in fields(budget)}:
        return budget
    return replace(budget, gate=gate)


def _name(budget: Budget) -> str:
    return getattr(budget, "__name__", None) or type(budget).__name__


def _described(budget: Callable) -> str:
    """The configuration of a budget; a function's repr would hold its address."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", getattr(budget, "__qualname__", None) or repr(budget))


def _why_not(r: Reading) -> str:
    return r.note or "it cannot be split"


def _kept(r: Reading, why: str, spikes: int | None = None) -> Entry:
    return _entry(r, action="keep", reason=why, spikes=spikes)


def _entry(r: Reading, **given) -> Entry:
    given.setdefault("params_after", r.params)
    given.setdefault("macs_after", r.params)
    entry = Entry(
        name=r.name,
        kind=r.kind,
        rows=r.rows,
        cols=r.cols,
        params_before=r.params,
        bytes_before=r.params * r.item,
        bytes_after=given["params_after"] * r.item,
        macs_before=r.params,
        fingerprint=r.fingerprint,
        **given,
    )
    return entry.model_copy(update={"decided": entry.decision})


def _finish(found: Survey, target: dict, entries: list[Entry], notes: list[str], gate: float, budget: str = "") -> Plan:
    from . import __version__

    subject = Subject(
        label=found.model,
        fingerprint=found.fingerprint,
        params=found.params,
        bytes=found.bytes,
        fused=found.fused,
        edge=found.edge,
        equalised=found.equalised,
        gate=gate,
    )
    return Plan(
        version=__version__, model=subject, target=target, budget=budget, entries=tuple(entries), notes=tuple(notes)
    )
