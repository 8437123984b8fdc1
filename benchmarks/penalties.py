"""What the stable-rank penalty is off by, and what the penalties add to a training step.

    python benchmarks/penalties.py benchmarks/results/penalties.json      # a minute, one core

Accuracy: the value over the exact one, less 1, on pure noise, where the largest values crowd together; on noise with
one direction planted at 1.6 times its edge; on values 1/i; and, with vectors that are kept, at the last of 60 steps of
noise that drifts by .2 % of its norm a step. The exact one is from all singular values in float64.

Cost: processor time of the forward and backward pass of a batch of 128 with the penalty, over that without; the least
of several, taken in turn so that all see the same machine, on one thread.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from spectrim.penalties import l1, l2, nuclear, stable_rank

STEPS = (1, 2, 3, 4, 6, 8, 12)
SIZES = ((784, 750, 750, 750, 750, 125, 10), (784, 3000, 3000, 3000, 3000, 500, 10))


def matrices(generator: torch.Generator) -> dict[str, Tensor]:
    """Returns the matrices of the first table, float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    noise, (u, v) = normal(500, 784), (normal(500), normal(784))
    edge = 500**0.5 + 784**0.5
    left, right = torch.linalg.qr(normal(400, 300))[0], torch.linalg.qr(normal(300, 300))[0]
    return {
        "noise, 750 x 750": normal(750, 750),
        "noise, 500 x 784": noise,
        "one direction above it": noise + 1.6 * edge * torch.outer(u / u.norm(), v / v.norm()),
        "values 1/i, 400 x 300": left / torch.arange(1, 301) @ right,
    }


def error(W: Tensor, found: Tensor) -> float:
    """Returns the value found over the exact one, less 1."""
    s = torch.linalg.svdvals(W.double())
    return found.item() / float((s / s[0]).square().sum()) - 1


def kept(steps: int) -> float:
    """Returns the error at the end of a drift, with vectors that are kept."""
    generator = torch.Generator().manual_seed(1)
    W, drift = (torch.randn(500, 784, generator=generator, dtype=torch.float64) for _ in range(2))
    W, vectors = nn.Parameter(W), {}
    for _ in range(60):
        with torch.no_grad():
            W += 0.002 * drift
        found = stable_rank([W], steps, vectors)
    return error(W.detach(), found)


def cost(sizes: tuple[int, ...], rounds: int, exact: bool) -> dict[str, float]:
    """Returns the share of a step that each penalty adds."""
    torch.manual_seed(0)
    layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in pairwise(sizes)]
    net = nn.Sequential(*(layer for pair in layers for layer in pair))[:-1]
    x, y, vectors = torch.randn(128, sizes[0]), torch.randint(10, (128,)), {}
    terms = {
        "none": lambda: 0.0,
        "l1": lambda: l1(net),
        "l2": lambda: l2(net),
        **{f"stable rank, {steps} steps": lambda steps=steps: stable_rank(net, steps) for steps in (3, 6, 12)},
        "stable rank, 2 steps, vectors kept": lambda: stable_rank(net, 2, vectors),
    }
    if exact:
        terms["nuclear"] = lambda: nuclear(net)
    times = dict.fromkeys(terms, float("inf"))
    for _ in range(rounds):
        for name, term in terms.items():
            net.zero_grad()
            start = time.process_time()
            (nn.functional.cross_entropy(net(x), y) + 1e-6 * term()).backward()
            times[name] = min(times[name], time.process_time() - start)
    return {"ms": 1e3 * times["none"]} | {k: v / times["none"] - 1 for k, v in times.items() if k != "none"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--quick", action="store_true", help="small nets only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    table = {
        name: {str(steps): error(W, stable_rank([W], steps)) for steps in STEPS}
        for name, W in matrices(generator).items()
    }
    table["noise, 500 x 784, vectors kept"] = {str(steps): kept(steps) for steps in STEPS}
    costs = {}
    for sizes in SIZES[: 1 if args.quick else 2]:
        small = sizes[1] < 1000
        costs["-".join(map(str, sizes))] = cost(sizes, 25 if small else 8, exact=small)
    result = {"quick": args.quick, "torch": torch.__version__, "errors": table, "costs": costs}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in table.items():
        print(f"{name:<32}", "  ".join(f"{steps}: {value:.1e}" for steps, value in row.items()))
    for name, row in costs.items():
        print(name, f"{row['ms']:.1f} ms", {k: f"{v:+.0%}" for k, v in row.items() if k != "ms"})


if __name__ == "__main__":
    main()
