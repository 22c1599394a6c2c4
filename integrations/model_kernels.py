"""Which kernels take a matrix or a layer of experts, by asking the loader: it knows shapes, devices and bytes.

``KERNELS`` is the one table: for each format the calls that may serve it, best first. The rest are questions: whether a
call takes the sizes, or those with zeros behind them, what its buffers are, and on which archs a variant runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from . import loader, model_formats
from .model_formats import Format

MULTIPLES = (1, 8, 16, 32, 64, 128)  # of a padded size
WEIGHTS = ("b", "w1", "w13", "w2")
SCALES = ("b_scale", "b_channel_scale", "w1_scale", "w13_scale", "w2_scale")


class Step(NamedTuple):
    """A kernel or composite. sizes: a dimension of it -> a size of the layer. others: what else a problem needs.

    What may have several dtypes has the first, BF16 of tokens and results.
    """

    kernel: str
    sizes: Mapping[str, str]
    others: Mapping[str, int | str]


Route = tuple[Step, ...]  # calls that serve a layer together


class Kernels(NamedTuple):
    """Routes of matrices, of experts with SwiGLU and of those with the squared ReLU; ``lacking`` is why not others."""

    dense: tuple[Route, ...] = ()
    swiglu: tuple[Route, ...] = ()
    relu2: tuple[Route, ...] = ()
    lacking: str = ""


class Fit(NamedTuple):
    """A route that takes a layer. sizes: padded. archs: where it runs. Bytes: of one matrix, or of all experts."""

    kernels: str
    sizes: Mapping[str, int]
    archs: tuple[str, ...]
    weight_bytes: int
    scale_bytes: int


def _gemm(kernel: str) -> Route:
    return (Step(kernel, {"N": "n", "K": "k"}, {"M": 1}),)


def _layer(kernel: str, **others: str) -> Route:
    return (Step(kernel, {"E": "experts", "TOPK": "topk", "H": "hidden", "I": "intermediate"}, {"T": 1, **others}),)


def _grouped(kernel: str, **sizes: str) -> Step:
    return Step(kernel, {"E": "experts", **sizes}, {"M": 1})


_BF16_EXPERTS = (
    _grouped("grouped_bf16", N="first", K="hidden"),
    _grouped("grouped_bf16", N="hidden", K="intermediate"),
)
# Of experts in FP4 first the layers whose tokens are not quantised, which are for Hopper.
KERNELS = {
    model_formats.BF16: Kernels((_gemm("gemm_bf16"),), (_BF16_EXPERTS,), (_BF16_EXPERTS,)),
    model_formats.NVFP4: Kernels(
        (_gemm("gemm_fp4"),),
        (_layer("moe_bf16_nvfp4"), _layer("moe_fp4", global_scale_kind="encode")),
        (_layer("moe_fp4_relu2", global_scale_kind="encode"),),
    ),
    model_formats.MXFP4: Kernels((_gemm("gemm_mxfp8_mxfp4"),), (_layer("moe_bf16_mxfp4"), _layer("moe_mxfp8_mxfp4"))),
    model_formats.MXFP8: Kernels((_gemm("gemm_mxfp8"),), (_layer("moe_mxfp8"),)),
    model_formats.FP8: Kernels(
        (_gemm("gemm_fp8"),),
        (_layer("moe_fp8"),),
        lacking="scales are fp32, and of FP8 the tensor cores of Blackwell take powers of two (scale_fmt ue8m0)",
    ),
    # Powers of two are fp32 numbers, too, which is the fast way on Hopper.
    model_formats.FP8_UE8M0: Kernels(
        (_gemm("gemm_fp8"), _gemm("gemm_fp8_ue8m0")), (_layer("moe_fp8"), _layer("moe_fp8_ue8m0"))
    ),
    model_formats.FP8_ROWS: Kernels(
        (_gemm("gemm_fp8_channel"),),
        (_layer("moe_fp8_channel"),),
        lacking="of weights with a scale for each row there are kernels for Hopper alone",
    ),
}


class Packs:
    """What the packs that the loader uses answer. layout: of the calls that may serve a layer the one to prefer."""

    def __init__(self, layout: str = "") -> None:
        self.layout = layout
        self.kernels = loader.kernels()
        self.archs = tuple(dict.fromkeys(arch for pack in loader.packs() for arch in pack.archs))

    def fits(self, format: Format, kind: str, sizes: Mapping[str, int]) -> tuple[tuple[Fit, ...], dict[str, str]]:
        """The routes of a layer, each with the archs that none before it serves; and why other archs are without.

        kind: "dense", "swiglu" or "relu2". sizes: n and k, or experts, topk, hidden, intermediate and halves, the
        matrices of L1.
        """
        known = KERNELS.get(format, Kernels(lacking="no kernel takes this format"))
        routes: list[Route] = sorted(getattr(known, kind), key=lambda route: _name(route) != self.layout)
        found, reasons, left = [], [], self.archs
        for route in routes:
            try:
                fit = self._fit(route, sizes, left)
            except loader.LoaderError as error:
                reasons.append(str(error).partition("\n")[0])
                continue
            if fit.archs:
                found.append(fit)
            left = tuple(arch for arch in left if arch not in fit.archs)
        if known.lacking:
            reasons.append(known.lacking)
        elif not routes:
            reasons.append(f"no kernel for experts in this format ({kind})")
        elif not reasons:
            reasons.append(f"the packs hold no variant of {' or '.join(map(_name, routes))} for it")
        return tuple(found), dict.fromkeys(left, "; ".join(reasons))

    def _fit(self, route: Route, sizes: Mapping[str, int], archs: Sequence[str]) -> Fit:
        """``LoaderError``, that of the sizes as they are, where padding does not help."""
        for step in route:
            if step.kernel not in self.kernels:
                raise loader.UnknownKernelError(f"the packs hold no {step.kernel}", name=step.kernel)
        refused = None
        for padded in _padded(sizes):
            problems = [(step.kernel, _problem(step, padded)) for step in route]
            try:
                buffers = [loader.buffers(kernel, **problem) for kernel, problem in problems]
            except loader.ArgumentError as error:
                refused = refused or error
                continue
            weights, scales = (sum(specs[name].nbytes for specs in buffers for name in names if name in specs)
                               for names in (WEIGHTS, SCALES))  # fmt: skip
            runs = tuple(arch for arch in archs if all(_runs(kernel, arch, problem) for kernel, problem in problems))
            return Fit(_name(route), padded, runs, weights, scales)
        raise refused


def layouts() -> tuple[str, ...]:
    """The calls for experts among which a format leaves a choice."""
    return tuple(_name(route) for known in KERNELS.values() if len(known.swiglu) > 1 for route in known.swiglu)


def _name(route: Route) -> str:
    return " + ".join(dict.fromkeys(step.kernel for step in route))


def _runs(kernel: str, arch: str, problem: Mapping[str, int | str]) -> bool:
    return loader.explain(kernel, device=arch, **problem).variant is not None


def _problem(step: Step, sizes: Mapping[str, int]) -> dict[str, int | str]:
    return {**step.others, **{dimension: sizes[size] for dimension, size in step.sizes.items()}}


def _padded(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The sizes, then those padded to multiples, the fewest zeros first."""
    free = [name for name in ("n", "k", "hidden", "intermediate") if name in sizes]
    rounded = [sorted({-(-sizes[name] // multiple) * multiple for multiple in MULTIPLES}) for name in free]
    found = [dict(zip(free, chosen, strict=True)) for chosen in itertools.product(*rounded)]
    for chosen in sorted(found, key=lambda entry: sum(entry.values())):
        padded = {**sizes, **chosen}
        if "intermediate" in padded:
            padded["first"] = padded["intermediate"] * padded["halves"]
        yield padded
