"""Kernels and composites inside jax.jit, on the emulated device: the bytes of ``loader.launch``."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantization
import reference
from raw_buffer import RawBuffer

import loader
from loader import expression

jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")
jnp = jax.numpy

import moe_reference as moe  # noqa: E402
from test_ops import NUMBERS, OTHER_SIZES, SIZES, WORDS  # noqa: E402

from integrations import jax as kernels  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ARCH = "120a"
JAX_TYPES = {"f32": jnp.float32, "f16": jnp.float16, "bf16": jnp.bfloat16, "i32": jnp.int32, "i64": jnp.int64}

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors", "default_pack"),
]


@pytest.fixture
def default_pack(packs: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls from XLA use the default packs, here those of the tests, and one emulated arch."""
    if packs is not None:
        monkeypatch.setenv("LOADER_ARTIFACTS", os.pathsep.join(packs))
    monkeypatch.setenv("LOADER_EMULATED_ARCH", ARCH)
    loader.reload()
    yield
    monkeypatch.undo()
    loader.reload()


def launched(name: str, outputs: dict[str, np.ndarray], **given: Any) -> dict[str, np.ndarray]:
    """The outputs after ``loader.launch``; bf16 is uint16."""
    outputs = {key: array.copy() for key, array in outputs.items()}
    buffers = {key: RawBuffer.of(value) if isinstance(value, np.ndarray) else value
               for key, value in (given | outputs).items()}  # fmt: skip
    loader.launch(name, **buffers)
    return outputs


def as_bf16(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array.view(jnp.bfloat16))


def bits(array: jax.Array) -> np.ndarray:
    """bf16 as uint16."""
    found = np.asarray(array)
    return found.view(np.uint16) if found.dtype == jnp.bfloat16 else found


def added(shares: jax.Array) -> jax.Array:
    """f32 [M, N] of [P, M, N]."""
    return kernels.call("sum_of_shares", shares=shares, outputs={"out": jnp.float32})["out"]


def quantized(case: quantization.Case) -> dict[str, jax.Array]:
    """The case by jit; results start as the case's, so that what nothing may write is seen."""

    def run(x: jax.Array, global_scale: jax.Array, **starts: jax.Array) -> dict[str, jax.Array]:
        return kernels.call("nvfp4_quantize", x=x, global_scale=global_scale, **starts, **case.scalars)

    inputs = {**case.inputs, "x": as_bf16(case.inputs["x"])}
    return jax.jit(run)(**inputs, **case.outputs)


@pytest.mark.parametrize("m", [1, 131])
def test_every_byte_of_a_quantisation(m: int, rng: np.random.Generator) -> None:
    """Results that start as given arrays hold them where the kernel writes nothing; those arrays stay as they were."""
    for kind in ("encode", "decode"):
        case = quantization.dense(rng, "bf16", m, 80, extra_scale_rows=128, global_scale_kind=kind)
        before = {name: array.copy() for name, array in case.outputs.items()}
        results = {name: np.asarray(array) for name, array in quantized(case).items()}
        case.verify(results, quantization.EMULATED)
        assert all(np.array_equal(case.outputs[name], array) for name, array in before.items())


@pytest.mark.parametrize("dtype", [jnp.float32, np.float32, np.dtype("f4"), "float32", jnp.bfloat16],
                         ids=["jax", "numpy", "dtype", "text", "bf16"])  # fmt: skip
def test_dtypes_of_results_as_jax_takes_them(dtype: Any) -> None:
    """A dtype by each of its names; with a shape it is a ``ShapeDtypeStruct``."""
    shares = jax.ShapeDtypeStruct((2, 1, 4), np.float32)
    for asked in (dtype, jax.ShapeDtypeStruct((1, 4), dtype)):
        run = functools.partial(kernels.call, "sum_of_shares", outputs={"out": asked})
        assert jax.eval_shape(run, shares=shares)["out"] == jax.ShapeDtypeStruct((1, 4), dtype)


def test_fp8_types_of_jax_are_the_bytes(rng: np.random.Generator) -> None:
    """As results where ``outputs`` says so, and as operands."""
    case = quantization.dense(rng, "f32", 3, 64, global_scale_kind="encode", scale_layout="linear")
    kind = jax.ShapeDtypeStruct((3, 4), jnp.float8_e4m3fn)
    results = kernels.call("nvfp4_quantize", **case.inputs, **case.scalars, outputs={"out_scale": kind})
    assert results["out_scale"].dtype == jnp.float8_e4m3fn and results["out"].dtype == jnp.uint8
    case.verify({name: np.asarray(array).view(np.uint8) for name, array in results.items()}, quantization.EMULATED)
    given = reference.grouped_problem(rng, [2, 3], 8, 32).inputs()
    as_fp8 = given | {name: given[name].view(jnp.float8_e4m3fn) for name in ("a_scale", "b_scale")}
    outs = [kernels.call("grouped_fp4", **each, outputs={"out": jnp.float32})["out"] for each in (given, as_fp8)]
    assert np.array_equal(*map(np.asarray, outs))


def test_one_trace_serves_other_values(rng: np.random.Generator) -> None:
    """A second call of a compiled function gives what its own operands say, routing among them."""
    traces = []

    @jax.jit
    def product(**inputs: jax.Array) -> jax.Array:
        traces.append(inputs)
        return kernels.call("grouped_fp4", **inputs, outputs={"out": jnp.bfloat16})["out"]

    for counts in ([0, 1, 12, 0, 3], [5, 0, 0, 10, 1]):
        problem = reference.grouped_problem(rng, counts, 24, 96)
        given = problem.inputs()
        out = bits(product(**given))
        direct = launched("grouped_fp4", {"out": np.full(out.shape, 0x7FC0, np.uint16)}, **given)["out"]
        assert np.array_equal(out, direct)
        values = reference.as_float64(out, "bf16")
        reference.check(values, reference.grouped_reference(problem), problem.shape[2], "bf16")
    assert len(traces) == 1


def test_a_composite_with_what_may_be_left_out(rng: np.random.Generator) -> None:
    """moe_fp4 with a bias and without: the bytes of ``loader.launch``; the workspace is XLA's and no result."""
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    layer = moe.random_layer(generator, 3, 96, 64, moe.Settings())
    for each in (layer, moe.with_biases(generator, layer)):
        tokens = moe.random_tokens(generator, 5, 2, 3, 96)
        tensors = {key: value for key, value in (tokens._asdict() | each.arguments).items() if value is not None}
        scalars = {key: value for key, value in tensors.items() if not isinstance(value, torch.Tensor)}
        arrays = {key: value.view(torch.uint16).numpy() if value.dtype == torch.bfloat16 else value.numpy()
                  for key, value in tensors.items() if key not in scalars}  # fmt: skip

        def run(x: jax.Array, scalars: Any = scalars, **given: jax.Array) -> dict[str, jax.Array]:
            return kernels.call("moe_fp4", x=x, **given, **scalars, outputs={"out": jnp.bfloat16})

        results = jax.jit(run)(**(arrays | {"x": as_bf16(arrays["x"])}))
        assert list(results) == ["out"]
        direct = launched("moe_fp4", {"out": np.full((5, 96), 0x7FC0, np.uint16)}, **arrays, **scalars)
        assert np.array_equal(bits(results["out"]), direct["out"])


def test_scan_adds_in_place(rng: np.random.Generator) -> None:
    """A carry that a kernel reads and writes; each turn sees the one before it."""
    shares = rng.standard_normal((4, 3, 2, 8)).astype(np.float32)
    start = rng.standard_normal((2, 8)).astype(np.float32)

    def add(total: jax.Array, turn: jax.Array) -> tuple[jax.Array, None]:
        return kernels.call("sum_of_shares", shares=turn, out=total, accumulate="add")["out"], None

    total, _ = jax.jit(lambda start, shares: jax.lax.scan(add, start, shares))(start, shares)
    expected = start
    for turn in shares:
        expected = launched("sum_of_shares", {"out": expected}, shares=turn, accumulate="add")["out"]
    assert np.array_equal(np.asarray(total), expected)
    assert np.allclose(expected, start + shares.sum((0, 1)), rtol=0, atol=1e-4)


def test_vmap_runs_one_after_another(rng: np.random.Generator) -> None:
    """Each of a batch by itself, whichever operand has the batch."""
    shares = rng.standard_normal((5, 3, 1, 4)).astype(np.float32)

    start = rng.standard_normal((1, 4)).astype(np.float32)

    def add(shares: jax.Array, start: jax.Array) -> jax.Array:
        return kernels.call("sum_of_shares", shares=shares, out=start, accumulate="add")["out"]

    sums = jax.jit(jax.vmap(add, in_axes=(0, None)))(shares, start)
    for got, each in zip(np.asarray(sums), shares, strict=True):
        assert np.array_equal(got, launched("sum_of_shares", {"out": start}, shares=each, accumulate="add")["out"])


def test_every_kernel_and_composite_can_be_traced() -> None:
    """From shapes alone, with all that may be left out and without; results are what the loader says."""
    found = loader.registry.registry()
    signatures = found.families | {name: composite.signature for name, composite in found.composites.items()}
    for name, family in signatures.items():
        sizes = SIZES | NUMBERS | OTHER_SIZES.get(name, {})
        scalars = {scalar.name: (sizes | WORDS)[scalar.name] for scalar in family.scalars if scalar.default is None}
        for with_optional in (False, True):
            specs = {argument.name: jax.ShapeDtypeStruct(
                         [int(expression.evaluate(entry, sizes)) for entry in argument.shape],
                         JAX_TYPES.get(argument.dtypes[0], jnp.uint8))
                     for argument in family.arguments if with_optional or not argument.optional}  # fmt: skip
            written = {argument.name for argument in family.arguments if argument.direction == "out"} & specs.keys()
            inputs = {key: spec for key, spec in specs.items() if key not in written}
            results = jax.eval_shape(
                functools.partial(
                    kernels.call, name, outputs={key: specs[key] for key in written}, **scalars
                ), **inputs,
            )  # fmt: skip
            in_place = {argument.name for argument in family.arguments if argument.direction == "inout"} & specs.keys()
            assert results.keys() == written | in_place, name
            for key, result in results.items():
                assert (result.shape, result.dtype) == (tuple(specs[key].shape), specs[key].dtype), (name, key)


WRONG = {
    "a_shape": ({"global_scale": np.ones(2, np.float32)}, loader.ShapeError, "global_scale dimension 0"),
    "a_dtype": ({"x": np.ones((1, 32), np.uint8)}, loader.DtypeError, "x expects bf16 or f16 or f32, got"),
    "a_dtype_of_nobody": ({"x": np.ones((1, 32), np.int16)}, loader.DtypeError, "x takes .*, got 'int16'"),
    "a_scalar": ({"division": "exact"}, loader.ScalarError, "division expects 'approximate' or 'ieee'"),
    "a_name": ({"scales": np.ones(1)}, loader.UnknownArgumentError, "has no argument 'scales'"),
    "no_input": ({"x": None}, loader.MissingArgumentError, "missing x"),
    "no_dimension": ({"S": None}, loader.MissingArgumentError, "dimension S of out_scale"),
    "an_output": ({"outputs": {"x": jnp.float32}}, loader.UnknownArgumentError, "outputs has 'x'; results without"),
    "a_result_type": ({"outputs": {"out": jnp.float32}}, loader.DtypeError, "out expects e2m1x2, got float32"),
    "a_result_shape": ({"outputs": {"out": jax.ShapeDtypeStruct((1, 15), jnp.uint8)}}, loader.ShapeError,
                       "out dimension 1"),
    "prefetch": ({"prefetch": "weights"}, loader.UnknownArgumentError, "prefetch cannot be given inside JAX"),
    "workspace": ({"workspace": np.ones(4, np.uint8)}, loader.UnknownArgumentError, "workspace cannot be given"),
}  # fmt: skip


@pytest.mark.parametrize("changed, error, message", WRONG.values(), ids=WRONG)
def test_the_loader_refuses_while_tracing(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    """Nothing is compiled of a call that does not fit."""
    given = {"x": np.ones((1, 32), np.float32), "global_scale": np.ones(1, np.float32), "S": 128,
             "global_scale_kind": "encode"}  # fmt: skip
    with pytest.raises(error, match=message.replace("(", r"\(")):
        jax.eval_shape(lambda: kernels.call("nvfp4_quantize", **{**given, **changed}))


def test_what_a_kernel_may_read_is_given() -> None:
    """An argument that is read and written needs its array, or a word that it is only written."""
    shares = np.ones((2, 1, 4), np.float32)
    with pytest.raises(loader.MissingArgumentError, match="out may be read, too"):
        kernels.call("sum_of_shares", shares=shares)
    with pytest.raises(loader.DtypeError, match="out may be bf16 or f16 or f32; outputs says which"):
        problem = reference.grouped_problem(np.random.default_rng(0), [1], 8, 32)
        kernels.call("grouped_fp4", **problem.inputs())


def test_a_failing_launch_is_an_error_of_xla(rng: np.random.Generator) -> None:
    """What values alone show comes from the launch, with the loader's message; the next call runs."""
    problem = reference.grouped_problem(rng, [2, 3], 8, 32)
    given = problem.inputs()
    run = jax.jit(lambda **inputs: kernels.call("grouped_fp4", **inputs, outputs={"out": jnp.float32})["out"])
    wrong = {**given, "expert_offsets": np.array([0, 4, 2], np.int32)}
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: ValuesError: grouped_fp4: entry 2 of"):
        jax.block_until_ready(run(**wrong))
    direct = launched("grouped_fp4", {"out": np.full((5, 8), np.nan, np.float32)}, **given)["out"]
    assert np.array_equal(np.asarray(run(**given)), direct)


def test_nothing_flows_back(rng: np.random.Generator) -> None:
    """Derivatives are refused."""
    shares = rng.standard_normal((2, 1, 4)).astype(np.float32)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda shares: added(shares).sum())(shares)


OTHER_PROCESS = """
import sys, warnings
from pathlib import Path
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
warnings.simplefilter("ignore", RuntimeWarning)  # of the emulated device
from jax.sharding import PartitionSpec
import integrations.jax as kernels

folder = Path(sys.argv[1])
shares = np.load(folder / "shares.npy")
exported = jax.export.deserialize((folder / "program").read_bytes())
np.save(folder / "exported.npy", exported.call(shares))

def add(shares):
    return kernels.call("sum_of_shares", shares=shares, outputs={"out": jax.numpy.float32})["out"]

rows = PartitionSpec(None, "rows")
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
split = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=rows, out_specs=PartitionSpec("rows"), check_vma=False))
out = split(shares)
assert len(out.sharding.device_set) == 2
np.save(folder / "split.npy", out)
"""


def test_exported_and_split_over_devices(rng: np.random.Generator, tmp_path: Path) -> None:
    """Another process runs an exported program, and one call on two devices, each with its rows."""
    pytest.importorskip("flatbuffers")  # with which JAX writes programs
    shares = rng.standard_normal((3, 6, 4)).astype(np.float32)
    allowed = [jax.export.DisabledSafetyCheck.custom_call(kernels.TARGET)]
    exported = jax.export.export(jax.jit(added), disabled_checks=allowed)(
        jax.ShapeDtypeStruct(shares.shape, shares.dtype)
    )
    (tmp_path / "program").write_bytes(exported.serialize())
    np.save(tmp_path / "shares.npy", shares)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    direct = launched("sum_of_shares", {"out": np.full((6, 4), np.nan, np.float32)}, shares=shares)["out"]
    for name in ("exported", "split"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), direct), name
