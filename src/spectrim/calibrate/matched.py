"""Inputs brought nearer to what a network was trained on, by what it has stored: pixels changed step by step.

`inverted` takes a few steps down the gradient of the distance to the statistics that the BatchNorms have stored. A
network without BatchNorm stores none; there the images are driven to tokens that are alike in many degrees, as those of
things on a ground are.

References:
    Yin et al., arXiv 1912.08795 (DeepInversion), equation 4: the distance to the running means and variances.
    Li et al., arXiv 2203.02250 (PSAQ-ViT), section 3.2: the entropy of the similarities of patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batch import call
from .inputs import Inputs, fingerprint
from .restated import Restated, stored_norms

LAYERS = 4  # LayerNorms that similarities are taken at, spread over the depth
PAIRS = 256  # of tokens of an image, behind its entropy
WIDTH = 0.05  # of the kernel of the entropy's estimate; similarities lie in [-1, 1]


def distance(model: nn.Module, batch: Any) -> Tensor:
    """Returns how far the statistics before the BatchNorms are from the stored ones; 0 where they are equal.

        mean over norms and channels of (m - m')^2 / v + (s - s')^2 / v

    with m, s the mean and deviation of the batch, m', v = s'^2 what is stored. Gradients pass through.
    """
    terms: list[Tensor] = []

    def hook(module: nn.Module, args: tuple) -> None:
        x = args[0].float()
        around = [d for d in range(x.ndim) if d != 1]
        mean, variance = x.mean(around), x.var(around, unbiased=False)
        stored = module.running_var.float() + module.eps
        apart = (mean - module.running_mean.float()) ** 2
        apart = apart + ((variance + module.eps).sqrt() - stored.sqrt()) ** 2
        terms.append((apart / stored).clamp_max(100).mean())

    handles = [m.register_forward_pre_hook(hook) for m in stored_norms(model)]
    _run(model, batch, handles)
    if not terms:
        raise ValueError("no BatchNorm with stored statistics was run")
    return torch.stack(terms).mean()


def patch_entropy(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
    """Returns the differential entropy of the cosines between tokens of an image, mean over images and some LayerNorms.

        H = -mean_i log mean_j K(u_i - u_j),    u the cosines of `PAIRS` pairs, K a Gaussian of width 0.05

    Patches of noise are all alike, or all unlike: low. Those of things on a ground are alike in many degrees: high.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    if not norms:
        raise ValueError("the model has neither BatchNorm nor LayerNorm: nothing tells what its inputs should do")
    chosen = [norms[i * len(norms) // LAYERS] for i in range(LAYERS)] if len(norms) > LAYERS else norms
    terms: list[Tensor] = []

    def hook(_module: nn.Module, _args: tuple, out: Tensor) -> None:
        if out.ndim != 3 or out.shape[1] < 4:
            return
        unit = nn.functional.normalize(out.float(), dim=2)
        first, second = torch.randint(0, out.shape[1], (2, PAIRS), generator=generator).to(out.device)
        second = torch.where(first == second, (second + 1) % out.shape[1], second)
        u = (unit[:, first] * unit[:, second]).sum(2)
        apart = (u[:, :, None] - u[:, None]) / WIDTH
        density = torch.exp(-0.5 * apart**2).mean(2) / (WIDTH * math.sqrt(2 * math.pi))
        terms.append(-density.log().mean())

    handles = [m.register_forward_hook(hook) for m in dict.fromkeys(chosen)]
    _run(model, batch, handles)
    if not terms:
        raise ValueError("no LayerNorm of the model gives images x tokens x features")
    return torch.stack(terms).mean()


def _run(model: nn.Module, batch: Any, handles: list[RemovableHandle]) -> None:
    """Runs a batch, and takes the hooks off whatever happens."""
    try:
        call(model, batch)
    finally:
        for handle in handles:
            handle.remove()


def _pixels(batch: Any) -> tuple[str | None, Tensor]:
    """Returns the one tensor of floats of a batch, and its name."""
    parts = (
        [(k, v) for k, v in batch.items() if v.is_floating_point()] if isinstance(batch, Mapping) else [(None, batch)]
    )
    if len(parts) != 1 or not isinstance(parts[0][1], Tensor) or not parts[0][1].is_floating_point():
        raise ValueError("only inputs of one tensor of floats (images, spectra, vectors) can be changed step by step")
    return parts[0]


def inverted(model: nn.Module, inputs: Inputs, *, steps: int = 20, rate: float = 0.05, stay: float = 0.01) -> Inputs:
    """Returns the inputs after some steps of Adam towards the statistics that the network has stored.

    Minimised is `distance`, or for a network without BatchNorm minus `patch_entropy`, and `stay` times the mean square
    of the change. Cost: `steps` passes forward and backward over all inputs. The model's gradients, mode and
    statistics are untouched. The same inputs and figures give the same result on the same processor.

    Args:
        model: a live module.
        inputs: of one tensor of floats a batch. Those that are run with the norms at their own statistics are changed
            by the stored ones, and run as before.
        steps: of Adam.
        rate: of Adam, in units of the inputs.
        stay: weight of staying near the inputs.
    """
    if steps < 1 or rate <= 0 or stay < 0:
        raise ValueError(f"steps (1 or more) and rate are positive, stay is not negative: {steps}, {rate}, {stay}")
    generator = torch.Generator().manual_seed(int(inputs.recipe.get("seed", 0)))
    by_norms = bool(stored_norms(model))
    modes = [(m, m.training) for m in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    found, losses = [], []
    try:
        model.eval()
        for p, _ in wanted:
            p.requires_grad_(False)
        for given in inputs:
            batch = given.batch if isinstance(given, Restated) else given
            name, start = _pixels(batch)
            x = start.detach().clone().requires_grad_(True)
            adam = torch.optim.Adam([x], lr=rate)
            for step in range(steps + 1):
                now = x if name is None else {**batch, name: x}
                with torch.enable_grad():
                    goal = distance(model, now) if by_norms else -patch_entropy(model, now, generator)
                    if step in (0, steps):
                        losses.append(goal.item())
                    if step == steps:
                        break
                    (x.grad,) = torch.autograd.grad(goal + stay * (x - start).square().mean(), x)
                adam.step()
            found.append(x.detach() if name is None else {**batch, name: x.detach()})
    finally:
        for module, mode in modes:
            module.training = mode
        for p, flag in wanted:
            p.requires_grad_(flag)
    own = {"steps": steps, "rate": rate, "stay": stay, "goal": "norms" if by_norms else "patch entropy"}
    own |= {"before": sum(losses[::2]) / len(found), "after": sum(losses[1::2]) / len(found)}
    recipe = {**inputs.recipe, "inverted": own, "fingerprint": fingerprint(found)}
    batches = [Restated(part) if isinstance(was, Restated) else part for part, was in zip(found, inputs, strict=True)]
    return Inputs(tuple(batches), recipe)
