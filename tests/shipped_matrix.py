"""kernels.yaml of this checkout, read and expanded once for all tests of a process."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest

from generator.matrix import Variant, load
from loader.manifest import Family
from loader.reader import ABIS, SCHEMAS, parse

MATRIX = load(Path(__file__).resolve().parent.parent / "kernels.yaml")
VARIANTS = MATRIX.variants
Item = TypeVar("Item")


def families() -> dict[str, Family]:
    """Every family, as the loader reads it from a manifest."""
    manifest = {"schema": SCHEMAS[1], "abi": ABIS[1], "toolchain": {}, "source_digest": "0" * 64, "composites": {},
                "artifacts": [], "families": MATRIX.families}  # fmt: skip
    return parse(json.dumps(manifest).encode()).families


def each(variants: Iterable[Variant]) -> pytest.MarkDecorator:
    """A test of each of them in its turn, as ``variant``."""
    return pytest.mark.parametrize("variant", variants, ids=lambda variant: variant.label)


def one_of_each(items: Iterable[Item], key: Callable[[Item], object]) -> list[Item]:
    """One of the items that have a key in common, another in every run."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(map(random.Random(os.environ["TESTS_SEED"]).choice, groups.values()))


def one_output(variants: Iterable[Variant]) -> list[Variant]:
    """Of variants that differ in their output type alone one: for what has nothing to do with the type."""
    return one_of_each(variants, lambda variant: (variant.arch, variant.family, variant.tile))
