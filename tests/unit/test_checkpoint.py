"""Checkpoints made here, in both formats, prepared for the kernels and restored."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from integrations import checkpoint, expert_formats, scale_layouts
from integrations.checkpoint import Checkpoint, CheckpointError, prepare, restore
from integrations.safetensors_file import SafetensorsFile

PREFIX = "model.layers.3.mlp.experts"
EXPERTS, HIDDEN, INTERMEDIATE = 3, 96, 160  # 6 and 10 scale columns: padded to 8 and 12; rows 320 and 96: padded
W13, W2 = (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
GATE_UP_DOWN = {"gate_proj": W13, "up_proj": W13, "down_proj": W2}
SUFFIXES = {  # packed, block scale, global scale of the weight, global scale of the input
    "modelopt": ("weight", "weight_scale", "weight_scale_2", "input_scale"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"),
}
each_format = pytest.mark.parametrize("source", SUFFIXES)

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """The command's table fits on a line."""
    monkeypatch.setenv("COLUMNS", "200")


def make_experts(rng, source, prefix=PREFIX, projections=tuple(GATE_UP_DOWN)) -> Tensors:
    """The tensors of one layer; gate and up share a global scale, everything else is random."""
    scalar = () if source == "modelopt" else (1,)

    def number():
        scale = np.float32(rng.uniform(1e-4, 1e-2))
        return torch.full(scalar, float(scale if source == "modelopt" else 1 / scale), dtype=torch.float32)

    tensors = {"model.embed_tokens.weight": torch.zeros(4, 4, dtype=torch.bfloat16)}
    for expert in range(EXPERTS):
        w13 = number()
        for projection, (n, k) in zip(projections, GATE_UP_DOWN.values(), strict=True):
            values = (
                torch.from_numpy(rng.integers(0, 256, (n, k // 2), dtype=np.uint8)),
                torch.from_numpy(rng.integers(0, 0x7F, (n, k // 16), dtype=np.uint8)).view(torch.float8_e4m3fn),
                number() if projection in ("down_proj", "w2") else w13.clone(),
                number(),
            )
            for suffix, value in zip(SUFFIXES[source], values, strict=True):
                tensors[f"{prefix}.{expert}.{projection}.{suffix}"] = value
    return tensors


def write(folder, tensors, files=1) -> None:
    """``tensors`` dealt out over files, with an index where there are several."""
    names = sorted(tensors)
    parts = {f"model-{part}.safetensors": names[part::files] for part in range(files)}
    for file, members in parts.items():
        safetensors.torch.save_file({name: tensors[name] for name in members}, folder / file)
    if files > 1:
        weight_map = {name: file for file, members in parts.items() for name in members}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def as_bytes(tensor) -> np.ndarray:
    return (tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor).numpy()


@each_format
@pytest.mark.parametrize("files", [1, 4])
def test_every_value_lies_where_the_kernels_read_it(tmp_path, rng, source, files):
    """Row 2i is gate i and 2i+1 up i, scales are in 128x4 blocks, padding is 0, global scales are decode scales."""
    tensors = make_experts(rng, source)
    write(tmp_path, tensors, files)
    arrays = prepare(tmp_path, PREFIX)
    packed, scale, weight_global, input_global = SUFFIXES[source]

    def original(expert, projection, suffix):
        return as_bytes(tensors[f"{PREFIX}.{expert}.{projection}.{suffix}"])

    def decoded(expert, projection, suffix):
        number = original(expert, projection, suffix).reshape(())[()]
        return number if source == "modelopt" else np.float32(1) / number

    assert arrays["w13"].shape == (EXPERTS, 2 * INTERMEDIATE, HIDDEN // 2)
    assert arrays["w13_scale"].shape == (EXPERTS, 384, 8)
    assert arrays["w2"].shape == (EXPERTS, HIDDEN, INTERMEDIATE // 2)
    assert arrays["w2_scale"].shape == (EXPERTS, 128, 12)
    for e in range(EXPERTS):
        scales = {"w13_scale": np.zeros((384, 8), np.uint8), "w2_scale": np.zeros((128, 12), np.uint8)}
        for row in range(INTERMEDIATE):
            for parity, projection in enumerate(("gate_proj", "up_proj")):
                assert (arrays["w13"][e, 2 * row + parity] == original(e, projection, packed)[row]).all()
                scales["w13_scale"][2 * row + parity, :6] = original(e, projection, scale)[row]
        assert (arrays["w2"][e] == original(e, "down_proj", packed)).all()
        scales["w2_scale"][:HIDDEN, :10] = original(e, "down_proj", scale)
        for name, linear in scales.items():
            stored, columns = arrays[name][e].ravel(), linear.shape[1]
            for (row, column), byte in np.ndenumerate(linear):
                block = row // 128 * (columns // 4) + column // 4
                assert stored[block * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] == byte
        assert arrays["w13_weight_scale"][e] == decoded(e, "gate_proj", weight_global)
        assert arrays["w2_weight_scale"][e] == decoded(e, "down_proj", weight_global)
        gate, up = (decoded(e, projection, input_global) for projection in ("gate_proj", "up_proj"))
        assert arrays["w13_input_scale"][e] == max(gate, up)
        assert arrays["w2_input_scale"][e] == decoded(e, "down_proj", input_global)


@each_format
@pytest.mark.parametrize("projections", expert_formats.PROJECTIONS[:2], ids=" ".join)
def test_restore_gives_every_byte_back(tmp_path, rng, source, projections):
    """Preparation loses nothing: names, shapes and bytes of the checkpoint come back."""
    tensors = make_experts(rng, source, projections=projections)
    write(tmp_path, tensors)
    opened = Checkpoint(tmp_path)
    restored = restore(prepare(opened, PREFIX), opened.layer(PREFIX).metadata)
    assert set(restored) == {name for name in tensors if name.startswith(PREFIX)}
    for name, array in restored.items():
        assert array.shape == tuple(tensors[name].shape)
        assert array.tobytes() == as_bytes(tensors[name]).tobytes()


@each_format
def test_command_writes_what_the_function_gives(tmp_path, rng, source, capsys):
    """``convert`` writes one safetensors file a layer, which the safetensors package reads."""
    layers = [f"model.layers.{number}.mlp.experts" for number in (1, 2, 10)]
    (tmp_path / "in").mkdir()
    tensors = {name: tensor for layer in layers for name, tensor in make_experts(rng, source, layer).items()}
    write(tmp_path / "in", tensors, files=2)
    command = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--layers", "9"]
    assert checkpoint.main(command) == 1
    error = capsys.readouterr().err
    assert "nothing to convert" in error
    assert f"{layers[1]}: not among --layers" in error
    assert not (tmp_path / "out").exists()

    command[-1] = "1,9-10"
    assert checkpoint.main(command) == 0
    assert "every byte" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "out")) == [f"{layers[0]}.safetensors", f"{layers[2]}.safetensors"]
    for layer in (layers[0], layers[2]):
        path = tmp_path / "out" / f"{layer}.safetensors"
        arrays = prepare(tmp_path / "in", layer)
        written = safetensors.torch.load_file(path)
        assert set(written) == set(arrays)
        for name, tensor in written.items():
            assert (as_bytes(tensor) == arrays[name]).all()
        assert written["w13_scale"].dtype == torch.float8_e4m3fn
        file = SafetensorsFile(path)
        assert (file.metadata["format"], file.metadata["version"]) == ("block-scaled-moe", "3")
        again = restore({name: file.read(name) for name in file.tensors}, file.metadata)
        assert all(array.tobytes() == as_bytes(tensors[name]).tobytes() for name, array in again.items())


def test_round_trip_is_checked_unless_it_is_switched_off(tmp_path, rng, monkeypatch, capsys):
    """A preparation that changes a byte is found by the command, and leaves no file."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", make_experts(rng, "modelopt"))
    right = scale_layouts.to_blocks
    monkeypatch.setattr(scale_layouts, "to_blocks", lambda scales: np.roll(right(scales), 1))
    command = ["convert", str(tmp_path / "in"), str(tmp_path / "out")]
    assert checkpoint.main(command) == 1
    assert "is not what it was" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []
    assert checkpoint.main([*command, "--no-check"]) == 0
    assert "not checked" in capsys.readouterr().out


def test_the_round_trip_has_every_global_scale(tmp_path, rng, monkeypatch, capsys):
    """Numbers of the checkpoint that are kept for ``restore`` alone are compared, too."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", make_experts(rng, "modelopt"))
    right = checkpoint.fill

    def wrong(layer, expert, matrices, arrays):
        right(layer, expert, matrices, arrays)
        arrays["source_input_global"][expert, 1] *= 2

    monkeypatch.setattr(checkpoint, "fill", wrong)
    assert checkpoint.main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert f"{PREFIX}.0.up_proj.input_scale is not what it was" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


def change(name, tensor):
    return lambda tensors: tensors.update({f"{PREFIX}.{name}": tensor})


def remove(*stems):
    def drop(tensors):
        for name in [name for name in tensors if name.startswith(tuple(f"{PREFIX}.{stem}" for stem in stems))]:
            del tensors[name]

    return drop


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("1."), f"{PREFIX}: expert 1 of 3 is missing"),
        (remove("1.up_proj.weight_scale_2"), f"no tensor {PREFIX}.1.up_proj.weight_scale_2"),
        (remove("0.gate_proj.input_scale"), f"no tensor {PREFIX}.0.gate_proj.input_scale"),
        (remove("0", "1", "2"), f"no experts, MLP or matrix of attention at {PREFIX}; there are none"),
        (
            change("2.gate_proj.weight", torch.zeros(160, 96, dtype=torch.bfloat16)),
            "2.gate_proj.weight is BF16 [160, 96], expected U8 [160, 48]",
        ),
        (
            change("0.gate_proj.weight", torch.zeros(160, 96, dtype=torch.bfloat16)),
            "0.gate_proj.weight is BF16 [160, 96], not U8 [N, K/2]",
        ),
        (
            change("1.down_proj.weight_scale", torch.zeros(96, 9).to(torch.float8_e4m3fn)),
            "1.down_proj.weight_scale is F8_E4M3 [96, 9], expected F8_E4M3 [96, 10]",
        ),
        (
            change("1.down_proj.weight_scale", torch.zeros(96, 10)),
            "1.down_proj.weight_scale is F32 [96, 10], expected F8_E4M3 [96, 10]",
        ),
        (change("1.up_proj.input_scale", torch.ones(2)), "1.up_proj.input_scale is F32 [2], not F32 of one number"),
        (change("0.gate_proj.input_scale", torch.ones(2)), "0.gate_proj.input_scale is F32 [2], not F32 of one number"),
        (change("1.up_proj.bias", torch.ones(2)), "1.up_proj.bias and 0 more have no place"),
        (change("1.up_proj.weight_packed", torch.ones(2)), "1.up_proj.weight_packed and 0 more have no place"),
        (change("1.up_proj.weight_global_scale", torch.ones(1)), "tensors of modelopt and compressed-tensors"),
        (change("norm.weight", torch.ones(1)), "norm.weight and 0 more have no place"),
        (change("gate_proj.1.weight", torch.ones(1)), "experts are named in 2 ways"),
        (change("1.up_proj.pre_quant_scale", torch.ones(96)), "1.up_proj.pre_quant_scale: AWQ, which multiplies"),
        (change("gate_up_proj_blocks", torch.ones(96)), "experts are named in 2 ways"),
        (change("1.up_proj.weight_scale_2", torch.tensor(0.0)), "1.up_proj.weight_scale_2 is 0.0"),
        (change("1.up_proj.input_scale", torch.tensor(float("nan"))), "1.up_proj.input_scale is nan"),
        (change("1.up_proj.input_scale", torch.tensor(0.0)), "1.up_proj.input_scale is 0.0"),
        (change("1.up_proj.input_scale", torch.tensor(-1.0)), "1.up_proj.input_scale is -1.0"),
        (change("2.down_proj.weight_scale_2", torch.tensor(float("inf"))), "2.down_proj.weight_scale_2 is inf"),
        (
            change("0.up_proj.weight_scale", torch.full((160, 6), -1.0).to(torch.float8_e4m3fn)),
            "0.up_proj.weight_scale has a negative scale",
        ),
        (
            change("0.up_proj.weight_scale", torch.full((160, 6), float("nan")).to(torch.float8_e4m3fn)),
            "0.up_proj.weight_scale has a NaN scale of values that are not 0",
        ),
        (
            change("0.gate_proj.weight", torch.zeros(160, 40, dtype=torch.uint8)),
            "0.gate_proj.weight is U8 [160, 40], expected U8 [160, 48]",
        ),
    ],
)
def test_a_checkpoint_that_is_not_what_it_says_is_refused(tmp_path, rng, damage, message):
    """The error names the tensor, what it is, and what belongs there."""
    tensors = make_experts(rng, "modelopt")
    damage(tensors)
    write(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        prepare(tmp_path, PREFIX)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "no weight_map"),
        ("[]", "no weight_map"),
        ('{"weight_map": 3}', "no weight_map"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "is no file of this folder"),
        ('{"weight_map": {"a": 5}}', "is no file of this folder"),
        ('{"weight_map": {"a": "model-0.safetensors"}}', "a is not in model-0.safetensors"),
        ('{"weight_map": {"a": "model-7.safetensors"}}', "a is in model-7.safetensors, which is missing"),
    ],
)
def test_a_hostile_index_is_refused(tmp_path, rng, index, message):
    """An index leads to files of its own folder that hold what it says."""
    write(tmp_path, make_experts(rng, "modelopt"))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path)


def test_a_folder_without_an_index_has_one_file(tmp_path, rng):
    """Which file counts is not guessed, and none is no checkpoint."""
    with pytest.raises(CheckpointError, match="0 safetensors files and no model.safetensors.index.json"):
        Checkpoint(tmp_path)
    write(tmp_path, make_experts(rng, "modelopt"), files=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="2 safetensors files and no"):
        Checkpoint(tmp_path)
