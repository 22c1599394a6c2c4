"""vLLM's own Python, 0.26 or 0.33, where its extensions and most of what it needs are not: what is missing stands in.

A stand-in is a module whose names are classes that take anything and do nothing. Modules that are imported on the way
to a layer of experts and have no part in it may be stand-ins; those that compute are vLLM's. ``bring`` tells which.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

# Stand-ins where they are not installed.
ABSENT = (
    "PIL aiohttp anthropic av blake3 cachetools cbor2 cloudpickle compressed_tensors cpuinfo cv2 depyf einops fastapi "
    "gguf httpx huggingface_hub ijson jsonschema lark librosa llguidance mcp mistral_common msgspec numba openai "
    "openai_harmony opentelemetry outlines_core partial_json_parser prometheus_client psutil pybase64 requests "
    "safetensors sentencepiece setproctitle soundfile starlette tiktoken tokenizers tqdm transformers urllib3 uvicorn "
    "uvloop watchfiles xgrammar yaml zmq"
).split()
# Stand-ins always: of vLLM what asks for the rest of an engine, and its extensions.
REPLACED = (
    "vllm.entrypoints vllm.model_executor.models vllm.models vllm.multimodal vllm.reasoning vllm.tokenizers "
    "vllm.tool_parsers vllm.transformers_utils vllm.v1.executor vllm.vllm_flash_attn vllm._C vllm._C_stable_libtorch "
    "vllm._moe_C vllm._moe_C_stable_libtorch"
).split()
# Operators of extensions that are not here: what import asks for, and what Marlin's way needs.
ASKED = ("cutlass_scaled_mm_supports_fp8", "cutlass_scaled_mm_supports_block_fp8", "cutlass_group_gemm_supported",
         "cutlass_scaled_mm_supports_fp4")  # fmt: skip
REPACK = "gptq_marlin_repack(Tensor words, Tensor perm, SymInt k, SymInt n, int bits, bool is_a_8bit) -> Tensor"
ACTIVATE = "silu_and_mul(Tensor! out, Tensor input) -> ()"
TOP_K = ("topk_softmax(Tensor! weights, Tensor! ids, Tensor! rows, Tensor logits, bool renormalize, Tensor? bias, "
         "Tensor? is_padding=None) -> ()")  # fmt: skip
_libraries: list[torch.library.Library] = []  # an operator lives as long as its library


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (StandIn,), {})

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return _decorated(arguments, named) or super().__call__()

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())


class StandIn(metaclass=_Anything):
    """Takes anything; as a decorator it leaves what it decorates."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return _decorated(arguments, named) or StandIn()


def _decorated(arguments: Sequence[Any], named: dict[str, Any]) -> Any:
    is_one = len(arguments) == 1 and not named and isinstance(arguments[0], (types.FunctionType, type))
    return arguments[0] if is_one else None


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(StandIn, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Of the modules ``names`` and all below them; ``used`` are those that were imported."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.used = tuple(names), set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = next((known for known in self.names if name == known or name.startswith(f"{known}.")), None)
        if found is None:
            return None
        self.used.add(found)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def bring(folder: Path, library: Path | None) -> Callable[[], dict[str, str]]:
    """Makes ``vllm`` of a folder importable, on a GPU, with ``library``, vLLM's operators of experts, or, without it,
    on the host for layers that need none. Gives what tells, when all is imported, what stands in.

    ImportError where vLLM was imported before, OSError where a file is missing.
    """
    if "vllm" in sys.modules:
        raise ImportError("vllm is imported already")
    if not (folder / "vllm" / "model_executor").is_dir():
        raise FileNotFoundError(f"{folder} has no vllm/model_executor")
    sys.path.insert(0, str(folder))
    absent, replaced = Finder(ABSENT), Finder(REPLACED)
    sys.meta_path.insert(0, replaced)
    sys.meta_path.append(absent)
    try:
        import regex  # noqa: F401
    except ImportError:
        sys.modules["regex"] = re
    package = types.ModuleType("vllm")  # not its own: that patches torch, and loads the whole of an engine on demand
    package.__path__ = [str(folder / "vllm")]
    sys.modules["vllm"] = package
    operators = _operators(library)
    _stand_for_platform("cuda" if library else "cpu")
    return lambda: {"stand-ins": ", ".join(sorted(absent.used | replaced.used)), "operators": ", ".join(operators),
                    "platform": "a stand-in that says CUDA and the capability"}  # fmt: skip


def _operators(library: Path | None) -> list[str]:
    """Loads the library and defines what it lacks; names of these."""
    own = torch.library.Library("_C", "FRAGMENT")
    _libraries.append(own)
    for name in ASKED:
        own.define(f"{name}(int capability) -> bool")
        own.impl(name, lambda capability: False, "CompositeExplicitAutograd")
    own.define(REPACK)
    own.impl("gptq_marlin_repack", repack, "CompositeExplicitAutograd")
    own.define(ACTIVATE)
    own.impl("silu_and_mul", activate, "CUDA")
    if library:
        torch.ops.load_library(str(library))
        return ["gptq_marlin_repack", "silu_and_mul", *ASKED]
    of_experts = torch.library.Library("_moe_C", "FRAGMENT")
    _libraries.append(of_experts)
    of_experts.define(TOP_K)
    of_experts.impl("topk_softmax", top_k_softmax, "CPU")
    return ["topk_softmax", *ASKED]


def _stand_for_platform(device: str) -> None:
    """vLLM's own asks for NVML and for more extensions."""
    from vllm import platforms
    from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum

    class Here(Platform):
        _enum = PlatformEnum.CUDA
        device_name = device_type = device
        dispatch_key = device.upper()
        supported_quantization: list[str] = []

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*(torch.cuda.get_device_capability(device_id) if device == "cuda" else (9, 0)))

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return torch.cuda.get_device_properties(device_id).multi_processor_count

        @classmethod
        def import_kernels(cls) -> None:
            """They are loaded."""

    platforms._current_platform = Here()


def repack(words: torch.Tensor, perm: torch.Tensor, k: int, n: int, bits: int, is_a_8bit: bool) -> torch.Tensor:
    """Weights i32 [K / 8, N], eight of K in a word, as Marlin's words [K / 16, 2 N], by vLLM's functions for that."""
    from vllm.model_executor.layers.quantization.utils.marlin_utils_test import get_weight_perm, marlin_permute_weights

    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    codes = (words[:, None] >> shifts[:, None] & 15).reshape(k, n).to(torch.uint8)
    places = marlin_permute_weights(codes, k, n, get_weight_perm(bits).to(words.device))
    return (places[:, 0::2] | places[:, 1::2] << 4).view(torch.int32)


@triton.jit
def _activate(out, products, K, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(products + row * 2 * K + columns, mask=columns < K).to(tl.float32)
    up = tl.load(products + row * 2 * K + K + columns, mask=columns < K).to(tl.float32)
    values = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * K + columns, values.to(out.dtype.element_ty), mask=columns < K)


def activate(out: torch.Tensor, products: torch.Tensor) -> None:
    """SiLU(gate) * up of products [M, 2 K] into out [M, K]: reads and writes once, as vLLM's operator."""
    rows, k = out.shape
    _activate[(rows, triton.cdiv(k, 1024))](out, products, k, BLOCK=1024)


def top_k_softmax(weights: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor, logits: torch.Tensor, renormalize: bool,
                  bias: torch.Tensor | None, is_padding: torch.Tensor | None = None) -> None:  # fmt: skip
    """Of host tensors; without bias and padding."""
    chosen, of_chosen = logits.float().softmax(-1).topk(weights.shape[1])
    weights.copy_(chosen / chosen.sum(-1, keepdim=True) if renormalize else chosen)
    ids.copy_(of_chosen)
