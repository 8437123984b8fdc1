"""The examples run as they stand, and do what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def untouched_seed():
    """An example may seed the process; the tests after it are not to know."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def test_pruning_while_training_on_the_digits(capsys, untouched_seed, one_thread):
    main = runpy.run_path(str(EXAMPLES / "prune_while_training.py"))["main"]
    records = main()
    dense = 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    parameters = [record["parameters"] for record in records]
    assert parameters[0] == dense and parameters == sorted(parameters, reverse=True)
    assert parameters[-1] < 0.5 * dense
    losses = [record["loss"] for record in records]
    assert losses[-1] < 0.1 * losses[0]
    assert min(losses[-5:]) < min(losses[:5])  # it went on falling while it was cut
    assert records[-1]["accuracy"] > 0.9  # 97.7 % here, 97.5 % where nothing is cut; 90 leaves room for other rounding
    shown = capsys.readouterr().out
    assert shown.count("epoch ") == len(records) == 22
    assert "split, " in shown and f"parameters {parameters[-1]:,}" in shown


def test_three_lines_are_added_to_a_plain_loop():
    """Without the marked lines, and what prints their outcome, the example is a loop that knows nothing of pruning."""
    lines = (EXAMPLES / "prune_while_training.py").read_text().splitlines()
    marked = [line for line in lines if "# added, " in line]
    assert [line.rpartition("# added, ")[2] for line in marked] == ["1 of 3", "2 of 3", "3 of 3"]
    code = "\n".join(line for line in lines if line not in marked)
    start, end = code.index("        for change in changes:"), code.index("    return records")
    plain = code[:start] + code[end:]
    assert "spectrim" not in plain and "pruner." not in plain
    short = plain.replace("EPOCHS = 22", "EPOCHS = 2")
    space: dict = {"__name__": "plain"}
    exec(compile(short, "plain", "exec"), space)
    with torch.random.fork_rng():
        records = space["main"]()
    assert len(records) == 2 and len({record["parameters"] for record in records}) == 1
