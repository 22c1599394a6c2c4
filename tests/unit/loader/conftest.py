"""Fixtures of the loader's tests: a small pack, a fake CUDA driver, and a loader without memory of earlier tests."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import sample_pack  # noqa: E402
from fake_cuda import FakeCuda  # noqa: E402

from loader import api, driver, emulated, module, observe, observers, registry, trust, tuned  # noqa: E402


@pytest.fixture(autouse=True)
def fresh_loader(monkeypatch):
    """Nothing is remembered from one test to the next, and no environment variable leaks in."""
    for name in (registry.ENVIRONMENT_VARIABLE, emulated.ARCH_VARIABLE, emulated.LIMIT_VARIABLE, trust.POLICY_VARIABLE,
                 trust.KEYS_VARIABLE, tuned.VARIABLE, *observers._MAKERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(api, "_calls", {})
    monkeypatch.setattr(registry, "_registries", {})
    monkeypatch.setattr(module, "_libraries", {})
    monkeypatch.setattr(driver, "_driver", None)
    monkeypatch.setattr(driver, "forked", False)
    monkeypatch.setattr(emulated, "_modules", {})
    monkeypatch.setattr(emulated, "_warned", False)
    monkeypatch.setattr(observers, "_in_force", ())
    monkeypatch.setattr(observers, "_removals", [])
    yield
    observe.watchers.clear()


@pytest.fixture
def cuda(monkeypatch):
    """A fake driver with two sm_120 devices and one sm_90."""
    fake = FakeCuda()
    monkeypatch.setattr(driver, "open_library", lambda: fake)
    return fake


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """The sample pack, found through LOADER_ARTIFACTS."""
    directory = tmp_path / "pack"
    sample_pack.write(directory)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(directory))
    return directory
