"""What every engine takes: a task that names its matrix. And what they share: cores, order, and memory in flight."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from threadpoolctl import threadpool_limits

R = TypeVar("R")
GIB = 2**30
LOOK = 100  # tasks that are looked through for one that fits: all of 30,000 would cost milliseconds each time


@dataclass(frozen=True)
class Task:
    """One matrix to be worked on, by its name. It holds no tensor, so that it costs nothing to send it elsewhere.

    Args:
        key: of the result, unique in a run.
        cost: relative time, >= 0: p**2 n for a spectrum.
        memory: bytes that the work needs at its peak, >= 0.
        payload: what the work needs to find the matrix: names of files and tensors; small, and picklable.

    Example:
        >>> Task("h.0.mlp", cost=768**2 * 3072, memory=2**24, payload=("model.safetensors", "h.0.mlp.weight")).key
        'h.0.mlp'
    """

    key: str
    cost: float
    memory: int
    payload: Any = None

    def __post_init__(self):
        for name in ("cost", "memory"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"the {name} of {self.key} is a finite number from 0 up, not {value}")


class Executor(Protocol):
    """Anything that can run tasks: `Local` and `Ray` do, and so does an object of your own with this one method."""

    def run(self, work: Callable[[Task], R], tasks: Sequence[Task]) -> Iterator[tuple[Task, R]]:
        """Return an iterator over each task with its result, as they come, in any order.

        What cannot be run at all raises ValueError at once; an exception of `work` is raised with the task's key as a
        note, and ends the run.
        """


def in_order(tasks: Sequence[Task], memory: int, where: str) -> list[Task]:
    """Return the tasks, longest first, those of equal cost as they stand.

    Raises ValueError where two have one key, or where one alone needs more than `memory` bytes; `where` says of what
    this is the limit, and how it is raised.
    """
    met: set[str] = set()
    for task in tasks:
        if task.key in met:
            raise ValueError(f"two tasks have the key {task.key!r}: a result belongs to one of them")
        met.add(task.key)
    wide = sorted((t for t in tasks if t.memory > memory), key=lambda task: -task.memory)
    if wide:
        others = f" (so do {len(wide) - 1} more)" if wide[1:] else ""
        raise ValueError(
            f"{wide[0].key} needs {wide[0].memory / GIB:.3g} GiB while it is worked on{others}, and "
            f"{memory / GIB:.3g} GiB is {where}"
        )
    return sorted(tasks, key=lambda task: -task.cost)


def cores_of(tasks: Collection[Task], cores: int, memory: int) -> dict[str, int]:
    """Return how many of the cores each task takes, by its key: one, where enough others can run beside it.

        beside = min(cores, memory / task.memory, sum of costs / task.cost),   cores // beside

    One decomposition on t cores takes more than 1/t of its time on one, so each core has a matrix of its own as long
    as there are enough of them and the memory holds them. A matrix of which the memory holds only three takes a third
    of the cores, and so does one that takes a third of all the time; else it would run on when the others are done.

    Example:
        >>> small, large = [Task(f"h.{i}", cost=1, memory=1) for i in range(9)], Task("wte", cost=9, memory=50)
        >>> cores_of([*small, large], cores=8, memory=100)["wte"], cores_of(small, cores=8, memory=100)["h.0"]
        (4, 1)
    """
    total = sum(task.cost for task in tasks)

    def beside(task: Task) -> int:
        by_memory = memory // task.memory if task.memory else cores
        by_time = total / task.cost if task.cost else cores
        return max(1, int(min(cores, by_memory, by_time)))

    return {task.key: cores // beside(task) for task in tasks}


class Waiting:
    """The tasks that are not begun, and the cores and the memory of those that are.

    `take` gives the longest task. Where it does not fit, one of the next that does may overtake it; but after as many
    overtakings as there are cores nothing is begun until it fits. So it waits for tasks in flight, and for so
    many more, and not for ever.
    """

    def __init__(self, tasks: Sequence[Task], taken: dict[str, int], cores: int, memory: int):
        self.cores, self.memory, self.patience = cores, memory, cores
        self.waiting = list(reversed(tasks))  # the next one is the last, where a list is cheap to shorten
        self.needs = {task.key: (taken[task.key], task.memory) for task in tasks}
        self.least = min((task.memory for task in tasks), default=0)
        self.free_cores, self.free_memory, self.overtaken = cores, memory, 0

    def __len__(self) -> int:
        return len(self.waiting)

    def take(self) -> Task | None:
        """Return a task to begin now, or None where nothing fits beside what is in flight, or nothing is left."""
        if not self.free_cores or self.free_memory < self.least:
            return None
        last = len(self.waiting) - 1
        for i in range(last, max(-1, last - LOOK), -1):
            if self._fits(self.waiting[i]):
                self.overtaken = 0 if i == last else self.overtaken + 1
                task = self.waiting.pop(i)
                self._count(task, -1)
                return task
            if self.overtaken >= self.patience:
                return None
        return None

    def done(self, task: Task) -> None:
        """Take back the cores and the memory of a task that has ended."""
        self._count(task, +1)

    def again(self, task: Task) -> None:
        """Put a task back that was killed: it is the next to begin, and has the whole machine to itself."""
        self.done(task)
        self.needs[task.key] = (self.cores, self.memory)
        self.waiting.append(task)
        self.overtaken = self.patience

    def _fits(self, task: Task) -> bool:
        cores, memory = self.needs[task.key]
        return cores <= self.free_cores and memory <= self.free_memory

    def _count(self, task: Task, sign: int) -> None:
        cores, memory = self.needs[task.key]
        self.free_cores += sign * cores
        self.free_memory += sign * memory


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Hold torch and the numerical libraries of this process to `count` threads; what was set before is put back."""
    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def named(error: BaseException, task: Task) -> BaseException:
    """Return the error with the key of its task as a note."""
    error.add_note(f"in the task {task.key}")
    return error
