"""Safetensors files: what is read, what is refused, and how a file is written."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from integrations import safetensors_file
from integrations.safetensors_file import SafetensorsError, SafetensorsFile


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"", b"", "a header of"),
        ((1 << 60).to_bytes(8, "little"), b"", "a header of 1152921504606846976 bytes"),
        (b"\xff\xfe", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"a": entry()}, b"abc", "the tensors end at byte"),
        ({"a": entry()}, b"abcde", "the tensors end at byte"),
        ({"a": entry(), "b": entry(offsets=(2, 6))}, b"abcdef", "b begins at byte"),
        ({"a": entry(), "b": entry(offsets=(5, 9))}, b"abcdefghi", "b begins at byte"),
        ({"a": entry(shape=(5,))}, b"abcd", "does not fill"),
        ({"a": entry(shape=(-4,))}, b"abcd", "where a list of sizes belongs"),
        ({"a": entry(shape=(True,), offsets=(0, 1))}, b"a", "where a list of sizes belongs"),
        ({"a": entry(shape=(1,) * 33)}, b"a", "where a list of sizes belongs"),
        ({"a": entry(shape=(0, 1 << 63), offsets=(0, 0))}, b"", "where a list of sizes belongs"),
        ({"a": entry(shape=(0, 1 << 40, 1 << 20), offsets=(0, 0))}, b"", "of more than any array"),
        ({"a": entry(shape=(1 << 40, 1 << 40))}, b"abcd", "of more than any array"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "not JSON: Exceeds the limit"),
        ({"a": entry(offsets=(0,))}, b"abcd", "does not fill"),
        ({"a": entry(dtype=["U8"])}, b"abcd", r"a is of a dtype \['U8'\] that is no word"),
        ({"a": entry(dtype="F4")}, b"abcd", "does not fill"),
        ({"a": entry(dtype="F4", shape=(7,))}, b"abcd", "does not fill"),
        ({"a": entry(dtype="C64", shape=(1,))}, b"abcd", "does not fill"),
        ({"a": entry(dtype="NEW", offsets=(4, 0))}, b"abcd", "does not fill"),
        ({"a": entry(dtype="NEW", offsets=(0, 3))}, b"abcd", "the tensors end at byte"),
        ({"a": entry(dtype="NEW"), "b": entry(dtype="NEW", offsets=(2, 6))}, b"abcdef", "b begins at byte"),
        ({"a": {**entry(), "more": 1}}, b"abcd", "exactly dtype, shape and data_offsets"),
        ({"a": 3}, b"abcd", "exactly dtype, shape and data_offsets"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path, header, data, message):
    """Every byte behind a well-formed header belongs to exactly one tensor."""
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    whole = text if message.startswith("a header of") else len(text).to_bytes(8, "little") + text + data
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(SafetensorsError, match=message):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    """A failure while a file is filled leaves the old one and nothing else."""
    path = tmp_path / "a.safetensors"
    layout = {"small": ("F32", (3,)), "bytes": ("U8", (5, 1)), "empty": ("F8_E4M3", (0, 4))}
    with safetensors_file.create(path, layout, {"key": "value"}) as arrays:
        arrays["small"][:] = 2
    before = path.read_bytes()
    assert {name: tuple(tensor.shape) for name, tensor in safetensors.torch.load(before).items()} == {
        "small": (3,), "bytes": (5, 1), "empty": (0, 4)
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt), safetensors_file.create(path, layout, {}) as arrays:
        arrays["small"][:] = 3
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_tensor_of_another_type_is_in_nobodys_way(tmp_path):
    """Types that are not read are listed; only reading one is an error."""
    path = tmp_path / "a.safetensors"
    tensors = {
        "complex": torch.zeros(3, dtype=torch.complex64),
        "fp4": torch.zeros((2, 3), dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    safetensors.torch.save_file(tensors, path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    end = path.stat().st_size - 8 - length
    header["later"] = {"dtype": "F3_LATER", "shape": [7], "data_offsets": [end, end + 3]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + length :] + b"abc")

    file = SafetensorsFile(path)
    assert {name: tensor.dtype for name, tensor in file.tensors.items()} == {
        "complex": "C64", "fp4": "F4", "bytes": "U8", "later": "F3_LATER"
    }  # fmt: skip
    assert file.read("bytes").tolist() == [0, 1, 2, 3, 4]
    for name, dtype in (("complex", "C64"), ("fp4", "F4"), ("later", "F3_LATER")):
        with pytest.raises(SafetensorsError) as caught:
            file.read(name)
        known = ", ".join(safetensors_file.NUMPY)
        assert str(caught.value) == f"{path}: {name} is {dtype}; only {known} are read"


def test_every_tensor_is_aligned_to_its_items(tmp_path):
    """Whatever the names and the length of the header, a tensor begins at a multiple of the size of its items."""
    layout = {"a": ("U8", (5,)), "b": ("F32", (3,)), "c": ("F8_E4M3", (1, 7)), "d": ("I64", (2,))}
    for length in range(64):
        path = tmp_path / "a.safetensors"
        with safetensors_file.create(path, layout, {"key": "x" * length}):
            pass
        for name, tensor in SafetensorsFile(path).tensors.items():
            assert tensor.begin % safetensors_file.NUMPY[layout[name][0]].itemsize == 0


def test_a_file_takes_its_name_once_its_bytes_are_on_the_disk(tmp_path, monkeypatch):
    """Synchronised first and renamed then: a crash in between leaves the old file."""
    path, events = tmp_path / "a.safetensors", []

    def noting(name):
        right = getattr(os, name)
        return lambda *arguments: (events.append(name), right(*arguments))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noting(name))
    with safetensors_file.create(path, {"a": ("U8", (5,))}, {}) as arrays:
        arrays["a"][:] = np.arange(5)
        assert not path.exists()
    assert events == ["fsync", "replace"]
    assert SafetensorsFile(path).read("a").tolist() == [0, 1, 2, 3, 4]
