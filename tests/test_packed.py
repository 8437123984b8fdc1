"""Packed weights: every bit comes back, files are as small as planned, and nothing of ours is needed to read them."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from spectrim import factored, packed, plan, survey, trim, unpacking
from spectrim.packed import SCHEMA, file_name, kept, pack, pack_all, packed_nbytes, pieces
from spectrim.unpacking import WHOLE, unpack
from spectrim.writing import write_tensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):  # the package is installed where the tests run
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "spectrim":
            raise ModuleNotFoundError(f"No module named {name!r}: this process has to do without")

sys.meta_path.insert(0, Blocker())
try:
    import spectrim
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the blocker does not block")
"""


def bits(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(WHOLE[t.element_size()])


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def sparse(shape, share: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random bits, so NaN payloads, infinities, subnormals and -0.0 too, with a share of the entries +0.0."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.Size(shape).numel()
    raw = torch.randint(0, 256, (n, dtype.itemsize), generator=generator, dtype=torch.uint8)
    raw[torch.rand(n, generator=generator) < share] = 0
    t = raw.flatten().view(dtype).clone()
    if dtype.is_floating_point and n > 8 and dtype.itemsize > 1:
        special = torch.tensor([-0.0, math.nan, -math.inf, 0.0], dtype=dtype)
        t[:4] = special
    return t.view(shape)


def naive(t: Tensor) -> tuple[bytes, bytes]:
    """The format, spelled out: what the mask and the values hold, byte by byte."""
    size, raw = t.element_size(), bits(t).view(torch.uint8).tolist()
    entries = [bytes(raw[i : i + size]) for i in range(0, len(raw), size)]
    mask = bytearray((len(entries) + 7) // 8)
    for i, entry in enumerate(entries):
        if any(entry):
            mask[i // 8] |= 1 << (i % 8)
    return bytes(mask), b"".join(entry for entry in entries if any(entry))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e4m3fn, torch.int64, torch.int8, torch.complex64])
@pytest.mark.parametrize("shape", [(41, 57), (7, 5, 3, 11), (1013,)])
def test_every_bit_comes_back(dtype, shape):
    t = sparse(shape, 0.6, dtype)
    found = pack(t)
    assert_same_bits(unpack(**found, shape=shape), t)
    assert tuple(bytes(x.view(torch.uint8).tolist()) for x in found.values()) == naive(t)
    assert sum(x.nbytes for x in found.values()) == packed_nbytes(t.numel(), kept(t), dtype.itemsize)
    assert found["mask"].dtype == torch.uint8 and found["values"].dtype == dtype and found["values"].ndim == 1


def test_a_negative_zero_and_a_nan_are_entries():
    t = torch.zeros(40, 40)
    t[0, :3] = torch.tensor([-0.0, math.nan, 1e-45])
    t.view(torch.int32)[1, 1] = 0x7FC12345  # a NaN with a payload
    found = pack(t)
    assert kept(t) == found["values"].numel() == 4
    assert_same_bits(unpack(**found, shape=t.shape), t)


def test_what_lies_otherwise_in_memory_is_packed_as_it_reads():
    t = sparse((60, 90), 0.7)
    for view in (t.T, t[:, ::2], t[5:, 7:]):
        assert_same_bits(unpack(**pack(view), shape=view.shape), view.contiguous())
    weight = nn.Parameter(torch.zeros(50, 50))
    assert not pack(weight)["values"].requires_grad


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_the_empty_and_the_single_stay_and_would_come_back(shape):
    t = torch.zeros(shape)
    assert pack(t) is None
    mask, values = (torch.frombuffer(bytearray(x), dtype=torch.uint8) if x else torch.empty(0) for x in naive(t))
    assert_same_bits(unpack(mask.to(torch.uint8), values.to(torch.float32), shape), t)
    assert_same_bits(unpack(torch.zeros(2, dtype=torch.uint8), torch.empty(0), (3, 4)), torch.zeros(3, 4))


def test_blocks_make_no_difference(monkeypatch):
    t = sparse((97, 61), 0.5)
    whole = pack(t)
    monkeypatch.setattr(packed, "BLOCK", 64)
    monkeypatch.setattr(unpacking, "BLOCK", 8)
    small = pack(t)
    assert all(torch.equal(bits(whole[k]), bits(small[k])) for k in whole)
    assert_same_bits(unpack(**whole, shape=t.shape), t)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([*FLOATS, torch.int8]), st.sampled_from(["w", "a." * 40]))
def test_a_tensor_is_packed_only_where_the_file_is_smaller(n, share, dtype, name):
    t = sparse((n,), share, dtype, seed=n)
    tensors, told = pack_all({name: t})
    dense, new = len(save({name: t}, {"format": "pt"})), len(save(tensors, {"format": "pt", **told}))
    assert (new < dense) if told else list(tensors) == [name]
    if not told:  # and what is left alone would hardly have gained: less than the allowance for the head
        assert packed_nbytes(n, kept(t), dtype.itemsize) + packed.HEAD >= t.nbytes


def made(run) -> tuple[list[int], object]:
    """The bytes of every allocation of torch while `run` works, those within its operations too, and the result."""
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        result = run()
    return [event.self_cpu_memory_usage for event in seen.function_events], result


def test_the_memory_is_bounded():
    """Beside the result nothing is made that grows with the tensor."""
    t = torch.zeros(4 << 20, dtype=torch.bfloat16)
    t[::3] = 1
    small = 1 << 21
    sizes, found = made(lambda: pack(t))
    assert {n for n in sizes if n > small} == {found["values"].nbytes}
    sizes, again = made(lambda: unpack(**found, shape=t.shape))
    assert [n for n in sizes if n > small] == [t.nbytes] and torch.equal(again, t)
    assert max(made(t.bool)[0]) == t.numel() > small  # what would have shown


@pytest.mark.parametrize(
    "change",
    [
        lambda mask, values: (mask, values[:-1]),
        lambda mask, values: (mask, torch.cat([values, values[:1]])),
        lambda mask, values: (mask[:-1], values),
        lambda mask, values: (mask | 128, values),  # the last bit of the last byte is none of an entry
        lambda mask, values: (torch.cat([mask, mask[:1] | 1]), torch.cat([values, values])),
    ],
)
def test_a_damaged_mask_is_refused(change):
    t = sparse((5, 55), 0.5, torch.float64)
    found = pack(t)
    with pytest.raises(ValueError, match="does not fit its values or its shape"):
        unpack(*change(found["mask"], found["values"]), t.shape)


def test_a_name_that_is_taken_is_left_alone():
    zeros = torch.zeros(50, 50)
    tensors, told = pack_all({"a": zeros, "a.mask": torch.ones(3), "b": zeros}, names=["b.values"])
    assert list(tensors) == ["a", "a.mask", "b"] and told == {}


def test_shards_and_tied_names_are_put_together_again(tmp_path):
    first = {"a": sparse((40, 50), 0.7), "n": torch.arange(5)}
    second = {"b": sparse((30, 30), 0.7, torch.bfloat16), "c": torch.ones(4, 4)}
    for i, (tensors, tied) in enumerate([(first, {"a2": "a", "a3": "a"}), (second, {"c2": "c"})]):
        stored, told = pack_all(tensors)
        assert len(stored) == 3
        write_tensors(stored, tmp_path / file_name(f"model-{i}.safetensors"), told | tied)
    found = unpacking.load(tmp_path)
    right = first | second | {"a2": first["a"], "a3": first["a"], "c2": second["c"]}
    assert set(found) == set(right)
    for name, t in right.items():
        assert_same_bits(found[name], t)
    assert found["a2"].data_ptr() == found["a"].data_ptr()  # one tensor in memory too
    assert [name for name, _ in unpacking.read(tmp_path)] == ["a", "a2", "a3", "n", "b", "c", "c2"]


def test_what_was_not_packed_is_read_too(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")  # without any metadata
    assert torch.equal(unpacking.load(tmp_path)["a"], torch.ones(3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        unpacking.load(tmp_path / "empty")


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(400, 640), nn.GELU(), nn.Linear(640, 400), nn.LayerNorm(400), nn.Linear(400, 10)
    return nn.Sequential(*layers).to(dtype).eval()


NET = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
from safetensors.torch import load_file, save_file
from unpack_spectrim import load
found = {}
for dtype in (torch.float32, torch.bfloat16):
    for share in (50, 70):
        folder = f"{sys.argv[1]}/{str(dtype)[6:]}-{share}"
        layers = nn.Linear(400, 640), nn.GELU(), nn.Linear(640, 400), nn.LayerNorm(400), nn.Linear(400, 10)
        model = nn.Sequential(*layers).to(dtype).eval()
        model.load_state_dict(load(folder))
        with torch.no_grad():
            found[folder.rpartition("/")[2]] = model.float()(load_file(sys.argv[1] + "/x.safetensors")["x"])
save_file(found, sys.argv[1] + "/logits.safetensors")
"""


def test_the_file_is_smaller_as_planned_and_opens_without_us(tmp_path):
    x = torch.randn(5, 400, generator=torch.Generator().manual_seed(1))
    right = {}
    for dtype in (torch.float32, torch.bfloat16):
        found = survey(net(dtype))
        for share in (50, 70):
            model = net(dtype)
            chosen = plan(found, zeros=share / 100)
            trim(model, chosen)
            folder = tmp_path / f"{str(dtype)[6:]}-{share}"
            folder.mkdir()
            stored, told = pack_all(model.state_dict())
            write_tensors(stored, folder / file_name("model.safetensors"), told)
            write_tensors(model.state_dict(), tmp_path / "dense.safetensors")
            dense, new = ((tmp_path / "dense.safetensors").stat(), (folder / "packed-model.safetensors").stat())
            size = dtype.itemsize
            saved = sum(
                e.params_before * size - packed_nbytes(e.params_before, e.params_before - e.zeros, size)
                for e in chosen.touched
            )
            assert dense.st_size - new.st_size == pytest.approx(saved, rel=0.02)
            # Of the whole file, 1/32 or 1/16 for the mask and the rest for the entries that stay.
            assert new.st_size / dense.st_size == pytest.approx(1 / (8 * size) + 1 - share / 100, rel=0.02)
            assert sum(p.numel() for p in model.parameters()) > 500_000
            with torch.no_grad():
                right[folder.name] = model.float()(x)
    save_file({"x": x}, tmp_path / "x.safetensors")
    shutil.copy(unpacking.__file__, tmp_path / packed.READER)
    subprocess.run([sys.executable, "-I", "-c", ALONE + NET, str(tmp_path)], check=True, cwd=tmp_path)
    found = load_file(tmp_path / "logits.safetensors")
    assert set(found) == set(right)
    for name, logits in right.items():
        torch.testing.assert_close(found[name], logits, atol=1e-5, rtol=0)  # another process may sum in another order
    assert not torch.allclose(found["float32-50"], found["float32-70"], atol=0.01)


def test_halves_of_a_split_model_are_packed_too(tmp_path):
    def fresh():
        return nn.Sequential(nn.Linear(60, 80), nn.GELU(), nn.Linear(80, 40))

    splits = {str(i): {"form": "linear", "cols": c, "parts": [{"rows": r, "rank": 20}]} for i, r, c in [(0, 80, 60)]}
    model, again = (factored.restructure(fresh(), splits) for _ in range(2))
    state = {name: sparse(t.shape, 0.7).nan_to_num(0, 0, 0).clamp(-1, 1) for name, t in model.state_dict().items()}
    stored, told = pack_all(state)
    assert "0.0.weight.mask" in stored and "2.weight.mask" in stored
    write_tensors(stored, tmp_path / file_name("model.safetensors"), told)
    model.load_state_dict(state)
    again.load_state_dict(unpacking.load(tmp_path))
    x = torch.randn(3, 60, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(again(x), model(x)) and model(x).abs().max() > 0


def test_the_names_that_files_rely_on():
    assert SCHEMA == "spectrim.packed/1" and pieces("a") == ("a.mask", "a.values")
    assert packed.READER == "unpack_spectrim.py" and file_name("model.safetensors") == "packed-model.safetensors"
