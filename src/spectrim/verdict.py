"""The verdict on one matrix: what several estimators say, whether the law fits, and what to make of it.

The rule, in this order, with m the misfit of the bulk and the gate g + 2 / k (two values' worth of chance, of the
k that are known: all p, or those that a cut has left):

    heavy-tailed   m > gate, and the largest eigenvalues follow a power law (`tails.is_heavy`)
    no fit         m > gate; or more than half of the values stand above the edge; or rows and columns that were to be
                   evened out could not be; or no value stands above the edge, and yet the median eigenvalue shows more
                   than 3 and 2 per cent of p (signal that fills the window), or the largest lies below where the noise
                   would end
    noise-like     the bulk fits and no value stands above the edge
    spiked         the bulk fits and some do

The spectrum is the one that the survey judges, equalised unless it was told otherwise: uneven rows and columns are no
signal, and rank does not change when they are evened out. With m = .1 the middle of the spectrum is off by a tenth of
its values: an edge drawn from it means little, so nothing is cut on its word. Pure noise has m of about .004 at
768 x 768. A small misfit is no proof of a right sigma, though: dense signal can pass for louder noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from spectrim.edges import Bema, Broadening, GavishDonoho, Median, ScreeNot
from spectrim.spectrum import NoiseFit, Spectrum
from spectrim.tails import Tail, is_heavy, power_tail

KINDS = ("noise-like", "spiked", "heavy-tailed", "no fit")
GATE = 0.1  # the cutoffs in the papers run from .01 to .15
PANEL: Mapping[str, Callable[[Spectrum], NoiseFit]] = {
    "bema": Bema(),
    "median": Median(),
    "broadening": Broadening(),
    "gavish-donoho": GavishDonoho(),
    "screenot": ScreeNot(),
}
NOISE = ("bema", "median", "broadening")  # the members that answer one question: where does the noise end?


@dataclass(frozen=True)
class Verdict:
    """What is to be made of one matrix.

    Args:
        kind: "noise-like", "spiked", "heavy-tailed" or "no fit"; under the last two nothing is cut.
        reason: one sentence with the figures that decided.
        fits: what each estimator of the panel found, by its name.
        refused: those that had no answer, and why.
        agreement: smallest over largest count of spikes among the estimators of the noise's edge (`NOISE`), in [0, 1];
            1 where all see none; None where none was asked. The others draw the line where keeping a value starts to
            pay in the squared error, which is higher up on purpose.
        misfit: of the bulk to its law, in [0, 1], or None where it was not measurable.
        gate: the misfit up to which the bulk counts as fitting, before 2 / k is added.
        tail: the power law of the largest eigenvalues, or None where there are too few.

    Example:
        >>> import numpy as np
        >>> from spectrim.planted import noise
        >>> W = noise(60, 90, generator=np.random.default_rng(1))
        >>> spectrum = Spectrum(np.linalg.svd(W, compute_uv=False), 60, 90)
        >>> judge(spectrum, Bema()(spectrum)).kind
        'noise-like'
    """

    kind: str
    reason: str
    fits: Mapping[str, NoiseFit] = field(repr=False)
    refused: Mapping[str, str] = field(repr=False)
    agreement: float | None
    misfit: float | None
    gate: float
    tail: Tail | None

    @property
    def cuttable(self) -> bool:
        """Whether the bulk fits the law of noise, so that it may be cut on its word."""
        return self.kind in ("noise-like", "spiked")

    def to_dict(self) -> dict:
        """Return the verdict as the survey file holds it; the estimators stand elsewhere."""
        tail = self.tail and {
            key: getattr(self.tail, key) for key in ("exponent", "stderr", "start", "count", "distance")
        }
        own = {key: getattr(self, key) for key in ("kind", "reason", "agreement", "misfit", "gate")}
        return own | {"tail": tail}


def judge(
    spectrum: Spectrum,
    fit: NoiseFit,
    panel: Mapping[str, Callable[[Spectrum], NoiseFit]] | None = None,
    gate: float = GATE,
    uneven: float | None = None,
) -> Verdict:
    """Returns the `Verdict` on a spectrum whose default fit is given; the rule stands above.

    Args:
        spectrum: what was measured.
        fit: the default estimator's; it decides. Where it measures no misfit, that of `Bema` is taken.
        panel: estimators to set side by side, by name; `PANEL` unless told, {} for none.
        gate: largest misfit of a bulk that fits, in [0, 1].
        uneven: how far row and column mean squares still differ where they could not be evened out, as a share; None
            where they could, or were not to be.

    Example:
        >>> import numpy as np
        >>> loud = Spectrum(np.linspace(1, 9, 50) ** 3, 50, 80)
        >>> judge(loud, Bema()(loud), panel={}).kind
        'heavy-tailed'

    References:
        A gate on the misfit: Shmalo, Jenkins and Krupchytskyi, arXiv 2303.08986, section 4.3; heavy tails: C. H. Martin
        and M. W. Mahoney, J. Mach. Learn. Res. 22 (2021), art. 165.
    """
    fits, refused = {}, {}
    for name, edge in (PANEL if panel is None else panel).items():
        try:
            fits[name] = edge(spectrum)
        except (ValueError, ArithmeticError) as error:
            refused[name] = str(error)
    counts = [found.spikes for name, found in fits.items() if name in NOISE]
    agreement = (min(counts) / max(counts) if max(counts) else 1.0) if counts else None
    crowded = fit.spikes > spectrum.p // 2 and spectrum.complete
    odd = None if fit.spikes or crowded or fit.sigma is None else _odd(spectrum, fit.sigma)
    misfit = fit.misfit if fit.misfit is not None or crowded else _misfit(spectrum)
    tail = power_tail(spectrum.eigenvalues)
    kind, reason = _rule(len(spectrum.s), fit.spikes, crowded, misfit, gate, tail, uneven, odd)
    return Verdict(kind, reason, fits, refused, agreement, misfit, gate, tail)


def _misfit(spectrum: Spectrum) -> float | None:
    try:
        return Bema()(spectrum).misfit
    except ValueError:
        return None


def _odd(spectrum: Spectrum, sigma: float) -> str | None:
    """What speaks against noise where no value stands above the edge, or None."""
    shown = Median()(spectrum).spikes if spectrum.complete else 0
    if shown > max(3, 0.02 * spectrum.p):
        return f"no value stands above the edge, but {shown} do by the median: the estimators disagree"
    # One noise matrix in ten thousand ends so early.
    if spectrum.s[0] < sigma * spectrum.noise_edge(1 - 1e-4):
        return "its largest value lies below where noise of this level would end"
    return None


def _rule(
    p: int,
    spikes: int,
    crowded: bool,
    misfit: float | None,
    gate: float,
    tail: Tail | None,
    uneven: float | None,
    odd: str | None,
) -> tuple[str, str]:
    limit = gate + 2 / p
    against = None if gate >= 1 else odd
    if uneven is not None and gate < 1:
        against = f"its rows and columns cannot be evened out: their mean squares differ by {uneven:.0%}"
    if misfit is not None and misfit <= limit and not crowded and against is None:
        fits = f"the bulk fits (misfit {misfit:.3f}, gate {limit:.3f})"
        if spikes == 0:
            return "noise-like", f"no value stands above the edge and {fits}"
        return "spiked", f"{spikes} of {p} values stand above the edge and {fits}"
    if crowded or misfit is None:
        why = f"{spikes} of {p} values stand above the edge, so no majority of noise is left to fit"
    elif misfit > limit:
        why = f"the bulk does not fit (misfit {misfit:.3f}, gate {limit:.3f})"
    else:
        why = against
    if tail is not None and is_heavy(tail) and (misfit is None or misfit > limit):
        law = f"a power law of exponent {tail.exponent:.1f}"
        return "heavy-tailed", f"{why}; the {tail.count} largest eigenvalues follow {law}"
    return "no fit", why
