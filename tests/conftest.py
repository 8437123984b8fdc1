"""Settings that hold for every test: nothing is fetched, and runs can be repeated."""

import os
import tempfile

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="hf-modules-"))


@pytest.fixture(scope="session", autouse=True)
def shared_process():
    """A command may tune the allocator of its own process; this one goes on to other tests, which that would slow."""
    from spectrim.cli import cutting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_lean", lambda: None)
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Thousands of small decompositions: a second thread would only wait for the first, and for its neighbours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy(request, tmp_path_factory) -> dict:
    """What the toy run of an experiment writes; the test module names the experiment's folder, `HERE`."""
    from experiments import __main__ as entry  # the modules that ask for this have put the checkout on the path
    from experiments import records

    output = tmp_path_factory.mktemp("toy") / "results.json"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["experiments", request.module.HERE.name, "--toy", "--workers", "0", "--output", str(output)]
        patch.setattr("sys.argv", arguments)
        entry.main()
    return records.read(output)
