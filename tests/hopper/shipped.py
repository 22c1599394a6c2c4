"""The shipped grouped_fp4 for sm_90a on one problem whose sums are exact, through the loader on either device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import reference
from raw_buffer import RawBuffer

import loader
from hopper.case import row_digest

SEED, COUNTS, N, K = 20260214, [0, 1, 67, 0, 31, 5], 264, 608
PREFIX = "grouped_fp4 "


def problem() -> reference.GroupedProblem:
    return reference.grouped_problem(np.random.default_rng(SEED), COUNTS, N, K, gaps=True)


def fingerprint() -> str:
    """Of the inputs: the record is stale if it changes."""
    return row_digest(np.concatenate([a.reshape(-1).view(np.uint8) for a in problem().inputs().values()])).hex()


def launch(
    variant: str, inputs: Mapping[str, object], out: object, device: str | None, packs: list[str] | None
) -> None:
    loader.launch("grouped_fp4", **inputs, out=out, variant=variant, device=device, packs=packs)


def on_gpu(
    out_type: str, upload: Callable[[np.ndarray], int], download: Callable[[int, np.ndarray], np.ndarray], variant: str
) -> np.ndarray:
    """The bytes of the output [rows, N] of a variant."""
    inputs = problem().inputs()
    out = np.zeros((sum(COUNTS), N), reference.STORAGE[out_type])
    kinds = {"uint8": "u8", "int32": "i32", "float32": "f32", "float16": "f16", "uint16": "bf16"}
    buffers = {k: RawBuffer(upload(v), v.shape, kinds[v.dtype.name], (2, 0)) for k, v in {**inputs, "out": out}.items()}
    launch(variant, {k: v for k, v in buffers.items() if k != "out"}, buffers["out"], None, None)
    return download(buffers["out"].pointer, out).reshape(-1).view(np.uint8)


def emulated(out_type: str, variant: str, packs: list[str] | None) -> np.ndarray:
    """The same on the emulated device."""
    out = np.zeros((sum(COUNTS), N), reference.STORAGE[out_type])
    launch(variant, problem().inputs(), RawBuffer.of(out), "emulated:90a", packs)
    return out.reshape(-1).view(np.uint8)
