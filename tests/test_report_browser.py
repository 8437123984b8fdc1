"""The page in a real browser: what is asked for, what is drawn, what a click does."""

import os
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest

from spectrim import Bema, NoiseFit, Reading, Spectrum, Survey
from spectrim.compare import compare
from spectrim.planted import noise
from spectrim.report import write_html

pytestmark = pytest.mark.browser

SPIKES = {"net.block.0.fc": 3, "net.block.0.proj": 7, "net.block.1.fc": 0, "net.block.1.<script>boom()</script>": 5}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]


def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        problem = "no Chromium to open the report in: apt-get install chromium"
        if os.environ.get("SPECTRIM_REQUIRE_BROWSER") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    return found


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


def planted(name, index, spikes):
    """A reading whose number of spikes is known: the top values are put at 1.5 edges and up, far from the noise."""
    p, n = 60, 90 + 10 * index
    s = np.linalg.svd(noise(p, n, generator=np.random.default_rng(index)), compute_uv=False)
    edge = np.sqrt(n) + np.sqrt(p) + 1.0
    known = {}
    for key, fit_key, k, even in (("spectrum", "fit", spikes, True), ("plain_spectrum", "plain", spikes + 2, False)):
        values = np.concatenate([edge * (1.5 + 0.1 * np.arange(k)), s[k:]])
        known[key] = Spectrum(values, p, n, equalised=even)
        known[fit_key] = NoiseFit(1.0, edge, (edge - 0.2, edge + 0.2), 0.01 * (index + 1), k, repr(Bema()))
    return Reading(name, "linear", p, n, params=p * n, **known)


@pytest.fixture(scope="module")
def survey():
    readings = [planted(name, i, k) for i, (name, k) in enumerate(SPIKES.items())]
    readings.append(Reading("net.bad", "linear", 8, 9, params=72, note="3 of 72 entries are not finite"))
    readings.append(Reading("net.emb", "embedding", 50, 8, params=400, skipped=True, note="an embedding is looked up"))
    return Survey("net", tuple(readings), 30_000, 120_000, repr(Bema()), True, 0.1)


class Opened:
    """A page that has come to rest, with all that it said and asked for meanwhile."""

    def __init__(self, browser, path, **context):
        self.context = browser.new_context(viewport={"width": 1400, "height": 900}, **context)
        self.page = self.context.new_page()
        self.messages, self.requests = [], []
        self.page.on("console", lambda m: self.messages.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.messages.append(f"error: {e}"))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready=yes]", timeout=30_000)

    def panel(self, index, basis="equalised", tab="spectrum"):
        """Waits until the chart of the panel shows what it should."""
        self.page.wait_for_selector(f'#p-chart[data-drawn="{index}:{basis}:{tab}"]', timeout=10_000)

    def spikes_drawn(self):
        """How many marks of the trace "spikes" stand in the chart with a size of their own."""
        return self.page.evaluate(
            """() => {
                const chart = document.getElementById("p-chart"), i = chart.data.findIndex((t) => t.name === "spikes");
                const trace = chart.querySelector(`.scatterlayer .trace${chart._fullData[i].uid}`);
                const marks = trace ? trace.querySelectorAll(".points path") : [];
                return Array.from(marks).filter((m) => m.getBoundingClientRect().width > 1).length;
            }"""
        )

    def column(self, header):
        """The texts of one column of the table, in the order shown."""
        return self.page.evaluate(
            """(header) => {
                const cells = Array.from(document.querySelectorAll("#table thead th"));
                const i = cells.findIndex((c) => c.textContent === header);
                const rows = Array.from(document.querySelectorAll("#table tbody tr")).filter((r) => !r.hidden);
                return rows.map((r) => r.children[i].textContent.trim());
            }""",
            header,
        )

    def names(self):
        page = self.page
        return page.eval_on_selector_all("#table tbody tr:not([hidden]) th", "all => all.map((x) => x.title)")

    def assert_quiet(self):
        assert self.messages == []
        others = [url for url in self.requests if not url.startswith(("file://", "data:", "blob:"))]
        assert others == []
        assert len([url for url in self.requests if url.startswith("file://")]) == 1


@pytest.fixture(scope="module")
def path(survey, tmp_path_factory):
    import spectrim

    plan = spectrim.plan(survey, params=0.5)
    audit = {"before": {"params": 30_000, "bytes": 120_000}, "after": {"params": 18_000, "bytes": 72_000}}
    return write_html(tmp_path_factory.mktemp("report") / "net.html", survey=survey, plan=plan, audit=audit)


@pytest.fixture
def opened(browser, path):
    page = Opened(browser, path)
    yield page
    page.assert_quiet()
    page.context.close()


def assert_drawn(page, selector):
    """Every mark that the selector finds has an area, and there is at least one."""
    boxes = page.eval_on_selector_all(
        selector, "all => all.map((x) => { const b = x.getBoundingClientRect(); return [b.width, b.height]; })"
    )
    assert boxes and all(w > 0 and h > 0 for w, h in boxes), (selector, boxes[:5])


def test_a_click_on_a_row_draws_its_spectrum(opened, tmp_path):
    page = opened.page
    for index, (name, spikes) in enumerate(SPIKES.items()):
        page.click(f'#table tr[data-index="{index}"]')
        opened.panel(index)
        assert page.inner_text("#p-name") == name
        assert page.get_attribute(f'#table tr[data-index="{index}"]', "aria-current") == "true"
        assert_drawn(page, "#p-chart .scatterlayer .js-line")  # the law
        assert opened.spikes_drawn() == spikes
        bars = page.eval_on_selector_all("#p-chart .barlayer .point path", "all => all.length")
        assert bars >= 6
    page.screenshot(path=tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 30_000


def test_the_model_at_a_glance_is_drawn_and_opens_a_layer(opened):
    page = opened.page
    assert_drawn(page, "#glance .heatmaplayer image")
    box = page.locator("#glance .xy .nsewdrag, #glance .nsewdrag").first.bounding_box()
    # The third of five columns.
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.8)
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.8)
    opened.panel(2)
    page.click('[data-order="role"]')
    page.wait_for_function("document.querySelector('#glance').order.join() === '0,2,1,3,4'")


def test_plain_and_scree_show_the_other_figures(opened):
    page = opened.page
    page.click('#table tr[data-index="1"]')
    opened.panel(1)
    page.click('#p-views [data-key="plain"]')
    opened.panel(1, "plain")
    assert opened.spikes_drawn() == SPIKES["net.block.0.proj"] + 2
    page.click("#tab-scree")
    opened.panel(1, "plain", "scree")
    assert opened.spikes_drawn() == SPIKES["net.block.0.proj"] + 2
    assert page.get_attribute("#tab-scree", "aria-selected") == "true"
    page.click('#p-views [data-key="equalised"]')
    opened.panel(1, "equalised", "scree")
    assert opened.spikes_drawn() == SPIKES["net.block.0.proj"]


def test_the_table_sorts_and_filters(opened):
    page = opened.page
    page.click("#p-close")  # the wide table has all columns
    page.click('[data-sort="spikes"]')
    assert opened.column("Spikes") == ["7", "5", "3", "0", "–"]
    assert page.get_attribute("th:has([data-sort=spikes])", "aria-sort") == "descending"
    page.click('[data-sort="spikes"]')
    assert opened.column("Spikes") == ["0", "3", "5", "7", "–"]  # what has no figure stays last
    assert page.get_attribute("th:has([data-sort=spikes])", "aria-sort") == "ascending"
    assert page.get_attribute("th.name[aria-sort]", "aria-sort") == "none"
    page.fill("#filter", "BLOCK.0")
    assert sorted(opened.names()) == ["net.block.0.fc", "net.block.0.proj"]
    assert page.inner_text("#shown") == "2 of 5 matrices"


def test_the_keyboard_is_enough(opened):
    page = opened.page
    page.click("#p-close")
    page.focus('#table tr[tabindex="0"]')
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    opened.panel(1)
    page.keyboard.press("ArrowDown")
    opened.panel(2)
    page.keyboard.press("Escape")
    assert not page.is_visible("#panel")
    assert page.evaluate("document.activeElement.dataset.index") == "2"


def test_a_matrix_without_a_verdict_opens_with_its_reason(opened):
    page = opened.page
    page.click('#table tr[data-index="4"]')
    page.wait_for_function("document.querySelector('#p-name').textContent === 'net.bad'")
    assert "not finite" in page.inner_text("#p-notes")
    assert not page.is_visible("#p-chart")
    page.click(".skipped summary")
    assert page.is_visible("text=an embedding is looked up")


def test_charts_follow_light_and_dark(browser, path):
    ink = {}
    for scheme in ("light", "dark"):
        page = Opened(browser, path, color_scheme=scheme)
        index = page.page.get_attribute("#table tr[aria-current=true]", "data-index")
        page.panel(int(index))
        ink[scheme] = page.page.evaluate("getComputedStyle(document.querySelector('#p-chart .js-line')).stroke")
        assert page.page.evaluate("document.documentElement.dataset.theme") == scheme
        page.page.click("#theme")
        assert page.page.evaluate("document.documentElement.dataset.theme") != scheme
        page.assert_quiet()
        page.context.close()
    assert ink["light"] != ink["dark"]
    assert all(re.match(r"rgb", color) for color in ink.values())


def test_a_phone_sees_the_table_and_opens_a_layer_over_it(browser, path):
    opened = Opened(browser, path)
    page = opened.page
    page.set_viewport_size({"width": 420, "height": 900})
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    assert not page.is_visible("#panel")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420  # wide tables scroll in themselves
    page.click('#table tr[data-index="1"]')
    opened.panel(1)
    assert page.locator("#panel").bounding_box()["width"] == 420
    assert opened.messages == []
    opened.context.close()


def test_the_checks_above_can_fail(browser, path, tmp_path):
    """A page that asks for something and breaks is noticed: else the quiet of the others would mean nothing."""
    broken = tmp_path / "broken.html"
    page = path.read_text().replace("default-src 'none';", "default-src *;").replace("img-src data:", "img-src *")
    broken.write_text(page.replace("</h1>", '</h1><img src="http://127.0.0.1:9/x.png">', 1))
    opened = Opened(browser, broken)
    with pytest.raises(AssertionError):
        opened.assert_quiet()
    assert any(url.startswith("http:") for url in opened.requests)
    opened.context.close()


def named(survey, basis):
    """A plan that keeps two values by name in the first layer and cuts spikes in the second."""
    import spectrim

    plan = spectrim.plan(survey, params=0.5, basis=basis)
    given = {0: {"rank": 8, "also": (30, 50)}, 1: {"rank": 4, "also": (1, 6)}}
    entries = [e.model_copy(update=given.get(i, {})) for i, e in enumerate(plan.entries)]
    assert [e.action for e in entries[:2]] == ["split", "split"]
    return plan.model_copy(update={"entries": tuple(entries)})


@pytest.mark.parametrize("basis", ["plain", "equalised"])
def test_values_that_a_plan_keeps_by_name_are_marked(browser, survey, tmp_path, basis):
    """The survey has looked at no vectors: it is the plan that names them."""
    opened = Opened(browser, write_html(tmp_path / "named.html", survey=survey, plan=named(survey, basis)))
    page = opened.page
    assert "the plan keeps what lies above, and the marked ones" in page.inner_text("#glance-legend")
    assert ("as they are" in page.inner_text("#glance-legend")) == (basis == "plain")
    r = survey.readings[0]
    s, edge = (r.spectrum.s, r.fit.edge) if basis == "equalised" else (r.plain_spectrum.s, r.plain.edge)
    diamonds = page.evaluate(
        "(({ x, y }) => ({ x, y }))(document.getElementById('glance').data.find((t) => t.name === 'named'))"
    )
    assert diamonds["x"] == [0, 0, 1]  # what is named among the largest lies above the line
    assert diamonds["y"][:2] == pytest.approx(s[[30, 50]] / edge, rel=1e-5)
    assert_drawn(page, "#glance .scatterlayer .point")
    page.click('#table tr[data-index="0"]')
    opened.panel(0)
    told = "rows and columns evened out" in page.inner_text("#p-plan")
    assert told == (basis == "plain") == ("evened out" in page.inner_text(".answer"))
    if basis == "plain":
        assert trace(page, "structured") is None  # the chart is that of the verdict's basis, where no position counts
        page.click('#p-views [data-key="plain"]')
        opened.panel(0, "plain")
    assert trace(page, "structured")["x"] == pytest.approx(s[[30, 50]], rel=1e-5)
    assert "Hollow diamonds are directions that the plan names and keeps." in page.inner_text("#p-caption")
    page.click("#tab-scree")
    opened.panel(0, basis, "scree")
    page.click('#p-range [data-key="false"]')
    page.wait_for_function("document.getElementById('p-chart').layout.xaxis.range[1] > 60")
    assert trace(page, "structured")["x"] == [31, 51] and trace(page, "structured")["drawn"]
    # Of the spikes those that are kept are full: the largest two (one of them named anyway) and so on.
    page.click('#table tr[data-index="1"]')
    opened.panel(1, basis, "scree")
    symbols = page.evaluate(
        "document.getElementById('p-chart').data.find((t) => t.name === 'spikes').marker.symbol.slice(0, 7)"
    )
    full = [i for i, symbol in enumerate(symbols) if symbol == "circle"]
    assert full == [0, 1, 2, 6]
    opened.assert_quiet()
    opened.context.close()


def test_a_plan_without_names_has_no_marks(opened):
    assert "lies above" in opened.page.inner_text("#glance-legend")
    assert "marked" not in opened.page.inner_text("#glance-legend")


# Several estimators on one page.


@pytest.fixture(scope="module")
def told(survey):
    return compare(survey)


@pytest.fixture
def edges(browser, told, tmp_path_factory):
    page = Opened(browser, told.to_html(tmp_path_factory.mktemp("edges") / "edges.html"))
    yield page
    page.assert_quiet()
    page.context.close()


def trace(page, name):
    """x and y of one trace of the panel's chart, and whether the browser drew it with an area."""
    return page.evaluate(
        """(name) => {
            const chart = document.getElementById("p-chart"), i = chart.data.findIndex((t) => t.name === name);
            if (i < 0) return null;
            const group = chart.querySelector(`.scatterlayer .trace${chart._fullData[i].uid}`);
            const box = group.getBoundingClientRect(), { x, y } = chart.data[i];
            return { x, y, drawn: box.width > 0 && box.height > 0 };
        }""",
        name,
    )


def labels(page):
    """The boxes of the names in the lanes over the chart: [left, right, top, bottom], by their text."""
    return page.evaluate(
        """() => Object.fromEntries(Array.from(document.querySelectorAll("#p-chart .annotation-text"), (t) => {
            const b = t.getBoundingClientRect();
            return [t.textContent, [b.left, b.right, b.top, b.bottom]];
        }))"""
    )


def test_a_click_on_a_matrix_draws_the_edge_of_every_estimator(edges, told):
    page = edges.page
    for index, row in enumerate(told.rows[:4]):
        page.click(f'#table tr[data-index="{index}"]')
        edges.panel(index)
        marks = trace(page, "edges")
        assert marks["drawn"]
        assert sorted(marks["x"]) == pytest.approx(sorted(fit.edge for fit in row.fits.values()), rel=1e-6)
        # One line each from its lane down through the spectrum.
        lines = page.evaluate("document.getElementById('p-chart').layout.shapes.filter((s) => s.x0 === s.x1)")
        assert {line["x0"] for line in lines} == set(marks["x"])
        names = {text: box for text, box in labels(page).items() if not text.endswith("→")}
        assert len(names) == len(row.fits) and any(text.startswith("Gavish–Donoho") for text in names)
        panel = page.locator("#panel").bounding_box()
        boxes = sorted(names.values(), key=lambda b: b[2])
        assert all(above[3] <= below[2] + 1 for above, below in pairwise(boxes))  # none on another
        assert all(panel["x"] <= left and right <= panel["x"] + panel["width"] for left, right, _, _ in boxes)
        assert "Each lane above is an estimator" in page.inner_text("#p-caption")
        assert page.inner_text("#p-verdict .kind") == row.verdict.kind


def test_the_other_basis_has_its_own_edge_and_no_lanes(edges):
    page = edges.page
    page.click('#table tr[data-index="1"]')
    edges.panel(1)
    page.click('#p-views [data-key="plain"]')
    edges.panel(1, "plain")
    assert trace(page, "edges") is None
    assert any(text.startswith("edge ") for text in labels(page))


def test_the_edge_by_its_settings_is_drawn_through_the_choice(edges, told):
    page = edges.page
    page.click('#table tr[data-index="1"]')
    edges.panel(1)
    page.click("#tab-settings")
    edges.panel(1, tab="settings")
    row = told.rows[1]
    for name, setting in (("alpha", 0.2), ("beta", 0.1)):
        for kind in ("", " spikes"):
            curve, choice = trace(page, name + kind), trace(page, f"{name}{kind} chosen")
            assert curve["drawn"] and choice["drawn"] and choice["x"] == [setting]
            assert choice["y"][0] == curve["y"][curve["x"].index(setting)]
    fit = Bema()(row.reading.spectrum)
    assert trace(page, "alpha chosen")["y"][0] == pytest.approx(fit.edge, rel=1e-5)
    assert not page.is_visible("#p-views button") and not page.is_visible("#p-range button")
    assert {"α = 0.2 chosen", "β = 0.1 chosen"} <= set(labels(page))


def test_the_scores_by_rank_are_drawn_with_the_rank_of_every_estimator(edges, told):
    page = edges.page
    page.click('#table tr[data-index="1"]')
    edges.panel(1)
    page.click("#tab-score")
    edges.panel(1, tab="score")
    row = told.rows[1]
    assert sorted(trace(page, "edges")["x"]) == sorted(fit.spikes for fit in row.fits.values())
    average, gain, peak = trace(page, "average"), trace(page, "gain"), trace(page, "peak")
    assert average["drawn"] and gain["drawn"] and peak["drawn"]
    assert average["y"] == sorted(average["y"], reverse=True)
    assert max(gain["y"]) == peak["y"][0] and peak["x"] == [gain["x"][gain["y"].index(max(gain["y"]))]]
    page.click('#p-range [data-key="false"]')  # all ranks
    page.wait_for_function("document.getElementById('p-chart').layout.xaxis.range[1] > 60")


def test_the_tabs_go_round_with_the_arrow_keys(edges):
    page = edges.page
    page.click('#table tr[data-index="0"]')
    edges.panel(0)
    page.focus("#tab-spectrum")
    heights = set()
    for tab in ("scree", "settings", "score", "spectrum"):
        page.keyboard.press("ArrowRight")
        edges.panel(0, tab=tab)
        assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
        chart, inner = page.locator("#p-chart").bounding_box(), page.locator("#p-chart .main-svg").first.bounding_box()
        heights.add(chart["height"])
        assert inner["height"] <= chart["height"] + 1  # a chart stays in its box
    assert len(heights) == 1
    page.keyboard.press("ArrowLeft")
    edges.panel(0, tab="score")
    # A layer without a verdict has none of this, and says why instead.
    page.click('#table tr[data-index="4"]')
    page.wait_for_function("document.querySelector('#p-name').textContent === 'net.bad'")
    assert not page.is_visible("#p-chart") and "not finite" in page.inner_text("#p-notes")


def test_the_columns_of_estimators_and_verdicts_sort(edges, told):
    page = edges.page
    page.click("#p-close")
    counts = [[row.fits[name].spikes for row in told.rows[:4]] for name in ("bema", "screenot")]
    for heading, spikes in zip(("Bema", "ScreeNOT"), counts, strict=True):
        page.click(f'#table th button:text-is("{heading}")')
        assert edges.column(heading) == [str(k) for k in sorted(spikes, reverse=True)] + ["–"]
    page.click('[data-sort="verdict"]')
    kinds = [row.verdict.kind for row in told.rows[:4]]
    order = ["spiked", "noise-like", "heavy-tailed", "no fit"]
    assert edges.column("Verdict") == [*sorted(kinds, key=order.index), "–"]
    kind, k = kinds[0], kinds.count(kinds[0])
    page.click(f'#chips button:has-text("{kind}")')
    assert len(edges.names()) == k
    assert page.inner_text("#shown") == f"{k} of 5 matrices"


def test_a_phone_sees_names_verdicts_and_every_chart(browser, told, tmp_path):
    opened = Opened(browser, told.to_html(tmp_path / "edges.html"))
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.is_visible("#table td .kind")
    page.click('#table tr[data-index="1"]')
    for tab in ("spectrum", "settings", "score"):
        page.click(f"#tab-{tab}")
        opened.panel(1, tab=tab)
        assert all(left >= 0 and right <= 390 for left, right, _, _ in labels(page).values()), tab
    assert page.evaluate("document.getElementById('panel').scrollWidth") <= 390
    assert opened.messages == []
    opened.context.close()
