"""Faults in the kernels of MQA logits on sm_120."""

from __future__ import annotations

from kernel_fault import LDMATRIX, planted
from kernel_faults_mqa import DENSE, FEW, LONG, OPERANDS, PAGED
from planting import Kernel, Problem

KERNEL = "kernel/mqa_sm120.cuh"
WIDE = Kernel("120a", "h64d128", "mqa_logits_fp8")
LINE = "const uint32_t line = row * ROW_BYTES / 128;"
BYTE = "const int byte = Formats::scale_byte(step);"


def of_width(dim: int, family: str = "mqa_logits_fp8") -> dict:
    return {"kernel": Kernel("120a", f"h64d{dim}", family), "problem": Problem((6,), 200, dim)}


MXFP8, MXFP4 = (of_width(128, f"mqa_logits_mxfp{bits}") for bits in (8, 4))

CAUGHT = planted(
    KERNEL,
    WIDE,
    FEW,
    [
        ("keys read before they arrive", "mbarrier::wait(&shared.full[ring.stage], ring.parity);", ""),
        ("stage of keys never freed", "arrive_as_warp(&shared.empty[ring.stage]);", "",
         {"kernel": Kernel("120a", "h64d128", PAGED.family), "problem": LONG}),
        ("queries read before they arrive", "mbarrier::wait(&shared.queries_full[buffer.stage], buffer.parity);", ""),
        ("queries never freed", "arrive_as_warp(&shared.queries_empty[buffer.stage]);", "", {"problem": DENSE}),
        ("scale of the neighbour", "], warp_row + Fragments::row());\n                const bool",
         "], warp_row + (Fragments::row() ^ 1));\n                const bool"),
        ("weights of heads that are not there", " && head < queries.num_heads", "", {"file": OPERANDS}),
        ("swizzle of 128 bytes for rows of 64", LINE, "const uint32_t line = row;",
         {"file": LDMATRIX, **of_width(64)}),
        ("swizzle of 128 bytes for rows of 32", LINE, "const uint32_t line = row;",
         {"file": LDMATRIX, **of_width(32)}),
        ("keys of mxfp8 with scales of 1", "kBlockScaled ? __float_as_uint(scale) : kOne", "kOne", MXFP8),
        ("scale byte of the neighbour, mxfp8", BYTE, BYTE.replace(";", " ^ 1;"), MXFP8),
        ("scale byte of the neighbour, mxfp4", BYTE, BYTE.replace(";", " ^ 2;"), MXFP4),
        ("scales of the columns before", "(first + i) * 8 + threadIdx.x % 32 / 4", "first * 8 + threadIdx.x % 32 / 4",
         MXFP4),
        ("scales of mxfp8 multiplied twice", "kBlockScaled ? sums[g] : scale * sums[g]", "scale * sums[g]", MXFP8),
        ("scales of as many heads as there is room for", "* queries.num_heads + head) : 0;", "* kHeads + head) : 0;",
         {"file": OPERANDS, **MXFP8}),
    ],
)  # fmt: skip
