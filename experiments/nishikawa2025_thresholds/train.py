"""Trains the networks of this experiment and keeps their weights, before and after, one file a network.

    python -m experiments.nishikawa2025_thresholds.train WEIGHTS --mnist FOLDER --fashion FOLDER --cifar ARCHIVE

COST on one core (AVX-512, otherwise idle): MLP 15 min for two seeds of seven batch sizes, LeNet-5 2 min for two seeds,
the AlexNet-type net 3 min. Files that are there already are not made again. `run.py` reads what this leaves.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from experiments import data
from experiments.nishikawa2025_thresholds import nets


@dataclass(frozen=True)
class Run:
    """One network: what is trained, on which images, how."""

    net: str
    images: str
    batch: int
    seed: int
    epochs: int
    rate: float = 0.02
    momentum: float = 0.9
    decay: float = 0.0

    @property
    def name(self) -> str:
        """The name of the file, without its ending."""
        tail = f"-decay{self.decay:g}" if self.decay else ""
        return f"{self.net}-{self.images}-batch{self.batch}-seed{self.seed}{tail}"


BATCHES = (16, 32, 64, 128, 256, 512, 1024)


def _once(seed: int) -> list[Run]:
    runs = [Run("mlp", "mnist", batch, seed, epochs=10) for batch in BATCHES]
    runs.append(Run("mlp", "mnist", 256, seed, epochs=10, decay=0.002))
    runs.append(Run("lenet5", "fashion", 64, seed, epochs=6))
    if seed == 0:
        runs.append(Run("small_alexnet", "cifar", 64, seed, epochs=4))
    return runs


RUNS = [run for seed in (0, 1) for run in _once(seed)]


def quick(runs: list[Run]) -> list[Run]:
    """Returns a few of the runs, of one epoch each: to see that everything works."""
    return [replace(run, epochs=1) for run in runs if run.seed == 0 and run.batch in (64, 1024)]


def trained(run: Run, images: data.Images, limit: int | None = None) -> dict[str, object]:
    """Returns the weights before and after training, the settings, and both accuracies."""
    generator = torch.Generator().manual_seed(1000 * run.seed + run.batch)
    net = nets.NETS[run.net]()
    nets.glorot(net, generator)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start = time.perf_counter()
    nets.train(
        net,
        images.train[:limit],
        images.train_labels[:limit],
        batch=run.batch,
        epochs=run.epochs,
        rate=run.rate,
        momentum=run.momentum,
        decay=run.decay,
        generator=generator,
    )
    seconds = time.perf_counter() - start
    return {
        "run": asdict(run),
        "before": before,
        "after": net.state_dict(),
        "seconds": seconds,
        "train_accuracy": nets.accuracy(net, images.train[:10000], images.train_labels[:10000]),
        "test_accuracy": nets.accuracy(net, images.test, images.test_labels),
    }


def sources(options: argparse.Namespace) -> dict[str, Path]:
    """Returns the data sets that the command line names."""
    named = {"mnist": options.mnist, "fashion": options.fashion, "cifar": options.cifar}
    return {name: path for name, path in named.items() if path is not None}


def load(name: str, path: Path) -> data.Images:
    """Returns the images of a data set."""
    return data.cifar_images(path) if name == "cifar" else data.idx_images(path)


def arguments(purpose: str) -> argparse.ArgumentParser:
    """Returns the arguments that training and analysis share."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("weights", type=Path, help="folder of trained weights")
    parser.add_argument("--mnist", type=Path, help="folder of the four IDX files of MNIST")
    parser.add_argument("--fashion", type=Path, help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--cifar", type=Path, help="tar archive of CIFAR-10 JPEGs")
    parser.add_argument("--quick", "--toy", dest="quick", action="store_true", help="a few networks of one epoch")
    return parser


def main() -> None:
    """Trains what is missing, in the order of the list, for the data sets that were given."""
    options = arguments("Trains the networks.").parse_args()
    options.weights.mkdir(parents=True, exist_ok=True)
    paths = sources(options)
    kept: dict[str, data.Images] = {}
    for run in quick(RUNS) if options.quick else RUNS:
        file = options.weights / f"{run.name}.pt"
        if run.images not in paths or file.exists():
            continue
        if run.images not in kept:
            kept[run.images] = load(run.images, paths[run.images])
        made = trained(run, kept[run.images])
        torch.save(made, file)
        print(f"{run.name}: test {made['test_accuracy']:.4f}, {made['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
