"""The readers of whatever comes from outside, one small target each: bytes in, nothing out.

A target returns where its reader takes the bytes or refuses them with an error of its own. Everything else that it
raises is a finding; so is what ``fuzz_limits`` sees.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import lzma
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fake_cuda
import sample_call
import sample_pack
from fuzz_limits import store
from generated_code import foreign, source_of

import emulator
import loader
from emulator.execution.program import Program
from emulator.text.parse import parse as parse_ptx
from generator.expression import parse as parse_text
from integrations import expert_layout, model_fields, model_formats, model_layers
from integrations.expert_formats import SOURCES, CheckpointError
from integrations.expert_tensors import Checkpoint
from integrations.safetensors_file import ITEM_BITS, SafetensorsError, SafetensorsFile
from loader import api, driver, expression, fields, module, problems, registry, trust, tune, tuned
from loader.errors import ExpressionError, LoaderError
from loader.listing import ptx_text
from loader.reader import parse as parse_manifest

SEPARATOR = b"\n=====\n"
LARGEST = 1 << 16  # bytes of the tensors of a checkpoint
NUMBERS = bytes(0x30 + 7 * place % 16 for place in range(LARGEST))  # in every format
VALUES = {"M": 64, "K": 128, "E": 8, "alpha": 0.5, "zero": 0, "many": (1 << 63) - 1}


class Target(NamedTuple):
    """A reader, and the bytes that mutations put into its inputs."""

    run: Callable[[bytes], None]
    words: tuple[bytes, ...]
    is_json: bool = False


def manifest(data: bytes) -> None:
    """The bytes of ``manifest.json``; what is read can be combined with itself."""
    try:
        read = parse_manifest(data)
        registry.Registry([registry.Pack("one", read, ""), registry.Pack("two", read, "")], "fuzz")
    except LoaderError:
        pass


def expression_list(data: bytes) -> None:
    """An expression as a manifest has it: what it gives does not depend on how it is computed."""
    try:
        value = fields.to_expression(fields.decode(data, "expression", 1 << 20), "expression", frozenset(VALUES))
    except LoaderError:
        return
    _compute(value)


def expression_text(data: bytes) -> None:
    """An expression as kernels.yaml has it."""
    try:
        value = parse_text(data.decode("utf-8", "replace"))
    except ExpressionError:
        return
    _compute(value)


def _compute(value: expression.Expression) -> None:
    expression.to_text(value)
    results = []
    for compute in (expression.evaluate, lambda value, values: expression.function(value)(values)):
        try:
            results.append(repr(compute(value, VALUES)))
        except ExpressionError as error:
            results.append(str(error))
        except ValueError:  # an integer too long to be shown, which nothing shows
            results.append("long")
    assert results[0] == results[1], results
    for name in expression.names(value):
        if expression.solvable(value, name):
            try:
                expression.solve(value, name, 96, VALUES)
            except ExpressionError:
                pass


def safetensors(data: bytes) -> None:
    """A safetensors file: its header, and a view of each tensor."""
    path = store() / "x.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
        for name in file.tensors:
            file.read(name)
    except SafetensorsError:
        pass


def configuration(data: bytes) -> None:
    """The ``config.json`` of a model: its matrices, and the format of each."""
    path = store() / "config.json"
    path.write_bytes(data)
    try:
        config = model_fields.read(path)
        _, format_of = model_formats.formats(config, path.parent)
        for matrix in model_layers.matrices(config):
            for module in matrix.modules:
                format_of(module.format(0))
    except model_fields.ModelError:
        pass


def checkpoint(data: bytes) -> None:
    """Names, types and shapes of a checkpoint's tensors, as JSON: what is prepared of it gives every byte back."""
    try:
        tensors = {str(name): (str(dtype), [int(size) for size in shape])
                   for name, (dtype, shape) in json.loads(data).items()}
        sizes = [abs(math.prod(shape)) * ITEM_BITS[dtype] // 8 for dtype, shape in tensors.values()]
        if sum(sizes) > LARGEST:
            return
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        return
    ends = list(itertools.accumulate(sizes, initial=0))
    header = json.dumps({
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for (name, (dtype, shape)), begin, end in zip(tensors.items(), ends, ends[1:], strict=False)
    }).encode()  # fmt: skip
    path = store() / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + NUMBERS[: ends[-1]])
    try:
        opened = Checkpoint(path)
        for prefix in opened.prefixes:
            _round_trip(opened, prefix)
    except (CheckpointError, SafetensorsError):
        pass


def _round_trip(opened: Checkpoint, prefix: str) -> None:
    layer = opened.layer(prefix)
    arrays = expert_layout.layout(layer, opened.has_nan_scales(layer))
    if sum(4 * math.prod(shape) for _, shape in arrays.values()) > 64 * LARGEST:
        return
    for name, restored in expert_layout.restore(expert_layout.prepare(opened, prefix), layer.metadata).items():
        assert restored.tobytes() == opened.read(name).tobytes(), name


def signature(data: bytes) -> None:
    """The signatures beside a manifest: what is read is written as it was, but for its order."""
    try:
        found = trust.from_text(data, "fuzz")
    except LoaderError:
        return
    assert sorted(trust.to_text(found).splitlines()) == sorted(data.splitlines())


def key(data: bytes) -> None:
    """A key file, as one of a public key and as one of a private key: what is read has an id.

    Behind ``DER:`` is what PEM has in base64, so that mutations reach it; before it stands the kind of the block.
    """
    kind, der, content = data.partition(b"DER:")
    if der:
        data = b"-----BEGIN %s-----\n%s-----END %s-----\n" % (kind, base64.encodebytes(content), kind)
    path = store() / "key.pem"
    path.write_bytes(data)
    for read in (trust.read_public_key, lambda file: trust.read_private_key(file).public_key()):
        try:
            assert len(trust.key_id(read(os.fspath(path)))) == 64
        except LoaderError:
            pass


def entry_points(data: bytes) -> None:
    """The ``entry_points.txt`` of a distribution: names of modules, one line each."""
    path = store() / "entry_points.txt"
    path.write_bytes(data)
    for name in registry._entry_points(os.fspath(path)):
        assert "\n" not in name


def ptx(data: bytes) -> None:
    """PTX text to the Python of every block, in which nothing of the text is anything but a string."""
    try:
        _translate(data.decode("utf-8", "replace"))
    except emulator.EmulatorError:
        pass


def _translate(text: str) -> None:
    source = parse_ptx(text)
    for function in source.entries.values():
        program = Program(function, source.files)
        for block in program.blocks:
            for masked in (False, True):
                assert not (found := foreign(source_of(program, block, masked))), found


def pack(data: bytes) -> None:
    """A directory: manifest, image and PTX, one behind the other with ``SEPARATOR`` between.

    Digests and sizes of both files are filled in where the manifest has words for them; PTX behind ``XZ:`` is packed.
    """
    text, image, listing = (*data.split(SEPARATOR, 2), b"", b"")[:3]
    if listing.startswith(b"XZ:"):
        listing = lzma.compress(listing[3:], preset=0)
    for word, content in ((b"CUBIN", image), (b"PTX", listing)):
        text = text.replace(b"SHA_" + word, hashlib.sha256(content).hexdigest().encode())
        text = text.replace(b"SIZE_" + word, str(len(content)).encode())
    for name, content in (("manifest.json", text), ("k/a.cubin", image), ("k/a.ptx.xz", listing)):
        (store() / name).write_bytes(content)
    try:
        opened = registry.open_pack(os.fspath(store()))
        for candidate in [registry.Candidate(opened, artifact) for artifact in opened.manifest.artifacts]:
            opened.read(candidate.artifact.binary)
            _translate(ptx_text(candidate))
    except (LoaderError, emulator.EmulatorError):
        pass


def launch(data: bytes) -> None:
    """A manifest whose files are there, and a call of its kernel on a driver that is none."""
    (_sample() / "manifest.json").write_bytes(data)
    _launch()


def _sample() -> Path:
    """The directory of a pack that is right at first."""
    directory = store() / "sample"
    if not directory.exists():
        sample_pack.write(directory)
    return directory


def tuned_rows(data: bytes) -> None:
    """The file of a user's rows, and a launch that looks at them: what is read is written as it was."""
    path = store() / "tuned.json"
    path.write_bytes(data)
    os.environ[tuned.VARIABLE] = os.fspath(path)
    _sample()
    _launch()
    try:
        rows = tuned.read(os.fspath(path))
    except LoaderError:
        return
    (store() / "again.json").write_text(tuned.to_text(rows))
    assert tuned.read(os.fspath(store() / "again.json")) == rows


def problem_list(data: bytes) -> None:
    """A file of problems to tune, and what the packs would run for some of them."""
    path = store() / "problems.json"
    path.write_bytes(data)
    device = driver.Driver(fake_cuda.FakeCuda()).device(0)
    try:
        found = registry.registry(os.fspath(_sample()))
        shapes = problems.read([os.fspath(path)], found)
    except LoaderError:
        return
    for shape in shapes[:20]:
        with contextlib.suppress(LoaderError):
            tune.task_of(found, shape, device)


def _launch() -> None:
    directory = _sample()
    for remembered in (registry._registries, api._calls, module._libraries):
        remembered.clear()
    driver._driver, driver.open_library = None, fake_cuda.FakeCuda
    try:
        loader.launch("scale_rows", packs=os.fspath(directory), **sample_call.arguments())
    except LoaderError:
        pass


_OPERATORS = (*expression.OPERATORS, *expression.LAZY_OPERATORS)
_JSON = tuple(json.dumps(word).encode() for word in (
    *_OPERATORS, *VALUES, 0, -1, 1 << 31, 1 << 63, 1 << 64, 10**30, 1.5, 1e300, None, True, [], {}, "", "../secret",
    "out", "up/secret", "loop", "pipe", "/etc/passwd", "k/a.cubin", "k/a.ptx.xz", "\ud800", "\0", "x" * 300, "optional",
    "sizeof_a", "sm_count", "overloads", "choices", "values", "within", "composites", "tensor_map", "pointer", "scalar",
)) + (b"NaN", b"Infinity", b"1e999", b"-0.0", b"[" * 200, b'{"a":' * 50, b"9" * 5000)  # fmt: skip
_PTX = (
    b".visible .entry k(.param .u64 p) {", b".reg .b32 %r<64>;", b".reg .pred %p<4>;", b".reg .b32 %r<99999999999>;",
    b".shared .align 16 .b8 s[1024];", b".global .b8 g[4] = {1, 2, s, 0f00000000};", b".local .b8 l[999999999999];",
    b"L: .branchtargets L, M;", b"L:", b"@%p1 ", b"@!%p1 ", b"bra L;", b"ret;", b"{", b"}", b"(", b")", b"[", b"]",
    b"|", b"!", b"_", b"0x7fffffffffffffffffff", b"0f3F800000", b"0d3FF0000000000000", b"-1", b"1.5", b"%tid.x",
    b"WARP_SZ", b"'", b'"', b"\\", b"__import__('os')", b"/*", b"*/", b"//", b".loc 1 2 3\n", b".file 1 \"a\"\n",
    b".section .debug { }", b".pragma \"x\";", b".func f;", b".target sm_90a\n", b".version 9.0\n", b"\xe2\x80\xa8",
    b"{%r1, %r2, %r3, %r4}", b"[%r1+4]", b"[s]", b"[%d1, {%r1, %r2}]", b"{{{{", b".b128", b".v4.f32", b".f16x2",
)  # fmt: skip

TARGETS = {
    "manifest": Target(manifest, _JSON, True),
    "launch": Target(launch, _JSON, True),
    "pack": Target(pack, (*_JSON, *_PTX, SEPARATOR, b"SHA_CUBIN", b"SIZE_PTX", b"XZ:", b"\xfd7zXZ\0")),
    "expression_list": Target(expression_list, _JSON, True),
    "expression_text": Target(expression_text, (
        *(operator.encode() for operator in _OPERATORS), *(name.encode() for name in VALUES), b"(", b")", b",", b" if ",
        b" else ", b"**", b"<<", b"lambda:", b"[", b"1e999", b"1j", b"0x", b"9" * 5000, b"-" * 200, b"not " * 100,
        b"\0", b"\n", b"f'{M}'", b"M.x")),
    "safetensors": Target(safetensors, (
        *_JSON, b"\0" * 8, b"\xff" * 8, b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"U8"', b'"F32"',
        b'"F4"', b'"BF16"')),
    "configuration": Target(configuration, (
        *_JSON, *(f'"{name}"'.encode() for name in model_layers.MODELS), b'"mxfp4"', b'"fp8"', b'"modelopt"', b'"*"',
        b'"compressed-tensors"', b'"quantization_config"', b'"quantized_layers"', b'"NVFP4"', b'"Linear"', b'"block"',
        b'"tensor_group"', b'"channel"', b'"E"', b'"[!a]*?"'), True),
    "checkpoint": Target(checkpoint, (
        *(json.dumps(word).encode() for word in (
            *(suffix for source in SOURCES.values() for suffix in (source.values, source.scale, *source.marks)),
            *ITEM_BITS, "model.experts.0.w1", "model.experts.w2.0", "a.experts.gate_up_proj_blocks", [3, 64, 2, 16], [],
            [1], [0], [128, 128], 0, 1, 16, 32, 127, 128)),), True),
    "tuned_rows": Target(tuned_rows, _JSON, True),
    "problem_list": Target(problem_list, (
        *_JSON, b'"op_type"', b'"axes"', b'"inputs"', b'"scale_rows"', b'"bf16"', b'"int8"', b'"problem"', b'"kernel"',
        json.dumps(list(range(200))).encode()), True),
    "signature": Target(signature, (
        b"ed25519 ", b"0" * 64, b"a" * 128, b"\n", b"\r\n", b"\x85", b"\0", b" ", b"ed25519 " + b"1" * 64, b"A" * 64)),
    "key": Target(key, (
        b"-----BEGIN PUBLIC KEY-----\n", b"-----END PUBLIC KEY-----\n", b"-----BEGIN ", b"-----", b"PUBLIC KEY",
        b"PRIVATE KEY", b"ENCRYPTED ", b"RSA ", b"EC ", b"OPENSSH ", b"DSA ", b"CERTIFICATE", b"DER:", b"\r\n", b"=",
        b"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", b"MCowBQYDK2VwAyEA", b"0*0\x05\x06\x03+ep\x03!\0",
        b"0.\x02\x01\x000\x05\x06\x03+ep\x04\"\x04 ", b"\x06\x03+en", b"\x06\x09*\x86H\x86\xf7\x0d\x01\x01\x01",
        b"\x06\x07*\x86H\xce=\x02\x01", b"0\x80", b"0\x84\xff\xff\xff\xff", b"\x02\x82\x40\0", b"\0" * 32,
        b"\xff" * 32)),
    "entry_points": Target(entry_points, (
        b"[loader.artifacts]", b"\n", b"\r", b"=", b"#", b";", b"[", b"]", b"\0", b"\xff", b"\xe2\x80\xa8", b" : ")),
    "ptx": Target(ptx, _PTX),
}  # fmt: skip
