"""Writes docs/reproductions.md: the claims of five papers beside what came out here, from the committed results.

    python -m experiments.reproductions

The rows and their verdicts are made in `claims/`, by paper; a result that is not there yet leaves "not run yet".
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from experiments import drawing, records
from experiments.claims import (
    berlyand2023,
    berlyand2025,
    berlyand2025_spectra,
    findings,
    nishikawa2025,
    shmalo2023,
    theorems,
)
from experiments.claims.claim import NONE, WORDS, Claim
from experiments.shmalo2023_rmt_svd import run as shmalo_run

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reproductions.md"
FOLDERS = (
    "shmalo2023_rmt_svd",
    "berlyand2023_accuracy",
    "berlyand2025_regression",
    "berlyand2025_appendix",
    "berlyand2025_metrics",
    "theory",
    "nishikawa2025_thresholds",
)
HEAD = ["claim", "the paper", "ours, by its text", "ours, as executed", "verdict", "figure"]

Results = dict[str, Any]

OPENING = f"""# The papers, claim by claim

What five papers on random matrices and pruning say, and what came of it here. A row is one claim with its place and
its number in the paper, our numbers, and a verdict. Our numbers are read from the results that are kept with each
experiment, and the verdicts follow from them by rules that stand in `experiments/claims/`; what a rule cannot say
is said in a sentence behind it.

    python -m experiments NAME --help         # runs an experiment; its README has the command and what it costs
    python -m experiments.reproductions       # writes this page anew

**By its text, as executed.** Where the words of a paper and the public scripts of its authors differ, both were
run. The first column of ours follows the words, with the estimators of this library. The second follows the
scripts, slips included (`Bema(compat="authors")`): where the two can be told apart, the published figures are those of
the scripts.

**Sizes.** Nets that are trained have hidden widths divided by {shmalo_run.Config().width} and epochs by 3, with
cuts and decays moved along, and three starts (five for 2310.03165); what differs stands in the row. So a verdict is
on the claim and not on the last digit: an accuracy of a smaller net cannot be that of the paper. `--scale full` has
the papers' sizes, and wants a GPU. Percentages are mean ± standard error, with range and number of starts in
brackets; “2 of 3 starts” means that one is not there yet. Gains are means with half their 95 % interval, over nets
that share the start and the order of the images. A class is dead if less than .5 % of its test images are found.

**What could not be known.** The text of 2503.01922 at hand has lost its formulas and some constants, among them the
rates and penalties of A.2 and B.3. They were taken from the authors' scripts or from their restatement, arXiv
2606.02608, or chosen here; each folder says which. Of 2310.03165 the abstract and the scripts were at hand, of
2512.12911 the abstract and the captions. Figures without printed numbers were read off. Corrections are welcome,
from the authors above all.

The last column leads to the folder of the experiment, whose figure shows the row.

## Verdicts
"""

WORDS_BEFORE = {
    "shmalo": """Fully connected nets on MNIST. By its text: step .05, no momentum, 45 % of the bulk removed. As
executed: the public notebook jtj5311/NN-RMT-SVD, step .08, momentum .9, 45 % kept, the optimiser made anew after
each cut. Both have a ReLU after the last layer too, as the formula of the network in section 2 has it.""",
    "accuracy": """Of the text the abstract was at hand and no setting, so the first column has what the three lines
of [training](training.md) do. As executed: the settings of the notebook yspennstate/RMT_pruning_2 (alpha .25, beta
.9, its rate, decay and penalties), without and, with L1 + L2 on Fashion-MNIST, with the ReLU that its net of this
size, [784, 1000, 1000, 10], has after the last layer (its wider one has none). What the paper compares is not known:
where classes are lost, single starts differ by ten points for that reason alone.""",
    "appendix": """Appendices A, B and E. For A and B there is no public script: what the text leaves open is from
the scripts of 2310.03165 and from yspennstate/RMT_pruning_ViT. The nets of A.1 have a ReLU after the last layer
too, as the text says. The labels of three rows of table 2 are lost: which of 87.42 and 87.37 is L1, and that 79.01
is the stable rank alone, are guesses.""",
    "theorems": """Held against simulation and training. All readings and controls stand in the
[folder](../experiments/theory/README.md); “later” is the authors' restatement, arXiv 2606.02608.""",
    "nishikawa": """On an MLP on MNIST, LeNet-5 on Fashion-MNIST and a small AlexNet on CIFAR-10; sizes, rates and
the exact form of the score are ours.""",
}

CLOSING = """Example 3.3 of 2303.08986, which is E.1 of 2503.01922 (BEMA finds lambda_+ near 4), is held by a
[test](../tests/test_bema.py). The [planted study](choosing.md) in experiments/planted_study repeats no paper.
Sections 3.3 to 3.6 of 2503.01922 want ImageNet and its checkpoints: the [recipe](../experiments/imagenet/README.md)
is in experiments/imagenet, filled for EfficientNet-Lite0, with empty cells for the ViTs, and the
[same at a small size](../experiments/vit_cifar/README.md) in
experiments/vit_cifar. What budgets of zeros are worth on five models, the papers' and others', stands in
[experiments/data_free_zeros](../experiments/data_free_zeros/README.md); what moments of the inputs bring, with and
without data, in [experiments/inner_product](../experiments/inner_product/README.md); which predictions provably
survive a cut, in [experiments/certificate](../experiments/certificate/README.md); how well the estimate of what a cut
does to a model ranks cuts, in [experiments/model_error](../experiments/model_error/README.md); what comes back after
one without labels, in [experiments/recover](../experiments/recover/README.md).

## What matters in practice
"""


class Paper(NamedTuple):
    """A table of the page: its title, what has to be said first, its rows."""

    title: str
    words: str
    rows: list[Claim]


def found(tail: str = "", where: Path = HERE) -> dict[str, Results]:
    """Returns what each experiment has written, {} if nothing; `tail` "_full" names runs at the papers' own sizes."""
    files = {name: where / name / f"results{tail}.json" for name in FOLDERS}
    return {name: records.read(file) if file.exists() else {} for name, file in files.items()}


def papers(files: dict[str, Results]) -> list[Paper]:
    """Returns all tables."""
    parts = {name: kept.get("results", {}) for name, kept in files.items()}
    theory, metrics = files["theory"], files["berlyand2025_metrics"]
    lemma = theorems.claims(theory, theorems.LEMMA)
    numerical = [
        *berlyand2025_spectra.regression(parts["berlyand2025_regression"]),
        *berlyand2025.claims(parts["berlyand2025_appendix"]),
        *berlyand2025_spectra.metrics(metrics),
        *berlyand2025_spectra.transformers(),
    ]
    return [
        Paper(
            "Weight pruning with RMT-SVD, arXiv 2303.08986",
            WORDS_BEFORE["shmalo"],
            shmalo2023.claims(parts["shmalo2023_rmt_svd"]),
        ),
        Paper(
            "Enhancing accuracy with random matrix theory, arXiv 2310.03165",
            WORDS_BEFORE["accuracy"],
            [*berlyand2023.claims(parts["berlyand2023_accuracy"]), *lemma],
        ),
        Paper(
            "Marchenko-Pastur pruning and regularisation, arXiv 2503.01922: theorems",
            WORDS_BEFORE["theorems"],
            theorems.claims(theory, theorems.CHOSEN),
        ),
        Paper("The same paper: numerical results", WORDS_BEFORE["appendix"], numerical),
        Paper(
            "Singular value thresholds for weight matrices, arXiv 2512.12911",
            WORDS_BEFORE["nishikawa"],
            nishikawa2025.claims(parts["nishikawa2025_thresholds"]),
        ),
    ]


def cells(claim: Claim) -> list[str]:
    """Returns a row as cells."""
    link = f"[{claim.folder}](../experiments/{claim.folder}/README.md)" if claim.folder else NONE
    verdict = f"**{claim.word}**" + (f": {claim.why}" if claim.why else "")
    return [claim.claim, claim.printed, claim.text, claim.executed, verdict, link]


def overview(tables: list[Paper]) -> str:
    """Returns how often each verdict was given."""
    rows = [["", *WORDS]]
    for paper in tables:
        number = Counter(claim.word for claim in paper.rows)
        rows.append([paper.title, *(str(number[word] or "") for word in WORDS)])
    return drawing.markdown(rows)


def page(files: dict[str, Results], full: dict[str, Results] | None = None) -> str:
    """Returns the page.

    Args:
        files: results by experiment, as `found` returns them.
        full: those at the papers' own sizes; rows of experiments that have them follow after the tables.
    """
    tables = papers(files)
    meanings = "".join(f"- **{word}**: {meaning}.\n" for word, meaning in WORDS.items())
    parts = [OPENING, meanings, overview(tables)]
    for paper in tables:
        parts += [f"## {paper.title}\n", f"{paper.words}\n", drawing.markdown([HEAD, *map(cells, paper.rows)])]
    there = {name: kept for name, kept in (full or {}).items() if kept}
    if there:
        parts.append("## At the papers' own sizes\n")
        for paper in papers(files | there):
            rows = [claim for claim in paper.rows if claim.folder in there]
            parts += [f"{paper.title}:\n", drawing.markdown([HEAD, *map(cells, rows)])] if rows else []
    return "\n".join((*parts, CLOSING, *(finding(files) for finding in findings.ALL)))


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(found(), found("_full")))


if __name__ == "__main__":
    main()
