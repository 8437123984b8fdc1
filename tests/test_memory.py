"""Memory of a survey is bounded by its largest matrix, not by the model: measured in a process of its own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from survey_memory import measure


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from Linux's /proc")
def test_eight_matrices_of_64_mib_and_an_embedding_of_512():
    """Seen: 424 MiB above the imports, 6.6 matrices; all eight at once, or the embedding alone, would be eight more."""
    found = measure(4096)
    assert found["matrices"] == 8
    assert found["above_mib"] <= 8 * 64
