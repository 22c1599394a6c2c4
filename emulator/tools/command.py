"""``python -m emulator run FILE.ptx | profile KERNEL``: execute PTX without a GPU, and count what it does.

`profile` launches a kernel of a pack through the loader, which chooses the variant and packs the parameters. No other
place of the package knows the loader, and this one imports it when it is asked for a kernel of a pack.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import numpy as np

from .. import Device, Module, load
from ..checks.faults import EmulatorError
from ..checks.names import CHECKS
from .picture import svg
from .profile import Profile, profile, report

ALIGNMENT = 256  # of buffers, as cuMemAlloc gives
_NUMBERS = {
    "u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s8": "b", "s16": "h", "s32": "i", "s64": "q",
    "f32": "f", "f64": "d",
}  # fmt: skip


class UsageError(Exception):
    """An argument of the command line that means nothing."""


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that lies where a device allocation could: sectors of global memory depend on it."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


# run


class Argument:
    """A kernel argument as written: a number `u32:5`, bytes `hex:00ff`, a buffer `in:A.npy`, `inout:A.npy` or
    `out:A.npy:f32:128,64` that is written to the file afterwards."""

    def __init__(self, text: str):
        kind, _, value = text.partition(":")
        self.array: np.ndarray | None = None
        self.path: str | None = None
        self.writable = kind in ("out", "inout")
        try:
            if kind in _NUMBERS:
                self.bytes = struct.pack("<" + _NUMBERS[kind], float(value) if kind[0] == "f" else int(value, 0))
                return
            if kind == "hex":
                self.bytes = bytes.fromhex(value)
                return
            if kind == "out":
                self.path, name, shape = value.rsplit(":", 2)
                self.array = aligned(np.zeros([int(n) for n in shape.split(",")], np.dtype(_numpy(name))))
            elif kind in ("in", "inout"):
                self.path = value
                self.array = aligned(np.load(value))
            else:
                raise UsageError(f"argument {text!r}: {kind!r} is none of {', '.join(_NUMBERS)}, hex, in, inout, out")
        except (ValueError, struct.error, OSError) as error:
            raise UsageError(f"argument {text!r}: {error}") from None
        self.bytes = struct.pack("<Q", self.array.ctypes.data)


def _numpy(name: str) -> str:
    return {"u": "u", "s": "i", "f": "f"}[name[0]] + str(int(name[1:]) // 8)


def _run(options: argparse.Namespace) -> int:
    try:
        text = Path(options.file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{options.file}: {error}") from None
    module = load(text)
    entry = options.entry or _only(module.entries)
    arguments = [Argument(text) for text in options.arguments]
    checks = () if options.no_checks else set(CHECKS).difference(options.without)
    arch = options.arch or module.source.target.removeprefix("sm_")
    device = Device(arch, options.seed, not options.eager, checks)
    for number, argument in enumerate(arguments):
        array = argument.array
        if array is not None:
            device.map_buffer(array.ctypes.data, array.nbytes, argument.writable, f"argument {number}")
    parameters = _pack(module, entry, arguments)
    with profile() as launches:
        device.launch(module, entry, options.grid, options.block, options.cluster, options.shared, parameters)
    for argument in arguments:
        if argument.writable:
            np.save(argument.path, argument.array)
    return _show(launches[0], options)


def _only(entries: Sequence[str]) -> str:
    if len(entries) != 1:
        raise UsageError(f"--entry: the module has {', '.join(entries) or 'no kernel'}; name one")
    return entries[0]


def _pack(module: Module, entry: str, arguments: list[Argument]) -> bytes:
    function = module.program(entry).function
    if len(arguments) != len(function.parameters):
        raise UsageError(f"{entry} has {len(function.parameters)} parameters, got {len(arguments)} arguments")
    data = bytearray(function.parameter_bytes)
    for number, (parameter, argument) in enumerate(zip(function.parameters, arguments, strict=True)):
        if len(argument.bytes) != parameter.size:
            raise UsageError(f"argument {number} has {len(argument.bytes)} bytes, the parameter {parameter.size}")
        start = function.offsets[parameter.name]
        data[start : start + parameter.size] = argument.bytes
    return bytes(data)


# profile


def grouped_fp4(counts: Sequence[int], n: int, k: int, out: str, seed: int) -> dict[str, np.ndarray]:
    """Random arguments of grouped_fp4: `counts` rows of each expert. Scales are of 1 to 1.875, in any layout."""
    rng = np.random.default_rng(seed)
    padded = [-(-count // 128) * 128 for count in counts]
    words = -(-k // 64) * 4
    scales = lambda *shape: rng.integers(0x38, 0x40, shape, np.uint8)  # noqa: E731
    arguments = {
        "a": rng.integers(0, 256, (sum(counts), k // 2), np.uint8),
        "b": rng.integers(0, 256, (len(counts), n, k // 2), np.uint8),
        "a_scale": scales(max(sum(padded), 128), words),
        "b_scale": scales(len(counts), -(-n // 128) * 128, words),
        "alpha": np.full(len(counts), 2.0**-14, np.float32),
        "expert_offsets": np.array([0, *accumulate(counts)], np.int32),
        "scale_offsets": np.array([0, *accumulate(padded)][:-1], np.int32),
        "out": np.zeros((sum(counts), n), out),
    }
    return {name: aligned(value) for name, value in arguments.items()}


PROBLEMS: dict[str, Callable[..., dict[str, np.ndarray]]] = {"grouped_fp4": grouped_fp4}


def profile_kernel(
    kernel: str, arch: str, variant: str | None, counts: Sequence[int], n: int, k: int, out: str, seed: int,
    packs: Sequence[str] | None = None,
) -> Profile:  # fmt: skip
    """Launches a kernel of a pack once on random data. Raises LoaderError."""
    loader = _loader()

    arguments = PROBLEMS[kernel](counts, n, k, {"f16": "f2", "f32": "f4"}[out], seed)
    with warnings.catch_warnings(), profile() as launches:
        warnings.simplefilter("ignore", RuntimeWarning)
        loader.launch(kernel, **arguments, variant=variant, device=f"emulated:{arch}", packs=packs)
    if not launches:
        raise UsageError("the problem is empty: nothing was launched")
    return launches[0]


def _loader() -> ModuleType:
    try:
        return import_module("...loader" if __package__.count(".") > 1 else "loader", __package__)  # beside `emulator`
    except ImportError as error:
        raise UsageError(f"profile takes kernels from packs, which needs the loader: {error}") from None


def _profile(options: argparse.Namespace) -> int:
    loader = _loader()
    try:
        found = profile_kernel(options.kernel, options.arch, options.variant, options.counts, options.n, options.k,
                               options.out, options.seed, options.packs)  # fmt: skip
    except loader.LoaderError as error:
        raise UsageError(str(error)) from None
    return _show(found, options)


def _show(found: Profile, options: argparse.Namespace) -> int:
    print(json.dumps(found.counts(), indent=1) if options.json else report(found))
    if options.picture:
        Path(options.picture).write_text(svg(found, options.cta))
        print(f"\npicture: {options.picture}", file=sys.stderr)
    return 0


# Command line


def _triple(text: str) -> tuple[int, int, int]:
    x, y, z = ([int(n) for n in text.split(",")] + [1, 1])[:3]
    return x, y, z


def _index(text: str) -> tuple[int, int, int]:
    x, y, z = ([int(n) for n in text.split(",")] + [0, 0])[:3]
    return x, y, z


def _counts(text: str) -> list[int]:
    counts = [int(n) for n in text.split(",")]
    if min(counts) < 0:
        raise ValueError(text)
    return counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__.removesuffix('.tools')}",
                                     description="Executes PTX without a GPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--seed", type=int, default=0, help="of the schedule (run) or of the data (profile)")
    shown.add_argument("--json", action="store_true", help="print what does not depend on the schedule, as JSON")
    shown.add_argument("--cta", type=_index, metavar="X,Y,Z", help="of the picture; default: the busiest one")
    run = commands.add_parser("run", parents=[shown], help="any kernel of a PTX file, with raw arguments")
    run.add_argument("file", metavar="FILE.ptx")
    run.add_argument("arguments", nargs="*", metavar="ARGUMENT",
                     help="u32:5, f32:0.5, hex:00ff, in:A.npy, inout:A.npy, out:A.npy:f32:128,64")
    run.add_argument("--entry", help="name of the kernel; needed where the file has several")
    run.add_argument("--arch", help="such as 120a; default: the target of the file")
    for name, default in (("grid", "1"), ("block", "32"), ("cluster", "1")):
        run.add_argument(f"--{name}", type=_triple, default=default, metavar="X,Y,Z", help=f"default {default}")
    run.add_argument("--shared", type=int, default=0, metavar="BYTES", help="dynamic shared memory")
    run.add_argument("--eager", action="store_true", help="carry out asynchronous operations when they are issued")
    left_out = run.add_mutually_exclusive_group()
    left_out.add_argument("--no-checks", action="store_true", help="leave out all checks that have a name")
    left_out.add_argument("--without", action="append", choices=CHECKS, metavar="CHECK", default=[],
                          help=f"leave out a check: {', '.join(CHECKS)}")  # fmt: skip
    run.add_argument("--picture", metavar="FILE.svg", help="write the pipeline of one CTA")
    run.set_defaults(command=_run)
    prof = commands.add_parser("profile", parents=[shown], help="a kernel of a pack, on a small random problem")
    prof.add_argument("kernel", choices=sorted(PROBLEMS))
    prof.add_argument("--arch", required=True, help="such as 120a")
    prof.add_argument("--variant", help="default: what the loader selects for the problem")
    prof.add_argument("--counts", type=_counts, default="128", metavar="ROWS,...", help="of each expert; default 128")
    prof.add_argument("-n", type=int, default=256, help="columns of the output; default 256")
    prof.add_argument("-k", type=int, default=512, help="depth; default 512")
    prof.add_argument("--out", choices=("f16", "f32"), default="f32", help="type of the output")
    prof.add_argument("--packs", action="append", metavar="DIR", help="pack to use instead of the default ones")
    prof.add_argument("--picture", metavar="FILE.svg", default="pipeline.svg", help="default pipeline.svg; '' for none")
    prof.set_defaults(command=_profile)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (EmulatorError, UsageError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
