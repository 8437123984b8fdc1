"""Time and peak memory of a survey of a random ViT-B (86.6 million parameters), next to WeightWatcher and to the floor.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/survey_speed.py --rounds 3 --output benchmarks/results/survey_speed.json

Contenders, each in a process of its own, in turn, `--threads` threads each:
  plain       spectrim.survey(model, equalize=False)
  equalised   spectrim.survey(model)                        both verdicts, the default
  floor       Gram matrix in float64 and eigvalsh of the same matrices by torch, one after another: the arithmetic alone
  best floor  the same by whichever library is faster here, the matrices shared out over the threads
  weightwatcher   WeightWatcher(model).analyze(mp_fit=True): its edge and its spikes
Time is taken inside the process, imports and the making of the model left out; peak memory is the whole process's, with
that of the process before the work beside it. Ratios are medians over rounds of ratios within a round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

CONTENDERS = ("floor", "best floor", "plain", "equalised", "weightwatcher")

WORKER = r"""
import contextlib, io, json, re, sys, time
import torch
from torch import nn
name, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)

class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.attn.num_heads = 12
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

class ViT(nn.Module):
    def __init__(self, d=768, depth=12, patch=16, classes=1000):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, d))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, d, patch, patch)
        self.blocks = nn.ModuleList(Block(d) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

torch.manual_seed(0)
model = ViT().eval()
params = sum(p.numel() for p in model.parameters())
if name == "weightwatcher":
    import weightwatcher
    import logging; logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    import matplotlib; matplotlib.use("Agg")
    watcher = weightwatcher.WeightWatcher(model=model)
    work = lambda: len(watcher.analyze(mp_fit=True))
else:
    import spectrim
    from spectrim.survey import inventory
    if name == "best floor":
        import numpy as np
        from concurrent.futures import ThreadPoolExecutor
        from spectrim.linalg import one_thread
        def one(W):
            W = W.numpy().astype(float)
            np.linalg.eigvalsh(W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W)
        def work():
            with one_thread(), ThreadPoolExecutor(threads) as pool:
                return len(list(pool.map(one, [site.get() for site in inventory(model).sites])))
    elif name == "floor":
        def work():
            for site in (sites := inventory(model).sites):
                W = site.get().double()
                torch.linalg.eigvalsh(W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W)
            return len(sites)
    else:
        work = lambda: len(spectrim.survey(model, equalize=name == "equalised").fitted)
def kib(what):
    return int(re.search(rf"{what}:\s+(\d+)", open("/proc/self/status").read())[1])
before = kib("VmRSS")
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    matrices = work()
seconds = time.perf_counter() - start
peak = kib("VmHWM")
figures = {"seconds": seconds, "matrices": matrices, "params": params}
print(json.dumps(figures | {"peak_mib": peak / 1024, "before_mib": before / 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", nargs="*", default=[], choices=CONTENDERS, help="contenders left out")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    names = [name for name in CONTENDERS if name not in options.without]
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names:
            command = [sys.executable, "-c", WORKER, name, str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            runs[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"round {turn + 1} {name:14} {runs[name][-1]['seconds']:8.2f} s", flush=True)

    def ratio(a: str, b: str) -> float | None:
        if a not in runs or b not in runs:
            return None
        return statistics.median(x["seconds"] / y["seconds"] for x, y in zip(runs[a], runs[b], strict=True))

    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "rounds": options.rounds,
        "median_seconds": {name: statistics.median(r["seconds"] for r in rs) for name, rs in runs.items()},
        "peak_mib": {name: max(r["peak_mib"] for r in rs) for name, rs in runs.items()},
        "peak_above_start_mib": {name: max(r["peak_mib"] - r["before_mib"] for r in rs) for name, rs in runs.items()},
        "ratios": {
            "weightwatcher / plain": ratio("weightwatcher", "plain"),
            "weightwatcher / equalised": ratio("weightwatcher", "equalised"),
            "plain / floor": ratio("plain", "floor"),
            "plain / best floor": ratio("plain", "best floor"),
            "equalised / floor": ratio("equalised", "floor"),
        },
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
