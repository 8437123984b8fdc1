"""Schedules: their formulas, that they travel between processes, and what is said of a share that is none."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import pytest
import torch

from spectrim.schedules import constant, linear, rising, value

ALL = (constant(0.45), linear(200), rising(0.001, 0.02, 50))


def test_the_papers_share_by_epoch():
    # arXiv 2503.01922: 100 epochs, a cut every 4; half of the bulk is still there after the last.
    shares = [linear(200)(epoch) for epoch in range(3, 100, 4)]
    assert shares == [1 - epoch / 200 for epoch in range(3, 100, 4)]
    assert shares[-1] == 0.505 and linear(200)(0) == 1
    assert linear(100)(99) == pytest.approx(0.01) and linear(100)(100) == linear(100)(1000) == 0


def test_a_constant_share_keeps_what_the_paper_printed():
    # 784 x 3000 with 15 spikes: int(.45 x 769) + 15 values.
    assert 15 + int(value(constant(0.45), 2) * (784 - 15)) == 361


def test_a_threshold_rises_evenly_and_stays():
    threshold = rising(0.001, 0.02, 95)
    steps = [threshold(epoch) for epoch in range(0, 96, 5)]
    assert steps[0] == 0.001 and steps[-1] == pytest.approx(0.02)
    gaps = [b - a for a, b in pairwise(steps)]
    assert max(gaps) == pytest.approx(min(gaps)) == pytest.approx(0.001)
    assert threshold(10_000) == pytest.approx(0.02)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_schedules_can_be_pickled_and_read(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and [again(e) for e in range(300)] == [schedule(e) for e in range(300)]
    assert eval(repr(schedule)) == schedule


def test_a_float_and_any_function_are_schedules():
    assert value(0.3, 7) == value(constant(0.3), 7) == value(lambda epoch: 0.3, 7) == 0.3
    assert value(1, 0) == 1.0 and value(0, 0) == 0.0
    assert value(torch.tensor(0.25), 0) == 0.25
    assert type(value(lambda epoch: torch.tensor(0.5), 0)) is float


@pytest.mark.parametrize("bad", [-0.1, 1.01, 45, math.nan, math.inf, None, "half"])
def test_what_is_no_share_is_named_with_its_epoch(bad):
    with pytest.raises(ValueError, match=r"in \[0, 1\], got"):
        value(bad, 3)

    def mine(epoch: int):
        return bad if epoch == 12 else 0.5

    assert value(mine, 11) == 0.5
    with pytest.raises(ValueError, match=r"mine.* at epoch 12"):
        value(mine, 12)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda share=share: constant(share) for share in (-0.1, 1.1, math.nan)),
        *(lambda end=end: linear(end) for end in (0, -5, math.inf, math.nan)),
        *(lambda args=args: rising(*args) for args in ((0.02, 0.001, 5), (-1, 1, 5), (0, 1, 0), (0, math.nan, 5))),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()
