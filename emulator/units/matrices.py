"""ldmatrix and stmatrix as a cohort executes them: the shared memory that they access. The forms are in `ldmatrix`."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..checks.faults import MemoryFault
from ..checks.races import SEVERAL
from ..machine.accesses import MemoryOperations
from ..machine.memory import OutOfRegion, gather, single_region_fault
from . import ldmatrix


class MatrixOperations(MemoryOperations):
    def load_matrix(self, rows: np.ndarray, mask: np.ndarray | None, modifiers: tuple[str, ...]) -> list[np.ndarray]:
        form = ldmatrix.load_form(modifiers)
        warps = None if mask is None and self.alive is None else self.active(mask).any(1)
        who = self.agents(mask)
        rows = rows if warps is None else rows[warps]
        self._check_rows(rows, form)
        if self.cta.races is not None:
            used = rows[:, : form.rows]
            self.cta.races.read(np.repeat(who, used.shape[1]), SEVERAL, used.reshape(-1), 16)
            self.cta.races.end_reads(who)
        if form.bits < 8:
            data = ldmatrix.unpack(form, self._gather_shared(ldmatrix.packed_addresses(form, rows.astype(np.int64)), 1))
            registers = ldmatrix.to_registers(data)
        else:
            step, lane, offset = _steps(modifiers)
            words = self._gather_shared(rows.astype(np.int64)[:, lane] + offset, step)
            registers = np.ascontiguousarray(words).view(np.uint32)[..., 0]
        if warps is not None:
            whole = np.zeros((*self.shape, registers.shape[-1]), np.uint32)
            whole[warps] = registers
            registers = whole
        return [registers[..., r] for r in range(registers.shape[-1])]

    def store_matrix(
        self, rows: np.ndarray, mask: np.ndarray | None, modifiers: tuple[str, ...], values: list[np.ndarray]
    ) -> None:
        form = ldmatrix.store_form(modifiers)
        warps = self.active(mask).any(1)
        rows = rows[warps]
        self._check_rows(rows, form)
        if self.cta.races is not None:
            used = rows[:, : form.rows]
            self.cta.races.write(np.repeat(self.agents(mask), used.shape[1]), SEVERAL, used.reshape(-1), 16)
        address = ldmatrix.addresses(form, rows.astype(np.int64))
        octets = ldmatrix.to_bytes(np.stack([v[warps] for v in values], -1))
        region = self.cta.shared
        index = address - region.base
        if (index < 0).any() or (index >= region.size).any():
            raise MemoryFault(f"stmatrix outside {region.name}", address=int(address.flat[0]))
        region.data[index] = octets
        if region.valid is not None:
            region.valid[index] = 1

    def _gather_shared(self, address: np.ndarray, size: int) -> np.ndarray:
        region = self.cta.shared
        try:
            return gather(region, address.astype(np.uint32), size, 1)
        except OutOfRegion:
            raise single_region_fault(region, address.astype(np.uint32), size, False) from None

    def _check_rows(self, rows: np.ndarray, form: ldmatrix.Form) -> None:
        used = rows[:, : form.rows]
        if np.count_nonzero(used & np.uint32(ldmatrix.ROW_BYTES - 1)):
            where = np.argwhere(used & np.uint32(ldmatrix.ROW_BYTES - 1))[0]
            raise MemoryFault(
                "row address is not a multiple of 16", address=int(used[tuple(where)]), lane=int(where[1])
            )


@cache
def _steps(modifiers: tuple[str, ...]) -> tuple[int, np.ndarray, np.ndarray]:
    """(bytes an access, lane, offset) of an ldmatrix as the widest accesses that its bytes allow."""
    form = ldmatrix.load_form(modifiers)
    for step in (4, 2):
        lane = form.lane.reshape(*form.lane.shape[:2], 4 // step, step)
        offset = form.offset.reshape(lane.shape)
        if (lane == lane[..., :1]).all() and (offset == offset[..., :1] + np.arange(step)).all():
            return step, lane[..., 0], offset[..., 0]
    return 1, form.lane, form.offset
