"""Problems of the norm that quantises: what it must write, to the byte where fp32 is exact, else within a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import block_quantization
import gemm_problem
import numpy as np
import quantization
import reference
from block_quantization import FP8, MXFP8, NVFP4, Format, Quantized
from quantization import EMULATED, encode_scale, load, store
from raw_buffer import RawBuffer
from reference import GuardedOutput, ceil_div, round_up, scale_offset

import loader

F32 = np.float32
FORMATS = {"nvfp4": NVFP4, "mxfp8": MXFP8, "fp8": FP8, "fp8_ue8m0": FP8}
FAMILIES = {f"add_rms_norm_{name}_quantize": name for name in FORMATS}
LAYOUTS = {"nvfp4": ("blocks_128x4", "linear"), "mxfp8": ("blocks_128x4", "linear"), "fp8": ("mn_major", "row_major"),
           "fp8_ue8m0": ("mn_major",)}  # fmt: skip
SCALES = {"nvfp4": ("encode", "decode"), "mxfp8": ("up", "ocp"), "fp8": ("none", "power_of_two"),
          "fp8_ue8m0": ("power_of_two",)}  # fmt: skip
ROUNDINGS = ("activation_type", "each_step", "none")
# Roundings on the way to 1 / sqrt(mean + eps): at most 8 in a chain of a thread, 2 of its four chains, 5 of lanes and
# 15 of warps, the quotient and the sum with eps, half of which the root leaves; that itself, and its inverse.
INVERSE = ((8 + 2 + 5 + 15 + 2) / 2 + 2) * 2.0**-24


@dataclass(frozen=True)
class Settings:
    """The scalars of a launch; ``scale`` is the word that says how scales are made."""

    layout: str
    scale: str
    rounding: str = "activation_type"
    eps: float = 1e-6
    weight_offset: float = 0.0
    division: str = "approximate"

    @classmethod
    def every(cls, name: str, **scalars: Any) -> list[Settings]:
        """Each word of each scalar of a format, once at least."""
        layouts, scales = LAYOUTS[name], SCALES[name]
        return [cls(layouts[i % len(layouts)], scales[i // 2 % len(scales)], rounding, weight_offset=float(i % 2),
                    division=("approximate", "ieee")[i % 2], **scalars)
                for i, rounding in enumerate(ROUNDINGS)]  # fmt: skip


def squares(total: int, count: int) -> np.ndarray:
    """``count`` whole numbers up to 255 whose squares sum up to ``total``."""
    found = np.zeros(count, np.int64)
    for i in range(count):
        found[i] = min(int(total**0.5), 255)
        total -= int(found[i]) ** 2
    assert total == 0, "another data"
    return found


@dataclass
class Problem:
    """Rows of 16 bits, and settings of a launch."""

    name: str  # of the format
    dtype: str
    x: np.ndarray  # stored [M, K]
    residual: np.ndarray | None
    weight: np.ndarray  # stored [K]
    global_scale: np.ndarray  # f32 [1], of NVFP4, of the kind that the settings say
    settings: Settings

    @classmethod
    def random(
        cls, rng: np.random.Generator, name: str, dtype: str, m: int, k: int, settings: Settings, adds: bool = True
    ) -> Problem:  # fmt: skip
        """Rows, blocks and columns whose sizes differ."""
        blocks = np.repeat(np.exp2(rng.uniform(-3, 3, (m, ceil_div(k, 16)))), 16, axis=1)[:, :k]
        x, residual = (rng.standard_normal((m, k)) * blocks * np.exp2(rng.uniform(-3, 3, (m, 1))) for _ in range(2))
        return cls._stored(rng, name, dtype, x, residual if adds else None, rng.standard_normal(k), settings)

    @classmethod
    def exact(
        cls, rng: np.random.Generator, name: str, dtype: str, m: int, k: int, settings: Settings, adds: bool = True
    ) -> Problem:  # fmt: skip
        """Whole numbers, the mean of whose squares is a square less eps, which is 0 or 1: nothing is rounded up to the
        root, whatever the order of the sum, and its inverse is rounded once."""
        fill = rng.choice(k, min(16, k // 2 + 4), replace=False)
        blocks = np.repeat(np.exp2(rng.uniform(-2, 2, (m, ceil_div(k, 16)))), 16, axis=1)[:, :k]
        rows = np.clip(np.rint(3 * rng.standard_normal((m, k)) * blocks), -255, 255).astype(np.int64)
        for row in rows:
            row[fill] = 0
            have = int((row**2).sum())
            root = int((have / k + settings.eps) ** 0.5) + 1
            row[fill] = squares(int(k * (root**2 - settings.eps)) - have, len(fill)) * rng.choice([-1, 1], len(fill))
        part = np.rint(rows * rng.uniform(0, 1, rows.shape)) if adds else rows
        return cls._stored(rng, name, dtype, part, rows - part if adds else None, rng.standard_normal(k), settings)

    @classmethod
    def _stored(
        cls, rng: np.random.Generator, name: str, dtype: str, x: np.ndarray, residual: np.ndarray | None,
        weight: np.ndarray, settings: Settings,
    ) -> Problem:  # fmt: skip
        x, weight = store(x.astype(F32), dtype), store(weight.astype(F32), dtype)
        residual = None if residual is None else store(residual.astype(F32), dtype)
        global_scale = np.exp2(rng.uniform(4, 8, 1)).astype(F32)
        return cls(name, dtype, x, residual, weight, global_scale, settings)

    @property
    def family(self) -> str:
        return f"add_rms_norm_{self.name}_quantize"

    @property
    def format(self) -> Format:
        return FORMATS[self.name]

    @property
    def row(self) -> np.ndarray:
        """What is normalised, as it is stored."""
        if self.residual is None:
            return self.x
        with np.errstate(all="ignore"):
            return store(load(self.x, self.dtype) + load(self.residual, self.dtype), self.dtype)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [M, K] of what is quantised, and how far from it that may be."""
        row, weight = (reference.as_float64(stored, self.dtype) for stored in (self.row, self.weight))
        rounding, weight = self.settings.rounding, weight + self.settings.weight_offset
        value = row / np.sqrt((row**2).mean(1, keepdims=True) + float(F32(self.settings.eps)))
        bound = abs(value) * (INVERSE + 2 * 2.0**-24)
        if rounding == "each_step":
            bound = gemm_problem.rounded_bound(value, bound, self.dtype)
        value, bound = value * weight, bound * abs(weight) + abs(value * weight) * 3 * 2.0**-24
        return value, gemm_problem.rounded_bound(value, bound, "f32" if rounding == "none" else self.dtype)

    def exact_values(self) -> np.ndarray:
        """fp32 [M, K] of what is quantised, of a problem whose roots are whole numbers."""
        row, weight = load(self.row, self.dtype), load(self.weight, self.dtype)
        root = np.sqrt((row.astype(np.float64) ** 2).mean(1, keepdims=True) + self.settings.eps)
        assert (root % 1 == 0).all()
        value = row * (F32(1) / root.astype(F32))
        if self.settings.rounding == "each_step":
            value = load(store(value, self.dtype), self.dtype)
        value = value * (weight + F32(self.settings.weight_offset))
        return value if self.settings.rounding == "none" else load(store(value, self.dtype), self.dtype)

    def scalars(self) -> dict[str, Any]:
        """Of the call."""
        settings = self.settings
        common = {"eps": settings.eps, "weight_offset": settings.weight_offset, "rounding": settings.rounding}
        if self.name != "fp8_ue8m0":
            common["scale_layout"] = settings.layout
            kind = "global_scale_kind" if self.name == "nvfp4" else "scale_rounding"
            common[kind] = settings.scale
        return common | ({"division": settings.division} if self.name == "nvfp4" else {})

    def inputs(self) -> dict[str, np.ndarray]:
        """By name, without the residual."""
        scale = {"global_scale": self.global_scale} if self.name == "nvfp4" else {}
        return {"x": self.x, "weight": self.weight, **scale}

    def verify(self, outputs: Outputs, context: str = "", rows: slice = slice(None)) -> None:
        """Scales and elements of the rows follow from values within their bound."""
        written, (value, bound) = outputs.quantized(context), self.expected()
        quantized = Quantized(written.out[rows], written.scales[rows], self.format)
        if self.name == "nvfp4":
            encode = float(encode_scale(self.global_scale, self.settings.scale)[0])
            block_quantization.verify_nvfp4(quantized, value[rows], bound[rows], encode, context)
        else:
            quantized.verify(value[rows], bound[rows], self.settings.scale, context)

    def verify_exactly(self, outputs: Outputs, context: str = "") -> None:
        """Every byte of elements and scales follows from values that are known."""
        written, values, fmt = outputs.quantized(context), self.exact_values(), self.format
        if self.name == "nvfp4":
            encode = encode_scale(self.global_scale, self.settings.scale).repeat(len(values))
            packed, codes = quantization.quantize(values, encode, self.settings.division, EMULATED)
            known = Quantized(gemm_problem.unpacked(packed), reference.UE4M3[codes], fmt)
        else:
            known = block_quantization.quantize(values, fmt, self.settings.scale)
        for what, got, right in (("scales", written.scales, known.scales), ("elements", written.out, known.out)):
            wrong = np.argwhere(got != right)
            assert not len(wrong), f"{context}: {len(wrong)} {what} differ, first at {wrong[0]}"


class Outputs:
    """out, out_scale and the residual of a launch; poisoned, but for the residual. ``spare``: rows of scales behind the
    last one, where a layout may have them."""

    def __init__(self, problem: Problem, spare: bool = True) -> None:
        self.problem, (m, k) = problem, problem.x.shape
        self.blocks = ceil_div(k, problem.format.block)
        self.out = GuardedOutput(m, k // 2 if problem.name == "nvfp4" else k, "u8")
        layout = problem.settings.layout
        shape = {"blocks_128x4": (round_up(m, 128) + 128 * spare, round_up(self.blocks, 4), "u8"),
                 "linear": (m + 3 * spare, round_up(self.blocks, 4), "u8"), "row_major": (m, self.blocks, "f32"),
                 "mn_major": (self.blocks, round_up(m, 4), "f32")}[layout]  # fmt: skip
        if problem.name == "fp8_ue8m0":
            shape = ceil_div(self.blocks, 4), round_up(m, 4), "i32"
        self.out_scale = GuardedOutput(*shape)
        self.residual = GuardedOutput(0 if problem.residual is None else m, k, problem.dtype)
        if problem.residual is not None:
            self.residual.array[:] = problem.residual

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {"out": self.out.array, "out_scale": self.out_scale.array, "residual": self.residual.array}

    def launch(self, **options: Any) -> Outputs:
        """On host memory."""
        buffers = {name: RawBuffer.of(array) for name, array in (self.problem.inputs() | self.arrays).items()}
        loader.launch(self.problem.family, **buffers, **self.problem.scalars(), **options)
        return self

    @property
    def written(self) -> bytes:
        return b"".join(array.tobytes() for array in self.arrays.values())

    def _scales(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the rows [M, blocks, or rounded up to words], what must be zeros, and what must be as before."""
        m, layout, scales = len(self.out.array), self.problem.settings.layout, self.out_scale.array
        if layout == "mn_major":
            rows = np.ascontiguousarray(scales.T[:m])
            return rows.view(np.uint8) if self.problem.name == "fp8_ue8m0" else rows, scales[:, m:], scales[:0]
        if layout == "row_major":
            return scales, scales[:0], scales[:0]
        if layout == "linear":
            return scales[:m], scales[:0], scales[m:]
        places = scale_offset(np.arange(m)[:, None], np.arange(scales.shape[1]), self.blocks)
        return scales.reshape(-1)[places], scales[:0], np.delete(scales.reshape(-1), places.reshape(-1))

    def quantized(self, context: str = "") -> Quantized:
        """Codes and scales of all rows. The residual is the sum to the byte, padding is zeros, and nothing else is
        written."""
        problem, codes = self.problem, self.out.array
        if problem.residual is not None:
            is_nan = np.isnan(load(problem.row, problem.dtype))
            assert np.array_equal(np.isnan(load(self.residual.array, problem.dtype)), is_nan), f"{context}: residual"
            assert (self.residual.array == problem.row)[~is_nan].all(), f"{context}: residual"
        scales, zeros, before = self._scales()
        intact = all(buffer.intact(len(buffer.array)) for buffer in (self.out, self.out_scale, self.residual))
        unchanged = (np.ascontiguousarray(before).view(np.uint8) == GuardedOutput.POISON).all()
        assert intact and unchanged, f"{context}: wrote outside of the rows"
        assert (zeros == 0).all() and (scales[:, self.blocks :] == 0).all(), f"{context}: padding is not zero"
        scales = scales[:, : self.blocks]
        if problem.name == "nvfp4":
            codes = gemm_problem.unpacked(codes)
        if scales.dtype == np.uint8:
            scales = (reference.UE4M3 if problem.name == "nvfp4" else reference.UE8M0)[scales].astype(F32)
        return Quantized(codes, scales, problem.format)
