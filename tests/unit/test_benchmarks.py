"""Benchmarks start from a checkout by one command, or say in one line or two what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hardware
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADER_TESTS = Path(__file__).resolve().parent / "loader"
sys.path.insert(0, str(LOADER_TESTS))

import sample_pack  # noqa: E402

import loader  # noqa: E402

# A program, where the packages of this project are not installed.
START = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [{folder!r}, *(path for path in sys.path if path not in ("", {root!r}))]
{code}
"""
RUN = "sys.argv = [{path!r}]; runpy.run_path({path!r}, run_name='__main__')"
ON_DEVICE = ["beside_deep_gemm", "counters", "engines", "grouped_fp4", "launch_cost", "moe", "peers", "quantize",
             "seeing_cost", "tune"]  # fmt: skip


def start(code: str, **environment: str) -> subprocess.CompletedProcess:
    program = START.format(folder=str(ROOT / "benchmarks"), root=str(ROOT), code=code)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, "-c", program], cwd="/", env=variables, capture_output=True, text=True,
                          check=False)  # fmt: skip


@pytest.mark.parametrize("name", ON_DEVICE)
def test_without_a_device_a_benchmark_says_so(name):
    """In one line, and without an installed loader."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    if hardware.cuda_devices():
        pytest.skip("needs a machine without a CUDA device")
    done = start(RUN.format(path=str(ROOT / "benchmarks" / f"{name}.py")))
    assert (done.returncode, done.stderr) == (1, "no CUDA device: this benchmark measures one\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["scale_rows"], ""),
        (["scale_rows", "moe_fp4"], "no pack has moe_fp4; build all kernels: python build.py --arch 90a"),
        (["scale_rows", "nop9"], "no pack has nop9; build it and name both packs:\n  python build.py --matrix"),
    ],
)
def test_a_kernel_that_no_pack_has_is_named(tmp_path, names, message):
    """With the command that builds it."""
    sample_pack.write(tmp_path)
    done = start(f"import record; record._need_kernels({names!r})", LOADER_ARTIFACTS=str(tmp_path))
    assert done.stderr.startswith(message) and done.returncode == bool(message) and "Traceback" not in done.stderr


def test_without_a_pack_a_benchmark_says_what_to_build(tmp_path):
    """And where it looked."""
    done = start("import record; record._need_kernels(['moe_fp4'])", LOADER_ARTIFACTS=str(tmp_path / "none"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "none") in done.stderr and "build one: python build.py --arch 90a" in done.stderr


def test_the_table_of_launch_costs_has_the_layer():
    """A column of moe_fp4, with a dash for what a composite has not."""
    pytest.importorskip("triton")
    pytest.importorskip("cuda.bindings")
    launches = {"plan.launch(stream)": 2.0, "plan.launch()": 3.0, "loader.launch": 4.0}
    costs = {name: {"bare, ctypes": 1.0, **launches, "Triton JIT": 5.0} for name in ("grouped_fp4", "nop9")}
    code = f"import launch_cost; print(launch_cost.readme_table({costs | {'moe_fp4': launches}}))"
    lines = start(code).stdout.splitlines()
    assert lines[1] == "|  | grouped_fp4, 8 tensors | no-op, 9 tensors | moe_fp4, 5 kernels |"
    assert [line.split(" | ")[-1] for line in lines[3:-1]] == ["- |", "2 |", "3 |", "4 |", "- |"]


CARD = {"name": "A Card", "driver_version": "1.2.3", "clocks.sm": "1755 MHz", "clocks.max.sm": "1980 MHz",
        "clocks.mem": "2619 MHz", "clocks.max.mem": "3201 MHz", "power.limit": "700.00 W"}  # fmt: skip
SMI = f"""#!{sys.executable}
import sys
open(sys.argv[0] + ".calls", "a").write("one\\n")
card, (query,) = {CARD!r}, [word for word in sys.argv if word.startswith("--query-gpu=")]
assert {{"--format=csv,noheader", "--id=0"}} < set(sys.argv)
print(", ".join(card[name] for name in query.removeprefix("--query-gpu=").split(",")))
"""


def test_a_record_says_where_and_what_was_measured(tmp_path):
    """Card, clocks and power of one question to nvidia-smi, the sources, the pack that is used, and how times were
    taken."""
    sample_pack.write(tmp_path / "pack")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(SMI)
    tool.chmod(0o755)
    code = (f"import pathlib, record; record.finish(pathlib.Path({str(tmp_path / 'a.json')!r}), 'one', "
            "record.environment(['numpy']), {'replays': '32'}, {'rows': []})")
    done = start(code, LOADER_ARTIFACTS=str(tmp_path / "pack"), PATH=f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    where = found.pop("environment")
    assert found == {"benchmark": "one", "timing": {"replays": "32"}, "rows": []}
    keys = ["device", "driver", "SM clock", "highest SM clock", "memory clock", "highest memory clock", "power limit"]
    assert [where[key] for key in keys] == list(CARD.values())
    assert (tmp_path / "bin" / "nvidia-smi.calls").read_text() == "one\n"
    assert where["packs"] == loader.packs(packs=str(tmp_path / "pack"))[0].digest
    assert where["sources"].startswith(("commit ", "no commit, sha256 "))


def test_sources_are_named_by_commit_or_by_digest(tmp_path):
    """A commit alone where nothing of what runs has changed; a digest where there is no checkout, also inside another
    one, and it is of the files' bytes."""
    root = tmp_path / "outer" / "copy"
    source = root / "loader" / "a.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")

    def git(folder, *words):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=folder, check=True,
                       capture_output=True)  # fmt: skip

    def named():
        done = start(f"import pathlib, record; print(record.sources(pathlib.Path({str(root)!r})))")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    git(root.parent, "init")
    git(root.parent, "commit", "--allow-empty", "-m", "other")
    *words, first = named()
    assert words == ["no", "commit,", "sha256"]
    source.write_text("two")
    second = named()[-1]
    assert first != second and len(second) == 64
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "one")
    (root / "loader" / "new.json").write_text("{}")
    word, commit = named()
    assert word == "commit" and len(commit) == 40
    source.write_text("one")
    assert named() == ["commit", commit, "and", "changes,", "sha256", first]


def test_the_spread_of_a_record_is_that_of_its_cells():
    """(p90 - p10) / median of each cell: the median of them, and the worst; a cell of one time has none."""
    code = """
import json, record
spread = record.Spread()
assert spread.facts() == {} and spread.median([7.0]) == 7.0 and spread.facts() == {}
medians = [spread.median([scale * (100 + step) for step in range(-10, 11)]) for scale in (1, 2)]
medians += [spread.median([1.0, 1.0]), spread.median([1.0] * 9 + [3.0, 3.0])]
print(json.dumps([medians, spread.facts()]))
"""
    done = start(code)
    assert done.returncode == 0, done.stderr
    medians, facts = json.loads(done.stdout)
    assert medians == [100, 200, 1, 1]
    assert facts == pytest.approx({"cells": 4, "median spread": 0.16, "worst spread": 2.0})


def test_a_timer_says_how_it_timed():
    """The replays that it made, rounded up to whole rounds of captures, and the spread of what they took."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    code = """
import itertools, json, types
import timing
timing.torch = types.SimpleNamespace(empty=lambda *a, **k: None, uint8=None,
                                     cuda=types.SimpleNamespace(synchronize=lambda: None))
timing.capture = lambda launch: (types.SimpleNamespace(replay=lambda: None), None)
taken = itertools.cycle([1.0, 2.0, 3.0])
begin = types.SimpleNamespace(elapsed_time=lambda end: next(taken))
timing._span = lambda graph, flush: (begin, None)
timer = timing.Timer()
times = [timer(lambda: None), timer(lambda: None, 5)]
print(json.dumps([times, timer.facts()]))
"""
    done = start(code)
    assert done.returncode == 0, done.stderr
    times, facts = json.loads(done.stdout)
    assert times == [2000.0, 2000.0]
    assert facts == {"cold L2": "256 MiB written before each replay", "captures": 4, "replays": "8, 32", "cells": 2,
                     "median spread": 1.0, "worst spread": 1.0}
