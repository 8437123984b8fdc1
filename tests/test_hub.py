"""Ids of the Hugging Face hub; the hub itself is not there, so what would ask it is replaced or fails for real."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrim import survey
from spectrim.checkpoint import open_checkpoint


def hub(monkeypatch, answer) -> list:
    asked = []

    def snapshot_download(name, **how):
        asked.append((name, how))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_an_id_is_fetched_and_its_weights_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"fc.weight": torch.randn(30, 40)}, tmp_path / "model.safetensors")
    asked = hub(monkeypatch, tmp_path)
    assert [r.name for r in survey("someone/a-model.v2@main").matrices] == ["fc"]
    name, how = asked[0]
    assert (name, how["revision"]) == ("someone/a-model.v2", "main")
    assert not [p for p in how["allow_patterns"] if p.endswith((".bin", ".pt", ".pth", ".ckpt", "*"))]


def test_what_the_hub_does_not_have_is_no_file_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, RuntimeError("404 not found\nmore"))
    with pytest.raises(FileNotFoundError, match=r"someone/model, and as an id .* 404 not found$"):
        open_checkpoint("someone/model")


@pytest.mark.parametrize("name", ["model", "./model", "a/b/c", "here/model", "/someone/model", "some one/model"])
def test_a_path_with_an_error_in_it_asks_nobody(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    asked = hub(monkeypatch, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_checkpoint(name)
    assert not asked


def test_without_a_network_the_message_says_so(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        open_checkpoint("someone/no-such-model-anywhere")
