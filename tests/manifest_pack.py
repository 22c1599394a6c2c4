"""A pack that says everything of the shipped kernels and holds none of them: for questions that launch nothing, or
launch on a driver that runs nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shipped_matrix import MATRIX, VARIANTS

from generator import pack


def write(directory: Path, image: Callable[[dict[str, Any]], bytes] | None = None) -> None:
    """The manifest of a build of all variants, whose files are not there; with ``image`` their binaries are what it
    makes of an artifact."""
    facts = dict.fromkeys(pack.FACT_KEYS, 0)
    artifacts = [pack.artifact(variant, {**_file(variant, "cubin"), "format": "cubin", **facts, "registers": 1,
                                         "ptx": _file(variant, "ptx.xz")}) for variant in VARIANTS]
    for artifact in artifacts if image is not None else ():
        data, path = image(artifact), directory / artifact["file"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        artifact |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest = {"schema": pack.SCHEMA, "abi": pack.ABI, "source_digest": "0" * 64,
                "toolchain": {"nvcc": "none", "flags": []}, "families": MATRIX.families,
                "composites": MATRIX.composites, "artifacts": sorted(artifacts, key=pack.key)}
    (directory / pack.MANIFEST).write_text(json.dumps(manifest, sort_keys=True))


def _file(variant, suffix):
    name = f"{variant.family}/{variant.variant}.{variant.arch}.{suffix}"
    return {"file": name, "sha256": "0" * 64, "size": 1}
