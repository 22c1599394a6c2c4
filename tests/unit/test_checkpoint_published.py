"""Every layout that is published: converted to the bytes of a plain reference, and back, whole and by ranks."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from checkpoints import PUBLISHED, expected, save, save_sharded

from integrations import checkpoint
from integrations.checkpoint import Checkpoint, CheckpointError, convert, prepare, restore
from integrations.expert_layer import Layer
from integrations.safetensors_file import SafetensorsFile

PAD = {"moe_mxfp8_mxfp4": 128, "moe_bf16_mxfp4": 64, "moe_mxfp8": 32, "moe_mxfp4": 32, "moe_fp8": 16,
       "moe_fp8_channel": 16, "moe_fp8_ue8m0": 16}  # fmt: skip
WHOLE = {"gpt-oss": 192, "gpt-oss for bf16": 192, "FP8 stacked": 256}  # I of those that take no part of a block
published = pytest.mark.parametrize("name", PUBLISHED)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """The command's tables fit on a line."""
    monkeypatch.setenv("COLUMNS", "220")


def made(path, rng, name, prefix=None, **sizes):
    """A checkpoint of one layer: the layout, its experts, its tensors."""
    layout = PUBLISHED[name]
    experts = layout.experts(rng, **sizes)
    tensors = layout.tensors(experts, prefix or layout.prefix)
    save(path / "model.safetensors", tensors)
    return layout, experts, tensors


def same(arrays, reference) -> None:
    assert set(arrays) == set(reference)
    for name, array in arrays.items():
        assert array.shape == reference[name].shape, name
        assert array.tobytes() == reference[name].tobytes(), name


@published
def test_what_is_prepared_is_the_plain_reference(tmp_path, rng, name):
    """Every byte of every array, padding included, and every byte of the checkpoint back."""
    layout, experts, tensors = made(tmp_path, rng, name, intermediate=WHOLE.get(name, 208))
    opened = Checkpoint(tmp_path)
    layer = opened.layer(layout.prefix, target=layout.target)
    assert (layer.weights, layer.target) == (layout.form, layout.target)
    assert Layer.from_metadata(layer.metadata) == layer
    arrays = prepare(opened, layout.prefix, target=layout.target)
    assert not [array for array, content in arrays.items() if content.ctypes.data % 64]
    width = -(-experts.intermediate // PAD[layout.target]) * PAD[layout.target]
    same(arrays, expected(experts, layout.target, (0, experts.intermediate), width, 0, "gpt-oss" in name))
    restored = restore(arrays, layer.metadata)
    assert set(restored) == set(tensors)
    for tensor, array in restored.items():
        assert array.shape == tensors[tensor][1].shape, tensor
        assert array.tobytes() == tensors[tensor][1].tobytes(), tensor


@pytest.mark.parametrize("name", ["FP8 of UE8M0", "FP8 DeepSeek-V3.1"])
def test_the_smallest_power_is_one(tmp_path, rng, name):
    """2^-127, the byte 0 of UE8M0 and no normal number in fp32, stays what it is."""
    layout = PUBLISHED[name]
    experts = layout.experts(rng)
    for scale in experts.scale.values():
        scale[:, 0, 0] = 0 if name == "FP8 of UE8M0" else 2.0**-127
    save(tmp_path / "model.safetensors", layout.tensors(experts, layout.prefix))
    opened = Checkpoint(tmp_path)
    same(prepare(opened, layout.prefix, target=layout.target),
         expected(experts, layout.target, (0, experts.intermediate), experts.intermediate, 0, with_bias=False))
    convert(opened, opened.layer(layout.prefix, target=layout.target), tmp_path / "part")  # compares every byte


@published
def test_a_file_has_the_arrays_and_their_types(tmp_path, rng, name):
    """What the command writes is what the function gives; half of a layer's experts are in a file of their own."""
    layout, *_ = made(tmp_path, rng, name, intermediate=256)
    opened = Checkpoint(tmp_path)
    for ep_rank in range(2):
        layer = opened.layer(layout.prefix, 2, 1, 2, ep_rank, layout.target)
        convert(opened, layer, tmp_path / "part")  # compares every byte of the rank's part
        file = SafetensorsFile(tmp_path / "part")
        same({n: file.read(n) for n in file.tensors}, prepare(opened, layout.prefix, 2, 1, 2, ep_rank, layout.target))
        values = "U8" if layout.form == "MXFP4" else "F8_E4M3"
        scales = {"moe_fp8": "F32", "moe_fp8_channel": "F32", "moe_fp8_ue8m0": "I32"}.get(layout.target, "U8")
        for array in ("w13", "w2"):
            assert (file.tensors[array].dtype, file.tensors[f"{array}_scale"].dtype) == (values, scales)


RANKS = [
    ("gpt-oss", 32, 2880, 8, 384), ("gpt-oss", 32, 2880, 1, 2944), ("MXFP4 ModelOpt", 144, 704, 4, 256),
    ("MXFP4 compressed-tensors", 32, 1408, 8, 256), ("MXFP8", 80, 704, 4, 192), ("FP8 DeepSeek-V3", 24, 704, 2, 384),
    ("FP8 DeepSeek-V3", 16, 1408, 8, 256), ("FP8 Qwen3", 144, 208, 2, 128), ("FP8 DeepSeek-V3.1", 16, 1408, 3, 512),
    ("MXFP4 ModelOpt", 32, 360, 2, 256), ("MXFP8", 32, 360, 3, 128), ("FP8 DeepSeek-V3", 16, 360, 1, 368),
    ("gpt-oss for bf16", 32, 2880, 1, 2880), ("gpt-oss for bf16", 32, 2880, 2, 1472),
    ("gpt-oss for bf16", 32, 2880, 8, 384), ("MXFP4 compressed-tensors for bf16", 144, 1408, 8, 192),
    ("MXFP4 DeepSeek-V4 for bf16", 80, 360, 2, 192),
]  # fmt: skip


@pytest.mark.parametrize(("name", "hidden", "intermediate", "tp", "width"), RANKS)
def test_ranks_add_up_to_the_layer(tmp_path, rng, name, hidden, intermediate, tp, width):
    """Each has some rows of gate and up, and the same columns of down, in whole blocks; one has the bias of down."""
    layout, experts, _ = made(tmp_path, rng, name, count=1, hidden=hidden, intermediate=intermediate)
    opened, step, begin = Checkpoint(tmp_path), 128 if layout.form == "FP8" else 32, 0
    groups = -(-intermediate // step)
    for rank in range(tp):
        end = min(groups * (rank + 1) // tp * step, intermediate)
        arrays = prepare(opened, layout.prefix, tp, rank, target=layout.target)
        same(arrays, expected(experts, layout.target, (begin, end), width, rank, "gpt-oss" in name))
        convert(opened, opened.layer(layout.prefix, tp, rank, target=layout.target), tmp_path / "part")
        begin = end
    assert begin == intermediate


@pytest.mark.parametrize("name", ["MXFP4 ModelOpt", "MXFP4 compressed-tensors"])
def test_an_exporter_may_fill_the_last_block(tmp_path, rng, name):
    """K of 360 is stored as 360, or as 384 with zeros behind."""
    layout = PUBLISHED[name]
    experts = layout.experts(rng, intermediate=360)
    experts.values["down"] = np.pad(experts.values["down"], ((0, 0), (0, 0), (0, 12)))
    save(tmp_path / "model.safetensors", layout.tensors(experts, layout.prefix))
    opened = Checkpoint(tmp_path)
    arrays = prepare(opened, layout.prefix)
    same(arrays, expected(experts, layout.target, (0, 360), 384, 0, with_bias=False))
    for rank in range(2):
        convert(opened, opened.layer(layout.prefix, 2, rank), tmp_path / "part")


@pytest.mark.parametrize("name", ["gpt-oss", "FP8 DeepSeek-V3", "MXFP8 stacked"])
def test_every_expert_is_at_one_rank(tmp_path, rng, name):
    """Consecutive ones; the first ranks have one more where they do not divide."""
    layout, _, tensors = made(tmp_path, rng, name, count=5, hidden=32, intermediate=32)
    opened = Checkpoint(tmp_path)
    whole, parts = prepare(opened, layout.prefix), [prepare(opened, layout.prefix, 1, 0, 3, r) for r in range(3)]
    assert [len(part["w13"]) for part in parts] == [2, 2, 1]
    for array in whole:
        assert (np.concatenate([part[array] for part in parts]) == whole[array]).all()
    found = {}
    for rank, part in enumerate(parts):
        for tensor, array in restore(part, opened.layer(layout.prefix, 1, 0, 3, rank).metadata).items():
            found.setdefault(tensor, []).append(array)
    assert set(found) == set(tensors)
    for tensor, arrays in found.items():
        assert b"".join(array.tobytes() for array in arrays) == tensors[tensor][1].tobytes()
    with pytest.raises(CheckpointError, match="5 experts cannot be split over 6 ranks"):
        opened.layer(layout.prefix, 1, 0, 6, 0)
    with pytest.raises(CheckpointError, match="rank 3 of 3 ranks"):
        opened.layer(layout.prefix, 1, 0, 3, 3)


def test_the_command_converts_a_sharded_model(tmp_path, rng, capsys):
    """Files of several layers, an index, a table of what was written and one of what was not."""
    (tmp_path / "in").mkdir()
    layout, tensors = PUBLISHED["FP8 DeepSeek-V3.1"], {}
    for number in (3, 4):
        tensors |= layout.tensors(layout.experts(rng), f"model.layers.{number}.mlp.experts")
    tensors |= PUBLISHED["gpt-oss"].tensors(PUBLISHED["gpt-oss"].experts(rng), "model.layers.5.mlp.experts")
    tensors["model.embed_tokens.weight"] = ("BF16", np.zeros((4, 4), np.uint16))
    save_sharded(tmp_path / "in", tensors, 5)
    command = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "moe_fp8_ue8m0"]
    assert checkpoint.main([*command, "--ep", "2", "--ep-rank", "1"]) == 0
    table, _, skipped = capsys.readouterr().out.partition("skipped")
    files = [f"model.layers.{number}.mlp.experts.experts1of2.safetensors" for number in (3, 4)]
    assert sorted(os.listdir(tmp_path / "out")) == files
    assert table.count("moe_fp8_ue8m0") == table.count("every byte") == 2
    assert "MXFP4 has a layout for moe_mxfp8_mxfp4, moe_mxfp4 and moe_bf16_mxfp4, not" in skipped
    metadata = SafetensorsFile(tmp_path / "out" / files[0]).metadata
    assert [json.loads(metadata[name]) for name in ("ep", "ep_rank", "experts")] == [2, 1, 3]
    assert [metadata[name] for name in ("weights", "target")] == ["FP8", "moe_fp8_ue8m0"]
    for wrong in (["--ep", "2"], ["--ep-rank", "0"], ["--ep", "2", "--ep-rank", "2"], ["--layout", "moe_fp16"]):
        with pytest.raises(SystemExit):
            checkpoint.main([*command[:3], *wrong])
    assert checkpoint.main(command[:3]) == 0
    assert len(os.listdir(tmp_path / "out")) == 5


@pytest.mark.parametrize("name", ["gpt-oss", "FP8 DeepSeek-V3.1", "MXFP8"])
@pytest.mark.parametrize("array", ["w13", "w2_scale"])
def test_a_byte_that_changed_is_found(tmp_path, rng, monkeypatch, capsys, name, array):
    """The round trip names the tensor, and leaves no file."""
    made(tmp_path, rng, name)
    right = checkpoint.fill

    def wrong(layer, expert, matrices, arrays):
        right(layer, expert, matrices, arrays)
        arrays[array][expert].reshape(-1).view(np.uint8)[0] ^= 1

    monkeypatch.setattr(checkpoint, "fill", wrong)
    target = PUBLISHED[name].target
    assert checkpoint.main(["convert", str(tmp_path), str(tmp_path / "out"), "--layout", target]) == 1
    assert "is not what it was after its preparation was undone" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []
