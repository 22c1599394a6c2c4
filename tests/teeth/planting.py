"""Plants one fault in a source file and runs what has to notice it.

A fault is a replacement of text that occurs exactly once in its file, so that a list of faults cannot rot unnoticed.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
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

import fp8_swiglu
import gemm_problem
import mx_swiglu
import numpy as np
import packs
import pytest
import reference
import scale_layouts
import schedules
from raw_buffer import RawBuffer
from shipped_matrix import MATRIX
from swiglu_reference import Settings, swiglu_reference

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
            _write_pack(target, entry, gzip.decompress(shipped.ptx))
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
    contents = {"kernel.ptx.gz": gzip.compress(ptx, 9, mtime=0), "kernel.cubin": b"not for a device"}
    files = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        files[name] = {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    facts = dict.fromkeys(pack.FACT_KEYS, 0)
    families = MATRIX.families
    named = {entry.family, families[entry.family].get("overloads", entry.family)}
    stored = {**files["kernel.cubin"], "format": "cubin", "ptx": files["kernel.ptx.gz"], **facts}
    manifest = {
        "schema": pack.SCHEMA, "abi": pack.ABI, "source_digest": "0" * 64,
        "toolchain": {"nvcc": _toolchain().version, "flags": list(FLAGS), "zlib": ""},
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


@dataclass(frozen=True)
class Problem:
    """Rows of each expert, N, K, and the multiprocessors (so that a CTA takes several tiles)."""

    counts: tuple[int, ...]
    n: int
    k: int
    multiprocessors: int = 2
    prefetch: str = "none"
    gaps: bool = True  # rows of a and of its scales that are no expert's
    operands: str = "NVFP4"  # of reference; others with scales over their whole range
    adds: bool = False  # to ones in out; of groups along K
    on_hopper: bool = False  # FP8 sums in sm_90's tensor core, which cuts them

    @functools.cached_property
    def data(self) -> tuple[reference.GroupedProblem, reference.Expected]:
        rng = np.random.default_rng(0)
        problem = reference.grouped_problem(rng, list(self.counts), self.n, self.k, gaps=self.gaps,
                                            formats=getattr(reference, self.operands), wide=self.operands != "NVFP4",
                                            unowned_rows=2 if self.gaps else 0)  # fmt: skip
        return problem, reference.grouped_reference(problem, on_hopper=self.on_hopper)


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
                    _LAUNCHES[kernel.family](problem, f"seed {seed} lazy {lazy}", prefetch=problem.prefetch,
                                             variant=kernel.variant, device=f"emulated:{kernel.arch}",
                                             packs=[str(folder)])  # fmt: skip
                except loader.EmulatedFaultError as error:
                    raise error.__cause__ from None


def _launch_grouped(problem: Problem, context: str, family: str = "grouped_fp4", **options: object) -> None:
    data, expected = problem.data
    out = _output(problem, data.shape[0], **options)
    loader.launch(family, **data.inputs(), out=RawBuffer.of(out.array), **options)
    reference.verify(data, expected, out, context)


def _launch_masked(problem: Problem, context: str, family: str, **options: object) -> None:
    data, expected = problem.data
    rows = max(problem.counts) + 3
    out = _output(problem, len(problem.counts) * rows, **options)
    array = out.array.reshape(-1, rows, problem.n)
    inputs = schedules.masked_inputs(data, np.random.default_rng(0), rows)
    loader.launch(family, **inputs, out=RawBuffer.of(array), **options)
    schedules.verify_masked(data, expected, array, out.out_type, context)
    assert out.intact(len(out.array)), f"{context}: wrote outside of out"


def _launch_dense(problem: Problem, context: str, **options: object) -> None:
    data, expected = problem.data
    out = _output(problem, data.shape[0], **options)
    loader.launch("gemm_fp4", **schedules.dense_inputs(data), out=RawBuffer.of(out.array), **options)
    reference.verify(data, expected, out, context)


def _launch_rows(problem: Problem, context: str, family: str, **options: object) -> None:
    """FP8 and bf16, in the form of rows and the majors that the family has."""
    schedule, fmt, letters, form = gemm_problem.named(family)
    data = gemm_problem.gemm_problem(np.random.default_rng(0), fmt, list(problem.counts), problem.n, problem.k)
    data.on_hopper = problem.on_hopper
    place, padding = gemm_problem.FORMS[form]
    inputs, places = gemm_problem.dense(data) if schedule == "gemm" else place(data)
    *lead, _ = inputs["a"].shape
    out = _output(problem, int(np.prod(lead)), **options)
    array = out.array.reshape(*lead, problem.n)
    inputs = gemm_problem.buffers(gemm_problem.in_majors(inputs, letters))
    loader.launch(family.removesuffix(form), **inputs, out=RawBuffer.of(array), **options)
    gemm_problem.verify(data, places, out, len(out.array), padding, context)


def _launch_heads(problem: Problem, context: str, family: str, **options: object) -> None:
    """Three heads, each with a gap of 8 columns behind its first 16."""
    _, fmt, _, _ = gemm_problem.named(family)
    data = gemm_problem.gemm_problem(np.random.default_rng(0), fmt, list(problem.counts), problem.n, problem.k)
    rows, width = len(data.a), problem.n // 3
    out = reference.GuardedOutput(rows, problem.n + 3 * 8, options["variant"].rpartition("_")[2])
    loader.launch(family, **gemm_problem.buffers(gemm_problem.dense(data)[0]), out=RawBuffer.of(out.array),
                  head_width=width, head_left=16, head_gap=8, **options)  # fmt: skip
    columns = gemm_problem.columns_of_heads(3, width, 16, 8)
    value, bound = gemm_problem.expected(data)
    stored = reference.as_float64(out.array[:, columns], out.out_type)
    reference.check_within(stored, value, gemm_problem.rounded_bound(value, bound, out.out_type), context)
    assert (np.delete(out.array, columns, axis=1).copy().view(np.uint8) == out.POISON).all(), f"{context}: wrote a gap"
    assert out.intact(rows), f"{context}: wrote outside of out"


def _launch_k_groups(problem: Problem, context: str, family: str, **options: object) -> None:
    """``counts`` are K of the groups, ``k`` is the number of rows."""
    _, fmt, _, _ = gemm_problem.named(family)
    if fmt == "fp8":
        del options["prefetch"]  # its tensor maps wait for the grid before
    rng, rows = np.random.default_rng(0), problem.k
    problems = [gemm_problem.gemm_problem(rng, fmt, [rows], problem.n, k, weight_rows=1) for k in problem.counts]
    out = _output(problem, len(problems) * rows, **options)
    if problem.adds:
        out.array[:] = 1
        options["accumulate"] = "add"
    array = out.array.reshape(len(problems), rows, problem.n)
    inputs = gemm_problem.buffers(gemm_problem.groups_of_k(problems))
    loader.launch(family, **inputs, out=RawBuffer.of(array), **options)
    value, bound = gemm_problem.expected_of_groups(problems)
    value = value + problem.adds
    stored = reference.as_float64(out.array, out.out_type)
    reference.check_within(stored, value, gemm_problem.rounded_bound(value, bound, out.out_type), context)


def _launch_fused(problem: Problem, context: str, by_mask: bool = False, **options: object) -> None:
    data, gemm = problem.data
    experts, max_rows = data.shape[3], max(problem.counts) + 3 if by_mask else None
    row_weight, settings = np.linspace(0.5, 1, data.shape[0], dtype=np.float32), Settings()
    global_scale = np.full(experts, 8, np.float32)
    expected = swiglu_reference(data, gemm.value.astype(np.float32), row_weight, global_scale, settings, gemm.exact)
    rows, scale_rows = schedules.extents(data, max_rows)
    out = reference.GuardedOutput(rows, problem.n // 4, "u8")
    out_scale = reference.GuardedOutput(scale_rows, reference.round_up(problem.n // 32, 4), "u8")
    inputs = {**data.inputs(), "row_weight": row_weight}
    if by_mask:
        inputs = schedules.masked_layer_inputs(data, np.random.default_rng(0), max_rows, row_weight)
    loader.launch("grouped_fp4_swiglu", **inputs, global_scale=global_scale,
                  out=schedules.matrices(out.array, experts, max_rows),
                  out_scale=schedules.matrices(out_scale.array, experts, max_rows),
                  **dataclasses.asdict(settings), **options)  # fmt: skip
    expected.verify(data, out, out_scale, context, max_rows)


def _launch_fp8_swiglu(problem: Problem, context: str, family: str, form: str, **options: object) -> None:
    """``n`` are the columns of out. The last row of gates is zeros."""
    fmt = fp8_swiglu.FORMATS[family]
    data = fp8_swiglu.Problem.random(np.random.default_rng(0), list(problem.counts), problem.n, problem.k, extras=True,
                                     fmt=fmt)  # fmt: skip
    data.clear(-1)
    data.bias[data.gate.groups[-1]] = 0
    inputs, places = data.inputs(form)
    settings, outputs = fp8_swiglu.Settings(), fp8_swiglu.Outputs.of(inputs["a"].shape[:-1], problem.n, fmt)
    loader.launch(family, **inputs, **outputs.arrays, **settings.scalars(fmt), **options)
    quantized = outputs.rows(places, gemm_problem.FORMS[form][1], context)
    quantized.verify(*data.expected(settings), settings.scales(fmt), context)


def _launch_fp8_quantized(problem: Problem, context: str, **options: object) -> None:
    data = gemm_problem.gemm_problem(np.random.default_rng(0), "fp8", list(problem.counts), problem.n, problem.k)
    inputs, places = gemm_problem.by_offsets(data)
    alpha = np.linspace(0.5, 2, len(data.counts), dtype=np.float32)
    bias = np.random.default_rng(1).standard_normal((len(alpha), problem.n)).astype(np.float32)
    outputs = fp8_swiglu.Outputs.of(inputs["a"].shape[:-1], problem.n)
    loader.launch("grouped_fp8_quantized", **inputs, **outputs.arrays, alpha=alpha, bias=bias, **options)
    value, bound = gemm_problem.expected(data)
    factor = alpha[data.groups, None].astype(np.float64)
    value, bound = factor * value + bias[data.groups], factor * bound + 2.0**-20 * (factor * abs(value) + 8)
    outputs.rows(places, "as before", context).verify(value, bound, "none", context)


def _launch_mx_swiglu(problem: Problem, context: str, family: str, **options: object) -> None:
    """``n`` are the columns of out."""
    data = mx_swiglu.Problem.random(np.random.default_rng(0), family, list(problem.counts), problem.n, problem.k,
                                    extras=True, on_hopper=problem.on_hopper, gaps=problem.gaps,
                                    unowned_rows=2)  # fmt: skip
    packed, settings = family.removesuffix("_masked"), mx_swiglu.Settings()
    max_rows = None if family == packed else max(problem.counts) + 3
    outputs = mx_swiglu.Outputs(data, mx_swiglu.FAMILIES[packed][1], max_rows)
    inputs = data.inputs(np.random.default_rng(0), max_rows)
    loader.launch(packed, **inputs, **outputs.arrays, **dataclasses.asdict(settings), **options)
    outputs.rows(context).verify(*data.expected(settings), settings.scale_rounding, context)


def _launch_scales(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """Whatever the problem, all that is awkward: no scale is multiplied with."""
    case = scale_layouts.AWKWARD[family](np.random.default_rng(0))
    out = case.output()
    inputs = {name: RawBuffer.of(array) for name, array in case.inputs.items()}
    loader.launch(family, **inputs, out=RawBuffer.of(out), **case.scalars, **options)
    case.verify(out, context)


def _output(problem: Problem, rows: int, variant: str, **_: object) -> reference.GuardedOutput:
    return reference.GuardedOutput(rows, problem.n, variant.rpartition("_")[2])


_LAUNCHES = {"grouped_fp4": _launch_grouped, "gemm_fp4": _launch_dense,
             **{f"grouped_{operands}_masked": functools.partial(_launch_masked, family=f"grouped_{operands}")
                for operands in schedules.OPERANDS},
             "grouped_fp4_swiglu": _launch_fused, "grouped_fp8_quantized": _launch_fp8_quantized,
             "grouped_fp4_swiglu_masked": functools.partial(_launch_fused, by_mask=True),
             **{family: functools.partial(_launch_mx_swiglu, family=family)
                for family in (*mx_swiglu.FAMILIES, *mx_swiglu.MASKED)},
             **{f"{family}{form}": functools.partial(_launch_fp8_swiglu, family=family, form=form)
                for family in fp8_swiglu.FORMATS for form in gemm_problem.FORMS},
             **{family: functools.partial(_launch_rows, family=family)
                for family in (f"grouped_{fmt}{form}" for fmt in gemm_problem.FORMATS for form in gemm_problem.FORMS)},
             **{family: functools.partial(_launch_rows, family=family)
                for family in ("grouped_bf16_nn", "grouped_fp8_ue8m0_nn", "gemm_fp8", "gemm_bf16_nn")},
             "gemm_bf16_heads": functools.partial(_launch_heads, family="gemm_bf16_heads"),
             **{family: functools.partial(_launch_scales, family=family) for family in scale_layouts.AWKWARD},
             **{family: functools.partial(_launch_k_groups, family=family)
                for family in ("k_grouped_bf16_tn", "k_grouped_fp8_nt", "k_grouped_fp8_ue8m0_tn")},
             **{family: functools.partial(_launch_grouped, family=family)
                for family in ("grouped_mxfp4", "grouped_mxfp8", "grouped_mxfp8_mxfp4")}}  # fmt: skip
