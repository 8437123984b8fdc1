"""Claim by claim: what is printed, what was measured, and what to make of it; all of it from the results.

P25 is arXiv 2503.01922, "later" its authors' restatement arXiv 2606.02608, P23b is arXiv 2310.03165.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from experiments.theory.spikes import STRENGTHS

ENOUGH = 3.5  # standard errors within which a mean agrees with its limit: all of some sixty comparisons should

Rows = list[list[str]]
Found = dict[str, Any]


def pm(pair: list[float], digits: int = 4) -> str:
    """Returns mean ± standard error."""
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def spans(values: list[float], digits: int = 2) -> str:
    """Returns the least and the largest."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def off(measured: list[list[float]], limit: list[float]) -> float:
    """Returns the largest distance of means from their limits, in standard errors."""
    means, errors = (np.array(part[: len(limit)]) for part in measured)
    return float(np.max(np.abs(means - limit) / errors))


def judged(holds: bool, words: str = "holds") -> str:
    """Returns the verdict where the check supports it."""
    return words if holds else "not seen here"


def all_claims(found: Found) -> Rows:
    """Returns the table."""
    results = found["results"]
    return [
        ["claim", "printed", "measured", "verdict"],
        *decay_claims(results, found["config"]["example A.1"]),
        *removal_claims(results),
        *bound_claims(results),
        *spike_claims(results),
        *approximation_claims(results),
    ]


def decay_claims(results: Found, example: dict[str, float]) -> Rows:
    """Returns the rows on theorems 4.1 and 5.2."""
    courses = [v for k, v in results.items() if k.startswith("decay")]
    ratios = [v["sigma"][-1] / v["expected"][-1] for v in courses if v["l2"] and v["law"] != "haar"]
    stays = [v["sigma"][-1] for v in courses if not v["l2"]]
    haar = next(v for v in courses if v["law"] == "haar")
    kept, rest = sorted((v for k, v in results.items() if k.startswith("settled")), key=lambda v: v["l2"])
    return [
        [
            "P25 theorem 4.1: noise vanishes where there is L2",
            "‖R‖ to 0 as training converges",
            f"bulk sigma over the closed form after ten epochs {spans(ratios, 3)}; without L2 over its start "
            f"{spans(stays, 3)}",
            judged(max(np.abs(np.log(ratios))) < 0.1 and min(stays) > 0.9, "holds, at the rate of plain weight decay"),
        ],
        [
            "P25 theorem 5.2: the same for other noise (start with Haar values)",
            "‖R‖ to 0",
            f"tail beyond ten directions {haar['tail'][-1]:.3f}, closed form {haar['expected'][-1]:.3f}",
            judged(haar["tail"][-1] < 0.75),
        ],
        [
            "the same near a minimum: 2000 images, full batch, 8000 steps",
            "no bulk is left at a minimum",
            f"left of the start, with L2 and without: sigma {rest['sigma'][-1]:.4f} and {kept['sigma'][-1]:.3f}, tail "
            f"beyond ten directions {rest['tail'][-1]:.3f} and {kept['tail'][-1]:.3f}; gradient {rest['slope']:.0e}, "
            f"{kept['slope']:.0e}",
            judged(rest["sigma"][-1] < 0.01 and rest["tail"][-1] < 0.1 < kept["sigma"][-1]),
        ],
        [
            "the same at the settings of example A.1",
            "L2 1e-6, 100 epochs",
            f"the closed form leaves {100 * example['left']:.1f} % of the noise; to leave a tenth L2 must be "
            f"{example['l2 for a tenth']:.1e}",
            judged(example["left"] > 0.9, "a limit that such a training does not come near"),
        ],
    ]


def removal_claims(results: Found) -> Rows:
    """Returns the rows on theorems 4.2 and 5.3 and corollary 4.3."""
    cells = {k.removeprefix("removal "): v for k, v in results.items() if k.startswith("removal")}
    proper = [v for v in cells.values() if v["law"] != "along"]
    lower = min(t["lower"][0] for v in proper for t in v["widths"])
    rows = [
        [
            "P25 theorem 4.2 (26): without R the loss is lower",
            "with probability to 1",
            f"least share of the draws at any width and law {100 * lower:.0f} %",
            judged(lower > 0.95),
        ]
    ]
    for title, printed, names in (
        ("P25 theorem 4.2 (27): lower by lambda ‖R‖²", "up to o(1), where a(N) to 0", ["fixed gaussian"]),
        ("P25 theorem 5.3: the same for other noise", "the same", 
         ["fixed uniform", "fixed haar", "fixed student3"]),
        ("the same, S below the edge of the noise", "assumption 3 excludes it, later form does not",
         ["fixed gaussian, weak S"]),
        ("the same where a(N) does not vanish", "no claim", ["all gaussian", "all gaussian, weak S"]),
    ):  # fmt: skip
        words = []
        for name in names:
            first, last = cells[name]["widths"][0], cells[name]["widths"][-1]
            words.append(
                f"{name.split(' ', 1)[1]} {first['rms residual']:.4f} to {last['rms residual']:.4f} "
                f"(N^{cells[name]['rate of rms residual']:.2f})"
            )
        if names[0].startswith("all"):
            limits = [cells[name]["widths"][-1]["mean field, change of entropy"] for name in names]
            words.append("limit of the entropy's part " + " and ".join(f"{x:.4f}" for x in limits))
            verdict = judged(abs(limits[1]) > 0.005, "not if S is weak: the part of folded normal units stays")
        else:
            verdict = judged(all(cells[name]["rate of rms residual"] < -0.25 for name in names))
        last = cells[names[0]]["widths"][-1]
        rows.append([title, printed, f"rms of the rest to N = {last['N']}: " + "; ".join(words), verdict])
    last, control = cells["fixed gaussian"]["widths"][-1], cells["fixed along"]["widths"][-1]
    square, linear = (last[f"rms scaled, {key}"] / last["penalty"][0] for key in ("squares", "linear"))
    return [
        *rows,
        [
            "control: a matrix of the same norm along one direction of the data",
            "excluded by assumption 2",
            f"rms of the rest {control['rms residual']:.2f} at N = {control['N']}",
            judged(control["rms residual"] > 0.1, "does not vanish, as it should not"),
        ],
        [
            "P25 corollary 4.3: R scaled by kappa",
            "the loss falls proportionally",
            f"error over lambda ‖R‖² at kappa = 1/2: {square:.4f} with 1 - kappa², {linear:.4f} with 1 - kappa",
            judged(square < 0.05 < linear, "holds with 1 - kappa²; linear it is not"),
        ],
    ]


def bound_claims(results: Found) -> Rows:
    """Returns the rows on lemmas 4.4, 5.4 and B.5 and on the assumptions behind them."""
    cells = {k.removeprefix("removal "): v for k, v in results.items() if k.startswith("removal")}
    proper = [t for v in cells.values() if v["law"] != "along" for t in v["widths"]]
    gaussian = [t for v in cells.values() if v["law"] == "gaussian" for t in v["widths"]]
    rows = []
    for key, title, printed in (
        ("printed", "P25 lemma 4.4, as in its proof", "‖W3‖ ‖W1 s‖ (sqrt(2 log 2N / N) + N^(-3/8))"),
        ("later", "lemma 4.4, later form", "2 sqrt(2) ‖W3‖ ‖W1 s‖ sqrt(log 2N / N)"),
        ("confidence", "its confidence form, delta = .05", "‖W3‖ ‖W1 s‖ sqrt(2 g log(2N T / delta) / N)"),
        ("printed, column", "as in its proof, ‖W3‖ the largest column sum", "the text says L1 norm"),
        ("printed, entries", "as in its proof, ‖W3‖ the sum of all entries", "the same"),
    ):
        over = max(t[f"any over {key}"][0] for t in gaussian)
        shares = [t[f"share of {key}"][0] for t in gaussian]
        verdict = f"holds, {1 / max(shares):.0f} to {1 / min(shares):.0f} times too large"
        measured = f"mean change over bound {spans(shares, 4)}; draws with a sample over it {100 * over:.0f} % at worst"
        rows.append([title, printed, measured, verdict if over == 0 else "does not hold in this reading"])
    used = ("fixed", "root", "all")
    rates = [cells[f"{spread} gaussian"]["rate of a"] for spread in used]
    last = [cells[f"{spread} gaussian"]["widths"][-1] for spread in used]
    ends = ", ".join(f"N^{b:.2f} to {t['a']:.1f}" for b, t in zip(rates, last, strict=True))
    outputs, mean = cells["fixed gaussian"]["outputs"], last[2]["mean field, mean change"]
    light = max(t["over d1"][0] for k in ("gaussian", "uniform", "haar") for t in cells[f"fixed {k}"]["widths"])
    heavy = [t["over d1"][0] for t in cells["fixed student3"]["widths"]]
    broken = max(t["entropy over bound"][0] for t in proper)
    share = max(t["entropy, share of bound"][0] for t in proper)
    flips = [t["flipped"][0] for t in (cells["fixed gaussian"]["widths"][0], last[0])]
    against = max(t["flipped against it"][0] for t in proper)
    opened = ", ".join(f"{100 * t['open to change'][0]:.0f} %" for t in last)
    return [
        *rows,
        [
            "P25 assumption 1: a(N, s) of (16) vanishes",
            "assumed",
            f"64, about 8 sqrt(N), all units used: {ends} at N = {last[0]['N']}; mean output {outputs:.1f}",
            judged(rates[0] < -0.2 < rates[2], "met only where few units carry the function, and late"),
        ],
        [
            "change of the outputs where all units are used",
            "no claim",
            f"mean {pm(last[2]['mean change'], 3)} at N = {last[2]['N']}, limit {mean:.3f}",
            judged(mean > 0.05, "does not vanish, as a(N) does not"),
        ],
        [
            "P25 assumption 5, lemma 5.4: ‖Rv‖ small in every entry",
            "2 sqrt(2 log 2N / N) ‖v‖ (Gaussian)",
            f"samples over it: Gaussian, uniform, Haar {100 * light:.2f} %, Student 3 {100 * max(heavy):.1f} % at most",
            judged(light < 0.005 < max(heavy), "holds, but for Student 3"),
        ],
        [
            "P25 lemma B.5 (71), later form: the entropy changes by at most 4 sqrt(2) mean a",
            "with probability to 1",
            f"over it in {100 * broken:.0f} % of the draws; mean change at most {share:.5f} of it",
            judged(broken == 0, f"holds, more than {int(1 / share)} times too large"),
        ],
        [
            "P25 lemma B.5: the accuracy stays",
            "later form: only margins under 2 tau can change",
            f"samples that change sides {100 * flips[0]:.1f} to {100 * flips[1]:.1f} %, N = 64 to {last[0]['N']}; "
            f"against the rule {100 * against:.1f} %; the rule leaves open {opened}",
            judged(against == 0 and flips[1] < 0.3 * flips[0], "holds; the rule certifies little at these widths"),
        ],
    ]


def spike_claims(results: Found) -> Rows:
    """Returns the rows on appendix D and eq. 77."""
    maps = {k.removeprefix("spikes "): v for k, v in results.items() if k.startswith("spikes")}
    last = {name: v["sizes"][-1] for name, v in maps.items()}
    rows = []
    for title, printed, names in (
        ("P25 D.3 to D.7: square", "theta + 1 / theta, edge 2, cos² = 1 - theta⁻²", ["gaussian c=1.0 g=1.0"]),
        ("P25 lemma D.8: variance g", "theta + g / theta above sqrt(g), 2 sqrt(g)", ["gaussian c=1.0 g=0.25"]),
        ("P25 D.1, D.2, (77) to (83): rectangular", "D of the Marchenko-Pastur law", ["gaussian c=0.5 g=1.0"]),
        ("the same, other independent entries", "the same", ["uniform c=0.5 g=1.0", "student5 c=0.5 g=1.0"]),
    ):
        worst = max(off(last[n][key], maps[n]["limit"][key][:3]) for n in names for key in ("values", "short", "long"))
        rates = [b for n in names for b in maps[n]["rate of rms error"]]
        measured = (
            f"values and cos² within {worst:.1f} standard errors at p = {last[names[0]]['p']}; error p^({spans(rates)})"
        )
        rows.append([title, printed, measured, judged(worst < ENOUGH and max(rates) < -0.25)])
    square, wide = last["gaussian c=1.0 g=1.0"], last["gaussian c=0.5 g=1.0"]
    squared, law = square["short"][0][2], 1 - STRENGTHS[2] ** -2
    right = off(wide["short"], maps["gaussian c=0.5 g=1.0"]["limit"]["short"])
    swapped = off(wide["short"], maps["gaussian c=0.5 g=1.0"]["limit"]["long"])
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
            judged(right < ENOUGH < swapped, "the short side"),
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
    rows = []
    for c in (1.0, 0.5):
        v = results[f"approximation gaussian c={c}"]
        t = v["sizes"][-1]
        worst = off(t["cut, along"], v["limit along"])
        rows.append(
            [
                f"P23b approximation lemma, reconstructed, c = {c:g}: ‖(W' - S) z‖²",
                "bounded with high probability",
                f"z along the signal {spans(t['cut, along'][0])}, within {worst:.1f} standard errors of the limits; "
                f"worst z {t['cut, worst'][0]:.2f}, limit {v['limit worst']:.2f}; random z {t['cut, random'][0]:.4f} "
                f"(p^{v['rate, random']:.2f})",
                judged(worst < ENOUGH and t["over coarse bound"] == 0),
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
