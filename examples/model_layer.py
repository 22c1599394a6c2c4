"""A layer of experts from a folder as a model comes in: what describes it, prepares it, runs it, and compares it.

A model's own program writes the folder, with small random weights under the names and in the types of the published
checkpoint, and says what its router and its activation are.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import nvfp4  # noqa: E402

import loader  # noqa: E402
from integrations import safetensors_file  # noqa: E402
from integrations.checkpoint import prepare  # noqa: E402
from integrations.model import describe  # noqa: E402
from integrations.model_description import Row  # noqa: E402

E4M3 = np.concatenate([nvfp4.UE4M3, [np.nan], -nvfp4.UE4M3, [np.nan]])  # values of all bytes
E2M1 = np.concatenate([nvfp4.E2M1, -nvfp4.E2M1])
# Relative, root of mean squares. Where sums round otherwise than in float64, as those of FP8 on sm_90, whose tensor
# core cuts products, an activation may become a neighbour of what it should be, an eighth away. One of the largest of
# so small a layer then makes 0.013, the others less; what is wrongly laid out makes 1.
MAX_ERROR = 5e-2
Tensors = dict[str, tuple[str, np.ndarray]]  # name -> dtype in the file, and its items


@dataclasses.dataclass(frozen=True)
class Layer:
    """Experts in float64: gate and up [E, I, H], down [E, H, I], and biases of each. words: scalars of the call.

    input_scales: of NVFP4, the decode scales [E] of what gate and up multiply, and of what down does.
    """

    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    gate_bias: np.ndarray
    up_bias: np.ndarray
    down_bias: np.ndarray
    activate: Callable[[np.ndarray, np.ndarray], np.ndarray]
    words: Mapping[str, float | str]
    input_scales: tuple[np.ndarray, np.ndarray] | None = None

    def quantize(self, rows: np.ndarray, block: int, expert: int, gemm: int) -> np.ndarray:
        """What the kernels make of [rows, K] in front of a GEMM, the first or the second; nothing if block is 0."""
        if not block:
            return rows
        if self.input_scales is None:
            return quantize(rows, block)
        packed, scales, whole = nvfp4.quantize(rows, self.input_scales[gemm][expert])
        return nvfp4.dequantize(packed, scales) * np.float64(whole)


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate / (1 + np.exp(-gate)) * up


def quantize(rows: np.ndarray, block: int) -> np.ndarray:
    """What E4M3 and a scale for ``block`` of each row make of it: the power of two with which nothing saturates."""
    count, columns = rows.shape
    groups = np.pad(rows, ((0, 0), (0, -columns % block))).reshape(count, -1, block)
    scale = 2.0 ** np.ceil(np.log2(np.maximum(np.abs(groups).max(axis=-1, keepdims=True) / 448, 2.0**-100)))
    codes = nvfp4.nearest_code(nvfp4.UE4M3, np.abs(groups) / scale)
    return (np.copysign(nvfp4.UE4M3[codes], groups) * scale).reshape(count, -1)[:, :columns]


def expected(layer: Layer, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, block: int) -> np.ndarray:
    """The layer in float64, tokens and activations quantised as the kernels do, if they do."""
    out = np.zeros(x.shape)
    for token, k in np.ndindex(ids.shape):
        e = ids[token, k]
        row = layer.quantize(x[token : token + 1].astype(np.float64), block, e, 0)[0]
        gate, up = layer.gate[e] @ row + layer.gate_bias[e], layer.up[e] @ row + layer.up_bias[e]
        h = layer.quantize(layer.activate(gate, up)[None], block, e, 1)[0]
        out[token] += weights[token, k] * (layer.down[e] @ h + layer.down_bias[e])
    return out


def to_bf16(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper halves of fp32 bits, as BF16 lies in a file, and their values in float64."""
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def save(folder: Path, tensors: Tensors) -> None:
    """A file of ``tensors``."""
    entries = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    with safetensors_file.create(folder / "model.safetensors", entries, {}) as arrays:
        for name, (_, array) in tensors.items():
            arrays[name][...] = array


def run(
    asked: argparse.Namespace,
    write: Callable[[Path, np.random.Generator], Layer],
    route: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    tokens: int = 5,
) -> int:
    """From the folder that ``write`` fills to the error of its layer; 0 if that is small.

    route: of tokens [T, H] the experts [T, TOPK] and their weights.
    """
    rng = np.random.default_rng(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        layer = write(Path(name), rng)
        row = next(row for row in describe(Path(name)).rows if "experts" in row.sizes)
        module = row.modules[0].format(row.layers[0])
        kernel = _kernel(row, asked.emulate)
        arrays = prepare(name, module[: module.index(".experts") + len(".experts")], target=kernel)
    x = (rng.standard_normal((tokens, row.sizes["hidden"])) * 32).round() / 32  # numbers of both types of 16 bits
    ids, weights = route(x)
    result = _launch(kernel, asked.emulate, layer, arrays, x, ids, weights)
    block = 0 if _is_unquantised(kernel) else 32 if "mx" in kernel else 128
    wanted = expected(layer, x, ids, weights, block)
    error = np.linalg.norm(result - wanted) / np.linalg.norm(wanted)
    print(f"{row.part} of layers {row.layers} in {row.format}; seed {asked.seed}")
    likewise = ", tokens and activations quantised likewise" if block else ""
    print(f"error against float64{likewise}: {error:.1e} relative")
    return 0 if error <= MAX_ERROR else 1


def _is_unquantised(kernel: str) -> bool:
    """Whether tokens and activations stay in bf16."""
    return kernel.startswith("moe_bf16")


def _kernel(row: Row, emulate: str | None) -> str:
    """The call that the description names for the arch of the device."""
    if emulate is None:
        import torch

        emulate = "{}{}a".format(*torch.cuda.get_device_capability())
    found = [fit.kernels for fit in row.fits if any(arch[:-2] == emulate[:-2] for arch in fit.archs)]
    if not found:
        raise SystemExit(f"nothing takes {row.format} on sm_{emulate}: {row.refused}")
    return found[0]


def _factors(kernel: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Alphas of weights that have them, and global scales of what is quantised to NVFP4."""
    if "mx" in kernel:  # the weights have no factor of their own
        return dict.fromkeys(("w13_alpha", "w2_alpha"), np.ones(len(arrays["w13"]), np.float32))
    if "w13_weight_scale" not in arrays:
        return {}
    alphas = {name: arrays[f"{name}_weight_scale"] for name in ("w13", "w13_up", "w2")}
    if _is_unquantised(kernel):
        return {f"{name}_alpha": alpha for name, alpha in alphas.items()}
    of_x, of_h = arrays["w13_input_scale"], arrays["w2_input_scale"]
    scales = {"w13": of_x, "w13_up": of_x, "w2": of_h}
    return {"x_global_scale": of_x, "h_global_scale": of_h,
            **{f"{name}_alpha": alpha * scales[name] for name, alpha in alphas.items()}}  # fmt: skip


def _launch(
    kernel: str,
    emulate: str | None,
    layer: Layer,
    arrays: Mapping[str, np.ndarray],
    x: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """The layer by one call, in fp32 between the GEMMs: nothing but quantisation, or bf16, rounds coarsely."""
    given = {name: arrays[name] for name in ("w13", "w13_scale", "w13_bias", "w2", "w2_scale", "w2_bias")
             if name in arrays}  # fmt: skip
    given |= _factors(kernel, arrays)
    words = {**layer.words, "intermediate": "f32"} | ({} if _is_unquantised(kernel) else {"rounding": "none"})
    if "x_global_scale" in given:
        words |= {"global_scale_kind": "decode", "division": "ieee"}
    if kernel == "moe_fp8":  # scales are fp32 there, and as elsewhere powers of two
        words["scale_rounding"] = "power_of_two"
    given |= {"x": x.astype(np.float16), "topk_ids": ids.astype(np.int32), "topk_weights": weights.astype(np.float32)}
    out, device = np.full(x.shape, np.nan, np.float32), f"emulated:{emulate}" if emulate else None
    in_torch = emulate is None or _is_unquantised(kernel)  # numpy has no bf16
    if in_torch:
        import torch

        place = "cpu" if emulate else "cuda"
        given = {name: torch.from_numpy(array).to(place) for name, array in given.items()}
        out = torch.from_numpy(out).to(place)
        if _is_unquantised(kernel):
            given["x"], out = given["x"].bfloat16(), out.bfloat16()
    plan = loader.plan(kernel, **given, **words, out=out, device=device)
    plan.launch()
    print(f"launched on {device or 'cuda'}: {kernel} of {', '.join(plan.steps)}")
    return out.float().cpu().numpy() if in_torch else out
