"""The readers of whatever comes from outside, one small target each: bytes in, nothing out.

A target returns where its reader takes the bytes or refuses them with an error of its own. Everything else that it
raises is a finding; so is what ``fuzz_limits`` sees.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
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
from integrations.safetensors_file import SafetensorsError, SafetensorsFile
from loader import api, driver, emulated, expression, fields, module, registry, trust
from loader.errors import ExpressionError, LoaderError
from loader.reader import parse as parse_manifest

SEPARATOR = b"\n=====\n"
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


def signature(data: bytes) -> None:
    """The signatures beside a manifest: what is read is written as it was, but for its order."""
    try:
        found = trust.from_text(data, "fuzz")
    except LoaderError:
        return
    assert sorted(trust.to_text(found).splitlines()) == sorted(data.splitlines())


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

    Digests and sizes of both files are filled in where the manifest has words for them; PTX behind ``GZIP:`` is packed.
    """
    text, image, listing = (*data.split(SEPARATOR, 2), b"", b"")[:3]
    if listing.startswith(b"GZIP:"):
        listing = gzip.compress(listing[5:], 1, mtime=0)
    for word, content in ((b"CUBIN", image), (b"PTX", listing)):
        text = text.replace(b"SHA_" + word, hashlib.sha256(content).hexdigest().encode())
        text = text.replace(b"SIZE_" + word, str(len(content)).encode())
    for name, content in (("manifest.json", text), ("k/a.cubin", image), ("k/a.ptx.gz", listing)):
        (store() / name).write_bytes(content)
    try:
        opened = registry.open_pack(os.fspath(store()))
        for candidate in [registry.Candidate(opened, artifact) for artifact in opened.manifest.artifacts]:
            opened.read(candidate.artifact.binary)
            _translate(emulated.ptx_text(candidate))
    except (LoaderError, emulator.EmulatorError):
        pass


def launch(data: bytes) -> None:
    """A manifest whose files are there, and a call of its kernel on a driver that is none."""
    directory = store() / "sample"
    if not directory.exists():
        sample_pack.write(directory)
    (directory / "manifest.json").write_bytes(data)
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
    "out", "up/secret", "loop", "pipe", "/etc/passwd", "k/a.cubin", "k/a.ptx.gz", "\ud800", "\0", "x" * 300, "optional",
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
    "pack": Target(pack, (*_JSON, *_PTX, SEPARATOR, b"SHA_CUBIN", b"SIZE_PTX", b"GZIP:", b"\x1f\x8b\x08")),
    "expression_list": Target(expression_list, _JSON, True),
    "expression_text": Target(expression_text, (
        *(operator.encode() for operator in _OPERATORS), *(name.encode() for name in VALUES), b"(", b")", b",", b" if ",
        b" else ", b"**", b"<<", b"lambda:", b"[", b"1e999", b"1j", b"0x", b"9" * 5000, b"-" * 200, b"not " * 100,
        b"\0", b"\n", b"f'{M}'", b"M.x")),
    "safetensors": Target(safetensors, (
        *_JSON, b"\0" * 8, b"\xff" * 8, b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"U8"', b'"F32"',
        b'"F4"', b'"BF16"')),
    "signature": Target(signature, (
        b"ed25519 ", b"0" * 64, b"a" * 128, b"\n", b"\r\n", b"\x85", b"\0", b" ", b"ed25519 " + b"1" * 64, b"A" * 64)),
    "entry_points": Target(entry_points, (
        b"[loader.artifacts]", b"\n", b"\r", b"=", b"#", b";", b"[", b"]", b"\0", b"\xff", b"\xe2\x80\xa8", b" : ")),
    "ptx": Target(ptx, _PTX),
}  # fmt: skip
