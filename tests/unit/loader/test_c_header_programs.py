"""Programs with include/block_scaled.h: the sample of docs/c.md, the example, and a project of several files."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import header_program
import manifest_pack
import pytest
import samples
from fake_cuda import image
from header_program import ROOT, SOURCES, Program, compile_program
from test_c_header import sample_call

FAMILIES = ("amax", "grouped_fp4")
SIMT = "launch amax_t256_f32 0 512 1 1 256 1 1 0 0 1 6 01000000000000000000000000000000 -"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("programs")
    header_program.compile_driver(made)
    manifest_pack.write(made, lambda artifact: image(artifact["symbol"], [
        [p["offset"], p["size"]] for p in artifact["parameters"]]) if artifact["family"] in FAMILIES else b"-")
    manifest = json.loads((made / "manifest.json").read_text())
    for key in ("families", "composites"):
        manifest[key] = {name: entry for name, entry in manifest[key].items() if name in FAMILIES}
    manifest["artifacts"] = [entry for entry in manifest["artifacts"] if entry["family"] in FAMILIES]
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def run(program, *arguments, folder):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_DEVICES": "Fake H100;9;0;114;232448"}
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_sample_of_the_document(folder):
    """It compiles without a warning as it stands there, and launches what it says."""
    sample, = (sample for sample in samples.read(ROOT / "docs" / "c.md") if sample.language == "c")
    (folder / sample.file).write_text(sample.text)
    program = compile_program(folder / sample.file, folder / "largest")
    done = run(program, str(folder), "0x1000", "0x8000000", folder=folder)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == "t256_f32 for sm_90a"
    assert done.stdout.splitlines()[1].startswith(SIMT + struct.pack("<2Q", 0x1000, 0x8000000).hex())
    done = run(program, str(folder), "0x1008", "0x8000000", folder=folder)
    assert (done.returncode, done.stderr) == (1, "amax: x must start at a multiple of 16 bytes, got address 0x1008\n")


@pytest.fixture(scope="module")
def example(folder):
    return compile_program(ROOT / "examples" / "amax.cpp", folder / "example", compiler="g++", standard="c++17")


def test_the_example_compares_what_it_gets(folder, example):
    """From a driver that runs nothing it gets no number, and says so."""
    done = run(example, str(folder), folder=folder)
    assert done.returncode == 1 and done.stdout.startswith(SIMT)
    assert done.stdout.splitlines()[1].startswith("amax/t256_f32 for sm_90a: nan, on the host ")


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a driver")
def test_the_example_needs_a_gpu(folder, example, tmp_path):
    """Where there is no driver it says so first."""
    done = run(example, str(folder), folder=tmp_path)
    assert done.returncode == 2 and done.stdout.startswith("This example needs a GPU: no CUDA driver on this machine: ")


@pytest.mark.skipif(not shutil.which("rustc") or not shutil.which("bindgen"), reason="no rustc, or no bindgen")
def test_the_example_in_rust(folder, tmp_path):
    """Built as it says itself, without a warning, it launches and compares as the one in C++ does."""
    text = (ROOT / "examples" / "amax.rs").read_text()
    commands = re.findall(r"^//!     ((?:bindgen|gcc|BINDINGS).*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        command = command.replace("include/", f"{ROOT}/include/").replace("examples/", f"{ROOT}/examples/")
        subprocess.run(["bash", "-c", command.replace("rustc", "rustc -D warnings")], cwd=tmp_path, check=True)
    done = run(tmp_path / "amax", str(folder), folder=folder)
    printed = sorted(line for line in done.stdout.splitlines() if not line.startswith("attribute "))
    assert done.returncode == 1 and len(printed) == 3 and printed[2] == "t256_f32"
    assert printed[0].startswith("NaN, on the host 0.") and printed[1].startswith(SIMT)


def test_two_files_and_two_languages(folder, tmp_path):
    """The implementation as C++17, and a file of C that only includes the header."""
    (tmp_path / "user.c").write_text('#include "block_scaled.h"\nint is_none(const bs_error *error);\n'
                                     "int is_none(const bs_error *error) { return error->code == BS_OK; }\n")
    command = ["gcc", "-std=c11", *header_program.WARNINGS, f"-I{ROOT / 'include'}", "-c", "user.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    path = compile_program(SOURCES / "run_calls.c", tmp_path / "run", compiler="g++", standard="c++17")
    program = Program(path, folder)
    call = header_program.call_lines("grouped_fp4", sample_call(), addresses=dict.fromkeys("aso", 0x1000) | {
        "scale": 0x1000, "offsets": 0x2000, "out": 0x4000})
    opened, answer = program.run(f"pack {folder}\n{call}")
    assert opened == ["opened"] and answer[-1].startswith("error 12 grouped_fp4 has no argument 'scale'; it takes a, ")


def test_what_it_says_of_cuda(tmp_path):
    """Structs and numbers are those of cuda.h."""
    place = importlib.util.find_spec("nvidia")
    include = [path for root in (place.submodule_search_locations if place else ()) for path in Path(root).glob(
        "*/include/cuda.h")]
    if not include:
        pytest.skip("no cuda.h, which nvidia-cuda-runtime has")
    compile_program(SOURCES / "against_cuda.c", tmp_path / "against", "-isystem", str(include[0].parent))


def test_headers_hold_one_idea():
    """No part has over 500 lines, no line over 120 characters, and no function over 60 lines."""
    for path in sorted((ROOT / "include").rglob("*.h")):
        lines = path.read_text().splitlines()
        assert len(lines) <= 500 and max(map(len, lines)) <= 120, path
        ends = [number for number, line in enumerate(lines) if line == "}"]
        starts = [max(number for number in range(end) if lines[number].endswith("{") and lines[number][:1].strip())
                  for end in ends]
        assert all(end - start < 60 for start, end in zip(starts, ends, strict=True)), path
