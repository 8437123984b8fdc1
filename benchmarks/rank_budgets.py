"""How the ranks of all matrices are best chosen together: budgets for low rank without data, on a real encoder.

    python benchmarks/rank_budgets.py --output benchmarks/results/rank_budgets.json

all-MiniLM-L6-v2, every budget at the same share of its matrix parameters. Quoted is the mean cosine between the
document vectors of the trimmed and of the dense model, which reacts more finely than the scores, and Spearman's
correlation with WordSim-353. Budgets:
  uniform      the same share of every matrix
  edge         every matrix keeps what lies above one common multiple of its own noise edge
  equal        least sum of ||W - W_k||^2 / ||W||^2 for the numbers stored: every matrix counts alike
  absolute     the same with ||W - W_k||^2
  size         the same with rows cols ||W - W_k||^2 / ||W||^2: every entry counts alike (what `plan` does)
The choice of the default was made on this model, so its lead here is partly selection.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np

import spectrim
from spectrim import demo
from spectrim.budgets.ranks import Candidate, allocate
from spectrim.linalg import svd
from spectrim.reading import equalize
from spectrim.survey import inventory

WEIGHTS = {
    "equal": lambda c: 1.0,
    "absolute": lambda c: float(np.sum(c.s**2)),
    "size": lambda c: c.weight,
}


def ranks(budget: str, candidates: list[Candidate], edges: list[float], share: float) -> list[int]:
    """Return the values kept in each matrix under a budget."""
    total = share * sum(c.params for c in candidates)
    if budget in WEIGHTS:
        return allocate([c._replace(weight=WEIGHTS[budget](c)) for c in candidates], total)
    if budget == "uniform":
        return [int(share * c.params / c.side) for c in candidates]
    low, high = 0.0, 10.0  # the common multiple of the edge, by bisection
    for _ in range(50):
        middle = (low + high) / 2
        kept = [max(1, int(np.sum(c.s > middle * edge))) for c, edge in zip(candidates, edges, strict=True)]
        over = sum(c.cost(k) for c, k in zip(candidates, kept, strict=True)) > total
        low, high = (middle, high) if over else (low, middle)
    return [max(1, int(np.sum(c.s > high * edge))) for c, edge in zip(candidates, edges, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.75, 0.5])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from transformers import BertModel

    folder, tasks = demo.model_folder(), demo.load_tasks()
    encoder = demo.Encoder(folder)
    dense = BertModel.from_pretrained(folder, local_files_only=True).eval()
    base = demo.score(dense, encoder, tasks)
    edge = spectrim.Bema()
    found = spectrim.survey(dense, edge)
    sites = {site.name: site for site in inventory(dense).sites}
    result = {"dense": {"wordsim": base.tasks["WordSim-353"]}}
    for basis in ("plain", "equalised"):
        fits = [(r.plain_spectrum, r.plain) if basis == "plain" else (r.spectrum, r.fit) for r in found.fitted]
        candidates = [
            Candidate(r.rows, r.cols, r.params, spectrum.s, fit.spikes, r.rows * r.cols)
            for r, (spectrum, fit) in zip(found.fitted, fits, strict=True)
        ]
        factors = {}
        for r in found.fitted:
            W = sites[r.name].get()
            scales = equalize(W, edge=edge)
            factors[r.name] = (svd(W), None) if basis == "plain" else (svd(scales.apply(W)), scales)
        for budget in ("uniform", "edge", *WEIGHTS):
            for share in options.shares:
                model = copy.deepcopy(dense)
                places = {site.name: site for site in inventory(model).sites}
                kept = ranks(budget, candidates, [fit.edge for _, fit in fits], share)
                for r, c, k in zip(found.fitted, candidates, kept, strict=True):
                    if c.pays(k):
                        cut, scales = factors[r.name]
                        cut = cut.truncate(k)
                        cut = cut if scales is None else cut.rescale(scales.rows, scales.cols)
                        places[r.name].put(cut.dense())
                stored = sum(c.cost(k) for c, k in zip(candidates, kept, strict=True))
                scores = demo.score(model, encoder, tasks, base)
                result[f"{basis} {budget} {share}"] = {
                    "share": stored / sum(c.params for c in candidates),
                    "cosine": scores.cosine,
                    "wordsim": scores.tasks["WordSim-353"],
                }
                row = result[f"{basis} {budget} {share}"]
                figures = f"cosine {row['cosine']:.3f}  WordSim {row['wordsim'][0]:.3f}"
                print(f"{basis:10} {budget:9} {row['share']:.4f}  {figures}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
