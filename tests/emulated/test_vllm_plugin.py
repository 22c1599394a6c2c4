"""The plug-in for vLLM over stand-ins for its modules: layers as vLLM loads and calls them, on the emulated device."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import contracts  # noqa: E402
import moe_blocks  # noqa: E402
import moe_fragments  # noqa: E402
import moe_reference as moe  # noqa: E402
import mxfp4_layer  # noqa: E402
import vllm_layer  # noqa: E402
import vllm_stubs  # noqa: E402
from moe_reference import AnyLayer, Layer, Settings  # noqa: E402

import loader  # noqa: E402

RECORDS = {record["version"]: record for record in contracts.recorded("vllm")}
NEWEST = list(RECORDS)[-1]

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]


@pytest.fixture
def vllm(request: pytest.FixtureRequest) -> Iterator[dict[str, types.ModuleType]]:
    """Of the newest version, or of the one that a test is given."""
    with vllm_stubs.installed(RECORDS[getattr(request, "param", NEWEST)]) as modules:
        yield modules


@pytest.fixture
def on(packs: list[str] | None, reschedule: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has launches run on an arch; division is exact, as in the reference."""

    def put(vllm: dict[str, types.ModuleType], arch: str) -> None:
        vllm_layer.patched(vllm, arch)
        exactly = {"moe_fp4": {"division": "ieee"}}
        launch = functools.partial(loader.launch, device=f"emulated:{arch}", packs=packs)
        size = functools.partial(loader.workspace_bytes, packs=packs)
        monkeypatch.setattr(vllm["experts"], "loader", types.SimpleNamespace(
            launch=lambda name, **given: (reschedule(), launch(name, **exactly.get(name, {}), **given)),
            workspace_bytes=size,
        ))  # fmt: skip

    return put


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and how the layer is used; ``fields`` are those of vLLM's configuration that say the same."""

    arch: str
    hidden: int = 96
    between: int = 64
    settings: Settings = Settings()
    activation: str = "SILU"
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    up_alpha: bool = False
    dtype: str = "bf16"
    ids: torch.dtype = torch.int32


GPT_OSS = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
CASES = {
    "hopper_filled_up": Case("90a", 176, 80, up_alpha=True, ids=torch.int64),
    "hopper_f16": Case("90a", settings=Settings(intermediate="f16", **GPT_OSS), dtype="f16",
                       activation="SWIGLUOAI_UNINTERLEAVE", fields=GPT_OSS),
    # vLLM's SiLU knows no alpha and no beta, whatever the configuration has.
    "hopper_limit": Case("90a", settings=Settings(swiglu_limit=1.0), fields={**GPT_OSS, "swiglu_limit": 1.0}),
    "blackwell_gelu": Case("100a", settings=Settings(activation="gelu_tanh"), activation="GELU_TANH"),
    "blackwell_filled_up": Case("120a", 160, 48, up_alpha=True),
}  # fmt: skip


def made(vllm: dict[str, types.ModuleType], case: Case, stored: Layer, **changed: Any) -> tuple[Any, Any]:
    """Method and layer of a checkpoint's numbers."""
    activation = vllm[vllm_layer.ACTIVATION]
    fields = {"activation": activation.MoEActivation[case.activation], "in_dtype": moe.TORCH_TYPES[case.dtype]}
    moe_config = vllm_layer.config(activation, case.hidden, case.between, **{**fields, **case.fields, **changed})
    module = vllm_layer.loaded(stored)
    return vllm_layer.method_of(vllm, moe_config, module, "NVFP4"), module


OLDER = [("hopper_limit", version) for version in list(RECORDS)[:-1]]


@pytest.mark.parametrize(("case", "vllm"), [*((case, NEWEST) for case in CASES), *OLDER], indirect=["vllm"])
def test_layers_are_within_the_bound(case: str, vllm: dict[str, types.ModuleType], on: Callable[..., None],
                                     generator: torch.Generator) -> None:  # fmt: skip
    """Of what float64 makes of the checkpoint: sizes filled up, activations, alphas of up, types of tokens and ids."""
    sizes = CASES[case]
    on(vllm, sizes.arch)
    layer, stored = vllm_layer.drawn(
        generator, sizes.arch, 4, sizes.hidden, sizes.between, sizes.settings, sizes.up_alpha
    )
    tokens = moe.random_tokens(generator, 7, 2, 4, sizes.hidden, sizes.dtype, sizes.ids)
    out = vllm_layer.call(*made(vllm, sizes, stored), tokens)
    moe.moe(layer, tokens, sizes.dtype).check(out, case)


def test_any_map_of_experts(vllm: dict[str, types.ModuleType], on: Callable[..., None],
                            generator: torch.Generator) -> None:  # fmt: skip
    """Within the bound; and the same bytes when experts change places with all that a layer has of them."""
    case = Case("90a")
    on(vllm, case.arch)
    layer, stored = vllm_layer.drawn(generator, case.arch, 3, case.hidden, case.between, case.settings, up_alpha=True)
    tokens = moe.random_tokens(generator, 8, 3, 7, case.hidden)
    expert_map = torch.tensor([2, -1, 0, -1, -1, 1, -1], dtype=torch.int32)
    mapped = moe_fragments.Layer(dataclasses.replace(layer.plain, expert_map=expert_map))
    method, module = made(vllm, case, stored)
    out = vllm_layer.call(method, module, tokens, expert_map)
    moe.moe(mapped, tokens, "bf16").check(out, "as placed")

    order = torch.tensor([1, 2, 0])
    for _, parameter in module.named_parameters():
        rows = parameter.data.view(torch.uint8).view(3, -1)
        rows.copy_(rows[order])
    moved = torch.where(expert_map >= 0, order.argsort()[expert_map.clamp_min(0)].int(), expert_map)
    assert torch.equal(vllm_layer.call(method, module, tokens, moved), out)


@pytest.mark.parametrize("arch", ["90a", "120a"])
def test_ranks_add_up_to_the_layer(arch: str, vllm: dict[str, types.ModuleType], on: Callable[..., None],
                                   generator: torch.Generator) -> None:  # fmt: skip
    """Two parts of I, cut as vLLM does, each within its bound and their sum within that of the whole."""
    case = Case(arch, between=96)
    on(vllm, arch)
    layer, stored = vllm_layer.drawn(generator, arch, 3, case.hidden, case.between, case.settings)
    tokens = moe.random_tokens(generator, 7, 2, 3, case.hidden)
    total, allowed = 0.0, 0.0
    for rank in range(2):
        half = case.between // 2
        mine, other = (_part(each, rank * half, (rank + 1) * half) for each in (layer, stored))
        method, module = made(vllm, dataclasses.replace(case, between=half), other)
        out = vllm_layer.call(method, module, tokens)
        expected = moe.moe(mine, tokens, "bf16")
        expected.check(out, f"rank {rank}")
        total, allowed = total + out.double(), allowed + expected.bound
    whole = moe.moe(layer, tokens, "bf16")
    assert ((total - whole.value).abs() <= allowed + whole.bound).all()


def _part(layer: AnyLayer, begin: int, end: int) -> AnyLayer:
    """Some of I."""
    if isinstance(layer, moe_fragments.Layer):
        return moe_fragments.Layer(_part(layer.plain, begin, end))
    return dataclasses.replace(layer, w13=vllm_layer.part(layer.w13, slice(2 * begin, 2 * end), slice(None)),
                               w2=vllm_layer.part(layer.w2, slice(None), slice(begin // 16, end // 16)))  # fmt: skip


def test_weights_that_were_applied_to_tokens(vllm: dict[str, types.ModuleType], on: Callable[..., None],
                                             generator: torch.Generator) -> None:  # fmt: skip
    """vLLM multiplies tokens itself where a model asks for it; they are not weighted again."""
    case = Case("90a")
    on(vllm, case.arch)
    layer, stored = vllm_layer.drawn(generator, case.arch, 3, case.hidden, case.between, case.settings)
    tokens = moe.random_tokens(generator, 5, 1, 3, case.hidden)._replace(topk_weights=torch.full((5, 1), torch.nan))
    out = vllm_layer.call(*made(vllm, case, stored), tokens, weights_applied=True)
    moe.moe(layer, tokens._replace(topk_weights=torch.ones(5, 1)), "bf16").check(out, "weighted before")


def test_a_call_that_is_not_of_this_layer_is_seen(vllm: dict[str, types.ModuleType], on: Callable[..., None],
                                                  generator: torch.Generator) -> None:  # fmt: skip
    """The bound is narrow enough: gate for up, one scale of an expert, or an expert's place is outside of it."""
    case = Case("90a")
    on(vllm, case.arch)
    layer, stored = vllm_layer.drawn(generator, case.arch, 3, case.hidden, case.between, case.settings)
    tokens = moe.random_tokens(generator, 5, 3, 3, case.hidden)  # every expert has all
    expected = moe.moe(layer, tokens, "bf16")
    for fault in FAULTS:
        method, module = made(vllm, case, fault(stored))
        with pytest.raises(AssertionError):
            expected.check(vllm_layer.call(method, module, tokens), fault.__name__)


OF_GPT_OSS = [("90a", NEWEST), ("100a", NEWEST), ("120a", NEWEST), ("90a", list(RECORDS)[0])]


@pytest.mark.parametrize(("arch", "vllm"), OF_GPT_OSS, indirect=["vllm"])
def test_gpt_oss_and_any_map_of_its_experts(arch: str, vllm: dict[str, types.ModuleType], on: Callable[..., None],
                                            generator: torch.Generator) -> None:  # fmt: skip
    """Within the bound of float64, with sizes that are filled up; experts elsewhere add nothing, nor their biases."""
    on(vllm, arch)
    layer = mxfp4_layer.of_experts(mxfp4_layer.drawn(generator, 5, 96, 96), [3, 0, 4])
    tokens = moe_blocks.random_tokens(generator, layer, 6, 2, experts=5)
    out = vllm_layer.call(*vllm_layer.gpt_oss(vllm, layer, (96, 96)), tokens, layer.expert_map)
    moe.moe(mxfp4_layer.reference(arch, layer), tokens, "bf16").check(out, arch)


@pytest.mark.parametrize("arch", ["90a", "120a"])
def test_ranks_of_gpt_oss_add_up(arch: str, vllm: dict[str, types.ModuleType], on: Callable[..., None],
                                 generator: torch.Generator) -> None:  # fmt: skip
    """Cut as vLLM does, between scales: of 96 values the first of two ranks has 64, and it alone the bias of down."""
    on(vllm, arch)
    layer = mxfp4_layer.drawn(generator, 3, 96, 96)
    tokens = moe_blocks.random_tokens(generator, layer, 6, 2)
    total, allowed = 0.0, 0.0
    for begin, end in ((0, 64), (64, 96)):
        part = mxfp4_layer.of_rank(layer, begin, end)
        out = vllm_layer.call(*vllm_layer.gpt_oss(vllm, part, (96, 96 // 2)), tokens)
        expected = moe.moe(mxfp4_layer.reference(arch, part), tokens, "bf16")
        expected.check(out, f"{arch} {begin}")
        total, allowed = total + out.double(), allowed + expected.bound
    whole = moe.moe(mxfp4_layer.reference(arch, layer), tokens, "bf16")
    assert ((total - whole.value).abs() <= allowed + whole.bound).all()


def test_scales_out_of_range_are_refused_by_name(vllm: dict[str, types.ModuleType], on: Callable[..., None],
                                                 generator: torch.Generator) -> None:  # fmt: skip
    """Before anything is converted, so that no number is another one than the checkpoint's."""
    on(vllm, "90a")
    layer = mxfp4_layer.drawn(generator, 2, 64, 64)
    layer.w2.scales[1, 7, 1] = 2.0**34
    with pytest.raises(ValueError, match=r"moe_bf16_mxfp4: w2 of expert 1 has a scale of 2\^34"):
        vllm_layer.gpt_oss(vllm, layer, (64, 64))


def _swapped(layer: Layer) -> Layer:
    w13 = layer.w13
    packed, groups = (rows.unflatten(1, (-1, 2)).flip(2).flatten(1, 2) for rows in (w13.packed, w13.groups))
    return dataclasses.replace(layer, w13=dataclasses.replace(w13, packed=packed, groups=groups))


def _one_scale(layer: Layer) -> Layer:
    groups = layer.w2.groups.clone()
    groups[0, ::2, -1] ^= 8  # twice or half of it
    return dataclasses.replace(layer, w2=dataclasses.replace(layer.w2, groups=groups))


def _turned(layer: Layer) -> Layer:
    return dataclasses.replace(layer, w2=dataclasses.replace(layer.w2, alpha=layer.w2.alpha.roll(1)))


FAULTS = (_swapped, _one_scale, _turned)
