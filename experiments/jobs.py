"""Runs a list of independent jobs, each in a process of one thread, and keeps every result in a file of its own.

A job that has its file is not made again, so a list that was stopped goes on where it was; a job that fails is reported
at the end and stops no other. Jobs are taken in the order of the list.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from experiments import data, records

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Job(NamedTuple):
    """A function that can be imported, its keyword arguments, and the seconds it is thought to take on one core."""

    call: Callable[..., Any]
    kwargs: Mapping[str, Any]
    seconds: float = 0.0


def run(jobs: Mapping[str, Job], work: Path, workers: int = 1, only: str | None = None) -> dict[str, Any]:
    """Returns the results of all jobs that have one, by name, in the order of the list.

    Args:
        jobs: name -> job; a plain pair (function, arguments) will do.
        work: folder of the results, one NAME.json each.
        workers: processes; 0 runs the jobs here, one after another.
        only: makes only jobs whose name contains this; results of others are returned if they are there.
    """
    jobs = {name: Job(*job) for name, job in jobs.items()}
    work.mkdir(parents=True, exist_ok=True)
    due = [name for name, job in jobs.items() if (only is None or only in name) and read(work, name, job) is None]
    total, slots = sum(jobs[name].seconds for name in due), max(workers, 1)
    print(f"{len(due)} of {len(jobs)} jobs to run, about {total / 60 / slots:.0f} min on {slots} core(s)", flush=True)
    failed: dict[str, str] = {}
    begun = time.perf_counter()
    for left, (name, seconds, error) in zip(range(len(due) - 1, -1, -1), _done(jobs, due, work, workers), strict=False):
        if error:
            failed[name] = error
        last = error.strip().splitlines()[-1] if error else "done"
        print(f"{name}: {last}, {seconds:.0f} s; {left} left, {time.perf_counter() - begun:.0f} s so far", flush=True)
    for name, error in failed.items():
        print(f"\n{name} failed:\n{error}", flush=True)
    found = {name: read(work, name, job) for name, job in jobs.items()}
    return {name: kept["result"] for name, kept in found.items() if kept is not None}


def read(work: Path, name: str, job: Job) -> dict[str, Any] | None:
    """Returns what the file of a job holds, or None where there is none or it was made with other arguments."""
    file = work / f"{name}.json"
    if not file.exists():
        return None
    kept = json.loads(file.read_text())
    return kept if kept["asked"] == asked(job) else None


def asked(job: Job) -> str:
    """Returns the arguments of a job as text, without the places of files, which may differ from machine to machine.

    Of a dataclass only what differs from the defaults is named, so that a field added later leaves old results valid.
    """
    kept = {key: _told(value) for key, value in sorted(job.kwargs.items()) if not isinstance(value, Path)}
    return f"{job.call.__module__}.{job.call.__name__} {kept!r}"


def _told(value: Any) -> Any:
    if is_dataclass(value):
        stated = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
        return type(value).__name__, {name: _told(part) for name, part in stated.items()}
    return value


def _done(jobs: dict[str, Job], due: list[str], work: Path, workers: int) -> Iterator[tuple[str, float, str]]:
    if workers == 0:
        for name in due:
            yield _one(name, jobs[name], work)
        return
    with _one_thread_each():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_settle)
        try:
            futures = {pool.submit(_one, name, jobs[name], work): name for name in due}
            for future in as_completed(futures):
                error = future.exception()
                yield (futures[future], 0.0, repr(error)) if error else future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        pool.shutdown()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Sets the environment of the processes that are started meanwhile to one thread."""
    before = {key: os.environ.get(key) for key in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _settle() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its children
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # the momenta of dead units sink to where arithmetic is slow
    os.nice(5)


def _one(name: str, job: Job, work: Path) -> tuple[str, float, str]:
    begun = time.perf_counter()
    try:
        result = job.call(**job.kwargs)
        body = json.dumps({"asked": asked(job), "result": records.rounded(result)})
        with tempfile.NamedTemporaryFile("w", dir=work, suffix=".part", delete=False) as part:
            part.write(body)
        os.replace(part.name, work / f"{name}.json")
    except Exception:
        return name, time.perf_counter() - begun, traceback.format_exc()
    return name, time.perf_counter() - begun, ""


@lru_cache(maxsize=3)
def images(name: str, path: Path | None) -> data.Images:
    """Returns a data set, read once a process: "mnist", "fashion", "cifar" from files, "toy", "toy colour" made."""
    if name.startswith("toy"):
        return data.made_images(channels=3 if name == "toy colour" else 1)
    if path is None:
        raise ValueError(f"the place of the data is not given: --{name}")
    return data.cifar_images(path) if name == "cifar" else data.idx_images(path)


def arguments(purpose: str, folder: Path) -> argparse.ArgumentParser:
    """Returns the arguments that the experiments share; results go into `folder` unless told otherwise."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--toy", action="store_true", help="seconds, on data made here; needs no files")
    parser.add_argument("--mnist", type=Path, help="folder of the four IDX files of MNIST")
    parser.add_argument("--fashion", type=Path, help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--cifar", type=Path, help="tar archive of CIFAR-10 JPEGs")
    parser.add_argument("--work", type=Path, help="folder of the single results, kept from run to run")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each; 0: in this one")
    parser.add_argument("--only", help="makes only jobs whose name contains this")
    parser.add_argument("--scale", choices=("reduced", "full"), default="reduced", help="full: the paper's own sizes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--list", action="store_true", help="lists the jobs and what they cost, and stops")
    parser.add_argument("--output", type=Path, help="the results file")
    parser.set_defaults(folder=folder)
    return parser


def places(options: argparse.Namespace) -> tuple[Path, Path]:
    """Returns (folder of the single results, results file); a toy run never touches what is committed."""
    apart = Path(tempfile.mkdtemp(prefix="experiment-")) if options.toy else None
    tail = "" if options.scale == "reduced" else "_full"
    output = options.output or (apart or options.folder) / f"results{tail}.json"
    work = options.work or (apart / "work" if apart else Path("runs") / (options.folder.name + tail))
    return work, output


def show(jobs: Mapping[str, Job]) -> None:
    """Prints the jobs in their order, each with its estimate."""
    for name, job in jobs.items():
        print(f"{job.seconds:8.0f} s  {name}")
    print(f"{sum(job.seconds for job in jobs.values()) / 60:8.0f} min in all, on one core")


def execute(options: argparse.Namespace, jobs: Mapping[str, Job], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the results of the jobs, after writing them to the results file; None if they were only listed."""
    if options.list:
        show(jobs)
        return None
    work, output = places(options)
    found = run(jobs, work, options.workers, options.only)
    output.parent.mkdir(parents=True, exist_ok=True)
    records.write(output, dict(config), found)
    print(f"{len(found)} of {len(jobs)} results in {output}", flush=True)
    return found
