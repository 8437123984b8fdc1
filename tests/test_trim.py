"""Trim: what was achieved is what was planned, or nothing was written at all: errors, Ctrl-C, a full disk."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim import Bema, budgets, equalize, load, plan, planted, survey, trim
from spectrim.edges import Median
from spectrim.linalg import svd

TRIM = sys.modules["spectrim.trim"]
REBUILD = sys.modules["spectrim.rebuild"]
PIECES = sys.modules["spectrim.pieces"]
WORK_RANKED = sys.modules["spectrim.work"].ranked
WORK = sys.modules["spectrim.work"]
SIZES = ((96, 64), (64, 96), (80, 80), (60, 120))


def weights(seed: int = 0, sizes=SIZES, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Noise with uneven rows and columns, and a few planted directions."""
    generator = np.random.default_rng(seed)
    state = {}
    for i, (rows, cols) in enumerate(sizes):
        W = planted.noise(rows, cols, generator=generator) * np.exp(0.4 * generator.standard_normal((rows, 1)))
        for k in range(4):
            W += (3 + k) * np.outer(generator.standard_normal(rows), generator.standard_normal(cols)) / math.sqrt(rows)
        state[f"fc{i}.weight"] = torch.from_numpy(W).to(dtype)
        state[f"fc{i}.bias"] = torch.from_numpy(generator.standard_normal(rows)).to(dtype)
    return state


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        for i, (rows, cols) in enumerate(SIZES):
            setattr(self, f"fc{i}", nn.Linear(cols, rows, dtype=dtype))

    def forward(self, *inputs):
        return [getattr(self, f"fc{i}")(x) for i, x in enumerate(inputs)]


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = Net(dtype)
    model.load_state_dict(weights(seed, dtype=dtype))
    return model


def folder_of(state: dict[str, Tensor], where: Path) -> Path:
    where.mkdir()
    save_file(state, where / "model.safetensors")
    return where


def kept(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name].nan_to_num(7.0), before[name].nan_to_num(7.0)) for name in before)


def matrix(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).weight.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("basis", ["plain", "equalised"])
@pytest.mark.parametrize("dense", [False, True])
def test_ranks_are_achieved_as_planned(dense, basis, dtype):
    model, before = net(dtype=dtype), net(dtype=dtype)
    chosen = plan(survey(model), params=0.5, basis=basis, dense=dense)
    done = trim(model, chosen)
    assert [(c.name, c.action, c.rank) for c in done] == [(e.name, e.action, e.rank) for e in chosen.touched]
    assert done.params_after == sum(p.numel() for p in model.parameters()) == chosen.model_params_after
    assert done.params_before == sum(p.numel() for p in before.parameters())
    assert done.bytes_after == sum(p.numel() * p.element_size() for p in model.parameters())
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for change, entry in zip(done, chosen.touched, strict=True):
        W, new = matrix(before, change.name).double(), matrix(model, change.name).double()
        assert change.relative_error == pytest.approx(float((W - new).norm() / W.norm()), rel=0.05)
        assert (change.params_before, change.params_after) == (entry.params_before, entry.params_after)
        best = svd(W)
        if basis == "plain":
            expected = best.truncate(entry.rank).dense()
            assert change.relative_error == pytest.approx(entry.damage, abs=max(1e-4, rounding))
        else:
            even = equalize(W.to(dtype), edge=Bema())
            expected = svd(even.apply(W)).truncate(entry.rank).rescale(even.rows, even.cols).dense()
            damage = even.apply(W - new).norm() / even.apply(W).norm()
            assert float(damage) == pytest.approx(entry.damage, abs=max(1e-4, rounding))
        assert float((new - expected).norm() / expected.norm()) < 4 * rounding
    assert done.params_after < done.params_before or dense


def test_the_two_bases_cut_differently():
    plain, even = net(), net()
    found = survey(plain)
    chosen = plan(found, params=0.4, basis="equalised")
    trim(even, chosen)
    raw = json.loads(chosen.to_json())
    for entry in raw["entries"]:
        entry["basis"] = "plain"
    trim(plain, type(chosen).model_validate(raw))
    W = matrix(net(), "fc0")
    gaps = [float((W - matrix(model, "fc0")).norm()) for model in (plain, even)]
    assert gaps[0] < gaps[1]  # the plain cut is the best one in the plain norm
    scales = equalize(W, edge=Bema())
    gaps = [float(scales.apply(W - matrix(model, "fc0")).norm()) for model in (plain, even)]
    assert gaps[1] < gaps[0]


def test_the_equalised_basis_is_that_of_the_survey():
    model = net()
    chosen = plan(survey(model, edge=Median(beta=0.2)), params=0.5, basis="equalised")
    assert "Median" in chosen.model.edge
    trim(model, chosen)
    own = plan(survey(net(), edge=lambda spectrum: Bema()(spectrum)), params=0.5, basis="equalised")
    untouched = net()
    with pytest.raises(ValueError, match="plan with basis='plain'"):
        trim(untouched, own)
    assert_untouched(untouched, kept(net()))
    trim(untouched, plan(survey(untouched, edge=lambda spectrum: Bema()(spectrum)), params=0.5, basis="plain"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_are_achieved_as_planned(dtype):
    model = net(dtype=dtype)
    chosen = plan(survey(model), zeros=0.4)
    done = trim(model, chosen)
    found = sum(int((matrix(model, c.name) == 0).sum()) for c in done)
    assert found == chosen.zeros == sum(c.zeros for c in done) == round(0.4 * chosen.params_before)
    assert done.params_after == done.params_before
    before = net(dtype=dtype)
    for c in done:
        new = matrix(model, c.name)
        assert torch.equal(new[new != 0], matrix(before, c.name)[new != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_zeros_of_the_equalised_basis_are_the_smallest_of_the_evened_out_matrix(dtype, tmp_path):
    model, before = net(dtype=dtype), net(dtype=dtype)
    chosen = plan(survey(model), zeros=0.6, budget=budgets.Lamp(), basis="equalised")
    assert {e.basis for e in chosen.touched} == {"equalised"}
    done = trim(model, chosen)
    assert sum(c.zeros for c in done) == chosen.zeros == round(0.6 * chosen.params_before)
    moved = 0
    for c, e in zip(done, chosen.touched, strict=True):
        W, new = matrix(before, c.name), matrix(model, c.name)
        size = equalize(W, edge=Bema()).apply(W).abs()
        assert torch.equal(new[new != 0], W[new != 0]) and int((new == 0).sum()) == e.zeros
        assert size[new == 0].max() <= size[new != 0].min()
        assert c.relative_error == pytest.approx(e.damage, abs=1e-6)
        assert float((W - new).double().norm() / W.double().norm()) == pytest.approx(e.damage, abs=1e-6)
        moved += int(W[new == 0].abs().max() > W[new != 0].abs().min())
    assert moved == len(done)  # and so they are others than the smallest of the matrix as it is
    trim(folder_of(weights(dtype=dtype), tmp_path / "model"), chosen, tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(stored[f"{c.name}.weight"], matrix(model, c.name)) for c in done)


def test_zeros_of_the_equalised_basis_need_an_estimator_that_can_be_made_again():
    with pytest.raises(ValueError, match="plan with basis='plain'"):
        plan(survey(net(), edge=lambda spectrum: Bema()(spectrum)), zeros=0.5, basis="equalised")


def test_an_edit_may_change_the_basis_of_zeros(tmp_path):
    model = net()
    raw = json.loads(plan(survey(model), zeros=0.5).to_json())
    raw["entries"][0]["basis"] = "equalised"
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    done = trim(model, tmp_path / "plan.json")
    W, new = matrix(net(), done[0].name), matrix(model, done[0].name)
    size = equalize(W, edge=Bema()).apply(W).abs()
    assert size[new == 0].max() <= size[new != 0].min() and done[0].zeros == raw["entries"][0]["zeros"]


def test_a_plan_from_a_path_is_that_of_the_live_model(tmp_path):
    """The file is read again, one matrix at a time."""
    source = folder_of(weights(), tmp_path / "model")
    for budget in (budgets.SpectralEdge(), budgets.LeastDamage(norm="edge"), budgets.ErdosRenyi()):
        for basis in ("plain", "equalised"):
            made = [plan(survey(m), zeros=0.6, budget=budget, basis=basis) for m in (source, net())]
            assert made[0].entries == made[1].entries


def test_what_is_in_the_folder_is_what_was_planned(tmp_path):
    source = folder_of(weights(), tmp_path / "model")
    chosen = plan(survey(source), params=0.5)
    done = trim(source, chosen, tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert sum(t.numel() for t in stored.values()) == done.params_after == chosen.model_params_after
    assert sum(t.nbytes for t in stored.values()) == done.bytes_after
    size = (tmp_path / "out/model.safetensors").stat().st_size
    saved = sum(e.bytes_before - e.bytes_after for e in chosen.entries)
    # The plan's prediction of the file within 1 %: what differs is the header.
    assert size == pytest.approx((source / "model.safetensors").stat().st_size - saved, rel=0.01)
    for e in chosen.touched:
        assert stored[f"{e.name}.0.weight"].shape == (e.rank, e.cols)
        assert stored[f"{e.name}.1.weight"].shape == (e.rows, e.rank)
    record = json.loads((tmp_path / "out/spectrim.json").read_text())
    assert record["schema"] == "spectrim.trimmed/1" and record["plan"]["schema"] == "spectrim.plan/1"
    assert record["achieved"]["params_after"] == done.params_after
    inputs = [torch.randn(3, cols) for _, cols in SIZES]
    with torch.no_grad():
        loaded = load(Net(), tmp_path / "out")(*inputs)
        model = net()
        trim(model, chosen)
        assert all(torch.equal(a, b) for a, b in zip(loaded, model(*inputs), strict=True))


def test_a_plan_is_replayed_from_its_file(tmp_path):
    chosen = plan(survey(net()), params=0.5)
    chosen.to_json(tmp_path / "plan.json")
    one, two = net(), net()
    trim(one, chosen)
    trim(two, tmp_path / "plan.json")
    assert_untouched(one, two.state_dict())


def other_values(model):
    model.fc1.weight.data[0, 0] += 1e-3


def other_shape(model):
    model.fc1 = nn.Linear(96, 65)


def another_name(model):
    model.fc9 = model.fc1
    del model.fc1


def not_finite(model):
    model.fc1.weight.data[3, 4] = math.nan


def infinite(model):
    model.fc1.weight.data[3, 4] = math.inf


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (other_values, "made for another model.*fc1 has other values"),
        (other_shape, "made for another model.*fc1 is 65 x 96, not 64 x 96"),
        (another_name, "made for another model.*fc1 is not there"),
        (not_finite, "fc1 holds NaN or infinite entries"),
        (infinite, "fc1 holds NaN or infinite entries"),
    ],
)
@pytest.mark.parametrize("how", [{"params": 0.5}, {"zeros": 0.5}])
def test_a_plan_for_another_model_is_refused_first(change, match, how, tmp_path):
    chosen = plan(survey(net()), **how)
    model = net()
    change(model)
    before = kept(model)
    with pytest.raises(ValueError, match=match):
        trim(model, chosen)
    assert_untouched(model, before)
    source = folder_of(before, tmp_path / "model")
    with pytest.raises(ValueError, match=match):
        trim(source, chosen, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_needs_a_place_for_the_result(tmp_path):
    source = folder_of(weights(), tmp_path / "model")
    with pytest.raises(ValueError, match="name the folder to write"):
        trim(source, plan(survey(source), params=0.5))


def test_an_existing_output_is_refused_and_left_as_it_is(tmp_path):
    source = folder_of(weights(), tmp_path / "model")
    chosen = plan(survey(source), params=0.5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("precious")
    for out in (tmp_path / "out", tmp_path / "out/mine.txt", source):
        with pytest.raises(ValueError, match="exists already"):
            trim(source, chosen, out)
    assert (tmp_path / "out/mine.txt").read_text() == "precious"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model", "out"]
    assert [f.name for f in source.iterdir()] == ["model.safetensors"]


def faults():
    """Where things can go wrong, each with the module, the name that is made to fail, and whether the work is kept."""
    full = OSError(28, "No space left on device")
    yield pytest.param(WORK, "ranked", 3, RuntimeError("injected"), True, id="decomposition")
    yield pytest.param(WORK, "ranked", 3, KeyboardInterrupt(), True, id="interrupt")
    yield pytest.param(WORK, "ranked", 1, KeyboardInterrupt(), False, id="interrupt before anything is done")
    yield pytest.param(PIECES, "write_tensors", 1, full, False, id="first piece")
    yield pytest.param(PIECES, "write_tensors", 3, full, True, id="later piece")
    yield pytest.param(REBUILD, "write_file", 1, full, True, id="file")
    yield pytest.param(REBUILD, "write_structure", 1, full, True, id="record")
    yield pytest.param(REBUILD, "copy_companions", 1, PermissionError(13, "denied"), True, id="companions")
    yield pytest.param(PIECES, "_after", 2, RuntimeError("injected"), True, id="verification of a piece")
    yield pytest.param(REBUILD, "_check_whole", 1, RuntimeError("injected"), False, id="verification")
    yield pytest.param(REBUILD.os, "fsync", 1, OSError(5, "I/O error"), False, id="first sync")
    yield pytest.param(REBUILD.os, "fsync", 6, OSError(5, "I/O error"), True, id="later sync")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize(("module", "name", "turn", "error", "goes_on"), list(faults()))
def test_after_a_fault_the_output_is_absent_and_the_work_goes_on(
    module, name, turn, error, goes_on, tmp_path, monkeypatch, one_thread
):
    source = folder_of(weights(), tmp_path / "model")
    chosen = plan(survey(source), params=0.5)
    right, calls = getattr(module, name), []

    def wrong(*args, **kwargs):
        calls.append(1)
        if len(calls) == turn:
            raise error
        return right(*args, **kwargs)

    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(type(error)) as caught:
        trim(source, chosen, tmp_path / "deep/out")
    assert len(calls) == turn
    told = " ".join(getattr(caught.value, "__notes__", []))
    if goes_on:
        assert [str(f.relative_to(tmp_path)) for f in (tmp_path / "deep").iterdir()] == ["deep/.out.partial"]
        assert str(tmp_path / "deep/.out.partial") in told
    else:
        assert [f.name for f in tmp_path.iterdir()] == ["model"] and not told
    done = []
    monkeypatch.undo()
    monkeypatch.setattr(WORK, "ranked", lambda *args: done.append(1) or WORK_RANKED(*args))
    trim(source, chosen, tmp_path / "deep/out")
    assert (len(done) < len(chosen.touched)) == goes_on
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["out"]
    trim(source, chosen, tmp_path / "straight")
    assert bytes_of(tmp_path / "deep/out") == bytes_of(tmp_path / "straight")


@pytest.mark.parametrize("turn", [1, 2, 4])
def test_a_fault_before_writing_leaves_the_live_model_alone(turn, monkeypatch):
    model = net()
    before = kept(model)
    chosen = plan(survey(model), params=0.5)
    right, calls = WORK.ranked, []

    def wrong(*args):
        calls.append(1)
        if len(calls) == turn:
            raise RuntimeError("injected")
        return right(*args)

    monkeypatch.setattr(WORK, "ranked", wrong)
    with pytest.raises(RuntimeError, match="injected"):
        trim(model, chosen)
    assert_untouched(model, before)


@pytest.fixture
def heard():
    """Ctrl-C as a terminal has it: a process that a shell put into the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", ["params", "zeros"])
def test_ctrl_c_while_a_live_model_is_written_waits_until_it_is_whole(kind, heard, monkeypatch):
    model, twin = net(), net()
    chosen = plan(survey(model), **{kind: 0.5})
    right = TRIM._apply

    def stopped(works):
        os.kill(os.getpid(), signal.SIGINT)
        right(works)

    monkeypatch.setattr(TRIM, "_apply", stopped)
    with pytest.raises(KeyboardInterrupt):
        trim(model, chosen)
    assert signal.getsignal(signal.SIGINT) is heard
    monkeypatch.undo()
    trim(twin, chosen)
    found, expected = model.state_dict(), twin.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("where", ["rank", "values", "zeros", "which zeros"])
def test_what_differs_from_the_plan_is_not_passed_in_silence(where, tmp_path, monkeypatch):
    source = folder_of(weights(), tmp_path / "model")
    found = survey(source)
    chosen = plan(found, params=0.5) if where in ("rank", "values") else plan(found, zeros=0.4)
    ranked, zeroed = WORK.ranked, WORK.zeroed
    if where == "rank":  # one value too few
        monkeypatch.setattr(WORK, "ranked", lambda W, k, *how: ranked(W, k - 1, *how))
    elif where == "values":  # the right rank, and not the best matrix of it
        monkeypatch.setattr(WORK, "ranked", lambda W, k, *how: ranked(W + 0.5 * W.flip(0), k, *how))
    elif where == "zeros":
        monkeypatch.setattr(WORK, "zeroed", lambda W, zeros, *how: zeroed(W, zeros - 1, *how))
    else:  # as many as planned, and not the smallest
        monkeypatch.setattr(WORK, "zeroed", lambda W, zeros, *how: W * (zeroed(W, W.numel() - zeros) == 0))
    with pytest.raises(RuntimeError, match=r"fc\d: what was achieved is not what was planned"):
        trim(source, chosen, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_the_source_is_never_touched(tmp_path):
    source = folder_of(weights(), tmp_path / "model")
    before = (source / "model.safetensors").read_bytes()
    trim(source, plan(survey(source), params=0.5), tmp_path / "out")
    state = weights()
    trim(state, plan(survey(state), zeros=0.5), tmp_path / "more")
    assert (source / "model.safetensors").read_bytes() == before
    assert all(torch.equal(value, state[name]) for name, value in weights().items())


# Through the command line, in real processes.


def command(*args) -> list[str]:
    return [sys.executable, "-m", "spectrim", *map(str, args)]


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def slow_trim(tmp_path_factory) -> tuple[Path, Path, float]:
    """A model whose trim takes a second or more, its plan, and the seconds from opening the output to its end."""
    work = tmp_path_factory.mktemp("slow")
    generator = torch.Generator().manual_seed(0)
    state = {f"layer{i}.weight": torch.randn(448, 448, generator=generator) for i in range(8)}
    source = folder_of(state, work / "model")
    plan(survey(source), params=0.6).to_json(work / "plan.json")
    process = start(work, source, work / "plan.json")
    began = begun(work, process)
    while not (work / "out").exists() and process.poll() is None:
        time.sleep(0.002)
    span = time.monotonic() - began
    assert process.wait(120) == 0
    assert_whole(work / "out")
    return source, work / "plan.json", span


def start(folder: Path, source: Path, chosen: Path) -> subprocess.Popen:
    arguments = command("trim", source, "--plan", chosen, "-o", folder / "out")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; the child would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)


def begun(folder: Path, process: subprocess.Popen) -> float:
    """Wait until the process has opened its output."""
    while not list(folder.glob(".out.*")) and not (folder / "out").exists() and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic()


def assert_whole(out: Path) -> None:
    assert {f.name for f in out.iterdir()} == {"model.safetensors", "spectrim.json", "modeling_spectrim.py"}
    json.loads((out / "spectrim.json").read_text())
    assert len(load_file(out / "model.safetensors")) >= 8


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.6, 0.85, 1.0])
def test_ctrl_c_leaves_the_output_absent_or_whole(moment, slow_trim, tmp_path):
    source, chosen, span = slow_trim
    process = start(tmp_path, source, chosen)
    begun(tmp_path, process)
    time.sleep(max(0.0, (moment + random.Random(str(moment)).uniform(-0.1, 0.1)) * span))
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    there = [f.name for f in tmp_path.iterdir()]
    assert there in ([], ["out"], [".out.partial"])
    if there == [
        "out"
    ]:  # it was done; in its last moments the interpreter itself takes the signal, and says so in its own way
        assert_whole(tmp_path / "out")
        assert process.returncode in (0, 130, -signal.SIGINT)
    else:
        assert process.returncode == 130 and "stopped" in err and "Traceback" not in err, err
        assert (".out.partial" in err.replace("\n", "")) == bool(there), err


def test_ctrl_c_while_starting_leaves_nothing(slow_trim, tmp_path):
    source, chosen, _ = slow_trim
    for wait in (0.05, 0.4):
        process = start(tmp_path, source, chosen)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
        # Stopped while modules are imported, the interpreter ends by itself, with 1 and the error of whoever was read.
        early = process.returncode == 1 and "Traceback" in err and "main()" not in err
        assert early or process.returncode in (130, -signal.SIGINT), err
        assert not list(tmp_path.iterdir())


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trimmable(tmp_path) -> tuple[Path, Path]:
    source = folder_of(weights(), tmp_path / "model")
    plan(survey(source), params=0.9).to_json(tmp_path / "plan.json")
    return source, tmp_path / "plan.json"


def assert_refused(done: subprocess.CompletedProcess, folder: Path, match: str) -> None:
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert match in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "out").exists()


def test_a_file_that_cannot_grow_is_an_error(trimmable, tmp_path):
    source, chosen = trimmable
    (tmp_path / "disk").mkdir()
    arguments = command("trim", source, "--plan", chosen, "-o", tmp_path / "disk/out")
    done = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=limited, env=ONE_THREAD, check=False)
    assert_refused(done, tmp_path / "disk", "could not be written")


def test_a_full_disk_is_an_error(trimmable, tmp_path):
    source, chosen = trimmable
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here; the limit on file sizes above stands for it")
    try:
        arguments = command("trim", source, "--plan", chosen, "-o", disk / "out")
        done = subprocess.run(arguments, capture_output=True, text=True, env=ONE_THREAD, check=False)
        assert_refused(done, disk, "could not be written")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fault", ["last column lost", "last column turned"])
@pytest.mark.parametrize("basis", ["plain", "equalised"])
def test_a_cut_with_one_direction_wrong_is_noticed(dtype, fault, basis, monkeypatch):
    from spectrim import linalg

    model = torch.nn.Sequential(torch.nn.Linear(96, 128, dtype=dtype))
    chosen = plan(survey(model), params=0.5, basis=basis)
    whole = linalg.Factors.split

    def wrong(self):
        left, right = whole(self)
        left = left.clone()
        left[:, -1] *= 0 if fault == "last column lost" else -1
        return left, right

    monkeypatch.setattr(linalg.Factors, "split", wrong)
    with pytest.raises(RuntimeError, match="not the cut that was computed"):
        trim(model, chosen)
    assert isinstance(model[0], torch.nn.Linear)  # nothing was written


def test_a_plan_that_promises_another_damage_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(60, 80))
    chosen = plan(survey(model), params=0.5)
    entry = chosen.entries[0].model_copy(update={"damage": 0.001})
    with pytest.raises(RuntimeError, match=r"the plan says 0\.0010"):
        trim(model, chosen.model_copy(update={"entries": (entry,)}))
