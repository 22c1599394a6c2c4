"""Problems of real size, made and judged on the device with torch. The numerics are those of tests/reference.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from reference import (
    E2M1,
    E2M1_LOWEST_BIT,
    GROUP,
    MAX_SCALE,
    NAN_SCALE,
    UE4M3,
    UE4M3_LOWEST_BIT,
    Expected,
    ceil_div,
    check,
    random_alpha,
    round_up,
)

TORCH_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def to_scale_layout(scales: torch.Tensor) -> torch.Tensor:
    """Scale bytes [.., rows, groups], rows % 128 == 0 and groups % 4 == 0, to the 128x4 layout, same shape."""
    *lead, rows, groups = scales.shape
    nested = scales.reshape(*lead, rows // 128, 4, 32, groups // 4, 4)
    d = len(lead)
    return nested.permute(*range(d), d, d + 3, d + 2, d + 1, d + 4).reshape(scales.shape)


def expand(packed: torch.Tensor, groups: torch.Tensor, elements: np.ndarray, scales: np.ndarray) -> torch.Tensor:
    """``reference.expand`` on the device, float64 [.., K]."""
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    element = torch.from_numpy(elements).to(packed.device)[codes.int()]
    scale = torch.from_numpy(scales).to(packed.device)[groups.int()]
    return element * scale.repeat_interleave(element.shape[-1] // scale.shape[-1], dim=-1)


@dataclasses.dataclass(frozen=True)
class DeviceProblem:
    """Inputs of ``grouped_fp4`` on a device, and the float64 result."""

    inputs: dict[str, torch.Tensor]
    expected: Expected
    rows: int
    owned: int
    n: int
    k: int

    def output(self, out_type: str) -> Output:
        return Output(self.rows, self.n, out_type, self.inputs["a"].device)

    def verify(self, out: Output, context: str) -> None:
        """Every element within the bound, and no other byte written."""
        check(out.array[: self.owned].double(), self.expected, self.k, out.out_type, context)
        if not out.intact(self.owned):
            raise AssertionError(f"{context}: wrote outside the rows of the experts")


class Output:
    """An output [rows, N] inside a poisoned buffer."""

    POISON = 0xFF
    GUARD_BYTES = 4096

    def __init__(self, rows: int, n: int, out_type: str, device: torch.device) -> None:
        dtype = TORCH_TYPES[out_type]
        size = rows * n * dtype.itemsize
        self._raw = torch.full((size + 2 * self.GUARD_BYTES,), self.POISON, dtype=torch.uint8, device=device)
        self.out_type = out_type
        self.array = self._raw[self.GUARD_BYTES : self.GUARD_BYTES + size].view(dtype).view(rows, n)

    def intact(self, owned: int) -> bool:
        written = self.array[:owned].nbytes
        before, after = self._raw[: self.GUARD_BYTES], self._raw[self.GUARD_BYTES + written :]
        return bool((before == self.POISON).all()) and bool((after == self.POISON).all())

    def bytes(self) -> torch.Tensor:
        return self.array.view(torch.uint8)


def random_scales(generator: torch.Generator, shape: tuple[int, ...], wide: bool, outliers: float) -> torch.Tensor:
    """``reference.random_scales`` on the generator's device."""
    device = generator.device
    if wide:
        scales = torch.randint(0, NAN_SCALE, shape, dtype=torch.uint8, device=device, generator=generator)
    else:
        scales = 0x38 + 2 * torch.randint(0, 4, shape, dtype=torch.uint8, device=device, generator=generator)
    chance = torch.rand(shape, device=device, generator=generator)
    scales[chance < 1 / 16] = 0
    scales[chance > 1 - outliers] = MAX_SCALE
    return scales


def device_problem(
    seed: int,
    counts: list[int],
    n: int,
    k: int,
    *,
    wide: bool = False,
    unowned_rows: int = 0,
    device: str = "cuda",
) -> DeviceProblem:
    """``reference.grouped_problem`` with gaps and NaN in all padding of the scales, and its float64 result."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    num_experts, groups, owned = len(counts), k // GROUP, sum(counts)

    def random_bytes(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)

    def to_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    expert_offsets = np.concatenate([[0], np.cumsum(counts)])
    blocks = [ceil_div(count, 128) for count in counts]  # of 128 scale rows
    skipped = np.cumsum(rng.integers(0, 2, num_experts))
    scale_offsets = 128 * (skipped + np.cumsum([0, *blocks[:-1]]))
    scale_rows = max(128, int(scale_offsets[-1]) + 128 * blocks[-1])
    experts = np.repeat(np.arange(num_experts), counts)
    stored_rows = to_device(np.arange(owned) - expert_offsets[experts] + scale_offsets[experts])

    a_groups = random_scales(generator, (owned, groups), wide, outliers=1 / 4096)
    a_scale = torch.full((scale_rows, round_up(groups, 4)), NAN_SCALE, dtype=torch.uint8, device=device)
    a_scale[stored_rows, :groups] = a_groups
    b_groups = random_scales(generator, (num_experts, n, groups), wide, outliers=1 / 256 if wide else 0)
    b_scale = torch.full(
        (num_experts, round_up(n, 128), round_up(groups, 4)), NAN_SCALE, dtype=torch.uint8, device=device
    )
    b_scale[:, :n, :groups] = b_groups
    alpha = random_alpha(rng, num_experts, k, wide)
    inputs = {
        "a": random_bytes(owned + unowned_rows, k // 2),
        "b": random_bytes(num_experts, n, k // 2),
        "a_scale": to_scale_layout(a_scale),
        "b_scale": to_scale_layout(b_scale),
        "alpha": to_device(alpha),
        "expert_offsets": to_device(expert_offsets.astype(np.int32)),
        "scale_offsets": to_device(scale_offsets.astype(np.int32)),
    }
    expected = _expected(inputs["a"], inputs["b"], a_groups, b_groups, alpha, expert_offsets)
    return DeviceProblem(inputs, expected, owned + unowned_rows, owned, n, k)


def _expected(
    a: torch.Tensor,
    b: torch.Tensor,
    a_groups: torch.Tensor,
    b_groups: torch.Tensor,
    alpha: np.ndarray,
    expert_offsets: np.ndarray,
) -> Expected:
    """``reference.grouped_reference`` on the device."""
    shape = (int(expert_offsets[-1]), b.shape[1])
    value, magnitude = (torch.empty(shape, dtype=torch.float64, device=a.device) for _ in range(2))
    exact = torch.empty(shape, dtype=torch.bool, device=a.device)
    for expert in np.flatnonzero(np.diff(expert_offsets)):
        rows = slice(int(expert_offsets[expert]), int(expert_offsets[expert + 1]))
        a_stored, b_stored = (a[rows], a_groups[rows]), (b[expert], b_groups[expert])
        left, right = expand(*a_stored, E2M1, UE4M3), expand(*b_stored, E2M1, UE4M3)
        sums = left.abs() @ right.abs().T
        scale = float(alpha[expert])
        value[rows], magnitude[rows] = scale * (left @ right.T), abs(scale) * sums
        left, right = (expand(*stored, E2M1_LOWEST_BIT, UE4M3_LOWEST_BIT).amin(-1) for stored in (a_stored, b_stored))
        exact[rows] = sums < 2.0**24 * torch.outer(left, right)
    return Expected(value, magnitude, exact)


def routed_counts(seed: int, tokens: int, experts: int, top_k: int, skew: float = 1.0) -> list[int]:
    """Rows of each expert when every token picks ``top_k`` distinct ones of Zipf popularity: some experts get many
    rows, some one, some none."""
    rng = np.random.default_rng(seed)
    popularity = (1 + rng.permutation(experts)) ** -skew
    # The largest of log p + Gumbel noise are a draw without replacement.
    keys = np.log(popularity) + rng.gumbel(size=(tokens, experts))
    chosen = np.argpartition(-keys, top_k - 1, axis=1)[:, :top_k]
    return np.bincount(chosen.ravel(), minlength=experts).tolist()
