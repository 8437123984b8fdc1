"""Damage before cutting: does the estimate of what a cut does to a model rank cuts as their measured scores do?

    python -m experiments model_error --minilm DEFAULT --vit ONNX --cifar ARCHIVE --lite0 CHECKPOINT --images ZIP
        --vit-cifar FOLDER --work DIR                                                     # --toy: seconds, no files
    python -m experiments.model_error.figure

A plan with weighed moments (`calibrate.weighed`) says what it is expected to do to the model's output before the model
is cut, `Plan.model_error`: to first order, errors of different matrices adding as if independent. Asked is whether that
number ranks cuts of one size as the measured scores do, and how near it is as a number.

Fifteen cuts of different kinds, each at 50, 60 and 70 % zeros; nine on ViT-S/14 for its cost. Estimates of each:
weighed, from 128 samples that are not scored and from noise made for the model's own signature (the weights from all of
either, samples=None); the root of the sum of the matrices' own relative damages, without weights; and two controls that
take no inner product, the plain relative error (C = I) and the share of the magnitude that went. They are read off the
matrices, dense and cut; no cut model is run for them. Beside them stands, as the mark that could be reached, what is
seen where it is run: the relative error of its output on the first 32 of the samples. The cut "weighed, 128 samples" is
the one that a plan with such moments makes unless told otherwise: the estimate itself chose it, and may flatter it.

Spearman's correlation is taken within a model and a share, across cuts, with an interval of a bootstrap over the cuts;
a score that is better when higher falls as damage grows, so -1 is perfect. The difference of every other estimate from
the weighed one of samples is drawn on the same cuts. Scores are those of all items: nothing is chosen here.

As a number: outputs at a cosine c to the dense ones are off by sqrt(1 - c^2) of their size, at the best scale. Those
are the outputs that a task scores (pooled and normalised, or less their mean), held out. Beside it stands the error
that the estimate speaks of, of the model's output as it is, seen on those 32 samples.

COST on one core: MiniLM 10 min, the small ViT 5, EfficientNet 15, ViT-S/14 20.

EXPECTED OUTCOME, written down before the first whole run, but after trials: of fourteen of these cuts on MiniLM at all
three shares and on EfficientNet at 50 and 60 %, with other weights (a random error of each matrix, run forward), scored
by the cosine. There the weighed estimate had -.94 to -.96 on MiniLM with samples, -.86 to -.89 with noise; -.95 and
-.90 on EfficientNet; the sums -.90 and -.80; the plain error +.45. So: (1) the weighed estimate of samples has -.9 or
less on the cosine on these two, at 50 and 60 %. New are the two transformers, the backward weights, the cut by the
estimate itself, and the numbers: (2) -.8 or less on all four models at 50 and 60 %, with noise too. (3) It is ahead of
the sums on every model, not by more than the interval. (4) Neither control has -.5 on all models; the plain error has
the wrong sign where steps make up for what they remove. (5) On the tasks' own scores the correlation is weaker, and at
70 % on EfficientNet, near chance, it is nothing to go by. (6) As a number the estimate is within a factor of 1.5 of
what is seen while that is below .5, and too large beyond. (7) The cut chosen by the estimate is estimated too low, by
more than the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from experiments.data_free_zeros.run import slim
from experiments.inner_product import models
from experiments.inner_product.methods import MARGINAL, Source, Zeroed
from experiments.inner_product.run import size, sources, toy
from experiments.jobs import Job
from experiments.model_error.methods import MARK, READ, Estimated, Prices, read
from experiments.tasks import files

from spectrim import budgets
from spectrim.calibrate import synthetic, weighed
from spectrim.moments import Moments
from spectrim.sweep import Sweep, Zeros, controls, spearman, sweep

RATES = (0.5, 0.6, 0.7)
DRAWS = 1000
SAMPLES, NOISE = "128 samples", "noise"
WEIGHED = f"weighed, {SAMPLES}"
ESTIMATES = (WEIGHED, f"weighed, {NOISE}", f"summed, {SAMPLES}", f"summed, {NOISE}", "plain", "magnitude", "seen")
FEWER = {
    "vit_s14": (
        "uniform",
        "global magnitude",
        "random",
        "least damage",
        f"wanda, {SAMPLES}, uniform",
        f"wanda, {NOISE}, uniform",
        f"obs, {SAMPLES}",
        f"obs, {NOISE}",
        f"weighed, {SAMPLES}",
    )
}


def methods(task: Any, samples: models.Batches) -> dict[str, Estimated]:
    """Returns the cuts by name, each with its prices."""
    of = sources(task, samples)
    drawn = cache(lambda: synthetic(task.model, image_size=size(samples)))
    of |= {
        "weighed samples": Source(SAMPLES + ", weighed", lambda: weights(of["samples"], task.model, samples)),
        "weighed noise": Source(NOISE + ", weighed", lambda: weights(of["noise"], task.model, drawn())),
    }
    uniform, edge = budgets.Uniform(), budgets.LeastDamage()
    cuts: dict[str, Any] = controls() | {
        "lamp": Zeros(budgets.Lamp()),
        "least damage": Zeros(edge),
        "global magnitude, evened out": Zeros(budgets.GlobalMagnitude(), "equalised"),
    }
    for name, source in ((SAMPLES, of["samples"]), (NOISE, of["noise"])):
        cuts |= {
            f"wanda, {name}, uniform": Zeroed("wanda", source, uniform),
            f"obs, {name}": Zeroed("obs", source),
            f"obs, {name}, uniform": Zeroed("obs", source, uniform),
        }
    cuts |= {
        f"alternate, {SAMPLES}": Zeroed("alternate", of["samples"]),
        f"alternate, {NOISE}, least damage": Zeroed("alternate", of["noise"], edge),
        f"weighed, {SAMPLES}": Zeroed("alternate", of["weighed samples"], MARGINAL),
    }
    made = {SAMPLES: lambda: of["weighed samples"].moments, NOISE: lambda: of["weighed noise"].moments}
    prices = Prices(task.model, made, first(samples))
    kept = FEWER.get(task.name, cuts)
    return {name: Estimated(cut, prices) for name, cut in cuts.items() if name in kept}


def weights(source: Source, model: Any, inputs: Any) -> Moments:
    """Returns moments with weights of the outputs from all inputs."""
    return weighed(source.moments, model, inputs, samples=None)


def first(samples: models.Batches) -> models.Batches:
    """Returns the first batches, cut where they hold `READ` samples."""
    kept, left = [], READ
    for batch in samples:
        part = {k: v[:left] for k, v in batch.items()} if isinstance(batch, Mapping) else batch[:left]
        kept.append(part)
        left -= len(next(iter(part.values())) if isinstance(part, Mapping) else part)
        if left <= 0:
            break
    return kept


def measured(
    name: str, given: Mapping[str, Path], work: Path, rates: tuple[float, ...] = RATES, draws: int = DRAWS
) -> dict[str, Any]:
    """Returns the sweep of one model, the estimates of its cells, and how the two go together."""
    task, samples = toy() if name == "toy" else models.opened(name, given)
    found = sweep(task, methods(task, samples), rates, bootstrap=draws, work=work / f"{name}-cells")
    told = slim(json.loads(found.to_json()))
    for cell in told["cells"]:
        cell["notes"] = [note for note in cell["notes"] if not note.startswith(MARK)]
    estimates: dict[str, Any] = {f"{rate:g}": {} for rate in rates}
    for cell in found:
        if prices := read(cell.notes):
            estimates[f"{cell.rate:g}"][cell.method] = prices
    return {"sweep": told, "estimates": estimates, "correlations": correlations(found, estimates, draws)}


def correlations(found: Sweep, estimates: Mapping[str, Any], draws: int) -> dict[str, Any]:
    """Returns Spearman's correlation of each estimate with each score, with 95 % intervals, by score and share.

    `behind` is its difference from that of the weighed estimate of samples: > 0 where that one is ahead, where a higher
    score is better.
    """
    told: dict[str, Any] = {}
    for score in found.scores:
        for rate, of in estimates.items():
            scores = [found.cell(method, float(rate)).scores[score]["all"].value for method in of]
            columns = {name: [prices[name] for prices in of.values()] for name in ESTIMATES}
            told.setdefault(score, {})[rate] = ranked(columns, scores, draws)
    return told


def ranked(columns: Mapping[str, Sequence[float]], scores: Sequence[float], draws: int) -> dict[str, Any]:
    """Returns for each estimate its correlation with the scores; all are drawn on the same cuts."""
    generator = np.random.default_rng(0)
    every = [np.arange(len(scores)), *generator.integers(len(scores), size=(draws, len(scores)))]
    table = {name: np.array([values, scores], float).T for name, values in columns.items()}
    rho = {name: np.array([spearman(rows[index]) for index in every]) for name, rows in table.items()}
    return {name: interval(r) | {"behind": interval(r - rho[WEIGHED])} for name, r in rho.items()}


def interval(drawn: np.ndarray) -> dict[str, float | None]:
    """Returns the first figure, and the middle 95 % of the others; None where they are not defined."""
    low, high = np.nanquantile(drawn[1:], (0.025, 0.975)) if np.isfinite(drawn[1:]).any() else (np.nan, np.nan)
    told = {"value": drawn[0], "low": low, "high": high}
    return {key: float(x) if np.isfinite(x) else None for key, x in told.items()}


SECONDS = {"minilm": 600, "vit_cifar": 300, "efficientnet": 900, "vit_s14": 1200}


def make_jobs(given: Mapping[str, Path], work: Path, scale: str) -> dict[str, Job]:
    """Returns the jobs, one a model."""
    if scale == "toy":
        return {"toy": Job(measured, {"name": "toy", "work": work, "given": {}}, 5)}
    there = files.there(given)
    return {
        name: Job(measured, {"name": name, "given": files.Places(given), "work": work}, seconds)
        for name, seconds in SECONDS.items()
        if name in there
    }


def main() -> None:
    """Runs the jobs and writes the results."""
    files.main(__doc__.splitlines()[0], Path(__file__).parent, make_jobs, {"draws": DRAWS})


if __name__ == "__main__":
    main()
