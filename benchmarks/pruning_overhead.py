"""What pruning every 4 epochs costs beside the training of [784, 3000, 3000, 3000, 3000, 500, 10] on the CPU.

    python benchmarks/pruning_overhead.py --threads 2 --output benchmarks/results/pruning_overhead.json

Batches of 128 random images, SGD with momentum: what a step costs does not depend on what is in them. Some steps are
timed and extrapolated to 4 epochs of 60,000 images; one step of the pruner is timed whole, reading, cutting and the
handing over to the optimiser included, at three portions: .98, as at the first cut of a training (all is rebuilt in
place), .5, as at the last (the first layer and the last but one become pairs), and .2 (all become pairs). The share of
decompositions is what the pruner itself counts. Steps and pruner take turns; medians over the rounds. The weights are
the start of a training with signal planted in them, so that there are spikes to keep.

With --device cuda the same there; the bound of a tenth is meant for two threads of a CPU.
"""

import argparse
import json
import os
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from spectrim import Bema
from spectrim.pruner import Pruner

SIZES = (784, 3000, 3000, 3000, 3000, 500, 10)
PORTIONS = (0.98, 0.5, 0.2)
BATCH, ITEMS, EVERY = 128, 60000, 4


def network(sizes: tuple[int, ...], spikes: int = 10) -> nn.Sequential:
    """Torch's start, and in each matrix `spikes` directions of twice to four times the edge of its noise."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        k = min(spikes, inputs, outputs) // 2
        edge = (inputs**0.5 + outputs**0.5) / (3 * inputs) ** 0.5
        left = torch.linalg.qr(torch.randn(outputs, k))[0] * torch.linspace(4, 2, k) * edge
        with torch.no_grad():
            layer.weight += left @ torch.linalg.qr(torch.randn(inputs, k))[0].T
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers)


def settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def step_seconds(net: nn.Module, optimizer: torch.optim.Optimizer, device: str, steps: int) -> float:
    x, y = torch.rand(BATCH, SIZES[0], device=device), torch.randint(0, 10, (BATCH,), device=device)
    taken = []
    for _ in range(steps):
        begun = time.perf_counter()
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        settle(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def one(sizes: tuple[int, ...], portion: float, device: str, steps: int) -> dict:
    net = network(sizes).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
    step_seconds(net, optimizer, device, 2)  # not counted: memory is taken for the first time
    step = step_seconds(net, optimizer, device, steps)
    pruner = Pruner(net, optimizer, portion, every=EVERY, edge=Bema(0.25, 0.9), gate=1.0, floor=10)
    settle(device)
    begun = time.perf_counter()
    changes = pruner.step(EVERY - 1)
    settle(device)
    pruning = time.perf_counter() - begun
    four_epochs = EVERY * -(-ITEMS // BATCH) * step
    return {
        "step": step,
        "four_epochs": four_epochs,
        "pruning": pruning,
        "decomposing": pruner.decomposing,
        "overhead": pruning / four_epochs,
        "share_decomposing": pruner.decomposing / pruning,
        "step_after": step_seconds(net, optimizer, device, steps),
        "cut": [[change.name, change.action, change.rank] for change in changes],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--portions", type=float, nargs="*", default=PORTIONS)
    parser.add_argument("--shrink", type=int, default=1, help="hidden widths divided by this, to try the script out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = (SIZES[0], *(size // options.shrink for size in SIZES[1:-1]), SIZES[-1])
    runs: dict[str, list[dict]] = {str(portion): [] for portion in options.portions}
    for turn in range(options.rounds):
        for portion in options.portions:
            runs[str(portion)].append(one(sizes, portion, options.device, options.steps))
            last = runs[str(portion)][-1]
            costs = f"4 epochs {last['four_epochs']:.1f} s, pruning {last['pruning']:.2f} s, {last['overhead']:.2%}"
            share = f"of it decompositions {last['share_decomposing']:.0%}"
            print(f"round {turn + 1}, portion {portion}: {costs}, {share}", flush=True)
    keys = ("step", "four_epochs", "pruning", "decomposing", "overhead", "share_decomposing", "step_after")
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "device": options.device,
        "torch": torch.__version__,
        "sizes": sizes,
        "batch": BATCH,
        "items": ITEMS,
        "every": EVERY,
        "median": {name: {key: statistics.median(r[key] for r in rs) for key in keys} for name, rs in runs.items()},
        "largest_overhead": max(r["overhead"] for rs in runs.values() for r in rs),
        "cut": {name: rs[-1]["cut"] for name, rs in runs.items()},
    }
    print(json.dumps(result["median"], indent=1))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
