"""The engine on a Ray cluster: two machines that one machine plays, of which one is killed half-way."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrim import Bema, survey
from spectrim.checkpoint import open_checkpoint
from spectrim.engines import Local, Ray, Task
from spectrim.readings import Look, fetched, read_site
from spectrim.survey import inventory

ray = pytest.importorskip("ray", reason="the extra spectrim[ray] is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
MIB, GIB = 2**20, 2**30


def read_matrix(task):
    """The reading of one matrix of a file, from names alone, and the machine where it was made.

    Each machine makes four of them, and stays with the fifth as long as there is a file named hold.
    """
    path, name, how = task.payload
    folder, node = Path(path).parent, ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
    before = len(list(folder.glob(f"begun {node} *")))
    (folder / f"begun {node} {before} {name}").write_text(str(os.getpid()))
    while before >= 4 and (folder / "hold").exists():
        time.sleep(0.02)
    site = next(site for site in inventory(open_checkpoint(path)).sites if site.name == name)
    return node, read_site(site, fetched(site), how)


def fails(task):
    if task.payload == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError("no such tensor")


def threads_of(task):
    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """What a worker is to run it has to be able to import: `spectrim` is installed, this module is not."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture
def cluster(importable):
    # A dead machine is noticed after a few seconds instead of half a minute.
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "memory": GIB, "object_store_memory": 80 * MIB, "_system_config": quick},
    )
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def tasks(tmp_path) -> list[Task]:
    generator = torch.Generator().manual_seed(0)
    file = tmp_path / "model.safetensors"
    tensors = {f"h.{i}.up.weight": torch.randn(64 + 8 * i, 64, generator=generator) for i in range(16)}
    save_file(tensors, file)
    how = Look(Bema(), True, False)
    return [
        Task(r.name, min(r.rows, r.cols) ** 2 * max(r.rows, r.cols), 32 * MIB, (str(file), r.name, how))
        for r in survey(file).matrices
    ]


def test_a_machine_of_two_is_killed_half_way(cluster, tasks, tmp_path):
    other = cluster.add_node(num_cpus=1, memory=GIB, object_store_memory=80 * MIB)
    hold = tmp_path / "hold"
    hold.touch()

    def kill():
        end = time.monotonic() + 60
        while not (fifth := list(tmp_path.glob(f"begun {other.node_id} 4 *"))) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.1)
        cluster.remove_node(other, allow_graceful=False)  # kill -9
        for file in fifth:  # a worker would live on until it misses its machine
            os.kill(int(file.read_text()), signal.SIGKILL)
        hold.unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    results = list(Ray(cluster.address).run(read_matrix, tasks))
    killer.join()
    assert not ray.is_initialized()
    nodes = {task.key: node for task, (node, _) in results}
    begun = {file.name.split()[3] for file in tmp_path.glob(f"begun {other.node_id} *")}
    assert len(begun) == 5
    (lost,) = [name for name in begun if nodes[name] != other.node_id]  # its fifth, made again on the one that is left
    assert list(tmp_path.glob(f"begun {nodes[lost]} * {lost}"))
    here = {task.key: reading.to_dict() for task, (_, reading) in Local(1, GIB).run(read_matrix, tasks)}
    assert {task.key: reading.to_dict() for task, (_, reading) in results} == here
    assert len(results) == len(here) == 16


@pytest.mark.slow
def test_what_a_cluster_cannot_do_is_refused(cluster, tasks):
    with pytest.raises(ValueError, match=r"h.0 needs 2 GiB .* 1 GiB is what the largest machine .*--memory"):
        Ray(cluster.address).run(read_matrix, [Task("h.0", 1, 2 * GIB)])
    assert not ray.is_initialized()
    with pytest.raises(ValueError, match="no machine of the cluster offers a core and 1 GPUs"):
        Ray(cluster.address, gpus=1).run(read_matrix, tasks)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_task_that_no_machine_can_take_any_more_is_told(cluster):
    large = cluster.add_node(num_cpus=1, memory=4 * GIB, object_store_memory=80 * MIB)
    run = Ray(cluster.address).run(threads_of, [Task(f"h.{i}", 1, 3 * GIB) for i in range(500)])
    next(run)
    cluster.remove_node(large, allow_graceful=False)
    with pytest.raises(RuntimeError, match=r"h.\d+ needs 3 GiB and 1 cores, which none of the 1 machines"):
        list(run)


@pytest.mark.slow
def test_errors_come_back_as_themselves_and_deaths_are_counted():
    with pytest.raises(KeyError, match="no such tensor") as caught:
        list(Ray(workers=1, memory=GIB).run(fails, [Task("h.0", 1, MIB)]))
    assert caught.value.__notes__[-1] == "in the task h.0"
    assert caught.value.__notes__[0].startswith("on the machine ")
    assert "in fails" in str(caught.value.__cause__)
    assert not ray.is_initialized()
    with pytest.raises(RuntimeError, match=r"h.1: its worker or its machine died 2 times"):
        list(Ray(workers=1, memory=GIB, retries=1).run(fails, [Task("h.1", 1, MIB, "kill")]))
    assert not ray.is_initialized()


@pytest.mark.slow
def test_cores_follow_memory_and_a_cluster_that_was_joined_goes_on():
    ray.init(address="local", num_cpus=4, _memory=GIB, include_dashboard=False, log_to_driver=False)
    try:
        tasks = [Task(f"small {i}", 1, MIB) for i in range(8)] + [Task("large", 1, 500 * MIB)]
        found = {task.key: value for task, value in Ray().run(threads_of, tasks)}
        assert found.pop("large") == 2  # half of the memory, half of the cores
        assert set(found.values()) == {1}
        run = Ray().run(threads_of, tasks)
        next(run)
        run.close()
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_cluster_is_not_told_what_its_machines_have():
    with pytest.raises(ValueError, match=r"workers and memory cannot be set for the cluster at 'auto'.*ray start"):
        Ray("auto", workers=2, memory=GIB)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto", "nowhere"])
def test_an_address_where_nobody_answers_is_named(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConnectionError, match=rf"no Ray cluster answers at '{address}' .*ray start --head.*--address"):
        Ray(address).run(threads_of, [Task("a", 1, 1)])
    assert not ray.is_initialized()
