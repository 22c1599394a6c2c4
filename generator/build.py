"""The stages of a build in order: render, keep what is good, compile, write the pack."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from generator import pack
from generator.compile import FLAGS, Compiler, Kernel
from generator.errors import BuildError, CompileError, RenderError
from generator.expand import Variant
from generator.matrix import Expansion
from generator.render import Renderer, Source
from generator.toolchain import Toolchain


@dataclass
class Result:
    """What a build did: compiled or reused kernels, failures with their variant, and what became of older artifacts.

    stale: artifacts of the pack before, kept for kernels that failed. dropped: labels of those that could not be kept.
    """

    kernels: list[Kernel] = field(default_factory=list)
    reused: set[str] = field(default_factory=set)
    failures: list[tuple[Variant, BuildError]] = field(default_factory=list)
    stale: list[dict] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    changed: bool = False


@dataclass
class Build:
    """One configuration of the stages; ``run`` builds into a directory."""

    matrix: Path
    templates: Path
    expansion: Expansion
    toolchain: Toolchain
    launcher: list[str]
    file_format: str
    jobs: int

    def __post_init__(self) -> None:
        self.renderer = Renderer(self.templates, self.toolchain.version, FLAGS)

    def run(self, out: Path, selected: list[Variant]) -> Result:
        """Compile what is not up to date and write the pack. The caller holds ``pack.locked(out)``.

        Artifacts of the pack that were not selected stay where their sources are unchanged and are dropped where not.
        Those of kernels that fail now stay as they are, and so does the manifest's digest of the sources.
        """
        result, previous = Result(), pack.read(out)
        sources = self._render(selected, result)
        compiler = Compiler(self.toolchain, self.templates, out / pack.STORE, self.launcher)
        kept = self._keep(compiler, out, previous, selected, result)
        self._compile(compiler, sources, result)
        self._fall_back(out, previous, result)
        writer = pack.Writer(out, self.toolchain)
        artifacts = writer.add(result.kernels, self.file_format)
        artifacts += [pack.artifact(kernel.source.variant, artifact) for kernel, artifact in kept]
        digest = (previous["source_digest"] if result.stale
                  else pack.source_digest(self.matrix, self.templates, self.expansion.measured))  # fmt: skip
        result.changed = writer.finish(self.expansion, digest, artifacts + result.stale, previous["artifacts"])
        compiler.prune([*result.kernels, *(kernel for kernel, _ in kept)])
        return result

    def write_pack(self, out: Path, kernels: list[Kernel]) -> None:
        """A pack of ``kernels`` and nothing else, in a directory that no other build knows."""
        with pack.locked(out):
            writer = pack.Writer(out, self.toolchain)
            digest = pack.source_digest(self.matrix, self.templates, self.expansion.measured)
            writer.finish(self.expansion, digest, writer.add(kernels, self.file_format), [])
        shutil.rmtree(out / pack.STORE)

    def _render(self, variants: list[Variant], result: Result) -> list[Source]:
        sources = []
        for variant in variants:
            try:
                sources.append(self.renderer.render(variant))
            except RenderError as error:
                result.failures.append((variant, error))
        return sources

    def _keep(self, compiler: Compiler, out: Path, previous: dict, selected: list[Variant],
              result: Result) -> list[tuple[Kernel, dict]]:  # fmt: skip
        """The artifacts that stay, each with its kernel of the store: same sources, same PTX, intact."""
        known = {pack.key(variant): variant for variant in self.expansion.variants}
        rebuilt = {pack.key(variant) for variant in selected}
        kept = []
        for artifact in previous["artifacts"]:
            variant = known.get(pack.key(artifact))
            if pack.key(artifact) in rebuilt:
                continue
            try:
                kernel = compiler.stored(self.renderer.render(variant)) if variant else None
            except RenderError:
                kernel = None
            if kernel and kernel.ptx_digest == artifact["ptx"]["sha256"] and pack.intact(out, artifact):
                kept.append((kernel, artifact))
            else:
                result.dropped.append(pack.label(artifact))
        return kept

    def _fall_back(self, out: Path, previous: dict, result: Result) -> None:
        """Keep what the pack held of the kernels that failed, if it is intact and its family is called as before."""
        def interface(family: dict) -> dict:
            return {**family, "select": {**family["select"], "measured": []}}

        failed = {pack.key(variant) for variant, _ in result.failures}
        for artifact in previous["artifacts"]:
            if pack.key(artifact) in failed:
                name = artifact["family"]
                same = interface(previous["families"][name]) == interface(self.expansion.families[name])
                if same and pack.intact(out, artifact):
                    result.stale.append(artifact)
                else:
                    result.dropped.append(pack.label(artifact))

    def _compile(self, compiler: Compiler, sources: list[Source], result: Result) -> None:
        pending: dict[str, list[Source]] = {}  # families may have kernels in common
        for source in sources:
            stored = compiler.stored(source)
            if stored:
                result.kernels.append(stored)
                result.reused.add(source.variant.label)
            else:
                pending.setdefault(source.digest, []).append(source)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        shown = pending and console.is_terminal  # elsewhere it would leave an empty line
        with (
            Progress(*columns, console=console, transient=True, disable=not shown) as progress,
            ThreadPoolExecutor(self.jobs) as pool,
        ):
            task = progress.add_task("compiling", total=len(pending))
            futures = {pool.submit(compiler.compile, same[0]): same for same in pending.values()}
            try:
                for future in as_completed(futures):
                    same = futures[future]
                    try:
                        result.kernels += [replace(future.result(), source=source) for source in same]
                    except CompileError as error:
                        result.failures += [(source.variant, error) for source in same]
                    progress.update(task, advance=1, description=f"compiled {same[0].variant.label}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        result.kernels.sort(key=lambda kernel: pack.key(kernel.source.variant))
        result.failures.sort(key=lambda failure: pack.key(failure[0]))
