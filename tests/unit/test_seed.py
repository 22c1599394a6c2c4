"""The seed of a run is one for all of its processes."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_workers_draw_from_the_printed_seed(seed):
    """A process that this one starts, as a parallel run starts its workers, has the same seed."""
    command = [sys.executable, "-c", "import conftest; print(conftest.SEED)"]
    assert int(subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True).stdout) == seed
