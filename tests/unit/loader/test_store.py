"""The store of pulled packs, and what push and pull check, with a registry in memory."""

import errno
import json
import os
import sys
import threading
from pathlib import Path

import pulled_pack
import pytest
import sample_pack
from memory_registry import CHUNK_BYTES, MemoryRegistry

import loader
from loader import oci, reference, store
from loader.__main__ import main
from loader.manifest import MAX_MANIFEST_BYTES

NAME = "registry.example/kernels/fp4:v1"


@pytest.fixture
def memory(monkeypatch):
    """The registry in memory, which stands for every one."""
    memory = MemoryRegistry()
    monkeypatch.setattr(oci, "connect", lambda target, plain_http: memory)
    return memory


@pytest.fixture
def files(memory, tmp_path, rng):
    """Files of a pack that was pushed."""
    files = pulled_pack.write(tmp_path / "pack", rng)
    oci.push(str(tmp_path / "pack"), NAME)
    return files


def pull(place):
    return Path(oci.pull(NAME, str(place)))


def edit(memory, change):
    """Change the registry's manifest: ``change(document, layers by title)``."""
    document = json.loads(memory.document)
    layers = {layer["annotations"][oci.TITLE]: layer for layer in document["layers"]}
    change(document, layers)
    memory.document = json.dumps(document | {"layers": list(layers.values())}).encode()


def test_what_was_pushed_is_pulled(cuda, memory, files, tmp_path):
    """File by file, and the loader launches from it."""
    pulled = pull(tmp_path / "store")
    pulled_pack.check_finished(tmp_path / "store", pulled, files)
    assert len(memory.blobs) == len(set(files.values())) + 1  # and the empty config
    from sample_call import arguments

    loader.launch("scale_rows", packs=str(pulled), **arguments())
    assert len(cuda.launches) == 1


def test_equal_packs_have_one_digest(memory, files, tmp_path):
    """Push returns a reference by digest, the same for another copy of the pack, and sends nothing twice."""
    sample_pack.write(tmp_path / "copy", files["manifest.json"], files)
    uploads = len(memory.uploads)
    first = oci.push(str(tmp_path / "pack"), NAME)
    assert first == oci.push(str(tmp_path / "copy"), "registry.example/kernels/fp4:other")
    assert reference.parse(first).sha256 and len(memory.uploads) == uploads


def test_only_what_the_store_lacks_is_read(memory, files, tmp_path):
    """A second pull reads nothing; a pack with a file more reads two, that one and the manifest."""
    pull(tmp_path / "store")
    assert len(memory.reads) == len(set(files.values()))
    memory.reads.clear()
    pull(tmp_path / "store")
    assert memory.reads == []
    (tmp_path / "pack" / "manifest.json.sig").write_bytes(b"signature")
    manifest = json.loads(files["manifest.json"])
    entry = manifest["artifacts"][0]
    (tmp_path / "pack" / entry["file"]).write_bytes(b"another cubin")
    entry.update(sample_pack.stored(entry["file"], b"another cubin"))
    (tmp_path / "pack" / "manifest.json").write_text(json.dumps(manifest))
    oci.push(str(tmp_path / "pack"), NAME)
    pulled = pull(tmp_path / "store")
    assert len(memory.reads) == 3
    assert len(list((tmp_path / "store" / "packs").iterdir())) == 2
    pulled_pack.check_finished(tmp_path / "store", pulled, pulled_pack.contents(tmp_path / "pack"))


def test_packs_share_their_blobs(memory, files, tmp_path):
    """Files of a pack are the blobs, not copies, and cannot be edited by accident."""
    pulled = pull(tmp_path / "store")
    for path in (path for path in pulled.rglob("*") if path.is_file()):
        assert path.stat().st_nlink >= 2 and path.stat().st_mode & 0o777 == 0o444


def test_without_hard_links_files_are_copied(memory, files, tmp_path, monkeypatch):
    """On a file system that has none."""
    def refuse(*arguments):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(store.os, "link", refuse)
    pulled_pack.check_finished(tmp_path / "store", pull(tmp_path / "store"), files)


def test_what_lies_beside_the_manifest_travels(memory, files, tmp_path):
    """A signature that was added later comes to the pack that is there, and a new one replaces it; others do not."""
    first = pull(tmp_path / "store")
    for signature in (b"first", b"second"):
        (tmp_path / "pack" / "manifest.json.sig").write_bytes(signature)
        (tmp_path / "pack" / "notes.txt").write_bytes(b"mine")
        oci.push(str(tmp_path / "pack"), NAME)
        assert pull(tmp_path / "store") == first
        pulled_pack.check_finished(tmp_path / "store", first, files | {"manifest.json.sig": signature})


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on_where_it_ended(memory, files, tmp_path, ranges):
    """What came is kept and asked for no more, where the registry gives ranges; else the blob begins again."""
    memory.ranges, memory.breaks = ranges, True
    with pytest.raises(loader.UnreachableError):
        pull(tmp_path / "store")
    pulled_pack.check_consistent(tmp_path / "store")
    assert not list((tmp_path / "store" / "packs").iterdir())
    parts = {path.name: path.stat().st_size for path in (tmp_path / "store" / "partial").iterdir()}
    assert parts and set(parts.values()) == {CHUNK_BYTES}
    memory.reads.clear()
    memory.breaks = False
    pulled_pack.check_finished(tmp_path / "store", pull(tmp_path / "store"), files)
    assert {name: start for name, start in memory.reads if name in parts} == parts


def test_a_damaged_part_is_not_built_upon(memory, files, tmp_path):
    """A crash may leave anything in it, also a length that is right: the blob is read from its beginning."""
    place = tmp_path / "store" / "partial"
    place.mkdir(parents=True)
    sizes = {sha256: len(data) for sha256, data in memory.blobs.items() if len(data) > CHUNK_BYTES}
    for (sha256, size), length in zip(sizes.items(), (100, 1, 10**6, None), strict=False):
        (place / sha256).write_bytes(bytes(length or size))
    pulled_pack.check_finished(tmp_path / "store", pull(tmp_path / "store"), files)


def test_leftovers_go(memory, files, tmp_path):
    """Of packs that nobody pulls any more, whatever they are."""
    for path in ("partial/0123", "staging/pack/family/kernel.cubin", "staging/file"):
        (tmp_path / "store" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / path).write_bytes(b"left")
    pulled_pack.check_finished(tmp_path / "store", pull(tmp_path / "store"), files)


def test_a_damaged_store_is_mended(memory, files, tmp_path):
    """Flipped bytes of a pack, which are the blob's too, a missing blob and a missing file: read again, these alone."""
    pulled = pull(tmp_path / "store")
    large = [path for path in pulled.rglob("*.cubin")]
    large[0].chmod(0o644)
    large[0].write_bytes(bytes(large[0].stat().st_size))
    large[1].unlink()
    blob = next(path for path in (tmp_path / "store" / "blobs" / "sha256").iterdir() if path.samefile(large[2]))
    blob.unlink()
    memory.reads.clear()
    pulled_pack.check_finished(tmp_path / "store", pull(tmp_path / "store"), files)
    assert len(memory.reads) == 2


def test_a_second_pull_waits_and_finds_the_work_done(memory, files, tmp_path):
    """Two at once read every blob once, and the waiting one says that it waits."""
    heard, results, waits = [], [], threading.Event()

    def say(text):
        heard.append(text)
        if "waiting" in text:
            waits.set()

    def first_piece():
        memory.chunk = lambda: None
        second.start()
        assert waits.wait(30)

    second = threading.Thread(target=lambda: results.append(oci.pull(NAME, str(tmp_path / "store"), say=say)))
    memory.chunk = first_piece
    results.append(str(pull(tmp_path / "store")))
    second.join(30)
    assert results == [results[0]] * 2 and heard[0] == "waiting for another pull into this store"
    assert len(memory.reads) == len(set(files.values()))


def test_killed_at_random_points(tmp_path, rng, memory, seed):
    """SIGKILL at 20 of the places where a pull opens, links, renames or receives something."""
    files = pulled_pack.write(tmp_path / "pack", rng)
    oci.push(str(tmp_path / "pack"), NAME)
    pulled_pack.check_kills(tmp_path, seed, NAME, pull, files, tmp_path / "pack")


@pytest.mark.parametrize("call", ["fsync", "replace", "rename", "link"])
def test_a_full_disk_leaves_nothing_half_visible(memory, files, tmp_path, monkeypatch, call):
    """At the first, a middle or the last such call: the error names a file, and the next pull finishes the work."""
    real, calls = getattr(os, call), 0

    def count(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(store.os, call, count)
    full = 0
    pull(tmp_path / "whole")
    for full in {1, calls // 2 + 1, calls}:
        calls, place = 0, tmp_path / f"store{full}"
        with pytest.raises(loader.StoreError, match=rf"store: {place}\S*: No space left on device") as caught:
            pull(place)
        assert isinstance(caught.value, OSError) and caught.value.file.startswith(str(place))
        pulled_pack.check_consistent(place)
        pulled_pack.check_finished(place, pull(place), files)


def test_another_content_is_refused(memory, files, tmp_path):
    """Shorter, longer or changed bytes of a blob: nothing of the pack can be seen, and what came is not kept."""
    sha256, good = next((key, data) for key, data in memory.blobs.items() if len(data) > CHUNK_BYTES)
    for bad in (good[:-1], good + b"more", b"x" + good[1:], b""):
        memory.blobs[sha256] = bad
        with pytest.raises(loader.IntegrityError, match=f"sha256:{sha256} of {len(good)} bytes came as sha256:"):
            pull(tmp_path / "store")
        assert not list((tmp_path / "store" / "packs").iterdir())
        assert not (tmp_path / "store" / "partial" / sha256).exists()
    memory.blobs[sha256] = good
    pulled_pack.check_finished(tmp_path / "store", pull(tmp_path / "store"), files)


def _retitle(title):
    def change(document, layers):
        layers["extra"] = {**layers["manifest.json"], "annotations": {oci.TITLE: title}}
    return change


def _remove(document, layers):
    del layers["scale_rows/sm_90a/m16_f32.cubin"]


def _exchange(document, layers):
    one, other = layers["scale_rows/sm_90a/m16_f32.cubin"], layers["scale_rows/sm_120a/m16_f32.cubin"]
    one["annotations"], other["annotations"] = other["annotations"], one["annotations"]


def _resize(document, layers):
    layers["scale_rows/sm_90a/m16_f32.cubin"]["size"] += 1


def _retype(document, layers):
    document["artifactType"] = "application/vnd.example"


def _large(document, layers):
    layers["manifest.json"]["size"] = 1 << 40


@pytest.mark.parametrize(("change", "error", "text"), [
    (_retitle("../../.bashrc"), loader.IntegrityError, "which the pack's manifest does not name"),
    (_retitle("/etc/passwd"), loader.IntegrityError, "which the pack's manifest does not name"),
    (_retitle("manifest.json./../../x"), loader.IntegrityError, "which the pack's manifest does not name"),
    (_retitle("manifest.json"), loader.DuplicateError, "'manifest.json' appears twice"),
    (_remove, loader.MissingFileError, "scale_rows/sm_90a/m16_f32.cubin, which the pack's manifest names, is no layer"),
    (_exchange, loader.IntegrityError, r"scale_rows/\S+ is sha256:\w+ of \d+ bytes in .*, the pack's manifest says"),
    (_resize, loader.IntegrityError, r"scale_rows/sm_90a/m16_f32.cubin is sha256:\w+ of"),
    (_retype, loader.ManifestError, "artifactType: expected application/vnd.block-scaled.pack.v1, got"),
    (_large, loader.ManifestError, f"size: expected an integer in 0 .. {MAX_MANIFEST_BYTES}, got"),
    (lambda document, layers: layers.pop("manifest.json"), loader.MissingFileError, "has no manifest.json"),
], ids=["up", "root", "beside", "twice", "missing", "exchanged", "size", "type", "large", "none"])  # fmt: skip
def test_registry_and_pack_have_to_agree(memory, files, tmp_path, change, error, text):
    """On every file, or nothing of the pack is written."""
    edit(memory, change)
    with pytest.raises(error, match=text):
        pull(tmp_path / "store")
    assert not list((tmp_path / "store").rglob("packs/*")) and not list(tmp_path.rglob(".bashrc"))


@pytest.mark.parametrize("file", ["../outside.cubin", "/outside.cubin", "a/../../outside.cubin"])
def test_a_path_that_leaves_the_pack_is_refused(memory, files, tmp_path, file):
    """Also where the pack's manifest and the registry's agree on it."""
    manifest = json.loads(files["manifest.json"])
    old, manifest["artifacts"][0]["file"] = manifest["artifacts"][0]["file"], file
    data = json.dumps(manifest).encode()
    blob = sample_pack.stored("manifest.json", data)
    memory.blobs[blob["sha256"]] = data

    def change(document, layers):
        layers[old]["annotations"][oci.TITLE] = file
        layers["manifest.json"] |= {"digest": f"sha256:{blob['sha256']}", "size": blob["size"]}

    edit(memory, change)
    with pytest.raises(loader.PackPathError, match="is no relative path inside the pack"):
        pull(tmp_path / "store")
    assert not list(tmp_path.rglob("outside*"))


def test_a_damaged_pack_is_not_pushed(memory, files, tmp_path):
    """Every file is compared with the manifest, also one that the registry has."""
    memory.document = None
    path = tmp_path / "pack" / "scale_rows" / "sm_90a" / "m16_f32.cubin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(loader.IntegrityError, match="m16_f32.cubin"):
        oci.push(str(tmp_path / "pack"), NAME)
    assert memory.document is None


@pytest.mark.parametrize("name", [
    "fp4:v1", "registry.example/fp4", "registry.example/FP4:v1", "registry.example/fp4:", "registry.example//fp4:v1",
    "registry.example/../fp4:v1", "registry.example/fp4:a/b", "registry.example/fp4@sha256:12", "https://r.example/a:b",
    "registry.example/fp4@md5:" + "0" * 32, "user@registry.example/fp4:v1", "registry.example:port/fp4:v1", "",
])  # fmt: skip
def test_references_name_all_parts(name):
    """Registry, repository, and a tag or a digest; nothing is meant by default."""
    with pytest.raises(loader.ReferenceFormatError, match="is neither registry/repository:tag nor"):
        reference.parse(name)


@pytest.mark.parametrize("name", [
    "localhost/a:b", "127.0.0.1:5000/a/b.c/d_e:v1.0-rc_1", "[::1]:5000/a:b", "ghcr.io/a/b@sha256:" + "0" * 64,
    "ghcr.io/a/b:v1@sha256:" + "f" * 64,
])  # fmt: skip
def test_references_are_read_back(name):
    """What is parsed prints as it was."""
    assert str(reference.parse(name)) == name


def test_a_pack_is_pushed_under_a_tag(memory, tmp_path):
    """Its digest is not the caller's to choose."""
    with pytest.raises(loader.ReferenceFormatError, match="a pack is pushed under a tag"):
        oci.push(str(tmp_path), "registry.example/fp4@sha256:" + "0" * 64)


def test_where_the_store_is(monkeypatch, tmp_path):
    """LOADER_STORE, else the user's cache, of which a relative directory does not count."""
    home = str(tmp_path)
    monkeypatch.setenv("HOME", home)
    for variables, expected in (
        ({}, f"{home}/.cache/block_scaled"),
        ({"XDG_CACHE_HOME": "relative"}, f"{home}/.cache/block_scaled"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/block_scaled"),
        ({"XDG_CACHE_HOME": "/cache", "LOADER_STORE": "/store"}, "/store"),
    ):  # fmt: skip
        for name in ("XDG_CACHE_HOME", "LOADER_STORE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert store.default_directory() == expected


def test_commands(memory, files, tmp_path, capsys, monkeypatch):
    """push prints the reference by digest, pull the directory; nothing else, where standard error is no terminal."""
    monkeypatch.setenv("LOADER_STORE", str(tmp_path / "store"))
    assert main(["push", str(tmp_path / "pack"), NAME]) == 0
    assert reference.parse(capsys.readouterr().out.strip()).sha256
    assert main(["pull", NAME]) == 0
    out, err = capsys.readouterr()
    assert pulled_pack.contents(Path(out.strip())) == files and err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["pull", NAME, "--store", str(tmp_path / "other")]) == 0
    out, err = capsys.readouterr()
    assert out.strip().startswith(str(tmp_path / "other")) and "pulled 0.4 of 0.4 MB" in err


def test_the_extra_is_named(monkeypatch):
    """Where requests is not installed, push and pull say what to install; nothing else of the loader needs it."""
    monkeypatch.setitem(sys.modules, "requests", None)
    monkeypatch.delitem(sys.modules, "loader.oci_client", raising=False)
    with pytest.raises(loader.MissingPackageError, match=r"pip install 'block-scaled\[oci\]'"):
        oci.pull(NAME)


