"""What every command needs of the terminal: errors with an exit status, a progress bar, files, lines of text."""

from __future__ import annotations

import functools
import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Never

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..writing import write_whole


class _Console(Console):
    def on_broken_pipe(self) -> Never:
        raise  # what rich is handling: `guarded` ends all commands in one way


out = _Console()
err = _Console(stderr=True)
FILES = {"json": "figures.json", "html": "report.html", "output": "plan.json"}
# Characters that move a cursor, colour a screen or break a line, where only a name should stand.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def guarded(command: Callable) -> Callable:
    """Return the command with its errors turned into one line and an exit status: 2 a wrong request, 1 failed work."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            done = command(*args, **kwargs)
            sys.stdout.flush()  # here, where a reader that has gone is no news
            return done
        except typer.Exit:  # a RuntimeError, with the status that the command chose
            raise
        except KeyboardInterrupt as stop:
            told = getattr(stop, "__notes__", None) or ["nothing was left half written"]
            err.print(escape("; ".join(["stopped", *told])), soft_wrap=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _leave()
        except (ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError, ImportError) as error:
            _fail(error, 2)
        except (OSError, RuntimeError, MemoryError) as error:
            _fail(error, 1)

    # Typer reads the options from here, and would not look through the wrapper.
    run.__signature__ = inspect.signature(command, eval_str=True)
    run.__annotations__ = inspect.get_annotations(command, eval_str=True)
    return run


def _leave() -> Never:
    """End in silence because nobody reads on, with the status that a shell gives to those that SIGPIPE ends."""
    with suppress(OSError, ValueError):  # else the interpreter flushes what is left into the broken pipe, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(128 + signal.SIGPIPE)


def _fail(error: Exception, status: int) -> Never:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = "\n".join([text, *getattr(error, "__notes__", [])])
    lines = "\n".join(map(printable, text.split("\n")))
    err.print(f"[bold red]error[/]: {escape(lines)}", soft_wrap=True)
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
    with writing(path):
        write_whole(path, text + "\n")
    return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the path that was asked for in whatever keeps it from being written: work that failed, no wrong request."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror or error}") from error


def places(**paths: Path | None) -> None:
    """Refuse, before the work and not after it, to write where no file can be; the names are those of the options."""
    for option, path in paths.items():
        if path is None or (str(path) == "-" and option != "html"):
            continue
        if str(path) == "-":
            raise ValueError("--html - would fill the screen with a page: name a file, for instance --html report.html")
        if path.is_dir():
            raise ValueError(f"--{option} {path} is a folder: name a file, for instance {path / FILES[option]}")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} to write {path.name} into")


def figure(x: float | None, form: str = ".4g") -> str | None:
    """Return the figure as text, None where there is none."""
    return None if x is None else format(x, form)


def printable(text: str) -> str:
    r"""Return the text with control characters as escapes, so that a name can neither break nor colour a line.

    Example:
        >>> print(printable("a\tb\x1b[31m"))
        a\tb\x1b[31m
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def say(text: str) -> None:
    """Show a line of plain text, as long as it is."""
    out.print(escape(printable(text)), soft_wrap=True)
