"""Files of problems: what may stand in them, what a launch leaves there, and what is refused by its place."""

import json
import os

import pytest
import sample_pack
from sample_call import arguments

import loader
from loader import problems, registry, select


def read(path, *content):
    """The problems of a file with these values, as JSON of it."""
    if content:
        path.write_text(content[0] if isinstance(content[0], str) else json.dumps(content[0]))
    return problems.read([str(path)], registry.registry())


def test_a_list_stands_for_each_of_its_values(pack, tmp_path):
    """A file has one problem or several, and numbers and words as they are given."""
    one = {"kernel": "scale_rows", "problem": {"M": [1, 2], "K": 64, "out": ["bf16", "f32"], "alpha": 0.5}}
    for content in (one, [one]):
        found = read(tmp_path / "shapes.json", content)
        assert [(shape.given["M"], shape.given["out"]) for shape in found] == [
            (1, "bf16"), (1, "f32"), (2, "bf16"), (2, "f32")]
        assert {(shape.kernel, shape.given["K"], shape.given["alpha"]) for shape in found} == {("scale_rows", 64, 0.5)}


def test_files_of_a_directory_are_read(pack, tmp_path):
    """Those that end in .json, in the order of their names."""
    (tmp_path / "some").mkdir()
    for m, name in ((2, "b.json"), (1, "a.json"), (3, "notes.txt")):
        (tmp_path / "some" / name).write_text(json.dumps({"kernel": "scale_rows", "problem": {"M": m}}))
    assert [shape.given["M"] for shape in read(tmp_path / "some")] == [1, 2]
    (tmp_path / "none").mkdir()
    with pytest.raises(loader.TuningError, match=r"none holds no \*.json"):
        read(tmp_path / "none")


def test_a_definition_says_all_but_scalars(cuda, pack, tmp_path, monkeypatch):
    """Dimensions, and the dtypes of the buffers that were there."""
    monkeypatch.setenv("LOADER_TRACE_DIR", str(tmp_path / "trace"))
    loader.launch("scale_rows", **arguments(output="f32"))
    shape, = read(tmp_path / "trace")
    assert shape.kernel == "scale_rows" and shape.given == {
        "M": 96, "K": 64, "E": 3, "a": "e2m1x2", "scale": "ue4m3", "offsets": "i32", "out": "f32"}
    assert shape.where == f"{tmp_path}/trace/{os.listdir(tmp_path / 'trace')[0]}: the problem"


def measured_pack(place, monkeypatch):
    """A pack with a row for M = 96, whose choice is far from one of M = 8."""
    manifest, files = sample_pack.build()
    family = manifest["families"]["scale_rows"]
    family["select"]["measured"] = [{"arch": "120a", "device": "Fake RTX", "features": {"M": 96},
                                     "microseconds": {"m16": 1.0, "m64": 2.0}}]
    family["scalars"][1]["choices"] = ["few", "many"]
    family["constraints"].pop()
    family["arguments"][2]["optional"] = True
    sample_pack.write(place, manifest | {"schema": 4, "composites": {}}, files)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(place))


def test_what_nobody_measured_is_recorded(cuda, tmp_path, monkeypatch):
    """Problems of a far row or an estimate, each once, as their file is read; words as words, and no floats."""
    measured_pack(tmp_path / "pack", monkeypatch)
    monkeypatch.setenv("LOADER_UNMEASURED_DIR", str(tmp_path / "unmeasured"))
    seen = []
    loader.on_launch(lambda launch: seen.append(launch.reason))
    for call in ({}, {"m": 48}, {"m": 8}, {"m": 8, "alpha": 7.5}, {"m": 8, "top": "few"},
                 {"device": (2, 2)}, {"m": 8, "offsets": None}):
        loader.launch("scale_rows", **arguments(**{"top": "many", **call}))
    assert seen == ["measured", "nearest", "far", "far", "far", "estimated", "far"]
    assert {"far", "estimated"} == set(problems.UNMEASURED) < set(select.REASONS)
    found = read(tmp_path / "unmeasured")
    expected = {"K": 64, "E": 3, "a": "e2m1x2", "scale": "ue4m3", "offsets": "i32", "out": "bf16", "top": "many"}
    without = {name: value for name, value in expected.items() if name not in ("offsets", "E")}
    wanted = [expected | {"M": 8}, expected | {"M": 8, "top": "few"}, expected | {"M": 96}, without | {"M": 8}]
    assert len(found) == 4 and all(shape.given in wanted for shape in found)
    assert [shape.given for shape in found].count(wanted[3]) == 1


def test_a_record_is_written_whole_or_not_at_all(cuda, pack, tmp_path, monkeypatch):
    """And a place that is no directory is an error of the setting."""
    monkeypatch.setenv("LOADER_UNMEASURED_DIR", str(tmp_path / "unmeasured"))
    with monkeypatch.context() as context:
        context.setattr(os, "replace", None)
        with pytest.raises(TypeError):
            loader.launch("scale_rows", **arguments())
    assert cuda.launches == [] and os.listdir(tmp_path / "unmeasured") == []
    monkeypatch.setenv("LOADER_UNMEASURED_DIR", __file__)
    loader.reload()
    with pytest.raises(loader.SettingError, match="LOADER_UNMEASURED_DIR: .* is no directory"):
        loader.launch("scale_rows", **arguments())


SHAPE = {"kernel": "scale_rows", "problem": {"M": 1}}
DEFINITION = {"op_type": "scale_rows", "axes": {"M": {"type": "const", "value": 1}}, "inputs": {}, "outputs": {}}
WRONG = {
    "no JSON": ("[", "the file is no JSON document"),
    "no problem": ([SHAPE, 5], "[1]: expected an object, got 5"),
    "no kernel": ({"problem": {}}, "the problem: key 'kernel' is missing"),
    "no numbers": ([{**SHAPE, "problem": []}], "[0].problem: expected an object"),
    "more": ([{**SHAPE, "variant": "m16"}], "[0]: unknown key"),
    "truth": ([{**SHAPE, "problem": {"M": True}}], "[0].problem.M: expected a number or a word, got True"),
    "depth": ([{**SHAPE, "problem": {"M": [[1]]}}], "[0].problem.M: expected a number or a word, got [1]"),
    "negative": ([{**SHAPE, "problem": {"M": [1, -1]}}], "[0].problem.M: expected a number in 0 .. 1e+18, got -1"),
    "names": ([{**SHAPE, "problem": {f"x{i}": 1 for i in range(201)}}], "[0].problem: expected at most 200 names"),
    "many": ([{**SHAPE, "problem": {name: list(range(100)) for name in "MKE"}}], "over 20000 problems"),
    "unknown": ({**DEFINITION, "op_type": "rows"}, "the problem.op_type: expected a kernel of the packs"),
    "no axes": ({**DEFINITION, "axes": []}, "the problem.axes: expected an object"),
    "axis": ({**DEFINITION, "axes": {"M": {"type": "const", "value": -1}}}, "the problem.axes.M.value: expected an"),
    "dtype": ({**DEFINITION, "outputs": {"out": {"dtype": "int8"}}}, "the problem.out.dtype: expected that of one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_wrong_is_refused(pack, tmp_path, name):
    """Its error names file, place, and what was expected there."""
    content, words = WRONG[name]
    with pytest.raises(loader.TuningError) as raised:
        read(tmp_path / "shapes.json", content)
    assert str(raised.value).startswith(f"{tmp_path}/shapes.json: ") and words in str(raised.value)


def test_a_file_that_is_none_is_refused(pack, tmp_path):
    """Nobody waits for the other end of a pipe."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing"):
        with pytest.raises(loader.TuningError, match=f"{name} cannot be read"):
            read(tmp_path / name)
