"""Loads, stores and atomics of a cohort, in every state space."""

from __future__ import annotations

import numpy as np

from ..checks.faults import EmulatorFault, MemoryFault
from ..checks.races import RaceFault
from ..numbers import floats
from .cohort import Cohort
from .memory import (
    ATOMICS,
    LOCAL_WINDOW,
    PARAM_WINDOW,
    RANK_SHIFT,
    SHARED_WINDOW,
    WINDOW_SHIFT,
    OutOfRegion,
    Region,
    atomic,
    gather,
    load_global,
    scatter,
    single_region_fault,
    store_global,
    unsigned,
)

_WINDOW_NAMES = {SHARED_WINDOW >> 56: "shared", LOCAL_WINDOW >> 56: "local", PARAM_WINDOW >> 56: "param"}


class MemoryOperations(Cohort):
    """Loads return unsigned integers [warps, 32] or [warps, 32, count]; masked-off lanes hold
    anything.
    """

    def _prepare(self, address: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, bool]:
        """Addresses whose inactive lanes repeat an active one; whether any lane is active."""
        if mask is None and self.alive is None:
            return address, True
        active = self.active(mask)
        first = active.argmax()
        if not active.flat[first]:
            return address, False
        return np.where(active, address, address.flat[first]), True

    def _zeros(self, size: int, count: int) -> np.ndarray:
        return np.zeros(self.shape if count == 1 else (*self.shape, count), unsigned(size))

    def load_global(self, address: np.ndarray, mask: np.ndarray | None, size: int, count: int, site: int) -> np.ndarray:
        address, some = self._prepare(address, mask)
        return load_global(self.cta.space, address, size, count, site) if some else self._zeros(size, count)

    load_const = load_global

    def load_shared(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, count: int, site: int = 0
    ) -> np.ndarray:
        address, some = self._prepare(address, mask)
        if not some:
            return self._zeros(size, count)
        if self.cta.races is not None:
            self.cta.races.read(*self.accesses(address, mask), size * count)
        region = self.cta.shared
        try:
            return gather(region, address, size, count)
        except OutOfRegion:
            pass
        result = self._zeros(size, count)
        for other, lanes in self._shared_by_rank(address):
            try:
                result[lanes] = gather(other, address[lanes], size, count)
            except OutOfRegion:
                raise self._located(single_region_fault(other, address[lanes], size * count, False), lanes) from None
        return result

    def load_local(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, count: int, site: int = 0
    ) -> np.ndarray:
        address, some = self._prepare(address, mask)
        return (
            self._load_single(self.cta.local, self._local(address), size, count) if some else self._zeros(size, count)
        )

    def load_param(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, count: int, site: int = 0
    ) -> np.ndarray:
        address, some = self._prepare(address, mask)
        if not some:
            return self._zeros(size, count)
        return self._load_single(self.launch.parameters, address.astype(np.uint64), size, count)

    def _load_single(self, region: Region, address: np.ndarray, size: int, count: int) -> np.ndarray:
        try:
            return gather(region, address, size, count)
        except OutOfRegion:
            raise single_region_fault(region, address, size * count, False) from None

    def load_generic(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, count: int, site: int
    ) -> np.ndarray:
        address, some = self._prepare(address, mask)
        if not some:
            return self._zeros(size, count)
        windows = address >> WINDOW_SHIFT
        if not np.count_nonzero(windows):
            return load_global(self.cta.space, address, size, count, site)
        result = self._zeros(size, count)
        loads = {
            "global": self.load_global, "shared": self.load_shared, "local": self.load_local, "param": self.load_param,
        }  # fmt: skip
        for name, lanes, inner in self._by_window(address, windows):
            value = loads[name](inner, lanes & self.active(mask), size, count, site)
            result[lanes] = value[lanes]
        return result

    def _by_window(self, address: np.ndarray, windows: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        found = []
        for window in np.unique(windows):
            lanes = windows == window
            name = "global" if not window else _WINDOW_NAMES.get(int(window))
            if name is None:
                raise MemoryFault("generic address in no state space", address=int(address[lanes][0]))
            inner = address - (window << WINDOW_SHIFT)
            found.append((name, lanes, inner.astype(np.uint32) if name == "shared" else inner))
        return found

    def _local(self, address: np.ndarray) -> np.ndarray:
        thread = self.warps[:, None].astype(np.uint64) * np.uint64(32) + np.arange(32, dtype=np.uint64)
        size = self.launch.local_size
        address = address.astype(np.uint64)
        if np.count_nonzero(address >= size):
            where = int(np.argmax(address >= size))
            raise MemoryFault(f"access outside local memory of {size} bytes", address=int(address.flat[where]))
        return address + thread * np.uint64(size)

    def _shared_by_rank(self, address: np.ndarray) -> list[tuple[Region, np.ndarray]]:
        ranks = address >> address.dtype.type(RANK_SHIFT)
        return [(self.cta.peer(int(rank)).shared, ranks == rank) for rank in np.unique(ranks)]

    def _located(self, fault: EmulatorFault, lanes: np.ndarray) -> EmulatorFault:
        """A fault found in compressed lanes: gives it back its warp and lane."""
        for row, lane in np.argwhere(lanes):
            fault.warp, fault.lane = int(row), int(lane)
            break
        return fault

    # Stores

    def store_global(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, values: list[np.ndarray], site: int
    ) -> None:
        if mask is not None or self.alive is not None:
            active = self.active(mask)
            address, values = address[active], [np.broadcast_to(v, self.shape)[active] for v in values]
            if not len(address):
                return
        store_global(self.cta.space, address, size, values, site)

    def store_shared(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, values: list[np.ndarray], site: int = 0
    ) -> None:
        if self.cta.races is not None:
            self._check_write(address, mask, size, values)
        if mask is not None or self.alive is not None:
            active = self.active(mask)
            address, values = address[active], [v[active] for v in values]
            if not len(address):
                return
        region = self.cta.shared
        try:
            return scatter(region, address, size, values)
        except OutOfRegion:
            pass
        for other, lanes in self._shared_by_rank(address):
            try:
                scatter(other, address[lanes], size, [v[lanes] for v in values])
            except OutOfRegion:
                raise single_region_fault(other, address[lanes], size * len(values), True) from None

    def _check_write(self, address: np.ndarray, mask: np.ndarray | None, size: int, values: list[np.ndarray]) -> None:
        try:
            self.cta.races.write(*self.accesses(address, mask), size * len(values))
        except RaceFault as fault:
            # Several warps may write one value: compilers' kernels have all warps store what is uniform.
            who, lanes, where = self.accesses(address, mask)
            data = np.stack([value[self.active(mask)] for value in values], -1).view(np.uint8)
            order = np.argsort(where, kind="stable")
            agree = (where[order][1:] != where[order][:-1]) | (data[order][1:] == data[order][:-1]).all(-1)
            region = self.cta.shared
            index = where.astype(np.int64)[:, None] - region.base + np.arange(data.shape[-1])
            inside = (index >= 0).all() and (index < region.size).all()
            if not (agree.all() and inside and (fault.together or (region.data[index] == data).all())):
                raise
            self.cta.races.write(who, lanes, where, size * len(values), same=True)

    def store_local(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, values: list[np.ndarray], site: int = 0
    ) -> None:
        address, some = self._prepare(address, mask)
        if not some:
            return
        active, address = self.active(mask), self._local(address)
        try:
            scatter(self.cta.local, address[active], size, [v[active] for v in values])
        except OutOfRegion:
            raise single_region_fault(self.cta.local, address[active], size * len(values), True) from None

    def store_generic(
        self, address: np.ndarray, mask: np.ndarray | None, size: int, values: list[np.ndarray], site: int
    ) -> None:
        address, some = self._prepare(address, mask)
        if not some:
            return
        windows = address >> WINDOW_SHIFT
        if not np.count_nonzero(windows):
            return self.store_global(address, mask, size, values, site)
        active = self.active(mask)
        stores = {"global": self.store_global, "shared": self.store_shared, "local": self.store_local}
        for name, lanes, inner in self._by_window(address, windows):
            if name == "param":
                raise MemoryFault("write to a parameter", address=int(address[lanes][0]))
            stores[name](inner, lanes & active, size, values, site)

    # Atomics

    def atomic(
        self, space: str, operation: str, kind: str, address: np.ndarray, mask: np.ndarray | None, b: np.ndarray,
        c: np.ndarray | None, site: int,
    ) -> np.ndarray:  # fmt: skip
        """Old values, as unsigned integers [warps, 32]."""
        active = self.active(mask)
        size = b.dtype.itemsize
        result = np.zeros(self.shape, b.dtype)
        if not active.any():
            return result
        address, _ = self._prepare(address, mask)
        groups = [(space, active, address)]
        if space == "generic":
            windows = address >> WINDOW_SHIFT
            groups = [(name, lanes & active, inner) for name, lanes, inner in self._by_window(address, windows)]
        apply = _atomic_operation(operation, kind)
        for name, lanes, inner in groups:
            where = inner[lanes]
            if name == "shared":
                load, store = self._shared_access(size)
            elif name == "global":
                space_ = self.cta.space
                load = lambda a: load_global(space_, a, size, 1, site)  # noqa: E731, B023
                store = lambda a, v: store_global(space_, a, size, [v], site)  # noqa: E731, B023
            else:
                raise MemoryFault(f"atomic operation on {name} memory", address=int(where[0]))
            result[lanes] = atomic(load, store, where, apply, b[lanes], None if c is None else c[lanes])
        return result

    def _shared_access(self, size: int) -> tuple:
        def load(address: np.ndarray) -> np.ndarray:
            result = np.zeros(address.shape, unsigned(size))
            for region, lanes in self._shared_by_rank(address):
                result[lanes] = self._load_single(region, address[lanes], size, 1)
            return result

        def store(address: np.ndarray, value: np.ndarray) -> None:
            for region, lanes in self._shared_by_rank(address):
                scatter(region, address[lanes], size, [value[lanes]])

        return load, store

    # Addresses

    def is_space(self, space: str, address: np.ndarray) -> np.ndarray:
        window = address >> WINDOW_SHIFT
        match space.split("::")[0]:
            case "global":
                return window == 0
            case "shared":
                inside = window == np.uint64(SHARED_WINDOW >> 56)
                if space == "shared::cluster":
                    return inside
                rank = (address >> np.uint64(RANK_SHIFT)) & np.uint64(0xFF)
                return inside & (rank == np.uint64(self.cta.rank))
            case "local":
                return window == np.uint64(LOCAL_WINDOW >> 56)
            case "param":
                return window == np.uint64(PARAM_WINDOW >> 56)
            case _:
                return np.zeros(self.shape, bool)

    def to_shared(self, address: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Shared addresses (uint32) of generic ones."""
        address, some = self._prepare(address, mask)
        if some and np.count_nonzero((address >> WINDOW_SHIFT) != np.uint64(SHARED_WINDOW >> 56)):
            raise MemoryFault("generic address that is not in shared memory", address=int(address.flat[0]))
        return address.astype(np.uint32)

    def map_rank(self, address: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """mapa: the same byte of another CTA; a rank that the cluster lacks faults when the address is used."""
        kind = address.dtype.type
        return (address & kind((1 << RANK_SHIFT) - 1)) | (rank.astype(kind) << kind(RANK_SHIFT))

def _atomic_operation(operation: str, kind: str) -> object:
    base = ATOMICS[operation]
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        if operation not in ("add", "min", "max"):
            raise MemoryFault(f"atom.{operation}.{kind} does not exist")
        half = kind.removesuffix("x2")

        def apply(old: np.ndarray, b: np.ndarray, _: object) -> np.ndarray:
            x, y = old[:, None].view(np.uint16), b[:, None].view(np.uint16)
            if operation == "add":
                value = floats.half_binary("add", half, x, y)
            else:
                value = floats.half_minmax(operation, half, x, y, False, False)
            return np.ascontiguousarray(value).view(old.dtype)[:, 0]

        return apply
    numpy = {"s": "i", "f": "f"}.get(kind[0], "u")
    view = np.dtype(f"{numpy}{int(kind[1:]) // 8}")

    def apply_typed(old: np.ndarray, b: np.ndarray, c: np.ndarray | None) -> np.ndarray:
        value = base(old.view(view), b.view(view), None if c is None else c.view(view))
        return np.ascontiguousarray(value, view).view(old.dtype)

    return apply_typed
