"""Asynchronous copies of a cohort: cp.async, cp.async.bulk, its tensor forms, st.async, and their completion (PTX
ISA 9.7.9.25).

A copy is posted as an operation and carried out later, at a point that the seed decides; until then the destination
holds poison and is marked as in flight.
"""

from __future__ import annotations

import numpy as np

from ..checks.faults import MemoryFault, UninitializedRead, UnsupportedInstruction
from ..checks.races import NONE, joined
from ..machine.barriers import MBarrier
from ..machine.cta import Cta, Unit
from ..machine.memory import (
    IN_FLIGHT,
    LOCAL_WINDOW,
    PARAM_WINDOW,
    SHARED_WINDOW,
    UNWRITTEN,
    WRITTEN,
    Region,
)
from ..machine.operation import Operation
from ..machine.synchronization import SynchronizationOperations
from ..machine.waits import GroupWait
from . import tma

POISON = 0xFF


class CopyGroups(Unit):
    """Groups of asynchronous copies, of each thread.

    `copies` are those of cp.async that are not known to be done: the operation, its threads and the group of each.
    """

    def __init__(self, cta: Cta):
        super().__init__(cta)
        self.copies: list[tuple[Operation, np.ndarray, np.ndarray]] = []
        self.open = np.zeros(cta.launch.warps * 32, np.int64)  # number of the group that a thread has not committed
        self.bulk: dict[int, list[list[Operation]]] = {}  # thread -> its groups, the last one open


class CopyOperations(SynchronizationOperations):
    @property
    def _copy_groups(self) -> CopyGroups:
        return self.cta.unit(CopyGroups)

    # Shared memory as asynchronous operations see it

    def _shared(self, address: int) -> Region:
        owner = self.cta.peer(address >> 24)
        if not owner.alive.any():
            raise MemoryFault(
                f"asynchronous access to shared memory of CTA {owner.index}, which has exited", address=address
            )
        return owner.shared

    def _poison(self, address: int, size: int, alignment: int) -> np.ndarray:
        """Marks a destination as in flight; returns its bytes."""
        region = self._shared(address)
        if address % alignment:
            raise MemoryFault(f"destination of {size} bytes is not a multiple of {alignment}", address=address)
        data = region.bytes_at(address, size)
        if region.valid is not None:
            self._check_not_in_flight(region.valid[address - region.base :][:size], address)
        data[:] = POISON
        region.mark(address, size, IN_FLIGHT)
        return data

    def _poison_lanes(self, region: Region, places: np.ndarray, size: int, name: str) -> np.ndarray:
        """Marks the destination of each lane as in flight; returns where its bytes are in the region, [lanes, size]."""
        index = places.astype(np.int64)[:, None] - region.base + np.arange(size)
        if (places % size).any() or (index < 0).any() or (index >= region.size).any():
            raise MemoryFault(f"{name} of {size} bytes: destination outside shared memory or not aligned",
                              address=int(places[0]))  # fmt: skip
        if region.valid is not None:
            self._check_not_in_flight(region.valid[index].reshape(-1), int(places[0]))
            region.valid[index] = IN_FLIGHT
        region.data[index] = POISON
        return index

    def _check_not_in_flight(self, valid: np.ndarray, address: int) -> None:
        if (valid == IN_FLIGHT).any():
            raise MemoryFault(
                "asynchronous write to shared memory while another one to it is in flight", address=address,
                check="unwritten",
            )  # fmt: skip

    def _read_shared(self, address: int, size: int) -> np.ndarray:
        return self._written(self._shared(address), address, size)

    def _read_source(self, address: int, size: int) -> np.ndarray:
        """What a bulk store reads, which it may while the CTA executes: that is what owns shared memory (5.1.7)."""
        if "exit" in self.device.checks and not self.cta.alive.any():
            raise MemoryFault(
                f"bulk store from shared memory of CTA {self.cta.index}, which has exited without "
                "cp.async.bulk.wait_group.read",
                address=address,
                check="exit",
            )
        return self._written(self.cta.shared, address, size)

    def _written(self, region: Region, address: int, size: int) -> np.ndarray:
        data = region.bytes_at(address, size)
        if region.valid is not None:
            state = region.valid[address - region.base : address - region.base + size]
            if (state != WRITTEN).any():
                first = int(np.argmax(state != WRITTEN))
                what = "nothing has written" if state[first] == UNWRITTEN else "an asynchronous write is in flight to"
                raise UninitializedRead(f"asynchronous read of shared memory that {what}", address=address + first)
        return data

    # cp.async

    def copy_async(
        self, into: np.ndarray, out: np.ndarray, mask: np.ndarray | None, size: int, taken: np.ndarray | None, site: int
    ) -> None:
        active = self.active(mask)
        if not active.any():
            return
        threads = self._threads()[active]
        destination, source = into[active].astype(np.int64), out[active]
        count = None if taken is None else np.minimum(np.broadcast_to(taken, self.shape)[active], size)
        region = self.cta.shared
        index = self._poison_lanes(region, destination, size, "cp.async")
        space = self.cta.space
        if self.cta.races is not None:
            # No proxy fence is asked for: compilers' kernels feed tcgen05 by cp.async without one.
            who, _, where = self.accesses(into, mask)
            self.cta.races.write(who, NONE, where, size, generic=False)

        def run() -> None:
            data = np.zeros((len(source), size), np.uint8)
            wanted = np.ones(len(source), bool) if count is None else count > 0
            for where in np.flatnonzero(wanted):
                octets = size if count is None else int(count[where])
                begin = int(source[where])
                if begin % size:
                    raise MemoryFault(f"source of cp.async is not a multiple of {size}", address=begin)
                data[where, :octets] = space.find(begin, octets).bytes_at(begin, octets)
            region.data[index] = data
            if region.valid is not None:
                region.valid[index] = WRITTEN

        operation = self.launch.operation("cp.async", self.cta, [run])
        groups = self._copy_groups
        groups.copies.append((operation, threads, groups.open[threads]))
        self.launch.post(operation)

    def _threads(self) -> np.ndarray:
        return self.warps[:, None] * 32 + np.arange(32)

    def copy_commit(self, mask: np.ndarray | None) -> None:
        self._copy_groups.open[self._threads()[self.active(mask)]] += 1

    def on_copy_wait(self, mask: np.ndarray | None, count: int, everything: bool = False) -> GroupWait | None:
        threads = self._threads()[self.active(mask)]
        groups = self._copy_groups
        limit = np.full(len(groups.open), -1, np.int64)
        limit[threads] = groups.open[threads] - (0 if everything else 1 + count)

        def pending() -> bool:
            groups.copies = [entry for entry in groups.copies if not entry[0].done]
            return any((numbers <= limit[members]).any() for _, members, numbers in groups.copies)

        return GroupWait(self.cta, "cp.async groups", pending) if pending() else None

    def copy_arrive(self, address: np.ndarray, mask: np.ndarray | None, noinc: bool) -> None:
        """cp.async.mbarrier.arrive: an arrival when the copies that each thread issued before are complete."""
        for where, lanes in self._by_address(address, mask):
            barrier = self.mbarrier(where)
            threads = self._threads()[lanes]
            copies = self._copy_groups.copies
            before = [op for op, members, _ in copies if not op.done and np.isin(members, threads).any()]
            count = len(threads)
            if not noinc:
                barrier.pending += count
            if self.cta.races is not None:
                barrier.arriving = joined(barrier.arriving, self.cta.races.release(self.agents(lanes)))
            operation = self.launch.operation(
                "cp.async.mbarrier.arrive", self.cta, [lambda b=barrier, n=count: b.arrive(n)], before
            )
            self.launch.post(operation)

    # Bulk groups

    def _bulk_thread(self, row: int, lane: int) -> list:
        return self._copy_groups.bulk.setdefault(int(self.warps[row]) * 32 + lane, [[]])

    def bulk_commit(self, mask: np.ndarray | None) -> None:
        for row, lane in self.lanes(mask):
            self._bulk_thread(row, lane).append([])

    def on_bulk_wait(self, mask: np.ndarray | None, count: int, read: bool) -> GroupWait | None:
        groups: list[list[Operation]] = []
        for row, lane in self.lanes(mask):
            thread = self._copy_groups.bulk.get(int(self.warps[row]) * 32 + lane)
            if thread is None:
                continue
            committed = thread[:-1]
            groups += committed[: len(committed) - count] if count else committed
            done = 0  # groups complete in order: only finished ones before the first unfinished are forgotten
            while done < len(committed) and all(op.done for op in committed[done]):
                done += 1
            del thread[:done]
        operations = [op for group in groups for op in group]

        def pending() -> bool:
            return any(not (op.read_done if read else op.done) for op in operations)

        return GroupWait(self.cta, "cp.async.bulk groups", pending) if pending() else None

    # cp.async.bulk

    def bulk(
        self, direction: str, into: np.ndarray, out: np.ndarray, size: np.ndarray, barrier: np.ndarray | None,
        targets: np.ndarray | None, operation: str | None, kind: str | None, mask: np.ndarray | None,
    ) -> None:  # fmt: skip
        for row, lane in self.lanes(mask):
            octets = int(size[row, lane])
            destination, source = int(into[row, lane]), int(out[row, lane])
            if octets % 16 or destination % 16 or source % 16:
                raise MemoryFault(
                    f"bulk copy of {octets} bytes from {source:#x}: size and addresses must be multiples of 16",
                    address=destination, warp=row, lane=lane,
                )  # fmt: skip
            if direction == "shared_global":
                self._bulk_load(row, lane, destination, source, octets, int(barrier[row, lane]), targets)
            elif direction == "global_shared":
                self._bulk_store(row, lane, destination, source, octets, operation, kind)
            else:
                self._bulk_shared(destination, source, octets, int(barrier[row, lane]), operation, kind)

    def ranks(self, row: int, lane: int, address: int, targets: np.ndarray | None) -> list[int]:
        if targets is None:
            return [address >> 24]
        bits = int(targets[row, lane])
        ranks = [rank for rank in range(16) if bits >> rank & 1]
        if not ranks or ranks[-1] >= len(self.cta.cluster.ctas):
            raise UnsupportedInstruction(f"multicast to CTAs {ranks} of a cluster of {len(self.cta.cluster.ctas)}")
        return ranks

    def _bulk_load(
        self, row: int, lane: int, into: int, out: int, size: int, barrier: int, targets: np.ndarray | None
    ) -> None:
        space = self.cta.space
        for rank in self.ranks(row, lane, into, targets):
            own = into if targets is None else into & 0xFFFFFF | rank << 24
            signal = self.mbarrier(barrier if targets is None else barrier & 0xFFFFFF | rank << 24)
            self.asynchronous_write(row, own, size, barrier if targets is None else None)
            data = self._poison(own, size, 16)
            clock = self.issued(row)

            def run(data=data, own=own, signal=signal, clock=clock) -> None:
                data[:] = space.find(out, size).bytes_at(out, size)
                self._shared(own).mark(own, size, WRITTEN)
                signal.complete(size, clock)

            self.launch.post(self.launch.operation("cp.async.bulk", self.cta, [run]))
        self.launch.statistics.bytes_loaded += size

    def _bulk_store(
        self, row: int, lane: int, into: int, out: int, size: int, operation: str | None, kind: str | None
    ) -> None:
        held: list[np.ndarray] = []
        space = self.cta.space

        def read() -> None:
            held.append(self._read_source(out, size).copy())

        def write() -> None:
            region = space.find(into, size)
            if not region.writable:
                raise MemoryFault(f"write to {region.name}, which is read-only", address=into)
            target = region.bytes_at(into, size)
            if operation is None:
                target[:] = held[0]
            else:
                tma.combine(kind, operation, target, held[0])

        self.asynchronous_read(row, np.arange(out, out + size, 4))
        self._post_group(row, lane, "cp.async.bulk", [read, write])
        self.launch.statistics.bytes_stored += size

    def _post_group(self, row: int, lane: int, name: str, steps: list) -> None:
        operation = self.launch.operation(name, self.cta, steps)
        self._bulk_thread(row, lane)[-1].append(operation)
        self.launch.post(operation)

    def _bulk_shared(
        self, into: int, out: int, size: int, barrier: int, operation: str | None, kind: str | None
    ) -> None:
        signal = self.mbarrier(barrier)
        data = self._shared(into).bytes_at(into, size) if operation else self._poison(into, size, 16)

        def run() -> None:
            source = self._read_shared(out, size)
            if operation is None:
                data[:] = source
            else:
                tma.combine(kind, operation, data, source)
            self._shared(into).mark(into, size, WRITTEN)
            signal.complete(size)

        self.launch.post(self.launch.operation("cp.async.bulk", self.cta, [run]))

    def store_async(
        self, address: np.ndarray, barrier: np.ndarray, mask: np.ndarray | None, size: int, values: list[np.ndarray]
    ) -> None:
        """What the lanes of a warp store to one CTA, with one mbarrier, is one operation."""
        data = np.stack(values, -1).view(np.uint8)
        for key, lanes in self._by_address(barrier.astype(np.uint64) << np.uint64(8) | address >> 24, mask):
            for row in np.flatnonzero(lanes.any(1)):
                self._store_async(address[row, lanes[row]], key >> 8, data[row, lanes[row]])

    def _store_async(self, places: np.ndarray, barrier: int, data: np.ndarray) -> None:
        first, signal = int(places[0]), self.mbarrier(barrier)
        region = self._shared(first)
        if region.valid is not None and len(np.unique(places)) < len(places):
            raise MemoryFault("two lanes of an st.async write the same words", address=first, check="unwritten")
        index = self._poison_lanes(region, places, data.shape[1], "st.async")

        def run() -> None:
            self._shared(first)  # is still there
            region.data[index] = data
            if region.valid is not None:
                region.valid[index] = WRITTEN
            signal.complete(data.size)

        self.launch.post(self.launch.operation("st.async", self.cta, [run]))

    # cp.async.bulk.tensor

    def _map_region(self, address: int) -> tuple[Region, int]:
        """Region and address inside it of a generic address of a tensor map."""
        if address & PARAM_WINDOW:
            return self.launch.parameters, address - PARAM_WINDOW
        if address & (SHARED_WINDOW | LOCAL_WINDOW):
            raise MemoryFault("a tensor map must lie in parameter, constant or global memory", address=address)
        return self.cta.space.find(address, 128), address

    def tensor_map(self, address: int) -> tma.TensorMap:
        return tma.read_map(*self._map_region(address))

    def check_tensor_map(self, address: np.ndarray, mask: np.ndarray | None) -> None:
        for where in np.unique(address[self.active(mask)]):
            self.tensor_map(int(where))

    def _tiles(
        self, tensor: tma.TensorMap, mode: str, coordinates: list[int], shared: int
    ) -> list[tuple[tma.TensorMap, list[int], int]]:
        """(map, coordinates, first byte in the unswizzled tile) of the boxes that an instruction moves."""
        if mode == "tile":
            if len(coordinates) != tensor.rank:
                raise UnsupportedInstruction(f"{len(coordinates)} coordinates for a tensor map of rank {tensor.rank}")
            return [(tensor, coordinates, 0)]
        if tensor.rank != 2 or tensor.box[1] != 1:
            raise UnsupportedInstruction(f"mode {mode} needs a tensor map of rank 2 with one row a box")
        column, *rows = coordinates
        return [(tensor, [column, row], i * tensor.tile_bytes) for i, row in enumerate(rows)]

    def tensor_load(
        self, shared: np.ndarray, maps: np.ndarray, coordinates: list[np.ndarray], barrier: np.ndarray,
        targets: np.ndarray | None, operation: str | None, mode: str, group: int, mask: np.ndarray | None,
    ) -> None:  # fmt: skip
        if mode not in ("tile", "tile::gather4"):
            raise UnsupportedInstruction(f"mode .{mode} of a tensor load")
        for row, lane in self.lanes(mask):
            tensor = self.tensor_map(int(maps[row, lane]))
            place = [int(c[row, lane]) for c in coordinates]
            into, mbar = int(shared[row, lane]), int(barrier[row, lane])
            tiles = self._tiles(tensor, mode, place, into)
            size = tensor.tile_bytes * len(tiles)
            for rank in self.ranks(row, lane, into, targets):
                own = into if targets is None else into & 0xFFFFFF | rank << 24
                signal = mbar
                if targets is not None:
                    signal_rank = rank if group == 1 else rank & ~1 | mbar >> 24 & 1
                    signal = mbar & 0xFFFFFF | signal_rank << 24
                elif mbar >> 24 ^ own >> 24 >= group:  # of cta_group::2 that of the peer, too (9.7.9.25.5.2)
                    raise MemoryFault(
                        f"mbarrier and destination of a tensor copy of cta_group::{group} are in CTA ranks "
                        f"{mbar >> 24} and {own >> 24}", address=mbar
                    )  # fmt: skip
                self.asynchronous_write(row, own, size, signal)
                self._load_tiles(own, tensor, tiles, size, self.mbarrier(signal), self.issued(row))
            self.launch.statistics.bytes_loaded += size

    def _load_tiles(
        self, own: int, tensor: tma.TensorMap, tiles: list, size: int, signal: MBarrier, clock: object
    ) -> None:
        self._poison(own, size, 128)
        region = self._shared(own)
        space = self.cta.space

        def run() -> None:
            data = np.concatenate([t.load(space, place) for t, place, _ in tiles])
            chunks = tma.swizzled_chunks(tensor, own, size)
            region.view(8, 2)[0][(chunks - region.base) >> 4] = data.view(np.uint64).reshape(-1, 2)
            region.mark(own, size, WRITTEN)
            signal.complete(tensor.copied_bytes * len(tiles), clock)

        self.launch.post(self.launch.operation("cp.async.bulk.tensor", self.cta, [run]))

    def tensor_store(
        self, shared: np.ndarray, maps: np.ndarray, coordinates: list[np.ndarray], barrier: None, targets: None,
        operation: str | None, mode: str, group: int, mask: np.ndarray | None,
    ) -> None:  # fmt: skip
        if mode not in ("tile", "tile::scatter4"):
            raise UnsupportedInstruction(f"mode .{mode} of a tensor store")
        for row, lane in self.lanes(mask):
            tensor = self.tensor_map(int(maps[row, lane]))
            place = [int(c[row, lane]) for c in coordinates]
            out = int(shared[row, lane])
            if out % 128:
                raise MemoryFault("source of a tensor copy is not a multiple of 128", address=out, warp=row, lane=lane)
            self._store_tiles(row, lane, out, tensor, self._tiles(tensor, mode, place, out), operation)
            self.launch.statistics.bytes_stored += tensor.tile_bytes

    def _store_tiles(
        self, row: int, lane: int, out: int, tensor: tma.TensorMap, tiles: list, operation: str | None
    ) -> None:
        size = tensor.tile_bytes * len(tiles)
        held: list[np.ndarray] = []
        space = self.cta.space
        region = self._shared(out)
        self.asynchronous_read(row, np.arange(out, out + size, 4))

        def read() -> None:
            self._read_source(out, size)
            chunks = tma.swizzled_chunks(tensor, out, size)
            held.append(region.view(8, 2)[0][(chunks - region.base) >> 4].view(np.uint8).reshape(-1))

        def write() -> None:
            for t, place, first in tiles:
                t.store(space, place, held[0][first : first + t.tile_bytes], operation)

        self._post_group(row, lane, "cp.async.bulk.tensor", [read, write])

    # tensormap

    def tensormap_replace(
        self, space: str, address: np.ndarray, name: str, index: int, value: np.ndarray, mask: np.ndarray | None
    ) -> None:
        for row, lane in self.lanes(mask):
            where = int(address[row, lane])
            if space == "generic":
                space = "shared" if where >> 56 == SHARED_WINDOW >> 56 else "global"
                where &= SHARED_WINDOW - 1
            region = self._shared(where) if space == "shared" else self.cta.space.find(where, 128)
            tma.replace_field(region.bytes_at(where, 128), name, index, int(value[row, lane]))
            region.mark(where, 128, WRITTEN)

    def tensormap_copy(self, into: np.ndarray, out: np.ndarray, mask: np.ndarray | None) -> None:
        """tensormap.cp_fenceproxy: a warp copies 128 bytes from shared to global memory."""
        self.converged(mask)
        for row in np.flatnonzero(self.active(mask).any(1)):
            where = int(into[row, 0])
            region = self.cta.space.find(where, 128)
            if not region.writable:
                raise MemoryFault(f"write to {region.name}, which is read-only", address=where)
            region.bytes_at(where, 128)[:] = self._read_shared(int(out[row, 0]), 128)

    # Cluster launch control

    def try_cancel(self, into: np.ndarray, barrier: np.ndarray, multicast: bool, mask: np.ndarray | None) -> None:
        for row, lane in self.lanes(mask):
            where, mbar = int(into[row, lane]) & 0xFFFFFF, int(barrier[row, lane]) & 0xFFFFFF
            ctas = self.cta.cluster.ctas if multicast else [self.cta]
            targets = [(cta, cta.rank << 24 | where, self.mbarrier(cta.rank << 24 | mbar)) for cta in ctas]
            for _, address, _ in targets:
                self._poison(address, 16, 16)

            def run(targets=targets) -> None:
                index = self.launch.cancel_cluster()
                words = (0, 0) if index is None else (1 | index[0] << 32, index[1] | index[2] << 32)
                data = np.array(words, np.uint64).view(np.uint8)
                for cta, address, signal in targets:
                    cta.shared.bytes_at(address, 16)[:] = data
                    cta.shared.mark(address, 16, WRITTEN)
                    signal.complete(16)

            self.launch.post(self.launch.operation("clusterlaunchcontrol.try_cancel", self.cta, [run]))

    # Fences

    def fence_async(self, mask: np.ndarray | None) -> None:
        """fence.proxy.async: generic writes are visible at once here; it counts for the checks."""
        if self.cta.races is not None:
            self.cta.races.fence(self.agents(mask))
