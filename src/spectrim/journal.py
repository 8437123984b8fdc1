"""A journal of what is done of a long work, so that it goes on where it was when it is killed and started again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType

LINES, LOCK = "journal.jsonl", "lock"
OWN = (LOCK, "pieces", "whole", "shaped", LINES)  # all that may stand in the folder of a journal; removed in this order


class Journal:
    """A folder of finished pieces, and a file with a line for each: `done` has what the lines say, by key.

    A line is on disk before the next piece is begun, and a piece before its line. A last line that was cut short counts
    for nothing. Where the folder belongs to another work, everything in it goes, and `fresh` says why.

    Args:
        folder: of the work; made if it is not there. One process at a time holds it.
        work: what tells this work from another one, as JSON: its input, what is done with it, the versions.

    Raises:
        BlockingIOError: another process holds the folder.
    """

    def __init__(self, folder: Path, work: dict) -> None:
        self.folder = folder
        if folder.exists() and (strange := [f.name for f in folder.iterdir() if f.name not in OWN]):
            raise ValueError(f"{folder} holds {strange[0]}, which is no part of a journal: name a folder of its own")
        fresh = not folder.exists()
        self.done: dict[str, dict] = {}
        self.work, self.fresh = json.loads(json.dumps(work)), ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hold()
            self._begin()
        except BlockingIOError:  # it is another process's
            raise
        except BaseException:  # Ctrl-C, a full disk: nothing is done yet
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _hold(self) -> None:
        self._lock = open(self.folder / LOCK, "w")  # noqa: SIM115 - held until the work ends
        try:
            import fcntl

            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(self.folder / LOCK).st_ino if (self.folder / LOCK).exists() else None
            if there != os.fstat(self._lock.fileno()).st_ino:  # who held it has removed it in this moment
                raise BlockingIOError
        except BlockingIOError:
            self._lock.close()
            raise BlockingIOError(f"{self.folder} is in use: another process does this work now") from None
        except (OSError, ImportError):  # a file system, or a system, that has no such locks
            pass

    def _begin(self) -> None:
        file = self.folder / LINES
        lines, whole = _lines(file)
        if lines and lines[0] == self.work:
            self.done = {line["key"]: line for line in lines[1:]}
            os.truncate(file, whole)
        else:
            if lines:
                self.fresh = _difference(lines[0], self.work)
            self.clear()
        self._out = open(file, "a")  # noqa: SIM115 - held until the work ends
        if not lines or self.fresh:
            self._append(self.work)

    def add(self, key: str, record: dict) -> None:
        """Write that a piece is done; it is on disk when this returns."""
        line = {"key": key, **record}
        self._append(line)
        self.done[key] = json.loads(json.dumps(line))

    def forget(self, key: str) -> None:
        """Take a piece for one that is not done: its file is gone, or is not what the line says."""
        self.done.pop(key, None)

    def clear(self) -> None:
        """Remove everything from the folder: nothing of it is done."""
        self.done = {}
        for name in OWN[1:]:
            found = self.folder / name
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            else:
                found.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder and all in it, while it is still held: nobody else can have begun in it."""
        self.clear()
        (self.folder / LOCK).unlink(missing_ok=True)
        self.folder.rmdir()

    def close(self) -> None:
        """Let go of the folder, as it is."""
        self._out.close()
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, line: dict) -> None:
        self._out.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._out.flush()
        os.fsync(self._out.fileno())


def _lines(file: Path) -> tuple[list[dict], int]:
    """The lines of a journal and how many bytes of it are whole lines."""
    found: list[dict] = []
    whole = 0
    if not file.exists():
        return found, whole
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            read = json.loads(line)
        except ValueError:
            break
        if not isinstance(read, dict) or (found and "key" not in read):
            break
        found.append(read)
        whole += len(line)
    return found, whole


def _difference(before: dict, now: dict) -> str:
    """What of a work is another than that of the journal, for a message."""
    return ", ".join(sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)))
