"""Optional arguments: a call gives them or leaves them out, and each is a problem of its own."""

import copy
import struct

import pytest
import sample_pack
from device_buffers import FastTensor, Tensor
from fake_cuda import tensor_map
from sample_call import arguments

import loader
from loader.__main__ import main
from loader.plan import Prepared


def optional(name, dtype, shape, **keys):
    return {"name": name, "direction": "in", "dtypes": [dtype], "shape": shape, "alignment": 4, "doc": name,
            "optional": True, **keys}


FAMILY = {
    **sample_pack.FAMILY,
    "arguments": [*sample_pack.FAMILY["arguments"], optional("shift", "f32", ["M"]), optional("table", "i32", ["G"]),
                  optional("order", "i32", ["G"])],
    "constraints": [*sample_pack.FAMILY["constraints"],
                    {"text": "sizeof_table == 0 or G >= 2",
                     "expression": ["or", ["==", "sizeof_table", 0], [">=", "G", 2]]}],
}  # fmt: skip
PARAMETERS = [
    *sample_pack.PARAMETERS,
    *({"kind": "pointer", "name": name, "offset": 176 + 8 * i, "size": 8, "argument": name}
      for i, name in enumerate(("shift", "table", "order"))),
    {"kind": "scalar", "name": "G", "offset": 200, "size": 4, "dtype": "i32", "value": "G"},
]  # fmt: skip
COMPOSITE = {
    "summary": "scales, then scales without a shift",
    "arguments": [
        *(argument for argument in sample_pack.FAMILY["arguments"] if argument["name"] != "scale"),
        {"name": "scale", "direction": "in", "dtypes": ["ue4m3"], "shape": ["R", ["/", "K", 16]], "alignment": 4,
         "doc": "scales"},
        optional("bias", "f32", ["M"]), optional("table", "i32", ["G"]),
    ],
    "scalars": [], "constraints": [], "skip": ["==", "M", 0], "split": "M",
    "workspace": [{"name": "between", "dtype": "bf16", "shape": ["M", "K"]}],
    "steps": [
        {"kernel": "scale_rows", "scalars": {"alpha": 1.0, "top": 1},
         "arguments": {"a": "a", "scale": "scale", "offsets": "offsets", "out": out, "shift": shift, "table": "table",
                       "order": None}}
        for out, shift in (("between", "bias"), ("out", None))
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def optional_pack(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_pack, "FAMILY", FAMILY)
    monkeypatch.setattr(sample_pack, "PARAMETERS", PARAMETERS)
    write(tmp_path / "pack")
    monkeypatch.setenv("LOADER_ARTIFACTS", str(tmp_path / "pack"))


def write(directory, path=(), value=None):
    """The pack, with one value of its manifest replaced."""
    manifest, files = sample_pack.build()
    manifest |= {"schema": 3, "composites": {"twice": copy.deepcopy(COMPOSITE)}}
    place = manifest
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = value
    sample_pack.write(directory, manifest, files)


def passed(launch):
    """Addresses of the optional arguments, and G."""
    return struct.unpack_from("<QQQi", launch.parameters, 176)


@pytest.mark.parametrize("kind", [FastTensor, Tensor])
def test_address_and_dimensions_of_what_is_left_out_are_zero(cuda, kind):
    """By name or by None, at the first call of a problem and at later ones; a given one is passed as any other."""
    shift, table = kind("f32", (96,)), kind("i32", (7,))
    for _ in range(3):
        for given, expected in ((({}, (0, 0, 0, 0))), ({"shift": shift}, (shift.pointer, 0, 0, 0)),
                                ({"shift": None, "table": table, "order": None}, (0, table.pointer, 0, 7)),
                                ({"order": table}, (0, 0, table.pointer, 7)),
                                ({"shift": shift, "table": table}, (shift.pointer, table.pointer, 0, 7))):
            loader.launch("scale_rows", **arguments(kind), **given)
            assert passed(cuda.launches[-1]) == expected
            loader.plan("scale_rows", **arguments(kind), **given).launch(0)
            assert passed(cuda.launches[-1]) == expected


def test_each_is_a_problem_that_is_found_again(cuda, monkeypatch):
    """Later calls with and without take the way of a remembered problem."""
    prepared = []
    launch = Prepared.__init__
    monkeypatch.setattr(Prepared, "__init__", lambda self, *given: prepared.append(self) or launch(self, *given))
    call, shift = arguments(), FastTensor("f32", (96,))
    for given in (None, shift, None, shift):
        loader.launch("scale_rows", **call, shift=given)
    assert len(prepared) == 2
    monkeypatch.setattr("loader.call.Call._launch_new", lambda *given: pytest.fail("not remembered"))
    for given in (None, shift):
        loader.launch("scale_rows", **call, shift=given)


def test_a_required_argument_is_not_left_out(cuda):
    """Also after a correct call, whose addresses are not taken in its place."""
    call = arguments()
    for _ in range(2):
        with pytest.raises(loader.MissingArgumentError, match="^scale_rows: a is None and may not be left out$"):
            loader.launch("scale_rows", **{**call, "a": None})
        with pytest.raises(loader.MissingArgumentError, match="^scale_rows: missing a$"):
            loader.launch("scale_rows", **{name: value for name, value in call.items() if name != "a"})
        assert len(cuda.launches) in (0, 1)
        loader.launch("scale_rows", **call)
        cuda.launches.clear()


WRONG = {
    "dtype": ({"shift": FastTensor("bf16", (96,))}, loader.DtypeError, "shift expects f32, got bfloat16"),
    "shape": ({"shift": FastTensor("f32", (95,))}, loader.ShapeError, "shift dimension 0 (M) expects 96, got 95"),
    "shape of another optional one": (
        {"table": FastTensor("i32", (7,)), "order": FastTensor("i32", (8,))}, loader.ShapeError,
        "order dimension 0 (G) expects 7, got 8"),
    "rank": ({"shift": FastTensor("f32", (96, 1))}, loader.RankError, "shift expects 1 dimensions [M], got 2"),
    "alignment": ({"shift": FastTensor("f32", (96,), pointer=0x1002)}, loader.AlignmentError, "shift must start at a"),
    "device": ({"shift": FastTensor("f32", (96,), device=(2, 1))}, loader.DeviceError, "shift is on cuda:1"),
    "constraint": ({"table": FastTensor("i32", (1,))}, loader.ConstraintError, "sizeof_table == 0 or G >= 2 does not"),
    "no buffer": ({"shift": 0}, loader.BufferProtocolError, "shift: builtins.int gives no buffer"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_given_one_is_checked_as_any_other(cuda, case):
    """Before anything is launched."""
    given, error, words = WRONG[case]
    with pytest.raises(error) as raised:
        loader.launch("scale_rows", **arguments(), **given)
    assert words in str(raised.value) and cuda.launches == []


def test_a_given_one_overlaps_no_output(cuda):
    """By its address, also at later calls of its problem."""
    call, shift = arguments(), FastTensor("f32", (96,))
    loader.launch("scale_rows", **call, shift=shift)
    shift.pointer = call["out"].pointer
    with pytest.raises(loader.OverlapError, match="out is written and shares memory with shift"):
        loader.launch("scale_rows", **call, shift=shift)


def test_bind_keeps_what_is_there_and_what_is_not(cuda):
    """A plan with it takes another buffer, one without takes none."""
    call, shifts = arguments(), [FastTensor("f32", (96,)) for _ in range(2)]
    loader.plan("scale_rows", **call, shift=shifts[0]).bind(shift=shifts[1]).launch(0)
    assert passed(cuda.launches[-1])[0] == shifts[1].pointer
    without = loader.plan("scale_rows", **call).bind(shift=None)
    for plan, given, words in ((without, shifts[0], "shift was planned without a buffer, got a buffer; make a new"),
                               (loader.plan("scale_rows", **call, shift=shifts[0]), None,
                                "shift was planned with a buffer, got None; make a new plan"),
                               (without, {"a": None}, "a is None and may not be left out")):
        with pytest.raises(loader.MissingArgumentError, match=words):
            plan.bind(**(given if isinstance(given, dict) else {"shift": given}))


def test_explain_takes_it_where_it_is_named(cuda):
    """By its dtype, and with its dimensions; or by a buffer, or None for one."""
    problem = {"M": 96, "K": 64, "E": 3, "top": 4, "device": "120a"}
    assert loader.explain("scale_rows", **problem).problem["G"] == 0
    assert loader.explain("scale_rows", **problem, shift=None).problem["G"] == 0
    assert loader.explain("scale_rows", **problem, table="i32", G=7).problem["G"] == 7
    assert loader.explain("scale_rows", **arguments(), order=FastTensor("i32", (7,))).problem["G"] == 7
    assert loader.explain("scale_rows", **arguments(), order=None).problem["G"] == 0
    with pytest.raises(loader.MissingArgumentError, match="dimension G must be given as a number, got None"):
        loader.explain("scale_rows", **problem, table="i32")
    with pytest.raises(loader.ConstraintError, match="sizeof_table == 0 or G >= 2 does not hold"):
        loader.explain("scale_rows", **problem, table="i32", G=1)


def test_the_signature_says_so(cuda, capsys):
    """In ``kernels()`` and on the command line, which also says what a step leaves out."""
    assert "shift: f32 [M] = None, table: i32 [G] = None" in loader.kernels()["scale_rows"].signature
    assert main(["inspect", "scale_rows"]) == 0
    assert "order: i32 [G] = None" in capsys.readouterr().out
    assert main(["inspect", "twice"]) == 0
    assert "scale_rows  order=None, out=between, shift=bias" in capsys.readouterr().out


def of_composite(**given):
    call = {name: value for name, value in arguments().items() if name not in ("alpha", "top")}
    return call | {"scale": FastTensor("e4m3", (3, 4))} | given


def test_a_composite_hands_on_what_it_was_given(cuda):
    """To the steps that take it; None stays None, and what a step leaves out is 0."""
    bias, table = FastTensor("f32", (96,)), FastTensor("i32", (7,))
    for _ in range(2):
        for given in ({}, {"bias": bias}, {"bias": bias, "table": table}, {"bias": None, "table": table}):
            loader.launch("twice", **of_composite(**given))
            first, second = cuda.launches[-2:]
            of_table = (table.pointer, 0, 7) if "table" in given else (0, 0, 0)
            assert passed(first) == (bias.pointer if given.get("bias") else 0, *of_table)
            assert passed(second) == (0, *of_table)
    assert loader.workspace_bytes("twice", M=96, K=64, E=3, R=3) == 96 * 64 * 2


@pytest.mark.parametrize("given", [True, False])
def test_chunks_of_a_call_that_leaves_one_out(cuda, given):
    """A chunk's part of an optional buffer is its own; of none there is no part."""
    workspace, bias = FastTensor("u8", (32 * 128,)), FastTensor("f32", (96,)) if given else None
    loader.launch("twice", **of_composite(scale=FastTensor("e4m3", (1, 4)), bias=bias), workspace=workspace)
    expected = [bias.pointer + 4 * first if given else 0 for first in (0, 32, 64)]
    assert [passed(launch)[0] for launch in cuda.launches] == [p for first in expected for p in (first, 0)]
    maps = [launch.parameters[:128] for launch in cuda.launches]
    assert len(set(maps)) == 3 and len(maps[0]) == len(tensor_map(0, 0, (32, 32), (32,), (16, 64), 1, 2))


DAMAGE = {
    "no truth value": (("families", "scale_rows", "arguments", 4, "optional"), 1, "expected true or false, got 1"),
    "tensor map": (("artifacts", 0, "parameters", 0, "argument"), "shift", "expected one of a, scale, offsets, out"),
    "matched": (("families", "scale_rows", "select", "match", "out"), "shift", "an argument that is not optional"),
    "dimension that only it gives": (
        ("families", "scale_rows", "arguments", 1, "shape"), ["M", ["ceil_div", "G", 2]],
        "no shape gives the dimension G"),
    "dimensions of two optional ones": (
        ("families", "scale_rows", "arguments", 5, "shape"), [["*", "G", "H"]], "no shape gives the dimension G, H"),
    "step that needs it": (
        ("composites", "twice", "steps", 0, "arguments", "offsets"), "table", "a buffer that every call gives"),
    "step that needs what it leaves out": (
        ("composites", "twice", "steps", 0, "arguments", "offsets"), None, "expected an argument or a buffer of the"),
    "workspace of its dtype": (("composites", "twice", "workspace", 0, "dtype"), "bias", "got 'bias'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_manifest_relies_on_no_optional_argument(cuda, tmp_path, case):
    """Where a call could not do without it."""
    path, value, words = DAMAGE[case]
    write(tmp_path / "damaged", path, value)
    with pytest.raises(loader.ManifestError) as raised:
        loader.launch("scale_rows", **arguments(), packs=[str(tmp_path / "damaged")])
    assert words in str(raised.value) and cuda.launches == []
