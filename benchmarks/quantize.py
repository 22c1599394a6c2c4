"""The kernels around the GEMMs of an MoE layer: ``python benchmarks/quantize.py --json results/....json``.

bf16, E experts of m rows each, or as many rows without experts, L2 cold, median of CUDA-graph replays. The floor is the
bytes that a call must read and write over the measured read bandwidth. The peers are what torch users have: the same
formulas in torch, eager and under torch.compile, without the 128x4 layout of the scales, which makes them cheaper than
they would be.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import record
import torch
from timing import begin

import loader

EXPERTS = 32
ROWS = [1, 16, 64, 256, 1024]
HIDDEN, INTERMEDIATE, TOP_K = 7168, 2048, 8
GROUP = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where there is none, only to be imported
EDGES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], device=DEVICE)  # between neighbouring magnitudes of E2M1
SM_COUNT = torch.cuda.get_device_properties(0).multi_processor_count if DEVICE == "cuda" else 1
# Encoding -> the elements of K of a scale, or of a word of four, and its type; bytes lie in blocks of 128 rows by 4.
ENCODINGS = {"nvfp4": (16, torch.uint8), "mxfp8": (32, torch.uint8), "fp8": (128, torch.float32),
             "fp8_ue8m0": (512, torch.int32)}  # fmt: skip
ELEMENTS = {"nvfp4": torch.uint8} | dict.fromkeys(("mxfp8", "fp8", "fp8_ue8m0"), torch.float8_e4m3fn)


def torch_quantize(x: torch.Tensor, encode_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed E2M1 and UE4M3 scales in plain order; ``encode_scale`` [rows]. Ties go up, which costs the same."""
    blocks = x.float().view(x.shape[0], -1, GROUP)
    encode = encode_scale[:, None]
    scales = (blocks.abs().amax(-1) * encode / 6).clamp(max=448).to(torch.float8_e4m3fn)
    value = scales.float()
    scaled = blocks * torch.where(value == 0, 0, encode / value)[..., None]
    codes = torch.bucketize(scaled.abs(), EDGES) | (scaled < 0).int() << 3
    codes = codes.view(x.shape[0], -1, 2)
    return (codes[..., 0] | codes[..., 1] << 4).to(torch.uint8), scales


def torch_silu_quantize(
    x: torch.Tensor, row_weight: torch.Tensor, encode_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """SwiGLU of gate and up side by side, times a weight a row, quantised."""
    gate, up = x.chunk(2, dim=-1)
    return torch_quantize(torch.nn.functional.silu(gate) * up * row_weight[:, None].to(x.dtype), encode_scale)


class Layer:
    """Buffers of E experts of ``rows`` rows each, of tokens that each go to ``TOP_K`` of them, in turn."""

    def __init__(self, experts: int, rows: int) -> None:
        if experts % TOP_K:
            raise ValueError(f"{experts} experts; their number is a multiple of {TOP_K}, as many as a token goes to")
        self._rows, self._padded, m = rows, -(-rows // 128) * 128, experts * rows
        self._shape = experts, m
        self.hidden = torch.randn(m, HIDDEN, dtype=torch.bfloat16, device=DEVICE)
        self.gate_up = torch.randn(m, 2 * INTERMEDIATE, dtype=torch.bfloat16, device=DEVICE)
        self.residual, self.weight = torch.randn_like(self.hidden), torch.ones_like(self.hidden[0])
        self.row_weight = torch.rand(m, device=DEVICE)
        self.global_scale = torch.full((experts,), 448.0, device=DEVICE)
        self.row_scale = self.global_scale.repeat_interleave(rows)
        self.offsets = torch.arange(experts + 1, dtype=torch.int32, device=DEVICE) * rows
        self.scale_offsets = torch.arange(experts, dtype=torch.int32, device=DEVICE) * self._padded
        self.mask = torch.full((experts,), rows, dtype=torch.int32, device=DEVICE)
        self.slot_of_row = (torch.arange(m, device=DEVICE) % experts).argsort(stable=True).int()
        self.topk_weights = torch.rand(m // TOP_K, TOP_K, device=DEVICE)
        self.partial = torch.empty(4 * SM_COUNT, device=DEVICE)

    def _outputs(self, encoding: str, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Elements and scales of all rows of k."""
        experts, m = self._shape
        elements = (m, k // 2) if encoding == "nvfp4" else (m, k)
        blocks, dtype = ENCODINGS[encoding]
        in_blocks = experts * self._padded, k // blocks
        scales = in_blocks if dtype == torch.uint8 else (-(-k // blocks), -(-m // 4) * 4)
        return (torch.empty(elements, dtype=torch.uint8, device=DEVICE).view(ELEMENTS[encoding]),
                torch.empty(scales, dtype=dtype, device=DEVICE))  # fmt: skip

    def calls(self) -> dict[str, dict[str, torch.Tensor]]:
        """Family -> buffers of a call."""
        by_expert = {"expert_offsets": self.offsets, "scale_offsets": self.scale_offsets}
        experts = self._shape[0]

        def outputs(k: int, encoding: str = "nvfp4") -> dict[str, torch.Tensor]:
            return dict(zip(("out", "out_scale"), self._outputs(encoding, k), strict=True))

        def each(k: int) -> dict[str, torch.Tensor]:
            return {name: tensor.view(experts, -1, tensor.shape[1]) for name, tensor in outputs(k).items()}

        def gathered(encoding: str) -> dict[str, torch.Tensor]:
            names = ("expert_offsets",) if encoding.startswith("fp8") else tuple(by_expert)
            a, a_scale = self._outputs(encoding, HIDDEN)
            return {"x": self.hidden[: len(self.topk_weights)], "slot_of_row": self.slot_of_row,
                    "topk_weights": self.topk_weights, **{name: by_expert[name] for name in names}, "a": a,
                    "a_scale": a_scale, "row_weight": self.row_weight}  # fmt: skip

        calls = {
            "nvfp4_quantize_grouped": {
                "x": self.hidden, "global_scale": self.global_scale, **by_expert, **outputs(HIDDEN),
            },
            "nvfp4_quantize_masked": {
                "x": self.hidden.view(experts, -1, HIDDEN), "global_scale": self.global_scale, "mask": self.mask,
                **each(HIDDEN),
            },
            "silu_mul_nvfp4_quantize": {
                "x": self.gate_up, "row_weight": self.row_weight, "global_scale": self.global_scale, **by_expert,
                **outputs(INTERMEDIATE),
            },
            "silu_mul_nvfp4_quantize_masked": {
                "x": self.gate_up.view(experts, -1, 2 * INTERMEDIATE), "global_scale": self.global_scale,
                "mask": self.mask, **each(INTERMEDIATE),
            },
            "amax": {"x": self.hidden, "partial": self.partial},
        }  # fmt: skip
        for encoding in ENCODINGS:
            is_nvfp4 = encoding == "nvfp4"
            one, of_each = ({"global_scale": scale} if is_nvfp4 else {}
                            for scale in (self.global_scale[:1], self.global_scale))  # fmt: skip
            calls |= {
                f"{encoding}_quantize": {"x": self.hidden, **one, **outputs(HIDDEN, encoding)},
                f"moe_gather_quantize{'' if is_nvfp4 else f'_{encoding}'}": {**gathered(encoding), **of_each},
                f"add_rms_norm_{encoding}_quantize": {
                    "x": self.hidden, "residual": self.residual, "weight": self.weight, **one,
                    **outputs(HIDDEN, encoding),
                },
            }  # fmt: skip
        return calls

    def peers(self) -> dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...]]]:
        """Family -> torch function and its arguments."""
        return {
            "nvfp4_quantize_grouped": (torch_quantize, (self.hidden, self.row_scale)),
            "silu_mul_nvfp4_quantize": (torch_silu_quantize, (self.gate_up, self.row_weight, self.row_scale)),
            "amax": (lambda x: x.abs().amax(), (self.hidden,)),
        }

    def bytes(self, buffers: dict[str, torch.Tensor]) -> int:
        """What a call reads and writes; of scales in blocks of 128 rows only the rows that elements have."""
        in_blocks = sum(buffers[name].nbytes for name in ("out_scale", "a_scale")
                        if name in buffers and buffers[name].dtype == torch.uint8)  # fmt: skip
        twice = buffers["residual"].nbytes if "residual" in buffers else 0
        unwritten = int(in_blocks * (1 - self._rows / self._padded))
        return sum(tensor.nbytes for tensor in buffers.values()) + twice - unwritten


def scalars(buffers: dict[str, torch.Tensor]) -> dict[str, object]:
    """Of a call of these buffers."""
    kind = {"global_scale_kind": "encode"} if "global_scale" in buffers else {}
    return kind | ({"eps": 1e-6} if "residual" in buffers else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=EXPERTS, help=f"a multiple of {TOP_K}")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of each expert")
    arguments = record.parse(parser, [f"{encoding}_quantize" for encoding in ENCODINGS])

    found, timer, bandwidth = begin()
    rows = []
    for m in arguments.rows:
        layer = Layer(arguments.experts, m)
        peers = layer.peers()
        for family, buffers in layer.calls().items():
            plan = loader.plan(family, **buffers, **scalars(buffers))
            microseconds = timer(lambda plan=plan: plan.launch(torch.cuda.current_stream()))
            moved = layer.bytes(buffers)
            row = {
                "family": family, "m": m, "experts": arguments.experts, "megabytes": moved / 1e6,
                "floor": moved / bandwidth * 1e6, "microseconds": microseconds, "TB/s": moved / microseconds / 1e6,
                "torch": None, "torch.compile": None,
            }  # fmt: skip
            if family in peers:
                function, operands = peers[family]
                compiled = torch.compile(function, dynamic=False)
                row["torch"] = timer(lambda f=function, o=operands: f(*o))
                row["torch.compile"] = timer(lambda f=compiled, o=operands: f(*o))
            rows.append(row)
            print(row, flush=True)
    columns = ["family", "m", "megabytes", "floor", "microseconds", "TB/s", "torch", "torch.compile"]
    title = f"bf16, E = {arguments.experts}, hidden {HIDDEN}, intermediate {INTERMEDIATE}"
    print(record.table(title, columns, [[row[column] for column in columns] for row in rows]))
    record.finish(arguments.json, "quantize", found, timer.facts(), {"read_bandwidth": bandwidth, "rows": rows})


if __name__ == "__main__":
    main()
