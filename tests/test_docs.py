"""What the documents say is run: python blocks, commands, links, and the figures that are kept in result files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared: dict = {}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), shared)


def test_the_quick_start_leaves_what_it_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(ROOT / "README.md", "python")[0]
    shared: dict = {}
    exec(compile(code, "README.md", "exec"), shared)
    assert (tmp_path / "model.html").stat().st_size > 1_000_000
    assert {"model.safetensors", "spectrim.json", "modeling_spectrim.py"} <= {f.name for f in Path("smaller").iterdir()}
    plan, done = shared["plan"], shared["done"]
    assert plan.params_after <= 0.5 * plan.params_before
    assert done.params_after == plan.model_params_after


def test_every_command_of_the_documents_exists():
    shown = subprocess.run([sys.executable, "-m", "spectrim", "--help"], capture_output=True, text=True, check=True)
    named = {
        m
        for page in PAGES
        for m in re.findall(r"\bspectrim\s+(survey|plan|trim|undo|edges|sweep|demo)\b", page.read_text())
    }
    assert {"survey", "plan", "trim"} <= named
    for command in named:
        assert re.search(rf"\b{command}\b", shown.stdout), (
            f"the documents speak of `spectrim {command}`, which is not there"
        )


def test_every_command_is_documented():
    shown = subprocess.run([sys.executable, "-m", "spectrim", "--help"], capture_output=True, text=True, check=True)
    commands = set(re.findall(r"^[│ ]+(survey|edges|plan|trim|sweep|demo)\b", shown.stdout, flags=re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    assert commands
    assert all(re.search(rf"(spectrim|make)\s+{command}\b", readme) for command in commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_coverages_of_the_intervals_page_are_those_of_the_benchmark():
    record = json.loads((ROOT / "benchmarks/results/interval_coverage.json").read_text())
    page = (ROOT / "docs/intervals.md").read_text()
    rows = [[x.strip() for x in line.strip("|\n").split("|")] for line in page.splitlines() if line.startswith("| ")]
    shown = [(row[0], int(row[3]), row[4].split()[0], float(row[5])) for row in rows[1:]]
    assert not record["quick"]
    assert shown == [
        (f"{c['p']} x {c['n']}", c["draws"], f"{c['coverage']:.3f}", round(c["lean"], 2)) for c in record["cells"]
    ]


def test_the_worth_of_small_directions_is_that_of_the_benchmark():
    record = json.loads((ROOT / "benchmarks/results/small_directions.json").read_text())
    page = (ROOT / "docs/ends.md").read_text()
    for basis in ("equalised", "plain"):
        for share in (0.9, 0.75, 0.5):
            rows = [r for r in record["rows"] if (r["basis"], r["share"]) == (basis, share)]
            none, small, structured = rows
            told = f"| {basis} | {share:g} | {none['cosine']:.3f} | {small['cosine']:.3f} ({small['also']}) | "
            assert told + f"{structured['cosine']:.3f} ({structured['also']}) |" in page


def test_the_table_of_cut_spectra_is_that_of_the_benchmark():
    cells = json.loads((ROOT / "benchmarks/results/cut_spectra.json").read_text())["cells"]
    page = (ROOT / "docs/choosing.md").read_text()
    for shape in {name.partition(",")[0] for name in cells}:
        for none, clear, hidden in zip(*(cells[f"{shape}, {s}"] for s in ("none", "clear", "hidden")), strict=True):
            told = [f"{none['variance'][0]:.3f}", f"{none['false_rate']:.2f}"]
            told += [text for x in (clear, hidden) for text in (f"{x['variance'][0]:.3f}", f"{x['spikes']:.1f}")]
            assert f"| {shape} | {none['share']:.0%} | {' | '.join(told)} |" in page


def test_the_figures_of_the_penalties_are_those_of_the_benchmark():
    record = json.loads((ROOT / "benchmarks/results/penalties.json").read_text())
    page = (ROOT / "docs/training.md").read_text()
    assert not record["quick"] and len(record["errors"]) == 5
    for row in record["errors"].values():
        told = " | ".join("<1e-12" if value < 1e-12 else f"{value:.2g}" for value in row.values())
        assert f" | {told} |" in page, told
    narrow, wide = record["costs"].values()
    for name in set(narrow) - {"ms", "stable rank, 3 steps", "stable rank, 12 steps"}:
        told = f"{round(100 * wide[name])} %" if name in wide else "not run"
        assert f" | {round(100 * narrow[name])} % | {told} |" in page, name
