"""Estimators side by side: on the spectra that were measured, in one record, with its file and its curves."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import spectrim
from spectrim import Bema, NoiseFit, Reading, Survey, scores
from spectrim.compare import ALPHAS, BETAS, SCHEMA, Comparison, compare, curves, furthest, sentence
from spectrim.edges import Median, ScreeNot, from_repr
from spectrim.planted import noise
from spectrim.verdict import NOISE, PANEL


def matrices() -> dict[str, torch.Tensor]:
    """Noise; noise with six values planted at 2 to 4 times the edge; and one that nobody can judge."""
    generator = np.random.default_rng(3)
    W = noise(80, 120, generator=generator)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    s[:6] = s[6] * np.linspace(4, 2, 6)
    bad = torch.full((30, 40), math.nan)
    return {
        "net.0.noise": torch.as_tensor(noise(60, 90, generator=generator)),
        "net.0.spiked": torch.as_tensor((U * s) @ Vh),
        "net.1.bad": bad,
        "norm": torch.ones(9),
    }


@pytest.fixture(scope="module")
def found() -> Survey:
    return spectrim.survey(matrices())


@pytest.fixture(scope="module")
def told(found) -> Comparison:
    return compare(found)


def test_every_estimator_speaks_of_the_spectrum_that_was_measured(found, told):
    assert [row.reading for row in told.rows] == list(found.matrices)
    for row in told.rows:
        if row.reading.fit is None:
            assert row.verdict is None and not row.fits and not row.refused
            continue
        assert {**row.fits, **row.refused}.keys() == PANEL.keys()
        for name, edge in PANEL.items():
            assert row.fits[name] == edge(row.reading.spectrum), name
        assert row.fits["bema"] == row.reading.fit
    assert told.estimators == tuple(PANEL) and told.estimators[0] == "bema"
    by_name = {row.reading.name: row for row in told.rows}
    assert by_name["net.0.spiked"].verdict.kind == "spiked" and by_name["net.0.spiked"].fits["bema"].spikes >= 6


def test_nothing_is_measured_again(found, told):
    """Without the model at hand there is nothing to measure: the same record all the same."""
    bare = replace(found, source=None)
    assert compare(bare).to_dict()["readings"] == told.to_dict()["readings"]
    with pytest.raises(ValueError, match="need the matrices"):
        compare(bare, slow=True)


def test_the_estimator_of_the_survey_is_the_first_and_takes_part_as_it_was_set(found):
    readings = [r for r in found.matrices if r.fit]
    for own in (Bema(0.35, 0.02), Median(0.3)):
        again = [replace(r, fit=own(r.spectrum)) for r in readings]
        told = compare(replace(found, readings=tuple(again), edge=repr(own)))
        name = type(own).__name__.lower()
        assert told.estimators[0] == name and set(told.estimators) == set(PANEL)
        for row in told.rows:
            assert row.fits[name] == row.reading.fit and row.fits[name].method == repr(own)
            counts = [row.fits[key].spikes for key in NOISE]
            assert row.verdict.agreement == (min(counts) / max(counts) if max(counts) else 1.0)


def test_a_function_of_the_users_own_stands_beside_the_panel(found):
    def mine(spectrum):
        return NoiseFit(None, float(spectrum.s[3]), None, None, 3, "mine")

    again = [replace(r, fit=mine(r.spectrum)) for r in found.matrices if r.fit]
    told = compare(replace(found, readings=tuple(again), edge=repr(mine)))
    assert told.estimators == ("mine", *PANEL)
    assert [row.fits["mine"].spikes for row in told.rows] == [3, 3]
    json.dumps(told.to_dict(), allow_nan=False)


def test_a_panel_of_the_callers_own_is_left_as_it_is(found):
    panel = {"narrow": Bema(0.3), "wide": Bema(0.1), "bema": Bema(0.25)}
    told = compare(found, panel)
    assert told.estimators == ("survey", *panel)
    for row in (row for row in told.rows if row.fits):
        assert row.fits["survey"] == row.reading.fit
        assert all(row.fits[name] == edge(row.reading.spectrum) for name, edge in panel.items())


def test_what_refuses_says_why(found):
    told = compare(found, {"bema": Bema(), "bold": ScreeNot(1000)})
    row = told.rows[0]
    assert "bold" not in row.fits and "1000" in row.refused["bold"]
    figures = told.to_dict()["readings"][0]["estimators"]["bold"]
    assert figures["edge"] is None and figures["spikes"] is None and "1000" in figures["refused"]
    assert told.totals["refused"] == {"bold": 2}


def test_sums_are_over_the_matrices_that_all_of_them_judged(found):
    def choosy(spectrum):
        if spectrum.p == 60:
            raise ValueError("not this one")
        return Median()(spectrum)

    told = compare(found, {"bema": Bema(), "choosy": choosy, "bold": ScreeNot(1000)})
    (row,) = [row for row in told.rows if "choosy" in row.fits]
    t = told.totals
    assert (t["judged"], t["compared"]) == (2, 1)
    assert t["spikes"] == {"bema": row.fits["bema"].spikes, "choosy": row.fits["choosy"].spikes}
    assert t["refused"] == {"choosy": 1, "bold": 2}  # one that judges nothing takes the others no matrix away
    never = compare(found, {"choosy": choosy, "other": lambda s: Bema()(s) if s.p == 60 else ScreeNot(1000)(s)})
    assert never.totals["compared"] == 0 and never.totals["spikes"] == {}


@pytest.mark.parametrize("what", [torch.nn.Linear(20, 30), {"a": torch.ones(20, 30)}, "model.safetensors", None])
def test_what_is_no_survey_is_refused_with_the_way_to_one(what):
    with pytest.raises(TypeError, match=r"not from a \w+: compare\(survey\(model\)"):
        compare(what)


@pytest.mark.parametrize("panel", [["bema"], "bema", Bema(), {"bema": "bema"}])
def test_a_panel_that_is_no_mapping_is_refused(found, panel):
    with pytest.raises(TypeError, match="a mapping of names to estimators"):
        compare(found, panel)


def test_the_file_holds_the_survey_and_more(found, told, tmp_path):
    known, written = found.to_dict(), told.to_dict()
    assert written["schema"] == SCHEMA == "spectrim.edges/1"
    assert all(written[key] == known[key] for key in known if key not in ("schema", "readings"))
    assert [r["name"] for r in written["readings"]] == [r["name"] for r in known["readings"]]  # those skipped as well
    for more, less in zip(written["readings"], known["readings"], strict=True):
        assert all(more[key] == less[key] for key in less)
        if less["sigma"] is None:
            assert more.get("estimators", {}) == {} and more["verdict"] is None
            continue
        assert set(more["verdict"]) == {"kind", "reason", "agreement", "misfit", "gate", "tail"}
        assert more["verdict"]["reason"]
        assert list(more["estimators"]) == list(PANEL)
        for figures in more["estimators"].values():
            assert {"sigma", "edge", "spikes", "misfit"} <= set(figures)
            assert figures["edge"] > 0 and isinstance(figures["spikes"], int)
        assert more["estimators"]["screenot"]["sigma"] is None and more["estimators"]["screenot"]["misfit"] is None
    text = told.to_json(tmp_path / "edges.json")
    assert json.loads((tmp_path / "edges.json").read_text()) == json.loads(text) == json.loads(json.dumps(written))


def test_totals_count_what_the_rows_say(told):
    t = told.totals
    assert (t["matrices"], t["judged"], t["compared"]) == (3, 2, 2) and sum(t["kinds"].values()) == 2
    for name in PANEL:
        assert t["spikes"][name] == sum(row.fits[name].spikes for row in told.rows if row.fits)
    assert sentence(told).startswith("2 of 3 matrices judged")
    assert "net.1.bad" in str(told) and "not finite" in str(told)


def test_nobody_stands_apart_where_all_agree():
    fits = {name: NoiseFit(1.0, edge, None, None, 0, name) for name, edge in zip(NOISE, (2.0, 2.01, 1.99), strict=True)}
    assert furthest(fits) is None
    assert furthest(fits | {NOISE[1]: replace(fits[NOISE[1]], edge=1.5)}) == NOISE[1]
    assert furthest({name: fits[name] for name in NOISE[:2]}) is None


def test_an_empty_model_has_a_record_too():
    told = compare(Survey("none", (), 0, 0, repr(Bema()), True, 0.0))
    assert told.rows == () and told.estimators == () and told.totals["agreement"] is None
    assert "none of its 0 matrices" in str(told)
    json.dumps(told.to_dict(), allow_nan=False)


def test_names_are_text_in_a_notebook():
    reading = Reading("<b>x</b>", "linear", 8, 9, note="3 of 72 entries are not finite")
    page = compare(Survey("m", (reading,), 72, 288, repr(Bema()), True, 0.0))._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;x" in page


def test_progress_sees_every_matrix(found):
    seen = []
    compare(found, progress=lambda items: (seen.append(item.name) or item for item in items))
    assert seen == [r.name for r in found.matrices]


def test_curves_run_through_the_choice_and_are_fits_of_the_estimator(found):
    for r in (r for r in found.matrices if r.fit):
        c = curves(r)
        assert c.chosen == (0.2, 0.1)
        assert tuple(x for x, _, _ in c.alpha) == ALPHAS and tuple(x for x, _, _ in c.beta) == BETAS
        assert (0.2, r.fit.edge, r.fit.spikes) in c.alpha and (0.1, r.fit.edge, r.fit.spikes) in c.beta
        for alpha, edge, spikes in c.alpha:
            fit = Bema(alpha, 0.1)(r.spectrum)
            assert (edge, spikes) == (fit.edge, fit.spikes)
        # Odds of a false spike that rise bring the edge down, and no spike is lost by it.
        assert all(a[1] > b[1] and a[2] <= b[2] for a, b in zip(c.beta, c.beta[1:], strict=False))


def test_score_curves_are_those_of_scores_at_the_ranks_kept(found):
    r = next(r for r in found.matrices if r.name.endswith("spiked"))
    c = curves(r)
    ranks = np.array(c.ranks)
    assert ranks[0] == 1 and ranks[-1] == r.spectrum.p and np.all(np.diff(ranks) > 0)
    assert np.array_equal(c.average, scores.average(r.spectrum, r.fit.sigma)[ranks - 1])
    gain = scores.gain(r.spectrum, r.fit.sigma)
    assert np.allclose(c.gain, gain[ranks - 1] / np.sum(r.spectrum.s**2), rtol=1e-12)
    assert c.peak == scores.peak(gain) and abs(c.peak - 6) <= 2  # six planted, far above the noise


def test_curves_of_a_wide_matrix_stay_short():
    s = np.sqrt(np.linspace(4000, 1, 3000))
    spectrum = spectrim.Spectrum(s, 3000, 4000)
    fit = NoiseFit(0.5, 40.0, None, None, int((s > 40).sum()), "mine")
    c = curves(Reading("wide", "linear", 3000, 4000, spectrum=spectrum, fit=fit))
    assert len(c.ranks) <= 160 and c.ranks[-1] == 3000 and c.chosen == (0.2, 0.1)


def test_a_fit_without_a_noise_level_has_edges_and_no_scores(found):
    r = next(r for r in found.matrices if r.fit)
    c = curves(replace(r, fit=ScreeNot()(r.spectrum)))
    assert c.ranks == () and c.peak is None and len(c.alpha) == len(ALPHAS)


def test_own_settings_are_marked_between_those_of_the_grid(found):
    r = next(r for r in found.matrices if r.fit)
    own = Bema(0.22, 0.07)
    c = curves(replace(r, fit=own(r.spectrum)))
    assert c.chosen == (0.22, 0.07) and 0.22 in [x for x, _, _ in c.alpha] and 0.07 in [x for x, _, _ in c.beta]


def test_an_estimator_is_read_back_from_its_repr():
    for edge in (*PANEL.values(), Bema(0.3, 0.05), spectrim.edges.Known(2.0), ScreeNot(7)):
        assert from_repr(repr(edge)) == edge
    for text in ("print('x')", "os.system('x')", "Bema(alpha=__import__('os'))", "Bema(gamma=1)", "Edge()", "<lambda>"):
        with pytest.raises(ValueError, match="no estimator"):
            from_repr(text)


def test_simulated_members_stand_beside_the_verdict():
    small = {"noise": torch.as_tensor(noise(40, 60, generator=np.random.default_rng(5)))}
    found = spectrim.survey(small)
    told, again = compare(found, slow=True), compare(found, slow=True)
    assert told.estimators == (*PANEL, "bema-gamma", "shuffled")
    assert told.rows[0].verdict == found.matrices[0].verdict  # they take no part in it
    assert told.rows == again.rows  # seeded
    other = compare(found, slow=True, generator=np.random.default_rng(9)).rows[0].fits
    assert other["shuffled"].edge != told.rows[0].fits["shuffled"].edge
    for name in ("bema-gamma", "shuffled"):
        assert abs(other[name].edge / told.rows[0].fits["bema"].edge - 1) < 0.2
