"""A Moment and the Moments of a model: what they say, what they refuse, and that a file gives back what was put in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spectrim.moments import Moment, Moments, equalised, identity
from spectrim.reading import equalize


def planted(cols: int = 6, positions: int = 200, seed: int = 0) -> tuple[torch.Tensor, Moment]:
    x = torch.randn(positions, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    return x, Moment(x.T @ x / positions, x.mean(0), positions)


def test_the_covariance_is_what_numpy_says():
    x, found = planted()
    assert torch.allclose(found.covariance(), torch.from_numpy(np.cov(x.numpy().T, bias=True)), atol=1e-12)
    assert torch.equal(found.diagonal, found.dense().diagonal())
    assert found.dense().dtype == torch.float64 and found.cols == 6 and not found.is_diagonal


def test_a_diagonal_stands_for_a_matrix():
    found = Moment(torch.tensor([4.0, 9.0]), torch.tensor([1.0, 5.0]), 3)
    assert found.is_diagonal and found.dense().tolist() == [[4, 0], [0, 9]]
    assert found.covariance().tolist() == [3, 0]  # a variance is not negative, whatever the mean claims
    assert found.damped(1.0).tolist() == [10.5, 15.5]


def test_damping_adds_a_share_of_the_mean_square():
    _, found = planted()
    more = found.damped(0.3) - found.dense()
    assert torch.allclose(more, 0.3 * found.dense().diagonal().mean() * torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert torch.equal(found.damped(0.0), found.dense())
    before = found.second.clone()
    found.damped(2.0)
    assert torch.equal(found.second, before)
    with pytest.raises(ValueError, match="share"):
        found.damped(-0.1)


@pytest.mark.parametrize("second", [torch.zeros(3, 3), torch.zeros(3)])
def test_a_dead_layer_is_damped_to_the_identity(second):
    found = Moment(second, torch.zeros(3), 5)
    assert found.dead and not planted()[1].dead
    damped = found.damped(0.01)
    assert torch.equal(damped, torch.eye(3, dtype=torch.float64) if second.ndim == 2 else torch.ones(3).double())


@pytest.mark.parametrize(
    ("second", "mean", "complaint"),
    [
        (torch.zeros(3, 2), torch.zeros(3), "cols x cols"),
        (torch.zeros(3), torch.zeros(3, 1), "cols x cols"),
        (torch.full((2,), float("nan")), torch.zeros(2), "2 entries .* not finite"),
        (torch.tensor([1.0, -1.0]), torch.zeros(2), "cannot be negative"),
    ],
)
def test_what_is_no_moment_is_refused(second, mean, complaint):
    with pytest.raises(ValueError, match=complaint):
        Moment(second, mean, 1)


def test_the_equalised_metric_measures_the_error_of_the_even_matrix():
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(7, 5, generator=generator).double() * torch.rand(7, 1, generator=generator).double().exp()
    new = W * (torch.rand(7, 5, generator=generator) > 0.5)
    scales = equalize(W)
    found = equalised(W, scales)
    E = W - new
    cost = torch.trace(found.rows.diag() @ E @ found.dense() @ E.T)
    assert torch.isclose(cost, scales.apply(E).square().sum(), rtol=1e-12)
    assert not torch.isclose(cost, E.square().sum(), rtol=1e-2)  # it is another one than the plain error
    with pytest.raises(ValueError, match="7 x 5"):
        equalised(W.T, scales)


def test_the_identity_is_the_plain_error():
    assert torch.equal(identity(4).dense(), torch.eye(4, dtype=torch.float64))
    assert identity(4).count == 0 and not identity(4).mean.any()


def saved() -> Moments:
    _, a = planted()
    b = Moment(
        torch.eye(3), torch.ones(3), 4, kurtosis=torch.full((3,), 3.0), largest=torch.ones(3), rows=torch.ones(2)
    )
    recipe = {"generator": "noise", "seed": 3, "notes": ["odd"], "settings": {"exponent": 1.0}}
    return Moments({"q": a, "fc": b, "k": a}, "synthetic", recipe, "abc", {"hh": "cannot be seen"})


def test_a_file_gives_back_what_was_put_in(tmp_path):
    before = saved()
    path = before.save(tmp_path / "m.safetensors")
    after = Moments.load(path)
    assert list(after) == ["q", "fc", "k"]
    assert after["q"] is after["k"] and after["fc"] is not after["q"]
    for name in before:
        for field in ("second", "mean", "kurtosis", "largest", "rows"):
            a, b = getattr(before[name], field), getattr(after[name], field)
            assert (a is None and b is None) or (torch.equal(a, b) and a.dtype == b.dtype), (name, field)
        assert before[name].count == after[name].count
    assert (after.recipe, after.missing, after.model, after.source) == (
        before.recipe,
        before.missing,
        "abc",
        "synthetic",
    )
    assert after.fingerprint == before.fingerprint and after.notes == ("odd",)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]  # nothing half written is left


def test_the_fingerprint_sees_every_figure():
    base = saved()
    other = planted(seed=1)[1]
    assert Moments({**base.by_name, "fc": other}, "synthetic", {}, "abc").fingerprint != base.fingerprint
    assert Moments(base.by_name, "synthetic", {}, "abd").fingerprint != base.fingerprint
    assert Moments(base.by_name, "synthetic", {"seed": 9}, "abc").fingerprint == base.fingerprint


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        Moments.load(tmp_path / "none.safetensors")
    save_file({"w": torch.ones(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds no moments"):
        Moments.load(tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a whole file"):
        Moments.load(tmp_path / "text")
    path = saved().save(tmp_path / "m.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="was changed"):
        Moments.load(path)
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="not a whole file"):
        Moments.load(path)


def test_a_missing_matrix_is_asked_for_in_vain_with_the_reason():
    found = saved()
    with pytest.raises(KeyError, match="cannot be seen"):
        found["hh"]
    with pytest.raises(KeyError):
        found["nowhere"]
    assert "hh" not in found and found.get("hh") is None


def test_what_moments_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="source is one of"):
        Moments({}, "elsewhere")
    with pytest.raises(TypeError, match="w has something else"):
        Moments({"w": torch.eye(2)}, "samples")
    with pytest.raises(ValueError, match="recipe"):
        Moments({}, "samples", {"fn": len})


def test_the_rows_tell_of_tails_and_loud_inputs():
    level = torch.ones(20)
    level[3] = 2500.0
    found = Moments(
        {"a": Moment(level, torch.zeros(20), 9, torch.full((20,), 3.0), torch.full((20,), 100.0))}, "stored"
    )
    (row,) = found.to_rows()
    assert row["loud"] == [3] and row["kurtosis"] == [3.0, 3.0] and row["mean_share"] == 0
    assert row["peak"] == pytest.approx(100 / (2519 / 20) ** 0.5)
    json.dumps(found.to_rows())
    assert "1 loud input" in str(found)
    assert "all zero" in str(Moments({"a": Moment(torch.zeros(2), torch.zeros(2), 9)}, "stored"))
