"""Packs with files that take several pieces to send, and what has to hold of a store whatever happened to it."""

import hashlib
import os
import random
import signal
import subprocess
import sys

import sample_pack

import loader

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))

# Pulls in a process that ends by SIGKILL right before the event of the given number: what Python tells its auditors of
# files and sockets, and every piece of a blob. Number 0 ends nothing; the process prints how many events there were.
PULL = f"""
import os, signal, sys
sys.path[:0] = [{ROOT!r}, {HERE!r}]
last, name, store, pack = int(sys.argv[1]), *sys.argv[2:]
from loader import oci, oci_client
from loader.oci_client import Client
import memory_registry
events = 0
def count(*_):
    global events
    events += 1
    if events == last:
        os.kill(os.getpid(), signal.SIGKILL)
class Counted(Client):
    def _chunks(self, response):
        for piece in super()._chunks(response):
            count()
            yield piece
if pack:
    client = memory_registry.MemoryRegistry(chunk=count)
    oci.connect = lambda *_: client
    oci.push(pack, name)
else:
    oci_client.CHUNK_BYTES = memory_registry.CHUNK_BYTES
    oci_client.Client = Counted
KINDS = ("open", "os.", "shutil.", "fcntl.", "socket.")
sys.addaudithook(lambda event, _: count() if event.startswith(KINDS) else None)
oci.pull(name, store, plain_http=True)
print(events)
"""


def write(directory, rng):
    """A valid pack whose cubins have some pieces of random bytes; its files by name."""
    manifest, files = sample_pack.build(["90a", "120a"])
    for entry in manifest["artifacts"]:
        files[entry["file"]] += rng.bytes(50_000)
        entry.update(sample_pack.stored(entry["file"], files[entry["file"]]))
    sample_pack.write(directory, manifest, files)
    return contents(directory)


def contents(directory):
    """Every file below a directory, by its path."""
    return {path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*")) if path.is_file()}


def check_consistent(store):
    """Every blob is what its name says, and every pack that can be seen is whole."""
    for path in (store / "blobs" / "sha256").glob("*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    for pack in (store / "packs").glob("*"):
        assert hashlib.sha256((pack / "manifest.json").read_bytes()).hexdigest() == pack.name
        assert all(outcome.error is None for outcome in loader.verify(packs=str(pack)))


def check_finished(store, pulled, files):
    """The pack is there, and nothing that was on the way to it."""
    check_consistent(store)
    assert pulled.parent == store / "packs" and contents(pulled) == files
    assert not list((store / "partial").iterdir()) and not list((store / "staging").iterdir())


def pull_in_process(last, name, store, pack=""):
    """Run ``PULL``; the number of its events, or None where it was killed."""
    done = subprocess.run([sys.executable, "-c", PULL, str(last), name, str(store), str(pack)], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return int(done.stdout) if done.returncode == 0 else None


def check_kills(tmp_path, seed, name, pull, files, pack=""):
    """Killed at 20 random points, a store stays consistent, and the next pull finishes it. ``pull(store)`` is that."""
    events = pull_in_process(0, name, tmp_path / "whole", pack)
    points = random.Random(seed).sample(range(1, events + 1), 20)
    print(f"points {points} of {events}, seed {seed}")
    killed = 0
    for point in points:
        store = tmp_path / str(point)
        killed += pull_in_process(point, name, store, pack) is None
        check_consistent(store)
        check_finished(store, pull(store), files)
    assert killed >= 15  # threads meet in another order every time, so the last events may not come
