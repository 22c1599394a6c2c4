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

import marlin_layer  # noqa: E402
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


def plain_vllm() -> SimpleNamespace:
    """vLLM's functions, which leave everything in its place, and its kernels, which take that."""
    functions = SimpleNamespace(
        get_weight_perm=lambda bits: torch.arange(1024),
        marlin_permute_weights=lambda codes, k, n, perm: codes.reshape(k // 16, 16 * n),
        marlin_permute_scales=lambda s, size_k, size_n, group_size: s.contiguous(),
        marlin_permute_bias=lambda bias: bias,
        _nvfp4_compute_scale_factor=lambda scales, dtype: 2.0,
        nvfp4_marlin_process_scales=lambda s, scale_factor, a_dtype: ((s * scale_factor).to(torch.float8_e4m3fn), 0),
        nvfp4_marlin_process_global_scale=lambda alpha, dtype: alpha * 4.0,
        mxfp4_marlin_process_scales=lambda s: s.to(torch.float8_e8m0fnu),
    )  # fmt: skip

    def align(ids, experts, block, rows, of_blocks, padded, expert_map):
        assert expert_map is None
        slots, used = ids.flatten(), 0
        for expert in range(experts):
            mine = torch.nonzero(slots == expert)[:, 0]
            for first in range(0, len(mine), block):
                part = mine[first : first + block]
                rows[used : used + block], of_blocks[used // block] = len(slots), expert
                rows[used : used + len(part)] = part.int()
                used += block
        padded[0] = used

    def gemm(**given):
        n, k, block = given["size_n"], given["size_k"], given["moe_block_size"]
        assert given["a"].shape == (given["size_m"], k)
        weights, bias = given["topk_weights"].flatten(), given["b_bias_or_none"]
        for at in range(int(given["num_tokens_past_padded"]) // block):
            expert = int(given["expert_ids"][at])
            words = given["b_q_weight"][expert]
            codes = torch.stack([words >> 4 * place & 15 for place in range(8)], -1).reshape(k, n).int()
            values = torch.tensor(TABLE)[codes & 7] * torch.where(codes & 8 != 0, -1.0, 1.0)
            scales = given["b_scales"][expert].float()
            values = values * scales.repeat_interleave(k // len(scales), 0)
            factor = 1.0 if given["global_scale"] is None else float(given["global_scale"][expert]) / 4.0
            for slot in given["sorted_token_ids"][at * block : (at + 1) * block].tolist():
                if slot < len(weights):
                    row = given["a"][slot // given["top_k"]].float() @ values * factor
                    row = row if bias is None else row + bias[expert].float()
                    given["c_or_none"][slot] = row * (weights[slot] if given["mul_topk_weights"] else 1.0)

    def total(results, out):
        out.copy_(results.float().sum(1))

    return SimpleNamespace(functions=functions, gemm=gemm, multiprocessors=2, align=align, sum=total)


class Activation:
    """Stands for the Triton kernel, which needs a device."""

    def __getitem__(self, grid: tuple[int, int]):
        def launch(products, h, width, alpha, beta, limit, COLUMNS):
            assert grid == (len(h), -(-width // COLUMNS)) and products.shape == (len(h), 2 * width)
            gate, up = products.float().split(width, 1)
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            h.copy_(gate * torch.sigmoid(alpha * gate) * (up + beta))

        return launch


@pytest.mark.parametrize("composite", [name for name in SIZES if marlin_layer.takes(name)])
def test_marlin_gets_the_layer(composite: str, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stand-ins of its kernels that compute plainly what they are given, torch's result comes; tokens, and H and I
    of weights are padded as its tiles ask."""
    monkeypatch.setattr(marlin_layer, "_activate", Activation())
    tokens, vllm = layer.tokens(6), plain_vllm()
    launch, out = marlin_layer.by_marlin(layer, vllm)(tokens)
    assert out.shape == tokens["x"].shape and out.isnan().all()
    launch()
    other, expected = moe_peers.in_torch(layer)(tokens)
    other()
    assert float((out.double() - expected.double()).norm() / expected.double().norm()) < 8 * 2.0**-9
    first, rows = marlin_layer.operands(layer, vllm, "w13"), 2 * moe_problem.round_up(layer.size.between)
    assert (first.n, first.k) == (rows, 256) and first.arguments["b_q_weight"].shape == (3, 16, 2 * rows)


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


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the reason; one that is there with its version."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "deep_gemm", SimpleNamespace(__version__="1.2"))
    found, said = moe_peers.libraries([tmp_path])
    assert list(found) == ["DeepGEMM"] and said["DeepGEMM"] == "1.2"
    assert said["Marlin"].startswith("left out: FileNotFoundError: ")
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    found, said = moe_peers.libraries([tmp_path])
    assert found == {} and said["DeepGEMM"].startswith("left out: ModuleNotFoundError: ")


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
