"""Claims of arXiv 2512.12911 (Nishikawa, Shimizu, Hashiguchi), from its abstract and the captions of its figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from experiments.claims.claim import NONE, PENDING, Claim, each, graded, row, waits

FOLDER = "nishikawa2025_thresholds"
HALF = 0.5  # points of accuracy that a cut at the edge may cost

Results = dict[str, Any]


def claims(results: Results) -> list[Claim]:
    """Returns the rows of the table."""
    networks = results.get("networks", [])
    return [claim.at(FOLDER) for claim in (estimates(networks), knee(networks), kept(networks), batches(networks))]


def layers(networks: list[Results], decay: bool | None = None, net: str | None = None) -> list[Results]:
    """Returns the matrices of all networks, or of those with or without weight decay, or of one kind."""
    chosen = [
        found
        for found in networks
        if (decay is None or bool(found["run"]["decay"]) == decay) and net in (None, found["run"]["net"])
    ]
    return [layer for found in chosen for layer in found["layers"].values()]


def estimates(networks: list[Results]) -> Claim:
    """Returns the row on the two thresholds."""

    def apart(part: list[Results]) -> list[int]:
        return [abs(x["estimators"]["bema"]["spikes"] - x["estimators"]["broadening"]["spikes"]) for x in part]

    verdict, words = waits(), PENDING
    if networks:
        mlps, every = apart(layers(networks, net="mlp")), apart(layers(networks))
        words = (
            f"the same number of values above both on {mlps.count(0)} of {len(mlps)} matrices of the MLPs, "
            f"{max(mlps)} apart at most; up to {max(every)} apart on convolutions"
        )
        word = "confirmed" if max(mlps) <= 1 else "confirmed in part"
        verdict = (word, "the two agree where the law fits; neither is the better one here")
    return row("Figure 1: BEMA and Gaussian broadening on an MLP", "two curves, two edges", words, NONE, verdict)


def knee(networks: list[Results]) -> Claim:
    """Returns the row on the knee of Ave_w."""

    def near(part: list[Results]) -> tuple[int, int]:
        ratios = [x["estimators"]["bema"]["knee"] / x["truncation"]["needed"]["within_half_a_point"] for x in part]
        return sum(0.5 <= ratio <= 2 for ratio in ratios), len(ratios)

    verdict, words = waits(), PENDING
    if networks:
        (hits, total), (faded, decayed) = near(layers(networks)), near(layers(networks, decay=True))
        words = (
            "its knee lies within half and twice the rank that keeps the accuracy on "
            f"{hits} of {total} matrices, on {faded} of {decayed} trained with weight decay"
        )
        word = "confirmed" if hits > 0.8 * total else "confirmed in part" if faded == decayed else "not reproduced"
        why = "where weight decay has let the start fade; its maximum is at rank 1 always. The reading of Ave_w is ours"
        verdict = (word, why)
    claim = "Figure 2, abstract: Ave_w tells whether a threshold is adequate"
    return row(claim, "a curve, no number at hand", words, NONE, verdict)


def kept(networks: list[Results]) -> Claim:
    """Returns the row on the accuracy at the edge."""
    verdict, words = waits(), PENDING
    if networks:
        gone = {title: losses(networks, decay) for title, decay in (("without decay", False), ("with it", True))}
        good = {title: sum(value <= HALF for value in part) for title, part in gone.items()}
        words = "; ".join(
            f"{title}: at most half a point lost on {good[title]} of {len(part)} matrices, {max(part):.1f} at worst"
            for title, part in gone.items()
        )
        why = "short trainings lean on the random start, which the cut takes away"
        verdict = (graded(sum(good.values()), sum(map(len, gone.values()))), why)
    claim = "Abstract: values under the threshold are noise and can go (MLPs, one matrix at a time)"
    return row(claim, "no number at hand", words, NONE, verdict)


def losses(networks: list[Results], decay: bool) -> list[float]:
    """Returns the points that the matrices of the MLPs lose where the values above BEMA's edge are kept alone."""
    cuts = [(x["truncation"], str(x["estimators"]["bema"]["spikes"])) for x in layers(networks, decay, "mlp")]
    return [100 * (cut["full"] - cut["accuracy"][rank]) for cut, rank in cuts if rank in cut["accuracy"]]


def batches(networks: list[Results]) -> Claim:
    """Returns the row on the batch size."""
    verdict, words = waits(), PENDING
    if networks:
        largest: dict[int, list[float]] = {}
        for found in networks:
            if found["run"]["net"] == "mlp" and not found["run"]["decay"]:
                layer = found["layers"]["fc1"]
                over = layer["s"][0] / layer["estimators"]["bema"]["edge"]
                largest.setdefault(found["run"]["batch"], []).append(over)
        sizes = sorted(largest)
        means = [float(np.mean(largest[size])) for size in sizes]
        words = (
            f"largest value over the edge, batch {', '.join(map(str, sizes))}: {each(means, 2)} "
            f"(means of {min(map(len, largest.values()))} seeds)"
        )
        why = (
            "it falls steadily with the batch size; their setting is not at hand"
            if means == sorted(means)[::-1]
            else ""
        )
        verdict = ("confirmed" if max(means) == means[sizes.index(256)] else "not reproduced", why)
    claim = "Figure 3: at a batch size of 256 the largest values stand out most"
    return row(claim, "no number at hand", words, NONE, verdict)
