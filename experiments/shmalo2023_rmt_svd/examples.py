"""Examples 4.3 to 4.7: one arm of one example from one start, as a job; and example 4.1."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from experiments import jobs, training
from experiments.data import Images
from experiments.shmalo2023_rmt_svd import as_executed, printed, starts
from experiments.training import Recipe
from torch import nn

from spectrim import Bema, read_spectrum
from spectrim.linalg import svd

# rate and momentum: those of the notebook; those of the paper's text, which gives a step size and nothing else
SETTINGS = {"notebook": (0.08, 0.9), "text": (0.05, 0.0)}
ARMS = ("non-split", "as executed", "random", "halve", "text")


def recipe(example: str, setting: str, last_relu: bool, epochs: int, width: int = 4) -> Recipe:
    """Returns the recipe of an example, its hidden widths divided by `width`."""
    first, *hidden, final = printed.EXAMPLES[example].sizes
    rate, momentum = SETTINGS[setting]
    sizes = (first, *(round(size / width) for size in hidden), final)
    return Recipe(sizes=sizes, last_relu=last_relu, epochs=epochs, rate=rate, momentum=momentum, batch=128)


def cut_of(arm: str, gate: float, every: int, seed: int) -> training.Cut | None:
    """Returns what an arm does after an epoch."""
    if arm == "non-split":
        return None
    if arm == "text":
        return by_text(gate, every)
    ways = {"as executed": "largest", "random": "random", "halve": "halve"}
    if arm not in ways:
        raise ValueError(f"the arms are {ARMS}, got {arm!r}")
    generator = torch.Generator().manual_seed(seed)
    return as_executed.cutter(every, gate, way=ways[arm], generator=generator)


def by_text(gate: float, every: int, kept: float = 0.55) -> training.Cut:
    """Returns the cut as the text has it, through `spectrim.Pruner`: 45 % of the bulk removed, smallest first.

    The text goes on only if the new layers hold fewer numbers, so a layer that .55 of its short side does not make
    smaller is left alone. What it says of a second split of a half, the pruner does by splitting the product anew.
    """
    made: list[Any] = []

    def cut(net: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> Any:
        from spectrim import Pruner

        if not made:
            small = {
                name
                for name, layer in net.named_modules()
                if isinstance(layer, nn.Linear)
                and kept * min(layer.weight.shape) * sum(layer.weight.shape) < layer.weight.numel()
            }
            only = small.__contains__
            made.append(Pruner(net, optimizer, kept, every=every, edge=Bema(), gate=gate, floor=10, only=only))
        return made[0].step(epoch)

    return cut


def one_arm(
    source: str,
    path: Path | None,
    settings: dict[str, Any],
    arm: str,
    gate: float,
    every: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Returns the record of one arm: course, sizes after every cut, dead and silent classes, ties; a job."""
    images = jobs.images(source, path)
    chosen = Recipe(**settings)

    def watch(net: nn.Module, epoch: int) -> dict[str, Any]:
        return {"silent": starts.silent(net, here)[0], "sizes": as_executed.sizes(net)}

    here = Images(*(part.to(device) for part in asdict_shallow(images).values()))
    net, record = training.fit(chosen, here, seed, cut=cut_of(arm, gate, every, seed), watch=watch, device=device)
    z = starts.logits(net, here.test).cpu()
    tested = starts.judged(z, images.test_labels, chosen.last_relu)
    kept = ("epochs", "train_accuracy", "test_accuracy", "seconds")
    found = {key: record[key] for key in kept} | {"seed": seed, "arm": arm, "gate": gate, "every": every}
    found["epochs"] = {key: found["epochs"][key] for key in ("loss", "test_accuracy", "dead", "params")}
    found |= {"recall": tested["recall"], "dead": tested["dead"], "tied": tested["tied"]}
    found |= {"accuracy_ties": tested["accuracy_ties"], "train_loss": record["train"]["loss"]}
    found["params_start"] = sum(record["start"][key] for key in ("weights", "other"))
    found["silent"] = [seen["silent"] for seen in record["watched"]]
    found["sizes"] = [seen["sizes"] for seen in record["watched"]]
    found["cuts"] = [short(change) for change in record["changes"]]
    return found


def asdict_shallow(images: Images) -> dict[str, torch.Tensor]:
    """Returns the four tensors of the images by name, not copied."""
    return {name: getattr(images, name) for name in ("train", "train_labels", "test", "test_labels")}


def short(change: dict[str, Any]) -> str:
    """Returns one change as a line."""
    if "misfit" not in change:
        return f"epoch {change['epoch']}: {change['name']} {change['action']} rank {change['rank']}"
    seen = "" if change["misfit"] is None else f", misfit {change['misfit']:.3f}, {change['above']} above"
    rank = "" if change["rank"] is None else f" rank {change['rank']}"
    return f"epoch {change['epoch']}: {change['rows']} x {change['cols']} {change['action']}{rank}{seen}"


def curve(
    source: str,
    path: Path | None,
    settings: dict[str, Any],
    ranks: tuple[int, ...],
    seed: int,
    draws: int = 2,
    device: str = "cpu",
) -> dict[str, Any]:
    """Returns example 4.1: the test accuracy against the singular values kept of the first layer, and controls; a job.

    The controls keep as many singular directions drawn by chance, or as many numbers, rank (rows + cols), of the
    largest magnitude. Predicted ranks: that of the notebook, alpha = .25, and that of the library.
    """
    images = jobs.images(source, path)
    net, record = training.fit(Recipe(**settings), images, seed, device=device)
    net = net.cpu()
    W = net.fc1.weight.detach().clone()
    factors, spectrum = svd(W), read_spectrum(W)
    generator = torch.Generator().manual_seed(seed)
    order = W.abs().flatten().argsort(descending=True)

    @torch.no_grad()
    def accuracy(replaced: torch.Tensor) -> float:
        net.fc1.weight.copy_(replaced)
        return training.evaluate(net, images.test, images.test_labels)["accuracy"]

    found: dict[str, Any] = {"seed": seed, "full": accuracy(W), "train_accuracy": record["train_accuracy"]}
    found |= {"recall": record["test"]["recall"], "s": spectrum.s[:150], "shape": list(W.shape)}
    authors, ours = Bema(0.25, 0.1, "authors")(spectrum), Bema()(spectrum)
    found["predicted"] = {"notebook": authors.spikes, "library": ours.spikes}
    found["misfit"] = {"notebook": authors.misfit, "library": ours.misfit}
    wanted = sorted({r for r in (*ranks, authors.spikes, ours.spikes) if r <= factors.rank})
    found["accuracy"] = {str(r): accuracy(factors.truncate(r).dense().float()) for r in wanted}
    found["random"], found["magnitude"] = {}, {}
    for rank in wanted:
        chances = [torch.randperm(factors.rank, generator=generator)[:rank] for _ in range(draws)]
        parts = [(factors.U[:, c] * factors.s[c]) @ factors.Vh[c] for c in chances]
        found["random"][str(rank)] = [accuracy(part.float()) for part in parts]
        mask = torch.zeros(W.numel())
        mask[order[: rank * sum(W.shape)]] = 1
        found["magnitude"][str(rank)] = accuracy(W * mask.reshape(W.shape))
    return found


def settings_of(chosen: Recipe) -> dict[str, Any]:
    """Returns a recipe as plain arguments of a job: what differs from the defaults, so that the list can be read."""
    default = replace(Recipe(sizes=chosen.sizes))
    return {"sizes": chosen.sizes} | {k: v for k, v in asdict(chosen).items() if v != getattr(default, k)}
