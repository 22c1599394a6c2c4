"""What benchmarks/peers.py gives other libraries: of stand-ins that compute plainly the result of the problem comes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gemm_peers  # noqa: E402
import vllm_marlin  # noqa: E402
from gemm_peers import Launch, Weights  # noqa: E402
from problem import DEVICE, Problem  # noqa: E402

COUNTS, N, K = (5, 0, 1, 20), 128, 256  # one expert without rows, one with a single row
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="problems would be on the device")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(len(COUNTS), N, K)


@pytest.fixture(scope="module")
def given() -> Problem:
    return gemm_peers.make_problem(COUNTS, N, K)


def errors(way: gemm_peers.Way, given: Problem, weights: Weights) -> dict[str, float]:
    """By column and label, of a way that starts from NaN."""
    expected = weights.expected(given.activations(), given.counts)
    return {f"{launch.column}, {launch.label}": gemm_peers.judge(launch, launch.call(), expected)
            for launch in way(given)}  # fmt: skip


def test_the_reference_is_the_problem(given, weights, rng):
    """Element by element of the bytes that kernels read; experts next to each other differ in alpha."""
    expected = weights.expected(given.activations(), given.counts)
    ends = np.cumsum(COUNTS)
    assert len(set(weights.alpha.tolist())) == len(COUNTS) and torch.equal(weights.alpha, given.inputs["alpha"])
    assert torch.equal(weights.packed, given.inputs["b"])
    for _ in range(50):
        m, n = int(rng.integers(sum(COUNTS))), int(rng.integers(N))
        e = int(np.searchsorted(ends, m, side="right"))
        total = 0.0
        for k in range(K):
            codes = [int(row[k // 2]) >> 4 * (k % 2) & 15 for row in (given.inputs["a"][m], given.inputs["b"][e, n])]
            scales = float(given.a_groups[m, k // 16]) * float(given.b_groups[e, n, k // 16])
            total += float(VALUES[codes[0]]) * float(VALUES[codes[1]]) * scales
        assert float(expected[m, n]) == pytest.approx(total * float(given.inputs["alpha"][e]), rel=1e-6, abs=1e-6)


def test_torch_gets_the_problem(given, weights):
    """Weights with alpha, and the end of each expert's rows."""
    found = errors(gemm_peers.in_torch(gemm_peers.find_torch([])[0], weights), given, weights)
    assert list(found) == ["grouped_mm, bf16"]


def values_of(codes: torch.Tensor, scales: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """fp64 [N, K]."""
    return VALUES[codes.int()].double() * scales.double().repeat_interleave(16, -1) * alpha.double()


def plain_vllm() -> SimpleNamespace:
    """vLLM's functions, which leave everything in its place; a common factor of 4 of scales."""
    return SimpleNamespace(
        get_weight_perm=lambda bits: torch.arange(1024),
        marlin_permute_weights=lambda codes, k, n, perm: codes.reshape(k // 16, 16 * n),
        marlin_permute_scales=lambda s, size_k, size_n, group_size: s,
        _nvfp4_compute_scale_factor=lambda scales, dtype: 4.0,
        nvfp4_marlin_process_scales=lambda s, scale_factor, a_dtype: (
            (s * scale_factor).to(torch.float8_e4m3fn), scale_factor),
        nvfp4_marlin_process_global_scale=lambda alpha, dtype: alpha * 2.0,
    )  # fmt: skip


def plain_marlin(**given) -> torch.Tensor:
    """Block by block."""
    k, n, block = given["size_k"], given["size_n"], given["moe_block_size"]
    words, out = given["b_q_weight"], given["c_or_none"]
    assert len(given["sorted_token_ids"]) == int(given["num_tokens_past_padded"]) == block * len(given["expert_ids"])
    for of, expert in enumerate(given["expert_ids"].tolist()):
        codes = torch.stack([words[expert] >> 4 * place & 15 for place in range(8)], -1).reshape(k, n).T
        b = values_of(codes, given["b_scales"][expert].float().T, given["global_scale"][expert] / 2)
        for row in given["sorted_token_ids"][of * block : (of + 1) * block].tolist():
            if row < given["size_m"]:
                out[row] = (b @ given["a"][row].double()).bfloat16()
    return out


def test_marlin_gets_the_problem(given, weights):
    """Eight weights a word, scales with their common factor, blocks of one expert; first the block by the rule."""
    vllm = SimpleNamespace(functions=plain_vllm(), gemm=plain_marlin, multiprocessors=2)
    assert list(errors(gemm_peers.by_marlin(vllm, weights), given, weights)) == [
        "Marlin, block 8", "Marlin, best block, block 8", "Marlin, best block, block 16"]  # fmt: skip


def test_marlin_has_blocks_by_its_rule():
    """The first that is less than nine tenths full; neighbours are no more than there are."""
    rows = (1, 7.1, 7.2, 16, 43.3, 1024)
    assert [vllm_marlin.block_by_rule(m) for m in rows] == [8, 8, 16, 32, 64, 64]
    assert [vllm_marlin.nearest(block) for block in (8, 32, 64)] == [(8, 16), (16, 32, 48), (48, 64)]


class HummingLayer:
    """Computes by the counts of this problem."""

    known = {"indexed": (None, "ids", "blocks", "padded"), "grouped_contiguous": ("ends", None, None, None)}

    def __init__(self, **words) -> None:
        assert words["weight_config"] == {"quant_method": "modelopt", "quant_algo": "nvfp4"}
        assert (words["shape_n"], words["shape_k"], words["num_experts"]) == (N, K, len(COUNTS))
        self.humming_config = "a config"

    def to(self, device: str) -> HummingLayer:
        return self

    def load_from_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        packed, scales, alphas = (tensors[name] for name in ("weight", "weight_scale", "weight_scale_2"))
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
        self.loaded = [values_of(*part) for part in zip(codes, scales, alphas, strict=True)]

    def transform(self) -> None:
        self.transformed = self.loaded

    def __call__(self, tokens, *, outputs, valid_shape_m, compute_config, tuning_config, top_k, **rows) -> None:
        form = json.loads(compute_config)["gemm_type"]
        names = ("expert_layout", "sorted_ids", "expert_ids", "num_tokens_padded")
        assert tuple(rows[name] for name in names) == self.known[form] and top_k == 1
        assert json.loads(tuning_config) == {"block_shape": [4, 64, 64]} and valid_shape_m == len(tokens)
        parts = zip(tokens.split(list(COUNTS)), self.transformed, strict=True)
        outputs.copy_(torch.cat([a.double() @ b.T for a, b in parts]))


def test_humming_gets_the_problem(given, weights):
    """Checkpoint tensors as they are; and of both forms what its own function says of rows, by the block of a tile."""
    asked = []

    def layout(expert_of_row, experts, form, block):
        asked.append((form, block, experts, expert_of_row[:, 0].bincount(minlength=experts).tolist()))
        return expert_of_row, *HummingLayer.known[form]

    def tile(config, *, shape_m, gemm_type, device):
        assert (config, shape_m, device) == ("a config", sum(COUNTS), 0) and gemm_type in HummingLayer.known
        return {"block_shape": [4, 64, 64]}

    humming = SimpleNamespace(
        layer=SimpleNamespace(HummingLayer=HummingLayer), tune=SimpleNamespace(get_heuristics_config=tile),
        testing=SimpleNamespace(data=SimpleNamespace(generate_moe_tensors=layout)))  # fmt: skip
    found = errors(gemm_peers.by_humming(humming, weights), given, weights)
    assert list(found) == ["Humming indexed, [4, 64, 64]", "Humming grouped, [4, 64, 64]"]
    assert asked == [(form, 4, len(COUNTS), list(COUNTS)) for form in HummingLayer.known]


def test_deep_gemm_gets_the_problem_in_fp8(given, weights):
    """Rows of each expert in a matrix of its own, zeros behind them; not as near as the others, and near enough."""

    def masked(a, b, out, counts, expected_rows):
        assert expected_rows == -(-sum(COUNTS) // len(COUNTS)) and a[1].stride() == (128, 1, 64)
        left = a[0].double() * a[1].double().repeat_interleave(128, -1)
        right = b[0].double() * b[1].double().repeat_interleave(128, -1).repeat_interleave(128, -2)
        for expert, count in enumerate(counts.tolist()):
            assert not left[expert, count:].any()
            out[expert, :count] = (left[expert, :count] @ right[expert].T).bfloat16()

    library = SimpleNamespace(m_grouped_fp8_gemm_nt_masked=masked)
    (error,) = errors(gemm_peers.by_deep_gemm(library, weights), given, weights).values()
    assert 0.01 < error < gemm_peers.MAX_ERROR_OF_FP8


def test_triton_has_no_tile_for_other_counts(given, weights):
    """Its rows begin at multiples of one number."""
    assert gemm_peers.in_triton(None, weights)(given) == []
    equal = gemm_peers.in_triton(None, weights)(gemm_peers.make_problem([16] * len(COUNTS), N, K))
    assert {launch.column for launch in equal} == {"Triton"} and len({launch.label for launch in equal}) == len(equal)


FAULTS = {
    "a row that nobody wrote": lambda out: out[7].fill_(torch.nan),
    "an element that nobody wrote": lambda out: out[3, 5].fill_(torch.nan),
    "two rows for one another": lambda out: out.index_copy_(0, torch.tensor([3, 9]), out[[9, 3]]),
    "half of a row": lambda out: out[11, : N // 2].zero_(),
    "the scale of a row": lambda out: out[5].mul_(1.01),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_row_is_an_error(fault, given, weights):
    """Whatever the other rows are like."""
    expected = weights.expected(given.activations(), given.counts)
    launch, out = Launch("a", "b", lambda: None), expected.bfloat16()
    assert 1e-4 < gemm_peers.judge(launch, out, expected) < gemm_peers.MAX_ERROR
    FAULTS[fault](out)
    with pytest.raises(RuntimeError, match="relative error .* exceeds 0.004"):
        gemm_peers.judge(launch, out, expected)


def test_a_result_of_another_shape_is_an_error():
    """Not broadcast."""
    with pytest.raises(RuntimeError, match=r"a result of \(1, 8\), expected \(4, 8\)"):
        gemm_peers.judge(Launch("a", "b", lambda: None), torch.ones(1, 8), torch.ones(4, 8))


def vllm_files(folder: Path) -> None:
    folder.mkdir()
    for file, names in vllm_marlin.FUNCTIONS.items():
        text = ["import vllm.that_is_not_here", *(f"def {name}(): return {name!r}, GPTQ_MARLIN_TILE" for name in names)]
        (folder / file).write_text("\n".join(text))


def test_functions_come_out_of_files_alone(tmp_path):
    """Nothing that these import runs; one that is not there any more is named."""
    vllm_files(tmp_path / "vllm_src")
    found = vllm_marlin.functions(tmp_path / "vllm_src")
    assert found.get_scale_perms() == ("get_scale_perms", 16) and not hasattr(found, "vllm")
    (tmp_path / "vllm_src" / "marlin_utils.py").write_text("def get_scale_perms(): pass")
    with pytest.raises(ImportError, match="marlin_utils.py has no function marlin_permute_scales"):
        vllm_marlin.functions(tmp_path / "vllm_src")


def test_wheels_and_libraries_are_unpacked(tmp_path):
    """Programs as such; the library out of its archive."""
    source, place = tmp_path / "peers", tmp_path / "place"
    source.mkdir()
    place.mkdir()
    with zipfile.ZipFile(source / "a.whl", "w") as wheel:
        program = zipfile.ZipInfo("a_package/program")
        program.external_attr = 0o100755 << 16
        wheel.writestr(program, "#!")
        wheel.writestr("a_package/__init__.py", "")
    (source / "moe.so.gz").write_bytes(gzip.compress(b"a library"))
    gemm_peers.unpack(source, place)
    assert (place / gemm_peers.LIBRARY).read_bytes() == b"a library"
    assert os.access(place / "a_package/program", os.X_OK)
    assert not (place / "a_package/__init__.py").stat().st_mode & 0o111


def test_a_peer_that_is_not_there_is_named(tmp_path, monkeypatch):
    """With the reason, whatever it raises; one that is there with its version."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "deep_gemm.py").write_text("__version__ = '1.2'")
    (tmp_path / "humming.py").write_text("raise RuntimeError('no CUDA 13')")
    found, said = gemm_peers.find(["grouped_mm", "Marlin", "Humming", "DeepGEMM"], [tmp_path])
    assert set(found) == {"grouped_mm", "DeepGEMM"} and said["DeepGEMM"] == "1.2"
    assert said["grouped_mm"] == torch.__version__ and said["Triton"] == "left out: not asked for"
    assert said["Humming"] == "left out: RuntimeError: no CUDA 13"
    assert said["Marlin"].startswith("left out: FileNotFoundError: ") and set(said) == set(gemm_peers.PEERS)
    monkeypatch.delitem(sys.modules, "deep_gemm")
    vllm_files(tmp_path / "vllm_src")
    (tmp_path / gemm_peers.LIBRARY).write_bytes(b"no library")
    assert gemm_peers.find(["Marlin"], [tmp_path])[1]["Marlin"].startswith("left out: OSError: ")


def start(code: str) -> subprocess.CompletedProcess:
    """A program beside the benchmarks, whose names tests have, too."""
    return subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=False)


COMPARE = """
import json, types, gemm_peers, peers, torch
from gemm_peers import Launch
expected = torch.ones(4, 8)
peers.capture = lambda call: (types.SimpleNamespace(replay=call), call())
given = types.SimpleNamespace(shape=(4, 8, 16, 2), counts=(1, 3))

def launch(column, label, microseconds, value=1.0):
    out = torch.empty(4, 8)
    call = lambda: out.fill_(value)
    call.microseconds = microseconds
    return Launch(column, label, call)

def broken(given):
    raise ValueError("no such shape")

timer = types.SimpleNamespace(in_turn=lambda calls, replays: [call.microseconds for call in calls])
ours = [launch(peers.OURS, "a", 3.0), launch(peers.BEST, "a", 3.1), launch(peers.BEST, "b", 2.0)]
ways = {peers.OURS: lambda given: ours, "Marlin": broken,
        "Triton": lambda given: [launch("Triton", "wrong", 1.0, 2.0), launch("Triton", "right", 4.0)]}
row = peers.compare(ways, given, expected, timer)
ours.append(launch(peers.BEST, "c", 1.0, torch.nan))
try:
    peers.compare(ways, given, expected, timer)
except RuntimeError as error:
    row["ours"] = str(error)
print(json.dumps(row))
"""


def test_a_peer_that_fails_is_a_line_of_the_row():
    """And is not timed; the fastest of a column is it. Of our own kernels none may fail."""
    done = start(COMPARE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "grouped_bf16_nvfp4": 3.0, "best bf16 tile": 2.0, "Triton": 4.0,
        "kernels": {"grouped_bf16_nvfp4": "a", "best bf16 tile": "b", "Triton": "right"},
        "errors": {"grouped_bf16_nvfp4": 0.0, "best bf16 tile": 0.0, "Triton": 0.0},
        "failed": {"Marlin": "ValueError: no such shape",
                   "Triton, wrong": "RuntimeError: relative error 1 exceeds 0.004"},
        "ours": "(4, 8, 16, 2): {'best bf16 tile, c': 'RuntimeError: relative error nan exceeds 0.004'}",
    }  # fmt: skip


MEASURE = """
import json, types, gemm_peers, peers, torch
peers.capture = lambda call: (types.SimpleNamespace(replay=lambda: call()), call())

def exact(_, weights):
    def way(given):
        out = given.output()
        call = lambda: out.copy_(weights.expected(given.activations(), given.counts))
        return [gemm_peers.Launch(peers.OURS, "a", call)]
    return way

def broken(library, weights):
    raise ValueError(f"no layer of {library}")

peers.ours = exact
peers.PEERS["Marlin"] = peers.PEERS["Marlin"]._replace(prepare=broken)
timer = types.SimpleNamespace(in_turn=lambda calls, replays: [1.0 for _ in calls])
routings = [("equal", 2, [2, 2]), ("routed", 2, [0, 4])]
print(json.dumps(list(peers.measure({"Marlin": "theirs"}, 128, 256, routings, timer, 1e6))))
"""


def test_rows_are_of_every_routing():
    """Each with its floor, and with who could not prepare the weights."""
    done = start(MEASURE)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [
        (row["routing"], row["m"], row["N"], row["K"], row["experts"], row["grouped_bf16_nvfp4"]) for row in rows
    ] == [(routing, 2, 128, 256, 2, 1.0) for routing in ("equal", "routed")]
    assert {row["failed"] for row in rows} == {"Marlin: ValueError: no layer of theirs"}
    assert [row["floor"] for row in rows] == [2 * 4 * 384 + experts * 128 * 256 * 9 // 16 for experts in (2, 1)]


def test_the_table_has_a_dash_for_what_is_not_there():
    """And names what failed; the floor is of experts that have rows."""
    row = {"N": 64, "K": 32, "routing": "equal", "m": 4, "floor": 9.5, "grouped_bf16_nvfp4": 12.0, "Marlin": 13.0,
           "failed": "Humming: RuntimeError: why"}  # fmt: skip
    done = start(f"""
import types, peers
print(peers.tables([{row!r}]))
print(peers.least_bytes(types.SimpleNamespace(shape=(7, 64, 32, 3), counts=(5, 0, 2))))
""")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "64 x 32, 4 rows, equal: Humming: RuntimeError: why" in lines
    begin = lines.index("<!-- benchmarks/peers.py: begin -->")
    assert lines[begin + 1].startswith("| N | K | routing | m | floor | grouped_bf16_nvfp4 | best bf16 tile |")
    assert lines[begin + 3] == "| 64 | 32 | equal | 4 | 9.5 | 12 | - | - | - | - | 13 | - | - | - | - |"
    assert lines[-1] == str(2 * 7 * (64 + 32) + 2 * 64 * (32 // 2 + 32 // 16))


def test_everything_is_compiled_once():
    """What does not depend on the shape for one shape, one module for all rows at once."""
    rows, shapes = [1, 16], [(8, 16), (32, 16)]
    assert {name: peer.compiled(rows, shapes) for name, peer in gemm_peers.PEERS.items()} == {
        "grouped_mm": [], "Triton": [([1], [(8, 16)]), ([16], [(8, 16)])], "Marlin": [([1, 16], [(8, 16)])],
        **dict.fromkeys(("Humming", "DeepGEMM"), [([m], [shape]) for m in rows for shape in shapes]),
    }  # fmt: skip
