"""A survey and a trim by every engine: the figures and the bytes are those of a run without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spectrim import plan, survey, trim
from spectrim.engines import Local, Ray
from test_resume import bytes_of, sharded

ENGINES = {"threads": Local(2), "processes": Local(2, processes=True), "one at a time": Local(1, memory=15_000_000)}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return sharded(tmp_path_factory.mktemp("crews") / "model")


def told(found) -> dict:
    return found.to_dict() | {"seconds": None}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_changes_no_figure_and_no_byte(name, source, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    engine = ENGINES[name]
    straight = survey(source)
    found = survey(source, engine=engine)
    assert told(found) == told(straight)
    for i, target in enumerate(({"params": 0.6}, {"zeros": 0.5})):
        chosen = plan(found, gate=1.0, **target)
        seen = []
        trim(
            source, chosen, tmp_path / f"a{i}", engine=engine, undo=True, progress=lambda es, s=seen: s.extend(es) or es
        )
        trim(source, chosen, tmp_path / f"b{i}", undo=True)
        assert bytes_of(tmp_path / f"a{i}") == bytes_of(tmp_path / f"b{i}")
        assert len(seen) == len(chosen.touched)


def test_what_is_in_memory_is_shared_by_threads_and_by_nobody_else(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(60, 50), torch.nn.Linear(50, 40))
    assert told(survey(model, engine=Local(2))) == told(survey(model))
    state = model.state_dict()
    chosen = plan(survey(state), params=0.5, gate=1.0)
    trim(state, chosen, tmp_path / "a", engine=Local(2))
    trim(state, chosen, tmp_path / "b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    for engine in (Local(processes=True), Ray()):
        with pytest.raises(ValueError, match="in memory"):
            survey(model, engine=engine)
    with pytest.raises(ValueError, match="live module"):
        trim(model, plan(survey(model), params=0.5, gate=1.0), engine=Local())


def test_a_matrix_that_does_not_fit_is_named_before_anything_is_read(source, tmp_path):
    with pytest.raises(ValueError, match=r"blocks\.0\.0 needs .* GiB"):
        survey(source, engine=Local(memory=1_000_000))
    chosen = plan(survey(source), params=0.5, gate=1.0)
    with pytest.raises(ValueError, match="--memory"):
        trim(source, chosen, tmp_path / "out", engine=Local(memory=1_000_000))
    assert not list(tmp_path.iterdir())


def test_ray_changes_no_figure_and_no_byte(source, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    straight = survey(source)
    assert told(survey(source, engine=Ray(workers=2))) == told(straight)
    chosen = plan(straight, params=0.6, gate=1.0)
    trim(source, chosen, tmp_path / "a", engine=Ray(workers=2))
    trim(source, chosen, tmp_path / "b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--memory", "lots"], "16GiB"),
        (["--address", "auto"], "--engine ray"),
        (["--engine", "ray", "--processes"], "--processes"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, says, source):
    done = subprocess.run(
        [sys.executable, "-m", "spectrim", "survey", str(source), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
