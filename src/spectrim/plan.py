"""The plan: what each matrix of a model may lose, as a file that a person can read, edit and replay."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from numbers import Real
from typing import Literal, get_args

from .budgets import Budget, GlobalMagnitude
from .budgets.allotment import unfit
from .budgets.marginal import MarginalDamage
from .entries import Basis, Entry, MomentsUsed, Plan, Step, Subject
from .moments import Moments, given_back
from .planning.ranks import ranks, whitened
from .planning.zeros import allowed
from .planning.zeros import zeros as zero_entries
from .sites import listed
from .survey import Survey
from .verdict import GATE

Cut = Literal["zeros", "ranks"]
DEFAULT_ZEROS: Budget = GlobalMagnitude()
DENSE = "rebuilt dense: the rank falls, the size does not"


def plan(
    found: Survey,
    *,
    params: float | None = None,
    zeros: float | None = None,
    error: float | None = None,
    cut: Cut | None = None,
    budget: Budget | None = None,
    dense: bool = False,
    basis: Basis | None = None,
    gate: float | None = None,
    moments: Moments | None = None,
    step: Step | None = None,
) -> Plan:
    """Return the `Plan` that reaches a target: fewer parameters by low rank, entries at zero, or an error of the model.

    With `params` the matrices whose bulk fits the law of noise keep at most that share of the numbers they store,
    reached from below within one rank step. The ranks k are those of least total damage for the numbers stored. Damage
    is the squared error in units of the mean square of an entry, the sum over matrices of rows cols ||W - W_k||^2 /
    ||W||^2; stored are k (rows + cols) for a pair, and rows cols where no pair is smaller, that is for
    k >= rows cols / (rows + cols). All bulk goes before any spike.

    With `zeros` that share of the entries of all matrices with a verdict is zero, to one entry: a budget shares the
    zeros out, and in each matrix the smallest magnitudes go. Entries that are zero already count: a matrix that holds
    more of them than its share keeps them, and the others get that much less, in proportion to what they had.

    With `error` as many entries are zero, or as many ranks go, as the model's output is expected to bear: the largest
    cut found whose `Plan.model_error` is no more than that. It takes moments whose outputs are weighed.

    Args:
        found: a survey; for `zeros` the model that it was made of is read again.
        params: share kept, in (0, 1].
        zeros: share at zero, in (0, 1].
        error: of the model's output, a ratio of root mean squares to first order, > 0; .1 is little, .5 much.
        cut: with `error`, "zeros" unless given, or "ranks".
        budget: who gives how many zeros, one of `spectrim.budgets` or any function (survey, share) -> Allotment;
            `budgets.GlobalMagnitude()` unless given: no other was ahead on every model (docs/budgets.md). With moments
            whose outputs are weighed (`calibrate.weighed`) `budgets.MarginalDamage(moments)`, which is.
        dense: rebuild matrices at the lower rank in place instead of splitting them (same size, any runtime).
        basis: cut ranks of the matrix as it is ("plain"), or with its row and column scales evened out ("equalised").
            The spikes that stay are those of the verdict in that basis. Plain is the default because it did less harm
            on the model of the demo; a low-rank cut by energy wants the loud rows that equalisation turns down. With
            `zeros` the magnitudes are those of that basis, for the budget and within a matrix.
        gate: largest misfit of a bulk that may be cut, in [0, 1]; see `spectrim.Verdict`. No rank is cut of what does
            not fit the law of noise, or is heavy-tailed; 1 lets everything through. With `zeros` it is the gate of the
            budget, if that has one: magnitudes need no law, so the matrix takes part all the same. Unless given it is
            .1 for ranks, and what the budget says. Ranks in the inner product of the inputs need no law either.
        moments: of the inputs of each matrix, from `spectrim.calibrate`: what a cut costs is then measured in what the
            layer puts out, tr((W - W') C (W - W')^T), and every entry says which share of its output is lost. A matrix
            without moments is cut as it would be without.
        step: with zeros and moments, how entries are chosen and the others make up for them: "alternate" unless given,
            "obs" (one pass over the columns), "wanda" (nothing is made up for).

    The gate speaks of the matrix as the survey judges it, equalised unless it was told otherwise, whatever the basis of
    the cut: uneven rows and columns are no reason against a cut, and rank does not depend on them.

    Directions below the lower edge of the noise that the survey found not to be random (`survey(..., vectors=True)`)
    are kept beside the spikes and named in the entry, where the basis of the cut is the one that they were found in:
    "equalised", or "plain" after a survey without equalisation. What that is worth: docs/ends.md.
    """
    if not isinstance(found, Survey):
        raise TypeError(f"a plan is made from a survey, not from a {type(found).__name__}: plan(survey(model), ...)")
    if sum(target is not None for target in (params, zeros, error)) != 1:
        raise ValueError(
            "give one target: params=0.5 (share of the parameters kept), zeros=0.5 (share of zero entries), or, with "
            "moments whose outputs are weighed, error=0.2 (of the model's output)"
        )
    kind = _kind(params, error, cut)
    share = params if params is not None else zeros
    if error is not None:
        if isinstance(error, bool) or not isinstance(error, Real) or not 0 < error < math.inf:
            raise ValueError(f"an error is a share of the model's output, > 0, not {error!r}: 0.2 means a fifth")
        if not isinstance(moments, Moments) or not moments.rows:
            raise ValueError(
                "what a cut does to the model's output is told by moments whose outputs are weighed: give "
                "moments=calibrate.weighed(gather(model, inputs), model, inputs)"
            )
        error = float(error)
    elif isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
        raise ValueError(f"a target lies in (0, 1], not {share!r}: 0.5 means one half")
    if gate is not None and (isinstance(gate, bool) or not isinstance(gate, Real) or not 0 <= gate <= 1):
        raise ValueError(f"a gate lies in [0, 1], not {gate!r}: the largest misfit of a bulk that may be cut")
    share, gate = None if share is None else float(share), gate if gate is None else float(gate)
    basis = _basis(basis, moments)
    step = _step(step, kind, moments)
    if budget is not None and kind == "ranks":
        raise ValueError("a budget shares out zeros: give zeros=0.5, or leave the budget out")
    if not found.fitted:
        raise ValueError(f"{found.model} has no matrix with a verdict, so there is nothing to plan for")
    used = None
    if moments is not None:
        given_back()  # what the survey left free; here every part of a model counts
        used = MomentsUsed(source=moments.source, recipe=moments.recipe, fingerprint=moments.fingerprint)
    more = [DENSE] if dense and kind == "ranks" else []
    asked = {} if error is None else {"error": error}
    if kind == "zeros":
        chosen = _gated(_usual(moments) if budget is None else budget, gate)
        if error is None:
            entries, notes = zero_entries(found, share, chosen, basis, moments, step)
        else:
            share, entries, notes = allowed(found, error, chosen, moments, step)
        gate = getattr(chosen, "gate", GATE)
        return _finish(
            found,
            {"zeros": share} | asked,
            entries,
            notes + _unpriced(entries, moments),
            gate,
            _described(chosen),
            used,
        )
    if moments is not None:
        if gate is not None:
            raise ValueError("a gate judges the law of noise, and ranks in the inner product of the inputs ask none")
        share, entries, notes = whitened(found, share, dense, moments, error)
        more += _unpriced(entries, moments)
        return _finish(found, {"params": share} | asked, entries, notes + more, 1.0, moments=used)
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
    entries, notes = ranks(found, share, basis, dense, closed)
    return _finish(found, {"params": share}, entries, _told(closed) + notes + more, gate)


def _kind(params: float | None, error: float | None, cut: Cut | None) -> Cut:
    if cut is not None and cut not in get_args(Cut):
        raise ValueError(f"cut is one of {', '.join(get_args(Cut))}, not {cut!r}")
    kind: Cut = "ranks" if params is not None else "zeros"
    if error is None and cut not in (None, kind):
        raise ValueError(f"{'params' if kind == 'ranks' else kind}= cuts {kind}: leave out cut={cut!r}")
    return kind if cut is None else cut


def _unpriced(entries: list[Entry], moments: Moments | None) -> list[str]:
    """A note where the error of the model does not know of a cut."""
    if moments is None or not moments.rows:
        return []
    left = [e.name for e in entries if e.action != "keep" and e.model_error is None]
    return [f"what is cut of {listed(left)} is not in the expected change of the output"] if left else []


def _usual(moments: Moments | None) -> Budget:
    """The budget that is taken where none is named."""
    return MarginalDamage(moments) if moments is not None and moments.rows else DEFAULT_ZEROS


def _basis(basis: Basis | None, moments: Moments | None) -> Basis:
    if moments is not None:
        if not isinstance(moments, Moments):
            raise TypeError(f"moments are what `calibrate.gather` or `Moments.load` return, not {moments!r:.80}")
        if basis not in (None, "moments"):
            raise ValueError(f"a cut is made in one basis: leave out moments= or basis={basis!r}")
        return "moments"
    if basis == "moments":
        raise ValueError("basis='moments' is the inner product of the inputs: give their moments, moments=gather(...)")
    if basis is not None and basis not in get_args(Basis):
        raise ValueError(f"basis is one of {', '.join(get_args(Basis))}, not {basis!r}")
    return basis or "plain"


def _step(step: Step | None, kind: Cut, moments: Moments | None) -> Step:
    if step is None:
        return "magnitude" if moments is None else "alternate"
    if step not in get_args(Step):
        raise ValueError(f"step is one of {', '.join(get_args(Step))}, not {step!r}")
    if kind == "ranks":
        raise ValueError("a step chooses zeros: give zeros=0.5, or leave the step out")
    if (step == "magnitude") is (moments is not None):
        what = "compares magnitudes and takes no moments" if moments is not None else "needs moments=gather(...)"
        raise ValueError(f"step={step!r} {what}")
    return step


def _told(closed: dict[str, str]) -> list[str]:
    if not closed:
        return []
    who = "1 matrix does not fit the law of noise and stays as it is"
    if len(closed) > 1:
        who = f"{len(closed)} matrices do not fit the law of noise and stay as they are"
    return [f"{who}; the target is of the others. gate=1 (--gate 1) plans for all"]


def _gated(budget: Budget, gate: float | None) -> Budget:
    """The budget, under this gate if it has one and a gate was given."""
    if isinstance(budget, type) or not callable(budget):
        raise TypeError(f"a budget is a function of a survey and a share, such as budgets.Lamp(), not {budget!r}")
    if gate is None or not is_dataclass(budget) or "gate" not in {f.name for f in fields(budget)}:
        return budget
    return replace(budget, gate=gate)


def _described(budget: Callable) -> str:
    """The configuration of a budget; a function's repr would hold its address."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", getattr(budget, "__qualname__", None) or repr(budget))


def _finish(
    found: Survey,
    target: dict,
    entries: list[Entry],
    notes: list[str],
    gate: float,
    budget: str = "",
    moments: MomentsUsed | None = None,
) -> Plan:
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
        version=__version__,
        model=subject,
        target=target,
        budget=budget,
        moments=moments,
        entries=tuple(entries),
        notes=tuple(notes),
    )
