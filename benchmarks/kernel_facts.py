"""What the performance model needs of a variant: numbers of its manifest, and of the SASS of its cubin."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import record  # noqa: F401  puts the checkout on the path

from generator import sass
from loader import expression
from loader.errors import ExpressionError
from loader.manifest import DTYPE_BYTES, Artifact, Family
from loader.registry import Candidate, Registry

# Opcodes of a pipe that takes half a warp a clock (on Hopper measured for LOP3, PRMT and SHF; the others are of it).
HALF_RATE = frozenset({"LOP3", "PRMT", "SHF", "SEL", "ISETP", "LEA", "VIADD", "F2FP", "VIMNMX", "PLOP3"})
BLOCK = {"block_m", "block_n", "block_k"}
PRODUCT_COLUMNS = 128  # of a CTA in an instruction of sm_100
MOST_CTAS = 8  # that share a multiprocessor; a grid of more is not persistent
CHUNK = 16  # tokens that an epilogue warp of sm_100 reads of tensor memory at once


class UnknownVariantError(LookupError):
    """A variant that no pack has, or that the model has no terms for."""


@dataclass(frozen=True)
class Work:
    """Instructions of a warp: all, those of the pipe of half rate, and the matrix instructions."""

    issued: int
    half_rate: int = 0
    products: int = 0

    @classmethod
    def of(cls, mix: sass.Mix) -> Work:
        return cls(mix.instructions, sum(mix.counts[opcode] for opcode in HALF_RATE), mix.tensor)

    @property
    def slots(self) -> int:
        """Clocks of its scheduler that it takes at least."""
        return max(self.issued, 2 * self.half_rate)


@dataclass(frozen=True)
class Facts:
    """A persistent GEMM whose tiles are a block of tokens by a block of columns.

    ``loops``: the most rows that each main loop multiplies, in rising order, and what a warp issues for a stage in it.
    ``row_bytes``: of a token and of a column in a stage, with their scales. ``around``: of a multiplying warp, for a
    tile, outside of its main loop. ``job``: of a warp that dequantises, for 16 tokens and 128 of K; ``chunk``: of a
    warp that has nothing but the epilogue, for ``CHUNK`` tokens. Both are nothing where there are no such warps.
    """

    name: str
    arch: str
    block: tuple[int, int, int]  # tokens, columns, K of a stage
    ctas_per_sm: int
    warps: int  # that multiply
    loops: tuple[tuple[int, Work], ...]
    row_bytes: tuple[int, int]
    out_bytes: float  # of an element of the result
    around: Work = Work(0)
    token_warps: int = 0
    job: Work = Work(0)
    chunk: Work = Work(0)
    # Two CTAs multiply together: ``block`` is what one of them has, ``row_bytes`` the half of a token that it loads.
    pair: bool = False

    @property
    def generation(self) -> str:
        return self.arch[:-2]

    @property
    def stage_bytes(self) -> int:
        """What is loaded for a stage."""
        return sum(rows * of_row for rows, of_row in zip(self.block, self.row_bytes, strict=False))

    def loop(self, rows: int) -> tuple[int, Work]:
        """Rows that are multiplied for a tile of so many, and a stage of the loop that does it."""
        return next((loop for loop in self.loops if rows <= loop[0]), self.loops[-1])


def find(packs: Registry, family: str, arch: str, variant: str) -> tuple[Family, Candidate]:
    """A variant that is named; ``UnknownVariantError`` says what there is."""
    if family not in packs.families:
        raise UnknownVariantError(f"no pack has {family}")
    of_arch = {one.artifact.variant: one for one in packs.candidates(family) if one.artifact.arch == arch}
    if variant not in of_arch:
        known = ", ".join(sorted(of_arch)) or "none"
        raise UnknownVariantError(f"no pack has {family}/{variant} for {arch}; there are {known}")
    return packs.families[family], of_arch[variant]


def read(family: Family, candidate: Candidate) -> Facts:
    """Facts of a variant in a pack, whose cubin nvdisasm reads; errors as of ``facts`` and ``sass.profile``."""
    cubin = Path(os.path.join(candidate.pack.directory, candidate.artifact.binary.file))
    return facts(family, candidate.artifact, sass.profile(cubin))


def facts(family: Family, artifact: Artifact, profile: sass.Profile) -> Facts:
    """Facts of a variant; ``UnknownVariantError`` where the model has no terms for it."""
    name, axes, generation = f"{artifact.family}/{artifact.variant}", artifact.axes, artifact.arch[:-2]
    known = {"a", "b", "out"} <= {argument.name for argument in family.arguments} and BLOCK <= axes.keys()
    pair = known and generation == "10" and axes["block_n"] == 2 * PRODUCT_COLUMNS
    if not known or not profile.loops or artifact.launch.cluster[0] != 1 + pair:
        raise UnknownVariantError(f"{name}: the model knows GEMMs of a and b to out with block_m, block_n and block_k, "
                                  "a main loop of matrix instructions, and no cluster but a pair's")
    job = _longest(profile, "STS", "HMUL2") if generation == "9" else Work(0)
    if generation == "9" and not job.issued:
        raise UnknownVariantError(f"{name}: of sm_90 the model knows kernels whose warps dequantise tokens")
    return Facts(
        name=name,
        arch=artifact.arch,
        block=(axes["block_m"], axes["block_n"] // (1 + pair), axes["block_k"]),
        ctas_per_sm=_ctas_per_sm(name, artifact),
        warps={"9": 8, "10": 1}.get(generation) or _multiplying_warps(family, axes, profile),
        loops=_main_loops(axes, profile),
        row_bytes=(_row_bytes(family, ("a",), axes["block_k"]) // (1 + pair)
                   + _row_bytes(family, ("a_scale",), axes["block_k"]),
                   _row_bytes(family, ("b", "b_scale"), axes["block_k"])),
        out_bytes=_out_bytes(family, axes),
        around=_around(family, profile),
        token_warps=axes.get("token_warps", 3) if job.issued else 0,  # 3: the rest of the loading warpgroup
        job=job,
        chunk=_longest(profile, "LDTM"),
        pair=pair,
    )


def _ctas_per_sm(name: str, artifact: Artifact) -> int:
    """Of a grid on a device of two multiprocessors, as a pair needs, for a problem with more tiles than that."""
    large = dict.fromkeys(("M", "Mmax", "N", "I", "K", "S"), 1 << 14) | {"E": 1, "sm_count": 2}
    try:
        extent = expression.function(artifact.launch.grid[0])({**large, **artifact.axes}) // 2
    except ExpressionError as error:
        raise UnknownVariantError(f"{name}: the model knows grids of {', '.join(large)}: {error}") from None
    if extent > MOST_CTAS:
        raise UnknownVariantError(f"{name}: the model knows grids of a few CTAs a multiprocessor, this has {extent}")
    return extent


def _around(family: Family, profile: sass.Profile) -> Work:
    """What a multiplying warp issues for a tile. Its code is there for every type between product and activation."""
    types = next((len(scalar.choices) for scalar in family.scalars if scalar.name == "intermediate"), 1)
    found = Work.of(profile.around)
    return Work(found.issued // types, found.half_rate // types)


def _longest(profile: sass.Profile, *opcodes: str) -> Work:
    """The longest innermost loop without products that has all these opcodes."""
    found = (loop for loop in profile.others if all(loop.counts[opcode] for opcode in opcodes))
    return Work.of(next(found, sass.Mix(sass.Counter())))


def _main_loops(axes: Mapping[str, int | str], profile: sass.Profile) -> tuple[tuple[int, Work], ...]:
    """Where a kernel has several, each is for tiles of fewer rows than the one before: by ``step`` if it has that, and
    else, of warps that own rows, by the share of the products that are left."""
    most, found = axes["block_m"], profile.loops
    rows = ([most - axes["step"] * place for place in range(len(found))] if "step" in axes
            else [most * loop.tensor // found[0].tensor for loop in found])  # fmt: skip
    return tuple(sorted(zip(rows, map(Work.of, found), strict=True), key=lambda loop: loop[0]))


def _multiplying_warps(family: Family, axes: Mapping[str, int | str], profile: sass.Profile) -> int:
    """Of sm_12x, those that share the products of a stage: of 16 x 8 and 32 bytes of a row, the wider one of both."""
    depth = max(_row_bytes(family, (operand,), axes["block_k"]) for operand in "ab")
    return axes["block_m"] * axes["block_n"] // (16 * 8) * depth // 32 // profile.loops[0].tensor


def _row_bytes(family: Family, names: Sequence[str], depth: int) -> int:
    """Of a row of all arguments of these names that there are, ``depth`` elements deep."""
    return sum(DTYPE_BYTES[argument.dtypes[0]] * expression.function(argument.shape[-1])({"K": depth})
               for argument in family.arguments if argument.name in names)  # fmt: skip


def _out_bytes(family: Family, axes: Mapping[str, int | str]) -> float:
    """Of an element of the product: a row of results over the columns that it is made of, two for one of them where
    there is an activation."""
    out = next(argument for argument in family.arguments if argument.name == "out")
    columns = 256
    width = expression.function(out.shape[-1])({"N": columns, "I": columns // 2})
    return DTYPE_BYTES[axes.get("out", out.dtypes[0])] * width / columns
