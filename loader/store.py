"""Packs on disk by content: what a pull writes, so that a kill at any moment leaves nothing half visible.

    blobs/sha256/<sha256>               a file of packs, complete and checked before it has this name
    packs/<sha256 of manifest.json>/    a pack: hard links to blobs, put in place by one rename
    partial/<sha256>                    as much of a blob as has come
    staging/                            a pack before its rename
    lock                                held by the one process that writes

Nothing here knows a registry: bytes come from a function that the caller gives.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from .errors import IntegrityError, LoaderError, StoreError

ENVIRONMENT_VARIABLE = "LOADER_STORE"
CHUNK_BYTES = 1 << 20
# What a file system says that has no hard links, none between these two places, or none left for this file.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class Blob(NamedTuple):
    """Content: its sha256 (hex) and its bytes."""

    sha256: str
    size: int

    @property
    def digest(self) -> str:
        """As registries write it."""
        return f"sha256:{self.sha256}"


# Bytes of a blob from an offset on: the offset at which they begin, 0 where it cannot be chosen, and the bytes.
Read = Callable[[Blob, int], tuple[int, Iterable[bytes]]]


def default_directory() -> str:
    """``LOADER_STORE``, else ``block_scaled`` in the user's cache."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return os.path.abspath(named)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the specification of that variable has a relative one ignored
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "block_scaled")


class Store:
    """The store in ``directory``, which need not exist. ``add`` and ``publish`` are for who holds ``locked``."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        self._blobs = os.path.join(self.directory, "blobs", "sha256")
        self._packs = os.path.join(self.directory, "packs")
        self._partial = os.path.join(self.directory, "partial")
        self._staging = os.path.join(self.directory, "staging")

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the store for this process alone; ``waiting`` is called once where another one holds it."""
        path = os.path.join(self.directory, "lock")
        with _writing(path):
            for folder in (self._blobs, self._packs, self._partial, self._staging):
                os.makedirs(folder, exist_ok=True)
            handle = open(path, "wb")
        with handle:
            with _writing(path):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def clean(self, wanted: Container[str]) -> None:
        """Remove what a killed pull left, but the parts of blobs whose sha256 is ``wanted``."""
        with _writing(self.directory):
            for entry in os.scandir(self._staging):
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
            for entry in os.scandir(self._partial):
                if entry.name not in wanted:
                    os.unlink(entry.path)

    def add(self, blob: Blob, read: Read) -> str:
        """The path of a blob; one that is not there, or damaged, is read first. A part that is there is not read again.

        ``IntegrityError`` where what is read is another content.
        """
        path, partial = os.path.join(self._blobs, blob.sha256), os.path.join(self._partial, blob.sha256)
        with _writing(partial):
            if _holds(path, blob):
                return path
            start = min(os.path.getsize(partial), blob.size) if os.path.exists(partial) else 0
            got = _receive(partial, blob, start, read)
            if got != blob and start:  # the part was not what it seemed: a crash may leave anything in it
                got = _receive(partial, blob, 0, read)
            if got != blob:
                os.unlink(partial)
                raise IntegrityError(f"{blob.digest} of {blob.size} bytes came as {got.digest} of {got.size}"
                                     f"{' or more' if got.size > blob.size else ''}", expected=blob, got=got)
            os.replace(partial, path)
            os.chmod(path, 0o444)  # packs share it: whoever edits one would edit all
        return path

    def publish(self, name: str, files: Mapping[str, Blob]) -> str:
        """The directory of a pack of blobs that were added; ``files`` are relative POSIX paths that were checked."""
        target = os.path.join(self._packs, name)
        with _writing(target):
            _sync(self._blobs)
            if os.path.isdir(target):
                self._mend(target, files)
            else:
                stage = os.path.join(self._staging, name)
                os.mkdir(stage)
                for file, blob in files.items():
                    self._place(blob, _inside(stage, file))
                for folder, _, _ in os.walk(stage):
                    _sync(folder)
                os.rename(stage, target)
            _sync(self._packs)
        return target

    def _mend(self, target: str, files: Mapping[str, Blob]) -> None:
        """Bring, one by one, what is missing or damaged: a signature may have come later, or a disk have failed."""
        for file, blob in files.items():
            path = _inside(target, file)
            if not _holds(path, blob):
                placed = os.path.join(self._staging, blob.sha256)
                self._place(blob, placed)
                os.replace(placed, path)
                _sync(os.path.dirname(path))

    def _place(self, blob: Blob, path: str) -> None:
        source = os.path.join(self._blobs, blob.sha256)
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(source, path)
            os.chmod(path, 0o444)
            _sync(path)


def _inside(directory: str, file: str) -> str:
    """The path of a file of a pack, whose folder is made."""
    path = os.path.join(directory, *file.split("/"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _holds(path: str, blob: Blob) -> bool:
    """Whether the file is there with this content."""
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size != blob.size:
                return False
            return _hash(stream, blob.size).hexdigest() == blob.sha256
    except FileNotFoundError:
        return False


def _hash(stream: BinaryIO, size: int) -> hashlib._Hash:
    """sha256 of the next ``size`` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (chunk := stream.read(min(size, CHUNK_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
    return digest


def _receive(partial: str, blob: Blob, start: int, read: Read) -> Blob:
    """Write the rest of a blob behind the ``start`` bytes that are there; what the whole then is."""
    offset, chunks = read(blob, start) if start < blob.size else (start, ())
    with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as stream:
        stream.truncate(offset)
        digest, size = _hash(stream, offset), offset
        for chunk in chunks:
            size += len(chunk)
            if size > blob.size:  # whatever comes after this is not wanted either
                break
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return Blob(digest.hexdigest(), size)


def _sync(path: str) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """What the system refuses becomes a ``StoreError`` that names the file."""
    try:
        yield
    except LoaderError:  # some are errors of the system, too, and have their own words
        raise
    except OSError as error:
        file = error.filename or path
        raise StoreError(f"store: {file}: {error.strerror or error}", file=file) from error
