"""What is done when a decomposition fails, on the CPU and on a GPU, whose failures and replies are injected here."""

import numpy as np
import pytest
import torch

from spectrim import devices, drivers, reading
from spectrim.edges import Bema
from spectrim.linalg import singular_values, svd
from spectrim.planted import noise, planted
from spectrim.reading import read_equalised, read_many, read_spectrum

LINALG = torch.linalg.LinAlgError("linalg.eigh: failed to converge")
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand a second line")
LIBRARY = RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED")


@pytest.fixture
def gpu(monkeypatch):
    """Tensors on the CPU are treated as those on a GPU are, and numpy is no driver."""
    monkeypatch.setattr(drivers, "accelerated", lambda x: True)
    monkeypatch.setattr(drivers, "TORCH_FROM", 0)


def failing(monkeypatch, name: str, *answers, real=None):
    """torch.linalg.NAME fails in turn, gives what it is told to, or, where the answer is None, what it always gives."""
    real, left = real or getattr(torch.linalg, name), list(answers)
    calls: list[tuple] = []

    def instead(X, *args, **kwargs):
        calls.append((X.dtype, tuple(X.shape)))
        answer = left.pop(0) if left else None
        if isinstance(answer, Exception):
            raise answer
        kwargs.pop("driver", None)  # the CPU has none to choose
        return real(X, *args, **kwargs) if answer is None else answer(real(X, *args, **kwargs))

    monkeypatch.setattr(torch.linalg, name, instead)
    return calls


def test_a_gpu_is_asked_once_where_it_works(gpu, monkeypatch):
    calls = failing(monkeypatch, "eigvalsh")
    W, notes = noise(30, 40, generator=np.random.default_rng(0)), []
    np.testing.assert_allclose(singular_values(W, notes), np.linalg.svd(W, compute_uv=False), rtol=1e-9)
    assert calls == [(torch.float64, (30, 30))] and notes == []


@pytest.mark.parametrize("failure", [LINALG, MEMORY, LIBRARY, lambda x: x * float("nan")])
def test_another_driver_then_precision_then_the_cpu(failure, gpu, monkeypatch):
    W = noise(30, 40, generator=np.random.default_rng(0))
    exact = np.linalg.svd(W, compute_uv=False)
    seen: list[list[str]] = []
    for failures, tolerance in ((1, 1e-9), (2, 1e-4), (3, 1e-9), (4, 1e-12)):
        with monkeypatch.context() as patch:
            failing(patch, "eigvalsh", *[failure] * (failures - (failures > 1)))
            failing(patch, "svdvals", *[failure] * (failures > 1))
            notes: list[str] = []
            np.testing.assert_allclose(singular_values(W, notes), exact, rtol=tolerance)
            seen.append([line.split(" used ")[1] for line in notes])
    order = ["svdvals (gesvd) instead", "eigvalsh in float32 instead", "eigvalsh on the CPU instead", "LAPACK gesvd"]
    assert [len(lines) for lines in seen] == [1, 2, 3, 4]
    assert [line.removesuffix(" instead") for line in seen[-1]] == [line.removesuffix(" instead") for line in order]


def test_the_first_line_of_a_reason_is_kept(gpu, monkeypatch):
    failing(monkeypatch, "eigvalsh", MEMORY)
    failing(monkeypatch, "svdvals")
    notes: list[str] = []
    singular_values(noise(12, 15, generator=np.random.default_rng(0)), notes)
    out = "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert notes == [f"torch's eigvalsh failed ({out}); used svdvals (gesvd) instead"]


def test_float32_is_passed_over_where_it_cannot_tell_the_bulk(gpu, monkeypatch):
    W = planted(40, 60, [1e4], generator=np.random.default_rng(0)).W
    exact = np.linalg.svd(W, compute_uv=False)
    calls = failing(monkeypatch, "eigvalsh", LINALG)
    failing(monkeypatch, "svdvals", LINALG)
    notes: list[str] = []
    np.testing.assert_allclose(singular_values(W, notes), exact, rtol=1e-6)
    assert "float32 cannot tell its bulk" in notes[-1] and notes[-1].endswith("used eigvalsh on the CPU instead")
    assert [dtype for dtype, _ in calls] == [torch.float64, torch.float32, torch.float64]


def test_a_wrong_request_is_no_failure_of_a_driver(gpu, monkeypatch):
    failing(monkeypatch, "eigvalsh", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    notes: list[str] = []
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        singular_values(noise(12, 15, generator=np.random.default_rng(0)), notes)
    assert notes == []


def test_nothing_finite_is_an_error_in_the_end(monkeypatch):
    broken = torch.full((3, 3), float("nan"), dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError)):
        drivers.eigenvalues(broken, None)


@pytest.mark.parametrize("failure", [LINALG, MEMORY, LIBRARY])
def test_factors_come_from_the_cpu_in_float64(failure, gpu, monkeypatch):
    W = torch.from_numpy(noise(20, 30, generator=np.random.default_rng(0)))
    calls = failing(monkeypatch, "svd", failure, failure)
    notes: list[str] = []
    torch.testing.assert_close(svd(W, notes).dense(), W)
    assert [line.split(" used ")[1] for line in notes] == ["svd (gesvd) instead", "svd on the CPU instead"]
    assert {dtype for dtype, _ in calls} == {torch.float64}


def test_spikes_are_taken_out_when_vectors_fail(gpu, monkeypatch):
    made = planted(60, 90, [60.0, 50.0], generator=np.random.default_rng(0))
    whole = read_equalised(made.W, Bema())[0].s
    failing(monkeypatch, "eigh", MEMORY)
    notes: list[str] = []
    np.testing.assert_allclose(read_equalised(made.W, Bema(), notes=notes)[0].s, whole, rtol=1e-6)
    assert notes == ["eigh failed (CUDA out of memory. Tried to allocate 2.00 GiB); used eigh (evr) instead"]


def several() -> list[np.ndarray]:
    g = np.random.default_rng(3)
    shapes = [(40, 60), (60, 40), (40, 60), (30, 60)]
    made = [planted(*shape, [40.0, 30.0], row_log_sd=0.2, generator=g).W for shape in shapes]
    made.append(noise(40, 60, generator=g))
    zero, infinite = np.zeros((40, 60)), noise(40, 60, generator=g)
    infinite[3, 4] = np.inf
    return [*made, zero, infinite]


@pytest.mark.parametrize("equalize", (False, True))
def test_many_are_read_as_one_by_one(equalize, gpu, monkeypatch):
    Ws = several()
    expected = [read_equalised(W, Bema()) if equalize else (read_spectrum(W), None) for W in Ws[:5]]
    calls = failing(monkeypatch, "eigvalsh")
    found = read_many(Ws, Bema(), equalize, notes=[[] for _ in Ws])
    for (spectrum, even), (wanted, scales) in zip(found, expected, strict=False):
        np.testing.assert_allclose(spectrum.s, wanted.s, rtol=1e-9)
        assert equalize == (even is not None)
        if equalize:
            assert even.rounds == scales.rounds
            np.testing.assert_allclose(even.rows, scales.rows, rtol=1e-9)
    assert isinstance(found[5], ValueError) and "all zero" in str(found[5])
    assert isinstance(found[6], ValueError) and "not finite" in str(found[6])
    assert calls[0] == (torch.float64, (4, 40, 40))  # the three, and the one that lies across, in one call
    assert calls[1] == (torch.float64, (30, 30))


@pytest.mark.parametrize("failure", [LINALG, MEMORY, LIBRARY, lambda x: torch.where(x > x.mean(), x, torch.nan)])
def test_a_batch_that_fails_is_done_one_by_one(failure, gpu, monkeypatch):
    Ws = several()[:3]
    expected = [np.linalg.svd(W, compute_uv=False) for W in Ws]
    calls = failing(monkeypatch, "eigvalsh", failure)
    notes: list[list[str]] = [[], [], []]
    for (spectrum, _), s in zip(read_many(Ws, equalize=False, notes=notes), expected, strict=True):
        np.testing.assert_allclose(spectrum.s, s, rtol=1e-9)
    assert [shape for _, shape in calls] == [(3, 40, 40), (40, 40), (40, 40), (40, 40)]
    assert all(len(lines) == 1 and lines[0].startswith("eigvalsh of 3 together failed") for lines in notes)


def test_one_that_no_driver_can_do_leaves_the_others(monkeypatch):
    Ws, real = several()[:2], np.linalg.eigvalsh
    bad = Ws[0] @ Ws[0].T

    def picky(gram):
        if np.allclose(gram, bad):
            raise np.linalg.LinAlgError("not this one")
        return real(gram)

    def fails(*args, **kwargs):
        raise np.linalg.LinAlgError("nor so")

    monkeypatch.setattr(np.linalg, "eigvalsh", picky)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    monkeypatch.setattr(drivers, "dense_svd", fails)
    lost, kept = read_many(Ws, equalize=False)
    assert isinstance(lost, np.linalg.LinAlgError)
    np.testing.assert_allclose(kept[0].s, np.linalg.svd(Ws[1], compute_uv=False), rtol=1e-9)


def test_a_matrix_that_finds_no_room_is_read_on_the_cpu(gpu, monkeypatch):
    W = planted(40, 60, [40.0], row_log_sd=0.2, generator=np.random.default_rng(0)).W
    real, wanted = reading.gram_of, (read_equalised(W, Bema())[0], read_spectrum(W))
    full = [True]

    def crowded(*args):
        if full.pop(0):
            full.append(False)
            raise MEMORY
        full.append(False)
        return real(*args)

    monkeypatch.setattr(reading, "gram_of", crowded)
    readers = (lambda notes: read_equalised(W, Bema(), notes=notes)[0], lambda notes: read_spectrum(W, notes=notes))
    for reader, expected in zip(readers, wanted, strict=True):
        full[:], notes = [True], []
        np.testing.assert_array_equal(reader(notes).s, expected.s)
        assert len(notes) == 1 and notes[0].endswith("it was read on the CPU instead")
    monkeypatch.setattr(drivers, "accelerated", lambda x: False)
    full[:] = [True]
    with pytest.raises(torch.OutOfMemoryError):  # there is nowhere else to go
        read_spectrum(W)


@pytest.mark.parametrize(
    ("device", "words"), [("gpu", "no device"), ("mps", "float64"), ("meta", "float64"), (3.5, "no device")]
)
def test_a_device_is_named_rightly_or_refused(device, words):
    with pytest.raises(ValueError, match=words):
        devices.chosen(device)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"):
            devices.chosen("cuda")


def test_nothing_is_fetched_before_its_turn_on_the_cpu():
    log: list[str] = []

    def fetch(item):
        log.append(f"fetched {item}")
        return (torch.ones(item),)

    for item, (x,) in devices.ahead([1, 2], fetch, torch.device("cpu")):
        log.append(f"worked on {item}")
        assert len(x) == item
    assert log == ["fetched 1", "worked on 1", "fetched 2", "worked on 2"]


def test_the_next_is_under_way_while_one_is_worked_on():
    log: list[str] = []

    def send(found):
        size = len(found[0])
        log.append(f"sent {size}")
        if size == 3:
            raise MEMORY

        def arrived():
            log.append(f"arrived {size}")
            return tuple(x + 1 for x in found)

        return arrived

    def fetch(item):
        return ValueError("unreadable") if item == 2 else (torch.zeros(item),)

    got = []
    for item, found in devices.ahead([1, 2, 3, 4], fetch, torch.device("cuda"), send):
        log.append(f"worked on {item}")
        got.append(found)
    first = ["sent 1", "arrived 1", "worked on 1"]
    assert log == [*first, "sent 3", "worked on 2", "sent 4", "worked on 3", "arrived 4", "worked on 4"]
    assert float(got[0][0]) == 1 and isinstance(got[1], ValueError)
    assert got[2][0].tolist() == [0, 0, 0]  # it found no room and stayed where it was
    assert got[3][0].tolist() == [1, 1, 1, 1]
    assert list(devices.ahead([], fetch, torch.device("cuda"), send)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_what_the_cpu_reads():
    device = devices.chosen("cuda")
    Ws = [torch.from_numpy(W).float() for W in several()[:5]]
    moved = [found for _, (found,) in devices.ahead(Ws, lambda W: (W,), device)]
    assert all(W.is_cuda for W in moved)
    notes: list[list[str]] = [[] for _ in Ws]
    for W, (spectrum, even) in zip(Ws, read_many(moved, Bema(), notes=notes), strict=True):
        wanted, scales = read_equalised(W, Bema())
        np.testing.assert_allclose(spectrum.s, wanted.s, rtol=1e-5)  # float32 sums of squares, in another order
        assert even.rounds == scales.rounds
    assert not any(notes)
