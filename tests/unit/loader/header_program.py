"""Programs that use include/block_scaled.h, on a driver of C that runs nothing: compiled, run, and what they print."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c_header import DTYPES
from fake_cuda import FakeDevice, Launch
from random_calls import Buffer

ROOT = Path(__file__).resolve().parents[3]
SOURCES = Path(__file__).parent / "c"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
DEVICES = [FakeDevice("NVIDIA H200", (9, 0), 132, 232_448), FakeDevice("Fake H100", (9, 0), 114, 232_448),
           FakeDevice("Fake B200", (10, 0), 148, 232_448), FakeDevice("Fake 10.1", (10, 1), 20, 232_448),
           FakeDevice("Fake B300", (10, 3), 160, 232_448), FakeDevice("Fake RTX", (12, 0), 170, 101_376),
           FakeDevice("Fake GB10", (12, 1), 48, 101_376), FakeDevice("Fake 12.2", (12, 2), 84, 101_376)]


def compile_driver(folder: Path) -> None:
    command = ["gcc", "-std=c11", *WARNINGS, "-shared", "-fPIC", str(SOURCES / "fake_cuda.c"), "-o",
               str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)


def compile_program(source: Path, target: Path, *flags: str, compiler: str = "gcc", standard: str = "c11") -> Path:
    """Fails where the compiler has a warning."""
    language = "c++" if compiler == "g++" else "c"
    command = [compiler, f"-std={standard}", *WARNINGS, *flags, f"-I{ROOT / 'include'}", "-x", language, str(source),
               "-o", str(target), "-ldl", "-lm"]
    subprocess.run(command, check=True)
    return target


def sanitizers(folder: Path) -> tuple[str, ...]:
    """Flags, none where the compiler has no libraries for them."""
    empty = folder / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    done = subprocess.run(["gcc", *SANITIZERS, str(empty), "-o", str(folder / "empty")], capture_output=True)
    return SANITIZERS if done.returncode == 0 else ()


def call_lines(kernel: str, values: Mapping[str, Any], *, device: int = 0, variant: str = "-", stream: int = 0,
               addresses: Mapping[str, int] | None = None) -> str:
    """A call as run_calls.c reads it: a buffer is a ``Buffer``, and its address one of ``addresses``."""
    lines = [f"call {device} {kernel} {variant} {stream} {len(values)}"]
    for name, value in values.items():
        if isinstance(value, Buffer):
            extents = " ".join(map(str, value.shape))
            lines.append(f"buffer {name} {DTYPES.index(value.dtype)} {addresses[name]} {len(value.shape)} {extents}")
        else:
            kind = {int: "integer", float: "real", str: "word"}[type(value)]
            lines.append(f"{kind} {name} {value}")
    return "\n".join(lines) + "\n"


def launch_line(launch: Launch) -> str:
    """A launch of the driver in Python, as the one in C prints it."""
    numbers = [launch.device, *launch.grid, *launch.block, launch.shared, launch.stream, len(launch.attributes)]
    attributes = [f" {key} {value.hex()}" for key, value in launch.attributes.items()]
    return f"launch {launch.symbol} {' '.join(map(str, numbers))}{''.join(attributes)} -{launch.parameters.hex()}"


class Program:
    """A program with the driver of ``folder``."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder

    def run(self, text: str, devices: Sequence[FakeDevice] = tuple(DEVICES), fails: str = "") -> list[list[str]]:
        """What it prints for each call or pack: the lines of its launches, and last how it ended."""
        described = "|".join(f"{d.name};{d.capability[0]};{d.capability[1]};{d.sm_count};{d.shared}" for d in devices)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "FAKE_CUDA_DEVICES": described,
                       "FAKE_CUDA_FAILS": fails}
        done = subprocess.run([self.path], input=text, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        found, lines = [], []
        for line in done.stdout.splitlines():
            lines.append(line)
            if line.startswith(("ok ", "error ", "opened")):
                found.append(lines)
                lines = []
        return found
