"""The main job on the real model and the real judgements, and the numbers behind it."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from typer.testing import CliRunner

from spectrim import demo
from spectrim.cli import app
from spectrim.survey import survey


@pytest.fixture(scope="module")
def dense():
    from transformers import BertModel

    folder = demo.model_folder()
    encoder, tasks = demo.Encoder(folder), demo.load_tasks()
    model = BertModel.from_pretrained(folder, local_files_only=True).eval()
    return model, encoder, tasks, demo.score(model, encoder, tasks)


def test_the_dense_model_scores_what_is_known_of_it(dense):
    *_, scores = dense
    # Figures of the same checkpoint, judged by other code: Spearman .729 and .446, Pearson .656 on Lee's documents.
    assert scores.tasks["WordSim-353"][0] == pytest.approx(0.729, abs=0.002)
    assert scores.tasks["SimLex-999"][0] == pytest.approx(0.446, abs=0.002)
    assert scores.tasks["Lee-50"][0] == pytest.approx(0.656, abs=0.005)
    assert all(0.01 < error < 0.08 for _, error in scores.tasks.values())
    assert all(drop == (0.0, 0.0) for drop in scores.drop.values())


def test_the_weighted_correlation_is_scipys():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 40))
    assert demo._correlation(x, y, np.ones((1, 40)))[0] == pytest.approx(pearsonr(x, y).statistic)
    chosen = generator.integers(0, 40, 60)
    weights = np.bincount(chosen, minlength=40)[None]
    assert demo._correlation(x, y, weights)[0] == pytest.approx(pearsonr(x[chosen], y[chosen]).statistic)


def test_ranks_make_it_spearmans(dense):
    model, encoder, tasks, scores = dense
    judged = tasks.words["WordSim-353"]
    a = encoder(model, [pair[0] for pair in judged])
    b = encoder(model, [pair[1] for pair in judged])
    expected = spearmanr((a * b).sum(1).numpy(), [pair[2] for pair in judged]).statistic
    assert scores.tasks["WordSim-353"][0] == pytest.approx(expected, abs=1e-4)


def test_controls_spend_the_same_bytes(dense):
    import copy

    model, *_ = dense
    found = survey(model)
    from spectrim import plan

    chosen = plan(found, params=0.6)
    entries = {e.name for e in chosen.entries if e.candidate}
    count = sum(e.params_before for e in chosen.entries if e.name in entries)
    for label, control, nbytes in demo._controls(lambda: copy.deepcopy(model), found, chosen):
        assert nbytes == 4 * chosen.model_params_after
        weights = [control.get_submodule(name).weight for name in entries]
        zeros = sum(int((w == 0).sum()) for w in weights)
        if label == "global magnitude":
            assert count / 8 + 4 * (count - zeros) == pytest.approx(4 * chosen.params_after, abs=4)
        elif label == "random zeros":  # a binomial count: five standard deviations
            assert count / 8 + 4 * (count - zeros) == pytest.approx(
                4 * chosen.params_after, abs=4 * 5 * (count / 4) ** 0.5
            )
        else:
            stored = sum(int(torch.linalg.matrix_rank(w, rtol=1e-5)) * sum(w.shape) for w in weights)
            assert 0.97 * chosen.params_after < stored <= chosen.params_after


def test_the_demo_end_to_end(tmp_path, monkeypatch):
    """One size, so that it fits into the default suite: everything else is the demo as it is."""
    monkeypatch.chdir(tmp_path)
    done = demo.run("out", sizes=(0.75,))  # a relative path, as `make demo` gives
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"survey.json", "plan-75.json", "split-75", "report.html"}
    table = done.table()
    assert [row[0] for row in table["rows"]] == [
        "dense",
        "split 75%",
        "global magnitude (75%)",
        "random zeros (75%)",
        "uniform low rank (75%)",
    ]
    split = next(row for row in done.rows if row.name == "split 75%")
    assert split.params < done.rows[0].params and split.bytes < done.rows[0].bytes
    assert split.bytes == (tmp_path / "out" / "split-75" / "model.safetensors").stat().st_size
    assert split.audit["macs"] < done.rows[0].audit["macs"]
    assert split.audit["latency_ms"] > 0 and split.audit["batch"].startswith("32 documents")
    assert done.reload["split 75%"] < 1e-4
    # Seen: .76 for the split, .54 for uniform ranks, .31 for random zeros at as many bytes.
    cosine = {row.name: row.scores.cosine for row in done.rows}
    assert cosine["split 75%"] > cosine["uniform low rank (75%)"] > cosine["random zeros (75%)"]
    achieved = json.loads((tmp_path / "out" / "split-75" / "spectrim.json").read_text())["achieved"]
    assert achieved["params_after"] == split.params == done.plans[0].model_params_after
    assert "split 75%" in done.verdict()


def test_the_demo_does_not_write_over_anything(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)])
    assert done.exit_code == 2
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def absent(package):
        raise demo.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(demo.metadata, "files", absent)
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "pip install 'spectrim[demo]'" in done.stderr
