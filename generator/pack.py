"""The output directory: writes the files of a pack, then its manifest, and holds the lock against a second build.

File names carry the first digits of their content's digest, so the manifest that is in place, old or new, always names
the bytes it was written for. The manifest is replaced last, in one step. Files of the manifest before it stay until the
next build, for processes that read that manifest and have not loaded all of its kernels yet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generator import VERSION
from generator.compile import FLAGS, Facts, Kernel
from generator.errors import CompileError, PackError
from generator.expand import Variant
from generator.files import replace, sha256
from generator.matrix import Expansion
from generator.render import is_source
from generator.toolchain import Toolchain
from loader.errors import LoaderError
from loader.reader import parse
from loader.trust import SIGNATURE_NAME

SCHEMA = 5
ABI = 1
MANIFEST = "manifest.json"
STORE = ".build"

# What an artifact says of its files and of the compiler's report; the rest of it follows from kernels.yaml.
FILE_KEYS = ("file", "sha256", "size", "format", "ptx")
FACT_KEYS = ("registers", "spill_bytes", "local_bytes", "static_shared")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold ``out`` and its store for this process alone; leftovers of a killed build are removed."""
    store = out / STORE
    try:
        store.mkdir(parents=True, exist_ok=True)
        handle = (store / "lock").open("w")
    except OSError as error:
        raise PackError(f"cannot write to {out}: {error.strerror}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PackError(f"another build is writing to {out}") from None
        for leftover in [*store.glob("tmp-*"), *store.glob("failed")]:
            shutil.rmtree(leftover)
        for leftover in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:
            leftover.unlink()
        yield


def read(out: Path) -> dict[str, Any]:
    """The manifest in ``out``, as far as a build needs it; without artifacts where there is none."""
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        if manifest["schema"] not in range(1, SCHEMA + 1):  # each only added keys to the one before
            raise PackError(f"{out / MANIFEST} has schema {manifest['schema']}, this build writes {SCHEMA}; remove it")
        return {"families": dict(manifest["families"]), "artifacts": list(manifest["artifacts"]),
                "source_digest": manifest["source_digest"]}  # fmt: skip
    except FileNotFoundError:
        return {"families": {}, "artifacts": [], "source_digest": None}
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{out / MANIFEST} is not a manifest ({error}); remove it to build here") from None


def intact(out: Path, artifact: Mapping[str, Any]) -> bool:
    """Whether both files of an artifact are what the manifest says."""
    files = [artifact, artifact["ptx"]]
    paths = [out / entry["file"] for entry in files]
    return all(path.is_file() and sha256(path.read_bytes()) == entry["sha256"]
               for path, entry in zip(paths, files, strict=True))  # fmt: skip


def key(entry: Variant | Mapping[str, Any]) -> tuple[str, str, str]:
    """Family, arch and variant: the order of the manifest."""
    if isinstance(entry, Variant):
        return entry.family, entry.arch, entry.variant
    return entry["family"], entry["arch"], entry["variant"]


def label(artifact: Mapping[str, Any]) -> str:
    """As ``Variant.label``."""
    return "{family}/{variant}@{arch}".format_map(artifact)


def artifact(variant: Variant, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's artifact: what kernels.yaml says now, and what ``stored`` says of files and registers."""
    return {
        "family": variant.family, "variant": variant.variant, "arch": variant.arch, "tile": variant.tile,
        "axes": variant.axes, "symbol": variant.symbol,
        "parameters": variant.parameters, "parameter_bytes": variant.parameter_bytes,
        "launch": variant.launch, "cost": variant.cost, "requires": variant.requires,
        **{name: stored[name] for name in (*FILE_KEYS, *FACT_KEYS)},
    }  # fmt: skip


class Writer:
    """Writes one pack. Files first (``add``), then ``finish`` with everything that the manifest shall name."""

    def __init__(self, out: Path, toolchain: Toolchain) -> None:
        self.out, self.toolchain = out, toolchain
        self._written: dict[str, dict[str, Any]] = {}  # by digest: forms of a family have kernels in common

    def add(self, kernels: Sequence[Kernel], file_format: str) -> list[dict[str, Any]]:
        """Artifacts of ``kernels``; with ``fatbin``, the archs of one variant share a file."""
        groups: dict[tuple[str, ...], list[Kernel]] = {}
        for kernel in kernels:
            family, arch, variant = key(kernel.source.variant)
            group = (family, variant) if file_format == "fatbin" else (family, variant, arch)
            groups.setdefault(group, []).append(kernel)
        artifacts = []
        for (family, *stem), group in groups.items():
            content = self._fatbin(group) if file_format == "fatbin" else group[0].cubin
            code = self._write(f"{family}/{'.'.join(stem)}", file_format, content)
            for kernel in group:
                variant = kernel.source.variant
                ptx = self._write(f"{family}/{variant.variant}.{variant.arch}", "ptx.xz", kernel.ptx)
                stored = {**code, "format": file_format, "ptx": ptx, **_facts(kernel.facts)}
                artifacts.append(artifact(variant, stored))
        return artifacts

    def finish(self, expansion: Expansion, source_digest: str, artifacts: list[dict[str, Any]],
               previous: Sequence[Mapping[str, Any]]) -> bool:  # fmt: skip
        """Put the manifest in place and remove files that neither it nor ``previous`` names; whether it changed.

        ``PackError`` where the loader's own reader refuses the manifest; the one before it stays.
        A manifest that changed is no longer signed.
        """
        built = {entry["family"] for entry in artifacts}
        manifest = {
            "schema": SCHEMA, "abi": ABI, "source_digest": source_digest,
            "toolchain": {"nvcc": self.toolchain.version, "flags": list(FLAGS)},
            "families": {name: expansion.families[name] for name in built},
            "composites": {name: composite for name, composite in expansion.composites.items()
                           if built.issuperset(step["kernel"] for step in composite["steps"])},
            "artifacts": sorted(artifacts, key=key),
        }  # fmt: skip
        content = (json.dumps(manifest, sort_keys=True, indent=1) + "\n").encode()
        try:
            parse(content)
        except LoaderError as error:
            raise PackError(f"no loader reads this manifest, nothing was replaced: {error}") from None
        path = self.out / MANIFEST
        changed = not path.is_file() or path.read_bytes() != content
        if changed:
            (self.out / SIGNATURE_NAME).unlink(missing_ok=True)  # it was one of the manifest before
            replace(path, content)
        self._remove_unnamed([*artifacts, *previous])
        return changed

    def _write(self, stem: str, suffix: str, content: bytes) -> dict[str, Any]:
        digest = sha256(content)
        if digest in self._written:
            return self._written[digest]
        name = f"{stem}-{digest[:12]}.{suffix}"
        path = self.out / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, content)
        return self._written.setdefault(digest, {"file": name, "sha256": digest, "size": len(content)})

    def _fatbin(self, group: Sequence[Kernel]) -> bytes:
        with tempfile.TemporaryDirectory(dir=self.out / STORE, prefix="tmp-") as name:
            folder, command = Path(name), [str(self.toolchain.fatbinary), "-64", "--create=kernel.fatbin"]
            for kernel in group:
                arch = kernel.source.variant.arch
                (folder / f"{arch}.cubin").write_bytes(kernel.cubin)
                command.append(f"--image3=kind=elf,sm={arch},file={arch}.cubin")
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                raise CompileError("fatbinary failed", " ".join(command), done.stdout)
            return (folder / "kernel.fatbin").read_bytes()

    def _remove_unnamed(self, artifacts: Sequence[Mapping[str, Any]]) -> None:
        """Files of this pack's naming that no artifact names."""
        named = {entry["file"] for entry in artifacts} | {entry["ptx"]["file"] for entry in artifacts}
        for suffix in ("cubin", "fatbin", "ptx.xz"):
            for path in self.out.glob(f"*/*-{'[0-9a-f]' * 12}.{suffix}"):
                if path.relative_to(self.out).as_posix() not in named:
                    path.unlink()


def source_digest(matrix: Path, templates: Path, measured: Sequence[str] = ()) -> str:
    """sha256 over kernels.yaml, the files that it names, every template and header by its name under templates/, and
    the generator's version.

    Other files, such as an editor's, are no sources.
    """
    digest = hashlib.sha256(f"generator {VERSION}\n".encode())
    files = [("kernels.yaml", matrix), *((name, matrix.parent / name) for name in measured)]
    files += [(path.relative_to(templates).as_posix(), path) for path in templates.rglob("*")
              if is_source(path.relative_to(templates)) and path.is_file()]  # fmt: skip
    for name, path in sorted(files):
        digest.update(f"{name} {sha256(path.read_bytes())}\n".encode())
    return digest.hexdigest()


def _facts(facts: Facts) -> dict[str, int]:
    return {name: getattr(facts, name) for name in FACT_KEYS}
