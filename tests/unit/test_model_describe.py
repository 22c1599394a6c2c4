"""``python -m integrations.model describe``: layers of published configurations, what runs them, bytes, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import manifest_pack
import published_models as published
import pytest
import safetensors.torch
import torch

import loader
from integrations import model, model_kernels
from integrations.model_description import describe, ranges
from integrations.model_fields import ModelError

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = {"90a", "100a", "103a", "100f", "120a", "121a", "120f"}
FP8 = "FP8, fp32 scales of 128 x 128"
UE8M0 = "FP8, UE8M0 scales of 128 x 128"


@pytest.fixture(scope="module", autouse=True)
def pack(tmp_path_factory):
    """The kernels of kernels.yaml, as the loader sees them."""
    directory = tmp_path_factory.mktemp("pack")
    manifest_pack.write(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADER_ARTIFACTS", str(directory))
        patch.setenv("COLUMNS", "240")
        loader.reload()
        yield directory
    loader.reload()


def saved(folder, config, beside=None):
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    return folder


def shape(row):
    if "n" in row.sizes:
        return row.sizes["n"], row.sizes["k"]
    return tuple(row.sizes[name] for name in ("experts", "topk", "hidden", "intermediate"))


def shapes(description):
    """Part, last words of the modules, how many layers, format, and N x K or the sizes of experts."""
    return [(row.part, " ".join(module.rpartition(".")[2] for module in row.modules), len(row.layers), row.format,
             shape(row)) for row in description.rows]


def attention(layers, formats, hidden, heads, kv_heads, size):
    query, keys, out = formats
    return [("attention", "q_proj", layers, query, (heads * size, hidden)),
            ("attention", "k_proj v_proj", layers, keys, (kv_heads * size, hidden)),
            ("attention", "o_proj", layers, out, (hidden, heads * size))]


def latent(layers, first, out):
    return [("attention", "q_a_proj", layers, first, (1536, 7168)),
            ("attention", "q_b_proj", layers, first, (128 * 192, 1536)),
            ("attention", "kv_a_proj_with_mqa", layers, first, (576, 7168)),
            ("attention", "kv_b_proj", layers, first, (128 * 256, 512)),
            ("attention", "o_proj", layers, out, (7168, 16384))]


def mlp(part, layers, form, hidden, size):
    return [(part, "gate_proj up_proj", layers, form, (size, hidden)),
            (part, "down_proj", layers, form, (hidden, size))]


def experts(layers, form, *sizes, names="gate_proj up_proj down_proj"):
    return [("routed experts", names, layers, form, sizes)]


def deepseek(form, first):
    return [*latent(61, first, form), *mlp("dense MLP", 3, form, 7168, 18432),
            ("router", "gate", 58, "BF16", (256, 7168)), *mlp("shared experts", 58, form, 7168, 2048),
            *experts(58, form, 256, 8, 7168, 2048), ("lm_head", "lm_head", 1, "BF16", (129280, 7168))]


def qwen(form):
    return [*attention(94, (form,) * 3, 4096, 64, 4, 128), ("router", "gate", 94, "BF16", (128, 4096)),
            *experts(94, form, 128, 8, 4096, 1536), ("lm_head", "lm_head", 1, "BF16", (151936, 4096))]


def glm(form):
    return [*attention(92, (form,) * 3, 5120, 96, 8, 128), *mlp("dense MLP", 3, form, 5120, 12288),
            ("router", "gate", 89, "BF16", (160, 5120)), *mlp("shared experts", 89, form, 5120, 1536),
            *experts(89, form, 160, 8, 5120, 1536), ("lm_head", "lm_head", 1, "BF16", (151552, 5120))]


def gpt_oss(layers, count):
    return [*attention(layers, ("BF16",) * 3, 2880, 64, 8, 64), ("router", "router", layers, "BF16", (count, 2880)),
            *experts(layers, "MXFP4", count, 4, 2880, 2880, names="gate_up_proj down_proj"),
            ("lm_head", "lm_head", 1, "BF16", (201088, 2880))]


NEMOTRON = [
    ("mamba", "in_proj", 17, "NVFP4", (10304, 2688)), ("mamba", "in_proj", 6, "BF16", (10304, 2688)),
    ("mamba", "out_proj", 17, "NVFP4", (2688, 4096)), ("mamba", "out_proj", 6, "BF16", (2688, 4096)),
    *attention(6, ("BF16",) * 3, 2688, 32, 2, 128), ("router", "gate", 23, "BF16", (128, 2688)),
    ("shared experts", "up_proj", 23, "NVFP4", (3712, 2688)),
    ("shared experts", "down_proj", 23, "NVFP4", (2688, 3712)),
    *experts(23, "NVFP4", 128, 6, 2688, 1856, names="up_proj down_proj"),
    ("lm_head", "lm_head", 1, "BF16", (131072, 2688)),
]  # fmt: skip


def quantised(config, quantization):
    return {**config, "quantization_config": quantization}


LLM_COMPRESSOR = published.compressed(published.NVFP4_GROUP, ignore=["lm_head", "re:.*mlp.gate$"])
MODELS = {
    "gpt-oss-20b": (published.GPT_OSS, None, gpt_oss(24, 32)),
    "gpt-oss-120b": (published.GPT_OSS_120B, None, gpt_oss(36, 128)),
    "DeepSeek-V3": (quantised(published.DEEPSEEK, published.FP8), None, deepseek(FP8, FP8)),
    "DeepSeek-V3.1": (quantised(published.DEEPSEEK, published.UE8M0), None, deepseek(UE8M0, UE8M0)),
    "DeepSeek-V3.1-NVFP4": (published.DEEPSEEK, published.DEEPSEEK_NVFP4, deepseek("NVFP4", "BF16")),
    "Qwen3-235B-FP8": (quantised(published.QWEN, published.QWEN_FP8), None, qwen(FP8)),
    "Qwen3-235B-NVFP4": (published.QWEN, published.QWEN_NVFP4, qwen("NVFP4")),
    "Qwen3-235B by compressed-tensors": (quantised(published.QWEN, LLM_COMPRESSOR), None, qwen("NVFP4")),
    "GLM-4.5 in blocks of 128": (
        quantised(published.GLM, published.compressed(published.BLOCK_GROUP)), None, glm(FP8)),
    "GLM-4.5-FP8": (quantised(published.GLM, published.compressed(published.CHANNEL_GROUP)), None,
                        glm("FP8, a scale for each row")),
    "Qwen3-235B in MXFP8": (
        quantised(published.QWEN, published.compressed(published.MXFP8_GROUP)), None, qwen("MXFP8")),
    "Nemotron-3-Nano-NVFP4": (published.NEMOTRON, published.NEMOTRON_NVFP4, NEMOTRON),
    "Qwen3-32B in MXFP4": (quantised(published.QWEN_DENSE, published.compressed(published.MXFP4_GROUP)), None, [
        *attention(64, ("MXFP4",) * 3, 5120, 64, 8, 128), *mlp("dense MLP", 64, "MXFP4", 5120, 25600),
        ("lm_head", "lm_head", 1, "BF16", (151936, 5120))]),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def described(request, tmp_path_factory):
    """A model's description, and its layers as they should be."""
    config, beside, expected = MODELS[request.param]
    return describe(saved(tmp_path_factory.mktemp("model"), config, beside)), expected


def test_layers_are_those_of_the_model(described):
    """Every matrix with its shape, layers and format."""
    description, expected = described
    assert shapes(description) == expected


# Kernel -> archs, of formats and kinds.
DENSE = {
    "BF16": {"gemm_bf16": EVERYWHERE},
    "NVFP4": {"gemm_fp4": EVERYWHERE},
    "MXFP4": {"gemm_mxfp8_mxfp4": EVERYWHERE},
    "MXFP8": {"gemm_mxfp8": EVERYWHERE},
    FP8: {"gemm_fp8": {"90a"}},
    UE8M0: {"gemm_fp8": {"90a"}, "gemm_fp8_ue8m0": EVERYWHERE - {"90a"}},
    "FP8, a scale for each row": {"gemm_fp8_channel": {"90a"}},
}
ROUTED = {
    "NVFP4": {"moe_bf16_nvfp4": {"90a"}, "moe_fp4": EVERYWHERE - {"90a"}},
    "MXFP4": {"moe_bf16_mxfp4": {"90a"}, "moe_mxfp8_mxfp4": EVERYWHERE - {"90a"}},
    "MXFP8": {"moe_mxfp8": EVERYWHERE},
    FP8: {"moe_fp8": {"90a"}},
    UE8M0: {"moe_fp8": {"90a"}, "moe_fp8_ue8m0": EVERYWHERE - {"90a"}},
    "FP8, a scale for each row": {"moe_fp8_channel": {"90a"}},
}


def test_kernels_are_those_of_the_format(described):
    """Every arch of the packs has a kernel or a reason."""
    description, _ = described
    for row in description.rows:
        found = {fit.kernels: set(fit.archs) for fit in row.fits}
        if "n" in row.sizes:
            assert found == DENSE[row.format]
        elif description.model_type == "nemotron_h":
            assert found == {"moe_fp4_relu2": EVERYWHERE}
        else:
            assert found == ROUTED[row.format]
        assert set().union(*found.values()) | row.refused.keys() == EVERYWHERE
        assert not set().union(*found.values()) & row.refused.keys()
        assert all(row.refused.values())


def up(value, multiple):
    return -(-value // multiple) * multiple


def blocks(n, k):
    """Bytes of scales in the 128x4 block layout, k of them in a row."""
    return up(n, 128) * up(k, 4)


# Kernel -> bytes of weights and of scales, of N x K or of one expert's H and I.
BYTES = {
    "gemm_bf16": lambda n, k: (2 * n * k, 0),
    "gemm_fp4": lambda n, k: (n * k // 2, blocks(n, k // 16)),
    "gemm_mxfp8_mxfp4": lambda n, k: (n * k // 2, blocks(n, k // 32)),
    "gemm_mxfp8": lambda n, k: (n * k, blocks(n, k // 32)),
    "gemm_fp8": lambda n, k: (n * k, 4 * -(-n // 128) * -(-k // 128)),
    "gemm_fp8_ue8m0": lambda n, k: (n * k, 4 * -(-k // 512) * up(n, 4)),
    "gemm_fp8_channel": lambda n, k: (n * k, 4 * n),
    "moe_mxfp8_mxfp4": lambda h, i: (i * up(h, 128) + h * i // 2, 2 * i * up(h, 128) // 32 + up(h, 128) * i // 32),
    "moe_mxfp8": lambda h, i: (3 * h * i, blocks(2 * i, h // 32) + blocks(h, i // 32)),
    "moe_fp8": lambda h, i: (3 * h * i, 3 * 4 * -(-h // 128) * -(-i // 128)),
    "moe_fp8_channel": lambda h, i: (3 * h * i, 4 * (2 * i + h)),
    "moe_fp8_ue8m0": lambda h, i: (3 * h * i, 4 * (2 * i * -(-h // 512) + h * -(-i // 512))),
    "moe_bf16_nvfp4": lambda h, i: (i * up(h, 128) + h * up(i, 128) // 2, blocks(2 * i, h // 16) + blocks(h, i // 16)),
    "moe_bf16_mxfp4": lambda h, i: (i * up(h, 128) + h * up(i, 128) // 2, blocks(2 * i, h // 32) + blocks(h, i // 32)),
    "moe_fp4": lambda h, i: (3 * h * i // 2, blocks(2 * i, h // 16) + blocks(h, i // 16)),
    "moe_fp4_relu2": lambda h, i: (h * i, blocks(i, h // 16) + blocks(h, i // 16)),
}
MULTIPLES = {"moe_mxfp8_mxfp4": 128, "moe_bf16_mxfp4": 64}  # of I


def test_bytes_are_those_of_the_buffers(described):
    """Weights and scales of a layer; a token reads all of a matrix, and its experts alone; sums are of all layers."""
    description, _ = described
    sums = dict.fromkeys(EVERYWHERE, (0, 0, 0))
    for row in description.rows:
        for fit in row.fits:
            if "n" in row.sizes:
                weights, scales = (len(row.modules) * size for size in BYTES[fit.kernels](*shape(row)))
                token = weights + scales
            else:
                count, topk, hidden, size = shape(row)
                weights, scales = BYTES[fit.kernels](hidden, up(size, MULTIPLES.get(fit.kernels, 16)))
                token = topk * (weights + scales)
                weights, scales = count * weights, count * scales
            assert row.bytes(fit) == (weights, scales, token)
            for arch in fit.archs:
                sums[arch] = tuple(old + len(row.layers) * new
                                   for old, new in zip(sums[arch], (weights, scales, token), strict=True))
    for arch in EVERYWHERE:
        total = description.total(arch)
        assert total[:3] == sums[arch]
        assert total.refused == sum(arch in row.refused for row in description.rows)


def test_ranks_have_shares(tmp_path):
    """Heads are cut between heads, copies where there are more ranks; intermediate sizes between groups of scales."""
    folder = saved(tmp_path, quantised(published.QWEN, published.QWEN_FP8))
    assert shapes(describe(folder, tp=8)) == [
        ("attention", "q_proj", 94, FP8, (1024, 4096)), ("attention", "k_proj v_proj", 94, FP8, (128, 4096)),
        ("attention", "o_proj", 94, FP8, (4096, 1024)), ("router", "gate", 94, "BF16", (128, 4096)),
        # 1536 are 12 groups of 128, of which 4 ranks have two.
        *experts(94, FP8, 128, 8, 4096, 256), ("lm_head", "lm_head", 1, "BF16", (18992, 4096)),
    ]  # fmt: skip
    both = shapes(describe(folder, tp=8, ep=8))
    assert both[:3] == shapes(describe(folder, tp=8))[:3]
    assert both[4] == experts(94, FP8, 16, 8, 4096, 1536)[0]


@pytest.mark.parametrize(("tp", "size"), [(1, 2880), (2, 1440), (4, 736), (8, 384)])
def test_a_rank_of_gpt_oss_has_whole_groups(tp, size, tmp_path):
    """2880 are 90 groups of 32; tokens in bf16 are multiplied by groups of 64, those in MXFP8 by groups of 128."""
    row = describe(saved(tmp_path, published.GPT_OSS), tp=tp).rows[-2]
    assert shape(row) == (32, 4, 2880, size)
    assert [(fit.kernels, fit.sizes["hidden"], fit.sizes["intermediate"]) for fit in row.fits] == [
        ("moe_bf16_mxfp4", 2880, up(size, 64)), ("moe_mxfp8_mxfp4", 2880, up(size, 128))]  # fmt: skip


def test_a_layout_that_is_asked_for_comes_first(tmp_path):
    """On every arch that it takes; the others keep their own. A format that has no such layout is as it was."""
    rows = describe(saved(tmp_path, published.GPT_OSS), layout="moe_mxfp8_mxfp4").rows
    assert {fit.kernels: set(fit.archs) for fit in rows[-2].fits} == {"moe_mxfp8_mxfp4": EVERYWHERE}
    qwen = saved(tmp_path, quantised(published.QWEN, published.QWEN_FP8))
    assert describe(qwen, layout="moe_mxfp8_mxfp4") == describe(qwen)
    with pytest.raises(ModelError, match="no choice of moe_mxfp8 for experts; there is one of moe_bf16_nvfp4, moe_fp4"):
        describe(qwen, layout="moe_mxfp8")


def test_a_cut_inside_of_a_scale_is_refused(tmp_path):
    """Heads of 64 rows: a rank of one has half of a block of 128."""
    config = quantised({**published.QWEN_DENSE, "head_dim": 64, "num_attention_heads": 8}, published.FP8)
    row = describe(saved(tmp_path, config), tp=8).rows[0]
    assert (row.fits, set(row.refused)) == ((), EVERYWHERE)
    assert set(row.refused.values()) == {"a rank would have 64 of 512, which ends inside of 128 values of one scale"}


def test_padding_is_what_the_loader_asks_for(tmp_path):
    """N to 8, K of NVFP4 to 32; bytes are those of the padded buffers."""
    nvfp4 = published.compressed(published.NVFP4_GROUP)
    config = {**quantised(published.QWEN_DENSE, nvfp4), "vocab_size": 50257, "intermediate_size": 1424}
    rows = {row.modules[-1].rpartition(".")[2]: row for row in describe(saved(tmp_path, config)).rows}
    assert (rows["lm_head"].fits[0].sizes["n"], rows["lm_head"].sizes["n"]) == (50264, 50257)
    down = rows["down_proj"]
    assert (down.fits[0].sizes, down.sizes) == ({"n": 5120, "k": 1440}, {"n": 5120, "k": 1424})
    assert down.bytes(down.fits[0])[:2] == (5120 * 720, blocks(5120, 90))


def test_tied_embeddings_are_bf16(tmp_path):
    """They are no Linear, whatever is quantised."""
    config = quantised({**published.QWEN_DENSE, "tie_word_embeddings": True}, published.compressed(
        published.NVFP4_GROUP, ignore=[]))
    assert describe(saved(tmp_path, config)).rows[-1].format == "BF16"


@pytest.mark.parametrize(("quantization", "name"), [
    ({"quant_method": "awq", "bits": 4, "group_size": 128}, "quant_method awq"),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo W4A8_AWQ"),
    ({**published.FP8, "weight_block_size": [64, 256]}, "FP8, scales of 64 x 256"),
    ({"quant_method": "fp8", "activation_scheme": "static"}, "FP8, a scale for each matrix"),
    (published.compressed({"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}),
     "4-bit int by group 128"),
])  # fmt: skip
def test_what_is_not_known_is_named(quantization, name, tmp_path):
    """It runs on nothing, and is not taken for something alike."""
    row = describe(saved(tmp_path, quantised(published.QWEN_DENSE, quantization))).rows[0]
    assert (row.format, row.fits) == (name, ())
    assert set(row.refused.values()) == {"no kernel takes this format"}


def test_expressions_and_groups_choose_modules(tmp_path):
    """Of compressed-tensors: the first group that names a module, and ignore by name or by expression."""
    quantization = published.compressed(published.NVFP4_GROUP, ["lm_head", r"re:.*layers\.[01]\..*"], [r"re:.*mlp.*"])
    quantization["config_groups"]["group_1"] = {"targets": ["Linear"], "weights": {
        "type": "float", **published.BLOCK_GROUP}}
    found = describe(saved(tmp_path, quantised(published.QWEN_DENSE, quantization)))
    layers = {(row.modules[0].rpartition(".")[2], row.format): ranges(row.layers) for row in found.rows}
    assert layers == {("q_proj", "BF16"): "0-1", ("q_proj", FP8): "2-63", ("k_proj", "BF16"): "0-1",
                      ("k_proj", FP8): "2-63", ("o_proj", "BF16"): "0-1", ("o_proj", FP8): "2-63",
                      ("gate_proj", "BF16"): "0-1", ("gate_proj", "NVFP4"): "2-63", ("down_proj", "BF16"): "0-1",
                      ("down_proj", "NVFP4"): "2-63", ("lm_head", "BF16"): "0"}  # fmt: skip


@pytest.mark.parametrize(("config", "sparse"), [
    ({**published.QWEN, "num_hidden_layers": 7, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, "1, 5"),
    ({**published.DEEPSEEK, "num_hidden_layers": 9, "moe_layer_freq": 2}, "4, 6, 8"),
])  # fmt: skip
def test_layers_without_experts_are_dense(config, sparse, tmp_path):
    """By step, by list, and before the first one."""
    rows = {row.part: set(row.layers) for row in describe(saved(tmp_path, config)).rows}
    assert ranges(sorted(rows["routed experts"])) == sparse
    assert rows["dense MLP"] == rows["attention"] - rows["routed experts"]


def test_an_indexer_and_latent_experts_are_layers(tmp_path):
    """DeepSeek-V3.2 and Nemotron-3-Super have matrices beside those of the models before them."""
    config = {**published.DEEPSEEK, "model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128}
    assert shapes(describe(saved(tmp_path, quantised(config, published.UE8M0))))[5:8] == [
        ("attention", "wq_b", 61, UE8M0, (8192, 1536)), ("attention", "wk", 61, UE8M0, (128, 7168)),
        ("attention", "weights_proj", 61, "BF16", (64, 7168))]
    config = {**published.NEMOTRON, "moe_latent_size": 1024}
    assert shapes(describe(saved(tmp_path, config, published.modelopt([]))))[6:11] == [
        ("routed experts", "fc1_latent_proj", 23, "NVFP4", (1024, 2688)),
        ("routed experts", "fc2_latent_proj", 23, "NVFP4", (2688, 1024)),
        ("shared experts", "up_proj", 23, "NVFP4", (3712, 2688)),
        ("shared experts", "down_proj", 23, "NVFP4", (2688, 3712)),
        *experts(23, "NVFP4", 128, 6, 1024, 1856, names="up_proj down_proj")]


def test_a_list_names_modules_or_what_they_are_part_of(tmp_path):
    """Whole, by ``*``, and without what is before; layer 1 is not layer 10."""
    beside = published.modelopt(["model.layers.1", "model.layers.2.*.o_proj", "down_proj", "lm_head"])
    found = describe(saved(tmp_path, published.QWEN_DENSE, beside)).rows
    plain = {row.modules[0].rpartition(".")[2]: ranges(row.layers) for row in found if row.format == "BF16"}
    assert plain == {"q_proj": "1", "k_proj": "1", "o_proj": "1-2", "gate_proj": "1", "down_proj": "0-63",
                     "lm_head": "0"}  # fmt: skip


def test_quantized_layers_have_formats_of_their_own(tmp_path):
    """ModelOpt's MIXED_PRECISION, of modules or of what they are part of; what it does not list is BF16."""
    layers = {"model.layers.0.mlp": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
              "model.layers.1.mlp.down_proj": {"quant_algo": "FP8"}}
    beside = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    found = describe(saved(tmp_path, published.QWEN_DENSE, beside))
    down = {row.format: row.layers for row in found.rows if row.modules[0].endswith("down_proj")}
    assert down == {"NVFP4": (0,), "FP8, a scale for each matrix": (1,), "BF16": tuple(range(2, 64))}


SIZE = "a whole number from 1 to 2147483647"


def without(config, key):
    return {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize(("config", "message"), [
    (without(published.DEEPSEEK, "v_head_dim"), f"v_head_dim: expected {SIZE}, got nothing"),
    ({**published.GPT_OSS, "hidden_size": "2880"}, f"hidden_size: expected {SIZE}, got '2880'"),
    ({**published.GPT_OSS, "hidden_size": True}, f"hidden_size: expected {SIZE}, got True"),
    ({**published.GPT_OSS, "num_hidden_layers": 4097}, "num_hidden_layers: expected a whole number from 1 to 4096, got "
     "4097"),
    ({**published.QWEN, "mlp_only_layers": [-1]}, "mlp_only_layers: expected a list of whole numbers, got [-1]"),
    ({**published.QWEN, "hidden_act": "gelu"}, "hidden_act: expected silu, got 'gelu'"),
    ({**published.NEMOTRON, "mlp_hidden_act": "silu"}, "mlp_hidden_act: expected relu2, got 'silu'"),
    ({**published.NEMOTRON, "hybrid_override_pattern": "M*X"}, "hybrid_override_pattern: expected one of M * - E for "
     "each of num_hidden_layers, got 'M*X'"),
    ({**published.QWEN, "model_type": "mamba"}, "model_type: expected one of deepseek_v3, deepseek_v32, glm4_moe, "
     "gpt_oss, kimi_k2, llama, nemotron_h, qwen3, qwen3_moe, got 'mamba'"),
    (quantised(published.QWEN, []), "quantization_config: expected an object, got []"),
    (quantised(published.QWEN, {}), "quantization_config: quant_method: expected a word, got nothing"),
    (quantised(published.QWEN, {**published.FP8, "scale_fmt": "e5m2"}), "quantization_config: scale_fmt: expected "
     "float or ue8m0, got 'e5m2'"),
    (quantised(published.QWEN, {**published.FP8, "moe_quant_algo": "NVFP4"}), "quantization_config: moe_quant_algo: "
     "expected nothing beside quant_method fp8, got 'NVFP4'"),
    (quantised(published.QWEN, {**published.FP8, "modules_to_not_convert": "lm_head"}), "quantization_config: "
     "modules_to_not_convert: expected a list of words, got 'lm_head'"),
    (quantised(published.QWEN, {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32}),
     "quantization_config: group_size: expected 16, for NVFP4, got 32"),
    (quantised(published.QWEN, published.compressed({"num_bits": 4})), "quantization_config: config_groups: group_0: "
     "weights: strategy: expected a word, got nothing"),
    (quantised(published.QWEN, published.compressed(published.NVFP4_GROUP, ignore=["re:("])), "quantization_config: "
     "ignore: expected an expression behind re:, missing ), unterminated subpattern at position 0"),
])  # fmt: skip
def test_what_is_wrong_is_named(config, message, tmp_path):
    """The file, the key, what was expected and what came."""
    with pytest.raises(ModelError) as raised:
        describe(saved(tmp_path, config))
    assert str(raised.value) == f"{tmp_path / 'config.json'}: {message}"


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is not JSON"), ("[]", "expected an object, got []"), ("[" * 100_000, "is not JSON"),
    ("\udcff", "is not JSON"),
])  # fmt: skip
def test_a_file_that_is_no_object_is_refused(text, message, tmp_path):
    """Whatever its bytes."""
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=message.replace("[", r"\[")):
        describe(tmp_path)


@pytest.mark.parametrize(("how", "message"), [
    ({"tp": 3}, "model.layers.{}.self_attn.q_proj: 64 heads cannot be shared out over 3 ranks"),
    ({"tp": 16}, "routed experts: 12 groups of 128 values cannot be shared out over 16 ranks"),
    ({"ep": 129}, "expected at most 128 ranks for 128 experts, got 129"),
])  # fmt: skip
def test_ranks_that_have_nothing_are_refused(how, message, tmp_path):
    """No rank is without a share."""
    with pytest.raises(ModelError) as raised:
        describe(saved(tmp_path, quantised(published.QWEN, published.QWEN_FP8)), **how)
    assert str(raised.value) == message


SMALL = {**published.QWEN, "hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
         "moe_intermediate_size": 256, "num_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1,
         "vocab_size": 64}  # fmt: skip


def test_headers_say_the_same(tmp_path):
    """Where weights are there, their types and shapes are those of the configuration."""
    expert = "model.layers.0.mlp.experts.0.down_proj.weight"
    folder = saved(tmp_path, quantised(SMALL, LLM_COMPRESSOR))
    tensors = {"model.layers.0.self_attn.q_proj.weight_packed": torch.zeros((256, 64), dtype=torch.uint8),
               f"{expert}_packed": torch.zeros((128, 128), dtype=torch.uint8), "lm_head.weight": torch.zeros((64, 128))}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    describe(folder)
    for dtype, columns, got in ((torch.bfloat16, 128, "BF16 [128, 128]"), (torch.uint8, 256, "U8 [128, 256]")):
        safetensors.torch.save_file({expert: torch.zeros((128, columns), dtype=dtype)}, folder / "model.safetensors")
        with pytest.raises(ModelError) as raised:
            describe(folder)
        assert str(raised.value) == f"{expert}: expected U8 [128, 128] by the configuration (NVFP4), got {got}"


def test_headers_of_stacked_experts(tmp_path):
    """gpt-oss has all experts in one tensor, 32 values in 16 bytes."""
    config = {**published.GPT_OSS, "hidden_size": 64, "intermediate_size": 96, "num_local_experts": 2,
              "num_hidden_layers": 1, "vocab_size": 64}
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    safetensors.torch.save_file({name: torch.zeros((2, 192, 2, 16), dtype=torch.uint8)}, tmp_path / "a.safetensors")
    describe(saved(tmp_path, config))
    saved(tmp_path, {**config, "intermediate_size": 128})
    with pytest.raises(ModelError, match=r"expected U8 \[2, 256, 2, 16\] .* got U8 \[2, 192, 2, 16\]"):
        describe(tmp_path)


def run(capsys, *arguments):
    status = model.main(["describe", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_prints_tables(tmp_path, capsys):
    """What runs, what does not and why, and sums."""
    status, out, error = run(capsys, saved(tmp_path, quantised(published.DEEPSEEK, published.FP8)))
    assert (status, error) == (0, "")
    assert out.startswith("deepseek_v3, quantisation: fp8\n")
    lines = [" ".join(line.replace("│", "|").split()) for line in out.splitlines()]
    sizes = "10.50 MiB | 2.62 KiB | 10.50 MiB"
    assert f"| attention | q_a_proj | 61 | {FP8} | 1536 x 7168 | gemm_fp8 | 90a | | {sizes} |" in lines
    assert any(line.startswith("| attention (q_a_proj; 0-60) | 100a 103a 100f 120a 121a 120f | scales are fp32")
               for line in lines)
    assert lines[-1] == "left out: layers that predict further tokens (1)"


def test_the_command_prints_json(tmp_path, capsys):
    """The rows of ``describe``, and the sums."""
    status, out, _ = run(capsys, saved(tmp_path, published.DEEPSEEK, published.DEEPSEEK_NVFP4), "--json", "--ep", "32")
    found, expected = json.loads(out), describe(tmp_path, ep=32)
    assert status == 0
    assert [row["format"] for row in found["rows"]] == [row.format for row in expected.rows]
    assert found["rows"][-2]["sizes"] == {"experts": 8, "topk": 8, "hidden": 7168, "intermediate": 2048, "halves": 2}
    assert found["totals"]["120a"] == expected.total("120a")._asdict()


@pytest.mark.parametrize("option", ["0", "-1", "two", "1" * 5000])
def test_ranks_are_numbers(option, tmp_path, capsys):
    """Positive ones."""
    with pytest.raises(SystemExit):
        run(capsys, tmp_path, "--tp", option)
    assert "is no number of ranks" in capsys.readouterr().err


def test_errors_are_a_line(tmp_path, capsys):
    """Its class and what is wrong, and status 1."""
    assert run(capsys, tmp_path / "nowhere")[0] == 1
    saved(tmp_path, {"model_type": "gpt_oss"})
    status, out, error = run(capsys, tmp_path)
    assert (status, out) == (1, "")
    assert error == f"ModelError: {tmp_path / 'config.json'}: hidden_act: expected a word, got nothing\n"


def test_neither_torch_nor_a_gpu_is_needed(tmp_path, pack):
    """A process in which torch cannot be imported and no driver is found says the same."""
    saved(tmp_path, published.GPT_OSS)
    code = ("import sys; sys.modules['torch'] = None; import loader.driver as driver; driver.open_library = None; "
            "from integrations.model import main; sys.exit(main(sys.argv[1:]))")
    environment = {**os.environ, "LOADER_ARTIFACTS": str(pack)}
    done = subprocess.run([sys.executable, "-c", code, "describe", str(tmp_path), "--json"], cwd=ROOT, text=True,
                          env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["model_type"] == "gpt_oss"


def test_without_a_pack_nothing_is_said(tmp_path, monkeypatch):
    """There is no table of shapes beside what the loader knows."""
    saved(tmp_path, published.GPT_OSS)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("LOADER_ARTIFACTS", str(empty))
    loader.reload()
    with pytest.raises(loader.PackNotFoundError):
        describe(tmp_path)


def test_kernels_of_the_table_are_in_the_matrix():
    """Each format's kernels by their names."""
    named = {step.kernel for known in model_kernels.KERNELS.values() for routes in known[:3] for route in routes
             for step in route}  # fmt: skip
    assert named <= loader.kernels().keys()
