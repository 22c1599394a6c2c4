"""The layer of examples/expert_parallel.py over gloo, its kernels on the emulated device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import parallel_layer  # noqa: E402
from peers import spawn  # noqa: E402

SIZES = {"hidden": 64, "between": 32, "tokens": 4}
EMULATE = "emulated:100a"
START_AND_COMPUTE = 60.0  # seconds; ranks emulate for as long as their rows take


@pytest.fixture(autouse=True)
def pack_of_ranks(packs: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of this test use its pack."""
    if packs is not None:
        monkeypatch.setenv("LOADER_ARTIFACTS", packs[0])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_the_bytes_of_one(ranks: int, tmp_path: Path, rng: np.random.Generator) -> None:
    """Ranks give the rows of one process with all tokens and experts, whoever has tokens and wherever they go."""
    seed = int(rng.integers(1 << 31))
    codes = spawn(ranks, START_AND_COMPUTE, parallel_layer.compute, str(tmp_path), seed, SIZES, EMULATE,
                  START_AND_COMPUTE)
    assert codes == [0] * ranks
    parallel_layer.compare(tmp_path, seed, ranks, SIZES)


@pytest.mark.parametrize(("how", "code"), [("exits inside the layer", 7), ("hangs", -9)])
def test_a_lost_peer_is_named(how: str, code: int, tmp_path: Path, rng: np.random.Generator) -> None:
    """Ranks that wait for one that is lost end with an error that names it; none hangs, not even the lost one."""
    limit = 3.0
    codes = spawn(3, limit, parallel_layer.lose_a_peer, str(tmp_path), int(rng.integers(1 << 31)), SIZES, EMULATE,
                  limit, how)
    assert codes == [1, code, 1]
    for rank in (0, 2):
        text = (tmp_path / f"{rank}.txt").read_text()
        assert text == f"rank {rank}: rank 1 did not answer within 3 s"
