"""Devices and processes: two GPUs in one process, contexts left as found, forks, digests."""

from __future__ import annotations

from collections.abc import Callable

import hardware
import pytest

torch = pytest.importorskip("torch")

from device_problem import device_problem  # noqa: E402

import loader  # noqa: E402

COUNTS, N, K = [0, 1, 37, 130], 512, 1024


def test_two_devices_in_one_process(seed: int) -> None:
    """Buffers decide the device, whichever is current, and the current device stays what it was."""
    if hardware.cuda_devices() < 2:
        pytest.skip("one CUDA device; this test needs two")
    problems = [device_problem(seed + index, COUNTS, N, K, device=f"cuda:{index}") for index in range(2)]
    for current in (0, 1):
        with torch.cuda.device(current):
            outs = [problem.output("bf16") for problem in problems]
            for index in range(2):
                torch.cuda.synchronize(index)
            for problem, out in zip(problems, outs, strict=True):
                loader.launch("grouped_fp4", **problem.inputs, out=out.array)
            assert torch.cuda.current_device() == current
        for index in range(2):
            torch.cuda.synchronize(index)
        for problem, out in zip(problems, outs, strict=True):
            problem.verify(out, f"device {current} current")


def test_buffers_of_two_devices_are_refused(seed: int) -> None:
    """One launch runs on one device."""
    if hardware.cuda_devices() < 2:
        pytest.skip("one CUDA device; this test needs two")
    problem = device_problem(seed, COUNTS, N, K)
    inputs = problem.inputs | {"b": problem.inputs["b"].to("cuda:1")}
    with pytest.raises(loader.errors.DeviceError, match="b"):
        loader.launch("grouped_fp4", **inputs, out=problem.output("bf16").array)


def test_host_buffer_among_device_buffers_is_refused(seed: int) -> None:
    """A host tensor for a device argument raises and launches nothing."""
    problem = device_problem(seed, COUNTS, N, K)
    out = problem.output("bf16")
    inputs = problem.inputs | {"expert_offsets": problem.inputs["expert_offsets"].cpu()}
    with pytest.raises(loader.errors.DeviceError, match="expert_offsets"):
        loader.launch("grouped_fp4", **inputs, out=out.array)
    torch.cuda.synchronize()
    assert out.intact(0)


def test_fork_after_use_is_refused(run_program: Callable[..., str], seed: int) -> None:
    """A child of a process that has launched gets a clear error, not a crash; the parent goes on."""
    printed = run_program(
        """
import os, sys, torch, loader
from device_problem import device_problem
problem = device_problem(int(sys.argv[1]), [3, 0, 40], 256, 512)
out = problem.output("bf16")
plan = loader.plan("grouped_fp4", **problem.inputs, out=out.array)
plan.launch()
torch.cuda.synchronize()
sys.stdout.flush()
child = os.fork()
if child == 0:
    for name, use in (("launch", lambda: loader.launch("grouped_fp4", **problem.inputs, out=out.array)),
                      ("plan.launch", plan.launch)):
        try:
            use()
        except loader.errors.ForkError as error:
            print(name, "refused:", error, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
loader.launch("grouped_fp4", **problem.inputs, out=out.array)
torch.cuda.synchronize()
problem.verify(out, "parent")
print("parent verified")
""",
        str(seed),
    )
    lines = printed.splitlines()
    assert [line.split(" refused: ")[0] for line in lines[:2]] == ["launch", "plan.launch"]
    assert "fork" in lines[0] and lines[-1] == "parent verified"


def test_raw_driver_without_any_framework(run_program: Callable[..., str]) -> None:
    """A process with neither torch nor another framework launches the kernels of a layer."""
    printed = run_program("import sanitize, sys; sanitize.launch_everything(); print('torch' in sys.modules)")
    assert printed.splitlines()[-1] == "False"
