"""The fine-tuning script, run as a user runs it: alone, killed and resumed, in two processes, on arrays and images."""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip("accelerate")

SCRIPT = Path(__file__).parents[1] / "examples/finetune.py"
ALONE = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
pytestmark = pytest.mark.usefixtures("one_thread", "as_before")


@pytest.fixture
def as_before():
    """The script seeds its process, and Accelerate remembers how it was set up."""
    from accelerate.state import AcceleratorState

    state, numbers, other = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    torch.set_rng_state(state)
    np.random.set_state(numbers)
    random.setstate(other)
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def script() -> Namespace:
    return Namespace(**runpy.run_path(str(SCRIPT)))


TOY = ["--toy", "--cpu", "--epochs", "3", "--log-every", "10"]


@pytest.fixture(scope="module")
def toy(script, tmp_path_factory, one_thread) -> Path:
    """A whole run on the digits."""
    out = tmp_path_factory.mktemp("toy") / "whole"
    with torch.random.fork_rng():
        script.main([*TOY, "--out", str(out)])
    return out


def is_zero(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model/model.safetensors")
    return {name: t == 0 for name, t in tensors.items() if t.ndim > 1}


def test_the_digits_gain_and_their_zeros_stay(toy, script):
    record = json.loads((toy / "finetune.json").read_text())
    entries = 64 * 100 + 100 * 100 + 100 * 10
    assert record["zeros"] == [round(0.8 * entries)] * 2
    before, after = record["accuracy"]
    assert after > before + 0.1 and after > 0.93  # 78.8 -> 97 % here
    assert [epoch["lr"] for epoch in record["epochs"]] == pytest.approx([0.05, 0.0375, 0.0125])
    pruned, _ = script.toy(script.data(Namespace(toy=True), None)[0])
    start = {name: p == 0 for name, p in pruned.named_parameters() if p.ndim > 1}
    assert all(torch.equal(mask, start[name]) for name, mask in is_zero(toy).items())  # and they are the same ones


def test_what_is_written_loads_without_spectrim(toy):
    from sklearn.datasets import load_digits

    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    net.load_state_dict(load_file(toy / "model/model.safetensors"))
    found = load_digits()
    right = net(torch.tensor(found.data / 16).float()).argmax(1) == torch.tensor(found.target)
    assert right.float().mean() > 0.93


def test_a_run_that_is_killed_and_resumed_is_the_run(toy, script, tmp_path):
    """SIGKILL between two steps; checkpoints are whole or not there."""
    out = tmp_path / "killed"
    slow = f"""
import runpy, sys, time, torch
step = torch.optim.SGD.step
def slower(self, *args):  # leaves the time to be killed in
    time.sleep(0.05)
    return step(self, *args)
torch.optim.SGD.step = slower
sys.argv = ["finetune.py", *{TOY!r}, "--save-every", "3", "--out", {str(out)!r}]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    run = subprocess.Popen([sys.executable, "-c", slow], env=ALONE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while run.poll() is None and time.monotonic() < deadline:
        if (out / "checkpoint.pt").is_file() and torch.load(out / "checkpoint.pt")["done"] >= 9:
            break
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    at = torch.load(out / "checkpoint.pt")
    assert (at["epoch"], at["done"] % 3) == (0, 0) and 9 <= at["done"] < 22 and not (out / "model").exists()
    with pytest.raises(SystemExit, match="was not finished"):
        script.main([*TOY, "--out", str(out)])
    with pytest.raises(SystemExit, match="other values of momentum"):
        script.main([*TOY, "--out", str(out), "--resume", "--momentum", "0.5"])
    at["record"]["recipe"].pop("train_empty")  # a run of before there was such an option
    torch.save(at, out / "checkpoint.pt")
    script.main([*TOY, "--out", str(out), "--resume"])
    whole, resumed = (load_file(folder / "model/model.safetensors") for folder in (toy, out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    record, expected = (json.loads((folder / "finetune.json").read_text()) for folder in (out, toy))
    assert expected["recipe"].pop("train_empty") is False
    assert record == expected


@pytest.mark.slow
def test_two_processes_under_torchrun(toy, tmp_path):
    out = tmp_path / "two"
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", str(SCRIPT), *TOY, "--out", str(out)]
    env = ALONE | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 1 of 3") == 1
    alone, both = is_zero(toy), is_zero(out)
    assert all(torch.equal(alone[name], both[name]) for name in alone)
    whole, halves = (load_file(folder / "model/model.safetensors") for folder in (toy, out))
    # The same batches and the same means: only the order of the sums differs.
    assert all(torch.allclose(whole[name], halves[name], atol=1e-4) for name in whole)
    first, second = (json.loads((folder / "finetune.json").read_text()) for folder in (toy, out))
    assert first["zeros"] == second["zeros"]
    assert first["accuracy"] == pytest.approx(second["accuracy"], abs=0.003)  # one image of 397


def build(folder: Path) -> list[str]:
    """A net of somebody else's, its pruned weights, and arrays: the options that name them."""
    (folder / "net.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),\n"
        "                         nn.Linear(216, 3))\n"
    )
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = runpy.run_path(str(folder / "net.py"))["build"]()
    state = net.state_dict()
    for name in ("0.weight", "5.weight"):
        state[name][torch.rand(state[name].shape, generator=g) < 0.5] = 0.0
    save_file(state, folder / "pruned.safetensors")
    images = torch.rand(70, 1, 8, 8, generator=g)
    labels = torch.arange(70) % 3
    images[range(70), 0, labels] += 1  # a bright row tells the class
    bytes_ = (images * 127).to(torch.uint8).numpy()
    np.savez(folder / "set.npz", images=bytes_, labels=labels.numpy(), val_images=bytes_[:9], val_labels=labels[:9])
    given = ["--model", f"{folder}/net.py:build", "--weights", f"{folder}/pruned.safetensors"]
    return [*given, "--data", f"{folder}/set.npz", "--cpu", "--batch", "16", "--lr", "0.05", "--epochs", "4"]


def test_arrays_a_net_of_ones_own_and_a_teacher(tmp_path, script):
    given = build(tmp_path)
    teacher = ["--teacher", f"{tmp_path}/net.py:build", "--teacher-weights", f"{tmp_path}/pruned.safetensors"]
    start = {n: t == 0 for n, t in load_file(tmp_path / "pruned.safetensors").items() if t.ndim > 1}
    record = script.main([*given, "--out", str(tmp_path / "plain"), "--warmup", "1"])
    assert [epoch["lr"] for epoch in record["epochs"]][:2] == [0.0005, 0.05]
    assert record["accuracy"][1] > 0.8 > record["accuracy"][0] or record["accuracy"][1] == 1
    script.main([*given, *teacher, "--distil", "0.5", "--at-once", "5", "--out", str(tmp_path / "taught")])
    for folder in ("plain", "taught"):
        assert all(torch.equal(mask, start[name]) for name, mask in is_zero(tmp_path / folder).items())
    state = torch.load(tmp_path / "plain/checkpoint.pt")
    assert state["model"]["1.running_mean"].any()


def test_a_matrix_that_pruning_has_emptied_stays_empty_unless_told(tmp_path, script):
    given = build(tmp_path)
    state = load_file(tmp_path / "pruned.safetensors")
    state["5.weight"].zero_()
    save_file(state, tmp_path / "pruned.safetensors")
    for folder, more in (("frozen", []), ("trained", ["--train-empty"])):
        script.main([*given, *more, "--epochs", "1", "--out", str(tmp_path / folder)])
        found = is_zero(tmp_path / folder)
        assert torch.equal(found["0.weight"], state["0.weight"] == 0)
        assert bool(found["5.weight"].all()) is (folder == "frozen")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--lr", "3e38", "--clip", "0"], "the loss is not finite in epoch 1"),
        (
            ["--lr", "3e38", "--weight-decay", "100", "--batch", "70", "--epochs", "1"],
            "weights are not finite in epoch",
        ),
    ],
)
def test_a_run_that_diverges_is_stopped_before_anything_is_saved(tmp_path, script, more, told):
    with pytest.raises(SystemExit, match=f"{told}.*--lr"):
        script.main([*build(tmp_path), "--save-every", "1", *more, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out/model").exists()
    if (tmp_path / "out/checkpoint.pt").is_file():  # of a step before it
        assert all(value.isfinite().all() for value in torch.load(tmp_path / "out/checkpoint.pt")["model"].values())


def test_weights_that_cannot_be_read(tmp_path, script):
    given = build(tmp_path)
    torch.save({"5.weight": torch.zeros(3, 216)}, tmp_path / "weights.pt")
    for name in ("weights.pt", "nowhere.safetensors"):
        with pytest.raises(SystemExit, match=rf"{name} is no \.safetensors file, nor a folder"):
            script.load(given[1], str(tmp_path / name))


def test_a_transformers_folder_and_a_folder_of_images(tmp_path, script):
    """Weights are written under the names that the checkpoint format of transformers has."""
    transformers, image = pytest.importorskip("transformers"), pytest.importorskip("PIL.Image")
    sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sides, image_size=16, patch_size=8, id2label={0: "b", 1: "a"})
    vit = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        for p in vit.parameters():
            if p.ndim == 2:
                p[:, ::3] = 0.0
    vit.save_pretrained(tmp_path / "vit")
    known = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(known))
    for label, level in (("a", 40), ("b", 200)):
        for part, count in (("train", 6), ("val", 2)):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            for i in range(count):
                picture = image.new("RGB", (30 + i, 24), (level, level, level))
                picture.save(tmp_path / "images" / part / label / f"{i}.png")
    given = ["--model", f"{tmp_path}/vit", "--data", f"{tmp_path}/images", "--cpu", "--batch", "4", "--lr", "0.1"]
    record = script.main([*given, "--epochs", "3", "--out", str(tmp_path / "out")])
    assert record["accuracy"][1] == 1.0
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out/model")
    before = dict(vit.named_parameters())
    for name, p in loaded.named_parameters():
        assert p.ndim != 2 or torch.equal(p == 0, before[name] == 0), name
    assert (tmp_path / "out/model/preprocessor_config.json").is_file()
    assert set(load_file(tmp_path / "out/model/model.safetensors")) == set(
        load_file(tmp_path / "vit/model.safetensors")
    )
    # Label ids are those of the model's configuration, not the order of the folders.
    dark = script.data(Namespace(**vars(script.checked([*given, "--out", "x"]))), vit)[0]
    assert set(dark.labels[:6]) == {1} and dark[0][0].shape == (3, 16, 16)
    vit.config.id2label = {i: str(i) for i in range(3)}
    with pytest.raises(SystemExit, match="3 classes, 2 folders"):
        script.data(Namespace(**vars(script.checked([*given, "--out", "x"]))), vit)
    assert dark[0][0].mean() == pytest.approx((40 / 255 - 0.5) / 0.25, abs=1e-4)


def test_the_rate_is_that_of_the_recipe(script):
    args = script.checked(["--model", "m", "--data", "d", "--out", "x"])
    assert (args.lr, args.momentum, args.batch, args.epochs, args.clip) == (3e-5, 0.9, 64, 20, 1.0)
    assert (args.warmup, args.warmup_factor, args.cosine, args.weight_decay, args.distil) == (2, 0.01, 20, 0.0, 0.0)
    factors = [script.factor(epoch, args) for epoch in range(20)]
    net = nn.Linear(1, 1)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 20)
    expected = [0.01, 0.01]
    for _ in range(18):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        cosine.step()
    assert factors == pytest.approx(expected)
    assert script.checked(["--model", "m", "--data", "d", "--out", "x", "--epochs", "1"]).warmup == 0


@pytest.mark.parametrize("at_once", [0, 3])
def test_the_loss_is_the_mean_over_the_batch_and_the_teachers_part_is_its_share(script, at_once):
    from accelerate import Accelerator

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 5, generator=g), torch.arange(8) % 3
    net, teacher = nn.Linear(5, 3), nn.Linear(5, 3)
    args = Namespace(at_once=at_once, distil=0.3, temperature=2.0)
    lost = script.step(net, teacher, x, y, 8, args, Accelerator(cpu=True))
    found = net.weight.grad.clone()
    net.zero_grad()
    hard = nn.functional.cross_entropy(net(x), y)
    p, q = (torch.softmax(m(x) / 2, 1) for m in (teacher, net))
    soft = (p * (p / q).log()).sum(1).mean()  # Kullback-Leibler divergence from the student to the teacher
    loss = 0.7 * hard + 0.3 * 4 * soft
    loss.backward()
    assert lost / 8 == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(found, net.weight.grad, atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--model", "m"],
        ["--toy", "--teacher", "t"],
        ["--model", "m", "--data", "d", "--distil", "0.5"],
        ["--toy", "--distil", "1.5"],
        ["--toy", "--distil", "nan"],
    ],
)
def test_what_is_missing_is_asked_for(script, given, capsys):
    with pytest.raises(SystemExit) as left:
        script.checked([*given, "--out", "x"])
    assert left.value.code == 2
    assert "--" in capsys.readouterr().err.splitlines()[-1]


def test_a_finished_run_is_not_overwritten(toy, script):
    with pytest.raises(SystemExit, match="there already"):
        script.main([*TOY, "--out", str(toy)])
