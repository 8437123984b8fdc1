"""Repeats the experiments of Nishikawa, Shimizu and Hashiguchi, arXiv 2512.12911: thresholds, score and accuracy.

    python -m experiments.nishikawa2025_thresholds.train WEIGHTS --mnist FOLDER --fashion FOLDER --cifar ARCHIVE
    python -m experiments.nishikawa2025_thresholds.run WEIGHTS --mnist FOLDER --fashion FOLDER --cifar ARCHIVE

For each trained network and each matrix of it: the edge by BEMA and by Gaussian broadening, the directions above it,
the score Ave_w(phi) against the number of values kept with its knee, and the test accuracy of the network when this one
matrix keeps its largest values alone. Two controls keep as much by other rules: as many singular directions drawn at
random, and as many parameters of largest magnitude, rank (rows + cols) of them.

Only a summary of the paper was at hand: it names an MLP on MNIST (first layer shown), CNNs, a Glorot start, batch sizes
and the figures, no sizes, rates or epochs. Those are chosen here (train.py): MLP 784-512-512-10, batch 16 to 1024,
LeNet-5 on Fashion-MNIST, an AlexNet-type net on CIFAR-10; SGD with momentum .9 at the rate .02, no weight decay, and
one more MLP with decay .002. The definition of Ave_w(phi) is the library's reconstruction: product of the cosines,
weights s.

The start is known, so the experiment has a truth of its own: without decay the weights are the start plus what was
learned, W = R + S, with R the Glorot noise of known level. What of S can leave a trace has a strength above
sigma (p n)**(1/4); the count of such values is called `learned` below. A third control keeps the start whole and cuts
the change alone, R + S_k: it tells directions that were not learned from directions that are not needed.

COST on one core: training 20 min (see train.py), this analysis 15 s a network, 5 min.

EXPECTED OUTCOME, written down before the first run. (1) Ave_w(phi) is largest at rank 1 and falls; its maximum says
nothing. (2) Its knee falls below the number of spikes, for the last spikes have small cosines, and lies between half of
and twice the smallest rank that keeps the accuracy within half a point. (3) Both thresholds keep more than the accuracy
needs; broadening, a bare edge, counts as many spikes as BEMA or a few more. (4) Small batches learn more directions:
spikes and largest singular value fall steadily with the batch size, and 256 is not special. (5) Random directions need
nearly all of the rank; magnitude zeros at equal parameters lose more than truncation at small ranks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import data, records
from experiments.nishikawa2025_thresholds import nets, train
from torch import nn

from spectrim import Bema, Spectrum, edges, read_spectrum, scores
from spectrim.linalg import svd
from spectrim.reading import read_equalised


@dataclass(frozen=True)
class Config:
    """Everything that was chosen in the analysis."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    control_ranks: tuple[int, ...] = (4, 16, 64, 256)
    random_draws: int = 2
    tolerance: float = 0.005  # of accuracy that may be lost
    test_items: int = 10000
    conv_items: int = 2000  # for the cut of a convolution, after which most of the network has to be computed anew


def matrices(net: nn.Sequential) -> dict[str, int]:
    """Returns the layers that hold a matrix of short side 10 or more, with their place in the network."""
    found = {}
    for place, (name, layer) in enumerate(net.named_children()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and min(len(layer.weight), prod(layer.weight.shape[1:])) > 10:
            found[name] = place
    return found


class Cut:
    """The accuracy of a network as one of its matrices is replaced; what comes before that layer is computed once."""

    def __init__(self, net: nn.Sequential, place: int, images: data.Images, config: Config) -> None:
        self.layer, self.rest = net[place], net[place:]
        self.items = config.conv_items if isinstance(self.layer, nn.Conv2d) else config.test_items
        self.labels = images.test_labels[: self.items]
        self.whole = self.layer.weight.detach().clone()
        with torch.no_grad():
            parts = images.test[: self.items].split(2000)
            self.inputs = torch.cat([net[:place](part) for part in parts])

    @torch.no_grad()
    def accuracy(self, W: torch.Tensor) -> float:
        """Returns the accuracy with W, a matrix, in the place of the layer's own; the layer is left as it was."""
        self.layer.weight.copy_(W.reshape(self.whole.shape))
        try:
            return nets.accuracy(self.rest, self.inputs, self.labels)
        finally:
            self.layer.weight.copy_(self.whole)


def spectral(W: torch.Tensor, before: torch.Tensor | None) -> dict[str, Any]:
    """Returns spectrum, thresholds and scores of one matrix, and, if its start is given, what was truly learned."""
    spectrum = read_spectrum(W)
    found: dict[str, Any] = {"rows": W.shape[0], "cols": W.shape[1], "s": spectrum.s, "estimators": {}}
    for name, edge in (("bema", Bema()), ("broadening", edges.Broadening())):
        fit = edge(spectrum)
        ave = scores.average(spectrum, fit.sigma)
        phi = scores.alignments(spectrum, fit.sigma)
        found["estimators"][name] = {
            "sigma": fit.sigma,
            "edge": fit.edge,
            "misfit": fit.misfit,
            "spikes": fit.spikes,
            "reach": scores.reach(phi),
            "knee": scores.knee(ave),
            "peak": scores.peak(scores.gain(spectrum, fit.sigma)),
            "best_of_ave": int(np.argmax(ave)) + 1,
        }
        if name == "bema":  # the other curve lies on it
            found["ave"] = np.round(ave, 4)
    found["equalised_spikes"] = Bema()(read_equalised(W, Bema())[0]).spikes
    if before is not None:
        found["known"] = learned(W, before, spectrum)
    return found


def learned(W: torch.Tensor, before: torch.Tensor, spectrum: Spectrum) -> dict[str, Any]:
    """Returns the truth about a matrix whose start is known: noise level, learned directions, and their Ave_w."""
    sigma = float(before.std())
    change = svd(W - before)
    strengths = change.s.numpy()
    count = int(np.count_nonzero(strengths > sigma * (spectrum.p * spectrum.n) ** 0.25))
    seen = svd(W)
    phi = scores.known_alignments(seen.U, seen.Vh, change.U[:, :count], change.Vh[:count])
    return {
        "sigma": sigma,
        "edge": sigma * (sqrt(spectrum.n) + sqrt(spectrum.p)),
        "learned": count,
        "energy": float(np.sum(strengths[:count] ** 2) / np.sum(strengths**2)),
        "ave": scores.averaged(phi, scores.weigh(spectrum, sigma, "s")).round(4),
    }


def smallest_rank(accuracy: dict[int, float], goal: float, test: Any) -> int:
    """Returns the smallest rank that reaches the goal, by halving the first gap of the grid in which it is reached.

    The accuracy is taken to rise with the rank there; `test` gives it at a rank that is not on the grid, and the
    answers are added to the table.
    """
    ranks = sorted(accuracy)
    high = next(r for r in ranks if accuracy[r] >= goal)
    low = max((r for r in ranks if r < high), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        accuracy[middle] = test(middle)
        low, high = (low, middle) if accuracy[middle] >= goal else (middle, high)
    return high


def truncation(cut: Cut, W: torch.Tensor, marks: list[int], config: Config) -> dict[str, Any]:
    """Returns the accuracy against the rank kept, and the smallest ranks that keep it."""
    factors = svd(W)

    def at(rank: int) -> float:
        return cut.accuracy(factors.truncate(rank).dense().float())

    p, full = factors.rank, cut.accuracy(W)
    wanted = sorted({r for r in (*config.ranks, *marks) if 0 < r < p})
    accuracy = {r: at(r) for r in wanted} | {p: full}
    stderr = sqrt(full * (1 - full) / cut.items)
    ranks = {
        "within_half_a_point": smallest_rank(accuracy, full - config.tolerance, at),
        "within_one_stderr": smallest_rank(accuracy, full - stderr, at),
    }
    table = {str(r): accuracy[r] for r in sorted(accuracy)}
    return {"accuracy": table, "full": full, "items": cut.items, "stderr": stderr, "needed": ranks}


def on_start(cut: Cut, W: torch.Tensor, before: torch.Tensor) -> dict[str, float]:
    """Returns the accuracy when the start is kept whole and only the change is cut, against the rank of the change."""
    change = svd(W - before)
    ranks = [r for r in (4, 8, 16, 24, 32, 48, 64, 128) if r < change.rank]
    return {str(r): cut.accuracy((before.double() + change.truncate(r).dense()).float()) for r in ranks}


def controls(cut: Cut, W: torch.Tensor, seed: int, config: Config) -> dict[str, Any]:
    """Returns the accuracy when as much is kept by chance or by magnitude."""
    factors, draw = svd(W), np.random.default_rng(seed)
    chance: dict[str, list[float]] = {}
    largest: dict[str, float] = {}
    order = W.abs().flatten().argsort(descending=True)
    for rank in (r for r in config.control_ranks if r < factors.rank):
        chance[str(rank)] = []
        for _ in range(config.random_draws):
            kept = np.sort(draw.choice(factors.rank, rank, replace=False))
            part = (factors.U[:, kept] * factors.s[kept]) @ factors.Vh[kept]
            chance[str(rank)].append(cut.accuracy(part.float()))
        # Both factors of that rank hold rank (rows + cols) numbers.
        mask = torch.zeros(W.numel())
        mask[order[: rank * sum(W.shape)]] = 1
        largest[str(rank)] = cut.accuracy(W * mask.reshape(W.shape))
    return {"random": chance, "magnitude": largest}


def network(made: dict[str, Any], images: data.Images, config: Config) -> dict[str, Any]:
    """Returns everything about one trained network."""
    run = train.Run(**made["run"])
    net = nets.NETS[run.net]()
    net.load_state_dict(made["after"])
    full = nets.accuracy(net, images.test[: config.test_items], images.test_labels[: config.test_items])
    layers = {}
    for name, place in matrices(net).items():
        W = net[place].weight.detach().flatten(1).clone()
        before = made["before"][f"{name}.weight"].flatten(1) if run.decay == 0 else None
        found = spectral(W, before)
        cut = Cut(net, place, images, config)
        marks = [fit[key] for fit in found["estimators"].values() for key in ("spikes", "knee", "peak")]
        marks += [found["known"]["learned"]] if "known" in found else []
        found["truncation"] = truncation(cut, W, marks, config)
        if before is not None and name in ("fc1", "fc2"):
            found["on_start"] = on_start(cut, W, before)
        if name == "fc1":
            found["controls"] = controls(cut, W, run.seed, config)
        layers[name] = found
    return {
        "run": asdict(run),
        "test_accuracy": full,
        "train_accuracy": made["train_accuracy"],
        "training_seconds": made["seconds"],
        "layers": layers,
    }


def main() -> None:
    """Analyses every network of the list that has been trained, and keeps what was found beside its weights."""
    parser = train.arguments("Analyses the trained networks.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    config = Config(test_items=1000) if options.quick else Config()
    paths, kept, found = train.sources(options), {}, []
    for run in train.quick(train.RUNS) if options.quick else train.RUNS:
        file, note = options.weights / f"{run.name}.pt", options.weights / f"{run.name}.json"
        if not note.exists():
            if not file.exists() or run.images not in paths:
                print(f"{run.name}: not trained", flush=True)
                continue
            if run.images not in kept:
                kept[run.images] = replace_training(train.load(run.images, paths[run.images]))
            result = network(torch.load(file, weights_only=True), kept[run.images], config)
            note.write_text(json.dumps(records.rounded(result)))
        found.append(json.loads(note.read_text()))
        print(run.name, found[-1]["test_accuracy"], flush=True)
    records.write(options.output, asdict(config), {"networks": found})


def replace_training(images: data.Images) -> data.Images:
    """Returns the images without those of the training set, which the analysis does not look at."""
    return replace(images, train=images.train[:0])


if __name__ == "__main__":
    main()
