"""What the environment asks to see: lines of a log, definitions of problems, ranges of NVTX."""

import ast
import json
import logging
import os
import sys
import types

import pytest
from device_buffers import FastTensor
from own_process import run_with_pack
from sample_call import arguments
from test_composite import arguments as composite_arguments
from test_composite import write as write_composites

import loader
from loader import definition, observe, observers

CHOSEN = ("scale_rows/m64_bf16 for sm_120a on cuda:0, estimated: M = 96, K = 64, E = 3, alpha = 2.5, top = 4; "
          "a e2m1x2, scale ue4m3, offsets i32, out bf16")


@pytest.fixture
def lines(cuda):
    """The lines that were logged so far, each with how many launches the driver had then."""
    found = []
    logger = logging.getLogger("loader")

    class Handler(logging.Handler):
        def emit(self, record):
            found.append((record.getMessage(), len(cuda.launches)))

    handler = Handler()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def launch(monkeypatch, **variables):
    """Two launches of one problem and one of another, as the environment says."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for call in (arguments(), arguments(), arguments(m=32)):
        loader.launch("scale_rows", **call, stream=0)
    return call


def test_select_logs_a_problem_once(cuda, pack, monkeypatch, lines):
    """Before its first launch: what runs, why, and the problem."""
    launch(monkeypatch, LOADER_LOG="select")
    assert [line for line, _ in lines] == [CHOSEN, CHOSEN.replace("M = 96", "M = 32")]
    assert [before for _, before in lines] == [0, 2]


def test_launch_logs_every_launch(cuda, pack, monkeypatch, lines):
    """Before it happens, with grid and stream."""
    launch(monkeypatch, LOADER_LOG="launch")
    assert [before for _, before in lines] == [0, 1, 2]
    assert [line for line, _ in lines[:2]] == [f"{CHOSEN}; grid (2, 1, 1), stream 0x0"] * 2


def test_dump_logs_buffers_and_parameters(cuda, pack, monkeypatch, lines):
    """What a crash needs: shapes, dtypes, strides, addresses, scalars, and the bytes that the kernel reads."""
    call = launch(monkeypatch, LOADER_LOG="dump")
    assert lines[-1] == (
        f"{CHOSEN.replace('M = 96', 'M = 32')}; grid (1, 1, 1), stream 0x0\n"
        f"  a: e2m1x2 [32, 32], strides [32, 1], at {call['a'].pointer:#x}\n"
        f"  scale: ue4m3 [1, 4], strides [4, 1], at {call['scale'].pointer:#x}\n"
        f"  offsets: i32 [4], strides [1], at {call['offsets'].pointer:#x}\n"
        f"  out: bf16 [32, 64], strides [64, 1], at {call['out'].pointer:#x}\n"
        f"  parameters: {cuda.launches[-1].parameters.hex()}", 2)


def test_steps_of_a_composite_are_logged(cuda, tmp_path, monkeypatch, lines):
    """Each with the composite that runs it."""
    write_composites(tmp_path / "pack")
    monkeypatch.setenv("LOADER_LOG", "launch")
    loader.launch("thrice", packs=tmp_path / "pack", **composite_arguments())
    assert [line.split(" for ")[0] for line, _ in lines] == [
        f"scale_rows/m64_{dtype} in thrice" for dtype in ("f32", "bf16", "bf16")]


def test_a_line_goes_somewhere(tmp_path):
    """To standard error where nobody has set up logging, else there alone, and not below the level that is set."""
    code = """
os.environ["LOADER_LOG"] = "launch"
import io, logging
sys.stderr, own = io.StringIO(), io.StringIO()
{setup}
loader.launch("scale_rows", packs=pack, **arguments())
print(*[stream.getvalue().count("scale_rows/m64_bf16") for stream in (sys.stderr, own)])
"""
    for setup, expected in (("pass", "1 0"), ("logging.basicConfig(stream=own)", "0 1"),
                            ("logging.getLogger('loader').setLevel(logging.WARNING)", "0 0")):
        assert run_with_pack(tmp_path, code.format(setup=setup)).strip() == expected


WRONG = {
    "LOADER_LOG": ("launches", "LOADER_LOG must be one of select, launch, dump, got 'launches'"),
    "LOADER_NVTX": ("yes", "LOADER_NVTX must be 1, got 'yes'"),
    "LOADER_TRACE_DIR": (__file__, "is no directory and cannot become one"),
}


@pytest.mark.parametrize("variable", WRONG)
def test_what_means_nothing_is_refused(cuda, pack, monkeypatch, variable):
    """At each call until it is set right; nothing is launched, and nothing else is turned on."""
    value, words = WRONG[variable]
    for name, other in (("LOADER_LOG", "select"), (variable, value)):
        monkeypatch.setenv(name, other)
    for _ in range(2):
        with pytest.raises(loader.SettingError) as raised:
            loader.launch("scale_rows", **arguments())
        assert words in str(raised.value) and raised.value.variable == variable
    assert cuda.launches == [] and observe.watchers == []
    monkeypatch.delenv(variable)
    loader.launch("scale_rows", **arguments())
    assert len(cuda.launches) == 1


def test_the_environment_is_read_anew_after_reload(cuda, pack, monkeypatch, lines):
    """And not before; what a callback sees goes on."""
    told = []
    loader.on_launch(told.append)
    for variables, expected in (({"LOADER_LOG": "launch"}, 3), ({"LOADER_LOG": "dump"}, 6)):
        launch(monkeypatch, **variables)
        assert len(lines) == expected
    assert "parameters" not in lines[-1][0]
    loader.reload()
    launch(monkeypatch)
    assert "parameters" in lines[-1][0] and len(lines) == 9
    loader.reload()
    launch(monkeypatch, LOADER_LOG="")
    assert len(lines) == 9 and len(told) == 12 and len(observe.watchers) == 1


# Definitions


def written(directory):
    return {path.name: json.loads(path.read_text()) for path in directory.iterdir()}


def check_schema(found):
    """The rules of the Definition schema, written down anew."""
    assert found.keys() == {"name", "op_type", "description", "axes", "inputs", "outputs", "reference"}
    assert all(type(found[key]) is str and found[key] for key in ("name", "op_type", "description", "reference"))
    for axis in found["axes"].values():
        assert axis.keys() == {"type", "value"} and axis["type"] == "const"
        assert type(axis["value"]) is int and axis["value"] >= 0
    for tensor in (*found["inputs"].values(), *found["outputs"].values()):
        assert tensor.keys() == {"shape", "dtype", "description"}
        assert tensor["shape"] is None or set(tensor["shape"]) <= found["axes"].keys()
        assert tensor["dtype"] in {"float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1",
                                   "int64", "int32", "int16", "int8", "bool"}
    function, = [node for node in ast.parse(found["reference"]).body if isinstance(node, ast.FunctionDef)]
    assert function.name == "run" and [a.arg for a in function.args.args] == list(found["inputs"])


def test_each_problem_is_written_once(cuda, pack, monkeypatch, tmp_path):
    """One file for each, before its launch, named by what is in it; the directory is made."""
    directory = tmp_path / "deep" / "traces"
    launch(monkeypatch, LOADER_TRACE_DIR=str(directory))
    loader.launch("scale_rows", **arguments(alpha=7.0))  # a value, not another problem
    first = written(directory)
    assert len(first) == 2 and {found["axes"]["M"]["value"] for found in first.values()} == {96, 32}
    assert all(f"{found['name']}.json" == name for name, found in first.items())
    loader.launch("scale_rows", **arguments(output="f32"))
    assert len(written(directory)) == 3
    for found in written(directory).values():
        check_schema(found)


def test_a_definition_says_what_was_launched(cuda, pack, monkeypatch, tmp_path):
    """Extents that are no dimensions are axes named by their expression; scalars have no shape."""
    launch(monkeypatch, LOADER_TRACE_DIR=str(tmp_path / "traces"))
    found, = [each for each in written(tmp_path / "traces").values() if each["axes"]["M"]["value"] == 96]
    assert found["name"].startswith("scale_rows_m96_k64_e3_") and found["op_type"] == "scale_rows"
    assert {name: axis["value"] for name, axis in found["axes"].items()} == {
        "M": 96, "K": 64, "E": 3, "K / 2": 32, "ceil_div(M, 32)": 3, "K / 16": 4, "E + 1": 4}
    assert found["inputs"]["a"] == {"shape": ["M", "K / 2"], "dtype": "int8", "description": "rows (e2m1x2)"}
    assert found["inputs"]["alpha"] == {"shape": None, "dtype": "float32", "description": "factor (f32)"}
    assert list(found["inputs"]) == ["a", "scale", "offsets", "alpha", "top"]
    assert found["outputs"] == {"out": {"shape": ["M", "K"], "dtype": "bfloat16", "description": "result (bf16)"}}
    with pytest.raises(NotImplementedError, match="scale_rows"):
        namespace = {}
        exec(found["reference"], namespace)
        namespace["run"](*range(5))


def test_every_dtype_has_a_name():
    """Those of buffers and of scalars."""
    from loader.manifest import DTYPE_BYTES, SCALAR_FORMATS

    assert definition.DTYPES.keys() == DTYPE_BYTES.keys() | SCALAR_FORMATS.keys()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_definition_is_written_whole_or_not_at_all(cuda, pack, monkeypatch, tmp_path, step):
    """What fails leaves no file, stops the launch, and is tried again at the next one."""
    def fail(*arguments, **options):
        raise OSError("disk full")

    with monkeypatch.context() as context:
        context.setattr(os, step, fail)
        for _ in range(2):
            with pytest.raises(OSError, match="disk full"):
                launch(context, LOADER_TRACE_DIR=str(tmp_path / "traces"))
    assert cuda.launches == [] and written(tmp_path / "traces") == {}
    monkeypatch.setenv("LOADER_TRACE_DIR", str(tmp_path / "traces"))
    loader.launch("scale_rows", **arguments())
    assert len(written(tmp_path / "traces")) == len(cuda.launches) == 1


def test_what_an_earlier_process_wrote_stays(cuda, pack, monkeypatch, tmp_path):
    """A file of that name has that content, and is not written again."""
    launch(monkeypatch, LOADER_TRACE_DIR=str(tmp_path / "traces"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "traces").iterdir()}
    monkeypatch.setattr(observers, "_in_force", ())
    monkeypatch.setattr(loader.api, "_calls", {})
    monkeypatch.setattr(os, "replace", None)
    launch(monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "traces").iterdir()} == before


# Ranges


@pytest.fixture
def ranges(cuda, monkeypatch):
    """The package nvtx, as a record of pushes and pops, each with how many launches the driver had then."""
    found = []
    fake = types.ModuleType("nvtx")
    fake.push_range = lambda message, domain: found.append((message, domain, len(cuda.launches)))
    fake.pop_range = lambda domain: found.append((None, domain, len(cuda.launches)))
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    monkeypatch.setenv("LOADER_NVTX", "1")
    return found


def test_a_launch_is_a_range(cuda, pack, ranges):
    """Named by kernel and variant, around the launch."""
    loader.launch("scale_rows", **arguments())
    assert ranges == [("scale_rows/m64_bf16", "loader", 0), (None, "loader", 1)]


def test_a_step_is_a_range_with_its_composite(cuda, tmp_path, ranges):
    """One for each kernel."""
    write_composites(tmp_path / "pack")
    loader.launch("thrice", packs=tmp_path / "pack", **composite_arguments(), workspace=FastTensor("u8", (4096,)))
    assert [name for name, _, _ in ranges[::2]] == [
        f"thrice: scale_rows/m64_{dtype}" for dtype in ("f32", "bf16", "bf16")]


def test_a_range_ends_where_the_launch_fails(cuda, pack, ranges):
    """Refused by the driver, or by a later callback."""
    loader.launch("scale_rows", **arguments())
    cuda.fail["cuLaunchKernelEx"] = 719
    with pytest.raises(loader.CudaError):
        loader.launch("scale_rows", **arguments())
    loader.on_launch(lambda launch: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        loader.launch("scale_rows", **arguments())
    assert [name is None for name, _, _ in ranges] == [False, True] * 3


def test_ranges_without_the_package(cuda, pack, monkeypatch):
    """Asked for and not there is an error, not silence."""
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setenv("LOADER_NVTX", "1")
    with pytest.raises(loader.MissingPackageError, match="LOADER_NVTX needs the package nvtx"):
        loader.launch("scale_rows", **arguments())
    assert cuda.launches == []
