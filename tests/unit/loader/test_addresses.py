"""Where buffers lie: what is written shares memory with nothing, inputs may share theirs, empty ones lie anywhere."""

import itertools
import struct

import pytest
import sample_pack
from device_buffers import ArrayInterface, FastTensor, Tensor
from sample_call import arguments

import loader

BYTES = {"a": 96 * 32, "scale": 3 * 4, "offsets": 4 * 4, "out": 96 * 64 * 2}
ALIGNMENTS = {"a": 16, "scale": 4, "offsets": 4, "out": 16}
FAR_APART = {name: 0x7F10_0000_0000 + (i << 20) for i, name in enumerate(BYTES)}
_tops = itertools.count(100)

# A call reaches the check of its addresses as a new problem, as a known one, as a plan, and with a buffer swapped.
WAYS = {
    "new": lambda packs, call, name: loader.launch("scale_rows", packs=packs, **{**call, "top": next(_tops)}),
    "known": lambda packs, call, name: loader.launch("scale_rows", packs=packs, **call),
    "plan": lambda packs, call, name: loader.plan("scale_rows", packs=packs, **call).launch(),
    "bind": lambda packs, call, name: loader.plan("scale_rows", packs=packs, **apart()).bind(
        **{name: call[name]}).launch(),
}


def apart():
    """A right call, whose buffers lie far from each other."""
    call = arguments()
    for name, pointer in FAR_APART.items():
        call[name].pointer = pointer
    return call


def changed_pack(directory, **changes):
    """The sample pack, for one architecture, with changes to its family's arguments."""
    manifest, files = sample_pack.build(["120a"])
    for argument in manifest["families"]["scale_rows"]["arguments"]:
        argument |= changes.get(argument["name"], {})
    sample_pack.write(directory, manifest, files)
    return directory


def refused(cuda, way, packs, call, name):
    """The error of a call that launched nothing, or None where it launched."""
    before = len(cuda.launches)
    try:
        WAYS[way](packs, call, name)
    except loader.OverlapError as error:
        assert len(cuda.launches) == before
        return error
    assert len(cuda.launches) == before + 1
    return None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("directions", [*itertools.product(("in", "out", "inout"), repeat=2)])
def test_only_inputs_may_share_memory(cuda, tmp_path, directions, way):
    """Any two buffers, one of which begins in the last bytes of the other: refused unless both are only read."""
    for first, second in itertools.permutations(BYTES, 2):
        of = dict.fromkeys(BYTES, "in") | {first: directions[0], second: directions[1]}
        packs = changed_pack(tmp_path / f"{first} {second}", **{name: {"direction": of[name]} for name in BYTES})
        loader.launch("scale_rows", packs=packs, **apart())
        call, step = apart(), ALIGNMENTS[second]
        last = call[first].pointer + BYTES[first] - 1
        call[second].pointer = last // step * step
        error = refused(cuda, way, packs, call, second)
        if directions == ("in", "in"):
            assert error is None
        else:
            assert {error.argument, error.got} == {first, second} and of[error.argument] != "in"
            assert str(error) == f"scale_rows: {error.argument} is written and shares memory with {error.got}"
        call[second].pointer = (last // step + 1) * step
        assert refused(cuda, way, packs, call, second) is None


def test_all_inputs_may_be_one_buffer(cuda, pack):
    """The kernel gets the same address for each."""
    call = apart()
    call["scale"].pointer = call["offsets"].pointer = call["a"].pointer
    for way in ("new", "known", "plan"):
        assert refused(cuda, way, pack, call, None) is None
        pointers = struct.unpack_from("<3Q", cuda.launches[-1].parameters, 128)
        assert pointers == (call["a"].pointer, call["a"].pointer, call["out"].pointer)


@pytest.mark.parametrize("direction", ["in", "out", "inout"])
@pytest.mark.parametrize("at", [0, 1, FAR_APART["a"] + 64, FAR_APART["out"] + 64], ids=hex)
def test_an_empty_buffer_lies_anywhere(cuda, tmp_path, at, direction):
    """A kernel that runs beside an empty buffer gets its address as it is: null, odd, or inside another buffer."""
    packs = changed_pack(tmp_path, offsets={"shape": ["E"], "direction": direction})
    empty = FastTensor("i32", (0,), pointer=at)
    call = {**apart(), "offsets": empty}
    for way in ("new", "known", "plan"):
        WAYS[way](packs, call, None)
    loader.plan("scale_rows", packs=packs, **{**call, "offsets": FastTensor("i32", (0,))}).bind(offsets=empty).launch()
    assert [struct.unpack_from("<Q", launch.parameters, 136)[0] for launch in cuda.launches] == [at] * 4


EMPTY = {
    "null": dict.fromkeys(("a", "scale", "out"), 0),
    "equal": dict.fromkeys(("a", "scale", "out"), 0x7F30_0000_0000),
    "odd": {"a": 1, "scale": 3, "out": 0x7F30_0000_0001},
    "inside offsets": dict.fromkeys(("a", "scale", "out"), FAR_APART["offsets"] + 4),
}


@pytest.mark.parametrize("kind", [FastTensor, Tensor])
@pytest.mark.parametrize("where", EMPTY)
def test_no_rows_at_any_address(cuda, pack, where, kind):
    """Where a family computes nothing for M = 0, its empty buffers may have any address, and any strides."""
    call = arguments(kind, m=0)
    call["offsets"].pointer = FAR_APART["offsets"]
    for name, pointer in EMPTY[where].items():
        call[name].pointer = pointer
    call["out"] = kind("bf16", (0, 64), pointer=EMPTY[where]["out"], strides=[7, 3])
    for _ in range(2):
        loader.launch("scale_rows", **call)
    plan = loader.plan("scale_rows", **call)
    plan.bind(a=call["a"]).launch()
    assert plan.steps == () and not cuda.launches


def test_an_empty_array_lies_nowhere(cuda, pack):
    """An empty CUDA array at address 0 has no device and goes with buffers of any."""
    call = arguments(m=0, a=ArrayInterface("|u1", (0, 32), pointer=0), device=(2, 1))
    loader.launch("scale_rows", **call)
    assert "cuPointerGetAttribute" not in cuda.calls and not cuda.launches


def test_a_buffer_with_bytes_has_an_address(cuda, pack):
    """Address 0 is refused of every buffer that is not empty."""
    for name in BYTES:
        call = apart()
        call[name].pointer = 0
        with pytest.raises(loader.BufferProtocolError, match=f"scale_rows: {name} has address 0"):
            loader.launch("scale_rows", **call)
    assert not cuda.launches
