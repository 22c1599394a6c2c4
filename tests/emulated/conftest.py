"""The pack of shipped kernels, and launches of them on the emulated device under schedules of their own.

The pack is LOADER_ARTIFACTS if that is set, else one that is built here and kept for the next run.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from packs import ARCHS, CACHE, need_kernels

import emulator
import loader
from generator.matrix import Variant
from loader import emulated, values

if TYPE_CHECKING:
    import torch
    from layer_runner import Runner


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of each module, tests of one kernel one after another, so that it is translated once."""
    order = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}

    def place(item: pytest.Item) -> tuple[int, str]:
        variant = getattr(item, "callspec", None) and item.callspec.params.get("variant")
        return order[item.path], variant.symbol if isinstance(variant, Variant) else ""

    items.sort(key=place)


@pytest.fixture(scope="session")
def packs() -> list[str] | None:
    """The ``packs`` of a call: None where LOADER_ARTIFACTS names one."""
    if os.environ.get("LOADER_ARTIFACTS"):
        return None
    need_kernels(ARCHS)
    return [str(CACHE)]


@pytest.fixture
def unchecked_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where no launch looks at offsets, counts and indices."""
    monkeypatch.setattr(values, "check", lambda *_: None)


@pytest.fixture
def runner(packs: list[str] | None, reschedule: Callable[[], str]) -> Callable[[str], Runner]:
    """Launches a layer on an arch, each time under a fresh schedule."""
    from layer_runner import Runner  # which needs torch

    return lambda arch: Runner(arch, packs, reschedule)


@pytest.fixture
def generator(rng: np.random.Generator) -> torch.Generator:
    """Of torch, with a seed of the test's own data."""
    torch = pytest.importorskip("torch")
    return torch.Generator().manual_seed(int(rng.integers(1 << 62)))


@pytest.fixture
def few_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, so that a CTA computes several tiles and every ring of stages goes round more than once."""
    monkeypatch.setattr(emulated, "SM_COUNT", 2)


@pytest.fixture
def reschedule(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Callable[[], str]:
    """Gives the launches that follow a fresh schedule, with all checks on; returns words for it."""
    device = emulator.Device

    def draw() -> str:
        seed, lazy = int(rng.integers(1 << 31)), bool(rng.integers(2))
        monkeypatch.setattr(emulator, "Device", functools.partial(device, seed=seed, lazy=lazy, checks=True))
        return f"schedule seed {seed} lazy {lazy}"

    return draw


@pytest.fixture(scope="module")
def registered(packs: list[str] | None) -> None:
    """Ops of the pack under test, in the place of those of another one that was there at the import."""
    from integrations import ops

    ops.register(packs)


@pytest.fixture
def emulate(registered: None, monkeypatch: pytest.MonkeyPatch, packs: list[str] | None,
            reschedule: Callable[[], str]) -> Callable[[str], None]:  # fmt: skip
    """Has launches on host buffers go to the emulated device of an arch, each under a schedule of its own."""

    def start(arch: str) -> None:
        monkeypatch.setenv("LOADER_EMULATED_ARCH", arch)
        launch = functools.partial(loader.launch, packs=packs)
        monkeypatch.setattr(loader, "launch", lambda *args, **kwargs: (reschedule(), launch(*args, **kwargs))[1])

    return start


@pytest.fixture
def emulated_hopper(registered: None, monkeypatch: pytest.MonkeyPatch, packs: list[str] | None) -> None:
    """Launches on host buffers go to an emulated sm_90a, by the pack under test."""
    monkeypatch.setenv("LOADER_EMULATED_ARCH", "90a")
    monkeypatch.setattr(loader, "launch", functools.partial(loader.launch, packs=packs))
