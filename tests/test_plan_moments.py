"""Plans and cuts in the inner product of a layer's inputs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from spectrim import budgets, calibrate, plan, survey, trim
from spectrim.calibrate import gather
from spectrim.entries import Plan
from spectrim.inner.alternate import alternate
from spectrim.inner.damage import relative_damage
from spectrim.inner.obs import obs, wanda
from spectrim.inner.whiten import low_rank
from spectrim.moments import Moments
from spectrim.planning.by_error import largest
from spectrim.sweep import Reconstructed, Score, mean, named, sweep


@pytest.fixture(scope="module")
def seen():
    """A network, inputs with strong correlations, and their moments."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 30)).eval()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5
    x = torch.randn(400, 8, generator=generator) @ torch.randn(8, 40, generator=generator)
    x = x + 0.3 * torch.randn(400, 40, generator=generator)
    return net, x, gather(net, [x[:200]])


def outputs_lost(net, cut, x) -> float:
    with torch.no_grad():
        a, b = net(x), cut(x)
    return float(((a - b).square().sum() / a.square().sum()).sqrt())


def test_zeros_in_the_inner_product_are_what_the_step_gives_and_trim_carries_them_out(seen):
    net, _, moments = seen
    found = survey(net)
    for step, function in (("alternate", alternate), ("obs", obs), ("wanda", lambda W, C, k: wanda(W, C, k, "row"))):
        chosen = plan(found, zeros=0.5, moments=moments, step=step)
        cut = copy.deepcopy(net)
        trim(cut, chosen, moments=moments)
        for entry in chosen.entries:
            W = net.get_submodule(entry.name).weight.data
            expected = function(W, moments[entry.name], entry.zeros)
            assert torch.equal(cut.get_submodule(entry.name).weight.data, expected)
            assert entry.output_error**2 == pytest.approx(relative_damage(W, expected, moments[entry.name]))
            assert (entry.basis, entry.step) == ("moments", step)


def test_on_new_inputs_less_is_lost_than_by_magnitude(seen):
    net, x, moments = seen
    found, lost = survey(net), {}
    for name, given in {"magnitude": {}, "wanda": {"step": "wanda"}, "obs": {"step": "obs"}, "alternate": {}}.items():
        more = {} if name == "magnitude" else {"moments": moments, **given}
        cut = copy.deepcopy(net)
        trim(cut, plan(found, zeros=0.6, budget=budgets.Uniform(), **more), **({"moments": moments} if more else {}))
        lost[name] = outputs_lost(net, cut, x[200:])
    assert lost["alternate"] < lost["magnitude"] / 2 and lost["obs"] < lost["wanda"] < lost["magnitude"]


def test_ranks_in_the_inner_product_are_whitened_and_lose_less_than_plain_ones(seen):
    net, x, moments = seen
    found = survey(net)
    chosen = plan(found, params=0.5, moments=moments)
    cut, plain = copy.deepcopy(net), copy.deepcopy(net)
    trim(cut, chosen, moments=moments)
    trim(plain, plan(found, params=0.5, gate=1))
    assert outputs_lost(net, cut, x[200:]) < outputs_lost(net, plain, x[200:]) / 2
    for entry in chosen.touched:
        W, moment = net.get_submodule(entry.name).weight.data, moments[entry.name]
        new = low_rank(W, moment, entry.rank).dense()
        assert entry.output_error**2 == pytest.approx(relative_damage(W, new, moment), rel=1e-6)
    assert chosen.params_after <= 0.5 * chosen.params_before


def test_moments_that_are_not_of_the_data_are_damped_more(seen):
    net, _, moments = seen
    drawn = Moments(dict(moments.items()), "synthetic")
    assert (moments.damping, drawn.damping) == (0.01, 0.1)
    cut = copy.deepcopy(net)
    chosen = plan(survey(net), zeros=0.5, moments=drawn)
    trim(cut, chosen, moments=drawn)
    for entry in chosen.entries:
        W = net.get_submodule(entry.name).weight.data
        assert torch.equal(
            cut.get_submodule(entry.name).weight.data, alternate(W, moments[entry.name], entry.zeros, damping=0.1)
        )


def test_a_plan_is_replayed_from_its_file_with_the_moments_from_theirs(seen, tmp_path):
    net, _, moments = seen
    plan(survey(net), zeros=0.5, moments=moments).to_json(tmp_path / "plan.json")
    file = moments.save(tmp_path / "moments.safetensors")
    first, second = copy.deepcopy(net), copy.deepcopy(net)
    trim(first, Plan.from_json(tmp_path / "plan.json"), moments=moments)
    trim(second, tmp_path / "plan.json", moments=file)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_checkpoint_is_cut_as_the_live_model_is(seen, tmp_path):
    net, _, moments = seen
    state = {name: t.clone() for name, t in net.state_dict().items()}
    chosen = plan(survey(state), zeros=0.5, moments=Moments({f"{n}": m for n, m in moments.items()}, "samples"))
    torch.save(state, tmp_path / "model.pt")
    used = Moments(dict(moments.items()), "samples")
    trim(tmp_path / "model.pt", chosen, tmp_path / "out", moments=used)
    live = copy.deepcopy(net)
    trim(live, plan(survey(net), zeros=0.5, moments=moments), moments=moments)
    from safetensors.torch import load_file

    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], t) for name, t in live.state_dict().items())


def test_an_edit_that_takes_the_step_away_is_refused(seen, tmp_path):
    net, _, moments = seen
    file = tmp_path / "plan.json"
    file.write_text(plan(survey(net), zeros=0.5, moments=moments).to_json().replace('"alternate"', '"magnitude"'))
    with pytest.raises(ValueError, match="are set by a step"):
        Plan.from_json(file)


def test_what_has_no_moments_is_cut_by_magnitude_and_says_so(seen):
    net, _, moments = seen
    some = Moments({name: m for name, m in moments.items() if name != "2"}, "samples", missing={"2": "never called"})
    chosen = plan(survey(net), zeros=0.5, moments=some)
    entry = next(e for e in chosen.entries if e.name == "2")
    assert (entry.basis, entry.step, entry.output_error) == ("plain", "magnitude", None)
    assert "never called" in entry.reason and any("no moments" in note for note in chosen.notes)
    trim(copy.deepcopy(net), chosen, moments=some)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"zeros": 0.5, "moments": "FILE"}, "gather"),
        ({"zeros": 0.5, "basis": "moments"}, "moments=gather"),
        ({"zeros": 0.5, "step": "obs"}, "needs moments"),
        ({"zeros": 0.5, "moments": True, "step": "magnitude"}, "takes no moments"),
        ({"zeros": 0.5, "moments": True, "basis": "equalised"}, "one basis"),
        ({"params": 0.5, "moments": True, "step": "obs"}, "chooses zeros"),
        ({"params": 0.5, "moments": True, "gate": 0.2}, "gate"),
        ({"zeros": 0.5, "moments": True, "step": "best"}, "step is one of"),
    ],
)
def test_what_does_not_go_together_is_refused(seen, asked, message):
    net, _, moments = seen
    asked = {key: moments if value is True else value for key, value in asked.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        plan(survey(net), **asked)


def test_trim_wants_the_moments_of_the_plan_and_no_others(seen):
    net, x, moments = seen
    chosen = plan(survey(net), zeros=0.5, moments=moments)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(ValueError, match="give their moments"):
        trim(net, chosen)
    with pytest.raises(ValueError, match="not those that the plan was made with"):
        trim(net, chosen, moments=gather(net, [x[200:]]))
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_moments_of_another_model_are_refused(seen):
    net, x, _ = seen
    other = gather(nn.Sequential(nn.Linear(40, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2)), [x])
    with pytest.raises(ValueError, match="another model"):
        plan(survey(net), zeros=0.5, moments=other)


class Kept:
    """A task: are the outputs on new inputs still what they were?"""

    name, only = "kept", None

    def __init__(self, net, x):
        self.model, self.x = net, x
        with torch.no_grad():
            self.dense = net(x)

    def measure(self, model):
        cosine = nn.functional.cosine_similarity(model(self.x), self.dense).double().numpy()
        return {"cosine": Score(cosine, mean)}


def test_a_sweep_takes_moments_without_data_by_name_and_those_of_samples(seen):
    net, x, moments = seen
    methods = named(["zeros (synthetic)", "ranks (stored)"]) | {
        "zeros, samples": Reconstructed(moments),
        "ranks, samples": Reconstructed(moments, ranks=True),
    }
    done = sweep(Kept(net, x[200:]), methods | named(["ranks"]), rates=(0.5, 0.6), bootstrap=20)
    assert not done.failed and not any(cell.flag for cell in done)
    value = {cell.method: cell.scores["cosine"]["all"].value for cell in done if cell.rate == 0.6}
    assert value["zeros, samples"] > value["zeros (synthetic)"] > value["uniform"]
    assert value["ranks, samples"] > value["ranks"]
    assert done.cell("ranks (stored)", 0.5).counts.stored < done.dense.counts.stored


def test_a_method_of_a_sweep_names_its_moments(seen):
    _, _, moments = seen
    assert repr(Reconstructed(moments)) == f"Reconstructed(samples {moments.fingerprint[:12]}, usual budget, alternate)"
    with pytest.raises(ValueError, match="source is one of stored, synthetic, or moments"):
        Reconstructed("noise")


def weighed_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 8)).eval()
    x = torch.randn(512, 6) @ torch.randn(6, 32)
    return net, x[256:], calibrate.weighed(calibrate.gather(net, x[:256]), net, x[:256])


@pytest.mark.parametrize("cut", ["zeros", "ranks"])
@pytest.mark.parametrize("error", [0.03, 0.1, 0.3])
def test_a_plan_for_an_error_does_about_that_to_the_output_of_other_inputs(cut, error):
    net, others, moments = weighed_net()
    dense = net(others).detach()
    made = plan(survey(net), error=error, cut=cut, moments=moments)
    least = 0.9 if cut == "zeros" else 0.0  # one value of a matrix may be a large step
    assert least * error < made.model_error <= error and made.target["error"] == error
    trim(net, made, moments=moments)
    found = float((net(others).detach() - dense).norm() / dense.norm())
    assert made.model_error / 2 - 1e-3 < found < 2 * made.model_error + 1e-3


def test_more_error_is_a_larger_cut_and_an_impossible_one_is_named():
    net, _, moments = weighed_net()
    found = survey(net)
    small, large = (plan(found, error=e, moments=moments, step="obs") for e in (0.05, 0.2))
    assert small.zeros < large.zeros and "expected to change by" in str(small)
    for cut in ("zeros", "ranks"):
        with pytest.raises(ValueError, match="out of reach"):
            plan(found, error=1e-9, cut=cut, moments=moments)
    for wrong, message in (
        ({"error": 0.1}, "weighed"),
        ({"error": 0, "moments": moments}, "share of the model"),
        ({"error": 0.1, "cut": "rank", "moments": moments}, "zeros, ranks"),
        ({"zeros": 0.1, "cut": "ranks", "moments": moments}, "leave out"),
        ({"error": 0.1, "zeros": 0.1, "moments": moments}, "one target"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(found, **wrong)


def test_a_search_is_near_its_bound_whatever_the_curve():
    for curve in (lambda s: s**4, lambda s: math.exp(9 * s) - 1, lambda s: 0.0 if s < 0.4 else 5.0, lambda s: s):
        share = largest(curve, 0.2)
        assert curve(share) <= 0.2 and (curve(share) >= 0.19 or curve(min(1, share + 0.005)) > 0.2)
    assert largest(lambda s: 0.0, 0.2) > 0.99 and largest(lambda s: 1.0, 0.2, low=0.3) == 0.3
    assert largest(lambda s: 1e-300 if s < 0.3 else 1e300, 1e9) == pytest.approx(0.3, abs=0.01)  # ratios overflow


def test_a_cut_that_the_error_does_not_know_of_is_named():
    net, _, moments = weighed_net()
    half = Moments(moments.by_name, moments.source, moments.recipe, moments.model, {}, {"0": moments.rows["0"]})
    made = plan(survey(net), zeros=0.5, moments=half)
    assert any("2" in note and "not in the expected change" in note for note in made.notes)
