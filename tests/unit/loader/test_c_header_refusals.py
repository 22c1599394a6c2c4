"""include/block_scaled.h and what is wrong: calls, packs made to harm, and a driver that fails. With sanitizers, where
the compiler has them: memory is used in bounds and given back, whatever a manifest says."""

from __future__ import annotations

import copy
import itertools
import json
import random

import header_program
import hostile_packs
import pytest
import sample_pack
from fake_cuda import FakeDevice, image
from header_program import Program, call_lines
from random_calls import Buffer
from test_c_header import Made, many_devices, sample_call  # noqa: F401 (a fixture)

import loader
from loader import registry

MUTATIONS = 120
VALUES = (None, True, 0, -1, 1, 7, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, 1e300, "", "M", "x\x1b", "sizeof_a", [], {},
          [[]], ["+", 1, 2], ["/", "M", 0], ["*", 1 << 62, 1 << 62], [["M"]] * 9, {"a": "M"})
DEVICE = [FakeDevice()]
ADDRESSES = {"a": 0x10000, "scale": 0x20000, "offsets": 0x30000, "out": 0x40000}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("header")
    header_program.compile_driver(folder)
    source, flags = header_program.SOURCES / "run_calls.c", header_program.sanitizers(folder)
    return Program(header_program.compile_program(source, folder / "run_calls", *flags), folder)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sample")
    sample_pack.write(directory, *sample_pack.build(archs=("120a",)))
    return directory


def a_call(name="scale_rows", variant="m16_bf16", addresses=ADDRESSES, stream=0, **replaced):
    return call_lines(name, sample_call(**replaced), variant=variant, addresses=addresses, stream=stream)


SMALL = Buffer("bf16", (96, 63))
WRONG = {
    "kernel": (a_call("scale_row"), "8 no kernel 'scale_row' in pack "),
    "variant": (a_call(variant="m8"), "10 scale_rows has no variant 'm8'; known are m16_bf16, m16_f32, m64_bf16, "
                "m64_f32"),
    "another output": (a_call(variant="m16_f32"), "11 no variant of scale_rows runs this on Fake RTX (compute "
                       "capability 12.0)\t  m16_bf16 sm_120a: the call asks for variant m16_f32\t  m16_f32 sm_120a: "
                       "computes out as f32, the call has bf16\t"),
    "missing": (a_call(scale=None, top=None), "12 scale_rows: missing scale, top"),
    "unknown": (a_call(outs=1), "12 scale_rows has no argument 'outs'; it takes a, scale, offsets, out, alpha, top"),
    "number for a buffer": (a_call(a=1), "12 scale_rows: a expects a buffer, got a number"),
    "dtype": (a_call(out=Buffer("i32", (96, 64))), "13 scale_rows: out expects bf16 or f32, got i32"),
    "rank": (a_call(a=Buffer("e2m1x2", (96,))), "14 scale_rows: a expects 2 dimensions [M, K / 2], got 1"),
    "extent": (a_call(out=SMALL), "14 scale_rows: out dimension 1 (K) expects 64, got 63 (with alpha = 1.0, top = 4, "
               "M = 96, K = 64, E = 3)"),
    "negative extent": (a_call(offsets=Buffer("i32", (-1,))), "14 scale_rows: offsets dimension 0 is -1"),
    "no dimension": (a_call(offsets=Buffer("i32", (0,))), "14 scale_rows: offsets dimension 0 (E + 1) expects a size "
                     "that gives E >= 0, got 0 (with alpha = 1.0, top = 4, M = 96, K = 64, E = -1)"),
    "huge": (a_call(a=Buffer("e2m1x2", (1 << 62, 1 << 62))), "14 scale_rows: a has over 2^64 bytes"),
    "real for an integer": (a_call(top=2.5), "15 scale_rows: top expects a number of type i32, got float"),
    "word for a number": (a_call(top="many"), "15 scale_rows: top expects a number of type i32, got a word"),
    "too large": (a_call(top=1 << 31), "15 scale_rows: top = 2147483648 does not fit i32"),
    "too large a real": (a_call(alpha=1e39), "15 scale_rows: alpha = 1e+39 does not fit f32"),
    "constraint": (a_call(top=0), "16 scale_rows: top >= 1 does not hold (with top = 0)"),
    "alignment": (a_call(addresses={**ADDRESSES, "a": 0x10008}), "17 scale_rows: a must start at a multiple of 16 "
                  "bytes, got address 0x10008"),
    "no address": (a_call(addresses={**ADDRESSES, "scale": 0}), "17 scale_rows: scale has address 0"),
    "overlap": (a_call(addresses={**ADDRESSES, "out": 0x10000}), "17 scale_rows: out is written and shares memory "
                "with a"),
    "no device": (a_call().replace("call 0", "call 3"), "12 there is no device 3, expected 0 to 0"),
    "capture": (a_call(stream=0x6000), "22 scale_rows_m16_bf16 is not loaded yet and the stream is being captured; "
                "make a plan of it before"),
}


def test_wrong_calls(program, sample):
    """Each has its code, and a message that names the argument, what was expected and what came."""
    _, *answers = program.run(f"pack {sample}\n" + "".join(call for call, _ in WRONG.values()), DEVICE)
    said = {name: printed[-1] for name, printed in zip(WRONG, answers, strict=True)}
    assert {name: said[name][:len(f"error {text}")] for name, (_, text) in WRONG.items()} == {
        name: f"error {text}" for name, (_, text) in WRONG.items()}


def test_an_argument_twice(program, sample):
    """Named so; which one counts would be a guess."""
    call = a_call().replace(" 5\n", " 6\n") + "integer top 4\n"
    assert program.run(f"pack {sample}\n{call}", DEVICE)[-1] == ["error 12 scale_rows: top is given twice"]


def test_calls_with_nothing(program, sample):
    """No directory, no device and no plan are wrong arguments; closing nothing does nothing."""
    _, *answers = program.run(f"pack {sample}\nnothing\n", DEVICE)
    assert answers == [["error 12 a pack needs a directory"],
                       ["error 12 a plan needs a pack, a device and the values of its call"],
                       ["error 12 there is no plan to launch"]]


@pytest.mark.parametrize(("function", "message"), [
    ("cuInit", "error 20 cuInit failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument [device 0]"),
    ("cuLibraryLoadData", "error 20 cuLibraryLoadData failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument "
     "[scale_rows/sm_120a/m16_bf16.cubin]"),
    ("cuTensorMapEncodeTiled", "error 20 cuTensorMapEncodeTiled failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument "
     "[a_map]"),
    ("cuLaunchKernelEx", "error 20 cuLaunchKernelEx failed: CUDA_ERROR_INVALID_VALUE (1): invalid argument "
     "[scale_rows]"),
])
def test_a_driver_that_fails(program, sample, function, message):
    """The call, its error, and what it was about; what was made until then is freed."""
    answers = program.run(f"pack {sample}\n{a_call()}{a_call()}", DEVICE, fails=f"{function}=1")
    assert [printed[-1] for printed in answers] == ["opened", message, message]


def test_composites_and_other_images(program, tmp_path):
    """A composite is refused by its name, an image with other parameters than the manifest's before a launch."""
    manifest, files = sample_pack.build(archs=("120a",))
    manifest |= {"schema": 2, "composites": {"layer": {}}}
    data = image("scale_rows_m16_bf16", [[0, 128], [128, 8]])
    name = manifest["artifacts"][0]["file"]
    manifest["artifacts"][0] |= sample_pack.stored(name, data)
    sample_pack.write(tmp_path, manifest, files | {name: data})
    _, composite, other = program.run(f"pack {tmp_path}\n{a_call('layer', variant='-')}{a_call()}", DEVICE)
    assert composite == ["error 9 layer runs several kernels; here they are called one by one"]
    assert other == [f"error 21 {name}: parameter 2 of scale_rows_m16_bf16 is not where the manifest says"]


def hostile(rng):
    """Packs that this header must refuse, too: what it does not read may say anything."""
    unread = ("ptx", "summary", "doc", "toolchain", "registers")
    made = [list(category(rng)) for category in (hostile_packs.paths, hostile_packs.links, hostile_packs.lies,
                                                 hostile_packs.expressions)]
    made.append([case for case in hostile_packs.documents(rng) if case.error is not loader.ManifestError])
    for cases in made:
        cases = [case for case in cases if not any(word in case.label for word in unread)]
        yield from rng.sample(cases, min(len(cases), 8))
    yield from (case for case in made[-1] if case.label.endswith(" 300000 deep"))


def test_hostile_packs(program, tmp_path, seed):
    """Refused before the driver gets an image; under the sanitizers."""
    rng, text, cases = random.Random(seed), "", []
    for index, case in enumerate(hostile(rng)):
        directory = tmp_path / str(index) / "pack"
        directory.mkdir(parents=True)
        case.write(directory)
        cases.append(case)
        text += f"pack {directory}\n{a_call()}"
    answers = iter(program.run(text, DEVICE))
    for case in cases:
        printed = next(answers)
        if printed == ["opened"]:
            printed = next(answers)
        else:
            next(answers)
        assert printed[-1].startswith("error "), (case.label, printed)


def mutate(rng, manifest):
    """The text of a manifest with one value replaced, removed or moved a little, or with a few bytes changed."""
    if rng.random() < 0.2:
        data = bytearray(json.dumps(manifest, sort_keys=True).encode())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    holder = changed = copy.deepcopy(manifest)
    while True:
        key = rng.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or rng.random() < 0.1:
            break
        holder = holder[key]
    if type(holder[key]) is int and rng.random() < 0.6:
        holder[key] += rng.choice((-16, -1, 1, 16))
    elif rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(changed, sort_keys=True).encode()


def test_mutated_manifests(program, many_devices, tmp_path, seed, monkeypatch):  # noqa: F811
    """What the loader still takes is launched alike; of the rest nothing breaks."""
    rng, text, made = random.Random(seed), "", []
    manifest, files = sample_pack.build(archs=("120a",))
    many_devices.devices = DEVICE
    for index in range(MUTATIONS):
        directory = tmp_path / str(index)
        sample_pack.write(directory, mutate(rng, manifest), files)
        monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(directory))
        loader.reload()
        made.append(Made(many_devices, "scale_rows", sample_call(m=rng.choice((0, 1, 96)))))
        text += f"pack {directory}\n{made[-1].lines}"
    answers = iter(program.run(text, DEVICE))
    for call in made:
        opened, printed = next(answers), next(answers)
        if call.launched:
            assert opened == ["opened"]
            call.check([line for line in printed if not line.startswith("attribute ")])
    assert 0 < sum(call.launched for call in made) < MUTATIONS


def test_every_prefix_is_refused(program, sample, tmp_path):
    """A manifest that is cut off."""
    data = (sample / "manifest.json").read_bytes()
    text = ""
    for length in itertools.chain(range(60), range(60, len(data), 997)):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / "manifest.json").write_bytes(data[:length])
        text += f"pack {directory}\n"
    answers = program.run(text, DEVICE)
    assert answers and all(printed[-1].startswith("error 4 ") for printed in answers)
