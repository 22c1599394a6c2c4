"""Every layout of checkpoints: what is prepared has the values of the checkpoint, and is undone in every byte."""

from __future__ import annotations

import dataclasses

import manifest_pack
import numpy as np
import pytest
import safetensors.torch
import torch

import loader
from integrations.checkpoint import Checkpoint, CheckpointError, convert, prepare, restore
from integrations.expert_layer import Layer
from integrations.scale_layouts import from_blocks
from integrations.weight_fragments import from_fragments

PREFIX = "model.layers.3.mlp.experts"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()


@dataclasses.dataclass
class Experts:
    """[E] experts as numpy arrays by projection; gate, up and down have global scales of their own."""

    packed: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]
    weight_global: dict[str, np.ndarray]  # [E], decode scales
    input_global: dict[str, np.ndarray]

    @classmethod
    def random(cls, rng, experts=3, hidden=96, intermediate=160):
        sizes = {"gate": (intermediate, hidden), "up": (intermediate, hidden), "down": (hidden, intermediate)}

        def numbers():
            return {name: (2.0 ** rng.integers(-12, -5, experts)).astype(np.float32) for name in sizes}

        return cls(
            {name: rng.integers(0, 256, (experts, n, -(-k // 2)), dtype=np.uint8) for name, (n, k) in sizes.items()},
            {name: rng.integers(0, 0x7F, (experts, n, -(-k // 16)), dtype=np.uint8) for name, (n, k) in sizes.items()},
            numbers(),
            numbers(),
        )

    def values(self, name, expert, columns=None) -> np.ndarray:
        """[N, K] of float64."""
        scale = self.scale[name][expert]
        elements = decoded(self.packed[name][expert])
        return elements * E4M3[scale].repeat(16, axis=1)[:, : elements.shape[1]] * self.weight_global[name][expert]


def decoded(packed) -> np.ndarray:
    codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)
    return np.where(codes & 8, -1, 1) * E2M1[codes & 7]


def prepared_values(arrays, name, expert, weight_scale) -> np.ndarray:
    """[N, K] of a prepared matrix, its scales looked up one by one in the blocks."""
    elements, stored = decoded(arrays[name][expert]), arrays[f"{name}_scale"][expert]
    row, column = np.indices((elements.shape[0], elements.shape[1] // 16))
    block = row // 128 * (stored.shape[1] // 4) + column // 4
    scale = stored.ravel()[block * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4]
    return elements * E4M3[scale].repeat(16, axis=1) * weight_scale


def separate(experts, template, projections=("gate_proj", "up_proj", "down_proj"), encode=False):
    """Tensors by name, one for each expert and projection."""
    suffixes = (
        ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
        if encode
        else ("weight", "weight_scale", "weight_scale_2", "input_scale")
    )
    tensors = {}
    for name, projection in zip(("gate", "up", "down"), projections, strict=True):
        for e in range(len(experts.packed[name])):
            numbers = [np.float32(kind[name][e]) for kind in (experts.weight_global, experts.input_global)]
            values = (
                torch.from_numpy(experts.packed[name][e].copy()),
                torch.from_numpy(experts.scale[name][e].copy()).view(torch.float8_e4m3fn),
                *(torch.tensor(1 / number if encode else number) for number in numbers),
            )
            for suffix, value in zip(suffixes, values, strict=True):
                tensors[template.format(prefix=PREFIX, expert=e, projection=projection, suffix=suffix)] = value
    return tensors


def stacked(experts, names, transposed=False, encode=False, shape="shared"):
    """Tensors of all experts: gate_up_proj [E, 2 I, H/2] and down_proj, or with the last two dimensions exchanged."""
    tensors = {}
    for projection, members in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
        for name, arrays in zip(names, (experts.packed, experts.scale), strict=False):
            tensor = torch.from_numpy(np.concatenate([arrays[member] for member in members], axis=1))
            tensor = (tensor.transpose(1, 2) if transposed else tensor).contiguous()
            key = f"{PREFIX}.{projection}{name}"
            tensors[key] = tensor.view(torch.float8_e4m3fn) if arrays is experts.scale else tensor
        for name, numbers in zip(names[2:], (experts.weight_global, experts.input_global), strict=True):
            values = np.stack([numbers[member] for member in members], axis=1)
            values = 1 / values if encode else values
            values = {"shared": values[0, 0], "expert": values[:, 0], "half": values}[shape]
            tensors[f"{PREFIX}.{projection}{name}"] = torch.tensor(values)
    return tensors


def as_bytes(tensor) -> np.ndarray:
    return (tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor).numpy()


def check(path, tensors, experts) -> dict[str, np.ndarray]:
    """Values of the prepared arrays are the experts', and all tensors come back; the arrays."""
    safetensors.torch.save_file(tensors, path / "model.safetensors")
    checkpoint = Checkpoint(path)
    layer, arrays = checkpoint.layer(PREFIX), prepare(checkpoint, PREFIX)
    assert Layer.from_metadata(layer.metadata) == layer
    hidden, intermediate = layer.hidden, layer.intermediate
    for e in range(layer.experts):
        halves = [
            prepared_values(arrays, "w13", e, arrays[f"w13_{scale}"][e])[parity::2]
            for parity, scale in enumerate(("weight_scale", "up_weight_scale"))
        ]
        down = prepared_values(arrays, "w2", e, arrays["w2_weight_scale"][e])
        found = {"gate": halves[0], "up": halves[1], "down": down}
        for name, values in found.items():
            n, k = (hidden, intermediate) if name == "down" else (intermediate, hidden)
            expected = np.zeros(values.shape)
            expected[:n, : experts.values(name, e).shape[1]] = experts.values(name, e)
            assert (values == expected).all(), name
    for rank in range(2):  # compares every byte of the rank's part
        convert(checkpoint, checkpoint.layer(PREFIX, 2, rank), path / "part")
    restored = restore(arrays, layer.metadata)
    assert set(restored) == set(tensors)
    for name, array in restored.items():
        assert array.shape == tuple(tensors[name].shape), name
        assert array.tobytes() == as_bytes(tensors[name]).tobytes(), name
    return arrays


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("template", [
    "{prefix}.{expert}.{projection}.{suffix}", "{prefix}.{projection}.{expert}.{suffix}",
])  # fmt: skip
def test_gate_and_up_keep_their_own_global_scales(tmp_path, rng, template, encode):
    """Whether the number of an expert stands before or behind its projection; up has a scale of its own, exactly."""
    experts = Experts.random(rng)
    arrays = check(tmp_path, separate(experts, template, encode=encode), experts)
    assert arrays["w13_up_weight_scale"].tolist() == experts.weight_global["up"].tolist()
    largest = np.maximum(experts.input_global["gate"], experts.input_global["up"])
    assert arrays["w13_input_scale"].tolist() == largest.tolist()


def in_turn(rows: np.ndarray) -> np.ndarray:
    """[E, 2 I, ..] of 64 gates and their 64 ups in turn, with each up behind its gate."""
    experts, count, *rest = rows.shape
    return rows.reshape(experts, count // 128, 2, 64, *rest).swapaxes(2, 3).reshape(rows.shape)


@pytest.mark.parametrize("intermediate", [160, 128])
def test_fragments_for_tokens_of_16_bits(tmp_path, rng, intermediate):
    """Values and scales are those of moe_fp4 in another order, behind which are zeros; every byte comes back, also of
    a rank's part."""
    experts = Experts.random(rng, intermediate=intermediate)
    tensors = separate(experts, "{prefix}.{expert}.{projection}.{suffix}")
    plain, checkpoint = check(tmp_path, tensors, experts), Checkpoint(tmp_path)
    layer = checkpoint.layer(PREFIX, target="moe_bf16_nvfp4")
    arrays = prepare(checkpoint, PREFIX, target="moe_bf16_nvfp4")
    padded = -(-intermediate // 64) * 64
    manifest_pack.write(tmp_path)
    buffers = loader.buffers("moe_bf16_nvfp4", packs=[str(tmp_path)], T=1, TOPK=1, E=3, H=96, I=padded)
    for name in ("w13", "w13_scale", "w2", "w2_scale"):
        assert arrays[name].shape == buffers[name].shape
    sizes = {"w13": (2 * padded, 96), "w2": (96, padded)}
    for name, (n, k) in sizes.items():
        values = from_fragments(arrays[name], k)
        scales = np.stack([from_blocks(scale, n, k // 16) for scale in arrays[f"{name}_scale"]])
        of_plain = np.stack([from_blocks(scale, *scale.shape) for scale in plain[f"{name}_scale"]])
        for found, expected in ((values, plain[name]), (scales, of_plain)):
            found = in_turn(found) if name == "w13" else found
            rows, columns = (min(sizes) for sizes in zip(found.shape[1:], expected.shape[1:], strict=True))
            assert (found[:, :rows, :columns] == expected[:, :rows, :columns]).all()
            assert not found[:, rows:].any() and not found[..., columns:].any()
    for rank in range(2):
        convert(checkpoint, checkpoint.layer(PREFIX, 2, rank, target="moe_bf16_nvfp4"), tmp_path / "part")
    for name, array in restore(arrays, layer.metadata).items():
        assert array.tobytes() == as_bytes(tensors[name]).tobytes(), name


STACKED_NAMES = {
    "modelopt": (".weight", ".weight_scale", ".weight_scale_2", ".input_scale"),
    "modelopt parameters": ("", "_weight_scale", "_weight_scale_2", "_input_scale"),
    "modelopt short": ("", "_scale", "_scale_2", "_input_scale"),
    "compressed-tensors": (".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale"),
    "compressed-tensors parameters": ("_packed", "_scale", "_global_scale", "_input_global_scale"),
}


@pytest.mark.parametrize("shape", ["shared", "expert", "half"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("source", STACKED_NAMES)
def test_stacked_experts(tmp_path, rng, source, transposed, shape):
    """One tensor of all experts, gate's rows and then up's, K last or last but one, a global scale for all or each."""
    experts = Experts.random(rng)
    for numbers in (experts.weight_global, experts.input_global):
        if shape == "shared":
            for values in numbers.values():
                values[:] = values[0]
        if shape != "half":
            numbers["up"] = numbers["gate"]
    tensors = stacked(experts, STACKED_NAMES[source], transposed, source.startswith("compressed"), shape)
    check(tmp_path, tensors, experts)


def test_gate_and_up_of_an_expert_in_one_tensor(tmp_path, rng):
    """Each expert on its own, with one global scale for gate and up."""
    experts = Experts.random(rng)
    tensors = {}
    for e in range(3):
        one = Experts(*({n: a[e : e + 1] for n, a in kind.items()} for kind in dataclasses.astuple(experts)))
        for name, tensor in stacked(one, STACKED_NAMES["modelopt"]).items():
            tensors[name.replace(".experts.", f".experts.{e}.")] = tensor[0] if tensor.ndim else tensor
    for numbers in (experts.weight_global, experts.input_global):
        numbers["up"] = numbers["gate"]
    check(tmp_path, tensors, experts)


@pytest.mark.parametrize(("change", "message"), [
    ({"version": "2"}, r"metadata of format and version \('block-scaled-moe', '2'\), expected"),
    ({"format": "other"}, r"metadata of format and version \('other', '3'\), expected"),
    ({"hidden": "x"}, "metadata with hidden 'x', which is not JSON"),
    ({"source": "other"}, "metadata of source 'other' with names"),
    ({"names": "{prefix}{prefix}"}, "metadata of source 'modelopt' with names '{prefix}{prefix}'"),
    ({"rank": None}, "metadata without rank"),
    ({"rank": "1"}, "metadata with rank 1, expected less than tp 1"),
    ({"ep": "0"}, "metadata with ep_rank 0, expected less than ep 0"),
    ({"hidden": "2.5"}, "metadata with hidden '2.5', expected JSON of int"),
    ({"hidden": "-1"}, "metadata with hidden '-1', expected JSON of int"),
    ({"transposed": "0"}, "metadata with transposed '0', expected JSON of bool"),
    ({"columns": "[1]"}, r"metadata with columns '\[1\]', expected JSON of tuple"),
    ({"types": "{}"}, "metadata with types '{}', expected JSON of tuple"),
    ({"shapes": "[[1]]"}, r"metadata with shapes '\[\[1\]\]', expected JSON of dict"),
    ({"hidden": "[" * 100_000}, "which is not JSON"),
    ({"experts": "2"}, r"w13 has shape \(1, .*\), the metadata asks for \(2, "),
    ({"hidden": "1048576"}, "w13 has shape .*, the metadata asks for"),
])  # fmt: skip
def test_metadata_of_another_file_are_refused(tmp_path, rng, change, message):
    """What is restored comes from a file of this version."""
    experts = Experts.random(rng, 1)
    arrays = check(tmp_path, separate(experts, "{prefix}.{expert}.{projection}.{suffix}"), experts)
    metadata = Checkpoint(tmp_path / "model.safetensors").layer(PREFIX).metadata | change
    with pytest.raises(CheckpointError, match=message):
        restore(arrays, {name: value for name, value in metadata.items() if value is not None})
    whole = Checkpoint(tmp_path / "model.safetensors").layer(PREFIX).metadata
    with pytest.raises(CheckpointError, match="w2_scale has shape no array, the metadata asks for"):
        restore({name: array for name, array in arrays.items() if name != "w2_scale"}, whole)


def test_stacked_global_scales_are_one_or_one_for_each(tmp_path, rng):
    """Numbers that are none of these are refused."""
    experts = Experts.random(rng)
    tensors = stacked(experts, STACKED_NAMES["modelopt"])
    tensors[f"{PREFIX}.down_proj.weight_scale_2"] = torch.ones(2)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path).layer(PREFIX)
    message = "down_proj.weight_scale_2 is F32 [2], not F32 of one number, or one for each of 3 experts"
    assert str(caught.value) == f"{PREFIX}.{message}"


def test_scalars_of_either_shape(tmp_path, rng):
    """A global scale is [] or [1], each as its own tensor has it."""
    experts = Experts.random(rng)
    tensors = separate(experts, "{prefix}.{expert}.{projection}.{suffix}")
    for name in tensors:
        if name.endswith(("scale_2", "input_scale")) and rng.random() < 0.5:
            tensors[name] = tensors[name].reshape(1)
    check(tmp_path, tensors, experts)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_weight_shape_is_read_and_has_to_be_true(tmp_path, rng, dtype):
    """compressed-tensors repeats N and K beside a matrix."""
    experts = Experts.random(rng)
    tensors = separate(experts, "{prefix}.{expert}.{projection}.{suffix}", encode=True)
    for e in range(3):
        for projection, size in (("gate_proj", (160, 96)), ("up_proj", (160, 96)), ("down_proj", (96, 160))):
            tensors[f"{PREFIX}.{e}.{projection}.weight_shape"] = torch.tensor(size, dtype=dtype)
    check(tmp_path, tensors, experts)
    tensors[f"{PREFIX}.1.up_proj.weight_shape"] += 1
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1.up_proj.weight_shape is \[161, 97\], expected \[160, 96\]"):
        prepare(tmp_path, PREFIX)


def test_without_input_scales_none_is_written(tmp_path, rng):
    """Where activations are quantised by scales of their own, or not at all; some experts without are refused."""
    experts = Experts.random(rng)
    tensors = separate(experts, "{prefix}.{expert}.{projection}.{suffix}")
    inputs = {name: tensors.pop(name) for name in list(tensors) if name.endswith("input_scale")}
    assert not [name for name in check(tmp_path, tensors, experts) if "input" in name]
    missing = f"{PREFIX}.1.down_proj.input_scale"
    del inputs[missing]
    safetensors.torch.save_file(tensors | inputs, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"no tensor {missing}"):
        Checkpoint(tmp_path).layer(PREFIX)


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("nans", [[0x7F], [0xFF], [0x7F, 0xFF]])
def test_a_block_of_zeros_may_have_a_nan_scale(tmp_path, rng, nans, encode):
    """Exporters divide 0 by 0: such scales are 0 in the layout, and come back as they were."""
    experts = Experts.random(rng)
    expected = Experts.random(rng)
    for name, scale in experts.scale.items():
        nan = rng.random(scale.shape) < 0.1
        nan[0, 0, :2] = True
        zeros = np.repeat(nan, 8, axis=2)
        experts.packed[name][zeros] &= 0x88
        scale[nan] = rng.choice(nans, nan.sum())
        scale[0, 0, :2] = nans[0], nans[-1]
        expected.scale[name] = np.where(nan, 0, scale)
    # An expert that is all zeros has no largest value either.
    for name in experts.packed:
        experts.packed[name][2], experts.scale[name][2], expected.scale[name][2] = 0, nans[0], 0
        experts.weight_global[name][2], expected.weight_global[name] = 0, experts.weight_global[name]
    expected.packed = experts.packed
    with np.errstate(divide="ignore"):
        tensors = separate(experts, "{prefix}.{expert}.{projection}.{suffix}", encode=encode)
    arrays = check(tmp_path, tensors, expected)
    for name in ("w13_scale", "w2_scale"):
        assert (arrays[name] < 0x7F).all()


SIZES = [(96, 704, 2), (96, 704, 4), (64, 80, 1), (64, 2880, 8), (80, 360, 1), (360, 80, 1), (96, 48, 3)]


@pytest.mark.parametrize(("hidden", "intermediate", "tp"), SIZES)
def test_ranks_add_up_to_the_layer(tmp_path, rng, hidden, intermediate, tp):
    """Every row of gate and up and every column of down is at one rank, in groups of 16; what pads it is 0."""
    experts = Experts.random(rng, 2, hidden, intermediate)
    tensors = separate(experts, "{prefix}.{expert}.{projection}.{suffix}")
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    shapes, begin = set(), 0
    for rank in range(tp):
        layer, arrays = checkpoint.layer(PREFIX, tp, rank), prepare(checkpoint, PREFIX, tp, rank)
        shapes.add((arrays["w13"].shape, arrays["w2"].shape))
        assert not [size for size in (arrays["w13"].shape[2] * 2, arrays["w2"].shape[2] * 2) if size % 32]
        part = restore(arrays, layer.metadata)
        count = len(part[f"{PREFIX}.0.gate_proj.weight"])
        for e in range(2):
            halves = [
                prepared_values(arrays, "w13", e, arrays[f"w13_{scale}"][e])[parity::2]
                for parity, scale in enumerate(("weight_scale", "up_weight_scale"))
            ]
            for name, values in zip(("gate", "up"), halves, strict=True):
                expected = np.zeros_like(values)
                expected[:count, :hidden] = experts.values(name, e)[begin : begin + count]
                assert (values == expected).all()
                stem = f"{PREFIX}.{e}.{name}_proj"
                assert (part[f"{stem}.weight"] == experts.packed[name][e][begin : begin + count]).all()
            values = prepared_values(arrays, "w2", e, arrays["w2_weight_scale"][e])
            expected = np.zeros_like(values)
            expected[:hidden, :count] = experts.values("down", e)[:, begin : begin + count]
            assert (values == expected).all()
        begin += count
        assert begin % 16 == 0 or rank == tp - 1
    assert begin == intermediate
    assert len(shapes) == 1


def test_an_exporter_may_fill_the_last_group(tmp_path, rng):
    """K that is no multiple of 16 is stored as it is, or filled up with zeros."""
    experts = Experts.random(rng, 2, 80, 360)
    experts.packed["down"] = np.pad(experts.packed["down"], ((0, 0), (0, 0), (0, 4)))
    check(tmp_path, separate(experts, "{prefix}.{expert}.{projection}.{suffix}"), experts)


@pytest.mark.parametrize(("tp", "rank", "message"), [
    (2, 2, "rank 2 of 2 ranks"),
    (2, -1, "rank -1 of 2 ranks"),
    (11, 0, "160 values cannot be split over 11 ranks by 16"),
])  # fmt: skip
def test_ranks_that_have_nothing_are_refused(tmp_path, rng, tp, rank, message):
    """A rank is one of those there are, and has at least one group."""
    safetensors.torch.save_file(
        separate(Experts.random(rng), "{prefix}.{expert}.{projection}.{suffix}"), tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path).layer(PREFIX, tp, rank)
