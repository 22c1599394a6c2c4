"""Modules that go out of the driver and come back, on a GPU."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from device_problem import DeviceProblem, device_problem  # noqa: E402

import loader  # noqa: E402

COUNTS, N, K = [0, 1, 37, 130], 512, 1024


@pytest.fixture
def problem(seed: int) -> DeviceProblem:
    loader.unload()
    return device_problem(seed, COUNTS, N, K)


def launch(problem: DeviceProblem, context: str) -> None:
    out = problem.output("bf16")
    loader.launch("grouped_fp4", **problem.inputs, out=out.array)
    torch.cuda.synchronize()
    problem.verify(out, context)


def test_a_kernel_comes_back(problem: DeviceProblem) -> None:
    """After each unload the same call gives its result; a module is freed each time, also where work is queued."""
    for number in range(3):
        launch(problem, f"launch {number}")
        out = problem.output("bf16")
        for _ in range(20):
            loader.launch("grouped_fp4", **problem.inputs, out=out.array)
        assert [each.held for each in loader.unload()] == [False]
        problem.verify(out, f"queued before unload {number}")
    assert loader.unload() == []


def test_a_plan_goes_on(problem: DeviceProblem) -> None:
    """It holds its module, for a graph, too; once it is gone the module goes."""
    out = problem.output("bf16")
    plan = loader.plan("grouped_fp4", **problem.inputs, out=out.array)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.launch()
    assert [each.held for each in loader.unload()] == [True]
    for use in (plan.launch, graph.replay):
        out.array.zero_()
        use()
        torch.cuda.synchronize()
        problem.verify(out, "after unload")
    del plan, graph, use
    assert [each.held for each in loader.unload()] == [False]


def test_unload_beside_launches(problem: DeviceProblem) -> None:
    """Launches of another thread give their results."""
    failures: list[BaseException] = []

    def launching() -> None:
        try:
            for number in range(50):
                launch(problem, f"launch {number}")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=launching)
    thread.start()
    while thread.is_alive():
        loader.unload()
    thread.join()
    assert not failures
