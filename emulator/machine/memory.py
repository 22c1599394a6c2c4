"""State spaces: host buffers, shared, local and parameter memory, and the windows of the generic address space.

Global device addresses are host addresses. Generic addresses of the other spaces lie in windows above all of them.
A shared address has the CTA's rank in its cluster in bits 24 and up, so that a shared::cta address is also the
shared::cluster address of the same byte; the first 1024 bytes are reserved, as on hardware.

Accesses are vectors: an integer array of addresses, one a lane, and an optional mask. They return unsigned integers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from ..checks.faults import EmulatorFault, MemoryFault, UninitializedRead, UnsupportedInstruction

SHARED_WINDOW = 1 << 56
LOCAL_WINDOW = 1 << 57
PARAM_WINDOW = 1 << 58
WINDOW_SHIFT = np.uint64(56)
RANK_SHIFT = 24
RESERVED_SHARED = 1024

UNWRITTEN, WRITTEN, IN_FLIGHT = 0, 1, 2
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_ANY_IN_FLIGHT = {size: kind(int.from_bytes(bytes([IN_FLIGHT] * size), "little")) for size, kind in _UNSIGNED.items()}
_ALL_WRITTEN = {size: kind(int.from_bytes(bytes([WRITTEN] * size), "little")) for size, kind in _UNSIGNED.items()}


def host_bytes(pointer: int, size: int) -> np.ndarray:
    """Host memory in place, as uint8."""
    if not size:
        return np.zeros(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), np.uint8)


class Region:
    """A contiguous piece of one state space. `valid` holds, per byte, UNWRITTEN, WRITTEN or IN_FLIGHT where that is
    tracked.
    """

    def __init__(self, name: str, base: int, data: np.ndarray, writable: bool = True, valid: np.ndarray | None = None):
        self.name, self.base, self.data, self.writable, self.valid = name, base, data, writable, valid
        self.size = len(data)
        self._views: dict[int, tuple] = {}

    def view(self, size: int, count: int) -> tuple:
        """(elements, origin address, index shift, misalignment mask, valid bytes): the part that aligned accesses
        can reach.
        """
        key = size << 8 | count
        found = self._views.get(key)
        if found is None:
            width = size * count
            low = -self.base % width
            high = max(low, low + (self.size - low) // width * width)
            shape = (-1, count) if count > 1 else (-1,)
            elements = self.data[low:high].view(_UNSIGNED[size]).reshape(shape)
            valid = None if self.valid is None else self.valid[low:high].view(_UNSIGNED[size]).reshape(shape)
            found = self._views[key] = (elements, self.base + low, width.bit_length() - 1, width - 1, valid)
        return found

    def contains(self, address: int, size: int) -> bool:
        return self.base <= address and address + size <= self.base + self.size

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        offset = address - self.base
        if offset < 0 or offset + size > self.size:
            raise MemoryFault(f"{size} bytes are not inside {self.name}, {self.size} bytes at {self.base:#x}",
                              address=address)  # fmt: skip
        return self.data[offset : offset + size]

    def mark(self, address: int, size: int, state: int) -> None:
        if self.valid is not None:
            self.valid[address - self.base : address - self.base + size] = state


class OutOfRegion(Exception):
    """Some lane's access is not inside the region."""


def gather(region: Region, address: np.ndarray, size: int, count: int) -> np.ndarray:
    elements, origin, shift, low_bits, valid = region.view(size, count)
    kind = address.dtype.type
    offset = address - kind(origin & 0xFFFFFFFF if kind is np.uint32 else origin)
    if low_bits and np.count_nonzero(offset & kind(low_bits)):
        raise OutOfRegion
    index = (offset >> kind(shift)).astype(np.int64)
    if not shift and kind is np.uint64 and np.count_nonzero(index < 0):
        raise OutOfRegion
    try:
        result = elements[index]
        if valid is not None and np.count_nonzero(valid[index] != _ALL_WRITTEN[size]):
            _report_unwritten(region, address, size, count, valid[index])
    except IndexError:
        raise OutOfRegion from None
    return result


def scatter(region: Region, address: np.ndarray, size: int, values: list[np.ndarray]) -> None:
    count = len(values)
    elements, origin, shift, low_bits, valid = region.view(size, count)
    kind = address.dtype.type
    offset = address - kind(origin & 0xFFFFFFFF if kind is np.uint32 else origin)
    if not region.writable or low_bits and np.count_nonzero(offset & kind(low_bits)):
        raise OutOfRegion
    index = (offset >> kind(shift)).astype(np.int64)
    if not shift and kind is np.uint64 and np.count_nonzero(index < 0):
        raise OutOfRegion
    try:
        if valid is not None and np.count_nonzero(valid[index] & _ANY_IN_FLIGHT[size]):
            _report_in_flight(region, address, size, count, valid[index])
        elements[index] = values[0] if count == 1 else np.stack(values, -1)
        if valid is not None:
            valid[index] = _ALL_WRITTEN[size]
    except IndexError:
        raise OutOfRegion from None


def _report_unwritten(region: Region, address: np.ndarray, size: int, count: int, valid: np.ndarray) -> None:
    flags = (valid != _ALL_WRITTEN[size]).reshape(address.shape + (count,) if count > 1 else address.shape)
    lanes = flags.any(-1) if count > 1 else flags
    where = np.unravel_index(int(np.argmax(lanes)), address.shape)
    first = int(address[where])
    octets = region.valid[first - region.base : first - region.base + size * count]
    what = "an asynchronous write is in flight" if (octets == IN_FLIGHT).any() else "nothing has written"
    raise UninitializedRead(f"read of {size * count} bytes of {region.name} that {what}", address=first, **_lane(where))


def _report_in_flight(region: Region, address: np.ndarray, size: int, count: int, valid: np.ndarray) -> None:
    flags = (valid & _ANY_IN_FLIGHT[size]) != 0
    where = np.unravel_index(int(np.argmax(flags.any(-1) if count > 1 else flags)), address.shape)
    message = f"write of {size * count} bytes to {region.name} while an asynchronous write to them is in flight"
    raise MemoryFault(message, address=int(address[where]), check="unwritten", **_lane(where))


def _lane(where: tuple) -> dict[str, int]:
    return {"warp": int(where[0]), "lane": int(where[1])} if len(where) == 2 else {}


class Space:
    """Global memory: the mapped buffers, found by address."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.recent: dict[int, Region] = {}

    def map(self, region: Region) -> None:
        for other in self.regions:
            if region.base < other.base + other.size and other.base < region.base + region.size:
                if (other.base, other.size) == (region.base, region.size):
                    raise MemoryFault(f"{region.name} is already mapped as {other.name}", address=region.base)
                raise MemoryFault(f"{region.name} overlaps {other.name}", address=region.base)
        self.regions.append(region)
        self.recent.clear()

    def unmap(self, pointer: int) -> None:
        kept = [region for region in self.regions if region.base != pointer]
        if len(kept) == len(self.regions):
            raise MemoryFault("no buffer is mapped at this address", address=pointer)
        self.regions = kept
        self.recent.clear()

    def find(self, address: int, size: int = 1) -> Region:
        for region in self.regions:
            if region.contains(address, size):
                return region
        raise MemoryFault(self._why(address, size), address=address)

    def _why(self, address: int, size: int) -> str:
        if address == 0:
            return f"access of {size} bytes through a null pointer"
        near = min(self.regions, key=lambda r: min(abs(address - r.base), abs(address - r.base - r.size)), default=None)
        if near is None:
            return f"access of {size} bytes to global memory, but no buffer is mapped"
        return (
            f"access of {size} bytes outside every buffer: nearest is {near.name}, {near.size} bytes at "
            f"{near.base:#x}, offset {address - near.base}"
        )

    def each_region(
        self, address: np.ndarray, width: int, write: bool, act: Callable[[Region, np.ndarray], None]
    ) -> None:
        """Calls `act` with every region and the mask of the lanes in it; faults on the first lane that is in none."""
        rest = np.ones(address.shape, bool)
        while rest.any():
            where = np.unravel_index(int(np.argmax(rest)), address.shape)
            first = int(address[where])
            try:
                region = self.find(first, width)
                if first % width:
                    raise MemoryFault(f"access of {width} bytes to {region.name} is not aligned", address=first)
                if write and not region.writable:
                    raise MemoryFault(f"write to {region.name}, which is read-only", address=first)
            except MemoryFault as fault:
                raise _at(fault, where) from None
            low, high = np.uint64(region.base), np.uint64(region.base + region.size - width)
            inside = rest & (address >= low) & (address <= high) & (address % np.uint64(width) == 0)
            act(region, inside)
            rest &= ~inside


def _at(fault: EmulatorFault, where: tuple) -> EmulatorFault:
    if len(where) == 2:
        fault.warp, fault.lane = int(where[0]), int(where[1])
    return fault


def load_global(space: Space, address: np.ndarray, size: int, count: int, site: int) -> np.ndarray:
    region = space.recent.get(site)
    if region is not None:
        try:
            return gather(region, address, size, count)
        except OutOfRegion:
            pass
    result = np.zeros(address.shape + ((count,) if count > 1 else ()), _UNSIGNED[size])

    def act(region: Region, inside: np.ndarray) -> None:
        result[inside] = gather(region, address[inside], size, count)
        space.recent[site] = region

    space.each_region(address, size * count, False, act)
    return result


def store_global(space: Space, address: np.ndarray, size: int, values: list[np.ndarray], site: int) -> None:
    region = space.recent.get(site)
    if region is not None:
        try:
            return scatter(region, address, size, values)
        except OutOfRegion:
            pass

    def act(region: Region, inside: np.ndarray) -> None:
        scatter(region, address[inside], size, [value[inside] for value in values])
        space.recent[site] = region

    space.each_region(address, size * len(values), True, act)


def single_region_fault(region: Region, address: np.ndarray, width: int, write: bool) -> MemoryFault:
    """The fault of the first lane that is outside a region, misaligned, or writes where it must not."""
    numbers = address.astype(np.int64)
    bad = (numbers < region.base) | (numbers > region.base + region.size - width) | (numbers % width != 0)
    where = np.unravel_index(int(np.argmax(bad)), address.shape)
    first = int(numbers[where])
    if not bad.any():
        return MemoryFault(f"write to {region.name}, which is read-only", address=first)
    if region.contains(first, width):
        message = f"access of {width} bytes to {region.name} is not aligned"
    else:
        verb = "write" if write else "read"
        message = f"{verb} of {width} bytes outside {region.name}, {region.size} bytes at {region.base:#x}"
    return _at(MemoryFault(message, address=first), where)


# Atomic operations


def _clamped_increment(old: np.ndarray, b: np.ndarray, _: np.ndarray | None) -> np.ndarray:
    return np.where(old >= b, old.dtype.type(0), old + old.dtype.type(1))


def _clamped_decrement(old: np.ndarray, b: np.ndarray, _: np.ndarray | None) -> np.ndarray:
    return np.where((old == 0) | (old > b), b, old - old.dtype.type(1))


ATOMICS: dict[str, Callable] = {
    "add": lambda old, b, c: old + b,
    "min": lambda old, b, c: np.minimum(old, b),
    "max": lambda old, b, c: np.maximum(old, b),
    "and": lambda old, b, c: old & b,
    "or": lambda old, b, c: old | b,
    "xor": lambda old, b, c: old ^ b,
    "exch": lambda old, b, c: np.broadcast_to(b, old.shape),
    "cas": lambda old, b, c: np.where(old == b, c, old),
    "inc": _clamped_increment,
    "dec": _clamped_decrement,
}


def atomic(
    load: Callable[[np.ndarray], np.ndarray],
    store: Callable[[np.ndarray, np.ndarray], None],
    address: np.ndarray,
    operation: Callable,
    b: np.ndarray,
    c: np.ndarray | None,
) -> np.ndarray:
    """One read-modify-write a lane on 1-D `address`; lanes of equal address go one after another. Returns the old
    values.
    """
    old = np.zeros(address.shape, b.dtype)
    rest = np.arange(len(address))
    while len(rest):
        _, first = np.unique(address[rest], return_index=True)
        turn = rest[first]
        value = load(address[turn])
        old[turn] = value
        store(address[turn], operation(value, b[turn], None if c is None else c[turn]))
        rest = np.delete(rest, first)
    return old


def unsigned(size: int) -> type:
    try:
        return _UNSIGNED[size]
    except KeyError:
        raise UnsupportedInstruction(f"memory accesses of {size} bytes an element are not implemented") from None
