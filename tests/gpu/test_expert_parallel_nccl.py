"""The layer of examples/expert_parallel.py over NCCL, a GPU a rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hardware
import numpy as np
import pytest

pytest.importorskip("torch")

import parallel_layer  # noqa: E402
import torch  # noqa: E402
from device_problem import device_problem  # noqa: E402
from ranks import spawn  # noqa: E402

import loader  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# One row and hundreds an expert: ranks and one device choose other tiles.
SIZES = [{"hidden": 512, "between": 256, "tokens": 4}, {"hidden": 1024, "between": 2048, "tokens": 600}]


def need(gpus: int) -> None:
    if hardware.cuda_devices() < gpus:
        pytest.skip(f"{hardware.cuda_devices()} CUDA devices; this test needs {gpus}")


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{sizes['tokens']}_tokens")
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("form", parallel_layer.expert_parallel.KINDS)
def test_ranks_give_the_bytes_of_one(form: str, ranks: int, sizes: dict[str, int], tmp_path: Path,
                                     rng: np.random.Generator) -> None:
    """Every rank's rows are those of one GPU with all tokens and experts, whoever has tokens and wherever they go."""
    need(ranks)
    if form == "fp8" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("moe_fp8 is for Hopper")
    seed = int(rng.integers(1 << 31))
    codes = spawn(ranks, 60, parallel_layer.compute, str(tmp_path), seed, sizes, None, 60, form)
    assert codes == [0] * ranks
    parallel_layer.compare(tmp_path, seed, ranks, sizes)


def test_every_tile_gives_the_same_bytes(variants: dict[str, str], seed: int) -> None:
    """A row of grouped_fp4 has the same bytes from any tile, alone or among others: ranks may choose another tile."""
    problem = device_problem(seed, [1, 37, 0, 300], 520, 1056)
    outputs = {}
    for variant in (name for name, out_type in variants.items() if out_type == "bf16"):
        out = problem.output("bf16")
        loader.launch("grouped_fp4", **problem.inputs, out=out.array, variant=variant)
        torch.cuda.synchronize()
        problem.verify(out, variant)
        outputs[variant] = out.array.view(torch.int16).cpu()
    first, *others = outputs
    assert others
    assert [name for name in others if not torch.equal(outputs[name], outputs[first])] == [], f"differ from {first}"


@pytest.mark.parametrize(("how", "code"), [("exits inside the layer", 7), ("hangs", -9)])
def test_a_lost_peer_is_named(how: str, code: int, tmp_path: Path, rng: np.random.Generator) -> None:
    """The rank that waits for one that is lost ends with an error that names it; none hangs, not even the lost one."""
    need(2)
    limit = 10.0
    codes = spawn(2, limit, parallel_layer.lose_a_peer, str(tmp_path), int(rng.integers(1 << 31)), SIZES[0], None,
                  limit, how)
    assert codes == [1, code]
    assert (tmp_path / "0.txt").read_text() == "rank 0: rank 1 did not answer within 10 s"


@pytest.mark.parametrize("ranks", [2, 4])
def test_one_command_starts_the_example(ranks: int) -> None:
    """torchrun and the example's own start both end well, and every rank says that it agrees with one GPU."""
    need(ranks)
    example = str(ROOT / "examples" / "expert_parallel.py")
    for command in (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), example],
                    [example, "--ranks", str(ranks)]):
        result = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        assert result.stdout.count("the same bytes as one device") == ranks, result.stdout
