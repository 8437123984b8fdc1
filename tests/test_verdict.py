"""The verdict: its rule on matrices whose kind is known, the gate, and the plan that obeys it."""

import json

import numpy as np
import pytest
import torch

from spectrim import Plan, plan, survey, trim
from spectrim.edges import Bema, Known, ScreeNot
from spectrim.planted import critical, noise, planted
from spectrim.reading import read_spectrum
from spectrim.spectrum import Spectrum
from spectrim.verdict import GATE, KINDS, NOISE, PANEL, judge


def verdict_of(W, **how):
    spectrum = read_spectrum(W)
    return judge(spectrum, Bema()(spectrum), **how)


def noise_of(seed=0, shape=(120, 200)):
    return noise(*shape, generator=np.random.default_rng(seed))


def spiked_of(seed=0, shape=(120, 200), count=6):
    return planted(*shape, np.linspace(2, 5, count) * critical(*shape), generator=np.random.default_rng(seed)).W


def heavy_of(seed=0, shape=(120, 200), exponent=2.2):
    """Eigenvalues that fall like x**-exponent, with Haar vectors."""
    generator = np.random.default_rng(seed)
    p, n = shape
    U = np.linalg.qr(generator.standard_normal((p, p)))[0]
    V = np.linalg.qr(generator.standard_normal((n, p)))[0]
    x = (1 - generator.uniform(size=p)) ** (-1 / (exponent - 1))
    return (U * np.sqrt(n * x)) @ V.T


def misfit_of(seed=0, shape=(120, 200)):
    """Two levels of singular values: no law of noise, and no power law either."""
    generator = np.random.default_rng(seed)
    p, n = shape
    U = np.linalg.qr(generator.standard_normal((p, p)))[0]
    V = np.linalg.qr(generator.standard_normal((n, p)))[0]
    s = np.where(np.arange(p) < 0.6 * p, 10.0, 5.0) * generator.uniform(0.99, 1.01, p)
    return (U * s) @ V.T


MATRICES = {"noise-like": noise_of, "spiked": spiked_of, "heavy-tailed": heavy_of, "no fit": misfit_of}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_the_kind_of_a_known_matrix(kind, seed):
    expected = {kind, "spiked"} if kind == "noise-like" else {kind}  # noise shows a spike in one draw of ten
    assert verdict_of(MATRICES[kind](seed)).kind in expected


def test_pure_noise_is_noise_like_at_the_rate_of_its_edge():
    kinds = [verdict_of(noise_of(seed, (60, 100)), panel={}).kind for seed in range(100)]
    assert set(kinds) <= {"noise-like", "spiked"}
    # Binomial, rate .1: above 20 with probability .001; the seeds are fixed.
    assert kinds.count("spiked") <= 20


@pytest.mark.parametrize("shape", [(10, 10), (10, 40), (20, 20), (20, 200), (50, 50)])
def test_the_gate_leaves_small_noise_in(shape):
    # 1000 draws had their 99.9 per cent quantile of the misfit at .05 to .08 under the limit.
    for seed in range(100):
        assert verdict_of(noise_of(seed, shape), panel={}).cuttable


def test_the_verdict_shows_its_figures():
    found = verdict_of(spiked_of())
    assert set(found.fits) | set(found.refused) == set(PANEL) and not found.refused
    counts = [found.fits[name].spikes for name in NOISE]
    assert found.agreement == min(counts) / max(counts)
    assert "6 of 120" in found.reason and f"{found.misfit:.3f}" in found.reason
    assert found.gate == GATE and found.cuttable
    assert verdict_of(spiked_of(), panel={}).agreement is None
    told = found.to_dict()
    assert told["kind"] == "spiked" and set(told) == {"kind", "reason", "agreement", "misfit", "gate", "tail"}


def test_an_estimator_without_a_misfit_is_judged_by_that_of_bema():
    spectrum = read_spectrum(spiked_of())
    fit = ScreeNot()(spectrum)
    assert fit.misfit is None
    assert judge(spectrum, fit).misfit == Bema()(spectrum).misfit


def test_one_that_refuses_is_named_and_the_rest_still_speak():
    def refuses(spectrum):
        raise ValueError("not today")

    found = verdict_of(spiked_of(), panel={"bema": Bema(), "mine": refuses})
    assert found.refused == {"mine": "not today"} and set(found.fits) == {"bema"}


def test_more_than_half_above_the_edge_is_no_fit():
    spectrum = read_spectrum(noise_of())
    found = judge(spectrum, Known(0.3)(spectrum), panel={})
    assert found.kind == "no fit" and "no majority" in found.reason


def test_the_gate_moves_the_verdict():
    W = misfit_of()
    assert verdict_of(W).kind == "no fit"
    assert verdict_of(W, gate=1.0).cuttable
    found = [verdict_of(spiked_of(seed), panel={}, gate=0.0) for seed in range(12)]
    assert [v.cuttable for v in found] == [v.misfit <= 2 / 120 for v in found]
    assert {v.cuttable for v in found} == {True, False}  # with these seeds on either side


def test_signal_that_fills_the_window_is_not_called_noise():
    # 80 of 200 at twice the transition: the fit takes them for louder noise, the median sees a part of them.
    W = planted(200, 200, np.linspace(1.9, 2.1, 80) * critical(200, 200), generator=np.random.default_rng(0)).W
    found = verdict_of(W)
    assert found.kind == "no fit" and "disagree" in found.reason


@pytest.mark.parametrize("shape", [(300, 300), (300, 400)])
def test_a_bulk_that_ends_before_its_law_is_not_called_noise(shape):
    ramp = Spectrum(np.linspace(1, 0 if shape[0] == shape[1] else 0.1, 300), *shape)
    found = judge(ramp, Bema()(ramp), panel={})
    assert found.misfit < 0.1 and found.kind == "no fit" and "would end" in found.reason


def test_what_cannot_be_evened_out_is_no_fit():
    found = survey({"a.weight": torch.tensor(np.triu(noise_of(0, (120, 120))))})
    verdict = found.fitted[0].verdict
    assert verdict.kind == "no fit" and "evened out" in verdict.reason
    with pytest.raises(ValueError, match="no matrix"):
        plan(found, params=0.5)


def model():
    torch.manual_seed(0)
    return {f"{name}.weight": torch.tensor(make()) for name, make in MATRICES.items()}


@pytest.mark.parametrize("how", [{"params": 0.5}, {"params": 0.5, "dense": True}])
def test_the_plan_does_not_cut_what_does_not_fit(how):
    found = survey(model())
    chosen = {e.name.removesuffix(".weight"): e for e in plan(found, **how).entries}
    for name in ("heavy-tailed", "no fit"):
        assert chosen[name].action == "keep" and not chosen[name].candidate
        assert chosen[name].reason.startswith(name) and "misfit" in chosen[name].reason
    assert any(chosen[name].action != "keep" for name in ("noise-like", "spiked"))
    assert any("2 matrices do not fit" in note for note in plan(found, **how).notes)
    assert all(e.candidate for e in plan(found, **how, gate=1).entries)


def test_zeros_take_what_does_not_fit_too_for_magnitudes_need_no_law():
    chosen = plan(survey(model()), zeros=0.5)
    assert all(e.candidate and e.action == "zeros" for e in chosen.entries) and not chosen.notes


def test_a_model_that_does_not_fit_anywhere_is_refused_with_the_way_out():
    found = survey({"a.weight": torch.tensor(misfit_of())})
    with pytest.raises(ValueError, match=r"no matrix .* fits the law of noise .*gate=1"):
        plan(found, params=0.5)
    assert plan(found, params=0.5, gate=1).touched
    for gate in (-0.1, 1.1, True, "wide"):
        with pytest.raises(ValueError, match="gate"):
            plan(found, params=0.5, gate=gate)


def live():
    """Two layers; the second has two small directions on few entries, below the lower edge of its noise."""
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(200, 120, bias=False) for name in "ab"}).double()
    layers["a"].weight.data = torch.tensor(spiked_of(1))
    U, s, Vh = np.linalg.svd(spiked_of(2), full_matrices=False)
    s[-2:] = (0.5, 0.3)
    for i, at in ((118, 7), (119, 50)):  # vectors of two entries, everything else made orthogonal to them
        U[:, i], Vh[i] = 0, 0
        U[at : at + 2, i], Vh[i, at : at + 2] = 0.5**0.5, 0.5**0.5
    U, V = (np.linalg.qr(np.c_[X[:, 118:], X[:, :118]])[0] for X in (U, Vh.T))
    order = [*range(2, 120), 0, 1]
    layers["b"].weight.data = torch.tensor((U[:, order] * s) @ V[:, order].T)
    return layers


def kept_plan(**how):
    layers = live()
    return layers, plan(survey(layers, equalize=False, vectors=True), params=0.5, **how)


def test_small_structured_directions_are_kept():
    layers, chosen = kept_plan()
    W = layers["b"].weight.data.clone()
    entry = next(e for e in chosen.entries if e.name == "b")
    assert entry.also == (118, 119) and "2 of the 2" in entry.reason
    assert entry.params_after == entry.rank * (120 + 200)
    trim(layers, chosen)
    new = layers["b"][1].weight.data @ layers["b"][0].weight.data
    assert int(torch.linalg.matrix_rank(new)) == entry.rank
    U, s, Vh = torch.linalg.svd(W)
    for i in (0, entry.rank - 3, 118, 119):
        assert float(U[:, i] @ new @ Vh[i]) == pytest.approx(float(s[i]), rel=1e-6)
    for i in (entry.rank - 2, 60, 117):
        assert abs(float(U[:, i] @ new @ Vh[i])) < 1e-6


def test_a_cut_in_another_basis_than_they_were_found_in_says_that_it_leaves_them():
    found = survey(live(), vectors=True)
    small = sum(len(r.small) for r in found.fitted)
    assert small  # the two are seen in the equalised matrix as well
    chosen = plan(found, params=0.5)
    assert not any(e.also for e in chosen.entries)
    assert any(f"{small} small directions" in note and "--basis equalised" in note for note in chosen.notes)
    kept = plan(found, params=0.5, basis="equalised")
    assert sum(len(e.also) for e in kept.entries) == small and not any("small directions" in n for n in kept.notes)


def edited(tmp_path, **change):
    raw = json.loads(kept_plan()[1].to_json())
    next(e for e in raw["entries"] if e["also"]).update(change)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"also": [118, 118]}, r"also names \[118\]: positions run from 0 to 119, each once"),
        ({"also": [120]}, r"also names \[120\]"),
        ({"rank": 3, "also": [1, 2, 3, 4]}, "more than the 3 that are kept"),
        ({"action": "keep", "rank": None}, "remove them from also"),
        ({"basis": "equalised"}, "positions of the other basis"),
    ],
)
def test_positions_that_cannot_be_kept_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(edited(tmp_path, **change))


@pytest.mark.parametrize("rank", (2, 5, 60, 118))
def test_the_rank_beside_kept_positions_may_be_edited(rank, tmp_path):
    entry = next(e for e in Plan.from_json(edited(tmp_path, rank=rank)).entries if e.also)
    assert len(entry.kept) == rank and {118, 119} <= set(entry.kept)
    assert set(entry.kept) - {118, 119} == set(range(rank - 2))
    assert entry.spikes_cut == max(0, 6 - (rank - 2)) and entry.params_after == rank * 320


def test_a_spectrum_of_ones_is_no_fit():
    flat = Spectrum(np.ones(40), 40, 60)
    assert judge(flat, Bema()(flat), panel={}).kind == "no fit"
