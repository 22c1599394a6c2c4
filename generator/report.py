"""The HTML page of ``build.py --report``: resources of every kernel beside what its main loop is made of, by family."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from generator import sass
from generator.compile import Kernel
from generator.toolchain import Toolchain, find_disassembler

REGISTERS_OF_MULTIPROCESSOR, MOST_OF_A_THREAD = 65536, 255


@dataclass(frozen=True)
class Row:
    """One kernel of the page."""

    kernel: Kernel
    profile: sass.Profile

    @property
    def family(self) -> str:
        return self.kernel.source.variant.family

    @property
    def shared(self) -> int:
        return self.kernel.source.variant.launch["shared"] + self.kernel.facts.static_shared

    @property
    def register_limit(self) -> int:
        """The most that the threads of one CTA leave each of them."""
        threads = math.prod(self.kernel.source.variant.launch["block"])
        return min(MOST_OF_A_THREAD, REGISTERS_OF_MULTIPROCESSOR // threads // 8 * 8)

    @property
    def shares_registers(self) -> bool:
        """Whether warps give registers to each other, so that the number at the start is no limit of any."""
        return self.profile.counts["USETMAXREG"] > 0


@dataclass(frozen=True)
class Column:
    """``value`` of a row; where it is above the bar, the cell is marked."""

    title: str
    value: Callable[[Row], Any]
    bar: Callable[[Row], float] = lambda row: math.inf

    def over(self, row: Row) -> bool:
        value = self.value(row)
        return isinstance(value, (int, float)) and value > self.bar(row)


def _loop(value: Callable[[sass.Mix], Any]) -> Callable[[Row], Any]:
    """``value`` of a row's main loop; nothing where there is none."""
    return lambda row: "" if row.profile.main_loop is None else value(row.profile.main_loop)


def _none(row: Row) -> int:
    return 0


def _listed(opcodes: Sequence[str]) -> Callable[[sass.Mix], str]:
    """Counts of those opcodes that there are, as words."""
    return lambda mix: ", ".join(f"{mix.counts[opcode]} {opcode}" for opcode in opcodes if mix.counts[opcode])


RESOURCES = (
    Column("variant", lambda row: row.kernel.source.variant.variant),
    Column("arch", lambda row: row.kernel.source.variant.arch),
    Column("registers", lambda row: row.kernel.facts.registers,
           lambda row: math.inf if row.shares_registers else row.register_limit - 1),
    Column("limit", lambda row: row.register_limit),
    Column("spills", lambda row: row.kernel.facts.spill_bytes, _none),
    Column("local", lambda row: row.kernel.facts.local_bytes, _none),
    Column("shared", lambda row: row.shared),
    Column("bytes", lambda row: len(row.kernel.cubin)),
    Column("seconds", lambda row: f"{row.kernel.facts.seconds:.1f}"),
    Column("instructions", lambda row: row.profile.instructions),
)  # fmt: skip
MAIN_LOOP = (
    Column("instructions", _loop(lambda mix: mix.instructions)),
    Column("tensor", _loop(lambda mix: mix.tensor)),
    Column("per tensor", _loop(lambda mix: f"{mix.per_tensor:.2f}")),
    Column("R2UR", _loop(lambda mix: mix.counts["R2UR"]), _none),
    Column("LDL, STL", _loop(lambda mix: mix.counts["LDL"] + mix.counts["STL"]), _none),
    Column("tensor opcodes", _loop(_listed(sorted(sass.TENSOR_OPCODES)))),
    Column("memory opcodes", _loop(_listed(sass.MEMORY_OPCODES))),
)


def profiles(kernels: Sequence[Kernel], jobs: int) -> list[sass.Profile]:
    """Of every kernel, each cubin disassembled once, ``jobs`` of them at a time: families may have kernels in common.
    ``ToolchainError`` where nvdisasm is missing."""
    disassembler = find_disassembler()
    folders = list(dict.fromkeys(kernel.folder for kernel in kernels))
    with ThreadPoolExecutor(jobs) as pool:
        made = pool.map(lambda folder: sass.profile(folder / "kernel.cubin", disassembler), folders)
        of_folder = dict(zip(folders, made, strict=True))
    return [of_folder[kernel.folder] for kernel in kernels]


def write_report(path: Path, kernels: Sequence[Kernel], toolchain: Toolchain, source_digest: str, jobs: int) -> Path:
    """Disassemble ``kernels``, ``jobs`` at a time, and write the page; errors as of ``profiles``."""
    rows = [Row(kernel, profile) for kernel, profile in zip(kernels, profiles(kernels, jobs), strict=True)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    by_family = sorted(rows, key=lambda row: row.family)
    families = [(family, list(those)) for family, those in groupby(by_family, key=lambda row: row.family)]
    columns = (*RESOURCES, *MAIN_LOOP)
    page = environment.get_template("report.html.j2").render(
        families=families, count=len(rows), toolchain=toolchain, source_digest=source_digest, resources=RESOURCES,
        main_loop=MAIN_LOOP, columns=columns, marked={family: sum(any(c.over(row) for c in columns) for row in those)
                                                      for family, those in families},
    )  # fmt: skip
    path.write_text(page)
    return path
