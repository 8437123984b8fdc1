"""The command line: survey, plan, trim, demo. Tables and progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .checkpoint import write_whole

app = typer.Typer(
    name="spectrim",
    help="Tell signal from noise in the weights of a trained network, and trim the noise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 stopped by Ctrl-C.",
)
out = Console()
err = Console(stderr=True)


class EdgeName(StrEnum):
    """The estimators that need no further figure."""

    bema = "bema"
    median = "median"


class Fused(StrEnum):
    """How weights that hold several matrices are read."""

    split = "split"
    whole = "whole"
    heads = "heads"


class BasisName(StrEnum):
    """In which basis ranks are cut."""

    plain = "plain"
    equalised = "equalised"


Model = Annotated[
    str,
    typer.Argument(
        help="Folder or file of safetensors, transformers folder, or state dict (.pt, .pth, .bin).", metavar="MODEL"
    ),
]
Edge = Annotated[EdgeName, typer.Option("--edge", help="Estimator of the noise edge.")]
Alpha = Annotated[float, typer.Option(help="BEMA: share of the spectrum left out at each end of the fit, in [0, 0.5).")]
Beta = Annotated[float, typer.Option(help="Share of pure-noise matrices in which a spike may be seen, in (0, 1).")]
FusedOption = Annotated[
    Fused, typer.Option("--fused", help="Read fused weights as q, k, v and gates, whole, or by heads.")
]
Plain = Annotated[
    bool, typer.Option("--no-equalize", help="Judge matrices as they are, row and column scales included.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report to this file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file; - for standard output.")]


def guarded(command: Callable) -> Callable:
    """Return the command with its errors turned into one line and an exit status: 2 a wrong request, 1 failed work."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("stopped; nothing was left half written")
            raise typer.Exit(130) from None
        except (ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError, ImportError) as error:
            _fail(error, 2)
        except (OSError, RuntimeError, MemoryError) as error:
            _fail(error, 1)

    # Typer reads the options from here, and would not look through the wrapper.
    run.__signature__ = inspect.signature(command, eval_str=True)
    run.__annotations__ = inspect.get_annotations(command, eval_str=True)
    return run


def _fail(error: Exception, status: int) -> None:
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) and error.filename:
        text = f"{error.strerror}: {error.filename}"
    err.print(f"[bold red]error[/]: {escape(text)}", soft_wrap=True)
    raise typer.Exit(status)


def _bar(text: str) -> Callable[[Iterable], Iterable]:
    """A progress bar over layers; nothing at all where there is no terminal to show it."""

    def wrap(items):
        items = list(items)
        if not err.is_terminal:
            yield from items
            return
        columns = (
            TextColumn(text),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[name]}"),
        )
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task(text, total=len(items), name="")
            for item in items:
                progress.update(task, name=escape(item.name))
                yield item
                progress.advance(task)

    return wrap


def _estimator(name: EdgeName, alpha: float, beta: float):
    from .edges import Bema, Median

    return Bema(alpha, beta) if name is EdgeName.bema else Median(beta)


def _surveyed(model: str, edge: EdgeName, alpha: float, beta: float, fused: Fused, no_equalize: bool):
    from .survey import survey as run

    estimator = _estimator(edge, alpha, beta)
    return run(model, estimator, equalize=not no_equalize, fused=fused.value, progress=_bar("surveying"))


def _written(path: Path | None, text: str) -> bool:
    """Write text to a file, or to standard output for `-`; true if standard output is taken by it."""
    if path is None:
        return False
    if str(path) == "-":
        sys.stdout.write(text + "\n")
        return True
    write_whole(path, text + "\n")
    return False


def _places(*paths: Path | None) -> None:
    """Refuse, before the work and not after it, to write where there is no folder."""
    for path in paths:
        if path is not None and str(path) != "-" and not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} to write {path.name} into")


def _table(columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[str]], **more) -> None:
    if not out.is_terminal:  # for pipes: tab-separated, nothing cut
        sys.stdout.write("\t".join(name for name, _ in columns) + "\n")
        for row in rows:
            sys.stdout.write("\t".join(row) + "\n")
        return
    table = Table(**more)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=justify == "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)


@app.command()
@guarded
def survey(
    model: Model,
    edge: Edge = EdgeName.bema,
    alpha: Alpha = 0.2,
    beta: Beta = 0.1,
    fused: FusedOption = Fused.split,
    no_equalize: Plain = False,
    html: Html = None,
    json: Json = None,
) -> None:
    """Show for every weight matrix of MODEL its noise level, its noise edge and how many directions stand above it."""
    _places(html, json)
    found = _surveyed(model, edge, alpha, beta, fused, no_equalize)
    taken = _written(json, found.to_json())
    if html:
        found.to_html(html)
    if not taken:
        _show_survey(found)
        if html:
            out.print(f"report: {html}", soft_wrap=True)


def _show_survey(found) -> None:
    def row(r) -> list[str]:
        shape = f"{r.rows} x {r.cols}"
        if r.fit is None:
            return [r.name, r.kind, shape, "", "", "", "", "", r.note]
        plain = str(r.plain.spikes) if r.plain and r.spectrum.equalised else ""
        misfit = "" if r.fit.misfit is None else f"{r.fit.misfit:.3f}"
        return [
            r.name,
            r.kind,
            shape,
            f"{r.fit.sigma:.4g}",
            f"{r.fit.edge:.4g}",
            str(r.fit.spikes),
            plain,
            misfit,
            r.note,
        ]

    columns = [("matrix", "left"), ("kind", "left"), ("shape", "right"), ("sigma", "right"), ("edge", "right")]
    columns += [("spikes", "right"), ("plain", "right"), ("misfit", "right"), ("note", "left")]
    _table(columns, map(row, found.matrices), title=escape(found.model))
    reasons: dict[str, int] = {}
    for r in found.readings:
        if r.skipped:
            reasons[r.kind] = reasons.get(r.kind, 0) + 1
    t = found.totals
    share = f", {1 - t['bulk_share']:.1%} of {t['values']} values" if t["values"] else ""
    skipped = ", ".join(f"{n} {kind}" for kind, n in reasons.items())
    out.print(
        f"{t['fitted']} of {t['matrices']} matrices judged: {t['spikes']} spikes{share}. {found.params:,} parameters, "
        f"{t['params']:,} of them in these matrices. Skipped: {skipped or 'nothing'}. {found.seconds:.1f} s.",
        soft_wrap=True,
    )


@app.command()
@guarded
def plan(
    model: Model,
    params: Annotated[float | None, typer.Option(help="Share of the matrices' parameters to keep, in (0, 1].")] = None,
    zeros: Annotated[
        float | None, typer.Option(help="Share of the matrices' entries to set to zero, in (0, 1].")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The plan file to write; - for standard output.")
    ] = Path("plan.json"),
    dense: Annotated[
        bool, typer.Option("--dense", help="Rebuild matrices at lower rank in place, without splitting.")
    ] = False,
    basis: Annotated[
        BasisName, typer.Option(help="Cut ranks of matrices as they are, or evened out.")
    ] = BasisName.plain,
    edge: Edge = EdgeName.bema,
    alpha: Alpha = 0.2,
    beta: Beta = 0.1,
    fused: FusedOption = Fused.split,
    no_equalize: Plain = False,
    html: Html = None,
) -> None:
    """Decide what each matrix of MODEL may lose to reach a target, and write it down as a file to read and edit."""
    from .plan import plan as run

    if (params is None) == (zeros is None):
        raise ValueError(
            "give one target: --params 0.5 (share of parameters kept) or --zeros 0.5 (share of zero entries)"
        )
    for name, value in (("--params", params), ("--zeros", zeros)):  # before the work, not after it
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} lies in (0, 1], not {value}: 0.5 means one half")
    _places(output, html)
    found = _surveyed(model, edge, alpha, beta, fused, no_equalize)
    chosen = run(found, params=params, zeros=zeros, dense=dense, basis=basis.value)
    taken = _written(output, chosen.to_json())
    if html:
        found.to_html(html, plan=chosen)
    if not taken:
        _show_plan(chosen)
        out.print(f"plan: {output}" + (f"; report: {html}" if html else ""), soft_wrap=True)


def _show_plan(chosen) -> None:
    columns = [("matrix", "left"), ("shape", "right"), ("action", "left"), ("rank", "right")]
    columns += [("zeros", "right"), ("parameters", "right"), ("damage", "right"), ("reason", "left")]
    rows = (
        [
            e.name,
            f"{e.rows} x {e.cols}",
            e.action,
            "" if e.rank is None else str(e.rank),
            "" if e.zeros is None else f"{e.zeros:,}",
            f"{e.params_after:,}",
            "" if e.damage is None else f"{e.damage:.3f}",
            e.reason,
        ]
        for e in chosen.entries
    )
    _table(columns, rows, title=escape(chosen.model.label))
    out.print(escape(str(chosen).splitlines()[0]), soft_wrap=True)
    for note in chosen.notes:
        out.print(escape(note), soft_wrap=True)


@app.command()
@guarded
def trim(
    model: Model,
    plan: Annotated[Path, typer.Option("--plan", help="The plan to carry out.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist yet.")],
    html: Html = None,
    json: Json = None,
) -> None:
    """Carry out a plan on MODEL, check that what was planned was achieved, and write the result to a new folder."""
    import json as js

    from .plan import Plan
    from .trim import trim as run

    _places(html, json)
    done = run(model, Plan.from_json(plan), output, progress=_bar("trimming"))
    taken = _written(json, js.dumps(done.to_dict(), indent=1))
    if html:
        _report_of(model, done, html)
    if not taken:
        _show_changes(done)
        out.print(f"written: {output}" + (f"; report: {html}" if html else ""), soft_wrap=True)


def _report_of(model: str, done, html: Path) -> None:
    from .audit import matrices_latency
    from .survey import survey as run

    found = run(model, fused=done.plan.model.fused, progress=_bar("surveying"))
    split = any(e.action == "split" for e in done.plan.entries)
    audit = matrices_latency(done.plan) if split else {"before": {}, "after": {}}  # nothing else changes a speed
    audit["before"] |= {"params": done.params_before, "bytes": done.bytes_before}
    audit["after"] |= {"params": done.params_after, "bytes": done.bytes_after}
    audit["before"]["macs_position"] = sum(e.macs_before for e in done.plan.entries)
    audit["after"]["macs_position"] = sum(e.macs_after for e in done.plan.entries)
    found.to_html(html, plan=done.plan, changes=done, audit=audit)


def _show_changes(done) -> None:
    columns = [("matrix", "left"), ("action", "left"), ("rank", "right"), ("zeros", "right")]
    columns += [("parameters", "right"), ("error", "right")]
    rows = (
        [
            c.name,
            c.action,
            "" if c.rank is None else str(c.rank),
            "" if c.zeros is None else f"{c.zeros:,}",
            f"{c.params_before:,} -> {c.params_after:,}",
            f"{c.relative_error:.3f}",
        ]
        for c in done
    )
    _table(columns, rows)
    out.print(
        f"{len(done)} matrices trimmed; parameters {done.params_before:,} -> {done.params_after:,} "
        f"({done.params_after / done.params_before:.1%}), bytes {done.bytes_before:,} -> {done.bytes_after:,}",
        soft_wrap=True,
    )


@app.command()
@guarded
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist yet.")] = Path(
        "demo-out"
    ),
) -> None:
    """Do the main job on a real sentence encoder and real human judgements, offline: about two minutes on two cores."""
    from .demo import run

    done = run(output, say=lambda text: err.print(f"- {text}", soft_wrap=True))
    table = done.table()
    justify = ["left"] + ["right"] * (len(table["columns"]) - 1)
    _table(list(zip(table["columns"], justify, strict=True)), table["rows"], title="all-MiniLM-L6-v2")
    out.print(escape(table["caption"]), soft_wrap=True)
    out.print(escape(done.verdict()), soft_wrap=True)
    worst = max(done.reload.values())
    out.print(f"Saved, loaded again in a fresh process without spectrim: outputs agree to {worst:.1e}.", soft_wrap=True)
    out.print(f"report: {done.report}", soft_wrap=True)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from . import __version__

        out.print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        out.print(context.get_help())


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
