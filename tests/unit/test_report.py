"""What the report of a build marks: values over a bar, in resources and in main loops."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from generator import report, sass

RESOURCES = {"registers": 100, "spill_bytes": 0, "local_bytes": 0, "static_shared": 0, "seconds": 1.0}


def row(threads: int = 384, loop: dict[str, int] | None = None, whole: dict[str, int] | None = None,
        **resources: int) -> report.Row:  # fmt: skip
    variant = SimpleNamespace(family="f", variant="v", arch="90a", launch={"shared": 0, "block": [threads, 1, 1]})
    kernel = SimpleNamespace(source=SimpleNamespace(variant=variant), cubin=b"",
                             facts=SimpleNamespace(**{**RESOURCES, **resources}))  # fmt: skip
    loops = () if loop is None else (sass.Loop(Counter({"HGMMA": 4, **loop}), 0, 16),)
    return report.Row(kernel, sass.Profile(Counter(whole or {}), "v", loops))


def marked(of: report.Row) -> list[str]:
    return [column.title for column in (*report.RESOURCES, *report.MAIN_LOOP) if column.over(of)]


@pytest.mark.parametrize("of, titles", [
    (row(), []),
    (row(loop={"LDS": 3}), []),
    (row(spill_bytes=4), ["spills"]),
    (row(local_bytes=16), ["local"]),
    (row(loop={"R2UR": 1}), ["R2UR"]),
    (row(whole={"R2UR": 1}, loop={}), []),
    (row(loop={"STL": 1}), ["LDL, STL"]),
    (row(registers=168), ["registers"]),
    (row(registers=168, threads=256), []),
    (row(registers=255, threads=256), ["registers"]),
    (row(registers=168, whole={"USETMAXREG": 2}), []),
])  # fmt: skip
def test_values_over_a_bar_are_marked(of, titles):
    """Spills and local memory; R2UR and local memory of a main loop alone; registers at the limit, unless warps hand
    them on."""
    assert marked(of) == titles


def test_each_cubin_is_disassembled_once_and_two_at_a_time(monkeypatch):
    """Kernels that families have in common share a profile, and every kernel has that of its own cubin."""
    both, seen = threading.Barrier(2, timeout=60), []

    def profile(cubin: Path, disassembler: Path) -> str:
        both.wait()  # nobody passes alone
        seen.append(cubin)
        return f"{disassembler} of {cubin}"

    monkeypatch.setattr(sass, "profile", profile)
    monkeypatch.setattr(report, "find_disassembler", lambda: Path("nvdisasm"))
    kernels = [SimpleNamespace(folder=Path(folder)) for folder in "abacdb"]
    assert report.profiles(kernels, 2) == [f"nvdisasm of {folder}/kernel.cubin" for folder in "abacdb"]
    assert sorted(map(str, seen)) == [f"{folder}/kernel.cubin" for folder in "abcd"]
