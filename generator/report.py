"""The HTML page of ``build.py --report``: resources of every kernel, and what its main loop is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from generator import sass
from generator.compile import Kernel
from generator.toolchain import Toolchain, find_disassembler


@dataclass(frozen=True)
class Row:
    """One kernel of the page."""

    kernel: Kernel
    profile: sass.Profile

    @property
    def size(self) -> int:
        return len(self.kernel.cubin)


def write_report(path: Path, kernels: Sequence[Kernel], toolchain: Toolchain) -> Path:
    """Disassemble ``kernels`` and write the page; ``ToolchainError`` where nvdisasm is missing."""
    disassembler = find_disassembler()
    rows = [Row(kernel, sass.profile(kernel.folder / "kernel.cubin", disassembler)) for kernel in kernels]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        rows=rows, toolchain=toolchain, memory_opcodes=sass.MEMORY_OPCODES, tensor_opcodes=sorted(sass.TENSOR_OPCODES),
    )  # fmt: skip
    path.write_text(page)
    return path
