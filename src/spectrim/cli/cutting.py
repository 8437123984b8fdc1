"""The commands that change a model: plan, trim, demo."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from . import tables
from .console import bar, err, figure, places, say, writing, written
from .looking import surveyed
from .options import (
    Address,
    Alpha,
    BasisName,
    Beta,
    BudgetName,
    CutName,
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
    ShapeName,
    StepName,
    Vectors,
    Workers,
    budget,
    crew,
)


def plan(
    model: Model,
    params: Annotated[float | None, typer.Option(help="Share of the matrices' parameters to keep, in (0, 1].")] = None,
    zeros: Annotated[
        float | None, typer.Option(help="Share of the matrices' entries to set to zero, in (0, 1].")
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(
            help="Share of the model's output that may be lost, as --moments synthetic expects it: cut as much as that "
            "allows."
        ),
    ] = None,
    cut: Annotated[
        CutName | None, typer.Option(help="With --error: what is cut, zeros or ranks (default: zeros).")
    ] = None,
    by: Annotated[
        BudgetName | None,
        typer.Option(
            "--budget",
            help="With --zeros: who shares them out over the matrices (default: global; with --moments synthetic by "
            "what they do to the model's output).",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The plan file to write; - for standard output.")
    ] = Path("plan.json"),
    dense: Annotated[
        bool, typer.Option("--dense", help="Rebuild matrices at lower rank in place, without splitting.")
    ] = False,
    basis: Annotated[
        BasisName, typer.Option(help="Cut ranks, and compare magnitudes, of matrices as they are or evened out.")
    ] = BasisName.plain,
    moments: Annotated[
        str,
        typer.Option(
            metavar="none|equalised|stored|synthetic|FILE",
            help="Measure a cut in what layers put out: inputs known from what the network has stored, from noise that "
            "is run through it, or from a file that Moments.save wrote; equalised is --basis equalised.",
        ),
    ] = "none",
    image_size: Annotated[
        int | None,
        typer.Option(help="With --moments synthetic: side of your images (default: what the model says)."),
    ] = None,
    step: Annotated[
        StepName | None,
        typer.Option(help="With --zeros and --moments: how entries are chosen and made up for (default: alternate)."),
    ] = None,
    edge: Edge = EdgeName.bema,
    alpha: Alpha = 0.2,
    beta: Beta = 0.1,
    fused: FusedOption = Fused.split,
    no_equalize: Plain = False,
    gate: Annotated[
        float | None,
        typer.Option(
            help="Largest misfit of a bulk that may be cut, or that a budget believes, in [0, 1]; 1 lets everything "
            "through (default: 0.1, or the budget's own)."
        ),
    ] = None,
    vectors: Vectors = False,
    device: Device = None,
    workers: Workers = None,
    memory: Memory = None,
    processes: Processes = False,
    engine: Engine = None,
    address: Address = None,
    html: Html = None,
) -> None:
    """Decide what each matrix of MODEL may lose to reach a target, and write it down as a file to read and edit."""
    from ..plan import plan as run

    if sum(target is not None for target in (params, zeros, error)) != 1:
        raise ValueError(
            "give one target: --params 0.5 (share of parameters kept), --zeros 0.5 (share of zero entries), or "
            "--error 0.2 (of the model's output)"
        )
    for name, value in (("--params", params), ("--zeros", zeros)):  # before the work, not after it
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} lies in (0, 1], not {value}: 0.5 means one half")
    if error is not None and not 0 < error < float("inf"):
        raise ValueError(f"--error is a share of the model's output, > 0, not {error}: 0.2 means a fifth")
    if error is None and cut is not None:
        raise ValueError("--cut says what --error may cut: leave it out")
    if error is not None and moments in ("none", "equalised", "stored"):
        raise ValueError(
            "--error is told by what errors do further on: give --moments synthetic, or a FILE of moments whose "
            "outputs are weighed"
        )
    ranks = params is not None or cut is CutName.ranks
    if gate is not None and not 0 <= gate <= 1:
        raise ValueError(f"--gate lies in [0, 1], not {gate}: the largest misfit of a bulk that may be cut")
    if ranks and by is not None:
        raise ValueError("--budget shares out zeros: leave it out with ranks, or give --zeros 0.5")
    left = {"--vectors": vectors, "--dense": dense}
    if not ranks and any(left.values()):
        without = " and ".join(name for name, given in left.items() if given)
        said = "--zeros" if error is None else "--error without --cut ranks"
        raise ValueError(f"{said} sets single entries to zero and cuts no rank: leave out {without}")
    if no_equalize and basis is BasisName.equalised:
        raise ValueError("--basis equalised is that of matrices that are evened out: leave out --no-equalize")
    if moments == "equalised":
        basis, moments = BasisName.equalised, "none"
    if moments == "none" and step is not None:
        raise ValueError(
            "--step sets zeros in the inner product of the inputs: give --moments synthetic, stored or FILE"
        )
    if moments != "synthetic" and image_size is not None:
        raise ValueError("--image-size is that of synthetic inputs: give --moments synthetic, or leave it out")
    if moments != "none" and basis is not BasisName.plain:
        raise ValueError("a cut is made in one basis: leave out --moments or --basis equalised")
    places(output=output, html=html)
    seen = _moments(model, moments, image_size)
    more = {"device": device, "engine": crew(workers, memory, processes, engine, address)}
    found = surveyed(model, edge, alpha, beta, fused, no_equalize, vectors, output, **more)
    named = [r.name for r in found.fitted]
    if seen is not None and 2 * (met := sum(name in seen for name in named)) < len(named):
        raise ValueError(
            f"these moments are of {met} of the {len(named)} matrices of {model}: they are of another one, or "
            f"the model calls its matrices otherwise than its files do ({named[0]} here, "
            f"{next(iter(seen), 'none')} there). Plan and trim the live model in Python, and save that"
        )
    how = {"basis": basis.value} if seen is None else {"moments": seen, "step": step and step.value}
    target = {"params": params, "zeros": zeros, "error": error, "cut": cut and cut.value}
    chosen = run(found, **target, budget=budget(by), dense=dense, gate=gate, **how)
    taken = written(output, chosen.to_json())
    if html:
        with writing(html):
            found.to_html(html, plan=chosen)
    if not taken:
        _show_plan(chosen)
        say(f"plan: {output}" + (f"; report: {html}" if html else ""))


def _moments(model: str, given: str, image_size: int | None):
    """The moments that --moments names, None for none."""
    if given == "none":
        return None
    from ..calibrate.sources import WITHOUT_DATA, live, moments_of
    from ..moments import Moments

    _lean()
    if given not in WITHOUT_DATA:
        return Moments.load(given, held=False)
    found = moments_of(live(model), given, image_size=image_size, progress=bar("running noise"))
    for note in found.notes:
        err.print(note, soft_wrap=True)
    return found


def _lean() -> None:
    """Let this process hand back at once what is free: glibc would keep blocks of up to 32 MiB, a model's worth.

    Smaller blocks are kept: with a threshold of 1 MB the same work takes half as long again, to ask for them anew.
    """
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(-3, 3_000_000)  # M_MMAP_THRESHOLD, in bytes


def _show_plan(chosen) -> None:
    es = chosen.entries
    columns = [
        ("matrix", "left", [e.name for e in es]),
        ("shape", "right", [f"{e.rows} x {e.cols}" for e in es]),
        ("action", "left", [e.action for e in es]),
        ("rank", "right", [figure(e.rank, "d") for e in es]),
        ("zeros", "right", [figure(e.zeros, ",") for e in es]),
        ("parameters", "right", [f"{e.params_after:,}" for e in es]),
        ("damage", "right", [figure(e.damage, ".3f") for e in es]),
        *([("output lost", "right", [figure(e.output_error, ".3f") for e in es])] if chosen.moments else []),
        *([("model moved", "right", [figure(e.model_error, ".3f") for e in es])] if chosen.model_error else []),
        ("reason", "prose", [e.reason for e in es]),
    ]
    tables.show(columns, ("reason", "shape"), chosen.model.label)
    say(str(chosen).splitlines()[0])
    if chosen.model_error is not None:
        say(f"the model's output is expected to change by {chosen.model_error:.1%}")
    for note in chosen.notes:
        say(note)


def trim(
    model: Model,
    plan: Annotated[Path, typer.Option("--plan", help="The plan to carry out.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist yet.")],
    moments: Annotated[
        Path | None,
        typer.Option(help="The moments that the plan was made with; those that took no data are made again."),
    ] = None,
    shape: Annotated[
        ShapeName | None,
        typer.Option("--as", help="The shape of the result; as the plan says unless given. See docs/shapes.md."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Of the pairs of --as adapter; the spikes of each matrix unless given.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Keep what `spectrim undo` needs, in OUTPUT/undo.")] = False,
    workers: Workers = None,
    memory: Memory = None,
    processes: Processes = False,
    engine: Engine = None,
    address: Address = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Carry out a plan on MODEL, check that what was planned was achieved, and write the result to a new folder."""
    import json as js

    from ..plan import Plan
    from ..trim import trim as run
    from ..trim import undo_bytes

    places(html=html, json=json)
    chosen = Plan.from_json(plan)
    if undo:
        err.print(f"to undo this, {undo_bytes(chosen):,} bytes are kept beside the result, or fewer: compressed")
    if chosen.moments is not None:
        _lean()
    how = {"moments": moments, "undo": undo, "shape": shape and shape.value, "rank": rank}
    how["engine"] = crew(workers, memory, processes, engine, address)
    done = run(model, chosen, output, **how, progress=bar("trimming"))
    taken = written(json, js.dumps(done.to_dict(), indent=1))
    if html:
        _report_of(model, done, html)
    if not taken:
        _show_changes(done)
        say(f"written: {output}" + (f"; report: {html}" if html else ""))


def undo(
    trimmed: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that `spectrim trim --undo` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist yet.")],
) -> None:
    """Write the original files again, byte for byte, from a trimmed folder and what was kept in it."""
    from ..undo import undo as run

    say(f"restored: {run(trimmed, output)}")


def audit(
    folders: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Folders that `spectrim trim` wrote.")],
    batch: Annotated[int, typer.Option(min=1, help="Positions at a time.")] = 32,
    json: Json = None,
) -> None:
    """Show what trimmed folders of one model take beside it: disk, memory, multiply-adds, measured time."""
    import json as js
    from dataclasses import asdict

    import torch

    from ..footprint import footprints

    places(json=json)
    found = footprints(folders, batch)
    if written(json, js.dumps([asdict(row) for row in found], indent=1)):
        return
    columns = [
        ("folder", "left", [row.name for row in found]),
        ("shape", "left", [row.shape for row in found]),
        ("disk", "right", [f"{row.disk:,}" for row in found]),
        ("memory", "right", [f"{row.memory:,}" for row in found]),
        ("multiply-adds", "right", [f"{row.macs:,}" for row in found]),
        ("ms", "right", [f"{row.latency:.2f}" for row in found]),
        ("of dense", "right", [f"{row.ratio:.2f}" for row in found]),
    ]
    tables.show(columns)
    threads = torch.get_num_threads()
    say(
        "bytes; multiply-adds for one position, and the time of the plan's matrices alone, one after the other: cpu, "
        f"{threads} thread{'s' * (threads > 1)}, {batch} positions, medians"
    )


def _report_of(model: str, done, html: Path) -> None:
    from ..audit import matrices_latency
    from ..edges import from_repr
    from ..survey import survey as run

    made_for = done.plan.model
    try:
        edge = from_repr(made_for.edge)
    except ValueError:  # a function of the user's own: the page names the one that stands in for it
        edge = None
    # As the plan's own survey was, but for vectors that it made no use of: they take their time.
    how = {"equalize": made_for.equalised, "vectors": any(e.also for e in done.plan.touched)}
    found = run(model, edge, fused=made_for.fused, **how, progress=bar("surveying"))
    split = any(e.action == "split" for e in done.plan.entries)
    audit = matrices_latency(done.plan) if split else {"before": {}, "after": {}}  # nothing else changes a speed
    audit["before"] |= {"params": done.params_before, "bytes": done.bytes_before}
    audit["after"] |= {"params": done.params_after, "bytes": done.bytes_after}
    audit["before"]["macs_position"] = sum(e.macs_before for e in done.plan.entries)
    audit["after"]["macs_position"] = sum(e.macs_after for e in done.plan.entries)
    with writing(html):
        found.to_html(html, plan=done.plan, changes=done, audit=audit)


def _show_changes(done) -> None:
    columns = [
        ("matrix", "left", [c.name for c in done]),
        ("action", "left", [c.action for c in done]),
        ("rank", "right", [figure(c.rank, "d") for c in done]),
        ("zeros", "right", [figure(c.zeros, ",") for c in done]),
        ("parameters", "right", [f"{c.params_before:,} -> {c.params_after:,}" for c in done]),
        ("error", "right", [f"{c.relative_error:.3f}" for c in done]),
    ]
    tables.show(columns)
    say(
        f"{len(done)} matrices trimmed; parameters {done.params_before:,} -> {done.params_after:,} "
        f"({done.params_after / done.params_before:.1%}), bytes {done.bytes_before:,} -> {done.bytes_after:,}"
    )


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist yet.")] = Path(
        "demo-out"
    ),
) -> None:
    """Do the main job on a real sentence encoder and real human judgements, offline: about two minutes on two cores."""
    from ..demo import run

    done = run(output, say=lambda text: err.print(f"- {text}", soft_wrap=True))
    scores = done.table()
    heads = [(name, "right" if i else "left") for i, name in enumerate(scores["columns"])]
    columns = [(*head, [row[i] for row in scores["rows"]]) for i, head in enumerate(heads)]
    tables.show(columns, title="all-MiniLM-L6-v2")
    say(scores["caption"])
    say(done.verdict())
    worst = max(done.reload.values())
    say(f"Saved, loaded again in a fresh process without spectrim: outputs agree to {worst:.1e}.")
    say(f"report: {done.report}")
