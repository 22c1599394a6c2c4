"""Parts of the benchmark that runs vLLM's layers: its reference, and what stands in for modules that are not there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import engines  # noqa: E402
import vllm_parts  # noqa: E402
from device_problem import expand  # noqa: E402
from reference import E2M1, UE4M3  # noqa: E402

SIZE = engines.Size(3, 2, 32, 16, (5,))


@pytest.fixture
def weights(rng) -> engines.Weights:
    return engines.Weights(SIZE, torch.Generator().manual_seed(int(rng.integers(1 << 62))))


def test_weights_are_those_of_the_format(weights: engines.Weights) -> None:
    """As the reference of tests reads them, times the expert's scale."""
    for name in ("w13", "w2"):
        stored = weights.tensors[f"{name}_weight"], weights.tensors[f"{name}_weight_scale"].view(torch.uint8)
        factors = weights.tensors[f"{name}_weight_scale_2"].reshape(SIZE.experts, -1)[:, 0]
        assert len(set(factors.tolist())) == SIZE.experts
        for expert in range(SIZE.experts):
            values = expand(stored[0][expert], stored[1][expert], E2M1, UE4M3)
            assert torch.equal(weights.values(name, expert), values * factors[expert].double())


def test_the_reference_is_a_sum_over_experts(weights: engines.Weights, rng) -> None:
    """Token by token, by its formula; another expert or another weight gives something else."""
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    hidden = torch.randn(5, SIZE.hidden, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(SIZE.experts, generator=generator)[:2] for _ in range(5)])
    of_chosen = torch.rand(5, 2, generator=generator)
    expected = weights.expected(hidden, ids, of_chosen)
    for token in range(5):
        total = torch.zeros(SIZE.hidden, dtype=torch.float64)
        for expert, weight in zip(ids[token].tolist(), of_chosen[token].double(), strict=True):
            products = weights.values("w13", expert) @ hidden[token].double()
            gate, up = products[: SIZE.between], products[SIZE.between :]
            total += weight * (weights.values("w2", expert) @ (gate * torch.sigmoid(gate) * up))
        assert torch.allclose(expected[token], total, rtol=1e-12)
    size = expected.square().mean().sqrt()
    for other in (weights.expected(hidden, ids.roll(1, 0), of_chosen), weights.expected(hidden, ids, of_chosen * 1.05)):
        assert (other - expected).square().mean().sqrt() > engines.MAX_ERROR * size


def test_stand_ins_take_what_imports_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases, decorators, annotations and calls; only of the modules that are named."""
    finder = vllm_parts.Finder(["not_installed"])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    module = importlib.import_module("not_installed.below")
    assert finder.used == {"not_installed"}
    try:

        class Derived(module.Base, frozen=True):
            field: module.Type | None = None

        assert module.decorate(test_stand_ins_take_what_imports_do) is test_stand_ins_take_what_imports_do
        assert module.decorate(option=1)(Derived) is Derived and list(module.names) == []
        assert isinstance(Derived(), vllm_parts.StandIn) and Derived.anything[0](1, 2).more() is not None
        with pytest.raises(ImportError):
            importlib.import_module("not_installed_either")
    finally:
        for name in [name for name in sys.modules if name.startswith("not_installed")]:
            del sys.modules[name]


def test_a_folder_without_vllm_is_told(tmp_path: Path) -> None:
    """Before anything of the process is changed."""
    found = list(sys.meta_path)
    with pytest.raises(FileNotFoundError, match="has no vllm/model_executor"):
        vllm_parts.bring(tmp_path, None)
    assert sys.meta_path == found
