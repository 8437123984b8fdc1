"""Survey, plan and trim of a checkpoint that is larger than the memory they may take, through the command line.

    python benchmarks/large_checkpoint.py --gib 12 --work DIR --output benchmarks/results/large_checkpoint.json

The checkpoint: matrices of 1024 x 3072 unless told otherwise, float32, as many as make up the size, each with noise of
its own and 8 planted spikes of 1.5 to 5 times the transition; made one at a time, every byte of it written. Each verb
is a process of its own; `peak_mib` is its largest resident memory, that of the interpreter and all imports included, as
the kernel counts it (`ru_maxrss`), and beside it that of a process that only imports. The target is half of the
parameters, or half of the entries at zero. `spikes` says how many matrices showed how many. DIR holds about twice the
size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

SPIKES = 8


def planted(seed: int, rows: int, cols: int) -> np.ndarray:
    """Return one matrix: noise, and spikes above it."""
    generator = np.random.default_rng(seed)
    W = generator.standard_normal((rows, cols), dtype=np.float32)
    transition = cols**0.5 * (rows / cols) ** 0.25
    U, _ = np.linalg.qr(generator.standard_normal((rows, SPIKES)))
    V, _ = np.linalg.qr(generator.standard_normal((cols, SPIKES)))
    strengths = transition * np.linspace(5, 1.5, SPIKES)
    W += ((U * strengths) @ V.T).astype(np.float32)
    return W * np.float32(0.02)


def write_checkpoint(folder: Path, matrices: int, shards: int, rows: int, cols: int) -> None:
    """Write the checkpoint, a matrix at a time, in plain safetensors: a header, then the bytes."""
    folder.mkdir(parents=True)
    weight_map, nbytes = {}, 4 * rows * cols
    for shard in range(shards):
        names = [f"layers.{i}.weight" for i in range(shard, matrices, shards)]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header = {
            name: {"dtype": "F32", "shape": [rows, cols], "data_offsets": [i * nbytes, (i + 1) * nbytes]}
            for i, name in enumerate(names)
        }
        text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                out.write(planted(int(name.split(".")[1]), rows, cols).data)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": matrices * nbytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def run(arguments: list[str]) -> dict:
    """Return seconds and peak memory of a process, as the kernel accounts for that one child."""
    start = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024, 1),
    }


TOGETHER = """
import sys, spectrim
source, work, key, share = sys.argv[1:]
found = spectrim.survey(source, journal=work + "/journal")
found.to_json(work + "/survey.json")
gate = 1.0 if key == "params" else None
spectrim.trim(source, spectrim.plan(found, gate=gate, **{key: float(share)}), work + "/out")
"""


def measure(source: Path, work: Path, target: str, together: bool) -> dict:
    """Return the figures of the three verbs on a checkpoint, and what they found."""
    verb = ["-m", "spectrim"]
    found = {"imports alone": run(["-c", "import spectrim.cli, spectrim.survey, spectrim.plan, spectrim.trim"])}
    if together:
        found["all three"] = run(["-c", TOGETHER, str(source), str(work), *target.split("=")])
    else:
        found["survey"] = run([*verb, "survey", str(source), "--json", str(work / "survey.json")])
        gate = ["--gate", "1"] if "params" in target else []
        found["plan"] = run([*verb, "plan", str(source), f"--{target}", *gate, "-o", str(work / "plan.json")])
        found["trim"] = run([*verb, "trim", str(source), "--plan", str(work / "plan.json"), "-o", str(work / "out")])
    readings = json.loads((work / "survey.json").read_text())["readings"]
    counts = Counter(reading["spikes"] for reading in readings)
    size = {"before": source, "after": work / "out"}
    found["spikes"] = {str(count): matrices for count, matrices in sorted(counts.items())}
    found["bytes"] = {key: sum(f.stat().st_size for f in at.glob("*.safetensors")) for key, at in size.items()}
    return found


def main() -> None:
    """Make the checkpoint, if it is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=12.0)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for twice the size")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--target", default="params=0.5", help="params=SHARE kept, or zeros=SHARE")
    parser.add_argument("--together", action="store_true", help="one survey and one process for all, from Python")
    parser.add_argument("--shape", nargs=2, type=int, default=[1024, 3072], metavar=("ROWS", "COLS"))
    options = parser.parse_args()
    rows, cols = options.shape
    matrices = round(options.gib * 2**30 / (4 * rows * cols))
    source = options.work / f"checkpoint-{options.gib:g}-{rows}x{cols}"
    if not source.exists():
        part = source.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write_checkpoint(part, matrices, options.shards, rows, cols)
        part.rename(source)
    for name in ("out", "survey.json", "plan.json"):
        place = options.work / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    found = {
        "gib": options.gib,
        "shards": options.shards,
        "matrices": matrices,
        "shape": [rows, cols],
        "planted": SPIKES,
        "target": options.target,
        "threads": len(os.sched_getaffinity(0)),
        **measure(source, options.work, options.target, options.together),
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
