"""CUDA devices of this machine, asked through the driver library. No context is created."""

from __future__ import annotations

import ctypes
import functools

from loader import arch

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@functools.cache
def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def cuda_devices() -> int:
    """Number of devices, 0 without a driver."""
    driver, count = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def capability(device: int) -> tuple[int, int]:
    """Compute capability of a device that exists."""
    driver, value = _driver(), ctypes.c_int()
    parts = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        if driver is None or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            raise RuntimeError(f"device {device} has no compute capability to tell")
        parts.append(value.value)
    return parts[0], parts[1]


def is_hopper() -> bool:
    """Whether device 0, if there is one, is of sm_90."""
    return cuda_devices() > 0 and capability(0)[0] == 9


def runs_here(name: str) -> bool:
    """Whether cubins of this arch run on device 0, which exists."""
    return arch.refusal(arch.ARCHS[name], capability(0)) is None
