"""Compiles one rendered kernel: nvcc to PTX, then ptxas to a cubin, so the PTX of a pack is what its cubin was made of.

Everything happens in a temporary folder with fixed file names, because names and paths would reach the bytes. Results
go into a store that is keyed by ``Source.digest``; a folder of the store is complete or absent.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from generator.errors import CompileError
from generator.expand import Variant
from generator.files import sha256, write_synced
from generator.render import Source
from generator.toolchain import Toolchain
from loader.arch import ARCHS, SHARED_MEMORY_LIMIT

NVCC_FLAGS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr")
PTXAS_FLAGS = ("-O3",)
FLAGS = (*NVCC_FLAGS, *(f"-Xptxas={flag}" for flag in PTXAS_FLAGS))

# A remark of ptxas (C7510 and its neighbours): products that cannot overlap, often as an accumulator is read too early.
_SERIALIZED = re.compile(r"^.*\bwgmma\S* instructions are serialized.*$", re.MULTILINE)
# PTX type -> bytes, as far as kernel parameters use it.
_PTX_BYTES = {f"{kind}{bits}": bits // 8 for kind in "usbf" for bits in (8, 16, 32, 64)}


@dataclass(frozen=True)
class Facts:
    """What ptxas said of a kernel, in bytes except ``registers``; digests of its files; seconds that it took."""

    registers: int
    spill_bytes: int
    local_bytes: int
    static_shared: int
    cubin_sha256: str
    ptx_sha256: str
    seconds: float
    warnings: str


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel in the store: ``kernel.cubin``, ``kernel.ptx.xz`` and their facts."""

    source: Source
    folder: Path
    facts: Facts

    @property
    def cubin(self) -> bytes:
        return (self.folder / "kernel.cubin").read_bytes()

    @property
    def ptx(self) -> bytes:
        """The stored, compressed form."""
        return (self.folder / "kernel.ptx.xz").read_bytes()

    @property
    def ptx_digest(self) -> str:
        """sha256 of the stored, compressed form."""
        return sha256(self.ptx)


class Compiler:
    """Compiles into ``store``. ``launcher`` (ccache, sccache), a command in words, is put before nvcc."""

    def __init__(self, toolchain: Toolchain, templates: Path, store: Path, launcher: Sequence[str] = ()) -> None:
        self.toolchain, self.templates, self.store = toolchain, templates.resolve(), store.resolve()
        self.launcher = launcher

    def commands(self, variant: Variant) -> tuple[list[str], list[str]]:
        """The nvcc and the ptxas command; both run in the folder of ``kernel.cu``."""
        target = f"arch=compute_{variant.arch},code=sm_{variant.arch}"
        # Symbols of internal linkage get a random suffix unless it is seeded.
        nvcc = [*self.launcher, str(self.toolchain.nvcc), "-gencode", target, "-ptx", *NVCC_FLAGS, *variant.flags,
                f"-frandom-seed={variant.symbol}", "-I", str(self.templates),
                "kernel.cu", "-o", "kernel.ptx"]  # fmt: skip
        ptxas = [str(self.toolchain.ptxas), f"-arch=sm_{variant.arch}", "-v", *PTXAS_FLAGS, "kernel.ptx",
                 "-o", "kernel.cubin"]  # fmt: skip
        return nvcc, ptxas

    def stored(self, source: Source) -> Kernel | None:
        """The kernel if an earlier build left it intact; a damaged one is compiled again."""
        folder = self.store / source.digest
        try:
            kernel = Kernel(source, folder, Facts(**json.loads((folder / "facts.json").read_text())))
            intact = sha256(kernel.cubin) == kernel.facts.cubin_sha256
            intact = intact and sha256(lzma.decompress(kernel.ptx)) == kernel.facts.ptx_sha256
        except (OSError, ValueError, TypeError, EOFError, lzma.LZMAError):
            intact = False
        return kernel if intact else None

    def compile(self, source: Source) -> Kernel:
        """Compile and store; ``CompileError`` where a tool fails or the kernel is not what kernels.yaml says.

        The files of a kernel that failed stay in ``failed/`` of the store, where its command can be repeated.
        """
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self.store, prefix="tmp-") as name:
            folder = Path(name)
            (folder / "kernel.cu").write_text(source.text)
            nvcc, ptxas = self.commands(source.variant)
            try:
                messages, report = self._run(nvcc, folder), self._run(ptxas, folder)
                ptx, cubin = (folder / "kernel.ptx").read_bytes(), (folder / "kernel.cubin").read_bytes()
                facts = Facts(**parse_resources(report), cubin_sha256=sha256(cubin), ptx_sha256=sha256(ptx),
                              seconds=round(time.perf_counter() - start, 3),
                              warnings=messages + "\n".join(warnings(report)))  # fmt: skip
                self._check(source.variant, ptx.decode(), cubin, facts, folder)
            except CompileError as error:
                error.folder = self._keep_failed(source.variant, folder)
                raise
            result = folder / "result"
            result.mkdir()
            for file, content in (("kernel.cubin", cubin), ("kernel.ptx.xz", lzma.compress(ptx)),
                                  ("facts.json", json.dumps(asdict(facts)).encode())):  # fmt: skip
                write_synced(result / file, content)
            destination = self.store / source.digest
            shutil.rmtree(destination, ignore_errors=True)
            os.rename(result, destination)
        return Kernel(source, destination, facts)

    def _keep_failed(self, variant: Variant, folder: Path) -> Path:
        failed = self.store / "failed" / f"{variant.family}-{variant.variant}-{variant.arch}"
        shutil.rmtree(failed, ignore_errors=True)
        shutil.copytree(folder, failed, ignore=shutil.ignore_patterns("tmpxft*"))
        return failed

    def prune(self, kernels: Sequence[Kernel]) -> None:
        """Remove from the store what is not one of ``kernels``, save the kernels that just failed."""
        wanted = {kernel.source.digest for kernel in kernels}
        for folder in self.store.iterdir():
            if folder.is_dir() and folder.name not in wanted | {"failed"}:
                shutil.rmtree(folder)

    def _run(self, command: list[str], folder: Path) -> str:
        environment = {**self.toolchain.environment, "TMPDIR": str(folder)}
        try:
            done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, errors="replace")  # fmt: skip
        except OSError as error:
            raise CompileError(f"{command[0]} cannot be run: {error.strerror}", shlex.join(command)) from None
        if done.returncode:
            reason = f"{Path(command[0]).name} exited with {done.returncode}"
            raise CompileError(reason, shlex.join(command), done.stdout)
        return done.stdout

    def _check(self, variant: Variant, ptx: str, cubin: bytes, facts: Facts, folder: Path) -> None:
        findings = list(check_ptx(variant, ptx))
        if not variant.may_use_local_memory and (facts.local_bytes or facts.spill_bytes):
            findings.append(f"uses {facts.local_bytes} bytes of local memory and {facts.spill_bytes} bytes of spills; "
                            f"local_memory of its target does not name {variant.variant}")  # fmt: skip
        if slow := _SERIALIZED.search(facts.warnings):
            findings.append(f"the compiler waits after every wgmma: {slow[0].strip()}")
        limit = SHARED_MEMORY_LIMIT[ARCHS[variant.arch].major]
        if facts.static_shared + variant.launch["shared"] > limit:
            findings.append(f"{facts.static_shared} static and {variant.launch['shared']} dynamic bytes "
                            f"of shared memory are over the limit of {limit}")  # fmt: skip
        for path in (str(folder), str(self.templates)):
            if path in ptx or path.encode() in cubin:
                findings.append(f"the path {path} reached the compiled code (__FILE__ or assert)")
        if findings:
            raise CompileError("; ".join(findings), shlex.join(self.commands(variant)[0]))


def warnings(log: str) -> list[str]:
    """The lines of ``ptxas -v`` that say more than resources: warnings, and remarks on performance with a number."""
    return [line for line in log.splitlines() if re.search(r"\bwarning\b|\(C7\d+\)", line)]


def parse_resources(log: str) -> dict[str, int]:
    """Registers, spills, stack and static shared memory from the text of ``ptxas -v``; bytes.

    A function that was not inlined adds its own stack and spills.
    """
    def total(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, log))

    registers = re.search(r"Used (\d+) registers", log)
    if registers is None:
        raise CompileError("ptxas reported no register count", log=log)
    return {
        "registers": int(registers[1]),
        "spill_bytes": total(r"(\d+) bytes spill stores") + total(r"(\d+) bytes spill loads"),
        "local_bytes": total(r"(\d+) bytes stack frame"),
        "static_shared": total(r"(\d+) bytes smem"),
    }


def check_ptx(variant: Variant, ptx: str) -> list[str]:
    """Where the kernel's entry in PTX differs from what kernels.yaml says of it."""
    entries = re.findall(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", ptx)
    if [name for name, _, _ in entries] != [variant.symbol]:
        return [f"expected one kernel, {variant.symbol}, got {', '.join(name for name, _, _ in entries) or 'none'}"]
    _, parameters, directives = entries[0]
    findings = []
    expected = [(entry["offset"], entry["size"]) for entry in variant.parameters]
    got = ptx_parameters(parameters)
    if got != expected:
        findings.append(f"parameters are, as (offset, bytes), {got}, kernels.yaml says {expected}")
    block, cluster = variant.launch["block"], variant.launch["cluster"]
    threads = block[0] * block[1] * block[2]
    for directive, numbers in re.findall(r"\.(maxntid|reqntid|reqnctapercluster)\s+([\d, ]+)", directives):
        extents = [int(number) for number in numbers.split(",")]
        extents += [1] * (3 - len(extents))
        if directive == "maxntid" and extents[0] * extents[1] * extents[2] < threads:
            findings.append(f"launch bounds allow {extents} threads, launch.block is {block}")
        if directive == "reqntid" and extents != block:
            findings.append(f"the kernel requires a block of {extents}, launch.block is {block}")
        if directive == "reqnctapercluster" and extents != cluster:
            findings.append(f"the kernel requires a cluster of {extents}, launch.cluster is {cluster}")
    if variant.launch["pdl"] and "griddepcontrol.wait" not in ptx:
        findings.append("launch.pdl is true but the kernel never waits for the grid before it")
    return findings


def ptx_parameters(text: str) -> list[tuple[int, int]]:
    """Offset and size in bytes of each parameter in a PTX parameter list."""
    layout, end = [], 0
    for parameter in re.findall(r"\.param\s+([^,]+)", text):
        kind = re.search(r"\.([usbf]\d+)\b", parameter)[1]
        count = re.search(r"\[(\d+)\]", parameter)
        aligned = re.match(r"\.align\s+(\d+)", parameter)  # of the parameter; `.ptr .align` is of what it points to
        size = _PTX_BYTES[kind] * (int(count[1]) if count else 1)
        alignment = int(aligned[1]) if aligned else _PTX_BYTES[kind]
        offset = -(-end // alignment) * alignment
        layout.append((offset, size))
        end = offset + size
    return layout


