"""include/block_scaled.h against the loader: the same launch, byte by byte, and the same words where there is none."""

from __future__ import annotations

import copy
import os
from functools import partial

import header_program
import manifest_pack
import numpy as np
import pytest
import random_calls
import sample_pack
from device_buffers import Tensor
from fake_cuda import image
from header_program import DEVICES, Program, call_lines, launch_line
from random_calls import Buffer

import loader
from loader import arch, registry
from loader.expression import LAZY_OPERATORS, OPERATORS

CALLS = int(os.environ.get("TESTS_CALLS", 2))  # random ones of each family
DAMAGED = 0.15  # of them are made wrong
AT_ONCE = 4000  # calls of one process
TENSORS = {"e2m1x2": "fp4x2", "ue4m3": "e4m3"}
STREAM = 0x5000
TOO_LONG = "cannot be computed: it has over 126 bits"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("header")
    header_program.compile_driver(folder)
    source = header_program.SOURCES / "run_calls.c"
    return Program(header_program.compile_program(source, folder / "run_calls", "-O1"), folder)


class Made:
    """A call: its lines for the program, and what the loader does of it."""

    def __init__(self, cuda, name, values, device=0, stream=0, variant=None):
        buffers = {key: Tensor(TENSORS.get(value.dtype, value.dtype), value.shape, device=(2, device))
                   for key, value in values.items() if isinstance(value, Buffer)}
        self.lines = call_lines(name, values, device=device, stream=stream, variant=variant or "-",
                                addresses={key: buffer.pointer for key, buffer in buffers.items()})
        seen = []
        remove = loader.on_launch(seen.append)
        cuda.launches.clear()
        try:
            loader.launch(name, **{**values, **buffers}, stream=stream, variant=variant)
        except loader.LoaderError as error:
            words = str(error).split(" runs this on ")[0] if isinstance(error, loader.NoKernelError) else str(error)
            self.expected = ["error", words.replace("\n", "\t")[:1023]]
        else:
            self.expected = [*map(launch_line, cuda.launches),
                             f"ok {seen[0].variant} {seen[0].arch} {seen[0].reason}" if seen else "ok - - skipped"]
        remove()

    @classmethod
    def random(cls, rng, cuda, family, artifacts):
        """Of a device on which the family runs, most likely with outputs that it gives there."""
        runs = [[a for a in artifacts if arch.refusal(arch.ARCHS[a.arch], d.capability) is None] for d in DEVICES]
        device = int(rng.choice([i for i, found in enumerate(runs) if found]))
        axes = runs[device][int(rng.integers(len(runs[device])))].axes
        dtypes = {argument: axes[axis] for axis, argument in family.match.items() if rng.random() < 0.95}
        problem = random_calls.draw(rng, family, dtypes)
        if rng.random() < DAMAGED:
            problem = random_calls.damage(rng, problem)
        values = list({**problem.buffers, **problem.scalars}.items())
        rng.shuffle(values)
        name = family.overloads if family.overloads and rng.random() < 0.5 else family.name
        return cls(cuda, name, dict(values), device, int(rng.choice([0, STREAM + device])))

    @property
    def launched(self):
        return self.expected[-1].startswith("ok ")

    def check(self, printed):
        """``printed``: what the program said of this call."""
        if self.launched:
            assert printed == self.expected, self.lines
        else:
            assert len(printed) == 1 and printed[0].startswith("error "), self.lines
            assert printed[0].split(" ", 2)[2][:len(self.expected[1])] == self.expected[1], self.lines


def compare(program, directory, calls):
    """Check all calls; returns the attributes of kernels that the program set."""
    opened, *answers = program.run(f"pack {directory}\n" + "".join(made.lines for made in calls))
    assert opened == ["opened"] and len(answers) == len(calls)
    for made, printed in zip(calls, answers, strict=True):
        made.check([line for line in printed if not line.startswith("attribute ")])
    return {tuple(map(int, line.split()[2:])) for printed in answers for line in printed
            if line.startswith("attribute ")}


@pytest.fixture
def many_devices(cuda):
    cuda.devices, cuda.streams = list(DEVICES), {STREAM + i: i for i in range(len(DEVICES))}
    return cuda


def test_every_family_is_launched_alike(program, many_devices, tmp_path, monkeypatch, rng):
    """On every arch: variant, reason, grid, block, shared memory, attributes, every byte of parameters and every
    argument of a tensor map; and what the loader refuses is refused in its words."""
    manifest_pack.write(tmp_path, lambda artifact: image(artifact["symbol"], [
        [p["offset"], p["size"]] for p in artifact["parameters"]]) + artifact["arch"].encode())
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path))
    found, pending, launched, attributes = registry.registry(), [], [], set()
    for name, family in found.families.items():
        artifacts = [candidate.artifact for candidate in found.candidates(name)]
        pending += [Made.random(rng, many_devices, family, artifacts) for _ in range(CALLS)]
        if len(pending) >= AT_ONCE or name == list(found.families)[-1]:
            attributes |= compare(program, tmp_path, pending)
            launched += [made.launched for made in pending]
            pending.clear()
            loader.reload()  # which lets go of what is remembered of problems
    assert attributes == set(many_devices.attributes)
    assert len(launched) == CALLS * len(found.families) and np.mean(launched) > 0.6


def test_selection_by_measured_rows(program, many_devices, tmp_path, monkeypatch, rng):
    """The nearest row, those of the very device first, of those that time a candidate which runs the problem."""
    manifest, files = sample_pack.build()
    manifest |= {"schema": 5, "composites": {}}
    select = manifest["families"]["scale_rows"]["select"]
    select["features"] = {"M": "M", "wide": ["fdiv", "K", 100]}
    for artifact in manifest["artifacts"]:
        limit = ["<=", "M", int(rng.choice([100, 1000, 100_000]))]
        artifact["requires"] = [{"text": "M is small", "expression": limit}] if rng.random() < 0.5 else []
    sizes = [size for size in random_calls.EXTENTS if size % 32 == 0]
    for _ in range(40):
        row = {"arch": str(rng.choice(sample_pack.ARCHS)), "device": str(rng.choice([d.name for d in DEVICES])),
               "features": {"M": int(rng.choice(sizes)), "wide": float(rng.choice(sizes)) / 100},
               "microseconds": {tile: float(rng.random()) for tile in sample_pack.TILES if rng.random() < 0.8}}
        select["measured"].append(row)
    sample_pack.write(tmp_path, manifest, files)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path))
    found = registry.registry()
    artifacts = [candidate.artifact for candidate in found.candidates("scale_rows")]
    calls = [Made.random(rng, many_devices, found.family("scale_rows"), artifacts) for _ in range(200)]
    for row in select["measured"]:  # the very problem of a row
        m, k = int(row["features"]["M"]), int(row["features"]["wide"] * 100)
        device = next(i for i, d in enumerate(DEVICES) if d.name == row["device"])
        calls.append(Made(many_devices, "scale_rows", sample_call(m, k), device=device))
    compare(program, tmp_path, calls)
    assert {made.expected[-1].split()[-1] for made in calls if made.launched} >= {"measured", "nearest", "far"}


def sample_call(m=96, k=64, **replaced):
    """A correct call of the sample pack, as values of a program."""
    values = {"a": Buffer("e2m1x2", (m, k // 2)), "scale": Buffer("ue4m3", (-(-m // 32), k // 16)),
              "offsets": Buffer("i32", (4,)), "out": Buffer("bf16", (m, k)), "top": 4}
    return {key: value for key, value in {**values, **replaced}.items() if value is not None}


def random_expression(rng, depth):
    if depth == 0 or rng.random() < 0.1:
        leaves = ["M", "K", "E", "alpha", "top", "sm_count", "block_m", int(rng.integers(-9, 9)), 1 << 31,
                  float(rng.choice([0.0, 0.5, -2.5, 3.0, 1e9, 0.1]))]
        return leaves[int(rng.integers(len(leaves)))]
    name, operands = [(name, count) for name, (count, _) in OPERATORS.items()], list(LAZY_OPERATORS.items())
    chosen, count = [*name, *operands][int(rng.integers(len(name) + len(operands)))]
    return [chosen, *(random_expression(rng, depth - 1) for _ in range(count))]


def test_expressions_have_the_same_values(program, many_devices, tmp_path, monkeypatch, rng):
    """Every operator on integers, floats and truth values; what has no value is refused in the same words."""
    manifest, files = sample_pack.build(archs=("120a",))
    first = manifest["artifacts"][0]
    manifest["artifacts"] = []
    for index in range(300):
        artifact = copy.deepcopy(first) | {"variant": f"v{index}", "cost": None}
        artifact["parameters"][6]["value"] = random_expression(rng, 3)
        artifact["parameters"][5]["value"] = random_expression(rng, 3)
        manifest["artifacts"].append(artifact)
    sample_pack.write(tmp_path, manifest, files)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path))
    device = next(i for i, d in enumerate(DEVICES) if d.capability == (12, 0))
    launch = partial(Made, many_devices, "scale_rows", device=device)
    calls = [launch(sample_call(alpha=float(rng.normal())), variant=f"v{index}") for index in range(300)]
    _, *answers = program.run(f"pack {tmp_path}\n" + "".join(made.lines for made in calls))
    for made, printed, artifact in zip(calls, answers, manifest["artifacts"], strict=True):
        if TOO_LONG in printed[-1]:  # Python has integers of any length
            continue
        made.lines += f"{artifact['parameters'][5]['value']}\n{artifact['parameters'][6]['value']}"
        made.check([line for line in printed if not line.startswith("attribute ")])
    assert sum(made.launched for made in calls) > 30
