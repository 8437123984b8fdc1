"""A plan on disk and in memory: one entry a matrix, which a person can read, edit and replay."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from .checkpoint import read_record
from .steps import kept_positions
from .verdict import GATE
from .writing import write_whole

SCHEMA = "spectrim.plan/1"
Basis = Literal["plain", "equalised", "moments"]
Step = Literal["magnitude", "wanda", "obs", "alternate"]  # how zeros are chosen, and what makes up for them


class _Record(BaseModel):
    # Unknown fields are refused: a mistyped name in an edited plan must not pass in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Entry(_Record):
    """What one matrix may lose: `rank` values kept, `zeros` entries at zero, `damage` the relative error expected.

    The `rank` values kept are those at the positions in `also` (0 is the largest), small ones whose directions are not
    random, and then the largest of the others. Positions belong to the basis.

    MACs are for one input position (one token, one pixel). With basis "equalised" the rank is cut after the row and
    column scales were evened out, and `damage` is measured there. Zeros are then the smallest magnitudes of the
    evened-out matrix, and their `damage` is that of the matrix as it is.

    `output_error` is the share of the layer's output that is lost, a ratio of root mean squares; with outputs that are
    weighed (`calibrate.weighed`) each counts by its weight. `model_error` is then what this cut alone does to the
    output of the model, to first order: the root mean square of the change over that of the output.
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
    step: Step = "magnitude"
    output_error: float | None = Field(default=None, ge=0)
    model_error: float | None = Field(default=None, ge=0)
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
        """Action, rank, zeros, step and basis in one line."""
        also = f" also={','.join(map(str, self.also))}" if self.also else ""
        step = f" {self.step}" if self.step != "magnitude" else ""
        return f"{self.action} rank={self.rank}{also} zeros={self.zeros}{step} {self.basis}"

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
        if self.step != "magnitude" and (self.action != "zeros" or self.basis != "moments"):
            raise ValueError(f"step {self.step!r} sets zeros in the inner product of the inputs: basis 'moments'")
        if self.action == "zeros" and self.basis == "moments" and self.step == "magnitude":
            raise ValueError(
                "zeros in the inner product of the inputs are set by a step: 'alternate', 'obs' or 'wanda'"
            )
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
            "output_error": None,
            "model_error": None,
            "reason": f"edited by hand (was {self.decided or 'not decided'}: {self.reason})",
            "decided": self.decision,
        }
        return self.model_copy(update=update)


def together(entries: Iterable[Entry]) -> float | None:
    """Return what the cuts of some entries do to the output of the model, see `Plan.model_error`; None if none says."""
    known = [e.model_error for e in entries if e.model_error is not None]
    return math.hypot(*known) if known else None


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


class MomentsUsed(_Record):
    """Where the moments of a plan come from: their source, what it takes to make them again, and their hash."""

    source: str
    recipe: dict = {}
    fingerprint: str
    file: str | None = None


class Plan(_Record):
    """One entry a matrix, the target they were chosen for, and what the model weighs before and after."""

    schema_: Literal["spectrim.plan/1"] = Field(default=SCHEMA, alias="schema")
    version: str = ""
    model: Subject
    target: dict[Literal["params", "zeros", "error"], float]
    budget: str = ""  # who gives how many zeros, as a configuration; of ranks there is one rule only
    moments: MomentsUsed | None = None
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
    def model_error(self) -> float | None:
        """What all cuts together do to the output of the model, as a share of it; None where outputs are not weighed.

        The root of the sum of squares of the entries' own: errors of different matrices taken for unrelated, each to
        first order. It ranks plans well and is no bound; above 1/2 or so it says that little of the output is left.
        """
        return together(self.touched)

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
        raw = read_record(path, "plan", SCHEMA)
        try:
            found = cls.model_validate(raw)
        except ValidationError as error:
            raise ValueError(f"{path}: " + "; ".join(_explain(raw, e) for e in error.errors()[:5])) from None
        return found.model_copy(update={"entries": tuple(entry.derived() for entry in found.entries)})

    def __str__(self) -> str:
        before, after = self.params_before, self.params_after
        if "zeros" in self.target:
            by = f", by {self.budget}" if self.budget else ""
            head = f"{self.zeros} of {before} entries at zero ({self.zeros / before:.1%}{by})"
        else:
            head = f"{after} of {before} parameters kept ({after / before:.1%})"
        whole = self.model_params_after / self.model_params_before
        lines = [f"plan for {self.model.label}: {head}; the whole model keeps {whole:.1%} of its parameters"]
        if (moved := self.model_error) is not None:
            lines.append(f"  its output is expected to change by {moved:.1%}")
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
