"""Assembles every case for a machine without a compiler: `python -m hopper.build FOLDER` writes a cubin each."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from hopper.cases import CASES, missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--add-to", type=Path, metavar="RECORD", help="only cases that a record lacks")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for case in missing(options.add_to) if options.add_to else CASES:
        source = options.folder / f"{case.name}.ptx"
        if source.exists() and source.read_text() == case.ptx and source.with_suffix(".cubin").exists():
            continue
        source.write_text(case.ptx)
        command = ["ptxas", "-arch=sm_90a", "-o", str(source.with_suffix(".cubin")), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            failed += 1
            sys.stderr.write(f"{case.name}:\n{done.stderr}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
