"""One pruning cycle and one matrix: the settings of the classical procedure, its amounts, and what it does to W."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .decay import Decay, NoClosedForm, as_executed, decayed
from .edges import Bema
from .linalg import Factors, leading
from .metrics import bulk_share
from .reading import read_spectrum
from .readings import Edge
from .sites import FUSED
from .spectrum import Spectrum
from .steps import smallest_to_zero, sparsify_bulk_vectors, sparsify_vectors

STEPS = ("reading", "vectors", "pruning", "decay")


@dataclass(frozen=True)
class Classical:
    """The settings of the cycles; cycle i = 1, 2, ... does three things to each matrix W, rows x cols.

    1. Every other cycle `sparsify_vectors` (eq. 11), its zeros in the vectors and not in W: what was zero in W comes
       back as a small number, and nearly all of it is cut again in 2.
    2. The smallest entries go to zero until, beside those that were zero before the cycle (eq. 12),

           [(1 - mu) gamma]^(exponent / i) rho growth^i nnz

       more are, at least. mu is the misfit of its bulk to the law of noise, gamma the share of its values in the bulk,
       both of W as the cycle met it, and nnz counts the non-zeros of the layer, its bias included.
    3. `decayed`: steps of an optimiser on an L1 and L2 loss of the weights, and no data.

    `Classical()` takes the figures of the authors' script and does exactly what the paper says with them.
    `Classical.text()` has the paper's optimiser and constant rho, `Classical.as_executed()` all that the script does.

    "script" is the authors' published script, "text" arXiv 2503.01922, whose figures were lost from its public copy;
    "inferred" is ours. The successor paper and its scripts are arXiv 2606.02608.

    Args:
        rho: share of the non-zeros that a fully random layer loses in a cycle, in [0, 1]; .06 (script, successor).
        growth: of rho from cycle to cycle, > 0; 1.02 (script), 1 (text).
        exponent: 1.5 (script): early cycles spare what is not random, later ones do not.
        every: the vectors are thinned out in cycles that are a multiple of it; 2 (script, text), 0 for never.
        scale, floor, power: see `sparsify_vectors`; 1.125e-5, 1/750, 30 (script).
        z, cut: see `sparsify_bulk_vectors`, which with a z takes the place of eq. 11; the successor's scripts tried
            .1407 and .76.
        refill: whether zeros of W may come back in 1 (script); if not, they are zero again before 2.
        grid: None for the exact order statistic (text, successor), or (first, step) of eq. 13: xi runs through
            first i, first i + step, ..., and |w| <= max(f, g [(1 - mu) gamma]^(exponent / i)) xi goes; 1e-5 and 2e-5
            (script). It overshoots by up to a step.
        factors: f and g; 3 and 4 (script; the printed equation has one factor). They only matter to a grid.
        edge: tells noise from signal; Bema with alpha .25 and beta .8 (script).
        decay: the settings of the first decay, or None for no decay at all.
        more_steps: how many more it takes from cycle to cycle; 1000 (script), 5 (text).
        most_steps: the most it ever takes; None (script), 40 (text).
        strength: with c here, a layer's pull is multiplied by s_l = 1 / (1 + c mu / i), and there is a group lasso;
            10000 (script), None for neither (text).
        everything: whether all parameters decay (script), or the matrices that were pruned (inferred from "weights").
        rounded: whether the decay rounds every step to float32, as the script's does.
        loop: whether the decay is taken step by step; thousands of times slower, for comparison.
        fused: how weights that hold several matrices are read, as in `survey`; "whole" (script). "split" judges and
            cuts q, k and v apart.

    Example:
        >>> settings = Classical()
        >>> round(settings.amount(1, misfit=0.0, bulk=1.0), 6), round(settings.amount(10, misfit=0.3, bulk=0.9), 6)
        (0.0612, 0.068242)

    References:
        Berlyand, Bourdais, Owhadi and Shmalo, arXiv 2503.01922, section 3.1 and appendix E.5 and E.6.
    """

    rho: float = 0.06
    growth: float = 1.02
    exponent: float = 1.5
    every: int = 2
    scale: float = 1.125e-5
    floor: float = 1 / 750
    power: float = 30
    z: float | None = None
    cut: float = 0.76
    refill: bool = True
    grid: tuple[float, float] | None = None
    factors: tuple[float, float] = (3.0, 4.0)
    edge: Edge = field(default_factory=lambda: Bema(alpha=0.25, beta=0.8))
    decay: Decay | None = field(default_factory=Decay)
    more_steps: int = 1000
    most_steps: int | None = None
    strength: float | None = None
    everything: bool = False
    rounded: bool = False
    loop: bool = False
    fused: str = "whole"

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho is the share of the non-zeros that a cycle takes, in [0, 1], got {self.rho!r}")
        for name in ("growth", "exponent", "power"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("every", "more_steps", "most_steps"):
            count = getattr(self, name)
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
                raise ValueError(f"{name} is a count, 0 or more, got {count!r}")
        if self.grid is not None and not (self.grid[0] >= 0 and self.grid[1] > 0):
            raise ValueError(f"a grid is (first, step) with a positive step, got {self.grid!r}")
        if min(self.factors) <= 0:
            raise ValueError(f"the factors of eq. 13 are positive, got {self.factors!r}")
        if isinstance(self.edge, type) or not callable(self.edge):
            raise TypeError(f"edge is an estimator such as Bema(), a function of a Spectrum, not {self.edge!r}")
        if self.strength is not None and not self.strength >= 0:
            raise ValueError(f"strength is a number, 0 or more, or None, got {self.strength!r}")
        if self.fused not in FUSED:
            raise ValueError(f"fused must be one of {', '.join(FUSED)}, not {self.fused!r}")

    @classmethod
    def text(cls) -> Classical:
        """Returns the settings of the paper: constant rho, SGD of 5, 10, ... 40 steps on the pruned matrices.

        Its learning rate is lost. 50 (inferred) makes the first decay as long as that of the script, 1.25e-4.
        """
        sgd = Decay("sgd", steps=5, lr=50.0, cosine=False, lasso=0.0, weight_decay=0.0)
        return cls(growth=1.0, decay=sgd, more_steps=5, most_steps=40)

    @classmethod
    def as_executed(cls, loop: bool = False) -> Classical:
        """Returns the settings of the script: grid, group lasso, strengths, all parameters, its own misfit.

        The decay takes one pass, each step rounded to float32 as there; with `loop`, step by step.
        """
        edge = Bema(alpha=0.25, beta=0.8, compat="authors")
        return cls(grid=(1e-5, 2e-5), edge=edge, strength=1e4, everything=True, rounded=not loop, loop=loop)

    def share(self, cycle: int) -> float:
        """Returns rho_i, the share of the non-zeros that a fully random layer loses in this cycle, at most 1."""
        return min(1.0, self.rho * self.growth**cycle)

    def randomness(self, cycle: int, misfit: float, bulk: float) -> float:
        """Returns [(1 - mu) gamma]^(exponent / i), in [0, 1]."""
        return (max(0.0, 1 - misfit) * bulk) ** (self.exponent / cycle)

    def amount(self, cycle: int, misfit: float, bulk: float) -> float:
        """Returns the share of its non-zeros that a layer loses in a cycle (eq. 12).

        Args:
            cycle: i, counted from 1.
            misfit: mu in [0, 1].
            bulk: gamma in [0, 1], the share of its singular values that do not exceed the edge.
        """
        return self.randomness(cycle, misfit, bulk) * self.share(cycle)

    def unit(self, cycle: int, misfit: float, bulk: float) -> float:
        """Returns max(f, g [(1 - mu) gamma]^(exponent / i)), the factor of xi in eq. 13."""
        return max(self.factors[0], self.factors[1] * self.randomness(cycle, misfit, bulk))

    def thin_out(self, factors: Factors, edge: float, cycle: int) -> Factors:
        """Returns the factors of W with thinned-out vectors: eq. 11, or with a z what the successor tried."""
        if self.z is not None:
            return sparsify_bulk_vectors(factors, edge, self.z, self.cut)
        return sparsify_vectors(factors, edge, self.share(cycle), scale=self.scale, floor=self.floor, power=self.power)

    def decay_of(self, cycle: int) -> Decay | None:
        """Returns the settings of the decay of this cycle."""
        if self.decay is None:
            return None
        steps = self.decay.steps + (cycle - 1) * self.more_steps
        return replace(self.decay, steps=steps if self.most_steps is None else min(steps, self.most_steps))

    def strength_of(self, cycle: int, misfit: float) -> float | None:
        """Returns s_l = 1 / (1 + c mu / i), or None where all layers decay alike."""
        return None if self.strength is None else 1 / (1 + self.strength * misfit / cycle)

    def decay_tensor(self, W: Tensor, cycle: int, strength: float | None) -> Tensor:
        """Returns what the decay of this cycle leaves of a tensor, at the strength of its layer.

        A tensor whose group lasso has no closed form, a bias near zero, takes the steps.
        """
        how = self.decay_of(cycle)
        if how is None:
            return W
        if self.loop:
            return as_executed([W], how, [strength])[0]
        rounded = self.rounded and W.dtype == torch.float32
        try:
            return decayed(W, how, strength, rounded=rounded)
        except NoClosedForm:
            exact = W if rounded else W.to(torch.float64)  # rounded once, as the closed form is
            return as_executed([exact], how, [strength])[0].to(W.dtype)


@dataclass(frozen=True)
class Treated:
    """A matrix after a cycle, not yet written: W, what the cycle went by, and what it did.

    `returned` counts the entries that were zero and no longer are, `moved` is ||W - W'||_F / ||W||_F, `seconds` has
    the time of each of `STEPS`.
    """

    W: Tensor | None
    misfit: float
    bulk: float
    zeros: int
    returned: int
    moved: float
    seconds: dict[str, float]


def treat(W: Tensor, settings: Classical, cycle: int, beside: int = 0) -> Treated:
    """Returns what a cycle makes of one matrix. ValueError where it cannot be judged, which a cycle leaves alone.

    Args:
        W: rows x cols, any float type; not changed.
        settings: what is done.
        cycle: its number, counted from 1.
        beside: non-zeros that count in nnz and are no entries of W, those of its bias.

    Example:
        >>> W = torch.randn(60, 90, generator=torch.Generator().manual_seed(0))
        >>> found = treat(W, Classical(), cycle=2)
        >>> found.zeros == math.ceil(Classical().amount(2, found.misfit, found.bulk) * W.numel())
        True

    References:
        arXiv 2503.01922, section 3.1.
    """
    clock = _Clock()
    zero, factors = W == 0, None
    if settings.every and cycle % settings.every == 0:
        rows, cols = int(W.any(1).sum()), int(W.any(0).sum())
        if not rows:
            raise ValueError(f"this {W.shape[0]} x {W.shape[1]} matrix is all zero")
        factors = leading(W, min(W.shape))
        # Rows and columns of zeros are no noise, as in `read_spectrum`; all that they add is values of zero.
        spectrum = Spectrum(factors.s[: min(rows, cols)].cpu().numpy(), rows, cols)
        clock.stop("vectors")
    else:
        spectrum = read_spectrum(W)
    fit = settings.edge(spectrum)
    if fit.misfit is None or not fit.edge:
        raise ValueError("more than half of its values stand above the edge: there is no bulk to hold against the law")
    bulk = bulk_share(spectrum, fit.edge)
    clock.stop("reading")
    new = W
    if factors is not None:
        new = settings.thin_out(factors, fit.edge, cycle).dense().to(W.dtype)
        del factors
        if not settings.refill:
            new.masked_fill_(zero, 0)
        clock.stop("vectors")
    before = int(zero.sum())
    goal = math.ceil(settings.amount(cycle, fit.misfit, bulk) * (W.numel() - before + beside))
    if goal:
        zeros = min(before + goal, W.numel())
        if settings.grid is None:
            new = smallest_to_zero(new, zeros)
        else:
            new = cut_on_grid(new, zeros, settings.unit(cycle, fit.misfit, bulk), settings.grid, cycle)
    clock.stop("pruning")
    new = settings.decay_tensor(new, cycle, settings.strength_of(cycle, fit.misfit))
    clock.stop("decay")
    gone = new == 0
    whole = torch.linalg.vector_norm(W, dtype=torch.float64)
    moved = float(torch.linalg.vector_norm(new - W, dtype=torch.float64) / whole)
    return Treated(new, fit.misfit, bulk, int(gone.sum()), int((zero & ~gone).sum()), moved, clock.seconds)


def cut_on_grid(W: Tensor, zeros: int, unit: float, grid: tuple[float, float], cycle: int) -> Tensor:
    """Returns W without the entries |w| <= unit xi, for the first xi of a grid that leaves at least so many zeros.

    The scripts raise xi step by step until enough is gone; the order statistic says where that will be.

    Args:
        W: rows x cols, any float type; not changed.
        zeros: zeros wanted, 1 to the number of entries.
        unit: the larger of the two factors of eq. 13, > 0.
        grid: (first, step): xi = first cycle + k step, k = 0, 1, ...
        cycle: its number.

    Example:
        >>> cut_on_grid(torch.tensor([[1e-4, 2e-4, 3e-4]]), 2, unit=4.0, grid=(1e-5, 2e-5), cycle=1).count_nonzero()
        tensor(1)

    References:
        arXiv 2503.01922, eq. (13).
    """
    size, (first, step) = W.abs(), grid
    level = float(torch.kthvalue(size.reshape(-1), zeros).values)
    k = max(0, math.ceil((level / unit - first * cycle) / step) - 1)  # one earlier: the quotient is rounded
    while int((size <= unit * (first * cycle + step * k)).sum()) < zeros:
        k += 1
    return W.masked_fill(size <= unit * (first * cycle + step * k), 0)


class _Clock:
    """Adds up the seconds of each step, from one `stop` to the next."""

    def __init__(self) -> None:
        self.seconds, self.last = dict.fromkeys(STEPS, 0.0), time.perf_counter()

    def stop(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] += now - self.last
        self.last = now
