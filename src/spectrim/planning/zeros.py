"""Entries that set zeros: how many of each matrix, and what that costs."""

from __future__ import annotations

import math
from operator import index

from ..budgets import Allotment, Budget, Target, candidates, evened
from ..budgets.allotment import asked, lifted
from ..cut import zeroed
from ..entries import Basis, Entry, Step, together
from ..inner.obs import DAMPING
from ..moments import Moment, Moments
from ..survey import Survey
from .by_error import largest
from .entry import entry_of, errors, kept, lost, why_not


def zeros(
    found: Survey, share: float, budget: Budget, basis: Basis, moments: Moments | None, step: Step
) -> tuple[list[Entry], list[str]]:
    """Return the entries that set zeros, and notes.

    Args:
        found: a survey that still knows its model.
        share: of the entries of all its matrices, in (0, 1].
        budget: who gives how many to each.
        basis: that magnitudes are compared in.
        moments: of the inputs, where zeros are chosen, and made up for, by `step`; a matrix that has none loses its
            smallest magnitudes.
        step: see `spectrim.cut`.
    """
    found = evened(found) if basis == "equalised" else found
    targets = {t.name: t for t in candidates(found)}
    there = _there(targets)
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
    lacking = {}
    if moments is not None:
        lacking = {name: why for name, t in targets.items() if (why := moments.lacking(name, t.reading.cols))}
    entries = []
    for r in found.matrices:
        if r.name not in targets:
            why = (
                "a pair of layers: its product takes no zeros" if r.fit is not None and r.kind == "pair" else why_not(r)
            )
            entries.append(kept(r, why))
            continue
        moment = None if moments is None or r.name in lacking else moments[r.name]
        why = [allotment.reasons.get(r.name), _moved(given[r.name], counts[r.name])]
        if r.name in lacking:
            why.append(f"its smallest magnitudes, for {lacking[r.name]}")
        who = ": ".join(filter(None, [name_of(budget), "; ".join(filter(None, why))]))
        damping = DAMPING if moments is None else moments.damping
        entries.append(_zero_entry(targets[r.name], counts[r.name], who, moment, step, damping))
    notes = list(allotment.notes)
    if lacking:
        notes.append(f"{len(lacking)} of {len(targets)} matrices have no moments and lose their smallest magnitudes")
    return entries, notes


def allowed(
    found: Survey, error: float, budget: Budget, moments: Moments, step: Step
) -> tuple[float, list[Entry], list[str]]:
    """Return the largest share of zeros found whose error of the model is no more than that, its entries and notes.

    Args:
        found, budget, step: as `zeros` takes them.
        error: `Plan.model_error`, > 0.
        moments: with weights of the outputs.
    """
    targets = {t.name: t for t in candidates(found)}
    held = sum(_there(targets).values()) / sum(t.entries for t in targets.values())
    tried: dict[float, tuple[list[Entry], list[str]]] = {}

    def cost(share: float) -> float:
        tried[share] = zeros(found, share, budget, "moments", moments, step)
        return together(tried[share][0]) or 0.0

    share = largest(cost, error, low=held)
    if share not in tried:
        least = min(tried)
        taken = together(tried[least][0])
        raise ValueError(
            f"error={error:g} is out of reach: {least:.1%} zeros cost {taken:.3g} of the model's output already"
        )
    return share, *tried[share]


def _there(targets: dict[str, Target]) -> dict[str, int]:
    return {name: int((t.stored()[0] == 0).sum()) for name, t in targets.items()}


def _moved(given: int, count: int) -> str:
    """Why a matrix has another count than the budget gave it; an empty text where it has that one."""
    if count > given:
        return f"its share was {given}, but {count} are zero already"
    return f"{given - count} fewer than its share, for others hold more than theirs" if count < given else ""


def _zero_entry(t: Target, count: int, who: str, moment: Moment | None, step: Step, damping: float) -> Entry:
    W, scales = t.stored()
    basis: Basis = "moments" if moment is not None else "plain" if scales is None else "equalised"
    step = step if moment is not None else "magnitude"
    new = zeroed(W, count, scales, moment, step, damping)
    return entry_of(
        t.reading,
        action="zeros",
        zeros=count,
        basis=basis,
        step=step,
        damage=lost(W, new),
        spikes=t.reading.fit.spikes,
        reason=f"{count / t.entries:.1%} of its entries, by {who}",
        **errors(W, new, moment),
    )


def _checked(allotment: Allotment, targets: dict[str, Target], wanted: int, budget: Budget) -> dict[str, int]:
    """The counts of a budget, which may be a user's own, as they will be carried out; ValueError where they cannot."""
    if not isinstance(allotment, Allotment):
        raise TypeError(f"a budget returns an Allotment, and {name_of(budget)} a {type(allotment).__name__}")
    counts = dict.fromkeys(targets, 0)
    for name, count in allotment.counts.items():
        if name not in targets:
            raise ValueError(f"{name_of(budget)} gives zeros to {name!r}, which is no matrix that can take any")
        try:
            counts[name] = index(count)
        except TypeError:
            raise TypeError(f"{name_of(budget)} gives {name} {count!r} zeros, which is no count") from None
        if not 0 <= counts[name] <= targets[name].entries:
            raise ValueError(
                f"{name_of(budget)} gives {name} {count} zeros, and it has {targets[name].entries} entries"
            )
    if (given := sum(counts.values())) != wanted:
        told = f"{name_of(budget)} gives {given} zeros, and {wanted} were asked for"
        raise ValueError(f"{told}: the total must be exact")
    return counts


def name_of(budget: Budget) -> str:
    """Return what a budget is called in a message."""
    return getattr(budget, "__name__", None) or type(budget).__name__
