"""What engines call, on CPU tensors: every function's arguments, layouts and results, eager and compiled."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch

import loader
from integrations import checkpoint, mega_moe, nvfp4, ops, sglang, vllm

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "arch", "registered"),
]
# Distance of each E2M1 magnitude to the middle of its neighbours, below and above; 6 takes all that is larger.
BELOW = np.array([0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1])
ABOVE = np.array([0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 1, np.inf])
LARGEST = 6 * 448
SLACK = 1e-5  # of approximate reciprocals


@pytest.fixture(scope="module")
def registered(packs):
    """Ops of the pack under test, in the place of those of another one that was there at the import."""
    ops.register(packs)


@pytest.fixture(params=["90a", "100a", "120a"])
def arch(request, monkeypatch, packs, reschedule):
    """Launches of this test go to the emulated device of an arch, under a schedule of their own."""
    launch = functools.partial(loader.launch, packs=packs, device=f"emulated:{request.param}")
    monkeypatch.setattr(loader, "launch", lambda *args, **kwargs: (reschedule(), launch(*args, **kwargs))[1])
    return request.param


def linear(scales, rows, k) -> np.ndarray:
    """Bytes of the first rows of scales in the 128x4 block layout, in plain order."""
    stored = scales.view(torch.uint8).numpy().ravel()
    row, group = np.indices((rows, k // 16))
    return stored[reference.scale_offset(row, group, k // 16)]


def in_blocks(scales) -> torch.Tensor:
    """[.., rows, groups] bytes in the 128x4 block layout, the padding NaN."""
    *batch, rows, groups = scales.shape
    padded = np.full((*batch, reference.round_up(rows, 128), reference.round_up(groups, 4)), 0x7F, np.uint8)
    padded[..., :rows, :groups] = scales
    return torch.from_numpy(reference.to_scale_layout(padded)).view(torch.float8_e4m3fn)


def dequantized(packed, scales) -> np.ndarray:
    return reference.expand(packed, scales, reference.E2M1, reference.UE4M3)


def check_quantized(x, encode, packed, scales, slack=SLACK) -> None:
    """Each scale is the nearest one to encode * amax / 6, each element the nearest one; ``slack`` is relative."""
    groups = x.astype(np.float64).reshape(len(x), x.shape[1] // 16, 16) * np.reshape(encode, (-1, 1, 1))
    wanted = np.minimum(np.abs(groups).max(axis=-1) / 6, 448)
    nearest = np.abs(reference.UE4M3[:127] - wanted[..., None]).min(axis=-1)
    values = reference.UE4M3[scales]
    assert (np.abs(values - wanted) <= nearest + slack * wanted).all()
    codes = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(groups.shape)
    scaled = np.divide(groups, values[..., None], out=np.zeros_like(groups), where=values[..., None] > 0)
    distance = np.where(codes & 8, -1, 1) * scaled - np.abs(reference.E2M1[codes])
    bound = slack * np.abs(scaled) + 1e-30
    assert (distance <= ABOVE[codes & 7] + bound).all()
    assert (distance >= -BELOW[codes & 7] - bound).all()


def random_values(rng, *shape, dtype=torch.bfloat16) -> torch.Tensor:
    """Blocks of very different magnitude."""
    values = rng.standard_normal(shape) * np.exp2(rng.integers(-6, 3, (*shape[:-1], 1)))
    return torch.from_numpy(values).to(dtype)


def numbers(tensor) -> np.ndarray:
    return tensor.double().numpy()


def offsets(counts) -> tuple[torch.Tensor, torch.Tensor]:
    """[E + 1] each: first rows, and first rows of scales."""
    sizes = np.array([[count, reference.round_up(count, 128)] for count in counts], np.int32)
    first, first_scale = np.concatenate([np.zeros((1, 2), np.int32), np.cumsum(sizes, axis=0, dtype=np.int32)]).T
    return torch.from_numpy(first.copy()), torch.from_numpy(first_scale.copy())


def silu_mul(x, dtype) -> np.ndarray:
    gate, up = np.split(numbers(x), 2, axis=-1)
    return numbers(torch.from_numpy(gate / (1 + np.exp(-gate)) * up).to(dtype))


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def eager(function):
    return function


# What torch traces does not depend on the arch.
each_mode = pytest.mark.parametrize(
    ("arch", "mode"),
    [("90a", eager), ("100a", eager), ("120a", eager), ("120a", compiled)],
    indirect=["arch"],
    ids=["90a", "100a", "120a", "120a-compiled"],
)
one_arch = pytest.mark.parametrize("arch", ["120a"], indirect=True)


@each_mode
@pytest.mark.parametrize("module", [vllm, sglang], ids=["vllm", "sglang"])
def test_dense_quantisation(rng, module, mode):
    """scaled_fp4_quant flattens leading dimensions, takes a global scale of any shape, and pads scales."""
    x = random_values(rng, 2, 3, 48)
    encode = LARGEST / x.abs().max().float()
    packed, scales = mode(module.scaled_fp4_quant)(x, encode)
    assert (packed.dtype, scales.dtype, scales.shape) == (torch.uint8, torch.float8_e4m3fn, (128, 4))
    check_quantized(numbers(x).reshape(6, 48), encode.item(), packed.numpy(), linear(scales, 6, 48))


@one_arch
def test_dense_quantisation_with_row_major_scales(rng):
    """vLLM's unswizzled scales are [M, K/16], K may be padded; a layout that is not there is refused."""
    x = random_values(rng, 5, 96, dtype=torch.float16)
    encode = (LARGEST / x.abs().max().float()).reshape(1)
    packed, scales = vllm.scaled_fp4_quant(x, encode, is_sf_swizzled_layout=False)
    assert scales.shape == (5, 6)
    assert scales.is_contiguous()
    check_quantized(numbers(x), encode.item(), packed.numpy(), scales.view(torch.uint8).numpy())
    padded, padded_scales = vllm.scaled_fp4_quant(x, encode, is_sf_swizzled_layout=False, padded_n=160)
    assert (padded.shape, padded_scales.shape) == ((5, 80), (5, 10))
    assert torch.equal(padded[:, :48], packed)
    assert not padded[:, 48:].any()
    assert torch.equal(padded_scales[:, :6].view(torch.uint8), scales.view(torch.uint8))
    assert not padded_scales[:, 6:].view(torch.uint8).any()
    with pytest.raises(ValueError, match="^padded_n expects at least the 96 columns of input, got 80$"):
        vllm.scaled_fp4_quant(x, encode, padded_n=80)
    with pytest.raises(NotImplementedError, match="8x4"):
        vllm.scaled_fp4_quant(x, encode, backend="trtllm")


COUNTS = [0, 5, 129, 0, 1]


@each_mode
@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("module", [vllm, sglang], ids=["vllm", "sglang"])
def test_expert_quantisation(rng, module, silu, mode):
    """Rows are quantised with their expert's scale, where a gate is given after SiLU(gate) * up in their type."""
    k, expert_offsets, scale_offsets = 32, *offsets(COUNTS)
    x = random_values(rng, sum(COUNTS) + 2, 2 * k if silu else k)  # the last two rows are nobody's
    encode = torch.from_numpy(rng.uniform(2, 20, len(COUNTS)).astype(np.float32))
    name = "scaled_fp4_experts_quant"
    if silu:
        name = f"silu_and_mul_{name}" + ("_packed" if module is sglang else "")
    packed, scales = mode(getattr(module, name))(x, encode, expert_offsets, scale_offsets, 1)
    assert (packed.shape, scales.dtype) == ((len(x), k // 2), torch.float8_e4m3fn)
    expected = silu_mul(x, x.dtype) if silu else numbers(x)
    for e, count in enumerate(COUNTS):
        rows = slice(expert_offsets[e], expert_offsets[e + 1])
        mine = linear(scales[scale_offsets[e] : scale_offsets[e + 1]], count, k)
        # The exponential is approximate: its product may round to the next bf16.
        check_quantized(expected[rows], encode[e].item(), packed[rows].numpy(), mine, 2.0**-7 if silu else SLACK)


@one_arch
def test_offsets_may_lack_the_end(rng):
    """[E] offsets: the last expert has all rows that are left."""
    expert_offsets, scale_offsets = offsets(COUNTS)
    x, encode = random_values(rng, sum(COUNTS), 32), torch.ones(len(COUNTS))
    packed, _ = vllm.scaled_fp4_experts_quant(x, encode, expert_offsets, scale_offsets, 1)
    again, _ = vllm.scaled_fp4_experts_quant(x, encode, expert_offsets[:-1], scale_offsets[:-1], 1)
    assert torch.equal(packed, again)


@one_arch
def test_sglang_routes_by_an_expert_map(rng):
    """Row r is row expert_map[r] of the tokens."""
    tokens = random_values(rng, 4, 32)
    expert_map = torch.from_numpy(rng.permutation(np.repeat(np.arange(4), 2)).astype(np.int32))
    arguments = (torch.tensor([3.0, 5.0]), *offsets([3, 5]), 2)
    for function, x in (
        (sglang.scaled_fp4_experts_quant, tokens),
        (sglang.silu_and_mul_scaled_fp4_experts_quant_packed, torch.cat([tokens, tokens.flip(0)], dim=1)),
    ):
        packed, _ = function(x, *arguments, expert_map)
        expected, _ = function(x[expert_map.long()].contiguous(), *arguments)
        assert torch.equal(packed, expected)


@each_mode
@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
def test_masked_quantisation(rng, silu, mode):
    """SGLang's views: FP4 [M, K/2, l], scales [32, 4, M/128, 4, K/64, l]; only the first mask[l] rows count."""
    experts, m, k = 3, 130, 48
    x = random_values(rng, experts, m, 2 * k if silu else k)
    encode, mask = torch.from_numpy(rng.uniform(2, 20, experts).astype(np.float32)), torch.tensor([129, 0, 3]).int()
    function = sglang.silu_and_mul_scaled_fp4_grouped_quant if silu else sglang.scaled_fp4_grouped_quant
    packed, scales = mode(function)(x, encode, mask)
    assert (packed.shape, scales.shape) == ((m, k // 2, experts), (32, 4, 2, 4, 1, experts))
    expected = silu_mul(x, x.dtype) if silu else numbers(x)
    for e, rows in enumerate(mask.tolist()):
        row, group = np.indices((rows, k // 16))
        mine = scales.view(torch.uint8).numpy()[row % 32, row % 128 // 32, row // 128, group % 4, group // 4, e]
        slack = 2.0**-7 if silu else SLACK
        check_quantized(expected[e, :rows], encode[e].item(), packed[:rows, :, e].numpy(), mine, slack)


@pytest.mark.parametrize("packed_scales", [torch.float8_e4m3fn, torch.int32], ids=["e4m3", "int32"])
def test_dense_silu_quantisation(rng, packed_scales):
    """vLLM's operator writes into what it is given; scales may be int32 of four."""
    x = random_values(rng, 3, 128, dtype=torch.float16)
    encode = torch.tensor(4.0)
    out = torch.full((3, 32), 0xFF, dtype=torch.uint8)
    scales = torch.full((128, 4), 0x7F, dtype=torch.uint8).view(packed_scales)
    vllm.silu_and_mul_nvfp4_quant(out, scales, x, encode)
    check_quantized(silu_mul(x, x.dtype), 4.0, out.numpy(), linear(scales, 3, 64), 2.0**-10)


def random_matrices(rng, *shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed [.., K/2], scale bytes [.., K/16] and values of random NVFP4 matrices [.., K]; some scales are 0."""
    packed = rng.integers(0, 256, (*shape[:-1], shape[-1] // 2), dtype=np.uint8)
    scales = rng.integers(0x28, 0x40, (*shape[:-1], shape[-1] // 16), dtype=np.uint8)
    scales[rng.random(scales.shape) < 0.02] = 0
    return packed, scales, dequantized(packed, scales)


@pytest.fixture
def grouped(rng) -> SimpleNamespace:
    """A grouped product whose last expert ends before the last row."""
    experts, n, k, rows = len(COUNTS), 24, 96, sum(COUNTS)
    expert_offsets, scale_offsets = offsets(COUNTS)
    a, a_scales, left = random_matrices(rng, rows + 3, k)
    b, b_scales, right = random_matrices(rng, experts, n, k)
    stored = torch.full((int(scale_offsets[-1]), 8), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
    alphas = rng.uniform(0.5, 2, experts).astype(np.float32)
    expected = np.empty((rows, n))
    for e, count in enumerate(COUNTS):
        begin = int(expert_offsets[e])
        mine = slice(begin, begin + count)
        expected[mine] = alphas[e] * (left[mine] @ right[e].T)
        blocks = in_blocks(a_scales[mine])
        stored[int(scale_offsets[e]) : int(scale_offsets[e]) + len(blocks)] = blocks
    sizes = torch.tensor([[count, n, k] for count in COUNTS], dtype=torch.int32)
    operands = (torch.from_numpy(a), torch.from_numpy(b), stored, in_blocks(b_scales), torch.from_numpy(alphas))
    return SimpleNamespace(
        operands=operands, sizes=sizes, offsets=(expert_offsets, scale_offsets), expected=expected, rows=rows, n=n
    )


def check_product(out, expected) -> None:
    """What accumulation and rounding to bf16 or fp16 may change."""
    assert (np.abs(numbers(out) - expected) <= 2.0**-8 * np.abs(expected) + 1e-3).all()


@each_mode
@pytest.mark.parametrize("with_end", [True, False], ids=["E+1", "E"])
def test_grouped_product(grouped, with_end, mode):
    """Into the caller's output, or a new one, with the offsets as each engine passes them; nothing else is written."""
    expert_offsets, scale_offsets = grouped.offsets if with_end else (tensor[:-1] for tensor in grouped.offsets)
    out = torch.full((grouped.rows + 3, grouped.n), 77, dtype=torch.bfloat16)
    mode(vllm.cutlass_fp4_group_mm)(out, *grouped.operands, grouped.sizes, expert_offsets, scale_offsets)
    check_product(out[: grouped.rows], grouped.expected)
    assert (out[grouped.rows :] == 77).all()

    new = mode(nvfp4.cutlass_fp4_group_mm)(*grouped.operands, grouped.sizes, expert_offsets, scale_offsets)
    assert torch.equal(new[: grouped.rows], out[: grouped.rows])
    params = {"problem_sizes": grouped.sizes, "expert_offsets": expert_offsets, "blockscale_offsets": scale_offsets}
    for rest in ([params], [torch.device("cpu"), params]):
        half = mode(sglang.cutlass_fp4_group_mm)(*grouped.operands, torch.float16, *rest)
        assert half.dtype == torch.float16
        check_product(half[: grouped.rows], grouped.expected)


@one_arch
def test_scales_of_four_in_an_int32(grouped):
    """The bits are reinterpreted, not converted."""
    a, b, a_scale, b_scale, alphas = grouped.operands
    arguments = (alphas, grouped.sizes, *grouped.offsets)
    expected = nvfp4.cutlass_fp4_group_mm(a, b, a_scale, b_scale, *arguments)
    for dtype in (torch.int32, torch.uint32):
        out = nvfp4.cutlass_fp4_group_mm(a, b, a_scale.view(dtype), b_scale.view(dtype), *arguments)
        assert torch.equal(out[: grouped.rows], expected[: grouped.rows])


@one_arch
def test_sglang_wants_params(grouped):
    """Arguments that are no params are refused."""
    with pytest.raises(TypeError, match="takes params"):
        sglang.cutlass_fp4_group_mm(*grouped.operands, torch.bfloat16, grouped.sizes)
    with pytest.raises(TypeError, match="takes params"):
        sglang.cutlass_fp4_group_mm(*grouped.operands, torch.bfloat16)


@pytest.mark.parametrize("module", [vllm, sglang], ids=["vllm", "sglang"])
def test_dense_product(rng, module):
    """cutlass_scaled_fp4_mm is the product of one expert."""
    a, a_scales, left = random_matrices(rng, 5, 64)
    b, b_scales, right = random_matrices(rng, 16, 64)
    operands = (torch.from_numpy(a), torch.from_numpy(b), in_blocks(a_scales), in_blocks(b_scales))
    out = module.cutlass_scaled_fp4_mm(*operands, torch.tensor(0.5), torch.float16)
    check_product(out, 0.5 * left @ right.T)


@pytest.mark.parametrize("tokens", [0, 1, 37])
def test_stage_activation(rng, tokens):
    """A global scale of the whole tensor, measured on the device; scales are row major."""
    x = random_values(rng, tokens, 96)
    packed, scales, decode = mega_moe.stage_activation(x)
    assert (packed.dtype, packed.shape, scales.dtype) == (torch.int8, (tokens, 48), torch.float8_e4m3fn)
    assert (scales.shape, decode.dtype) == ((tokens, 6), torch.float32)
    amax = np.abs(numbers(x)).max(initial=1e-8)
    assert abs(decode.item() - amax / LARGEST) <= 2.0**-23 * decode.item()
    check_quantized(numbers(x), LARGEST / amax, packed.view(torch.uint8).numpy(), scales.view(torch.uint8).numpy())


@one_arch
def test_stage_activation_of_zeros():
    """The largest magnitude is taken as at least 1e-8."""
    packed, scales, decode = mega_moe.stage_activation(torch.zeros(2, 32, dtype=torch.bfloat16))
    assert decode.item() == pytest.approx(1e-8 / LARGEST)
    assert not packed.any()
    assert not scales.view(torch.uint8).any()


class Mixture:
    """Staged tokens, a routing over ``ranks`` times ``experts``, and weights as the engine has them."""

    tokens, topk, experts, ranks, hidden, intermediate = 7, 3, 3, 2, 64, 32

    def __init__(self, rng) -> None:
        self.x = random_values(rng, self.tokens, self.hidden)
        total = self.experts * self.ranks
        self.ids = np.stack([rng.permutation(total)[: self.topk] for _ in range(self.tokens)])
        self.ids[0] = [0, 1, 2]  # no expert of rank 1
        self.ids[1, 1] = -1
        self.weights = rng.uniform(0.1, 1, self.ids.shape).astype(np.float32)
        self.l1 = random_matrices(rng, total, 2 * self.intermediate, self.hidden)
        self.l2 = random_matrices(rng, total, self.hidden, self.intermediate)

    def buffer(self, rank) -> SimpleNamespace:
        """As long as more tokens than there are, like a buffer that ranks share."""
        staged = [torch.cat([part, part[:2]]) for part in mega_moe.stage_activation(self.x)[:2]]
        routing = [torch.from_numpy(np.concatenate([part, part[:2]])) for part in (self.ids, self.weights)]
        return SimpleNamespace(
            x=staged[0], x_sf=staged[1], input_global_scale=mega_moe.stage_activation(self.x)[2],
            topk_idx=routing[0], topk_weights=routing[1], experts_start_idx=rank * self.experts,
        )  # fmt: skip

    def engine_weights(self, rank) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(weights, scales) of both layers, column-major views [E, K/2, N] and [E, K/16, N]."""
        mine = slice(rank * self.experts, (rank + 1) * self.experts)
        return [
            (
                torch.from_numpy(packed[mine]).view(torch.int8).transpose(1, 2),
                torch.from_numpy(scales[mine]).view(torch.float8_e4m3fn).transpose(1, 2),
            )
            for packed, scales, _ in (self.l1, self.l2)
        ]

    def expected(self, buffer, decode, clamp=np.inf, l1_scale=1.0, l2_scale=1.0) -> np.ndarray:
        """With the roundings that the kernels state; one row a token and expert."""
        packed, scales = buffer.x.view(torch.uint8).numpy(), buffer.x_sf.view(torch.uint8).numpy()
        x, alpha = dequantized(packed, scales), np.float32(l1_scale) * buffer.input_global_scale.numpy()
        y = np.zeros((self.tokens, self.hidden))
        for token, k in np.ndindex(self.ids.shape):
            expert = self.ids[token, k]
            if not 0 <= expert - buffer.experts_start_idx < self.experts:
                continue
            gate, up = np.split(bf16((self.l1[2][expert] @ x[token]).astype(np.float32) * alpha), 2)
            gate, up = np.minimum(gate, clamp), np.clip(up, -clamp, clamp)
            activated = quantized(bf16(gate / (1 + np.exp(-gate)) * up), np.float32(1) / np.float32(decode))
            y[token] += self.weights[token, k] * bf16(self.l2[2][expert] @ activated * decode * l2_scale)
        return y


def bf16(values) -> np.ndarray:
    return numbers(torch.from_numpy(values).to(torch.bfloat16))


def nearest(table, values) -> np.ndarray:
    """The entry of an ascending table, ties to the even code."""
    distance = np.abs(table - values[..., None])
    distance[..., 1::2] *= 1 + 1e-12
    return table[distance.argmin(axis=-1)]


def quantized(values, encode) -> np.ndarray:
    """The E2M1 times UE4M3 values of a row, with exact quotients in fp32."""
    groups = values.astype(np.float32).reshape(-1, 16)
    wanted = np.abs(groups).max(axis=1, keepdims=True) * (encode * np.float32(1 / 6))
    scale = nearest(reference.UE4M3[:127], wanted.astype(np.float64))
    multiplier = np.divide(encode, scale.astype(np.float32), out=np.zeros(scale.shape, np.float32), where=scale > 0)
    scaled = (groups * multiplier).astype(np.float64)
    return (np.copysign(nearest(reference.E2M1[:8], np.abs(scaled)), scaled) * scale).reshape(values.shape)


def check_mixture(y, expected) -> None:
    """Of all tokens but one only roundings to bf16 differ; an approximate exponential may turn a code of the last."""
    difference, size = np.linalg.norm(numbers(y) - expected, axis=1), np.linalg.norm(expected, axis=1)
    assert (difference <= 0.3 * size).all()
    assert (difference > 0.01 * size).sum() <= 1


@each_mode
@pytest.mark.parametrize("options", [{}, {"activation_clamp": 2.0}], ids=["plain", "clamp"])
def test_mega_moe(rng, options, mode):
    """Each rank writes what its experts add: one row a token and expert, weighted once; zeros where there is none."""
    mixture = Mixture(rng)
    clamp = options.get("activation_clamp", np.inf)
    decode = 1.0 if clamp == np.inf else clamp**2 / LARGEST
    for rank in range(mixture.ranks):
        y = torch.full((mixture.tokens, mixture.hidden), float("nan"), dtype=torch.bfloat16)
        buffer = mixture.buffer(rank)
        mode(mega_moe.nvfp4_mega_moe_full)(y, *mixture.engine_weights(rank), buffer, **options)
        check_mixture(y, mixture.expected(buffer, decode, clamp))
        assert rank == 0 or not y[0].any()


@one_arch
def test_mega_moe_takes_what_it_is_given_in_other_forms(rng):
    """Prepared weights, scales of four in an int32 and int32 ids give the same bytes; fast math nearly the same."""
    mixture = Mixture(rng)
    (l1, l1_scale), (l2, l2_scale) = mixture.engine_weights(0)
    buffer = mixture.buffer(0)
    prepared = mega_moe.prepare_weights((l1, l1_scale), (l2, l2_scale))
    words = l1_scale.transpose(1, 2).view(torch.int32).transpose(1, 2)

    def run(*weights, **options):
        y = torch.empty((mixture.tokens, mixture.hidden), dtype=torch.bfloat16)
        mega_moe.nvfp4_mega_moe_full(y, *weights, buffer, **options)
        return y

    y = run(*prepared)
    assert torch.equal(run((l1, words), (l2, l2_scale)), y)
    check_mixture(run(*prepared, fast_math=True), numbers(y))
    buffer.x_sf, buffer.topk_idx = buffer.x_sf.view(torch.int32), buffer.topk_idx.int()
    assert torch.equal(run((l1, l1_scale), (l2, l2_scale)), y)


@one_arch
def test_mega_moe_cuts_off_no_scales(rng):
    """Columns of scales are neither dropped nor made up."""
    mixture = Mixture(rng)
    for columns in (3, 8):
        buffer = mixture.buffer(0)
        buffer.x_sf = buffer.x_sf.new_zeros((len(buffer.x_sf), columns))
        y = torch.empty((mixture.tokens, mixture.hidden), dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=rf"expects a byte for 16 values of x \[7, 32\], got \[7, {columns}\]$"):
            mega_moe.nvfp4_mega_moe_full(y, *mixture.engine_weights(0), buffer)


@one_arch
def test_mega_moe_with_global_scales(rng):
    """Scales of the weights and of the intermediate activation, as checkpoints have them."""
    mixture = Mixture(rng)
    buffer, factor = mixture.buffer(0), torch.full((mixture.experts,), 0.5)
    y = torch.empty((mixture.tokens, mixture.hidden), dtype=torch.bfloat16)
    mega_moe.nvfp4_mega_moe_full(
        y, *mixture.engine_weights(0), buffer,
        l1_weight_scale=factor, l2_weight_scale=factor * 0.5, intermediate_scale=factor * 0.25,
    )  # fmt: skip
    check_mixture(y, mixture.expected(buffer, decode=0.125, l1_scale=0.5, l2_scale=0.25))


@one_arch
def test_mega_moe_without_tokens(rng):
    """Nothing is read and nothing written."""
    mixture = Mixture(rng)
    mega_moe.nvfp4_mega_moe_full(
        torch.empty((0, mixture.hidden), dtype=torch.bfloat16), *mixture.engine_weights(0), mixture.buffer(0)
    )


@one_arch
def test_weights_of_a_checkpoint_are_prepared_alike(rng):
    """``prepare_weights`` and the preparation of checkpoints lay the same bytes down."""
    mixture = Mixture(rng)
    (w13, w13_scale), (w2, w2_scale) = mega_moe.prepare_weights(*mixture.engine_weights(0))
    for e in range(mixture.experts):
        gate, up = np.split(mixture.l1[0][e], 2)
        assert (w13[e].view(torch.uint8).numpy()[0::2] == gate).all()
        assert (w13[e].view(torch.uint8).numpy()[1::2] == up).all()
        gate, up = np.split(mixture.l1[1][e], 2)
        alternating = np.stack([gate, up], axis=1).reshape(2 * len(gate), -1)
        assert (w13_scale[e].numpy() == checkpoint.to_blocks(alternating)).all()
        assert (w2[e].view(torch.uint8).numpy() == mixture.l2[0][e]).all()
        assert (w2_scale[e].numpy() == checkpoint.to_blocks(mixture.l2[1][e])).all()
