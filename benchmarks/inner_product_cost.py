"""What a cut in the inner product of inputs takes: moments, plan and trim of a vision transformer of 22M parameters.

    python benchmarks/inner_product_cost.py --vit vit_s_focus.onnx --output benchmarks/results/inner_product_cost.json

Each run has a process of its own, with the threads asked for. Peaks are of resident memory, stage by stage, in sizes of
the model, above what the process held with all imports and the inputs but before the model; inputs are 128 images of
224 x 224 in batches of 4, "noise" those of `calibrate.synthetic`, and "samples" Gaussian pixels, for what samples cost
does not depend on what they show. "gathered" holds all moments, "streamed" a part at a time. Loading, the making of
noise and the survey stand beside the three stages that are counted: moments, plan, trim; "weights" are a fourth, those
of `calibrate.weighed`, asked for with --weigh. `cpu_seconds` are those of all threads;
`load` is that of the machine at the end of the run, over one minute: beside other work `seconds` say little.
"returned" memory is that of a process started with MALLOC_MMAP_THRESHOLD_=3000000, as the command line sets it: what is
free goes back to the system at once. "kept" is glibc's own way, which keeps blocks of up to 32 MiB for later.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

SIDE, COUNT = 224, 128
LEAN = {"MALLOC_MMAP_THRESHOLD_": "3000000"}
COUNTED = ("moments", "weights", "plan", "trim")


def held(what: str = "VmRSS") -> int:
    """Return the resident memory of this process in KiB, or its peak since the last reset, "VmHWM"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def stage(figures: dict, name: str, act, base: int):
    """Return what `act` returns; its seconds and its peak above `base` in KiB are put down."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start, spent = time.perf_counter(), time.process_time()
    out = act()
    figures[name] = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - spent,
        "peak": held("VmHWM") - base,
    }
    return out


def worker(options: argparse.Namespace) -> dict:
    """Return the figures of one run in this process."""
    from transformers import Dinov2Model

    import spectrim
    from spectrim.calibrate import gather, streamed, synthetic, weighed

    torch.set_num_threads(options.threads)
    torch.linalg.eigvalsh(torch.eye(64, dtype=torch.float64))  # libraries are loaded when they are first called
    generator = torch.Generator().manual_seed(0)
    samples = list(torch.randn(COUNT, 3, SIDE, SIDE, generator=generator).split(4))
    base = held()
    figures: dict = {}
    model = stage(figures, "load", lambda: Dinov2Model.from_pretrained(options.folder).eval(), base)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    parameters = sum(p.numel() for p in model.parameters())
    more: dict = {}
    if options.source == "noise":
        samples.clear()  # the noise takes their place
        samples = stage(figures, "inputs", lambda: synthetic(model, count=COUNT, image_size=SIDE), base)
        more = {"source": "synthetic", "recipe": samples.recipe}
    take = gather if options.how == "gathered" else streamed
    moments = stage(figures, "moments", lambda: take(model, samples, **more), base)
    if options.weigh == "yes":
        moments = stage(figures, "weights", lambda: weighed(moments, model, samples), base)
    found = stage(figures, "survey", lambda: spectrim.survey(model), base)
    target = {"params": options.share} if options.kind == "ranks" else {"zeros": options.share}
    made = stage(figures, "plan", lambda: spectrim.plan(found, moments=moments, **target), base)
    done = stage(figures, "trim", lambda: spectrim.trim(model, made, moments=moments), base)
    counted = [told for name, told in figures.items() if name in COUNTED]
    for told in figures.values():
        told["models"] = round(told.pop("peak") * 1024 / size, 2)
        told |= {key: round(told[key], 1) for key in ("seconds", "cpu_seconds")}
    return {
        "parameters": parameters,
        "seconds": round(sum(told["seconds"] for told in counted), 1),
        "cpu_seconds": round(sum(told["cpu_seconds"] for told in counted), 1),
        "models": max(told["models"] for told in counted),
        "touched": len(done),
        "stages": figures,
    }


def environment(threads: int, memory: str = "kept") -> dict[str, str]:
    """Return what a process is started with, so that every library takes so many threads."""
    own = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]), **own, **LEAN if memory == "returned" else {})


def measured(folder: Path, memory: str, how: str, source: str, kind: str, weigh: str, threads: int) -> dict:
    """Return the figures of one run in a process of its own."""
    asked = {"memory": memory, "how": how, "source": source, "kind": kind, "weigh": weigh, "threads": threads}
    given = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "found.json"
        run = [sys.executable, __file__, *given, "--folder", str(folder), "--worker", "--output", str(out)]
        done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment(threads, memory))
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return {**asked, "load": round(os.getloadavg()[0], 1), **json.loads(out.read_text())}


def written(found: dict | list, file: Path | None) -> None:
    """Write the figures, if a file is named."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit", type=Path, help="vit_s_focus.onnx")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=("returned", "kept"))
    parser.add_argument("--how", choices=("streamed", "gathered"))
    parser.add_argument("--source", choices=("noise", "samples"))
    parser.add_argument("--kind", choices=("zeros", "ranks"))
    parser.add_argument("--weigh", choices=("yes", "no"), help="with the weights of the outputs")
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.worker:
        found = worker(options)
    else:
        found = []
        asked = product(
            (options.memory,) if options.memory else ("returned", "kept"),
            (options.how,) if options.how else ("streamed", "gathered"),
            (options.source,) if options.source else ("noise", "samples"),
            (options.kind,) if options.kind else ("zeros", "ranks"),
            (options.weigh,) if options.weigh else ("no", "yes"),
        )
        with tempfile.TemporaryDirectory() as place:
            # The reader of the file leaves memory behind: the model is loaded from a folder instead.
            code = "import sys; from experiments.tasks.vit_s14 import load; "
            code += "load(sys.argv[1]).save_pretrained(sys.argv[2])"
            subprocess.run([sys.executable, "-c", code, str(options.vit), place], check=True, env=environment(1))
            for one in asked:
                found.append(measured(Path(place), *one, options.threads))
                print(json.dumps(found[-1]), flush=True)
                written(found, options.output)
    written(found, options.output)


if __name__ == "__main__":
    main()
