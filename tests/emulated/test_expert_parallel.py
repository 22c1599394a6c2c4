"""The layer of examples/expert_parallel.py over gloo, its kernels on the emulated device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import fp8_swiglu  # noqa: E402
import gemm_problem  # noqa: E402
import parallel_layer  # noqa: E402
import reference  # noqa: E402
from packs import artifacts  # noqa: E402
from ranks import spawn  # noqa: E402

import loader  # noqa: E402

SIZES = {"hidden": 64, "between": 32, "tokens": 4}
PATIENCE = 60.0  # seconds; ranks emulate for as long as their rows take


@pytest.fixture(autouse=True)
def pack_of_ranks(packs: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of this test use its pack."""
    if packs is not None:
        monkeypatch.setenv("LOADER_ARTIFACTS", packs[0])


@pytest.mark.parametrize(("ranks", "arch", "form"), [(2, "90a", "nvfp4"), (4, "100a", "nvfp4"), (2, "90a", "fp8")])
def test_ranks_give_the_bytes_of_one(
    ranks: int, arch: str, form: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Ranks give the rows of one process with all tokens and experts, whoever has tokens and wherever they go."""
    seed = int(rng.integers(1 << 31))
    codes = spawn(ranks, PATIENCE, parallel_layer.compute, str(tmp_path), seed, SIZES, f"emulated:{arch}", PATIENCE,
                  form)
    assert codes == [0] * ranks
    parallel_layer.compare(tmp_path, seed, ranks, SIZES)


@pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")
@pytest.mark.parametrize("family", ["grouped_fp8", "grouped_fp8_swiglu"])
def test_every_tile_of_fp8_gives_the_same_bytes(
    family: str, packs: list[str] | None, rng: np.random.Generator
) -> None:
    """Ranks have other numbers of rows than one device, and so other tiles."""
    problem = fp8_swiglu.Problem.random(rng, [1, 9, 0, 70], 144, 400)
    rows = sum(problem.gate.counts) + 3  # by_offsets has as many that nobody owns
    found = {}
    for artifact in artifacts(family, "90a".__eq__, packs):
        if family == "grouped_fp8":
            inputs, _ = gemm_problem.by_offsets(problem.gate)
            outputs = {"out": np.zeros((rows, 144), reference.STORAGE[artifact.axes["out"]])}
            scalars, kind = {}, artifact.axes["out"]
        else:
            inputs, _ = problem.inputs("")
            outputs = fp8_swiglu.Outputs.of((rows,), 144).arrays
            scalars, kind = fp8_swiglu.Settings().scalars("fp8"), "e4m3"
        loader.launch(family, **inputs, **gemm_problem.buffers(outputs), **scalars, variant=artifact.variant,
                      device="emulated:90a", packs=packs)  # fmt: skip
        found.setdefault(kind, []).append(b"".join(part.tobytes() for part in outputs.values()))
    assert all(len(results) > 1 and len(set(results)) == 1 for results in found.values())


@pytest.mark.parametrize(
    ("ranks", "how", "code", "limit"), [(3, "exits inside the layer", 7, 3.0), (2, "hangs", -9, 1.5)]
)
def test_a_lost_peer_is_named(
    ranks: int, how: str, code: int, limit: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Ranks that wait for one that is lost end with an error that names it; none hangs, not even the lost one."""
    codes = spawn(ranks, limit, parallel_layer.lose_a_peer, str(tmp_path), int(rng.integers(1 << 31)), SIZES,
                  "emulated", limit, how)
    assert codes == [code if rank == 1 else 1 for rank in range(ranks)]
    for rank in range(0, ranks, 2):
        text = (tmp_path / f"{rank}.txt").read_text()
        assert text == f"rank {rank}: rank 1 did not answer within {limit:g} s"
