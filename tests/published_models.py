"""Configurations of published models: the fields that say what their layers are and how they are quantised."""

from __future__ import annotations

DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "num_hidden_layers": 61, "num_nextn_predict_layers": 1,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288, "head_dim": 128,
    "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
    "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_DENSE = {
    "model_type": "qwen3", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 25600, "head_dim": 128,
    "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 151936,
    "tie_word_embeddings": False,
}  # fmt: skip
GLM = {
    "model_type": "glm4_moe", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 12288, "head_dim": 128,
    "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "num_hidden_layers": 92, "num_nextn_predict_layers": 1, "num_attention_heads": 96,
    "num_key_value_heads": 8, "vocab_size": 151552, "tie_word_embeddings": False,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "hidden_act": "silu", "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64,
    "num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4, "num_hidden_layers": 24,
    "num_attention_heads": 64, "num_key_value_heads": 8, "swiglu_limit": 7.0, "vocab_size": 201088,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]},
}  # fmt: skip
GPT_OSS_120B = {**GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128}
NEMOTRON = {
    "model_type": "nemotron_h", "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", "num_hidden_layers": 52,
    "intermediate_size": 1856, "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712,
    "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 6, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "mamba_num_heads": 64, "mamba_head_dim": 64, "n_groups": 8,
    "ssm_state_size": 128, "expand": 2, "vocab_size": 131072, "tie_word_embeddings": False,
}  # fmt: skip

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
UE8M0 = {**FP8, "scale_fmt": "ue8m0"}
QWEN_FP8 = {**FP8, "modules_to_not_convert": ["lm_head", *(
    f"model.layers.{layer}.{name}" for layer in range(94) for name in
    ("input_layernorm", "mlp.gate", "post_attention_layernorm"))]}


def modelopt(exclude, algorithm="NVFP4", size=16):
    """hf_quant_config.json."""
    quantization = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "group_size": size,
                    "exclude_modules": list(exclude)}
    return {"producer": {"name": "modelopt", "version": "0.33.0"}, "quantization": quantization}


# Of DeepSeek-V3.1 in NVFP4: all of attention but o_proj stays as it is, and the layer that predicts further tokens.
DEEPSEEK_NVFP4 = modelopt(["lm_head", *(
    f"model.layers.{layer}.self_attn.{name}" for layer in range(61) for name in
    ("kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj")), "model.layers.61*"])
QWEN_NVFP4 = modelopt([*(f"model.layers.{layer}.mlp.gate" for layer in range(94)), "lm_head"])
# Nemotron keeps attention, and the Mamba layer before each, in BF16.
NEMOTRON_NVFP4 = modelopt(["lm_head", *(
    f"backbone.layers.{layer}.mixer.{name}" for layer in (4, 11, 18, 25, 32, 41) for name in ("in_proj", "out_proj")),
    *(f"backbone.layers.{layer}.mixer.{name}_proj" for layer in (5, 12, 19, 26, 33, 42) for name in "qkvo")])


def compressed(weights, ignore=("lm_head",), targets=("Linear",), **others):
    """compressed-tensors' quantization_config of one group."""
    group = {"targets": list(targets), "weights": {"type": "float", "symmetric": True, "dynamic": False, **weights}}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": list(ignore), **others}


NVFP4_GROUP = {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}
MXFP4_GROUP = {"num_bits": 4, "strategy": "group", "group_size": 32}
MXFP8_GROUP = {"num_bits": 8, "strategy": "group", "group_size": 32}
BLOCK_GROUP = {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}
CHANNEL_GROUP = {"num_bits": 8, "strategy": "channel"}
