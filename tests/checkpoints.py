"""Checkpoints in the layouts that people publish, of random bytes, and what kernels take of them, made plainly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from integrations.weight_fragments import to_fragments

NAMES = ("gate", "up", "down")
Tensors = dict[str, tuple[str, np.ndarray]]  # name -> dtype of the file, and its bytes in items of that size


def save(path: Path, tensors: Tensors) -> None:
    """A safetensors file."""
    header, data = {}, b""
    for name, (dtype, array) in tensors.items():
        begin, data = len(data), data + np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def save_sharded(folder: Path, tensors: Tensors, files: int) -> None:
    """Tensors dealt out over files, so that an expert's are in several, with an index."""
    names, weight_map = sorted(tensors), {}
    for part in range(files):
        file = f"model-{part + 1:05}-of-{files:05}.safetensors"
        members = names[part::files]
        save(folder / file, {name: tensors[name] for name in members})
        weight_map |= dict.fromkeys(members, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@dataclasses.dataclass
class Experts:
    """[E, N, ...] by the names of gate, up and down: values as bytes, scales as they are stored, biases."""

    form: str
    hidden: int
    intermediate: int
    values: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]
    bias: dict[str, np.ndarray]  # BF16

    @property
    def count(self) -> int:
        return len(self.values["gate"])

    @property
    def pack(self) -> int:
        return 2 if self.form == "MXFP4" else 1


def bf16(numbers: np.ndarray) -> np.ndarray:
    return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


BLOCKS = {"FP8": (128, 128), "FP8 channel": (1, 1 << 30)}  # of values that share a scale, which is a number
SCALES = {
    "U8": lambda rng, shape: rng.integers(0, 255, shape, dtype=np.uint8),
    "exact": lambda rng, shape: rng.integers(27, 161, shape, dtype=np.uint8),  # of bf16 as a factor
    "F32": lambda rng, shape: rng.uniform(1e-5, 1e-2, shape).astype(np.float32),
    "BF16": lambda rng, shape: bf16(rng.uniform(1e-5, 1e-2, shape)),
    "F8_E8M0": lambda rng, shape: rng.integers(0, 255, shape, dtype=np.uint8),
    "powers": lambda rng, shape: (2.0 ** rng.integers(-20, 3, shape)).astype(np.float32),
}


def as_f32(scale: np.ndarray) -> np.ndarray:
    """Stored scales of FP8 as numbers."""
    if scale.dtype == np.float32:
        return scale
    if scale.dtype == np.uint16:
        return (scale.astype(np.uint32) << 16).view(np.float32)
    return np.ldexp(np.float32(1), scale.astype(np.int32) - 127).astype(np.float32)


def random_experts(
    rng: np.random.Generator, form: str, kind: str, count: int, hidden: int, intermediate: int
) -> Experts:
    """Every byte is another one, and every scale of every block; no E4M3 is NaN."""
    rows, columns = BLOCKS.get(form, (1, 32))
    pack = 2 if form == "MXFP4" else 1
    sizes = dict(zip(NAMES, [(intermediate, hidden)] * 2 + [(hidden, intermediate)], strict=True))
    values = {name: rng.integers(0, 256, (count, n, k // pack), dtype=np.uint8) for name, (n, k) in sizes.items()}
    if pack == 1:
        for array in values.values():
            array[array & 0x7F == 0x7F] -= 1
    scale = {name: SCALES[kind](rng, (count, -(-n // rows), -(-k // columns))) for name, (n, k) in sizes.items()}
    bias = {name: bf16(rng.standard_normal((count, n))) for name, (n, _) in sizes.items()}
    return Experts(form, hidden, intermediate, values, scale, bias)


def separate(
    experts: Experts, prefix: str, projections: tuple[str, ...], suffixes: tuple[str, str], types: tuple[str, str]
) -> Tensors:
    """Tensors of each expert: ``<prefix>.<number>.<projection><suffix>``."""
    tensors: Tensors = {}
    for expert in range(experts.count):
        for name, projection in zip(NAMES, projections, strict=True):
            for suffix, dtype, arrays in zip(suffixes, types, (experts.values, experts.scale), strict=True):
                tensors[f"{prefix}.{expert}.{projection}{suffix}"] = (dtype, arrays[name][expert])
    return tensors


def stacked(experts: Experts, prefix: str, suffixes: tuple[str, str], types: tuple[str, str]) -> Tensors:
    """Tensors of all experts, the rows of gate and then those of up."""
    tensors: Tensors = {}
    for suffix, dtype, arrays in zip(suffixes, types, (experts.values, experts.scale), strict=True):
        both = np.concatenate([arrays["gate"], arrays["up"]], axis=1)
        tensors[f"{prefix}.gate_up_proj{suffix}"] = (dtype, both)
        tensors[f"{prefix}.down_proj{suffix}"] = (dtype, arrays["down"])
    return tensors


def gpt_oss(experts: Experts, prefix: str) -> Tensors:
    """Rows of gate and up in turn, blocks of 16 bytes as a dimension of their own, biases."""

    def in_turn(arrays: dict[str, np.ndarray]) -> np.ndarray:
        both = np.empty((experts.count, 2 * experts.intermediate, *arrays["gate"].shape[2:]), arrays["gate"].dtype)
        both[:, 0::2], both[:, 1::2] = arrays["gate"], arrays["up"]
        return both

    tensors: Tensors = {}
    for projection, arrange in (("gate_up_proj", in_turn), ("down_proj", lambda arrays: arrays["down"])):
        values = arrange(experts.values)
        tensors[f"{prefix}.{projection}_blocks"] = ("U8", values.reshape(*values.shape[:2], -1, 16))
        tensors[f"{prefix}.{projection}_scales"] = ("U8", arrange(experts.scale))
        tensors[f"{prefix}.{projection}_bias"] = ("BF16", arrange(experts.bias))
    return tensors


@dataclasses.dataclass(frozen=True)
class Published:
    """A layout: format, which scales, the names of tensors, and the kernels whose layout it gets."""

    form: str
    kind: str
    prefix: str
    tensors: Callable[[Experts, str], Tensors]
    target: str

    def experts(self, rng: np.random.Generator, count: int = 3, hidden: int = 160, intermediate: int = 192) -> Experts:
        return random_experts(rng, self.form, self.kind, count, hidden, intermediate)


def _separate(projections: tuple[str, ...], suffixes: tuple[str, str], types: tuple[str, str]) -> Callable:
    return lambda experts, prefix: separate(experts, prefix, projections, suffixes, types)


def _stacked(suffixes: tuple[str, str], types: tuple[str, str]) -> Callable:
    return lambda experts, prefix: stacked(experts, prefix, suffixes, types)


_HF, _W, _MLP = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), "model.layers.3.mlp.experts"
_SCALE, _INVERSE = (".weight", ".weight_scale"), (".weight", ".weight_scale_inv")
_MIXED, _BYTES, _PACKED, _HALF = "moe_mxfp8_mxfp4", "moe_mxfp8", "moe_mxfp4", "moe_bf16_mxfp4"
PUBLISHED = {
    "gpt-oss": Published("MXFP4", "U8", _MLP, gpt_oss, _MIXED),
    "gpt-oss for bf16": Published("MXFP4", "exact", _MLP, gpt_oss, _HALF),
    "MXFP4 compressed-tensors": Published(
        "MXFP4", "U8", "language_model.model.layers.1.block_sparse_moe.experts",
        _separate(_W, (".weight_packed", ".weight_scale"), ("U8", "U8")), _MIXED),
    "MXFP4 ModelOpt": Published("MXFP4", "U8", _MLP, _separate(_HF, _SCALE, ("U8", "U8")), _MIXED),
    "MXFP4 ModelOpt stacked": Published("MXFP4", "U8", _MLP, _stacked(("", "_weight_scale"), ("U8", "U8")), _PACKED),
    "MXFP4 compressed-tensors stacked": Published(
        "MXFP4", "U8", _MLP, _stacked(("_packed", "_scale"), ("U8", "U8")), _MIXED),
    "MXFP4 DeepSeek-V4": Published(
        "MXFP4", "F8_E8M0", "layers.3.ffn.experts", _separate(_W, (".weight", ".scale"), ("I8", "F8_E8M0")), _PACKED),
    "MXFP4 DeepSeek-V4 for bf16": Published(
        "MXFP4", "exact", "layers.3.ffn.experts", _separate(_W, (".weight", ".scale"), ("I8", "F8_E8M0")), _HALF),
    "MXFP4 compressed-tensors for bf16": Published(
        "MXFP4", "exact", _MLP, _separate(_W, (".weight_packed", ".weight_scale"), ("U8", "U8")), _HALF),
    "MXFP4 ModelOpt stacked for bf16": Published(
        "MXFP4", "exact", _MLP, _stacked(("", "_weight_scale"), ("U8", "U8")), _HALF),
    "MXFP8": Published("MXFP8", "U8", _MLP, _separate(_HF, _SCALE, ("F8_E4M3", "U8")), _BYTES),
    "MXFP8 stacked": Published("MXFP8", "U8", _MLP, _stacked(("", "_weight_scale"), ("F8_E4M3", "U8")), _BYTES),
    "MXFP8 of UE8M0": Published(
        "MXFP8", "F8_E8M0", _MLP, _separate(_HF, _SCALE, ("F8_E4M3", "F8_E8M0")), _BYTES),
    "FP8 DeepSeek-V3": Published("FP8", "F32", _MLP, _separate(_HF, _INVERSE, ("F8_E4M3", "F32")), "moe_fp8"),
    "FP8 DeepSeek-V3.1": Published(
        "FP8", "powers", _MLP, _separate(_HF, _INVERSE, ("F8_E4M3", "F32")), "moe_fp8_ue8m0"),
    "FP8 Qwen3": Published("FP8", "BF16", _MLP, _separate(_HF, _INVERSE, ("F8_E4M3", "BF16")), "moe_fp8"),
    "FP8 compressed-tensors": Published("FP8", "BF16", _MLP, _separate(_HF, _SCALE, ("F8_E4M3", "BF16")), "moe_fp8"),
    "FP8 channel": Published(
        "FP8 channel", "BF16", _MLP, _separate(_HF, _SCALE, ("F8_E4M3", "BF16")), "moe_fp8_channel"),
    "FP8 channel stacked": Published(
        "FP8 channel", "F32", _MLP, _stacked(("", "_weight_scale"), ("F8_E4M3", "F32")), "moe_fp8_channel"),
    "FP8 of UE8M0": Published(
        "FP8", "F8_E8M0", "layers.3.ffn.experts", _separate(_W, (".weight", ".scale"), ("F8_E4M3", "F8_E8M0")),
        "moe_fp8_ue8m0"),
    "FP8 stacked": Published("FP8", "F32", _MLP, _stacked(("", "_scale_inv"), ("F8_E4M3", "F32")), "moe_fp8"),
}  # fmt: skip


# An MLP without a router, by the name and the types of its tensors: those of a published layout's first expert.
DENSE = {
    "MXFP4 compressed-tensors": "language_model.model.layers.1.feed_forward.shared_expert",
    "MXFP4 ModelOpt": "model.layers.0.mlp",
    "MXFP4 DeepSeek-V4": "layers.3.ffn.shared_experts",
    "MXFP8": "model.layers.0.mlp",
    "MXFP8 of UE8M0": "model.layers.3.mlp.shared_experts",
    "FP8 DeepSeek-V3": "model.layers.0.mlp",
    "FP8 DeepSeek-V3.1": "model.layers.3.mlp.shared_experts",
    "FP8 Qwen3": "model.layers.7.mlp",
    "FP8 compressed-tensors": "model.layers.3.mlp.shared_expert",
    "FP8 channel": "model.layers.0.mlp",
    "FP8 of UE8M0": "layers.0.ffn",
}


def dense(experts: Experts, name: str) -> Tensors:
    """Tensors of the first expert as those of the MLP of ``DENSE``."""
    published, begin = PUBLISHED[name], f"{PUBLISHED[name].prefix}.0."
    tensors = published.tensors(experts, published.prefix)
    return {
        f"{DENSE[name]}.{tensor.removeprefix(begin)}": entry
        for tensor, entry in tensors.items()
        if tensor.startswith(begin)
    }


def padded(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    out = np.zeros((rows, columns), array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out


def blocks(scale: np.ndarray) -> np.ndarray:
    """The 128x4 block layout, a byte at a time."""
    rows, columns = -(-scale.shape[0] // 128) * 128, -(-scale.shape[1] // 4) * 4
    out = np.zeros(rows * columns, np.uint8)
    for (row, column), byte in np.ndenumerate(scale):
        block = row // 128 * (columns // 4) + column // 4
        out[block * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = byte
    return out.reshape(rows, columns)


def words(scale: np.ndarray, n: int, k: int) -> np.ndarray:
    """A word of four exponents for 512 of K of each row."""
    out = np.zeros((-(-k // 512), n), np.int64)
    for row in range(n):
        for column in range(scale.shape[1]):
            number = scale[row // 128, column]
            exponent = 0 if number == 0 else int(np.log2(np.float64(number))) + 127
            out[column // 4, row] += exponent << 8 * (column % 4)
    return out.astype(np.uint32).view(np.int32)


def expected(experts: Experts, target: str, share: tuple[int, int], width: int, rank: int, with_bias: bool) -> dict:
    """What kernels take of the rank that has ``share`` of I, from and to, padded to ``width``."""
    (begin, end), pack, hidden = share, experts.pack, experts.hidden
    k = 128 if target == "moe_mxfp8_mxfp4" else 32 if "mx" in target else 16
    n = 32 if "mx" in target else 16
    inputs, outputs = -(-hidden // k) * k, -(-hidden // n) * n
    rows, columns = BLOCKS.get(experts.form, (1, 32))
    made = []
    for e in range(experts.count):
        one, scales = {}, {}
        for name in ("gate", "up"):
            one[name] = padded(experts.values[name][e, begin:end], width, inputs // pack)
            scale = experts.scale[name][e, begin // rows : -(-end // rows)]
            scale = as_f32(scale) if experts.form in BLOCKS else scale
            scales[name] = padded(scale, -(-width // rows), -(-inputs // columns))
        one["down"] = padded(experts.values["down"][e][:, begin // pack : end // pack], outputs, width // pack)
        scale = experts.scale["down"][e][:, begin // columns : -(-end // columns)]
        scale = as_f32(scale) if experts.form in BLOCKS else scale
        scales["down"] = padded(scale, -(-outputs // rows), -(-width // columns))
        biases = {name: padded(as_f32(experts.bias[name][e, begin:end])[None], 1, width)[0] for name in ("gate", "up")}
        biases["down"] = padded(as_f32(experts.bias["down"][e])[None] if rank == 0 else np.zeros((1, 0), np.float32),
                                1, outputs)[0]  # fmt: skip
        made.append(_arranged(target, one, scales, biases, width, inputs, outputs))
    return {name: np.stack([arrays[name] for arrays in made]) for name in made[0] if with_bias or "bias" not in name}


def _arranged(target: str, values: dict, scales: dict, biases: dict, width: int, inputs: int, outputs: int) -> dict:
    if target in ("moe_fp8", "moe_fp8_ue8m0"):
        if target == "moe_fp8_ue8m0":
            sizes = {"gate": (width, inputs), "up": (width, inputs), "down": (outputs, width)}
            scales = {name: words(scales[name], *size) for name, size in sizes.items()}
        both = [np.stack([kind["gate"], kind["up"]]) for kind in (values, scales, biases)]
    elif target == "moe_fp8_channel":
        scales = {name: scale[:, 0] for name, scale in scales.items()}
        both = [np.concatenate([kind["gate"], kind["up"]]) for kind in (values, scales, biases)]
    else:
        turn = 64 if target == "moe_bf16_mxfp4" else 1
        pairs = [np.stack([kind[name].reshape(-1, turn, *kind[name].shape[1:]) for name in ("gate", "up")], axis=1)
                 for kind in (values, scales, biases)]  # fmt: skip
        both = [pair.reshape(2 * width, *pair.shape[3:]) for pair in pairs]
        both[1], scales = blocks(both[1]), {"down": blocks(scales["down"])}
        if target == "moe_bf16_mxfp4":
            both[0], values = to_fragments(both[0]), {"down": to_fragments(values["down"])}
    return {"w13": both[0], "w13_scale": both[1], "w13_bias": both[2],
            "w2": values["down"], "w2_scale": scales["down"], "w2_bias": biases["down"]}  # fmt: skip
