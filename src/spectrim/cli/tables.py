"""Tables of matrices: what a terminal can hold of them, and all of it in a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from .console import out, printable

MISSING = "–"  # on a terminal; a pipe gets an empty field, which other programs read as no figure
SHORTEST = 24  # characters of a name that are worth more than a column that can be spared
TOLD = 16  # characters of a name that tell most rows apart: for them the last columns go
LEAST = 12  # characters of a name at least
PROSE = 18  # characters at least of a column that may wrap
# Two short lines take less width than one long one.
BROKEN = {
    "gavish-donoho": "gavish-\ndonoho",
    "broadening": "broad-\nening",
    "screenot": "scree-\nnot",
    "bema-gamma": "bema-\ngamma",
    "shuffled": "shuf-\nfled",
    "structured": "struc-\ntured",
}
Column = tuple[str, str, Sequence[str | None]]


def show(columns: Sequence[Column], spare: Sequence[str] = (), title: str = "", last: Sequence[str] = ()) -> None:
    """Show a table of (heading, justify, cells); the first column holds names, and a cell that is None no figure.

    Justify is "right" (figures), "left" (words) or "prose" (what may wrap). A pipe gets all of it, tab-separated. A
    narrow terminal goes without the columns of `spare`, one after the other, then without the middle of names, and then
    without the columns of `last`. What would move a cursor or break a line is shown as an escape.
    """
    columns = [
        (name, justify, [None if cell is None else printable(cell) for cell in cells])
        for name, justify, cells in columns
    ]
    if not out.is_terminal:
        sys.stdout.write("\t".join(name for name, _, _ in columns) + "\n")
        for cells in zip(*(cells for _, _, cells in columns), strict=True):
            sys.stdout.write("\t".join(cell or "" for cell in cells) + "\n")
        return
    names = shortened(columns[0][2]) if columns[0][0] == "matrix" else columns[0][2]
    names, rest = fitted(names, [head for head in columns[1:] if any(head[2])], spare, out.width, last)
    shown = Table(title=escape(printable(title)) or None, box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column(columns[0][0], no_wrap=True)
    for name, justify, _ in rest:
        shown.add_column(name, justify="right" if justify == "right" else "left", no_wrap=justify != "prose")
    for cells in zip(names, *(cells for _, _, cells in rest), strict=True):
        shown.add_row(*(MISSING if cell is None else escape(cell) for cell in cells))
    out.print(shown)


def fitted(
    names: Sequence[str], columns: Sequence[Column], spare: Sequence[str], width: int, last: Sequence[str] = ()
) -> tuple[list[str], list[Column]]:
    """Return the names and the columns that so many characters hold.

    Example:
        >>> names, columns = ["0.attention.output.dense"], [("edge", "right", ["1.254"]), ("kind", "left", ["linear"])]
        >>> fitted(names, columns, ["kind"], 60)[0], fitted(names, columns, ["kind"], 30)
        (['0.attention.output.dense'], (['0.…ntion.output.dense'], [('edge', 'right', ['1.254'])]))
    """
    columns = list(columns)

    def room() -> int:
        wide = (
            max(len(text or MISSING) for text in (*BROKEN.get(name, name).split("\n"), *cells))
            for name, _, cells in columns
        )
        wrapped = (min(w, PROSE) if head[1] == "prose" else w for w, head in zip(wide, columns, strict=True))
        return width - sum(wrapped) - 3 * (len(columns) + 1) + 2

    longest = max(map(len, names), default=0)
    for enough, headings in ((SHORTEST, spare), (TOLD, last)):
        for heading in headings:
            if room() < min(longest, enough):
                columns = [head for head in columns if head[0] != heading]
    return [_clipped(name, max(room(), LEAST)) for name in names], [
        (BROKEN.get(name, name), justify, cells) for name, justify, cells in columns
    ]


def shortened(names: Sequence[str]) -> list[str]:
    """Return the names without what they share: the start of the path, and the word for a block before its number."""
    from ..report.labels import short_names

    names = short_names(list(names))
    # "layer.0.key" is "0.key" where every block is a layer.
    words = {found[1] for name in names if (found := re.match(r"(\w+)\.\d+\.", name))}
    return [re.sub(r"^\w+\.(\d+\.)", r"\1", name) for name in names] if len(words) == 1 else names


def _clipped(name: str, room: int) -> str:
    """The number of the block and the end say which matrix it is; what lies between can go."""
    if len(name) <= room:
        return name
    start = re.match(r"(?:\d+\.)?", name)[0]
    return f"{start}…{name[len(name) - room + len(start) + 1 :]}"
