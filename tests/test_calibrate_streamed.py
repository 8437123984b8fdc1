"""Moments a part at a time: the figures of `gather` bit for bit, less in memory, nothing left on disk."""

from __future__ import annotations

import copy
import gc
import sys
import tempfile

import pytest
import torch
from torch import nn

from spectrim import plan, survey, trim
from spectrim.calibrate import gather, streamed
from spectrim.calibrate.running import Running
from spectrim.moments import Filed, Moments
from test_calibrate_sequential import Net, noise

SEED = 5
FIELDS = ("second", "mean", "kurtosis", "largest")
WORK = sys.modules["spectrim.work"]


class Experts(nn.Module):
    """Which layers are reached depends on the batch."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.gate(x)
        return self.experts[1](x) + self.experts[3](x) if len(x) > 3 else self.experts[2](x)


def cases():
    torch.manual_seed(SEED)
    rows = [noise(3, 5, 4, seed=i) for i in range(3)]
    for how in ("mask", "skip", "shared weight", "shared block", "handed on"):
        yield pytest.param(Net(how), rows, id=how)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten())
    yield pytest.param(conv, [noise(4, 3, 9, 9, seed=i) for i in range(2)], id="convolutions")
    padding = torch.arange(5)[None] >= torch.tensor([5, 3, 2])[:, None]
    attention = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    yield pytest.param(attention, [{"src": noise(3, 5, 8), "src_key_padding_mask": padding}], id="padding")
    yield pytest.param(Experts(), [noise(2, 4), noise(5, 4), noise(3, 4)], id="experts")
    odd = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.LSTM(3, 3)})
    yield pytest.param(odd, [lambda m: m["c"](m["a"](torch.ones(5, 4, 3)))], id="missing")
    yield pytest.param(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2)), noise(40, 4), id="one tensor")


@pytest.mark.parametrize("room", [1, 100_000, None])
@pytest.mark.parametrize(("net", "inputs"), list(cases()))
def test_the_moments_of_gather_bit_for_bit(net, inputs, room):
    net.train()  # and stays so
    held, found = gather(net, inputs), streamed(net, inputs, room=room)
    assert list(found) == list(held) and found.missing == held.missing and found.recipe == held.recipe
    for name, moment in held.items():
        for field in FIELDS:
            a, b = getattr(found[name], field), getattr(moment, field)
            assert a.dtype == b.dtype and torch.equal(a, b), (name, field)
        assert found[name].count == moment.count
    assert (found.fingerprint, found.source, found.model) == (held.fingerprint, held.source, held.model)
    assert isinstance(found.by_name, Filed) and sum(len(row["sites"]) for row in found.to_rows()) == len(held)
    assert net.training and not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def sums_at_once(take) -> int:
    """The most bytes of sums that are there at any batch."""
    found = []

    def bar(turns):
        for turn in turns:
            yield turn
            there = [t for t in gc.get_objects() if type(t) is Running and hasattr(t, "sums")]
            found.append(sum(t.sums.numel() * t.sums.element_size() for t in there))

    take(bar)
    return max(found)


def test_no_more_sums_are_held_than_there_is_room_for():
    torch.manual_seed(SEED)
    net = nn.Sequential(*(nn.Linear(140, 140) for _ in range(8)))
    inputs = [noise(20, 140, seed=i) for i in range(2)]
    whole = sums_at_once(lambda bar: gather(net, inputs, progress=bar))
    for parts in (1, 2, 4, 8):
        # The triangle of a tensor's sums is bounded by 4 cols (cols + 128) bytes, hence not quite what is asked for.
        room = 8 * 4 * 140 * 268 // parts
        assert sums_at_once(lambda bar, room=room: streamed(net, inputs, room=room, progress=bar)) == whole // parts


def test_nothing_is_left_on_disk(tmp_path):
    net = Net().eval()
    found = streamed(net, [noise(2, 5, 4)], room=1, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    kept = Moments.load(found.save(tmp_path / "kept.safetensors"), held=False)
    copied = copy.deepcopy(found)
    assert kept.fingerprint == found.fingerprint == copied.fingerprint
    assert torch.equal(kept["head"].second, copied["head"].second)
    del found
    gc.collect()
    assert copied["stem"].cols == 4
    del copied
    gc.collect()
    assert [file.name for file in tmp_path.iterdir()] == ["kept.safetensors"]
    with pytest.raises(ValueError, match="batch 1"):
        streamed(net, [noise(2, 5, 4), noise(2, 5, 3)], folder=tmp_path)

    def stopped(turns):
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streamed(net, [noise(2, 5, 4)] * 2, folder=tmp_path, progress=stopped)
    with pytest.raises(ValueError, match="no batch"):
        streamed(net, [], folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.safetensors"]


def test_a_file_that_was_changed_is_refused(tmp_path):
    found = streamed(Net().eval(), [noise(2, 5, 4)], folder=tmp_path)
    file = found.by_name.places["head"].file
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="was changed"):
        _ = found["head"]
    assert found["stem"].cols == 4


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 30)).eval()
    return net, noise(200, 8) @ noise(8, 40) + 0.3 * noise(200, 40, seed=1)


@pytest.mark.parametrize("target", [{"zeros": 0.5}, {"zeros": 0.5, "step": "obs"}, {"params": 0.5}])
def test_plan_and_trim_are_those_of_moments_in_memory(wide, target):
    net, x = wide
    found, held, parts = survey(net), gather(net, x), streamed(net, x, room=1)
    chosen = plan(found, moments=parts, **target)
    assert chosen == plan(found, moments=held, **target)
    first, second = copy.deepcopy(net), copy.deepcopy(net)
    trim(first, chosen, moments=held)
    trim(second, chosen, moments=parts)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert len(list(first.parameters())) == len(list(net.parameters())) + 3 * ("params" in target)


@pytest.mark.parametrize("error", [RuntimeError("injected"), KeyboardInterrupt()])
@pytest.mark.parametrize("target", [{"zeros": 0.5}, {"params": 0.5}])
def test_an_error_leaves_the_model_and_the_disk_as_they_were(wide, target, error, tmp_path, monkeypatch):
    net, x = copy.deepcopy(wide[0]), wide[1]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held = gather(net, x)
    chosen = plan(survey(net), moments=held, **target)
    before = copy.deepcopy(net.state_dict())
    name = "zeroed" if "zeros" in target else "ranked"
    right, met = getattr(WORK, name), []

    def fails(*given, **more):
        met.append(sum(1 for _ in tmp_path.rglob("*.pt")))
        if len(met) == 3:
            raise error
        return right(*given, **more)

    monkeypatch.setattr(WORK, name, fails)
    with pytest.raises(type(error)):
        trim(net, chosen, moments=held)
    assert met == [0, 1, 2]  # what was cut before waits on disk
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())
    torch.save(before, tmp_path / "model.pt")
    chosen = plan(survey(before), moments=held, dense="params" in target, **target)
    met.clear()
    with pytest.raises(type(error)):
        trim(tmp_path / "model.pt", chosen, tmp_path / "out", moments=held)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".out.partial", "model.pt"]  # what was done is kept
    monkeypatch.undo()
    trim(tmp_path / "model.pt", chosen, tmp_path / "out", moments=held)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt", "out"]
