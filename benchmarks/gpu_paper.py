"""What exact spectra should take on a GPU, on paper: counts of operations and bytes over stated rates, not measured.

    OMP_NUM_THREADS=1 python benchmarks/gpu_paper.py benchmarks/results/gpu_paper.json

The Gram matrix of a p x n matrix takes p^2 n operations (its lower half), its eigenvalues 4/3 p^3: half of them in
matrix products, half in products of a matrix with a vector, which read 8 p^3 / 3 bytes in all and wait for memory. Two
columns for a GPU: the arithmetic alone, and with that half at the speed of memory. The CPU column scales two
measurements made here, at one size, by the same counts.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from spectrim.drivers import eigenvalues
from spectrim.linalg import gram_of

# Data sheets: float64 in matrix products (tensor cores) and bytes of memory a second. The link is PCIe 5.0 x16.
GPUS = {"A100 80 GB": (19.5e12, 2.0e12), "H200": (67e12, 4.8e12)}
LINK = 50e9
SHAPES = {"4096 x 4096": (4096, 4096), "4096 x 14336": (4096, 14336), "8192 x 28672": (8192, 28672)}
LLAMA = {(8192, 8192): 2 * 80, (1024, 8192): 2 * 80, (8192, 28672): 3 * 80}  # q and o; k and v; gate, up and down
MEASURED = 2048  # rows of the square matrix that is measured on the CPU


def operations(p: int, n: int) -> tuple[float, float]:
    """Operations of the Gram matrix, and of its eigenvalues."""
    return p * p * n, 4 / 3 * p**3


def on_gpu(p: int, n: int, rate: float, memory: float) -> dict:
    """Seconds of one spectrum of a p x n matrix in bfloat16."""
    gram, eigen = operations(p, n)
    return {
        "arithmetic": (gram + eigen) / rate,
        "with_memory": (gram + eigen / 2) / rate + 8 * p**3 / 3 / memory,
        "transfer": 2 * p * n / LINK,
    }


def cpu_rates() -> dict:
    """Operations a second of one thread, by the counts above, median of three."""
    W = torch.randn(MEASURED, MEASURED, generator=torch.Generator().manual_seed(0))
    gram_count, eigen_count = operations(MEASURED, MEASURED)
    found: dict[str, list[float]] = {"gram": [], "eigenvalues": []}
    for _ in range(3):
        start = time.process_time()
        gram = gram_of(W, None, None)
        middle = time.process_time()
        eigenvalues(gram, None)
        found["gram"].append(gram_count / (middle - start))
        found["eigenvalues"].append(eigen_count / (time.process_time() - middle))
    return {key: sorted(rates)[1] for key, rates in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates = cpu_rates()
    rows = []
    for name, shapes in {**{k: {v: 1} for k, v in SHAPES.items()}, "Llama-70B, all 560": LLAMA}.items():
        row: dict = {"name": name, "operations": sum(k * sum(operations(*s)) for s, k in shapes.items())}
        for gpu, (rate, memory) in GPUS.items():
            parts = [(k, on_gpu(*s, rate, memory)) for s, k in shapes.items()]
            row[gpu] = {key: sum(k * part[key] for k, part in parts) for key in parts[0][1]}
        row["cpu"] = sum(
            k * (operations(*s)[0] / rates["gram"] + operations(*s)[1] / rates["eigenvalues"])
            for s, k in shapes.items()
        )
        rows.append(row)
    found = {"estimate": True, "cpu_rates": rates, "gpus": GPUS, "link": LINK, "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print("| shape | operations | " + " | ".join(f"{g}: arithmetic, with memory, transfer" for g in GPUS) + " | CPU |")
    for row in rows:
        cells = [" / ".join(f"{row[g][k]:.3g}" for k in ("arithmetic", "with_memory", "transfer")) for g in GPUS]
        print(f"| {row['name']} | {row['operations']:.3g} | {' | '.join(cells)} | {row['cpu']:.4g} s |")


if __name__ == "__main__":
    main()
