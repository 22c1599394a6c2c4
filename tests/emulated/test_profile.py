"""The profiler: its counts of accesses worked out by hand, its command line, and the recorded counts of kernels.

After a change to a kernel record them again and review the difference:
RECORD_COUNTS=1 python -m pytest tests/emulated/test_profile.py -k recorded
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path

import gemm_problem
import numpy as np
import ptx
import pytest

import emulator
import loader
from emulator.tools.command import aligned, main, profile_kernel
from emulator.tools.picture import svg
from emulator.tools.profile import (
    CountedCohort,
    CountedLaunch,
    CountedProgram,
    Profile,
    profile,
    report,
    sectors,
    wavefronts,
)
from loader.registry import registry

RECORD = Path(__file__).parent / "data" / "counts.json"
# Arch, variant, N of one tile. K = 512 goes round every ring of stages at least twice.
TILES = [
    ("90a", "m8n128k256_f16", 128),
    ("90a", "m128n256k256_f16", 256),
    ("100a", "m16n128k256_f16", 128),
    ("100a", "m128n128k256_f16", 128),
    ("120a", "m8n128k256_f16", 128),
    ("120a", "m128n128k128_f16", 128),
]
LANES = np.arange(32)[None]
ALL = np.ones((1, 32), bool)


@pytest.mark.parametrize(("arch", "variant", "n"), TILES)
def test_recorded_counts_of_shipped_kernels(
    arch: str, variant: str, n: int, packs: list[str] | None, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """Instructions, tensor-core work, shared and global traffic of one tile are those that were reviewed."""
    rows = int(variant[1:].partition("n")[0])
    assert_recorded(f"{arch}/{variant}", packs, monkeypatch, lambda seed: profile_kernel(
        "grouped_fp4", arch, variant, [rows], n, 512, "f16", seed, packs).counts())  # fmt: skip


# Of Blackwell's GEMMs whose rows come in any form, and of those of the other majors: arch, family, variant.
ANY_ROWS = [
    (arch, family, f"{tile}_f32")
    for fmt in ("bf16", "fp8_ue8m0")
    for family in (f"grouped_{fmt}", f"grouped_{fmt}_nn", f"gemm_{fmt}_tt", f"gemm_{fmt}_tn")
    for arch, tiles in (("100a", ("m16n128", "m128n128")), ("120a", ("m8n128", "m128n128")))
    for tile in (tiles if family.startswith("grouped") else tiles[1:])
]


@pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning")
@pytest.mark.parametrize(("arch", "family", "variant"), ANY_ROWS)
def test_recorded_counts_of_any_rows(
    arch: str, family: str, variant: str, packs: list[str] | None, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """The same of bf16, and of FP8 with packed scales."""
    rows = int(variant[1:].partition("n")[0])

    def run(seed: int) -> dict:
        schedule, fmt, letters, _ = gemm_problem.named(family)
        problem = gemm_problem.gemm_problem(np.random.default_rng(seed), fmt, [rows], 128, 512)
        placed, _ = (gemm_problem.by_offsets if schedule == "grouped" else gemm_problem.dense)(problem)
        out = aligned(np.zeros((len(placed["a"]), 128), np.float32))
        inputs = {name: aligned(value) for name, value in gemm_problem.in_majors(placed, letters).items()}
        with profile() as launches:
            loader.launch(family, **gemm_problem.buffers(inputs), out=out, variant=variant, device=f"emulated:{arch}",
                          packs=packs)  # fmt: skip
        return launches[0].counts()

    assert_recorded(f"{arch}/{family}/{variant}", packs, monkeypatch, run)


def of_schedules(first: dict, second: dict) -> dict:
    """The counts of both, and of each its own waits and shared requests: a warp that came apart at the start may wait
    for its first tile in two parts, as often as the schedule has it."""
    own = [{name: counts.pop(name) for name in ("waits", "shared")} for counts in (first, second)]
    assert first == second, "a count depends on the data or on the schedule"
    assert own[0]["shared"]["conflicts"] == own[1]["shared"]["conflicts"], "a conflict depends on the schedule"
    return first | {"schedules": own}


def assert_recorded(
    label: str, packs: list[str] | None, monkeypatch: pytest.MonkeyPatch, run: Callable[[int], dict]
) -> None:
    """What ``run`` counts with two seeds is what the record has, and equal but for what schedules make differ."""
    record = json.loads(RECORD.read_text())
    compiler = registry(packs).packs[0].manifest.toolchain["nvcc"]
    device, found = emulator.Device, []
    for seed in (1, 2):
        monkeypatch.setattr(emulator, "Device", functools.partial(device, seed=seed, lazy=seed == 1))
        found.append(run(seed))
    counts = of_schedules(*found)
    if os.environ.get("RECORD_COUNTS"):
        record["nvcc"] = compiler
        record["counts"][label] = counts
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        pytest.skip("recorded")
    if compiler != record["nvcc"]:
        pytest.skip(f"recorded with nvcc {record['nvcc']}, the pack is of {compiler}")
    assert counts == record["counts"][label]


# Arch, variant, N of one tile, rows that exist, and the products: of sm_90 by their number of tokens, of sm_120 of 8.
FEWER_ROWS = [
    ("90a", "m16n256k256_f16", 256, 5, {"m64n8k16": 128}),
    ("90a", "m128n256k256_f16", 256, 37, {"m64n64k16": 128}),
    ("90a", "m96n256k128_f16", 256, 70, {"m64n80k16": 128}),
    ("120a", "m128n128k128_f16", 128, 37, {"m16n8k64": 8 * 8 * 5}),
    ("120a", "m256n128k128_f16", 128, 129, {"m16n8k64": 8 * 8 * 17}),
]


@pytest.mark.parametrize(("arch", "variant", "n", "rows", "products"), FEWER_ROWS)
def test_rows_that_are_not_there_are_not_multiplied(
    arch: str, variant: str, n: int, rows: int, products: dict[str, int], packs: list[str] | None  # noqa: F811
) -> None:
    """As far as the generation has main loops for fewer; K = 512, of which every product takes all or a part."""
    tensor = profile_kernel("grouped_fp4", arch, variant, [rows], n, 512, "f16", 1, packs).counts()["tensor"]
    assert {re.search(r"m\d+n\d+k\d+", name)[0]: count for name, count in tensor.items()} == products


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        (4, 4, (1, 1)),
        (4, 8, (2, 1)),
        (4, 128, (32, 1)),
        (4, 132, (1, 1)),
        (4, 0, (1, 1)),
        (2, 2, (1, 1)),
        (8, 8, (2, 2)),
        (8, 16, (4, 2)),
        (16, 16, (4, 4)),
        (16, 144, (4, 4)),
        (16, 128, (32, 4)),
    ],
)
def test_wavefronts_of_strided_accesses(size: int, stride: int, expected: tuple[int, int]) -> None:
    """32 banks of 4 bytes; phases of 32, 16 or 8 lanes; equal words are moved once."""
    assert wavefronts(1024 + LANES * stride, ALL, size) == expected


def test_wavefronts_of_some_lanes() -> None:
    """Lanes that do not take part move nothing, and a phase without lanes takes nothing."""
    assert wavefronts(1024 + LANES * 128, LANES % 8 == 0, 4) == (4, 1)
    assert wavefronts(1024 + LANES * 16, LANES < 8, 16) == (1, 1)
    assert wavefronts(np.repeat(1024 + LANES * 128, 2, 0), np.array([[True] * 32, [False] * 32]), 4) == (32, 1)


def test_sectors() -> None:
    """Sectors of 32 bytes that a warp touches, and what its bytes take when packed."""
    base = np.uint64(1 << 20)
    address = LANES.astype(np.uint64)
    assert sectors(base + address * 4, ALL, 4) == (4, 4)
    assert sectors(base + 16 + address * 4, ALL, 4) == (5, 4)
    assert sectors(base + address * 64, ALL, 16) == (32, 16)
    assert sectors(base + address * 0, ALL, 4) == (1, 1)
    assert sectors(base + address * 64, LANES < 3, 4) == (3, 1)


CONFLICT = """
    mul.lo.u32 %r0, %tid, STRIDE;
    mov.u32 %r1, buffer;
    add.u32 %r1, %r1, %r0;
    st.shared.u32 [%r1], %tid;
    bar.sync 0;
    ld.shared.u32 %r2, [%r1];
    ld.param.u64 %out, [p0];
    mad.wide.u32 %out, %tid, 4, %out;
    st.global.u32 [%out], %r2;
"""


def profiled(body: str, threads: int, **options: int) -> Profile:
    out = aligned(np.zeros(1024, np.uint32))
    with profile() as launches:
        ptx.launch(ptx.module(body, shared=16384), [out], threads, **options)
    (found,) = launches
    return found


def test_a_kernel_with_bank_conflicts() -> None:
    """A stride of 32 bytes makes 8 lanes share a bank: 7 conflicts a warp and access, shown with their lines."""
    good, bad = (profiled(CONFLICT.replace("STRIDE", stride), 64) for stride in ("4", "32"))
    assert (good.total("shared").requests, good.total("shared").excess) == (4, 0)
    assert (bad.total("shared").requests, bad.total("shared").excess) == (4, 4 * 7)
    assert "Bank conflicts: 28" in report(bad) and "ld.shared.u32 %r2, [%r1]" in report(bad)
    assert good.counts()["global"] == {"requests": 2, "sectors": 8}


def test_vectors_of_a_row_each() -> None:
    """A lane stores 16 bytes to a sector of its own: half of what is moved is needed."""
    body = """
        ld.param.u64 %out, [p0];
        mad.wide.u32 %out, %tid, 32, %out;
        st.global.v4.u32 [%out], {%tid, %tid, %tid, %tid};
    """
    found = profiled(body, 32).total("global")
    assert (found.requests, found.moved, found.least) == (1, 32, 16)


@pytest.mark.parametrize(("shift", "moved"), [(32, 1), (7, 32)])
def test_atomics_on_shared_memory(shift: int, moved: int) -> None:
    """An atomic is an access: 32 lanes that add to one word move it once, to 32 words of a bank one after another."""
    body = f"""
        mov.u32 %r1, buffer;
        shl.b32 %r0, %tid, {shift};
        add.u32 %r1, %r1, %r0;
        mov.u32 %r2, 1;
        st.shared.u32 [%r1], %r2;
        bar.sync 0;
        red.shared.add.u32 [%r1], %r2;
    """
    (access,) = (a for a in profiled(body, 32).accesses.values() if a.text.startswith("red"))
    assert (access.space, access.requests, access.moved) == ("shared", 1, moved)


@pytest.mark.parametrize("kind", [CountedCohort, CountedLaunch, CountedProgram])
def test_a_name_means_one_thing(kind: type) -> None:
    """A method that a class defines anew takes what the one that it replaces takes, so that no two share a name."""
    seen: dict[str, list[str]] = {}
    for base in reversed(kind.__mro__[:-1]):
        for name, method in vars(base).items():
            if inspect.isfunction(method) and name != "__init__":
                parameters = list(inspect.signature(method).parameters)
                assert seen.setdefault(name, parameters) == parameters, f"{base.__name__}.{name}"


def test_instructions_of_roles() -> None:
    """A branch on the warp makes two roles; instructions of divergent lanes count once by thread."""
    body = """
        setp.lt.u32 %p0, %tid, 32;
        @%p0 bra FIRST;
        setp.lt.u32 %p1, %lane, 7;
        @%p1 bra FEW;
        add.u32 %r0, %r0, 1;
    FEW:
        SECOND
        bra END;
    FIRST:
        OTHER
    END:
    """.replace("SECOND", "mul.lo.u32 %r0, %r0, 3;" * 30).replace("OTHER", "xor.b32 %r0, %r0, 3;" * 30)
    for seed in range(4):
        roles = profiled(body, 96, seed=seed).roles()
        assert [role.warps for role in roles] == [[0], [1, 2]]
        assert roles[0].instructions["xor.b32"] == 30 and "mul.lo.u32" not in roles[0].instructions
        # Five instructions at the start, of which one loads %tid and one %laneid; ret; the last two are of 25 lanes.
        assert roles[0].threads == 32 * (4 + 30 + 1)
        assert roles[1].threads == 2 * (32 * (6 + 30 + 1 + 1) + 25)


def test_who_waits_for_what() -> None:
    """Warp 1 waits for the mbarrier at which warp 0 arrives after much work; the picture has a row for each."""
    body = """
        mov.u32 %r0, buffer;
        setp.ne.u32 %p0, %tid, 0;
        @!%p0 mbarrier.init.shared.b64 [%r0], 1;
        bar.sync 0;
        setp.ge.u32 %p1, %tid, 32;
        @%p1 bra WAIT;
        mov.u32 %r1, 0;
    LOOP:
        add.u32 %r1, %r1, 1;
        setp.lt.u32 %p2, %r1, 500;
        @%p2 bra LOOP;
        @!%p0 mbarrier.arrive.shared.b64 %d0, [%r0];
        bra END;
    WAIT:
        mbarrier.try_wait.parity.shared.b64 %p3, [%r0], 0;
        @!%p3 bra WAIT;
    END:
    """
    found = profiled(body, 64)
    ((what, (times, steps)),) = [item for item in found.blocked().items() if item[0].startswith("mbarrier")]
    assert what == "mbarrier 0x400" and times == 1 and steps > 400
    assert found.waits() == {"bar.sync": 2, "mbarrier.try_wait.parity.shared.b64": 1}
    sites = {state for *_, state in found.stays(((0, 0, 0), 1)) if not isinstance(state, str)}
    ((line, _),) = [site for site in sites if "mbarrier 0x400" in site[1]]
    text = ptx.module(body, shared=16384).splitlines()
    assert "mbarrier.try_wait" in text[line - 1]
    ran = [sum(end - step for step, end, state in found.stays(((0, 0, 0), w)) if state == "runs") for w in (0, 1)]
    assert ran[0] > 400 > 20 > ran[1] > 0
    picture = xml.fromstring(svg(found))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"warp 0", "warp 1", "waits for mbarrier 0x400"} <= set(texts) and "warp 2" not in texts
    with pytest.raises(ValueError, match="did not run"):
        svg(found, (5, 0, 0))


ADD = """
    ld.param.u32 %r0, [p1];
    ld.param.f32 %r1, [p2];
    ld.param.u64 %in0, [p0];
    mad.wide.u32 %in0, %tid, 4, %in0;
    ld.global.f32 %r2, [%in0];
    cvt.rn.f32.u32 %r3, %r0;
    fma.rn.f32 %r2, %r2, %r3, %r1;
    ld.param.u64 %out, [p3];
    mad.wide.u32 %out, %tid, 4, %out;
    st.global.f32 [%out], %r2;
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    text = ptx.module(ADD, 4).replace(".param .u64 p1", ".param .u32 p1").replace(".param .u64 p2", ".param .f32 p2")
    (tmp_path / "add.ptx").write_text(text)
    np.save(tmp_path / "a.npy", np.arange(64, dtype=np.float32))
    return tmp_path


def test_run_with_raw_arguments(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers and .npy buffers go in, results come out, and counts are printed."""
    buffers = [f"in:{file / 'a.npy'}", "u32:3", "f32:0.5", f"out:{file / 'out.npy'}:f32:8,8"]
    picture = str(file / "p.svg")
    assert main(["run", str(file / "add.ptx"), *buffers, "--block", "64", "--json", "--picture", picture]) == 0
    assert (np.load(file / "out.npy") == np.arange(64).reshape(8, 8) * 3 + 0.5).all()
    assert json.loads(capsys.readouterr().out)["global"] == {"requests": 4, "sectors": 16}
    assert xml.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "at:1"}, "UsageError: argument 'at:1': 'at' is none of"),
        ({0: "in:missing.npy"}, "UsageError: argument 'in:missing.npy': "),
        ({1: "u32:-1"}, "UsageError: argument 'u32:-1': "),
        ({1: "u64:3"}, "UsageError: argument 1 has 8 bytes, the parameter 4"),
        ({2: None}, "UsageError: kernel has 4 parameters, got 3 arguments"),
        ({3: "in:{a}"}, "write to argument 3, which is read-only"),
    ],
)
def test_wrong_arguments(
    file: Path, capsys: pytest.CaptureFixture[str], change: dict[int, str | None], message: str
) -> None:
    """What is wrong is said on stderr, with exit status 2."""
    arguments: list[str | None] = [f"in:{file / 'a.npy'}", "u32:3", "f32:0.5", f"out:{file / 'out.npy'}:f32:64"]
    for position, text in change.items():
        arguments[position] = text and text.format(a=file / "a.npy")
    assert main(["run", str(file / "add.ptx"), *[text for text in arguments if text], "--block", "64"]) == 2
    assert message in capsys.readouterr().err


def test_run_without_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault names its check, and the command leaves out that one."""
    read = "mov.u32 %r50, buffer; ld.shared.b32 %r0, [%r50];"
    (tmp_path / "read.ptx").write_text(ptx.module(read, 0, shared=64))
    command = ["run", str(tmp_path / "read.ptx")]
    assert main([*command, "--without", "lanes"]) == 2
    assert "check unwritten]" in capsys.readouterr().err
    assert main([*command, "--without", "lanes", "--without", "unwritten"]) == 0


@pytest.mark.parametrize("arch", ["90a", "100a", "120a"])
def test_profile_of_a_shipped_kernel(
    arch: str, packs: list[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """`profile grouped_fp4 --arch ARCH` prints every table and writes the picture."""
    picture = tmp_path / "pipeline.svg"
    given = [part for directory in packs or [] for part in ("--packs", directory)]
    assert main(["profile", "grouped_fp4", "--arch", arch, "--counts", "9,40", "--picture", str(picture), *given]) == 0
    text = capsys.readouterr().out
    for title in ("Roles", "Tensor cores", "Waits", "Had to wait for", "Memory", "Bulk and tensor", "Bank conflicts"):
        assert title in text
    assert len(list(xml.parse(picture).iter())) > 50


def test_unprofiled_launches_are_not_counted() -> None:
    """Outside `profile()` nothing is collected, and two launches inside it are two profiles."""
    body = CONFLICT.replace("STRIDE", "4")
    with profile() as launches:
        pass
    ptx.launch(ptx.module(body, shared=16384), [np.zeros(1024, np.uint32)], 32)
    assert launches == []
    with profile() as launches:
        for _ in range(2):
            ptx.launch(ptx.module(body, shared=16384), [np.zeros(1024, np.uint32)], 32)
    assert [found.total("shared").requests for found in launches] == [2, 2]
