"""What a trim kept gives back the original files, byte for byte, or says why it cannot."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectrim import plan, survey, trim, undo
from spectrim.trim import undo_bytes
from test_resume import bytes_of, sharded


def taken(source: Path, out: Path, dense: bool = False, **target) -> Path:
    chosen = plan(survey(source), gate=1.0, dense=dense, **target)
    trim(source, chosen, out, undo=True)
    kept = sum(f.stat().st_size for f in (out / "undo").glob("*.z"))
    assert 0 < kept <= undo_bytes(chosen) + sum(f.stat().st_size for f in source.glob("*.json"))
    return out


@pytest.mark.parametrize(
    "target", [{"params": 0.5}, {"zeros": 0.5}, {"params": 0.5, "dense": True}], ids=["ranks", "zeros", "dense"]
)
def test_the_original_files_come_back_byte_for_byte(target, tmp_path):
    source = sharded(tmp_path / "model")
    (source / "notes").mkdir()
    (source / "notes/more.txt").write_text("mine")
    out = taken(source, tmp_path / "out", **target)
    before = bytes_of(out)
    undo(out, tmp_path / "back")
    assert bytes_of(tmp_path / "back") == bytes_of(source)
    assert bytes_of(out) == before
    assert bytes_of(out) != bytes_of(source)


def test_a_single_file_and_many_chunks_come_back(tmp_path, monkeypatch):
    for module in ("spectrim.undo", "spectrim.stored"):
        monkeypatch.setattr(__import__("sys").modules[module], "CHUNK", 1000)
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(70, 50), "b.weight": torch.randn(40, 64, dtype=torch.float64), "c": torch.ones(3)}
    save_file(state, tmp_path / "m.safetensors", {"by": "hand"})
    out = taken(tmp_path / "m.safetensors", tmp_path / "out", zeros=0.3)
    undo(out, tmp_path / "back")
    assert (tmp_path / "back/m.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_a_folder_cut_twice_comes_back_as_it_was_in_between(tmp_path):
    source = sharded(tmp_path / "model")
    once = taken(source, tmp_path / "once", params=0.7)
    twice = taken(once, tmp_path / "twice", zeros=0.3)
    undo(twice, tmp_path / "back")
    between = {name: data for name, data in bytes_of(once).items() if not name.startswith("undo/")}
    assert bytes_of(tmp_path / "back") == between


def test_zeros_take_about_as_much_as_what_was_lost(tmp_path):
    torch.manual_seed(0)
    save_file({"a.weight": torch.randn(512, 512)}, tmp_path / "m.safetensors")
    out = taken(tmp_path / "m.safetensors", tmp_path / "out", zeros=0.3)
    assert (out / "undo/000000.z").stat().st_size < 0.45 * 512 * 512 * 4


def test_what_cannot_be_undone_says_why(tmp_path):
    source = sharded(tmp_path / "model")
    chosen = plan(survey(source), gate=1.0, params=0.5)
    trim(source, chosen, tmp_path / "bare")
    with pytest.raises(ValueError, match="kept nothing"):
        undo(tmp_path / "bare", tmp_path / "back")
    with pytest.raises(ValueError, match="no trim made it"):
        undo(source, tmp_path / "back")
    with pytest.raises(FileNotFoundError):
        undo(tmp_path / "nowhere", tmp_path / "back")
    out = taken(source, tmp_path / "out", params=0.5)
    damaged = tmp_path / "damaged"
    shutil.copytree(out, damaged)
    data = next((damaged / "undo").glob("*.z"))
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    with pytest.raises(ValueError, match="cannot be undone"):
        undo(damaged, tmp_path / "back")
    tuned = next(out.glob("*.safetensors"))
    state = load_file(tuned)
    state[next(iter(state))].add_(1)
    save_file(state, tuned)
    with pytest.raises(ValueError, match=f"{tuned.name} was changed"):
        undo(out, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    (tmp_path / "back").mkdir()
    (tmp_path / "back/x").write_text("")
    with pytest.raises(ValueError, match="exists already"):
        undo(taken(source, tmp_path / "more", params=0.5), tmp_path / "back")


def test_nothing_is_kept_of_what_is_no_safetensors(tmp_path):
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(60, 50)}
    chosen = plan(survey(state), params=0.5, gate=1.0)
    with pytest.raises(ValueError, match="safetensors"):
        trim(state, chosen, tmp_path / "out", undo=True)
    net = torch.nn.Sequential(torch.nn.Linear(60, 50))
    with pytest.raises(ValueError, match="live module"):
        trim(net, plan(survey(net), params=0.5, gate=1.0), undo=True)


def test_the_record_names_no_path_of_this_machine(tmp_path):
    out = taken(sharded(tmp_path / "model"), tmp_path / "out", params=0.5)
    assert str(tmp_path) not in (out / "undo/undo.json").read_text() + (out / "spectrim.json").read_text()
    assert json.loads((out / "undo/undo.json").read_text())["schema"] == "spectrim.undo/1"


@pytest.mark.parametrize("place", ["files", "companions", "tensors", "added"])
@pytest.mark.parametrize("name", ["../victim.txt", "/tmp/victim.txt", "..", "a\\b"])
def test_a_record_that_leads_out_of_the_folder_is_refused(place, name, tmp_path):
    out = taken(sharded(tmp_path / "model", 1, 1), tmp_path / "out", params=0.5)
    record = json.loads((out / "undo/undo.json").read_text())
    if isinstance(record[place], dict):
        record[place][name] = next(iter(record[place].values()))
    else:
        record[place].append(name)
    (out / "undo/undo.json").write_text(json.dumps(record))
    (tmp_path / "victim.txt").write_text("mine")
    with pytest.raises(ValueError, match="cannot be undone"):
        undo(out, tmp_path / "deep/back")
    assert (tmp_path / "victim.txt").read_text() == "mine" and not (tmp_path / "deep").exists()


def test_an_index_that_the_trim_writes_the_same_comes_back_too(tmp_path):
    source = sharded(tmp_path / "model")
    once = taken(source, tmp_path / "once", zeros=0.2)
    shutil.rmtree(once / "undo")
    undo(taken(once, tmp_path / "twice", zeros=0.4), tmp_path / "back")
    assert bytes_of(tmp_path / "back") == bytes_of(once)


def test_what_undo_needs_is_cut_again_where_it_was_lost(tmp_path, monkeypatch):
    source = sharded(tmp_path / "model")
    chosen = plan(survey(source), zeros=0.3)
    with monkeypatch.context() as patched:
        full = OSError(28, "No space left on device")
        patched.setattr(sys.modules["spectrim.rebuild"], "write_index", lambda *a: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space"):
            trim(source, chosen, tmp_path / "out", undo=True)
    (tmp_path / ".out.partial/whole/undo/000001.z").write_bytes(b"")
    trim(source, chosen, tmp_path / "out", undo=True)
    undo(tmp_path / "out", tmp_path / "back")
    assert bytes_of(tmp_path / "back") == bytes_of(source)
