"""The page of a sweep: the dictionary it is made from, and what a real browser draws of it."""

import json
import re
from dataclasses import replace

import pytest

from spectrim import budgets
from spectrim.report import render_sweep, summarise_sweep
from spectrim.sweep import Ranks, Zeros, sweep
from sweep_toy import Toy
from test_report_browser import Opened, browser  # noqa: F401 - a fixture

HOSTILE = "<script>boom()</script> & co"


def broken(model, found, rate, generator):
    raise ZeroDivisionError("no such luck")


@pytest.fixture(scope="module")
def found():
    methods = {"lamp": Zeros(budgets.Lamp()), "ranks": Ranks(), HOSTILE: Zeros(budgets.ErdosRenyi()), "broken": broken}
    return sweep(Toy(), methods, (0.3, 0.6, 0.8), bootstrap=100)


@pytest.fixture(scope="module")
def told(found):
    return summarise_sweep(found)


def test_the_dictionary_is_json_and_says_what_was_found(found, told):
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["headline"] == "accuracy" and told["rates"] == [0.3, 0.6, 0.8]
    assert told["against"] == ["global magnitude", "uniform", "random", "dense"]
    assert [m["name"] for m in told["methods"] if m["control"]] == ["uniform", "global magnitude", "random"]
    for cell, source in zip(told["cells"], found.cells, strict=True):
        assert (cell["method"], cell["rate"]) == (source.method, source.rate)
        if source.failed:
            assert cell["failed"].startswith("ZeroDivisionError") and cell["kept"] is None
            continue
        figure = source.scores["accuracy"]["report"]
        assert cell["scores"]["accuracy"]["report"]["value"] == pytest.approx(figure.value, rel=1e-5)
        assert cell["kept"] == pytest.approx(1 - source.achieved)
        assert cell["macs_executed"] * 300 == pytest.approx(source.counts.macs_executed)
    assert len(told["failed"]) == 3


def test_the_sentence_is_about_the_half_that_had_no_part_in_the_choice(found, told):
    best = found.best(0.8)
    assert f"At 80\xa0% the best method on one half of the items is {best.method}" in told["sentence"]
    shown = told["scores"][0]["best"][2]
    assert shown["method"] == best.method and shown["counts"] is True
    assert shown["report"]["value"] == pytest.approx(best.scores["accuracy"]["report"].value, rel=1e-5)
    assert shown["report"]["text"] in told["sentence"]
    chance = replace(found, scores={"accuracy": replace(found.scores["accuracy"], chance=1.0)})
    assert "nothing here tells them apart" in summarise_sweep(chance)["sentence"]


def test_the_page_is_whole_and_asks_for_nothing(told):
    page = render_sweep(told)
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", outside)
    assert "boom()</script>" not in page.replace("&lt;/script&gt;", "") and "&lt;script&gt;boom()" in page
    assert "Zeros save no time on ordinary hardware" in page
    assert outside.count("<tr data-index=") == 1 + 7 * 3  # the dense model, and all cells
    assert render_sweep(json.loads(json.dumps(told))) == page


def test_a_sweep_that_was_stopped_at_once_has_a_page(found):
    for cells in ((), found.cells[:1], tuple(cell for cell in found.cells if cell.failed)):
        told = summarise_sweep(replace(found, cells=cells))
        assert "nothing here" in told["sentence"] or "At 30" in told["sentence"]
        render_sweep(told)


# In a browser.


@pytest.fixture(scope="module")
def file(found, tmp_path_factory):
    return found.to_html(tmp_path_factory.mktemp("sweep") / "sweep.html")


@pytest.fixture
def opened(browser, file):  # noqa: F811
    page = Opened(browser, file)
    yield page
    assert page.messages == [] and page.requests == [file.as_uri()]
    page.context.close()


def traces(page, chart):
    return page.evaluate(
        "(id) => Object.fromEntries(document.getElementById(id).data.map((t) => [t.name, {x: t.x, y: t.y}]))", chart
    )


def marks(page, chart):
    """How many marks stand in a chart with a size of their own."""
    return page.evaluate(
        """(id) => Array.from(document.querySelectorAll(`#${id} .points path`))
            .filter((m) => m.getBoundingClientRect().width > 1).length""",
        chart,
    )


def drawn(page, score, half, other, methods):
    page.wait_for_selector(f'body[data-drawn="{score}:{half}:{other}:{methods}"]', timeout=10_000)


@pytest.mark.browser
def test_every_cell_is_drawn_and_the_buttons_change_what_is_shown(opened, found):
    page = opened.page
    shown = traces(page, "pareto")
    assert shown["lamp"]["y"] == pytest.approx(
        [found.cell("lamp", r).scores["accuracy"]["all"].value for r in found.rates], rel=1e-5
    )
    # Moved aside, by less than a third of what lies between two rates.
    assert shown["uniform"]["x"] == pytest.approx([0.7, 0.4, 0.2], abs=0.04) and shown["broken"]["x"] == []
    assert marks(page, "pareto") >= 6 * 3 and marks(page, "gains") == 5 * 3
    page.click("#by-score >> text=cosine")
    page.click("#by-half >> text=report")
    drawn(page, "cosine", "report", "global magnitude", 7)
    value = found.cell("ranks", 0.8).scores["cosine"]["report"].value
    assert traces(page, "pareto")["ranks"]["y"][2] == pytest.approx(value, rel=1e-5)
    assert page.locator(".best:visible caption").inner_text() == "cosine"
    page.click("#by-other >> text=random")
    drawn(page, "cosine", "report", "random", 7)
    gain = found.cell("lamp", 0.6).scores["cosine"]["report"].gains["random"]
    assert traces(page, "gains")["lamp"]["y"][1] == pytest.approx(gain.value, rel=1e-5)
    assert "random" not in traces(page, "gains")
    page.click("#picks >> text=lamp")
    drawn(page, "cosine", "report", "random", 6)
    assert "lamp" not in traces(page, "pareto")
    assert page.get_attribute("#picks button:has-text('lamp')", "aria-pressed") == "false"


@pytest.mark.browser
def test_the_table_sorts_with_failed_cells_last(opened, found):
    page = opened.page
    page.click('[data-sort="score:accuracy"]')
    first = page.inner_text("#table tbody tr:first-child th")
    last = page.inner_text("#table tbody tr:last-child")
    assert first.startswith("dense") and "failed: ZeroDivisionError" in last
    page.click('[data-sort="macs_executed"]')
    page.click('[data-sort="macs_executed"]')
    assert page.inner_text("#table tbody tr:first-child th").startswith("ranks")


@pytest.mark.browser
def test_dark_and_narrow(opened, browser, file):  # noqa: F811
    page = opened.page
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.wait_for_function(
        "document.getElementById('pareto').layout.font.color === "
        "getComputedStyle(document.documentElement).getPropertyValue('--soft').trim()"
    )
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for chart in ("pareto", "gains"):
        inner = page.locator(f"#{chart} .main-svg").first.bounding_box()
        assert inner["x"] >= 0 and inner["x"] + inner["width"] <= 390
    opened.requests[:] = opened.requests[:1]
