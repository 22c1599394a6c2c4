"""What benchmarks/counters.py reads of ncu and nvidia-smi."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import counters  # noqa: E402

STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
COLUMNS = ["ID", "Kernel Name", "gpu__time_duration.sum", "dram__bytes_read.sum", STALLED.format("wait"),
           STALLED.format("gmma")]  # fmt: skip
LAUNCHES = [("grouped_bf16_nvfp4_m64n256_bf16_bf16", "330,000", "8e8", "0.5", "1.25"), ("offsets", "2", "64", "1", "0"),
            ("gemm", "900.5", "2,800", "0.25", "n/a"), ("copy", "3", "32", "1", "0"),
            ("grouped_bf16_nvfp4_m128n256_bf16_bf16", "5", "7", "0", "0"), ("gemm", "9", "8", "0", "0")]  # fmt: skip


def raw_page() -> str:
    lines = [COLUMNS, ["", "", "ns", "byte", "inst", "inst"], *[[str(i), *line] for i, line in enumerate(LAUNCHES)]]
    return "\n".join(["==PROF== Connected", *[",".join(f'"{value}"' for value in line) for line in lines]])


def test_counters_are_of_the_longest_kernel_of_each_contender():
    """In turn ours and torch's, whatever is launched beside it; a value that is no number is left out."""
    found = counters.by_contender(raw_page())
    assert [cell["is ours"] for cell in found] == [True, False, True, False]
    assert [cell["ns under ncu"] for cell in found] == [330000, 900.5, 5, 9]
    assert found[0]["stalls"] == {"gmma": 1.25, "wait": 0.5} and found[1]["stalls"] == {"wait": 0.25}
    assert "DRAM bytes read" not in found[0] and found[1]["DRAM bytes read"] == 2800


def test_a_reading_without_a_number_is_none():
    """As nvidia-smi prints what a device does not tell, and a line that is cut off."""
    assert counters.readings("1755, 690.25\n1980, [N/A]\n1700, 650\n17") == [(1755, 690.25), (1700, 650)]
