"""The stages of a build in order: render, keep what is good, compile, write the pack."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
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
    """What a build did: compiled or reused kernels, failures with their variant, and other archs' stale artifacts."""

    kernels: list[Kernel] = field(default_factory=list)
    reused: set[str] = field(default_factory=set)
    failures: list[tuple[Variant, BuildError]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    changed: bool = False


@dataclass
class Build:
    """One configuration of the stages; ``run`` builds into a directory."""

    matrix: Path
    templates: Path
    expansion: Expansion
    toolchain: Toolchain
    launcher: str | None
    file_format: str
    jobs: int

    def __post_init__(self) -> None:
        self.renderer = Renderer(self.templates, self.toolchain.version, FLAGS)

    def run(self, out: Path, selected: list[Variant]) -> Result:
        """Compile what is not up to date and write the pack.

        Artifacts of the pack that were not selected stay where their sources are unchanged and are dropped where not.
        """
        result = Result()
        with pack.locked(out) as store:
            sources = self._render(selected, result)
            compiler = Compiler(self.toolchain, self.templates, store, self.launcher)
            kept = self._keep(compiler, out, selected, result)
            self._compile(compiler, sources, result)
            writer = pack.Writer(out, self.toolchain)
            artifacts = writer.add(result.kernels, self.file_format)
            artifacts += [pack.artifact(kernel.source.variant, artifact) for kernel, artifact in kept]
            digest = pack.source_digest(self.matrix, self.templates)
            result.changed = writer.finish(self.expansion, digest, artifacts)
            compiler.prune([*result.kernels, *(kernel for kernel, _ in kept)])
        return result

    def _render(self, variants: list[Variant], result: Result) -> list[Source]:
        sources = []
        for variant in variants:
            try:
                sources.append(self.renderer.render(variant))
            except RenderError as error:
                result.failures.append((variant, error))
        return sources

    def _keep(self, compiler: Compiler, out: Path, selected: list[Variant],
              result: Result) -> list[tuple[Kernel, dict]]:  # fmt: skip
        """The artifacts that stay, each with its kernel of the store: same sources, same PTX, intact."""
        known = {pack.key(variant): variant for variant in self.expansion.variants}
        rebuilt = {pack.key(variant) for variant in selected}
        kept = []
        for artifact in pack.read_artifacts(out):
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
                result.dropped.append("{family}/{variant}@{arch}".format_map(artifact))
        return kept

    def _compile(self, compiler: Compiler, sources: list[Source], result: Result) -> None:
        pending = []
        for source in sources:
            stored = compiler.stored(source)
            if stored:
                result.kernels.append(stored)
                result.reused.add(source.variant.label)
            else:
                pending.append(source)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with (
            Progress(*columns, console=Console(stderr=True), transient=True, disable=not pending) as progress,
            ThreadPoolExecutor(self.jobs) as pool,
        ):
            task = progress.add_task("compiling", total=len(pending))
            futures = {pool.submit(compiler.compile, source): source for source in pending}
            try:
                for future in as_completed(futures):
                    variant = futures[future].variant
                    try:
                        result.kernels.append(future.result())
                    except CompileError as error:
                        result.failures.append((variant, error))
                    progress.update(task, advance=1, description=f"compiled {variant.label}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        result.kernels.sort(key=lambda kernel: pack.key(kernel.source.variant))
        result.failures.sort(key=lambda failure: pack.key(failure[0]))
