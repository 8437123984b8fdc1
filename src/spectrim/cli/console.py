"""What every command needs of the terminal: errors with an exit status, a progress bar, files, lines of text."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..checkpoint import write_whole

out = Console()
err = Console(stderr=True)


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


def bar(text: str) -> Callable[[Iterable], Iterable]:
    """Return a progress bar over layers; nothing at all where there is no terminal to show it."""

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


def written(path: Path | None, text: str) -> bool:
    """Write text to a file, or to standard output for `-`; true if standard output is taken by it."""
    if path is None:
        return False
    if str(path) == "-":
        sys.stdout.write(text + "\n")
        return True
    write_whole(path, text + "\n")
    return False


def places(*paths: Path | None) -> None:
    """Refuse, before the work and not after it, to write where there is no folder."""
    for path in paths:
        if path is not None and str(path) != "-" and not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} to write {path.name} into")


def figure(x: float | None, form: str = ".4g") -> str | None:
    """Return the figure as text, None where there is none."""
    return None if x is None else format(x, form)


def say(text: str) -> None:
    """Show a line of plain text, as long as it is."""
    out.print(escape(text), soft_wrap=True)
