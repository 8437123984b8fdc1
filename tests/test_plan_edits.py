"""Any edit of a plan is either carried out to the letter or refused before anything is written."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from spectrim import plan, survey, trim
from spectrim.checkpoint import open_checkpoint
from spectrim.entries import Plan
from spectrim.linalg import svd
from spectrim.survey import inventory


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "fc.weight": noise(30, 40),
        "fc.bias": noise(30),
        "half.weight": noise(24, 36).bfloat16(),
        "attn.qkv.weight": noise(3 * 20, 20),
        "attn.qkv.bias": noise(60),
        "conv.weight": noise(16, 3, 3, 3),
        "bare": noise(20, 26),
        "h.0.c_attn.weight": noise(16, 48),
        "h.0.c_attn.bias": noise(48),
        "embed.weight": noise(50, 12),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    source = tmp_path_factory.mktemp("edits") / "model"
    source.mkdir()
    save_file(state(), source / "model.safetensors")
    chosen = plan(survey(source), zeros=0.2)
    return source, json.loads(chosen.to_json())


@st.composite
def edits(draw) -> list[dict]:
    """For each of ten entries, what is changed in it; most of that is possible, some is not."""
    changed = []
    touched = draw(st.sets(st.integers(0, 9), min_size=1, max_size=5))
    bases = ["plain", "plain", "equalised", *["moments"][: draw(st.integers(0, 9)) == 0]]
    for i in range(10):
        action = (
            "as it is"
            if i not in touched
            else draw(st.sampled_from(["keep", *["split", "dense", "zeros"] * 4, "nonsense"]))
        )
        if action == "as it is":
            changed.append({})
            continue
        change = {"action": action, "rank": None, "zeros": None, "also": []}
        if action in ("split", "dense") and draw(st.integers(0, 9)):
            change["rank"] = draw(st.one_of(st.integers(1, 16), st.integers(-1, 60)))
            if not draw(st.integers(0, 3)):
                change["also"] = draw(st.lists(st.integers(0, 17), max_size=3))
        if action == "zeros" and draw(st.integers(0, 9)):
            change["zeros"] = draw(st.one_of(st.integers(0, 400), st.integers(-5, 2000)))
        change["basis"] = draw(st.sampled_from(bases))
        changed.append(change)
    return changed


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(changed=edits())
def test_an_edit_is_carried_out_to_the_letter_or_refused_before_anything_is_written(changed, made):
    source, record = made
    edited = copy.deepcopy(record)
    for entry, change in zip(edited["entries"], changed, strict=False):
        entry |= change
    with tempfile.TemporaryDirectory() as place:
        file, out = Path(place, "plan.json"), Path(place, "out")
        file.write_text(json.dumps(edited))
        try:
            done = trim(source, file, out)
        except ValueError:
            assert [f.name for f in Path(place).iterdir()] == ["plan.json"]
            return
        asked = Plan.from_json(file)
        assert_carried_out(source, asked, out)
        assert [c.name for c in done] == [e.name for e in asked.touched]
        assert done.params_after == asked.model_params_after


def assert_carried_out(source: Path, asked: Plan, out: Path) -> None:
    before = {site.name: site for site in inventory(open_checkpoint(source)).sites}
    after = {site.name: site for site in inventory(open_checkpoint(out)).sites}
    assert before.keys() == after.keys()
    for entry in asked.entries:
        W, new, there = before[entry.name].get(), after[entry.name].get(), after[entry.name]
        assert (there.rows, there.cols) == (entry.rows, entry.cols) and new.dtype == W.dtype
        assert there.params == entry.params_after
        assert there.pair_rank == (entry.rank if entry.action == "split" else None)
        if entry.action == "keep":
            assert torch.equal(new, W)
        elif entry.action == "zeros":
            assert int((new == 0).sum()) == max(entry.zeros, int((W == 0).sum()))
            assert torch.equal(new[new != 0], W[new != 0])
        else:
            s = svd(new.double()).s
            assert int((s > 1e-2 * s[0]).sum()) <= entry.rank or new.dtype == torch.bfloat16


def test_most_edits_that_are_drawn_are_tried_both_ways(made):
    """The property above would hold of a trim that refuses everything."""
    record = made[1]
    assert len(record["entries"]) == 10
    taken = refused = 0

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(changed=edits())
    def count(changed):
        nonlocal taken, refused
        edited = copy.deepcopy(record)
        for entry, change in zip(edited["entries"], changed, strict=False):
            entry |= change
        with tempfile.TemporaryDirectory() as place:
            Path(place, "plan.json").write_text(json.dumps(edited))
            try:
                Plan.from_json(Path(place, "plan.json"))
                taken += 1
            except ValueError:
                refused += 1

    count()
    assert taken >= 8 and refused >= 8, (taken, refused)
