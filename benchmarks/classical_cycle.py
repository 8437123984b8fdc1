"""What a classical cycle costs on a model of the size of ViT-L/16: 24 blocks of 1024, 304 million parameters.

    python benchmarks/classical_cycle.py --threads 2 --output benchmarks/results/classical_cycle.json

Random weights: what a cycle costs does not depend on what is in them. Cycle 1 reads, prunes and decays; cycle 2 thins
the singular vectors out as well. The seconds of a step are summed over the matrices, of which each thread has one in
hand, so that they add up to more than the elapsed time; `cpu` are the seconds of all threads together. Where other work
has the cores at the same time (`load`, the load average when a cycle began) the elapsed time says more about that than
about a cycle, and cpu / threads is what it would take on cores of its own.

The decay in one pass is set beside AdamW's own steps on one matrix, 4096 x 1024, both on one thread and in seconds of
cpu: some steps are timed, and multiplied by what makes them the 5,000 of the first cycle. `agreement` is the largest
relative difference of |w0| - |w| between the two after those few steps in float64, over weights of at least three times
the shift.

`vectors` is what eq. (11) does to noise of the shapes of vision transformers in cycle 2: the share of the entries of U
and V that go, how many directions meet more than the floor and how many are lost, and ||W' - W|| / ||W||; and the same
for the rule without a scale. `float32` is what AdamW's 5,000 steps do in float32, step by step: the mean |w0| - |w| of
weights between two powers of two, over what it is without rounding; `predicted` is the one pass that follows the
rounding.
"""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from spectrim.cycles import classical
from spectrim.decay import Decay, as_executed, decayed
from spectrim.edges import Bema
from spectrim.linalg import leading
from spectrim.onecycle import Classical
from spectrim.spectrum import Spectrum
from spectrim.steps import sparsify_bulk_vectors, sparsify_vectors


class Block(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj, self.attn.num_heads = nn.Linear(d, 3 * d), nn.Linear(d, d), d // 64
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)


class ViT(nn.Module):
    def __init__(self, d: int, depth: int, patch: int = 16, classes: int = 1000):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, d))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, d, patch, patch)
        self.blocks = nn.ModuleList(Block(d) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)


def random_model(d: int, depth: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = ViT(d, depth).requires_grad_(False)
    for p in model.parameters():
        p.normal_(std=0.03, generator=generator)
    return model


def kib(what: str) -> int:
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def cycles(d: int, depth: int, settings: Classical, seed: int) -> list[dict]:
    model = random_model(d, depth, seed)
    turns, found = classical(model, settings, cycles=2), []
    for number in (1, 2):
        load, cpu, wall = os.getloadavg()[0], time.process_time(), time.perf_counter()
        cycle = next(turns)
        found.append(
            {
                "cycle": number,
                "elapsed": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
                "load": load,
                "seconds": dict(cycle.seconds),
                "zeros": cycle.zeros,
                "share": cycle.share,
                "returned": cycle.returned,
                "matrices": len(cycle.changes),
                "params": cycle.params,
            }
        )
    return found


def decay(steps: int, rows: int, cols: int) -> dict:
    """Seconds of one pass over a matrix, of AdamW's steps on it, and how well the two agree."""
    W = 0.03 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))
    some, whole = Decay(steps=steps), Decay()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            begun = time.process_time()
            work()
            taken.append(time.process_time() - begun)
        return min(taken)

    as_executed([W], replace(some, steps=2), [0.01])  # not counted: memory is taken for the first time
    loop = seconds(lambda: as_executed([W], some, [0.01]), 1) / steps * whole.steps
    closed = seconds(lambda: decayed(W, whole, 0.01), 3)
    rounded = seconds(lambda: decayed(W, whole, 0.01, rounded=True), 3)
    torch.set_num_threads(threads)
    wide = W[: rows // 16].double()
    lost = wide.abs() - as_executed([wide], some, [0.01])[0].abs()
    predicted = wide.abs() - decayed(wide, some, 0.01).abs()
    large = wide.abs() > 3 * lost
    return {
        "matrix": [rows, cols],
        "steps": whole.steps,
        "timed_steps": steps,
        "loop": loop,
        "closed": closed,
        "closed_rounded": rounded,
        "ratio": loop / closed,
        "agreement": float(((predicted - lost).abs() / lost)[large].max()),
    }


def vectors(shapes: tuple[tuple[str, int, int], ...]) -> list[dict]:
    """What each of the two rules does to noise, in cycle 2."""
    rho, found = Classical().share(2), []
    for name, rows, cols in shapes:
        W = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))
        factors = leading(W, min(rows, cols))
        edge = Bema(0.25, 0.8)(Spectrum(factors.s.numpy(), rows, cols)).edge
        theta = 1.125e-5 * rho * rows * cols
        eq11, free = sparsify_vectors(factors, edge, rho), sparsify_bulk_vectors(factors, edge)
        row = {"name": name, "rows": rows, "cols": cols, "theta": theta, "floor": theta / 750}
        row["risen"] = int((theta * (1 - factors.s / edge).clamp_min(0) ** 30 > theta / 750).sum())
        row["lost"] = int((~eq11.U.any(0) | ~eq11.Vh.any(1)).sum())
        for rule, thin in (("eq11", eq11), ("free", free)):
            row[rule] = {
                "U": float((thin.U == 0).double().mean()),
                "V": float((thin.Vh == 0).double().mean()),
                "moved": float(torch.linalg.norm(thin.dense() - W) / torch.linalg.norm(W.double())),
            }
        found.append(row)
    return found


def float32(strengths: tuple[float, ...], powers: range, steps: int, count: int = 40) -> dict:
    """How far weights of each size really move in float32, over how far they would without rounding."""
    generator = torch.Generator().manual_seed(0)
    W = torch.cat([2.0**k * (1 + torch.rand(count, generator=generator)) for k in powers])
    how = Decay(steps=steps)
    exact, real, predicted = {}, {}, {}
    for s, loop in zip(strengths, as_executed([W] * len(strengths), how, strengths), strict=True):
        shift = W.double() - decayed(W.double(), how, s)
        for table, after in ((real, loop), (predicted, decayed(W, how, s, rounded=True))):
            table[str(s)] = ((W.double() - after.double()) / shift).view(-1, count).mean(1).tolist()
        exact[str(s)] = float(shift[0])
    return {"steps": steps, "powers": list(powers), "shift": exact, "loop": real, "predicted": predicted}


SHAPES = (
    ("DeiT-Ti proj", 192, 192),
    ("DeiT-S fc1", 1536, 384),
    ("ViT-B proj", 768, 768),
    ("ViT-B qkv", 2304, 768),
    ("ViT-B fc1", 3072, 768),
    ("ViT-L proj", 1024, 1024),
    ("ViT-L fc1", 4096, 1024),
)
STRENGTHS = (1.0, 0.01, 0.002, 0.0005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20, help="of AdamW that are timed")
    parser.add_argument("--script", action="store_true", help="all that the script does, in place of the default")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Classical.as_executed() if options.script else Classical()
    runs = []
    for turn in range(options.rounds):
        runs.append(cycles(options.width, options.depth, settings, seed=turn))
        for row in runs[-1]:
            steps = ", ".join(f"{name} {value:.1f}" for name, value in row["seconds"].items())
            print(f"round {turn + 1}, cycle {row['cycle']}: {row['elapsed']:.1f} s, {row['cpu']:.1f} of cpu; {steps}")
    few = options.depth < 24
    result = {
        "quick": few,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "torch": torch.__version__,
        "width": options.width,
        "depth": options.depth,
        "settings": repr(settings),
        "first_decay": asdict(settings.decay_of(1)),
        "best_elapsed": {str(n): min(run[n - 1]["elapsed"] for run in runs) for n in (1, 2)},
        "best_cpu": {str(n): min(run[n - 1]["cpu"] for run in runs) for n in (1, 2)},
        "model_mib": 4 * runs[0][0]["params"] / 2**20,
        "peak_mib": kib("VmHWM") / 1024,
        "runs": runs,
        "decay": decay(options.steps, 4 * options.width, options.width),
        "vectors": vectors(SHAPES[:2] if few else SHAPES),
        "float32": float32(STRENGTHS, range(-8, 1), 200 if few else 5000),
    }
    print(
        json.dumps(
            {key: value for key, value in result.items() if key not in ("runs", "settings", "first_decay")}, indent=1
        )
    )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
