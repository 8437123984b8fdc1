"""Peak memory of a survey of eight 4096 x 4096 float32 matrices, beside an embedding as large as all of them.

    python benchmarks/survey_memory.py --side 4096 --output benchmarks/results/survey_memory.json

The survey runs in a process of its own. Quoted is its peak resident memory less what it held after the imports, in
units of one matrix (64 MiB at side 4096). The mapped pages of a file count as resident, so they are in the figure.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

WORKER = """
import json, re, sys
import spectrim, spectrim.cli, spectrim.report, torch
torch.set_num_threads(2)
torch.linalg.eigvalsh(torch.eye(64, dtype=torch.float64))
def kib(what):  # getrusage would count what the parent held when it started this process
    return int(re.search(rf"{what}:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = kib("VmRSS")
found = spectrim.survey(sys.argv[1])
after = kib("VmHWM")
figures = {"before_mib": before / 1024, "peak_mib": after / 1024}
print(json.dumps(figures | {"matrices": len(found.fitted), "seconds": found.seconds}))
"""


def measure(side: int, matrices: int = 8) -> dict:
    """Return the figures of one survey; the folder is made for it and removed after."""
    with tempfile.TemporaryDirectory() as folder:
        generator = torch.Generator().manual_seed(0)
        tensors = {f"layers.{i}.weight": torch.randn(side, side, generator=generator) for i in range(matrices)}
        save_file(tensors, Path(folder) / "model-1.safetensors")
        del tensors
        table = torch.randn(matrices * side, side, generator=generator)
        save_file({"embed_tokens.weight": table}, Path(folder) / "model-2.safetensors")
        del table
        done = subprocess.run([sys.executable, "-c", WORKER, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found["above_mib"] = found["peak_mib"] - found["before_mib"]
    found["in_matrices"] = found["above_mib"] / (side * side * 4 / 2**20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = {"side": options.side, **measure(options.side)}
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
