"""Faults in the transforms of scales, which are the same on every arch."""

from __future__ import annotations

from kernel_fault import MANY, planted
from planting import Kernel

TRANSPOSE, ALONG_K = "simt/transpose_scales.cuh", "simt/pack_along_k.cuh"
UE8M0, QUAD = "number/ue8m0.cuh", "simt/quad.cuh"
BOUNDS = "if (out_row < pitch && out_word < words)"
LOAD = "row < rows && column < columns ?"

CAUGHT = planted(
    TRANSPOSE,
    Kernel("90a", "t256", "scales_mn_major"),
    MANY,
    [
        ("scales of other rows in the padding", LOAD, "column < columns ?"),
        ("padding of scales left as it is", BOUNDS, "if (out_row < matrix.rows && out_word < words)"),
        ("tile of scales not awaited", "    __syncthreads();\n", ""),
        ("columns of scales as if rows were whole tiles", BOUNDS, "if (out_word < words)"),
        ("scales beyond the last column stored", BOUNDS, "if (out_row < pitch)"),
        ("scales of the first matrix for all", "int64_t(blockIdx.z) * M * C", "0",
         {"file": "scales_mn_major/simt.cu.j2"}),
        ("tile of scales turned with another number of rows", "first_row + i * kWarps + warp",
         "first_row + warp * kRowsPerWarp + i"),
    ],
)  # fmt: skip
CAUGHT += planted(
    TRANSPOSE,
    Kernel("100a", "t256", "scales_pack_ue8m0"),
    MANY,
    [
        ("row of blocks of rows by the row", "row / row_block", "row"),
        ("scales beyond the last column packed", LOAD, "row < rows ?"),
        ("last scales in no word", "ceil_div(matrix.columns, Format::kPerWord)",
         "matrix.columns / Format::kPerWord"),
        ("first scale in the highest byte", "8 * (threadIdx.x / kStride % 4)",
         "8 * (3 - threadIdx.x / kStride % 4)", {"file": QUAD}),
        ("negative scales packed", "0x807FFFFF", "0x007FFFFF", {"file": UE8M0}),
        ("fractions of scales lost", "0x807FFFFF", "0x80000000", {"file": UE8M0}),
        ("exponents of scales with a sign", "0xFF : bits >> 23", "bits >> 23 : bits >> 23", {"file": UE8M0}),
        ("scales of the first matrix packed for all", "int64_t(blockIdx.z) * R * C", "0",
         {"file": "scales_pack_ue8m0/simt.cu.j2"}),
    ],
)  # fmt: skip
CAUGHT += planted(
    ALONG_K,
    Kernel("120a", "t128", "scales_pack_ue8m0_along_k"),
    MANY,
    [
        ("group without a word for its last scales", "return ceil_div(scales_of(group), 4);",
         "return scales_of(group) / 4;"),
        ("scales of the next group in the word of one", "first + i < end", "first + i < num_scales"),
        ("last scale of a group left out", "num_scales * scale_k), scale_k);",
         "num_scales * scale_k) + 1 - scale_k, scale_k);"),
        ("scales of a group from its first word on", "+ 4 * (word - groups.first_word[group])", "+ 4 * word"),
        ("scales of rows beyond the last", "row < rows && first + i < end", "first + i < end"),
        ("columns along K without padding", "out[int64_t(word) * pitch + row]", "out[int64_t(word) * rows + row]"),
        ("one word of a CTA alone", "word += gridDim.y", "word += num_words"),
    ],
)  # fmt: skip
