"""A trim of a checkpoint that is killed, for real, and started again; and what keeps two of them apart."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import spectrim
from spectrim import plan, survey, trim
from spectrim.journal import Journal

# Modules are imported once, by a server that forks a process for each trim: a start takes moments.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["spectrim"])


def sharded(where: Path, shards: int = 3, each: int = 3, size: int = 256) -> Path:
    generator = torch.Generator().manual_seed(0)
    where.mkdir()
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        state = {}
        for j in range(each):
            state[f"blocks.{i}.{j}.weight"] = torch.randn(size, size, generator=generator)
            state[f"blocks.{i}.{j}.bias"] = torch.randn(size, generator=generator)
        state[f"blocks.{i}.qkv.weight"] = torch.randn(3 * 96, 96, generator=generator).bfloat16()
        state[f"steps.{i}"] = torch.arange(i + 1)
        save_file(state, where / file, {"format": "pt", "note": str(i)})
        weight_map |= dict.fromkeys(state, file)
    (where / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (where / "config.json").write_text(json.dumps({"model_type": "of one's own"}))
    return where


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def cut(source: Path, chosen: Path, out: Path) -> None:
    torch.set_num_threads(1)
    trim(source, chosen, out)


@pytest.fixture(scope="module", params=["ranks", "zeros"])
def job(request, tmp_path_factory) -> tuple[Path, Path, Path, float]:
    """A checkpoint, a plan for it, what an uninterrupted trim makes of it, and the seconds that one takes."""
    work = tmp_path_factory.mktemp("job")
    source = sharded(work / "model")
    target = {"params": 0.6} if request.param == "ranks" else {"zeros": 0.5}
    plan(survey(source), gate=1.0, **target).to_json(work / "plan.json")
    start = FORKS.Process(target=cut, args=(source, work / "plan.json", work / "warm"))
    start.start()
    start.join()
    began = time.monotonic()
    process = FORKS.Process(target=cut, args=(source, work / "plan.json", work / "out"))
    process.start()
    process.join()
    assert process.exitcode == 0
    return source, work / "plan.json", work / "out", time.monotonic() - began


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_killed_at_twenty_moments_it_ends_in_the_same_bytes(job, tmp_path):
    source, chosen, expected, span = job
    draw = random.Random(0)
    journal = tmp_path / ".out.partial/journal.jsonl"
    killed = midway = 0
    for i in range(20):
        out = tmp_path / "out"
        process = FORKS.Process(target=cut, args=(source, chosen, out))
        process.start()
        # Soon after the start, or some lines of the journal further on: evenly over the work, however fast it goes.
        further = lines_of(journal) + draw.randint(0, 4)
        while i % 4 and process.is_alive() and lines_of(journal) < further:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03) * span)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if out.exists():  # whole, or not there
            assert bytes_of(out) == bytes_of(expected)
            shutil.rmtree(out)
            shutil.rmtree(tmp_path / ".out.partial", ignore_errors=True)
        else:
            midway += lines_of(journal) > 1
    assert killed >= 15 and midway >= 5, (killed, midway)
    cut(source, chosen, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(expected)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def stopped_half_way(source: Path, chosen: Path, out: Path, monkeypatch, after: int = 4) -> Path:
    import sys

    work, calls = sys.modules["spectrim.rebuild"], []
    right = work.cut

    def wrong(*args):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return right(*args)

    with monkeypatch.context() as patched:
        patched.setattr(work, "cut", wrong)
        with pytest.raises(KeyboardInterrupt):
            trim(source, chosen, out)
    return out.parent / f".{out.name}.partial"


def test_a_piece_that_was_damaged_is_cut_again(job, tmp_path, monkeypatch):
    source, chosen, expected, _ = job
    kept = stopped_half_way(source, chosen, tmp_path / "out", monkeypatch)
    pieces = sorted((kept / "pieces").glob("*.safetensors"))
    pieces[0].write_bytes(pieces[0].read_bytes()[:-1] + b"x")
    pieces[1].unlink()
    (kept / "journal.jsonl").write_text((kept / "journal.jsonl").read_text() + '{"key": "half a li')
    trim(source, chosen, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(expected)


@pytest.mark.parametrize("what", ["input", "plan"])
def test_the_work_on_another_input_or_plan_is_not_gone_on_with(what, job, tmp_path, monkeypatch):
    given, chosen, _, _ = job
    source = tmp_path / "model"
    shutil.copytree(given, source)
    stopped_half_way(source, chosen, tmp_path / "out", monkeypatch)
    if what == "plan":
        chosen = tmp_path / "plan.json"
        plan(survey(source), gate=1.0, params=0.3).to_json(chosen)
    else:  # a tensor that the plan does not touch: no fingerprint of a matrix tells
        file = sorted(source.glob("*.safetensors"))[-1]
        state = load_file(file)
        state["steps.2"] += 1
        save_file(state, file, {"format": "pt", "note": "2"})
    with pytest.warns(UserWarning, match=f"another {what}|{what} of the work"):
        trim(source, chosen, tmp_path / "out")
    trim(source, chosen, tmp_path / "straight")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "straight")


def test_an_input_that_changes_on_the_way_is_noticed(job, tmp_path, monkeypatch):
    given, chosen, _, _ = job
    source = tmp_path / "model"
    shutil.copytree(given, source)

    def touched(entries):
        for i, entry in enumerate(entries):
            if i == 5:
                os.utime(sorted(source.glob("*.safetensors"))[0])
            yield entry

    with pytest.raises(ValueError, match="changed while they were read"):
        trim(source, chosen, tmp_path / "out", progress=touched)
    assert not (tmp_path / "out").exists()


def test_two_at_once_are_kept_apart(job, tmp_path):
    source, chosen, _, _ = job
    with Journal(tmp_path / ".out.partial", {}), pytest.raises(BlockingIOError, match="in use"):
        trim(source, chosen, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == [".out.partial"]


def test_the_record_says_what_was_read_and_what_was_written(job):
    source, _, out, _ = job
    import hashlib

    told = json.loads((out / "spectrim.json").read_text())

    def sums(folder):
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("*.safetensors")}

    assert told["inputs"] == sums(source)
    assert {name: file["sha256"] for name, file in told["files"].items()} == sums(out)
    assert told["made_with"]["torch"] == torch.__version__ and told["plan"]["version"] == spectrim.__version__


def test_a_journal_tells_what_is_done(tmp_path):
    with Journal(tmp_path / "work", {"of": [1, 2]}) as journal:
        assert not journal.done and not journal.fresh
        journal.add("a", {"x": (1, 2)})
        journal.add("b", {"x": None})
        journal.add("a", {"x": 3})
    with Journal(tmp_path / "work", {"of": (1, 2)}) as journal:
        assert journal.done == {"a": {"key": "a", "x": 3}, "b": {"key": "b", "x": None}} and not journal.fresh
        journal.forget("b")
        assert list(journal.done) == ["a"]
    with Journal(tmp_path / "work", {"of": [1, 3], "more": 0}) as journal:
        assert not journal.done and journal.fresh == "more, of"
    lines = tmp_path / "work/journal.jsonl"
    assert len(lines.read_text().splitlines()) == 1
    for torn in ("", '{"of": [1,', "[]\n", "nonsense\n"):
        lines.write_text(torn)
        with Journal(tmp_path / "work", {"of": [1, 3]}) as journal:
            assert not journal.done
            journal.add("a", {})
        with Journal(tmp_path / "work", {"of": [1, 3]}) as journal:
            assert list(journal.done) == ["a"]


def look(source: Path, journal: Path, out: Path) -> None:
    torch.set_num_threads(1)
    survey(source, journal=journal).to_json(out)


def figures(file: Path) -> dict:
    return json.loads(file.read_text()) | {"seconds": None}


def test_a_survey_that_is_killed_goes_on_where_it_was(job, tmp_path):
    source = job[0]
    look(source, tmp_path / "journal", tmp_path / "straight.json")
    assert not (tmp_path / "journal").exists()
    gone_on, killed = 0, 0
    for _ in range(4):
        process = FORKS.Process(target=look, args=(source, tmp_path / "journal", tmp_path / "out.json"))
        process.start()
        lines = tmp_path / "journal/journal.jsonl"
        until = time.monotonic() + 60
        while not (lines.exists() and lines.read_bytes().count(b"\n") > gone_on + 1) and time.monotonic() < until:
            time.sleep(0.002)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert lines.exists()
        gone_on = lines.read_bytes().count(b"\n")
    assert killed == 4 and gone_on > 4
    seen = []
    found = survey(source, journal=tmp_path / "journal", progress=lambda sites: seen.extend(sites) or sites)
    found.to_json(tmp_path / "out.json")
    assert figures(tmp_path / "out.json") == figures(tmp_path / "straight.json")
    assert not (tmp_path / "journal").exists()
    straight = survey(source)
    for a, b in zip(found.readings, straight.readings, strict=True):  # what a plan needs is there too, bit for bit
        assert (a.name, a.params, a.note, a.fit, a.plain) == (b.name, b.params, b.note, b.fit, b.plain)
        assert (a.spectrum is None) == (b.spectrum is None)
        if a.spectrum is not None:
            assert a.spectrum.s.tobytes() == b.spectrum.s.tobytes() and repr(a.spectrum) == repr(b.spectrum)
            assert a.plain_spectrum.s.tobytes() == b.plain_spectrum.s.tobytes()


def test_a_survey_notices_that_another_one_is_asked_for(job, tmp_path):
    source = job[0]

    def broken_off(sites):
        yield from sites[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        survey(source, journal=tmp_path / "journal", progress=broken_off)
    assert "goes on from there" in caught.value.__notes__[0]
    with pytest.warns(UserWarning, match="another survey"):
        found = survey(source, equalize=False, journal=tmp_path / "journal")
    assert not any(r.spectrum.equalised for r in found.fitted)
    with pytest.raises(ValueError, match="in memory"):
        survey({"a": torch.randn(20, 30)}, journal=tmp_path / "journal")
    with pytest.raises(ValueError, match="none of"):
        from spectrim.lines import from_line

        from_line({"is": "Popen", "fields": {"args": "rm"}}, spectrim.Spectrum)


def test_a_folder_of_somebody_elses_is_no_journal(job, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(job[0], source)
    before = bytes_of(source)
    with pytest.raises(ValueError, match="no part of a journal"):
        survey(source, journal=source)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial/thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        trim(source, job[1], tmp_path / "out")
    assert bytes_of(source) == before and (tmp_path / ".out.partial/thesis.tex").exists()


def test_files_of_other_names_and_a_shard_by_itself(job, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "odd").mkdir()
    for name, key in (("one.st", "a"), ("two.st", "b")):
        save_file({f"{key}.weight": torch.randn(40, 50)}, tmp_path / "odd" / name)
    index = {"weight_map": {"a.weight": "one.st", "b.weight": "two.st"}}
    (tmp_path / "odd/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"safetensors"):
        trim(tmp_path / "odd", plan(survey(tmp_path / "odd"), gate=1.0, params=0.5), tmp_path / "out")
    shard = sorted(job[0].glob("*.safetensors"))[0]
    trim(shard, plan(survey(shard), gate=1.0, params=0.5), tmp_path / "part")
    assert len(survey(tmp_path / "part").matrices) == len(survey(shard).matrices)


def test_a_state_dict_of_a_type_without_a_name_is_refused_at_once(tmp_path):
    state = {"a.weight": torch.randn(40, 50), "b": torch.zeros(3, dtype=torch.complex128)}
    with pytest.raises(ValueError, match="complex128"):
        trim(state, plan(survey(state), gate=1.0, params=0.5), tmp_path / "out")
    assert not list(tmp_path.iterdir())
