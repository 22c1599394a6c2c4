"""Faults in what all generations share: which rows and tiles there are, and how the roles learn of a tile."""

from __future__ import annotations

from kernel_fault import (
    DENSE,
    GROUPED,
    LOAD_ROLE,
    MANY,
    MASKED,
    OFFSETS,
    SCAN,
    SMALL,
    TILE,
    planted,
)
from launches import Problem
from planting import Kernel

M8, M16 = Kernel("120a", "m8n128k256_f32"), Kernel("100a", "m16n128k256_f32")

ROWS_OF_TILE = "min(unsigned{BLOCK_M}, rows_.count(batch) - row)"

SCHEDULE = planted(
    SCAN,
    M8,
    SMALL,
    [
        ("scales of the first expert", "scale_offsets + batch", "scale_offsets", {"file": OFFSETS}),
        ("wrong expert at a boundary", "before[middle] * unit <= index", "before[middle] * unit < index"),
        (
            "partial row tile not counted",
            "return ceil_div(rows.count(batch), BLOCK_M);",
            "return rows.count(batch) / BLOCK_M;",
            {"file": GROUPED},
        ),
        ("rows beyond the expert", ROWS_OF_TILE, "BLOCK_M", {"file": GROUPED}),
        (
            "one row too few",
            ROWS_OF_TILE,
            ROWS_OF_TILE.replace("batch)", "batch) - 1"),
            {"file": GROUPED, "problem": Problem((3, 10), 128, 512)},
        ),
        ("scan adds below its first lane", "if (lane >= distance) inclusive += below;", "inclusive += below;"),
        (
            "no barrier before the totals",
            "totals[warp] = inclusive;\n    __syncthreads();",
            "totals[warp] = inclusive;",
            {"kernel": M16},
        ),
        (
            "no barrier after the schedule",
            "before[num_batches] = carry;\n    __syncthreads();",
            "before[num_batches] = carry;",
        ),
        (
            "no barrier after the totals",
            "        __syncthreads();  // before totals is written again\n",
            "",
            {"problem": Problem((1,) * 8 + (0,) * 230 + (1,) * 2, 8, 32)},
        ),
        ("warps before forgotten", "if (w < warp) sums.before += totals[w];", "", {"problem": MANY}),
    ],
)

# More tiles than their ring holds, of less work than the stages of operands hold.
TILES = Problem((8,) * 40, 8, 32, 1)
FULL_WAIT = "mbarrier::wait(&ring_.full[state_.stage], state_.parity);"
WRITE, TELL = "ring_.tiles[state_.stage] = tile;\n", "mbarrier::arrive(&ring_.full[state_.stage]);\n"
EMPTY_WAIT = "mbarrier::wait(&ring_.empty[state_.stage], state_.parity ^ 1);"

RING_OF_TILES = planted(
    TILE,
    M16,
    TILES,
    [
        ("tile read before it is there", FULL_WAIT, ""),
        ("tile of the other parity", FULL_WAIT, FULL_WAIT.replace("parity", "parity ^ 1")),
        ("tile written over one in use", EMPTY_WAIT, ""),
        ("tile written in the other parity", EMPTY_WAIT, EMPTY_WAIT.replace(" ^ 1", "")),
        ("tile free before all have read it", "&empty[i], kNumReaders);", "&empty[i], kNumReaders - 1);"),
        (
            "tile there before it is written",
            f"{WRITE}        {TELL}",
            f"{TELL}        {WRITE}",
        ),
        (
            "tile never released",
            "if (threadIdx.x % 32 == 0) mbarrier::arrive(&ring_.empty[state_.stage]);",
            "",
        ),
        (
            "tile released before its epilogue has read it",
            "for (; tiles.wait(); tiles.release()) {\n"
            "            const typename Epilogue::Warp output(params, tiles.tile(),",
            "for (; tiles.wait();) {\n"
            "            const schedule::Tile& tile = tiles.tile();\n"
            "            tiles.release();\n"
            "            const typename Epilogue::Warp output(params, tile,",
            {"file": "kernel/sm100.cuh"},
        ),
        ("no tile after the last", "tiles.end();", "", {"file": LOAD_ROLE}),
        (
            "tile told after its operands",
            "blocks_before = loader.kFirstBlocks",
            "blocks_before = 1 << 20",
            {"file": LOAD_ROLE, "problem": Problem((8, 8), 8, 2592, 1)},
        ),
    ],
)

# A batch of no rows, of a tile and some, of one; the last rows of a matrix are never valid.
MASKS = Problem((0, 11, 1, 7), 136, 352)

OF_MASKED = planted(
    MASKED,
    Kernel("120a", "m8n128k256_f32", "grouped_fp4_masked"),
    MASKS,
    [
        ("count of the batch before", "__ldcg(mask + batch)", "__ldcg(mask + max(batch - 1, 0))"),
        ("count of the first batch", "__ldcg(mask + batch)", "__ldcg(mask)", {"problem": Problem((5, 11), 136, 352)}),
        ("all rows of a matrix", "return scan::clamp_rows(__ldcg(mask + batch), max_rows);", "return max_rows;"),
        ("scales of the first matrix", "return batch * (ceil_div(", "return 0 * (ceil_div("),
        (
            "scales of matrices not in whole atoms",
            "(ceil_div(max_rows, scale_layout::ATOM_ROWS) * scale_layout::ATOM_ROWS)",
            "max_rows",
        ),
        ("rows of the matrix before", "return batch * max_rows;", "return max(batch - 1, 0) * max_rows;"),
        ("rows packed as by offsets", "return batch * max_rows;", "return batch * count(batch);"),
    ],
)

OF_DENSE = planted(
    DENSE,
    Kernel("120a", "m8n128k256_f32", "gemm_fp4"),
    Problem((11,), 136, 352, gaps=False),
    [
        ("first row of a matrix skipped", "int row(int) const { return 0; }", "int row(int) const { return 1; }"),
        (
            "first scales of a matrix skipped",
            "scale_row(int) const { return 0; }",
            "scale_row(int) const { return 32; }",
        ),
        ("rows beyond the matrix", ROWS_OF_TILE, "BLOCK_M", {"file": GROUPED}),
        ("last row of a matrix missing", "return num_rows;", "return num_rows - 1;"),
    ],
)

CAUGHT = [*SCHEDULE, *RING_OF_TILES, *OF_MASKED, *OF_DENSE]
