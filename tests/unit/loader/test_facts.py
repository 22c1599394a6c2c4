"""What packs and kernels are, by API."""

import hashlib
import json

import pytest
import sample_pack

import loader


def test_packs_say_what_they_are(tmp_path, monkeypatch):
    """Directory, sha256 of the manifest's bytes, toolchain and archs of each pack of a call; nothing can be changed."""
    directories = [tmp_path / "first", tmp_path / "second"]
    for directory, archs in zip(directories, (["120a", "90a"], ["100a"]), strict=True):
        manifest, files = sample_pack.build(archs)
        sample_pack.write(directory, manifest | {"source_digest": "5" * 64}, files)
    monkeypatch.setenv("LOADER_ARTIFACTS", str(directories[1]))
    only, = loader.packs()
    first, second = loader.packs(packs=directories)
    assert second == only
    assert [first.directory, second.directory] == list(map(str, directories))
    assert (first.archs, second.archs) == (("90a", "120a"), ("100a",))
    for info, directory in ((first, directories[0]), (second, directories[1])):
        data = (directory / "manifest.json").read_bytes()
        assert info.digest == hashlib.sha256(data).hexdigest()
        assert (dict(info.toolchain), info.source_digest) == (json.loads(data)["toolchain"], "5" * 64)
    with pytest.raises(TypeError):
        first.toolchain["nvcc"] = "14"
    with pytest.raises(AttributeError):
        first.digest = ""


def test_artifacts_say_what_the_manifest_says(tmp_path):
    """Of every variant and arch: registers, shared memory, spills, block, cluster, and the binary."""
    manifest, files = sample_pack.build()
    for number, entry in enumerate(manifest["artifacts"]):
        entry |= {"registers": 32 + number, "spill_bytes": 8 * number, "local_bytes": 16 * number,
                  "static_shared": 1 + number}
        entry["launch"] |= {"shared": 1024 * number, "block": [32, 1, 1 + number], "cluster": [1, 2, 1]}
    sample_pack.write(tmp_path, manifest, files)
    info = loader.kernels(packs=tmp_path)["scale_rows"]
    assert len(info.artifacts) == len(manifest["artifacts"]) == 16
    for entry in manifest["artifacts"]:
        found, = (a for a in info.artifacts if (a.variant, a.arch) == (entry["variant"], entry["arch"]))
        assert found == (entry["variant"], entry["arch"], str(tmp_path), entry["registers"], entry["static_shared"],
                         entry["launch"]["shared"], entry["spill_bytes"], entry["local_bytes"],
                         tuple(entry["launch"]["block"]), (1, 2, 1), entry["file"], entry["sha256"], entry["size"])
        data = (tmp_path / found.file).read_bytes()
        assert (found.digest, found.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_manifest_of_other_bytes_is_another_pack(pack):
    """``verify`` compares with what this process has read, also where only its layout changed."""
    loader.packs()
    path = pack / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    with pytest.raises(loader.IntegrityError, match="is not what this process has read before"):
        loader.verify()
    loader.reload()
    assert not [outcome for outcome in loader.verify() if outcome.error]
