"""Terms to add to a training loss: L1, L2, stable rank and nuclear norm of the weight matrices.

    loss = criterion(model(x), y) + 1e-6 * l1(model) + 1e-6 * l2(model)

Each takes a module, or tensors, and returns a scalar with its gradient. Of a module, every parameter with two or more
dimensions counts once, but for the tables of embeddings: biases and the scales of norms are no matrices. A kernel of
more than two dimensions is read as outputs x rest. Tensors count as they are stored, so the two halves of a split layer
are two matrices, unless it is said otherwise, and a parametrised weight (weight_norm) counts by its originals. Sums are
taken in float32 at least. There are no second derivatives.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .factored import Composed, Pair

Weights: TypeAlias = "nn.Module | Tensor | Iterable[Tensor]"
STEPS = 6  # of the search for the largest singular value; what they are worth stands in docs/training.md
SHARE_OF_FIXED = 0.01  # of the start that is always the same, in one that goes on from an earlier call


def l1(weights: Weights) -> Tensor:
    """Returns the sum of the magnitudes of all entries, sum |w|; its gradient is the sign, 0 at 0.

    Args:
        weights: a module, or tensors of any shape.

    Example:
        >>> float(l1([torch.tensor([[1.0, -2.0]])]))
        3.0

    References:
        R. Tibshirani, J. R. Stat. Soc. B 58 (1996) 267; in training beside the cuts, arXiv 2503.01922, A.1.
    """
    wide = map(_wide, _tensors(weights))
    return _total(_term(W, torch.linalg.vector_norm(W.detach(), 1), _slope_of_l1) for W in wide)


def l2(weights: Weights) -> Tensor:
    """Returns the sum of the squares of all entries, sum w^2; its gradient is 2 w.

    On the halves of a split layer this is not the squared norm of their product but, at its smallest over all pairs
    with that product, twice its nuclear norm: ||L||_F^2 + ||R||_F^2 >= 2 ||L R||_*.

    Args:
        weights: a module, or tensors of any shape.

    Example:
        >>> float(l2([torch.tensor([[1.0, -2.0]])]))
        5.0

    References:
        Beside the cuts: arXiv 2503.01922, A.1. The bound: N. Srebro, J. Rennie and T. Jaakkola, NIPS 2004.
    """
    wide = map(_wide, _tensors(weights))
    return _total(_term(W, torch.linalg.vector_norm(W.detach()).square(), _slope_of_l2) for W in wide)


def stable_rank(weights: Weights, steps: int = STEPS, vectors: MutableMapping | None = None) -> Tensor:
    """Returns the sum of the stable ranks of the matrices, sum ||W||_F^2 / ||W||_2^2; a matrix of zeros counts 0.

    The largest singular value is u^T W v with u and v held fixed, whose gradient is u v^T. The vectors come from a few
    steps of the Lanczos process on the short side, from a start that is always the same. That never overestimates
    ||W||_2, so the value is never too small.

    Args:
        weights: a module, or matrices; more than two dimensions are read as outputs x rest.
        steps: products with W and with W^T a matrix, >= 1.
        vectors: a dict that you keep between calls: the search then starts where the last one ended. Entries hang on
            the parameter itself, weakly: a weight that takes the place of another starts anew.

    Example:
        >>> W = torch.diag(torch.tensor([2.0, 1.0, 1.0])).requires_grad_()
        >>> penalty = stable_rank([W])
        >>> penalty.backward()
        >>> round(penalty.item(), 4), [round(x, 4) for x in W.grad.diagonal().tolist()]
        (1.5, [-0.5, 0.5, 0.5])

    References:
        arXiv 2503.01922, eq. (46). G. Golub and C. Van Loan, Matrix Computations, 4th ed., sections 10.1 and 10.4.
    """
    if steps < 1:
        raise ValueError(f"the largest singular value wants one step at least, got steps={steps!r}")
    if vectors is not None:
        for key in [key for key, (alive, _) in vectors.items() if alive() is None]:
            del vectors[key]
    terms = []
    for stored in _tensors(weights):
        W = _wide(_matrix(stored))
        size = torch.linalg.vector_norm(W.detach())
        if not torch.isfinite(size) or size == 0:
            terms.append(
                W.sum() * (0.0 if size == 0 else math.nan)
            )  # NaN belongs into the loss: there it is looked for
            continue
        start = None
        if vectors is not None:
            alive, start = vectors.get(id(stored), (lambda: None, None))
            start = start if alive() is stored else None
        u, top, v = top_triplet(W.detach(), steps, start)
        if vectors is not None:
            vectors[id(stored)] = weakref.ref(stored), v if len(v) <= len(u) else u
        ratio = (size / top).square()
        terms.append(_term(W, ratio, partial(_slope_of_ratio, u=u, v=v, top=top, ratio=ratio)))
    return _total(terms)


def nuclear(weights: Weights | Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the sum of the nuclear norms, each the sum of a matrix's singular values.

    A matrix is decomposed, which costs more than a training step where it is large. A pair (left, right) stands for its
    product left @ right, and (||left||_F^2 + ||right||_F^2) / 2 is returned for it: an upper bound of the nuclear norm
    of the product, equal to it where the pair is balanced, left^T left = right right^T, as it is when spectrim has just
    split it in the plain basis. The smallest such value is the norm, so training comes to it. Of a module, the layers
    that spectrim split are such pairs; all other matrices are decomposed.

    Args:
        weights: a module, or matrices, or pairs of matrices rows x k and k x cols.

    Example:
        >>> left, right = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 2.0]])
        >>> float(nuclear([left @ right])), float(nuclear([(left, right)])), float(nuclear([(4 * left, right / 4)]))
        (4.0, 4.0, 32.125)

    References:
        M. Fazel, thesis, Stanford 2002; the bound: N. Srebro, J. Rennie and T. Jaakkola, NIPS 2004.
    """
    terms = []
    for W in _maps(weights) if isinstance(weights, nn.Module) else _tensors(weights):
        if isinstance(W, Tensor):
            terms.append(torch.linalg.svdvals(_wide(_matrix(W))).sum())
        else:
            terms.append(l2(W) / 2)
    return _total(terms)


@torch.no_grad()
def top_triplet(W: Tensor, steps: int = STEPS, start: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns approximations (u, s, v) of the largest singular value of W and its vectors, with s = u^T W v.

    Args:
        W: rows x cols, float32 or float64, finite and not all zero, without gradient.
        steps: products with W and with its transpose, >= 1.
        start: where to begin: a vector of the short side, of the rows if there are fewer rows than columns.

    Example:
        >>> u, s, v = top_triplet(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), steps=2)
        >>> round(float(s), 5), round(abs(float(u[0] * v[1])), 5)
        (3.0, 1.0)

    References:
        Golub and Van Loan, section 10.4; orthogonalised in full, since the steps are few.
    """
    with torch.autocast(W.device.type, enabled=False):  # whose products of 16 bits would not find it
        return _top_triplet(W, steps, start)


def _top_triplet(W: Tensor, steps: int, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    tall = W if W.shape[0] >= W.shape[1] else W.T
    ahead = fixed = _start(tall)
    if start is not None and start.shape == fixed.shape and start.device == fixed.device:
        # What is left of the fixed start lets in a direction that the last vector knows nothing of.
        ahead = start.to(W.dtype) + SHARE_OF_FIXED * fixed
    short, images = [], []  # an orthonormal basis of the short side, and what W makes of it
    tiny = 4 * torch.finfo(W.dtype).eps
    for step in range(min(steps, tall.shape[1])):
        if step:
            ahead = tall.T @ images[-1]
            before = torch.linalg.vector_norm(ahead)
            basis = torch.stack(short)
            for _ in range(2):  # once is not enough where little is left
                ahead = ahead - (basis @ ahead) @ basis
            if not torch.linalg.vector_norm(ahead) > tiny * before:
                break
        short.append(ahead / torch.linalg.vector_norm(ahead))
        images.append(tall @ short[-1])
    found = torch.stack(images)
    mixed = torch.linalg.eigh((found @ found.T).cpu().double()).eigenvectors[:, -1].to(W)
    far = mixed @ found
    far = far / torch.linalg.vector_norm(far)
    near = tall.T @ far  # half a step more: this gives the value, too
    top = torch.linalg.vector_norm(near)
    return (far, top, near / top) if tall is W else (near / top, top, far)


def _start(tall: Tensor) -> Tensor:
    """A unit vector without structure of its own: cos(2 pi phi i^2), phi the golden ratio."""
    i = torch.arange(1, tall.shape[1] + 1, dtype=torch.float64)
    x = torch.cos(2 * math.pi * torch.remainder(i * i * (math.sqrt(5) - 1) / 2, 1))
    return (x / torch.linalg.vector_norm(x)).to(tall)


def _tensors(weights: Weights) -> list:
    if isinstance(weights, Tensor):
        return [weights]
    if not isinstance(weights, nn.Module):
        found = list(weights)
        if not found:
            raise ValueError("there are no weights to penalise: an empty list was given; a generator is used up once")
        return found
    others = (m for m in weights.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag | nn.LayerNorm))
    tables = {id(p) for m in others for p in m.parameters(recurse=False)}
    found = [p for p in weights.parameters() if p.ndim >= 2 and id(p) not in tables]
    if not found:
        raise ValueError(
            f"{type(weights).__name__} has no weight of two or more dimensions beside embeddings: "
            "there is nothing to penalise, or give the tensors themselves"
        )
    return found


def _maps(module: nn.Module) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
    """The matrices that are stored as they are, and the pairs (left, right) that an earlier split left."""
    halves: dict[int, tuple[Tensor, Tensor]] = {}
    for part in module.modules():
        if isinstance(part, Pair):
            pairs = [(part[1].weight, part[0].weight)]
        elif isinstance(part, nn.utils.parametrize.ParametrizationList) and isinstance(part[0], Composed):
            rest, pairs = [getattr(part, f"original{i}") for i in range(part.ntensors)], []
            for row in part[0].parts:
                taken = [rest.pop(0) for _ in range(1 if row["rank"] is None else 2)]
                if len(taken) == 2:
                    pairs.append(tuple(taken))
        else:
            continue
        for left, right in pairs:
            halves |= {id(left): (left, right), id(right): None}
    for p in _tensors(module):
        found = halves.get(id(p), p)
        if found is not None:
            yield found


class _Known(torch.autograd.Function):
    """A value whose gradient is known: one tensor of the size of W is made for it, where autograd makes three."""

    @staticmethod
    def forward(W, value, slope):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.slope = inputs[2]

    @staticmethod
    @once_differentiable
    def backward(ctx, by):
        return ctx.slope(ctx.saved_tensors[0], by), None, None


def _term(W: Tensor, value: Tensor, slope: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return _Known.apply(W, value, slope)


def _slope_of_l1(W: Tensor, by: Tensor) -> Tensor:
    return W.sign().mul_(by)


def _slope_of_l2(W: Tensor, by: Tensor) -> Tensor:
    return W * (2 * by)


def _slope_of_ratio(W: Tensor, by: Tensor, u: Tensor, v: Tensor, top: Tensor, ratio: Tensor) -> Tensor:
    # (2 / s) (W / s - ratio u v^T): the squares of a tiny matrix would leave the range of float32.
    return torch.addr(W / top, u * -ratio, v) * (2 * by / top)


def _matrix(W: Tensor) -> Tensor:
    if W.ndim < 2:
        raise ValueError(f"a singular value is one of a matrix, got a tensor of shape {tuple(W.shape)}: leave it out")
    return W.flatten(1)


def _wide(W: Tensor) -> Tensor:
    return W if W.dtype in (torch.float32, torch.float64) else W.to(torch.float32)


def _total(terms: Iterable[Tensor]) -> Tensor:
    terms = list(terms)
    return sum((term.to(terms[0].device) for term in terms[1:]), terms[0])
