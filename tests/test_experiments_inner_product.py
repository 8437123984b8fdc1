"""The experiment on inner products: a toy run, and the page that holds its tables."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments import drawing  # noqa: E402
from experiments.inner_product import figure, run  # noqa: E402

HERE = ROOT / "experiments/inner_product"


@pytest.fixture(scope="module")
def results():
    return json.loads((HERE / "results.json").read_text())["results"]


def test_the_toy_run(tmp_path):
    zeros, ranks = (run.measured("toy", kind, {}, tmp_path, (0.5,)) for kind in ("zeros", "ranks"))
    for found in (zeros, ranks):
        assert not [c["method"] for c in found["sweep"]["cells"] if c["failed"] or c["flag"]]
    value = {c["method"]: c["scores"]["cosine"]["report"]["value"] for c in zeros["sweep"]["cells"]}
    assert value["alternate, noise"] > value["global magnitude"] > value["random"]
    assert set(figure.WITH_DATA) | set(figure.WITHOUT_DATA) < set(value)
    for kind, found in (("more-zeros", zeros), ("more-ranks", ranks)):
        assert set(run.SURVIVORS[kind]) <= {c["method"] for c in found["sweep"]["cells"]}
    assert set(run.FEWER["whisper", "zeros"]) <= set(value)
    gain = zeros["gains"]["cosine"]["0.5"]["alternate, noise"]["random"]
    assert gain[1] > 0
    assert "alternate, noise" in [row[0] for row in figure.scores_table(zeros["sweep"])]


def test_the_page_is_that_of_the_results(results):
    page = (HERE / "README.md").read_text()
    tables = figure.tables(results)
    assert {"gap", "minilm zeros", "efficientnet zeros"} <= set(tables)
    for name, rows in tables.items():
        assert f"<!-- table: {name} -->\n{drawing.markdown(rows)}<!-- end -->" in page


def test_what_the_page_says_in_words_is_in_the_results(results):
    for job in ("minilm zeros", "efficientnet zeros", "vit_s14 zeros"):
        result = results[job]
        for of in result["gains"]["cosine"].values():
            for source in ("noise", "128 samples"):
                for published in ("published, 128 samples", "published, 128 samples, uniform"):
                    assert of[f"weighed, {source}"][published][1] > 0
            for more in (", 128 samples", ", noise", ", 128 samples, uniform", ", noise, uniform"):
                assert of[f"alternate{more}"][f"published{more}"][1] > 0
    for of in results["minilm zeros"]["gains"]["cosine"].values():
        for source in ("128 samples", "noise"):
            edge = of[f"alternate, {source}, least damage"]
            assert min(edge[f"alternate, {source}"][1], edge[f"alternate, {source}, uniform"][1]) > 0
    for of in results["efficientnet zeros"]["gains"]["cosine"].values():
        assert of["alternate, noise, least damage"]["alternate, noise"][2] < 0


def test_the_readme_quotes_the_results(results):
    line = r"^\| (.*?) \| (?:none|128 samples) \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \|$"
    rows = re.findall(line, (ROOT / "README.md").read_text(), re.M)
    of = {
        "global magnitude": "global magnitude",
        "SparseGPT as published, uniform": "published, 128 samples, uniform",
        "SparseGPT, budget of global magnitude": "published, 128 samples",
        "`--moments synthetic`": "weighed, noise",
        "your samples, `calibrate.weighed`": "weighed, 128 samples",
    }
    assert len(rows) == len(of)
    for name, *told in rows:
        for model, score, shown in zip(
            ("minilm", "vit_s14", "efficientnet"), ("cosine", "accuracy", "top1"), told, strict=True
        ):
            found = figure.value(results[f"{model} zeros"]["sweep"]["cells"], of[name], 0.6, score)[0]
            assert (f"{found:.3f}" if score == "cosine" else f"{100 * found:.1f}") == shown
