"""The tree as a build folder of Hugging Face's ``kernels``: Python that any torch loads, and a pack beside it.

A folder may import itself by relative names, the standard library and torch. So it has the loader and those modules of
``integrations`` that need nothing else where they are imported; host buffers have no emulated device there.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from generator.pack import MANIFEST
from loader import __version__, arch

ROOT = Path(__file__).resolve().parent.parent
NAME = "block-scaled"
VARIANT = "torch-cuda"
PARTS = ("loader", "integrations")
ALLOWED = {"torch", *sys.stdlib_module_names}
OLDEST = "0.17.0"  # of ``kernels``
INIT = '''"""Ahead-of-time compiled kernels for block-scaled numbers, and what launches them."""

from . import integrations as integrations
from . import loader as loader
from .loader import __version__ as __version__
'''


def write(destination: Path, make_pack: Callable[[Path], None]) -> Path:
    """Make ``build/torch-cuda`` in ``destination``, in the place of one that is there; its path.

    ``make_pack`` writes the pack into a directory.
    """
    target = destination / "build" / VARIANT
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        stage = Path(name) / VARIANT
        for source in modules():
            (copy := stage / source.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        (stage / "__init__.py").write_text(INIT)
        make_pack(stage / "kernels")
        described = metadata(stage, json.loads((stage / "kernels" / MANIFEST).read_text()))
        (stage / "metadata.json").write_text(json.dumps(described, indent=1) + "\n")
        if target.exists():
            shutil.rmtree(target)
        stage.rename(target)
    return target


def modules() -> list[Path]:
    """Sources of the parts that meet the rule, and whose own modules meet it that they import with themselves."""
    return [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py")) if _allowed(path)]


@cache
def _allowed(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return all(name in ALLOWED for name in _foreign(tree)) and all(map(_allowed, _own(path, tree)))


def _foreign(tree: ast.Module) -> Iterator[str]:
    """Top-level names of what is imported where a module is; what a function imports is needed by who calls it."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def _own(path: Path, tree: ast.Module) -> Iterator[Path]:
    """Files of the same package that are imported with it."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (found for name in names if (found := path.with_name(f"{name}.py")).exists())


def metadata(stage: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What ``kernels`` asks of a folder before it imports it; equal files give equal metadata."""
    files = {path.relative_to(stage).as_posix(): hashlib.sha256(path.read_bytes()).digest()
             for path in sorted(stage.rglob("*")) if path.is_file()}  # fmt: skip
    whole = hashlib.sha256(repr(files).encode()).hexdigest()
    return {
        "name": NAME, "id": f"_{NAME.replace('-', '_')}_cuda_{whole[:12]}", "version": int(__version__.split(".")[0]),
        "license": "Apache-2.0", "kernels-minver": OLDEST, "python-depends": [],
        "backend": {"type": "cuda", "archs": _archs(entry["arch"] for entry in manifest["artifacts"])},
        "digest": {"algorithm": "sha256",
                   "files": {name: base64.b64encode(digest).decode() for name, digest in files.items()}},
    }  # fmt: skip


def _archs(names: Iterable[str]) -> list[str]:
    """As torch writes them: 9.0a."""
    found = sorted(map(arch.parse, set(names)), key=arch.rank)
    return [f"{each.major}.{each.minor}{each.suffix}" for each in found]
