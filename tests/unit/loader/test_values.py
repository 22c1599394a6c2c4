"""The rules of offsets, counts and indices, and the call that checks them on a device."""

import json
import struct

import numpy as np
import pytest
import sample_pack
from sample_call import arguments

import loader
from loader import values
from loader.manifest import Argument, Family, Values
from loader.signature import Problem

OFFSETS = Values("offsets", 0, "M", 1, True, None, None)
SCALES = Values("scales", 0, "S", 128, False, "offsets", None)
SLOTS = Values("slots", -1, 9, 1, False, None, None)
OWNED = SLOTS._replace(minimum=0, within="offsets")
GOOD = {"offsets": [2, 2, 132, 140], "scales": [0, 128, 384], "slots": [0, 9, -1, 4]}


def check(rules, dimensions=None, hidden=(), **given):
    """Of three experts with 0, 130 and 8 rows, unless another is given; ``hidden`` ones without an address."""
    arrays = {name: np.array(entries, np.int64 if name == "slots" else np.int32)
              for name, entries in (GOOD | given).items()}
    family = Family("f", "", tuple(Argument(name, "in", (), (), 4, "") for name in arrays), (), (), None, {}, {}, (),
                    (), tuple(rules))
    problem = Problem({name: f"i{8 * array.itemsize}" for name, array in arrays.items()},
                      {"M": 140, "S": 512, **(dimensions or {})}, tuple(array.nbytes for array in arrays.values()))
    values.check(family, problem, [None if name in hidden else array.ctypes.data for name, array in arrays.items()])


GOOD_CALLS = {
    "nothing unusual": {},
    "gaps, and another order": {"scales": [0, 256, 0]},
    "an expert without rows anywhere": {"scales": [-7, 128, 384]},
    "no rows at all": {"offsets": [5, 5, 5, 5], "scales": [9999, -1, 77]},
    "no entries": {"slots": []},
}


@pytest.mark.parametrize("given", GOOD_CALLS.values(), ids=GOOD_CALLS)
def test_what_a_kernel_can_follow(given):
    """Is no error."""
    check([OFFSETS, SCALES, SLOTS], **given)


def test_rules_about_what_has_no_address():
    """Are left out, and the others of the same kernel are not."""
    wrong = {"scales": [1, 1, 1], "hidden": ["scales"]}
    check([OFFSETS, SCALES, SLOTS], **wrong)
    with pytest.raises(loader.ValuesError, match="entry 3 of offsets is 141"):
        check([SCALES, OFFSETS], offsets=[2, 2, 132, 141], **wrong)


BAD_RULES = {
    "no multiple": (OFFSETS._replace(multiple=0), "minimum, maximum and multiple [0, 140, 0]"),
    "negative multiple": (OFFSETS._replace(multiple=-1), "minimum, maximum and multiple [0, 140, -1]"),
    "no number": (OFFSETS._replace(maximum=["*", 1e308, 10.0]), "minimum, maximum and multiple [0, inf, 1]"),
    "extents of others": (SCALES._replace(extents="slots"), "3 entries and 3 extents"),
}


@pytest.mark.parametrize("rule, message", BAD_RULES.values(), ids=BAD_RULES)
def test_rules_that_fit_no_call(rule, message):
    """A manifest may say them, and the call that they are about is refused."""
    with pytest.raises(loader.ValuesError) as caught:
        check([rule], slots=[0, 9, -1])
    assert str(caught.value) == f"f: the rule about {rule.argument} cannot be followed: {message}"


@pytest.mark.parametrize("offsets", [[0, 0, 0, 5], [-1, 0, 0, 1], [3, 0, 0, 1]])
def test_entries_that_count_are_there(offsets):
    """Offsets that no rule has looked at do not lead out of the entries."""
    with pytest.raises(loader.ValuesError, match=r"entry 0 of offsets is -?\d, expected the first of entries .* of 3"):
        check([OWNED], offsets=offsets, slots=[0, 1, 2])


BAD_CALLS = {
    "decreasing": ({"offsets": [0, 9, 8, 10]}, "entry 2 of offsets is 8, expected at least 9, the entry before it"),
    "negative": ({"offsets": [-1, 0, 1, 2]}, "entry 0 of offsets is -1, expected 0 to 140"),
    "past the end": ({"offsets": [0, 0, 0, 141]}, "entry 3 of offsets is 141, expected 0 to 140"),
    "not aligned": (
        {"scales": [0, 64, 384]},
        "entry 1 of scales is 64, expected a multiple of 128 in 0 to 256, with 256 rows up to 512",
    ),
    "ends too late": (
        {"scales": [0, 0, 512]},
        "entry 2 of scales is 512, expected a multiple of 128 in 0 to 384, with 128 rows up to 512",
    ),
    "overlapping": (
        {"scales": [0, 128, 256]},
        "entry 2 of scales is 256, expected at least 384, where the rows of entry 1 end",
    ),
    "the same": (
        {"scales": [0, 256, 256]},
        "entry 1 of scales is 256, expected at least 384, where the rows of entry 2 end",
    ),
    "an index too far": ({"slots": [0, 10]}, "entry 1 of slots is 10, expected -1 to 9"),
}


@pytest.mark.parametrize("given, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_what_no_kernel_can_follow(given, message):
    """The first such entry is named, with its value and what is expected."""
    with pytest.raises(loader.ValuesError) as raised:
        check([OFFSETS, SCALES, SLOTS], **given)
    assert str(raised.value).startswith(f"f: {message}")
    assert raised.value.kernel == "f" and raised.value.argument in message


def test_only_what_is_owned_counts():
    """Entries before the first offset and from the last one on hold anything."""
    check([OWNED], offsets=[1, 1, 2, 3], slots=[77, 0, 9, -5])
    with pytest.raises(loader.ValuesError, match="entry 2 of slots is 10, expected 0 to 9"):
        check([OWNED], offsets=[1, 1, 2, 3], slots=[77, 0, 10, -5])


@pytest.fixture
def ruled_pack(pack):
    """The sample pack with a rule for its offsets."""
    manifest, _ = sample_pack.build()
    rule = {"argument": "offsets", "minimum": 0, "maximum": "M", "multiple": 1, "ascending": True}
    manifest["families"]["scale_rows"]["values"] = [rule]
    (pack / "manifest.json").write_text(json.dumps(manifest))
    return pack


def test_a_check_reads_the_device(ruled_pack, cuda):
    """Behind the work of the stream, in the device's context; nothing is launched, and a launch reads nothing."""
    call = arguments()
    cuda.memory[call["offsets"].pointer] = struct.pack("<4i", 0, 5, 5, 96)
    assert loader.check("scale_rows", stream=7, **call) is None
    assert cuda.calls[-3:] == ["cuMemcpyDtoHAsync_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"]
    cuda.memory[call["offsets"].pointer] = struct.pack("<4i", 0, 5, 4, 96)
    with pytest.raises(loader.ValuesError, match="entry 2 of offsets is 4, expected at least 5"):
        loader.check("scale_rows", **call)
    assert cuda.launches == []
    cuda.calls.clear()
    loader.launch("scale_rows", **call)
    assert "cuMemcpyDtoHAsync_v2" not in cuda.calls and len(cuda.launches) == 1


def test_a_check_makes_those_of_a_launch(ruled_pack, cuda):
    """Of shapes, for example; and where there is nothing to compute nothing is read."""
    with pytest.raises(loader.ShapeError):
        loader.check("scale_rows", **arguments(offsets=arguments(e=2)["offsets"], a=arguments(k=32)["a"]))
    loader.check("scale_rows", **arguments(m=0))
    assert "cuMemcpyDtoHAsync_v2" not in cuda.calls
