"""What hardware takes, on both sides of each limit: grids, parameters, tensor maps, shared memory, attributes."""

import pytest
import sample_pack
from device_buffers import ArrayInterface, Tensor
from sample_call import arguments

import loader

GRID = {
    "the widest": ([2**31 - 1, 1, 1], [1, 1, 1], None),
    "x": ([2**31, 1, 1], [1, 1, 1], "grid.x is 2147483648, allowed is 1 .. 2147483647"),
    "the highest and deepest": ([1, 65535, 65535], [1, 1, 1], None),
    "z": ([1, 1, 65536], [1, 1, 1], "grid.z is 65536, allowed is 1 .. 65535"),
    "negative": ([1, -1, 1], [1, 1, 1], "grid.y is -1, allowed is 1 .. 65535"),
    "a float": ([["fdiv", 4, 2], 1, 1], [1, 1, 1], "grid.x is 2.0, allowed is 1 .. 2147483647"),
    "a bool": ([["==", 4, 4], 1, 1], [1, 1, 1], "grid.x is True, allowed is 1 .. 2147483647"),
    "clusters": ([2, 6, 4], [2, 3, 2], None),
    "half a cluster": ([2, 4, 4], [2, 3, 2], "grid.y is 4, allowed is a multiple of the cluster's 3"),
}
UNPACKED = {"element": "u4_align16", "box": [128, 8], "swizzle": 128}
MAP = {
    "no columns": ({"dims": [0, "M"]}, "a_map.dims[0] is 0, allowed is 1 .. 2^32"),
    "most rows": ({"dims": [32, 1 << 32]}, None),
    "more rows": ({"dims": [32, (1 << 32) + 1]}, "a_map.dims[1] is 4294967297, allowed is 1 .. 2^32"),
    "stride of 0": ({"strides": [0]}, "a_map.strides[0] is 0, allowed is a multiple of 16 below 2^40"),
    "odd stride": ({"strides": [40]}, "a_map.strides[0] is 40, allowed is a multiple of 16 below 2^40"),
    "widest stride": ({"strides": [(1 << 40) - 16]}, None),
    "wider stride": ({"strides": [1 << 40]}, f"a_map.strides[0] is {1 << 40}, allowed is a multiple of 16 below 2^40"),
    "empty box": ({"box": [16, 0]}, "a_map.box[1] is 0, allowed is 1 .. 256"),
    "largest box": ({"box": [256, 256], "swizzle": 0}, None),
    "half a box": ({"box": [16, 1.5]}, "a_map.box[1] is 1.5, allowed is 1 .. 256"),
    "dims of a float": ({"dims": [["/", "K", 2], 16.0]}, "a_map.dims[1] is 16.0, allowed is 1 .. 2^32"),
    "strides of a float": ({"strides": [64.0]}, "a_map.strides[0] is 64.0, allowed is a multiple of 16 below 2^40"),
    "larger box": ({"box": [16, 257]}, "a_map.box[1] is 257, allowed is 1 .. 256"),
    "odd box": ({"box": [24, 8], "swizzle": 0}, "a_map: bytes of box[0] is 24, allowed is a multiple of 16"),
    "box of a swizzle": ({"box": [32, 8]}, None),
    "box over a swizzle": ({"box": [48, 8]}, "a_map: bytes of box[0] is 48, allowed is a multiple of 16, at most 32"),
    "elements of a swizzle": ({"box": [16, 8], "element": "bf16"}, None),
    "elements over it": ({"box": [32, 8], "element": "bf16"},
                         "a_map: bytes of box[0] is 64, allowed is a multiple of 16, at most 32"),
    "unpacked": ({**UNPACKED, "dims": [256, "M"], "strides": [128]}, None),
    "odd stride of unpacked": ({**UNPACKED, "dims": [128, "M"], "strides": [80]},
                               "a_map.strides[0] is 80, allowed is a multiple of 32 below 2^40"),
    "unpacked in part": ({**UNPACKED, "dims": [192, "M"], "strides": [96]},
                         "a_map: dims[0] and box[0] is (192, 128), allowed is a multiple of 128, and 128"),
}
SCALAR = {
    "i32": [(2**31 - 1, True), (2**31, False), (-(2**31), True), (-(2**31) - 1, False), (["fdiv", 3, 2], False)],
    "u32": [(2**32 - 1, True), (2**32, False), (["neg", 1], False)],
    "f32": [(3.25, True), (3.5e38, False)],
}


@pytest.fixture
def launch(cuda, tmp_path):
    """A function that launches from the sample pack with its artifacts changed; says why it could not."""
    def run(change):
        manifest, files = sample_pack.build(["120a"])
        for artifact in manifest["artifacts"]:
            change(artifact)
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        sample_pack.write(directory, manifest, files)
        before = len(cuda.launches)
        try:
            loader.launch("scale_rows", packs=directory, variant="m16_bf16", **arguments())
        except loader.LaunchLimitError as error:
            assert len(cuda.launches) == before
            return str(error)
        assert len(cuda.launches) == before + 1
        return None
    return run


@pytest.mark.parametrize("what", GRID)
def test_grids(launch, what):
    """Three integers from 1 to their limits, each a multiple of the cluster's."""
    grid, cluster, reason = GRID[what]
    refused = launch(lambda artifact: artifact["launch"].update(grid=grid, cluster=cluster))
    assert refused == (reason and f"scale_rows/m16_bf16: {reason}")


@pytest.mark.parametrize("what", MAP)
def test_tensor_maps(launch, what):
    """The conditions of cuTensorMapEncodeTiled, said before it is asked."""
    change, reason = MAP[what]
    refused = launch(lambda artifact: artifact["parameters"][0].update(change))
    assert refused == (reason and f"scale_rows/m16_bf16: {reason}")


@pytest.mark.parametrize("dtype", SCALAR)
def test_scalar_parameters(launch, dtype):
    """A value that the manifest computes must fit its parameter; none is wrapped or cut."""
    for value, fits in SCALAR[dtype]:
        refused = launch(lambda artifact, value=value: artifact["parameters"][4].update(dtype=dtype, value=value))
        assert (refused is None) == fits
        assert fits or refused.endswith(f"allowed is what fits {dtype}")


def test_shared_memory_up_to_the_limit(cuda, pack):
    """Static and dynamic shared memory together may be all that the device gives, and no byte more."""
    for ordinal, limit in enumerate((66560, 66559)):
        cuda.devices[ordinal] = cuda.devices[ordinal]._replace(shared=limit)
    loader.launch("scale_rows", **arguments(device=(2, 0)))
    with pytest.raises(loader.NoKernelError, match="needs 66560 bytes of shared memory, the device gives 66559"):
        loader.launch("scale_rows", **arguments(device=(2, 1)))
    assert [launch.device for launch in cuda.launches] == [0]


def test_attributes_are_those_of_the_manifest(cuda, launch):
    """Without a cluster and without programmatic launch there is no attribute."""
    assert launch(lambda artifact: artifact["launch"].update(pdl=False)) is None
    assert launch(lambda artifact: artifact["launch"].update(pdl=False, grid=[1, 2, 1], cluster=[1, 2, 1])) is None
    assert [sorted(launch.attributes) for launch in cuda.launches] == [[], [4]]


@pytest.mark.parametrize("a", [Tensor("fp4x2", (96, 32), read_only=True), ArrayInterface("|u1", (96, 32),
                                                                                         read_only=True)])
def test_inputs_may_be_read_only(cuda, pack, a):
    """Only what is written must be writable."""
    loader.launch("scale_rows", **arguments(a=a))
    assert len(cuda.launches) == 1
