"""Inputs that share memory: the emulated device reads them as a GPU does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from quantization import sample
from raw_buffer import RawBuffer

import loader

# Rows of each expert, and where global_scale begins in memory that row_weight begins.
SHARED = {"same": ([1, 1, 1], 0), "nested": ([4], 1), "partial": ([128, 3], 130), "adjacent": ([2, 2], 4)}


@pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")
@pytest.mark.parametrize("counts, start", SHARED.values(), ids=SHARED)
def test_inputs_may_share_memory(
    counts: list[int], start: int, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """Wherever one begins in another: every byte of the result is that of a call with copies."""
    rows, experts = sum(counts), len(counts)
    memory = rng.uniform(0.5, 2, start + max(rows, experts)).astype(np.float32)
    offsets, scale_offsets = np.cumsum([0, *counts]).astype(np.int32), 128 * np.arange(experts, dtype=np.int32)
    inputs = {"x": sample(rng, rows, 64), "row_weight": memory[:rows], "expert_offsets": offsets,
              "global_scale": memory[start : start + experts],
              "scale_offsets": offsets[:-1] if (offsets[:-1] == scale_offsets).all() else scale_offsets}  # fmt: skip
    results = []
    for given in (inputs, {name: array.copy() for name, array in inputs.items()}):
        outputs = {"out": np.zeros((rows, 16), np.uint8), "out_scale": np.zeros((128 * experts, 4), np.uint8)}
        buffers = {name: RawBuffer.of(array) for name, array in (given | outputs).items()}
        context = reschedule()
        loader.launch("silu_mul_nvfp4_quantize", **buffers, global_scale_kind="encode", device="emulated:120a",
                      packs=packs)  # fmt: skip
        results.append({name: array.tobytes() for name, array in outputs.items()})
    assert results[0] == results[1] and any(results[0]["out"]), context
