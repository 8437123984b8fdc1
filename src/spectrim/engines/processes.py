"""Workers that are processes, each at the end of a pipe: one that is killed costs its own task a second try.

The pool of the standard library (`concurrent.futures`) breaks as a whole when one of its processes dies, and does not
say on which task that one was; here each worker has a pipe of its own, whose end is the end of the worker.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from .task import R, Task, Waiting, named

READY = b"ready"  # what a worker says first


@dataclass
class _Ended:
    """A task with its result, or with what went wrong."""

    task: Task
    result: Any = None
    error: BaseException | None = None
    cause: BaseException | None = None


@dataclass(eq=False)
class _Worker:
    """A process and our end of its pipe; `task` is what it works on; `begun`: whether it has come as far as that."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None
    begun: bool = False


def in_processes(work: Callable[[Task], R], waiting: Waiting, retries: int) -> Iterator[tuple[Task, R]]:
    """Yield each task with its result, worked on by processes that are started as they are needed."""
    crew: list[_Worker] = []
    deaths: Counter[str] = Counter()
    ended: list[_Ended] = []
    try:
        while True:
            failed = any(one.error is not None for one in ended)
            while not failed and (task := waiting.take()) is not None:
                _hand_out(task, waiting.needs[task.key][0], work, crew)
            for one in sorted(ended, key=lambda one: one.error is not None):  # results first
                if one.error is not None:
                    raise one.error from one.cause
                yield one.task, one.result
            if not any(worker.task for worker in crew):
                return
            ended = _ended(crew, waiting, deaths, retries)
    finally:
        for worker in crew:
            worker.process.kill()
        for worker in crew:
            worker.process.join()
            worker.pipe.close()


def _ended(crew: list[_Worker], waiting: Waiting, deaths: Counter[str], retries: int) -> list[_Ended]:
    """Wait until something is heard from a worker; return what has ended, and put back what has to be begun again."""
    busy = {worker.pipe: worker for worker in crew if worker.task}
    ended = []
    for pipe in wait(list(busy)):
        worker = busy[pipe]
        try:
            answer = pipe.recv_bytes()
        except (EOFError, OSError):  # the pipe ends where the process does
            crew.remove(worker)
            error = _bury(worker, deaths, retries)
            if error is None:
                waiting.again(worker.task)
            else:
                ended.append(_Ended(worker.task, error=error))
            continue
        if answer == READY:
            worker.begun = True
            continue
        ended.append(_read(answer, worker.task))
        waiting.done(worker.task)
        worker.task = None
    return ended


def _read(answer: bytes, task: Task) -> _Ended:
    try:
        result, error, trace = pickle.loads(answer)
    except Exception as failure:  # a result that is no longer itself once it was sent
        return _Ended(task, error=named(failure, task))
    if error is None:
        return _Ended(task, result)
    return _Ended(task, error=named(error, task), cause=RuntimeError(f"in a worker process:\n{trace}"))


def _hand_out(task: Task, cores: int, work: Callable, crew: list[_Worker]) -> None:
    for worker in [worker for worker in crew if worker.task is None]:
        try:
            worker.pipe.send((task, cores))
        except OSError:  # it was killed while it had nothing to do
            crew.remove(worker)
            continue
        worker.task = task
        return
    worker = _hire(work)
    crew.append(worker)
    worker.task = task
    with suppress(OSError):  # dead already: its pipe will tell
        worker.pipe.send((task, cores))


def _hire(work: Callable) -> _Worker:
    ours, theirs = Pipe()
    process = _fresh().Process(target=_serve, args=(work, theirs, dict(os.environ)), daemon=True)
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        ours.close()
        raise TypeError(
            f"a process cannot take {work!r} along ({error}): give it a function of a module, or use threads "
            "(processes=False)"
        ) from None
    finally:
        theirs.close()
    return _Worker(process, ours)


def _fresh() -> BaseContext:
    """A way to start processes that takes no locks of our threads along, as a plain fork does.

    On Linux a server imports this package once, and forks: a worker starts in milliseconds and shares those pages.
    """
    if sys.platform != "linux":  # system libraries of macOS do not survive a fork
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _bury(worker: _Worker, deaths: Counter[str], retries: int) -> RuntimeError | None:
    """Count the death of a worker; return an error where it could not start, or was the last that its task gets."""
    worker.pipe.close()
    worker.process.join(5)
    worker.process.kill()
    worker.process.join()
    code, key = worker.process.exitcode, worker.task.key
    if not worker.begun and code > 0:
        return RuntimeError(
            "a worker process ended before it could begin (what it said stands above): a script that uses processes "
            'keeps its own statements under `if __name__ == "__main__":`; or use threads (processes=False)'
        )
    deaths[key] += 1
    if deaths[key] <= retries:
        return None
    how = f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return RuntimeError(
        f"{key}: the process that worked on it died {deaths[key]} times (at last of {how}), each time but the first "
        "with nothing beside it. If memory ran out, this matrix needs a larger machine"
    )


def _serve(work: Callable[[Task], R], pipe: Connection, environ: dict[str, str]) -> None:
    """What a worker process does: take a task, answer with its result, until the pipe ends."""
    os.environ.update(environ)  # the server's is that of its first use
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    held = 0
    Thread(target=_end_with_parent, daemon=True).start()
    pipe.send_bytes(READY)
    while True:
        try:
            task, cores = pipe.recv()
        except EOFError:
            return
        if cores != held:  # the process is ours: nothing is put back
            threadpool_limits(cores)
            torch.set_num_threads(cores)
            held = cores
        pipe.send_bytes(_answer(work, task))


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _answer(work: Callable[[Task], R], task: Task) -> bytes:
    """The pickled result, error and trace of a task; an error that cannot be sent is told in words."""
    try:
        return pickle.dumps((work(task), None, None))
    except BaseException as error:
        trace = traceback.format_exc()
        try:
            answer = pickle.dumps((None, error, trace))
            pickle.loads(answer)  # which fails for some with arguments of their own
        except Exception:
            answer = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return answer
