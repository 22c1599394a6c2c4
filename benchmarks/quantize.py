"""The kernels around the GEMMs of an MoE layer: ``python benchmarks/quantize.py --json results/....json``.

bf16, E experts of m rows each, L2 cold, median of CUDA-graph replays. The floor is the bytes that a call must read and
write over the measured read bandwidth. The peers are what torch users have: the same formulas in torch, eager and under
torch.compile, without the 128x4 layout of the scales, which makes them cheaper than they would be.
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
HIDDEN, INTERMEDIATE = 7168, 2048
GROUP = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where there is none, only to be imported
EDGES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], device=DEVICE)  # between neighbouring magnitudes of E2M1
SCALARS = {"global_scale_kind": "encode"}


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
    """Buffers of E experts of ``rows`` rows each."""

    def __init__(self, experts: int, rows: int) -> None:
        m = experts * rows
        padded = -(-rows // 128) * 128

        def scales(k: int) -> torch.Tensor:
            return torch.empty(experts * padded, k // GROUP, dtype=torch.uint8, device="cuda")

        def elements(k: int) -> torch.Tensor:
            return torch.empty(m, k // 2, dtype=torch.uint8, device="cuda")

        self.hidden = torch.randn(m, HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.gate_up = torch.randn(m, 2 * INTERMEDIATE, dtype=torch.bfloat16, device="cuda")
        self.row_weight = torch.rand(m, device="cuda")
        self.global_scale = torch.full((experts,), 448.0, device="cuda")
        self.row_scale = self.global_scale.repeat_interleave(rows)
        self.offsets = torch.arange(experts + 1, dtype=torch.int32, device="cuda") * rows
        self.scale_offsets = torch.arange(experts, dtype=torch.int32, device="cuda") * padded
        self.mask = torch.full((experts,), rows, dtype=torch.int32, device="cuda")
        self.partial = torch.empty(4 * torch.cuda.get_device_properties(0).multi_processor_count, device="cuda")
        self._experts, self._rows, self._padded = experts, rows, padded
        self._scales, self._elements = scales, elements

    def calls(self) -> dict[str, dict[str, torch.Tensor]]:
        """Family -> buffers of a call."""
        by_expert = {"expert_offsets": self.offsets, "scale_offsets": self.scale_offsets}
        elements, scales, of_expert = self._elements, self._scales, (self._experts, -1)

        def outputs(k: int) -> dict[str, torch.Tensor]:
            return {"out": elements(k), "out_scale": scales(k)}

        def each(k: int) -> dict[str, torch.Tensor]:
            return {
                "out": elements(k).view(self._experts, self._rows, k // 2),
                "out_scale": scales(k).view(self._experts, self._padded, k // GROUP),
            }

        return {
            "nvfp4_quantize": {
                "x": self.hidden, "global_scale": self.global_scale[:1],
                "out": elements(HIDDEN), "out_scale": scales(HIDDEN),
            },
            "nvfp4_quantize_grouped": {
                "x": self.hidden, "global_scale": self.global_scale, **by_expert, **outputs(HIDDEN),
            },
            "nvfp4_quantize_masked": {
                "x": self.hidden.view(*of_expert, HIDDEN), "global_scale": self.global_scale, "mask": self.mask,
                **each(HIDDEN),
            },
            "silu_mul_nvfp4_quantize": {
                "x": self.gate_up, "row_weight": self.row_weight, "global_scale": self.global_scale, **by_expert,
                **outputs(INTERMEDIATE),
            },
            "silu_mul_nvfp4_quantize_masked": {
                "x": self.gate_up.view(*of_expert, 2 * INTERMEDIATE), "global_scale": self.global_scale,
                "mask": self.mask, **each(INTERMEDIATE),
            },
            "amax": {"x": self.hidden, "partial": self.partial},
        }  # fmt: skip

    def peers(self) -> dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...]]]:
        """Family -> torch function and its arguments."""
        return {
            "nvfp4_quantize_grouped": (torch_quantize, (self.hidden, self.row_scale)),
            "silu_mul_nvfp4_quantize": (torch_silu_quantize, (self.gate_up, self.row_weight, self.row_scale)),
            "amax": (lambda x: x.abs().amax(), (self.hidden,)),
        }

    def bytes(self, buffers: dict[str, torch.Tensor]) -> int:
        """What a call reads and writes; of out_scale only the rows that elements have."""
        unwritten = buffers["out_scale"].nbytes * (1 - self._rows / self._padded) if "out_scale" in buffers else 0
        return sum(tensor.nbytes for tensor in buffers.values()) - int(unwritten)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of each expert")
    arguments = record.parse(parser, ["nvfp4_quantize"])

    found, timer, bandwidth = begin()
    rows = []
    for m in arguments.rows:
        layer = Layer(arguments.experts, m)
        peers = layer.peers()
        for family, buffers in layer.calls().items():
            scalars = {} if family == "amax" else SCALARS
            plan = loader.plan(family, **buffers, **scalars)
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
    record.finish(arguments.json, "quantize", found, {"read_bandwidth": bandwidth, "rows": rows})


if __name__ == "__main__":
    main()
