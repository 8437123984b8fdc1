"""The command that compares methods on a task: sweep."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import tables
from .console import bar, err, figure, places, say, writing, written
from .options import Html, Json


def sweep(
    model: Annotated[
        str | None,
        typer.Argument(
            help="What the task makes of it: a folder or file, a name; some tasks need none.", metavar="MODEL"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="FILE.py[:FUNCTION]", help="The task. This Python file is executed: read it first."
        ),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the task; may be repeated.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods by name, with commas between; the controls are always there. (default: all budgets)"
        ),
    ] = None,
    rates: Annotated[str, typer.Option(help="Shares of the entries to go, with commas between.")] = (
        ".2,.3,.4,.5,.6,.7,.8"
    ),
    seed: Annotated[int, typer.Option(help="Seed of whatever draws: the random control, the bootstrap.")] = 0,
    bootstrap: Annotated[int, typer.Option(help="Draws behind a standard error.")] = 1000,
    work: Annotated[
        Path | None, typer.Option(help="Folder for finished cells: a sweep that was stopped goes on from there.")
    ] = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Measure methods at several rates on a task: scores with errors, paired differences to controls, counts, seconds.

    The task is a Python file with a function task(model, **options); docs/sweep.md shows how to write one.
    """
    from ..sweep.methods import complete, defaults, named

    if task is None:
        raise ValueError("name the task: --task FILE.py, a Python file with a function task(model, **options)")
    chosen = defaults() if methods is None else named(_listed(methods, "--methods"))
    shares = _shares(rates)
    places(html=html, json=json)
    if work is not None and work.exists() and not work.is_dir():
        raise ValueError(f"--work {work} is a file: name a folder")
    given = _options(options or [])
    make, file = load_task(task)
    done, stopped = _run(_made(make, model, given, file), chosen, shares, seed, bootstrap, work, model, given, file)
    taken = written(json, done.to_json())
    if html:
        with writing(html):
            done.to_html(html)
    if not taken:
        _show(done)
        if html:
            say(f"report: {html}")
    if stopped:
        go_on = "the same command goes on from there" if work else "with --work DIR the next one could go on from there"
        cells = len(complete(chosen)) * len(done.rates)
        err.print(f"stopped after {len(done)} of {cells} cells; {go_on}", soft_wrap=True)
        raise typer.Exit(130)
    if done.failed:
        raise typer.Exit(1)


def _run(task, methods, rates, seed, bootstrap, work, model, given, file):
    """The sweep, and whether Ctrl-C ended it."""
    from ..sweep.run import Stopped, sweep

    told = {"MODEL": model or "", **given, "task file": file.name, "task sha256": _sha256(file)}
    try:
        return sweep(
            task, methods, rates, seed=seed, bootstrap=bootstrap, work=work, progress=bar("sweeping"), options=told
        ), False
    except Stopped as stop:
        return stop.sweep, True


def load_task(given: str) -> tuple[Callable, Path]:
    """Return the function that makes the task, and its file: FILE.py or FILE.py:function. The file is executed.

    A file inside a package (a folder with __init__.py) is imported as part of it, any other as a script is: what stands
    beside it, and in the current folder, can be imported.
    """
    path, colon, name = given.rpartition(":")
    if not colon or not name.isidentifier():
        path, name = given, "task"
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--task {given}: there is no file {path}")
    if file.suffix != ".py":
        raise ValueError(f"--task {given}: a task is a Python file, FILE.py or FILE.py:function")
    module = _imported(file.resolve())
    make = getattr(module, name, None)
    if not callable(make):
        there = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise ValueError(
            f"{path} has no function {name!r}: write `def {name}(model, **options)` there, or name another, "
            f"--task {path}:NAME ({', '.join(there) or 'it has no functions'})"
        )
    return make, file


def _imported(file: Path):
    from ..sweep.checking import told

    top, parts = file.parent, [file.stem]
    while (top / "__init__.py").is_file():
        parts.insert(0, top.name)
        top = top.parent
    if str(top) not in sys.path:
        sys.path.insert(0, str(top))
    if not {"", os.getcwd()} & set(sys.path):  # as `python -m spectrim` has it
        sys.path.append(os.getcwd())
    try:
        if len(parts) > 1:
            return importlib.import_module(".".join(parts))
        name = "spectrim_task_" + re.sub(r"\W", "_", file.stem)  # never in the way of a module of the same name
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ImportError:  # it says itself what is missing
        raise
    except Exception as error:
        raise RuntimeError(f"{file} could not be executed: {told(error)}") from error


def _made(make: Callable, model: str | None, given: dict[str, str], file: Path):
    from ..sweep.checking import told

    try:
        inspect.signature(make).bind(model, **given)
    except TypeError as error:
        names = [p.name for p in inspect.signature(make).parameters.values()]
        raise ValueError(
            f"{file.name}: {make.__name__}({', '.join(names)}) cannot be called with MODEL and --set "
            f"{' '.join(f'{k}={v}' for k, v in given.items()) or '(nothing)'}: {error}"
        ) from None
    try:
        return make(model, **given)
    except (ValueError, TypeError, ImportError, OSError):  # what the user can put right: it says so itself
        raise
    except Exception as error:
        raise RuntimeError(f"{file.name}: {make.__name__}() failed: {told(error)}") from error


def _options(given: list[str]) -> dict[str, str]:
    out = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set takes NAME=VALUE, not {pair!r}: --set data=/path/to/data")
        if name in out:
            raise ValueError(f"--set {name} was given twice")
        out[name] = value
    return out


def _listed(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"{option} {text!r} names nothing: leave it out for the default")
    return names


def _shares(text: str) -> list[float]:
    try:
        found = [float(x) for x in _listed(text, "--rates")]
    except ValueError:
        raise ValueError(f"--rates takes shares with commas between, such as .5,.6, not {text!r}") from None
    if wrong := [x for x in found if not 0 < x < 1]:
        raise ValueError(f"--rates lie in (0, 1), not {', '.join(f'{x:g}' for x in wrong)}: 0.5 means one half")
    return found


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _show(done) -> None:
    """One line a cell, the headline first, and what a reader must know of the comparison below."""
    head = done.headline
    cells = [done.dense, *done.cells]

    def of(cell, name: str) -> str | None:
        if name not in cell.scores:
            return None
        found = cell.scores[name]["all"]
        return f"{found.value:.4g} ± {found.error:.2g}"

    def against(cell) -> str | None:
        gain = cell.scores[head]["all"].gains.get("global magnitude") if cell.scores else None
        return gain and f"{gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]"

    columns = [
        ("method", "left", [c.method for c in cells]),
        ("asked", "right", [f"{c.rate:.0%}" if c.rate else None for c in cells]),
        ("gone", "right", [figure(c.achieved, ".2%") for c in cells]),
        *((name, "right", [of(c, name) for c in cells]) for name in done.scores),
        ("over global magnitude", "right", [against(c) for c in cells]),
        ("stored", "right", [figure(c.counts and c.counts.params, ",") for c in cells]),
        ("not zero", "right", [figure(c.counts and c.counts.nonzeros, ",") for c in cells]),
        ("MACs, zeros free", "right", [_macs(c, "macs_nonzero", done.items) for c in cells]),
        ("MACs executed", "right", [_macs(c, "macs_executed", done.items) for c in cells]),
        ("seconds", "right", [f"{sum(c.seconds):.1f}" for c in cells]),
        ("note", "prose", [c.failed or c.flag for c in cells]),
    ]
    spare = ("seconds", "stored", "not zero", "MACs executed", "MACs, zeros free")
    tables.show(columns, spare, done.task, tuple(done.scores)[1:])
    blank = [f"{rate:.0%}" for rate in done.rates if not done.counts_at(rate)]
    if blank:
        say(f"At {', '.join(blank)} no method is two standard errors above chance: differences there say nothing.")
    for note in done.notes:
        say(note)
    say("Over global magnitude: in pairs, with a 95 % interval. MACs are those of the weights, for one item.")
    say("Zeros save no time on ordinary hardware: what is executed is the last of the two counts.")
    if done.failed:
        say(f"{len(done.failed)} of {len(done)} cells failed.")


def _macs(cell, key: str, items: int) -> str | None:
    if cell.counts is None:
        return None
    return f"{getattr(cell.counts, key) / items:,.0f}"
