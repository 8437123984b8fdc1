"""Zeros shared out: which matrices take part, how many zeros each one gets, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

from torch import Tensor

from spectrim import edges
from spectrim.reading import Equalised, equalize
from spectrim.readings import Reading
from spectrim.sites import READ_ONLY, listed
from spectrim.spectrum import NoiseFit, Spectrum
from spectrim.survey import Survey, inventory
from spectrim.verdict import GATE, judge

NONE = "no matrix has a bulk that fits the law of noise: zeros go to the smallest magnitudes of all matrices together"


@dataclass(frozen=True)
class Allotment:
    """Zeros by matrix, with a reason for each.

    Args:
        counts: entries at zero, by the name of the matrix, those included that are zero already.
        reasons: half a sentence a matrix, by its name; it may be empty.
        notes: what the reader must know about the whole.

    Example:
        >>> Allotment({"a": 3, "b": 1}, {}).zeros
        4
    """

    counts: Mapping[str, int]
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def zeros(self) -> int:
        """All of them."""
        return sum(self.counts.values())


Budget = Callable[[Survey, float], Allotment]


@dataclass(frozen=True, eq=False)
class Target:
    """A matrix that can take zeros, with what the survey says of it in the basis that the zeros are chosen in.

    `kernel` is the trailing shape of a convolution's weight, (inputs of a group, height, width), where it is known.
    """

    reading: Reading
    spectrum: Spectrum
    fit: NoiseFit
    kernel: tuple[int, ...] = ()
    read: Callable[[], Tensor] | None = field(default=None, repr=False)
    even: Even | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the matrix."""
        return self.reading.name

    @property
    def entries(self) -> int:
        """Rows times columns, a count."""
        return self.reading.rows * self.reading.cols

    @property
    def norm(self) -> float:
        """The Frobenius norm, which evening out keeps; of the spectrum, so that nothing is read for it."""
        return math.sqrt(float((self.spectrum.s**2).sum()))

    def stored(self) -> tuple[Tensor, Equalised | None]:
        """Return the matrix as it is, rows x cols, and the scales that even it out, None in the plain basis."""
        if self.read is None:
            raise ValueError("the survey does not hold the model that it was made of: survey it again to plan zeros")
        W = self.read()
        return W, None if self.even is None else self.even.of(self.name, W)

    def get(self) -> Tensor:
        """Return the matrix in the basis that the zeros are chosen in."""
        W, scales = self.stored()
        return W if scales is None else scales.apply(W)


@dataclass(frozen=True, eq=False)
class Even:
    """The source of a survey whose matrices are read with their row and column scales evened out."""

    source: object
    edge: Callable[[Spectrum], NoiseFit]
    known: dict[str, Equalised] = field(default_factory=dict)

    def of(self, name: str, W: Tensor) -> Equalised:
        """Return the scales of a matrix, found once."""
        if name not in self.known:
            self.known[name] = equalize(W, edge=self.edge)
        return self.known[name]


def evened(found: Survey) -> Survey:
    """Return the survey with every matrix read evened out, D1 W D2: budgets asked of it choose zeros in that basis.

    A matrix that the survey judged as it is, because its scales cannot be found, is read as it is.

    Args:
        found: a survey made with equalisation, by an estimator of `spectrim.edges`.
    """
    if not found.equalised:
        raise ValueError("the survey was made without equalisation: survey again with equalize=True, or basis='plain'")
    if found.source is None or isinstance(found.source, Even):
        return found
    try:
        edge = edges.from_repr(found.edge)
    except ValueError:
        raise ValueError(
            f"zeros in the equalised basis of {found.edge!r}, which is no estimator of spectrim.edges, could not be "
            "carried out: plan with basis='plain'"
        ) from None
    return replace(found, source=Even(found.source, edge))


def candidates(found: Survey) -> tuple[Target, ...]:
    """Return the matrices of a survey that can take zeros, in its order: those with a verdict, but pairs and fp8.

    Raises ValueError where there is none. What a model holds is looked up only if the survey still knows the model.

    Example:
        >>> import torch, spectrim
        >>> [t.name for t in candidates(spectrim.survey({"a": torch.randn(20, 30)}))]
        ['a']
    """
    fitted = [r for r in found.fitted if r.kind not in ("pair", READ_ONLY)]
    if not fitted:
        if any(r.kind == READ_ONLY for r in found.fitted):
            raise ValueError(f"the matrices of {found.model} are kept as fp8, which is read only: convert them first")
        if found.fitted:
            raise ValueError("all its matrices are pairs of layers, which take no zeros: plan params, or sparsify them")
        raise ValueError(f"{found.model} has no matrix with a verdict, so there is nothing to plan for")
    even = found.source if isinstance(found.source, Even) else None
    source = even.source if even else found.source
    sites = {} if source is None else {site.name: site for site in inventory(source, found.fused).sites}
    if source is not None and (gone := [r.name for r in fitted if r.name not in sites]):
        raise ValueError(f"{listed(gone)} stood in the model when it was surveyed, and does not now: survey it again")
    targets = []
    for r in fitted:
        site = sites.get(r.name)
        plain = even is None and r.plain is not None and r.plain_spectrum is not None
        spectrum, fit = (r.plain_spectrum, r.plain) if plain else (r.spectrum, r.fit)
        kernel = site.layer.kernel if site and site.layer else ()
        read = site.get if site else None
        targets.append(Target(r, spectrum, fit, kernel, read, even if r.spectrum.equalised else None))
    return tuple(targets)


def asked(targets: Sequence[Target], zeros: float) -> int:
    """Return the number of zeros that a share of all entries is, rounded to the nearest; ValueError outside [0, 1].

    Example:
        >>> asked([], 0.5)
        0
    """
    if isinstance(zeros, bool) or not isinstance(zeros, Real) or not 0 <= zeros <= 1:
        raise ValueError(f"a share of zeros lies in [0, 1], not {zeros!r}: 0.5 means one half")
    return round(float(zeros) * sum(t.entries for t in targets))  # a product of 32 bits would not be exact


def share_out(weights: Sequence[float], room: Sequence[int], total: int) -> list[int]:
    """Return whole numbers in proportion to the weights, none above its room, that add up to the total exactly.

    Webster's rule: number k of place i is worth weight_i / (k - 1/2), and the `total` most valuable ones are given. So
    every number is its weight times one common factor, rounded, or its room where that is less: what one place cannot
    take goes to the others in proportion. More in total never means less for one. Of equally valuable ones the earlier
    place goes first. Places of weight zero come last of all, in proportion to their room.

    Args:
        weights: finite, >= 0.
        room: the most that each can take.
        total: to be shared out, 0 to the sum of room.

    Example:
        >>> share_out([1.0, 1.0, 2.0], [100, 2, 100], 11)
        [3, 2, 6]

    References:
        M. Balinski and H. P. Young, Fair Representation (1982), on the method of Webster.
    """
    if not 0 <= total <= sum(room):
        raise ValueError(f"{total} cannot be shared out over places for {sum(room)}")
    wanted = [r if w > 0 else 0 for w, r in zip(weights, room, strict=True)]
    if total > sum(wanted):
        left = [r - k for r, k in zip(room, wanted, strict=True)]
        more = share_out([float(r) for r in left], left, total - sum(wanted))
        return [k + m for k, m in zip(wanted, more, strict=True)]
    # Beyond a hundred digits a weight tells no more, and would overflow.
    weights = [max(w / max(weights), 1e-100) if w > 0 else 0.0 for w in weights]
    factor = _factor(weights, wanted, total)
    given = [min(r, math.floor(factor * w + 0.5)) for w, r in zip(weights, wanted, strict=True)]
    while (short := total - sum(given)) != 0:
        # How soon the next one of each is reached, or the last one was: half a place each at most to put right.
        if short > 0:
            i = min((i for i, r in enumerate(wanted) if given[i] < r), key=lambda i: ((given[i] + 0.5) / weights[i], i))
            given[i] += 1
        else:
            i = max((i for i, k in enumerate(given) if k), key=lambda i: ((given[i] - 0.5) / weights[i], i))
            given[i] -= 1
    return given


def lifted(counts: Mapping[str, int], there: Mapping[str, int]) -> dict[str, int]:
    """Return the counts lifted to the zeros that are there already, the same in all.

    What a matrix holds beyond its count the others give less, in proportion to their counts: each gets the larger of
    what it holds and its count times one common factor, rounded as in `share_out`.

    Args:
        counts: zeros by the name of the matrix.
        there: entries that are zero already, by the same names; no more in all than `counts`.

    Example:
        >>> lifted({"a": 10, "b": 20, "c": 40}, {"a": 40, "b": 0, "c": 0})
        {'a': 40, 'b': 10, 'c': 20}
    """
    total, held, found = sum(counts.values()), set(), dict(counts)
    while low := {name for name in counts if found[name] < there[name]}:
        held |= low  # the factor only falls, so these stay held
        rest = [name for name in counts if name not in held]
        room = [counts[name] for name in rest]
        given = share_out([float(r) for r in room], room, total - sum(there[name] for name in held))
        less = dict(zip(rest, given, strict=True))
        found = {name: less.get(name, there[name]) for name in counts}
    return found


def _factor(weights: Sequence[float], room: Sequence[int], total: int) -> float:
    """The x at which the sum of min(room, x weight) is the total."""
    places = sorted((r / w, w, r) for w, r in zip(weights, room, strict=True) if w > 0)
    full, open_ = 0, math.fsum(w for _, w, _ in places)
    for reached, w, r in places:
        if full + reached * open_ >= total:
            return (total - full) / open_
        full, open_ = full + r, open_ - w
    return places[-1][0] if places else 0.0


def unfit(readings: Iterable[Reading], gate: float) -> dict[str, str]:
    """Return the matrices whose bulk does not fit the law of noise, by name, and why; none where the gate is 1.

    The verdict is the survey's, on the matrix evened out unless it was told otherwise, whatever the basis.
    """
    closed = {}
    for r in readings if gate < 1 else ():
        try:  # that under the usual gate is kept by the reading
            verdict = r.verdict if gate == GATE else judge(r.spectrum, r.fit, panel={}, gate=gate, uneven=r.uneven)
        except ValueError as error:  # fitted by an estimator of the user's own, and too small for a verdict
            closed[r.name] = str(error)
            continue
        if not verdict.cuttable:
            closed[r.name] = f"{verdict.kind}: {verdict.reason}"
    return closed


def told(closed: Mapping[str, str], instead: str) -> tuple[str, ...]:
    """Return the note on matrices that do not fit the law, which takes `instead` for them; none where all fit."""
    if not closed:
        return ()
    who = "1 matrix does" if len(closed) == 1 else f"{len(closed)} matrices do"
    names = f"{who} not fit the law of noise ({listed(list(closed))})"
    return (f"{names}: the budget takes {instead}. gate=1 (--gate 1) believes every fit",)


def check_gate(gate: float) -> None:
    """Return nothing; ValueError where a gate does not lie in [0, 1]."""
    if isinstance(gate, bool) or not isinstance(gate, Real) or not 0 <= gate <= 1:
        raise ValueError(f"a gate lies in [0, 1], not {gate!r}: the largest misfit of a bulk that is believed")
