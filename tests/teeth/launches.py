"""Small problems that a kernel with a fault in it has to get wrong, and how each family is launched for one."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import block_cases
import einsum_problem
import fp8_swiglu
import fragment_problem
import gated_fragments
import gemm_problem
import hc_prenorm
import mqa
import mqa_mx
import mqa_sparse
import mx_swiglu
import numpy as np
import reference
import rms_norm
import scale_layouts
import schedules
from quantization import EMULATED
from raw_buffer import RawBuffer
from swiglu_reference import Settings, swiglu_reference

import loader


@dataclass(frozen=True)
class Problem:
    """Rows of each expert, N, K, and the multiprocessors (so that a CTA takes several tiles)."""

    counts: tuple[int, ...]
    n: int
    k: int
    multiprocessors: int = 2
    prefetch: str = "none"
    gaps: bool = True  # rows of a and of its scales that are no expert's
    operands: str = "NVFP4"  # of reference; others with scales over their whole range
    adds: bool = False  # to ones in out; of groups along K
    on_hopper: bool = False  # FP8 sums in sm_90's tensor core, which cuts them

    @functools.cached_property
    def data(self) -> tuple[reference.GroupedProblem, reference.Expected]:
        rng = np.random.default_rng(0)
        problem = reference.grouped_problem(rng, list(self.counts), self.n, self.k, gaps=self.gaps,
                                            formats=getattr(reference, self.operands), wide=self.operands != "NVFP4",
                                            unowned_rows=2 if self.gaps else 0)  # fmt: skip
        return problem, reference.grouped_reference(problem, on_hopper=self.on_hopper)


def _launch_grouped(problem: Problem, context: str, family: str = "grouped_fp4", **options: object) -> None:
    data, expected = problem.data
    out = _output(problem, data.shape[0], **options)
    loader.launch(family, **data.inputs(), out=RawBuffer.of(out.array), **options)
    reference.verify(data, expected, out, context)


def _launch_fragments(problem: Problem, context: str, variant: str, family: str, **options: object) -> None:
    formats = fragment_problem.FORMATS[family]
    data = fragment_problem.fragment_problem(np.random.default_rng(0), variant.rpartition("_")[2], list(problem.counts),
                                             problem.n, problem.k, unowned_rows=2, formats=formats)  # fmt: skip
    out = _output(problem, data.shape[0], variant)
    inputs = gemm_problem.buffers(data.inputs())
    loader.launch(family, **inputs, out=RawBuffer.of(out.array), variant=variant, **options)
    fragment_problem.verify(data, fragment_problem.expected(data), out, context)


def _launch_masked(problem: Problem, context: str, family: str, **options: object) -> None:
    data, expected = problem.data
    rows = max(problem.counts) + 3
    out = _output(problem, len(problem.counts) * rows, **options)
    array = out.array.reshape(-1, rows, problem.n)
    inputs = schedules.masked_inputs(data, np.random.default_rng(0), rows)
    loader.launch(family, **inputs, out=RawBuffer.of(array), **options)
    schedules.verify_masked(data, expected, array, out.out_type, context)
    assert out.intact(len(out.array)), f"{context}: wrote outside of out"


def _launch_dense(problem: Problem, context: str, **options: object) -> None:
    data, expected = problem.data
    out = _output(problem, data.shape[0], **options)
    loader.launch("gemm_fp4", **schedules.dense_inputs(data), out=RawBuffer.of(out.array), **options)
    reference.verify(data, expected, out, context)


def _launch_rows(problem: Problem, context: str, family: str, **options: object) -> None:
    """FP8 and bf16, in the form of rows and the majors that the family has."""
    schedule, fmt, letters, form = gemm_problem.named(family)
    data = gemm_problem.gemm_problem(np.random.default_rng(0), fmt, list(problem.counts), problem.n, problem.k)
    data.on_hopper = problem.on_hopper
    place, padding = gemm_problem.FORMS[form]
    inputs, places = gemm_problem.dense(data) if schedule == "gemm" else place(data)
    *lead, _ = inputs["a"].shape
    out = _output(problem, int(np.prod(lead)), **options)
    array = out.array.reshape(*lead, problem.n)
    inputs = gemm_problem.buffers(gemm_problem.in_majors(inputs, letters))
    loader.launch(family.removesuffix(form), **inputs, out=RawBuffer.of(array), **options)
    gemm_problem.verify(data, places, out, len(out.array), padding, context)


def _launch_channel(problem: Problem, context: str, family: str, **options: object) -> None:
    """FP8 weights with one scale a row, packed rows."""
    data = gemm_problem.gemm_problem(np.random.default_rng(0), "fp8", list(problem.counts), problem.n, problem.k, 1)
    data.on_hopper = problem.on_hopper
    tokens = family.endswith("_tokens")
    inputs, places = gemm_problem.with_channel_scales(data, gemm_problem.by_offsets, tokens)
    out = _output(problem, len(inputs["a"]), **options)
    loader.launch(family, **inputs, out=RawBuffer.of(out.array), **options)
    gemm_problem.verify(data, places, out, len(out.array), "as before", context)


def _launch_heads(problem: Problem, context: str, family: str, **options: object) -> None:
    """Three heads, each with a gap of 8 columns behind its first 16."""
    _, fmt, _, _ = gemm_problem.named(family)
    data = gemm_problem.gemm_problem(np.random.default_rng(0), fmt, list(problem.counts), problem.n, problem.k)
    rows, width = len(data.a), problem.n // 3
    out = reference.GuardedOutput(rows, problem.n + 3 * 8, options["variant"].rpartition("_")[2])
    loader.launch(family, **gemm_problem.buffers(gemm_problem.dense(data)[0]), out=RawBuffer.of(out.array),
                  head_width=width, head_left=16, head_gap=8, **options)  # fmt: skip
    columns = gemm_problem.columns_of_heads(3, width, 16, 8)
    value, bound = gemm_problem.expected(data)
    stored = reference.as_float64(out.array[:, columns], out.out_type)
    reference.check_within(stored, value, gemm_problem.rounded_bound(value, bound, out.out_type), context)
    assert (np.delete(out.array, columns, axis=1).copy().view(np.uint8) == out.POISON).all(), f"{context}: wrote a gap"
    assert out.intact(rows), f"{context}: wrote outside of out"


def _launch_k_groups(problem: Problem, context: str, family: str, **options: object) -> None:
    """``counts`` are K of the groups, ``k`` is the number of rows."""
    _, fmt, _, _ = gemm_problem.named(family)
    if fmt == "fp8":
        del options["prefetch"]  # its tensor maps wait for the grid before
    rng, rows = np.random.default_rng(0), problem.k
    problems = [gemm_problem.gemm_problem(rng, fmt, [rows], problem.n, k, weight_rows=1) for k in problem.counts]
    out = _output(problem, len(problems) * rows, **options)
    if problem.adds:
        out.array[:] = 1
        options["accumulate"] = "add"
    array = out.array.reshape(len(problems), rows, problem.n)
    inputs = gemm_problem.buffers(gemm_problem.groups_of_k(problems))
    loader.launch(family, **inputs, out=RawBuffer.of(array), **options)
    value, bound = gemm_problem.expected_of_groups(problems)
    value = value + problem.adds
    stored = reference.as_float64(out.array, out.out_type)
    reference.check_within(stored, value, gemm_problem.rounded_bound(value, bound, out.out_type), context)


def _launch_einsum(problem: Problem, context: str, family: str, **options: object) -> None:
    """``counts`` are the rows of each matrix."""
    _, fmt, letters, _ = gemm_problem.named(family)
    data = gemm_problem.gemm_problem(np.random.default_rng(0), fmt, list(problem.counts), problem.n, problem.k)
    data.on_hopper = problem.on_hopper
    rows, matrices = problem.counts[0], len(problem.counts)
    out = _output(problem, rows * matrices, **options)
    array = out.array.reshape(einsum_problem.shape(rows, matrices, problem.n, letters))
    loader.launch(family, **einsum_problem.inputs(data, letters), out=RawBuffer.of(array), **options)
    places = einsum_problem.places(rows, matrices, letters)
    gemm_problem.verify(data, places, out, rows * matrices, "as before", context)


def _launch_shares(problem: Problem, context: str, **options: object) -> None:
    """Five matrices along K, in three shares, all added up here."""
    data = gemm_problem.gemm_problem(np.random.default_rng(0), "bf16", list(problem.counts), problem.n, problem.k)
    rows = problem.counts[0]
    out = _output(problem, 3 * rows, **options)
    parts = out.array.reshape(3, rows, problem.n)
    inputs = gemm_problem.buffers(einsum_problem.chained(data, 5))
    loader.launch("einsum_bf16_shares", **inputs, out=parts, **options)
    value, bound = gemm_problem.expected(data)
    bound = gemm_problem.rounded_bound(value, bound, "f32")
    reference.check_within(parts.astype(np.float64).sum(0), value, bound, context)
    assert out.intact(3 * rows), f"{context}: wrote outside of out"


def _launch_sum_of_shares(problem: Problem, context: str, prefetch: str, **options: object) -> None:
    """``counts``: how many shares; ``k``: their rows."""
    shares = np.random.default_rng(0).standard_normal((problem.counts[0], problem.k, problem.n)).astype(np.float32)
    out = _output(problem, problem.k, **options)
    loader.launch("sum_of_shares", shares=shares, out=RawBuffer.of(out.array), **options)
    value, bound = shares.astype(np.float64).sum(0), abs(shares).astype(np.float64).sum(0) * len(shares) * 2.0**-24
    bound = gemm_problem.rounded_bound(value, bound, out.out_type)
    reference.check_within(reference.as_float64(out.array, out.out_type), value, bound, context)
    assert out.intact(problem.k), f"{context}: wrote outside of out"


def _launch_fused(problem: Problem, context: str, by_mask: bool = False, **options: object) -> None:
    data, gemm = problem.data
    experts, max_rows = data.shape[3], max(problem.counts) + 3 if by_mask else None
    row_weight, settings = np.linspace(0.5, 1, data.shape[0], dtype=np.float32), Settings()
    global_scale = np.full(experts, 8, np.float32)
    expected = swiglu_reference(data, gemm.value.astype(np.float32), row_weight, global_scale, settings, gemm.exact)
    rows, scale_rows = schedules.extents(data, max_rows)
    out = reference.GuardedOutput(rows, problem.n // 4, "u8")
    out_scale = reference.GuardedOutput(scale_rows, reference.round_up(problem.n // 32, 4), "u8")
    inputs = {**data.inputs(), "row_weight": row_weight}
    if by_mask:
        inputs = schedules.masked_layer_inputs(data, np.random.default_rng(0), max_rows, row_weight)
    loader.launch("grouped_fp4_swiglu", **inputs, global_scale=global_scale,
                  out=schedules.matrices(out.array, experts, max_rows),
                  out_scale=schedules.matrices(out_scale.array, experts, max_rows),
                  **dataclasses.asdict(settings), **options)  # fmt: skip
    expected.verify(data, out, out_scale, context, max_rows)


def _launch_fp8_swiglu(problem: Problem, context: str, family: str, form: str, **options: object) -> None:
    """``n`` are the columns of out. The last row of gates is zeros."""
    fmt = fp8_swiglu.FORMATS[family]
    data = fp8_swiglu.Problem.random(np.random.default_rng(0), list(problem.counts), problem.n, problem.k, extras=True,
                                     fmt=fmt)  # fmt: skip
    data.clear(-1)
    data.bias[data.gate.groups[-1]] = 0
    inputs, places = data.inputs(form)
    settings, outputs = fp8_swiglu.Settings(), fp8_swiglu.Outputs.of(inputs["a"].shape[:-1], problem.n, fmt)
    loader.launch(family, **inputs, **outputs.arrays, **settings.scalars(fmt), **options)
    quantized = outputs.rows(places, gemm_problem.FORMS[form][1], context)
    quantized.verify(*data.expected(settings), settings.scales(fmt), context)


def _launch_gated_fragments(problem: Problem, context: str, family: str, **options: object) -> None:
    """``n`` are the columns of out. Every byte: gates and ups are rounded to a coarser type than f16 tokens have."""
    element = options["variant"].rpartition("_")[2]
    data = gated_fragments.Problem.random(np.random.default_rng(0), element, list(problem.counts), problem.n, problem.k,
                                          extras=True, whole=True, unowned_rows=2,
                                          formats=gated_fragments.FORMATS[family])  # fmt: skip
    settings, out = gated_fragments.Settings("bf16"), data.output()
    loader.launch(data.call, **gemm_problem.buffers(data.inputs()), out=RawBuffer.of(out.array),
                  **dataclasses.asdict(settings), **options)  # fmt: skip
    data.verify(settings, out, context)
    assert (out.array[: data.gemm.owned] == data.exact(settings)).all(), context


def _launch_fp8_quantized(problem: Problem, context: str, **options: object) -> None:
    data = gemm_problem.gemm_problem(np.random.default_rng(0), "fp8", list(problem.counts), problem.n, problem.k)
    inputs, places = gemm_problem.by_offsets(data)
    alpha = np.linspace(0.5, 2, len(data.counts), dtype=np.float32)
    bias = np.random.default_rng(1).standard_normal((len(alpha), problem.n)).astype(np.float32)
    outputs = fp8_swiglu.Outputs.of(inputs["a"].shape[:-1], problem.n)
    loader.launch("grouped_fp8_quantized", **inputs, **outputs.arrays, alpha=alpha, bias=bias, **options)
    value, bound = gemm_problem.expected(data)
    factor = alpha[data.groups, None].astype(np.float64)
    value, bound = factor * value + bias[data.groups], factor * bound + 2.0**-20 * (factor * abs(value) + 8)
    outputs.rows(places, "as before", context).verify(value, bound, "none", context)


def _launch_mx_swiglu(problem: Problem, context: str, family: str, **options: object) -> None:
    """``n`` are the columns of out."""
    data = mx_swiglu.Problem.random(np.random.default_rng(0), family, list(problem.counts), problem.n, problem.k,
                                    extras=True, on_hopper=problem.on_hopper, gaps=problem.gaps,
                                    unowned_rows=2)  # fmt: skip
    packed, settings = family.removesuffix("_masked"), mx_swiglu.Settings()
    max_rows = None if family == packed else max(problem.counts) + 3
    outputs = mx_swiglu.Outputs(data, mx_swiglu.FAMILIES[packed][1], max_rows)
    inputs = data.inputs(np.random.default_rng(0), max_rows)
    loader.launch(packed, **inputs, **outputs.arrays, **dataclasses.asdict(settings), **options)
    outputs.rows(context).verify(*data.expected(settings), settings.scale_rounding, context)


def _launch_scales(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """Whatever the problem, all that is awkward: no scale is multiplied with."""
    case = scale_layouts.AWKWARD[family](np.random.default_rng(0))
    out = case.output()
    inputs = {name: RawBuffer.of(array) for name, array in case.inputs.items()}
    loader.launch(family, **inputs, out=RawBuffer.of(out), **case.scalars, **options)
    case.verify(out, context)


def _launch_hc_prenorm(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """``counts``: rows, once for each share of K."""
    shares = len(problem.counts) if family.endswith("_shares") else None
    rng = np.random.default_rng(0)
    hc_prenorm.Problem.random(rng, problem.counts[0], problem.n, problem.k, shares).run(context, **options)


def _launch_rms_norm(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """``counts``: rows, once; every choice of scalars."""
    name, dtype = rms_norm.FAMILIES[family], options["variant"].rpartition("_")[2]
    for settings in rms_norm.Settings.every(name, eps=1.0):
        case = rms_norm.Problem.exact(np.random.default_rng(0), name, dtype, problem.counts[0], problem.k, settings)
        case.verify_exactly(rms_norm.Outputs(case).launch(**options), context)


def _launch_mqa(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """``counts`` are queries, ``n`` keys, ``k`` the width of a head. Four heads less than there is room for; a key is
    NaN, and nobody of a tile sees the first ones; what is not seen is cleaned."""
    heads = int(options["variant"].partition("d")[0].removeprefix("h")) - 4
    sizes = sum(problem.counts), heads, problem.k, problem.n
    data = mqa_mx.dense(np.random.default_rng(0), family, *sizes, spare=8)
    data.spoil(problem.n * 3 // 4)
    data.starts[:4] = np.maximum(data.starts[:4], 130)
    out = reference.GuardedOutput(len(data.q), problem.n, "f32")
    loader.launch(family, **data.inputs(), out=RawBuffer.of(out.array), form="cleaned", **options)
    seen = data.seen()
    mqa.verify(out, *data.logits(options["device"] == "emulated:90a"), seen, data.columns("cleaned"), ~seen, context)


def _launch_paged_mqa(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """``counts`` are keys of the requests, whose two queries see one less and all, ``n`` is the size of a page, ``k``
    the width of a head. A page does not exist."""
    lengths = np.maximum(np.array(problem.counts)[:, None] - [1, 0], 0)
    data = mqa.Paged.random(np.random.default_rng(0), lengths, 64, problem.k, problem.n, spare=16)
    data.block_table[int(lengths[:, 1].argmax()), 1] = len(data.kv_cache)
    if family == "paged_mqa_schedule":
        table = np.zeros((8, 2), np.int32)
        loader.launch(family, context_lens=data.context_lens, schedule=table, **options)
        assert np.array_equal(table, data.shares(7)), context
        return
    value, bound, seen = data.logits(options["device"] == "emulated:90a")
    out = reference.GuardedOutput(*value.shape, "f32")
    loader.launch(family, **data.inputs(), schedule=data.shares(2), out=RawBuffer.of(out.array), **options)
    mqa.verify(out, value, bound, seen, np.broadcast_to(np.arange(value.shape[1]), value.shape), context=context)


def _launch_sparse_mqa(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """``counts`` are keys that queries see, ``n`` how many blocks of 16 a list has, ``k`` the size of a page; 0: keys
    lie in one matrix, and blocks begin where ranges do."""
    logits = f"{'paged_' if problem.k else ''}sparse_mqa_logits_mxfp4" if family == "sparse_mqa_table" else family
    data = mqa_sparse.Sparse.random(np.random.default_rng(0), logits, np.array(problem.counts), 28, problem.n, 16,
                                    problem.k, not problem.k)  # fmt: skip
    if family == "sparse_mqa_table":
        data.make_table(**options)
    else:
        data.run(data.table(), "f32", context=context, **options)


def _output(problem: Problem, rows: int, variant: str, **_: object) -> reference.GuardedOutput:
    return reference.GuardedOutput(rows, problem.n, variant.rpartition("_")[2])


def _launch_quantize(problem: Problem, context: str, family: str, prefetch: str, **options: object) -> None:
    """From bf16; N is of no meaning, and nothing is loaded ahead."""
    case = block_cases.case(np.random.default_rng(0), family, "bf16", problem.counts, problem.k, {})
    outputs = {name: array.copy() for name, array in case.outputs.items()}
    buffers = {name: RawBuffer.of(array) for name, array in (case.inputs | outputs).items()}
    loader.launch(family, **buffers, **options)
    case.verify(outputs, EMULATED, context)


LAUNCHES = {"grouped_fp4": _launch_grouped, "gemm_fp4": _launch_dense,
            **{family: functools.partial(_launch_fragments, family=family) for family in fragment_problem.FORMATS},
            **{f"grouped_{operands}_masked": functools.partial(_launch_masked, family=f"grouped_{operands}")
               for operands in schedules.OPERANDS},
            "grouped_fp4_swiglu": _launch_fused, "grouped_fp8_quantized": _launch_fp8_quantized,
            "grouped_fp4_swiglu_masked": functools.partial(_launch_fused, by_mask=True),
            **{family: functools.partial(_launch_mx_swiglu, family=family)
               for family in (*mx_swiglu.FAMILIES, *mx_swiglu.MASKED)},
            **{f"{family}{form}": functools.partial(_launch_fp8_swiglu, family=family, form=form)
               for family in fp8_swiglu.FORMATS for form in gemm_problem.FORMS},
            **{family: functools.partial(_launch_rows, family=family)
               for family in (f"grouped_{fmt}{form}" for fmt in gemm_problem.FORMATS for form in gemm_problem.FORMS)},
            **{family: functools.partial(_launch_rows, family=family)
               for family in ("grouped_bf16_nn", "grouped_fp8_ue8m0_nn", "gemm_fp8", "gemm_bf16_nn")},
            **{family: functools.partial(_launch_channel, family=family)
               for family in ("grouped_fp8_channel", "grouped_fp8_channel_tokens")},
            **{family: functools.partial(_launch_einsum, family=family)
               for family in ("einsum_bf16", "einsum_bf16_tn", "einsum_fp8")},
            "einsum_bf16_shares": _launch_shares, "sum_of_shares": _launch_sum_of_shares,
            **{family: functools.partial(_launch_hc_prenorm, family=family)
               for family in ("hc_prenorm_tf32", "hc_prenorm_tf32_shares")},
            **{family: functools.partial(_launch_rms_norm, family=family) for family in rms_norm.FAMILIES},
            **{family: functools.partial(_launch_mqa, family=family)
               for family in ("mqa_logits_fp8", *mqa_mx.DENSE)},
            **{family: functools.partial(_launch_paged_mqa, family=family)
               for family in ("paged_mqa_logits_fp8", "paged_mqa_schedule")},
            **{family: functools.partial(_launch_sparse_mqa, family=family)
               for family in ("sparse_mqa_table", *mqa_sparse.FAMILIES)},
            **{family: functools.partial(_launch_gated_fragments, family=family) for family in gated_fragments.FORMATS},
            "gemm_bf16_heads": functools.partial(_launch_heads, family="gemm_bf16_heads"),
            **{family: functools.partial(_launch_scales, family=family) for family in scale_layouts.AWKWARD},
            **{family: functools.partial(_launch_k_groups, family=family)
               for family in ("k_grouped_bf16_tn", "k_grouped_fp8_nt", "k_grouped_fp8_ue8m0_tn")},
            **{family: functools.partial(_launch_grouped, family=family)
               for family in ("grouped_mxfp4", "grouped_mxfp8", "grouped_mxfp8_mxfp4")},
            **{family: functools.partial(_launch_quantize, family=family)
               for family in (*block_cases.DENSE, *block_cases.GATED, *block_cases.MASKED, *block_cases.GATHERS,
                              block_cases.PLAIN_GATHER)}}  # fmt: skip
