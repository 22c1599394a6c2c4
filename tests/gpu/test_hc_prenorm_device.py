"""hc_prenorm_tf32 on a GPU: every variant right, and equal in every byte over 24 launches."""

from __future__ import annotations

import hardware
import numpy as np
import packs
import pytest
from hc_prenorm import BLOCK, Problem

torch = pytest.importorskip("torch")

import loader  # noqa: E402

REPEATS = 24


def cases() -> list[tuple[str, str]]:
    """(family, variant) that run on device 0."""
    if not hardware.cuda_devices():
        return [("hc_prenorm_tf32", "no device")]
    return [(family, artifact.variant) for family in ("hc_prenorm_tf32", "hc_prenorm_tf32_shares")
            for artifact in packs.artifacts(family, hardware.runs_here)]  # fmt: skip


def launch_repeated(problem: Problem, **options: object) -> None:
    """Into poisoned outputs, which become the same each time, and right."""
    family = "hc_prenorm_tf32" if problem.shares is None else "hc_prenorm_tf32_shares"
    a = torch.from_numpy(problem.a.view(np.int16)).cuda().view(torch.bfloat16)
    b = torch.from_numpy(problem.b).cuda()
    outputs = problem.outputs()
    lead = () if problem.shares is None else (problem.shares,)
    poisoned = [torch.from_numpy(output.array).view(*lead, len(problem.a), -1) for output in outputs]
    copies = [[host.cuda() for host in poisoned] for _ in range(REPEATS)]
    for out, square_sum in copies:
        loader.launch(family, a=a, b=b, out=out, square_sum=square_sum[..., 0], **options)
    torch.cuda.synchronize()
    for stored in copies:
        assert all(torch.equal(x.view(torch.int32), first.view(torch.int32))
                   for x, first in zip(stored, copies[0], strict=True))  # fmt: skip
    for host, stored in zip(poisoned, copies[0], strict=True):
        host.copy_(stored)
    problem.verify(*outputs, f"{family} {options}")


@pytest.mark.parametrize(("family", "name"), cases())
def test_every_variant(family: str, name: str, rng: np.random.Generator) -> None:
    """More tiles than one of a CTA, rows and columns that end within one, and rings that go round."""
    shares = 3 if family.endswith("_shares") else None
    launch_repeated(Problem.random(rng, 1000, 120, BLOCK * 113, shares), variant=name)


@pytest.mark.parametrize("shares", [None, 1, 16, 200])
@pytest.mark.parametrize(("m", "k"), [(1, 64), (13, 28672), (137, 7680), (4096, 7168)])
def test_as_selected(m: int, k: int, shares: int | None, rng: np.random.Generator) -> None:
    """Shapes of hyper-connections, also in more shares than there are blocks."""
    launch_repeated(Problem.random(rng, m, 24, k, shares))


def test_side_stream(rng: np.random.Generator) -> None:
    """On another stream, one launch right behind the other."""
    with torch.cuda.stream(torch.cuda.Stream()):
        launch_repeated(Problem.random(rng, 137, 24, 7680, 16))


def test_near_torch() -> None:
    """As DeepGEMM's test has it: within 1e-8 of torch's product in tf32."""
    m, n, k = 137, 24, 7168
    a, b = torch.randn(m, k, dtype=torch.bfloat16, device="cuda"), torch.randn(n, k, device="cuda")
    out, square_sum = torch.empty(m, n, device="cuda"), torch.empty(m, device="cuda")
    loader.launch("hc_prenorm_tf32", a=a, b=b, out=out, square_sum=square_sum)
    allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        expected = a.float() @ b.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    for stored, right in ((out, expected), (square_sum, a.float().square().sum(-1))):
        x, y = stored.double(), right.double()
        assert 1 - 2 * (x * y).sum() / (x * x + y * y).sum() < 1e-8
