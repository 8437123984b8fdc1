"""The claims on limits: appendix D, eq. 77 and the lemma of P23b.

Means held against their limits: how far they lie off, how far they may, and what could have been missed.
"""

from __future__ import annotations

import numpy as np
from experiments.theory.spikes import STRENGTHS
from experiments.theory.wording import Found, Rows, judged, pm, spans
from scipy.stats import t as student

LEVEL = 0.05  # the chance that any of the means of a table lies further off than `enough`, if all limits are right
SIDES = ("values", "short", "long")
# Title, what is printed, and the cells whose means are held against their limits.
MAPS = (
    ("P25 D.3 to D.7: square", "theta + 1 / theta, edge 2, cos² = 1 - theta⁻²", ("gaussian c=1.0 g=1.0",)),
    ("P25 lemma D.8: variance g", "theta + g / theta above sqrt(g), 2 sqrt(g)", ("gaussian c=1.0 g=0.25",)),
    ("P25 D.1, D.2, (77) to (83): rectangular", "D of the Marchenko-Pastur law", ("gaussian c=0.5 g=1.0",)),
    ("the same, other independent entries", "the same", ("uniform c=0.5 g=1.0", "student5 c=0.5 g=1.0")),
)
LEMMAS = (1.0, 0.5)  # c of the approximation lemma
# Deviations in per cent that must not be missed, of values and of squares: agreement of coarse means says nothing.
SEEN = {"values": 5.0, "squares": 20.0}

Pair = tuple[list[list[float]], list[float]]  # (means, standard errors), limits


def quantile(comparisons: int, draws: int) -> float:
    """Returns the standard errors within which all of so many means lie with probability 1 - LEVEL or more.

    The errors come from the draws themselves, so a distance in units of them follows Student's law with draws - 1
    degrees of freedom; this is its two-sided quantile at LEVEL / comparisons (Bonferroni).

    Example:
        >>> round(quantile(1, 10**6), 2), round(quantile(60, 16), 2)
        (1.96, 4.16)
    """
    return float(student.ppf(1 - LEVEL / (2 * comparisons), draws - 1))


def off(pairs: list[Pair]) -> float:
    """Returns the largest distance of means from their limits, in standard errors."""
    return max(float(np.max(np.abs(np.subtract(means, limit)) / errors)) for (means, errors), limit in pairs)


def unseen(pairs: list[Pair], within: float) -> float:
    """Returns the deviation, in per cent of the limit, that may have been missed: so many of the largest errors."""
    return max(100 * within * float(np.max(np.divide(errors, limit))) for (_, errors), limit in pairs)


def map_pairs(results: Found, names: tuple[str, ...], size: int = -1, sides: tuple[str, ...] = SIDES) -> list[Pair]:
    """Returns what these cells of `spikes` hold at a size, the three signals that are seen, with the limits."""
    cells = [results[f"spikes {name}"] for name in names]
    return [([part[:3] for part in v["sizes"][size][side]], v["limit"][side][:3]) for v in cells for side in sides]


def lemma_pairs(results: Found, c: float, size: int = -1) -> list[Pair]:
    """Returns the same of `approximation`, along the signals."""
    v = results[f"approximation gaussian c={c}"]
    return [(v["sizes"][size]["cut, along"], v["limit along"])]


def enough(results: Found, size: int = -1) -> float:
    """Returns `quantile` for all comparisons of the table of claims at a size."""
    pairs = [pair for *_, names in MAPS for pair in map_pairs(results, names, size)]
    pairs += [pair for c in LEMMAS for pair in lemma_pairs(results, c, size)]
    return quantile(sum(len(limit) for _, limit in pairs), size_of(results, size)[1])


def size_of(results: Found, size: int) -> tuple[int, int]:
    """Returns (p, draws) of the compared cells; ValueError if they differ."""
    cells = [results[f"spikes {name}"] for *_, names in MAPS for name in names]
    cells += [results[f"approximation gaussian c={c}"] for c in LEMMAS]
    found = {(v["sizes"][size]["p"], v["sizes"][size]["draws"]) for v in cells}
    if len(found) != 1:
        raise ValueError(f"the cells have different sizes: {sorted(found)}")
    return found.pop()


def spike_claims(results: Found) -> Rows:
    """Returns the rows on appendix D and eq. 77."""
    maps = {k.removeprefix("spikes "): v for k, v in results.items() if k.startswith("spikes")}
    last = {name: v["sizes"][-1] for name, v in maps.items()}
    rows = []
    (small, many), (large, few) = (size_of(results, size) for size in (0, -1))
    loose, limit = (enough(results, size) for size in (0, -1))
    for title, printed, names in MAPS:
        first, worst = (off(map_pairs(results, names, size)) for size in (0, -1))
        rates, errors = ([b for n in names for b in maps[n][f"{key}rate of rms error"]] for key in ("", "error of "))
        values, cosines = (unseen(map_pairs(results, names, sides=part), limit) for part in (SIDES[:1], SIDES[1:]))
        measured = (
            f"p = {large}, {few} draws: values and cos² within {worst:.1f} standard errors (limit {limit:.1f}; "
            f"{values:.1f} % of a value, {cosines:.0f} % of a cos² could be missed); p = {small}, {many} draws: within "
            f"{first:.1f} (limit {loose:.1f}); error of values p^({spans(rates)}), each ± {spans(errors)}"
        )
        fine = values < SEEN["values"] and cosines < SEEN["squares"]
        verdict = "holds" if first < loose else f"holds, with a bias at p = {small}"
        rows.append([title, printed, measured, judged(worst < limit and max(rates) < -0.25 and fine, verdict)])
    squared, law = last["gaussian c=1.0 g=1.0"]["short"][0][2], 1 - STRENGTHS[2] ** -2
    short, sides = last["gaussian c=0.5 g=1.0"]["short"], maps["gaussian c=0.5 g=1.0"]["limit"]
    right, swapped = (off([(short, sides[side])]) for side in ("short", "long"))
    others = [last[f"{name} c=0.5 g=1.0"] for name in ("haar", "product", "uneven")]
    own, plain = ([x for t in others for x in t[f"rms error{key}"]] for key in (", own", ""))
    edge = maps["student3 c=0.5 g=1.0"]["limit"]["top of noise"]
    heavy = maps["student3 c=0.5 g=1.0"]["sizes"]
    five, first, three = (t["top of noise"] for t in (last["student5 c=0.5 g=1.0"], heavy[0], heavy[-1]))
    return [
        *rows,
        [
            "D.5, reading: the square of the cosine, or the cosine",
            f"1 - theta⁻² = {law:.3f} at theta = {STRENGTHS[2]:g}",
            f"cosine² {squared:.3f}, cosine {squared**0.5:.3f}",
            judged(abs(squared - law) < 0.1 * abs(squared**0.5 - law), "the square"),
        ],
        [
            "(80), (81), reading: which side phi belongs to",
            "the vectors of the short side p",
            f"within {right:.1f} standard errors so, {swapped:.0f} if swapped",
            judged(right < limit < swapped, "the short side"),
        ],
        [
            "P25 (77) for noise of another law (Haar, product, uneven rows)",
            "D⁻¹(1 / theta²), D of the noise at hand",
            f"rms error at p = {others[0]['p']}: {spans(own, 3)}; by the Marchenko-Pastur map {spans(plain, 3)}",
            judged(max(own) < 0.02 and max(plain) > 0.03, "holds, and the Marchenko-Pastur map does not"),
        ],
        [
            "P25 assumptions 5 and 7: the largest value of R tends to the edge",
            f"edge {edge:.3f} at c = 1/2",
            f"Student 5: {pm(five, 3)}; Student 3: {pm(first, 2)} at p = {heavy[0]['p']}, {pm(three, 2)} at "
            f"{heavy[-1]['p']}",
            judged(three[0] > 1.3 * edge and abs(five[0] / edge - 1) < 0.05, "holds for 5, breaks for 3"),
        ],
    ]


def approximation_claims(results: Found) -> Rows:
    """Returns the rows on the lemma of P23b."""
    rows, limit = [], enough(results)
    for c in LEMMAS:
        v = results[f"approximation gaussian c={c}"]
        t = v["sizes"][-1]
        worst, missed = off(lemma_pairs(results, c)), unseen(lemma_pairs(results, c), limit)
        rows.append(
            [
                f"P23b approximation lemma, reconstructed, c = {c:g}: ‖(W' - S) z‖²",
                "bounded with high probability",
                f"p = {t['p']}, {t['draws']} draws: z along the signal {spans(t['cut, along'][0])}, within {worst:.1f} "
                f"standard errors of the limits ({missed:.0f} % could be missed); worst z {t['cut, worst'][0]:.2f}, "
                f"limit {v['limit worst']:.2f}; random z {t['cut, random'][0]:.4f} (p^{v['rate, random']:.2f})",
                judged(worst < limit and missed < SEEN["squares"] and t["over coarse bound"] == 0),
            ]
        )
        rows.append(
            [
                "reading: small, so that the cut matrix is nearer to S than W is",
                "-",
                f"‖(W - S) z‖²: {spans(t['whole, along'][0])} along the signal, {t['whole, random'][0]:.3f} for random",
                judged(
                    min(np.subtract(t["cut, along"][0], t["whole, along"][0])) > 0 and t["cut, random"][0] < 0.1,
                    "for random z; along the signal the cut leaves as much as there was, or more",
                ),
            ]
        )
    heavy = results["approximation student3 c=0.5"]["sizes"][-1]
    rows.append(
        [
            "the same with Student 3 noise",
            "excluded",
            f"values kept {pm(heavy['kept'], 1)}, true 3; over the coarse bound in "
            f"{100 * heavy['over coarse bound']:.0f} % of the draws",
            judged(heavy["kept"][0] > 4, "breaks: values of the noise are kept"),
        ]
    )
    return rows
