"""Which variants run on a device."""

from __future__ import annotations

from loader import arch
from loader.manifest import Artifact
from loader.registry import registry


def runnable(family: str, capability: tuple[int, int], **axes: str) -> dict[str, Artifact]:
    """Tile -> artifact of the most specific arch, of the variants with these axes; an empty result is an error."""
    found: dict[str, Artifact] = {}
    for candidate in registry().candidates(family):
        artifact = candidate.artifact
        if arch.refusal(arch.ARCHS[artifact.arch], capability) or any(
            artifact.axes[axis] != value for axis, value in axes.items()
        ):
            continue
        kept = found.get(artifact.tile)
        if kept is None or arch.rank(arch.ARCHS[artifact.arch]) > arch.rank(arch.ARCHS[kept.arch]):
            found[artifact.tile] = artifact
    if not found:
        raise SystemExit(f"no variant of {family} with {axes} runs on compute capability {capability}")
    return found
