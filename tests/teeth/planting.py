"""Plants one fault in a source file and runs what has to notice it.

A fault is a replacement of text that occurs exactly once in its file, so that a list of faults cannot rot unnoticed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import packs
import pytest
from launches import LAUNCHES, Problem
from shipped_matrix import MATRIX

import loader
from generator import pack, toolchain
from generator.compile import FLAGS, Compiler
from generator.errors import ToolchainError
from generator.expand import Variant
from generator.render import Renderer
from loader import emulated

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "tests" / ".cache" / "teeth"
STORE = packs.CACHE / pack.STORE


def replaced(path: Path, old: str, new: str) -> str:
    """The text of a file with the fault in it. Fails where ``old`` is not there exactly once."""
    text = path.read_text()
    if text.count(old) != 1:
        pytest.fail(f"{path.name} holds {old!r} {text.count(old)} times: the list of faults is out of date")
    return text.replace(old, new)


# Faults in the emulator


class _PlantedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from a changed text; its cached bytecode is neither read nor written."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(self._text, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, path: Path, text: str) -> None:
        self._name, self._path, self._text = name, path, text

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        planted = _PlantedLoader(fullname, str(self._path), self._text)
        return importlib.util.spec_from_loader(fullname, planted)


@contextlib.contextmanager


def planted_emulator(file: str, old: str, new: str) -> Iterator[None]:
    """``import emulator`` gives a fresh package with the fault in one of its files, and the loader uses that."""
    path = ROOT / "emulator" / file
    finder = _Finder(".".join(Path("emulator", file).with_suffix("").parts), path, replaced(path, old, new))

    def own() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "emulator"]

    saved = {name: sys.modules.pop(name) for name in own()}
    sys.meta_path.insert(0, finder)
    try:
        with mock.patch.object(emulated, "_modules", {}):
            yield
    finally:
        sys.meta_path.remove(finder)
        for name in own():
            del sys.modules[name]
        sys.modules.update(saved)


def load_tests(file: str) -> types.ModuleType:
    """A module of tests/ that sees the emulator as it is now, without pytest's collection."""
    path = ROOT / "tests" / file
    spec = importlib.util.spec_from_file_location(f"planted_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module


# Faults in the kernels


@dataclass(frozen=True)
class Kernel:
    """A variant of a GEMM."""

    arch: str
    variant: str
    family: str = "grouped_fp4"


@functools.cache


def _variants() -> dict[Kernel, Variant]:
    return {Kernel(v.arch, v.variant, v.family): v for v in MATRIX.variants}


@functools.cache


def _toolchain() -> toolchain.Toolchain:
    """The compiler; a test that needs one is skipped where there is none."""
    try:
        return toolchain.find_toolchain()
    except ToolchainError as error:
        pytest.skip(f"no compiler: {error}")


def build(kernel: Kernel, fault: tuple[str, str, str] | None = None) -> Path:
    """A pack of one kernel's PTX, with a fault (file under templates/, old, new) in its sources.

    Compiled to PTX alone, unless the pack of the emulated tests has it, and kept under the digest of everything that
    its bytes depend on.
    """
    entry = _variants()[kernel]
    compiler = _toolchain()
    with _planted_templates(fault) as templates:
        source = Renderer(templates, compiler.version, FLAGS).render(entry)
        described = json.dumps([source.digest, entry.parameters, entry.launch], sort_keys=True, default=str)
        target = CACHE / hashlib.sha256(described.encode()).hexdigest()[:32]
        if (target / pack.MANIFEST).is_file():
            return target
        shipped = None if fault else Compiler(compiler, templates, STORE).stored(source)
        if shipped:
            _write_pack(target, entry, lzma.decompress(shipped.ptx))
            return target
        with tempfile.TemporaryDirectory() as name:
            Path(name, "kernel.cu").write_text(source.text)
            command = Compiler(compiler, templates, CACHE).commands(entry)[0]
            done = subprocess.run(
                command, cwd=name, env=compiler.environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.fail(f"{entry.label} with {fault} does not compile: {done.stdout}{done.stderr}")
            _write_pack(target, entry, Path(name, "kernel.ptx").read_bytes())
    return target


@functools.cache


def _templates() -> Path:
    """This process's copy of templates/: it takes longer to make and remove than a kernel to be found in CACHE."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return Path(shutil.copytree(ROOT / "templates", Path(folder, "templates")))


@contextlib.contextmanager


def _planted_templates(fault: tuple[str, str, str] | None) -> Iterator[Path]:
    """A copy of templates/ with a fault (file, old, new) in it, as long as the context lasts."""
    templates = _templates()
    if fault is None:
        yield templates
        return
    file, old, new = fault
    text = replaced(ROOT / "templates" / file, old, new)
    try:
        (templates / file).write_text(text)
        yield templates
    finally:
        shutil.copyfile(ROOT / "templates" / file, templates / file)


def _write_pack(target: Path, entry: Variant, ptx: bytes) -> None:
    """A pack for the emulated device, which never opens the cubin that a manifest must name."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=CACHE, prefix="new-"))
    contents = {"kernel.ptx.xz": lzma.compress(ptx, preset=0), "kernel.cubin": b"not for a device"}
    files = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        files[name] = {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    facts = dict.fromkeys(pack.FACT_KEYS, 0)
    families = MATRIX.families
    named = {entry.family, families[entry.family].get("overloads", entry.family)}
    stored = {**files["kernel.cubin"], "format": "cubin", "ptx": files["kernel.ptx.xz"], **facts}
    manifest = {
        "schema": pack.SCHEMA, "abi": pack.ABI, "source_digest": "0" * 64,
        "toolchain": {"nvcc": _toolchain().version, "flags": list(FLAGS)},
        "families": {name: families[name] for name in sorted(named)}, "composites": {},
        "artifacts": [pack.artifact(entry, stored)],
    }  # fmt: skip
    (folder / pack.MANIFEST).write_text(json.dumps(manifest))
    try:
        os.rename(folder, target)  # complete or absent
    except OSError:  # another process was faster
        shutil.rmtree(folder)
        if not target.is_dir():
            raise


# (seed, lazy) of the schedules that every kernel runs under.
SCHEDULES = ((0, True), (1, True), (2, False))


def run(folder: Path, kernel: Kernel, problem: Problem) -> None:
    """Launches the kernel of a pack under every schedule with all checks on.

    Raises EmulatorError where the emulator finds fault, AssertionError where the result is wrong.
    """
    import emulator

    device = emulator.Device
    with mock.patch.object(emulated, "SM_COUNT", problem.multiprocessors):
        for seed, lazy in SCHEDULES:
            seeded = functools.partial(device, seed=seed, lazy=lazy, checks=True)
            with mock.patch.object(emulator, "Device", seeded), np.errstate(all="ignore"):
                try:
                    LAUNCHES[kernel.family](problem, f"seed {seed} lazy {lazy}", prefetch=problem.prefetch,
                                             variant=kernel.variant, device=f"emulated:{kernel.arch}",
                                             packs=[str(folder)])  # fmt: skip
                except loader.EmulatedFaultError as error:
                    raise error.__cause__ from None
