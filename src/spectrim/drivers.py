"""Which driver decomposes a matrix, on which device and at what precision, and what is tried when it fails.

Spectra are float64. On the CPU a driver that fails is followed by another one; on a GPU come another driver, then
float32 where that can tell the bulk from rounding, then the CPU. An error, a lack of memory and a result that is not
finite all count as failures, matrix by matrix, and each leaves a line in `notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.linalg import svd as dense_svd

R = TypeVar("R", torch.Tensor, tuple[torch.Tensor, ...])
Attempts = list[tuple[str, Callable[[], R]]]

# Under this many rows numpy's OpenBLAS decomposes, from there on torch's MKL: measured on an AMD EPYC, numpy takes .7
# of torch's time at p = 768 for the eigenvalues and half of it for the product, and 1.3 of it at p = 4096.
TORCH_FROM = 2048
LIBRARY = ("cusolver", "cublas", "magma", "cuda error")  # in a RuntimeError: the library failed, not the request
COARSE = 1e-3  # of the median eigenvalue: the rounding that float32 may leave where nothing else is left on a GPU


def small(gram: torch.Tensor) -> bool:
    """Returns whether numpy is the faster driver for a matrix of this size and place."""
    return gram.device.type == "cpu" and gram.shape[-1] < TORCH_FROM


def accelerated(x: torch.Tensor) -> bool:
    """Returns whether a tensor lies on a device that the CPU can stand in for."""
    return x.device.type != "cpu"


def eigenvalues(
    gram: torch.Tensor, notes: list[str] | None, rescue: Callable[[], torch.Tensor] | None = None
) -> torch.Tensor:
    """Returns the eigenvalues of a symmetric positive semidefinite matrix, ascending, on the CPU.

    Args:
        gram: p x p, float64, of which the lower triangle counts.
        notes: a list that takes a line for every fallback.
        rescue: what finds them, ascending, by another way, when no eigensolver does; gesvd of `gram` unless given.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([4.0, 1.0]).double()), None).tolist()
        [1.0, 4.0]

    References:
        G. Golub and C. Van Loan, Matrix Computations, 4th ed., section 8.3.
    """
    attempts: Attempts = [("torch's eigvalsh", lambda: torch.linalg.eigvalsh(gram))]
    if small(gram):
        attempts.insert(0, ("numpy's eigvalsh", lambda: torch.from_numpy(np.linalg.eigvalsh(gram.numpy()))))
    if accelerated(gram):
        attempts.append(("svdvals (gesvd)", lambda: torch.linalg.svdvals(_whole(gram), driver="gesvd").flip(0)))
        attempts.append(("eigvalsh in float32", lambda: _coarse(gram)))
        attempts.append(("eigvalsh on the CPU", lambda: torch.linalg.eigvalsh(gram.cpu())))
    attempts.append(("LAPACK gesvd", rescue or (lambda: gesvd(_whole(gram))[1].flip(0))))
    return first(attempts, notes).cpu()


def eigenvalues_of_many(
    grams: Sequence[torch.Tensor],
    notes: Sequence[list[str] | None],
    rescues: Sequence[Callable[[], torch.Tensor]] | None = None,
) -> list[torch.Tensor | Exception]:
    """Returns the eigenvalues of matrices of one shape, each ascending, or why it has none; on a GPU all in one call.

    If the one call fails, each matrix is decomposed by itself, so that a bad one costs the others nothing.

    Args:
        grams: matrices, p x p, float64, of which the lower triangles count.
        notes: one list a matrix, which takes a line for every fallback.
        rescues: one a matrix, as in `eigenvalues`.

    Example:
        >>> found = eigenvalues_of_many([torch.eye(2).double(), 2 * torch.eye(2).double()], [None, None])
        >>> [values.tolist() for values in found]
        [[1.0, 1.0], [2.0, 2.0]]

    References:
        As `eigenvalues`.
    """
    if len(grams) > 1 and accelerated(grams[0]):
        try:
            together = torch.linalg.eigvalsh(torch.stack(list(grams))).cpu()
            if bool(together.isfinite().all()):
                return list(together)
            why = "values that are not finite"
        except RuntimeError as error:
            if not _is_failure(error):
                raise
            why = _reason(error)
        for lines in notes:
            if lines is not None:
                lines.append(f"eigvalsh of {len(grams)} together failed ({why}); each was decomposed by itself")
    found: list[torch.Tensor | Exception] = []
    for one in zip(grams, notes, rescues or [None] * len(grams), strict=True):
        try:
            found.append(eigenvalues(*one))
        except (RuntimeError, np.linalg.LinAlgError) as error:
            found.append(error)
    return found


def eigenvectors(gram: torch.Tensor, k: int, notes: list[str] | None) -> torch.Tensor:
    """Returns the vectors of the k largest eigenvalues, p x k, ascending; `gram` is spent.

    Args:
        gram: p x p, symmetric, float64, of which the lower triangle counts.
        k: number of vectors, 1 to p.
        notes: a list that takes a line for every fallback.

    Example:
        >>> eigenvectors(torch.diag(torch.tensor([4.0, 1.0]).double()), 1, None).abs().tolist()
        [[1.0], [0.0]]

    References:
        As `eigenvalues`.
    """
    p = gram.shape[0]

    def subset(driver: str, last: bool) -> torch.Tensor:
        # The transpose is in LAPACK's order, so nothing is copied; its upper triangle is our lower one.
        found = eigh(
            gram.cpu().numpy().T,
            lower=False,
            subset_by_index=[p - k, p - 1],
            driver=driver,
            overwrite_a=last,
            check_finite=False,
        )
        return torch.from_numpy(found[1]).to(gram.device)

    if k > p // 4:  # many: divide and conquer finds all of them in less time than it takes to pick so many out
        everything: Attempts = [("eigh (numpy)", lambda: torch.from_numpy(np.linalg.eigh(gram.cpu().numpy())[1]))]
        if accelerated(gram):
            everything.insert(0, ("eigh", lambda: torch.linalg.eigh(gram)[1]))
        everything.append(("LAPACK gesvd", lambda: gesvd(_whole(gram))[0].flip(1)))
        return first(everything, notes)[:, p - k :].to(gram.device)
    spare = p <= 2048  # a second try needs the matrix; above, a copy of it would be the peak of the memory
    attempts: Attempts = [("eigh (evr)", lambda: subset("evr", not spare))]
    if spare:
        attempts.append(("eigh (evx)", lambda: subset("evx", True)))
    if accelerated(gram):
        attempts.insert(0, ("eigh", lambda: torch.linalg.eigh(gram)[1][:, p - k :]))
    return first(attempts, notes)


def eigensystem(T: torch.Tensor, notes: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all eigenvalues of a symmetric matrix, ascending, and their vectors, one a column.

    Args:
        T: d x d, float64, of which the lower triangle counts.
        notes: a list that takes a line for every fallback.

    Example:
        >>> eigensystem(torch.diag(torch.tensor([4.0, 1.0]).double()))[0].tolist()
        [1.0, 4.0]

    References:
        As `eigenvalues`.
    """
    attempts: Attempts = [("eigh", lambda: torch.linalg.eigh(T))]
    if small(T):
        attempts.insert(0, ("numpy's eigh", lambda: tuple(map(torch.from_numpy, np.linalg.eigh(T.numpy())))))
    if accelerated(T):
        attempts.append(("eigh on the CPU", lambda: torch.linalg.eigh(T.cpu())))
    values, vectors = first(attempts, notes)
    return values.to(T.device), vectors.to(T.device)


def orthonormal(X: torch.Tensor, notes: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns Q and R with X = Q R, the columns of Q orthonormal and R upper triangular.

    Example:
        >>> Q, R = orthonormal(torch.tensor([[3.0], [4.0]]).double())
        >>> torch.allclose(Q @ R, torch.tensor([[3.0], [4.0]]).double()), R.abs().tolist()
        (True, [[5.0]])
    """
    attempts: Attempts = [("qr", lambda: tuple(torch.linalg.qr(X)))]
    if accelerated(X):
        attempts.append(("qr on the CPU", lambda: tuple(torch.linalg.qr(X.cpu()))))
    Q, R = first(attempts, notes)
    return Q.to(X.device), R.to(X.device)


def thin_svd(full: torch.Tensor, notes: list[str] | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns U, s, Vh of the thin singular value decomposition, on the device of the matrix.

    There is no float32 among the attempts: factors are to give the matrix back.

    Example:
        >>> thin_svd(torch.diag(torch.tensor([2.0, 3.0]).double()), None)[1].tolist()
        [3.0, 2.0]

    References:
        G. Golub and C. Van Loan, Matrix Computations, 4th ed., section 8.6.
    """
    attempts: Attempts = [("svd", lambda: tuple(torch.linalg.svd(full, full_matrices=False)))]
    if accelerated(full):
        for_gpu = lambda: tuple(torch.linalg.svd(full, full_matrices=False, driver="gesvd"))  # noqa: E731
        attempts.append(("svd (gesvd)", for_gpu))
        attempts.append(("svd on the CPU", lambda: tuple(torch.linalg.svd(full.cpu(), full_matrices=False))))
    attempts.append(("LAPACK gesvd", lambda: gesvd(full)))
    U, s, Vh = (part.to(full.device) for part in first(attempts, notes))
    return U, s, Vh


def gesvd(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns U, s, Vh by QR iteration: slower than divide and conquer, without its rare failures to converge."""
    U, s, Vh = dense_svd(X.cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
    return torch.from_numpy(U), torch.from_numpy(s), torch.from_numpy(Vh)


def first(attempts: Attempts, notes: list[str] | None) -> R:
    """Returns the first result that comes without a failure and is finite; each failure is a line in `notes`.

    Example:
        >>> notes = []
        >>> first([("one", lambda: torch.tensor(float("nan"))), ("two", lambda: torch.tensor(2.0))], notes).item()
        2.0
        >>> notes
        ['one failed (its result is not finite); used two instead']
    """
    for (name, attempt), (following, _) in pairwise([*attempts, ("", None)]):
        try:
            result = attempt()
            parts = (result,) if isinstance(result, torch.Tensor) else result
            if all(bool(part.isfinite().all()) for part in parts):
                return result
            raise torch.linalg.LinAlgError("its result is not finite")
        except (RuntimeError, np.linalg.LinAlgError) as error:
            if not following or not _is_failure(error):
                raise
            if notes is not None:
                notes.append(f"{name} failed ({_reason(error)}); used {following} instead")
    raise AssertionError("there is always one attempt")


def with_room(work: Callable[[torch.Tensor], R], W: torch.Tensor, notes: list[str] | None) -> R:
    """Returns work(W), on the CPU if the device of W has no memory left for it, which is a line in `notes`.

    Example:
        >>> with_room(lambda W: W.sum(), torch.ones(2, 2), None).item()
        4.0
    """
    try:
        return work(W)
    except torch.OutOfMemoryError as error:
        if not accelerated(W):
            raise
        reason = _reason(error)
    # Outside the handler: the traceback held on to what the first try had allocated.
    if notes is not None:
        notes.append(f"{W.device} had no room for it ({reason}); it was read on the CPU instead")
    return work(W.cpu())


def _coarse(gram: torch.Tensor) -> torch.Tensor:
    values = torch.linalg.eigvalsh(gram.float()).double()
    rounding = 16 * torch.finfo(torch.float32).eps * float(values[-1])
    if not rounding <= COARSE * float(values[len(values) // 2]):
        raise torch.linalg.LinAlgError("float32 cannot tell its bulk from the rounding of its largest value")
    return values


def _whole(gram: torch.Tensor) -> torch.Tensor:
    return gram.tril() + gram.tril(-1).T


def _is_failure(error: Exception) -> bool:
    """Whether another driver may do better: no convergence, no memory on a device, or its library at fault."""
    known = (torch.linalg.LinAlgError, np.linalg.LinAlgError, torch.OutOfMemoryError)
    return isinstance(error, known) or any(word in str(error).lower() for word in LIBRARY)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
