"""The kernels of the layer under compute-sanitizer, both GEMMs in every variant: ``python tests/gpu/sanitize.py``.

Runs this file once per tool as a program that uses the driver alone (no framework, so that each report is about the
kernels) and looks at the closing line. Exit status 1 if a tool reports anything, or if a result is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import block_cases  # noqa: E402
import einsum_problem  # noqa: E402
import fp8_swiglu  # noqa: E402
import gemm_problem  # noqa: E402
import hardware  # noqa: E402
import hc_prenorm  # noqa: E402
import mqa  # noqa: E402
import mqa_mx  # noqa: E402
import mqa_sparse  # noqa: E402
import mx_swiglu  # noqa: E402
import packs  # noqa: E402
import quantization  # noqa: E402
import reference  # noqa: E402
import rms_norm  # noqa: E402
import schedules  # noqa: E402
from driver_memory import Device  # noqa: E402
from fragment_launches import COLUMNS as N  # noqa: E402
from fragment_launches import COUNTS, launch_fragments, launch_gated_fragments  # noqa: E402
from fragment_launches import DEPTH as K  # noqa: E402

import loader  # noqa: E402

BETWEEN = 144  # of the fused GEMM, 16 a block
# Of operands in rows, and of those whose scales lie in blocks of 128 rows.
FORMATS = ("fp8", "fp8_mxfp4", "fp8_ue8m0", "fp8_ue8m0_mxfp4", "mxfp4_fp8_ue8m0", "mxfp8_rows", "mxfp8_rows_mxfp4",
           "bf16", "bf16_nn")  # fmt: skip
CLEAN = {
    "memcheck": r"ERROR SUMMARY: 0 errors",
    "racecheck": r"RACECHECK SUMMARY: 0 hazards displayed \(0 errors, 0 warnings\)",
    "initcheck": r"ERROR SUMMARY: 0 errors",
    "synccheck": r"ERROR SUMMARY: 0 errors",
}
# The loader learns how many parameters a kernel has from the driver's refusal of one too many, which is no error.
OPTIONS = {"memcheck": ["--report-api-errors", "no"]}


def launch_grouped(device: Device, rng: np.random.Generator) -> str:
    """Every variant of the GEMMs whose scales lie in blocks, rows by offsets, each element within its bound."""
    count = 0
    for operands in schedules.OPERANDS:
        problem = block_scaled(rng, COUNTS, operands, gaps=True)
        inputs = {name: device.upload(array) for name, array in problem.inputs().items()}
        variants = packs.output_types(f"grouped_{operands}", hardware.runs_here)
        expected = reference.grouped_reference(problem, on_hopper=hardware.is_hopper())
        for (variant, out_type), prefetch in itertools.product(variants.items(), ("none", "weights")):
            out = reference.GuardedOutput(problem.shape[0], N, out_type)
            buffer = device.upload(out.array)
            loader.launch(f"grouped_{operands}", **inputs, out=buffer, prefetch=prefetch, variant=variant)
            device.download(buffer, out.array)
            reference.verify(problem, expected, out, f"{operands} {variant} prefetch={prefetch}")
            count += 1
    if not count:
        raise SystemExit("no variant runs on device 0")
    return f"{count} launches of block-scaled GEMMs by offsets"


def block_scaled(
    rng: np.random.Generator, counts: list[int], operands: str, gaps: bool = False
) -> reference.GroupedProblem:
    """With K as the family takes it."""
    k = K // 128 * 128 if operands == "mxfp8_mxfp4" else K
    return reference.grouped_problem(rng, counts, N, k, gaps=gaps, formats=schedules.OPERANDS[operands])


def launch_schedules(device: Device, rng: np.random.Generator) -> str:
    """Every variant of the masked and of the dense schedule, each element within its bound."""
    count, max_rows = 0, max(COUNTS)
    for operands in schedules.OPERANDS:
        problem = block_scaled(rng, COUNTS, operands)
        expected = reference.grouped_reference(problem, on_hopper=hardware.is_hopper())
        inputs = {name: device.upload(array) for name, array in schedules.masked_inputs(problem, rng, max_rows).items()}
        for variant, out_type in packs.output_types(f"grouped_{operands}_masked", hardware.runs_here).items():
            out = reference.GuardedOutput(len(COUNTS) * max_rows, N, out_type)
            array = out.array.reshape(len(COUNTS), max_rows, N)
            buffer = device.upload(array)
            loader.launch(f"grouped_{operands}", **inputs, out=buffer, variant=variant)
            device.download(buffer, array)
            schedules.verify_masked(problem, expected, array, out_type, f"{operands} {variant}")
            count += 1
        problem = block_scaled(rng, [max_rows + 9], operands)
        expected = reference.grouped_reference(problem, on_hopper=hardware.is_hopper())
        inputs = {name: device.upload(array) for name, array in schedules.dense_inputs(problem).items()}
        for variant, out_type in packs.output_types(f"gemm_{operands}", hardware.runs_here).items():
            out = reference.GuardedOutput(max_rows + 9, N, out_type)
            buffer = device.upload(out.array)
            loader.launch(f"gemm_{operands}", **inputs, out=buffer, variant=variant)
            device.download(buffer, out.array)
            reference.verify(problem, expected, out, f"{operands} {variant}")
            count += 1
    return f"{count} variants of masked and dense block-scaled GEMMs"


def launch_rows(device: Device, rng: np.random.Generator) -> str:
    """Every variant of the FP8 and bf16 GEMMs in every form of rows, each element within its bound."""
    count = 0
    every_row = (lambda problem: gemm_problem.masked(problem, max(COUNTS)), "as before")
    forms = {**gemm_problem.FORMS, "_masked": every_row, None: (gemm_problem.dense, "")}
    for own, (suffix, (place, padding)) in itertools.product(FORMATS, forms.items()):
        dense = suffix is None
        name = f"{'gemm' if dense else 'grouped'}_{own}"
        _, fmt, letters, _ = gemm_problem.named(name)
        chosen = packs.artifacts(name + (suffix or ""), hardware.runs_here)
        if not chosen:
            continue
        k = K // gemm_problem.K_MULTIPLE.get(fmt, 1) * gemm_problem.K_MULTIPLE.get(fmt, 1)
        problem = gemm_problem.gemm_problem(rng, fmt, [139] if dense else COUNTS, N, k)
        problem.on_hopper = hardware.is_hopper()
        known = gemm_problem.expected(problem)
        arrays, places = place(problem)
        arrays = gemm_problem.in_majors(arrays, letters)
        inputs = {name: device.upload(array) for name, array in arrays.items()}
        *lead, _ = arrays["a"].shape
        for artifact in chosen:
            out = reference.GuardedOutput(int(np.prod(lead)), N, artifact.axes["out"])
            array = out.array.reshape(*lead, N)
            buffer = device.upload(array)
            loader.launch(name, **inputs, out=buffer, variant=artifact.variant)
            device.download(buffer, array)
            context = f"{name}{suffix} {artifact.variant}"
            gemm_problem.verify(problem, places, out, len(out.array), padding, context, known)
            count += 1
    return f"{count} variants of FP8 and bf16 GEMMs"


def launch_einsums(device: Device, rng: np.random.Generator) -> str:
    """Every variant of the einsums of heads, each element within its bound, and of what adds up shares of K."""
    count, rows, heads = 0, 139, 3
    for family in ("einsum_bf16", "einsum_bf16_nn", "einsum_bf16_tn", "einsum_fp8"):
        _, fmt, letters, _ = gemm_problem.named(family)
        problem = gemm_problem.gemm_problem(rng, fmt, [rows] * heads, N, K)
        problem.on_hopper = hardware.is_hopper()
        inputs = {name: device.upload(getattr(value, "owner", value)) if hasattr(value, "shape") else value
                  for name, value in einsum_problem.inputs(problem, letters).items()}  # fmt: skip
        for artifact in packs.artifacts(family, hardware.runs_here):
            out = reference.GuardedOutput(rows * heads, N, artifact.axes["out"])
            array = out.array.reshape(einsum_problem.shape(rows, heads, N, letters))
            buffer = device.upload(array)
            loader.launch(family, **inputs, out=buffer, variant=artifact.variant)
            device.download(buffer, array)
            places = einsum_problem.places(rows, heads, letters)
            gemm_problem.verify(problem, places, out, rows * heads, "as before", f"{family} {artifact.variant}")
            count += 1
    problem = gemm_problem.gemm_problem(rng, "bf16", [rows], N, 5 * 72)
    inputs = {name: device.upload(array) for name, array in einsum_problem.chained(problem, 5).items()}
    parts, out = np.empty((3, rows, N), np.float32), np.empty((rows, N), np.float32)
    shares, result = device.upload(parts), device.upload(out)
    loader.launch("einsum_bf16_shares", **inputs, out=shares)
    loader.launch("sum_of_shares", shares=shares, out=result)
    device.download(result, out)
    value, bound = gemm_problem.expected(problem)
    reference.check_within(out.astype(np.float64), value, gemm_problem.rounded_bound(value, bound, "f32"))
    return f"{count} variants of einsums, and shares of K"


def launch_k_groups(device: Device, rng: np.random.Generator) -> str:
    """Every variant of the GEMMs with groups along K, each element within its bound; then added to itself."""
    count, rows, ks = 0, 136, [128, 0, 1152, 256]
    for family, fmt in (("k_grouped_fp8_nt", "fp8"), ("k_grouped_bf16_tn", "bf16")):
        problems = [gemm_problem.gemm_problem(rng, fmt, [rows], N, k, weight_rows=1) for k in ks]
        inputs = {name: device.upload(array) for name, array in gemm_problem.groups_of_k(problems).items()}
        value, bound = gemm_problem.expected_of_groups(problems)
        for variant, out_type in packs.output_types(family, hardware.runs_here).items():
            out = reference.GuardedOutput(len(ks) * rows, N, out_type)
            array = out.array.reshape(len(ks), rows, N)
            buffer = device.upload(array)
            for times, accumulate in ((1, "overwrite"), (2, "add")):
                loader.launch(family, **inputs, out=buffer, variant=variant, accumulate=accumulate)
                device.download(buffer, array)
                allowed = gemm_problem.rounded_bound(times * value, times * bound, out_type) * times
                reference.check_within(reference.as_float64(out.array, out_type), times * value, allowed,
                                       f"{family} {variant} {accumulate}")  # fmt: skip
            count += 1
    return f"{count} variants with groups along K"


def launch_fused(device: Device, rng: np.random.Generator) -> str:
    """Every variant of grouped_fp4_swiglu, rows packed and by mask, for every type in between: all variants write the
    same bytes."""
    problem = reference.grouped_problem(rng, COUNTS, 2 * BETWEEN, K, gaps=True)
    weight, max_rows = np.ones(problem.shape[0], np.float32), max(COUNTS)
    packed = {**problem.inputs(), "row_weight": weight}
    masked = schedules.masked_layer_inputs(problem, rng, max_rows, weight)
    count = _launch_fused_rows(device, problem, packed, "grouped_fp4_swiglu", None)
    by_mask = _launch_fused_rows(device, problem, masked, "grouped_fp4_swiglu_masked", max_rows)
    return f"{count} variants of grouped_fp4_swiglu, {by_mask} by mask"


def _launch_fused_rows(
    device: Device, problem: reference.GroupedProblem, arrays: dict[str, np.ndarray], family: str, max_rows: int | None
) -> int:
    """Launches all variants of a family; how many there are."""
    variants = [artifact.variant for artifact in packs.artifacts(family, hardware.runs_here)]
    experts = problem.shape[3]
    arrays = {**arrays, "global_scale": np.full(experts, 0.5, np.float32)}
    inputs = {name: device.upload(array) for name, array in arrays.items()}
    rows, scale_rows = schedules.extents(problem, max_rows)
    shapes = (rows, BETWEEN // 2), (scale_rows, reference.round_up(BETWEEN // 16, 4))
    for intermediate, prefetch in (("f32", "none"), ("bf16", "weights"), ("f16", "weights")):
        first = None
        for variant in variants:
            results = [schedules.matrices(np.full(shape, 0xA5, np.uint8), experts, max_rows) for shape in shapes]
            buffers = [device.upload(array) for array in results]
            loader.launch(
                "grouped_fp4_swiglu", **inputs, global_scale_kind="encode", intermediate=intermediate,
                prefetch=prefetch, out=buffers[0], out_scale=buffers[1], variant=variant,
            )  # fmt: skip
            for buffer, array in zip(buffers, results, strict=True):
                device.download(buffer, array)
            first = first or results
            if not all(map(np.array_equal, first, results)):
                raise AssertionError(f"{variant} {intermediate}: other bytes than {variants[0]}")
    return len(variants)


def launch_mx_fused(device: Device, rng: np.random.Generator) -> str:
    """Every variant of the fused GEMMs of MX operands, rows packed and by mask, each element and scale in its bound."""
    count, settings = 0, mx_swiglu.GPT_OSS
    for family, (_, fmt) in {**mx_swiglu.FAMILIES, **mx_swiglu.MASKED}.items():
        chosen = packs.artifacts(family, hardware.runs_here)
        if not chosen:
            continue
        problem = mx_swiglu.Problem.random(rng, family, COUNTS, BETWEEN + 16, K, extras=True,
                                           on_hopper=hardware.is_hopper())  # fmt: skip
        max_rows = max(COUNTS) if family in mx_swiglu.MASKED else None
        inputs = {name: device.upload(array) for name, array in problem.inputs(rng, max_rows).items()}
        for artifact in chosen:
            outputs = mx_swiglu.Outputs(problem, fmt, max_rows)
            results = {name: device.upload(array) for name, array in outputs.arrays.items()}
            loader.launch(family.removesuffix("_masked"), **inputs, **results, **dataclasses.asdict(settings),
                          variant=artifact.variant)  # fmt: skip
            for name, array in outputs.arrays.items():
                device.download(results[name], array)
            context = f"{family} {artifact.variant}"
            outputs.rows(context).verify(*problem.expected(settings), settings.scale_rounding, context)
            count += 1
    return f"{count} variants of fused MX families"


def launch_fp8_fused(device: Device, rng: np.random.Generator) -> str:
    """Every variant of the fused FP8 families in every form of rows, each element and scale within its bound."""
    count = sum(launch_fp8_swiglu(device, rng, family) for family in fp8_swiglu.FORMATS)
    return f"{count} variants of fused FP8 families, {launch_fp8_quantized(device, rng)} of grouped_fp8_quantized"


def launch_fp8_swiglu(device: Device, rng: np.random.Generator, family: str) -> int:
    count, settings, fmt = 0, fp8_swiglu.GPT_OSS, fp8_swiglu.FORMATS[family]
    problem = fp8_swiglu.Problem.random(rng, COUNTS, BETWEEN, K, extras=True, fmt=fmt)
    expected = problem.expected(settings)
    for form, (_, padding) in gemm_problem.FORMS.items():
        arrays, places = problem.inputs(form)
        inputs = {name: device.upload(array) for name, array in arrays.items()}
        for artifact in packs.artifacts(f"{family}{form}", hardware.runs_here):
            outputs = fp8_swiglu.Outputs.of(arrays["a"].shape[:-1], BETWEEN, fmt)
            results = {name: device.upload(array) for name, array in outputs.arrays.items()}
            loader.launch(family, **inputs, **results, **settings.scalars(fmt), variant=artifact.variant)
            for name, array in outputs.arrays.items():
                device.download(results[name], array)
            context = f"{artifact.variant}{form}"
            outputs.rows(places, padding, context).verify(*expected, settings.scales(fmt), context)
            count += 1
    return count


def launch_fp8_quantized(device: Device, rng: np.random.Generator) -> int:
    problem = gemm_problem.gemm_problem(rng, "fp8", COUNTS, BETWEEN, K)
    quantized = packs.artifacts("grouped_fp8_quantized", hardware.runs_here)
    arrays, places = gemm_problem.by_offsets(problem)
    inputs = {name: device.upload(array) for name, array in arrays.items()}
    value, bound = gemm_problem.expected(problem)
    for artifact in quantized:
        outputs = fp8_swiglu.Outputs.of(arrays["a"].shape[:-1], BETWEEN)
        results = {name: device.upload(array) for name, array in outputs.arrays.items()}
        loader.launch("grouped_fp8_quantized", **inputs, **results, variant=artifact.variant)
        for name, array in outputs.arrays.items():
            device.download(results[name], array)
        rows = outputs.rows(places, "as before", artifact.variant)
        rows.verify(value, gemm_problem.rounded_bound(value, bound, "f32"), "none", artifact.variant)
    return len(quantized)


def launch_quantising(device: Device, rng: np.random.Generator) -> str:
    """The quantising families from every type, launched only; test_nvfp4_quantize_device.py and
    test_block_quantize_device.py have their bytes."""
    blocks = (*block_cases.DENSE, *block_cases.GATED, *block_cases.MASKED, *block_cases.GATHERS,
              block_cases.PLAIN_GATHER)  # fmt: skip
    for module, families, dtypes, k in (
        (quantization, quantization.FAMILIES, ("bf16", "f16", "f32"), 80), (block_cases, blocks, ("bf16", "f16"), 160),
    ):  # fmt: skip
        for family, dtype in itertools.product(families, dtypes):
            for scalars in module.scalar_choices(family):
                case = module.case(rng, family, dtype, [3, 0, 130, 1], k, scalars)
                arrays = {name: device.upload(array) for name, array in (case.inputs | case.outputs).items()}
                loader.launch(family, **arrays, **scalars)
    return f"{len(quantization.FAMILIES) + len(blocks)} quantising families"


def launch_norm(device: Device, rng: np.random.Generator) -> str:
    """Every format and type, with a row of two parts, launched only; test_rms_norm_device.py has the bytes."""
    cases = [(name, dtype, settings) for name in rms_norm.FORMATS for dtype in ("bf16", "f16")
             for settings in rms_norm.Settings.every(name)]  # fmt: skip
    for (name, dtype, settings), (m, k) in itertools.product(cases, ((5, 288), (1, 8224))):
        problem = rms_norm.Problem.random(rng, name, dtype, m, k, settings)
        arrays = problem.inputs() | rms_norm.Outputs(problem).arrays
        buffers = {key: device.upload(array) for key, array in arrays.items()}
        loader.launch(problem.family, **buffers, **problem.scalars())
    return f"{len(rms_norm.FORMATS)} norms that quantise"


def launch_mqa(device: Device, rng: np.random.Generator) -> str:
    """Every variant of MQA logits, dense and paged, exact."""

    def upload(arrays: dict[str, object]) -> dict[str, object]:
        return {name: device.upload(x) if isinstance(x, np.ndarray) else x for name, x in arrays.items()}

    def of_families(*families: str) -> list:
        return [artifact for family in families for artifact in packs.artifacts(family, hardware.runs_here)]

    count, ctas = 0, 5
    for artifact in of_families("mqa_logits_fp8", *mqa_mx.DENSE):
        sizes = 37, artifact.axes["heads"] - 4, artifact.axes["head_dim"], 700
        dense = mqa_mx.dense(rng, artifact.family, *sizes, spare=4)
        out = reference.GuardedOutput(37, 701, "f32")
        buffer = device.upload(out.array)
        loader.launch(artifact.family, **upload(dense.inputs()), out=buffer, form="cleaned", variant=artifact.variant)
        device.download(buffer, out.array)
        cleaned = np.pad(~dense.seen(), ((0, 0), (0, 1)))
        mqa.verify(out, *dense.logits(True), dense.seen(), dense.columns("cleaned"), cleaned, artifact.variant)
        count += 1
    for artifact in of_families("paged_mqa_logits_fp8", *mqa_mx.PAGED):
        lengths = rng.integers(0, 700, (9, 3)) * (rng.random((9, 1)) < 0.7)
        sizes = artifact.axes["heads"], artifact.axes["head_dim"], mqa.page_of(artifact.axes, rng)
        paged = mqa_mx.paged(rng, artifact.family, lengths, *sizes, spare=16)
        value, bound, seen = paged.logits(True)
        out, table = reference.GuardedOutput(*value.shape, "f32"), device.upload(np.zeros((ctas + 1, 2), np.int32))
        inputs, buffer = upload(paged.inputs()), device.upload(out.array)
        loader.launch("paged_mqa_schedule", context_lens=inputs["context_lens"], schedule=table)
        loader.launch(artifact.family, **inputs, schedule=table, out=buffer, variant=artifact.variant)
        device.download(buffer, out.array)
        columns = np.broadcast_to(np.arange(value.shape[1]), value.shape)
        mqa.verify(out, value, bound, seen, columns, context=artifact.variant)
        count += 1
    return f"{count} variants of MQA logits"


def launch_sparse_mqa(device: Device, rng: np.random.Generator) -> str:
    """Every variant of sparse MQA logits, and their table, exact."""
    found = [artifact for family in mqa_sparse.FAMILIES for artifact in packs.artifacts(family, hardware.runs_here)]
    for artifact in found:
        mqa_sparse.run_on(device, rng, artifact.family, artifact.variant)
    return f"{len(found)} variants of sparse MQA logits"


def launch_hc_prenorm(device: Device, rng: np.random.Generator) -> str:
    """Every variant of hc_prenorm_tf32, whole and in shares of K, each element within its bound."""
    count, rows, columns, depth = 0, 300, 120, hc_prenorm.BLOCK * 25
    for family, shares in (("hc_prenorm_tf32", None), ("hc_prenorm_tf32_shares", 3)):
        problem = hc_prenorm.Problem.random(rng, rows, columns, depth, shares)
        inputs = {"a": device.upload(problem.a), "b": device.upload(problem.b)}
        lead = () if shares is None else (shares,)
        for artifact in packs.artifacts(family, hardware.runs_here):
            outputs = problem.outputs()
            shapes = (*lead, rows, columns), (*lead, rows)
            arrays = [output.array.reshape(shape) for output, shape in zip(outputs, shapes, strict=True)]
            buffers = [device.upload(array) for array in arrays]
            loader.launch(family, **inputs, out=buffers[0], square_sum=buffers[1], variant=artifact.variant)
            for buffer, array in zip(buffers, arrays, strict=True):
                device.download(buffer, array)
            problem.verify(*outputs, f"{family} {artifact.variant}")
            count += 1
    return f"{count} variants of hc_prenorm_tf32"


def launch_layer(device: Device, rng: np.random.Generator) -> str:
    """moe_fp4, whole and in chunks: the same bytes."""
    tokens, top_k, experts, hidden, between = 37, 3, 6, 256, 160
    weight_scales = {"w13_scale": (2 * between, hidden), "w2_scale": (hidden, between)}
    arguments = {
        "x": (rng.standard_normal((tokens, hidden)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
        "topk_ids": rng.integers(-1, experts, (tokens, top_k), dtype=np.int32),
        "topk_weights": rng.random((tokens, top_k), dtype=np.float32),
        "w13": rng.integers(0, 256, (experts, 2 * between, hidden // 2), dtype=np.uint8),
        "w2": rng.integers(0, 256, (experts, hidden, between // 2), dtype=np.uint8),
        **{name: np.full(experts, 0.01, np.float32) for name in ("w13_alpha", "w2_alpha")},
        **{name: np.full(experts, 100, np.float32) for name in ("x_global_scale", "h_global_scale")},
    }
    for name, (rows, columns) in weight_scales.items():
        padded = reference.round_up(rows, 128), reference.round_up(columns // 16, 4)
        arguments[name] = rng.integers(0, 0x7F, (experts, *padded), dtype=np.uint8)
    buffers = {name: device.upload(array) for name, array in arguments.items()}
    results = []
    for count in (tokens, 8):
        sizes = {"T": count, "TOPK": top_k, "E": experts, "H": hidden, "I": between}
        names = {"x": "bf16", "topk_ids": "i32", "out": "bf16", "global_scale_kind": "encode"}
        workspace = device.upload(np.full(loader.workspace_bytes("moe_fp4", **sizes, **names), 0xFF, np.uint8))
        result = np.full((tokens, hidden), 0x7FC0, np.uint16)
        out = device.upload(result)
        loader.launch("moe_fp4", **buffers, global_scale_kind="encode", out=out, workspace=workspace)
        device.download(out, result)
        results.append(result)
    if not np.array_equal(*results) or (results[0] == 0x7FC0).any():
        raise AssertionError("moe_fp4: chunks give other bytes")
    return "moe_fp4"


def launch_everything() -> None:
    """What runs on device 0, on small problems."""
    rng, device = np.random.default_rng(), Device()
    gemms = launch_grouped, launch_fragments, launch_schedules, launch_rows, launch_einsums, launch_k_groups
    fused = launch_gated_fragments, launch_fused, launch_fp8_fused, launch_mx_fused
    indexers = launch_mqa, launch_sparse_mqa
    parts = *gemms, *fused, launch_quantising, launch_norm, *indexers, launch_hc_prenorm, launch_layer
    print(", ".join([part(device, rng) for part in parts]))


def run_tool(sanitizer: str, tool: str) -> bool:
    """One tool over ``launch_everything``; prints its closing lines, and everything if it is not clean."""
    begin = time.monotonic()
    result = subprocess.run(
        [sanitizer, "--tool", tool, *OPTIONS.get(tool, []), sys.executable, str(Path(__file__).resolve()), "--launch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    clean = result.returncode == 0 and re.search(CLEAN[tool], result.stdout) is not None
    lines = result.stdout.splitlines()
    print(f"{tool}: {'clean' if clean else 'NOT CLEAN'}, {time.monotonic() - begin:.0f} s")
    print("\n".join(lines[-2:] if clean else lines[:60] + ["..."] + lines[-10:]), flush=True)
    return clean


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", action="append", choices=list(CLEAN), help="run this tool only (repeatable)")
    parser.add_argument("--launch", action="store_true", help="launch everything without a tool")
    arguments = parser.parse_args()
    if arguments.launch:
        launch_everything()
        return 0
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return 0 if all([run_tool(sanitizer, tool) for tool in arguments.tool or CLEAN]) else 1


if __name__ == "__main__":
    sys.exit(main())
