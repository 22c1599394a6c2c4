"""What vLLM loads: an entry point of ``vllm.general_plugins``, which adds ``--quantization block_scaled_nvfp4``.

Nothing else changes by it: a model is taken only where its user asks for it by that name, and what it is made of is
imported then. docs/vllm.md has how to ask, what is refused, and the versions.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

NVFP4 = "block_scaled_nvfp4"


def register() -> None:
    """For vLLM, which calls it in each of its processes, at times more than once."""
    register_quantization_config(NVFP4)(Nvfp4)


class Nvfp4(QuantizationConfig):
    """A name for NVFP4 checkpoints of ModelOpt, whose experts are to run on the kernels here.

    There is never an object of it: ``from_config`` gives one of ``vllm_moe.Nvfp4Config``. So a vLLM in which that
    cannot be imported fails for those who ask for it alone.
    """

    def get_name(self) -> str:
        return NVFP4

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.half]

    @classmethod
    def get_min_capability(cls) -> int:
        return 90

    @staticmethod
    def get_config_filenames() -> list[str]:
        return ["hf_quant_config.json"]

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any] | None, user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Custom methods are asked before vLLM's own, of every checkpoint: the name only for who said it.

        Raises ValueError where that is no NVFP4 checkpoint of ModelOpt.
        """
        if user_quant != NVFP4:
            return None
        config = hf_quant_cfg or {}
        algorithm = quantization_algorithm(config)
        if algorithm not in ("NVFP4", "W4A16_NVFP4"):
            found = algorithm or config.get("quant_method") or "no quantization"
            raise ValueError(f"{NVFP4} takes ModelOpt's checkpoints in NVFP4 or W4A16_NVFP4, this one has {found}")
        return NVFP4

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        from .vllm_moe import Nvfp4Config

        return Nvfp4Config.from_config(config)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> None:
        raise NotImplementedError(f"{NVFP4}: from_config makes the configuration that has methods")


def quantization_algorithm(config: dict[str, Any]) -> str | None:
    """ModelOpt's name of the format, in capitals, None in what another tool wrote."""
    if not str(config.get("quant_method", "")).lower().startswith("modelopt"):
        return None
    nested = config.get("quantization")
    found = (nested if isinstance(nested, dict) else config).get("quant_algo")
    return str(found).upper() if found else None
