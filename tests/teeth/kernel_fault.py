"""What a fault in a kernel is, and what the lists of them share: names of files, and problems."""

from __future__ import annotations

from dataclasses import dataclass

from launches import Problem
from planting import Kernel

MBARRIER, LDMATRIX, WGMMA, TCGEN05 = (f"ptx/{name}.cuh" for name in ("mbarrier", "ldmatrix", "wgmma", "tcgen05"))
OUTPUT, FP4 = "number/output.cuh", "number/fp4.cuh"
GROUPED, SCAN, RING, TILE = (f"schedule/{name}.cuh" for name in ("grouped", "scan", "ring", "tile"))
OFFSETS, MASKED, DENSE = (f"schedule/{name}.cuh" for name in ("offsets", "masked", "dense"))
LOAD_ROLE, LOADER, SOURCES = "kernel/load_role.cuh", "mainloop/loader.cuh", "mainloop/sources.cuh"
WEIGHT_ROWS = "layout/weight_rows.cuh"


LOADER_WAIT = "mbarrier::wait(&shared_.empty[ring_.stage], ring_.parity ^ 1);\n                    load_weights"
LOADER_BYTES = "arrive_expect_tx(&shared_.full[stage], Mainloop::BYTES_PER_STAGE)"
WEIGHT_BATCH = "ATOM_ROWS, matrix(tile));"


@dataclass(frozen=True)
class Fault:
    """A replacement in a file under templates/, and the kernel and problem that show it."""

    name: str
    file: str
    old: str
    new: str
    kernel: Kernel
    problem: Problem
    reason: str = ""  # why it is not caught

    @property
    def id(self) -> str:
        return f"{self.kernel.arch}-{self.name}".replace(" ", "_")


# Empty experts, one row, a row tile and some rows, nearly a row tile; tails of N and K; K ends inside a word of scales.
NARROW = Problem((0, 1, 11, 0, 7, 0), 136, 608)
SMALL = Problem((0, 1, 11, 0, 7, 0), 136, 352)
TAILS = Problem((0, 1, 19, 0, 15, 0), 136, 352)
MIDDLE = Problem((0, 1, 19, 0, 15, 0), 136, 608)
WHOLE = Problem((3, 9), 128, 512)  # K fills its blocks
LONG = Problem((0, 43, 0, 7), 24, 96)  # rows beyond the first 32 of a scale block
BLOCKS = Problem((0, 137, 3), 8, 96)  # rows beyond the first scale block
MANY = Problem((1,) * 40, 8, 32)  # more experts than lanes
WIDE_TILE = Problem((0, 1, 259, 0, 120, 0), 136, 352)


def planted(file: str, kernel: Kernel, problem: Problem, faults: list[tuple]) -> list[Fault]:
    """Faults (name, old, new, and what differs: file, kernel, problem or reason) of one kernel."""
    found = []
    for name, old, new, *rest in faults:
        different = rest[0] if rest else {}
        found.append(Fault(name, old=old, new=new, **{"file": file, "kernel": kernel, "problem": problem} | different))
    return found
