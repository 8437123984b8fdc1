"""Engines of one machine: order, memory in flight, cores, and what becomes of workers that are killed."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrim import Bema, survey
from spectrim.checkpoint import open_checkpoint
from spectrim.engines import Local, Ray, Task
from spectrim.engines.free import UNKNOWN, free_memory
from spectrim.engines.task import Waiting, cores_of
from spectrim.readings import Look, fetched, read_site
from spectrim.survey import inventory

pytestmark = pytest.mark.usefixtures("one_thread")
GIB = 2**30


def tasks_of(*pairs) -> list[Task]:
    return [Task(f"t{i}", cost, memory, i) for i, (cost, memory) in enumerate(pairs)]


def keys(results) -> list[str]:
    return [task.key for task, _ in results]


# What the workers do: functions of this module, which a process can import.


def payload(task):
    return task.payload


def where(task):
    time.sleep(0.05)
    return os.getpid()


def killed_once(task):
    flag = Path(task.payload)
    if task.key == "t3" and flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return task.key


def killed_always(task):
    if task.key == "t0":
        os.kill(os.getpid(), signal.SIGKILL)
    return task.key


class Odd(ValueError):
    """An error that no other process can make again from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raises(task):
    if task.payload == 0:
        raise KeyError("no such tensor")
    if task.payload == 1:
        raise Odd("this", "that")
    return lambda: None


def sleeps(task):
    Path(task.payload, str(os.getpid())).touch()
    time.sleep(60)


def read_matrix(task):
    """The reading of one matrix of a file, from names alone."""
    path, name, how = task.payload
    site = next(site for site in inventory(open_checkpoint(path)).sites if site.name == name)
    return read_site(site, fetched(site), how)


# What is asked of a run


@pytest.mark.parametrize("field", ["cost", "memory"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_task_refuses_what_is_no_amount(field, value):
    with pytest.raises(ValueError, match=f"the {field} of a.layer is a finite number"):
        Task("a.layer", **({"cost": 1, "memory": 1} | {field: value}))


@pytest.mark.parametrize("engine", [Local, Ray])
@pytest.mark.parametrize("argument", [{"workers": 0}, {"memory": 0}, {"retries": -1}])
def test_an_engine_refuses_what_is_no_amount(engine, argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} is a"):
        engine(**argument)


@pytest.mark.parametrize("processes", [False, True])
def test_what_cannot_run_is_refused_before_anything_runs(processes):
    begun = []
    engine = Local(workers=2, memory=10 * GIB, processes=processes)
    with pytest.raises(ValueError, match=r"t1 needs 40 GiB.*1 more.* 10 GiB is the limit: .*--memory"):
        engine.run(begun.append, tasks_of((1, GIB), (1, 40 * GIB), (1, 11 * GIB)))
    with pytest.raises(ValueError, match="two tasks have the key 'a'"):
        engine.run(begun.append, [Task("a", 1, 1), Task("b", 1, 1), Task("a", 2, 1)])
    assert not begun
    assert list(engine.run(payload, [])) == []


def test_the_limit_is_half_of_what_is_free_unless_told():
    with pytest.raises(ValueError, match="50% of the memory that is free, as none was given"):
        Local().run(payload, tasks_of((1, 0.9 * free_memory())))
    assert keys(Local().run(payload, tasks_of((1, 0.1 * free_memory())))) == ["t0"]


# Cores


@pytest.mark.parametrize(
    ("pairs", "cores", "first"),
    [
        ([(1, 1)] * 100, 16, 1),
        ([(1, 1)], 16, 16),  # alone
        ([(1, 1)] * 3, 16, 5),  # fewer tasks than cores
        ([(9, 1)] + [(1, 1)] * 9, 16, 8),  # half of all the time
        ([(1, 40)] * 100, 16, 8),  # of which the memory (100) holds two
        ([(1, 51)] * 100, 16, 16),
        ([(0, 0)] * 100, 16, 1),
        ([(1, 100)], 1, 1),
    ],
)
def test_cores_of_a_task(pairs, cores, first):
    assert cores_of(tasks_of(*pairs), cores, 100)["t0"] == first


def test_large_tasks_run_alone_on_all_threads_and_small_ones_side_by_side_on_one():
    before = torch.get_num_threads()
    met = {}

    def threads_of(task):
        met[task.key] = (torch.get_num_threads(), threading.current_thread() is threading.main_thread())
        return task.key

    tasks = tasks_of(*[(1, 1)] * 8, (1, 90), (20, 1))
    assert keys(Local(workers=3, memory=100).run(threads_of, tasks))[:2] == ["t9", "t8"]
    assert {met[f"t{i}"] for i in range(8)} == {(1, False)}
    assert met["t8"] == met["t9"] == (3, True)
    assert torch.get_num_threads() == before


# Order and memory


def test_the_longest_is_begun_first():
    begun = []
    tasks = tasks_of((3, 1), (9, 1), (1, 1), (9, 1), (4, 1), (2, 1))
    list(Local(workers=1, memory=100).run(lambda task: begun.append(task.key), tasks))
    assert begun == ["t1", "t3", "t4", "t0", "t5", "t2"]


def test_the_memory_in_flight_stays_below_the_limit_and_is_used():
    draw = random.Random(0)
    tasks = tasks_of(*((draw.random(), draw.randint(1, 60)) for _ in range(60)))
    lock, flying, highest, most = threading.Lock(), Counter(), 0, 0

    def count(task):
        nonlocal highest, most
        with lock:
            flying[task.key] = task.memory
            highest, most = max(highest, flying.total()), max(most, len(flying))
        time.sleep(0.002)
        with lock:
            del flying[task.key]
        return task.payload

    results = list(Local(workers=4, memory=100).run(count, tasks))
    assert sorted(value for _, value in results) == list(range(60))
    assert all(task.payload == value for task, value in results)
    assert 60 < highest <= 100  # more than one at a time: the largest alone has 60
    assert 2 <= most <= 4


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_exceeded_and_nothing_is_starved(seed):
    """A simulated run: the next to end is drawn. The longest that waits is overtaken by so many others, and no more."""
    draw = random.Random(seed)
    cores, memory = draw.randint(1, 6), 100
    tasks = tasks_of(*((draw.random(), draw.choice([1, 5, 30, 70, 100])) for _ in range(80)))
    tasks.sort(key=lambda task: -task.cost)
    taken = {task.key: draw.randint(1, cores) for task in tasks}
    waiting, flying, overtaken, ended = Waiting(tasks, taken, cores, memory), [], Counter(), []
    left = list(tasks)
    while waiting or flying:
        while (task := waiting.take()) is not None:
            flying.append(task)
            left.remove(task)
            if left and tasks.index(left[0]) < tasks.index(task):
                overtaken[left[0].key] += 1
            assert sum(t.memory for t in flying) <= memory
            assert sum(taken[t.key] for t in flying) <= cores
        assert flying, "something waits, and nothing runs"
        ended.append(flying.pop(draw.randrange(len(flying))))
        waiting.done(ended[-1])
        if draw.random() < 0.05:  # its worker was killed: it is the next
            again = ended.pop()
            waiting.free_memory -= again.memory
            waiting.free_cores -= taken[again.key]
            waiting.again(again)
            taken[again.key], tasks = cores, [again, *(t for t in tasks if t is not again)]
            left.insert(0, again)
    assert sorted(t.key for t in ended) == sorted(t.key for t in tasks)
    assert max(overtaken.values(), default=0) <= cores


# Errors


@pytest.mark.parametrize("cost", [1, 100], ids=["beside others", "alone"])
def test_an_error_in_a_thread_names_its_task_and_ends_the_run(cost):
    begun = []

    def fails(task):
        begun.append(task.key)
        if task.key == "t2":
            raise KeyError("no such tensor")
        time.sleep(0.01)
        return task.key

    before = torch.get_num_threads()
    with pytest.raises(KeyError, match="no such tensor") as caught:
        list(Local(workers=2, memory=100).run(fails, tasks_of((9, 1), (9, 1), (cost, 1), *[(1, 1)] * 50)))
    assert caught.value.__notes__ == ["in the task t2"]
    assert len(begun) < 10
    assert torch.get_num_threads() == before


def test_leaving_early_ends_the_run():
    begun = []
    run = Local(workers=2, memory=100).run(lambda task: begun.append(task.key), tasks_of(*[(1, 1)] * 500))
    next(run)
    run.close()
    assert len(begun) < 10
    assert torch.get_num_threads() == 1


# Processes. The first of these tests pays for the server that imports the package.


def workers_left() -> list[int]:
    return [child.pid for child in multiprocessing.active_children()]


def test_a_worker_that_kills_itself_costs_one_retry(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    tasks = [Task(f"t{i}", 1, 1, str(flag)) for i in range(6)]
    found = dict((task.key, value) for task, value in Local(2, 100, processes=True).run(killed_once, tasks))
    assert found == {f"t{i}": f"t{i}" for i in range(6)}
    assert not flag.exists()
    assert not workers_left()


def test_workers_that_are_killed_from_outside_are_replaced():
    run = Local(2, 100, processes=True).run(where, tasks_of(*[(1, 1)] * 12))
    results = [next(run)]
    os.kill(results[0][1], signal.SIGKILL)
    results += run
    assert sorted(keys(results)) == sorted(f"t{i}" for i in range(12))
    assert len({pid for _, pid in results}) == 3
    assert os.getpid() not in {pid for _, pid in results}


def test_a_task_that_kills_every_worker_is_named():
    results = []
    with pytest.raises(RuntimeError, match=r"t0: the process that worked on it died 3 times .*SIGKILL.*memory"):
        for task, _ in Local(2, 100, processes=True).run(killed_always, tasks_of(*[(1, 1)] * 4)):
            results.append(task.key)
    assert "t0" not in results
    assert not workers_left()


@pytest.mark.parametrize(
    ("nature", "error", "words"),
    [
        (0, KeyError, "no such tensor"),
        (1, RuntimeError, "Odd: this and that"),
        (2, (TypeError, AttributeError), "pickle"),
    ],
)
def test_an_error_in_a_process_comes_back_as_itself(nature, error, words):
    with pytest.raises(error, match=words) as caught:
        list(Local(1, 100, processes=True).run(raises, [Task("h.0", 1, 1, nature)]))
    assert caught.value.__notes__ == ["in the task h.0"]
    assert "in raises" in str(caught.value.__cause__) or nature == 2
    assert not workers_left()


def test_a_function_that_no_process_can_import_is_refused():
    with pytest.raises(TypeError, match=r"a process cannot take .*lambda.* along .*use threads"):
        list(Local(1, 100, processes=True).run(lambda task: None, tasks_of((1, 1))))


def test_ctrl_c_ends_all_processes_at_once(tmp_path, monkeypatch):
    """As a terminal does it: the signal goes to every process of the group, and workers leave it to the parent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press():
        for _ in range(600):
            if len(pids := [int(file.name) for file in tmp_path.iterdir()]) == 2:
                break
            time.sleep(0.05)
        for pid in (*pids, os.getpid()):
            os.kill(pid, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(Local(2, 100, processes=True).run(sleeps, [Task(f"t{i}", 1, 1, str(tmp_path)) for i in range(4)]))
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert len(list(tmp_path.iterdir())) == 2
    assert not workers_left()


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_is_ended_leaves_no_worker_behind(ending, tmp_path):
    """A program of its own: Ctrl-C for its whole group, or kill -9 for it alone."""
    pids = tmp_path / "pids"
    pids.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_engines import sleeps\n"
        "from spectrim.engines import Local, Task\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"    tasks = [Task(f't{{i}}', 1, 1, {str(pids)!r}) for i in range(4)]\n"
        "    list(Local(2, 100, processes=True).run(sleeps, tasks))\n"
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as program:
        assert _until(lambda: len(list(pids.iterdir())) == 2, 120), program.poll()
        (os.killpg if ending == signal.SIGINT else os.kill)(program.pid, ending)
        program.wait(30)
        told = program.stderr.read()
    assert told.count("Traceback") == (ending == signal.SIGINT), told  # that of the program, none of a worker
    assert _until(lambda: not any(Path("/proc", file.name).exists() for file in pids.iterdir()), 10)


def _until(true, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


# A survey, one matrix a task


@pytest.mark.parametrize("processes", [False, True])
def test_readings_from_names_alone_are_those_of_a_survey(processes, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {"h.0.up": (96, 64), "h.0.down": (64, 96), "h.1.up": (128, 64), "h.1.down": (64, 128)}
    file = tmp_path / "model.safetensors"
    save_file({f"{k}.weight": torch.randn(s, generator=generator) for k, s in shapes.items()}, file)
    expected = survey(file)
    how = Look(Bema(), True, False)
    tasks = [
        Task(r.name, min(r.rows, r.cols) ** 2 * max(r.rows, r.cols), 32 * r.rows * r.cols, (str(file), r.name, how))
        for r in expected.matrices
    ]
    found = {task.key: reading for task, reading in Local(2, GIB, processes).run(read_matrix, tasks)}
    assert [found[r.name].to_dict() for r in expected.matrices] == [r.to_dict() for r in expected.matrices]


# Memory that is free


def planted(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable:   {48 * 2**20} kB\n"}
SECOND = {
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/memory.max": f"{8 * GIB}\n",
    "sys/fs/cgroup/job/memory.current": f"{5 * GIB}\n",
    "sys/fs/cgroup/job/memory.stat": f"anon 1\nactive_file 7\ninactive_file {GIB}\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
    "sys/fs/cgroup/job/step/memory.current": f"{GIB}\n",
}
CONTAINER = {
    "proc/self/cgroup": "0::/../../job\n",
    "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{GIB}\n",
}
FIRST = {
    "proc/self/cgroup": "9:cpu:/x\n4:memory:/job\n0::/\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{2 * GIB}\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
}


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        (MACHINE, 48),
        (MACHINE | SECOND, 4),  # 8 - (5 - 1), of the group above
        (MACHINE | CONTAINER, 1),
        (MACHINE | FIRST, 1),
        (MACHINE | SECOND | {"sys/fs/cgroup/job/memory.current": f"{20 * GIB}\n"}, 0),
    ],
    ids=["machine", "group above", "container", "first version", "nothing left"],
)
def test_free_memory(files, gib, tmp_path):
    assert free_memory(planted(tmp_path, files)) == gib * GIB


def test_free_memory_where_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    assert free_memory(tmp_path) == 4096 * 1000
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(tmp_path) == UNKNOWN


def test_this_machine_has_some_and_not_more_than_it_has():
    assert 0 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
