"""Grids that start before the one in front of them has ended: what they touch before griddepcontrol.wait."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
from ptx import module

import emulator
from emulator.machine.dependence import EarlySpace
from emulator.machine.memory import Region, Space
from loader import emulated, listing, registry

WAIT, ALLOW = "griddepcontrol.wait;", "griddepcontrol.launch_dependents;"


def copying(*statements: str) -> str:
    """PTX that copies a word of p0 to p1 at the statement "copy"."""
    copy = "ld.global.u32 %r0, [%in0]; st.global.u32 [%out], %r0;"
    body = " ".join(copy if statement == "copy" else statement for statement in statements)
    return module(f"ld.param.u64 %in0, [p0]; ld.param.u64 %out, [p1]; {body}", 2)


class Stream:
    """Four words on one device; each launch copies from one to another."""

    def __init__(self) -> None:
        self.device = emulator.Device("90a")
        self.words = [np.array([value], np.uint32) for value in range(4)]

    def __call__(self, source: int, target: int, *statements: str, programmatic: bool = True) -> None:
        loaded, mapped = emulator.load(copying(*statements)), {source: False, target: True}
        for word, writable in mapped.items():
            self.device.map_buffer(self.words[word].ctypes.data, 4, writable, f"word {word}")
        addresses = struct.pack("<2Q", *(self.words[word].ctypes.data for word in (source, target)))
        self.device.launch(loaded, "kernel", (1,), (1,), (1,), 0, addresses, programmatic)
        for word in mapped:
            self.device.unmap_buffer(self.words[word].ctypes.data)


@pytest.fixture
def stream() -> Stream:
    return Stream()


def test_reading_too_early(stream: Stream) -> None:
    """What the grid before writes."""
    stream(0, 1, WAIT, ALLOW, "copy")
    with pytest.raises(emulator.DependenceFault, match="4 bytes to word 1, where a grid before this one may still"):
        stream(1, 2, "copy", WAIT)


@pytest.mark.parametrize("target", [0, 1], ids=["read", "written"])
def test_writing_too_early(stream: Stream, target: int) -> None:
    """What the grid before reads or writes."""
    stream(0, 1, WAIT, ALLOW, "copy")
    with pytest.raises(emulator.MemoryFault, match=f"word {target}.*griddepcontrol.wait"):
        stream(3, target, "copy", WAIT)


def test_in_time(stream: Stream) -> None:
    """After the wait; before it, what the grid before does not touch, and what it only reads."""
    stream(0, 1, WAIT, ALLOW, "copy")
    stream(1, 2, WAIT, ALLOW, "copy")
    stream(0, 3, "copy", WAIT, ALLOW)
    stream(3, 1, WAIT, "copy")
    assert [int(word[0]) for word in stream.words] == [0, 0, 0, 0]


@pytest.mark.parametrize("before", [(WAIT, ALLOW), (ALLOW, WAIT)], ids=["waits, then allows", "allows, then waits"])
def test_the_grid_before_the_previous_one(stream: Stream, before: tuple[str, str]) -> None:
    """It is over if the previous one let this one start only after its own wait."""
    stream(0, 1, WAIT, ALLOW, "copy")
    stream(0, 2, *before, "copy")
    if before[0] == WAIT:
        stream(1, 3, "copy", WAIT)
        assert stream.words[3] == 0
    else:
        with pytest.raises(emulator.DependenceFault, match="word 1"):
            stream(1, 3, "copy", WAIT)


def test_grids_that_do_not_overlap(stream: Stream) -> None:
    """Without the launch attribute, or where the grid before lets none start before it ends, nobody need wait."""
    stream(0, 1, WAIT, ALLOW, "copy")
    stream(1, 2, "copy", programmatic=False)
    stream(2, 3, "copy")
    assert [int(word[0]) for word in stream.words] == [0, 0, 0, 0]


@pytest.mark.parametrize("writable, reached", [(True, range(4, 12)), (False, range(12))])
def test_pieces_of_a_buffer(writable: bool, reached: range) -> None:
    """Of a buffer that a grid before used in parts, what it may write is out of reach, and what it reads read-only."""
    memory = np.zeros(12, np.uint32)

    def region(first: int, last: int, writable: bool) -> Region:
        part = memory[first:last].view(np.uint8)
        return Region(f"words {first} to {last}", part.ctypes.data, part, writable)

    space = Space()
    space.map(region(0, 12, True))
    early = EarlySpace(space, [region(0, 4, writable), region(8, 10, False)])
    for word in range(12):
        address = memory[word:].ctypes.data
        if word not in reached:
            with pytest.raises(emulator.DependenceFault, match="words 0 to 12, where a grid before"):
                early.find(address, 4)
            continue
        found = early.find(address, 4)
        assert found.writable == (word not in (*range(4), 8, 9))
        found.bytes_at(address, 4).view(np.uint32)[:] = word
        assert memory[word] == word
    with pytest.raises(emulator.DependenceFault):
        early.find(memory[3:].ctypes.data, 8)  # over the edge of a piece


# The kernels


def test_every_kernel_waits_before_it_lets_the_next_one_start(packs: list[str] | None) -> None:
    """In the order of the text, of every artifact."""
    found = registry.registry(packs)
    candidates = [candidate for family in found.families for candidate in found.candidates(family)]
    assert candidates
    for candidate in candidates:
        text = listing.ptx_text(candidate)
        assert -1 < text.find(WAIT) < text.find(ALLOW), candidate.artifact.symbol


LAYER = ("moe_gather_quantize", "grouped_fp4_swiglu", "grouped_fp4", "moe_combine")


def without(pattern: str) -> Callable[[str], str]:
    """PTX without the statements that match, of which there is one at least."""

    def change(text: str) -> str:
        changed, count = re.subn(pattern, "", text)
        assert count
        return changed

    return change


def allows_first(text: str) -> str:
    """PTX that lets the next grid start before its own wait."""
    assert text.count(WAIT) == 1
    return text.replace(ALLOW, "").replace(WAIT, f"{ALLOW} {WAIT}")


FAULTS = {
    **{f"{arch} {kernel} does not wait": (arch, kernel, without(re.escape(WAIT)))
       for arch in ("90a", "100a", "120a") for kernel in LAYER},
    "90a L1 starts before the routing is there": ("90a", "moe_gather_quantize", allows_first),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")
@pytest.mark.usefixtures("few_multiprocessors")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_layer_that_does_not_wait(
    fault: str, packs: list[str] | None, reschedule: Callable[[], str], rng: np.random.Generator
) -> None:
    """A kernel of moe_fp4 that reads what the step before writes, or the one before that, is found out."""
    torch = pytest.importorskip("torch")
    import moe_reference as moe

    import loader

    arch, kernel, change = FAULTS[fault]
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    layer, tokens = moe.random_layer(generator, 5, 96, 64), moe.random_tokens(generator, 9, 2, 5, 96)
    original = listing.ptx_text

    def planted(candidate: object) -> str:
        text = original(candidate)
        return change(text) if candidate.artifact.family == kernel else text

    launch = functools.partial(loader.launch, "moe_fp4", **tokens._asdict(), **layer.arguments,
                               out=torch.empty_like(tokens.x), device=f"emulated:{arch}", packs=packs)  # fmt: skip
    with mock.patch.object(listing, "ptx_text", planted), mock.patch.object(emulated, "_modules", {}):
        with pytest.raises(loader.EmulatedFaultError, match="griddepcontrol.wait") as raised:
            for _ in range(8):  # schedules: what is told to wait late may still come in time
                reschedule()
                launch()
    assert isinstance(raised.value.__cause__, emulator.MemoryFault)
