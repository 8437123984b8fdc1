"""Repeats the experiments of arXiv 2303.08986: singular values cut from layers while they train, split or not.

    python -m experiments shmalo2023_rmt_svd --mnist FOLDER --work FOLDER --workers 2

The paper trains fully connected nets on MNIST, cuts 45 % of the values under the BEMA edge every third epoch, splits
the layer in two where that saves numbers, and reports that nets left alone stay at 78 to 88 % while split ones reach
95 to 98.6 %. Its public notebook keeps 45 % and applies a ReLU to the last layer too. Here:

- `printed.py`: what the printed architectures and totals say about the rule (a test holds it).
- 4.1: accuracy against the values kept of the first layer of [784, 1000, 10], full size, and two controls.
- 4.3 to 4.7 at a quarter of the widths. Arms: left alone; the notebook's cut (`as_executed.py`); the text's cut by
  `spectrim.Pruner`, 45 % removed, the step .05 without momentum; controls at the notebook's setting: a random choice of
  the bulk at the same rank, the bulk halved. Each main arm with and without a ReLU on the last layer.
- starts: how often a class dies, in a shallow and a deep small net, by step size, momentum, last ReLU and start of the
  last biases, and in the net of 4.4 at its own size; silent logits before training, at all sizes; the same when the net
  is cut before any training, as the notebook's own comparison does.
- revivals: nets in which a class has died, treated in eight ways and trained on.

The paper trains for three epochs between cuts. Here the time is divided by three, so the cut comes after every epoch,
and the number of cycles is the paper's: 30, 100, 100, 10, 30. Images are in [0, 1], the start is torch's, batch 128,
the notebook's step .08 with momentum .9, made anew after each cut.

COST on one core: starts 34 min, revivals 10, examples 3.5 hours, the curve 4 min (`--list` for each).
`--scale full` trains the paper's own sizes; that is some 40 hours on two cores, so it wants a GPU.

EXPECTED OUTCOME, written down before the first run.
(1) 4.1: 98.2 to 98.4 %; 20 values give 88 to 93 %; the notebook's predicted rank is 50 to 62 and costs less than .3
points. Random directions at that rank give under 40 %; magnitude at equal numbers beats the cut at small ranks.
(2) Without the last ReLU no class ever dies. With it one dies in most starts of the deep net, whatever the step, and in
some of the shallow one, more with momentum. In the deep net the reason is the start: signals shrink from layer to
layer, so a logit is its bias at first, and those that start negative are silent; with zero biases far fewer die.
(3) Accuracies cluster just under 90, 80, ... %. Class 0 never shows as dead, for ties go to it.
(4) A dead class is not unlearnt: at least nine in ten of its images give all zeros, and the accuracy with ties given to
the dead class is above 95 % where one has died.
(5) Cut before training, the net meets another fate from the same seed, but not a better one on average: the control
that keeps random directions, and the one that only scales the matrices, die as often, within the noise of 20 starts.
(6) A cut revives a dead class in under a third of the cases, and noise of the same size does so as often; making the
optimiser anew does nothing; lifting the bias of the dead class revives it always.
(7) Without the last ReLU split and non-split differ by less than half a point, the split ones lower; the paper's gain
appears only with it, as often as a class comes back.
(8) At a quarter of the widths the gates .012 and .01 are at the size of chance, so the smallest layers do not pass.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import jobs
from experiments.jobs import Job
from experiments.shmalo2023_rmt_svd import examples, printed, starts
from experiments.training import Recipe

# Seconds of an epoch on one core at a quarter of the widths, with what is looked at after it.
EPOCH = {"4.3": 6.0, "4.4": 3.0, "4.5": 3.0, "4.6": 8.5, "4.7": 8.5}


@dataclass(frozen=True)
class Config:
    """What was chosen: sizes, epochs, seeds."""

    source: str = "mnist"
    width: int = 4
    epochs: tuple[tuple[str, int], ...] = (("4.3", 30), ("4.4", 100), ("4.5", 100), ("4.6", 10), ("4.7", 30))
    every: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    curve_sizes: tuple[int, ...] = (784, 1000, 10)
    curve_epochs: int = 10
    curve_ranks: tuple[int, ...] = (*range(0, 100, 5), 128, 192, 256, 384, 512)
    shallow: tuple[int, ...] = (784, 250, 10)
    deep: tuple[int, ...] = (784, 100, 100, 100, 100, 50, 10)
    whole: tuple[int, ...] = (784, 1500, 1500, 500, 500, 10)  # a net of the paper at its own size
    whole_starts: int = 6
    whole_epochs: int = 2
    starts: int = 20
    start_epochs: int = 4
    followed: int = 10
    before: int = 2  # epochs before a dead class is treated
    after: int = 3


FULL = Config(width=1, epochs=tuple((name, example.epochs) for name, example in printed.EXAMPLES.items()), every=3)
TOY = Config(
    source="toy",
    width=100,
    epochs=(("4.3", 2), ("4.5", 2)),
    seeds=(0,),
    curve_sizes=(64, 40, 10),
    curve_epochs=2,
    curve_ranks=(0, 5, 20, 40),
    whole=(64, 60, 30, 10),
    whole_starts=1,
    whole_epochs=1,
    shallow=(64, 30, 10),
    deep=(64, 20, 20, 20, 10),
    starts=2,
    start_epochs=1,
    followed=1,
    before=1,
    after=1,
)


def list_of(config: Config, path: Path | None, device: str = "cpu") -> dict[str, Job]:
    """Returns all jobs, the most important first, and within each kind the first seeds first."""
    found = start_jobs(config, path)
    found |= curve_jobs(config, path, device, config.seeds[:1], True)
    for seed in config.seeds:
        for arm in ("non-split", "as executed"):
            for last_relu in (True, False):
                found |= example_jobs(config, path, device, seed, arm, "notebook", last_relu)
        if seed == config.seeds[0]:
            for arm in ("random", "halve"):
                found |= example_jobs(config, path, device, seed, arm, "notebook", True, ("4.3", "4.5"))
            for arm in ("non-split", "text"):
                for last_relu in (True, False):
                    found |= example_jobs(config, path, device, seed, arm, "text", last_relu, ("4.3", "4.5"))
    found |= curve_jobs(config, path, device, config.seeds, True)
    return found | curve_jobs(config, path, device, config.seeds[:1], False)


def start_jobs(config: Config, path: Path | None) -> dict[str, Job]:
    """Returns the jobs about dead classes: the main cells, then the treatments, then the finer ones."""
    first, second, third = {}, {}, {}
    for net in ("shallow", "deep"):
        sizes = getattr(config, net)
        for name, rate, momentum, relu, bias, before in CELLS:
            case = asdict(starts.Case(sizes, rate, momentum, relu, bias))
            count = config.starts if relu else min(config.starts, 10)
            kwargs = {"source": config.source, "path": path, "case": case, "seeds": tuple(range(count))}
            kwargs |= {"epochs": config.start_epochs, "before": before}
            part = first if name in MAIN else third
            part[f"starts {net} {name}"] = Job(starts.deaths, kwargs, count * config.start_epochs * 1.1)
        case = asdict(starts.Case(sizes, *examples.SETTINGS["notebook"], True))
        kwargs = {"source": config.source, "path": path, "case": case, "seeds": tuple(range(3 * config.starts))}
        kwargs |= {"epochs": config.before, "more": config.after, "most": config.followed}
        cost = config.followed * (2 * config.before + 8 * config.after) * 1.1
        second[f"revivals {net}"] = Job(starts.revivals, kwargs, cost)
    first["at the start"] = Job(starts.at_the_start, at_first(config, path), 60.0)
    for setting in ("notebook", "text"):
        case = asdict(starts.Case(config.whole, *examples.SETTINGS[setting], True))
        kwargs = {"source": config.source, "path": path, "case": case, "seeds": tuple(range(config.whole_starts))}
        name = f"starts whole {setting}"
        third[name] = Job(starts.deaths, kwargs | {"epochs": config.whole_epochs}, 25.0 * config.whole_starts * 2)
    return first | second | third


def at_first(config: Config, path: Path | None) -> dict[str, Any]:
    """Returns the arguments of the job that looks at nets before any training, the paper's own sizes among them."""
    nets = {"shallow": config.shallow, "deep": config.deep}
    if config.source != "toy":
        nets |= {name: example.sizes for name, example in printed.EXAMPLES.items() if name != "4.5"}
        nets |= {
            f"{name} / {config.width}": examples.recipe(name, "text", True, 1, config.width).sizes
            for name in nets
            if "." in name
        }
    return {"source": config.source, "path": path, "nets": nets, "seeds": tuple(range(config.starts))}


# name, step, momentum, last ReLU, biases of the last layer at the start, what is done before training
CELLS = (
    ("notebook", 0.08, 0.9, True, "torch", "none"),
    ("notebook, no last ReLU", 0.08, 0.9, False, "torch", "none"),
    ("text", 0.05, 0.0, True, "torch", "none"),
    ("text with momentum", 0.05, 0.9, True, "torch", "none"),
    ("notebook, last biases zero", 0.08, 0.9, True, "zero", "none"),
    ("notebook, cut before", 0.08, 0.9, True, "torch", "cut"),
    ("notebook, random cut before", 0.08, 0.9, True, "torch", "random"),
    ("notebook, scaled before", 0.08, 0.9, True, "torch", "scaled"),
    ("text, no last ReLU", 0.05, 0.0, False, "torch", "none"),
)
MAIN = ("notebook", "notebook, no last ReLU", "text", "notebook, cut before")


def example_jobs(
    config: Config,
    path: Path | None,
    device: str,
    seed: int,
    arm: str,
    setting: str,
    last_relu: bool,
    only: tuple[str, ...] | None = None,
) -> dict[str, Job]:
    """Returns one arm of the examples from one start. 4.4 and 4.5 have one net; left alone, a run serves both."""
    found = {}
    for example, epochs in config.epochs:
        if (only and example not in only) or (arm == "non-split" and example == "4.4" and "4.5" in dict(config.epochs)):
            continue
        chosen = examples.recipe(example, setting, last_relu, epochs, config.width)
        if config.source == "toy":
            chosen = Recipe(**{**asdict(chosen), "sizes": (64, *chosen.sizes[1:]), "pruning": None})
        kwargs = {"source": config.source, "path": path, "settings": examples.settings_of(chosen), "arm": arm}
        kwargs |= {"gate": printed.EXAMPLES[example].gate, "every": config.every, "seed": seed, "device": device}
        name = f"{example} {arm}, {setting}, {'last ReLU' if last_relu else 'no last ReLU'}, seed {seed}"
        share = 1.0 if arm in ("non-split", "halve") else 0.8
        found[name] = Job(examples.one_arm, kwargs, epochs * EPOCH[example] * share * (4 / config.width) ** 2)
    return found


def curve_jobs(
    config: Config, path: Path | None, device: str, seeds: tuple[int, ...], last_relu: bool
) -> dict[str, Job]:
    """Returns example 4.1, from each start."""
    rate, momentum = examples.SETTINGS["notebook"]
    found = {}
    for seed in seeds:
        chosen = Recipe(
            config.curve_sizes, rate=rate, momentum=momentum, last_relu=last_relu, epochs=config.curve_epochs
        )
        kwargs = {"source": config.source, "path": path, "settings": examples.settings_of(chosen)}
        kwargs |= {"ranks": config.curve_ranks, "seed": seed, "device": device}
        name = f"4.1 {'last ReLU' if last_relu else 'no last ReLU'}, seed {seed}"
        found[name] = Job(examples.curve, kwargs, 6.0 * config.curve_epochs)
    return found


def main() -> None:
    """Runs what is not there yet, and writes results, tables and figure; a toy run writes results alone."""
    parser = jobs.arguments(__doc__.splitlines()[0], Path(__file__).parent)
    options = parser.parse_args()
    config = TOY if options.toy else FULL if options.scale == "full" else Config()
    found = jobs.execute(options, list_of(config, options.mnist, options.device), asdict(config))
    if found is None or options.toy or options.output or options.scale == "full":
        return
    from experiments.shmalo2023_rmt_svd import figure

    figure.main()


if __name__ == "__main__":
    main()
