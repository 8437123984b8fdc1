"""The plan: what each matrix of a model may lose, as a file that a person can read, edit and replay."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from .budgets import Candidate, allocate
from .checkpoint import write_whole
from .steps import kept_positions, magnitude_counts
from .survey import Reading, Survey, inventory
from .verdict import GATE, judge

SCHEMA = "spectrim.plan/1"
Basis = Literal["plain", "equalised"]


class _Record(BaseModel):
    # Unknown fields are refused: a mistyped name in an edited plan must not pass in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Entry(_Record):
    """What one matrix may lose: `rank` values kept, `zeros` entries at zero, `damage` the relative error expected.

    The `rank` values kept are those at the positions in `also` (0 is the largest), small ones whose directions are not
    random, and then the largest of the others. Positions belong to the basis.

    MACs are for one input position (one token, one pixel). With basis "equalised" the rank is cut after the row and
    column scales were evened out, and `damage` is measured there.
    """

    name: str
    kind: str
    rows: int = Field(ge=1)
    cols: int = Field(ge=1)
    action: Literal["keep", "split", "dense", "zeros"]
    rank: StrictInt | None = Field(default=None, ge=1)
    zeros: StrictInt | None = Field(default=None, ge=0)
    also: tuple[StrictInt, ...] = ()
    basis: Basis = "plain"
    params_before: int = Field(ge=0)
    params_after: int = Field(ge=0)
    bytes_before: int = Field(ge=0)
    bytes_after: int = Field(ge=0)
    macs_before: int = Field(ge=0)
    macs_after: int = Field(ge=0)
    damage: float | None = Field(default=None, ge=0)
    spikes: int | None = None
    spikes_cut: int = 0
    fingerprint: str
    reason: str
    decided: str = ""  # the decision that damage and reason belong to; an edit by hand leaves it behind

    @property
    def candidate(self) -> bool:
        """Whether the plan may touch this matrix: it has a verdict, and its layer can be changed so."""
        return self.spikes is not None

    @property
    def decision(self) -> str:
        """Action, rank, zeros and basis in one line."""
        also = f" also={','.join(map(str, self.also))}" if self.also else ""
        return f"{self.action} rank={self.rank}{also} zeros={self.zeros} {self.basis}"

    @model_validator(mode="after")
    def _possible(self):
        if self.action in ("split", "dense"):
            if self.rank is None or self.rank > min(self.rows, self.cols):
                raise ValueError(
                    f"rank {self.rank} is impossible for a {self.rows} x {self.cols} matrix: "
                    f"1 to {min(self.rows, self.cols)} values can be kept"
                )
            whole = min(self.rows, self.cols)
            wrong = sorted({i for i in self.also if not 0 <= i < whole or self.also.count(i) > 1})
            if wrong:
                raise ValueError(f"also names {wrong}: positions run from 0 to {whole - 1}, each once")
            if len(self.also) > self.rank:
                raise ValueError(f"also names {len(self.also)} values, more than the {self.rank} that are kept")
        elif self.rank is not None:
            raise ValueError(f"action {self.action!r} takes no rank")
        elif self.also:
            raise ValueError(f"action {self.action!r} keeps no values by position: remove them from also")
        if (self.action == "zeros") != (self.zeros is not None):
            raise ValueError("zeros is a count with the action 'zeros', and null with every other")
        if self.zeros is not None and self.zeros > self.rows * self.cols:
            raise ValueError(f"{self.zeros} zeros do not fit into {self.rows} x {self.cols} entries")
        return self

    @property
    def kept(self) -> tuple[int, ...]:
        """The positions of the values that are kept, ascending; empty where no rank is cut."""
        if self.rank is None:
            return ()
        return kept_positions(min(self.rows, self.cols), self.rank, self.also)

    def derived(self) -> Entry:
        """Return the entry as it is, or, after an edit by hand, with what follows from its decision worked out anew."""
        if self.decision == self.decided:
            return self
        if self.also and self.decided and not self.decided.endswith(f" {self.basis}"):
            raise ValueError(f"{self.name}: its `also` holds positions of the other basis: empty it, or plan anew")
        after = self.rank * (self.rows + self.cols) if self.action == "split" else self.params_before
        spikes = self.spikes or 0
        cut = spikes - sum(i < spikes for i in self.kept) if self.rank else 0
        update = {
            "params_after": after,
            "bytes_after": after * self.bytes_before // max(1, self.params_before),
            "macs_after": after,
            "spikes_cut": cut,
            "damage": None,
            "reason": f"edited by hand (was {self.decided or 'not decided'}: {self.reason})",
            "decided": self.decision,
        }
        return self.model_copy(update=update)


class Subject(_Record):
    """The model that a plan was made for."""

    label: str
    fingerprint: str
    params: int = Field(ge=0)
    bytes: int = Field(ge=0)
    fused: str = "split"
    edge: str
    equalised: bool = True
    gate: float = Field(default=GATE, ge=0, le=1)


class Plan(_Record):
    """One entry a matrix, the target they were chosen for, and what the model weighs before and after."""

    schema_: Literal["spectrim.plan/1"] = Field(default=SCHEMA, alias="schema")
    version: str = ""
    model: Subject
    target: dict[Literal["params", "zeros"], float]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _once_each(self):
        names = [e.name for e in self.entries]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice[:3])} has more than one entry")
        return self

    @property
    def touched(self) -> tuple[Entry, ...]:
        """The entries that change something."""
        return tuple(e for e in self.entries if e.action != "keep")

    @property
    def params_before(self) -> int:
        """Numbers stored before in the matrices that the plan may touch."""
        return sum(e.params_before for e in self.entries if e.candidate)

    @property
    def params_after(self) -> int:
        """Numbers stored after in the matrices that the plan may touch."""
        return sum(e.params_after for e in self.entries if e.candidate)

    @property
    def zeros(self) -> int:
        """Entries at zero after."""
        return sum(e.zeros or 0 for e in self.entries)

    @property
    def model_params_before(self) -> int:
        """Numbers in the whole model before, embeddings and biases included."""
        return self.model.params

    @property
    def model_params_after(self) -> int:
        """Numbers in the whole model after."""
        return self.model.params + sum(e.params_after - e.params_before for e in self.entries)

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Return the plan as JSON, and write it to `path` if one is given."""
        text = json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1, allow_nan=False)
        if path is not None:
            write_whole(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Plan:
        """Return the plan in a file. Raises ValueError with every entry that is wrong and what is wrong with it."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
            raise ValueError(f"{path} is not a plan of schema {SCHEMA!r} (found {found!r})")
        try:
            found = cls.model_validate(raw)
        except ValidationError as error:
            raise ValueError(f"{path}: " + "; ".join(_explain(raw, e) for e in error.errors()[:5])) from None
        return found.model_copy(update={"entries": tuple(entry.derived() for entry in found.entries)})

    def __str__(self) -> str:
        before, after = self.params_before, self.params_after
        if "zeros" in self.target:
            head = f"{self.zeros} of {before} entries at zero ({self.zeros / before:.1%})"
        else:
            head = f"{after} of {before} parameters kept ({after / before:.1%})"
        whole = self.model_params_after / self.model_params_before
        lines = [f"plan for {self.model.label}: {head}; the whole model keeps {whole:.1%} of its parameters"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {e.name:<48} {e.action:<6} {e.reason}" for e in self.entries]
        return "\n".join(lines)


def _explain(raw: dict, error: dict) -> str:
    place = list(error["loc"])
    if place[:1] == ["entries"] and len(place) > 1:
        try:
            place[1] = repr(raw["entries"][place[1]]["name"])
        except (KeyError, TypeError, IndexError):
            place[1] = f"number {place[1]}"
    found = "" if isinstance(error.get("input"), dict | list) else f" (found {error.get('input')!r})"
    return f"{' '.join(map(str, place)) or 'plan'}: {error['msg'].removeprefix('Value error, ')}{found}"


def plan(
    found: Survey,
    *,
    params: float | None = None,
    zeros: float | None = None,
    dense: bool = False,
    basis: Basis = "plain",
    gate: float = GATE,
) -> Plan:
    """Return the `Plan` that reaches a target over the matrices whose bulk fits the law of noise.

    With `params` they keep at most that share of the numbers they store, reached from below within one rank step. The
    ranks k are those of least total damage for the numbers stored. Damage is the squared error in units of the mean
    square of an entry, the sum over matrices of rows cols ||W - W_k||^2 / ||W||^2; stored are k (rows + cols) for a
    pair, and rows cols where no pair is smaller, that is for k >= rows cols / (rows + cols). All bulk goes before any
    spike. With `zeros` that share of their entries is zero, the smallest magnitudes of all matrices together.

    Args:
        found: a survey; for `zeros` the model that it was made of is read again.
        params: share kept, in (0, 1].
        zeros: share at zero, in (0, 1].
        dense: rebuild matrices at the lower rank in place instead of splitting them (same size, any runtime).
        basis: cut ranks of the matrix as it is ("plain"), or with its row and column scales evened out ("equalised").
            The spikes that stay are those of the verdict in that basis. Plain is the default because it did less harm
            on the model of the demo; a low-rank cut by energy wants the loud rows that equalisation turns down.
        gate: largest misfit of a bulk that may be cut, in [0, 1]; see `spectrim.Verdict`. What does not fit the law of
            noise, or is heavy-tailed, is left alone; 1 lets everything through.

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
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"a target lies in (0, 1], not {share!r}: 0.5 means one half")
    if isinstance(gate, bool) or not isinstance(gate, int | float) or not 0 <= gate <= 1:
        raise ValueError(f"a gate lies in [0, 1], not {gate!r}: the largest misfit of a bulk that may be cut")
    if not found.fitted:
        raise ValueError(f"{found.model} has no matrix with a verdict, so there is nothing to plan for")
    closed = _closed(found, gate)
    if len(closed) == len(found.fitted):
        worst = min((r.fit.misfit for r in found.fitted if r.fit.misfit is not None), default=None)
        best = "" if worst is None else f" (the best has misfit {worst:.2f})"
        raise ValueError(
            f"no matrix of {found.model} has a bulk that fits the law of noise{best}: "
            "gate=1 (--gate 1) plans for all of them anyway"
        )
    notes = _told(closed)
    if zeros is not None:
        return _finish(found, {"zeros": zeros}, _zeros(found, zeros, closed), notes, gate)
    if basis == "equalised" and not found.equalised:
        raise ValueError("the survey was made without equalisation: survey again with equalize=True, or basis='plain'")
    entries, more = _ranks(found, params, basis, dense, closed)
    return _finish(found, {"params": params}, entries, notes + more, gate)


def _closed(found: Survey, gate: float) -> dict[str, str]:
    """The matrices that the gate keeps from being cut, and why."""
    closed = {}
    for r in found.fitted if gate < 1 else ():
        verdict = judge(r.spectrum, r.fit, panel={}, gate=gate, uneven=r.uneven)
        if not verdict.cuttable:
            closed[r.name] = f"{verdict.kind}: {verdict.reason}"
    return closed


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


def _zeros(found: Survey, share: float, closed: dict[str, str]) -> list[Entry]:
    sites = {site.name: site for site in inventory(found.source, found.fused).sites} if found.source is not None else {}
    there = [r for r in found.fitted if r.name not in closed]
    fitted = [r for r in there if sites.get(r.name) is not None and sites[r.name].pair_rank is None]
    if there and all(sites.get(r.name) is not None for r in there) and not fitted:
        raise ValueError("all its matrices are pairs of layers, which take no zeros: plan params, or sparsify them")
    if not fitted:
        raise ValueError("the survey does not hold the model that it was made of: survey it again to plan zeros")
    total = sum(r.rows * r.cols for r in fitted)
    counts = magnitude_counts([sites[r.name].get for r in fitted], round(share * total))
    chosen = {r.name: count for r, count in zip(fitted, counts, strict=True)}
    entries = []
    for r in found.matrices:
        if r.name not in chosen:
            entries.append(_kept(r, closed.get(r.name) or _why_not(r)))
            continue
        count, energy = chosen[r.name]
        entries.append(
            _entry(
                r,
                action="zeros",
                zeros=count,
                damage=energy,
                spikes=r.fit.spikes,
                reason=f"{count / (r.rows * r.cols):.1%} of its entries are among the smallest of the model",
            )
        )
    return entries


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


def _finish(found: Survey, target: dict, entries: list[Entry], notes: list[str], gate: float) -> Plan:
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
    return Plan(version=__version__, model=subject, target=target, entries=tuple(entries), notes=tuple(notes))
