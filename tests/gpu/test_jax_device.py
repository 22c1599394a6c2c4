"""Kernels inside jax.jit on a GPU: XLA's stream and memory, and command buffers that run no Python."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytest.importorskip("jax")
torch = pytest.importorskip("torch")

REPLAYS = 1000

# Its own process: XLA reads its flags once, when it is first used.
GROUPED = """
import json, os, sys
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_graph_min_graph_size=1"
import jax, numpy as np, torch
import loader, reference
import integrations.jax as kernels

seed, replays = map(int, sys.argv[1:])
COUNTS = [0, 1, 37, 130, 5, 64]
rng, launch, launches = np.random.default_rng(seed), loader.launch, []

def counted(*args, **kwargs):
    launches.append(kwargs["stream"])
    launch(*args, **kwargs)

loader.launch = counted

@jax.jit
def product(inputs):
    narrow = kernels.call("grouped_fp4", **inputs, outputs={"out": jax.numpy.bfloat16})["out"]
    return kernels.call("grouped_fp4", **inputs, outputs={"out": jax.numpy.float32})["out"], narrow + narrow

def routing():
    counts = rng.permutation(COUNTS)
    rows = -(-counts // 128) * 128
    return {"expert_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            "scale_offsets": np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int32)}

def directly(dtype):
    out = torch.full((sum(COUNTS), 512), float("nan"), dtype=dtype, device="cuda")
    launch("grouped_fp4", **tensors, out=out)
    return out.float().cpu().numpy()

inputs = reference.grouped_problem(rng, COUNTS, 512, 1024).inputs()
# No NaN in padding: other counts make rows of it.
inputs["a_scale"] = rng.integers(0, 0x70, inputs["a_scale"].shape, dtype=np.uint8)
arrays = {name: jax.device_put(value) for name, value in inputs.items()}
tensors = {name: torch.from_numpy(value).cuda() for name, value in inputs.items()}
different = 0
for _ in range(replays):
    moved = routing()
    for name, value in moved.items():  # to where they lay: what has moved is captured anew
        arrays.pop(name).delete()
        arrays[name] = jax.device_put(value)
    tensors |= {name: torch.from_numpy(value).cuda() for name, value in moved.items()}
    wide, doubled = product(arrays)
    different += not np.array_equal(np.asarray(wide), directly(torch.float32))
    different += not np.array_equal(np.asarray(doubled, np.float32), 2 * directly(torch.bfloat16))
    wide.delete(), doubled.delete()
print(json.dumps({"different": different, "launches": len(launches), "streams": sorted(set(launches))}))
"""


def test_replays_give_the_same_bytes_without_python(run_program: Callable[..., str], seed: int) -> None:
    """A program with command buffers, each time with new routing: bytes of ``loader.launch``, on no default stream."""
    found = json.loads(run_program(GROUPED, str(seed), str(REPLAYS), timeout=600).splitlines()[-1])
    assert found["different"] == 0
    assert found["launches"] < REPLAYS / 10
    assert not {0, 1, 2} & set(found["streams"])


COMPOSITE = """
import sys
import jax, numpy as np, torch
import loader
import moe_reference as moe
import integrations.jax as kernels

generator = torch.Generator().manual_seed(int(sys.argv[1]))
layer = moe.random_layer(generator, 8, 256, 128, moe.Settings())
tokens = moe.random_tokens(generator, 33, 2, 8, 256)
given = {name: value for name, value in (tokens._asdict() | layer.arguments).items() if value is not None}
tensors = {name: value.cuda() for name, value in given.items() if isinstance(value, torch.Tensor)}
scalars = {name: value for name, value in given.items() if name not in tensors}
expected = torch.full((33, 256), float("nan"), dtype=torch.bfloat16, device="cuda")
loader.launch("moe_fp4", **tensors, **scalars, out=expected)
torch.cuda.synchronize()

@jax.jit
def run(**arrays):
    return kernels.call("moe_fp4", **arrays, **scalars, outputs={"out": jax.numpy.bfloat16})["out"]

arrays = {name: jax.dlpack.from_dlpack(value) for name, value in tensors.items()}
for _ in range(3):
    out = torch.from_dlpack(jax.block_until_ready(run(**arrays)))
    print(torch.equal(out.view(torch.uint8), expected.view(torch.uint8)))
"""


def test_a_composite(run_program: Callable[..., str], seed: int) -> None:
    """moe_fp4 over a workspace of XLA's gives the bytes of ``loader.launch``."""
    assert run_program(COMPOSITE, str(seed)).split()[-3:] == ["True"] * 3
