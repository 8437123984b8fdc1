"""One entry of a plan, from what a survey says of its matrix."""

from __future__ import annotations

import math

from torch import Tensor

from ..entries import Entry
from ..inner.damage import cost_and_whole, relative_damage
from ..moments import Moment
from ..readings import Reading


def why_not(r: Reading) -> str:
    """Return why a matrix stays as it is, from the survey's own note."""
    return r.note or "it cannot be split"


def lost(W: Tensor, new: Tensor) -> float:
    """Return the share of a matrix that a cut takes: a ratio of norms, 0 where there was nothing."""
    share = relative_damage(W, new)
    return math.sqrt(share) if share > 0 else 0.0


def errors(W: Tensor, new: Tensor, moment: Moment | None) -> dict[str, float]:
    """Return the fields of an entry that say what a cut does to the outputs of its matrix, and to those of the model.

    The second where the moment has weights of outputs, which hold what the model makes of an error; nothing without.
    """
    if moment is None:
        return {}
    cost, whole = cost_and_whole(W, new, moment)
    found = {"output_error": math.sqrt(cost / whole) if whole > 0 else 0.0}
    if moment.rows is not None:
        found["model_error"] = math.sqrt(cost)
    return found


def kept(r: Reading, why: str, spikes: int | None = None) -> Entry:
    """Return the entry of a matrix that stays as it is."""
    return entry_of(r, action="keep", reason=why, spikes=spikes)


def entry_of(r: Reading, **given) -> Entry:
    """Return an entry with the figures of the matrix filled in, and its decision noted."""
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
