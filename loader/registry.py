"""Packs: where they are found, how their files are read, and what several of them hold together.

The first of these that names a pack is used, alone: the ``packs`` argument of a call, the environment variable
``LOADER_ARTIFACTS`` (directories joined by ``os.pathsep``), installed distributions (entry points of the group
``block_scaled.packs``, or of its old name ``loader.artifacts``), in a checkout its ``artifacts`` directory. A copy of
the package that no distribution brings has its own pack in the place of the last two. A named directory is a pack, or
holds packs.
No byte of a file is used before its size and sha256 are those of the manifest, and no byte of a manifest is parsed
before its signature is what the policy of the call asks for (``trust``).
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .errors import (
    DuplicateError,
    IntegrityError,
    LoaderError,
    MissingFileError,
    PackError,
    PackNotFoundError,
    PackPathError,
    UnknownKernelError,
    UnsignedError,
)
from .fields import without_collections
from .files import without_waiting
from .manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Artifact,
    Composite,
    Family,
    Manifest,
    StoredFile,
)
from .reader import parse
from .trust import MAX_SIGNATURE_BYTES, SIGNATURE_NAME, Pinned, Trust, asked, pinned, signers
from .tuned import TunedRow, from_environment

ENVIRONMENT_VARIABLE = "LOADER_ARTIFACTS"
ENTRY_POINT_GROUPS = ("block_scaled.packs", "loader.artifacts")
# Raised for a manifest before it is parsed, and for every other file before its bytes are used: path and sha256 (hex).
AUDIT_EVENT = "loader.read"
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Of the package that this one is a part of; a checkout's is a part of none.
OWN_PACK = os.path.join(_ROOT, "kernels") if "." in __package__ else None
# None where this package is installed: whoever put an `artifacts` beside it there, it is not ours.
CHECKOUT_ARTIFACTS = os.path.join(_ROOT, "artifacts") if os.path.isfile(os.path.join(_ROOT, "kernels.yaml")) else None


class Pack(NamedTuple):
    """A directory with a manifest that has been read and checked.

    digest: sha256 (hex) of the manifest's bytes. signers: ids of the pinned keys that signed.
    """

    directory: str
    manifest: Manifest
    digest: str
    signers: tuple[str, ...] = ()

    def read(self, stored: StoredFile) -> bytes:
        """The bytes of a file, after its size and sha256 were checked and audit hooks were told of both."""
        data = read_file(self.directory, stored.file, stored.size)
        if len(data) != stored.size:
            raise IntegrityError(f"{stored.file} in pack {self.directory} has {len(data)} bytes or more, "
                                 f"the manifest says {stored.size}",
                                 pack=self.directory, file=stored.file, expected=stored.size, got=len(data))
        digest = hashlib.sha256(data).hexdigest()
        if digest != stored.sha256:
            raise IntegrityError(f"{stored.file} in pack {self.directory} has sha256 {digest}, "
                                 f"the manifest says {stored.sha256}",
                                 pack=self.directory, file=stored.file, expected=stored.sha256, got=digest)
        sys.audit(AUDIT_EVENT, os.path.join(self.directory, stored.file), digest)
        return data


class Candidate(NamedTuple):
    """An artifact and the pack that holds it."""

    pack: Pack
    artifact: Artifact


# What packs need not agree on: words for people, names of files, whose digests count, and rows that are merged.
_FREE = frozenset({"summary", "doc", "text", "file", "measured"})


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """The first key in which two entries of manifests differ so that a call may; None where they do the same.

    All counts but ``_FREE``: what a call takes, what is selected, and what runs, on a GPU or emulated (the PTX).
    """
    if one is other:
        return None
    if isinstance(one, tuple) and hasattr(one, "_fields") and type(one) is type(other):
        pairs = [(f".{name}", a, b) for name, a, b in zip(one._fields, one, other, strict=True)
                 if name not in _FREE]
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = [(f"[{i}]", a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f".{key}", value, other[key]) for key, value in one.items()]
    else:
        return None if one == other else where.removeprefix(".")
    return next((found for key, a, b in pairs if (found := difference(a, b, where + key)) is not None), None)


class Registry:
    """What several packs hold together."""

    def __init__(self, packs: Sequence[Pack], source: str, rows: Iterable[TunedRow] = ()) -> None:
        self.packs = tuple(packs)
        self.source = source
        self.tuned: dict[str, list[TunedRow]] = {}  # what this machine has measured, by kernel
        for row in rows:
            self.tuned.setdefault(row.kernel, []).append(row)
        self.families: dict[str, Family] = {}
        self.composites: dict[str, Composite] = {}
        self._candidates: dict[str, dict[tuple[str, str], Candidate]] = {}
        for pack in self.packs:
            for family in pack.manifest.families.values():
                self._add_family(pack, family)
            for composite in pack.manifest.composites.values():
                self._add_composite(pack, composite)
            for artifact in pack.manifest.artifacts:
                self._add_artifact(Candidate(pack, artifact))
        for name in self.families.keys() & self.composites.keys():
            raise DuplicateError(f"{name} is one kernel in a pack and a composite in another", name=name)

    def _add_family(self, pack: Pack, family: Family) -> None:
        known = self.families.setdefault(family.name, family)
        self._check_same(family.name, known, family, pack)
        new_rows = tuple(row for row in family.measured if row not in known.measured)
        self.families[family.name] = known._replace(measured=known.measured + new_rows)
        self._candidates.setdefault(family.name, {})

    def _add_composite(self, pack: Pack, composite: Composite) -> None:
        name = composite.signature.name
        self._check_same(name, self.composites.setdefault(name, composite), composite, pack)

    def _check_same(self, name: str, known: Any, entry: Any, pack: Pack) -> None:
        key = difference(known, entry)
        if key is not None:
            other = next(p.directory for p in self.packs if name in p.manifest.families | p.manifest.composites)
            raise DuplicateError(f"{name} is defined differently in pack {pack.directory} and in {other}: {key} "
                                 "differs", pack=pack.directory, name=name, key=key)

    def _add_artifact(self, candidate: Candidate) -> None:
        artifact = candidate.artifact
        known = self._candidates[artifact.family].setdefault((artifact.variant, artifact.arch), candidate)
        key = difference(known.artifact, artifact)
        if key is not None:
            raise DuplicateError(
                f"{artifact.family}/{artifact.variant} for sm_{artifact.arch} is another kernel in pack "
                f"{candidate.pack.directory} than in {known.pack.directory}: {key} differs",
                pack=candidate.pack.directory, file=artifact.binary.file, key=key)

    def family(self, name: str) -> Family:
        """The family of this name; ``UnknownKernelError`` names the closest ones."""
        found = self.families.get(name) if isinstance(name, str) else None
        if found is None:
            known = sorted([*self.families, *self.composites])
            closest = closest_names(str(name), known)
            hint = f"; did you mean {' or '.join(closest)}?" if closest else ""
            raise UnknownKernelError(f"no kernel {name!r}; known are {', '.join(known) or 'none'}{hint}",
                                     name=name, known=known, closest=closest)
        return found

    def candidates(self, name: str) -> list[Candidate]:
        return list(self._candidates[name].values())


def closest_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that look like ``name``."""
    from difflib import get_close_matches  # only needed for a message

    return get_close_matches(name, list(known), n=3, cutoff=0.5)


# Files


def read_file(directory: str, file: str, limit: int) -> bytes:
    """At most ``limit + 1`` bytes of a regular file that lies, links resolved, inside ``directory``."""
    path = os.path.join(directory, *file.split("/"))
    root = os.path.realpath(directory)
    if os.path.commonpath([root, os.path.realpath(path)]) != root:
        raise PackPathError(f"{file} leads out of pack {directory}", pack=directory, file=file)
    try:
        with open(path, "rb", opener=without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise PackPathError(f"{file} in pack {directory} is no regular file", pack=directory, file=file)
            return stream.read(limit + 1)
    except IsADirectoryError:
        raise PackPathError(f"{file} in pack {directory} is no regular file", pack=directory, file=file) from None
    except FileNotFoundError:
        raise MissingFileError(f"{file} is missing in pack {directory}", pack=directory, file=file) from None
    except OSError as error:
        raise PackError(f"{file} in pack {directory} cannot be read: {error}", pack=directory, file=file) from error


def open_pack(directory: str, trust: Trust | None = None) -> Pack:
    """Read the manifest of one pack, check who signed it, then what it says."""
    data = read_file(directory, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    signed_by = _signers(directory, data, pinned(asked(trust)))
    return _parsed(directory, data, signed_by)


def read_pack(directory: str) -> tuple[Pack, bytes]:
    """A pack, whoever signed it, and the bytes of its manifest."""
    data = read_file(directory, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    return _parsed(directory, data), data


def _parsed(directory: str, data: bytes, signed_by: tuple[str, ...] = ()) -> Pack:
    digest = hashlib.sha256(data).hexdigest()
    sys.audit(AUDIT_EVENT, os.path.join(directory, MANIFEST_NAME), digest)
    try:
        with without_collections():
            return Pack(directory, parse(data), digest, signed_by)
    except PackError as error:
        raise type(error)(f"pack {directory}: {error}", **{**error.facts, "pack": directory}) from None


def read_signature(directory: str) -> bytes | None:
    """The bytes of a pack's signature file, None where it has none."""
    try:
        return read_file(directory, SIGNATURE_NAME, MAX_SIGNATURE_BYTES)
    except MissingFileError:
        return None


def _signers(directory: str, manifest: bytes, trusted: Pinned) -> tuple[str, ...]:
    """Ids of the pinned keys that signed a manifest; what is wrong with its signature raises, or warns by policy."""
    if trusted.policy == "off":
        return ()
    try:
        signature = read_signature(directory)
        if signature is None:
            raise UnsignedError(f"pack {directory} is not signed: {SIGNATURE_NAME} is missing", pack=directory,
                                file=SIGNATURE_NAME)
        return signers(manifest, signature, trusted.keys, directory)
    except PackError as error:
        if trusted.policy == "require":
            raise
        warnings.warn(f"{type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
        return ()


def pack_directories(directory: str) -> list[str]:
    """``directory`` if it is a pack, else the packs directly in it."""
    if os.path.lexists(os.path.join(directory, MANIFEST_NAME)):
        return [directory]
    try:
        entries = sorted(entry.path for entry in os.scandir(directory) if entry.is_dir())
    except OSError:
        return []
    return [path for path in entries if os.path.lexists(os.path.join(path, MANIFEST_NAME))]


# Resolution


def _installed() -> list[str]:
    """Directories named by entry points of installed distributions.

    Reads ``entry_points.txt`` files itself: ``importlib.metadata`` alone would cost most of the start-up budget. What
    is wrong with a distribution that names no pack is none of our business.
    """
    modules: dict[str, str] = {}
    for root in dict.fromkeys(entry for entry in sys.path if isinstance(entry, str)):
        try:
            found = [e.path for e in os.scandir(root or ".") if e.name.endswith((".dist-info", ".egg-info"))]
        except OSError:
            continue
        for path in sorted(found):
            for module in _entry_points(os.path.join(path, "entry_points.txt")):
                modules.setdefault(module, path)
    return [_module_directory(module, path) for module, path in modules.items()]


def _entry_points(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = [line.strip() for line in stream]
    except OSError:
        return []
    modules, group = [], ""
    for line in lines:
        if line.startswith("["):
            group = line.strip("[]").strip()
        elif group in ENTRY_POINT_GROUPS and "=" in line and not line.startswith(("#", ";")):
            # The package: neither an attribute of it nor extras mean anything here.
            modules.append(line.split("=", 1)[1].split(":")[0].split("[")[0].strip())
    return modules


def _module_directory(module: str, distribution: str) -> str:
    from importlib.util import find_spec  # only where a distribution brings a pack

    facts = {"tried": [module], "distribution": distribution}
    where = f"entry point of {distribution}: {module!r}"
    try:
        spec = find_spec(module)
    except Exception as error:  # whatever the parent of a package raises where it is imported
        raise PackNotFoundError(f"{where} cannot be found: {type(error).__name__}: {error}", **facts) from error
    locations = list(spec.submodule_search_locations or []) if spec else []
    if len(locations) != 1:
        raise PackNotFoundError(f"{where} is no package with one directory", **facts)
    return os.path.abspath(locations[0])


def _named(directories: Iterable[str], source: str) -> list[str]:
    found: list[str] = []
    for directory in directories:
        packs = pack_directories(directory)
        if not packs:
            raise PackNotFoundError(f"{source} names {directory!r}, which holds no {MANIFEST_NAME}"
                                    + _advice(), tried=[directory])
        found.extend(packs)
    return found


def resolve(packs: Sequence[str] | None = None) -> tuple[list[str], str]:
    """Directories of the packs to use, and the source that named them."""
    if packs is not None:
        return _named(packs, "the argument packs"), "the argument packs"
    variable = os.environ.get(ENVIRONMENT_VARIABLE)
    if variable:
        directories = [os.path.abspath(entry) for entry in variable.split(os.pathsep) if entry]
        if not directories:
            raise PackNotFoundError(f"{ENVIRONMENT_VARIABLE} is {variable!r} and names no directory", tried=[])
        return _named(directories, ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE
    installed = _installed()
    # A copy that no distribution brings launches its own kernels, whatever is installed beside it.
    if OWN_PACK is not None and OWN_PACK not in installed and pack_directories(OWN_PACK):
        return [OWN_PACK], "this package"
    if installed:
        return _named(installed, "an installed distribution"), "installed distributions"
    tried = [ENVIRONMENT_VARIABLE, f"entry points {ENTRY_POINT_GROUPS[0]}"]
    nowhere = f"{ENVIRONMENT_VARIABLE} is not set, no installed distribution brings one"
    if CHECKOUT_ARTIFACTS is not None:
        found = pack_directories(CHECKOUT_ARTIFACTS)
        if found:
            return found, "the checkout"
        tried, nowhere = [*tried, CHECKOUT_ARTIFACTS], f"{nowhere}, {CHECKOUT_ARTIFACTS} holds none"
    raise PackNotFoundError(f"no pack: {nowhere}{_advice()}", tried=tried)


def _advice() -> str:
    """What to do about it, where that can be done."""
    return "" if CHECKOUT_ARTIFACTS is None else "; `python build.py --arch ...` makes a pack"


def directories_given(packs: Any) -> tuple[str, ...] | None:
    """The argument ``packs``, one directory or several, as absolute paths; None where the default packs are asked for.

    The current directory is that of the call: the same words may name another pack later.
    """
    if packs is None:
        return None
    try:
        given = tuple(map(os.fsdecode, [packs] if isinstance(packs, (str, bytes, os.PathLike)) else packs))
    except TypeError:
        raise PackNotFoundError(f"packs: {packs!r} is no directory and no list of directories", tried=[]) from None
    if not given:
        raise PackNotFoundError(f"packs: {packs!r} names no directory; None stands for the default packs", tried=[])
    return tuple([path if os.path.isabs(path) else os.path.abspath(path) for path in given])


# What was read under one policy and its keys is never served under others.
_registries: dict[tuple[tuple[str, ...] | None, Trust], Registry] = {}


def registry(packs: Sequence[str] | None = None, trust: Trust | None = None) -> Registry:
    """The registry of the given packs, or of the default ones; for each ``trust`` they are read once a process."""
    key, opened = (directories_given(packs), asked(trust)), _registries
    found = opened.get(key)
    if found is None:
        found = opened[key] = load(*key, from_environment())
    return found


def load(packs: Sequence[str] | None, trust: Trust | None, rows: Iterable[TunedRow]) -> Registry:
    """Packs read anew, beside what was measured here."""
    directories, source = resolve(packs)
    return Registry([open_pack(directory, trust) for directory in dict.fromkeys(directories)], source, rows)


def forget() -> None:
    """Find and read packs again where they are asked for next."""
    global _registries
    _registries = {}  # a new one: what another thread is reading now goes to the old one


class Verified(NamedTuple):
    """Outcome for one file: ``error`` is None where its bytes are those of the manifest."""

    pack: str
    file: str
    size: int
    error: LoaderError | None


def verify(packs: Sequence[str] | None = None, trust: Trust | None = None) -> list[Verified]:
    """Read the packs in use anew, and compare every file with its manifest; a manifest that is wrong raises.

    So does a signature that is not what ``trust`` asks for.
    """
    outcomes = []
    for used in registry(packs, trust).packs:
        pack = open_pack(used.directory, trust)
        if pack.digest != used.digest:
            raise IntegrityError(f"{MANIFEST_NAME} in pack {pack.directory} is not what this process has read before",
                                 pack=pack.directory, file=MANIFEST_NAME)
        outcomes += verify_files(pack)
    return outcomes


def verify_files(pack: Pack) -> list[Verified]:
    """Compare every file of a pack with its manifest."""
    outcomes = []
    files = {stored.file: stored for a in pack.manifest.artifacts for stored in (a.binary, a.ptx)}
    for stored in files.values():
        error = None
        try:
            pack.read(stored)
        except PackError as failure:
            error = failure
        outcomes.append(Verified(pack.directory, stored.file, stored.size, error))
    return outcomes
