"""A checkpoint trimmed into each shape, and opened in a fresh process that has no spectrim."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spectrim import plan, survey, trim
from spectrim.footprint import footprints
from spectrim.unpacking import load as unpacked
from test_resume import sharded

SIZES = (256, 384, 320, 64)
NET = f"""
import sys
sys.modules["spectrim"] = None
import torch
from torch import nn
sizes = {SIZES}
net = nn.Sequential(*[m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.Tanh())])
x = torch.linspace(-1, 1, 8 * sizes[0]).reshape(8, sizes[0])
"""
OPENED = {
    "split": "sys.path.insert(0, out); from modeling_spectrim import load; net = load(net, out)",
    "dense": "from safetensors.torch import load_file; net.load_state_dict(load_file(out + '/model.safetensors'))",
    "packed": "sys.path.insert(0, out); from unpack_spectrim import load; net.load_state_dict(load(out))",
    "adapter": (
        "from safetensors.torch import load_file; net.load_state_dict(load_file(out + '/model.safetensors'))\n"
        "import json\n"
        "pairs = load_file(out + '/adapter/adapter_model.safetensors')\n"
        "for key in [k for k in pairs if k.endswith('lora_A.weight')]:\n"
        "    name = key.removeprefix('base_model.model.').removesuffix('.lora_A.weight')\n"
        "    with torch.no_grad(): net.get_submodule(name).weight += pairs[key.replace('_A', '_B')] @ pairs[key]\n"
    ),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[m for a, b in pairwise(SIZES) for m in (nn.Linear(a, b), nn.Tanh())])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    save_file(net().state_dict(), folder / "model.safetensors")
    return folder


def outputs(shape: str, out: Path) -> torch.Tensor:
    script = f"{NET}\nout = {str(out)!r}\n{OPENED[shape]}\nwith torch.no_grad(): torch.save(net(x), out + '/y.pt')"
    subprocess.run([sys.executable, "-c", script], check=True)
    found = torch.load(out / "y.pt")
    (out / "y.pt").unlink()
    return found


def cut_in_memory(chosen) -> torch.Tensor:
    model = net()
    trim(model, chosen)
    x = torch.linspace(-1, 1, 8 * SIZES[0]).reshape(8, SIZES[0])
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("shape", ["split", "dense", "adapter", "packed"])
@pytest.mark.parametrize("target", [{"params": 0.5}, {"zeros": 0.6}], ids=["ranks", "zeros"])
def test_each_shape_opens_without_us_and_gives_the_outputs_of_the_cut_model(shape, target, source, tmp_path):
    chosen = plan(survey(source), gate=1.0, **target)
    out = tmp_path / "out"
    done = trim(source, chosen, out, shape=shape)
    opened = "dense" if shape == "split" and "zeros" in target else shape
    if shape == "packed" and "params" in target:  # nothing is zero, so nothing is packed, and layers stay split
        state, straight = unpacked(out), load_file(trimmed(source, chosen, tmp_path / "s") / "model.safetensors")
        assert state.keys() == straight.keys() and all(torch.equal(state[n], straight[n]) for n in state)
        return
    assert torch.allclose(outputs(opened, out), cut_in_memory(chosen), atol=1e-5)
    told = json.loads((out / "spectrim.json").read_text())
    assert set(told["files"]) == {f.name for f in out.glob("*.safetensors")}
    assert told["achieved"]["bytes_after"] == done.bytes_after
    on_disk = sum(f.stat().st_size for f in out.rglob("*.safetensors"))
    assert 0 <= on_disk - done.bytes_after < 4096  # headers


def trimmed(source: Path, chosen, out: Path, **how) -> Path:
    trim(source, chosen, out, **how)
    return out


def test_packed_and_split_are_smaller_by_what_was_planned(source, tmp_path):
    found = survey(source)
    dense = (source / "model.safetensors").stat().st_size
    ranks, zeros = plan(found, params=0.5, gate=1.0), plan(found, zeros=0.6)
    split = trimmed(source, ranks, tmp_path / "split", shape="split") / "model.safetensors"
    saved = sum(e.bytes_before - e.bytes_after for e in ranks.entries)
    assert dense - split.stat().st_size == pytest.approx(saved, rel=0.02)
    packed = trimmed(source, zeros, tmp_path / "packed", shape="packed") / "packed-model.safetensors"
    saved = sum(4 * e.zeros - e.rows * e.cols / 8 for e in zeros.touched)
    assert dense - packed.stat().st_size == pytest.approx(saved, rel=0.02)


def test_the_pair_of_an_adapter_has_the_rank_that_was_asked_for(source, tmp_path):
    chosen = plan(survey(source), params=0.5, gate=1.0)
    for rank in (None, 7):
        out = trimmed(source, chosen, tmp_path / f"out{rank}", shape="adapter", rank=rank)
        pairs = load_file(out / "adapter/adapter_model.safetensors")
        ranks = {e.name: rank or max(1, e.spikes) for e in chosen.touched}
        found = {k.split(".")[2]: len(t) for k, t in pairs.items() if "lora_A" in k}
        assert found == ranks


def test_shards_stay_shards_in_every_shape(tmp_path):
    source = sharded(tmp_path / "model")
    chosen = plan(survey(source), gate=1.0, zeros=0.5)
    straight = trimmed(source, chosen, tmp_path / "dense")
    packed = trimmed(source, chosen, tmp_path / "packed", shape="packed")
    whole = {name: t for file in sorted(straight.glob("*.safetensors")) for name, t in load_file(file).items()}
    back = unpacked(packed)
    assert back.keys() == whole.keys() and all(torch.equal(back[n], whole[n]) for n in whole)
    assert len(list(packed.glob("packed-*.safetensors"))) == 3 and not list(packed.glob("*.index.json"))
    based = trimmed(source, chosen, tmp_path / "adapter", shape="adapter")
    assert survey(based).params == survey(straight).params


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"shape": "thin"}, "shape is one of"),
        ({"shape": "packed", "undo": True}, "undo"),
        ({"shape": "dense", "rank": 3}, "rank"),
        ({"shape": "adapter", "rank": 0}, "rank"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(how, match, source, tmp_path):
    chosen = plan(survey(source), params=0.5, gate=1.0)
    with pytest.raises(ValueError, match=match):
        trim(source, chosen, tmp_path / "out", **how)
    assert not list(tmp_path.iterdir())
    save_file({"conv.weight": torch.randn(40, 8, 3, 3)}, tmp_path / "conv.safetensors")
    conv = plan(survey(tmp_path / "conv.safetensors"), params=0.5, gate=1.0)
    with pytest.raises(ValueError, match="takes an adapter"):
        trim(tmp_path / "conv.safetensors", conv, tmp_path / "out", shape="adapter")
    with pytest.raises(ValueError, match="of files"):
        trim(net(), plan(survey(net()), params=0.5, gate=1.0), shape="dense")


def test_the_audit_of_the_shapes(source, tmp_path):
    found = survey(source)
    ranks, zeros = plan(found, params=0.5, gate=1.0), plan(found, zeros=0.6)
    outs = {shape: trimmed(source, ranks, tmp_path / shape, shape=shape) for shape in ("split", "dense", "adapter")}
    outs["packed"] = trimmed(source, zeros, tmp_path / "packed", shape="packed")
    rows = {row.shape if row.name != "before" else "before": row for row in footprints(outs.values(), repeats=3)}
    dense = sum(a * b for a, b in pairwise(SIZES))
    assert rows["before"].macs == rows["dense"].macs == rows["packed"].macs == dense
    assert rows["split"].macs == sum(e.macs_after for e in ranks.entries)
    assert rows["adapter"].macs == dense + sum(max(1, e.spikes) * (e.rows + e.cols) for e in ranks.touched)
    whole = 4 * (dense + sum(SIZES[1:]))
    assert rows["before"].memory == rows["dense"].memory == rows["packed"].memory == whole
    assert rows["split"].memory == whole - sum(e.bytes_before - e.bytes_after for e in ranks.entries)
    for shape, out in outs.items():
        assert rows[shape].disk == sum(f.stat().st_size for f in out.rglob("*.safetensors"))
        assert rows[shape].latency > 0
    assert rows["before"].ratio == 1.0 and rows["packed"].disk < 0.5 * whole < rows["packed"].memory
    with pytest.raises(ValueError, match="no trim"):
        footprints([source])
    with pytest.raises(ValueError, match="packed zeros"):
        survey(outs["packed"])
    save_file({"0.weight": torch.randn(30, 40)}, tmp_path / "other.safetensors")
    other = tmp_path / "other.safetensors"
    trim(other, plan(survey(other), params=0.5, gate=1.0), tmp_path / "other")
    with pytest.raises(ValueError, match="another model"):
        footprints([outs["split"], tmp_path / "other"])
