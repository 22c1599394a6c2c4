"""Single faults in what the emulator does: a lane map, a selector, an order of nibbles, a rounding.

Each is noticed by a test of tests/emulated or by a run of a shipped kernel, which passes without the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launches import Problem
from planting import Kernel


@dataclass(frozen=True)
class Fault:
    """A replacement in a file of emulator/, and the test that has to fail."""

    name: str
    file: str
    old: str
    new: str
    test: Check

    @property
    def id(self) -> str:
        return f"{Path(self.file).stem}-{self.name}".replace(" ", "_")


@dataclass(frozen=True)
class Check:
    """A test function of a file under tests/ with its arguments, or a shipped kernel and a problem."""

    file: str = ""
    function: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    kernel: Kernel | None = None
    problem: Problem | None = None

    @property
    def key(self) -> tuple:
        return self.file, self.function, repr(self.arguments), self.kernel, self.problem


def _tests(file: str) -> Callable[..., Check]:
    return lambda function, **arguments: Check(f"emulated/test_semantics_{file}.py", f"test_{function}", arguments)


def _kernel(arch: str, problem: Problem) -> Check:
    return Check(kernel=Kernel(arch, f"m{8 if arch == '120a' else 16}n128k256_f32"), problem=problem)


_FORMATS, _LDMATRIX, _MMA, _SWIZZLE, _TCGEN05, _WGMMA = map(
    _tests, ("formats", "ldmatrix", "mma", "swizzle", "tcgen05", "wgmma")
)

SMALL = Problem((0, 1, 11, 0, 7, 0), 136, 352)
ON_90, ON_100, ON_120 = (_kernel(arch, SMALL) for arch in ("90a", "100a", "120a"))
ON_PAIRS = Check(kernel=Kernel("100a", "m128n256k256_f32"), problem=Problem((0, 19, 0), 136, 352))

FP4 = "m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"
FP8 = "m16n8k32.row.col.kind::mxf8f6f4.block_scale.f32.e4m3.e4m3.f32.ue8m0"
scaled_fp4 = _MMA("block_scaled", modifiers=FP4, selectors=(0,), thread_a=1, thread_b=2)
scaled_fp8 = _MMA("block_scaled", modifiers=FP8, selectors=(0, 1, 2, 3), thread_a=1, thread_b=3)
plain_f16 = _MMA("unscaled", modifiers="m16n8k16.row.col.f32.f16.f16.f32")

wgmma_f16 = _WGMMA("k_major", types=("f32", "f16", "f16"), mode="128B", registers=False)
wgmma_64b = _WGMMA("k_major", types=("f32", "f16", "f16"), mode="64B", registers=False)
wgmma_registers = _WGMMA("k_major", types=("f32", "f16", "f16"), mode="none", registers=True)
wgmma_plain = _WGMMA("k_major", types=("f32", "f16", "f16"), mode="none", registers=False)
wgmma_tf32 = _WGMMA("k_major", types=("f32", "tf32", "tf32"), mode="32B", registers=True)
wgmma_transposed = _WGMMA("transposed_sixteen_bit", mode="none", majors=("K", "MN"))

tc_f16 = _TCGEN05("unscaled_k_major", kind="f16", name="bf16", mode="128B", m=128, n=24, group=1)
tc_64 = _TCGEN05("unscaled_k_major", kind="f16", name="bf16", mode="64B", m=64, n=16, group=1)
tc_split = _TCGEN05("unscaled_k_major", kind="f16", name="bf16", mode="32B", m=128, n=48, group=2)
tc_scaled = _TCGEN05(
    "block_scaled",
    kind="mxf4nvf4",
    vector="block16",
    a="e2m1",
    b="e2m1",
    scale="ue4m3",
    vectors=4,
    ids=(0,),
    m=128,
    n=40,
    group=1,
)
tc_selected = _TCGEN05(
    "block_scaled",
    kind="mxf8f6f4",
    vector="block32",
    a="e4m3",
    b="e4m3",
    scale="ue8m0",
    vectors=1,
    ids=(0, 1, 2, 3),
    m=128,
    n=40,
    group=1,
)


def _copied(shape: str, source: str = "", bits: int = 8) -> Check:
    return _TCGEN05("copy", shape=shape, group=1, source=source, bits=bits)


def _moved(shape: str, most: int, each: int, packed: bool = False) -> Check:
    return _TCGEN05("load_and_store", shape=shape, most=most, each=each, packed=packed, warp=2)


FAULTS = [
    Fault(*fault)
    for fault in [
        # Fragments of mma.sync
        (
            "registers of A in the order of k",
            "units/mma.py",
            "reshape(-1, len(registers) // 2, 2, 8, 4)  #",
            "reshape(-1, 2, len(registers) // 2, 8, 4).swapaxes(1, 2)  #",
            scaled_fp4,
        ),
        (
            "lanes of A by columns",
            "units/mma.py",
            "len(registers) // 2, 2, 8, 4)  #",
            "len(registers) // 2, 2, 4, 8).swapaxes(3, 4)  #",
            plain_f16,
        ),
        (
            "lanes of B by columns",
            "units/mma.py",
            "len(registers), 8, 4).transpose(0, 2, 1, 3)",
            "len(registers), 4, 8).transpose(0, 3, 1, 2)",
            scaled_fp4,
        ),
        (
            "registers of B swapped",
            "units/mma.py",
            "words = np.stack(registers, axis=1).reshape(-1, len(registers), 8, 4)",
            "words = np.stack(registers[::-1], axis=1).reshape(-1, len(registers), 8, 4)",
            scaled_fp4,
        ),
        (
            "rows of C as columns",
            "units/mma.py",
            "reshape(-1, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4)",
            "reshape(-1, 8, 4, 2, 2).transpose(0, 4, 1, 2, 3)",
            plain_f16,
        ),
        (
            "rows of D as columns",
            "units/mma.py",
            "bits.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4)",
            "bits.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 4, 1)",
            plain_f16,
        ),
        ("C left out", "units/mma.py", "+ accumulator(p, c)", "", plain_f16),
        (
            "nibbles of B swapped",
            "units/mma.py",
            "return _values(p.b, p.bits, np.ascontiguousarray(words))",
            "words = (words & 0x0F0F0F0F) << 4 | words >> 4 & 0x0F0F0F0F\n"
            "    return _values(p.b, p.bits, np.ascontiguousarray(words))",
            scaled_fp4,
        ),
        (
            "8-bit containers as plain codes",
            "numbers/formats.py",
            "return table(name)[byte >> 2 & 0xF]",
            "return table(name)[byte & 0xF]",
            _FORMATS("containers"),
        ),
        # Scale factors of mma.sync
        (
            "thread of the scales of A",
            "units/mma.py",
            "np.arange(8) * 4 + 2 * thread",
            "np.arange(8) * 4 + thread",
            scaled_fp4,
        ),
        (
            "scales of A for rows g and g + 8 swapped",
            "units/mma.py",
            "[registers[:, lanes], registers[:, lanes + 1]]",
            "[registers[:, lanes + 1], registers[:, lanes]]",
            scaled_fp4,
        ),
        (
            "thread of the scales of B",
            "units/mma.py",
            "np.arange(8) * 4 + thread], byte)",
            "np.arange(8) * 4], byte)",
            scaled_fp4,
        ),
        ("byte of the scales of A", "units/mma.py",
         "_scale_values(p, rows, byte)", "_scale_values(p, rows, 0)", scaled_fp8),
        (
            "byte of the scales of B",
            "units/mma.py",
            "np.arange(8) * 4 + thread], byte)",
            "np.arange(8) * 4 + thread], 0)",
            scaled_fp8,
        ),
        (
            "scales from the high byte",
            "units/mma.py",
            "byte : byte + p.scale_vectors]",
            "byte : byte + p.scale_vectors][..., ::-1]",
            scaled_fp4,
        ),
        (
            "NaN scale as a number",
            "units/mma.py",
            "return formats.scale_table(p.scale)[codes]",
            "return np.nan_to_num(formats.scale_table(p.scale)[codes], nan=1.0)",
            _MMA("nan_scale_spoils_its_row_or_column_alone", vector="4X", scale="ue4m3", nan=0x7F, side="b"),
        ),
        (
            "sign of ue4m3",
            "numbers/formats.py",
            "return table(name)[byte & 0x7F]",
            "return FORMATS and table('e4m3')[byte]",
            _FORMATS("scale_bytes"),
        ),
        # ldmatrix and stmatrix
        (
            "quads of ldmatrix swapped",
            "units/ldmatrix.py",
            "(32, 4)), 4 * _QUAD[:, None] + byte\n    return Form(8 * count",
            "(32, 4)), 4 * (_QUAD[:, None] ^ 1) + byte\n    return Form(8 * count",
            _LDMATRIX("m8n8", count=1, trans=False),
        ),
        (
            "matrices in reverse",
            "units/ldmatrix.py",
            "[8 * m + lane for m in range(count)]",
            "[8 * m + lane for m in reversed(range(count))]",
            _LDMATRIX("m8n8", count=2, trans=False),
        ),
        (
            "transposed halves swapped",
            "units/ldmatrix.py",
            "2 * _QUAD[:, None] + (byte >> 1), 2 * _GROUP",
            "2 * _QUAD[:, None] + (1 - (byte >> 1)), 2 * _GROUP",
            _LDMATRIX("m8n8", count=1, trans=True),
        ),
        (
            "matrices of m16n16",
            "units/ldmatrix.py",
            "16 * (r >> 1) + 4 * _QUAD",
            "16 * (r & 1) + 4 * _QUAD",
            _LDMATRIX("m16n16_transposes", count=2, types="b8", bits=8),
        ),
        (
            "4-bit elements not shifted",
            "units/ldmatrix.py",
            "return (word >> shift &",
            "return (word &",
            _LDMATRIX("m8n16_unpacks_to_the_low_bits_of_bytes", count=1, source="b4x16_p64", bits=4),
        ),
        (
            "rows of stmatrix",
            "units/ldmatrix.py",
            "_GROUP[:, None] + 8 * (byte >> 1)]",
            "_GROUP[:, None] + 8 * (byte & 1)]",
            _LDMATRIX("stmatrix_m16n8_stores_columns", count=1),
        ),
        # Swizzles and descriptors
        (
            "swizzle of 32 bytes",
            "numbers/swizzle.py",
            "Swizzle(32, 1, 4)",
            "Swizzle(32, 1, 5)",
            _SWIZZLE("cells_are_where_the_table_puts_them", name="32B"),
        ),
        (
            "swizzle of 64 bytes",
            "numbers/swizzle.py",
            "Swizzle(64, 2, 4)",
            "Swizzle(64, 1, 4)",
            _SWIZZLE("cells_are_where_the_table_puts_them", name="64B"),
        ),
        (
            "swizzle of 128 bytes",
            "numbers/swizzle.py",
            '"128B": Swizzle(128, 3, 4)',
            '"128B": Swizzle(128, 2, 4)',
            _SWIZZLE("cells_are_where_the_table_puts_them", name="128B"),
        ),
        (
            "swizzle of 32-byte atoms",
            "numbers/swizzle.py",
            '"128B_atom_32B": Swizzle(128, 2, 5)',
            '"128B_atom_32B": Swizzle(128, 2, 4)',
            _SWIZZLE("cells_are_where_the_table_puts_them", name="128B_atom_32B"),
        ),
        (
            "flip of 8 bytes in every line",
            "numbers/swizzle.py",
            "((address >> 7 & 1) << 3)",
            "8",
            _SWIZZLE("flip_swaps_eight_bytes_in_odd_lines"),
        ),
        (
            "offsets of a descriptor swapped",
            "numbers/descriptors.py",
            "field(0), field(16), field(32), mode",
            "field(0), field(32), field(16), mode",
            wgmma_plain,
        ),
        ("start of a descriptor cut off", "numbers/descriptors.py", "& 0x3FFF) << 4", "& 0x03FF) << 4", wgmma_f16),
        (
            "swizzle from the start of the tile",
            "numbers/descriptors.py",
            "pattern.apply(offset + phase)",
            "pattern.apply(offset) + phase",
            wgmma_f16,
        ),
        (
            "swizzle field of wgmma",
            "numbers/descriptors.py",
            '1: "128B", 2: "64B", 3: "32B"}',
            '1: "64B", 2: "128B", 3: "32B"}',
            wgmma_64b,
        ),
        ("swizzle field of tcgen05", "numbers/descriptors.py", '2: "128B", 4: "64B"', '2: "64B", 4: "128B"', tc_64),
        (
            "leading offset as stride",
            "numbers/descriptors.py",
            "row // 8 * stride + byte // 16 * leading",
            "row // 8 * leading + byte // 16 * stride",
            wgmma_plain,
        ),
        (
            "stride left out",
            "numbers/descriptors.py",
            "row % 8 * pattern.span + row // 8 * stride + byte",
            "row * pattern.span + byte",
            tc_f16,
        ),
        (
            "transposed offsets swapped",
            "numbers/descriptors.py",
            '(stride, leading) if mode == "none"',
            '(leading, stride) if mode == "none"',
            wgmma_transposed,
        ),
        # wgmma
        (
            "registers of A swapped",
            "units/wgmma.py",
            "reshape(4, 2, 2, 8, 4).transpose(0, 2, 3, 1, 4)",
            "reshape(4, 2, 2, 8, 4).transpose(0, 1, 3, 2, 4)",
            wgmma_registers,
        ),
        (
            "rows of the accumulators before",
            "units/wgmma.py",
            "transpose(0, 4, 1, 3, 2, 5)",
            "transpose(0, 5, 1, 3, 2, 4)",
            wgmma_f16,
        ),
        (
            "rows of the accumulators after",
            "units/wgmma.py",
            "transpose(0, 2, 4, 3, 1, 5)",
            "transpose(0, 2, 4, 3, 5, 1)",
            wgmma_f16,
        ),
        (
            "B not transposed",
            "units/wgmma.py",
            "b_descriptor, shared, transpose_b)",
            "b_descriptor, shared, False)",
            wgmma_transposed,
        ),
        (
            "scale-d ignored",
            "units/wgmma.py",
            "if scale_d else np.zeros((64, f.n))",
            "if True else np.zeros((64, f.n))",
            _WGMMA("negation_and_scale_d", negate=(True, False), scale_d=False),
        ),
        (
            "both negations",
            "units/wgmma.py",
            "if negate_a != negate_b:",
            "if negate_a or negate_b:",
            _WGMMA("negation_and_scale_d", negate=(True, True), scale_d=True),
        ),
        (
            "all bits of tf32",
            "units/wgmma.py",
            'return formats.decode(name, raw.view("<u4"))',
            'return formats.decode("f32", raw.view("<u4"))',
            wgmma_tf32,
        ),
        # tcgen05
        (
            "lanes of 64 rows",
            "units/tcgen05_mma.py",
            "lane + row % 16 + 32 * (row // 16)",
            "lane + row % 32 + 64 * (row // 32)",
            tc_64,
        ),
        (
            "lanes of 128 rows",
            "units/tcgen05_mma.py",
            "    return np.arange(LANES)\n",
            "    return np.arange(LANES)[::-1]\n",
            tc_f16,
        ),
        (
            "halves of a split D",
            "units/tcgen05_mma.py",
            "np.concatenate([left, left]) if i.split",
            "np.concatenate([left, -left]) if i.split",
            tc_split,
        ),
        (
            "accumulate flag",
            "units/tcgen05_mma.py",
            "        if accumulate:\n            old",
            "        if True:\n            old",
            tc_f16,
        ),
        (
            "disabled lanes in reverse",
            "units/tcgen05_mma.py",
            'bitorder="little") == 0',
            'bitorder="big") == 0',
            _TCGEN05("accumulate_scale_and_disabled_lanes"),
        ),
        (
            "scale of D",
            "units/tcgen05_mma.py",
            "-scale_input_d)",
            "scale_input_d)",
            _TCGEN05("accumulate_scale_and_disabled_lanes"),
        ),
        ("16-bit D from the high half", "units/tcgen05_mma.py",
         "(old & 0xFFFF)", "(old >> 16)", _TCGEN05("half_precision_d")),
        (
            "nibbles of B swapped",
            "units/tcgen05_mma.py",
            '_read(i, "B", s, b)) for s',
            '_read(i, "B", s, b) << 4 | _read(i, "B", s, b) >> 4) for s',
            tc_scaled,
        ),
        ("scale factor id of A", "units/tcgen05.py",
         "field(29, 2), field(4, 2)", "field(4, 2), field(4, 2)", tc_selected),
        ("scale factor id of B", "units/tcgen05.py",
         "field(29, 2), field(4, 2)", "field(29, 2), field(29, 2)", tc_selected),
        (
            "scale layout by lanes",
            "units/tcgen05_mma.py",
            "column : column + count].T.reshape(-1)",
            "column : column + count].reshape(-1)",
            tc_scaled,
        ),
        (
            "one copy of the scale factors",
            "units/tcgen05_mma.py",
            "words = tmem[32 * group : 32 * group + 32,",
            "words = tmem[0:32,",
            _TCGEN05("a_missing_copy_of_scale_factors_is_noticed"),
        ),
        ("scales of the first 32 rows", "units/tcgen05_mma.py", "[32 * g : 32 * g + 32]", "[:32]", tc_scaled),
        (
            "operands of A negated for B",
            "units/tcgen05_mma.py",
            "right = -right if i.negate_b",
            "right = -right if i.negate_a",
            tc_scaled,
        ),
        (
            "column of A in tensor memory",
            "units/tcgen05_mma.py",
            "tmem[cta][_lanes(i, first), start : start + 8])",
            "tmem[cta][_lanes(i, first), start + 1 : start + 9])",
            _TCGEN05("a_from_tensor_memory", kind="f16", name="bf16", m=128, n=24, group=1),
        ),
        (
            "copies to one warp alone",
            "units/tcgen05_moves.py",
            '("32x128b", "warpx4"): _ROWS.reshape(4, 32)',
            '("32x128b", "warpx4"): _ROWS[None, :32]',
            _copied("32x128b.warpx4"),
        ),
        (
            "pairs of warps",
            "units/tcgen05_moves.py",
            "_ROWS[:64] % 32 + _ROWS[:64] // 32 * 64 + 32 * c",
            "_ROWS[:64] + 64 * c",
            _copied("64x128b.warpx2::01_23"),
        ),
        (
            "4-bit elements in low bits",
            "units/tcgen05_moves.py",
            "<< (2 if f.bits == 4 else 0)",
            "<< 0",
            _copied("128x128b", ".b8x16.b4x16_p64", 4),
        ),
        ("lanes of 32x32b", "units/tcgen05_moves.py",
         "lane, column = t, r", "lane, column = 31 - t, r", _moved("32x32b", 128, 1)),
        ("columns of 16x64b", "units/tcgen05_moves.py",
         "2 * r + (t >> 1 & 1)", "2 * r + (t & 1)", _moved("16x64b", 128, 1)),
        (
            "lanes of 16x128b",
            "units/tcgen05_moves.py",
            "(t >> 2) + 8 * (r & 1), (t & 3)",
            "(t >> 2) + 8 * (r >> 1 & 1), (t & 3)",
            _moved("16x128b", 64, 2),
        ),
        (
            "columns of 16x256b",
            "units/tcgen05_moves.py",
            "2 * (t & 3) + (r & 1) + 8 * (r >> 2)",
            "(t & 3) + 4 * (r & 1) + 8 * (r >> 2)",
            _moved("16x256b", 32, 4),
        ),
        (
            "packed halves swapped",
            "units/tcgen05_moves.py",
            "data[..., 0] & np.uint32(0xFFFF) | data[..., 1] << np.uint32(16)",
            "data[..., 1] & np.uint32(0xFFFF) | data[..., 0] << np.uint32(16)",
            _moved("32x32b", 128, 1, True),
        ),
        ("lanes of a warp", "units/tcgen05_moves.py",
         "low = 32 * (warp % 4)", "low = 32 * (warp % 2)", _moved("32x32b", 128, 1)),
        (
            "shift upwards",
            "units/tcgen05_moves.py",
            "window[:-1] = window[1:].copy()",
            "window[1:] = window[:-1].copy()",
            _TCGEN05("shift"),
        ),
        # Conversions
        (
            "ties to odd",
            "numbers/formats.py",
            "(rest == 0.5) & (whole & 1 == 1)",
            "(rest == 0.5) & (whole & 1 == 0)",
            _FORMATS("ties_and_their_neighbours_in_f32", name="e2m1"),
        ),
        (
            "infinity not saturated",
            "numbers/formats.py",
            "np.where(overflow | infinite, f.largest, code)",
            "np.where(overflow, f.largest, code)",
            _FORMATS("every_f16_rounds_to_the_nearest_narrow_value", name="e2m1", relu=False),
        ),
        (
            "saturation one below",
            "numbers/formats.py",
            "np.where(overflow | infinite, f.largest, code)",
            "np.where(overflow | infinite, f.largest - 1, code)",
            _FORMATS("every_f16_rounds_to_the_nearest_narrow_value", name="e2m1", relu=False),
        ),
        (
            "rounding down as up",
            "numbers/formats.py",
            "negative: negative & (rest > 0)",
            "negative: ~negative & (rest > 0)",
            _FORMATS("f32_to_sixteen_bits_in_every_direction", name="f16", rounding="rm"),
        ),
        ("half to zero", "numbers/formats.py", "rest >= 0.5", "rest > 0.5", _FORMATS("tf32", rounding="rna")),
        (
            "relu left out",
            "numbers/formats.py",
            "code = np.where(negative, 0, code)",
            "pass",
            _FORMATS("every_f16_rounds_to_the_nearest_narrow_value", name="e2m1", relu=True),
        ),
        (
            "halves of a pair swapped",
            "numbers/formats.py",
            "(codes[0] << np.uint32(_half_width(destination)) | codes[1])",
            "(codes[1] << np.uint32(_half_width(destination)) | codes[0])",
            _FORMATS("first_source_goes_to_the_high_half", destination="e2m1x2"),
        ),
        (
            "subnormals of half the size",
            "numbers/formats.py",
            "np.maximum(exponent, 1)",
            "exponent",
            _FORMATS("every_code_decodes_to_its_exact_value", name="e2m1"),
        ),
        (
            "ue8m0 rounded down",
            "numbers/formats.py",
            "negative: ~negative & (rest > 0)",
            "negative: negative & (rest > 0)",
            _FORMATS("ue8m0_takes_the_exponent"),
        ),
        (
            "NaN of e2m1 as zero",
            "numbers/formats.py",
            "f.largest if f.nan is None else f.nan, code)\n    if f.pad",
            "0 if f.nan is None else f.nan, code)\n    if f.pad",
            _FORMATS("nan_and_relu"),
        ),
        # Asynchronous copies and barriers, noticed by shipped kernels
        (
            "elements out of bounds",
            "units/tma.py",
            "tile = np.zeros((*shape[:-1], inner), np.uint8)",
            "tile = np.full((*shape[:-1], inner), 0x22, np.uint8)",
            ON_120,
        ),
        ("box without a swizzle", "units/tma.py", "return pattern.apply(linear)", "return linear", ON_120),
        (
            "box read beyond the tensor",
            "units/tma.py",
            "last = min(count, -(-(self.dims[d] - coordinates[d]) // step))",
            "last = count",
            ON_120,
        ),
        (
            "bytes of a copy not all signalled",
            "machine/barriers.py",
            "self.bytes -= size",
            "self.bytes -= size - 16",
            ON_120,
        ),
        ("bytes not expected", "machine/barriers.py", "self.bytes += size", "self.bytes += 0", ON_120),
        (
            "phase complete before its bytes",
            "machine/barriers.py",
            "if self.pending or self.bytes:",
            "if self.pending:",
            ON_120,
        ),
        (
            "parity of the other phase",
            "machine/barriers.py",
            "(self.phase ^ parity) & 1 != 0",
            "(self.phase ^ parity) & 1 == 0",
            ON_120,
        ),
        (
            "arrivals of the next phase",
            "machine/barriers.py",
            "self.pending = self.expected\n        self.wake()",
            "self.pending = 1\n        self.wake()",
            ON_120,
        ),
        (
            "tensor operations out of order",
            "units/tensor_memory.py",
            "operation = self.launch.operation(name, self.cta, [run], before)",
            "operation = self.launch.operation(name, self.cta, [run], [])",
            ON_100,
        ),
        ("commit arrives twice", "units/tensor_memory.py", "barrier.arrive(1)", "barrier.arrive(2)", ON_100),
        (
            "commit of a pair in its own CTA",
            "units/tensor_memory.py",
            "places = [rank << 24 | where & 0xFFFFFF for rank",
            "places = [where for rank",
            ON_PAIRS,
        ),
        (
            "tokens of a pair from one CTA",
            "units/tcgen05_mma.py",
            'i.b, _read(i, "B", s, b)) for s in shared]',
            'i.b, _read(i, "B", shared[0], b)) for s in shared]',
            ON_PAIRS,
        ),
        (
            "scales of a pair from one CTA",
            "units/tcgen05_moves.py",
            "data = descriptors.gather(memory, where)",
            "data = descriptors.gather(shared[0], where)",
            ON_PAIRS,
        ),
        (
            "products after the wait",
            "units/warpgroups.py",
            "last = queue.group - 1 - count",
            "last = queue.group - 2 - count",
            ON_90,
        ),
    ]
]
