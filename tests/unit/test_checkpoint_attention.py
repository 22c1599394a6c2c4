"""Matrices of attention: each a layer of its own, in each format that is published, as a dense GEMM takes it."""

from __future__ import annotations

import os

import checkpoints
import numpy as np
import pytest
from checkpoints import DENSE, PUBLISHED, expected, save
from test_checkpoint_dense import KERNELS, NVFP4, PAD, ZEROS, comes_back, nvfp4, same

import loader
from integrations import checkpoint
from integrations.checkpoint import Checkpoint, CheckpointError, convert, prepare, restore
from integrations.expert_formats import OtherFormatError
from integrations.expert_layer import Layer

DEEPSEEK = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
OTHERS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "wq_a", "wkv_b", "wo")
ATTENTION = "model.layers.3.self_attn"
# By the kernels that have a layout: arguments of the GEMM that takes it.
SCALE = {"moe_fp8_channel": "b_channel_scale"}
GEMMS = {target: dense for target, (_, _, dense) in KERNELS.items()} | {"moe_fp8_channel": "gemm_fp8_channel"}


def alone(tensors: checkpoints.Tensors, prefix: str) -> checkpoints.Tensors:
    """What an MLP has as its down_proj or w2, under another name."""
    found = {name.partition(f".{projection}")[2]: entry for name, entry in tensors.items()
             for projection in ("down_proj", "w2") if f".{projection}." in name}  # fmt: skip
    return {f"{prefix}{suffix}": entry for suffix, entry in found.items()}


def of_w2(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name in ("w2", "w2_scale")}


@pytest.mark.parametrize("name", DENSE)
def test_a_matrix_is_the_down_of_an_only_expert(tmp_path, rng, name):
    """Every byte, padding included, and every byte of the checkpoint back; what lies beside it is not read."""
    layout, prefix = PUBLISHED[name], f"{ATTENTION}.{rng.choice([*DEEPSEEK, *OTHERS])}"
    experts = layout.experts(rng, count=1, intermediate=208)
    tensors = alone(checkpoints.dense(experts, name), prefix)
    assert len(tensors) == 2
    beside = dict.fromkeys((f"{prefix}.bias", f"{prefix}.k_scale", f"{ATTENTION}.q_a_layernorm.weight",
                            f"{ATTENTION}.rotary_emb.inv_freq", f"{prefix}_norm.weight"), ZEROS)  # fmt: skip
    save(tmp_path / "model.safetensors", tensors | beside)
    opened = Checkpoint(tmp_path)
    assert opened.prefixes == [prefix]
    layer = opened.layer(prefix, target=layout.target)
    assert (layer.weights, layer.target, layer.hidden, layer.intermediate) == (layout.form, layout.target, 160, 208)
    assert Layer.from_metadata(layer.metadata) == layer
    arrays = prepare(opened, prefix, target=layout.target)
    width = -(-208 // PAD[layout.target]) * PAD[layout.target]
    same(arrays, of_w2(expected(experts, layout.target, (0, 208), width, 0, with_bias=False)))
    comes_back(arrays, layer, tensors)


@pytest.mark.parametrize("tool", NVFP4)
@pytest.mark.parametrize("target", ["moe_fp4", "moe_bf16_nvfp4"])
def test_nvfp4_has_its_global_scales(tmp_path, rng, tool, target):
    """As down has them, of the weight and of the activation; a NaN of zeros comes back, too."""
    mlp = {f"model.layers.0.mlp.{name}": entry for name, entry in nvfp4(rng, tool, 96, 160).items()}
    values = next(array for name, (dtype, array) in mlp.items() if ".down_proj." in name and dtype == "U8")
    values[0, :8], mlp["model.layers.0.mlp.down_proj.weight_scale"][1][0, 0] = 0, 0x7F
    own = alone(mlp, f"{ATTENTION}.o_proj")
    save(tmp_path / "model.safetensors", own | mlp)
    opened = Checkpoint(tmp_path)
    arrays = prepare(opened, f"{ATTENTION}.o_proj", target=target)
    whole = prepare(opened, "model.layers.0.mlp", target=target)
    down = {name: array for name, array in whole.items() if name.startswith("w2") or name == "source_w2_nan"}
    numbers = {f"source_{kind}_global": whole[f"source_{kind}_global"][:, 2:] for kind in ("weight", "input")}
    same(arrays, down | numbers)
    same(restore(arrays, opened.layer(f"{ATTENTION}.o_proj", target=target).metadata),
         {name: array for name, (_, array) in own.items()})  # fmt: skip
    convert(opened, opened.layer(f"{ATTENTION}.o_proj", target=target), tmp_path / "part")


@pytest.mark.parametrize("name", ["MXFP4 ModelOpt", "MXFP8", "FP8 DeepSeek-V3", "FP8 DeepSeek-V3.1", "FP8 channel"])
def test_the_arrays_are_arguments_of_a_dense_gemm(tmp_path, rng, pack, name):
    """Values and scales, in the shapes that the kernel asks for."""
    layout, prefix = PUBLISHED[name], "layers.3.attn.wq_b"
    tensors = alone(checkpoints.dense(layout.experts(rng, count=1, intermediate=208), name), prefix)
    save(tmp_path / "model.safetensors", tensors)
    arrays = prepare(tmp_path, prefix, target=layout.target)
    k = -(-208 // PAD[layout.target]) * PAD[layout.target]
    asked = loader.buffers(GEMMS[layout.target], packs=[pack], M=1, N=160, K=k)
    assert arrays["w2"][0].shape == asked["b"].shape
    assert arrays["w2_scale"][0].shape == asked[SCALE.get(layout.target, "b_scale")].shape


def test_the_command_converts_every_matrix(tmp_path, rng, capsys, monkeypatch):
    """Of DeepSeek, each into a file; what is in BF16 is left out and said, and all of them for a rank."""
    monkeypatch.setenv("COLUMNS", "220")
    (tmp_path / "in").mkdir()
    layout, tensors = PUBLISHED["FP8 DeepSeek-V3"], {}
    for projection in DEEPSEEK:
        experts = layout.experts(rng, count=1, intermediate=208)
        tensors |= alone(checkpoints.dense(experts, "FP8 DeepSeek-V3"), f"{ATTENTION}.{projection}")
    tensors |= {"model.layers.4.self_attn.o_proj.weight": ZEROS}
    mlp = checkpoints.dense(layout.experts(rng, count=1, intermediate=384), "FP8 DeepSeek-V3")
    save(tmp_path / "in" / "model.safetensors", tensors | mlp)
    command = ["convert", str(tmp_path / "in"), str(tmp_path / "out")]
    assert checkpoint.main(command) == 0
    table, _, skipped = capsys.readouterr().out.partition("skipped")
    assert table.count("every byte") == 6 and "weight is BF16" in skipped
    files = [f"{DENSE['FP8 DeepSeek-V3']}.safetensors", *(f"{ATTENTION}.{name}.safetensors" for name in DEEPSEEK)]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(files)
    assert checkpoint.main([*command[:2], str(tmp_path / "rank"), "--tp", "2", "--rank", "1"]) == 0
    assert capsys.readouterr().out.count("share out heads, which is not done here") == 5


def test_what_is_wrong_is_named(tmp_path, rng):
    """A scale that is missing, and a matrix that is not there; ranks of attention are another matter."""
    prefix = f"{ATTENTION}.o_proj"
    tensors = alone(checkpoints.dense(PUBLISHED["FP8 Qwen3"].experts(rng, count=1), "FP8 Qwen3"), prefix)
    save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(OtherFormatError, match="share out heads"):
        Checkpoint(tmp_path).layer(prefix, tp=2, rank=1)
    with pytest.raises(CheckpointError, match=f"MLP or matrix of attention at {ATTENTION}; there are {prefix}"):
        Checkpoint(tmp_path).layer(ATTENTION)
    tensors[f"{prefix}.weight_scale_inv"] = ("BF16", np.zeros((9, 9), np.uint16))
    save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"o_proj.weight_scale_inv is BF16 \[9, 9\], expected BF16 \[2, 2\]"):
        Checkpoint(tmp_path).layer(prefix)
