"""Order on streams, graphs, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from device_problem import DeviceProblem, device_problem  # noqa: E402

import loader  # noqa: E402

COUNTS, N, K = [0, 1, 37, 130, 5, 64], 512, 1024
BUSY_CYCLES = 200_000_000  # a tenth of a second: long after the host has gone on


@pytest.fixture(scope="module")
def problem(seed: int) -> DeviceProblem:
    problem = device_problem(seed, COUNTS, N, K)
    for out_type in ("bf16", "f32"):  # load what the tests below time-order
        loader.launch("grouped_fp4", **problem.inputs, out=problem.output(out_type).array)
    torch.cuda.synchronize()
    return problem


@pytest.mark.parametrize("explicit", [False, True], ids=["current", "given"])
def test_a_launch_is_ordered_on_its_stream(problem: DeviceProblem, explicit: bool) -> None:
    """Inputs that are written on the stream after a long kernel are seen, and what follows sees the output."""
    stream = torch.cuda.Stream()
    inputs = {name: torch.zeros_like(tensor) for name, tensor in problem.inputs.items()}
    out, copy = problem.output("bf16"), problem.output("bf16")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY_CYCLES)
        for name, tensor in problem.inputs.items():
            inputs[name].copy_(tensor)
        if not explicit:
            loader.launch("grouped_fp4", **inputs, out=out.array)
    if explicit:
        loader.launch("grouped_fp4", **inputs, out=out.array, stream=stream)
    with torch.cuda.stream(stream):
        copy.array.copy_(out.array)
    assert not stream.query(), "the launch waited for the device"
    stream.synchronize()
    problem.verify(copy, "copy on the stream")


def test_back_to_back_launches_are_ordered(problem: DeviceProblem) -> None:
    """Launches into one output, with other work between them: the programmatic overlap of grids changes nothing."""
    out, copies = problem.output("f32"), [problem.output("f32") for _ in range(4)]
    for copy in copies:
        out.array.fill_(float("nan"))
        loader.launch("grouped_fp4", **problem.inputs, out=out.array)
        loader.launch("grouped_fp4", **problem.inputs, out=out.array)
        copy.array.copy_(out.array)
    torch.cuda.synchronize()
    for copy in copies:
        problem.verify(copy, "back to back")


def test_graph_capture_and_replay(problem: DeviceProblem, variant: str, out_type: str) -> None:
    """A captured launch replays on new data in the same buffers."""
    inputs = {name: tensor.clone() for name, tensor in problem.inputs.items()}
    out = problem.output(out_type)
    plan = loader.plan("grouped_fp4", **inputs, out=out.array, variant=variant)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.launch(torch.cuda.current_stream())
        loader.launch("grouped_fp4", **inputs, out=out.array, variant=variant)
    inputs["a"].zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert bool((out.array[: problem.owned] == 0).all())
    inputs["a"].copy_(problem.inputs["a"])
    graph.replay()
    torch.cuda.synchronize()
    problem.verify(out, "replayed")


PRELUDE = """
import sys, torch, loader
from device_problem import device_problem
problem = device_problem(int(sys.argv[1]), [3, 0, 40], 256, 512)
out = problem.output("bf16")
torch.cuda.synchronize()
"""


def test_capture_without_preload_is_an_error_that_says_preload(run_program: Callable[..., str], seed: int) -> None:
    """A capture that would have to load a module raises; after ``preload`` it works."""
    printed = run_program(
        PRELUDE
        + """
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        loader.launch("grouped_fp4", **problem.inputs, out=out.array)
except loader.errors.CaptureError as error:
    print(error)
torch.cuda.synchronize()
loader.preload("grouped_fp4")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loader.launch("grouped_fp4", **problem.inputs, out=out.array)
graph.replay()
torch.cuda.synchronize()
problem.verify(out, "replayed")
print("verified")
""",
        str(seed),
    )
    assert "preload" in printed.splitlines()[0]
    assert printed.splitlines()[-1] == "verified"


def test_eight_threads_on_eight_streams(seed: int, variants: dict[str, str]) -> None:
    """First use and steady state from eight threads at once, each with its stream, problem and variants."""
    failures: list[str] = []
    barrier = threading.Barrier(8)
    problems = [device_problem(seed + i, [i, 3, 0, 40 + i], 264, 480) for i in range(8)]

    def work(index: int) -> None:
        problem, stream = problems[index], torch.cuda.Stream()
        try:
            barrier.wait()
            outs = []
            with torch.cuda.stream(stream):
                for variant, out_type in variants.items():
                    out = problem.output(out_type)
                    loader.launch("grouped_fp4", **problem.inputs, out=out.array, variant=variant)
                    outs.append((variant, out))
            stream.synchronize()
            for variant, out in outs:
                problem.verify(out, variant)
        except Exception as error:  # a thread's failure is reported by the test, whatever it is
            failures.append(f"thread {index}: {type(error).__name__}: {error}")

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_first_use_from_eight_threads(run_program: Callable[..., str], seed: int) -> None:
    """The cold path of a fresh process, entered by eight threads at the same moment."""
    program = """
import threading
barrier, failures = threading.Barrier(8), []
outs = [problem.output("bf16") for _ in range(8)]
torch.cuda.synchronize()
def work(out):
    try:
        barrier.wait()
        with torch.cuda.stream(torch.cuda.Stream()):
            loader.launch("grouped_fp4", **problem.inputs, out=out.array)
    except Exception as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(out,)) for out in outs]
for thread in threads: thread.start()
for thread in threads: thread.join()
if failures: raise failures[0]
torch.cuda.synchronize()
for out in outs: problem.verify(out, "first use")
print("verified")
"""
    assert run_program(PRELUDE + program, str(seed)).splitlines()[-1] == "verified"
