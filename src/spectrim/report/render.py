"""The page: one HTML file with its charts, styles and figures inside, which asks the network for nothing."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from spectrim.report import figures
from spectrim.report.summarise import summarise
from spectrim.report.sweeping import summarise_sweep
from spectrim.report.view import CELLS

HERE = Path(__file__).parent
SCRIPTS = ("theme", "edges", "spectra", "glance", "panel", "page")  # each needs those before it
SWEEP_SCRIPTS = ("theme", "sweep")
BARS = 24  # of the little histogram in a row of the table: half of them below the edge, half above


def render(summary: dict[str, Any]) -> str:
    """Returns the whole page as one string of HTML that opens from file:// without a network.

    Args:
        summary: the dictionary of `summarise`, or the same read back from JSON.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> empty = Record(model="none", readings=(), params=0, bytes=0, edge="Bema()", seconds=0.0, version="0.1")
        >>> render(summarise(empty)).startswith("<!doctype html>")
        True
    """
    return _page("template.html", summary, ("report.css",), SCRIPTS)


def render_sweep(summary: dict[str, Any]) -> str:
    """Returns the page of a sweep as one string of HTML that opens from file:// without a network.

    Args:
        summary: the dictionary of `summarise_sweep`, or the same read back from JSON.
    """
    return _page("sweep.html", summary, ("report.css", "sweep.css"), SWEEP_SCRIPTS)


def _page(template: str, summary: dict[str, Any], styles: tuple[str, ...], scripts: tuple[str, ...]) -> str:
    return _template(template).render(
        r=summary,
        data=as_json(summary),
        style=Markup("\n".join(map(_asset, styles))),
        code=Markup("\n".join(_asset(f"{name}.js") for name in scripts)),
        plotly=Markup(_plotly()),
    )


def write_html(path: str | os.PathLike[str], **parts: Any) -> Path:
    """Returns the path of the page it has written; a reader sees the old file or the whole new one, never a part.

    Args:
        path: where the page goes; its folder must exist.
        parts: what `summarise` takes (`survey`, `plan`, `changes`, `audit`, `scores`, `title`), or `summary`, its
            dictionary.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace as Record
        >>> empty = Record(model="none", readings=(), params=0, bytes=0, edge="Bema()", seconds=0.0, version="0.1")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_html(folder + "/report.html", survey=empty).name
        'report.html'
    """
    return _written(path, render(parts["summary"] if "summary" in parts else summarise(**parts)))


def write_sweep(path: str | os.PathLike[str], sweep: Any, title: str | None = None) -> Path:
    """Returns the path of the page of a sweep that it has written, as `write_html` writes.

    Args:
        path: where the page goes; its folder must exist.
        sweep: the `Sweep`.
        title: heading of the page; the task's name unless told.
    """
    return _written(path, render_sweep(summarise_sweep(sweep, title)))


def _written(path: str | os.PathLike[str], page: str) -> Path:
    from spectrim.writing import write_whole  # inside: to render a page needs no torch

    write_whole(path, page)
    return Path(path)


def as_json(value: Any) -> Markup:
    r"""Returns JSON that may stand inside a script element: no character in it can end the element or start markup.

    Args:
        value: anything JSON takes; a NaN is refused, since browsers cannot read it.

    Example:
        >>> print(as_json("</script>"))
        "\u003c/script\u003e"
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def sparkline(view: dict[str, Any] | None) -> dict[str, str] | None:
    """Returns two SVG paths, the bars of the bulk and those of the spikes, on a 0..100 x 0..24 canvas.

    The horizontal axis is that of the model's map, linear up to the edge and logarithmic above, so that the edge
    stands in the middle of every row; what lies beyond e edges joins the last bar. Heights are square roots: a single
    spike must still be seen.

    Args:
        view: a view of a layer, or None.

    Example:
        >>> sparkline({"map": [[0, 4], [40, 1]]})["edge"]
        '50.0'
    """
    if not view or not view["map"]:
        return None
    heights = [0] * BARS
    for cell, k in view["map"]:
        heights[min(cell * BARS // (2 * CELLS), BARS - 1)] += k
    top, width = max(heights) ** 0.5, 100 / len(heights)
    paths = {"bulk": "", "spikes": ""}
    for i, k in enumerate(heights):
        if k:
            high = max(24 * k**0.5 / top, 3.0)
            side = "bulk" if i < BARS // 2 else "spikes"
            paths[side] += f"M{i * width:.1f} 24v-{high:.1f}h{width * 0.8:.1f}v{high:.1f}z"
    return {**paths, "edge": "50.0"}


@lru_cache(maxsize=2)
def _template(name: str) -> Any:
    # autoescape on for every template: names of layers come from files that anyone may have written.
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for words in ("count", "short", "size", "percent", "plain"):
        environment.filters[words] = getattr(figures, words)
    environment.filters["sparkline"] = sparkline
    return environment.get_template(name)


@lru_cache(maxsize=16)
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:  # pragma: no cover - plotly is a dependency; a stripped install may lack it
        raise ImportError("a report needs plotly for its charts: pip install plotly") from error
    return get_plotlyjs().replace("</script", "<\\/script")
