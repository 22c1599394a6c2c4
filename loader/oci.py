"""Packs in OCI registries: ``push`` and ``pull``. Nothing else of the loader opens a connection, nor imports this.

A pack is an artifact of type ``ARTIFACT_TYPE``. Each of its files is a layer whose title is the file's path, the pack's
manifest and what lies beside it under ``manifest.json.*`` among them; there is no config. So a registry, and the store
of a machine, has what two packs have in common once, and two pushes of one pack give one digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from . import reference, registry
from .errors import DuplicateError, IntegrityError, MissingFileError, MissingPackageError, ReferenceFormatError
from .fields import Fields, decode, unique, wrong
from .manifest import MANIFEST_NAME, MAX_FILE_BYTES, MAX_MANIFEST_BYTES, Manifest, StoredFile
from .reader import parse
from .store import Blob, Store, default_directory

if TYPE_CHECKING:
    from .oci_client import Client

ARTIFACT_TYPE = "application/vnd.block-scaled.pack.v1"
FILE_TYPE = "application/vnd.block-scaled.file.v1"
TITLE = "org.opencontainers.image.title"
_EMPTY = b"{}"  # the config that the specification has for artifacts without one
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# Files of a pack that its manifest cannot name: they are about it.
_BESIDE = re.compile(re.escape(MANIFEST_NAME) + r"\.[A-Za-z0-9_.-]+")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
WORKERS = 8  # requests at once

Item = TypeVar("Item")
Say = Callable[[str], None]


def push(directory: str, name: str, *, plain_http: bool = False, say: Say = lambda text: None) -> str:
    """Put a pack into a registry under ``registry/repository:tag``, and return ``registry/repository@sha256:...``.

    Every file is compared with the pack's manifest before; blobs that the registry has are not sent. ``say`` hears how
    far it is. Raises ``PackError`` and ``TransferError``.
    """
    target = reference.parse(name)
    if target.tag is None or target.sha256 is not None:
        raise ReferenceFormatError(f"{name!r}: a pack is pushed under a tag; its digest follows from its content",
                                   reference=name)
    pack, manifest = registry.read_pack(directory)
    beside = {file: registry.read_file(directory, file, MAX_FILE_BYTES)
              for file in sorted(os.listdir(directory)) if _BESIDE.fullmatch(file)}
    contents = {MANIFEST_NAME: manifest, **beside}
    files = {**{file: _blob(data) for file, data in contents.items()}, **_named(pack.manifest)}
    client = connect(target, plain_http)

    def send(file: str) -> None:
        blob = files[file]
        data = contents[file] if file in contents else pack.read(StoredFile(file, *blob))
        if not client.has(blob):
            client.upload(blob, data)

    config = _blob(_EMPTY)
    if not client.has(config):
        client.upload(config, _EMPTY)
    once = {blob.sha256: file for file, blob in files.items()}
    _each(send, list(once.values()), "pushed", [files[file].size for file in once.values()], say)
    document = _document(config, files)
    client.put_manifest(_MANIFEST_TYPE, document)
    return str(target._replace(tag=None, sha256=_blob(document).sha256))


def pull(name: str, store: str | None = None, *, plain_http: bool = False, say: Say = lambda text: None) -> str:
    """Bring a pack from a registry into a store, and return its directory, for ``LOADER_ARTIFACTS`` or ``packs``.

    ``store``: None takes ``LOADER_STORE``, else the user's cache. What is there already is checked and not read again;
    a second pull at the same time waits. Every byte has the digest of the registry's manifest and of the pack's own
    before anything of the pack can be seen. Raises ``PackError`` and ``TransferError``.
    """
    source = reference.parse(name)
    client = connect(source, plain_http)
    files = _layers(client.manifest(_MANIFEST_TYPE), str(source))
    place = Store(default_directory() if store is None else store)
    with place.locked(lambda: say("waiting for another pull into this store")):
        place.clean({blob.sha256 for blob in files.values()})
        with open(place.add(files[MANIFEST_NAME], client.read), "rb") as stream:
            _compare(files, parse(stream.read()), str(source))
        blobs = list(dict.fromkeys(files.values()))
        _each(lambda blob: place.add(blob, client.read), blobs, "pulled", [blob.size for blob in blobs], say)
        return place.publish(files[MANIFEST_NAME].sha256, files)


def connect(target: reference.Reference, plain_http: bool) -> Client:
    """A client for the repository; connects at its first request."""
    try:
        from .oci_client import Client
    except ImportError as error:
        raise MissingPackageError(f"push and pull need the package {error.name}, which cannot be imported ({error}); "
                                  "the extra `oci` brings it: pip install 'block-scaled[oci]'", missing=error.name,
                                  extra="oci") from error
    return Client(target, plain_http, WORKERS)


def _blob(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def _named(manifest: Manifest) -> dict[str, Blob]:
    """The files that a pack's manifest names."""
    return {stored.file: Blob(stored.sha256, stored.size)
            for artifact in manifest.artifacts for stored in (artifact.binary, artifact.ptx)}


def _document(config: Blob, files: Mapping[str, Blob]) -> bytes:
    """The registry's manifest of a pack: equal bytes for equal packs."""
    def descriptor(media_type: str, blob: Blob) -> dict[str, object]:
        return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}

    layers = [descriptor(FILE_TYPE, files[file]) | {"annotations": {TITLE: file}} for file in sorted(files)]
    document = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
                "config": descriptor(_EMPTY_TYPE, config), "layers": layers}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _layers(data: bytes, source: str) -> dict[str, Blob]:
    """The files that a registry's manifest lists, the pack's manifest among them."""
    fields = Fields(decode(data, source, MAX_MANIFEST_BYTES), source)
    kind = fields.take("artifactType") if fields.has("artifactType") else None
    if kind != ARTIFACT_TYPE:
        raise wrong(f"{source}.artifactType", ARTIFACT_TYPE, kind)
    titled = []
    for layer in fields.objects("layers"):
        title = layer.object("annotations").text(TITLE)
        limit = MAX_MANIFEST_BYTES if title == MANIFEST_NAME else MAX_FILE_BYTES
        titled.append((title, Blob(layer.text("digest", _SHA256).removeprefix("sha256:"),
                                   layer.integer("size", 0, limit))))
    unique([title for title, _ in titled], f"{source}.layers")
    files = dict(titled)
    if MANIFEST_NAME not in files:
        raise MissingFileError(f"{source} has no {MANIFEST_NAME}", file=MANIFEST_NAME)
    sizes: dict[str, int] = {}
    for title, blob in titled:
        if sizes.setdefault(blob.sha256, blob.size) != blob.size:
            raise DuplicateError(f"{source}: {title} has the digest of a layer of another size", file=title)
    return files


def _compare(files: Mapping[str, Blob], manifest: Manifest, source: str) -> None:
    """The registry lists what the pack's manifest names, whose paths have been checked, and what may lie beside it."""
    named = _named(manifest)
    for file, blob in named.items():
        if file not in files:
            raise MissingFileError(f"{file}, which the pack's manifest names, is no layer of {source}", file=file)
        if files[file] != blob:
            raise IntegrityError(f"{file} is {files[file].digest} of {files[file].size} bytes in {source}, "
                                 f"the pack's manifest says {blob.digest} of {blob.size}",
                                 file=file, expected=blob, got=files[file])
    for file in files.keys() - named.keys() - {MANIFEST_NAME}:
        if not _BESIDE.fullmatch(file):
            raise IntegrityError(f"{source} has a layer {file!r}, which the pack's manifest does not name",
                                 file=file, expected=None, got=files[file])


def _each(work: Callable[[Item], object], items: Iterable[Item], verb: str, sizes: list[int], say: Say) -> None:
    """Do ``work`` for all items, several at once; the first error ends it."""
    done, total = 0, sum(sizes)
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future, size in zip(futures, sizes, strict=True):
                future.result()
                done += size
                say(f"{verb} {done / 1e6:.1f} of {total / 1e6:.1f} MB")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
