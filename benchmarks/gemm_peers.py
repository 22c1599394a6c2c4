"""What multiplies 16-bit tokens by NVFP4 weights of experts, or nearly that: kernels here, and what else a user has.

Each contender prepares the weights of all experts once and gives a way: a function of a problem, whose weights these
are, that gives launches. Weights are exact in bf16, and so are tokens, so that all have one reference.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import problem
import torch
import triton_w4a16
import vllm_marlin
from problem import DEVICE, Problem, dequantize
from variants import runnable

import loader

OURS, BEST, OF_FP4 = "grouped_bf16_nvfp4", "best bf16 tile", "grouped_fp4"  # columns
MAX_ERROR = 4e-3  # root mean square of the worst row, relative. Rounding to bf16 alone is 1.7e-3.
MAX_ERROR_OF_FP8 = 0.06  # of operands that are rounded to E4M3: 0.04
LIBRARY = "moe.so"


class Launch(NamedTuple):
    """``call`` launches and gives what that writes: [M, N], or more, of which ``rows`` are these."""

    column: str  # of the record: the fastest of those that share one
    label: str  # which kernel it is
    call: Callable[[], torch.Tensor]
    rows: torch.Tensor | None = None
    max_error: float = MAX_ERROR


Way = Callable[[Problem], list[Launch]]


class Weights:
    """Of all experts: those of every problem of this shape. ``alpha`` are powers of two, and not all the same."""

    def __init__(self, experts: int, n: int, k: int) -> None:
        drawn = make_problem([1] * experts, n, k)
        self.packed, self.groups, self.alpha = drawn.inputs["b"], drawn.b_groups, drawn.inputs["alpha"]

    @functools.cached_property
    def bf16(self) -> torch.Tensor:
        """[E, N, K] with alpha, exactly."""
        parts = zip(self.packed, self.groups, self.alpha.bfloat16(), strict=True)
        return torch.stack([dequantize(packed, groups) * alpha for packed, groups, alpha in parts])

    def expected(self, tokens: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """fp32 [M, N] of tokens [M, K], summed in fp64."""
        rows = tokens.split(list(counts))
        return torch.cat([(a.double() @ b.double().T).float() for a, b in zip(rows, self.bf16, strict=True)])


def judge(launch: Launch, written: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the worst row's errors, relative to that of the row. RuntimeError where it is too large; NaN
    anywhere is."""
    result = written if launch.rows is None else written.flatten(0, -2)[launch.rows]
    if result.shape != expected.shape:
        raise RuntimeError(f"a result of {tuple(result.shape)}, expected {tuple(expected.shape)}")
    error = float(((result.float() - expected).norm(dim=1) / expected.norm(dim=1)).amax())
    if not error <= launch.max_error:
        raise RuntimeError(f"relative error {error:.3g} exceeds {launch.max_error}")
    return error


def make_problem(counts: Sequence[int], n: int, k: int) -> Problem:
    """``problem.make_problem`` with another alpha for each expert and its neighbours."""
    made = problem.make_problem(counts, n, k)
    made.inputs["alpha"] = torch.exp2(-5.0 - torch.arange(len(counts), device=DEVICE) % 4)
    return made


def ours(_: None, weights: Weights) -> Way:
    """The selected tile, every one that runs here, and the selected one of grouped_fp4 on the same tokens in FP4."""
    tiles = runnable("grouped_bf16_nvfp4", torch.cuda.get_device_capability(), element="bf16")

    def way(given: Problem) -> list[Launch]:
        def launch(column: str, inputs: dict[str, torch.Tensor], variant: str | None = None) -> Launch:
            out = given.output()
            plan = loader.plan("grouped_fp4", **inputs, out=out, variant=variant)

            def call() -> torch.Tensor:
                plan.launch(torch.cuda.current_stream())
                return out

            return Launch(column, plan.variant, call)

        best = [launch(BEST, given.of_16_bits, artifact.variant) for artifact in tiles.values()]
        return [launch(OURS, given.of_16_bits), *best, launch(OF_FP4, given.inputs)]

    return way


def in_torch(grouped_mm: Callable[..., torch.Tensor], weights: Weights) -> Way:
    """On weights in bf16: four times the memory."""

    def way(given: Problem) -> list[Launch]:
        tokens, ends = given.activations(), given.inputs["expert_offsets"][1:].contiguous()
        return [Launch("grouped_mm", "bf16", lambda: grouped_mm(tokens, weights.bf16.transpose(1, 2), offs=ends))]

    return way


def in_triton(_: None, weights: Weights) -> Way:
    """Every tile of the kernel by hand, which takes equal counts alone."""

    def way(given: Problem) -> list[Launch]:
        if len(set(given.counts)) > 1:
            return []
        tokens, out = given.activations(), given.output()

        def call(tile: tuple[int, ...]) -> torch.Tensor:
            triton_w4a16.launch(tokens, weights.packed, weights.groups, weights.alpha, out, tile)
            return out

        tiles = triton_w4a16.tiles(given.counts[0])
        return [Launch("Triton", str(tile), functools.partial(call, tile)) for tile in tiles]

    return way


def by_marlin(vllm: Any, weights: Weights) -> Way:
    """vLLM's kernel for MoE, on a block by its rule and on those next to it."""
    operands = vllm_marlin.repacked(weights.packed, weights.groups, weights.alpha, vllm.functions)
    operands["workspace"] = torch.zeros(4 * vllm.multiprocessors, dtype=torch.int32, device=DEVICE)
    words = {"top_k": 1, "mul_topk_weights": False, "b_bias_or_none": None, **vllm_marlin.WORDS}

    def way(given: Problem) -> list[Launch]:
        m, n, k, experts = given.shape
        tokens, out = given.activations(), given.output()
        ones = torch.ones(m, 1, dtype=torch.float32, device=DEVICE)

        def launch(column: str, block: int) -> Launch:
            rows = vllm_marlin.rows_of_blocks(given.counts, block)
            return Launch(column, f"block {block}", lambda: vllm.gemm(
                a=tokens, c_or_none=out, topk_weights=ones, moe_block_size=block, size_m=m, size_n=n, size_k=k,
                **operands, **rows, **words))  # fmt: skip

        rule = vllm_marlin.block_by_rule(m / experts)
        return [launch("Marlin", rule), *(launch("Marlin, best block", block) for block in vllm_marlin.nearest(rule))]

    return way


def by_humming(humming: Any, weights: Weights) -> Way:
    """Both of its forms for experts, each as its own table of tiles says."""
    (experts, n), k = weights.packed.shape[:2], 2 * weights.packed.shape[2]
    layer = humming.layer.HummingLayer(
        shape_n=n, shape_k=k, num_experts=experts, torch_dtype=torch.bfloat16,
        weight_config={"quant_method": "modelopt", "quant_algo": "nvfp4"}).to(DEVICE)  # fmt: skip
    layer.load_from_tensors(
        {"weight": weights.packed, "weight_scale": weights.groups, "weight_scale_2": weights.alpha})  # fmt: skip
    layer.transform()

    def way(given: Problem) -> list[Launch]:
        tokens, out, m = given.activations(), given.output(), given.shape[0]
        counts = torch.tensor(given.counts, device=DEVICE)
        expert_of_row = torch.arange(experts, dtype=torch.int32, device=DEVICE).repeat_interleave(counts)[:, None]

        def launch(column: str, form: str) -> Launch:
            tile = humming.tune.get_heuristics_config(layer.humming_config, shape_m=m, gemm_type=form, device=0)
            _, layout, ids, of_blocks, padded = humming.testing.data.generate_moe_tensors(
                expert_of_row, experts, form, tile["block_shape"][0])  # fmt: skip
            compute = json.dumps({"gemm_type": form, "use_f16_accum": False, "use_batch_invariant": False})
            tuning = json.dumps(tile)

            def call() -> torch.Tensor:
                layer(tokens, outputs=out, expert_layout=layout, sorted_ids=ids, expert_ids=of_blocks,
                      num_tokens_padded=padded, top_k=1, valid_shape_m=m, compute_config=compute,
                      tuning_config=tuning)  # fmt: skip
                return out

            return Launch(column, f"{tile['block_shape']}", call)

        return [launch("Humming indexed", "indexed"), launch("Humming grouped", "grouped_contiguous")]

    return way


def to_fp8(values: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """bf16 [R, K] as E4M3, and fp32 scales of blocks of so many rows by 128."""
    r, k = values.shape
    blocks = values.float().view(r // rows, rows, k // 128, 128)
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-10) / 448
    return (blocks / scales[:, None, :, None]).view(r, k).to(torch.float8_e4m3fn), scales


def by_deep_gemm(library: ModuleType, weights: Weights) -> Way:
    """Its masked form in FP8: another function, of tokens and weights that are rounded once more."""
    elements, b_scales = zip(*(to_fp8(of_expert, 128) for of_expert in weights.bf16), strict=True)
    # As bytes, since torch has few operations for types of one byte.
    b = torch.stack([part.view(torch.uint8) for part in elements]).view(torch.float8_e4m3fn), torch.stack(b_scales)

    def way(given: Problem) -> list[Launch]:
        (m, n, k, experts), most = given.shape, -(-max(given.counts) // 64) * 64
        counts = torch.tensor(given.counts, dtype=torch.int32, device=DEVICE)
        rows = (torch.arange(most, device=DEVICE) < counts[:, None]).flatten().nonzero()[:, 0]
        tokens = torch.zeros(experts * most, k, dtype=torch.bfloat16, device=DEVICE)
        tokens[rows] = given.activations()
        a, scales = to_fp8(tokens, 1)
        # Neighbouring rows have neighbouring scales.
        scales = scales.view(experts, most, -1).transpose(1, 2).contiguous().transpose(1, 2)
        out = torch.full((experts, most, n), torch.nan, dtype=torch.bfloat16, device=DEVICE)

        def call() -> torch.Tensor:
            library.m_grouped_fp8_gemm_nt_masked((a.view(experts, most, k), scales), b, out, counts, -(-m // experts))
            return out

        return [Launch("DeepGEMM FP8", "masked", call, rows, MAX_ERROR_OF_FP8)]

    return way


class Marlin(NamedTuple):
    """What ``by_marlin`` and ``marlin_layer`` need of vLLM and of the device."""

    functions: Any
    gemm: Callable[..., torch.Tensor]
    multiprocessors: int
    align: Callable[..., None]
    sum: Callable[..., None]


def find_marlin(folders: Sequence[Path]) -> tuple[Marlin, str]:
    """And the digest of the library, which does not say its version."""
    sources = next((path for folder in folders if (path := folder / "vllm_src").is_dir()), folders[-1] / "vllm_src")
    library = next((path for folder in folders if (path := folder / LIBRARY).exists()), folders[-1] / LIBRARY)
    functions = vllm_marlin.functions(sources)
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    torch.ops.load_library(str(library))
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    ops = torch.ops._moe_C
    found = Marlin(functions, ops.moe_wna16_marlin_gemm, multiprocessors, ops.moe_align_block_size, ops.moe_sum)
    return found, f"sha256 {digest}"


def find_humming(_: Sequence[Path]) -> tuple[ModuleType, str]:
    for name in ("humming.layer", "humming.tune", "humming.testing.data"):
        importlib.import_module(name)
    humming = sys.modules["humming"]
    return humming, humming.__version__


def find_deep_gemm(_: Sequence[Path]) -> tuple[ModuleType, str]:
    library = importlib.import_module("deep_gemm")
    return library, library.__version__


def find_torch(_: Sequence[Path]) -> tuple[Callable[..., torch.Tensor], str]:
    return getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm, torch.__version__


Part = tuple[list[int], list[tuple[int, int]]]  # rows of each expert; N and K


def nothing(rows: list[int], shapes: list[tuple[int, int]]) -> list[Part]:
    return []


def one_module(rows: list[int], shapes: list[tuple[int, int]]) -> list[Part]:
    return [(rows, shapes[:1])]


def by_rows(rows: list[int], shapes: list[tuple[int, int]]) -> list[Part]:
    return [([m], shapes[:1]) for m in rows]


def by_rows_and_shape(rows: list[int], shapes: list[tuple[int, int]]) -> list[Part]:
    return [([m], [shape]) for m in rows for shape in shapes]


class Peer(NamedTuple):
    """How it is found in folders, with its version; its way; and what of all rows and shapes it compiles apart."""

    find: Callable[[Sequence[Path]], tuple[Any, str]]
    prepare: Callable[[Any, Weights], Way]
    compiled: Callable[[list[int], list[tuple[int, int]]], list[Part]]


PEERS = {
    "grouped_mm": Peer(find_torch, in_torch, nothing),
    "Triton": Peer(lambda _: (None, "by hand"), in_triton, by_rows),
    "Marlin": Peer(find_marlin, by_marlin, one_module),
    "Humming": Peer(find_humming, by_humming, by_rows_and_shape),
    "DeepGEMM": Peer(find_deep_gemm, by_deep_gemm, by_rows_and_shape),
}
COLUMNS = ["Humming indexed", "Humming grouped", "Marlin", "Marlin, best block", "grouped_mm", "Triton", "DeepGEMM FP8"]


def unpack(folder: Path, place: Path) -> None:
    """Wheels and the library of ``folder`` into ``place``, programs as such."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
            for member in archive.infolist():
                if member.external_attr >> 16 & 0o111 and not member.is_dir():
                    (place / member.filename).chmod(0o755)
    if (folder / f"{LIBRARY}.gz").exists():
        with gzip.open(folder / f"{LIBRARY}.gz") as source, (place / LIBRARY).open("wb") as target:
            shutil.copyfileobj(source, target)


def attempt(what: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What comes of it, or nothing and why. Of other libraries any error is one of theirs."""
    try:
        return what(*arguments), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"[:300]


def find(names: Sequence[str], folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """Libraries by peer, of those that are there; and what the record says of every peer: its version, or why it is
    left out."""
    sys.path[:0] = [str(folder) for folder in folders if str(folder) not in sys.path]
    found, said = {}, {}
    for name, peer in PEERS.items():
        if name not in names:
            said[name] = "left out: not asked for"
            continue
        result, reason = attempt(peer.find, folders)
        if reason:
            said[name] = f"left out: {reason}"
        else:
            found[name], said[name] = result
    return found, said
