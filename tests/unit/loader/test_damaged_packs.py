"""Damaged packs: each raises its own error, and neither an image nor a launch reaches the driver."""

import copy
import json
import os
from functools import reduce

import pytest
import sample_pack
from sample_call import arguments

import loader

CUBIN = "scale_rows/sm_120a/m16_bf16.cubin"
PTX = "scale_rows/sm_120a/m16_bf16.ptx.xz"
MANIFEST, FILES = sample_pack.build(archs=("120a",))
TEXT = json.dumps(MANIFEST, sort_keys=True).encode()


def launch(directory):
    loader.launch("scale_rows", variant="m16_bf16", packs=str(directory), **arguments())


def refuse(cuda, directory, error, *, attempt=launch):
    """The attempt raises exactly this error, and the driver saw no image."""
    with pytest.raises(loader.LoaderError) as caught:
        attempt(directory)
    assert type(caught.value) is error, repr(caught.value)
    assert "cuLibraryLoadData" not in cuda.calls and not cuda.launches
    return caught.value


def test_the_undamaged_pack_launches(cuda, tmp_path):
    """What is damaged below works before."""
    sample_pack.write(tmp_path, MANIFEST, FILES)
    launch(tmp_path)
    assert len(cuda.launches) == 1
    assert all(outcome.error is None for outcome in loader.verify(packs=str(tmp_path)))


# The manifest's bytes


@pytest.mark.parametrize("length", [round(len(TEXT) * i / 40) for i in range(40)])
def test_truncated_manifest(cuda, tmp_path, length):
    """No prefix of a manifest is a manifest."""
    sample_pack.write(tmp_path, TEXT[:length], FILES)
    refuse(cuda, tmp_path, loader.ManifestSyntaxError)


@pytest.mark.parametrize("tail", [b"{}", b"x", b"\0", b",", b"]", b"\n" + TEXT])
def test_bytes_after_the_manifest(cuda, tmp_path, tail):
    """Nothing may follow the document."""
    sample_pack.write(tmp_path, TEXT + tail, FILES)
    refuse(cuda, tmp_path, loader.ManifestSyntaxError)


@pytest.mark.parametrize("text", [
    b"\xff\xfe" + TEXT, TEXT.replace(b'"abi": 1', b'"abi": 1, "abi": 1'),
    TEXT.replace(b'"registers": 64', b'"registers": NaN'), TEXT.replace(b'"registers": 64', b'"registers": Infinity'),
    b"[" * 100_000, b'"' + TEXT, TEXT.replace(b"{", b"", 1),
    b"\xef\xbb\xbf" + TEXT], ids=["no utf-8", "key twice", "nan", "infinity", "deep", "quote", "no brace", "bom"])
def test_manifest_is_no_json(cuda, tmp_path, text):
    """Text that JSON does not allow, or reads in two ways."""
    sample_pack.write(tmp_path, text, FILES)
    refuse(cuda, tmp_path, loader.ManifestSyntaxError)


def test_a_number_that_reads_as_infinity(cuda, tmp_path):
    """JSON has no infinity, but a number that Python makes one of."""
    sample_pack.write(tmp_path, TEXT.replace(b'"default": 1.0', b'"default": 1e999'), FILES)
    error = refuse(cuda, tmp_path, loader.ManifestError)
    assert str(error).endswith("families.scale_rows.scalars[0].default: expected a number, got inf")


def test_oversized_manifest(cuda, tmp_path, monkeypatch):
    """A manifest over the limit is not parsed."""
    monkeypatch.setattr("loader.reader.MAX_MANIFEST_BYTES", len(TEXT) - 1)
    sample_pack.write(tmp_path, TEXT, FILES)
    refuse(cuda, tmp_path, loader.ManifestSyntaxError)


@pytest.mark.parametrize(("key", "newest"), [("schema", 5), ("abi", 1)])
@pytest.mark.parametrize("value", [0, 6, 99, -1, "1", 1.0, True, None, [1]])
def test_foreign_schema(cuda, tmp_path, key, newest, value):
    """A schema or ABI outside the range that is read."""
    sample_pack.write(tmp_path, {**MANIFEST, key: value}, FILES)
    error = refuse(cuda, tmp_path, loader.SchemaError)
    assert f"{key} {value!r}, this loader reads 1 to {newest}" in str(error)


# The manifest's entries


def objects(value, path=()):
    """Paths of all objects of the manifest whose keys are fixed, one artifact's and one family's."""
    if path[:1] == ("artifacts",) and len(path) > 1 and path[1] != 0:
        return
    if isinstance(value, dict):
        if path[-1:] not in (("toolchain",), ("families",), ("axes",), ("features",), ("match",)):
            yield path
        for key, child in value.items():
            yield from objects(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from objects(child, (*path, index))


def at(value, path):
    for step in path:
        value = value[step]
    return value


OBJECTS = list(objects(MANIFEST))
KEYS = [(path, key) for path in OBJECTS for key in at(MANIFEST, path) if key not in ("schema", "abi")]


def name(path):
    return ".".join(map(str, path)) or "top"


@pytest.mark.parametrize("path", OBJECTS, ids=name)
def test_unknown_key(cuda, tmp_path, path):
    """A key that the document does not know."""
    manifest = copy.deepcopy(MANIFEST)
    at(manifest, path)["surprise"] = 1
    sample_pack.write(tmp_path, manifest, FILES)
    refuse(cuda, tmp_path, loader.ManifestError)


@pytest.mark.parametrize("path,key", [(path, key) for path, key in KEYS if key != "default"],
                         ids=lambda value: value if isinstance(value, str) else name(value))
def test_missing_key(cuda, tmp_path, path, key):
    """Every key is needed, and named where it is missing."""
    manifest = copy.deepcopy(MANIFEST)
    del at(manifest, path)[key]
    sample_pack.write(tmp_path, manifest, FILES)
    error = refuse(cuda, tmp_path, loader.ManifestError)
    assert repr(key) in str(error)


FOREIGN = [(path, key, value) for path, key in KEYS for value in (["?"], True, {"?": 1})
           if (key, value) not in (("pdl", True), ("toolchain", {"?": 1}))]


@pytest.mark.parametrize("path,key,value", FOREIGN, ids=lambda v: name(v) if isinstance(v, tuple) else str(v))
def test_wrong_type(cuda, tmp_path, path, key, value):
    """No key takes a list, a truth value or an object of another kind."""
    manifest = copy.deepcopy(MANIFEST)
    at(manifest, path)[key] = value
    sample_pack.write(tmp_path, manifest, FILES)
    refuse(cuda, tmp_path, loader.ManifestError)


DEEP = reduce(lambda inner, _: ["neg", inner], range(400), "M")
FAMILY, ARTIFACT = ("families", "scale_rows"), ("artifacts", 0)
RULE = {"argument": "offsets", "minimum": 0, "maximum": "M", "multiple": 1, "ascending": True}
EDITS = {
    "direction": ((*FAMILY, "arguments", 0, "direction"), "sideways"),
    "dtype": ((*FAMILY, "arguments", 0, "dtypes"), ["e3m3"]),
    "no dtype": ((*FAMILY, "arguments", 0, "dtypes"), []),
    "alignment": ((*FAMILY, "arguments", 0, "alignment"), 12),
    "alignment 0": ((*FAMILY, "arguments", 0, "alignment"), 0),
    "shape operator": ((*FAMILY, "arguments", 0, "shape"), ["M", ["**", "K", 2]]),
    "shape operands": ((*FAMILY, "arguments", 0, "shape"), ["M", ["/", "K"]]),
    "unsolvable shape": ((*FAMILY, "arguments", 2, "shape"), [["*", "E", "E"]]),
    "constraint name": ((*FAMILY, "constraints", 0, "expression"), ["==", "Q", 0]),
    "code in an expression": ((*FAMILY, "constraints", 0, "expression"), "__import__('os')"),
    "skip name": ((*FAMILY, "skip"), ["==", "Q", 0]),
    "values of no integers": ((*FAMILY, "values"), [RULE | {"argument": "a"}]),
    "values of an output": ((*FAMILY, "values"), [RULE | {"argument": "out"}]),
    "values within what is none": ((*FAMILY, "values"), [RULE | {"within": "scale"}]),
    "name in values": ((*FAMILY, "values"), [RULE | {"maximum": "Q"}]),
    "unknown key of values": ((*FAMILY, "values"), [RULE | {"descending": True}]),
    "missing key of values": ((*FAMILY, "values"), [{"argument": "offsets", "maximum": "M"}]),
    "match of nothing": ((*FAMILY, "select", "match"), {"out": "output"}),
    "feature name": ((*FAMILY, "select", "features"), {"M": "Q"}),
    "default text": ((*FAMILY, "scalars", 0, "default"), "1"),
    "default bool": ((*FAMILY, "scalars", 0, "default"), True),
    "default beyond all numbers": ((*FAMILY, "scalars", 0, "default"), 10**400),
    "default beyond its dtype": ((*FAMILY, "scalars", 0, "default"), 1e39),
    "default of a fraction": ((*FAMILY, "scalars", 0), {"name": "factor", "dtype": "i32", "doc": "", "default": 2.5}),
    "scalar dtype": ((*FAMILY, "scalars", 0, "dtype"), "f64"),
    "measured arch": ((*FAMILY, "select", "measured"), [{"arch": "86", "device": "x", "features": {"M": 1},
                                                        "microseconds": {"m16": 1}}]),
    "measured features": ((*FAMILY, "select", "measured"), [{"arch": "120a", "device": "x", "features": {"N": 1},
                                                            "microseconds": {"m16": 1}}]),
    "measured negative": ((*FAMILY, "select", "measured"), [{"arch": "120a", "device": "x", "features": {"M": 1},
                                                            "microseconds": {"m16": -1}}]),
    "measured unknown key": ((*FAMILY, "select", "measured"), [{"arch": "120a", "device": "x", "features": {"M": 1},
                                                               "microseconds": {"m16": 1}, "colour": "red"}]),
    "unknown family": ((*ARTIFACT, "family"), "other"),
    "unknown arch": ((*ARTIFACT, "arch"), "86"),
    "variant as a path": ((*ARTIFACT, "variant"), "../x"),
    "symbol": ((*ARTIFACT, "symbol"), "a b"),
    "format": ((*ARTIFACT, "format"), "ptx"),
    "digest case": ((*ARTIFACT, "sha256"), MANIFEST["artifacts"][0]["sha256"].upper().replace("0", "A")),
    "digest length": ((*ARTIFACT, "sha256"), "0" * 63),
    "source digest": (("source_digest",), "0" * 63),
    "size 0": ((*ARTIFACT, "size"), 0),
    "size of a disk": ((*ARTIFACT, "size"), 1 << 40),
    "negative registers": ((*ARTIFACT, "registers"), -1),
    "axis missing": ((*ARTIFACT, "axes"), {"block_m": 16}),
    "axis is a dimension": ((*ARTIFACT, "axes"), {"block_m": 16, "out": "bf16", "M": 3}),
    "parameter kind": ((*ARTIFACT, "parameters", 1, "kind"), "texture"),
    "parameter offset": ((*ARTIFACT, "parameters", 1, "offset"), 129),
    "parameters overlap": ((*ARTIFACT, "parameters", 1, "offset"), 120),
    "parameter hole": ((*ARTIFACT, "parameters", 1, "offset"), 136),
    "parameter size": ((*ARTIFACT, "parameters", 1, "size"), 4),
    "parameter argument": ((*ARTIFACT, "parameters", 1, "argument"), "b"),
    "parameter value": ((*ARTIFACT, "parameters", 4, "value"), "Q"),
    "parameter dtype": ((*ARTIFACT, "parameters", 4, "dtype"), "i16"),
    "parameter bytes": ((*ARTIFACT, "parameter_bytes"), 176),
    "map element": ((*ARTIFACT, "parameters", 0, "element"), "u4"),
    "map rank 6": ((*ARTIFACT, "parameters", 0, "dims"), ["M"] * 6),
    "map rank 0": ((*ARTIFACT, "parameters", 0, "dims"), []),
    "map strides": ((*ARTIFACT, "parameters", 0, "strides"), []),
    "map box": ((*ARTIFACT, "parameters", 0, "box"), [16]),
    "map swizzle": ((*ARTIFACT, "parameters", 0, "swizzle"), 48),
    "map promotion": ((*ARTIFACT, "parameters", 0, "l2_promotion"), 32),
    "grid of two": ((*ARTIFACT, "launch", "grid"), [1, 1]),
    "grid name": ((*ARTIFACT, "launch", "grid"), ["Q", 1, 1]),
    "block 0": ((*ARTIFACT, "launch", "block"), [0, 1, 1]),
    "block of 2048": ((*ARTIFACT, "launch", "block"), [1024, 2, 1]),
    "cluster 17": ((*ARTIFACT, "launch", "cluster"), [17, 1, 1]),
    "shared": ((*ARTIFACT, "launch", "shared"), -1),
    "cost name": ((*ARTIFACT, "cost"), "Q"),
    "deep shape": ((*FAMILY, "arguments", 0, "shape"), [DEEP, "K"]),
    "deep constraint": ((*FAMILY, "constraints", 0, "expression"), DEEP),
    "deep text": ((*ARTIFACT, "format"), DEEP),
    "grid of many bits": ((*ARTIFACT, "launch", "grid"), [1 << 64, 1, 1]),
    "cost beyond all numbers": ((*ARTIFACT, "cost"), ["fdiv", 10**400, 3]),
    "cost float text": ((*ARTIFACT, "cost"), ["+", 1]),
}


@pytest.mark.parametrize("what", EDITS)
def test_edited_manifest(cuda, tmp_path, what):
    """A value that its key does not allow; the error says where it is."""
    path, value = EDITS[what]
    manifest = copy.deepcopy(MANIFEST)
    at(manifest, path[:-1])[path[-1]] = value
    sample_pack.write(tmp_path, manifest, FILES)
    error = refuse(cuda, tmp_path, loader.ManifestError)
    assert error.pack == str(tmp_path) and str(error).startswith(f"pack {tmp_path}: ")


def test_parameters_are_read_for_each_artifact(cuda, tmp_path):
    """Parameters equal to those of the artifact before are refused where they name an axis that this one lacks."""
    manifest = copy.deepcopy(MANIFEST)
    for artifact in manifest["artifacts"]:
        artifact["cost"], artifact["launch"]["grid"] = None, [1, 1, 1]
    sample_pack.write(tmp_path / "all have it", manifest, FILES)
    launch(tmp_path / "all have it")
    cuda.launches.clear()
    cuda.calls.clear()
    del manifest["artifacts"][1]["axes"]["block_m"]
    sample_pack.write(tmp_path / "one lacks it", manifest, FILES)
    error = refuse(cuda, tmp_path / "one lacks it", loader.ManifestError)
    assert "artifacts[1].parameters[0].box[1]: min(block_m, 128) uses unknown block_m" in str(error)


@pytest.mark.parametrize("file", ["../x.cubin", "/etc/hostname", "scale_rows/../../x", "", ".", "a//b", "./x", "a\\b",
                                  "C:/x", "a\0b", "scale_rows/", ".."])
@pytest.mark.parametrize("entry", ["binary", "ptx"])
def test_path_escape(cuda, tmp_path, file, entry):
    """A file name that is not plainly inside the pack."""
    manifest = copy.deepcopy(MANIFEST)
    artifact = manifest["artifacts"][0]
    (artifact if entry == "binary" else artifact["ptx"])["file"] = file
    sample_pack.write(tmp_path, manifest, FILES)
    refuse(cuda, tmp_path, loader.PackPathError)


def test_duplicates(cuda, tmp_path):
    """An artifact, argument, dtype or parameter twice, or one file with two digests."""
    def twice(manifest):
        manifest["artifacts"].append(manifest["artifacts"][0])

    def argument(manifest):
        manifest["families"]["scale_rows"]["arguments"].append(manifest["families"]["scale_rows"]["arguments"][0])

    def dtype(manifest):
        manifest["families"]["scale_rows"]["arguments"][0]["dtypes"] *= 2

    def parameter(manifest):
        manifest["artifacts"][0]["parameters"][2]["name"] = "scale"

    def file(manifest):
        manifest["artifacts"][1]["file"] = manifest["artifacts"][0]["file"]

    for i, edit in enumerate((twice, argument, dtype, parameter, file)):
        manifest = copy.deepcopy(MANIFEST)
        edit(manifest)
        sample_pack.write(tmp_path / str(i), manifest, FILES)
        refuse(cuda, tmp_path / str(i), loader.DuplicateError)


# The files


@pytest.mark.parametrize("position", range(0, len(FILES[CUBIN]), 8))
def test_flipped_byte_of_an_image(cuda, tmp_path, position):
    """One flipped bit anywhere in an image."""
    data = bytearray(FILES[CUBIN])
    data[position] ^= 1 << position % 8
    sample_pack.write(tmp_path, MANIFEST, {**FILES, CUBIN: bytes(data)})
    error = refuse(cuda, tmp_path, loader.IntegrityError)
    assert error.file == CUBIN and error.expected == MANIFEST["artifacts"][0]["sha256"] != error.got


@pytest.mark.parametrize("length", [0, 1, 50, len(FILES[CUBIN]) - 1])
def test_truncated_image(cuda, tmp_path, length):
    """An image that was cut off."""
    sample_pack.write(tmp_path, MANIFEST, {**FILES, CUBIN: FILES[CUBIN][:length]})
    assert refuse(cuda, tmp_path, loader.IntegrityError).got == length


def test_extended_and_exchanged_images(cuda, tmp_path):
    """Bytes after an image, and another artifact's image."""
    for i, data in enumerate((FILES[CUBIN] + b"\0", FILES[CUBIN.replace("bf16", "f32")])):
        sample_pack.write(tmp_path / str(i), MANIFEST, {**FILES, CUBIN: data})
        refuse(cuda, tmp_path / str(i), loader.IntegrityError)


def test_missing_files(cuda, tmp_path):
    """A missing image, manifest or pack."""
    sample_pack.write(tmp_path / "a", MANIFEST, {key: data for key, data in FILES.items() if key != CUBIN})
    refuse(cuda, tmp_path / "a", loader.MissingFileError)
    refuse(cuda, tmp_path / "absent", loader.PackNotFoundError)
    (tmp_path / "empty").mkdir()
    refuse(cuda, tmp_path / "empty", loader.PackNotFoundError)


def test_links_out_of_the_pack(cuda, tmp_path):
    """An image, its directory or a manifest that is a link to elsewhere."""
    sample_pack.write(tmp_path / "a", MANIFEST, FILES)
    outside = tmp_path / "outside"
    outside.write_bytes(FILES[CUBIN])
    (tmp_path / "a" / CUBIN).unlink()
    (tmp_path / "a" / CUBIN).symlink_to(outside)
    refuse(cuda, tmp_path / "a", loader.PackPathError)

    sample_pack.write(tmp_path / "b", MANIFEST, FILES)
    (tmp_path / "b" / "scale_rows").rename(tmp_path / "elsewhere")
    (tmp_path / "b" / "scale_rows").symlink_to(tmp_path / "elsewhere")
    refuse(cuda, tmp_path / "b", loader.PackPathError)

    sample_pack.write(tmp_path / "c", MANIFEST, FILES)
    (tmp_path / "c" / "manifest.json").rename(tmp_path / "manifest.json")
    (tmp_path / "c" / "manifest.json").symlink_to(tmp_path / "manifest.json")
    refuse(cuda, tmp_path / "c", loader.PackPathError)


def test_no_regular_file(cuda, tmp_path):
    """A directory or a device where a file should be."""
    sample_pack.write(tmp_path / "a", MANIFEST, {key: data for key, data in FILES.items() if key != CUBIN})
    (tmp_path / "a" / CUBIN).mkdir()
    refuse(cuda, tmp_path / "a", loader.PackPathError)
    sample_pack.write(tmp_path / "b", MANIFEST, {key: data for key, data in FILES.items() if key != CUBIN})
    os.mkfifo(tmp_path / "b" / CUBIN)
    refuse(cuda, tmp_path / "b", loader.PackPathError)


def test_dangling_link(cuda, tmp_path):
    """A manifest that is a link to nothing."""
    tmp_path.joinpath("manifest.json").symlink_to(tmp_path / "nothing")
    refuse(cuda, tmp_path, loader.MissingFileError)


@pytest.mark.parametrize("position", range(0, len(FILES[PTX]), 16))
def test_flipped_byte_of_ptx(cuda, tmp_path, position):
    """`verify` names a damaged PTX, which no launch on a GPU reads."""
    data = bytearray(FILES[PTX])
    data[position] ^= 1
    sample_pack.write(tmp_path, MANIFEST, {**FILES, PTX: bytes(data)})
    wrong = [outcome for outcome in loader.verify(packs=str(tmp_path)) if outcome.error is not None]
    assert [(outcome.file, type(outcome.error)) for outcome in wrong] == [(PTX, loader.IntegrityError)]


def test_image_of_another_kernel(cuda, tmp_path):
    """An image whose digest is right and whose kernel is not the one named."""
    manifest = copy.deepcopy(MANIFEST)
    manifest["artifacts"][0]["symbol"] = "other"
    sample_pack.write(tmp_path, manifest, FILES)
    with pytest.raises(loader.CudaError, match="cuLibraryGetKernel failed.*symbol other"):
        launch(tmp_path)
    assert not cuda.launches


def test_image_with_other_parameters(cuda, tmp_path):
    """An image whose parameters are not those of the manifest."""
    manifest = copy.deepcopy(MANIFEST)
    parameters = manifest["artifacts"][0]["parameters"]
    parameters[6]["dtype"], parameters[6]["size"] = "i32", 4
    parameters[7]["offset"], manifest["artifacts"][0]["parameter_bytes"] = 164, 168
    sample_pack.write(tmp_path, manifest, FILES)
    with pytest.raises(loader.ParameterLayoutError):
        launch(tmp_path)
    assert not cuda.launches
