"""Packs made to harm: what each damages, the error that refuses it, and the place that this error must name."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import lzma
import os
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sample_pack
import test_composite
from test_damaged_packs import KEYS, at, name

import loader

CUBIN = "scale_rows/sm_120a/m16_bf16.cubin"
PTX = "scale_rows/sm_120a/m16_f32.ptx.xz"
MANIFEST, FILES = sample_pack.build(archs=("120a",))
TEXT = json.dumps(MANIFEST, sort_keys=True).encode()
FAMILY, ARTIFACT = ("families", "scale_rows"), ("artifacts", 0)


class Hostile(NamedTuple):
    """One pack: ``write`` puts it into a directory, whose parent it may use, too."""

    label: str
    write: Callable[[Path], None]
    error: type[loader.LoaderError]
    place: str


def edited(path: tuple, value: Any, error: type[loader.LoaderError], place: str | None = None) -> Hostile:
    """The sample pack with another value at a path of its manifest."""

    def write(directory: Path) -> None:
        manifest = copy.deepcopy(MANIFEST)
        at(manifest, path[:-1])[path[-1]] = value
        sample_pack.write(directory, manifest, FILES)

    return Hostile(f"{name(path)} = {repr(value)[:40]}", write, error, str(path[-1]) if place is None else place)


def text(label: str, data: bytes, error: type[loader.LoaderError] = loader.ManifestSyntaxError,
         place: str = "manifest.json") -> Hostile:
    """The sample pack with other bytes as its manifest."""
    return Hostile(label, lambda directory: sample_pack.write(directory, data, FILES), error, place)


def file(label: str, which: str, data: bytes, error: type[loader.LoaderError], honest: bool = False) -> Hostile:
    """The sample pack with other bytes as one of its files; an honest manifest knows them."""

    def write(directory: Path) -> None:
        manifest = copy.deepcopy(MANIFEST)
        if honest:
            manifest["artifacts"][1]["ptx"] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        sample_pack.write(directory, manifest, FILES | {which: data})

    return Hostile(label, write, error, which)


def paths(random_: random.Random) -> Iterator[Hostile]:
    """Names that lead out of the pack, or that no file system has."""
    escapes = ["../" * n + tail for n in range(1, 9) for tail in ("etc/passwd", "secret.cubin")]
    absolute = ["/etc/passwd", "//etc/passwd", "/proc/self/mem", "/dev/zero", "C:\\x", "\\\\host\\share", "file:///x"]
    odd = ["", ".", "..", "...", "a/../../x", "a/./x", "a//x", "x/", "/", "~/x", "~root", "$HOME/x", "a b", "a\0.cubin",
           "a\n.cubin", "\x1b[2J", "\ud800.cubin", "\udcff.cubin", "\u202e.cubin", "ü.cubin", "|sh", "`id`", "*", "?",
           "x" * 201, "x" * 100_000, "/".join("x" * 501), "-/../..", "CON:", "a;b", ".hidden", "a/.git/config"]
    random_names = ["".join(random_.choices("./\\ax\0:~", k=random_.randint(1, 12))) + "/.." for _ in range(20)]
    for path in (*escapes, *absolute, *odd, *random_names):
        yield edited((*ARTIFACT, "file"), path, loader.PackPathError, "artifacts[0].file")
        yield edited((*ARTIFACT, "ptx", "file"), path, loader.PackPathError, "artifacts[0].ptx.file")


def links(random_: random.Random) -> Iterator[Hostile]:
    """What stands in the store where a file should, and leads elsewhere or never ends."""

    def replaced(which: str, put: Callable[[Path], None]) -> Callable[[Path], None]:
        def write(directory: Path) -> None:
            sample_pack.write(directory, MANIFEST, FILES)
            (directory.parent / "outside").mkdir()
            for file_name, data in (*FILES.items(), ("manifest.json", TEXT)):
                (directory.parent / "outside" / Path(file_name).name).write_bytes(data)
            (directory / which).unlink()
            put(directory / which)
        return write

    escapes = {"relative": "../" * 3 + "outside/m16_bf16.cubin", "absolute": "/etc/passwd", "device": "/dev/zero",
               "process": "/proc/self/environ", "root": "/", "directory": "../../..", "terminal": "/dev/stdin"}
    for label, to in escapes.items():
        yield Hostile(f"link {label}", replaced(CUBIN, lambda path, to=to: path.symlink_to(to)), loader.PackPathError,
                      CUBIN)
    for label, to in {"relative": "../outside/manifest.json", "absolute": "/etc/passwd", "device": "/dev/zero"}.items():
        yield Hostile(f"manifest link {label}", replaced("manifest.json", lambda path, to=to: path.symlink_to(to)),
                      loader.PackPathError, "manifest.json")
    yield Hostile("chain", replaced(CUBIN, chained), loader.PackPathError, CUBIN)
    yield Hostile("loop", replaced(CUBIN, lambda path: path.symlink_to(path.name)), loader.PackError, CUBIN)
    yield Hostile("dangling", replaced(CUBIN, lambda path: path.symlink_to("nothing")), loader.MissingFileError, CUBIN)
    yield Hostile("missing", replaced(CUBIN, lambda path: None), loader.MissingFileError, CUBIN)
    yield Hostile("pipe", replaced(CUBIN, os.mkfifo), loader.PackPathError, CUBIN)
    yield Hostile("a directory", replaced(CUBIN, Path.mkdir), loader.PackPathError, CUBIN)
    yield Hostile("manifest pipe", replaced("manifest.json", os.mkfifo), loader.PackPathError, "manifest.json")
    yield Hostile("manifest directory", replaced("manifest.json", Path.mkdir), loader.PackPathError, "manifest.json")
    yield Hostile("grown", replaced(CUBIN, lambda path: sparse(path, 1 << 40)), loader.IntegrityError, CUBIN)
    yield Hostile("manifest grown", replaced("manifest.json", lambda path: sparse(path, 1 << 40)),
                  loader.ManifestSyntaxError, "manifest.json")


def chained(path: Path) -> None:
    """A link to a link out of the pack."""
    (path.parent / "step").symlink_to("../../../outside/m16_bf16.cubin")
    path.symlink_to("step")


def sparse(path: Path, size: int) -> None:
    """A file that says it is large and takes no room."""
    with path.open("wb") as stream:
        stream.truncate(size)


def lies(random_: random.Random) -> Iterator[Hostile]:
    """Sizes and digests that are not those of the file."""
    true = MANIFEST["artifacts"][0]["size"]
    for size in (1, true - 1, true + 1, 1 << 20, 64 << 20, *(random_.randint(1, 64 << 20) for _ in range(25))):
        yield edited((*ARTIFACT, "size"), size, loader.IntegrityError, CUBIN)
    for size in (0, -1, (64 << 20) + 1, 1 << 31, 1 << 63, 10**30, 1.0, "1", None, True, [1], -(1 << 63)):
        yield edited((*ARTIFACT, "size"), size, loader.ManifestError, "artifacts[0].size")
    for _ in range(30):
        digest = f"{random_.getrandbits(256):064x}"
        yield edited((*ARTIFACT, "sha256"), digest, loader.IntegrityError, CUBIN)
        yield edited((*ARTIFACT, "sha256"), digest[:random_.randint(0, 63)], loader.ManifestError,
                     "artifacts[0].sha256")
    for _ in range(30):
        data = bytearray(FILES[CUBIN])
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        yield file("a bit of the image", CUBIN, bytes(data), loader.IntegrityError)
        yield file("the image cut off", CUBIN, FILES[CUBIN][:random_.randrange(len(data))], loader.IntegrityError)


def documents(random_: random.Random) -> Iterator[Hostile]:
    """JSON that is none, is deep, is long, or reads in two ways."""
    for _ in range(30):
        yield text("cut off", TEXT[:random_.randrange(len(TEXT))])
    for opening in (b"[", b'{"a":', b'[{"":', b'{"toolchain":['):
        for depth in (1_000, 30_000, 300_000):
            yield text(f"{opening!r} {depth} deep", opening * depth)
    number = b'"registers": 64'
    for value in (b"NaN", b"Infinity", b"-Infinity", b"9" * 5_000, b"-" + b"9" * 100_000, b"0x10", b"01", b"+1", b"1_0",
                  b"", b"64, 64", b"'64'"):
        yield text(f"number {value[:20]!r}", TEXT.replace(number, b'"registers": ' + value, 1))
    for value in (b"1e999", b"-1e999", b"1e5", b"64.0", b"9" * 4_000, b"-1", b'"64"', b"null", b"true", b"[64]", b"{}"):
        yield text(f"number {value[:20]!r}", TEXT.replace(number, b'"registers": ' + value, 1), loader.ManifestError,
                   "artifacts[0].registers")
    for key in random_.sample(sorted({key for _, key in KEYS}), 20):
        word = f'"{key}": '.encode()
        yield text(f"{key} twice", TEXT.replace(word, word + b"0, " + word, 1))
    for label, data in {"utf-16": TEXT.decode().encode("utf-16"), "latin": TEXT.replace(b"rows", b"r\xf6ws"),
                        "bom": b"\xef\xbb\xbf" + TEXT, "overlong": TEXT.replace(b"/", b"\xc0\xaf"),
                        "empty": b"", "zeros": bytes(1 << 20), "elf": FILES[CUBIN], "gzip": gzip.compress(TEXT),
                        "after": TEXT + b"\0"}.items():
        yield text(label, data)
    for label, data in {"lists": b"[],", "objects": b'{"":0},', "keys": b'"\\u0001":0,', "numbers": b"0,"}.items():
        yield text(f"millions of {label}", b"[" + data * (3_000_000 // len(data) * 2) + b"0]")
    yield text("over the limit", TEXT + b" " * (24 << 20))
    # As many values as are read, and the longest text; characters of four bytes take most memory.
    many = "{" + ",".join(f'"\U0001f600{i}":"\U0001f600"' for i in range(999_000)) + "}"
    yield text("a mass of texts", many.encode(), loader.ManifestError, "manifest: key 'schema' is missing")
    wide = '{"\U0001f600' + "x" * (24_000_000 - 4) + '":0}'
    yield text("one wide text", wide.encode(), loader.ManifestError, "manifest: key 'schema' is missing")
    for word in ("\x1b[2J", "\ud800", "\0", "\r\n", "\u202e", "\x7f"):
        yield edited((*FAMILY, "summary"), word, loader.ManifestError)
        yield edited((*FAMILY, "arguments", 0, "doc"), word, loader.ManifestError)
    for schema in (0, 6, 10**400, -1, 1.0, "4", None, [[[[1]]]], True, {"a": "\x1b[2J"}):
        yield edited(("schema",), schema, loader.SchemaError)
    for said in ([], "x", {"a": 1}, {"a": [["b"]]}, {"a": {"b": "c"}}, {"\x1b": "c"}, None):
        yield edited(("toolchain",), said, loader.ManifestError)


def types(random_: random.Random) -> Iterator[Hostile]:
    """A value of another type at each key."""
    values = [-(10**40), ["?"], [[[]]], {"?": 1}, "\x1b[2J", "\ud800"]
    for path, key in KEYS:
        for value in random_.sample(values if key == "pdl" else [*values, True], 3):
            is_path = key == "file" and type(value) is str
            yield edited((*path, key), value, loader.PackPathError if is_path else loader.ManifestError)


def nested(depth: int, wrap: Callable[[Any], list], inner: Any = "M") -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def expressions(random_: random.Random) -> Iterator[Hostile]:
    """Expressions that are deep, long, no expressions, or code."""
    found: list[Any] = [nested(depth, lambda inner: ["neg", inner]) for depth in (101, 150, 400)]
    found += [nested(101, lambda inner, name=name: [name, inner, 2]) for name in ("*", "+", "//", "and", "max")]
    found += [nested(depth, lambda inner: ["*", inner, inner]) for depth in (9, 12)]
    found += [[name, 2, 3] for name in ("**", "<<", ">>", "pow", "exec", "__import__", "for", "lambda", "", "\x1b[2J")]
    found += ["__import__('os')", "M; N", "M.real", "", " ", "\ud800", "a b", "\x1b[2J"]
    found += [1 << 64, -(1 << 64), 10**400, 10**4000, True, None, {}, [], [[]], [1], [["+"], 1, 2], ["+"], ["+", 1],
              ["+", 1, 2, 3], ["if", 1], ["not"], ["neg", "M", "M"], {"+": [1, 2]}]
    unknown = ["Q", "stream", "__builtins__", ["+", "M", "Q"]]
    places = {"expression": (*FAMILY, "constraints", 0, "expression"), "value": (*ARTIFACT, "parameters", 4, "value"),
              "grid[0]": (*ARTIFACT, "launch", "grid", 0)}
    for value in found + unknown:
        key = random_.choice(sorted(places))
        yield edited(places[key], value, loader.ManifestError, key)
    for value in (["*", "out", 1 << 34], ["%", "out", "M"], ["+", "out", "out"], "out"):  # text, an axis of the variant
        yield edited((*ARTIFACT, "cost"), value, loader.ManifestError, "uses unknown out")
    for value in (1 << 32, -(1 << 32), 10**4000, 1.5, None, [], {}, "\x1b[2J", True):
        yield edited((*ARTIFACT, "axes", "block_m"), value, loader.ManifestError, "artifacts[0].axes.block_m")
    for value in found:
        yield edited((*FAMILY, "arguments", 0, "shape", 1), value, loader.ManifestError, "shape[1]")


def greedy(data: bytes) -> bytes:
    """xz of ``data`` that asks whoever unpacks it for a dictionary of four gigabytes."""
    packed = bytearray(lzma.compress(data))
    end = 12 + packed[12] * 4  # of the block's header, behind that of the stream, without its CRC
    packed[12 + 4] = 40
    packed[end:end + 4] = zlib.crc32(packed[12:end]).to_bytes(4, "little")
    return bytes(packed)


def listings(random_: random.Random) -> Iterator[Hostile]:
    """PTX files whose digests are right and whose xz is not, or unpacks to far more than PTX may have."""
    for data in (b"\0", b"\n", b";", b"{", b"x;"):
        packed = lzma.compress(data * ((64 << 20) // len(data)), preset=0)
        yield file(f"64 MiB of {data!r}", PTX, packed, loader.IntegrityError, honest=True)
    whole = FILES[PTX]
    for _ in range(20):
        yield file("cut off", PTX, whole[:random_.randint(1, len(whole) - 1)], loader.IntegrityError, honest=True)
        yield file("lying digest", PTX, whole + bytes([random_.randrange(256)]), loader.IntegrityError)
    for label, data in {"no xz": b".version 9.0\n", "twice": whole * 2, "tail": whole + b"\0", "zlib":
                        zlib.compress(b".version 9.0\n"), "xz of xz": lzma.compress(whole), "no utf-8":
                        lzma.compress(b"\xff\xfe\0"), "alone": lzma.compress(b"x", lzma.FORMAT_ALONE), "gzip":
                        gzip.compress(b".version 9.0\n"), "greedy": greedy(b".version 9.0\n")}.items():
        yield file(label, PTX, data, loader.IntegrityError, honest=True)


ENTRY = ".version 9.0\n.target sm_120a\n.address_size 64\n.visible .entry scale_rows_m16_f32() {\n"
TEXTS = {
    "registers": ENTRY + ".reg .b32 %r<99999999999>; ret; }",
    "registers often": ENTRY + ".reg .b32 %r<99999>;" * 50 + "ret; }",
    "variable": ".global .b8 x[999999999999];",
    "many digits": f".global .b8 x[{'9' * 5000}];",
    "immediate": ENTRY + f"mov.b32 x, 0x{'f' * 100_000}; ret; }}",
    "scopes": ENTRY + "{" * 2_000_000,
    "statements": ENTRY + "ret;" * 1_000_000 + "}",
    "entries": ".entry k() { }" * 200_000,
    "vectors": ENTRY + "mov.b32 x, " + "{" * 4000 + "}" * 4000 + "; ret; }",
    "comment": "/*" * 2_000_000,
    "spaces": ".global .b8 x = a" + " " * 500_000 + "!;",
    "parentheses": ".entry k(" + "(" * 2_000_000,
    "name": ".entry \u2028() { ret; }",
    "alignment": ".shared .align 0 .b8 x[4];",
    "no end": ENTRY,
    "braces": ".section x",
    "quotes": ".file 1 \"",
    "code": "import os\nos.abort()",
}


def kernels(random_: random.Random) -> Iterator[Hostile]:
    """PTX that would fill memory, never be read to its end, or end a reader with an error of Python's."""
    for label, listing in TEXTS.items():
        data = lzma.compress(listing.encode(), preset=0)
        yield file(label, PTX, data, loader.EmulatedFaultError, honest=True)._replace(place="PTX line")
    whole = ENTRY + ".reg .b32 %r<4>; .reg .pred %p; add.s32 %r1, %r2, 3; @%p bra L; L: ret; }"
    for _ in range(20):
        data = lzma.compress(whole[:random_.randint(len(ENTRY), len(whole) - 1)].encode())
        yield file("cut off", PTX, data, loader.EmulatedFaultError, honest=True)._replace(place="PtxSyntaxError")


def relations(random_: random.Random) -> Iterator[Hostile]:
    """Composites of themselves, overloads in a circle, and much of everything."""

    def made(label: str, change: Callable[[dict], None], error: type[loader.LoaderError], place: str) -> Hostile:
        def write(directory: Path) -> None:
            manifest = copy.deepcopy(MANIFEST) | {"schema": 4, "composites": {"thrice": test_composite.composite()}}
            change(manifest)
            sample_pack.write(directory, manifest, FILES)
        return Hostile(label, write, error, place)

    for kernel in ("thrice", "nothing", "", "__class__", "scale_rows.thrice", 1, None, [], {}):
        def of(manifest: dict, kernel: Any = kernel) -> None:
            manifest["composites"]["thrice"]["steps"][0]["kernel"] = kernel
        yield made(f"a step of {kernel!r}", of, loader.ManifestError, "composites.thrice.steps[0].kernel")
    for buffer in ("nothing", "", 1, [], {}, None, "alpha", "M"):
        def with_(manifest: dict, buffer: Any = buffer) -> None:
            manifest["composites"]["thrice"]["steps"][1]["arguments"]["out"] = buffer
        yield made(f"buffer {buffer!r}", with_, loader.ManifestError, "composites.thrice.steps[1].arguments.out")
    for other in ("scale_rows", "thrice", "nothing", 1, None, []):
        def over(manifest: dict, other: Any = other) -> None:
            manifest["families"]["scale_rows"]["overloads"] = other
        yield made(f"overloads {other!r}", over, loader.ManifestError, "families.scale_rows.overloads")

    def circle(manifest: dict) -> None:
        family = manifest["families"]["scale_rows"]
        manifest["families"] |= {"b": family | {"overloads": "c"}, "c": family | {"overloads": "b"}}

    def same_name(manifest: dict) -> None:
        manifest["composites"]["scale_rows"] = manifest["composites"]["thrice"]

    def many_arguments(manifest: dict) -> None:
        family = manifest["families"]["scale_rows"]
        family["arguments"] += [family["arguments"][0] | {"name": f"x{i}", "shape": [f"X{i}", ["+", f"X{i + 1}", 1]]}
                                for i in range(5_000)]

    def many_dimensions(manifest: dict) -> None:
        manifest["families"]["scale_rows"]["arguments"][0]["shape"] = [["+", f"X{i}", f"X{i + 1}"] for i in range(5000)]

    def many_artifacts(manifest: dict) -> None:
        manifest["artifacts"] = manifest["artifacts"][:1] * 5_000

    yield made("a circle", circle, loader.ManifestError, "families.b.overloads")
    yield made("one name", same_name, loader.ManifestError, "manifest.composites")
    yield made("5000 arguments", many_arguments, loader.ManifestError, "families.scale_rows.arguments")
    yield made("5000 dimensions", many_dimensions, loader.ManifestError, "families.scale_rows.arguments[0].shape")
    yield made("5000 artifacts", many_artifacts, loader.DuplicateError, "artifacts")


CATEGORIES = (paths, links, lies, documents, types, expressions, listings, kernels, relations)
