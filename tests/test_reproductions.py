"""The page of claims: that it is what the committed results make it, and that its verdicts follow the numbers."""

from __future__ import annotations

import copy
import doctest
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

from experiments import records, reproductions  # noqa: E402
from experiments.__main__ import experiments  # noqa: E402
from experiments.claims import (  # noqa: E402
    berlyand2023,
    berlyand2025,
    berlyand2025_spectra,
    claim,
    nishikawa2025,
    shmalo2023,
    shmalo2023_examples,
    theorems,
)
from experiments.shmalo2023_rmt_svd import printed  # noqa: E402

from spectrim import Bema, Spectrum  # noqa: E402
from spectrim.laws import MarchenkoPastur  # noqa: E402

PAGE = ROOT / "docs" / "reproductions.md"
EMPTY = {name: {} for name in reproductions.FOLDERS}


@pytest.fixture(scope="module")
def files() -> dict:
    return reproductions.found()


# The page


def test_the_page_is_what_the_results_make_it(files):
    assert PAGE.read_text() == reproductions.page(files, reproductions.found("_full"))


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert len(targets) > 50
    for target in targets:
        assert (PAGE.parent / target).exists(), target


def test_every_experiment_appears():
    text = PAGE.read_text()
    assert set(reproductions.FOLDERS) <= set(experiments())
    for name in experiments():
        assert f"experiments/{name}" in text


def test_every_verdict_is_one_of_the_words_and_is_counted(files):
    text = PAGE.read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    words = [
        re.match(r"\*\*(.*?)\*\*", cells[4])[1] for cells in lines if len(cells) == 6 and cells[4].startswith("**")
    ]
    rows = [one for paper in reproductions.papers(files) for one in paper.rows]
    assert len(words) >= len(rows) > 80 and set(words) <= set(claim.WORDS)
    for paper in reproductions.papers(files):
        overview = next(line for line in text.splitlines() if line.startswith(f"| {paper.title} |"))
        assert sum(int(cell) for cell in overview.split("|")[2:-1] if cell.strip()) == len(paper.rows)
    with pytest.raises(ValueError, match="verdicts are"):
        claim.row("a", "b", "c", "d", ("perhaps", ""))


def test_no_cell_breaks_its_row(files):
    for paper in reproductions.papers(files):
        for one in paper.rows:
            assert all("|" not in cell and "\n" not in cell and cell.strip() for cell in reproductions.cells(one))


def test_every_claim_that_was_asked_for_is_there():
    text = PAGE.read_text()
    for what in (
        *(
            "Example 4.1",
            "Example 4.3",
            "Example 4.4",
            "Example 4.5",
            "Example 4.6",
            "Example 4.7",
            "overfit",
            "60,000",
        ),
        *("variance over random starts", "convolutional", "figure 4", "A.2", "A.3", "B.1", "B.3", "E.7", "0.74"),
        *(f"Theorem {number}" for number in ("4.1", "4.2", "5.2", "5.3")),
        *("Corollary 4.3", "Lemma 4.4", "lemma 5.4", "Lemma B.5", "D.3 to D.7", "Lemma D.8", "(77)"),
        *("Gaussian broadening", "Ave_w", "batch size of 256"),
        *(f"{train:.2f} / {test:.2f}" for train, test, _ in berlyand2025.PAPER.values()),
        *(f"{e.params_split:,}" for e in printed.EXAMPLES.values()),
    ):
        assert what in text, what


# Results that are missing, and results that change


def test_without_results_nothing_is_claimed():
    tables = reproductions.papers(EMPTY)
    held = [one for paper in tables for one in paper.rows if one.word != "not run"]
    # what is left follows from the printed numbers alone
    assert {one.claim.partition(":")[0] for one in held} == {
        *("Examples 4.3 to 4.7", "Section 4.5", "Example 4.6", "E.7, figure 19")
    }
    assert reproductions.page(EMPTY).count("not run yet") > 40


@pytest.mark.parametrize("name", reproductions.FOLDERS)
def test_any_experiment_may_be_missing(files, name):
    assert reproductions.page(files | {name: {}})


def test_runs_at_full_size_get_a_table_of_their_own(files):
    name = "nishikawa2025_thresholds"
    text = reproductions.page(files, EMPTY | {name: files[name]})
    more = text.partition("## At the papers' own sizes\n")[2].partition("Example 3.3")[0]
    assert more.count("nishikawa2025_thresholds/README.md") == 4 and "2303.08986" not in more
    assert "own sizes\n" not in reproductions.page(files, EMPTY)


def moved(value, by):
    """Returns the value with every float in it multiplied."""
    if isinstance(value, dict):
        return {key: moved(part, by) for key, part in value.items()}
    if isinstance(value, list):
        return [moved(part, by) for part in value]
    return value * by if isinstance(value, float) else value


@pytest.mark.parametrize("name", reproductions.FOLDERS)
def test_a_changed_number_changes_the_page(files, name):
    if not files[name]:
        pytest.skip("not run yet")
    changed = {**files[name], "results": moved(files[name]["results"], 1.2)}
    before, after = reproductions.page(files), reproductions.page(files | {name: changed})
    rows = [line for line in after.splitlines() if line not in before.splitlines()]
    # The rows of its own claims, and the counts of the verdicts, which link to no folder.
    assert any(name in line for line in rows)
    assert all(name in line or "](../experiments/" not in line for line in rows)


def test_a_changed_outcome_changes_the_verdict(files):
    name = "berlyand2025_regression"
    changed = copy.deepcopy(files[name]["results"])
    words = [berlyand2025_spectra.regression(changed)[0].word]
    for ordered in (20, 0):
        for design in changed.values():
            design["summary"]["ordered"] = ordered
        words.append(berlyand2025_spectra.regression(changed)[0].word)
    assert words == ["confirmed in part", "confirmed", "not reproduced"]


def test_a_theorem_whose_check_fails_is_not_confirmed(files):
    broken = copy.deepcopy(files["theory"])
    for key, kept in broken["results"].items():
        if key.startswith("removal"):
            for width in kept["widths"]:
                width["lower"][0] = 0.5
    title = "P25 theorem 4.2 (26)"
    for found, word in ((files["theory"], "confirmed"), (broken, "not reproduced")):
        assert theorems.claims(found, {title: theorems.CHOSEN[title]})[0].word == word


def test_verdicts_of_theorems_become_words():
    assert theorems.word("holds, 22 to 108 times too large") == "confirmed"
    assert theorems.word("holds, but for Student 3") == "confirmed in part"
    assert {theorems.word(verdict) for verdict in theorems.FAILS} == {"not reproduced"}
    with pytest.raises(ValueError, match="no claim that begins"):
        theorems.claims(reproductions.found()["theory"], {"P25 theorem 9": "none"})


def test_a_peak_at_256_would_be_seen(files):
    networks = copy.deepcopy(files["nishikawa2025_thresholds"]["results"]["networks"])
    assert nishikawa2025.batches(networks).word == "not reproduced"
    for found in networks:
        if found["run"]["batch"] == 256:
            found["layers"]["fc1"]["s"][0] *= 10
    assert nishikawa2025.batches(networks).word == "confirmed"


# Rules, on results made up


def net(seed, accuracy, lost=0, params=80, **more):
    """Returns what a record of a training holds as far as the page reads it."""
    return {
        "seed": seed,
        "test_accuracy": accuracy,
        "train_accuracy": accuracy + 0.01,
        "dead": lost,
        "train": {"loss": 0.5},
        "start": {"weights": 90, "other": 10},
        "parameters": {"weights": params - 10},
        "epochs": {"params": [100, params], "test_accuracy": [accuracy + 0.2, accuracy]},
        "params_start": 100,
        "sparse": {"nonzeros": [80, 40], "accuracy": [accuracy, accuracy]},
        "changes": [{"name": "fc1"}],
    } | more


def a1(**arms):
    """Returns results of A.1: an arm as "name__open" -> (accuracy, dead classes) by start."""
    return {
        f"A1 {name.replace('__', ', ').replace('_', ' + ')}, seed {seed}": net(seed, accuracy, lost)
        for name, starts in arms.items()
        for seed, (accuracy, lost) in enumerate(starts)
    }


def test_low_arms_of_a1_are_artefacts_only_beside_a_control_that_keeps_its_classes():
    fallen, whole = [(0.8, 1), (0.9, 0), (0.9, 0)], [(0.9, 0), (0.89, 0), (0.9, 0)]
    words = {
        (): "not run",
        ("whole",): "artefact",
        ("fallen",): "confirmed in part",
    }
    for controls, word in words.items():
        arms = {"none__open": {"whole": whole, "fallen": fallen}[controls[0]]} if controls else {}
        assert berlyand2025.arm(a1(none=fallen, **arms), "none").word == word
    assert berlyand2025.arm(a1(none=whole, none__open=whole), "none").word == "not reproduced"


def test_high_arms_of_a1_have_to_keep_all_classes():
    for starts, word in (([(0.9, 0)] * 3, "confirmed"), ([(0.9, 0), (0.8, 1), (0.9, 0)], "confirmed in part")):
        assert berlyand2025.arm(a1(MP_L2=starts), "MP + L2").word == word
    assert berlyand2025.arm(a1(MP_L2=[(0.8, 1)] * 3), "MP + L2").word == "not reproduced"


def test_there_is_no_verdict_before_all_starts_are_there():
    row = berlyand2025.arm(a1(MP_L2=[(0.8, 1)] * 2), "MP + L2")
    assert row.word == "not run" and row.why.startswith("2 of 3 starts so far")


@pytest.mark.parametrize(
    ("closed", "free", "word"),
    [(0.08, 0.0, "artefact"), (0.08, 0.02, "confirmed"), (0.0, 0.0, "not reproduced"), (-0.1, 0.1, "not reproduced")],
)
def test_a_gain_that_needs_the_last_relu_is_an_artefact(closed, free, word):
    found = a1(none=[(0.8, 1)] * 3, MP=[(0.8 + closed, 0)] * 3)
    found |= a1(none__open=[(0.85, 0)] * 3, MP__open=[(0.85 + free, 0)] * 3)
    row = berlyand2025.gains(found)[2]
    assert row.word == word and f"{100 * closed:+.2f}" in row.text and f"{100 * free:+.2f}" in row.why


def accuracies(pruned, plain, params=40):
    found = {f"mnist pruned, seed {i}": net(i, x, params=params) for i, x in enumerate(pruned)}
    return found | {f"mnist, seed {i}": net(i, x, params=100) for i, x in enumerate(plain)}


@pytest.mark.parametrize(
    ("pruned", "no_loss", "gain"),
    [
        ((0.93, 0.94, 0.935, 0.93, 0.94), "confirmed", "confirmed"),
        ((0.90, 0.91, 0.905, 0.89, 0.91), "confirmed", "not reproduced"),
        ((0.88, 0.88, 0.885, 0.88, 0.88), "not reproduced", "not reproduced"),
    ],
)
def test_accuracy_kept_and_gained(pruned, no_loss, gain):
    found = berlyand2023.nets(accuracies(pruned, (0.90, 0.905, 0.90, 0.895, 0.905)))
    assert (berlyand2023.no_loss(found).word, berlyand2023.accuracy(found).word) == (no_loss, gain)
    assert berlyand2023.parameters(found).word == "confirmed"
    half = berlyand2023.nets(accuracies(pruned, (0.9,) * 5, params=70))
    assert berlyand2023.parameters(half).word == "not reproduced"


def test_a_smaller_variance_has_to_be_surely_smaller():
    wide, narrow = (0.80, 0.85, 0.90, 0.95, 0.99), (0.900, 0.901, 0.902, 0.903, 0.904)
    near = (0.82, 0.86, 0.90, 0.94, 0.97)
    for pruned, word in ((narrow, "confirmed"), (near, "not reproduced"), (wide, "not reproduced")):
        assert berlyand2023.variance(berlyand2023.nets(accuracies(pruned, wide))).word == word


def example(name, arm, relu, starts):
    return {
        f"{name} {arm}, notebook, {'last ReLU' if relu else 'no last ReLU'}, seed {i}": net(i, x, lost, params=34)
        for i, (x, lost) in enumerate(starts)
    }


def test_examples_of_the_first_paper():
    low, high = [(0.86, [3])] * 3, [(0.97, [])] * 3
    base = example("4.3", "non-split", True, low)
    assert shmalo2023_examples.plain(base, "4.3").word == "not run"  # the control is missing
    whole = base | example("4.3", "non-split", False, high)
    row = shmalo2023_examples.plain(whole, "4.3")
    assert row.word == "artefact" and "3 of 3" in row.why and "0 of 3" in row.why and "with 1 dead 90 %" in row.why
    whole |= example("4.3", "as executed", True, high) | example("4.3", "as executed", False, high)
    assert shmalo2023_examples.split(whole, "4.3").word == "artefact"
    better = whole | example("4.3", "as executed", False, [(0.99, [])] * 3)
    assert shmalo2023_examples.split(better, "4.3").word == "confirmed"
    assert shmalo2023_examples.split(whole | example("4.3", "as executed", True, low), "4.3").word == "not reproduced"
    assert shmalo2023_examples.smaller(whole, "4.3").word == "confirmed"  # 34 % left, printed 30
    assert "1 of 3 starts" in shmalo2023_examples.plain(example("4.3", "non-split", True, low[:1]), "4.3").executed


def test_example_4_5_peaks_and_falls():
    for starts, word in (([(0.2, [])] * 2, "confirmed"), ([(0.2, [])], "confirmed")):
        assert shmalo2023_examples.fall(example("4.5", "as executed", True, starts)).word == word
    steady = example("4.5", "as executed", True, [(0.9, [])])
    next(iter(steady.values()))["epochs"]["test_accuracy"] = [0.88, 0.9]
    assert shmalo2023_examples.fall(steady).word == "not reproduced"


def starts(lost, train, test):
    runs = [{"test": {"dead": [1] if i < lost else [], "accuracy": test}, "train_accuracy": train} for i in range(4)]
    return {"runs": runs, "case": {"sizes": [784, 250, 10]}}


@pytest.mark.parametrize(("train", "test", "word"), [(0.87, 0.868, "artefact"), (0.99, 0.87, "confirmed")])
def test_overfitting_would_be_seen_as_such(train, test, word):
    found = {"starts shallow notebook": starts(2, train, test)}
    assert shmalo2023.overfitting(found).word == "not run"
    found["starts shallow notebook, no last ReLU"] = starts(0, 0.99, 0.98)
    assert shmalo2023.overfitting(found).word == word


# Numbers


def test_the_printed_ranks_keep_45_per_cent():
    assert shmalo2023.reached(0.45) == 52 and shmalo2023.reached(0.55) == 3


def test_the_value_of_figure_19_is_that_of_any_spectrum_with_such_a_bulk():
    row = berlyand2025_spectra.bad_layer()
    for scale in (1.0, 3.0):  # 27 % of the values, far above whatever bulk the others make
        x = MarchenkoPastur(0.3, scale).ppf((np.arange(768) + 0.5) / 768)
        x[int(0.73 * 768) :] *= 100
        fit = Bema(0.25, 0.8, compat="authors")(Spectrum(np.sqrt(np.sort(x)[::-1] * 2560), 768, 2560))
        assert f"{fit.misfit:.4f}" in row.executed
    assert row.word == "artefact"


def test_means_errors_and_ranges():
    # mean 2, deviation sqrt(10 / 4), error of the mean that over sqrt(5)
    assert claim.measured([0, 1, 2, 3, 4], 2, 5) == f"2.00 ± {np.sqrt(10 / 4 / 5):.2f} (0.00 to 4.00, 5 starts)"
    assert claim.measured([1.0, 1.0], 0) == "1 ± 0 (1 to 1, 2 of 3 starts)" and claim.measured([]) == "not run yet"
    one, other = [net(0, 0.9), net(2, 0.8)], [net(2, 0.7), net(1, 0.1)]
    assert claim.differences(one, other) == pytest.approx([10.0])  # of the start that both have
    assert claim.gain([1.0, 2.0, 3.0]) == f"+2.00 ± {records.interval([1, 2, 3])[1]:.2f}"
    assert claim.lost([{"dead": 2}, {"dead": []}, {"dead": [4]}]) == "2 of 3"


@pytest.mark.parametrize("module", [claim, shmalo2023_examples])
def test_the_examples_in_the_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
