"""Markers, seeds and packs of every test. A test's directory is its marker: unit, build, emulated, oracle, gpu."""

from __future__ import annotations

import gc
import os
import secrets
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
MARKERS = {
    "unit": "one module, no compiler, no device",
    "build": "the generator: matrix, templates, nvcc",
    "emulated": "shipped kernels on the emulated device",
    "oracle": "the emulator against kernels of other compilers",
    "fuzz": "whatever comes from outside, mutated",
    "hopper": "the emulator against what an H200 answered",
    "teeth": "faults planted in the emulator and in the kernels, each of which something has to notice",
    "gpu": "needs a CUDA device",
}
# Data is fresh in every run; TESTS_SEED repeats the run of a printed seed.
SEED = int(os.environ.get("TESTS_SEED") or secrets.randbits(32))
os.environ["TESTS_SEED"] = str(SEED)  # the workers of a parallel run begin as this process did

for folder in (ROOT / "tests", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def own_modules() -> str:
    """A pattern of the names under which modules of this checkout are imported: packages whole, the others alone."""
    alone = {path.stem for folder in ("benchmarks", "examples", "tests") for path in (ROOT / folder).rglob("*.py")}
    return rf"((loader|emulator|generator|integrations|hopper)(\..*)?|{'|'.join(sorted(alone))})\Z"


def pytest_configure(config: pytest.Config) -> None:
    # Those of others are theirs to mend, and a plugin that warns at the start must not end the run.
    config.addinivalue_line("filterwarnings", f"error:::{own_modules()}")
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Before the workers start. There are as many as cores: threads of numpy and torch in each would spin for each
    other, and small sums take five times as long."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What was collected stays, so Python need not look through it for circles again; and through translated kernels,
    a million objects without one, it looks less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def pytest_report_header() -> str:
    return f"data seed: {SEED} (TESTS_SEED={SEED} repeats it)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import hardware  # found once the line above has run

    for item in items:
        parts = item.path.relative_to(ROOT / "tests").parts
        if parts[0] in MARKERS:
            item.add_marker(parts[0])
        if parts[0] == "gpu":
            item.add_marker(pytest.mark.filterwarnings("default"))  # frameworks' warnings are not ours to mend
            if not hardware.cuda_devices():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of this test: from the run's seed and the test's name, whatever else runs beside it."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture(scope="session")
def seed() -> int:
    """The run's seed, for data that is not made with numpy."""
    return SEED
