"""kernels.yaml of this checkout, read and expanded once for all tests of a process."""

from __future__ import annotations

from pathlib import Path

from generator.matrix import load

MATRIX = load(Path(__file__).resolve().parent.parent / "kernels.yaml")
VARIANTS = MATRIX.variants
