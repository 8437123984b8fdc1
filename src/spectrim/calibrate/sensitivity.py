"""What the outputs of each matrix weigh in what the model gives: an error there, carried through all later layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..moments import Moment, Moments
from ..sites import Site, listed
from .batch import Batch, is_function, samples_of
from .gather import batches, check_batch, chosen_sites, model_fingerprint, moved, quiet, run
from .stacks import tensors_of

SAMPLES = 64
HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # the user's, on a parameter: an optimiser may step there
DRAWS = 4  # of v for a batch that is a function of the model
LEAST = 1e-3  # of the mean weight of a matrix: an output that was never heard of may yet be


def weighed(
    moments: Moments,
    model: nn.Module,
    inputs: Iterable[Batch],
    *,
    samples: int | None = SAMPLES,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Moments:
    """Return the moments with weights of the outputs, `Moments.rows`: errors then count as the model's output has them.

        s_i = E_v mean_j (d<v, f> / dW_ij)^2 / (C_jj  sum ||f||^2),    v ~ N(0, I) in the shape of the model's output f

    summed over the inputs, with a v for each. With such weights tr(diag(s) (W - W') C (W - W')^T) is the relative
    change, squared, of the model's output: to first order, each matrix for itself, for errors of all inputs j that
    weigh the same in C, as steps leave them that make up for what they take. So an input that is huge where the model
    does not listen, as a few tokens of a transformer are, has one vote of many. Steps then know which rows matter,
    `budgets.MarginalDamage` which matrices, and a plan what its cuts do to the model together, `Plan.model_error`.

    One run backward a sample, whatever the number of matrices; labels are not needed. Memory: the activations of one
    sample and one gradient at a time. Where a batch is a function of the model, the activations of all of it, and four
    runs backward.

    Args:
        moments: of that model.
        model: a live module; its mode, gradients and values are afterwards what they were.
        inputs: batches as `gather` takes them, for instance those that the moments were gathered from.
        samples: so many of them, evenly over all, are enough, >= 1; None takes all.
        seed: of v.
        device: where batches are moved to; that of the model's first parameter, if not given.
        progress: wraps the iteration over what is run at a time.

    The weights are drawn to the mean of their matrix by the share of their spread that is chance, as the runs tell it.
    What the model gives is the first tensor of its output that depends on a matrix, a single number (a loss) only where
    there is nothing else; positions that an attention_mask of its shape leaves out count for nothing. Matrices that are
    pairs already get no weights, nor do those that the output does not depend on.

    Example:
        >>> from .gather import gather
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad(): _ = net[0].weight.copy_(torch.eye(2)), net[1].weight.copy_(torch.tensor([[3.0, 1.0]]))
        >>> x = torch.eye(2).repeat(200, 1)
        >>> found = weighed(gather(net, [x]), net, [x], samples=None)
        >>> 8 < float(found.rows["0"][0] / found.rows["0"][1]) < 10  # the output reads the first 3 times
        True

    References:
        M. F. Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433, for the trace by random v. That the curvature of a
        layer is a Kronecker product, C for its inputs and gradients for its outputs: J. Martens and R. Grosse, arXiv
        1503.05671; here without labels, and of the outputs the diagonal.
    """
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(f"samples is a whole number, 1 at least, or None for all, not {samples!r}")
    if moments.model and moments.model != model_fingerprint(model):
        raise ValueError("these moments are of another model, or of other weights: gather anew")
    sites = [s for s in chosen_sites(model, None, moments.__contains__) if not s.layer.stored_as_parts]
    if not sites:
        raise ValueError("no matrix can be weighed: all are pairs already, or have no moments")
    held = _spread(inputs, samples)
    if not held:
        raise ValueError(
            "inputs holds no sample: give some, and if it is a generator that was run through already, make it anew or "
            "a list of it"
        )
    units = {site.name: _units(moments.by_name[site.name]) for site in sites}
    sums, total, runs = _gradients(model, held, sites, units, seed, device, progress)
    rows = {name: _shrunk(squares, runs) / total for name, squares in sums.items() if bool(squares[:, 0].any())}
    return replace(moments, rows=rows, recipe={**moments.recipe, "rows": {"samples": samples, "seed": seed}})


def _units(moment: Moment) -> Tensor:
    """1 / (q C_jj) over the q inputs j that are ever there, 0 at the others: every input has one vote."""
    square = moment.diagonal.double().cpu()
    there = square > 0
    return torch.where(there, 1 / square.where(there, torch.ones(())), 0.0) / max(1, int(there.sum()))


def _spread(inputs: Iterable[Batch], samples: int | None) -> list[Batch]:
    """Samples one by one, evenly over all that there are; whole batches where they are functions of the model."""
    parts = []
    for i, batch in enumerate(batches(inputs)):
        check_batch(batch, i)
        parts += [batch] if is_function(batch) else _apart(batch)
    if samples is None or not parts:
        return parts
    each = sum(map(samples_of, parts)) / len(parts)
    wanted = min(len(parts), math.ceil(samples / each))
    return [parts[i * len(parts) // wanted] for i in range(wanted)]


def _apart(batch: Batch) -> list[Batch]:
    """A batch as batches of one; as it is, where its tensors do not agree on how many samples there are."""
    if isinstance(batch, Tensor):
        return list(batch.split(1)) if len(batch) else []
    values = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    counts = {len(v) if v.ndim else 0 for v in values if isinstance(v, Tensor)}
    if len(counts) != 1 or 0 in counts or any(isinstance(v, Mapping | tuple | list) for v in values):
        return [batch]
    rows = [[v[i : i + 1] if isinstance(v, Tensor) else v for v in values] for i in range(counts.pop())]
    if isinstance(batch, Mapping):
        return [dict(zip(batch, row, strict=True)) for row in rows]
    return [type(batch)(row) for row in rows]


def _gradients(
    model: nn.Module,
    inputs: Sequence[Batch],
    sites: Sequence[Site],
    units: Mapping[str, Tensor],
    seed: int,
    device: Any,
    progress: Callable[[Iterable], Iterable] | None,
) -> tuple[dict[str, Tensor], float, int]:
    """What all runs backward tell, the sum of ||f||^2 over them, and how many there were.

    Of each matrix, rows x 2: the squared gradient of <v, f>, summed over its columns, and the square of that, both
    summed over all runs.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {site.name: torch.zeros(site.rows, 2, dtype=torch.float64) for site in sites}
    total, runs = 0.0, 0

    def take(parameter: nn.Parameter, of: Sequence[Site]) -> None:
        grad, parameter.grad = parameter.grad, None
        data, parameter.data = parameter.data, grad  # so that a site reads the gradient as it reads the matrix
        try:
            for site in of:
                found = site.get().double().square().cpu() @ units[site.name]
                sums[site.name] += torch.stack([found, found.square()], 1)
        finally:
            parameter.data = data

    with quiet(model), torch.enable_grad(), _asked(model, sites, take):
        for i, batch in enumerate((progress or iter)(inputs)):
            batch = moved(model, batch, device)
            out = _given(run(model, batch, i))
            if out is None:
                raise ValueError(
                    "the model gives no tensor that depends on its weights, so nothing tells what an error of them "
                    "does to it: use the moments without weights"
                )
            there = _there(batch, out)
            size = float((out.detach() * there).double().square().sum())
            # One v for the sum over a batch tells little.
            for _ in range(draws := DRAWS if is_function(batch) else 1):
                v = torch.randn(out.shape, generator=generator).to(out) * there
                total, runs = total + size, runs + 1
                (out * v).sum().backward(retain_graph=draws > 1)
            del out
    bad = [name for name, squares in sums.items() if not bool(torch.isfinite(squares).all())]
    if bad or not total > 0:
        why = f"gradients of {listed(bad)} are not finite" if bad else "its output is zero throughout"
        raise ValueError(f"no weights of outputs can be had of this model: {why}")
    return sums, total, runs


def _shrunk(sums: Tensor, runs: int) -> Tensor:
    """The sums by row, drawn to their mean by as much of their spread as a few runs leave to chance.

    An output that fires for few inputs may be heard of in none of them; to take it for worthless costs the model what
    it knows of those inputs.
    """
    squares, mean = sums[:, 0], sums[:, 0].mean()
    chance = (sums[:, 1] - squares.square() / runs).mean() * runs / max(1, runs - 1)
    spread = squares.var(correction=1) if len(squares) > 1 else squares.new_zeros(())
    kept = float((1 - chance / spread).clamp(0, 1)) if spread > 0 and runs > 1 else 0.0
    return (mean + kept * (squares - mean)).clamp_min(LEAST * float(mean))


@contextmanager
def _asked(model: nn.Module, sites: Sequence[Site], take: Callable) -> Iterator[None]:
    """Holds hooks that hand over the gradient of each matrix's parameter; what was asked of parameters is put back."""
    named = dict(model.named_parameters(remove_duplicate=False))
    of: dict[nn.Parameter, list[Site]] = {}
    for site in sites:
        layer = site.layer
        place = layer.name.rpartition(".")[0] if layer.form == "parameter" else layer.name
        if (parameter := named.get(".".join(filter(None, [place, layer.key(site.part)])))) is not None:
            of.setdefault(parameter, []).append(site)
    with ExitStack() as held:
        for parameter in dict.fromkeys(model.parameters()):
            if parameter.is_floating_point():
                for own in HOOKS:
                    held.callback(setattr, parameter, own, getattr(parameter, own))
                    setattr(parameter, own, None)
                held.callback(setattr, parameter, "grad", parameter.grad)
                held.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.grad = None
                parameter.requires_grad_(parameter in of)
        for parameter, there in of.items():
            hook = parameter.register_post_accumulate_grad_hook(lambda p, there=there: take(p, there))
            held.callback(hook.remove)
        yield


def _given(output: Any) -> Tensor | None:
    """The tensor that a model's output is measured in; a loss, which it gives when it has labels, is none if it can."""
    found = [t for t in tensors_of(output) if t.requires_grad]
    out = next((t for t in found if t.ndim), next(iter(found), None))
    return torch.view_as_real(out) if out is not None and out.is_complex() else out


def _there(batch: Batch, out: Tensor) -> Tensor | float:
    """1 where the output stands for something, 0 at padding, in a shape that multiplies it."""
    inner = getattr(batch, "batch", batch)
    inner = inner if isinstance(inner, Mapping) else {}
    decodes = any(str(key).startswith("decoder_") for key in inner)  # what comes out stands for what the decoder reads
    mask = inner.get("decoder_attention_mask" if decodes else "attention_mask")
    if isinstance(mask, Tensor) and out.ndim > mask.ndim and out.shape[: mask.ndim] == mask.shape:
        return mask.to(out).reshape(*mask.shape, *[1] * (out.ndim - mask.ndim))
    return 1.0
