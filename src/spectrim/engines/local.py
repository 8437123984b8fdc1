"""The engine for one machine: its cores share the tasks, in threads or in processes, within a limit of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import torch

from .free import SHARE, free_memory
from .processes import in_processes
from .task import R, Task, Waiting, cores_of, in_order, named, threads


@dataclass(frozen=True)
class Local:
    """Runs tasks on this machine, longest first; the memory of those in flight stays within a limit.

    A task that does not fit beside those in flight waits, and shorter ones that fit overtake it, as many at most as
    there are workers. The limit is on what the tasks say that they need; the program itself comes on top of it.

    Threads share what `work` sees, so it may be any function. They cannot be stopped: an error or Ctrl-C ends the run
    when the tasks in flight are done. Processes start with nothing but the package: `work` has to be a function that
    they can import, and a script keeps its own statements under `if __name__ == "__main__":`. An error or Ctrl-C ends
    them at once. One that is killed, by the system that is out of memory for instance, is replaced, and its task is
    worked on again with nothing beside it; after so many retries RuntimeError names the task.

    Args:
        workers: number of cores to use, >= 1; as many as torch has threads unless told otherwise.
        memory: bytes for all tasks in flight together; half of what is free as the run begins unless told otherwise.
        processes: whether each worker is a process of its own.
        retries: how often a task is begun again when its process was killed, >= 0.

    Example:
        >>> tasks = [Task("a", cost=1, memory=100), Task("b", cost=8, memory=100)]
        >>> sorted((task.key, value) for task, value in Local(memory=1000).run(lambda task: 2 * task.cost, tasks))
        [('a', 2), ('b', 16)]
    """

    workers: int | None = None
    memory: int | None = None
    processes: bool = False
    retries: int = 2

    def __post_init__(self):
        for name, least in (("workers", 1), ("memory", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is a whole number from {least} up, not {value}")

    def run(self, work: Callable[[Task], R], tasks: Sequence[Task]) -> Iterator[tuple[Task, R]]:
        """Return an iterator over each task with its result, as they come. See `Executor`."""
        workers = self.workers or torch.get_num_threads()
        told = self.memory is not None
        memory = self.memory if told else int(SHARE * free_memory())
        means = "the limit" if told else f"the limit, {SHARE:.0%} of the memory that is free, as none was given"
        ordered = in_order(tasks, memory, f"{means}: raise it (memory=, --memory), or use a larger machine")
        taken = cores_of(ordered, workers, memory)
        if self.processes:
            return in_processes(work, Waiting(ordered, taken, workers, memory), self.retries)
        return _in_threads(work, ordered, taken, workers, memory)


def _in_threads(
    work: Callable[[Task], R], tasks: list[Task], taken: dict[str, int], workers: int, memory: int
) -> Iterator[tuple[Task, R]]:
    """Yield the results, first of the tasks that run one by one on all cores, then of those that run side by side.

    The libraries have one number of threads for the whole process, so here a task takes one core or all of them: all
    where it would take the root of their number, about what a decomposition gains from so many.
    """
    alone = [task for task in tasks if taken[task.key] ** 2 >= workers > 1]
    for task in alone:
        with threads(workers):
            result = _tried(partial(work, task), task)
        yield task, result
    one_by_one = {task.key for task in alone}
    shared = [task for task in tasks if task.key not in one_by_one]
    if not shared:
        return
    waiting = Waiting(shared, dict.fromkeys(taken, 1), workers, memory)
    flying: dict[Future, Task] = {}
    with threads(1):
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            ended: set[Future] = set()
            while True:
                failed = {future for future in ended if future.exception() is not None}
                while not failed and (task := waiting.take()) is not None:
                    flying[pool.submit(work, task)] = task
                for future in (*(ended - failed), *failed):  # results first
                    yield (task := flying.pop(future)), _tried(future.result, task)
                if not flying:
                    return
                ended = wait(flying, return_when=FIRST_COMPLETED).done
                for future in ended:
                    waiting.done(flying[future])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _tried(call: Callable[[], R], task: Task) -> R:
    try:
        return call()
    except BaseException as error:
        named(error, task)
        raise
