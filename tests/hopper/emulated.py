"""Runs a case on the emulated device, and says where its output differs from the GPU's."""

from __future__ import annotations

import numpy as np

import emulator
from hopper.case import Case, Row, row_digest

_SHOWN = 8


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that a tensor map accepts."""
    memory = np.zeros(array.nbytes + 256, np.uint8)
    copy = memory[-memory.ctypes.data % 256 :][: array.nbytes]
    copy[:] = array.view(np.uint8).reshape(-1)
    return copy


def run(case: Case, seed: int, lazy: bool = True, checks: bool = True) -> np.ndarray:
    """The output of a case under a schedule."""
    device = emulator.Device("90a", seed, lazy, set(emulator.CHECKS).difference(case.without) if checks else False)
    buffers = [_aligned(array) for array in (*case.inputs, case.output)]
    for index, buffer in enumerate(buffers):
        device.map_buffer(buffer.ctypes.data, buffer.nbytes, True, f"buffer {index}")
    maps = []
    for spec in case.maps:
        address = buffers[spec.buffer].ctypes.data
        maps.append(device.encode_tensor_map(address, spec.element, spec.dims, spec.strides, spec.box, spec.swizzle))
    parameters = b""
    for part in case.parameters([b.ctypes.data for b in buffers], maps):
        alignment = 64 if len(part) == 128 else 8
        parameters += bytes(-len(parameters) % alignment) + part
    shapes = (case.grid, 1, 1), (case.block, 1, 1), (case.cluster, 1, 1)
    device.launch(emulator.load(case.ptx), case.entry, *shapes, case.shared, parameters)
    return buffers[-1]


def row_bytes(row: Row, output: np.ndarray) -> np.ndarray:
    return output[row.offset : row.offset + row.count * np.dtype(row.dtype).itemsize]


def wrong(row: Row, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Indices of the elements that differ by more than the row allows. NaN equals NaN where it allows anything."""
    if not row.ulps:
        kind = f"u{np.dtype(row.dtype).itemsize}"
        return np.flatnonzero(got.view(kind) != want.view(kind))
    got, want = (x.view(row.dtype) for x in (got, want))
    with np.errstate(invalid="ignore", over="ignore"):
        unit = np.spacing(np.abs(want)).astype(np.float64)
        near = np.abs(got.astype(np.float64) - want) <= row.ulps * unit
    return np.flatnonzero(~(near | (got == want) | (np.isnan(got) & np.isnan(want))))


def differences(case: Case, got: np.ndarray, want: np.ndarray) -> list[str]:
    """A line for each row that is wrong: the elements in hexadecimal, the emulated device first."""
    lines = []
    for index, row in enumerate(case.rows):
        mine = row_bytes(row, got)
        if len(want) != len(got):  # digests
            if row_digest(mine) != want[index].tobytes():
                lines.append(f"{case.name}: {row.label}: the digest differs; record with --full to see where")
            continue
        theirs = row_bytes(row, want)
        bad = wrong(row, mine, theirs)
        if len(bad):
            kind = f"u{np.dtype(row.dtype).itemsize}"
            width = 2 + 2 * np.dtype(row.dtype).itemsize
            shown = (
                f"[{i}] {mine.view(kind)[i]:#0{width}x} != {theirs.view(kind)[i]:#0{width}x}" for i in bad[:_SHOWN]
            )
            lines.append(
                f"{case.name}: {row.label}: {len(bad)} of {row.count} differ by over {row.ulps} ulp: "
                + ", ".join(shown)
            )
    return lines
