"""moe_route, moe_gather_quantize and moe_combine at real sizes, to the bit, against torch on the device."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from device_problem import TORCH_TYPES, Output  # noqa: E402
from reference import round_up  # noqa: E402
from routing import Routing, random_ids, route  # noqa: E402

import loader  # noqa: E402

DEVICE = "cuda"
# tokens, experts a token, experts, hidden size: decode and prefill, tails everywhere.
PROBLEMS = [(0, 8, 256, 7168), (1, 8, 256, 7168), (64, 8, 256, 7168), (4096, 8, 256, 7168), (517, 5, 1000, 2896)]
problems = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "t{}k{}e{}h{}".format(*p))


def launch_route(ids: torch.Tensor, experts: int, first_expert: int = 0) -> dict[str, torch.Tensor]:
    """The outputs of moe_route by name; what it does not write is 0x5A5A5A5A."""
    shapes = {"expert_offsets": (experts + 1,), "scale_offsets": (experts,), "row_of_slot": tuple(ids.shape),
              "slot_of_row": (ids.numel(),)}  # fmt: skip
    outputs = {name: torch.full(shape, 0x5A5A5A5A, dtype=torch.int32, device=DEVICE) for name, shape in shapes.items()}
    loader.launch("moe_route", topk_ids=ids, **outputs, first_expert=first_expert)
    return outputs


def to_device(routing: Routing) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).to(DEVICE) for name, array in vars(routing).items()}


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def random_tokens(generator: torch.Generator, rows: int, columns: int, dtype: str) -> torch.Tensor:
    """Values whose blocks of 16 differ in size by up to 2^16."""
    values = torch.randn((rows, columns // 16, 16), device=DEVICE, generator=generator)
    sizes = torch.randint(-12, 5, (rows, columns // 16, 1), device=DEVICE, generator=generator)
    return (values * torch.exp2(sizes.float())).reshape(rows, columns).to(TORCH_TYPES[dtype])


@problems
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_rows_of_slots(problem: tuple[int, int, int, int], dtype: str, rng: np.random.Generator) -> None:
    """The plain sort, every time, also where most experts are elsewhere."""
    tokens, top_k, experts, _ = problem
    ids = random_ids(rng, tokens, top_k, experts)
    ids[rng.random(ids.shape) < 1 / 64] = -1
    on_device = torch.from_numpy(ids).to(DEVICE, getattr(torch, dtype))
    for local, first_expert in ((experts, 0), (experts // 8, experts // 2)):
        expected = to_device(route(ids, local, first_expert))
        for _ in range(3):
            for name, output in launch_route(on_device, local, first_expert).items():
                assert torch.equal(output, expected[name]), name


@problems
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("weighting", ["combine", "activation", "input"])
def test_tokens_of_rows(
    problem: tuple[int, int, int, int], dtype: str, weighting: str, rng: np.random.Generator,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Bytes of nvfp4_quantize_grouped on a copy of each row's token, times the weight in the type of x where the input
    is weighted; no other byte is written."""
    tokens, top_k, experts, k = problem
    ids = random_ids(rng, tokens, top_k, experts)
    ids[rng.random(ids.shape) < 1 / 16] = -1
    routing = route(ids, experts)
    rows = to_device(routing)
    owned, slots = routing.owned, rows["slot_of_row"][: routing.owned].long()
    x = random_tokens(generator, tokens, k, dtype)
    weights = torch.rand((tokens, top_k), device=DEVICE, generator=generator)
    gathered = x[slots // top_k]
    if weighting == "input":
        gathered = gathered * weights.flatten()[slots].to(x.dtype)[:, None]
    global_scale = torch.exp2(torch.rand(experts, device=DEVICE, generator=generator) * 10)
    offsets = {name: rows[name] for name in ("expert_offsets", "scale_offsets")}
    scale_rows = max(128, owned + 127 * experts) // 128 * 128

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        shapes = (ids.size, k // 2), (scale_rows, round_up(k // 16, 4))
        return tuple(torch.full(shape, 0x5A, dtype=torch.uint8, device=DEVICE) for shape in shapes)

    for division in ("approximate", "ieee"):
        scalars = {"global_scale_kind": "encode", "division": division}
        a, a_scale = outputs()
        row_weight = torch.full((ids.size,), -1.0, device=DEVICE)
        loader.launch(
            "moe_gather_quantize", x=x, slot_of_row=rows["slot_of_row"], topk_weights=weights, **offsets,
            global_scale=global_scale, a=a, a_scale=a_scale, row_weight=row_weight, weighting=weighting, **scalars,
        )  # fmt: skip
        expected_a, expected_scale = outputs()
        loader.launch(
            "nvfp4_quantize_grouped", x=gathered, global_scale=global_scale, **offsets,
            out=expected_a[:owned], out_scale=expected_scale, **scalars,
        )  # fmt: skip
        assert torch.equal(a, expected_a)
        assert torch.equal(a_scale, expected_scale)
        used = weights.flatten()[slots] if weighting == "activation" else torch.ones(owned, device=DEVICE)
        assert torch.equal(row_weight[:owned], used)
        assert bool((row_weight[owned:] == -1).all())


def fused_multiply_add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``quantization.fused_multiply_add`` on the device: a * b + c of finite f32, rounded once."""
    product, c = a.double() * b.double(), c.double()
    total = product + c
    c_part = total - product
    error = (product - (total - c_part)) + (c - c_part)
    bits = total.view(torch.int64)
    towards_error = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where((error != 0) & (bits % 2 == 0), bits + towards_error, bits).view(torch.float64).float()


@problems
@pytest.mark.parametrize(
    ("rows_type", "out_type"), [("bf16", "bf16"), ("f16", "f16"), ("f32", "bf16"), ("f32", "f16"), ("f32", "f32")]
)
def test_sums_of_rows(
    problem: tuple[int, int, int, int], rows_type: str, out_type: str, rng: np.random.Generator,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """One fused multiply-add a slot in the order of k, to the bit; NaN in rows that nobody owns."""
    tokens, top_k, experts, h = problem
    ids = random_ids(rng, tokens, top_k, experts)
    ids[rng.random(ids.shape) < 1 / 16] = -1
    routing = route(ids, experts)
    row_of_slot = to_device(routing)["row_of_slot"]
    rows = random_tokens(generator, ids.size, h, rows_type)
    rows[routing.owned :] = torch.nan
    weights = torch.rand((tokens, top_k), device=DEVICE, generator=generator)
    out = Output(tokens, h, out_type, rows.device)
    loader.launch("moe_combine", rows=rows, row_of_slot=row_of_slot, topk_weights=weights, out=out.array)

    sums = torch.zeros((tokens, h), device=DEVICE)
    for k in range(top_k):
        with_row = torch.nonzero(row_of_slot[:, k] >= 0).flatten()
        values = rows[row_of_slot[with_row, k].long()].float()
        sums[with_row] = fused_multiply_add(weights[with_row, k, None], values, sums[with_row])
    expected = sums.to(TORCH_TYPES[out_type])
    assert torch.equal(out.array.view(torch.uint8), expected.view(torch.uint8))
    assert out.intact(tokens)


def test_a_graph_sees_new_ids(rng: np.random.Generator) -> None:
    """A replay routes what the buffer of ids then holds; nothing needs to be cleared between replays."""
    ids = torch.zeros((64, 8), dtype=torch.int32, device=DEVICE)
    launch_route(ids, 256)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = launch_route(ids, 256)
    for _ in range(3):
        drawn = random_ids(rng, 64, 8, 256)
        ids.copy_(torch.from_numpy(drawn))
        graph.replay()
        expected = to_device(route(drawn, 256))
        for name, output in outputs.items():
            assert torch.equal(output, expected[name]), name


def test_a_check_looks_at_the_values() -> None:
    """On the device, behind what its stream is still doing; nothing is launched, also where all is right."""
    rows = torch.ones(6, 64, device="cuda")
    row_of_slot = torch.zeros(3, 2, dtype=torch.int32, device="cuda")
    call = {"rows": rows, "row_of_slot": row_of_slot, "topk_weights": torch.ones(3, 2, device="cuda"),
            "out": torch.full((3, 64), 7.0, device="cuda")}  # fmt: skip
    loader.check("moe_combine", **call)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        row_of_slot[2, 0] = 6
        with pytest.raises(loader.ValuesError, match="^moe_combine: entry 4 of row_of_slot is 6, expected -1 to 5$"):
            loader.check("moe_combine", **call)
    assert (call["out"] == 7).all()
