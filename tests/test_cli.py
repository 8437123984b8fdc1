"""The command line as people and pipes use it: tables, JSON, reports, exit status, and quiet where nobody looks."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import spectrim
import spectrim.budgets
from spectrim.cli import app
from spectrim.cli.options import BudgetName, budget
from spectrim.cli.tables import fitted, shortened
from spectrim.compare import compare
from spectrim.plan import DEFAULT_ZEROS
from spectrim.verdict import GATE

ANSI = "\x1b"
PLAIN = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "", "FORCE_COLOR": "", "TERM": "dumb"}


def rand(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with ordinary matrices and some that nobody can judge."""
    state = {f"fc{i}.weight": rand(*shape, seed=i) for i, shape in enumerate([(64, 96), (80, 48), (60, 60)])}
    state |= {"nan.weight": torch.full((30, 40), math.nan), "zero.weight": torch.zeros(30, 30)}
    state |= {"small.weight": rand(3, 5), "norm.weight": torch.ones(64), "wte.weight": rand(100, 20)}
    (tmp_path / "model").mkdir()
    save_file(state, tmp_path / "model/model.safetensors")
    return tmp_path / "model"


def run(*args, env: dict | None = None):
    return CliRunner().invoke(app, [str(arg) for arg in args], env=PLAIN | (env or {}))


def apart(*args, **more) -> subprocess.CompletedProcess:
    """The same in a real process."""
    env = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "PY_COLORS")}
    arguments = [sys.executable, "-m", "spectrim", *map(str, args)]
    return subprocess.run(arguments, capture_output=True, text=True, env=env, check=False, **more)


def assert_done(done) -> None:
    assert done.exit_code == 0, done.output
    assert ANSI not in done.output
    assert done.stderr == ""


def assert_refused(done, status: int, match: str, folder: Path | None = None) -> None:
    """The status, one message on standard error, nothing on standard output, no traceback."""
    assert done.exit_code == status, done.output
    assert re.search(match, done.stderr), done.stderr
    assert done.stdout == "" and ANSI not in done.stderr and "Traceback" not in done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)
    if folder is not None:
        assert not folder.exists()


def table(text: str) -> list[dict[str, str]]:
    """The tab-separated lines of a piped table."""
    lines = [line.split("\t") for line in text.splitlines() if "\t" in line]
    assert len({len(line) for line in lines}) == 1
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_survey_is_a_table_in_a_pipe(model):
    done = run("survey", model)
    assert_done(done)
    rows = {row["matrix"]: row for row in table(done.stdout)}
    assert set(rows) == {"fc0", "fc1", "fc2", "nan", "zero", "small"}
    found = {r.name: r for r in spectrim.survey(model).matrices}
    for name in ("fc0", "fc1", "fc2"):
        assert rows[name]["shape"] == f"{found[name].rows} x {found[name].cols}"
        assert float(rows[name]["sigma"]) == pytest.approx(found[name].fit.sigma, rel=1e-3)
        assert float(rows[name]["edge"]) == pytest.approx(found[name].fit.edge, rel=1e-3)
        assert int(rows[name]["spikes"]) == found[name].fit.spikes
    assert (
        "not finite" in rows["nan"]["note"] and "all zero" in rows["zero"]["note"] and "3 x 5" in rows["small"]["note"]
    )
    assert "3 of 6 matrices judged" in done.stdout and "1 norm, 1 embedding" in done.stdout


def test_survey_writes_json_and_a_page(model, tmp_path):
    done = run("survey", model, "--json", tmp_path / "s.json", "--html", tmp_path / "s.html")
    assert_done(done)
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["schema"] == "spectrim.survey/1" and len(found["readings"]) == 8
    page = (tmp_path / "s.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and "fc1" in page
    assert str(tmp_path / "s.html") in done.stdout


@pytest.mark.parametrize(
    "options",
    [[], ["--edge", "median"], ["--no-equalize"], ["--alpha", "0.25", "--beta", "0.05"], ["--fused", "whole"]],
)
def test_json_on_standard_output_is_json_and_nothing_else(model, options):
    done = run("survey", model, "--json", "-", *options)
    assert_done(done)
    found = json.loads(done.stdout)
    assert found["edge"].startswith("Median" if "median" in options else "Bema")
    assert found["equalised"] is ("--no-equalize" not in options)
    if "--alpha" in options:
        assert "0.25" in found["edge"] and "0.05" in found["edge"]
    nulls = {r["name"] for r in found["readings"] if r["sigma"] is None}
    assert nulls == {"nan", "zero", "small", "norm.weight", "wte.weight"}
    assert all(r["note"] for r in found["readings"] if r["name"] in nulls)


@pytest.mark.parametrize("target", [["--params", "0.5"], ["--zeros", "0.5"], ["--params", "0.5", "--dense"]])
def test_the_whole_path(model, tmp_path, target):
    done = run("plan", model, *target, "-o", tmp_path / "plan.json", "--html", tmp_path / "p.html")
    assert_done(done)
    assert len(table(done.stdout)) == 6 and (tmp_path / "p.html").stat().st_size > 10_000
    chosen = spectrim.Plan.from_json(tmp_path / "plan.json")
    done = run("trim", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "--json", tmp_path / "t.json")
    assert_done(done)
    achieved = json.loads((tmp_path / "t.json").read_text())
    assert achieved["params_after"] == chosen.model_params_after
    assert len(table(done.stdout)) == len(chosen.touched) == len(achieved["changes"])
    stored = load_file(tmp_path / "out/model.safetensors")
    assert sum(t.numel() for t in stored.values()) == chosen.model_params_after
    if "--zeros" in target:
        assert sum(int((stored[f"fc{i}.weight"] == 0).sum()) for i in range(3)) == chosen.zeros
    again = run("survey", tmp_path / "out")
    assert_done(again)
    assert {row["matrix"] for row in table(again.stdout)} == {"fc0", "fc1", "fc2", "nan", "zero", "small"}


def test_trim_writes_a_page_and_json_on_standard_output(model, tmp_path):
    assert_done(run("plan", model, "--params", "0.5", "-o", tmp_path / "plan.json"))
    done = run("trim", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "--json", "-", "--html",
               tmp_path / "t.html")  # fmt: skip
    assert_done(done)
    assert json.loads(done.stdout)["changes"]
    assert "fc1" in (tmp_path / "t.html").read_text()


def test_a_plan_goes_through_a_pipe(model, tmp_path):
    done = run("plan", model, "--params", "0.5", "-o", "-")
    assert_done(done)
    (tmp_path / "plan.json").write_text(done.stdout)
    assert spectrim.Plan.from_json(tmp_path / "plan.json").target == {"params": 0.5}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["survey", "nothing"], "no such file or folder"),
        (["survey", "."], "holds no"),
        (["survey", "model", "--alpha", "0.7"], "alpha"),
        (["survey", "model", "--beta", "0"], "beta"),
        (["survey", "model", "--edge", "mean"], "mean"),
        (["edges", "nothing"], "no such file or folder"),
        (["edges"], "MODEL"),
        (["edges", "model", "--alpha", "0.5"], "alpha"),
        (["edges", "model", "--beta", "1"], "beta"),
        (["edges", "model", "--edge", "bema"], "--edge"),
        (["edges", "model", "--html", "nowhere/e.html"], "no folder nowhere"),
        (["survey", "model", "--fused", "thirds"], "thirds"),
        (["survey"], "MODEL"),
        (["survey", "model", "--no-such-option"], "no-such-option"),
        (["plan", "model"], "one target"),
        (["plan", "model", "--params", "0.5", "--zeros", "0.5"], "one target"),
        (["plan", "model", "--params", "0"], r"\(0, 1\]"),
        (["plan", "model", "--params", "-1"], r"\(0, 1\]"),
        (["plan", "model", "--zeros", "1.5"], r"\(0, 1\]"),
        (["plan", "model", "--params", "nan"], r"\(0, 1\]"),
        (["plan", "model", "--params", "half"], "number"),
        (["plan", "model", "--params", "0.001"], "out of reach"),
        (["plan", "model", "--params", "0.5", "--gate", "2"], "--gate"),
        (["plan", "model", "--params", "0.5", "--basis", "equalised", "--no-equalize"], "leave out --no-equalize"),
        (["plan", "nothing", "--zeros", "0.5", "--vectors"], "leave out --vectors$"),
        (["plan", "nothing", "--zeros", "0.5", "--dense"], "leave out --dense$"),
        (["plan", "nothing", "--zeros", "0.5", "--vectors", "--dense"], "leave out --vectors and --dense$"),
        (["plan", "nothing", "--params", "0.5", "--budget", "lamp"], "--budget shares out zeros"),
        (["plan", "nothing", "--zeros", "0.5", "--budget", "wanda"], "wanda"),
        (["plan", "nothing", "--zeros", "0.5", "--basis", "equalised", "--no-equalize"], "leave out --no-equalize"),
        (["survey", "nothing", "--json", "."], r"--json \. is a folder"),
        (["survey", "nothing", "--html", "model"], "--html model is a folder"),
        (["survey", "nothing", "--html", "-"], "--html - would"),
        (["edges", "nothing", "--json", "model/"], "--json model is a folder"),
        (["edges", "nothing", "--html", "-"], "--html - would"),
        (["plan", "nothing", "--params", "0.5", "-o", "."], r"--output \. is a folder"),
        (["plan", "nothing", "--params", "0.5", "--html", "."], r"--html \. is a folder"),
        (["trim", "model", "--plan", "plan.json", "-o", "out", "--html", "-"], "--html - would"),
        (["trim", "model", "--plan", "plan.json", "-o", "out", "--json", "model"], "--json model is a folder"),
        (["trim", "model", "-o", "out"], "--plan"),
        (["trim", "model", "--plan", "plan.json"], "--output|-o"),
        (["trim", "model", "--plan", "nothing.json", "-o", "out"], "nothing.json"),
        (["trim", "model", "--plan", "model", "-o", "out"], "model"),
        (["trim", "model", "--plan", "broken.json", "-o", "out"], "not valid JSON"),
        (["trim", "nothing", "--plan", "plan.json", "-o", "out"], "no such file or folder"),
        (["trim", "other", "--plan", "plan.json", "-o", "out"], "made for another model"),
        (["trim", "model", "--plan", "plan.json", "-o", "model"], "exists already"),
        (["prune", "model"], "prune"),
    ],
)
def test_a_wrong_request_is_told_and_is_2(arguments, match, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "plan.json" in arguments:
        assert_done(run("plan", "model", "--params", "0.5", "-o", "plan.json"))
    (tmp_path / "broken.json").write_text('{"schema":')
    (tmp_path / "other").mkdir()
    save_file({"fc0.weight": rand(64, 96, 9)}, tmp_path / "other/model.safetensors")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert_refused(run(*arguments), 2, match)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_plan_that_touches_nan_is_refused(model, tmp_path):
    assert_done(run("plan", model, "--params", "0.5", "-o", tmp_path / "plan.json"))
    state = load_file(model / "model.safetensors")
    state["fc1.weight"][0, 0] = math.nan
    save_file(state, model / "model.safetensors")
    done = run("trim", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    assert_refused(done, 2, "fc1 holds NaN", tmp_path / "out")


def test_work_that_fails_is_1(model, tmp_path, monkeypatch):
    assert_done(run("plan", model, "--params", "0.5", "-o", tmp_path / "plan.json"))
    arguments = ("trim", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    module = sys.modules["spectrim.pieces"]
    for error in (OSError(28, "No space left on device"), RuntimeError("what was achieved"), MemoryError("no room")):
        monkeypatch.setattr(module, "write_tensors", lambda *a, e=error: (_ for _ in ()).throw(e))
        assert_refused(run(*arguments), 1, "No space left|what was achieved|no room", tmp_path / "out")
    monkeypatch.setattr(module, "write_tensors", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert_refused(run(*arguments), 130, "stopped", tmp_path / "out")


NO_SPACE = OSError(28, "No space left on device", "/somewhere/.hidden.part")


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("verb", [["survey"], ["edges"], ["plan", "--params", "0.5"], ["trim"]])
def test_a_file_that_cannot_be_written_is_1_and_named_as_asked_for(model, tmp_path, monkeypatch, verb, option):
    monkeypatch.chdir(tmp_path)
    if verb == ["trim"]:
        assert_done(run("plan", model, "--params", "0.5"))
        verb = ["trim", "--plan", "plan.json", "-o", "out"]
    elif verb[0] == "plan" and option == "--json":
        option = "-o"
    Path("sub").mkdir()
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}

    def full(*args):
        raise NO_SPACE

    for place in ("spectrim.cli.console.write_whole", "os.replace"):
        monkeypatch.setattr(place, full)
    more = ["-o", "plan.json"] if verb[0] == "plan" and option == "--html" else []
    if more:
        monkeypatch.setattr("spectrim.cli.cutting.written", lambda *args: False)
    done = run(verb[0], model, *verb[1:], option, "sub/figures", *more)
    assert_refused(done, 1, "could not write sub/figures: No space left on device$")
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before


def test_a_folder_that_vanishes_meanwhile_is_work_that_failed(model, tmp_path, monkeypatch):
    place = tmp_path / "sub"
    for option in ("--json", "--html"):
        place.mkdir()
        looking = sys.modules["spectrim.cli.looking"]

        def surveyed(*args, old=looking.surveyed, **more):
            place.rmdir()
            return old(*args, **more)

        monkeypatch.setattr(looking, "surveyed", surveyed)
        done = run("survey", model, option, place / "s")
        monkeypatch.undo()
        assert_refused(done, 1, f"could not write {re.escape(str(place / 's'))}: No such file or directory$", place)


def test_links_are_followed_and_devices_written_to(model, tmp_path):
    (tmp_path / "far").mkdir()
    for option, name in (("--json", "s.json"), ("--html", "s.html")):
        (tmp_path / "far" / name).write_text("before")
        (tmp_path / name).symlink_to(Path("far") / name)
        assert_done(run("survey", model, option, tmp_path / name))
        assert (tmp_path / name).is_symlink() and (tmp_path / "far" / name).stat().st_size > 2000
        assert_done(run("survey", model, option, "/dev/null"))
        assert Path("/dev/null").is_char_device()
    assert sorted(path.name for path in tmp_path.rglob("*.part")) == []


def commands() -> dict:
    root = typer.main.get_command(app)
    return {"": root, **root.commands}


@pytest.mark.parametrize("name", commands())
def test_help_tells_every_option(name):
    done = run(*([name] if name else []), "--help")
    assert_done(done)
    for parameter in commands()[name].params:
        assert all(option in done.stdout for option in parameter.opts if option.startswith("-"))
        if getattr(parameter, "help", None):
            assert parameter.help.split(":")[0][:40] in " ".join(done.stdout.split())
    for below in getattr(commands()[name], "commands", {}):
        assert re.search(rf"\b{below}\b", done.stdout)
    assert {"survey", "edges", "plan", "trim", "demo"} <= set(commands())


def test_the_defaults_of_the_options_are_those_of_the_functions():
    """They are written out in the options, so that help needs no torch."""
    options = {p.name: p.default for p in commands()["plan"].params}
    helps = {p.name: p.help for p in commands()["plan"].params}
    assert (options["alpha"], options["beta"]) == (spectrim.Bema().alpha, spectrim.Bema().beta)
    assert options["gate"] is None and str(GATE) in helps["gate"]
    assert options["by"] is None and type(budget_of(helps["by"])) is type(DEFAULT_ZEROS)
    assert options["edge"] == "bema" and options["vectors"] is False


def budget_of(text: str):
    """The budget that the help names as the usual one."""
    return budget(BudgetName(re.search(r"default: ([\w-]+)", text)[1]))


def test_every_budget_has_a_name_here():
    classes = {made for made in map(vars(spectrim.budgets).get, spectrim.budgets.__all__) if isinstance(made, type)}
    assert {type(budget(name)) for name in BudgetName} == classes - {
        spectrim.budgets.Allotment,
        spectrim.budgets.Target,
        spectrim.budgets.MarginalDamage,  # needs moments, and is what a plan takes that is given some
    }
    assert budget(None) is None


def test_zeros_by_a_budget_in_the_equalised_basis(model, tmp_path):
    done = run("plan", model, "--zeros", "0.4", "--budget", "spectral-edge", "--basis", "equalised", "--gate", "0.5",
               "-o", tmp_path / "plan.json")  # fmt: skip
    assert_done(done)
    chosen = spectrim.Plan.from_json(tmp_path / "plan.json")
    assert chosen.budget.startswith("SpectralEdge(") and chosen.model.gate == 0.5
    assert {e.basis for e in chosen.touched} == {"equalised"} and "by SpectralEdge" in done.stdout
    assert chosen.zeros == round(0.4 * chosen.params_before)
    assert_done(run("trim", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out"))


@pytest.mark.parametrize("more", [["--basis", "equalised"], ["--no-equalize"]])
def test_a_plan_keeps_small_directions_that_are_not_random(tmp_path, more):
    """One small value with a vector on three rows: found, named in the plan, and kept by the cut."""
    W, u = rand(96, 128), torch.eye(96)[:3].sum(0) / 3**0.5
    W -= torch.outer(u, 0.99 * (u @ W))  # along u a hundredth is left of it
    save_file({"a.weight": W}, tmp_path / "a.safetensors")
    done = run("plan", tmp_path / "a.safetensors", "--params", "0.5", "--vectors", "--gate", "1", "-o", "-", *more)
    assert_done(done)
    (entry,) = json.loads(done.stdout)["entries"]
    assert entry["action"] == "split" and 95 in entry["also"]
    # The page of the trim looks at what the plan's own survey looked at, and shows what was kept.
    (tmp_path / "plan.json").write_text(done.stdout)
    done = run("trim", tmp_path / "a.safetensors", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "--html",
               tmp_path / "t.html")  # fmt: skip
    assert_done(done)
    (layer,) = data_of(tmp_path / "t.html")["layers"]
    even = "--no-equalize" not in more
    assert [v["basis"] for v in layer["views"]] == (["equalised", "plain"] if even else ["plain"])
    assert 95 in layer["views"][0]["kept"]["others"]
    assert 96 in [rank for rank, _ in layer["views"][0]["structured"]]


def data_of(page: Path) -> dict:
    """The figures that a page was made from."""
    return json.loads(page.read_text().partition('id="report-data">')[2].partition("</script>")[0])


def test_the_page_of_a_trim_is_surveyed_without_vectors_where_the_plan_names_none(model, tmp_path):
    assert_done(run("plan", model, "--params", "0.5", "--no-equalize", "-o", tmp_path / "plan.json"))
    done = run("trim", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "--html", tmp_path / "t.html")
    assert_done(done)
    layers = [x for x in data_of(tmp_path / "t.html")["layers"] if x["views"]]
    assert len(layers) == 3
    for layer in layers:
        assert [(v["basis"], v["structured"]) for v in layer["views"]] == [("plain", None)]


def test_exit_statuses_are_in_the_help():
    text = " ".join(run("--help").stdout.split())
    assert "0 done, 1 the work failed, 2 the request was wrong" in text


def test_names_with_brackets_are_not_taken_for_markup(tmp_path):
    state = {"attn.qkv.weight": rand(96, 32), "odd[red]name.weight": rand(40, 40)}
    save_file(state, tmp_path / "a.safetensors")
    rows = {row["matrix"] for row in table(run("survey", tmp_path / "a.safetensors").stdout)}
    assert rows == {"attn.qkv[q]", "attn.qkv[k]", "attn.qkv[v]", "odd[red]name"}


def test_names_with_control_characters_break_no_line(tmp_path):
    names = ["tab\there", "line\nhere", "red\x1b[31mhere", "bell\x07here", "c1\x9bhere"]
    save_file({f"{name}.weight": rand(20, 30) for name in names}, tmp_path / "a.safetensors")
    seen = [r"tab\there", r"line\nhere", r"red\x1b[31mhere", r"bell\x07here", r"c1\x9bhere"]
    for command in ("survey", "edges"):
        done = run(command, tmp_path / "a.safetensors")
        assert_done(done)
        assert {row["matrix"] for row in table(done.stdout)} == set(seen)
    on = on_a_terminal("survey", tmp_path / "a.safetensors")
    assert all(name in on for name in seen) and "\x1b[31mhere" not in on and "\x07" not in on
    save_file({"other.weight": rand(20, 30)}, tmp_path / "b.safetensors")
    assert_done(run("plan", tmp_path / "a.safetensors", "--zeros", "0.5", "--gate", "1", "-o", tmp_path / "plan.json"))
    done = run("trim", tmp_path / "b.safetensors", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    assert_refused(done, 2, r"here", tmp_path / "out")  # in errors too


# Estimators side by side.

ESTIMATORS = ["bema", "median", "broadening", "gavish-donoho", "screenot"]


def test_edges_is_a_table_of_estimators_in_a_pipe(model):
    done = run("edges", model)
    assert_done(done)
    rows = {row["matrix"]: row for row in table(done.stdout)}
    told = {row.reading.name: row for row in compare(spectrim.survey(model)).rows}
    assert set(rows) == set(told) == {"fc0", "fc1", "fc2", "nan", "zero", "small"}
    heads = list(next(iter(rows.values())))
    assert heads == ["matrix", "bema", "edge", "law ends, 90 %", *ESTIMATORS[1:], "agree", "verdict", "note"]
    for name in ("fc0", "fc1", "fc2"):
        assert {key: int(rows[name][key]) for key in ESTIMATORS} == {k: f.spikes for k, f in told[name].fits.items()}
        assert rows[name]["verdict"] == told[name].verdict.kind
        assert rows[name]["agree"] == f"{told[name].verdict.agreement:.0%}"
        low, high = told[name].fits["bema"].edge_interval
        assert rows[name]["law ends, 90 %"] == f"{low:.4g} to {high:.4g}"
        assert rows[name]["edge"] == f"{told[name].fits['bema'].edge:.4g}"
    for name in ("nan", "zero", "small"):
        assert all(rows[name][key] == "" for key in (*ESTIMATORS, "agree", "verdict")) and rows[name]["note"]
    assert "3 of 6 matrices judged" in done.stdout and "Spikes in all: bema" in done.stdout


def test_sums_are_over_the_matrices_that_all_estimators_judged(model, monkeypatch):
    def choosy(spectrum):
        if spectrum.p == 60:
            raise ValueError("not this one")
        return spectrim.edges.Median()(spectrum)

    monkeypatch.setattr("spectrim.verdict.PANEL", {"bema": spectrim.Bema(), "median": choosy})
    done = run("edges", model)
    assert_done(done)
    assert "Spikes in the 2 matrices that all of them judged: bema" in done.stdout
    assert "median has no edge for 1 of the 3 matrices judged." in done.stdout


def test_edges_writes_json_and_a_page(model, tmp_path):
    done = run("edges", model, "--alpha", "0.3", "--json", tmp_path / "e.json", "--html", tmp_path / "e.html")
    assert_done(done)
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["schema"] == "spectrim.edges/1" and len(found["readings"]) == 8
    assert found["estimators"] == ESTIMATORS and "alpha=0.3" in found["edge"]
    first = next(r for r in found["readings"] if r["name"] == "fc0")
    assert first["estimators"]["bema"]["method"] == found["edge"] and first["verdict"]["kind"]
    page = (tmp_path / "e.html").read_text()
    assert 'data-tab="settings"' in page and str(tmp_path / "e.html") in done.stdout


def test_edges_as_a_process_gives_json_and_nothing_else(model):
    done = apart("edges", model, "--json", "-", "--no-equalize")
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    assert found["schema"] == "spectrim.edges/1" and found["equalised"] is False
    assert list(found["readings"][0]["estimators"]) == ESTIMATORS


def test_edges_looks_below_and_simulates_where_it_is_asked_to(tmp_path):
    save_file({"a.weight": rand(48, 64)}, tmp_path / "a.safetensors")
    done = run("edges", tmp_path / "a.safetensors", "--vectors", "--slow")
    assert_done(done)
    (row,) = table(done.stdout)
    found = spectrim.survey(str(tmp_path / "a.safetensors"), vectors=True).matrices[0]
    assert (int(row["low"]), int(row["structured"])) == (found.low, len(found.structured))
    assert row["bema-gamma"].isdigit() and row["shuffled"].isdigit()
    assert "Below the lower edge of the noise" in done.stdout


@pytest.mark.parametrize("edge", ESTIMATORS)
def test_every_estimator_can_be_the_one_of_a_survey_and_of_a_plan(model, tmp_path, edge):
    done = run("survey", model, "--edge", edge, "--html", tmp_path / "s.html")
    assert_done(done)
    rows = {row["matrix"]: row for row in table(done.stdout)}
    if edge == "screenot":  # it fits no law, so there is neither a noise level nor a misfit to tell
        assert rows["fc0"]["sigma"] == rows["fc0"]["misfit"] == "" and float(rows["fc0"]["edge"]) > 0
    else:
        assert float(rows["fc0"]["sigma"]) > 0
    assert rows["fc0"]["verdict"] in ("noise-like", "spiked", "heavy-tailed", "no fit")
    done = run("plan", model, "--zeros", "0.5", "--edge", edge, "-o", tmp_path / "plan.json")
    assert_done(done)
    assert spectrim.Plan.from_json(tmp_path / "plan.json").model.edge.lower().startswith(edge.replace("-", ""))


def test_the_page_of_a_trim_is_judged_by_the_estimator_of_its_plan(model, tmp_path):
    assert_done(run("plan", model, "--zeros", "0.5", "--edge", "median", "--beta", "0.3", "-o", tmp_path / "plan.json"))
    done = run("trim", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "--html", tmp_path / "t.html")
    assert_done(done)
    shown = "Median(beta=0.3)" in (tmp_path / "t.html").read_text()
    assert shown


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_gets_names_that_can_be_read(width):
    names = [f"encoder.layer.{i}.attention.{part}.dense" for i in (0, 11) for part in ("query", "output")]
    columns = [("bema", "right", ["12"] * 4), ("edge", "right", ["1.254"] * 4)]
    columns.append(("law ends, 90 %", "right", ["1.248 to 1.266"] * 4))
    columns += [(key, "right", ["345"] * 4) for key in ESTIMATORS[1:]]
    columns += [("agree", "right", ["100%"] * 4), ("verdict", "left", ["heavy-tailed"] * 4)]
    shown, kept = fitted(shortened(names), columns, ["law ends, 90 %", "edge", "agree"], width)
    assert len(set(shown)) == 4 and all(len(name) >= 12 for name in shown)
    assert [head for head, _, _ in kept][-1] == "verdict"
    if width >= 80:
        wide = sum(max(len(text) for text in (*head.split("\n"), *cells)) for head, _, cells in kept)
        assert max(map(len, shown)) + wide + 2 * len(kept) <= width
    everything, heads = fitted(names, columns, ["law ends, 90 %", "edge", "agree"], 300)
    assert everything == names and len(heads) == len(columns)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", ["survey", "edges"])
def test_a_narrow_terminal_shows_verdicts_and_why_there_is_none(tmp_path, width, command):
    start = "encoder.layer.0.attention.self"
    state = {f"{start}.query.weight": rand(48, 64), f"{start}.key.weight": torch.full((30, 40), math.nan)}
    save_file(state | {f"{start}.value.weight": rand(3, 5)}, tmp_path / "a.safetensors")
    seen = plainly(on_a_terminal(command, tmp_path / "a.safetensors", columns=width))
    lines = seen[seen.rindex("matrix  ") :].splitlines()
    lines = lines[: next(i for i, line in enumerate(lines) if "judged" in line)]
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    assert "noise-like" in words and "verdict" in words and "note" in words
    assert "of 1200" in words and "finite" in words  # whole words of the reason
    assert "query" in words and "key" in words and "…" not in words.replace("0.…", "")
    assert words.startswith("matrix") and "verdict" in lines[0] and "note" in lines[0]  # no heading is broken


def test_figures_that_can_be_spared_go_before_the_rest():
    columns = [(key, "right", ["345"]) for key in ESTIMATORS]
    columns += [("verdict", "left", ["heavy-tailed"]), ("note", "prose", ["a reason of many words, all of them short"])]
    spare, last = ("gavish-donoho", "screenot"), ("broadening", "median")
    kept = {width: fitted(["layer"], columns, spare, width, last)[1] for width in (120, 70, 60, 40)}
    assert [len(kept[width]) for width in (120, 70, 60, 40)] == [7, 5, 4, 3]
    assert {head for head, _, _ in kept[60]} == {"bema", "median", "verdict", "note"}


# Real processes.


def test_as_a_process_it_is_quiet_in_a_pipe(model, tmp_path):
    done = apart("survey", model)
    assert done.returncode == 0 and done.stderr == "" and ANSI not in done.stdout
    assert len(table(done.stdout)) == 6
    done = apart("survey", tmp_path / "nothing")
    assert done.returncode == 2 and done.stdout == "" and ANSI not in done.stderr
    assert "no such file or folder" in done.stderr


def test_version_and_no_arguments():
    assert apart("--version").stdout.strip() == spectrim.__version__
    bare = run()
    assert "Usage" in bare.output and bare.exit_code in (0, 2)


def test_a_reader_that_stops_early_sees_no_traceback(tmp_path):
    long = "x" * 500  # 200 such lines are more than a pipe holds
    save_file({f"{long}{i}.weight": rand(3, 5) for i in range(200)}, tmp_path / "a.safetensors")
    script = f"{sys.executable} -m spectrim survey {tmp_path / 'a.safetensors'} | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("matrix\t") and done.stderr == ""


@pytest.mark.parametrize("arguments", [["survey"], ["edges"], ["plan", "--params", "0.5", "-o", "-"], ["plan"]])
def test_a_reader_that_has_gone_ends_it_in_silence(model, tmp_path, arguments):
    """The status is that of a program which SIGPIPE ends, whether a table, JSON or a last line finds nobody."""
    arguments = [*arguments, "--params", "0.5", "-o", tmp_path / "p.json"] if arguments == ["plan"] else arguments
    out, into = os.pipe()
    os.close(out)
    process = [sys.executable, "-m", "spectrim", arguments[0], str(model), *map(str, arguments[1:])]
    done = subprocess.run(process, stdout=into, stderr=subprocess.PIPE, text=True, check=False)
    os.close(into)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def plainly(seen: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)


def on_a_terminal(*args, columns: int = 160) -> str:
    """What the command writes to a real terminal."""
    leader, follower = pty.openpty()
    env = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    env = {name: value for name, value in env.items() if name not in ("NO_COLOR", "CI")}
    arguments = [sys.executable, "-m", "spectrim", *map(str, args)]
    process = subprocess.Popen(arguments, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.wait() == 0, seen.decode()
    return seen.decode()


def test_on_a_terminal_there_are_tables_and_progress(model):
    seen = on_a_terminal("edges", model)
    assert ANSI in seen and "surveying" in seen and "comparing" in seen and "gavish-donoho  " not in seen
    assert "───" in seen
    assert "fc0" in seen and "3 of 6 matrices judged" in plainly(seen)
