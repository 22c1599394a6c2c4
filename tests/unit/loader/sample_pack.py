"""A small valid pack: one family, ``scale_rows``, with every kind of parameter, for four architectures."""

import hashlib
import json
import lzma

from fake_cuda import image

ARCHS = ("90a", "100a", "120a", "120f")
TILES = {"m16": 16, "m64": 64}
OUTPUTS = ("bf16", "f32")

FAMILY = {
    "summary": "out[m, :] = scale[m // 32] * a[m, :]",
    "arguments": [
        {"name": "a", "direction": "in", "dtypes": ["e2m1x2"], "shape": ["M", ["/", "K", 2]], "alignment": 16,
         "doc": "rows"},
        {"name": "scale", "direction": "in", "dtypes": ["ue4m3"],
         "shape": [["ceil_div", "M", 32], ["/", "K", 16]], "alignment": 4, "doc": "scales"},
        {"name": "offsets", "direction": "in", "dtypes": ["i32"], "shape": [["+", "E", 1]], "alignment": 4,
         "doc": "offsets"},
        {"name": "out", "direction": "out", "dtypes": ["bf16", "f32"], "shape": ["M", "K"], "alignment": 16,
         "doc": "result"},
    ],
    "scalars": [{"name": "alpha", "dtype": "f32", "doc": "factor", "default": 1.0},
                {"name": "top", "dtype": "i32", "doc": "count"}],
    "constraints": [{"text": "K % 32 == 0", "expression": ["==", ["%", "K", 32], 0]},
                    {"text": "top >= 1", "expression": [">=", "top", 1]}],
    "skip": ["==", "M", 0],
    "select": {"match": {"out": "out"}, "features": {"M": "M"}, "measured": []},
}

PARAMETERS = [
    {"kind": "tensor_map", "name": "a_map", "offset": 0, "size": 128, "argument": "a", "element": "u8",
     "dims": [["/", "K", 2], "M"], "strides": [["/", "K", 2]], "box": [16, ["min", "block_m", 128]], "swizzle": 32,
     "l2_promotion": 128},
    {"kind": "pointer", "name": "scale", "offset": 128, "size": 8, "argument": "scale"},
    {"kind": "pointer", "name": "offsets", "offset": 136, "size": 8, "argument": "offsets"},
    {"kind": "pointer", "name": "out", "offset": 144, "size": 8, "argument": "out"},
    {"kind": "scalar", "name": "M", "offset": 152, "size": 4, "dtype": "i32", "value": "M"},
    {"kind": "scalar", "name": "alpha", "offset": 156, "size": 4, "dtype": "f32", "value": "alpha"},
    {"kind": "scalar", "name": "K", "offset": 160, "size": 8, "dtype": "i64", "value": "K"},
    {"kind": "scalar", "name": "top", "offset": 168, "size": 4, "dtype": "i32", "value": "top"},
]
PTX = ".version 9.0\n// the PTX of {symbol}\n"


def stored(name, data):
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def artifact(arch, tile, output):
    """Manifest entry and the two files of one artifact."""
    variant, symbol = f"{tile}_{output}", f"scale_rows_{tile}_{output}"
    binary = image(symbol, [[p["offset"], p["size"]] for p in PARAMETERS]) + arch.encode()
    ptx = lzma.compress(PTX.format(symbol=symbol).encode())
    name = f"scale_rows/sm_{arch}/{variant}"
    entry = {
        "family": "scale_rows", "variant": variant, "arch": arch, "tile": tile,
        "axes": {"block_m": TILES[tile], "out": output}, "symbol": symbol, "format": "cubin",
        **stored(f"{name}.cubin", binary), "ptx": stored(f"{name}.ptx.xz", ptx),
        "registers": 64, "spill_bytes": 0, "local_bytes": 0, "static_shared": 1024,
        "parameters": PARAMETERS, "parameter_bytes": PARAMETERS[-1]["offset"] + PARAMETERS[-1]["size"],
        "launch": {"grid": [["min", "sm_count", ["ceil_div", "M", "block_m"]], 1, 1], "block": [128, 1, 1],
                   "cluster": [1, 1, 1], "shared": 65536, "pdl": True},
        "cost": ["ceil_div", "M", "block_m"],
    }
    return entry, {f"{name}.cubin": binary, f"{name}.ptx.xz": ptx}


def build(archs=ARCHS):
    """The manifest as Python objects, and the files by name."""
    files, artifacts = {}, []
    for arch in archs:
        for tile in TILES:
            for output in OUTPUTS:
                entry, data = artifact(arch, tile, output)
                artifacts.append(entry)
                files.update(data)
    manifest = {"schema": 1, "abi": 1, "toolchain": {"nvcc": "13.0.88", "flags": ["-O3"]}, "source_digest": "0" * 64,
                "families": {"scale_rows": FAMILY}, "artifacts": artifacts}
    return json.loads(json.dumps(manifest)), files


def write(directory, manifest=None, files=None):
    """Write a pack; without arguments the valid one."""
    built, data = build()
    for name, content in (data if files is None else files).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    directory.mkdir(parents=True, exist_ok=True)
    manifest = built if manifest is None else manifest
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest, sort_keys=True).encode()
    (directory / "manifest.json").write_bytes(text)
