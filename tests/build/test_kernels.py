"""Static promises of every shipped kernel: the tensor cores of its generation, no spills, lean main loops."""

import functools
import gzip
import hashlib
import json
import os
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packs import ARCHS, CACHE, build_kernels, turn
from shipped_matrix import MATRIX, VARIANTS

from generator import build, lock, pack, sass, toolchain
from generator.compile import FLAGS
from generator.errors import ToolchainError
from generator.expand import Variant
from generator.render import Renderer

ROOT = Path(__file__).resolve().parents[2]
SASS = ROOT / "tests" / ".cache" / "sass"
SAMPLED = sorted({variant.arch for variant in VARIANTS} - set(ARCHS))

try:
    TOOLCHAIN = toolchain.find_toolchain()
    toolchain.find_disassembler()
except ToolchainError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)

GEMMS = {"grouped_fp4", "grouped_fp4_swiglu", "grouped_mxfp4", "grouped_mxfp8", "grouped_mxfp8_mxfp4", "grouped_fp8",
         "grouped_mxfp4_swiglu", "grouped_mxfp8_swiglu", "grouped_mxfp8_mxfp4_swiglu", "grouped_fp8_swiglu",
         "grouped_fp8_ue8m0_swiglu",
         "grouped_fp8_quantized", "gemm_fp8_quantized",
         "grouped_mxfp4_masked", "grouped_mxfp8_masked", "grouped_mxfp8_mxfp4_masked", "grouped_fp4_swiglu_masked",
         "grouped_mxfp4_swiglu_masked", "grouped_mxfp8_swiglu_masked", "grouped_mxfp8_mxfp4_swiglu_masked",
         "gemm_fp8", "grouped_fp8_mxfp4", "gemm_fp8_mxfp4", "grouped_bf16", "gemm_bf16", "grouped_fp8_ue8m0",
         "gemm_fp8_ue8m0", "grouped_fp8_ue8m0_mxfp4", "gemm_fp8_ue8m0_mxfp4", "grouped_mxfp4_fp8_ue8m0",
         "gemm_mxfp4_fp8_ue8m0", "grouped_mxfp8_rows", "gemm_mxfp8_rows", "grouped_mxfp8_rows_mxfp4",
         "gemm_mxfp8_rows_mxfp4"}
# Generation -> opcodes that each of its GEMMs must hold, first its products, of packed operands, of bytes or of bf16
OPCODES = {"9": ("HGMMA",), "10": ("UTCOMMA", "UTCCP"), "12": ("OMMA",)}
OF_BYTES = {"9": ("QGMMA",), "10": ("UTCQMMA", "UTCCP"), "12": ("QMMA",)}
OF_BF16 = {"9": ("HGMMA",), "10": ("UTCHMMA",), "12": ("HMMA",)}
WIDE = ("m128", "m256", "m64n256")  # tiles of sm_12x of which a warp multiplies at least 16 times a step


@pytest.fixture(scope="session")
def sample(seed: int) -> list[Variant]:
    """One variant of each family for each arch that is not built whole, another in every run."""
    groups: dict[tuple[str, str], list[Variant]] = {}
    for variant in VARIANTS:
        if variant.arch in SAMPLED:
            groups.setdefault((variant.arch, variant.family), []).append(variant)
    return list(map(random.Random(seed).choice, groups.values()))


def build_sample(sample: list[Variant]) -> build.Result:
    """Into the pack of the archs that are built whole, which stay."""
    jobs = len(os.sched_getaffinity(0))
    stages = build.Build(ROOT / "kernels.yaml", ROOT / "templates", MATRIX, TOOLCHAIN, [], "cubin", jobs)
    with turn(), pack.locked(CACHE):
        return stages.run(CACHE, sample)


@pytest.fixture(scope="session")
def built(sample: list[Variant]) -> Path:
    """All variants for ``ARCHS``, and the sample; of archs in ``SAMPLED`` maybe more, from runs before."""
    done = build_kernels(ARCHS)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not build_sample(sample).failures
    return CACHE


@pytest.fixture
def artifacts(built: Path) -> list[dict]:
    return json.loads((built / "manifest.json").read_text())["artifacts"]


@functools.cache
def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def profiled(cubin: Path) -> sass.Profile:
    """Of a cubin. nvdisasm needs a third of a second for a kernel, so its text is kept under what it depends on; it is
    parsed in every run."""
    kept = SASS / f"{digest(cubin)[:32]}-{digest(toolchain.find_disassembler())[:16]}.gz"
    if not kept.is_file():
        text = gzip.compress(sass.disassemble(cubin).encode(), mtime=0)
        SASS.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=SASS, prefix="new-", delete=False) as file:
            file.write(text)
        os.replace(file.name, kept)  # complete or absent
    return sass.parse(gzip.decompress(kept.read_bytes()).decode())


def profiles(built: Path, artifacts: list[dict]) -> list[sass.Profile]:
    """Of each; a kernel that families have in common is disassembled once."""
    files = {artifact["sha256"]: built / artifact["file"] for artifact in artifacts}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(files, pool.map(profiled, files.values()), strict=True))
    return [found[artifact["sha256"]] for artifact in artifacts]


def broken_promises(family: str, arch: str, tile: str, profile: sass.Profile) -> Iterator[str]:
    """What SASS of a GEMM shows that it should not. The bars are what CUTLASS's grouped kernels of such tiles need."""
    generation = arch[:-2]
    of_bytes = "fp8" in family or ("_mx" in family and generation == "9")  # MXFP4 becomes E4M3 there
    opcodes = (OF_BYTES if of_bytes else OF_BF16 if "bf16" in family else OPCODES)[generation]
    if missing := set(opcodes) - set(profile.counts):
        yield f"no {missing}"
    if profile.counts["LDL"] or profile.counts["STL"]:
        yield f"{profile.counts['LDL']} LDL and {profile.counts['STL']} STL"
    loop, product = profile.main_loop, opcodes[0]
    most = 3.5 if "fp8" in family and "mxfp4" in family else 3.3  # there E2M1 is shifted to where a product reads it
    if loop is None:
        yield "no loop with tensor-core instructions"
    elif generation == "12" and tile.startswith(WIDE) and loop.instructions > most * loop.counts[product]:
        yield f"{loop.instructions} instructions in the main loop for {loop.counts[product]} {product}"
    elif product == "QGMMA" and tile == "m128n256" and loop.instructions > 26 * loop.counts[product]:  # 16 of them sums
        yield f"{loop.instructions} instructions in the main loop for {loop.counts[product]} {product}"
    elif generation == "10" and loop.instructions * 4 > 86 * loop.counts[product]:
        yield f"{loop.instructions} instructions in the main loop for {loop.counts[product]} {product}"


def test_the_matrix_covers_its_archs() -> None:
    """Hopper, and each Blackwell with tensor cores for FP4."""
    assert set(SAMPLED) == {"100f", "103a", "120f", "121a"}


def test_every_kernel_renders() -> None:
    """Also those that are not compiled here; no two are called alike."""
    renderer = Renderer(ROOT / "templates", TOOLCHAIN.version, FLAGS)
    assert len({renderer.render(variant).variant.label for variant in VARIANTS}) == len(VARIANTS)


def test_what_ships_is_within_its_budget() -> None:
    """At most 1,700 kernels in a pack for Hopper and for every Blackwell."""
    assert 0 < sum(variant.arch in ("90a", "100f", "120f") for variant in VARIANTS) <= 1700


@pytest.mark.parametrize("arch", ARCHS)
def test_the_pack_holds_the_matrix(arch: str, artifacts: list[dict]) -> None:
    """Of an arch that is built whole, every variant once."""
    found = [(a["family"], a["variant"]) for a in artifacts if a["arch"] == arch]
    assert found == sorted((v.family, v.variant) for v in VARIANTS if v.arch == arch)


@pytest.mark.parametrize("arch", SAMPLED)
def test_the_pack_holds_the_sample(arch: str, sample: list[Variant], artifacts: list[dict]) -> None:
    """Of the others, a kernel of every family, and none that the matrix has not."""
    found = {(a["family"], a["variant"]) for a in artifacts if a["arch"] == arch}
    drawn = {(v.family, v.variant) for v in sample if v.arch == arch}
    whole = {(v.family, v.variant) for v in VARIANTS if v.arch == arch}
    assert drawn <= found <= whole
    assert {family for family, _ in drawn} == {family for family, _ in whole}


@pytest.mark.parametrize("arch", [*ARCHS, *SAMPLED])
def test_kernels_use_the_tensor_cores_of_their_generation(arch: str, built: Path, artifacts: list[dict]) -> None:
    """Block-scaled FP4 natively on Blackwell, warpgroup products on Hopper; no local memory; lean main loops."""
    chosen = [artifact for artifact in artifacts if artifact["arch"] == arch and artifact["family"] in GEMMS]
    found = [f"{artifact['symbol']}: {promise}"
             for artifact, profile in zip(chosen, profiles(built, chosen), strict=True)
             for promise in broken_promises(artifact["family"], arch, artifact["tile"], profile)]  # fmt: skip
    assert chosen and not found


@pytest.mark.parametrize("arch", ["100a", "120a"])
@pytest.mark.parametrize("fmt", [f"{fmt}{letters}" for fmt in ("bf16", "fp8_ue8m0")
                                 for letters in ("", "_nn", "_tn", "_tt")])  # fmt: skip
def test_loops_of_other_formats_are_as_lean_as_those_of_nvfp4(
    arch: str, fmt: str, built: Path, artifacts: list[dict]
) -> None:
    """Of every tile: no more instructions for a product than that of as many rows has for NVFP4."""
    def loops(family: str) -> dict[tuple[int, str], float]:
        chosen = [a for a in artifacts if (a["arch"], a["family"]) == (arch, family)]
        return {(a["axes"]["block_m"], a["axes"]["out"]): profile.main_loop.per_tensor
                for a, profile in zip(chosen, profiles(built, chosen), strict=True)}  # fmt: skip

    families = {"": ("gemm", "grouped"), "nn": ("gemm", "grouped"), "tt": ("gemm",), "tn": ("gemm", "k_grouped")}
    for schedule in families[fmt.removeprefix("bf16").removeprefix("fp8_ue8m0").removeprefix("_")]:
        found = loops(f"{schedule}_{fmt}")
        bars = loops("gemm_fp4" if schedule == "k_grouped" else f"{schedule}_fp4")
        assert found and {tile: found[tile] for tile in found if found[tile] > bars[tile]} == {}


def test_the_prefill_loop_of_sm120_is_lean() -> None:
    """A main loop of 3.3 instructions per OMMA keeps the promise, one of more breaks it."""
    def loop(others: int) -> sass.Profile:
        counts = {"OMMA": 10, "LDSM": others}
        return sass.Profile(Counter(counts), "kernel", (sass.Loop(Counter(counts), 0, 16),))

    assert not list(broken_promises("grouped_fp4", "120a", "m256n128k128", loop(23)))
    assert list(broken_promises("grouped_fp4", "120f", "m128n128k128", loop(24))) == [
        "34 instructions in the main loop for 10 OMMA"
    ]


def test_kernels_stay_in_registers(artifacts: list[dict]) -> None:
    """By ptxas's word."""
    assert not [a["symbol"] for a in artifacts if a["spill_bytes"] or a["local_bytes"]]


def test_cubins_are_small(artifacts: list[dict]) -> None:
    """Median at most 48 KB."""
    assert statistics.median(artifact["size"] for artifact in artifacts) <= 48 << 10


def test_an_unchanged_rebuild_of_the_matrix_compiles_nothing(built: Path, sample: list[Variant]) -> None:
    """Also after builds for some archs alone, and of some kernels alone."""
    count = sum(variant.arch in ARCHS for variant in VARIANTS)
    assert f"0 compiled, {count} up to date, 0 failed; pack unchanged" in build_kernels(ARCHS).stdout
    again = build_sample(sample)
    assert (again.reused, again.changed) == ({variant.label for variant in sample}, False)


def test_the_lock_agrees_with_the_sources(built: Path, artifacts: list[dict]) -> None:
    """Kernel for kernel that is built, and none of the matrix is missing or left over: whoever changes kernels updates
    the lock."""
    path = ROOT / "artifacts" / "lock.json"
    if not path.exists():
        pytest.skip("artifacts/lock.json does not exist")
    expected = lock.read(path)
    if expected["nvcc"] != TOOLCHAIN.version:
        pytest.skip(f"artifacts/lock.json is of nvcc {expected['nvcc']}, this is {TOOLCHAIN.version}")
    locked = expected["kernels"]
    assert set(locked) ^ {variant.label for variant in VARIANTS} == set()
    digests = {"{family}/{variant}@{arch}".format_map(artifact): {
        "cubin": artifact["sha256"],
        "ptx": hashlib.sha256(gzip.decompress((built / artifact["ptx"]["file"]).read_bytes())).hexdigest(),
    } for artifact in artifacts}  # fmt: skip
    assert {label for label in digests if digests[label] != locked[label]} == set()
