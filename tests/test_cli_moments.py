"""`plan --moments` and `trim` on folders: no data, the same moments again, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from spectrim.calibrate import gather
from spectrim.cli import app
from spectrim.moments import Moments
from spectrim.plan import Plan

transformers = pytest.importorskip("transformers")
RUN = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT as transformers saves it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    place = tmp_path_factory.mktemp("bert") / "model"
    transformers.BertModel(config).save_pretrained(place)
    return place


def run(*args):
    return RUN.invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize("source", ["synthetic", "stored"])
def test_a_folder_is_planned_and_trimmed_without_data(folder, tmp_path, source):
    done = run("plan", folder, "--zeros", ".5", "--moments", source, "-o", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["moments"]["source"] == source and told["moments"]["fingerprint"]
    touched = [e for e in told["entries"] if e["basis"] == "moments"]
    assert len(touched) >= 12 and all(0 < e["output_error"] <= 1 for e in touched)  # random queries may all go
    assert all((e["model_error"] is not None) is (source == "synthetic") for e in touched if "pooler" not in e["name"])
    done = run("trim", folder, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    again = transformers.AutoModel.from_pretrained(tmp_path / "out")
    dense = transformers.AutoModel.from_pretrained(folder)
    W, new = (m.encoder.layer[0].intermediate.dense.weight for m in (dense, again))
    assert int((new == 0).sum()) >= next(
        e["zeros"] for e in told["entries"] if e["name"].endswith("0.intermediate.dense")
    )
    kept = new != 0
    assert not torch.equal(new[kept], W[kept])  # what stays makes up for what went


def test_moments_of_samples_come_from_a_file_and_no_other(folder, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = torch.randint(5, 300, (8, 12), generator=torch.Generator().manual_seed(0))
    file = gather(model, [{"input_ids": tokens}]).save(tmp_path / "seen.safetensors")
    other = gather(model, [{"input_ids": tokens.flip(0)[:4]}]).save(tmp_path / "other.safetensors")
    done = run("plan", folder, "--params", ".6", "--moments", file, "-o", tmp_path / "plan.json")
    assert done.exit_code == 0, done.output
    ask = ("trim", folder, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    for more, message in (((), "give their moments"), (("--moments", other), "not those")):
        done = run(*ask, *more)
        assert done.exit_code != 0 and message in " ".join(done.output.split())
        assert not (tmp_path / "out").exists()
    assert run(*ask, "--moments", file).exit_code == 0


@pytest.mark.parametrize("cut", ["zeros", "ranks"])
def test_a_plan_for_an_error_of_the_model(folder, tmp_path, cut):
    ask = ("--error", ".01", "--cut", cut, "--moments", "synthetic", "-o", tmp_path / "plan.json")
    done = run("plan", folder, *ask)
    assert done.exit_code == 0, done.output
    found = Plan.from_json(tmp_path / "plan.json")
    assert found.target["error"] == 0.01 and 0.005 < found.model_error <= 0.01 and found.touched
    assert f"{found.model_error:.1%}" in done.output
    assert run("trim", folder, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--cut", "ranks"), "leave it out"),
        (("--error", ".2"), "one target"),
        (("--step", "obs"), "give --moments"),
        (("--moments", "synthetic", "--basis", "equalised"), "one basis"),
        (("--moments", "stored", "--image-size", "32"), "--image-size"),
        (("--moments", "nowhere.safetensors"), "no such file"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(folder, tmp_path, more, message):
    done = run("plan", folder, "--zeros", ".5", "-o", tmp_path / "plan.json", *more)
    assert done.exit_code != 0 and message in " ".join(done.output.split())
    assert not (tmp_path / "plan.json").exists()


def test_a_file_of_weights_has_no_way_to_run_inputs_and_says_what_to_do(tmp_path):
    torch.save({"fc.weight": torch.randn(40, 30)}, tmp_path / "model.pt")
    done = run("plan", tmp_path / "model.pt", "--zeros", ".5", "--moments", "synthetic", "-o", tmp_path / "plan.json")
    assert done.exit_code != 0 and "calibrate.gather" in " ".join(done.output.split())


@pytest.mark.parametrize("moments", ["none", "stored", "file"])
def test_an_error_needs_weights(folder, tmp_path, moments):
    if moments == "file":
        model = transformers.AutoModel.from_pretrained(folder).eval()
        moments = gather(model, [{"input_ids": torch.randint(5, 300, (4, 8))}]).save(tmp_path / "m.safetensors")
    done = run("plan", folder, "--error", ".2", "--moments", moments, "-o", tmp_path / "plan.json")
    assert done.exit_code != 0 and "weighed" in " ".join(done.output.split())


def test_a_folder_whose_names_are_not_those_of_the_model_is_refused(folder, tmp_path):
    """transformers renames the layers of some models as it loads them; a plan would cut most of them blindly."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = gather(model, [{"input_ids": torch.randint(5, 300, (4, 8))}])
    other = Moments({f"model.{name}": found[name] for name in found}, "samples").save(tmp_path / "m.safetensors")
    done = run("plan", folder, "--zeros", ".5", "--moments", other, "-o", tmp_path / "plan.json")
    assert done.exit_code != 0 and "otherwise than its files" in " ".join(done.output.split())
    assert not (tmp_path / "plan.json").exists()
