"""The kernels as torch ops: none is forgotten, each says the truth of itself, and engines' functions compile."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import loader
from integrations import ops, vllm
from loader import expression, registry

ROOT = Path(__file__).resolve().parents[2]
TORCH_TYPES = {
    "e2m1x2": torch.uint8, "ue4m3": torch.uint8, "i32": torch.int32, "i64": torch.int64, "f32": torch.float32,
    "bf16": torch.bfloat16, "f16": torch.float16, "u8": torch.uint8, "e4m3": torch.uint8, "ue8m0": torch.uint8,
}  # fmt: skip
SIZES = {
    "M": 16, "Mmax": 2, "R": 2, "T": 2, "TOPK": 1, "E": 1, "G": 1, "P": 2, "S": 128, "K": 128, "N": 64, "I": 64,
    "H": 64, "C": 4, "W": 1, "row_block": 1, "B": 2, "D": 64, "V": 64, "Z": 2 * 16 * 68,
    "Kp": 128, "scale_layout": 0, "L": 17,
}  # fmt: skip
OTHER_SIZES = {
    **{f"paged_mqa_{name}": {"N": 1} for name in ("schedule", "logits_fp8", "logits_mxfp8", "logits_mxfp4")},
    **{f"add_rms_norm_{name}_quantize": {"R": 16} for name in ("nvfp4", "mxfp8", "fp8", "fp8_ue8m0")},
    **{f"{form}sparse_mqa_logits_mxfp{bits}": {"H": 32, "D": 128, "P": 128, "Z": 2 * 16 * (16 * bits + 4),
                                               "page_stride": 16 * (16 * bits + 4)}
       for form in ("", "paged_") for bits in (4, 8)},
    "moe_mxfp8_mxfp4": {"I": 128},
}  # fmt: skip
# That have no default.
NUMBERS = {"eps": 1e-6, "head_width": 32, "head_left": 16, "head_gap": 8, "M": 16, "K": 128, "pages": 2, "page": 16,
           "block": 8, "page_stride": 16 * 68,
           "a_row": 128, "a_matrix": 128, "b_row": 128, "b_matrix": 128}  # fmt: skip
# Integers that are not all zero: one expert has both rows, in their order.
INTEGERS = {"expert_offsets": [0, 2], "mask": [2], "row_of_slot": [0, 1], "slot_of_row": [0, 1]}
WORDS = {"global_scale_kind": "decode", "intermediate": "bf16"}
# Written by hand: several kernels in one op.
BY_HAND = {"nvfp4_mega_moe"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "emulated"),
]


@pytest.fixture(scope="module")
def described(packs):
    """Name -> what the pack says of each kernel and composite; their ops are registered."""
    ops.register(packs)
    found = registry.registry(packs)
    return found.families | {name: composite.signature for name, composite in found.composites.items()}


@pytest.fixture
def emulated(monkeypatch, packs, described):
    """Launches of this test go to an emulated sm_120a, of what is for Hopper alone to an sm_90a."""
    launch, found = functools.partial(loader.launch, packs=packs), registry.registry(packs)
    archs = {name: {candidate.artifact.arch for candidate in found.candidates(name)} for name in found.families}
    archs |= {name: set.intersection(*(archs[step.kernel] for step in composite.steps))
              for name, composite in found.composites.items()}

    def on_its_arch(name, *args, **kwargs):
        arch = "120a" if "120a" in archs.get(name, {"120a"}) else "90a"
        return launch(name, *args, device=f"emulated:{arch}", **kwargs)

    monkeypatch.setattr(loader, "launch", on_its_arch)


def small_data(rng, family) -> dict[str, torch.Tensor]:
    """Buffers that the family takes, those that may be left out last."""
    tensors, sizes = {}, SIZES | NUMBERS | OTHER_SIZES.get(family.name, {})
    for argument in sorted(family.arguments, key=lambda argument: argument.optional):
        shape = [int(expression.evaluate(entry, sizes)) for entry in argument.shape]
        if argument.name in INTEGERS:
            values = np.reshape(INTEGERS[argument.name], shape)
        elif argument.dtypes[0] in ("i32", "i64"):
            values = np.zeros(shape, np.int32)
        elif argument.dtypes[0] in ("e2m1x2", "ue4m3", "e4m3", "ue8m0"):
            values = rng.integers(0x20, 0x48, shape, dtype=np.uint8)
        else:
            values = rng.uniform(0.5, 2, shape)
        dtype = TORCH_TYPES[argument.dtypes[0]]
        tensor = torch.from_numpy(values).clone()  # where torch aligns it
        tensors[argument.name] = tensor.view(dtype) if tensor.dtype == torch.uint8 else tensor.to(dtype)
    return tensors


def registered_ops() -> set[str]:
    """What torch knows of the namespace, by the names that all forms of an op have."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.split("::")[1].split(".")[0] for name in names if name.startswith(f"{ops.NAMESPACE}::")}


def test_every_kernel_has_an_op(described):
    """The ops are the kernels and composites of the pack, whatever it holds."""
    from integrations import mega_moe  # noqa: F401 (brings the one that is written by hand)

    assert {"moe_fp4", "moe_gather_quantize"} < set(described)
    assert registered_ops() == set(described) | BY_HAND


def test_an_op_takes_what_its_kernel_takes(described, packs):
    """Buffers in the loader's order, those that may be left out last, then scalars by name, with their defaults."""
    for name, family in described.items():
        schema = getattr(torch.ops.block_scaled, name).default._schema
        given = {argument.name: argument for argument in schema.arguments}
        buffers = [argument.name for argument in sorted(family.arguments, key=lambda argument: argument.optional)]
        scalars = [scalar.name for scalar in family.scalars if scalar.name not in ops.LEFT_OUT]
        workspace = ["workspace"] if name in registry.registry(packs).composites else []
        assert list(given) == buffers + workspace + scalars
        for argument in family.arguments:
            alias = given[argument.name].alias_info
            assert (alias is not None and alias.is_write) == (argument.direction != "in"), (name, argument.name)
            assert given[argument.name].has_default_value() == argument.optional
        for scalar in family.scalars:
            if scalar.name in scalars:
                entry = given[scalar.name]
                assert entry.kwarg_only
                assert (entry.default_value if entry.has_default_value() else None) == scalar.default


def test_ops_tell_torch_the_truth(rng, described):
    """Schemas, fake kernels and mutated arguments agree with what the ops do: of a third of them, others in every
    run."""
    for name in rng.choice(sorted(described), len(described) // 3, replace=False):
        family = described[name]
        words = WORDS | NUMBERS | OTHER_SIZES.get(name, {})
        given = {scalar.name: words[scalar.name] for scalar in family.scalars if scalar.default is None}
        results = torch.library.opcheck(getattr(ops, name).default, tuple(small_data(rng, family).values()), given)
        assert set(results.values()) == {"SUCCESS"}, (name, results)


def test_an_op_launches_its_kernel(rng, described):
    """The same bytes as of ``loader.launch``, also with a workspace of the caller, and into a buffer of its own."""
    given = small_data(rng, described["moe_fp4"])
    out, op = given["out"], torch.ops.block_scaled.moe_fp4
    loader.launch("moe_fp4", **given, **WORDS)
    expected = out.clone()
    assert expected.any()
    raw = torch.empty((1 << 16) + 256, dtype=torch.uint8)
    for workspace in (None, raw[-raw.data_ptr() % 256 :][: 1 << 16]):
        out.zero_()
        op(**given, workspace=workspace, **WORDS)
        assert torch.equal(out, expected)
    made = op.functional(**{name: given[name] for name in given.keys() - {"out"}}, out="bf16", **WORDS)
    assert torch.equal(made, expected)


def test_an_unknown_op_is_an_unknown_kernel(monkeypatch, packs):
    """What no pack holds is refused as by the loader, and so is every op where there is no pack."""
    if packs:
        monkeypatch.setenv("LOADER_ARTIFACTS", packs[0])
    with pytest.raises(loader.UnknownKernelError, match="no kernel 'amaxx'; known are .*; did you mean amax?"):
        ops.amaxx  # noqa: B018
    program = (
        "from integrations import vllm, ops; import loader\n"
        "try: ops.grouped_fp4\n"
        "except loader.PackNotFoundError as error: print(error)"
    )
    monkeypatch.setenv("LOADER_ARTIFACTS", "/nothing")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("LOADER_ARTIFACTS names '/nothing', which holds no manifest.json")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inductor itself imports
@pytest.mark.parametrize("name", ["silu_and_mul_nvfp4_quant", "cutlass_scaled_fp4_mm"])
def test_inductor_compiles_what_engines_call(rng, name):
    """Inputs that inductor lets share memory are read like others, and the compiled call gives the same bytes."""
    x = torch.from_numpy(rng.standard_normal((3, 128))).bfloat16()
    packed, scales = (torch.from_numpy(rng.integers(0x20, 0x48, shape, dtype=np.uint8))
                      for shape in ((2, 64, 32), (2, 128, 4)))  # fmt: skip
    scales = scales.view(torch.float8_e4m3fn)

    def quantised(x, scale):
        out, out_scale = x.new_zeros((3, 32), dtype=torch.uint8), x.new_zeros((128, 4), dtype=torch.uint8)
        vllm.silu_and_mul_nvfp4_quant(out, out_scale, x * 2, scale)
        return out, out_scale

    def product(x, scale):
        return (vllm.cutlass_scaled_fp4_mm(*packed, *scales, scale, torch.bfloat16) + x[0, 0],)

    function = quantised if name.startswith("silu") else product
    expected = function(x, torch.tensor(2.0))
    torch.compiler.reset()
    results = torch.compile(function, fullgraph=True, backend="inductor")(x, torch.tensor(2.0))
    assert all(map(torch.equal, results, expected))
    assert all(result.any() for result in results)


@pytest.mark.parametrize("module", ["loader", "integrations.checkpoint"])
def test_torch_is_not_imported(module):
    """Only the modules that engines call need torch."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
