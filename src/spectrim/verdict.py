"""The verdict on one matrix: what several estimators say, whether the law fits, and what to make of it.

The rule, in this order, with m the misfit of the bulk and the gate g + 2 / p (two values' worth of chance):

    heavy-tailed   m > gate, and the largest eigenvalues follow a power law (`tails.is_heavy`)
    no fit         m > gate, or more than half of the values stand above the edge
    noise-like     the bulk fits and no value stands above the edge
    spiked         the bulk fits and some do

With m = .1 the middle of the spectrum is off by a tenth of its values, and the noise level by about as many per cent:
an edge drawn from it means little, so nothing is cut on its word. Pure noise has m under .004 at 768 x 768.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from spectrim.edges import Bema, Broadening, GavishDonoho, Median, ScreeNot
from spectrim.spectrum import NoiseFit, Spectrum
from spectrim.tails import Tail, is_heavy, power_tail

KINDS = ("noise-like", "spiked", "heavy-tailed", "no fit")
GATE = 0.1  # the cutoffs in the papers run from .01 to .15; this one lets the noise level be off by a tenth
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
        gate: the misfit up to which the bulk counts as fitting, before 2 / p is added.
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
) -> Verdict:
    """Returns the `Verdict` on a spectrum whose default fit is given; the rule stands above.

    Args:
        spectrum: what was measured.
        fit: the default estimator's; it decides. Where it measures no misfit, that of `Bema` is taken.
        panel: estimators to set side by side, by name; `PANEL` unless told, {} for none.
        gate: largest misfit of a bulk that fits, in [0, 1].

    Example:
        >>> import numpy as np
        >>> loud = Spectrum(np.linspace(1, 9, 50) ** 3, 50, 80)
        >>> judge(loud, Bema()(loud), panel={}).kind
        'no fit'

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
    crowded = fit.spikes > spectrum.p // 2
    misfit = fit.misfit if fit.misfit is not None or crowded else _misfit(spectrum)
    tail = power_tail(spectrum.eigenvalues)
    kind, reason = _rule(spectrum.p, fit.spikes, crowded, misfit, gate, tail)
    return Verdict(kind, reason, fits, refused, agreement, misfit, gate, tail)


def _misfit(spectrum: Spectrum) -> float | None:
    try:
        return Bema()(spectrum).misfit
    except ValueError:
        return None


def _rule(p: int, spikes: int, crowded: bool, misfit: float | None, gate: float, tail: Tail | None) -> tuple[str, str]:
    limit = gate + 2 / p
    if misfit is not None and misfit <= limit and not crowded:
        fits = f"the bulk fits (misfit {misfit:.3f} of at most {limit:.3f})"
        if spikes == 0:
            return "noise-like", f"no value stands above the edge and {fits}"
        return "spiked", f"{spikes} of {p} values stand above the edge and {fits}"
    if crowded or misfit is None:
        why = f"{spikes} of {p} values stand above the edge, so no majority of noise is left to fit"
    else:
        why = f"the bulk does not fit (misfit {misfit:.3f} of at most {limit:.3f})"
    if tail is not None and is_heavy(tail):
        law = f"a power law of exponent {tail.exponent:.1f}"
        return "heavy-tailed", f"{why}; the {tail.count} largest eigenvalues follow {law}"
    return "no fit", why
