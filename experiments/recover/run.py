"""Recovery without labels: how much of what a cut has cost comes back by least squares, by training, and by both.

    python -m experiments recover --minilm DEFAULT --vit ONNX --cifar ARCHIVE --lite0 CHECKPOINT --images ZIP
        --vit-cifar FOLDER --work DIR                                                     # --toy: seconds, no files
    python -m experiments.recover.figure

`spectrim.recover` gives the weights that a cut has left their least-squares values ("fit"), and trains block after
block to give what the dense model's gives ("train"). Asked is what each of the two brings back, alone and together
("both"), from 128 unlabelled samples that are not scored, and from noise made for the model's own signature.

Cuts: 60 % zeros by global magnitude, and by the alternating step with the moments of the samples or of the noise, which
then are recovered from the same inputs. Half of the numbers stored, in ranks of the plain matrices and of the whitened
ones; nothing is zero there, so that there is nothing to fit. Controls: every cut with nothing done; uniform and random
zeros, recovered too, so that what a recovery can do with any mask is not taken for the worth of one.

Two ways are compared, in pairs, where they differ in the cut alone or in the recovery alone. The best recovery of each
cut is chosen on one half of the items and reported on the other, as is everything else. Seconds are those of the
processor, one thread, of the recovery alone; the cut and the making of the noise are not in them.

The rate is the default of `recover`; of its 100 steps a block a model gets as many as its cost allows: 50 on MiniLM,
100 on the small ViT, 10 on EfficientNet and ViT-S/14. So "train" is a lower bound of what training brings, and
models do not compare in it. The defaults were chosen in trials on MiniLM and ViT-S/14, on items that are scored here
too. Of the ViT's test images the second 500 are scored.

COST on one core: MiniLM 20 min, the small ViT 10, EfficientNet 40, ViT-S/14 30.

EXPECTED OUTCOME, written down before the first whole run, but after single trials of both steps from samples on MiniLM
(cosine .50 to .86) and ViT-S/14 (10.7 to 59.6 %), global magnitude. From samples: (1) on every model, after global
magnitude, both are ahead of each alone, and the fit alone brings back more than half of what both bring back. (2) After
the alternating step the fit adds nothing (less than .01 of cosine), training does. (3) Global magnitude recovered by
both is level with the alternating step alone, and behind the alternating step recovered. (4) A random mask recovered
stays behind global magnitude recovered; a uniform one is level with it on MiniLM. (5) Training closes most of the
distance between plain and whitened ranks, but not all. From noise: (6) less comes back than from samples on every
model, less than half of it on the vision transformers; (7) after the alternating step with samples' or noise's moments
nothing is made worse, in the cosine, by more than .01.

Seen after that and before the first whole run, to find errors and costs: all cells of the small ViT at 5 steps, which
contradicted the last part of (6) there (the fit alone brings back 97 % from samples, 96 % from noise) and left little
for training; on EfficientNet the fit from noise (cosine .23 to .72) and 4 steps (.48); on ViT-S/14 4 steps from samples
(accuracy .10 to .39).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from experiments.data_free_zeros.run import SEEN, slim
from experiments.inner_product import models
from experiments.inner_product.methods import NOTHING, Ranked, Zeroed
from experiments.inner_product.run import size, sources, toy
from experiments.jobs import Job
from experiments.recover.methods import HOW, Given, Once, Then
from experiments.tasks import files

from spectrim.calibrate import synthetic
from spectrim.sweep import CONTROLS, Cell, Sweep, controls, sweep

RATES = {"zeros": 0.6, "ranks": 0.5}
STEPS = {"minilm": 50, "vit_cifar": 100, "efficientnet": 10, "vit_s14": 10, "toy": 20}
DRAWS = 1000
SAMPLES, NOISE = "128 samples", "noise"


class Way(NamedTuple):
    """A cut and a recovery of the table: `how` is empty where nothing is done, `given` then too."""

    cut: str
    how: str = ""
    given: str = ""

    @property
    def recovery(self) -> str:
        """What is done after the cut."""
        return f"{self.how}, {self.given}" if self.how else "nothing"

    @property
    def name(self) -> str:
        """The name of the cell."""
        return f"{self.cut} + {self.recovery}" if self.how else self.cut


ALTERNATE = {SAMPLES: "alternate, 128 samples", NOISE: "alternate, noise"}
WHITENED = {SAMPLES: "whitened ranks, 128 samples", NOISE: "whitened ranks, noise"}


def ways(kind: str) -> list[Way]:
    """Returns the cells of a sweep of zeros or of ranks."""
    if kind == "ranks":
        found = [Way("plain ranks"), *(Way("plain ranks", "train", given) for given in (SAMPLES, NOISE))]
        for given, cut in WHITENED.items():
            found += [Way(cut), Way(cut, "train", given)]
        return found
    found = [Way(cut) for cut in CONTROLS]
    found += [Way("global magnitude", how, given) for given in (SAMPLES, NOISE) for how in HOW]
    found += [Way(cut, "both", SAMPLES) for cut in ("uniform", "random")]
    for given, cut in ALTERNATE.items():
        found += [Way(cut), *(Way(cut, how, given) for how in HOW)]
    return found


def methods(task: Any, samples: models.Batches, kind: str, steps: int, noise: Given) -> dict[str, Any]:
    """Returns the methods of a sweep, by name."""
    of = sources(task, samples)
    given = {SAMPLES: Given(SAMPLES, lambda: samples), NOISE: noise}
    moments = {SAMPLES: of["samples"], NOISE: of["noise"]}
    cuts = controls()
    cuts |= {cut: Once(Zeroed("alternate", moments[name])) for name, cut in ALTERNATE.items()}
    cuts |= {"plain ranks": Ranked(NOTHING)} | {cut: Ranked(moments[name]) for name, cut in WHITENED.items()}

    def method(way: Way) -> Any:
        cut = cuts[way.cut]
        return Then(cut, task.model, way.how, given[way.given], steps, task.only) if way.how else cut

    return {way.name: method(way) for way in ways(kind)}


def measured(name: str, kind: str, steps: int, given: Mapping[str, Path], work: Path) -> dict[str, Any]:
    """Returns one sweep of one model: scores, differences in pairs, and the best recovery of each cut."""
    task, samples = opened(name, given)
    noise = Given(NOISE, cache(lambda: synthetic(task.model, image_size=size(samples))))
    begun = time.process_time()
    _ = noise.batches
    made = time.process_time() - begun
    acts = methods(task, samples, kind, steps, noise)
    found = sweep(task, acts, (RATES[kind],), bootstrap=DRAWS, work=work / f"{name}-{kind}-cells")
    return {
        "sweep": slim(json.loads(found.to_json())),
        "ways": {way.name: list(way) for way in ways(kind)},
        "gains": gains(found, kind),
        "chosen": chosen(found, kind),
        "steps": steps,
        "noise_seconds": made,
    }


def opened(name: str, given: Mapping[str, Path]) -> tuple[Any, models.Batches]:
    """Returns the task of a model and 128 samples that it does not score; of the ViT the later half of the items."""
    if name == "toy":
        return toy()
    task, samples = models.opened(name, given)
    if name == "vit_s14":
        probe = replace(task.probe, dense=task.probe.dense[SEEN:])
        task = replace(task, pixels=task.pixels[SEEN:], labels=task.labels[SEEN:], probe=probe)
    return task, samples


def pairs(kind: str) -> Iterator[tuple[Way, Way]]:
    """Yields the ways that are compared, the second over the first: they differ in one thing, cut or recovery."""
    for one, other in combinations(ways(kind), 2):
        if one.cut == other.cut or one.recovery == other.recovery:
            yield one, other


def gains(found: Sweep, kind: str) -> dict[str, Any]:
    """Returns by how much each way is better than an earlier one: gains[score][way][earlier]."""
    told: dict[str, Any] = {}
    for one, other in pairs(kind):
        first, second = (found.cell(way.name, RATES[kind]) for way in (one, other))
        for score in found.scores if not (first.failed or second.failed) else ():
            of = told.setdefault(score, {}).setdefault(other.name, {})
            of[one.name] = gain(found, second, first, score)
    return told


def gain(found: Sweep, one: Cell, other: Cell, score: str) -> dict[str, float]:
    """Returns the gain of one cell over another on the half that reports."""
    return dict(vars(found.gain(one, other, score, "report")))


def chosen(found: Sweep, kind: str) -> dict[str, Any]:
    """Returns for each cut the recovery with the best cosine on the other half of the items, "nothing" among them."""
    told = {}
    for cut in dict.fromkeys(way.cut for way in ways(kind) if way.how):
        there = [way for way in ways(kind) if way.cut == cut and not found.cell(way.name, RATES[kind]).failed]
        if there:
            best = max(there, key=lambda w: found.cell(w.name, RATES[kind]).scores["cosine"]["choose"].value)
            told[cut] = {"way": best.name, "recovery": best.recovery}
    return told


SECONDS = {"minilm": (1000, 300), "vit_cifar": (500, 150), "efficientnet": (1800, 600), "vit_s14": (1400, 400)}


def make_jobs(given: Mapping[str, Path], work: Path, scale: str) -> dict[str, Job]:
    """Returns the jobs, zeros before ranks of each model."""
    if scale == "toy":
        asked = {"name": "toy", "steps": STEPS["toy"], "work": work, "given": {}}
        return {f"toy {kind}": Job(measured, asked | {"kind": kind}, 5) for kind in RATES}
    there = files.there(given)
    return {
        f"{name} {kind}": Job(
            measured,
            {"name": name, "kind": kind, "steps": STEPS[name], "given": files.Places(given), "work": work},
            SECONDS[name][i],
        )
        for name in SECONDS
        if name in there
        for i, kind in enumerate(RATES)
    }


def main() -> None:
    """Runs the jobs and writes the results."""
    files.main(__doc__.splitlines()[0], Path(__file__).parent, make_jobs, {"draws": DRAWS, "steps": STEPS})


if __name__ == "__main__":
    main()
