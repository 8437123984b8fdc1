"""One inner product, several sources: how zeros and ranks do with no data, with noise, and with a handful of samples.

    python -m experiments inner_product --minilm DEFAULT --vit ONNX --cifar ARCHIVE --lite0 CHECKPOINT --images ZIP
        --whisper FOLDER --speech FOLDER --transcripts FILE --work DIR                        # --toy: seconds, no files
    python -m experiments.inner_product.figure

Replacing W by W' costs tr((W - W') C (W - W')^T), C the second moment of the inputs. Asked is how much of what 128
unlabelled samples bring can be had without any: from synthetic inputs run through the model, or from what the network
has stored. And what of it is the step: one pass over the columns as published (SparseGPT, arXiv 2301.00774: damping
.01, the same share of every block of 128 columns), or mask and values sought together (`spectrim.inner.alternate`).

Zeros: global magnitude, uniform and random are in every sweep. Every step stands in the budget of global magnitude and
in the uniform one, so that a budget is not taken for a step; `least damage` is the budget of the noise edge. Ranks: the
plain values, the whitened ones, and whitened ones with the spikes of the plain matrix kept first, or those that lie
above an edge of noise on the whitened matrix itself (`spectrim.inner.edge`: of known covariance, or ScreeNOT).

The shares of 50 to 70 % came first, and at the others what survived them stands beside the published steps.

Noise is damped ten times as much as samples (.1 and .01 of the mean square of an input), for its C is not that of the
data; the figure was chosen on layers of MiniLM and the ViT, by the damage on real inputs. How images and tokens are
made was chosen on the same two models and EfficientNet, on other items of the same tasks for the most part; so Whisper
is the one model that nothing was chosen on. What is chosen from this file is chosen on one half of the items and
reported on the other.

Weighed: outputs count by what the model's own output has of them (`calibrate.weighed`), in the step and in the budget
(`budgets.MarginalDamage`; of ranks, in how they are shared out). These arms were added after all others had been run
on MiniLM and EfficientNet, and after trials of single cells at 60 % zeros and of the ranks on both and the ViT.

COST on one core: MiniLM 45 min, EfficientNet 45, ViT 100, Whisper 120.

EXPECTED OUTCOME, written down before the first whole run, but after trials of single cells at 60 % on MiniLM and
EfficientNet. (1) Without data, at 60 %, more than half of the gap between global magnitude and the published step with
128 samples is closed on MiniLM and the ViT, and all of it on EfficientNet. (2) On every model and rate the alternating
step is ahead of the published one with the same moments and budget. (3) The budget of the edge is ahead of global
magnitude under the same step on MiniLM and behind it on EfficientNet. (4) Keeping spikes first never helps. Before the
edges of whitened matrices were run: (5) neither is ahead of the weighed ranks without an edge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from experiments.data_free_zeros.run import Toy, slim
from experiments.inner_product import models
from experiments.inner_product.methods import MARGINAL, NOTHING, Ranked, Source, Zeroed
from experiments.jobs import Job
from experiments.tasks import files

from spectrim import budgets
from spectrim.calibrate import gather, shift_places, stored, synthetic, weighed
from spectrim.sweep import sweep

RATES = {"zeros": (0.5, 0.6, 0.7), "ranks": (0.5,), "more-zeros": (0.2, 0.3, 0.4, 0.8), "more-ranks": (0.25, 0.67)}
DRAWS = 1000
NOISE_DAMPING = 0.1
PUBLISHED = ("published, 128 samples", "published, 128 samples, uniform")
SURVIVORS = {  # of the first shares, and what they are held against at the others
    "more-zeros": ("weighed, noise", "weighed, 128 samples", *PUBLISHED),
    "more-ranks": ("weighed, noise", "weighed, 128 samples", "whitened, 128 samples", "plain values"),
}
# A model that talks nonsense talks long: fewer ways.
FEWER = {
    ("whisper", "zeros"): (*SURVIVORS["more-zeros"], "alternate, 128 samples", "alternate, noise", "alternate, stored")
}


def sources(task: Any, samples: models.Batches) -> dict[str, Source]:
    """Returns where moments come from, each made when it is first asked for."""
    model, only = task.model, task.only
    side = size(samples)  # of the user's images: what a model says of itself is what it was trained on
    drawn = cache(lambda: synthetic(model, image_size=side))

    def noise():
        return gather(model, drawn(), only=only, source="synthetic", recipe=drawn().recipe)

    real = Source("128 samples", lambda: gather(model, samples, only=only), inputs=samples)
    made = Source("noise" if side in (None, 224) else f"noise of {side} pixels", noise, NOISE_DAMPING)
    return {
        "samples": real,
        "noise": made,
        "weighed samples": Source(f"{real.label}, weighed", lambda: weighed(real.moments, model, samples)),
        "weighed noise": Source(f"{made.label}, weighed", lambda: weighed(made.moments, model, drawn()), NOISE_DAMPING),
        "stored": Source("stored", lambda: stored(model, samples[0], only=only), NOISE_DAMPING),
    }


def size(samples: models.Batches) -> int | None:
    """Returns the side of the images that the samples are, or None where they are something else."""
    first = samples[0].get("pixel_values") if isinstance(samples[0], Mapping) else samples[0]
    return first.shape[-1] if first is not None and first.ndim == 4 else None


def methods(task: Any, samples: models.Batches, kind: str) -> dict[str, Any]:
    """Returns the methods of a sweep of zeros or of ranks, by name."""
    of = sources(task, samples)
    told = {"samples": "128 samples", "noise": "noise", "stored": "stored"}
    if kind == "ranks":
        found = {"plain values": Ranked(NOTHING)}
        for name in told:
            found[f"whitened, {told[name]}"] = Ranked(of[name])
        for name in ("samples", "noise"):
            found[f"weighed, {told[name]}"] = Ranked(of[f"weighed {name}"])
        for name in ("samples", "noise"):
            found[f"spikes first, {told[name]}"] = Ranked(of[name], "spikes")
            found[f"coloured edge first, {told[name]}"] = Ranked(of[f"weighed {name}"], "coloured")
            found[f"ScreeNOT first, {told[name]}"] = Ranked(of[f"weighed {name}"], "screenot")
        return found
    uniform, edge = budgets.Uniform(), budgets.LeastDamage()
    places = cache(lambda: shift_places(task.model, samples[0], only=task.only))
    found = {"magnitude and shift, stored": Zeroed("magnitude", of["stored"], places=places)}
    for name in told:
        found[f"alternate, {told[name]}"] = Zeroed("alternate", of[name])
    for name in ("samples", "noise"):
        found |= {
            f"published, {told[name]}": Zeroed("published", of[name]),
            f"published, {told[name]}, uniform": Zeroed("published", of[name], uniform),
            f"alternate, {told[name]}, uniform": Zeroed("alternate", of[name], uniform),
            f"alternate, {told[name]}, least damage": Zeroed("alternate", of[name], edge),
            f"wanda, {told[name]}, uniform": Zeroed("wanda", of[name], uniform),
        }
        weights = of[f"weighed {name}"]
        found[f"weighed, {told[name]}"] = Zeroed("alternate", weights, MARGINAL)
        found[f"weighed, {told[name]}, global magnitude"] = Zeroed("alternate", weights)
    found["alternate and shift, noise"] = Zeroed("alternate", of["noise"], places=places)
    found["alternate in turn, 128 samples"] = Zeroed("alternate", of["samples"], in_turn=True)
    return found


def measured(
    name: str, kind: str, given: Mapping[str, Path], work: Path, rates: tuple[float, ...] = ()
) -> dict[str, Any]:
    """Returns one sweep of one model, and the gain of every method over each other, with the ends of its interval."""
    task, samples = toy() if name == "toy" else models.opened(name, given)
    made = methods(task, samples, kind.removeprefix("more-"))
    made = {way: made[way] for way in SURVIVORS.get(kind) or FEWER.get((name, kind)) or made}
    found = sweep(task, made, rates or RATES[kind], bootstrap=DRAWS, work=work / f"{name}-{kind}-cells")
    gains: dict[str, Any] = {}
    for one in found:
        others = [cell for cell in found if cell.rate == one.rate and cell is not one and not cell.failed]
        for score in found.scores if not one.failed else ():
            of = gains.setdefault(score, {}).setdefault(f"{one.rate:g}", {}).setdefault(one.method, {})
            for cell in others:
                gain = found.gain(one, cell, score, "report")
                of[cell.method] = [round(x, 4) for x in (gain.value, gain.low, gain.high)]
    return {"sweep": slim(json.loads(found.to_json())), "gains": gains}


@torch.no_grad()
def toy() -> tuple[Any, models.Batches]:
    """Returns the task of a toy run, and samples."""
    task = Toy()
    return task, [torch.randn(64, 48, generator=torch.Generator().manual_seed(1))]


WORTH = {"zeros": 1, "ranks": 0.2, "more-zeros": 0.3, "more-ranks": 0.2}  # of all zeros, in time
SECONDS = {"minilm": 2700, "efficientnet": 2700, "vit_s14": 6000, "whisper": 7200, "vit_cifar": 1500}


def make_jobs(given: Mapping[str, Path], work: Path, scale: str) -> dict[str, Job]:
    """Returns the jobs, zeros of all models first."""
    if scale == "toy":
        asked = {"work": work, "given": {}, "rates": (0.5,)}
        return {f"toy {kind}": Job(measured, {"name": "toy", "kind": kind} | asked, 5) for kind in ("zeros", "ranks")}
    return {
        f"{name} {kind}": Job(
            measured,
            {"name": name, "kind": kind, "given": files.Places(given), "work": work},
            SECONDS[name] * WORTH[kind],
        )
        for kind in RATES
        for name in files.there(given)
    }


def main() -> None:
    """Runs the jobs and writes the results."""
    files.main(
        __doc__.splitlines()[0], Path(__file__).parent, make_jobs, {"draws": DRAWS, "noise damping": NOISE_DAMPING}
    )


if __name__ == "__main__":
    main()
