"""The MLP of a dense layer, or of shared experts: a norm, gate and up as one expert with SwiGLU, and down. Each step
reads the buffers that the one before wrote, and is held to float64 of just these."""

from __future__ import annotations

import dataclasses
from typing import Any

import block_quantization
import fp8_swiglu
import gemm_problem
import mx_swiglu
import numpy as np
import reference
import rms_norm
import schedules
from block_quantization import NVFP4, Quantized
from fp8_swiglu import Settings
from raw_buffer import RawBuffer

import loader

# Operands of the GEMMs by blocks -> the format of the norm, how its scales are made, and that of the result.
IN_BLOCKS = {"fp4": ("nvfp4", "encode", NVFP4), "mxfp8_mxfp4": ("mxfp8", "up", block_quantization.MXFP8)}


def _norm(
    rng: np.random.Generator, m: int, hidden: int, name: str, layout: str, scale: str, **options: Any
) -> rms_norm.Outputs:
    """Launched and verified."""
    problem = rms_norm.Problem.random(rng, name, "bf16", m, hidden, rms_norm.Settings(layout, scale))
    outputs = rms_norm.Outputs(problem, spare=False).launch(**options)
    problem.verify(outputs, "norm")
    return outputs


def in_rows(rng: np.random.Generator, fmt: str, m: int, hidden: int, between: int, **options: Any) -> None:
    """FP8, whose scales lie row by row: fp8 or fp8_ue8m0."""
    scale = "none" if fmt == "fp8" else "power_of_two"
    normed = _norm(rng, m, hidden, fmt, "mn_major", scale, **options)
    tokens = normed.quantized()
    layer, settings = fp8_swiglu.Problem.random(rng, [m], between, hidden, fmt=fmt), Settings()
    gate, up = (dataclasses.replace(part, a=tokens.out, a_scale=tokens.scales) for part in (layer.gate, layer.up))
    layer = dataclasses.replace(layer, gate=gate, up=up)
    read = {"a": normed.out.array, "a_scale": normed.out_scale.array}
    outputs = fp8_swiglu.Outputs.of((m,), between, fmt)
    loader.launch(f"grouped_{fmt}_swiglu", **layer.inputs("")[0] | read, **outputs.arrays, **settings.scalars(fmt),
                  **options)  # fmt: skip
    activated = outputs.rows(np.arange(m), "as before", "gate and up")
    activated.verify(*layer.expected(settings), settings.scales(fmt), "gate and up")

    down = gemm_problem.gemm_problem(rng, fmt, [m], hidden, between)
    down = dataclasses.replace(down, a=activated.out, a_scale=activated.scales)
    inputs, places = gemm_problem.dense(down)
    out = reference.GuardedOutput(m, hidden, "bf16")
    read = {"a": outputs.out.array, "a_scale": outputs.out_scale.array}
    loader.launch(f"gemm_{fmt}", **inputs | read, out=RawBuffer.of(out.array), **options)
    gemm_problem.verify(down, places, out, m, "as before", "down")


def _tokens(weights: reference.GroupedProblem, out: np.ndarray, out_scale: np.ndarray) -> reference.GroupedProblem:
    """The GEMM of these weights with what a step left in its buffers."""
    groups = weights.a_groups.shape[1]
    places = reference.scale_offset(np.arange(len(out))[:, None], np.arange(groups), groups)
    return dataclasses.replace(weights, a=out, a_scale=out_scale, a_groups=out_scale.reshape(-1)[places])


def in_blocks(rng: np.random.Generator, operands: str, m: int, hidden: int, between: int, **options: Any) -> None:
    """NVFP4 and MX, whose scales lie in blocks of 128 rows."""
    name, scale, fmt = IN_BLOCKS[operands]
    on_hopper = options["device"] == "emulated:90a"
    normed = _norm(rng, m, hidden, name, "blocks_128x4", scale, **options)
    weights = reference.grouped_problem(rng, [m], 2 * between, hidden, formats=schedules.OPERANDS[operands])
    gemm = _tokens(weights, normed.out.array, normed.out_scale.array)
    size = abs(reference.grouped_reference(gemm).value).mean()
    gemm = dataclasses.replace(gemm, alpha=(gemm.alpha / size * 2).astype(np.float32))
    layer = mx_swiglu.Problem(gemm, np.ones(m, np.float32), on_hopper=on_hopper)
    out = reference.GuardedOutput(m, between // 2 if fmt is NVFP4 else between, "u8")
    out_scale = reference.GuardedOutput(reference.round_up(m, 128), reference.round_up(between // fmt.block, 4), "u8")
    settings, encode = mx_swiglu.Settings(), np.full(1, 64, np.float32)
    scalars = dataclasses.asdict(settings)
    if fmt is NVFP4:
        del scalars["scale_rounding"]
        scalars |= {"global_scale": encode, "global_scale_kind": "encode"}
    loader.launch(f"grouped_{operands}_swiglu", **layer.inputs(), out=out.array, out_scale=out_scale.array, **scalars,
                  **options)  # fmt: skip

    alpha = gemm.alpha / encode if fmt is NVFP4 else gemm.alpha
    down = dataclasses.replace(
        _tokens(reference.grouped_problem(rng, [m], hidden, between, formats=gemm.formats), out.array, out_scale.array),
        alpha=alpha)  # fmt: skip
    value, bound = layer.expected(settings)
    if fmt is NVFP4:
        activated = Quantized(gemm_problem.unpacked(down.a), reference.UE4M3[down.a_groups], NVFP4)
        block_quantization.verify_nvfp4(activated, value, bound, float(encode[0]), "gate and up")
    else:
        activated = Quantized(down.a, reference.UE8M0[down.a_groups].astype(np.float32), fmt)
        activated.verify(value, bound, settings.scale_rounding, "gate and up")
    result = reference.GuardedOutput(m, hidden, "bf16")
    loader.launch(f"gemm_{operands}", **schedules.dense_inputs(down), out=RawBuffer.of(result.array), **options)
    reference.verify(down, reference.grouped_reference(down, on_hopper=on_hopper), result, "down")
