"""The checks that can be stricter than a GPU: what is undefined by the ISA may work on one. Each has a name, which is
in the text of its faults, and can be left out."""

from __future__ import annotations

from collections.abc import Iterable

from .faults import LaunchError

CHECKS = {
    "unwritten": "reads of shared or tensor memory that nothing has written, or that is being written asynchronously",
    "warps": "accesses of two warps to a word of shared memory that no barrier separates",
    "lanes": "accesses of two lanes of a warp to a word of shared memory that no barrier of the warp separates",
    "proxy-fence": "reads of the asynchronous proxy of what was written without a proxy fence",
    "wgmma-fence": "wgmma before its first fence, with accumulators changed since, or fragments changed while it reads",
    "tcgen05-fence": "accesses of two warps to tensor memory without tcgen05.fence on both sides of what orders them",
    "tcgen05-wait": "writes to tensor memory that a tcgen05.ld reads which tcgen05.wait::ld has not waited for",
    "tcgen05-lanes": "tcgen05.ld and st at lanes that are not the warp's own",
    "exit": "bulk stores that read shared memory of a CTA which has exited",
}


def selected(checks: bool | Iterable[str]) -> frozenset[str]:
    """The names of all checks, of none, or those given. Raises LaunchError for a name that is not one."""
    if isinstance(checks, bool):
        return frozenset(CHECKS if checks else ())
    unknown = sorted(set(checks) - set(CHECKS))
    if unknown:
        raise LaunchError(f"checks {', '.join(unknown)}: expected some of {', '.join(CHECKS)}")
    return frozenset(checks)
