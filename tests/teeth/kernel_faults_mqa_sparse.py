"""Faults in the lists of keys of sparse MQA logits, and in what is loaded by them."""

from __future__ import annotations

from kernel_fault import planted
from launches import Problem
from planting import Kernel

KEYS, LISTS = "mainloop/listed_keys.cuh", "simt/list_keys.cuh"
MATRIX = Kernel("120a", "h32d128", "sparse_mqa_logits_mxfp4")
PAGES = Kernel("120a", "h32d128", "paged_sparse_mqa_logits_mxfp8")
TABLE = Kernel("90a", "t256", "sparse_mqa_table")
SOME, IN_PAGES = Problem((300, 0, 41), 12, 0), Problem((300, 0, 41), 12, 32)
LONG = Problem((5000, 43), 300, 0)  # a tile has more keys than lanes look up

CAUGHT = planted(
    KEYS,
    MATRIX,
    SOME,
    [
        ("scales from where their box begins", "row % kPart + __float_as_int(box[kEarly])", "row % kPart"),
        ("logits of keys that the query does not see", "exists ? entry.y : 0", "exists ? 0xFF : 0"),
        ("entries looked up too near", "column + kLoaders * 32 * kPart", "column + kLoaders * 16 * kPart",
         {"problem": LONG}),
        ("keys read in front of the scales of a page", "scale_offset + row", "row",
         {"kernel": PAGES, "problem": IN_PAGES}),
    ],
)  # fmt: skip
CAUGHT += planted(
    LISTS,
    TABLE,
    SOME,
    [
        ("blocks at multiples of their size", "(unaligned ? begin % block : 0)", "0"),
        ("page of the first key of all", "+ key / page);", ");", {"problem": IN_PAGES}),
    ],
)  # fmt: skip
