"""Seconds that the emulated device takes for a grouped NVFP4 GEMM of 3 experts with 300 rows, N = 256, K = 512.

    python benchmarks/emulation.py --json benchmarks/results/emulation.json

Host arrays, tiles of 128 x 128, with all checks and without any. `first` parses the PTX and generates code as it runs;
`median` is of later launches. Takes the pack from LOADER_ARTIFACTS or artifacts/.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
import warnings
from unittest.mock import patch

import record

import emulator
import loader
from emulator.tools.command import grouped_fp4

VARIANTS = {"120a": "m128n128k128_f32", "100a": "m128n128k256_f32"}
COUNTS, N, K = [300] * 3, 256, 512
LIMITS = {True: 4.0, False: 1.5}  # seconds on two cores, by checks
HEADERS = ("arch", "variant", "checks", "first s", "median s", "limit s")


def measure(arch: str, variant: str, checks: bool, repeats: int, spread: record.Spread) -> dict[str, object]:
    arguments = grouped_fp4(COUNTS, N, K, "f4", seed=0)
    seconds = []
    # The loader makes the device, with checks: nothing but a measurement should switch them off.
    with patch.object(emulator, "Device", functools.partial(emulator.Device, checks=checks)):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            loader.launch("grouped_fp4", **arguments, variant=variant, device=f"emulated:{arch}")
            seconds.append(time.perf_counter() - start)
    return {"arch": arch, "variant": variant, "checks": checks, "first_s": seconds[0],
            "median_s": spread.median(seconds[1:]), "limit_s": LIMITS[checks]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="launches after the first; default 5")
    options = record.parse(parser, ["grouped_fp4"], on_device=False)
    warnings.filterwarnings("ignore", "host buffers run on the emulated", RuntimeWarning)
    found = record.host(["numpy"]) | {"cores": str(len(os.sched_getaffinity(0)))}
    for name, value in found.items():
        print(f"{name}: {value}")
    # Without checks first: the code that is generated does not depend on them, so only this one's `first` pays for it.
    spread = record.Spread()
    rows = [measure(arch, variant, checks, options.repeats, spread)
            for arch, variant in VARIANTS.items() for checks in (False, True)]
    title = f"grouped_fp4, {len(COUNTS)} experts x {COUNTS[0]} rows, N = {N}, K = {K}"
    print(record.table(title, HEADERS, [list(row.values()) for row in rows]))
    record.finish(options.json, "emulation", found, {"repeats": options.repeats, **spread.facts()}, {"rows": rows})


if __name__ == "__main__":
    main()
