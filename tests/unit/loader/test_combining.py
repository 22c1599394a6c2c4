"""Several packs as one registry: what they must agree on, what they need not, and how packs are looked up."""

import copy
import json
import os

import pytest
import sample_pack
from test_composite import composite

import loader
from loader import registry

MANIFEST, FILES = sample_pack.build(["90a"])
MANIFEST |= {"schema": 2, "composites": {"thrice": composite()}}
FAMILY, COMPOSITE, ARTIFACT = ("families", "scale_rows"), ("composites", "thrice"), ("artifacts", 0)


def write(directory, path=None, value=None):
    """The pack, with ``value`` at ``path`` of its manifest."""
    manifest = copy.deepcopy(MANIFEST)
    if path is not None:
        place = manifest
        for step in path[:-1]:
            place = place[step]
        assert place[path[-1]] != value
        place[path[-1]] = value
    sample_pack.write(directory, manifest, FILES)
    return str(directory)


DIFFERENT = {
    "arguments[0].alignment": ((*FAMILY, "arguments", 0, "alignment"), 32),
    "arguments[3].dtypes[0]": ((*FAMILY, "arguments", 3, "dtypes"), ["f16", "f32"]),
    "arguments[0].shape[1]": ((*FAMILY, "arguments", 0, "shape"), ["M", ["/", "K", 4]]),
    "scalars[0].default": ((*FAMILY, "scalars", 0, "default"), 2.0),
    "constraints[0].expression": ((*FAMILY, "constraints", 0, "expression"), ["==", ["%", "K", 64], 0]),
    "constraints": ((*FAMILY, "constraints"), []),
    "skip": ((*FAMILY, "skip"), None),
    "features": ((*FAMILY, "select", "features"), {"rows": "M"}),
    "features.M": ((*FAMILY, "select", "features"), {"M": "K"}),
    "steps[2].scalars.top": ((*COMPOSITE, "steps", 2, "scalars", "top"), 9),
    "signature.arguments[1].alignment": ((*COMPOSITE, "arguments", 1, "alignment"), 8),
    "workspace[0].shape[0]": ((*COMPOSITE, "workspace", 0, "shape"), ["R"]),
    "axes.block_m": ((*ARTIFACT, "axes", "block_m"), 32),
    "tile": ((*ARTIFACT, "tile"), "m32"),
    "symbol": ((*ARTIFACT, "symbol"), "other"),
    "ptx.sha256": ((*ARTIFACT, "ptx", "sha256"), "0" * 64),
    "parameters[4].value": ((*ARTIFACT, "parameters", 4, "value"), "K"),
    "parameters[0].swizzle": ((*ARTIFACT, "parameters", 0, "swizzle"), 64),
    "launch.grid[1]": ((*ARTIFACT, "launch", "grid", 1), 2),
    "launch.shared": ((*ARTIFACT, "launch", "shared"), 1024),
    "cost": ((*ARTIFACT, "cost"), None),
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_packs_that_differ_do_not_combine(tmp_path, key):
    """Whatever a call may depend on is the same in all packs; the error names the packs and the key."""
    first, second = write(tmp_path / "a"), write(tmp_path / "b", *DIFFERENT[key])
    assert loader.kernels(packs=first) and loader.kernels(packs=second)
    for packs in ([first, second], [second, first]):
        with pytest.raises(loader.DuplicateError) as caught:
            loader.kernels(packs=packs)
        assert caught.value.key == key
        assert str(caught.value).endswith(f"{key} differs") and all(pack in str(caught.value) for pack in packs)


@pytest.mark.parametrize("path", [
    (*FAMILY, "summary"), (*FAMILY, "arguments", 0, "doc"), (*FAMILY, "scalars", 1, "doc"),
    (*FAMILY, "constraints", 0, "text"), (*COMPOSITE, "summary"), (*COMPOSITE, "arguments", 2, "doc")],
    ids=lambda path: ".".join(map(str, path)))
def test_words_need_not_agree(tmp_path, path):
    """Packs whose documentation differs combine; the first one's words are shown."""
    packs = [write(tmp_path / "a", path, "other words"), write(tmp_path / "b")]
    assert sorted(loader.kernels(packs=packs)) == ["scale_rows", "thrice"]


def test_names_of_files_need_not_agree(tmp_path):
    """What counts of an image is its digest."""
    manifest, files = copy.deepcopy(MANIFEST), dict(FILES)
    entry = manifest["artifacts"][0]
    files["moved.cubin"], files["moved.ptx.xz"] = files.pop(entry["file"]), files.pop(entry["ptx"]["file"])
    entry["file"], entry["ptx"]["file"] = "moved.cubin", "moved.ptx.xz"
    sample_pack.write(tmp_path / "b", manifest, files)
    assert len(loader.kernels(packs=[write(tmp_path / "a"), str(tmp_path / "b")])["scale_rows"].variants) == 4


def test_measured_rows_of_all_packs_count(tmp_path):
    """Each row once, whichever pack has it."""
    rows = [{"arch": "90a", "device": "Fake H200", "features": {"M": m}, "microseconds": {"m16": 1.0, "m64": 2.0}}
            for m in (16, 64, 256)]
    packs = [write(tmp_path / name, (*FAMILY, "select", "measured"), some)
             for name, some in (("a", rows[:2]), ("b", rows[1:]), ("c", rows))]
    measured = registry.registry(packs).families["scale_rows"].measured
    assert [row.features["M"] for row in measured] == [16, 64, 256]


def test_a_kernel_is_no_composite_of_another_pack(tmp_path):
    """One name is one thing."""
    manifest = copy.deepcopy(MANIFEST)
    manifest["families"]["thrice"] = copy.deepcopy(manifest["families"]["scale_rows"])
    del manifest["composites"]["thrice"]
    sample_pack.write(tmp_path / "b", manifest, FILES)
    with pytest.raises(loader.DuplicateError, match="^thrice is one kernel in a pack and a composite in another$"):
        loader.kernels(packs=[write(tmp_path / "a"), str(tmp_path / "b")])


# The lookup


def test_relative_packs_are_those_of_the_current_directory(tmp_path, monkeypatch):
    """The same words name another pack after a change of directory."""
    for name, arch in (("a", "90a"), ("b", "120a")):
        sample_pack.write(tmp_path / name / "pack", *sample_pack.build([arch]))
    for name, arch in (("a", "90a"), ("b", "120a"), ("a", "90a")):
        monkeypatch.chdir(tmp_path / name)
        for packs in ("pack", b"pack", ["./pack"], [str(tmp_path / name / "pack")]):
            assert loader.kernels(packs=packs)["scale_rows"].archs == (arch,)


@pytest.mark.parametrize("packs", [[], ()])
def test_no_packs_are_an_error(pack, packs):
    """A registry of nothing knows no kernel, and nobody asks for one."""
    with pytest.raises(loader.PackNotFoundError) as caught:
        loader.kernels(packs=packs)
    assert str(caught.value) == f"packs: {packs!r} names no directory; None stands for the default packs"


def test_a_variable_that_names_nothing_is_an_error(monkeypatch):
    """Separators alone are no directories."""
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, os.pathsep)
    with pytest.raises(loader.PackNotFoundError, match=f"^LOADER_ARTIFACTS is '{os.pathsep}' and names no directory$"):
        loader.kernels()


def distribution(site, name, entry_points):
    """An installed distribution with these bytes as its entry points."""
    (site / f"{name}-1.dist-info").mkdir(parents=True)
    (site / f"{name}-1.dist-info" / "entry_points.txt").write_bytes(entry_points)


def test_broken_distributions_are_none_of_our_business(tmp_path, monkeypatch):
    """Bytes that are no text, a directory, or an entry of sys.path that is no path do not hide a pack."""
    site = tmp_path / "site"
    sample_pack.write(site / "some_pack", *sample_pack.build(["100a"]))
    distribution(site, "a_broken", b"[console_scripts]\nx = \xff\xfe\x00:main\n")
    (site / "b_broken-1.dist-info" / "entry_points.txt").mkdir(parents=True)
    (site / "c_broken-1.egg-info").write_bytes(b"\xff")
    distribution(site, "some_pack", b"[console_scripts]\nx = \xff\n[loader.artifacts]\nsome = some_pack\n")
    monkeypatch.setattr("sys.path", [None, 7, b"/x", str(tmp_path / "absent"), str(site)])
    assert registry.registry().source == "installed distributions"
    assert loader.kernels()["scale_rows"].archs == ("100a",)


@pytest.mark.parametrize(("module", "why"), [
    ("absent", "'absent' is no package with one directory"),
    ("absent.pack", "'absent.pack' cannot be found: ModuleNotFoundError: No module named 'absent'"),
    ("raises.pack", "'raises.pack' cannot be found: RuntimeError: broken")])
def test_a_broken_entry_point_of_ours_is_an_error(tmp_path, monkeypatch, module, why):
    """The distribution that promises a pack and has none is named."""
    (tmp_path / "raises").mkdir()
    (tmp_path / "raises" / "__init__.py").write_text("raise RuntimeError('broken')")
    distribution(tmp_path, "ours", f"[loader.artifacts]\nsome = {module}\n".encode())
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(loader.PackNotFoundError) as caught:
        loader.kernels()
    where = tmp_path / "ours-1.dist-info"
    assert str(caught.value) == f"entry point of {where}: {why}"
    assert caught.value.distribution == str(where)


# The manifest, read anew


def test_verify_reads_the_manifest_anew(pack):
    """A manifest that was damaged after the process had read it is found, whether or not it can still be read."""
    assert all(outcome.error is None for outcome in loader.verify())
    text = (pack / "manifest.json").read_bytes()
    (pack / "manifest.json").write_bytes(text[:-1])
    with pytest.raises(loader.ManifestSyntaxError, match=str(pack)):
        loader.verify()
    changed = json.loads(text)
    changed["families"]["scale_rows"]["summary"] = "other words"
    (pack / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(loader.IntegrityError) as caught:
        loader.verify()
    assert str(caught.value) == f"manifest.json in pack {pack} is not what this process has read before"
    (pack / "manifest.json").unlink()
    with pytest.raises(loader.MissingFileError):
        loader.verify()
    (pack / "manifest.json").write_bytes(text)
    assert all(outcome.error is None for outcome in loader.verify())
