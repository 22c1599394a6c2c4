"""The matrices of a model, from its configuration: what its layers multiply tokens with, and how ranks share it out.

``MODELS`` says for each ``model_type`` which blocks its layers are made of. A block that is not known here would be one
that is missing in the description, so a ``model_type`` that is not in the table is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .model_fields import Fields, ModelError

MAX_LAYERS = 4096  # each has a name, and a row of every matrix counts it


@dataclass(frozen=True)
class Linear:
    """Equal matrices: N rows (outputs) of K columns (inputs), each of ``modules`` once in each of ``layers``.

    modules: names in the checkpoint, ``{}`` for the number of the layer. cut: "n" or "k", the one that ranks of tensor
    parallelism share out; "" where each has all. heads: N or K is cut between them alone, 0 where between any scales.
    copies: ranks beyond the heads have copies of them. plain: never quantised.
    """

    part: str
    modules: tuple[str, ...]
    n: int
    k: int
    layers: tuple[int, ...]
    cut: str = ""
    heads: int = 0
    copies: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Experts:
    """Routed experts, ``count`` in each of ``layers``, of which a token takes ``topk``.

    modules: the projections of the first expert, or of all where the checkpoint stacks them. gated: SwiGLU of gate and
    up; else the squared ReLU of up.
    """

    part: str
    modules: tuple[str, ...]
    hidden: int
    intermediate: int
    count: int
    topk: int
    gated: bool
    stacked: bool
    layers: tuple[int, ...]


class Block(NamedTuple):
    """A part of layers: which ``kind``, the module below which it lies, and the layers that have it."""

    kind: str
    module: str
    layers: tuple[int, ...]


class Model(NamedTuple):
    """What a ``model_type`` calls its sizes, and the blocks of its layers."""

    attention: Callable[[Fields], list[Linear]]
    blocks: Callable[[Fields], list[Block]]
    experts: str = ""  # the key of their number
    expert_size: str = "moe_intermediate_size"
    router: str = "gate"
    stacked: bool = False
    gated: bool = True


def grouped_query(config: Fields) -> list[Linear]:
    """Attention whose keys and values have heads of their own."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    size = config.size("head_dim", hidden // heads)
    return [
        _linear("q_proj", heads * size, hidden, cut="n", heads=heads),
        _linear("k_proj", kv_heads * size, hidden, cut="n", heads=kv_heads, copies=True),
        _linear("v_proj", kv_heads * size, hidden, cut="n", heads=kv_heads, copies=True),
        _linear("o_proj", hidden, heads * size, cut="k", heads=heads),
    ]


def latent(config: Fields) -> list[Linear]:
    """Multi-head latent attention: keys and values, and mostly queries, come from a short vector of each token."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    keys, rope = config.size("qk_nope_head_dim"), config.size("qk_rope_head_dim")
    rank, values = config.size("kv_lora_rank"), config.size("v_head_dim")
    queries = [_linear("q_proj", heads * (keys + rope), hidden, cut="n", heads=heads)]
    if "q_lora_rank" in config:
        q_rank = config.size("q_lora_rank")
        queries = [
            _linear("q_a_proj", q_rank, hidden),
            _linear("q_b_proj", heads * (keys + rope), q_rank, cut="n", heads=heads),
        ]
    return [
        *queries,
        _linear("kv_a_proj_with_mqa", rank + rope, hidden),
        _linear("kv_b_proj", heads * (keys + values), rank, cut="n", heads=heads),
        _linear("o_proj", hidden, heads * values, cut="k", heads=heads),
    ]


def indexed(config: Fields) -> list[Linear]:
    """Latent attention to the keys that an indexer chooses, whose heads are not cut."""
    hidden, heads, size = (config.size(key) for key in ("hidden_size", "index_n_heads", "index_head_dim"))
    return [
        *latent(config),
        _linear("indexer.wq_b", heads * size, config.size("q_lora_rank")),
        _linear("indexer.wk", size, hidden),
        _linear("indexer.weights_proj", heads, hidden, plain=True),
    ]


def _mamba(config: Fields) -> list[Linear]:
    """Projections of a Mamba-2 layer; a group has its share of each part of ``in_proj``."""
    hidden, groups = config.size("hidden_size"), config.size("n_groups")
    heads = config.size("mamba_num_heads")
    inner = heads * config.size("mamba_head_dim")
    rows = 2 * inner + 2 * groups * config.size("ssm_state_size") + heads
    return [
        _linear("in_proj", rows, hidden, cut="n", heads=groups),
        _linear("out_proj", hidden, inner, cut="k", heads=groups),
    ]


def _mlp(gated: bool, hidden: int, intermediate: int) -> list[Linear]:
    first = ("gate_proj", "up_proj") if gated else ("up_proj",)
    return [
        *(_linear(name, intermediate, hidden, cut="n") for name in first),
        _linear("down_proj", hidden, intermediate, cut="k"),
    ]


def _linear(name: str, n: int, k: int, **how: object) -> Linear:
    return Linear("", (name,), n, k, (), **how)


# Blocks of layers


def dense(config: Fields) -> list[Block]:
    """Attention and an MLP in each layer."""
    return _transformer(config, lambda layer: False)


def sparse(config: Fields) -> list[Block]:
    """Attention and experts in each layer."""
    return _transformer(config, lambda layer: True)


def after_dense(config: Fields) -> list[Block]:
    """Experts in every ``moe_layer_freq``-th layer from ``first_k_dense_replace`` on."""
    first, step = config.size("first_k_dense_replace", 0, least=0), config.size("moe_layer_freq", 1)
    return _transformer(config, lambda layer: layer >= first and layer % step == 0)


def by_step(config: Fields) -> list[Block]:
    """Experts in every ``decoder_sparse_step``-th layer that is not among ``mlp_only_layers``."""
    step, without = config.size("decoder_sparse_step", 1), frozenset(config.sizes("mlp_only_layers"))
    return _transformer(config, lambda layer: layer not in without and (layer + 1) % step == 0)


def by_pattern(config: Fields) -> list[Block]:
    """A layer is one block, by its letter."""
    kinds = {"M": "mamba", "*": "attention", "-": "mlp", "E": "experts"}
    pattern = config.word("hybrid_override_pattern")
    if set(pattern) - set(kinds) or len(pattern) != config.size("num_hidden_layers", most=MAX_LAYERS):
        raise config.wrong("hybrid_override_pattern", f"one of {' '.join(kinds)} for each of num_hidden_layers")
    layers = {letter: tuple(i for i, found in enumerate(pattern) if found == letter) for letter in kinds}
    return [Block(kind, "backbone.layers.{}.mixer", layers[letter]) for letter, kind in kinds.items()]


def _transformer(config: Fields, has_experts: Callable[[int], bool]) -> list[Block]:
    layers = range(config.size("num_hidden_layers", most=MAX_LAYERS))
    return [
        Block("attention", "model.layers.{}.self_attn", tuple(layers)),
        Block("mlp", "model.layers.{}.mlp", tuple(layer for layer in layers if not has_experts(layer))),
        Block("experts", "model.layers.{}.mlp", tuple(layer for layer in layers if has_experts(layer))),
    ]


_ROUTED = "n_routed_experts"
MODELS = {
    "deepseek_v3": Model(latent, after_dense, _ROUTED),
    "deepseek_v32": Model(indexed, after_dense, _ROUTED),
    "glm4_moe": Model(grouped_query, after_dense, _ROUTED),
    "gpt_oss": Model(grouped_query, sparse, "num_local_experts", "intermediate_size", "router", stacked=True),
    "kimi_k2": Model(latent, after_dense, _ROUTED),
    "llama": Model(grouped_query, dense),
    "nemotron_h": Model(grouped_query, by_pattern, _ROUTED, gated=False),
    "qwen3": Model(grouped_query, dense),
    "qwen3_moe": Model(grouped_query, by_step, "num_experts"),
}


def matrices(config: Fields) -> list[Linear | Experts]:
    """Everything that a model multiplies tokens with, but for layers that predict further tokens."""
    kind = config.word("model_type")
    if kind not in MODELS:
        raise config.wrong("model_type", f"one of {', '.join(MODELS)}")
    model = MODELS[kind]
    key, activation = ("hidden_act", "silu") if model.gated else ("mlp_hidden_act", "relu2")
    if config.word(key) != activation:
        raise config.wrong(key, activation)
    found = [matrix for block in model.blocks(config) if block.layers for matrix in _of_block(model, config, block)]
    tied = config.entries.get("tie_word_embeddings") is True
    vocabulary, hidden = config.size("vocab_size"), config.size("hidden_size")
    return [*found, Linear("lm_head", ("lm_head",), vocabulary, hidden, (0,), cut="n", plain=tied)]


def _of_block(model: Model, config: Fields, block: Block) -> Iterator[Linear | Experts]:
    hidden = config.size("hidden_size")
    if block.kind == "experts":
        yield from _experts(model, config, block)
    elif block.kind == "attention":
        yield from _placed("attention", block.module, block.layers, model.attention(config))
    elif block.kind == "mamba":
        yield from _placed("mamba", block.module, block.layers, _mamba(config))
    else:
        parts = _mlp(model.gated, hidden, config.size("intermediate_size"))
        yield from _placed("dense MLP", block.module, block.layers, parts)


def _experts(model: Model, config: Fields, block: Block) -> Iterator[Linear | Experts]:
    hidden, size, count = config.size("hidden_size"), config.size(model.expert_size), config.size(model.experts)
    router = replace(_linear(model.router, count, hidden), plain=True)
    yield from _placed("router", block.module, block.layers, [router])
    inner = config.size("moe_latent_size", hidden)
    if inner != hidden:
        between = [_linear("fc1_latent_proj", inner, hidden), _linear("fc2_latent_proj", hidden, inner)]
        yield from _placed("routed experts", block.module, block.layers, between)
    shared = config.size("n_shared_experts", 0, least=0) if model.experts == _ROUTED else 0
    if shared:
        width = config.size("moe_shared_expert_intermediate_size", shared * size)
        parts = _mlp(model.gated, hidden, width)
        yield from _placed("shared experts", f"{block.module}.shared_experts", block.layers, parts)
    first = ("gate_up_proj",) if model.stacked else ("gate_proj", "up_proj") if model.gated else ("up_proj",)
    stem = f"{block.module}.experts" if model.stacked else f"{block.module}.experts.0"
    modules = tuple(f"{stem}.{name}" for name in (*first, "down_proj"))
    topk = config.size("num_experts_per_tok")
    yield Experts("routed experts", modules, inner, size, count, topk, model.gated, model.stacked, block.layers)


def _placed(part: str, module: str, layers: tuple[int, ...], parts: Sequence[Linear]) -> Iterator[Linear]:
    """The matrices of a block, by their full names."""
    for matrix in parts:
        yield replace(matrix, part=part, modules=(f"{module}.{matrix.modules[0]}",), layers=layers)


__all__ = ["MODELS", "Experts", "Linear", "ModelError", "matrices"]
