"""The commands that look at a model and change nothing: survey and edges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import tables
from .console import bar, figure, places, say, writing, written
from .options import (
    Address,
    Alpha,
    Approximate,
    Beta,
    Device,
    Edge,
    EdgeName,
    Engine,
    Fused,
    FusedOption,
    Html,
    Json,
    Memory,
    Model,
    Plain,
    Processes,
    Vectors,
    Workers,
    crew,
    estimator,
)


def surveyed(
    model: str,
    edge: EdgeName,
    alpha: float,
    beta: float,
    fused: Fused,
    no_equalize: bool,
    vectors: bool = False,
    beside: Path | None = None,
    **more: Any,
):
    """Return the survey that the options ask for; killed, it goes on from a journal beside the file that is written."""
    from ..survey import open_model
    from ..survey import survey as run

    chosen, source = estimator(edge, alpha, beta), open_model(model)
    how = {"equalize": not no_equalize, "fused": fused.value, "vectors": vectors, **more}
    if beside is not None and str(beside) != "-" and source.files and beside.parent.is_dir():
        how["journal"] = beside.parent / f".{beside.name}.partial"
    return run(source, chosen, **how, progress=bar("surveying"))


def survey(
    model: Model,
    edge: Edge = EdgeName.bema,
    alpha: Alpha = 0.2,
    beta: Beta = 0.1,
    fused: FusedOption = Fused.split,
    no_equalize: Plain = False,
    vectors: Vectors = False,
    device: Device = None,
    approximate: Approximate = False,
    workers: Workers = None,
    memory: Memory = None,
    processes: Processes = False,
    engine: Engine = None,
    address: Address = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Show for every weight matrix of MODEL its noise level, its noise edge and how many directions stand above it."""
    places(html=html, json=json)
    if approximate and vectors:
        raise ValueError("an approximation has vectors of spikes only: leave out --vectors or --approximate")
    more = {"device": device, "approximate": approximate, "engine": crew(workers, memory, processes, engine, address)}
    found = surveyed(model, edge, alpha, beta, fused, no_equalize, vectors, json or html, **more)
    for reading in bar("judging")(found.matrices):
        reading.verdict  # noqa: B018 - worked out when first asked for, which is here, under a bar
    taken = written(json, found.to_json())
    if html:
        with writing(html):
            found.to_html(html)
    if not taken:
        _show_survey(found)
        if html:
            say(f"report: {html}")


def _show_survey(found) -> None:
    rs = found.matrices
    fits, plains = [r.fit for r in rs], [r.plain if r.spectrum and r.spectrum.equalised else None for r in rs]
    columns = [
        ("matrix", "left", [r.name for r in rs]),
        ("kind", "left", [r.kind for r in rs]),
        ("shape", "right", [f"{r.rows} x {r.cols}" for r in rs]),
        ("sigma", "right", [fit and figure(fit.sigma) for fit in fits]),
        ("edge", "right", [fit and figure(fit.edge) for fit in fits]),
        ("spikes", "right", [fit and str(fit.spikes) for fit in fits]),
        ("plain", "right", [fit and str(fit.spikes) for fit in plains]),
        ("misfit", "right", [fit and figure(fit.misfit, ".3f") for fit in fits]),
        *(_below(rs) if any(r.structured is not None for r in rs) else []),
        ("verdict", "left", [r.verdict and r.verdict.kind for r in rs]),
        ("note", "prose", [r.note for r in rs]),
    ]
    tables.show(columns, ("kind", "plain", "sigma", "misfit"), found.model, ("structured", "low", "shape"))
    reasons: dict[str, int] = {}
    for r in found.readings:
        if r.skipped:
            reasons[r.kind] = reasons.get(r.kind, 0) + 1
    t = found.totals
    share = f", {1 - t['bulk_share']:.1%} of {t['values']} values" if t["values"] else ""
    skipped = ", ".join(f"{n} {kind}" for kind, n in reasons.items())
    say(
        f"{t['fitted']} of {t['matrices']} matrices judged: {t['spikes']} spikes{share}. {found.params:,} parameters, "
        f"{t['params']:,} of them in these matrices. Skipped: {skipped or 'nothing'}. {found.seconds:.1f} s."
    )


def _below(rs) -> list[tables.Column]:
    """What lies below the noise, and what lies in it and is not random."""
    low = [r.fit and figure(r.low, "d") for r in rs]
    return [
        ("low", "right", low),
        ("structured", "right", [None if r.structured is None else str(len(r.structured)) for r in rs]),
    ]


def edges(
    model: Model,
    alpha: Alpha = 0.2,
    beta: Beta = 0.1,
    fused: FusedOption = Fused.split,
    no_equalize: Plain = False,
    slow: Annotated[
        bool,
        typer.Option("--slow", help="Also the estimators that simulate their noise: seconds a matrix."),
    ] = False,
    vectors: Vectors = False,
    html: Html = None,
    json: Json = None,
) -> None:
    """Compare the estimators of the noise edge on every weight matrix of MODEL: spikes by each, agreement, verdict."""
    from ..compare import compare

    places(html=html, json=json)
    found = surveyed(model, EdgeName.bema, alpha, beta, fused, no_equalize, vectors)
    told = compare(found, slow=slow, progress=bar("comparing"))
    taken = written(json, told.to_json())
    if html:
        with writing(html):
            told.to_html(html, progress=bar("drawing"))
    if not taken:
        _show_edges(told, vectors)
        if html:
            say(f"report: {html}")


def _show_edges(told, vectors: bool) -> None:
    """Matrices down, estimators across."""

    def counts(key: str) -> list[str | None]:
        return [str(row.fits[key].spikes) if key in row.fits else None for row in told.rows]

    rs, verdicts = [row.reading for row in told.rows], [row.verdict for row in told.rows]
    own, *others = told.estimators or ("bema",)
    columns = [("matrix", "left", [r.name for r in rs]), (own, "right", counts(own))]
    columns.append(("edge", "right", [r.fit and figure(r.fit.edge) for r in rs]))
    columns.append(("law ends, 90 %", "right", [_span(r.fit) for r in rs]))
    columns += [(key, "right", counts(key)) for key in others]
    columns.append(("agree", "right", [v and figure(v.agreement, ".0%") for v in verdicts]))
    columns += _below(rs) if vectors else []
    columns.append(("verdict", "left", [v and v.kind for v in verdicts]))
    columns.append(("note", "prose", ["" if v else r.note for r, v in zip(rs, verdicts, strict=True)]))
    spare = ("law ends, 90 %", "edge", "agree", "gavish-donoho", "screenot")
    last = ("bema-gamma", "shuffled", "structured", "low", "broadening", "median")
    tables.show(columns, spare, told.survey.model, last)
    _sum_up(told, vectors)


def _span(fit) -> str | None:
    """Where the limiting law of the noise ends; the edge is set near it, where few noise matrices reach."""
    if fit is None or fit.edge_interval is None:
        return None
    return "{:.4g} to {:.4g}".format(*fit.edge_interval)


def _sum_up(told, vectors: bool) -> None:
    from ..compare import sentence

    t = told.totals
    text = sentence(told)
    say(f"{text[:1].upper()}{text[1:]}.")
    if not t["judged"]:
        return
    if t["spikes"]:
        where = "all" if t["compared"] == t["judged"] else f"the {t['compared']} matrices that all of them judged"
        say(f"Spikes in {where}: " + ", ".join(f"{name} {k:,}" for name, k in t["spikes"].items()) + ".")
    for name, k in t["refused"].items():
        say(f"{name} has no edge for {k} of the {t['judged']} matrices judged.")
    if vectors:
        low = sum(r.low or 0 for r in told.survey.fitted)
        structured = sum(len(r.structured or ()) for r in told.survey.fitted)
        say(
            f"Below the lower edge of the noise: {low:,} values. In the bulk and not random: {structured:,} directions."
        )
    say(f"Survey {told.survey.seconds:.1f} s, comparison {told.seconds:.1f} s.")
