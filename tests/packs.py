"""Which variants a pack holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loader.registry import registry


def output_types(family: str, runs: Callable[[str], bool], packs: Sequence[str] | None = None) -> dict[str, str]:
    """Variant -> output type, of the artifacts of a family whose arch ``runs``."""
    artifacts = [candidate.artifact for candidate in registry(packs).candidates(family)]
    return {artifact.variant: artifact.axes["out"] for artifact in artifacts if runs(artifact.arch)}
