"""artifacts/lock.json: the digests that a build of these sources with the named toolchain must give.

It holds digests of cubins and of uncompressed PTX, so that neither the pack's format nor the compressor matters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from generator.compile import Kernel
from generator.errors import PackError
from generator.files import replace
from generator.matrix import Expansion


def digests(kernels: Sequence[Kernel]) -> dict[str, dict[str, str]]:
    """Label -> digests, in the form of the lock."""
    return {kernel.source.variant.label: {"cubin": kernel.facts.cubin_sha256, "ptx": kernel.facts.ptx_sha256}
            for kernel in kernels}  # fmt: skip


def read(path: Path) -> dict:
    """The lock, or an empty one where there is none."""
    try:
        lock = json.loads(path.read_text())
        return {"nvcc": lock["nvcc"], "kernels": dict(lock["kernels"])}
    except FileNotFoundError:
        return {"nvcc": None, "kernels": {}}
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{path} is not a lock ({error}); restore it or write it again with --update-lock") from None


def differences(path: Path, nvcc: str, kernels: Sequence[Kernel]) -> list[str]:
    """What was built otherwise than the lock says, a line each and one in all; only one where nvcc is another."""
    lock = read(path)
    if lock["nvcc"] != nvcc:
        return [f"{path.name} is of nvcc {lock['nvcc']}, this is {nvcc}: not compared"]
    lines = []
    for label, built in digests(kernels).items():
        expected = lock["kernels"].get(label, {})
        changed = [kind for kind in ("cubin", "ptx") if built[kind] != expected.get(kind)]
        if changed:
            reason = f"another {' and '.join(changed)}" if expected else "not there"
            lines.append(f"{path.name}: {label}: {reason}")
    if lines:
        lines.append(f"{path.name}: {len(lines)} of {len(kernels)} kernels differ; --update-lock accepts them")
    return lines


def update(path: Path, nvcc: str, kernels: Sequence[Kernel], expansion: Expansion) -> None:
    """Write what was built into the lock. Entries of other kernels stay, if they still exist and nvcc is the same."""
    lock = read(path)
    existing = {variant.label for variant in expansion.variants}
    kept = lock["kernels"] if lock["nvcc"] == nvcc else {}
    merged = {label: entry for label, entry in kept.items() if label in existing} | digests(kernels)
    replace(path, (json.dumps({"nvcc": nvcc, "kernels": merged}, sort_keys=True, indent=1) + "\n").encode())
