"""Runs every case on a Hopper GPU, through the driver library alone, and writes what it answered.

    python -m hopper.record FOLDER --out h200.npz

FOLDER holds the cubins of `hopper.build`; the grouped_fp4 of the loader's packs runs too. Needs numpy and libcuda, and
no compiler. With `--add-to RECORD` only what that record lacks is run, and the rest is taken over from it.

A kernel that the GPU stops is an answer too: the record holds the name of the fault, and the emulated device has to
raise one.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import functools
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import packs

from hopper import shipped
from hopper.case import Case, TensorMap, row_digest
from hopper.cases import CASES, about, missing

ELEMENTS = {"u8": 0, "u16": 1, "u32": 2, "s32": 3, "u64": 4, "s64": 5, "f16": 6, "f32": 7, "f64": 8, "bf16": 9}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
NOT_READY = 600
DEADLINE_S = 10
FAULTS = ("CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_ILLEGAL_ADDRESS")


class DriverError(RuntimeError):
    """A call of the driver that failed."""


class LostContext(DriverError):
    """A kernel that failed or did not end: nothing more can run."""

    @property
    def fault(self) -> str | None:
        """The driver's name of what the kernel did wrong."""
        return next((name for name in FAULTS if str(self).endswith(name)), None)


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16)]


class _Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


class Gpu:
    """A context on the first GPU. Each method raises DriverError with the driver's own name of the failure."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(self._device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(text))
            raise DriverError(f"{name}: {(text.value or b'?').decode()}")

    def wait(self) -> None:
        """Until the work is done; DriverError after DEADLINE_S."""
        end = time.monotonic() + DEADLINE_S
        while self._library.cuStreamQuery(None) == NOT_READY:
            if time.monotonic() > end:
                raise LostContext(f"not done after {DEADLINE_S} s")
        try:
            self.call("cuStreamQuery", None)
        except DriverError as error:
            raise LostContext(str(error)) from None

    def describe(self) -> dict[str, str]:
        name, version = ctypes.create_string_buffer(256), ctypes.c_int()
        self.call("cuDeviceGetName", name, 256, self._device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        driver = Path("/proc/driver/nvidia/version")
        text = driver.read_text().splitlines()[0] if driver.exists() else ""
        return {
            "gpu": name.value.decode(),
            "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "driver": next((w for w in text.split() if w[0].isdigit()), ""),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        }

    def upload(self, array: np.ndarray) -> int:
        """A copy in device memory."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(array.nbytes, 16)))
        self.call("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        return pointer.value

    def download(self, pointer: int, like: np.ndarray) -> np.ndarray:
        out = np.empty_like(like)
        address = ctypes.c_void_p(out.ctypes.data)
        self.call("cuMemcpyDtoH_v2", address, ctypes.c_uint64(pointer), ctypes.c_size_t(out.nbytes))
        return out

    def encode(self, spec: TensorMap, pointer: int) -> bytes:
        memory = ctypes.create_string_buffer(128 + 64)
        aligned = -ctypes.addressof(memory) % 64 + ctypes.addressof(memory)
        rank = len(spec.dims)
        self.call(
            "cuTensorMapEncodeTiled",
            ctypes.c_void_p(aligned),
            ELEMENTS[spec.element],
            rank,
            ctypes.c_void_p(pointer),
            (ctypes.c_uint64 * rank)(*spec.dims),
            (ctypes.c_uint64 * rank)(*spec.strides),
            (ctypes.c_uint32 * rank)(*spec.box),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            0,
            SWIZZLES[spec.swizzle],
            0,
            0,
        )
        return ctypes.string_at(aligned, 128)

    def run(self, case: Case, cubin: bytes) -> np.ndarray:
        """The output of a case."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), cubin)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, case.entry.encode())
        if case.shared > 48 << 10:
            self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, case.shared)
        pointers = [self.upload(array) for array in (*case.inputs, case.output)]
        encoded = [self.encode(spec, pointers[spec.buffer]) for spec in case.maps]
        held = [ctypes.create_string_buffer(p, len(p)) for p in case.parameters(pointers, encoded)]
        listed = (ctypes.c_void_p * len(held))(*[ctypes.addressof(h) for h in held])
        cluster = _Attribute(CLUSTER_DIMENSION, 0, (ctypes.c_uint32 * 16)(case.cluster, 1, 1))
        attributes = ctypes.pointer(cluster)
        three = ctypes.c_uint * 3
        config = _Config(
            three(case.grid, 1, 1), three(case.block, 1, 1), case.shared, None, attributes, int(case.cluster > 1)
        )
        self.call("cuLaunchKernelEx", ctypes.byref(config), function, listed, None)
        self.wait()
        out = self.download(pointers[-1], case.output)
        for pointer in pointers:
            self.call("cuMemFree_v2", ctypes.c_uint64(pointer))
        self.call("cuModuleUnload", module)
        return out


def pack(case: Case, output: np.ndarray) -> np.ndarray:
    """What the record holds of an output: its bytes, or a digest of each row (uint8 [rows, 16])."""
    if not case.digest:
        return output
    parts = [output[r.offset : r.offset + r.count * np.dtype(r.dtype).itemsize] for r in case.rows]
    return np.stack([np.frombuffer(row_digest(part), np.uint8) for part in parts])


def _worker() -> ProcessPoolExecutor:
    """A process with a context of its own, which a failing kernel may take along."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


@functools.cache
def _gpu() -> Gpu:
    return Gpu()


def _describe() -> dict[str, str]:
    return _gpu().describe()


def _run(name: str, cubin: Path) -> np.ndarray:
    (case,) = (case for case in CASES if case.name == name)
    return _gpu().run(case, cubin.read_bytes())


def _run_shipped() -> dict[str, np.ndarray]:
    """Variant -> output."""
    gpu = _gpu()
    variants = packs.output_types("grouped_fp4", lambda arch: arch == "90a")
    return {v: shipped.on_gpu(out_type, gpu.upload, gpu.download, v) for v, out_type in variants.items()}


def _record(cases: list[Case], folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Outputs, faults and failures of cases by their names."""
    outputs, faulted, failed = {}, {}, {}
    worker = _worker()
    for case in cases:
        try:
            outputs[case.name] = worker.submit(_run, case.name, folder / f"{case.name}.cubin").result()
        except LostContext as error:
            worker.shutdown(wait=False)
            worker = _worker()
            (faulted if error.fault else failed)[case.name] = error.fault or str(error)
        except (DriverError, OSError) as error:
            failed[case.name] = str(error)
    return outputs, faulted, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="cubins of hopper.build")
    parser.add_argument("--out", type=Path, required=True, help="the record")
    parser.add_argument("--add-to", type=Path, metavar="RECORD", help="run what this record lacks, keep its rest")
    parser.add_argument("--full", type=Path, help="also all bytes of all outputs, for the search for a difference")
    options = parser.parse_args()
    description = _worker().submit(_describe).result()
    record, known, cases = {}, description | {"fingerprints": {}, "faulted": {}, "later": []}, CASES
    if options.add_to:
        with np.load(options.add_to) as data:
            record, known = dict(data), about(data)
        cases = missing(options.add_to)
        known["later"].append(description | {"cases": [case.name for case in cases]})
    full, faulted, failed = _record(cases, options.folder)
    for case in cases:
        record.pop(case.name, None)
        known["faulted"].pop(case.name, None)
        known["fingerprints"].pop(case.name, None)
        if case.name in full:
            record[case.name] = pack(case, full[case.name])
        if case.name not in failed:
            known["fingerprints"][case.name] = case.fingerprint()
    known |= {"faulted": known["faulted"] | faulted, "failed": failed}
    if known["fingerprints"].get(shipped.PREFIX) != shipped.fingerprint():
        known["fingerprints"][shipped.PREFIX] = shipped.fingerprint()
        for variant, output in _worker().submit(_run_shipped).result().items():
            full[shipped.PREFIX + variant] = output
            record[shipped.PREFIX + variant] = np.frombuffer(row_digest(output), np.uint8)
    record["about"] = np.frombuffer(json.dumps(known, sort_keys=True).encode(), np.uint8)
    np.savez_compressed(options.out, **record)
    if options.full:
        np.savez_compressed(options.full, **full)
    sys.stdout.write(
        f"{len(cases)} cases, {len(full)} outputs, on {description['gpu']}; faulted: {faulted}; failed: {failed}\n"
    )
    sys.stdout.flush()
    os._exit(bool(failed))  # a kernel that hangs would keep the interpreter from ending


if __name__ == "__main__":
    main()
