"""A launch by an installed wheel with nothing but the driver; the exit status is 0 where the result is right."""

import array
import ctypes
import sys

from block_scaled import loader

SHAPE = E, M, C = 3, 37, 11  # of scales, three matrices of rows
PITCH = (M + 3) // 4 * 4

cuda = ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: object) -> None:
    status = getattr(cuda, name)(*arguments)
    if status:
        raise SystemExit(f"{name} returned {status}")


class Buffer:
    """fp32 on device 0, and ``words`` of it."""

    def __init__(self, shape: tuple[int, ...], words: array.array) -> None:
        self.size, address = len(words) * 4, ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(self.size))
        self.address = address
        call("cuMemcpyHtoD_v2", address, (ctypes.c_char * self.size).from_buffer(words), ctypes.c_size_t(self.size))
        data = {"shape": shape, "typestr": "<f4", "data": (address.value, False), "version": 3}
        self.__cuda_array_interface__ = data

    def words(self) -> array.array:
        words = array.array("f", bytes(self.size))
        target = (ctypes.c_char * self.size).from_buffer(words)
        call("cuMemcpyDtoH_v2", target, self.address, ctypes.c_size_t(self.size))
        return words


context = ctypes.c_void_p()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
given = array.array("f", range(E * M * C))
scales, out = Buffer(SHAPE, given), Buffer((E, C, PITCH), array.array("f", [float("nan")] * (E * C * PITCH)))
loader.launch("scales_mn_major", sf=scales, out=out)
call("cuCtxSynchronize")
found = out.words()
expected = [given[(e * M + m) * C + c] if m < M else 0 for e in range(E) for c in range(C) for m in range(PITCH)]
absent = [name for name in ("numpy", "torch", "jax", "cupy") if name in sys.modules]
wrong = sum(one != other for one, other in zip(found, expected, strict=True))
print(f"scales_mn_major: {wrong} of {len(expected)} words are wrong; also imported: {', '.join(absent) or 'nothing'}")
sys.exit(bool(wrong or absent))
