"""The verdict: its rule on matrices whose kind is known, the gate, and the plan that obeys it."""

import json
from dataclasses import replace

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
    assert verdict_of(spiked_of(), gate=0.0).kind in ("spiked", "no fit")  # 2 / p is left for chance


def model():
    torch.manual_seed(0)
    return {f"{name}.weight": torch.tensor(make()) for name, make in MATRICES.items()}


@pytest.mark.parametrize("how", [{"params": 0.5}, {"params": 0.5, "dense": True}, {"zeros": 0.5}])
def test_the_plan_does_not_cut_what_does_not_fit(how):
    found = survey(model())
    chosen = {e.name.removesuffix(".weight"): e for e in plan(found, **how).entries}
    for name in ("heavy-tailed", "no fit"):
        assert chosen[name].action == "keep" and not chosen[name].candidate
        assert chosen[name].reason.startswith(name) and "misfit" in chosen[name].reason
    assert any(chosen[name].action != "keep" for name in ("noise-like", "spiked"))
    assert any("2 matrices do not fit" in note for note in plan(found, **how).notes)
    assert all(e.candidate for e in plan(found, **how, gate=1).entries)


def test_a_model_that_does_not_fit_anywhere_is_refused_with_the_way_out():
    found = survey({"a.weight": torch.tensor(misfit_of())})
    with pytest.raises(ValueError, match=r"no matrix .* fits the law of noise .*gate=1"):
        plan(found, params=0.5)
    assert plan(found, params=0.5, gate=1).touched
    for gate in (-0.1, 1.1, True, "wide"):
        with pytest.raises(ValueError, match="gate"):
            plan(found, params=0.5, gate=gate)


def live():
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(200, 120, bias=False) for name in "ab"}).double()
    for name, seed in (("a", 1), ("b", 2)):
        layers[name].weight.data = torch.tensor(spiked_of(seed))
    return layers


def marked(model):
    """A survey whose second matrix has two directions of the bulk marked as not random."""
    found = survey(model)
    readings = [
        replace(r, structured=(50, 118), plain_structured=(50, 118)) if r.name == "b" else r for r in found.readings
    ]
    return replace(found, readings=tuple(readings))


@pytest.mark.parametrize("basis", ["plain", "equalised"])
def test_small_structured_directions_are_kept(basis):
    layers = live()
    chosen = plan(marked(layers), params=0.5, basis=basis)
    entry = next(e for e in chosen.entries if e.name == "b")
    assert entry.also == (50, 118) and "2 of the 2" in entry.reason
    assert entry.params_after == entry.rank * (120 + 200)
    trim(layers, chosen)
    new = layers["b"][1].weight.data @ layers["b"][0].weight.data
    assert int(torch.linalg.matrix_rank(new)) == entry.rank
    if basis == "plain":
        U, s, Vh = torch.linalg.svd(torch.tensor(spiked_of(2)))
        for i in (0, entry.rank - 3, 50, 118):
            assert float(U[:, i] @ new @ Vh[i]) == pytest.approx(float(s[i]), rel=1e-6)
        for i in (entry.rank - 2, 60, 119):
            assert abs(float(U[:, i] @ new @ Vh[i])) < 1e-6


def test_positions_that_cannot_be_kept_are_refused(tmp_path):
    raw = json.loads(plan(marked(live()), params=0.5).to_json())
    entry = next(e for e in raw["entries"] if e["also"])
    for also in ([0, 118], [118, 118], [120], list(range(entry["rank"] + 1))):
        entry["also"] = also
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(raw))
        with pytest.raises(ValueError, match="also="):
            Plan.from_json(path)


def test_a_spectrum_of_ones_is_no_fit():
    flat = Spectrum(np.ones(40), 40, 60)
    assert judge(flat, Bema()(flat), panel={}).kind == "no fit"
