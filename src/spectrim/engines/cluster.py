"""The engine for many machines: Ray places the tasks, and gives those of a dead worker or machine to another."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from .free import SHARE, free_memory
from .task import GIB, R, Task, cores_of, in_order, named, threads

AHEAD = 2  # tasks submitted for each core: one is worked on, one waits for it
STORE = 128 * 2**20  # bytes of Ray's store of objects, where we start it: results are small
ASK = 5.0  # seconds after which it is asked again which machines there are


@dataclass(frozen=True)
class Ray:
    """Runs tasks on a Ray cluster, longest first. What is sent are tasks and results: names and figures, no tensors.

    Every machine has to see the files under the same path, and to have the same `spectrim`. A task asks Ray for its
    memory, and for the share of the cores of a machine that it has of its memory, at least one. A worker or a machine
    that dies costs its tasks a second try elsewhere, which is Ray's doing: `work` may run twice, and only the
    result of one run is handed on. What was started here ends with the run; a cluster that was joined goes on, and a
    connection that the program has already is used as it is.

    Args:
        address: of a cluster to join: "auto" (the one of this machine, or of RAY_ADDRESS) or "host:port". None: one
            is started on this machine, and stopped at the end.
        workers: number of cores of the machine, where one is started here, >= 1.
        memory: bytes for all tasks in flight together, where one is started here. Else each machine says itself
            (`ray start --num-cpus --memory`); Ray's own choice is what is left of its memory beside the object store.
        gpus: of each task, >= 0; a fraction lets several share one.
        retries: how often a task is begun again when its worker or its machine died, >= 0.

    References:
        P. Moritz et al., Ray: a distributed framework for emerging AI applications, OSDI 2018.
    """

    address: str | None = None
    workers: int | None = None
    memory: int | None = None
    gpus: float = 0
    retries: int = 3

    def __post_init__(self):
        for name, least in (("workers", 1), ("memory", 1), ("gpus", 0), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is a number from {least} up, not {value}")
        told = [name for name in ("workers", "memory") if getattr(self, name) is not None]
        if self.address is not None and told:
            raise ValueError(
                f"{' and '.join(told)} cannot be set for the cluster at {self.address!r}: its machines say themselves "
                "what they have (ray start --num-cpus N --memory BYTES)"
            )

    def run(self, work: Callable[[Task], R], tasks: Sequence[Task]) -> Iterator[tuple[Task, R]]:
        """Return an iterator over each task with its result, as they come. See `Executor`."""
        try:
            import ray
        except ImportError:
            raise ImportError("the engine ray needs a package that is not here: pip install 'spectrim[ray]'") from None
        joined = ray.is_initialized()  # by the caller, who keeps it
        if not joined:
            self._connect(ray)
        try:
            machines = _machines(ray, self.gpus)
            memory = int(max(machine.get("memory", 0) for machine in machines))
            ordered = in_order(
                tasks, memory, "what the largest machine of the cluster offers: let it offer more (--memory)"
            )
            taken = cores_of(ordered, int(min(machine["CPU"] for machine in machines)), memory)
        except BaseException:
            if not joined:
                ray.shutdown()
            raise
        return self._results(ray, work, ordered, taken, joined)

    def _connect(self, ray: Any) -> None:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address is None:
            memory = self.memory or int(SHARE * free_memory())
            limits = {"num_cpus": self.workers, "_memory": memory, "object_store_memory": STORE}
            ray.init(address="local", include_dashboard=False, **limits, **quiet)
            return
        try:
            _knock(os.environ.get("RAY_ADDRESS", "auto") if self.address == "auto" else self.address)
            ray.init(address=self.address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConnectionError(
                f"no Ray cluster answers at {self.address!r} ({str(error).strip().splitlines()[0]}): start one with "
                "`ray start --head` and name it (address=, --address), or leave the address away to start one here"
            ) from None

    def _results(
        self, ray: Any, work: Callable[[Task], R], ordered: list[Task], taken: dict[str, int], joined: bool
    ) -> Iterator[tuple[Task, R]]:
        remote = ray.remote(_held(work))
        asked = {"max_retries": self.retries, "num_gpus": self.gpus}
        rest = iter(ordered)
        flying: dict[Any, Task] = {}
        looked, ahead = -ASK, 0
        try:
            while True:
                if time.monotonic() - looked >= ASK:  # machines come and go
                    machines, looked = _machines(ray, self.gpus), time.monotonic()
                    ahead = AHEAD * int(sum(machine["CPU"] for machine in machines))
                    _check_places(machines, list(flying.values()), taken)
                for task in islice(rest, max(0, ahead - len(flying))):
                    place = asked | {"num_cpus": taken[task.key], "memory": task.memory}
                    flying[remote.options(**place).remote(task, taken[task.key])] = task
                if not flying:
                    return
                ended, _ = ray.wait(list(flying), num_returns=1, timeout=ASK)
                for future in ended:
                    task = flying.pop(future)
                    yield task, _fetched(ray, future, task, self.retries)
        finally:
            for future in flying:
                with suppress(Exception):
                    ray.cancel(future, force=True)
            if not joined:
                ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at host:port: Ray would go on trying for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _held(work: Callable[[Task], R]) -> Callable[[Task, int], R]:
    """What runs on the machines: the work with its share of the cores. An error tells where it happened."""

    def matrix(task: Task, cores: int) -> R:  # the name that Ray shows
        try:
            # Ray starts a worker with as many threads as its first task has cores, and keeps it for others.
            with threads(cores) if torch.get_num_threads() != cores else nullcontext():
                return work(task)
        except Exception as error:
            error.add_note(f"on the machine {socket.gethostname()}")
            raise

    return matrix


def _machines(ray: Any, gpus: float) -> list[dict[str, float]]:
    """What each machine that is alive and can be used offers: "CPU", "memory", "GPU"."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = [offer for offer in alive if offer.get("CPU", 0) >= 1 and offer.get("GPU", 0) >= gpus]
    if not found:
        wanted = f"a core and {gpus:g} GPUs" if gpus else "a core"
        raise ValueError(
            f"no machine of the cluster offers {wanted} ({len(alive)} are alive): start one with ray start"
        )
    return found


def _check_places(machines: list[dict[str, float]], tasks: list[Task], taken: dict[str, int]) -> None:
    """Raise where the machines that are left are too small for a task: Ray would wait for a larger one for ever."""
    for task in tasks:
        if not any(m["CPU"] >= taken[task.key] and m.get("memory", 0) >= task.memory for m in machines):
            raise RuntimeError(
                f"{task.key} needs {task.memory / GIB:.3g} GiB and {taken[task.key]} cores, which none of the "
                f"{len(machines)} machines that are left offers: start another one (ray start) and run again"
            )


def _fetched(ray: Any, future: Any, task: Task, retries: int) -> Any:
    try:
        return ray.get(future)
    except ray.exceptions.RayTaskError as error:
        raise named(error.cause, task) from RuntimeError(f"in a worker of the cluster:\n{error}")
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"{task.key}: its worker or its machine died {retries + 1} times ({str(error).strip().splitlines()[0]}). "
            "If memory ran out, let the machines offer less of it to tasks (ray start --memory), or use larger ones"
        ) from error
