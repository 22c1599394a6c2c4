"""The command line of build.py: chooses variants, runs the stages, shows progress and the closing table."""

from __future__ import annotations

import argparse
import fnmatch
import os
import resource
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from generator import hub, lock, pack, wheel
from generator.build import Build, Result
from generator.compile import Compiler
from generator.errors import BuildError, CompileError, RenderError
from generator.expand import Variant
from generator.matrix import Expansion, load
from generator.toolchain import Toolchain, find_toolchain
from loader import arch as archs

ROOT = Path(__file__).resolve().parent.parent
GIB_PER_COMPILER = 3


def main(arguments: list[str] | None = None) -> int:
    """Run build.py; the exit status: 0 built, 1 a kernel failed, the input is wrong or a file cannot be read or
    written, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        return _run(options, console)
    except BuildError as error:
        status, text = 1, str(error)
    except OSError as error:
        status, text = 1, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        status, text = 130, "interrupted"
    Console(stderr=True, highlight=False).print(text, style="red", markup=False, soft_wrap=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build.py", description="Build kernels.yaml x templates into a pack.")
    select = parser.add_argument_group("what to build")
    select.add_argument("--arch", action="append", default=[], metavar="ARCHS", help="120a,90a; all is the default")
    select.add_argument("--kernel", action="append", default=[], metavar="GLOB", help="families to build")
    select.add_argument("--variant", action="append", default=[], metavar="GLOB", help="variants to build")
    select.add_argument("--matrix", type=Path, metavar="FILE", help="instead of kernels.yaml")
    select.add_argument("--templates", type=Path, metavar="DIR", help="instead of templates/")
    output = parser.add_argument_group("how")
    output.add_argument("--out", type=Path, default=ROOT / "artifacts", metavar="DIR", help="the pack (artifacts/)")
    output.add_argument("--format", choices=("cubin", "fatbin"), default="cubin", help="one file an arch, or for all")
    output.add_argument("--jobs", type=int, default=_default_jobs(), metavar="N", help="tools at once")
    output.add_argument("--launcher", default="", metavar="COMMAND", help="put before nvcc, e.g. ccache")
    output.add_argument("--report", action="store_true", help="write report.html, a static profile of each kernel")
    output.add_argument("--lock", type=Path, metavar="FILE", help="instead of artifacts/lock.json")
    output.add_argument("--locked", action="store_true", help="fail where the result differs from the lock")
    output.add_argument("--update-lock", action="store_true", help="write the digests of the result into the lock")
    output.add_argument("--wheel", type=Path, nargs="?", const=ROOT / "dist", metavar="DIR",
                        help=f"also make a wheel in DIR (dist/), of {wheel.ARCHS} if not said otherwise")  # fmt: skip
    output.add_argument("--pack-only", nargs="?", const="pack", metavar="NAME",
                        help="the wheel holds these kernels alone: block_scaled_NAME (block_scaled_pack)")  # fmt: skip
    output.add_argument("--hf", type=Path, metavar="DIR",
                        help="also make a build folder of Hugging Face's kernels in DIR, of the same archs")
    output.add_argument("--sign", metavar="PRIVATE.pem", help="the pack of the wheel is signed by this Ed25519 key")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="list the variants and stop")
    action.add_argument("--dry-run", action="store_true", help="show the commands that would run, and stop")
    action.add_argument("--check-reproducible", action="store_true", help="build twice elsewhere and compare the bytes")
    return parser


def _default_jobs() -> int:
    """One compiler a core, as long as memory lasts."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (GIB_PER_COMPILER << 30)
    return max(1, min(len(os.sched_getaffinity(0)), memory))


def _run(options: argparse.Namespace, console: Console) -> int:
    own_matrix = options.matrix is not None
    matrix, templates = options.matrix or ROOT / "kernels.yaml", options.templates or ROOT / "templates"
    lock_path = options.lock or (None if own_matrix else ROOT / "artifacts" / "lock.json")
    if lock_path is None and (options.locked or options.update_lock):
        raise BuildError("--locked and --update-lock need --lock FILE where --matrix is given")
    if options.jobs < 1:
        raise BuildError(f"--jobs must be at least 1, got {options.jobs}")
    if options.wheel is None and (options.pack_only or options.sign):
        raise BuildError("--pack-only and --sign say what --wheel makes; it is missing")
    package = wheel.package(options.pack_only)
    expansion = load(matrix)
    wanted = options.arch or ([wheel.ARCHS] if options.wheel or options.hf else [])
    selected = choose(expansion.variants, wanted, options.kernel, options.variant)
    if options.list:
        console.print(_list_table(selected))
        return 0
    toolchain = find_toolchain()
    if options.check_reproducible:
        return _check_reproducible(options, matrix, templates, expansion.measured, selected, toolchain, console)
    build = Build(matrix, templates, expansion, toolchain, _launcher(options.launcher), options.format, options.jobs)
    if options.dry_run:
        return _show_plan(build, options.out, selected, console)
    with pack.locked(options.out):  # also while the store is read for tables and the lock
        start = time.perf_counter()
        result = build.run(options.out, selected)
        console.print(_result_table(result))
        if options.report and result.kernels:
            from generator.report import write_report

            digest = pack.source_digest(matrix, templates, expansion.measured)
            page = write_report(options.out / "report.html", result.kernels, toolchain, digest, options.jobs)
            console.print(f"report: {page}")
        status = _show_outcome(options, result, time.perf_counter() - start, console)
        if options.wheel is not None and not result.failures:
            made = wheel.write(options.wheel, package, lambda out: build.write_pack(out, result.kernels), options.sign)
            console.print(f"{made}: {made.stat().st_size:,} bytes", markup=False, soft_wrap=True)
        if options.hf is not None and not result.failures:
            made = hub.write(options.hf, lambda out: build.write_pack(out, result.kernels))
            console.print(f"{made}", markup=False, soft_wrap=True)
        if lock_path is not None:
            status |= _settle_lock(options, lock_path, toolchain, result, expansion, console)
    return status


def _launcher(text: str) -> list[str]:
    """The words of --launcher, of which the first must be a program."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BuildError(f"--launcher: {error}, got {text!r}") from None
    if words and shutil.which(words[0]) is None:
        raise BuildError(f"--launcher: {words[0]} is no program on PATH")
    return words


def choose(variants: list[Variant], arch: list[str], kernel: list[str], variant: list[str]) -> list[Variant]:
    """The variants that the options select; one that selects nothing is an error."""
    wanted = [item.strip() for text in arch for item in text.split(",") if item.strip()]
    try:
        names = {str(archs.parse(item)) for item in wanted if item != "all"}
    except ValueError as error:
        raise BuildError(f"--arch: {error}, all") from None
    if "all" in wanted or not wanted:
        names = set(archs.ARCHS)

    def matches(text: str, globs: list[str]) -> bool:
        return not globs or any(fnmatch.fnmatchcase(text, glob) for glob in globs)

    chosen = [v for v in variants if v.arch in names and matches(v.family, kernel) and matches(v.variant, variant)]
    missing = names - {v.arch for v in chosen} if wanted and "all" not in wanted else set()
    if not chosen or missing:
        built = ", ".join(sorted({v.arch for v in variants}))
        families = ", ".join(sorted({v.family for v in variants}))
        what = f"nothing for {', '.join(sorted(missing))}" if missing and chosen else "nothing"
        raise BuildError(f"the options select {what}; the matrix has the kernels {families} and the archs {built}")
    return chosen


def _show_plan(build: Build, out: Path, selected: list[Variant], console: Console) -> int:
    """Print what ``Build.run`` would do, without doing it."""
    compiler = Compiler(build.toolchain, build.templates, out / pack.STORE, build.launcher)
    status = 0
    for variant in selected:
        try:
            source = build.renderer.render(variant)
        except RenderError as error:
            console.print(f"{variant.label}: {error}", style="red", markup=False, soft_wrap=True)
            status = 1
            continue
        if compiler.stored(source):
            console.print(f"{variant.label}: up to date", markup=False, soft_wrap=True)
        else:
            commands = " && ".join(" ".join(command) for command in compiler.commands(variant))
            console.print(f"{variant.label}: {commands}", markup=False, soft_wrap=True)
    return status


def _check_reproducible(options: argparse.Namespace, matrix: Path, templates: Path, measured: Sequence[str],
                        selected: list[Variant], toolchain: Toolchain, console: Console) -> int:  # fmt: skip
    """Build twice from copies of the sources in directories of different depth; every byte of the packs must agree."""
    packs = []
    with tempfile.TemporaryDirectory() as name:
        for place in (Path(name, "a"), Path(name, "another", "and-longer", "place")):
            shutil.copytree(templates, place / "templates")
            shutil.copy(matrix, place / "kernels.yaml")
            for file in measured:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(matrix.parent / file, place / file)
            build = Build(place / "kernels.yaml", place / "templates", load(place / "kernels.yaml"), toolchain,
                          _launcher(options.launcher), options.format, options.jobs)  # fmt: skip
            start = time.perf_counter()
            with pack.locked(place / "pack"):
                result = build.run(place / "pack", selected)
            if result.failures:
                return _show_outcome(options, result, time.perf_counter() - start, console)
            files = [path for path in (place / "pack").rglob("*") if path.is_file()]
            packs.append({path.relative_to(place / "pack").as_posix(): path.read_bytes() for path in files
                          if pack.STORE not in path.parts})  # fmt: skip
    first, second = packs
    different = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    for file in different:
        console.print(f"{file} differs between the two builds", style="red", markup=False)
    if not different:
        total = sum(map(len, first.values()))
        console.print(f"reproducible: {len(selected)} kernels, {len(first)} files, {total} bytes agree")
    return int(bool(different))


def _list_table(variants: list[Variant]) -> Table:
    table = Table("kernel", "variant", "arch", "block", "cluster", "shared", box=None)
    for variant in variants:
        block, cluster = ("x".join(map(str, variant.launch[key])) for key in ("block", "cluster"))
        table.add_row(variant.family, variant.variant, variant.arch, block, cluster, f"{variant.launch['shared']:,}")
    return table


def _result_table(result: Result) -> Table:
    table = Table("kernel", "variant", "arch", box=None)
    for title in ("registers", "spills", "shared", "bytes", "seconds"):
        table.add_column(title, justify="right")
    for kernel in result.kernels:
        variant, facts = kernel.source.variant, kernel.facts
        seconds = "reused" if variant.label in result.reused else f"{facts.seconds:.1f}"
        shared = variant.launch["shared"] + facts.static_shared
        table.add_row(variant.family, variant.variant, variant.arch, str(facts.registers), str(facts.spill_bytes),
                      f"{shared:,}", f"{len(kernel.cubin):,}", seconds)  # fmt: skip
    for artifact in result.stale:
        shared = artifact["launch"]["shared"] + artifact["static_shared"]
        table.add_row(artifact["family"], artifact["variant"], artifact["arch"], str(artifact["registers"]),
                      str(artifact["spill_bytes"]), f"{shared:,}", f"{artifact['size']:,}", "stale")  # fmt: skip
    return table


def _show_outcome(options: argparse.Namespace, result: Result, seconds: float, console: Console) -> int:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    for variant, error in result.failures:
        say(f"\n{variant.label}: {error}", "red")
        if isinstance(error, CompileError):
            command = f"cd {error.folder} && {error.command}" if error.folder else error.command
            say("\n".join(part.rstrip() for part in (command, error.log) if part))
    for kernel in result.kernels:
        if kernel.facts.warnings.strip():
            say(f"{kernel.source.variant.label}: {kernel.facts.warnings.strip()}", "yellow")
    if result.stale:
        say(f"stale, kept as the build before left them: {', '.join(map(pack.label, result.stale))}", "yellow")
    if result.dropped:
        say(f"dropped from the pack, sources changed or files damaged: {', '.join(result.dropped)}", "yellow")
    built, failed = len(result.kernels) - len(result.reused), len(result.failures)
    say(f"{options.out}: {built} compiled, {len(result.reused)} up to date, {failed} failed"
        + ("" if result.changed else "; pack unchanged"))  # fmt: skip
    if built + sum(isinstance(error, CompileError) for _, error in result.failures):
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
        say(f"{seconds:.1f} s with --jobs {options.jobs}; the largest compiler process took {peak} MiB")
    return int(failed > 0)


def _settle_lock(options: argparse.Namespace, path: Path, toolchain: Toolchain, result: Result, expansion: Expansion,
                 console: Console) -> int:  # fmt: skip
    if options.update_lock:
        if result.failures:
            raise BuildError("the lock was not written, because kernels failed")
        lock.update(path, toolchain.version, result.kernels, expansion)
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
        return 0
    if not path.exists():
        if options.locked:
            raise BuildError(f"{path} does not exist; --update-lock writes it")
        console.print(f"{path} does not exist, digests were not compared; --update-lock writes it", style="yellow",
                      markup=False, soft_wrap=True)  # fmt: skip
        return 0
    findings = lock.differences(path, toolchain.version, result.kernels)
    for finding in findings:
        console.print(finding, style="yellow", markup=False, soft_wrap=True)
    return int(options.locked and bool(findings))


