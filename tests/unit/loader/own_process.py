"""Programs of tests that need a process of their own."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(os.path.join(HERE, "..", "..", ".."))

# A fake driver, and the small pack in the directory ``pack``.
_WITH_A_PACK = f"""
import os, sys
sys.path.insert(0, {HERE!r})
from pathlib import Path
import sample_pack
from fake_cuda import FakeCuda
from sample_call import arguments
import loader
from loader import driver
fake = FakeCuda()
driver.open_library = lambda: fake
sample_pack.write(Path(pack))
"""


def run(code, *options):
    """What a program prints that must succeed."""
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": ROOT}, timeout=60).stdout


def run_with_pack(directory, code):
    """The same of ``code`` behind a fake driver and a pack in ``directory``."""
    return run(f"pack = {str(directory)!r}\n{_WITH_A_PACK}{code}")
