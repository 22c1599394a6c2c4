"""Experts of models in Hugging Face transformers, in NVFP4: a function of its ``ExpertsInterface``.

    from integrations.transformers import prepare, register

    register()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, experts_implementation="block_scaled")
    prepare(model)  # or leave it to the first call of each layer

The weights of a module, in 16 or 32 bits, are quantised once; tokens stay in 16 bits on Hopper. transformers itself is
imported by ``register`` alone.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from .expert_preparation import padded
from .torch_experts import Experts, composite_of, of_nvfp4, quantized

NAME = "block_scaled"
# What ``use_experts_implementation`` says of a class -> what is computed here.
WANTED = {"has_gate": True, "has_bias": False, "is_concatenated": True, "has_post_expert_norm": False}
# Modules of activations -> scalars of the composite.
ACTIVATIONS = {"SiLU": "silu", "SiLUActivation": "silu", "GELUTanh": "gelu_tanh"}
DEFAULT_GATE = "_default_apply_gate"


class _Prepared(NamedTuple):
    version: object  # of the weights, None where they were given up
    experts: Experts


_prepared: weakref.WeakKeyDictionary[torch.nn.Module, _Prepared] = weakref.WeakKeyDictionary()


def register(name: str = NAME) -> None:
    """Let ``experts_implementation=name`` of a model mean ``experts_forward``."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(name, experts_forward)


def experts_forward(
    self: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """A module's experts: hidden_states [T, H] in bf16 or f16, top_k_index and top_k_weights [T, TOPK] -> [T, H].

    Ids beyond the experts add nothing. Raises NotImplementedError where the module computes something else, ValueError
    for tokens of another type, and what the loader raises, as of sizes that no kernel takes.
    """
    return _experts(self)(hidden_states, top_k_index, top_k_weights)


def prepare(model: torch.nn.Module, release: bool = False) -> int:
    """Quantise the weights of every module that ``experts_forward`` runs, now; how many there are.

    release: give up their own weights, so that they take no memory. The model can then be run, and not saved.
    """
    modules = [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]
    for module in modules:
        experts = _experts(module)
        if release:
            for weights in (module.gate_up_proj, module.down_proj):
                weights.data = weights.data.new_empty(0)
            _prepared[module] = _Prepared(None, experts)
    return len(modules)


def _experts(module: torch.nn.Module) -> Experts:
    """Prepared when they are first asked for, and again when the weights have changed."""
    found = _prepared.get(module)
    weights = (module.gate_up_proj, module.down_proj)
    version = tuple((tensor.data_ptr(), tensor._version) for tensor in weights)
    if found is None or found.version not in (None, version):
        found = _prepared[module] = _Prepared(version, _quantized(module))
    return found.experts


@torch.no_grad()
def _quantized(module: torch.nn.Module) -> Experts:
    gate_up, down = module.gate_up_proj, module.down_proj
    scalars = _scalars(module)
    if module.is_transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    between = down.shape[2]
    more = padded(between, composite_of(gate_up.device)) - between  # so that groups of K are whole
    halves = pad(gate_up.unflatten(1, (2, between)), (0, 0, 0, more))
    return of_nvfp4(quantized(halves.flatten(1, 2)), quantized(pad(down, (0, more))), **scalars)


def _scalars(module: torch.nn.Module) -> dict[str, Any]:
    kind = type(module).__name__
    for name, wanted in WANTED.items():
        if getattr(module, name) != wanted:
            raise NotImplementedError(f"{kind}: {name} is {getattr(module, name)}, experts with {wanted} are computed")
    gate, activation = type(module)._apply_gate.__name__, type(module.act_fn).__name__
    if gate != DEFAULT_GATE or activation not in ACTIVATIONS:
        raise NotImplementedError(f"{kind}: gates by {gate} of {activation}; what is computed is act_fn(gate) * up, "
                                  f"with {', '.join(ACTIVATIONS)}")  # fmt: skip
    return {"activation": ACTIVATIONS[activation]}
