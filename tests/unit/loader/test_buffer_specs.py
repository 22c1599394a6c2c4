"""What buffers of a call must be, of as much of it as is known; and the errors of what is not, or is wrong."""

import copy

import pytest
import sample_pack
from device_buffers import ArrayInterface, FastTensor, Tensor
from sample_call import arguments
from test_composite import composite

import loader

NUMBERS = {"M": 96, "K": 64, "E": 3, "top": 4}


@pytest.fixture(autouse=True)
def pack_with_room(tmp_path, monkeypatch):
    """The sample pack, whose kernel is also there with room of its own, an output that alone gives P, and with an
    optional input that alone gives G; and a composite."""
    manifest, files = sample_pack.build()
    manifest |= {"schema": 4, "composites": {"thrice": composite()}}
    family = copy.deepcopy(manifest["families"]["scale_rows"])
    family["arguments"].append({"name": "room", "direction": "out", "dtypes": ["u8"], "shape": ["P", 256],
                                "alignment": 64, "doc": "room"})
    family["arguments"].append({"name": "extra", "direction": "in", "dtypes": ["f32"], "shape": ["G"], "alignment": 4,
                                "doc": "more", "optional": True})
    family["constraints"].append({"text": "P >= top", "expression": [">=", "P", "top"]})
    manifest["families"]["with_room"] = family
    sample_pack.write(tmp_path, manifest, files)
    monkeypatch.setenv("LOADER_ARTIFACTS", str(tmp_path))


def given(**replaced):
    """The inputs of a call and its scalars."""
    return arguments(**{"out": None, **replaced})


@pytest.mark.parametrize("kind", [FastTensor, Tensor])
def test_outputs_of_buffers(kind):
    """Shape, dtypes, alignment and strides; which of several dtypes only the call can say. No driver is opened."""
    spec, = loader.outputs("scale_rows", **given(kind=kind)).values()
    assert spec == loader.BufferSpec((96, 64), ("bf16", "f32"), 16)
    assert spec.strides == (64, 1)
    with pytest.raises(loader.DtypeError, match="bf16 or f32"):
        _ = spec.dtype
    spec = loader.outputs("scale_rows", **given(kind=kind), out="f32")["out"]
    assert (spec.dtypes, spec.dtype, spec.nbytes) == (("f32",), "f32", 96 * 64 * 4)


def test_a_given_output_is_checked_and_described():
    """As at a launch."""
    call = arguments(output="f32")
    assert loader.outputs("scale_rows", **call)["out"].dtypes == ("f32",)
    with pytest.raises(loader.ShapeError, match=r"out dimension 0 \(M\) expects 96, got 95"):
        loader.outputs("scale_rows", **{**call, "out": FastTensor("f32", (95, 64))})
    with pytest.raises(loader.ReadOnlyError, match="out"):
        loader.outputs("scale_rows", **{**call, "out": Tensor("f32", (96, 64), read_only=True)})


def test_buffers_of_numbers():
    """All of a problem that is only numbers; elements of FP4 are counted in bytes. A word says a dtype."""
    assert loader.buffers("scale_rows", **NUMBERS, out="bf16") == {
        "a": loader.BufferSpec((96, 32), ("e2m1x2",), 16), "scale": loader.BufferSpec((3, 4), ("ue4m3",), 4),
        "offsets": loader.BufferSpec((4,), ("i32",), 4), "out": loader.BufferSpec((96, 64), ("bf16",), 16)}
    assert loader.outputs("scale_rows", **NUMBERS).keys() == {"out"}


def test_specs_stand_for_buffers():
    """Those of ``buffers`` give what the buffers would; some may exist, and the rest follows."""
    specs = loader.buffers("scale_rows", **NUMBERS)
    inputs = {name: specs[name] for name in ("a", "scale", "offsets")}
    assert loader.buffers("scale_rows", **inputs, top=4) == specs
    words = {"scale": "ue4m3", "offsets": "i32", "E": 3, "top": 4}
    assert loader.buffers("scale_rows", FastTensor("fp4x2", (96, 32)), **words) == specs
    with pytest.raises(loader.ConstraintError, match="K % 32 == 0"):
        loader.buffers("scale_rows", a=loader.BufferSpec([96, 24], ("e2m1x2",)), **words)


@pytest.mark.parametrize("call", [{}, NUMBERS], ids=["buffers", "numbers"])
def test_a_dimension_that_follows_from_nothing_is_named(call):
    """With the output that has it and what it has to be; given as a number it is checked, too."""
    call = call or given()
    text = "dimension P of room follows from nothing .* P >= top"
    with pytest.raises(loader.MissingArgumentError, match=text) as caught:
        loader.outputs("with_room", **call)
    assert (caught.value.argument, caught.value.kernel) == ("P", "with_room")
    assert loader.outputs("with_room", **call, P=4)["room"] == loader.BufferSpec((4, 256), ("u8",), 64)
    with pytest.raises(loader.ConstraintError, match="P >= top does not hold"):
        loader.outputs("with_room", **call, P=3)
    with pytest.raises(loader.ShapeError, match="room dimension 0 .* expects a size that gives P >= 0, got -1"):
        loader.outputs("with_room", **call, P=-1)
    for wrong in (True, 4.0, "4", None):
        with pytest.raises(loader.ScalarError, match="P expects a number"):
            loader.outputs("with_room", **call, P=wrong)


def test_an_optional_input_is_there_where_it_is_given():
    """Its dimension is one of the call's only then."""
    call = {**NUMBERS, "P": 4}
    assert "extra" not in loader.buffers("with_room", **call)
    assert loader.buffers("with_room", **call, extra="f32", G=2)["extra"] == loader.BufferSpec((2,), ("f32",), 4)
    assert loader.buffers("with_room", **given(extra=FastTensor("f32", (5,))), P=4)["extra"].shape == (5,)
    with pytest.raises(loader.UnknownArgumentError, match="nothing that this call gives has the dimension G"):
        loader.buffers("with_room", **call, G=2)
    with pytest.raises(loader.MissingArgumentError, match="dimension G of extra"):
        loader.buffers("with_room", **call, extra="f32")


@pytest.mark.parametrize("change,error,text", [
    ({"scale": None}, loader.MissingArgumentError, "missing scale"),
    ({"top": None}, loader.MissingArgumentError, "missing top"),
    ({"top": 0}, loader.ConstraintError, "top >= 1 does not hold"),
    ({"alpha": "1"}, loader.ScalarError, "alpha expects a number"),
    ({"a": FastTensor("f32", (96, 32))}, loader.DtypeError, "a expects e2m1x2, got float32"),
    ({"a": FastTensor("fp4x2", (96,))}, loader.RankError, "a expects 2 dimensions"),
    ({"a": FastTensor("fp4x2", (96, 32), strides=(1, 96))}, loader.StrideError, "a must be row major"),
    ({"a": FastTensor("fp4x2", (96, 32), pointer=0x7F00_0000_0008)}, loader.AlignmentError, "a must start at"),
    ({"a": FastTensor("fp4x2", (96, 32), device=(1, 0))}, loader.HostBufferError, "a is a host buffer"),
    ({"a": object()}, loader.BufferProtocolError, "a: builtins.object gives no buffer"),
    ({"scale": FastTensor("e4m3", (4, 4))}, loader.ShapeError, "scale dimension 0"),
    ({"a": loader.BufferSpec((96, 32), ("e2m1x2", "u8"))}, loader.DtypeError, "a takes e2m1x2, got 'e2m1x2 or u8'"),
    ({"a": loader.BufferSpec((96, 32.0), ("e2m1x2",))}, loader.ShapeError, "a has a shape of whole numbers"),
    ({"a": loader.BufferSpec((96, 32), ("f32",))}, loader.DtypeError, "a expects e2m1x2, got float32"),
    ({"out": "f16"}, loader.DtypeError, "out expects bf16 or f32, got float16"),
    ({"out": "double"}, loader.DtypeError, "out takes bf16 or f32, got 'double'"),
    ({"M": 95}, loader.ShapeError, r"a dimension 0 \(M\) expects 95, got 96"),
    ({"Q": 1}, loader.UnknownArgumentError, "has no argument 'Q'"),
    ({"b": FastTensor("f32", (1,))}, loader.UnknownArgumentError, "has no argument 'b'"),
], ids=lambda value: getattr(value, "__name__", None) if isinstance(value, type) else None)  # fmt: skip
def test_what_is_wrong_is_an_error_of_a_launch(change, error, text):
    """The class and the words, of what is given as a buffer or as something else."""
    with pytest.raises(error, match=text):
        loader.outputs("scale_rows", **given(**change))


def test_numbers_that_give_no_shape():
    """Also a dimension that nothing has."""
    with pytest.raises(loader.ShapeError, match=r"a dimension 1 \(K / 2\) has no size: 63 / 2 is not a whole number"):
        loader.outputs("scale_rows", **{**NUMBERS, "K": 63})
    with pytest.raises(loader.MissingArgumentError, match="dimension K of a follows from nothing"):
        loader.outputs("scale_rows", M=96, E=3, top=4)
    with pytest.raises(loader.UnknownKernelError, match="scale_rows"):
        loader.outputs("scale_row", **NUMBERS)


def test_a_composite_has_its_workspace():
    """That of one go, as ``workspace_bytes`` says; what the call gives as a workspace is checked."""
    call = {"M": 24, "K": 64, "E": 3, "R": 1, "alpha": 1.0}
    bytes_ = loader.workspace_bytes("thrice", **call, first="f32")
    specs = loader.outputs("thrice", **call, first="f32")
    assert specs.keys() == {"first", "second", "workspace"}
    assert specs["workspace"] == loader.BufferSpec((bytes_,), ("u8",), 256)
    del call["R"]
    given = {"x": FastTensor("fp4x2", (24, 32)), "scale": FastTensor("e4m3", (1, 4)), "offsets": "i32", "E": 3,
             "alpha": 1.0, "first": "f32"}
    assert loader.outputs("thrice", **given, workspace=FastTensor("u8", (bytes_ - 1,))) == specs
    with pytest.raises(loader.DtypeError, match="workspace expects u8"):
        loader.outputs("thrice", **given, workspace=FastTensor("f32", (bytes_,)))


def test_a_launch_takes_what_was_described(cuda):
    """Its own words of dtypes for buffers of just that shape and alignment."""
    specs = loader.buffers("scale_rows", **NUMBERS, out="f32")
    words = {"e2m1x2": "fp4x2", "ue4m3": "e4m3"}
    buffers = {name: FastTensor(words.get(spec.dtype, spec.dtype), spec.shape, strides=spec.strides)
               for name, spec in specs.items()}
    loader.launch("scale_rows", **buffers, top=4)
    assert len(cuda.launches) == 1
    with pytest.raises(loader.ArgumentError):
        loader.outputs("scale_rows", **{**buffers, "a": ArrayInterface("|u1", (96, 31))}, top=4)
