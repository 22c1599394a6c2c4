"""The layers that benchmarks/moe.py times: weights as kernels take them, peers that run on a host, and the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import moe_peers  # noqa: E402
import moe_problem  # noqa: E402
from moe_problem import GPT_OSS, Layer, Size  # noqa: E402

from integrations.weight_fragments import from_fragments  # noqa: E402

# H and I are no multiples of 128 where kernels pad them.
SIZES = {"moe_fp4": Size(3, 2, 256, 128), "moe_bf16_nvfp4": Size(3, 2, 256, 128), "moe_fp8": Size(3, 2, 256, 128),
         "moe_mxfp8_mxfp4": Size(3, 2, 160, 96, GPT_OSS), "moe_bf16_mxfp4": Size(3, 2, 160, 160, GPT_OSS)}  # fmt: skip
every_format = pytest.mark.parametrize("composite", SIZES)
TABLE = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
pytestmark = pytest.mark.skipif(moe_problem.DEVICE != "cpu", reason="layers would be on the device")


@pytest.fixture
def layer(composite: str, seed: int) -> Layer:
    return Layer(composite, SIZES[composite], seed)


def plain(scales: torch.Tensor) -> torch.Tensor:
    """Scales [rows, columns] from blocks of 128 rows by 4."""
    rows, columns = scales.shape
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    within = (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4
    return scales.flatten()[((r // 128) * (columns // 4) + c // 4) * 512 + within]


def element(byte: int) -> float:
    return TABLE[byte & 7] * (-1 if byte & 8 else 1)


@every_format
def test_weights_of_kernels_are_those_of_torch(composite: str, layer: Layer, rng) -> None:
    """Element by element, as the composite's arguments say where it lies; where torch has none there are zeros."""
    given, size = layer.arguments, layer.size
    for name, weights, rows in (("w13", layer.gate_up, 2 * size.between), ("w2", layer.w2, size.hidden)):
        values = weights.bf16().double()
        stored, scales, k = given[name], given[f"{name}_scale"], weights.shape[2]
        stored, turn = (from_fragments(stored, k), 64) if layer.format.fragments else (stored, 1)
        for _ in range(200):
            e, n, column = (int(rng.integers(extent)) for extent in (size.experts, rows, k))
            if composite == "moe_fp8":
                place = divmod(n, size.between) if name == "w13" else (n,)
                of_block = (*place[:-1], place[-1] // 128, column // 128)
                found = float(stored[(e, *place, column)]) * float(scales[(e, *of_block)])
            else:
                up, i = divmod(n, size.between)
                row = (i // turn * 2 + up) * turn + i % turn if name == "w13" else n
                code = int(stored[e, row, column // 2]) >> 4 * (column % 2) & 15
                scale = plain(scales[e])[row, column // layer.format.block[1]].view(layer.format.scale)
                found = element(code) * float(scale) * layer.format.decode
            assert found == values[e, n, column], f"{name} {e} {n} {column}"
        if composite == "moe_mxfp8_mxfp4":
            assert stored.shape[1:] == ((256, 128) if name == "w13" else (160, 64))
            assert not stored[..., k // 2 :].any() and not stored[:, rows:].any()
        if composite == "moe_bf16_mxfp4":  # I to 64
            assert given[name].shape[1:] == ((384, 128) if name == "w13" else (160, 128))
            if name == "w13":
                bias = given["w13_bias"].unflatten(1, (3, 2, 64)).transpose(1, 2).flatten(2)
                assert torch.equal(bias[..., : size.between].flatten(1), layer.biases[0])
                assert not bias[..., size.between :].any()


@every_format
def test_torch_computes_the_layer(layer: Layer) -> None:
    """Token by token in float64: bf16 products and sums of a few roundings each."""
    tokens, size = layer.tokens(9), layer.size
    launch, out = moe_peers.in_torch(layer)(tokens)
    launch()
    gate_up, down = layer.gate_up.bf16().double(), layer.w2.bf16().double()
    w13_bias, w2_bias = layer.biases or (torch.zeros(size.experts, 1), torch.zeros(size.experts, 1))
    expected = torch.zeros(out.shape, dtype=torch.float64)
    for t in range(9):
        for e, weight in zip(tokens["topk_ids"][t].tolist(), tokens["topk_weights"][t].double(), strict=True):
            products = gate_up[e] @ tokens["x"][t].double() + w13_bias[e].double()
            gate, up = products[: size.between], products[size.between :]
            if size.swiglu:
                gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
                between = gate * torch.sigmoid(1.702 * gate) * (up + 1.0)
            else:
                between = gate * torch.sigmoid(gate) * up
            expected[t] += weight * (down[e] @ between + w2_bias[e].double())
    assert float((out.double() - expected).norm() / expected.norm()) < 8 * 2.0**-9


@pytest.mark.parametrize("composite", ["moe_bf16_mxfp4"])
def test_marlin_gets_the_layer(layer: Layer) -> None:
    """What its functions are called with is the layer: of stand-ins that compute it plainly, torch's result comes."""
    kept = []

    def values(elements: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        codes = torch.stack([elements & 15, elements >> 4], dim=-1).flatten(-2).int()
        magnitudes = torch.tensor(TABLE)[codes & 7] * torch.where(codes & 8 != 0, -1.0, 1.0)
        return magnitudes * torch.exp2(scales.float() - 127).repeat_interleave(32, dim=-1)

    def prepare(holder, w13, w2, w13_scale, w2_scale, w13_bias, w2_bias):
        assert holder.params_dtype == torch.bfloat16 and w13_bias.dtype == w2_bias.dtype == torch.bfloat16
        return values(w13, w13_scale), values(w2, w2_scale), None, None, w13_bias.float(), w2_bias.float()

    def fused(x, w1, w2, bias1, bias2, scale1, scale2, weights, ids, *, quant_type_id, activation, moe_sum, output):
        kept.append((quant_type_id, activation, moe_sum))
        output.zero_()
        for t, k in ((t, k) for t in range(len(x)) for k in range(ids.shape[1])):
            e = int(ids[t, k])
            products = w1[e] @ x[t].float() + bias1[e]
            gate, up = products[0::2].clamp(max=7.0), products[1::2].clamp(-7.0, 7.0)
            rows = w2[e] @ (gate * torch.sigmoid(1.702 * gate) * (up + 1.0)) + bias2[e]
            output[t] += (weights[t, k] * rows).bfloat16()

    modules = (
        SimpleNamespace(), SimpleNamespace(fused_marlin_moe=fused),
        SimpleNamespace(MoEActivation=SimpleNamespace(SWIGLUOAI="of gpt-oss")),
        SimpleNamespace(prepare_moe_mxfp4_layer_for_marlin=prepare), SimpleNamespace(moe_sum="sum"),
        SimpleNamespace(scalar_types=SimpleNamespace(float4_e2m1f=SimpleNamespace(id=5))),
    )  # fmt: skip
    tokens = layer.tokens(6)
    assert len(modules) == len(moe_peers.LIBRARIES["Marlin"].modules)
    launch, out = moe_peers.by_marlin(layer, *modules)(tokens)
    assert out.shape == tokens["x"].shape and out.isnan().all()
    launch()
    other, expected = moe_peers.in_torch(layer)(tokens)
    other()
    assert kept == [(5, "of gpt-oss", "sum")] and moe_peers.marlin_operands(layer)[0].shape == (3, 512, 128)
    assert float((out.double() - expected.double()).norm() / expected.double().norm()) < 8 * 2.0**-9
    plain_swiglu = Layer("moe_fp4", SIZES["moe_fp4"])
    with pytest.raises(ValueError, match="Marlin's activation is that of gpt-oss, .* the layer has {}"):
        moe_peers.by_marlin(plain_swiglu, *modules)


@every_format
def test_the_floor_is_of_experts_with_tokens(composite: str, layer: Layer) -> None:
    """Weights, scales and biases of these, without padding, tokens and results."""
    tokens = layer.tokens(1)
    size = layer.size
    elements = 3 * size.hidden * size.between
    nvfp4 = elements // 2 + elements // 16
    weights = {"moe_fp4": nvfp4, "moe_bf16_nvfp4": nvfp4, "moe_fp8": elements + elements // 128**2 * 4,
               **dict.fromkeys(("moe_mxfp8_mxfp4", "moe_bf16_mxfp4"),
                               elements // 2 + elements // 32 + 4 * (2 * size.between + size.hidden))}  # fmt: skip
    assert layer.least_bytes(tokens) == 2 * weights[composite] + 4 * size.hidden


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, also where only a part of it is missing; one that is there with its version."""
    for name in (name for library in moe_peers.LIBRARIES.values() for name in library.modules):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__="1.2"))
    found, said = moe_peers.libraries()
    assert [len(modules) for modules in found.values()] == [1, 6] and said == {"deep_gemm": "1.2", "vllm": "1.2"}
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", None)
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    found, said = moe_peers.libraries()
    assert found == {} and said["deep_gemm"].startswith("left out: ") and "vllm._custom_ops" in said["vllm"]


def start(code: str) -> subprocess.CompletedProcess:
    """A program beside the benchmarks, whose names tests have, too."""
    return subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=False)


def test_the_table_has_a_dash_for_what_is_not_there() -> None:
    """Of layers that a way does not compute, and of peers that were left out."""
    steps = dict.fromkeys(moe_problem.STEPS, 1.0)
    common = {"tokens": 1, "active experts": 8, "floor": 46.0, "ours": 50.0, "torch": 300.0, "steps": steps}
    rows = [{"layer": "A", "kernel": "moe_fp4", "unfused": 60.0, **common},
            {"layer": "B", "kernel": "moe_fp8", "DeepGEMM": 70.0, **common}]  # fmt: skip
    done = start(f"import moe; print(moe.tables({rows!r}))")
    assert done.returncode == 0, done.stderr
    text = done.stdout.splitlines()
    assert text[1].split()[-5:] == list(moe_problem.STEPS)
    begin = text.index("<!-- benchmarks/moe.py: begin -->")
    assert text[begin + 1 :] == [
        "| layer | kernel | tokens | active experts | floor | ours | unfused | torch | DeepGEMM | Marlin |",
        "| --- |" + " ---: |" * 9,
        "| A | moe_fp4 | 1 | 8 | 46 | 50 | 60 | 300 | - | - |",
        "| B | moe_fp8 | 1 | 8 | 46 | 50 | - | 300 | 70 | - |",
        "<!-- benchmarks/moe.py: end -->",
    ]


COMPARED = {
    "": "",
    "results['Marlin'][0] = torch.nan": "relative difference nan of Marlin from torch exceeds 0.25",
    "results['DeepGEMM'] *= 2": "relative difference 1 of DeepGEMM from torch exceeds 0.25",
    "results['unfused'][0] += 1e-3": "moe_fp4 and its unfused kernels differ",
}


def test_results_are_compared_before_they_are_timed() -> None:
    """With torch's, and one call with its kernels one by one by every byte."""
    done = start(f"""
import json, types, moe, torch
layer, said = types.SimpleNamespace(format=moe.FORMATS["moe_fp4"]), []
for change in {list(COMPARED)}:
    results = {{name: torch.ones(5, 8) for name in ("ours", "torch", "DeepGEMM", "Marlin", "unfused")}}
    exec(change)
    try:
        assert set(moe.check(layer, results, "5 tokens").values()) == {{0.0}}
        said.append("")
    except RuntimeError as error:
        said.append(str(error))
print(json.dumps(said))
""")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [message and f"5 tokens: {message}" for message in COMPARED.values()]
