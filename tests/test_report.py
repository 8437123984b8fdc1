"""What the page says, held against known spectra; the browser is asked in test_report_browser.py."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from spectrim import Plan, Reading, Spectrum, Survey
from spectrim.compare import Comparison, Curves, Row
from spectrim.edges import Known
from spectrim.laws import MarchenkoPastur
from spectrim.planted import noise
from spectrim.report import SCHEMA, figures, render, summarise, write_html
from spectrim.report.compared import KINDS as ORDER
from spectrim.report.render import as_json, sparkline
from spectrim.report.view import BINS, CELLS, POINTS, columns, height, view
from spectrim.spectrum import NoiseFit
from spectrim.tails import Tail
from spectrim.trim import Change
from spectrim.verdict import KINDS, Verdict

NASTY = "</script><script>alert(1)</script>\"'&<b>"


def spectrum_of(p, n, spikes, seed=0, equalised=False):
    """Noise of standard deviation one with its largest values replaced: the number of spikes is known exactly."""
    s = np.linalg.svd(noise(p, n, generator=np.random.default_rng(seed)), compute_uv=False)
    edge = np.sqrt(n) + np.sqrt(p) + 1.0  # well above: 1.0 is many Tracy-Widom widths at these sizes
    s = np.concatenate([edge * (1.5 + 0.1 * np.arange(spikes)), s[spikes:]])
    return Spectrum(s, p, n, equalised=equalised), NoiseFit(1.0, edge, (edge - 0.2, edge + 0.2), 0.01, spikes, "Test()")


def reading(name="block.0.fc", p=40, n=60, spikes=3, seed=0, **more):
    spectrum, fit = spectrum_of(p, n, spikes, seed, equalised=True)
    plain_spectrum, plain = spectrum_of(p, n, spikes + 2, seed)
    known = {"name": name, "kind": "linear", "rows": p, "cols": n, "params": p * n, "spectrum": spectrum, "fit": fit}
    return Reading(**known, plain=plain, plain_spectrum=plain_spectrum, **more)


def verdict_of(kind, fits, refused=None, agreement=0.9, tail=None):
    return Verdict(kind, f"it is {kind}", fits, refused or {}, agreement, 0.03, 0.1, tail)


def survey_of(*readings):
    params = sum(r.params for r in readings)
    return Survey("net", tuple(readings), params + 100, 4 * params + 400, "Test()", True, 0.5)


def plan_of(survey, target, **entries):
    """A plan as its file holds it, with an entry a matrix; `entries` says what is not "keep"."""
    rows = []
    for i, r in enumerate(x for x in survey.readings if not x.skipped):
        given = {"action": "keep", "reason": "nothing of it had to go", **entries.get(f"m{i}", {})}
        k = given.get("rank")
        after = k * (r.rows + r.cols) if given["action"] == "split" else r.params
        cut = max(0, r.fit.spikes - k) if k and r.fit else 0
        rows.append({
            "name": r.name, "kind": r.kind, "rows": r.rows, "cols": r.cols, "params_before": r.params,
            "params_after": after, "bytes_before": 4 * r.params, "bytes_after": 4 * after, "macs_before": r.params,
            "macs_after": after, "spikes": r.fit.spikes if r.fit else None, "spikes_cut": cut, "fingerprint": "",
            "basis": "equalised", **given,
        })  # fmt: skip
    model = {"label": "net", "fingerprint": "", "params": survey.params, "bytes": survey.bytes, "edge": survey.edge}
    return Plan.model_validate({"schema": "spectrim.plan/1", "model": model, "target": target, "entries": rows})


def test_totals_and_figures_of_known_spectra():
    skipped = Reading("emb.weight", "embedding", 100, 1, params=100, skipped=True, note="an embedding is looked up")
    found = survey_of(reading(spikes=3), reading("block.1.fc", 30, 50, 5, 1), skipped)
    summary = summarise(found, created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    t = summary["totals"]
    assert summary["schema"] == SCHEMA == "spectrim.report/1"
    assert (t["matrices"], t["judged"], t["skipped"]) == (2, 2, 1)
    assert (t["values"], t["spikes"], t["plain_spikes"]) == (70, 8, 12)
    assert t["bulk_share"] == pytest.approx(1 - 8 / 70, rel=1e-5)  # six digits are kept
    assert t["matrix_params"] == 40 * 60 + 30 * 50
    assert [x["name"] for x in summary["layers"]] == ["block.0.fc", "block.1.fc"]
    assert [x["block"] for x in summary["layers"]] == ["block 0", "block 1"]
    assert summary["skipped"][0]["note"] == "an embedding is looked up"
    assert "8 of 70" in summary["sentence"] and "2 matrices" in summary["sentence"]
    assert summary["provenance"]["created"] == "2026-01-02 03:04 UTC"
    assert {v["basis"] for v in summary["layers"][0]["views"]} == {"equalised", "plain"}


def test_summary_is_json_and_does_not_depend_on_the_order_of_calls():
    found, now = survey_of(reading()), datetime(2026, 1, 1, tzinfo=UTC)
    summary = summarise(found, created=now)
    again = json.loads(json.dumps(summary, allow_nan=False))
    assert again == summary == summarise(found, created=now)


def test_a_matrix_without_a_verdict_is_shown_with_its_reason():
    bad = Reading("bad", "linear", 8, 9, params=72, note="3 of 72 entries are not finite")
    summary = summarise(survey_of(bad, reading()))
    layer = summary["layers"][0]
    assert layer["views"] == [] and layer["spikes"] is None and layer["note"] == bad.note
    assert summary["totals"]["judged"] == 1
    assert "1 matrix has no verdict" in summary["sentence"]
    assert_shows(render(summarise(survey_of(bad))), bad.note)  # alone too: no chart to draw, and no crash


def test_nothing_that_is_not_finite_reaches_the_summary():
    spectrum, fit = spectrum_of(20, 30, 2)
    odd = NoiseFit(float("nan"), fit.edge, None, float("inf"), fit.spikes, "Odd()")
    audit = ({"params": 10, "latency_ms": float("nan")}, {"params": 5, "latency_ms": 1.0})
    scores = {"columns": ["a", "b"], "rows": [["x", float("nan")]], "caption": ""}
    r = Reading("odd", "linear", 20, 30, params=600, spectrum=spectrum, fit=odd)
    summary = summarise(survey_of(r), audit=audit, scores=scores)
    json.dumps(summary, allow_nan=False)
    assert summary["layers"][0]["sigma"] is None and summary["layers"][0]["views"][0]["law"] is None
    assert [m["key"] for m in summary["audit"]["measures"]] == ["params"]
    assert summary["scores"]["rows"] == [["x", None]]


def test_bars_hold_every_value_and_none_mixes_bulk_and_spikes():
    for seed in range(5):
        spectrum, fit = spectrum_of(60, 80, 4, seed)
        shown = view(spectrum, fit)
        hist = shown["hist"]
        assert len(hist["counts"]) <= BINS
        assert sum(hist["counts"]) + hist["beyond"] == 60
        assert sum(hist["counts"][: hist["bulk_bars"]]) == 56
        assert hist["start"] + hist["bulk_bars"] * hist["width"] == pytest.approx(fit.edge, rel=1e-6)  # 8 digits kept


def test_thinning_keeps_every_spike_and_both_ends_of_the_bulk():
    s = np.concatenate([np.linspace(90.0, 50.0, 700), np.linspace(40.0, 1.0, 3000)])
    fit = NoiseFit(0.3, 45.0, None, 0.1, 700, "Test()")
    shown = view(Spectrum(s, 3700, 4000), fit)
    assert len(shown["spike_values"]) == shown["spikes"] == 700
    assert len(shown["bulk_values"]) == len(shown["bulk_index"]) <= POINTS
    assert (shown["bulk_index"][0], shown["bulk_index"][-1]) == (700, 3699)
    assert shown["bulk_values"][0] == 40.0 and shown["bulk_values"][-1] == 1.0
    assert shown["hist"]["beyond"] + sum(shown["hist"]["counts"]) == 3700


@pytest.mark.parametrize(("p", "n", "k"), [(200, 200, 0), (200, 500, 12), (100, 2000, 5)])
def test_the_drawn_law_is_a_density_of_the_bulk(p, n, k):
    spectrum, fit = spectrum_of(p, n, k)
    shown = view(spectrum, fit)
    x, y = np.array(shown["law"]["s"]), np.array(shown["law"]["count"])
    # Area under the curve / bar width = the number of bulk values; the trapezium rule on 61 nodes costs under 1 %.
    assert np.trapezoid(y, x) / shown["hist"]["width"] == pytest.approx(p - k, rel=0.01)
    # And it runs through the data: the expected bulk values are those of the spectrum up to its own fluctuations,
    # a few 1/p of the width of the law (the spikes took the place of the largest values, hence the loose bound).
    error = np.abs(np.array(shown["law"]["expected"]) - shown["bulk_values"])
    assert error.max() < 0.1 * fit.edge
    literal = MarchenkoPastur((p - k) / (n - k), 1.0)
    assert x[-1] == pytest.approx(np.sqrt((n - k) * literal.upper), rel=1e-4)


def test_columns_of_the_map_hold_every_value_on_its_side_of_the_edge():
    spectrum, fit = spectrum_of(60, 80, 4)
    cells = columns(spectrum.s, fit.edge)
    assert sum(k for _, k in cells) == 60
    assert sum(k for c, k in cells if c >= CELLS) == 4
    assert columns(np.array([1.0]), 1.0) == [[CELLS - 1, 1]]  # on the edge: bulk
    assert height(np.nextafter(1, 2)) == pytest.approx(height(1.0))


def test_a_plan_of_ranks_says_what_it_keeps_and_cuts():
    found = survey_of(reading(spikes=3), reading("block.1.fc", 30, 50, 5, 1))
    plan = plan_of(found, {"params": 0.5}, m0={"action": "split", "rank": 10, "damage": 0.4, "reason": "because"},
                   m1={"action": "split", "rank": 4, "damage": 0.5, "reason": "too few"})  # fmt: skip
    summary = summarise(found, plan)
    first, second = (x["plan"] for x in summary["layers"])
    assert first["text"] == "Becomes two layers, 60 → 10 → 40." and first["reason"] == "because"
    kept = {"spikes_kept": 3, "bulk_kept": 7, "spikes_cut": 0, "bulk_cut": 30}
    assert {key: first["directions"][key] for key in kept} == kept
    kept = {"spikes_kept": 4, "bulk_kept": 0, "spikes_cut": 1, "bulk_cut": 25}
    assert {key: second["directions"][key] for key in kept} == kept
    s = found.readings[0].spectrum.s
    assert s[10] < first["directions"]["threshold"] < s[9]
    assert first["directions"]["energy"] == pytest.approx((s[:10] ** 2).sum() / (s**2).sum(), rel=1e-5)
    p = summary["plan"]
    assert p["params"] == {"before": 3900, "after": 1000 + 320, "share": pytest.approx(1320 / 3900, rel=1e-5)}
    assert p["model_params"]["before"] - p["model_params"]["after"] == 3900 - 1320
    assert p["spikes_cut"] == 1 and "cuts 1 spike." in summary["sentence"]
    assert p["actions"] == {"split": 2}
    assert "Bytes after" in [c["label"] for c in summary["cards"]]


def test_a_plan_of_zeros_cuts_no_direction():
    found = survey_of(reading(), reading("block.1.fc", 30, 50, 5, 1))
    plan = plan_of(found, {"zeros": 0.5}, m0={"action": "zeros", "zeros": 1200, "basis": "plain"},
                   m1={"action": "zeros", "zeros": 750, "basis": "plain"})  # fmt: skip
    summary = summarise(found, plan)
    assert summary["plan"]["zeros"] == 1950 and summary["plan"]["zero_share"] == 0.5
    assert summary["layers"][0]["plan"]["zero_share"] == 0.5
    assert summary["layers"][0]["plan"]["directions"] is None
    assert "50\u00a0% of their entries to zero" in summary["sentence"]
    assert summary["layers"][0]["plan"]["text"] == "50.0\u00a0% of its entries become zero: 1,200."


def test_changes_meet_their_layers():
    found = survey_of(reading())
    change = Change("block.0.fc", "split", 10, 2400, 1000, None, relative_error=0.41, seconds=0.1)
    assert summarise(found, changes=[change])["layers"][0]["change"]["relative_error"] == 0.41


def test_audit_names_its_conditions_and_ratios():
    before = {"params": 100, "bytes": 400, "macs": None, "latency_ms": 10.0, "latency_spread": (9.0, 11.0),
              "device": "CPU", "threads": 2, "batch": "8 x 64", "note": "median of 20"}  # fmt: skip
    after = {**before, "params": 50, "bytes": 210, "latency_ms": 9.5, "latency_spread": (9.0, 10.0)}
    audit = summarise(survey_of(reading()), audit={"before": before, "after": after})["audit"]
    assert {m["key"]: m["ratio"] for m in audit["measures"]} == {"params": 0.5, "bytes": 0.525, "latency_ms": 0.95}
    assert audit["conditions"] == ["CPU, 2 threads, batch 8 x 64"]
    assert audit["notes"] == ["median of 20"]
    assert "they overlap" in audit["measures"][-1]["detail"]
    other = {**after, "threads": 1}
    where = summarise(survey_of(reading()), audit=(before, other))["audit"]["conditions"]
    assert where == ["before: CPU, 2 threads, batch 8 x 64", "after: CPU, 1 thread, batch 8 x 64"]


def assert_shows(page, text):
    # Not `assert text in page`: a failure would print five megabytes.
    shown = text in page
    assert shown, f"the page does not hold {text!r}"


class Scripts(HTMLParser):
    """Collects the script elements and the text outside of them, as a browser would split them."""

    def __init__(self):
        super().__init__()
        self.scripts, self.text, self.tags, self.inside = [], [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1][1] += data
        else:
            self.text.append(data)


def test_no_name_can_break_out_of_the_page():
    found = survey_of(reading(NASTY), Reading(NASTY, "embedding", 3, 1, params=3, skipped=True, note=NASTY))
    found = Survey(NASTY, found.readings, found.params, found.bytes, NASTY, True, 0.1)
    scores = {"columns": [NASTY], "rows": [[NASTY]], "caption": NASTY}
    page = render(summarise(found, title=NASTY, scores=scores))
    parser = Scripts()
    parser.feed(page)
    assert len(parser.scripts) == 3  # data, plotly, our own
    assert json.loads(parser.scripts[0][1])["title"] == NASTY
    assert "alert(1)" not in "".join(code for _, code in parser.scripts[1:])
    assert NASTY in "".join(parser.text)  # shown as text, in full
    assert not [t for t, a in parser.tags if any(key.startswith("on") for key in a)]


def test_the_page_names_nothing_to_fetch():
    page = render(summarise(survey_of(reading())))
    parser = Scripts()
    parser.feed(page)
    for tag, attributes in parser.tags:
        links = [v for key, v in attributes.items() if key in ("src", "href", "srcset", "action", "poster")]
        assert all(v.startswith(("#", "data:")) for v in links), (tag, links)
    assert_shows(page, "default-src 'none'")
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_json_in_a_script_element_holds_no_markup():
    text = str(as_json({"name": NASTY, "other": "a&b\u2028"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["name"] == NASTY
    with pytest.raises(ValueError, match="JSON"):
        as_json(float("nan"))


def test_rendering_takes_a_summary_read_back_from_json():
    summary = summarise(survey_of(reading()))
    same = render(json.loads(json.dumps(summary))) == render(summary)
    assert same


def test_writing_is_whole_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")
    full = OSError(28, "no space left", "/hidden/.name.part")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="no space") as caught:
        write_html(path, survey=survey_of(reading()))
    assert caught.value.filename == str(path) and "part" not in str(caught.value)
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    monkeypatch.undo()
    assert write_html(path, survey=survey_of(reading())) == path
    assert path.read_text().startswith("<!doctype html>") and path.stat().st_mode & 0o444 == 0o444 & ~_umask()


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.html"
    for there in (False, True):  # one that leads to nothing yet, and one that leads to an older page
        link.unlink(missing_ok=True)
        link.symlink_to("far/page.html")
        assert (tmp_path / "far/page.html").exists() == there
        assert write_html(link, survey=survey_of(reading())) == link
        assert link.is_symlink() and (tmp_path / "far/page.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["page.html"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(pipe.read_bytes)
        write_html(pipe, survey=survey_of(reading()))
        assert got.result(timeout=30).startswith(b"<!doctype html>") and pipe.is_fifo()
    with pytest.raises(IsADirectoryError) as caught:
        write_html(tmp_path, survey=survey_of(reading()))
    assert caught.value.filename == str(tmp_path)


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_survey_writes_its_own_page(tmp_path):
    found = survey_of(reading())
    page = found.to_html(tmp_path / "net.html", title="A title of mine").read_text()
    assert_shows(page, "A title of mine")


def test_a_spectrum_without_spikes_and_one_without_an_edge_have_a_view():
    spectrum, _ = spectrum_of(20, 30, 0)
    shown = view(spectrum, Known(1.3)(spectrum))
    assert shown["spikes"] == 0 and shown["spike_values"] == [] and shown["law"]
    assert view(spectrum, None)["edge"] is None and view(spectrum, None)["map"] == []
    assert sparkline(view(spectrum, None)) is None
    marks = sparkline(shown)
    assert marks["bulk"].startswith("M") and marks["spikes"] == ""


def test_three_hundred_layers_stay_small():
    """300 layers of 2000 values: under 12 MB (about 10 MB, half of which are the charts' own code)."""
    generator, readings = np.random.default_rng(0), []
    for i in range(300):
        n = 2000 if i % 3 else 8000
        s = np.sqrt(n * MarchenkoPastur(2000 / n).ppf((np.arange(2000) + 0.5) / 2000))
        s[:80] = s.max() * (1.1 + generator.pareto(3, 80))
        fit = NoiseFit(1.0, float(s[80:].max() * 1.05), None, 0.02, 80, "Test()")
        shown = {"spectrum": Spectrum(s, 2000, n, equalised=True), "plain_spectrum": Spectrum(s, 2000, n)}
        name = f"layers.{i // 6}.part{i % 6}.weight"
        readings.append(Reading(name, "linear", 2000, n, fit=fit, plain=fit, params=2000 * n, **shown))
        # Known beforehand: it is the page that is looked at here, not the estimators behind a verdict.
        vars(readings[-1])["verdict"] = verdict_of("spiked", {"bema": fit})
    found = survey_of(*readings)
    plan = plan_of(found, {"params": 0.5}, **{f"m{i}": {"action": "split", "rank": 300} for i in range(300)})
    page = render(summarise(found, plan))
    assert len(page.encode()) < 12e6


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: figures.percent(0.5), "50\u00a0%"),
        (lambda: figures.percent(0.99999), "> 99\u00a0%"),
        (lambda: figures.percent(1.0), "100\u00a0%"),
        (lambda: figures.percent(0.004), "< 1\u00a0%"),
        (lambda: figures.percent(None), "–"),
        (lambda: figures.short(999_900), "1.00\u00a0M"),
        (lambda: figures.short(86_600_000), "86.6\u00a0M"),
        (lambda: figures.size(0), "0\u00a0B"),
        (lambda: figures.plain(0.0123456), "0.0123"),
        (lambda: figures.plain(0.0), "0.00"),
        (lambda: figures.plain(2048.4), "2,048"),
    ],
)
def test_figures_read_well(call, text):
    assert call() == text


# Several estimators on one page.


def compared(*readings, **verdicts):
    """A comparison with made-up figures: what the page says is held against them, not against an estimator."""
    rows = []
    for i, r in enumerate(readings):
        edge = r.fit.edge
        fits = {
            "bema": r.fit,
            "broadening": NoiseFit(1.01, 1.1 * edge, None, 0.02, r.fit.spikes - 1, "Broadening()"),
            "screenot": NoiseFit(None, 1.3 * edge, None, None, 1, "ScreeNot()"),
        }
        told = verdicts.get(f"m{i}") or verdict_of("spiked", fits, {"median": "too few values"})
        vars(r)["verdict"] = told
        rows.append(Row(r, told, fits, {"median": "too few values"}))
    return Comparison(survey_of(*readings), tuple(rows), 0.1)


CURVES = Curves(
    alpha=((0.1, 15.2, 3), (0.2, 15.1, 3)), beta=((0.1, 15.1, 3), (0.5, 15.0, 4)), chosen=(0.2, 0.1),
    ranks=(1, 2, 40), average=(0.9, 0.85, 0.1), gain=(0.3, 0.5, -0.2), peak=2, knee=2,
)  # fmt: skip


def test_every_estimator_stands_in_the_summary():
    told = compared(reading(spikes=3), reading("block.1.fc", 30, 50, 5, 1))
    summary = summarise(told.survey, comparison=told, curves={"block.0.fc": CURVES})
    json.dumps(summary, allow_nan=False)
    assert [e["name"] for e in summary["estimators"]] == ["bema", "broadening", "screenot", "median"]
    first, second = summary["layers"]
    assert {name: x["spikes"] for name, x in first["estimators"].items()} == {
        "bema": 3, "broadening": 2, "screenot": 1, "median": None,
    }  # fmt: skip
    assert first["estimators"]["screenot"]["sigma"] is None and first["estimators"]["median"]["refused"]
    assert first["estimators"]["bema"]["edge"] == first["views"][0]["edge"]
    assert first["curves"]["alpha"] == {"x": [0.1, 0.2], "edge": [15.2, 15.1], "spikes": [3, 3]}
    assert first["curves"]["chosen"] == {"alpha": 0.2, "beta": 0.1} and first["curves"]["ranks"] == [1, 2, 40]
    assert second["curves"] is None
    assert "runs from 2 (ScreeNOT) to 8 (Bema)" in summary["compared"]


def test_verdicts_are_counted_and_shown_in_an_ordinary_survey_too():
    assert set(ORDER) == set(KINDS)
    readings = [reading(f"block.{i}.fc", seed=i) for i in range(5)]
    for r, kind in zip(readings, (*KINDS, KINDS[1]), strict=True):
        tail = Tail(exponent=2.5, stderr=0.1, start=1.0, count=20, distance=0.1, span=9.0)
        vars(r)["verdict"] = verdict_of(kind, {}, tail=tail if kind == KINDS[2] else None)
    summary = summarise(survey_of(*readings, Reading("bad", "linear", 8, 9, params=72, note="not finite")))
    assert summary["totals"]["kinds_of_verdict"] == {kind: 1 + (kind == KINDS[1]) for kind in ORDER}
    assert [x["verdict"] and x["verdict"]["kind"] for x in summary["layers"]] == [*KINDS, KINDS[1], None]
    assert summary["layers"][2]["verdict"]["tail"] == {"exponent": 2.5, "count": 20}
    page = render(summary)
    for kind in KINDS:
        assert_shows(page, f'<span class="kind {kind.replace(" ", "-")}" title="it is {kind}">{kind}</span>')
    assert summary["estimators"] == [] and summary["compared"] == ""


def test_an_edge_without_a_noise_level_is_told_by_dashes():
    r = reading()
    known = {key: getattr(r, key) for key in ("name", "kind", "rows", "cols", "spectrum", "params")}
    bare = Reading(**known, fit=NoiseFit(None, r.fit.edge, None, None, 3, "ScreeNot()"))
    summary = summarise(survey_of(bare))
    layer = summary["layers"][0]
    assert layer["sigma"] is None and layer["misfit"] is None and layer["views"][0]["law"] is None
    assert layer["spikes"] == 3 and summary["totals"]["misfit"] is None
    page = render(summary)
    assert_shows(page, '<td class="num wide">–</td>')
    assert "None" not in page.split("<script")[0]


def test_no_reason_or_estimator_can_break_out_of_the_page():
    r = reading()
    fits = {"bema": r.fit, NASTY: r.fit}
    told = Comparison(survey_of(r), (Row(r, verdict_of(NASTY, fits), fits, {"median": NASTY}),), 0.1)
    page = render(summarise(told.survey, comparison=told, curves={r.name: CURVES}))
    parser = Scripts()
    parser.feed(page)
    assert len(parser.scripts) == 3 and "alert(1)" not in "".join(code for _, code in parser.scripts[1:])
    assert not [t for t, a in parser.tags if any(key.startswith("on") for key in a)]


def test_low_and_structured_directions_are_told_where_vectors_were_looked_at():
    r = reading(structured=(5, 30))
    layer = summarise(survey_of(r))["layers"][0]
    even, plain = layer["views"]
    assert even["structured"] == [
        [6, pytest.approx(r.spectrum.s[5], rel=1e-5)],
        [31, pytest.approx(r.spectrum.s[30], rel=1e-5)],
    ]
    assert plain["structured"] is None and layer["low"] == r.low  # of the plain basis nothing is known
    layer = summarise(survey_of(reading()))["layers"][0]
    assert layer["low"] is None and layer["views"][0]["structured"] is None


def test_small_values_that_a_plan_keeps_are_counted_among_the_bulk():
    found = survey_of(reading(spikes=3))
    plan = plan_of(found, {"params": 0.5}, m0={"action": "split", "rank": 6, "also": (20, 39), "reason": "because"})
    kept = summarise(found, plan)["layers"][0]["views"][0]["kept"]
    s = found.readings[0].spectrum.s
    assert (kept["rank"], kept["top"], kept["spikes_kept"], kept["bulk_kept"]) == (6, 4, 3, 3)
    assert (kept["spikes_cut"], kept["bulk_cut"]) == (0, 34)
    assert kept["energy"] == pytest.approx(np.sum(s[[0, 1, 2, 3, 20, 39]] ** 2) / np.sum(s**2), rel=1e-5)
    assert s[4] < kept["threshold"] < s[3]
    assert kept["others"] == [20, 39]
    assert kept["named"] == [[21, pytest.approx(s[20], rel=1e-5)], [40, pytest.approx(s[39], rel=1e-5)]]


@pytest.mark.parametrize(
    ("rank", "also", "top", "others", "spikes"),
    [(6, (1, 2, 20), 5, [20], 3), (3, (0, 1, 2), 3, [], 3), (3, (2, 7), 1, [2, 7], 2), (2, (38, 39), 0, [38, 39], 0)],
)
def test_named_values_may_lie_anywhere(rank, also, top, others, spikes):
    """Those named, and then the largest others: position for position, against a literal count."""
    found = survey_of(reading(spikes=3))
    plan = plan_of(found, {"params": 0.5}, m0={"action": "split", "rank": rank, "also": also, "reason": "because"})
    kept = summarise(found, plan)["layers"][0]["views"][0]["kept"]
    assert (kept["rank"], kept["top"], kept["others"], kept["spikes_kept"]) == (rank, top, others, spikes)
    assert kept["spikes_cut"] == 3 - spikes and kept["bulk_kept"] == rank - spikes
    assert [i - 1 for i, _ in kept["named"]] == list(also)
    s = found.readings[0].spectrum.s
    inside = np.array([*range(top), *others])
    assert kept["energy"] == pytest.approx(np.sum(s[inside] ** 2) / np.sum(s**2), rel=1e-5)
    assert np.count_nonzero(s > kept["threshold"]) == top


def test_a_plan_of_another_basis_than_the_verdicts_says_so():
    found = survey_of(reading(), reading("block.1.fc", 30, 50, 5, 1))
    split = {"action": "split", "rank": 6, "reason": "because"}
    for basis in ("plain", "equalised"):
        plan = plan_of(found, {"params": 0.5}, m0=split | {"basis": basis}, m1={"basis": "plain"})
        summary = summarise(found, plan)
        assert [x["plan"]["elsewhere"] for x in summary["layers"]] == [basis == "plain", False]
        told = "the verdicts speak of them with rows and columns evened out" in summary["sentence"]
        assert told == (basis == "plain")
    plan = plan_of(found, {"zeros": 0.5}, m0={"action": "zeros", "zeros": 9, "basis": "plain"})
    assert "evened" not in summarise(found, plan)["sentence"]  # an entry is zero in every basis


def test_the_sentence_counts_over_the_matrices_that_all_estimators_judged():
    told = compared(reading(spikes=3), reading("block.1.fc", 30, 50, 5, 1))
    first, second = told.rows
    fits = {name: fit for name, fit in first.fits.items() if name != "screenot"}
    uneven = Comparison(
        told.survey, (Row(first.reading, first.verdict, fits, {"screenot": "no", "median": "no"}), second), 0.1
    )
    text = summarise(uneven.survey, comparison=uneven)["compared"]
    assert "Over the 1 of 2 judged matrices" in text and "runs from 1 (ScreeNOT) to 5 (Bema)" in text
    assert "ScreeNOT has none for 1 of them." in text and "Median has none for any of them." in text
    text = summarise(told.survey, comparison=told)["compared"]
    assert text.startswith("By estimator their number runs from 2 (ScreeNOT)")
    assert "Median has none for any of them." in text
    rows = (Row(first.reading, first.verdict, {"bema": first.fits["bema"]}, {"screenot": "no"}),
            Row(second.reading, second.verdict, {"screenot": second.fits["screenot"]}, {"bema": "no"}))  # fmt: skip
    nothing = Comparison(told.survey, rows, 0.1)
    assert "no matrix for which all" in summarise(nothing.survey, comparison=nothing)["compared"]
