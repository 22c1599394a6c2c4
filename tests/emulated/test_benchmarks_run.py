"""What benchmarks launch, at small sizes on the emulated device: so that a session on a GPU does not find it wrong."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import moe_peers  # noqa: E402
import moe_problem  # noqa: E402
import quantize  # noqa: E402
from moe_problem import GPT_OSS, Layer, Size  # noqa: E402

import loader  # noqa: E402

SIZES = {"moe_fp4": Size(3, 2, 128, 128), "moe_bf16_nvfp4": Size(3, 2, 128, 128), "moe_fp8": Size(3, 2, 256, 128),
         "moe_mxfp8_mxfp4": Size(3, 2, 160, 96, GPT_OSS), "moe_bf16_mxfp4": Size(3, 2, 160, 160, GPT_OSS)}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
    pytest.mark.skipif(moe_problem.DEVICE != "cpu", reason="layers would be on the device"),
]


@pytest.fixture
def emulated(packs: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "plan", functools.partial(loader.plan, device="emulated:90a", packs=packs))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("composite", SIZES)
def test_layers_are_as_near_to_torch_as_the_benchmark_asks(composite: str, seed: int) -> None:
    """And not nearer by much; its steps are those of the plan, and one by one moe_fp4 gives the same bytes."""
    layer = Layer(composite, SIZES[composite], seed)
    tokens = layer.tokens(5, seed)
    out = torch.full_like(tokens["x"], torch.nan)
    plan = loader.plan(composite, **layer.arguments, **tokens, out=out)  # host memory is not aligned as a workspace is
    plan.launch()
    launch, expected = moe_peers.in_torch(layer)(tokens)
    launch()
    error = float((out.double() - expected.double()).norm() / expected.double().norm())
    assert layer.format.max_error / 10 < error < layer.format.max_error
    assert list(moe_problem.steps(plan)) == list(moe_problem.STEPS)
    if composite == "moe_fp4":
        apart = torch.full_like(out, torch.nan)
        for _, step in moe_problem.unfused(layer, tokens, apart):
            step.launch()
        assert torch.equal(out, apart)


@pytest.mark.usefixtures("emulated")
def test_every_call_of_the_quantisers_is_accepted() -> None:
    """With its scalars; and their bytes are those that are read and written."""
    layer = quantize.Layer(8, 3)
    calls = layer.calls()
    for family, buffers in calls.items():
        assert loader.plan(family, **buffers, **quantize.scalars(buffers)).steps, family
    m, k = 24, quantize.HIDDEN
    assert layer.bytes(calls["mxfp8_quantize"]) == m * k * 3 + m * k // 32
    assert layer.bytes(calls["add_rms_norm_fp8_quantize"]) == m * k * 7 + 2 * k + m * k // 128 * 4
    assert layer.bytes(calls["fp8_ue8m0_quantize"]) == m * k * 3 + m * k // 128


SEEING = """
import json, sys; sys.path.insert(0, sys.argv[1])
import record, seeing_cost
from pathlib import Path
spread = record.Spread()
rows = seeing_cost.measure({"grouped_fp4": 1}, batches=1, spread=spread)
print(json.dumps([rows, len(seeing_cost.torch_steps(2, 2)["loader.launch"]), seeing_cost.jax_steps("", 2, 2)]))
"""


def test_the_cost_of_seeing_has_every_way(packs: list[str] | None) -> None:
    """In a process of its own, for an audit hook stays; a step inside jax.jit gives the loader's bytes there."""
    pytest.importorskip("jax")
    pytest.importorskip("cuda.bindings")
    environment = {**os.environ, "LOADER_EMULATED_ARCH": "90a", "JAX_PLATFORMS": "cpu"}
    environment |= {} if packs is None else {"LOADER_ARTIFACTS": os.pathsep.join(packs)}
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", SEEING, str(BENCHMARKS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, by_loader, by_jax = json.loads(done.stdout.splitlines()[-1])
    assert [(row["kernel"], row["way"]) for row in rows] == [("grouped_fp4", "plan.launch"),
                                                             ("grouped_fp4", "loader.launch")]  # fmt: skip
    ways = {"without the question", "nobody watches", "on_launch", "LOADER_LOG=select", "LOADER_LOG=launch",
            "LOADER_LOG=dump", "LOADER_TRACE_DIR", "an audit hook"}  # fmt: skip
    assert all(ways <= row.keys() and all(row[way] > 0 for way in ways) for row in rows)
    assert by_loader == len(by_jax) == 2 and min(by_jax) > 0


def test_each_way_to_see_is_on_and_off_again(packs: list[str] | None, tmp_path: Path) -> None:
    """While it is in force a launch is seen in its way, and nobody watches behind it."""
    pytest.importorskip("cuda.bindings")
    import seeing_cost

    (arguments,) = seeing_cost.calls({"grouped_fp4": 1}).values()
    launch = functools.partial(loader.launch, "grouped_fp4", **arguments, device="emulated:90a", packs=packs)
    try:
        for name, enter in seeing_cost.modes(tmp_path).items():
            before = (tmp_path / "log").read_text()
            with enter():
                launch()
            assert not loader.observe.watchers, name
            assert ((tmp_path / "log").read_text() != before) == name.startswith("LOADER_LOG"), name
    finally:
        seeing_cost._without_handlers()
    assert len(list((tmp_path / "traces").iterdir())) == 1
