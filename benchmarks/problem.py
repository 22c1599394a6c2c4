"""Random operands of a grouped NVFP4 GEMM on the device, for timing and a rough check. Tests judge correctness."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from itertools import accumulate

import record  # noqa: F401  the checkout is on the path
import torch

from integrations.weight_fragments import to_fragments

GROUP = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where there is none, for tests
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


@dataclasses.dataclass(frozen=True)
class Problem:
    """E experts of ``counts`` rows. Plain-order scales are kept beside those in the 128x4 layout."""

    inputs: dict[str, torch.Tensor]  # by argument of grouped_fp4
    a_groups: torch.Tensor  # float8_e4m3fn [M, K/16]
    b_groups: torch.Tensor  # float8_e4m3fn [E, N, K/16]
    counts: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """M, N, K, E."""
        a, b = self.inputs["a"], self.inputs["b"]
        return a.shape[0], b.shape[1], a.shape[1] * 2, b.shape[0]

    def output(self, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        m, n, _, _ = self.shape
        return torch.full((m, n), float("nan"), dtype=dtype, device=DEVICE)

    def activations(self) -> torch.Tensor:
        """A in bf16 [M, K]: dequantised exactly, so that every contender multiplies the same numbers."""
        return dequantize(self.inputs["a"], self.a_groups)

    @functools.cached_property
    def of_16_bits(self) -> dict[str, torch.Tensor]:
        """By argument of grouped_bf16_nvfp4: the same tokens in bf16, and the same weights in fragment order. In f16
        they are exact, too."""
        kept = {name: self.inputs[name] for name in ("b_scale", "alpha", "expert_offsets")}
        fragments = torch.stack([to_fragments(b) for b in self.inputs["b"]])
        return {"a": self.activations(), "b_fragments": fragments, **kept}

    def weights(self) -> torch.Tensor:
        """B in bf16 [E, N, K], exactly; built by expert, because the float32 of all would be large."""
        packed = self.inputs["b"]
        return torch.stack([dequantize(packed[e], self.b_groups[e]) for e in range(packed.shape[0])])

    def bytes(self, out: torch.Tensor) -> int:
        """What must move: packed operands and their scales once, and the output."""
        operands = (self.inputs["a"], self.inputs["b"], self.a_groups, self.b_groups, out)
        return sum(tensor.nbytes for tensor in operands)

    def error(self, out: torch.Tensor) -> float:
        """Root of mean squares of (out - reference) over that of the reference, float32, for the first and the last
        expert. NaN anywhere gives NaN."""
        return relative_error(out, self.reference)

    @functools.cached_property
    def reference(self) -> list[tuple[slice, torch.Tensor]]:
        """Of the first and of the last expert, its rows and float64 [rows, N]."""
        found = []
        for expert in (0, self.shape[3] - 1):
            begin = sum(self.counts[:expert])
            rows = slice(begin, begin + self.counts[expert])
            a = dequantize(self.inputs["a"][rows], self.a_groups[rows]).double()
            b = dequantize(self.inputs["b"][expert], self.b_groups[expert]).double()
            found.append((rows, a @ b.T * self.inputs["alpha"][expert].double()))
        return found


def relative_error(out: torch.Tensor, reference: Sequence[tuple[slice, torch.Tensor]]) -> float:
    """Root of mean squares of (out - reference) over that of the reference, of those rows. NaN anywhere gives NaN."""
    squares = sum(float((out[rows].double() - expected).square().sum()) for rows, expected in reference)
    return (squares / sum(float(expected.square().sum()) for _, expected in reference)) ** 0.5


def dequantize(packed: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """bf16 [.., K]; an E2M1 value times a UE4M3 scale has six significant bits."""
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    values = torch.tensor(E2M1, device=packed.device)[codes.int()]
    return (values * groups.float().repeat_interleave(GROUP, dim=-1)).bfloat16()


def to_scale_layout(scales: torch.Tensor) -> torch.Tensor:
    """[.., rows, groups] (rows % 128 == 0, groups % 4 == 0) to the 128x4 layout."""
    *lead, rows, groups = scales.shape
    nested = scales.reshape(*lead, rows // 128, 4, 32, groups // 4, 4)
    d = len(lead)
    return nested.permute(*range(d), d, d + 3, d + 2, d + 1, d + 4).reshape(scales.shape).contiguous()


def routed_counts(rows: int, experts: int, seed: int = 0) -> list[int]:
    """Rows of each expert when ``rows * experts`` of them pick an expert at random: ``rows`` on average."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, experts, (rows * experts,), generator=generator)
    return torch.bincount(picks, minlength=experts).tolist()


def make_problem(counts: Sequence[int], n: int, k: int, seed: int = 0) -> Problem:
    """``counts`` rows of each expert; k % 64 == 0 and n % 128 == 0. The weights do not depend on the counts."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    experts, m, groups = len(counts), sum(counts), k // GROUP

    def random_bytes(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8, device=DEVICE, generator=generator)

    def offsets(sizes: Sequence[int]) -> torch.Tensor:
        return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=DEVICE)

    b, b_groups = random_bytes(0, 256, experts, n, k // 2), random_bytes(0x30, 0x40, experts, n, groups)
    a, a_groups = random_bytes(0, 256, m, k // 2), random_bytes(0x30, 0x40, m, groups)
    expert_offsets, scale_offsets = offsets(counts), offsets([-(-count // 128) * 128 for count in counts])
    of_row = torch.repeat_interleave(torch.arange(experts, device=DEVICE), torch.tensor(counts, device=DEVICE))
    a_padded = torch.zeros(int(scale_offsets[-1]), groups, dtype=torch.uint8, device=DEVICE)
    a_padded[torch.arange(m, device=DEVICE) + (scale_offsets - expert_offsets)[of_row]] = a_groups
    inputs = {
        "a": a,
        "b": b,
        "a_scale": to_scale_layout(a_padded),
        "b_scale": to_scale_layout(b_groups),
        "alpha": torch.full((experts,), 1 / 64, device=DEVICE),
        "expert_offsets": expert_offsets,
        "scale_offsets": scale_offsets[:-1],
    }
    return Problem(inputs, a_groups.view(torch.float8_e4m3fn), b_groups.view(torch.float8_e4m3fn), tuple(counts))
