"""How much memory a process may still take on this machine, or in the container that it runs in."""

from __future__ import annotations

import os
import re
from pathlib import Path

SHARE = 0.5  # of the free memory, where no limit is given: what tasks say that they need are estimates
UNKNOWN = 4 * 2**30  # where the system says nothing of its memory


def free_memory(root: Path = Path("/")) -> int:
    """Return how many bytes are free: of the machine, or of its control group where that leaves less.

        min(MemAvailable, limit - (usage - inactive file pages))   over the group of this process and those above it

    Pages of files that were read count as free: the kernel drops them. Both versions of control groups are read, as a
    container shows them (its own group at the top) and as the host does. Where there is no /proc, it is the memory of
    the machine, and where that is unknown too, 4 GiB.

    Args:
        root: the folder that stands for "/".
    """
    found = [_available(root), *(_left(group, *files) for group, *files in _groups(root))]
    known = [amount for amount in found if amount is not None]
    return max(0, min(known, default=UNKNOWN))


def _available(root: Path) -> int | None:
    told = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), flags=re.MULTILINE)
    if told:
        return int(told[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _groups(root: Path) -> list[tuple[Path, str, str, str]]:
    """The folders of this process's control groups for memory, with the names of their files, upwards from its own."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            top, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = top / path.strip("/")
        found += [(group, *files) for group in (own, *own.parents) if group == top or top in group.parents]
    return found


def _left(group: Path, limit: str, usage: str, inactive: str) -> int | None:
    allowed, used = _text(group / limit).strip(), _text(group / usage).strip()
    if not (allowed.isdigit() and used.isdigit()):  # "max", or no such group to be seen from here
        return None
    pages = re.search(rf"^{inactive} (\d+)$", _text(group / "memory.stat"), flags=re.MULTILINE)
    return int(allowed) - int(used) + (int(pages[1]) if pages else 0)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
