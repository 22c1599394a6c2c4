"""What packs say of themselves and of their kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from . import arch
from .explanation import signature_text
from .registry import Candidate, Registry


class PackInfo(NamedTuple):
    """A pack in use.

    digest: sha256 (hex) of the bytes of its manifest, and so of all it holds. source_digest, toolchain: what it was
    built from and with, as the manifest says. archs: those for which it holds an artifact, oldest first.
    """

    directory: str
    digest: str
    source_digest: str
    toolchain: Mapping[str, Any]
    archs: tuple[str, ...]


class ArtifactInfo(NamedTuple):
    """One variant of a kernel for one architecture.

    pack: its directory. registers, spill_bytes, local_bytes: of a thread. static_shared, dynamic_shared: bytes of a
    CTA. block: threads, cluster: CTAs. file, digest, size: of the binary in the pack; the digest is its sha256 (hex),
    the size in bytes.
    """

    variant: str
    arch: str
    pack: str
    registers: int
    static_shared: int
    dynamic_shared: int
    spill_bytes: int
    local_bytes: int
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    file: str
    digest: str
    size: int


class KernelInfo(NamedTuple):
    """A kernel family of the packs, or a composite, which has no variants and no artifacts of its own."""

    name: str
    summary: str
    signature: str
    archs: tuple[str, ...]
    variants: tuple[str, ...]
    artifacts: tuple[ArtifactInfo, ...]


def packs(found: Registry) -> tuple[PackInfo, ...]:
    """In the order in which they were found."""
    return tuple(PackInfo(pack.directory, pack.digest, pack.manifest.source_digest,
                          MappingProxyType(dict(pack.manifest.toolchain)),
                          _ordered({artifact.arch for artifact in pack.manifest.artifacts})) for pack in found.packs)


def kernels(found: Registry) -> Iterator[KernelInfo]:
    """The families, then the composites."""
    archs: dict[str, tuple[str, ...]] = {}
    for family in found.families.values():
        artifacts = tuple(map(_artifact, found.candidates(family.name)))
        archs[family.name] = _ordered({artifact.arch for artifact in artifacts})
        yield KernelInfo(family.name, family.summary, signature_text(family), archs[family.name],
                         tuple(sorted({artifact.variant for artifact in artifacts})), artifacts)
    for name, composite in found.composites.items():
        held = {name for name in arch.ARCHS if all(name in archs[step.kernel] for step in composite.steps)}
        yield KernelInfo(name, composite.signature.summary, signature_text(composite.signature), _ordered(held), (), ())


def _artifact(candidate: Candidate) -> ArtifactInfo:
    pack, a = candidate
    return ArtifactInfo(a.variant, a.arch, pack.directory, a.registers, a.static_shared, a.launch.shared,
                        a.spill_bytes, a.local_bytes, a.launch.block, a.launch.cluster, a.binary.file, a.binary.sha256,
                        a.binary.size)


def _ordered(names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in arch.ARCHS if name in names)
