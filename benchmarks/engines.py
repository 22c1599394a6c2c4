"""A random two-layer NVFP4 MoE model through vLLM's own layers of experts, by the plug-in and by Marlin, in one run:

    python benchmarks/engines.py --peers DIR --json benchmarks/results/engines-h200.json

Of vLLM 0.26 are the quantisation configurations, by the names that ``--quantization`` takes, the creation of weights
and their conversion, router, runner and modular kernels: ``FusedMoE`` as a model makes it. Norm, gate and residual are
torch's. Each way is a CUDA graph over the whole model. Before anything is timed, every layer's result is compared with
float64 on the layer's own input. Both are timed in turn with a cold L2; tokens a second are tokens over the median.

DIR has vLLM for a machine that reaches nothing (torch 2.11 is what 0.26 is made for); archives in it are unpacked:

    pip download --no-deps vllm==0.26.0 --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64

Of it, as a .txz, its .dist-info and all .py of vllm/ but those below entrypoints, models, model_executor/models,
multimodal, reasoning, third_party, tool_parsers and transformers_utils; and _moe_C_stable_libtorch.abi3.so as moe.so,
or gzipped as moe.so.gz. Beside it wheels of pydantic, pydantic-core, annotated-types and typing-inspection where Python
has none. What else is missing stands in (``vllm_parts``), and the record says what.

``--emulate 90a`` runs small layers by the plug-in alone on the emulated device, without moe.so; of 0.33.0, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import record
import torch
import vllm_parts
from gemm_peers import LIBRARY, unpack
from torch.nn import functional

GROUP = 16
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
OURS, MARLIN = "block_scaled", "marlin"
# Names of ``--quantization`` and of ``--moe-backend``.
WAYS = {OURS: ("block_scaled_nvfp4", "auto"), MARLIN: ("modelopt_fp4", "marlin")}
MAKERS = ("FusedMoEFactory", "FusedMoE")  # in 0.33 and in 0.26
MAX_ERROR = 0.02  # root mean square, relative: activations and results are rounded to bf16, weights are exact
TABLE = ["tokens", OURS, MARLIN, "tokens/s", "marlin tokens/s", "ratio"]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of each of the layers."""

    experts: int
    top_k: int
    hidden: int
    between: int
    tokens: tuple[int, ...]
    layers: int = 2


ON_GPU = Size(128, 8, 4096, 1536, (1, 8, 64, 512))  # Qwen3-235B-A22B
EMULATED = Size(4, 2, 128, 64, (1, 5))


class Weights:
    """A layer as ModelOpt's checkpoints have it: all of gate before all of up; scales of each block and expert."""

    def __init__(self, size: Size, generator: torch.Generator) -> None:
        device, experts = generator.device, size.experts

        def drawn(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, dtype=torch.uint8, device=device, generator=generator)

        self.tensors: dict[str, torch.Tensor] = {}
        for name, n, k in (("w13", 2 * size.between, size.hidden), ("w2", size.hidden, size.between)):
            of_tokens = torch.full((experts, 2) if name == "w13" else (experts,), 2.0**-9, device=device)
            factors = 2.0**-7 * (0.75 + torch.rand(experts, device=device, generator=generator) / 2)
            self.tensors |= {
                f"{name}_weight": drawn(0, 256, experts, n, k // 2),
                f"{name}_weight_scale": drawn(0x30, 0x40, experts, n, k // GROUP).view(torch.float8_e4m3fn),
                f"{name}_weight_scale_2": factors[:, None].expand(-1, 2).clone() if name == "w13" else factors,
                f"{name}_input_scale": of_tokens,
            }  # fmt: skip
        self.gate = torch.randn(experts, size.hidden, device=device, generator=generator).bfloat16() / 16

    def load(self, routed_experts: torch.nn.Module) -> None:
        """Into the parameters that vLLM made."""
        for name, parameter in routed_experts.named_parameters():
            parameter.data.copy_(self.tensors[name])

    def values(self, name: str, expert: int) -> torch.Tensor:
        """Float64 [N, K]."""
        packed, scale = self.tensors[f"{name}_weight"][expert], self.tensors[f"{name}_weight_scale"][expert]
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        table = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float64, device=packed.device)
        factor = self.tensors[f"{name}_weight_scale_2"][expert].flatten()[0].double()
        return table[codes.int()] * scale.double().repeat_interleave(GROUP, dim=-1) * factor

    def expected(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Float64 [T, H] of hidden [T, H], without any rounding."""
        total = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
        for expert in ids.unique().tolist():
            token, slot = torch.nonzero(ids == expert, as_tuple=True)
            gate, up = (hidden[token].double() @ self.values("w13", expert).T).chunk(2, dim=1)
            rows = functional.silu(gate) * up @ self.values("w2", expert).T
            total.index_add_(0, token, weights[token, slot].double()[:, None] * rows)
        return total


class Model:
    """Layers of norm, gate, vLLM's experts and residual, by one of ``WAYS``."""

    def __init__(self, way: str, size: Size, weights: Sequence[Weights], device: torch.device) -> None:
        from vllm.config import KernelConfig, VllmConfig, set_current_vllm_config
        from vllm.model_executor.layers.fused_moe import layer as of_experts
        from vllm.model_executor.layers.quantization import get_quantization_config

        make = next(getattr(of_experts, name) for name in MAKERS if hasattr(of_experts, name))
        quantization, backend = WAYS[way]
        described = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
        quant_config = get_quantization_config(quantization).from_config(described)
        self.config, self.weights, self.top_k = VllmConfig(kernel_config=KernelConfig(moe_backend=backend)), weights, 0
        self.experts = []
        with set_current_vllm_config(self.config), device:
            _one_rank()
            for layer, of_layer in enumerate(weights):
                experts = make(
                    num_experts=size.experts, top_k=size.top_k, hidden_size=size.hidden,
                    intermediate_size=size.between, params_dtype=torch.bfloat16, quant_config=quant_config, tp_size=1,
                    dp_size=1, pcp_size=1, prefix=f"model.layers.{layer}.mlp.experts",
                )  # fmt: skip
                of_layer.load(experts.routed_experts)
                experts.routed_experts.quant_method.process_weights_after_loading(experts.routed_experts)
                self.experts.append(experts)

    def forward(self, x: torch.Tensor, seen: list[tuple[torch.Tensor, ...]] | None = None) -> torch.Tensor:
        """x [T, H]; ``seen`` gets each layer's input, logits and result."""
        from vllm.forward_context import set_forward_context

        with set_forward_context(None, self.config):
            for experts, weights in zip(self.experts, self.weights, strict=True):
                hidden = functional.rms_norm(x, x.shape[1:])
                logits = functional.linear(hidden, weights.gate)
                kept = hidden.clone() if seen is not None else hidden  # vLLM may write its input over
                result = experts(hidden, logits)
                if seen is not None:
                    seen.append((kept, logits, result.clone()))
                x = x + result
        return x

    def error(self, x: torch.Tensor) -> float:
        """The largest of a layer's, against float64 on the layer's own input and routing."""
        seen: list[tuple[torch.Tensor, ...]] = []
        self.forward(x, seen)
        errors = []
        for experts, weights, (hidden, logits, result) in zip(self.experts, self.weights, seen, strict=True):
            of_chosen, ids = experts.router.select_experts(hidden_states=hidden, router_logits=logits)
            expected = weights.expected(hidden, ids, of_chosen)
            errors.append(((result - expected).square().mean() / expected.square().mean()).sqrt().item())
        return max(errors)


def _one_rank() -> None:
    """Groups of one process, once, as parameters ask for their rank."""
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
        initialize_model_parallel(backend="gloo")


def prepare(folder: Path, place: Path, on_gpu: bool) -> Callable[[], dict[str, str]]:
    """vLLM of ``folder``, unpacked into ``place``, ready to be imported, the plug-in registered by its entry point's
    function. What it gives tells what stands in."""
    unpack(folder, place)
    for archive in folder.glob("*.txz"):
        with tarfile.open(archive) as opened:
            opened.extractall(place, filter="data")
    root = next((path for path in (place, folder) if (path / "vllm").is_dir()), folder)
    library = next((path for path in (place / LIBRARY, folder / LIBRARY) if path.exists()), folder / LIBRARY)
    said = vllm_parts.bring(root, library if on_gpu else None)
    from vllm.v1.worker.workspace import init_workspace_manager

    from integrations import vllm_plugin

    vllm_plugin.register()
    init_workspace_manager(torch.device("cuda" if on_gpu else "cpu"))
    if not on_gpu:
        _aligned_workspace()
    return said


def _aligned_workspace() -> None:
    """vLLM's memory begins where the allocator of a GPU would have it begin; host memory does not."""
    from vllm.v1.worker.workspace import current_workspace_manager

    raw = torch.empty((1 << 24) + 256, dtype=torch.uint8)
    current_workspace_manager()._current_workspaces[0] = raw[-raw.data_ptr() % 256 :]


def compare(models: dict[str, Model], size: Size, timer: Any) -> list[dict[str, Any]]:
    """A row of the record for each number of tokens. The largest goes first and sizes vLLM's workspace, which stays."""
    from vllm.v1.worker.workspace import current_workspace_manager

    device = models[OURS].weights[0].gate.device
    generator = torch.Generator(device).manual_seed(0)
    rows = []
    for count in sorted(size.tokens, reverse=True):
        x = torch.randn(count, size.hidden, device=device, generator=generator).bfloat16()
        errors = {way: model.error(x) for way, model in models.items()}
        if wrong := {way: error for way, error in errors.items() if not error <= MAX_ERROR}:
            raise RuntimeError(f"{count} tokens: relative errors {wrong}, at most {MAX_ERROR} expected")
        current_workspace_manager().lock()
        row: dict[str, Any] = {"tokens": count, "errors": errors}
        if timer is not None:
            launches = [lambda model=model, x=x: model.forward(x) for model in models.values()]
            row |= dict(zip(models, timer.in_turn(launches), strict=True))
            row |= {"tokens/s": count / row[OURS] * 1e6, "marlin tokens/s": count / row[MARLIN] * 1e6,
                    "ratio": row[OURS] / row[MARLIN]}  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows[::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of vLLM, see above")
    parser.add_argument("--emulate", choices=["90a"], help="small layers by the plug-in, on the emulated device")
    parser.add_argument("--seed", type=int, default=0)
    given, _ = parser.parse_known_args()
    on_gpu = given.emulate is None
    arguments = record.parse(parser, ["moe_bf16_nvfp4"], on_device=on_gpu)
    if not on_gpu:
        os.environ["LOADER_EMULATED_ARCH"] = arguments.emulate
    size, device = (ON_GPU, torch.device("cuda")) if on_gpu else (EMULATED, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        said = prepare(arguments.peers.resolve(), Path(place), on_gpu)
        generator = torch.Generator(device).manual_seed(arguments.seed)
        weights = [Weights(size, generator) for _ in range(size.layers)]
        models = {way: Model(way, size, weights, device) for way in (WAYS if on_gpu else [OURS])}
        if not on_gpu:
            compare(models, size, None)
            print(said())
            return
        from timing import begin  # which needs a device

        environment, timer, _ = begin(vllm=importlib.metadata.version("vllm"), **said())
        rows = compare(models, size, timer)
        record.finish(arguments.json, "engines", environment, timer.facts(), {"rows": rows})
    cells = [[row[column] for column in TABLE] for row in rows]
    print(record.table("two layers: microseconds, and tokens a second", TABLE, cells))


if __name__ == "__main__":
    main()
