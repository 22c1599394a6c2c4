"""Tensors of published layouts that are wrong, missing or foreign: each is named, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from checkpoints import PUBLISHED, SCALES, Tensors, random_experts, save, separate, stacked

from integrations import checkpoint
from integrations.checkpoint import Checkpoint, CheckpointError, prepare
from integrations.expert_formats import OtherFormatError

_MLP = "model.layers.3.mlp.experts"


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"{_MLP}.{name}")


def put(name: str, dtype: str, array: np.ndarray) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"{_MLP}.{name}": (dtype, array)})


def poke(name: str, value: float) -> Callable[[Tensors], object]:
    """One item of a tensor is another one."""

    def change(tensors: Tensors) -> None:
        array = tensors[f"{_MLP}.{name}"][1]
        array[(*np.array(array.shape) - 1,)] = value

    return change


def bytes_of(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


OSS, OSS16, V3, V31, MX8 = "gpt-oss", "gpt-oss for bf16", "FP8 DeepSeek-V3", "FP8 DeepSeek-V3.1", "MXFP8"
FLOATS = np.zeros((2, 2), np.float32)
DAMAGES = [
    (OSS, drop("gate_up_proj_scales"), f"no tensor {_MLP}.gate_up_proj_scales"),
    (OSS, drop("down_proj_scales"), f"no tensor {_MLP}.down_proj_scales"),
    (OSS, drop("down_proj_bias"), f"no tensor {_MLP}.down_proj_bias"),
    (OSS, drop("down_proj_blocks"), f"no tensor {_MLP}.down_proj_blocks"),
    (OSS, put("gate_up_proj_blocks", "U8", bytes_of(3, 384, 80)),
     "gate_up_proj_blocks is U8 [3, 384, 80], not U8 or I8 [E, N, K/32, 16]"),
    (OSS, put("gate_up_proj_blocks", "F32", np.zeros((3, 384, 5, 16), np.float32)),
     "gate_up_proj_blocks is F32 [3, 384, 5, 16], not U8 or I8 [E, N, K/32, 16]"),
    (OSS, put("down_proj_blocks", "U8", bytes_of(3, 160, 5, 16)),
     "down_proj_blocks is U8 [3, 160, 5, 16], expected U8 [3, 160, 6, 16]"),
    (OSS, put("down_proj_scales", "U8", bytes_of(3, 160, 5)),
     "down_proj_scales is U8 [3, 160, 5], expected U8 [3, 160, 6]"),
    (OSS, put("gate_up_proj_scales", "BF16", np.zeros((3, 384, 5), np.uint16)),
     "gate_up_proj_scales is BF16, not U8 or F8_E8M0"),
    (OSS, put("gate_up_proj_bias", "BF16", np.zeros((3, 192), np.uint16)),
     "gate_up_proj_bias is BF16 [3, 192], expected BF16 [3, 384]"),
    (OSS, put("gate_up_proj_bias", "F64", np.zeros((3, 384))), "gate_up_proj_bias is F64, not BF16 or F32"),
    (OSS, put("router.weight", "F32", FLOATS), "router.weight and 0 more have no place"),
    (OSS, put("0.w1.weight_scale_inv", "F32", FLOATS), "tensors of gpt-oss and weight_scale_inv"),
    (OSS, poke("down_proj_scales", 0xFF), "down_proj_scales has a NaN scale"),
    (OSS, poke("down_proj_bias", 0x7F80), "down_proj_bias has numbers that are not finite"),
    (OSS16, poke("down_proj_scales", 0xFF), "down_proj_scales has a NaN scale"),
    (OSS16, poke("down_proj_scales", 161), "down_proj_scales has a scale of 2^34, and moe_bf16_mxfp4 takes 2^-100 to "
     "2^33; moe_mxfp8_mxfp4 takes this checkpoint"),
    (OSS16, poke("gate_up_proj_scales", 26), "gate_up_proj_scales has a scale of 2^-101, and moe_bf16_mxfp4 takes"),
    (V3, drop("1.up_proj.weight_scale_inv"), f"no tensor {_MLP}.1.up_proj.weight_scale_inv"),
    (V3, drop("0.gate_proj.weight"), f"no tensor {_MLP}.0.gate_proj.weight"),
    (V3, put("2.down_proj.weight", "F8_E5M2", bytes_of(160, 192)),
     "2.down_proj.weight is F8_E5M2 [160, 192], expected F8_E4M3 [160, 192]"),
    (V3, put("2.down_proj.weight_scale_inv", "F32", FLOATS[:1]),
     "2.down_proj.weight_scale_inv is F32 [1, 2], expected F32 [2, 2]"),
    (V3, put("2.down_proj.weight_scale_inv", "BF16", np.zeros((2, 2), np.uint16)),
     "2.down_proj.weight_scale_inv is BF16 [2, 2], expected F32 [2, 2]"),
    (V3, put("1.up_proj.bias", "F32", FLOATS), "1.up_proj.bias and 0 more have no place"),
    (V3, put("1.up_proj.input_scale", "F32", FLOATS), "1.up_proj.input_scale and 0 more have no place"),
    (V3, poke("1.up_proj.weight_scale_inv", -1), "1.up_proj.weight_scale_inv has -1.0, no finite scale"),
    (V3, poke("1.up_proj.weight_scale_inv", np.nan), "1.up_proj.weight_scale_inv has nan, no finite scale"),
    (V3, poke("1.up_proj.weight_scale_inv", np.inf), "1.up_proj.weight_scale_inv has inf, no finite scale"),
    (V3, poke("2.down_proj.weight", 0x7F), "2.down_proj.weight_scale_inv scales values of which some are NaN"),
    (V31, poke("2.down_proj.weight_scale_inv", 0.75),
     "2.down_proj.weight_scale_inv has 0.75, no power of two, which UE8M0 cannot hold; moe_fp8 takes this checkpoint"),
    (V31, poke("0.gate_proj.weight_scale_inv", 0), "0.gate_proj.weight_scale_inv has 0.0, no power of two"),
    (MX8, put("1.down_proj.weight", "F8_E4M3", bytes_of(160, 191)),
     "1.down_proj.weight is F8_E4M3 [160, 191], expected F8_E4M3 [160, 192]"),
    (MX8, poke("1.down_proj.weight_scale", 0xFF), "1.down_proj.weight_scale has a NaN scale"),
    (MX8, poke("1.down_proj.weight", 0xFF), "1.down_proj.weight_scale scales values of which some are NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_wrong_tensor_is_named_and_nothing_is_written(tmp_path, rng, capsys, name, damage, message):
    """What it is and what belongs there, by the function and by the command."""
    layout = PUBLISHED[name]
    tensors = layout.tensors(layout.experts(rng), _MLP)
    damage(tensors)
    save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        prepare(tmp_path, _MLP, target=layout.target)
    assert message in str(caught.value)
    assert not isinstance(caught.value, OtherFormatError)
    command = ["convert", str(tmp_path), str(tmp_path / "out"), "--layout", layout.target]
    assert checkpoint.main(command) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_scales_that_are_no_powers_of_two_are_not_rounded(tmp_path, rng):
    """DeepSeek-V3 has none: fp32 scales have their kernels, and the others say so."""
    layout = PUBLISHED[V3]
    save(tmp_path / "model.safetensors", layout.tensors(layout.experts(rng), _MLP))
    assert prepare(tmp_path, _MLP)["w13_scale"].dtype == np.float32
    with pytest.raises(CheckpointError, match="no power of two, which UE8M0 cannot hold; moe_fp8 takes this"):
        prepare(tmp_path, _MLP, target="moe_fp8_ue8m0")


@pytest.mark.parametrize("scale", [0, 26])
def test_zeros_may_have_a_smaller_scale(tmp_path, rng, scale):
    """As exporters give it to blocks of zeros: they are exact under any; the byte comes back."""
    layout = PUBLISHED[OSS16]
    experts = layout.experts(rng)
    for name in ("gate", "down"):
        experts.values[name][1, 5, :16], experts.scale[name][1, 5, 0] = 0x80, scale
    save(tmp_path / "model.safetensors", layout.tensors(experts, _MLP))
    opened = Checkpoint(tmp_path)
    checkpoint.convert(opened, opened.layer(_MLP, target=layout.target), tmp_path / "out")  # compares every byte


HF = ("gate_proj", "up_proj", "down_proj")
OTHERS = [
    ("BF16", "BF16", "0.gate_proj.weight is BF16 and 0.gate_proj.weight_scale is BF16"),
    ("I32", "F32", "0.gate_proj.weight is I32 and 0.gate_proj.weight_scale is F32"),
    ("F8_E5M2", "F32", "0.gate_proj.weight is F8_E5M2 and 0.gate_proj.weight_scale is F32"),
    ("U8", "F8_E4M3", "0.gate_proj.weight is U8 and 0.gate_proj.weight_scale is F8_E4M3"),
]


@pytest.mark.parametrize(("values", "scales", "message"), OTHERS)
def test_types_of_no_format_are_said(tmp_path, rng, values, scales, message):
    """INT4, BF16, E5M2, and NVFP4 without its global scales."""
    sizes = {"BF16": np.uint16, "F32": np.float32, "I32": np.int32}
    experts = random_experts(rng, "FP8", "F32", 2, 64, 64)
    for arrays, dtype in ((experts.values, values), (experts.scale, scales)):
        arrays.update({name: array.astype(sizes.get(dtype, np.uint8)) for name, array in arrays.items()})
    save(tmp_path / "model.safetensors", separate(experts, _MLP, HF, (".weight", ".weight_scale"), (values, scales)))
    with pytest.raises(OtherFormatError) as caught:
        Checkpoint(tmp_path).layer(_MLP)
    assert str(caught.value) == f"{_MLP}: in no format that is read: {message}"


@pytest.mark.parametrize("shape", [(64,), ()])
def test_fp8_with_a_scale_of_a_matrix_is_another_format(tmp_path, rng, shape):
    """And with one of each row in another shape than [N, 1]; layers in other formats are not kept back."""
    experts = random_experts(rng, "FP8", "F32", 2, 64, 64)
    experts.scale.update({name: SCALES["F32"](rng, (2, *shape)) for name in experts.scale})
    tensors = separate(experts, _MLP, HF, (".weight", ".weight_scale"), ("F8_E4M3", "F32"))
    save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(OtherFormatError) as caught:
        prepare(tmp_path, _MLP)
    message = f"0.gate_proj.weight_scale is {list(shape)}, a scale for each row or matrix"
    assert str(caught.value) == f"{_MLP}: in no format that is read: {message}"


def test_gate_and_up_that_share_a_block_are_refused(tmp_path, rng):
    """One tensor of both whose gate ends inside a block of 128 rows."""
    experts = random_experts(rng, "FP8", "F32", 2, 64, 192)
    save(tmp_path / "model.safetensors", stacked(experts, _MLP, ("", "_scale_inv"), ("F8_E4M3", "F32")))
    with pytest.raises(CheckpointError) as caught:
        prepare(tmp_path, _MLP)
    message = "gate_up_proj has 192 rows of gate, no multiple of 128: gate and up would share scales"
    assert str(caught.value) == f"{_MLP}.{message}"


@pytest.mark.parametrize(("target", "message"), [
    ("moe_fp4", f"{_MLP}: MXFP4 has a layout for moe_mxfp8_mxfp4, moe_mxfp4 and moe_bf16_mxfp4, not for moe_fp4"),
    ("moe_fp16", "no layout for moe_fp16; there is one for moe_fp4, moe_bf16_nvfp4, moe_mxfp8_mxfp4, moe_bf16_mxfp4, "
                 "moe_mxfp8, moe_mxfp4, moe_fp8, moe_fp8_channel, moe_fp8_ue8m0"),
])  # fmt: skip
def test_a_layout_is_one_of_the_format(tmp_path, rng, target, message):
    """Nothing is converted from one format to another."""
    layout = PUBLISHED[OSS]
    save(tmp_path / "model.safetensors", layout.tensors(layout.experts(rng), _MLP))
    with pytest.raises(CheckpointError) as caught:
        prepare(tmp_path, _MLP, target=target)
    assert str(caught.value) == message


@pytest.mark.parametrize(("name", "tp", "message"), [
    (OSS, 7, "192 values cannot be split over 7 ranks by 32"),
    (V3, 3, "192 values cannot be split over 3 ranks by 128"),
])  # fmt: skip
def test_a_rank_has_a_block_at_least(tmp_path, rng, name, tp, message):
    """A cut is where scales are cut."""
    layout = PUBLISHED[name]
    save(tmp_path / "model.safetensors", layout.tensors(layout.experts(rng), _MLP))
    with pytest.raises(CheckpointError, match=message):
        prepare(tmp_path, _MLP, tp=tp)
