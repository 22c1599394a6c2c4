"""Problems of grouped_fp4 as problems of grouped_fp4_swiglu, in FP4 or in 16 bits, for timing and a rough check."""

from __future__ import annotations

import torch
from grouped_fp4 import time_checked
from problem import GROUP, Problem, dequantize, relative_error, to_scale_layout
from timing import REPLAYS, Timer

import loader

ENCODE_SCALE = 0.5  # results are of size 100
MAX_ERROR = 0.15  # root mean square, relative; rounding to NVFP4 makes 0.1
MAX_ERROR_OF_16_BITS = 8e-3  # of gates, ups and results, each rounded to bf16: 3e-3
GATES = 64  # rows of gates, and then as many of their ups


class SwigluProblem:
    """The same operands [N % 128 == 0], whose columns are gate and up in turn, and an output in NVFP4."""

    def __init__(self, problem: Problem) -> None:
        m, n, _, experts = self.shape = problem.shape
        self._problem, device = problem, problem.inputs["a"].device
        self.arguments = problem.inputs | {
            "row_weight": torch.ones(m, device=device),
            "global_scale": torch.full((experts,), ENCODE_SCALE, device=device),
            "global_scale_kind": "encode",
            "intermediate": "bf16",
            "out": torch.zeros(m, n // 4, dtype=torch.uint8, device=device),
            "out_scale": torch.zeros(len(problem.inputs["a_scale"]), n // 2 // GROUP, dtype=torch.uint8, device=device),
        }

    def error(self, out: torch.Tensor) -> float:
        """As ``Problem.error``, of the rows of the first and the last expert."""
        scales = self.arguments["out_scale"]
        plain = torch.empty_like(scales.flatten())
        plain[to_scale_layout(torch.arange(scales.numel(), device=scales.device).reshape(scales.shape)).flatten()] = (
            scales.flatten()
        )
        plain = plain.reshape(scales.shape).view(torch.float8_e4m3fn)
        a_groups, b_groups, counts = self._problem.a_groups, self._problem.b_groups, self._problem.counts
        squares, total = 0.0, 0.0
        for expert in (0, len(counts) - 1):
            begin, first_scale = sum(counts[:expert]), int(self.arguments["scale_offsets"][expert])
            rows, scale_rows = slice(begin, begin + counts[expert]), slice(first_scale, first_scale + counts[expert])
            a = dequantize(self.arguments["a"][rows], a_groups[rows]).double()
            b = dequantize(self.arguments["b"][expert], b_groups[expert]).double()
            gate, up = (a @ b.T * self.arguments["alpha"][expert].double()).unflatten(-1, (-1, 2)).unbind(-1)
            expected = torch.nn.functional.silu(gate) * up
            result = dequantize(out[rows], plain[scale_rows]).double() / ENCODE_SCALE
            squares += float((result - expected).square().sum())
            total += float(expected.square().sum())
        return (squares / total) ** 0.5


def time_plan(timer: Timer, problem: Problem, variant: str | None, replays: int = REPLAYS) -> float:
    """A planned launch of one variant of grouped_fp4_swiglu, or of the selected one."""
    swiglu = SwigluProblem(problem)
    plan = loader.plan("grouped_fp4_swiglu", **swiglu.arguments, variant=variant)
    name, out = variant or f"{plan.variant} (selected)", swiglu.arguments["out"]
    return time_checked(
        timer, swiglu, out, lambda: plan.launch(torch.cuda.current_stream()), name, replays, max_error=MAX_ERROR
    )


class HalfSwigluProblem:
    """The same tokens in bf16 or f16 (dtype) and weights in fragment order, whose rows [N % 128 == 0] are 64 gates and
    their 64 ups in turn; results [M, N / 2] in the type of tokens."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        m, n, _, _ = self.shape = problem.shape
        self._problem = problem
        self.arguments = problem.of_16_bits | {
            "a": problem.of_16_bits["a"].to(dtype),
            "intermediate": "f16" if dtype == torch.float16 else "bf16",
            "out": torch.full((m, n // 2), torch.nan, dtype=dtype, device=problem.inputs["a"].device),
        }

    def error(self, out: torch.Tensor) -> float:
        """As ``Problem.error``."""
        return relative_error(out, [(rows, activated(sums)) for rows, sums in self._problem.reference])


def activated(sums: torch.Tensor) -> torch.Tensor:
    """SwiGLU [.., N / 2] of sums [.., N] of gates and ups."""
    gates, ups = sums.unflatten(-1, (-1, 2, GATES)).unbind(-2)
    return (torch.nn.functional.silu(gates) * ups).flatten(-2)


def time_16_bits(
    timer: Timer, problem: Problem, variant: str | None, replays: int = REPLAYS, dtype: torch.dtype = torch.bfloat16,
) -> float:  # fmt: skip
    """As ``time_plan``, of grouped_bf16_nvfp4_swiglu."""
    swiglu = HalfSwigluProblem(problem, dtype)
    plan = loader.plan("grouped_fp4_swiglu", **swiglu.arguments, variant=variant)
    name, out = variant or f"{plan.variant} (selected)", swiglu.arguments["out"]
    return time_checked(timer, swiglu, out, lambda: plan.launch(torch.cuda.current_stream()), name, replays,
                        max_error=MAX_ERROR_OF_16_BITS)  # fmt: skip
