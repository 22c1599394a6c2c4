"""Static promises of every shipped kernel: the tensor cores of its generation, no spills, lean main loops."""

import functools
import gzip
import hashlib
import json
import lzma
import operator
import os
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packs import ARCHS, CACHE, build_kernels, need_kernels, turn
from shipped_matrix import MATRIX, VARIANTS, one_of_each

from generator import build, lock, pack, sass, toolchain
from generator.compile import FLAGS
from generator.errors import ToolchainError
from generator.expand import Variant
from generator.render import Renderer
from loader import registry

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import chips  # noqa: E402
import kernel_facts  # noqa: E402
import model_terms  # noqa: E402

SASS = ROOT / "tests" / ".cache" / "sass"
SHARE = 16  # cubins that a process disassembles
SAMPLED = sorted({variant.arch for variant in VARIANTS} - set(ARCHS))

try:
    TOOLCHAIN = toolchain.find_toolchain()
    toolchain.find_disassembler()
except ToolchainError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)

GEMMS = {"grouped_fp4", "grouped_fp4_swiglu", "grouped_mxfp4", "grouped_mxfp8", "grouped_mxfp8_mxfp4", "grouped_fp8",
         "grouped_mxfp4_swiglu", "grouped_mxfp8_swiglu", "grouped_mxfp8_mxfp4_swiglu", "grouped_fp8_swiglu",
         "grouped_fp8_ue8m0_swiglu", "grouped_bf16_nvfp4", "grouped_bf16_nvfp4_swiglu", "grouped_bf16_mxfp4_swiglu",
         "grouped_fp8_quantized", "gemm_fp8_quantized", "grouped_fp8_channel",
         "grouped_mxfp4_masked", "grouped_mxfp8_masked", "grouped_mxfp8_mxfp4_masked", "grouped_fp4_swiglu_masked",
         "grouped_mxfp4_swiglu_masked", "grouped_mxfp8_swiglu_masked", "grouped_mxfp8_mxfp4_swiglu_masked",
         "gemm_fp8", "grouped_fp8_mxfp4", "gemm_fp8_mxfp4", "grouped_bf16", "gemm_bf16", "grouped_fp8_ue8m0",
         "gemm_fp8_ue8m0", "grouped_fp8_ue8m0_mxfp4", "gemm_fp8_ue8m0_mxfp4", "grouped_mxfp4_fp8_ue8m0",
         "gemm_mxfp4_fp8_ue8m0", "grouped_mxfp8_rows", "gemm_mxfp8_rows", "grouped_mxfp8_rows_mxfp4",
         "gemm_mxfp8_rows_mxfp4", "grouped_bf16_mxfp4"}
# Generation -> opcodes that each of its GEMMs must hold, first its products, of packed operands, of bytes or of bf16
OPCODES = {"9": ("HGMMA",), "10": ("UTCOMMA", "UTCCP"), "12": ("OMMA",)}
OF_BYTES = {"9": ("QGMMA",), "10": ("UTCQMMA", "UTCCP"), "12": ("QMMA",)}
OF_BF16 = {"9": ("HGMMA",), "10": ("UTCHMMA",), "12": ("HMMA",)}
WIDE = ("m128", "m256", "m64n256")  # tiles of sm_12x of which a warp multiplies at least 16 times a step
PAIR = "n256k256"  # tiles of sm_100 that two CTAs compute: one warp issues for both


@pytest.fixture(scope="session")
def sample() -> list[Variant]:
    """One variant of each template for each arch that is not built whole, another in every run."""
    found = [variant for variant in VARIANTS if variant.arch in SAMPLED]
    return one_of_each(found, lambda variant: (variant.arch, variant.template))


def build_sample(sample: list[Variant]) -> build.Result:
    """Into the pack of the archs that are built whole, which stay."""
    jobs = len(os.sched_getaffinity(0))
    stages = build.Build(ROOT / "kernels.yaml", ROOT / "templates", MATRIX, TOOLCHAIN, [], "cubin", jobs)
    with turn(), pack.locked(CACHE):
        return stages.run(CACHE, sample)


@pytest.fixture(scope="session")
def built(sample: list[Variant]) -> Path:
    """All variants for ``ARCHS``, and the sample; of archs in ``SAMPLED`` maybe more, from runs before."""
    need_kernels(ARCHS)
    assert not build_sample(sample).failures
    return CACHE


@pytest.fixture
def artifacts(built: Path) -> list[dict]:
    return json.loads((built / "manifest.json").read_text())["artifacts"]


@pytest.fixture(scope="session")
def one_output(built: Path) -> list[dict]:
    """Of artifacts that differ in their output type alone one, another in every run: their main loops are the same
    but for a few instructions, and to disassemble them all takes minutes."""
    artifacts = json.loads((built / "manifest.json").read_text())["artifacts"]
    return one_of_each(artifacts, operator.itemgetter("arch", "family", "tile"))


@functools.cache
def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kept(cubin: Path) -> Path:
    """Where the text of a cubin is kept for the next run, under what it depends on; it is parsed in every run."""
    return SASS / f"{digest(cubin)[:32]}-{digest(toolchain.find_disassembler())[:16]}.gz"


def disassemble(cubins: list[Path]) -> None:
    """Of one arch; keeps their texts."""
    SASS.mkdir(parents=True, exist_ok=True)
    for cubin, text in zip(cubins, sass.disassemble_all(cubins), strict=True):
        with tempfile.NamedTemporaryFile(dir=SASS, prefix="new-", delete=False) as file:
            file.write(gzip.compress(text.encode(), mtime=0))
        os.replace(file.name, kept(cubin))  # complete or absent


@functools.cache
def profiled(cubin: Path) -> sass.Profile:
    return sass.parse(gzip.decompress(kept(cubin).read_bytes()).decode())


def profiles(built: Path, artifacts: list[dict]) -> list[sass.Profile]:
    """Of each; a kernel that families have in common is disassembled once."""
    missing: dict[str, dict[Path, None]] = {}
    for artifact in artifacts:
        if not kept(built / artifact["file"]).is_file():
            missing.setdefault(artifact["arch"], {})[built / artifact["file"]] = None
    shares = [list(files)[i : i + SHARE] for files in missing.values() for i in range(0, len(files), SHARE)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(disassemble, shares))
    return [profiled(built / artifact["file"]) for artifact in artifacts]


def broken_promises(family: str, arch: str, tile: str, profile: sass.Profile) -> Iterator[str]:
    """What SASS of a GEMM shows that it should not. The bars are what CUTLASS's grouped kernels of such tiles need."""
    generation = arch[:-2]
    of_bytes = "fp8" in family or ("_mx" in family and generation == "9" and "bf16" not in family)  # MXFP4 becomes E4M3
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
    elif generation == "10" and loop.instructions * 4 > (70 if tile.endswith(PAIR) else 86) * loop.counts[product]:
        yield f"{loop.instructions} instructions in the main loop for {loop.counts[product]} {product}"


def test_the_matrix_covers_its_archs() -> None:
    """Hopper, and each Blackwell with tensor cores for FP4."""
    assert set(SAMPLED) == {"100f", "103a", "120f", "121a"}


def test_every_kernel_renders() -> None:
    """Also those that are not compiled here; no two are called alike."""
    renderer = Renderer(ROOT / "templates", TOOLCHAIN.version, FLAGS)
    assert len({renderer.render(variant).variant.label for variant in VARIANTS}) == len(VARIANTS)


def test_what_ships_is_within_its_budget() -> None:
    """At most 1,550 kernels in a pack for Hopper and for every Blackwell; forms of a family have theirs in common."""
    assert 0 < len({(v.symbol, v.arch) for v in VARIANTS if v.arch in ("90a", "100f", "120f")}) <= 1550


@pytest.mark.parametrize("arch", ARCHS)
def test_the_pack_holds_the_matrix(arch: str, artifacts: list[dict]) -> None:
    """Of an arch that is built whole, every variant once."""
    found = [(a["family"], a["variant"]) for a in artifacts if a["arch"] == arch]
    assert found == sorted((v.family, v.variant) for v in VARIANTS if v.arch == arch)


@pytest.mark.parametrize("arch", SAMPLED)
def test_the_pack_holds_the_sample(arch: str, sample: list[Variant], artifacts: list[dict]) -> None:
    """Of the others, a kernel of every template, and none that the matrix has not."""
    found = {(a["family"], a["variant"]) for a in artifacts if a["arch"] == arch}
    drawn = {(v.family, v.variant) for v in sample if v.arch == arch}
    whole = [v for v in VARIANTS if v.arch == arch]
    assert drawn <= found <= {(v.family, v.variant) for v in whole}
    assert len(drawn) == len({v.template for v in whole})


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_disassembled_together_are_as_alone(arch: str, built: Path, artifacts: list[dict]) -> None:
    """Some of any families, others in every run, one of them with a jump table."""
    files = [built / artifact["file"] for artifact in artifacts if artifact["arch"] == arch]
    draw = random.Random(os.environ["TESTS_SEED"])
    chosen = draw.sample(files, 4) + [draw.choice([file for file in files if b".nv.constant2." in file.read_bytes()])]
    together = [sass.parse(text) for text in sass.disassemble_all(chosen)]
    assert together == [sass.profile(file) for file in chosen]


@pytest.mark.parametrize("arch", [*ARCHS, *SAMPLED])
def test_kernels_use_the_tensor_cores_of_their_generation(arch: str, built: Path, one_output: list[dict]) -> None:
    """Block-scaled FP4 natively on Blackwell, warpgroup products on Hopper; no local memory; lean main loops."""
    chosen = [artifact for artifact in one_output if artifact["arch"] == arch and artifact["family"] in GEMMS]
    found = [f"{artifact['symbol']}: {promise}"
             for artifact, profile in zip(chosen, profiles(built, chosen), strict=True)
             for promise in broken_promises(artifact["family"], arch, artifact["tile"], profile)]  # fmt: skip
    assert chosen and not found


def test_fragments_become_weights_in_few_instructions(built: Path, artifacts: list[dict]) -> None:
    """Of bf16: at most 20.1 instructions for a product, 7 of them of the ALU. f16 takes half as many again. Beside an
    activation the compiler takes shifts of the ALU for multiplications."""
    bars = {"grouped_bf16_nvfp4": {"bf16": (20.1, 7), "f16": (30, 15)},
            "grouped_bf16_mxfp4": {"bf16": (20.1, 7)},
            "grouped_bf16_nvfp4_swiglu": {"bf16": (20.1, 9), "f16": (30, 18)},
            "grouped_bf16_mxfp4_swiglu": {"bf16": (20.1, 9)}}  # fmt: skip
    chosen = [a for a in artifacts if a["family"] in bars and a["axes"]["block_n"] == 256]
    for artifact, profile in zip(chosen, profiles(built, chosen), strict=True):
        loop = profile.main_loop
        alu = sum(loop.counts[opcode] for opcode in ("LOP3", "SHF", "PRMT", "SEL", "ISETP", "LEA", "PLOP3"))
        most, most_of_alu = bars[artifact["family"]][artifact["axes"]["element"]]
        assert loop.instructions <= most * loop.tensor and alu <= most_of_alu * loop.tensor, artifact["symbol"]
    assert set(bars) == {artifact["family"] for artifact in chosen}


def test_mqa_loops_add_up_heads_and_little_else(built: Path, artifacts: list[dict]) -> None:
    """On sm_90: two instructions for each of a thread's products, and a few for each pair of queries. A product of 64
    keys takes two cycles for a column, at a width of 128. Keys in MX cost up to six for each of a thread's elements."""
    constants = {variant.label: variant.constants for variant in VARIANTS if "mqa_logits" in variant.family}
    chosen = [a for a in artifacts if a["arch"] == "90a" and "mqa_logits" in a["family"]]
    for artifact, profile in zip(chosen, profiles(built, chosen), strict=True):
        own, loop = constants["{family}/{variant}@{arch}".format_map(artifact)], profile.main_loop
        width, heads, dim = own["columns"], artifact["axes"]["heads"], artifact["axes"]["head_dim"]
        groups, converted = max(1, width // heads // 2), own["block_scaled"] * dim // 2
        opcode, k = ("HGMMA", 16) if own["block_scaled"] else ("QGMMA", 32)
        assert loop.counts[opcode] == loop.tensor == dim // k
        relu = "FMNMX" if own["block_scaled"] else "FADD"  # finite: x + |x|, at twice the rate
        assert loop.counts["FFMA"] == width // 2 <= loop.counts[relu]
        assert loop.instructions <= width + 26 * groups + 70 + 6 * converted, artifact["symbol"]
    assert chosen


@pytest.mark.parametrize("arch", ["100a", "100f"])
def test_mqa_sums_of_sm100_take_three_instructions_for_two_heads(arch: str, built: Path, artifacts: list[dict]) -> None:
    """A maximum or an addition for each, a product for both; and few issue the products of a stage, of which each lane
    looks for four scales, those of a list's keys by one more load."""
    constants = {variant.label: variant.constants for variant in VARIANTS if "mqa_logits" in variant.family}
    chosen = [a for a in artifacts if a["arch"] == arch and "mqa_logits" in a["family"]]
    for artifact, profile in zip(chosen, profiles(built, chosen), strict=True):
        own, loop = constants["{family}/{variant}@{arch}".format_map(artifact)], profile.main_loop
        assert loop.tensor == own["row_bytes"] // 32
        most = (76 if own["block_scaled"] else 40) + (16 if artifact["axes"]["keys"] == "lists" else 0)
        assert loop.instructions <= most, artifact["symbol"]
        assert profile.counts["FFMA2"] == profile.counts["FMNMX"] >= min(own["columns"], 128) // 2, artifact["symbol"]
    assert chosen


@pytest.mark.parametrize("arch", ["120a", "120f"])
def test_mqa_loops_of_sm120_leave_time_to_multiply(arch: str, built: Path, artifacts: list[dict]) -> None:
    """All columns are multiplied and added up, and what else there is, is little beside the 16 cycles of a product."""
    constants = {variant.label: variant.constants for variant in VARIANTS if "mqa_logits" in variant.family}
    chosen = [a for a in artifacts if a["arch"] == arch and "mqa_logits" in a["family"]]
    for artifact, profile in zip(chosen, profiles(built, chosen), strict=True):
        own, loop = constants["{family}/{variant}@{arch}".format_map(artifact)], profile.main_loop
        width, groups = own["columns"], max(1, own["columns"] // artifact["axes"]["heads"] // 2)
        assert loop.tensor == width // 8 * own["row_bytes"] // 32
        assert loop.counts["FFMA"] == loop.counts["FMNMX"] == width // 2
        assert loop.instructions <= 2 * loop.tensor + width + 45 * groups + 60, artifact["symbol"]
    assert chosen


@pytest.mark.parametrize("arch", ["100a", "120a"])
@pytest.mark.parametrize("fmt", [f"{fmt}{letters}" for fmt in ("bf16", "fp8_ue8m0")
                                 for letters in ("", "_nn", "_tn", "_tt")])  # fmt: skip
def test_loops_of_other_formats_are_as_lean_as_those_of_nvfp4(
    arch: str, fmt: str, built: Path, one_output: list[dict]
) -> None:
    """Of every tile: no more instructions for a product than that of as many rows has for NVFP4."""
    def loops(family: str) -> dict[tuple[int, int], float]:
        chosen = [a for a in one_output if (a["arch"], a["family"]) == (arch, family)]
        return {(a["axes"]["block_m"], a["axes"]["block_n"]): profile.main_loop.per_tensor
                for a, profile in zip(chosen, profiles(built, chosen), strict=True)}  # fmt: skip

    families = {"": ("gemm", "grouped"), "nn": ("gemm", "grouped"), "tt": ("gemm",), "tn": ("gemm", "k_grouped")}
    for schedule in families[fmt.removeprefix("bf16").removeprefix("fp8_ue8m0").removeprefix("_")]:
        found = loops(f"{schedule}_{fmt}")
        bars = loops("gemm_fp4" if schedule == "k_grouped" else f"{schedule}_fp4")
        assert found and {tile: found[tile] for tile in found if found[tile] > bars[tile]} == {}


@pytest.mark.parametrize(("arch", "most"), [("90a", 165), ("100a", 250), ("120a", 110)])
def test_loops_of_widened_rows_are_lean(arch: str, most: int, built: Path, artifacts: list[dict]) -> None:
    """A stage of 64 of K: a thread's elements of a are loaded, shifted and squared, 32 of them, or 64 in vectors on
    sm_100; beside 8 products that take these, or on sm_12x an HMMA for 8 columns and the half of a load of b."""
    chosen = [a for a in artifacts if (a["arch"], a["family"]) == (arch, "hc_prenorm_tf32")]
    product = {"90a": "HGMMA", "100a": "UTCHMMA", "120a": "HMMA"}[arch]
    for artifact, profile in zip(chosen, profiles(built, chosen), strict=True):
        loop, columns = profile.main_loop, artifact["axes"]["block_n"]
        assert not profile.counts["LDL"] and not profile.counts["STL"]
        assert loop.counts[product] == (columns if arch == "120a" else 8)
        assert loop.instructions <= most + (2.1 * columns if arch == "120a" else 0), artifact["symbol"]
    assert chosen


def test_the_prefill_loop_of_sm120_is_lean() -> None:
    """A main loop of 3.3 instructions per OMMA keeps the promise, one of more breaks it."""
    def loop(others: int) -> sass.Profile:
        counts = {"OMMA": 10, "LDSM": others}
        return sass.Profile(Counter(counts), "kernel", (sass.Loop(Counter(counts), 0, 16),))

    assert not list(broken_promises("grouped_fp4", "120a", "m256n128k128", loop(23)))
    assert list(broken_promises("grouped_fp4", "120f", "m128n128k128", loop(24))) == [
        "34 instructions in the main loop for 10 OMMA"
    ]


def test_the_loop_that_issues_for_a_pair_is_lean() -> None:
    """70 instructions for four products, with up to twelve copies of scales, keep the promise; one CTA alone has 86."""
    def loop(others: int) -> sass.Profile:
        counts = {"UTCOMMA": 4, "UTCCP": 12, "UIADD3": others}
        return sass.Profile(Counter(counts), "kernel", (sass.Loop(Counter(counts), 0, 16),))

    assert not list(broken_promises("grouped_fp4", "100a", "m256n256k256", loop(54)))
    assert list(broken_promises("grouped_fp4", "100f", "m256n256k256", loop(55)))
    assert not list(broken_promises("grouped_fp4", "100a", "m256n128k256", loop(70)))


def test_103a_gains_nothing_over_its_family(built: Path, sample: list[Variant], artifacts: list[dict]) -> None:
    """Why the wheel has none of its kernels: none has a leaner main loop than 100a, or 2 % less instructions."""
    drawn = {(v.family, v.variant) for v in sample if v.arch == "103a"}

    def of(arch: str) -> dict[tuple[str, str], sass.Profile]:
        chosen = [a for a in artifacts if a["arch"] == arch and (a["family"], a["variant"]) in drawn]
        return {(a["family"], a["variant"]): profile
                for a, profile in zip(chosen, profiles(built, chosen), strict=True)}  # fmt: skip

    theirs, others = of("103a"), of("100a")
    assert drawn and set(theirs) == set(others) == drawn
    gains = [name for name in drawn if theirs[name].main_loop != others[name].main_loop
             or theirs[name].instructions < others[name].instructions * 0.98]  # fmt: skip
    assert gains == []


MODELLED = {"90a": "m16n256k256", "100a": "m128n128k256", "120a": "m128n128k128"}


@pytest.mark.parametrize("arch", MODELLED)
def test_the_performance_model_reads_shipped_kernels(built: Path, arch: str) -> None:
    """Of one of each generation it finds main loops, bytes and helping warps, and its time is not under the floors."""
    pack = registry.open_pack(str(built))
    [artifact] = [one for one in pack.manifest.artifacts if one.family == "grouped_fp4" and one.arch == arch
                  and one.variant == f"{MODELLED[arch]}_bf16"]  # fmt: skip
    found = kernel_facts.facts(pack.manifest.families["grouped_fp4"], artifact,
                               sass.profile(built / artifact.binary.file))  # fmt: skip
    assert found.row_bytes == (found.block[2] * 9 // 16,) * 2 and found.loops[-1][0] == found.block[0]
    assert (bool(found.job.issued), bool(found.chunk.issued)) == (arch == "90a", arch == "100a")
    chip = next(chip for chip in chips.CHIPS.values() if chip.arch[:-1] == arch[:-1])
    problem = model_terms.Problem((found.block[0],) * 8, 4096, 4096)
    flops, peak = 2 * sum(problem.counts) * 4096**2, {"90a": 4096, "100a": 32768, "120a": 4096}[arch]
    floors = (model_terms.memory_bytes(problem, found) / chip.dram.value / 1e6,
              flops / peak / chip.sms.value / chip.clock.value / 1e3)  # fmt: skip
    assert max(floors) < model_terms.predict(chip, found, problem).microseconds < 100


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
        "ptx": hashlib.sha256(lzma.decompress((built / artifact["ptx"]["file"]).read_bytes())).hexdigest(),
    } for artifact in artifacts}  # fmt: skip
    assert {label for label in digests if digests[label] != locked[label]} == set()
