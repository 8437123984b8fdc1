"""Rules of operations that hold matrices: linear maps, convolutions, attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .law import APPROXIMATE, FULL, Law, Spread, compressed, spread_of, together, vector
from .rules import Known, averaged, shape_of


def linear(x: Spread, A: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Spread:
    """Returns A x + bias for the vectors along the last dimension."""
    law = vector(x).mapped(A, bias)
    return spread_of(law, shape)


def taps(kernel: tuple[int, ...], near: float = Law.near) -> Tensor:
    """Returns the correlations that are assumed between the taps of a kernel, taps x taps: near^distance."""
    at = torch.cartesian_prod(*(torch.arange(float(k), dtype=torch.float64) for k in kernel))
    return near ** torch.cdist(at.view(-1, len(kernel)), at.view(-1, len(kernel)))


@dataclass(frozen=True)
class Convolution:
    """The settings of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def patch_means(x: Spread, kernel: tuple[int, ...], how: Convolution) -> Tensor:
    """Returns the mean of what each tap reads, channels x taps, the zeros of the padding counted in."""
    law = x.law()
    field = law.mean[compressed(x.index)[:1]]
    trivial = not any(how.padding) and all(s == 1 for s in field.shape[2:])
    if trivial:
        return field.reshape(-1, 1).expand(-1, math.prod(kernel))
    field = field.expand(1, *x.index.shape[1:])
    field = F.pad(field, [p for pad in reversed(how.padding) for p in (pad, pad)])
    out = []
    reach = [
        (n - d * (k - 1) - 1) // s for n, d, k, s in zip(field.shape[2:], how.dilation, kernel, how.stride, strict=True)
    ]
    for tap in torch.cartesian_prod(*(torch.arange(k) for k in kernel)).view(-1, len(kernel)).tolist():
        part = field
        for i, (t, d, s, r) in enumerate(zip(tap, how.dilation, how.stride, reach, strict=True)):
            part = part.narrow(2 + i, t * d, r * s + 1)[(slice(None),) * (2 + i) + (slice(None, None, s),)]
        out.append(part.flatten(2).mean(2)[0])
    return torch.stack(out, 1)


def patches(x: Spread, kernel: tuple[int, ...], how: Convolution, group: int | None = None) -> Law:
    """Returns the law of the patches that a convolution reads, channels x taps flattened, of one group or of all."""
    law, means = vector(x, (1,)), patch_means(x, kernel, how)
    if group is not None:
        each = law.size // how.groups
        at = torch.arange(group * each, (group + 1) * each)
        law, means = law.gather(at), means[at]
    area = means.shape[1]
    if law.size * area > FULL or law.cov.ndim == 1:
        return replace(law, mean=means.flatten(), cov=law.var.repeat_interleave(area))
    if area == 1:
        return replace(law, mean=means.flatten())
    return replace(
        law, mean=means.flatten(), cov=torch.kron(law.cov.contiguous(), taps(kernel, law.near)), cov_trust=APPROXIMATE
    )


def convolution(x: Spread, weight: Tensor, bias: Tensor | None, how: Convolution, shape: tuple[int, ...]) -> Spread:
    """Returns the law of a convolution's channels."""
    kernel = shape_of(weight)[2:]
    W = weight.double().flatten(1)
    rows, groups = len(W), how.groups
    law, means = vector(x, (1,)), patch_means(x, kernel, how)
    area = means.shape[1]
    each, out = law.size // groups, rows // groups
    by_group = means.reshape(groups, each * area)
    mean = torch.einsum("gok,gk->go", W.view(groups, out, -1), by_group).flatten()
    if bias is not None:
        mean = mean + bias.double()
    near = taps(kernel, law.near)
    if each == out == 1 and law.cov.ndim == 2:  # depthwise
        cov = law.cov * (W @ near @ W.T)
    elif groups == 1 and law.size * area <= FULL and law.cov.ndim == 2:
        cov = W @ (torch.kron(law.cov.contiguous(), near) if area > 1 else law.cov) @ W.T
    else:  # no correlations between channels
        T = W.view(rows, each, area)
        energy = torch.einsum("rct,ts,rcs->rc", T, near, T).view(groups, out, each)
        cov = torch.einsum("goc,gc->go", energy, law.var.view(groups, each)).flatten()
    return spread_of(Law(mean, cov, law.mean_trust), shape, 1)


def attention(q: Known, k: Known, v: Known, scale: float, shape: tuple[int, ...]) -> Known:
    """Returns sum_j p_j v_j with p = softmax(scale q . k_j), keys and values being jointly normal over many positions.

    Then the weights tilt the law of the keys, and exactly E[v | q] = E v + scale C_vk q. Few positions tilt less: of n
    keys whose scores have deviation s none lies above about s sqrt(2 log n), so C_vk is taken times

        t = 1 - exp(-sqrt(2 log n) / s)

    (the limit of many positions is min(1, sqrt(2 log n) / s); the smooth form was the better one on a language model
    and a vision transformer). Over the queries that leaves the mean E v + scale t C_vk E q and the covariance
    scale^2 t^2 C_vk C_q C_kv, and C_v / (n exp(-t^2 s^2)) of each head for the positions that were drawn.

    Args:
        q, k, v: (..., positions, head size). Nothing known of q or k: even weights over sqrt(n) positions.
        scale: of the scores.
        shape: of the output.

    References:
        The freezing of such weights: B. Derrida, Physical Review B 24 (1981) 2613, the random energy model.
    """
    if not isinstance(v, Spread):
        return None
    rows = [_rows(t, shape) for t in (q, k, v)]
    if any(r is None for r in rows):
        out = averaged(v, (-2,), True)
        return Spread(out.index.expand(shape), out.base, out.values)
    n, (width, depth) = v.index.shape[-2], (rows[0].shape[1], rows[2].shape[1])
    heads, which = torch.unique(torch.cat(rows, 1), dim=0, return_inverse=True)
    iq, ik, iv = heads[:, :width], heads[:, width : 2 * width], heads[:, 2 * width :]
    queries, keys, values = q.law().gather(iq.flatten()), k.law(), v.law()
    if keys is values and iv.numel() == ik.numel() == 0:
        return None
    mean, own = [], []
    tilt = torch.zeros(len(heads) * depth, len(heads) * width, dtype=torch.float64)
    reach = math.sqrt(2 * math.log(n)) if n > 1 else 0.0
    for h in range(len(heads)):
        at, to = slice(h * width, (h + 1) * width), slice(h * depth, (h + 1) * depth)
        lq, lk, lv = queries.gather(torch.arange(at.start, at.stop)), keys.gather(ik[h]), values.gather(iv[h])
        deviation = scale * math.sqrt(max(0.0, float((_matrix(lq.second()) * _matrix(lk.cov)).sum())))
        less = 1 - math.exp(-reach / deviation) if deviation > 0 else 1.0
        joint = together(values, keys)[iv[h]][:, ik[h]] if keys is values else together(lv, lk)
        tilt[to, at] = scale * less * joint
        mean.append(lv.mean + tilt[to, at] @ lq.mean)
        own.append(_matrix(lv.cov) / max(1.0, n * math.exp(-min((less * deviation) ** 2, 50.0))))
    cov = torch.block_diag(*own) + tilt @ _matrix(queries.cov) @ tilt.T
    law = Law(torch.cat(mean), cov)
    index = torch.arange(law.size).view(len(heads), depth)[which].view(*shape[:-2], 1, depth)
    return Spread(index.expand(shape), law)


def _matrix(cov: Tensor) -> Tensor:
    return cov if cov.ndim == 2 else cov.diag()


def _rows(t: Known, shape: tuple[int, ...]) -> Tensor | None:
    """Returns which features each head reads, heads x head size, where that is the same at every position."""
    if not isinstance(t, Spread) or t.index.ndim != len(shape) or compressed(t.index).shape[-2] > 1:
        return None
    index = t.index[..., 0, :]
    if len(shape) == 4 and index.shape[1] != shape[1]:  # several heads of queries share one of keys
        index = index.repeat_interleave(shape[1] // index.shape[1], 1)
    return index.expand(*shape[:-2], index.shape[-1]).reshape(-1, index.shape[-1])
