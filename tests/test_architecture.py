"""Who may import whom, what `import spectrim` pulls in, and that the three verbs stay functions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spectrim

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/spectrim"

# The rooms from the bottom up, and what each may import of ours. A folder is one room.
ALLOWED: dict[str, set[str]] = {
    "laws": set(),
    "spectrum": {"laws"},
    "planted": {"laws", "spectrum"},
    "metrics": {"laws", "spectrum"},
    "edges": {"laws", "spectrum", "metrics"},
    "tails": set(),
    "haar": {"laws", "spectrum"},
    "scores": {"laws", "spectrum", "metrics"},
    "verdict": {"spectrum", "edges", "tails"},
    "devices": set(),
    "drivers": set(),
    "linalg": {"drivers"},
    "lanczos": {"drivers", "edges", "linalg", "spectrum"},
    "reading": {"drivers", "lanczos", "linalg", "spectrum"},
    "nulls": {"edges", "linalg", "metrics", "reading", "spectrum"},
    "steps": {"laws", "linalg", "reading"},
    "factored": set(),  # copied beside the weights: it stands alone
    "unpacking": set(),  # so is this
    "packed": {"unpacking"},
    "schedules": set(),
    "penalties": {"factored"},  # a pair shows its product
    "sites": {"linalg"},
    "shards": set(),
    "hub": set(),
    "checkpoint": {"shards", "hub"},
    "writing": {"checkpoint", "shards"},
    "stored": set(),
    "journal": set(),
    "lines": set(),
    "undo": {"checkpoint", "stored", "writing"},
    "adapter": {"checkpoint", "linalg", "sites", "writing"},
    "experts": {"sites"},
    "modules": {"experts", "sites", "factored"},
    "fp8": {"checkpoint"},
    "names": {"sites", "checkpoint", "experts", "fp8"},
    "engines": set(),  # torch for its number of threads alone
    "readings": {"haar", "linalg", "metrics", "reading", "sites", "spectrum", "verdict"},
    "tasks": {"checkpoint", "devices", "engines", "names", "readings", "sites", "stored"},
    "survey": {
        *("edges", "linalg", "reading", "metrics", "spectrum", "sites", "modules", "names", "checkpoint"),
        *("haar", "journal", "lines", "stored", "verdict"),
        *(
            "readings",
            "devices",
        ),
        *("writing",),
        *(
            "tasks",
            "engines",
        ),
    },
    "moment": {"linalg", "reading"},
    "moments": {"checkpoint", "moment", "sites", "writing"},
    "inner": {"edges", "laws", "linalg", "moments", "reading", "spectrum", "steps"},
    "calibrate": {"factored", "linalg", "modules", "moments", "sites", "survey", "readings"},
    "compare": {"checkpoint", "edges", "nulls", "scores", "spectrum", "survey", "verdict", "readings", "writing"},
    "budgets": {
        *("edges", "inner", "laws", "moments", "reading", "sites", "spectrum", "survey", "tails", "verdict"),
        *("readings",),
    },
    "cut": {"inner", "linalg", "moments", "reading", "steps"},
    "entries": {"checkpoint", "steps", "verdict", "writing"},
    "planning": {"budgets", "cut", "entries", "inner", "moments", "sites", "survey", "readings"},
    "plan": {"survey", "budgets", "entries", "moments", "planning", "sites", "verdict"},
    "output": {"writing"},
    "undisturbed": set(),
    "work": {"cut", "entries", "linalg", "moments", "reading", "sites", "survey", "readings"},
    "shapes": {"adapter", "checkpoint", "entries", "names", "packed", "stored", "writing"},
    "pieces": {
        "checkpoint",
        "entries",
        "names",
        "sites",
        "stored",
        "survey",
        "undo",
        "work",
        "writing",
        "engines",
        "tasks",
        "readings",
    },
    "rebuild": {
        *("checkpoint", "entries", "journal", "linalg", "names", "output", "shapes", "sites", "stored"),
        *("survey", "undo", "work"),
        *("writing",),
        *("pieces",),
        *(
            "engines",
            "tasks",
        ),
        *("shards",),
        *("adapter",),
    },
    "trim": {
        *("calibrate", "plan", "survey", "output", "moments", "edges", "undisturbed", "work"),
        *("sites", "modules", "checkpoint", "factored", "rebuild", "shapes"),
        *("readings",),
        *("writing",),
        *("engines",),
    },
    "sparsify": {"modules", "sites", "trim"},
    "held": {"modules", "sites"},
    "frozen": {"held", "sites"},
    "certificate": {"linalg", "modules", "plan", "sites", "trim"},
    "recover": {"calibrate", "frozen", "held", "inner", "modules", "moments", "sites"},
    "restore": {"budgets", "held", "modules", "sites", "steps", "trim"},
    "handover": {"sites"},
    "rule": {"linalg", "reading", "sites", "spectrum", "survey", "trim", "verdict", "readings"},
    "pruner": {
        *("edges", "factored", "handover", "linalg", "modules", "rule", "schedules", "sites", "spectrum"),
        *("survey", "trim", "verdict"),
        *("readings",),
    },
    "decay": set(),
    "onecycle": {"decay", "edges", "linalg", "metrics", "reading", "sites", "spectrum", "steps", "survey", "readings"},
    "cycles": {"handover", "linalg", "modules", "onecycle", "sites", "survey", "trim"},
    "audit": {"plan"},
    "footprint": {"adapter", "audit", "entries", "shapes", "writing"},
    "sweep": {
        "budgets",
        "calibrate",
        "checkpoint",
        "entries",
        "moments",
        "plan",
        "sites",
        "survey",
        "trim",
        "readings",
        *("writing",),
    },
    # surfaces: the report sees records only, the demo and the command line use what a user has
    "report": {"writing", "laws", "spectrum", "metrics"},
    "demo": {"survey", "plan", "trim", "audit", "budgets", "factored", "linalg", "steps"},
    "cli": {
        *("budgets", "calibrate", "checkpoint", "moments", "survey", "compare", "plan", "trim"),
        *("audit", "demo", "edges", "report", "sweep", "undo", "engines"),
        *("writing",),
        *("footprint",),
    },
    "__main__": {"cli"},
}
# A record's `to_html` imports the report inside the method; records of one level may name each other for type checkers;
# the version is asked of the package, inside functions.
UPWARD = {("survey", "report"), ("compare", "report"), ("trim", "report"), ("sweep", "report")}
FOR_TYPES = {("survey", "plan"), ("report", "survey"), ("report", "plan"), ("report", "trim")}
FAMILIES = ("edges", "laws")
NUMPY_ONLY = ("laws", "spectrum", "metrics", "edges", "planted", "tails", "haar", "scores")
HEAVY = ("plotly", "jinja2", "transformers", "timm", "ray", "matplotlib", "rich", "typer", "pandas")


def room_of(file: Path, package: Path = PACKAGE) -> str:
    return file.relative_to(package).parts[0].removesuffix(".py")


def imports_of(source: str, module: str) -> list[tuple[str, str]]:
    """What a module imports, as (dotted name, where): "top", "inside" a function or "types" (under TYPE_CHECKING)."""
    found: list[tuple[str, str]] = []

    def names(node) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = module.split(".")[: -node.level] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        return [f"{stem}.{alias.name}" for alias in node.names] if node.module is None or stem == "spectrim" else [stem]

    def walk(node, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            here = where
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                here = "inside"
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                here = "types"
            if isinstance(child, ast.Import | ast.ImportFrom):
                found.extend((name, where) for name in names(child))
            walk(child, here)

    walk(ast.parse(source), "top")
    return found


def module_of(file: Path, package: Path) -> str:
    parts = ("spectrim", *file.relative_to(package).with_suffix("").parts)
    return ".".join(parts)


def trespasses(package: Path) -> list[str]:
    """Every import that the table does not allow."""
    wrong = []
    for file in sorted(package.rglob("*.py")):
        room, here = room_of(file, package), str(file.relative_to(package))
        if here == "__init__.py":
            continue
        if room not in ALLOWED:
            wrong.append(f"{here}: {room!r} has no place in the table")
            continue
        for name, where in imports_of(file.read_text(), module_of(file, package)):
            top, _, rest = name.partition(".")
            if top == "torch" and room in NUMPY_ONLY:
                wrong.append(f"{here} imports torch")
            if top in HEAVY and where == "top" and room not in ("report", "demo", "cli"):
                wrong.append(f"{here} imports {top} at the top")
            if top != "spectrim" or rest == "__version__":
                continue
            there, _, inner = rest.partition(".")
            if there == room:
                sibling = inner.partition(".")[0]
                if room in FAMILIES and file.name != "__init__.py" and sibling:
                    wrong.append(f"{here} imports its sibling {sibling}")
                continue
            if not there or there in ALLOWED[room]:
                if not there:
                    wrong.append(f"{here} imports the whole package")
                continue
            if where == "inside" and (room, there) in UPWARD:
                continue
            if where == "types" and (room, there) in FOR_TYPES:
                continue
            wrong.append(f"{here} imports {there} ({where})")
    return wrong


def test_imports_follow_the_table():
    assert trespasses(PACKAGE) == []


def test_the_table_has_no_cycle_and_no_dead_room():
    met: set[str] = set()
    for room, below in ALLOWED.items():  # written from the bottom up: each room imports earlier ones only
        assert below <= met, (room, below - met)
        met.add(room)
        assert (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file(), room


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("spectrum.py", "from .survey import Survey", "imports survey"),
        ("laws/marchenko_pastur.py", "from .tracy_widom import TracyWidom", "sibling tracy_widom"),
        ("edges/bema.py", "from spectrim.edges.known import Known", "sibling known"),
        ("edges/bema.py", "from . import known", "sibling known"),
        ("metrics.py", "import torch", "imports torch"),
        ("planted.py", "from torch import nn", "imports torch"),
        ("plan.py", "from .trim import trim", "imports trim"),
        ("plan.py", "def f():\n    from .report import write_html", "imports report (inside)"),
        ("survey.py", "from .report import write_html", "imports report (top)"),
        ("survey.py", "import plotly.graph_objects", "plotly at the top"),
        ("report/render.py", "from ..trim import trim", "imports trim"),
        ("factored.py", "from .linalg import svd", "imports linalg"),
        ("sites.py", "from spectrim import survey", "imports survey"),
        ("sites.py", "import spectrim", "the whole package"),
        ("helpers.py", "x = 1", "no place in the table"),
    ],
)
def test_the_check_can_fail(file, line, complaint, tmp_path):
    copy = tmp_path / "spectrim"
    for source in PACKAGE.rglob("*.py"):
        target = copy / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text())
    with open(copy / file, "a") as handle:
        handle.write(f"\n{line}\n")
    fresh = set(trespasses(copy)) - set(trespasses(PACKAGE))
    assert len(fresh) == 1 and complaint in fresh.pop()


def run(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_importing_the_package_pulls_in_nothing_heavy():
    code = f"import sys, spectrim; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    assert run(code) == "[]"


def test_a_report_free_path_pulls_in_nothing_heavy():
    code = f"""
import sys, torch, spectrim
net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 64))
found = spectrim.survey(net)
done = spectrim.trim(net, spectrim.plan(found, params=0.5))
found.to_json(); str(found); str(done)
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    assert run(code) == "[]"


def test_the_verbs_stay_functions_whatever_is_imported():
    code = """
import importlib, pkgutil, types
import spectrim
for module in pkgutil.walk_packages(spectrim.__path__, "spectrim."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import spectrim.survey, spectrim.plan, spectrim.trim
for verb in (spectrim.survey, spectrim.plan, spectrim.trim):
    assert isinstance(verb, types.FunctionType), verb
import torch
net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 64))
done = spectrim.trim(net, spectrim.plan(spectrim.survey(net), params=0.5))
assert done.params_after < done.params_before
print("done")
"""
    assert run(code) == "done"


def test_every_public_name_is_there():
    assert len(spectrim.__all__) == len(set(spectrim.__all__)) <= 31
    assert list(spectrim.__all__) == sorted(spectrim.__all__)
    for name in spectrim.__all__:
        assert getattr(spectrim, name) is not None
        assert getattr(spectrim, name).__doc__, name
    space: dict = {}
    exec("from spectrim import *", space)
    assert set(spectrim.__all__) <= set(space)


def test_survey_knows_no_class_by_its_name():
    """Layers are told by type or structure: no comparison with the name of a class in a string."""
    for name in ("modules.py", "names.py", "sites.py"):
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            if isinstance(node, ast.Compare):
                assert "__name__" not in ast.dump(node), f"{name}:{node.lineno}"


def test_nothing_global_is_touched_on_import():
    code = """
import random, logging, warnings
import numpy, torch
before = (random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads())
handlers = list(logging.getLogger().handlers)
numbers = numpy.random.get_state()[1].tolist()
import spectrim
net = torch.nn.Sequential(torch.nn.Linear(64, 96))
before = (before[0], torch.get_rng_state().tolist(), *before[2:])
spectrim.trim(net, spectrim.plan(spectrim.survey(net), params=0.5))
after = (random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads())
assert torch.is_grad_enabled()
assert numbers == numpy.random.get_state()[1].tolist()
assert handlers == logging.getLogger().handlers
assert before == after, [a == b for a, b in zip(before, after)]
print("done")
"""
    assert run(code) == "done"


README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i + 1}" for i in range(len(BLOCKS))])
def test_the_python_of_the_readme_runs(block, tmp_path):
    run(block, tmp_path)
