"""What keeping small directions that are not random is worth: cosine of MiniLM's document vectors to the dense model's.

    python benchmarks/small_directions.py benchmarks/results/small_directions.json      # about five minutes, two cores

Variants of a plan at each share of the matrix parameters, all else equal:
  none        the bulk goes from its small end on
  small       directions below the lower edge of the noise *and* not random are kept first (what `plan` does in the
              basis that they were found in)
  structured  every direction of the bulk that is not random is kept first
In the plain basis the directions are those of a survey without equalisation, its gate left open.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModel

import spectrim
from spectrim import demo

SHARES = (0.9, 0.75, 0.5)


def variant(found: spectrim.Survey, kind: str) -> spectrim.Survey:
    """Returns the survey as a plan is to see it."""
    readings = []
    for r in found.readings:
        if r.fit is None or kind == "small":
            readings.append(r)
            continue
        changed = replace(r, structured=() if kind == "none" else r.structured)
        if kind == "structured":
            changed.__dict__["low"] = len(r.spectrum.s)  # so that every position counts as below the edge
        readings.append(changed)
    return replace(found, readings=tuple(readings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    folder = demo.model_folder()
    encode, documents = demo.Encoder(folder), demo.load_tasks().documents
    dense = encode(AutoModel.from_pretrained(folder).eval(), documents)
    rows = []
    for basis in ("equalised", "plain"):
        found = spectrim.survey(folder, equalize=basis == "equalised", vectors=True)
        for share in SHARES:
            for kind in ("none", "small", "structured"):
                chosen = spectrim.plan(variant(found, kind), params=share, basis=basis, gate=1)
                model = AutoModel.from_pretrained(folder).eval()
                spectrim.trim(model, chosen)
                with torch.no_grad():
                    cosine = float((encode(model, documents) * dense).sum(1).mean())
                row = {"basis": basis, "share": share, "kept first": kind, "cosine": round(cosine, 4)}
                rows.append(row | {"also": sum(len(e.also) for e in chosen.entries)})
                print(rows[-1], flush=True)
    record = {"spectrim": spectrim.__version__, "documents": len(documents), "rows": rows}
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
