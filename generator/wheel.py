"""Wheels: loader, emulator, integrations and headers under one name with a pack of kernels, or a pack alone.

Nothing of them depends on where or when they are made: sources are copied with the same modes, and the archive has
no times of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from generator.errors import BuildError
from generator.files import replace
from generator.pack import MANIFEST
from loader import __version__, signing
from loader.errors import LoaderError

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "block_scaled"
PARTS = ("loader", "emulator", "integrations")
# One image serves a family of GPUs: 100f the B200, B300 and GB300, 120f RTX PRO 6000, 5090 and GB10.
ARCHS = "90a,100f,120f"
EXTRAS = ("checkpoints", "emulator", "oci", "signing")  # of those that a checkout has
INIT = '''"""Ahead-of-time compiled kernels for block-scaled numbers, and what launches them."""

from .loader import __version__ as __version__
'''
EPOCH = 315532800  # 1980-01-01, the first day that a zip can name


def package(pack_name: str | None) -> str:
    """What the wheel installs: the whole package, or where there is a name a pack alone."""
    name = PACKAGE if pack_name is None else f"{PACKAGE}_{pack_name}"
    if not (name.isidentifier() and name.isascii() and name.islower()):
        raise BuildError("--pack-only: expected a name of lower-case letters, digits and underscores, "
                         f"got {pack_name!r}")
    return name


def write(destination: Path, package: str, make_pack: Callable[[Path], None], key: str | None) -> Path:
    """Make the wheel of ``package`` in ``destination``; ``make_pack`` writes the pack into a directory.

    ``key``: file of the private key that signs it, None to leave it unsigned.
    """
    from generator import sbom  # which takes as long to import as the rest

    with tempfile.TemporaryDirectory() as name:
        stage = Path(name)
        settings = _whole(stage) if package == PACKAGE else _pack_alone(stage, package)
        pack = stage / settings["pack"].replace(".", "/")
        make_pack(pack)
        if key is not None:
            _sign(pack, key)
        _copy(ROOT / "LICENSE", stage / "LICENSE")
        _write(stage / "pyproject.toml", _project(settings))
        _copy(Path(__file__).parent / "wheel_setup.py", stage / "setup.py")
        bill = sbom.document(package, __version__, settings["dependencies"], (pack / MANIFEST).read_bytes(), EPOCH)
        _write(stage / "sboms" / f"{package}.cdx.json", bill.decode())
        for path in stage.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return _archive(stage, destination)


def _whole(stage: Path) -> dict[str, Any]:
    packages = [PACKAGE]
    for source in (path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))):
        _copy(source, stage / PACKAGE / source.relative_to(ROOT))
        package = f"{PACKAGE}.{'.'.join(source.relative_to(ROOT).parts[:-1])}"
        if package not in packages:
            packages.append(package)
    for header in sorted((ROOT / "include").rglob("*.h")):
        _copy(header, stage / PACKAGE / header.relative_to(ROOT))
    _write(stage / PACKAGE / "__init__.py", INIT)
    _write(stage / PACKAGE / "py.typed", "")
    _write(stage / PACKAGE / "kernels" / "__init__.py", '"""A pack: files and their manifest, no code."""\n')
    _copy(ROOT / "README.md", stage / "README.md")
    checkout = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"distribution": PACKAGE, "packages": [*packages, f"{PACKAGE}.kernels"], "pack": f"{PACKAGE}.kernels",
            "dependencies": checkout["dependencies"], "description": checkout["description"],
            "entry_points": entry_points(checkout),
            "extras": {name: checkout["optional-dependencies"][name] for name in EXTRAS}}  # fmt: skip


def entry_points(checkout: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What engines load of a checkout, by group and name, as it is called in the package."""
    groups = checkout.get("entry-points", {})
    return {group: {name: f"{PACKAGE}.{place}" for name, place in names.items()} for group, names in groups.items()}


def _pack_alone(stage: Path, package: str) -> dict[str, Any]:
    text = "Kernels for the loader of block_scaled"
    _write(stage / package / "__init__.py", '"""A pack: files and their manifest, no code."""\n')
    _write(stage / package / "py.typed", "")
    _write(stage / "README.md", f"{text}: a pack, found by its entry point.\n")
    return {"distribution": package, "packages": [package], "pack": package, "dependencies": [PACKAGE], "extras": {},
            "entry_points": {}, "description": text}  # fmt: skip


def _sign(pack: Path, key: str) -> None:
    try:
        signing.sign(str(pack), key)
    except LoaderError as error:
        raise BuildError(f"--sign: {error}") from None


def _project(settings: dict[str, Any]) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True,
                                     undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # fmt: skip
    return environment.get_template("wheel.toml.j2").render(version=__version__, **settings)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _archive(stage: Path, destination: Path) -> Path:
    """By setuptools, in a process of its own: it changes directories and talks a lot."""
    made = stage / "made"
    made.mkdir()
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(made)], cwd=stage, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, umask=0o022,
                          env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)})  # fmt: skip
    wheels = list(made.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise BuildError(f"setuptools made no wheel:\n{done.stdout.rstrip()}")
    destination.mkdir(parents=True, exist_ok=True)
    target = destination / wheels[0].name
    replace(target, wheels[0].read_bytes())
    return target
