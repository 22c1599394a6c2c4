"""What tests of checkpoints have in common."""

from __future__ import annotations

import manifest_pack
import pytest


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The kernels of kernels.yaml, as the loader sees them."""
    directory = tmp_path_factory.mktemp("pack")
    manifest_pack.write(directory)
    return str(directory)
