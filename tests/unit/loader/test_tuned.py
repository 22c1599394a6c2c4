"""Rows that a user has measured: which of them decide, for what, and which files are refused."""

import json
import os

import pytest
import sample_pack
from own_process import run_with_pack
from sample_call import arguments

import loader
from loader import files, registry, tuned


def row(pack, variant="m16_bf16", arch="120a", **replaced):
    """A row of the sample pack; the pack itself takes m64 for every M over 16."""
    artifact = next(c.artifact for c in registry.load([str(pack)], None, ()).candidates("scale_rows")
                    if (c.artifact.variant, c.artifact.arch) == (variant, arch))
    return tuned.TunedRow(**{
        "kernel": "scale_rows", "variant": variant, "cubin": artifact.binary.sha256, "arch": arch, "device": "Fake RTX",
        "features": {"M": 96}, "microseconds": 4.0, "spread": 0.01, "default": "m64_bf16", "default_microseconds": 5.0,
        "versions": {"loader": "0.1.0"}, **replaced})


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Make rows, or the text of a file, those of ``LOADER_TUNED``."""

    def use(*rows, text=None):
        path = tmp_path / "tuned.json"
        if text is None:
            tuned.write(str(path), rows)
        else:
            path.write_text(text)
        monkeypatch.setenv(tuned.VARIABLE, str(path))
        loader.reload()
        return path

    return use


def launched(packs=None, variant=None, **call):
    """Variant and reason of a launch."""
    told = []
    remove = loader.on_launch(told.append)
    loader.launch("scale_rows", packs=packs, variant=variant, **arguments(**call))
    remove()
    return told[0].variant, told[0].reason


def test_a_row_decides_its_own_problem(cuda, pack, use):
    """Of that kernel, output type and device; what lies between was not measured, so the default stays there."""
    use(row(pack))
    assert launched() == ("m16_bf16", "measured")
    for call in ({"m": 95}, {"m": 97}, {"m": 192}):
        assert launched(**call) == ("m64_bf16", "estimated")
    assert launched(output="f32") == ("m64_f32", "estimated")
    assert launched(device=(2, 2)) == ("m64_bf16", "estimated")  # Fake H200
    reason, = (d.reason for d in loader.plan("scale_rows", **arguments()).decisions if d.accepted)
    assert reason == "4 us measured at M 96 on Fake RTX"


def test_a_row_comes_before_those_of_the_pack(cuda, tmp_path, use):
    """At the same problem; the pack's own rows decide everywhere else, near or not."""
    manifest, data = sample_pack.build()
    manifest["families"]["scale_rows"]["select"]["measured"] = [
        {"arch": "120a", "device": "Fake RTX", "features": {"M": m}, "microseconds": {"m16": 2.0, "m64": 1.0}}
        for m in (96, 128)]
    sample_pack.write(tmp_path / "rows", manifest, data)
    use(row(tmp_path / "rows"))
    assert launched(packs=tmp_path / "rows") == ("m16_bf16", "measured")
    assert launched(packs=tmp_path / "rows", m=97) == ("m64_bf16", "nearest")
    assert launched(packs=tmp_path / "rows", m=128) == ("m64_bf16", "measured")


@pytest.mark.parametrize("replaced", [{"cubin": "0" * 64}, {"kernel": "other"}, {"device": "Fake RTX 2"},
                                      {"features": {"M": 96, "K": 64}}, {"features": {}}])
def test_a_row_of_something_else_decides_nothing(cuda, pack, use, replaced):
    """It dies with its cubin, and lives on with whatever else there is; the others go on."""
    use(row(pack, **replaced), row(pack, features={"M": 32}))
    assert launched() == ("m64_bf16", "estimated")
    assert launched(m=32) == ("m16_bf16", "measured")


def test_a_row_lives_as_long_as_its_cubin(cuda, tmp_path, monkeypatch, use):
    """Other cubins, a new manifest and other versions change nothing; its own cubin does."""
    monkeypatch.setenv("LOADER_ARTIFACTS", str(tmp_path / "pack"))
    sample_pack.write(tmp_path / "pack")
    use(row(tmp_path / "pack"))
    for changed, decided in ((("m64", "m16"), "measured"), (("m16",), "estimated")):
        manifest, data = sample_pack.build()
        manifest["toolchain"]["nvcc"] = "13.1.0"
        for artifact in manifest["artifacts"]:
            if artifact["tile"] in changed and not (artifact["variant"] == "m16_bf16" and decided == "measured"):
                data[artifact["file"]] += b"new"
                artifact |= sample_pack.stored(artifact["file"], data[artifact["file"]])
        sample_pack.write(tmp_path / "pack", manifest, data)
        loader.reload()
        loader.unload()
        assert launched()[1] == decided


def test_the_caller_comes_before_a_row(cuda, pack, use):
    """A variant that is named runs."""
    use(row(pack))
    assert launched(variant="m64_bf16") == ("m64_bf16", "named")


def test_the_fastest_of_several_rows_decides(cuda, pack, use):
    """Wherever it stands."""
    slow, fast = row(pack, "m64_bf16", microseconds=4.5), row(pack)
    for rows in ((slow, fast), (fast, slow)):
        use(*rows)
        assert launched() == ("m16_bf16", "measured")


def test_a_row_of_what_a_problem_does_not_fit(cuda, tmp_path, use):
    """Requirements of a variant hold for rows, too."""
    manifest, data = sample_pack.build()
    for artifact in manifest["artifacts"]:
        artifact["requires"] = [{"text": "K > 64", "expression": [">", "K", 64]}] if artifact["tile"] == "m16" else []
    sample_pack.write(tmp_path / "pack", manifest | {"schema": 5, "composites": {}}, data)
    use(row(tmp_path / "pack"))
    assert launched(packs=tmp_path / "pack") == ("m64_bf16", "estimated")
    assert launched(packs=tmp_path / "pack", k=96) == ("m16_bf16", "measured")


def test_the_file_is_read_once_and_anew_after_reload(cuda, pack, use, monkeypatch):
    """With the packs, not by launches."""
    read, reads = tuned.read, []
    monkeypatch.setattr(tuned, "read", lambda path: reads.append(path) or read(path))
    path = use(row(pack))
    for m in (96, 64, 96):
        launched(m=m)
    loader.plan("scale_rows", **arguments(m=17)).launch(0)
    path.write_text("{")
    assert launched() == ("m16_bf16", "measured") and len(reads) == 1
    loader.reload()
    with pytest.raises(loader.TuningError):
        launched()


def test_without_the_variable_no_file_is_looked_for(cuda, pack, tmp_path, monkeypatch):
    """An empty one is one that is not set."""
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv(tuned.VARIABLE, value)
        loader.reload()
        monkeypatch.setattr(files, "read", None)
        assert launched() == ("m64_bf16", "estimated")


ROW = {"kernel": "scale_rows", "variant": "v", "cubin": "0" * 64, "arch": "120a", "device": "d", "features": {"M": 1},
       "microseconds": 1.0, "spread": 0.0, "default": "w", "default_microseconds": 2.0, "versions": {}}
WRONG = {
    "no JSON": ("{", "is no JSON document"),
    "another schema": ('{"schema": 2, "rows": []}', "the file.schema: expected one of 1, got 2"),
    "more": ('{"schema": 1, "rows": [], "more": 1}', "unknown key"),
    "no list": ('{"schema": 1, "rows": {}}', "the file.rows: expected a list"),
    "depth": ("[" * 100_000, "is no JSON document"),
    "size": (" " * (tuned.MAX_BYTES + 1), "at most 8388608 are read"),
    "marks": (f'{{"schema": 1, "rows": [{"," * 2_000_001}]}}', "at most 2000000 are read"),
    "digest": (ROW | {"cubin": "../x"}, "rows[0].cubin: expected text that matches"),
    "infinite": (ROW | {"microseconds": float("1e999")}, "is no JSON document"),
    "large": (ROW | {"microseconds": 10**4000}, "rows[0].microseconds: expected a number in 0 .. 1e+18"),
    "negative": (ROW | {"spread": -1}, "rows[0].spread: expected a number in 0 .. 1e+18, got -1"),
    "truth": (ROW | {"default_microseconds": True}, "rows[0].default_microseconds: expected a number"),
    "feature": (ROW | {"features": {"M": "96"}}, "rows[0].features.M: expected a number"),
    "cursor": (ROW | {"device": "\x1b[2J"}, "rows[0].device: expected printable text"),
    "version": (ROW | {"versions": {"driver": 13}}, "rows[0].versions.driver: expected printable text"),
    "less": ({key: value for key, value in ROW.items() if key != "arch"}, "rows[0]: key 'arch' is missing"),
    "another key": (ROW | {"file": "/etc/passwd"}, "rows[0]: unknown key"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_wrong_is_an_error(cuda, pack, use, name):
    """It names the file and what is wrong in it; nothing is launched."""
    content, words = WRONG[name]
    path = use(text=content if isinstance(content, str) else json.dumps({"schema": 1, "rows": [content]}))
    for _ in range(2):
        with pytest.raises(loader.TuningError) as raised:
            loader.launch("scale_rows", **arguments())
        assert str(raised.value).startswith(f"{path}: ") and words in str(raised.value) and len(str(raised.value)) < 500
    assert cuda.launches == []


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "zero"])
def test_a_file_that_is_none_is_an_error(cuda, pack, tmp_path, monkeypatch, kind):
    """Whoever names a file wants it read; nobody waits for the other end of a pipe."""
    path = str(tmp_path / "tuned.json")
    if kind == "directory":
        os.mkdir(path)
    elif kind == "pipe":
        os.mkfifo(path)
    monkeypatch.setenv(tuned.VARIABLE, path)
    if kind == "zero":
        monkeypatch.setattr(os, "environ", {**os.environ, tuned.VARIABLE: "a\0b"})
    with pytest.raises(loader.TuningError, match="cannot be read: "):
        loader.launch("scale_rows", **arguments())
    assert cuda.launches == []


def test_what_is_written_is_read(tmp_path, pack):
    """Every field, and nothing is rounded."""
    rows = (row(pack), row(pack, "m64_f32", features={"M": 1 / 3}, microseconds=1 / 7, versions={}))
    tuned.write(str(tmp_path / "tuned.json"), rows)
    assert tuned.read(str(tmp_path / "tuned.json")) == rows


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, pack, monkeypatch, step):
    """What fails leaves the old rows, and no other file."""
    path, first = tmp_path / "rows" / "tuned.json", (row(pack),)
    path.parent.mkdir()
    tuned.write(str(path), first)

    def fail(*arguments, **options):
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(loader.TuningError, match="cannot be written: disk full"):
        tuned.write(str(path), ())
    assert tuned.read(str(path)) == first and os.listdir(path.parent) == ["tuned.json"]


def test_more_rows_than_are_read_are_not_written(tmp_path, pack):
    """Or the file would be refused by the next launch."""
    rows = [row(pack, versions={"loader": "x" * 1_000_000})] * 9
    with pytest.raises(loader.TuningError, match="begin a new file"):
        tuned.write(str(tmp_path / "tuned.json"), rows)
    assert not (tmp_path / "tuned.json").exists()


def test_a_launch_imports_nothing_of_tuning(tmp_path):
    """Problems, operands and timing are the command's alone."""
    code = """
loader.launch("scale_rows", packs=pack, **arguments())
print([name for name in sys.modules if name in ("loader.tune", "loader.problems", "loader.operands")])
"""
    assert run_with_pack(tmp_path, code).strip() == "[]"
