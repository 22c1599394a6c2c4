"""What vLLM loads: an entry point of ``vllm.general_plugins``, which adds ``--quantization block_scaled_nvfp4`` and
``block_scaled_mxfp4``.

Nothing else changes by it: a model is taken only where its user asks for it by such a name, and what it is made of is
imported then. docs/vllm.md has how to ask, what is refused, and the versions.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

NVFP4, MXFP4 = "block_scaled_nvfp4", "block_scaled_mxfp4"


def register() -> None:
    """For vLLM, which calls it in each of its processes, at times more than once."""
    register_quantization_config(NVFP4)(Nvfp4)
    register_quantization_config(MXFP4)(Mxfp4)


class Named(QuantizationConfig):
    """A name for checkpoints whose experts are to run on the kernels here.

    There is never an object of it in vLLM: ``from_config`` gives one of another class, which it imports. So a vLLM in
    which that cannot be imported fails for those who ask for it alone.
    """

    NAME: str
    TAKES: str  # what checkpoints those are

    def get_name(self) -> str:
        return self.NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.half]

    @classmethod
    def get_min_capability(cls) -> int:
        return 90

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any] | None, user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Custom methods are asked before vLLM's own, of every checkpoint: the name only for who said it.

        Raises ValueError where that is none of these checkpoints.
        """
        if user_quant != cls.NAME:
            return None
        if found := cls.other(hf_quant_cfg or {}, hf_config):
            raise ValueError(f"{cls.NAME} takes {cls.TAKES}, this one has {found}")
        return cls.NAME

    @classmethod
    def other(cls, config: dict[str, Any], hf_config: Any) -> str | None:
        """What the checkpoint has, where it is none of these."""
        raise NotImplementedError

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> None:
        raise NotImplementedError(f"{self.NAME}: from_config makes the configuration that has methods")


class Nvfp4(Named):
    """NVFP4 as ModelOpt writes it."""

    NAME = NVFP4
    TAKES = "ModelOpt's checkpoints in NVFP4 or W4A16_NVFP4"

    @staticmethod
    def get_config_filenames() -> list[str]:
        return ["hf_quant_config.json"]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        from .vllm_moe import Nvfp4Config

        return Nvfp4Config.from_config(config)

    @classmethod
    def other(cls, config: dict[str, Any], hf_config: Any) -> str | None:
        algorithm = quantization_algorithm(config)
        if algorithm in ("NVFP4", "W4A16_NVFP4"):
            return None
        return algorithm or config.get("quant_method") or "no quantization"


class Mxfp4(Named):
    """MXFP4 as gpt-oss has it: vLLM may have changed the name of the method to one of its own."""

    NAME = MXFP4
    TAKES = "gpt-oss in MXFP4"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        from .vllm_mxfp4 import GptOssConfig

        return GptOssConfig.from_config(config)

    @classmethod
    def other(cls, config: dict[str, Any], hf_config: Any) -> str | None:
        method, model = config.get("quant_method"), getattr(hf_config, "model_type", None)
        if method in ("mxfp4", "gpt_oss_mxfp4") and model == "gpt_oss":
            return None
        return f"{method or 'no quantization'} of a model of type {model}"


def quantization_algorithm(config: dict[str, Any]) -> str | None:
    """ModelOpt's name of the format, in capitals, None in what another tool wrote."""
    if not str(config.get("quant_method", "")).lower().startswith("modelopt"):
        return None
    nested = config.get("quantization")
    found = (nested if isinstance(nested, dict) else config).get("quant_algo")
    return str(found).upper() if found else None
