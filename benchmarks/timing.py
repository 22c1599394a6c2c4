"""Device time of one launch: CUDA-graph replays with a cold L2, and the read bandwidth that bounds them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import triton
import triton.language as tl

FLUSH_BYTES = 256 << 20  # four times the L2 of an H200
REPLAYS = 30


class Timer:
    """Median device time in microseconds. ``launch`` is captured once; before each replay the L2 is overwritten, which
    also gives the host time to enqueue the events and the graph behind it."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def __call__(self, launch: Callable[[], object], replays: int = REPLAYS) -> float:
        launch()  # whatever it compiles or loads
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        begins, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(replays)] for _ in range(2))
        for _ in range(3):
            graph.replay()
        for begin, end in zip(begins, ends, strict=True):
            self._flush.zero_()
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in zip(begins, ends, strict=True)) * 1000


@triton.jit
def _read(source, sink, num_words, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.int32)
    for start in range(tl.program_id(0) * BLOCK, num_words, tl.num_programs(0) * BLOCK):
        total ^= tl.load(source + start.to(tl.int64) + tl.arange(0, BLOCK))
    # Keeps the loads alive; random words practically never fold to this.
    tl.store(sink + tl.arange(0, BLOCK), total, mask=total == 0x5EED)


def read_bandwidth(timer: Timer) -> float:
    """Bytes per second of a kernel that only reads 1 GiB."""
    source = torch.randint(0, 1 << 30, (1 << 28,), dtype=torch.int32, device="cuda")
    sink = torch.empty(4096, dtype=torch.int32, device="cuda")
    programs = 4 * torch.cuda.get_device_properties(0).multi_processor_count
    microseconds = timer(lambda: _read[(programs,)](source, sink, source.numel(), BLOCK=4096, num_warps=8))
    return source.nbytes / microseconds * 1e6
