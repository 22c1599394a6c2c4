"""Dense MLPs and experts that every token has: layers of one expert, in each layout that is published."""

from __future__ import annotations

import os

import checkpoints
import numpy as np
import pytest
from checkpoints import DENSE, PUBLISHED, SCALES, expected, random_experts, save, save_sharded, stacked

import loader
from integrations import checkpoint
from integrations.checkpoint import Checkpoint, CheckpointError, convert, prepare, restore
from integrations.expert_formats import OtherFormatError
from integrations.expert_layer import Layer

PAD = {"moe_fp4": 32, "moe_mxfp8_mxfp4": 128, "moe_mxfp8": 32, "moe_mxfp4": 32, "moe_fp8": 16, "moe_fp8_channel": 16,
       "moe_fp8_ue8m0": 16}
MLP, SHARED, ROUTED = "model.layers.0.mlp", "model.layers.3.mlp.shared_experts", "model.layers.3.mlp.experts"
ZEROS = ("BF16", np.zeros((4, 4), np.uint16))
NVFP4 = {"ModelOpt": (("weight", "weight_scale", "weight_scale_2", "input_scale"), ()),
         "compressed-tensors": (("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"), (1,))}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """The command's tables fit on a line."""
    monkeypatch.setenv("COLUMNS", "220")


def same(arrays, reference) -> None:
    assert set(arrays) == set(reference)
    for name, array in arrays.items():
        assert array.shape == reference[name].shape, name
        assert array.tobytes() == reference[name].tobytes(), name


def comes_back(arrays, layer, tensors) -> None:
    """Every byte of every tensor below the layer's name."""
    restored = restore(arrays, layer.metadata)
    same(restored, {name: array for name, (_, array) in tensors.items()})


@pytest.mark.parametrize("name", DENSE)
def test_what_is_prepared_is_the_plain_reference(tmp_path, rng, name):
    """Every byte of every array for E = 1, padding included, and every byte of the checkpoint back."""
    layout = PUBLISHED[name]
    experts = layout.experts(rng, count=1, intermediate=208)
    tensors = checkpoints.dense(experts, name)
    assert len(tensors) == 6
    # What lies beside an MLP under its name is none of its tensors.
    beside = dict.fromkeys((f"{DENSE[name]}.gate.weight", f"{DENSE[name]}_gate.weight", f"{DENSE[name]}.act.b"), ZEROS)
    save(tmp_path / "model.safetensors", tensors | beside)
    opened = Checkpoint(tmp_path)
    assert opened.prefixes == [DENSE[name]]
    layer = opened.layer(DENSE[name], target=layout.target)
    assert (layer.weights, layer.target, layer.experts) == (layout.form, layout.target, 1)
    assert Layer.from_metadata(layer.metadata) == layer
    arrays = prepare(opened, DENSE[name], target=layout.target)
    width = -(-208 // PAD[layout.target]) * PAD[layout.target]
    same(arrays, expected(experts, layout.target, (0, 208), width, 0, with_bias=False))
    assert arrays["w2"].shape[0] == 1
    comes_back(arrays, layer, tensors)


@pytest.mark.parametrize(("name", "tp", "width"), [
    ("MXFP4 ModelOpt", 2, 256), ("MXFP8", 3, 128), ("FP8 DeepSeek-V3", 2, 240), ("FP8 DeepSeek-V3.1", 3, 128),
    ("FP8 channel", 3, 128),
])  # fmt: skip
def test_ranks_of_tensor_parallelism_share_it(tmp_path, rng, name, tp, width):
    """Some rows of gate and up, and the same columns of down, in whole blocks; ranks of experts have it whole."""
    layout, begin = PUBLISHED[name], 0
    experts = layout.experts(rng, count=1, intermediate=360)
    save(tmp_path / "model.safetensors", checkpoints.dense(experts, name))
    opened, step = Checkpoint(tmp_path), {"FP8": 128, "FP8 channel": 1}.get(layout.form, 32)
    groups = -(-360 // step)
    for rank in range(tp):
        end = min(groups * (rank + 1) // tp * step, 360)
        arrays = prepare(opened, DENSE[name], tp, rank, 4, 3, layout.target)
        same(arrays, expected(experts, layout.target, (begin, end), width, rank, with_bias=False))
        convert(opened, opened.layer(DENSE[name], tp, rank, 4, 3, layout.target), tmp_path / "part")
        begin = end
    assert begin == 360


def test_gate_and_up_may_be_one_tensor(tmp_path, rng):
    """The rows of gate and then those of up, in [2 I, H]; scales of FP8 cannot be of both."""
    for intermediate in (256, 192):
        experts = random_experts(rng, "FP8", "F32", 1, 160, intermediate)
        tensors = stacked(experts, MLP, (".weight", ".weight_scale_inv"), ("F8_E4M3", "F32"))
        tensors = {name: (dtype, array[0]) for name, (dtype, array) in tensors.items()}
        save(tmp_path / "model.safetensors", tensors)
        opened = Checkpoint(tmp_path)
        if intermediate == 192:
            with pytest.raises(CheckpointError, match="gate and up would share scales"):
                opened.layer(MLP)
            continue
        arrays = prepare(opened, MLP)
        same(arrays, expected(experts, "moe_fp8", (0, 256), 256, 0, with_bias=False))
        comes_back(arrays, opened.layer(MLP), tensors)


def nvfp4(rng, tool, hidden=96, intermediate=160):
    """Tensors by the ends of their names; every global scale is another one."""
    suffixes, scalar = NVFP4[tool]
    tensors, first = {}, (intermediate, hidden)
    for projection, (n, k) in {"gate_proj": first, "up_proj": first, "down_proj": first[::-1]}.items():
        arrays = (
            ("U8", rng.integers(0, 256, (n, k // 2), dtype=np.uint8)),
            ("F8_E4M3", rng.integers(0, 0x7F, (n, k // 16), dtype=np.uint8)),
            *(("F32", np.full(scalar, rng.uniform(1e-3, 1e3), np.float32)) for _ in range(2)),
        )
        tensors |= {f"{projection}.{suffix}": array for suffix, array in zip(suffixes, arrays, strict=True)}
    return tensors


@pytest.mark.parametrize("tool", NVFP4)
@pytest.mark.parametrize("prefix", [MLP, SHARED])
@pytest.mark.parametrize(("tp", "rank"), [(1, 0), (3, 2)])
def test_nvfp4_is_what_it_is_as_an_only_expert(tmp_path, rng, tool, prefix, tp, rank):
    """To the byte, global scales included; and it comes back under its own names."""
    tensors = nvfp4(rng, tool)
    own = {f"{prefix}.{name}": entry for name, entry in tensors.items()}
    save(tmp_path / "model.safetensors", own | {f"{ROUTED}.0.{name}": entry for name, entry in tensors.items()})
    opened = Checkpoint(tmp_path)
    arrays = prepare(opened, prefix, tp, rank)
    same(arrays, prepare(opened, ROUTED, tp, rank))
    convert(opened, opened.layer(prefix, tp, rank), tmp_path / "part")
    if tp == 1:
        comes_back(arrays, opened.layer(prefix), own)


# Of a layout: gate and up with SwiGLU, what else a problem of it needs, and down.
KERNELS = {
    "moe_fp4": ("grouped_fp4_swiglu", {"S": 128, "global_scale_kind": "decode"}, "gemm_fp4"),
    "moe_mxfp8_mxfp4": ("grouped_mxfp8_mxfp4_swiglu", {"S": 128}, "gemm_mxfp8_mxfp4"),
    "moe_mxfp8": ("grouped_mxfp8_swiglu", {"S": 128}, "gemm_mxfp8"),
    "moe_mxfp4": ("grouped_mxfp4_swiglu", {"S": 128}, "gemm_mxfp4"),
    "moe_fp8": ("grouped_fp8_swiglu", {}, "gemm_fp8"),
    "moe_fp8_ue8m0": ("grouped_fp8_ue8m0_swiglu", {}, "gemm_fp8_ue8m0"),
}


@pytest.mark.parametrize("name", ["MXFP4 ModelOpt", "MXFP8", "FP8 DeepSeek-V3", "FP8 DeepSeek-V3.1", "NVFP4"])
def test_the_arrays_are_arguments_of_a_grouped_and_a_dense_gemm(tmp_path, rng, pack, name):
    """Gate and up of E = 1, and down as the only matrix of w2, in the shapes that the kernels ask for."""
    if name == "NVFP4":
        prefix, target = MLP, "moe_fp4"
        tensors = {f"{MLP}.{tensor}": entry for tensor, entry in nvfp4(rng, "ModelOpt", 160, 208).items()}
    else:
        prefix, target = DENSE[name], PUBLISHED[name].target
        tensors = checkpoints.dense(PUBLISHED[name].experts(rng, count=1, intermediate=208), name)
    save(tmp_path / "model.safetensors", tensors)
    arrays = prepare(tmp_path, prefix, target=target)
    gated, others, dense = KERNELS[target]
    hidden, width = (-(-size // PAD[target]) * PAD[target] for size in (160, 208))
    first = loader.buffers(gated, packs=[pack], M=1, E=1, K=hidden, I=width, intermediate="f32", **others)
    second = loader.buffers(dense, packs=[pack], M=1, N=160, K=width)
    for argument, array in (("b", "w13"), ("b_scale", "w13_scale")):
        assert arrays[array].shape == first[argument].shape
    for argument, array in (("b", "w2"), ("b_scale", "w2_scale")):
        assert arrays[array][0].shape == second[argument].shape


def test_the_command_converts_every_mlp_of_a_model(tmp_path, rng, capsys):
    """A dense layer, shared experts and routed ones; what is in BF16, or has scales of rows, is left out and said."""
    (tmp_path / "in").mkdir()
    routed, scales = PUBLISHED["FP8 DeepSeek-V3"], SCALES["F32"]
    tensors = checkpoints.dense(routed.experts(rng, count=1, intermediate=384), "FP8 DeepSeek-V3")
    tensors |= checkpoints.dense(PUBLISHED["FP8 DeepSeek-V3.1"].experts(rng, count=1), "FP8 DeepSeek-V3.1")
    tensors |= routed.tensors(routed.experts(rng), ROUTED)
    tensors |= {f"model.layers.4.mlp.{name}_proj.weight": ZEROS for name in ("gate", "up", "down")}
    coarse = random_experts(rng, "FP8", "F32", 1, 160, 192)
    for name in ("gate", "up", "down"):
        stem = f"model.layers.5.mlp.{name}_proj.weight"
        tensors |= {stem: ("F8_E4M3", coarse.values[name][0]), f"{stem}_scale": ("F32", scales(rng, ()))}
    save_sharded(tmp_path / "in", tensors, 3)
    command = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--ep", "2", "--ep-rank", "1"]
    assert checkpoint.main(command) == 0
    table, _, skipped = capsys.readouterr().out.partition("skipped")
    files = [f"{MLP}.safetensors", f"{ROUTED}.experts1of2.safetensors", f"{SHARED}.safetensors"]
    assert sorted(os.listdir(tmp_path / "out")) == files
    assert table.count("every byte") == 3
    assert "down_proj.weight is BF16" in skipped
    assert "gate_proj.weight_scale is [], a scale for each row or matrix" in skipped
    for flags, found in ((["--layers", "0"], files[:1]), (["--prefix", "*.shared_experts"], files[2:])):
        target = tmp_path / flags[0]
        assert checkpoint.main([*command[:2], str(target), *flags, "--tp", "2", "--rank", "1"]) == 0
        assert os.listdir(target) == [file.replace(".safetensors", ".rank1of2.safetensors") for file in found]


def put(name, dtype, array):
    return lambda tensors: tensors.update({f"{MLP}.{name}": (dtype, array)})


def drop(name):
    return lambda tensors: tensors.pop(f"{MLP}.{name}")


FLOATS = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(("damage", "message"), [
    (drop("gate_proj.weight"), f"no tensor {MLP}.gate_proj.weight"),
    (drop("down_proj.weight_scale_inv"), f"no tensor {MLP}.down_proj.weight_scale_inv"),
    (put("up_proj.weight_scale_inv", "BF16", np.zeros((2, 2), np.uint16)),
     f"{MLP}.up_proj.weight_scale_inv is BF16 [2, 2], expected F32 [2, 2]"),
    (put("up_proj.weight_scale_inv", "F32", -FLOATS), f"{MLP}.up_proj.weight_scale_inv has -1.0, no finite scale"),
    (put("up_proj.bias", "F32", FLOATS), f"{MLP}.up_proj.bias and 0 more have no place"),
    (put("gate_up_proj.weight", "F32", FLOATS), "are none of"),
    (put("w1.weight_packed", "F32", FLOATS), f"{MLP}: tensors of weight_packed and weight_scale_inv"),
    (put("up_proj.pre_quant_scale", "F32", FLOATS), f"{MLP}.up_proj.pre_quant_scale: AWQ"),
])  # fmt: skip
def test_a_wrong_tensor_is_named_and_nothing_is_written(tmp_path, rng, capsys, damage, message):
    """What it is and what belongs there, by the function and by the command."""
    tensors = checkpoints.dense(PUBLISHED["FP8 DeepSeek-V3"].experts(rng, count=1), "FP8 DeepSeek-V3")
    damage(tensors)
    save(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        prepare(tmp_path, MLP)
    assert message in str(caught.value)
    assert not isinstance(caught.value, OtherFormatError)
    assert checkpoint.main(["convert", str(tmp_path), str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["visual.blocks.0.mlp.fc1.weight", "model.layers.0.mlp.gate_proj.0.weight",
                                  "model.layers.0.mlp_norm.up_proj.weight", "mlp.up_proj.weight"])
def test_other_names_are_no_mlp(tmp_path, name):
    """Other projections, numbers behind them, other modules, and none at all."""
    save(tmp_path / "model.safetensors", {name: ZEROS})
    assert Checkpoint(tmp_path).prefixes == []
