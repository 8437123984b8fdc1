"""The theorems of arXiv 2503.01922 and the lemma of 2310.03165: rows of the table in `experiments/theory`.

What was measured and whether it holds is decided in `experiments/theory/claims.py`; here a word is put to its verdict.
"""

from __future__ import annotations

from typing import Any

from experiments.claims.claim import NONE, PENDING, Claim, row, waits
from experiments.theory import claims as measured

FOLDER = "theory"
FAILS = ("not seen here", "does not hold in this reading")
# What a verdict of that table says where the claim holds with a limit.
LIMITS = ("stays open", "does not come near", "met only", "but for", "breaks for", "along the signal")
# How a title of that table begins -> the title here.
CHOSEN = {
    "P25 theorem 4.1: noise vanishes where there is L2": "Theorem 4.1: noise vanishes where there is L2",
    "the same at the end of a descent": "Theorem 4.1: at a minimum no bulk is left",
    "the same at the settings of example A.1": "Theorem 4.1 as the reason for what pruning does in A.1 (abstract)",
    "P25 theorem 4.2 (26)": "Theorem 4.2, (26): the loss is lower without R",
    "P25 theorem 4.2 (27)": "Theorem 4.2, (27): lower by lambda ‖R‖²",
    "P25 corollary 4.3": "Corollary 4.3: R scaled by kappa",
    "P25 lemma 4.4, as in its proof": "Lemma 4.4, (30), (55): the outputs change little",
    "as in its proof, ‖W3‖ the largest column sum": "Lemma 4.4, if “the L1 norm” of W3 were the largest column sum",
    "P25 assumption 1": "Assumption 1: a(N, s) of (16) vanishes",
    "P25 lemma B.5 (71)": "Lemma B.5: the cross-entropy stays",
    "P25 lemma B.5: the accuracy stays": "Lemma B.5: the accuracy stays",
    "P25 theorem 5.2": "Theorem 5.2: 4.1 for other noise (a start with Haar values)",
    "P25 theorem 5.3": "Theorem 5.3: 4.2 for other noise",
    "P25 assumption 5, lemma 5.4": "Assumption 5, lemma 5.4: ‖Rv‖ small in every entry",
    "P25 D.3 to D.7: square": "D.3 to D.7: singular values and vectors, square",
    "P25 lemma D.8": "Lemma D.8: variance g",
    "P25 D.1, D.2, (77) to (83): rectangular": "D.1, D.2, (77) to (83): rectangular",
    "P25 (77) for noise of another law": "(77) for noise of another law",
    "P25 assumptions 5 and 7": "Assumptions 5 and 7: the largest value of R tends to the edge",
}
# The same of arXiv 2310.03165.
LEMMA = {
    "P23b approximation lemma, reconstructed, c = 1": "Approximation lemma (reconstructed): ‖(W' - S) z‖² is bounded",
    "reading: small": "the same, read as: the cut matrix is nearer to S than W is",
}

Results = dict[str, Any]


def claims(found: Results, chosen: dict[str, str]) -> list[Claim]:
    """Returns the rows of the chosen claims; of titles that begin alike, the first."""
    rows = measured.all_claims(found)[1:] if found else []
    made = []
    for start, said in chosen.items():
        if not found:
            made.append(row(said, NONE, PENDING, NONE, waits()))
            continue
        there = [cells for cells in rows if cells[0].startswith(start)]
        if not there:
            raise ValueError(f"experiments/theory/claims.py has no claim that begins with {start!r}")
        _, printed, text, verdict = there[0]
        judged = (word(verdict), "" if verdict == "holds" else verdict)
        made.append(row(said, NONE if printed == "-" else printed, text, NONE, judged))
    return [claim.at(FOLDER) for claim in made]


def word(verdict: str) -> str:
    """Returns the word for a verdict of the table of theorems."""
    if verdict in FAILS:
        return "not reproduced"
    return "confirmed in part" if any(limit in verdict for limit in LIMITS) else "confirmed"
