"""Device time of one launch: CUDA-graph replays with a cold L2, and the read bandwidth that bounds them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import record
import torch
import triton
import triton.language as tl

FLUSH_BYTES = 256 << 20  # four times the L2 of an H200
REPLAYS = 32  # of all instances together
INSTANCES = 4

Written = TypeVar("Written")


class Timer:
    """Median device time in microseconds. Before each replay the L2 is overwritten, which also gives the host time to
    enqueue the events and the graph behind it."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self._spread, self._replays = record.Spread(), set()

    def facts(self) -> dict[str, object]:
        """For the record: how all times so far were taken, and how far apart they lay."""
        return {"cold L2": f"{FLUSH_BYTES >> 20} MiB written before each replay", "captures": INSTANCES,
                "replays": ", ".join(map(str, sorted(self._replays))), **self._spread.facts()}

    def __call__(self, launch: Callable[[], object], replays: int = REPLAYS) -> float:
        return self.in_turn([launch], replays)[0]

    def in_turn(self, launches: Sequence[Callable[[], object]], replays: int = REPLAYS) -> list[float]:
        """Of several launches, replayed in turn, in an order drawn anew each time: what heats or slows the device meets
        them all alike. Each is captured ``INSTANCES`` times, since graphs of the same kernels differ by 1 to 3 us."""
        graphs = [(of, capture(launch)[0]) for of, launch in enumerate(launches) for _ in range(INSTANCES)]
        for _, graph in graphs * 3:
            graph.replay()
        spans, draw = [], random.Random(0)
        for _ in range(-(-replays // INSTANCES)):
            draw.shuffle(graphs)
            spans += [(of, *_span(graph, self._flush)) for of, graph in graphs]
        torch.cuda.synchronize()
        times: list[list[float]] = [[] for _ in launches]
        for of, begin, end in spans:
            times[of].append(begin.elapsed_time(end))
        self._replays |= set(map(len, times))
        return [self._spread.median(of_one) * 1000 for of_one in times]


def begin(**peers: str) -> tuple[dict[str, str], Timer, float]:
    """Environment with what there is to say of ``peers``, a timer and the read bandwidth in bytes a second, printed
    first. Clocks are those right behind the measurement of that."""
    timer = Timer()
    bandwidth = read_bandwidth(timer)
    found = record.environment() | peers
    print(found, f"read bandwidth {bandwidth / 1e12:.2f} TB/s", sep="\n", flush=True)
    return found, timer, bandwidth


def capture(launch: Callable[[], Written]) -> tuple[torch.cuda.CUDAGraph, Written]:
    """A launch as a graph, and what it gives, which each replay writes."""
    launch()  # whatever it compiles or loads
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = launch()
    return graph, written


def _span(graph: torch.cuda.CUDAGraph, flush: torch.Tensor) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    begin.record()
    graph.replay()
    end.record()
    return begin, end


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
