"""A kernel name that takes several sets of arguments."""

import copy

import pytest
import sample_pack
from device_buffers import FastTensor
from sample_call import arguments

import loader
from loader import registry


def write(directory, change=lambda families: None):
    """The sample pack, and ``scale_rows_masked``, which has ``mask`` in the place of ``offsets``."""
    manifest, files = sample_pack.build()
    masked = copy.deepcopy(sample_pack.FAMILY) | {"overloads": "scale_rows"}
    masked["arguments"][2] = {"name": "mask", "direction": "in", "dtypes": ["i32"], "shape": ["E"], "alignment": 4,
                              "doc": "rows"}  # fmt: skip
    manifest |= {"schema": 4, "composites": {}}
    manifest["families"]["scale_rows_masked"] = masked
    for entry in list(manifest["artifacts"]):
        other = copy.deepcopy(entry) | {"family": "scale_rows_masked"}
        pointer = next(parameter for parameter in other["parameters"] if parameter["name"] == "offsets")
        pointer |= {"name": "mask", "argument": "mask"}
        manifest["artifacts"].append(other)
    change(manifest["families"])
    sample_pack.write(directory, manifest, files)


@pytest.fixture(autouse=True)
def overloaded_pack(tmp_path, monkeypatch):
    write(tmp_path / "pack")
    monkeypatch.setenv("LOADER_ARTIFACTS", str(tmp_path / "pack"))


def masked_arguments(**given):
    call = arguments(**given)
    del call["offsets"]
    return call | {"mask": FastTensor("i32", (3,))}


def test_a_name_that_only_one_set_has_decides(cuda):
    """Launches and plans are of the family that takes it; all others of the one that was named."""
    loader.launch("scale_rows", **masked_arguments())
    assert loader.plan("scale_rows", **masked_arguments()).kernel.startswith("scale_rows_masked/")
    assert loader.plan("scale_rows", **arguments()).kernel.startswith("scale_rows/")


def test_errors_are_of_the_set_that_was_taken(cuda):
    """Also where arguments of both are given."""
    with pytest.raises(loader.ArgumentError, match="offsets"):
        loader.launch("scale_rows", **arguments(), mask=FastTensor("i32", (3,)))


def test_the_own_name_is_a_kernel(cuda):
    """Like any other."""
    assert loader.plan("scale_rows_masked", **masked_arguments()).kernel.startswith("scale_rows_masked/")
    assert "scale_rows_masked" in loader.kernels()
    assert loader.explain("scale_rows", **masked_arguments()).kernel == "scale_rows_masked"


@pytest.mark.parametrize("base", ["none", "scale_rows_masked"])
def test_the_base_is_another_family(tmp_path, base):
    """That exists, overloads none, and lacks a required argument of this one."""
    write(tmp_path / "bad", lambda families: families["scale_rows_masked"].update(overloads=base))
    with pytest.raises(loader.ManifestError, match=r"families.scale_rows_masked.overloads"):
        registry.registry((str(tmp_path / "bad"),))


def test_sets_differ_by_a_name(tmp_path):
    """Else no call could tell them apart."""
    write(tmp_path / "bad", lambda families: families["scale_rows"]["arguments"].append(
        {**families["scale_rows_masked"]["arguments"][2], "optional": True}))  # fmt: skip
    with pytest.raises(loader.ManifestError, match=r"families.scale_rows_masked.overloads"):
        registry.registry((str(tmp_path / "bad"),))
