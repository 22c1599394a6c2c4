"""A repository in memory that does what ``loader.oci_client.Client`` does, and remembers what was asked of it."""

import hashlib

import loader

CHUNK_BYTES = 16 << 10


class MemoryRegistry:
    """``ranges``: whether it gives the rest of a blob. ``chunk`` is called before each piece of one that it gives.
    ``breaks``: whether it ends before the second piece."""

    def __init__(self, ranges=True, chunk=lambda: None):
        self.blobs, self.document, self.ranges, self.chunk = {}, None, ranges, chunk
        self.breaks = False
        self.uploads, self.reads = [], []  # digests; digests and offsets

    def manifest(self, media_type):
        if self.document is None:
            raise loader.AbsentError("no such tag")
        return self.document

    def put_manifest(self, media_type, data):
        self.document = data

    def has(self, blob):
        return blob.sha256 in self.blobs

    def upload(self, blob, data):
        assert hashlib.sha256(data).hexdigest() == blob.sha256
        self.uploads.append(blob.sha256)
        self.blobs[blob.sha256] = data

    def read(self, blob, start):
        self.reads.append((blob.sha256, start))
        offset = start if self.ranges else 0
        return offset, self._pieces(self.blobs[blob.sha256][offset:])

    def _pieces(self, data):
        for begin in range(0, len(data), CHUNK_BYTES):
            self.chunk()
            if self.breaks and begin:
                raise loader.UnreachableError("gone")
            yield data[begin:begin + CHUNK_BYTES]
