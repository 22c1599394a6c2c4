"""The kernels that bring scales into the layouts of GEMMs, on the emulated device: each byte."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scale_layouts
from raw_buffer import RawBuffer
from scale_layouts import AWKWARD, Case

import loader
from emulator.tools.command import aligned
from emulator.tools.profile import profile

ARCHS = ("90a", "100a", "120a")

pytestmark = [
    pytest.mark.filterwarnings("ignore:host buffers run on the emulated:RuntimeWarning"),
    pytest.mark.usefixtures("few_multiprocessors"),
]
every_arch = pytest.mark.parametrize("arch", ARCHS)
Run = Callable[[str, Case], np.ndarray]


@pytest.fixture
def launch(packs: list[str] | None, reschedule: Callable[[], str]) -> Run:
    """The output of a case under a fresh schedule. The emulator refuses accesses beyond a buffer."""

    def run(arch: str, case: Case) -> np.ndarray:
        reschedule()
        out = aligned(case.output())
        inputs = {name: RawBuffer.of(array) for name, array in case.inputs.items()}
        loader.launch(case.family, **inputs, out=RawBuffer.of(out), **case.scalars, device=f"emulated:{arch}",
                      packs=packs)  # fmt: skip
        return out

    return run


@pytest.fixture
def run(launch: Run) -> Callable[[str, Case], None]:
    return lambda arch, case: case.verify(launch(arch, case), arch)


@every_arch
@pytest.mark.parametrize("family", AWKWARD)
def test_awkward_shapes(arch: str, family: str, run: Run, rng: np.random.Generator) -> None:
    """Tails of everything; empty groups; scales without an exponent are NaN, and change no other byte."""
    for _ in range(2):
        run(arch, AWKWARD[family](rng))


@every_arch
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 4), (3, 2, 33), (1, 129, 3), (2, 64, 32)], ids=str)
def test_shapes(arch: str, shape: tuple[int, int, int], run: Run, rng: np.random.Generator) -> None:
    """One scale, a column that needs no padding, fewer and more than a tile, whole tiles."""
    batches, m, c = shape
    run(arch, scale_layouts.mn_major(rng, *shape))
    run(arch, scale_layouts.packed(rng, *shape))
    run(arch, scale_layouts.packed(rng, *shape, row_block=128))
    run(arch, scale_layouts.packed_along_k(rng, m, None, given=c))
    run(arch, scale_layouts.packed_along_k(rng, m, [32 * c] * batches, scale_k=32))


@every_arch
def test_most_groups(arch: str, run: Run, rng: np.random.Generator) -> None:
    """1024 along K, most of them empty; all of K in one; K that is no multiple of a scale's."""
    ks = np.where(rng.random(1024) < 0.02, rng.integers(1, 700, 1024), 0)
    run(arch, scale_layouts.packed_along_k(rng, 5, ks.tolist(), scale_k=32))
    run(arch, scale_layouts.packed_along_k(rng, 5, [0, 1300, 0, 0]))


@every_arch
def test_groups_that_do_not_fit(arch: str, launch: Run, rng: np.random.Generator) -> None:
    """No GPU call looks at group_k: where it is not what sf and out are, nothing else is read or written."""
    for ks in ([1 << 30] * 3, [-5, 128, 1 << 30], [640, 640, 640], [-(1 << 31), (1 << 31) - 1, 0]):
        case = scale_layouts.packed_along_k(rng, 6, [128, 512, 128])
        case.inputs["group_k"][:] = ks
        out = launch(arch, case)
        assert not (out[:, 6:] != 0).any()


@every_arch
def test_a_scale_without_an_exponent(arch: str, launch: Run) -> None:
    """DeepGEMM#337: fractions leaked into other bytes. Here each is NaN, 0xFF; 0 is 0, and the largest and the smallest
    power are theirs."""
    bits = np.array([*scale_layouts.NO_POWERS, 0, 0x7F000000, 0x00800000], np.uint32)
    codes = [*[0xFF] * len(scale_layouts.NO_POWERS), 0, 254, 1]
    sf = bits.view(np.float32)
    for family, given, scalars in (("scales_pack_ue8m0", sf[None, None], {"M": 1}),
                                   ("scales_pack_ue8m0_along_k", sf[:, None], {})):  # fmt: skip
        packed = scale_layouts.words(np.array(codes, np.uint32)[:, None])
        lead = (None,) * (given.ndim - 2)
        launched = Case(family, {"sf": np.ascontiguousarray(given)}, scale_layouts.padded(packed)[lead], scalars)
        launched.verify(launch(arch, launched), arch)


@pytest.mark.parametrize("family", AWKWARD)
def test_no_scales_write_nothing(family: str, launch: Run, rng: np.random.Generator) -> None:
    """Neither rows nor columns."""
    for m, c in ((0, 3), (3, 0)):
        case = {
            "scales_mn_major": lambda m, c: scale_layouts.mn_major(rng, 2, m, c),
            "scales_pack_ue8m0": lambda m, c: scale_layouts.packed(rng, 2, m, c),
            "scales_pack_ue8m0_along_k": lambda m, c: scale_layouts.packed_along_k(rng, m, None, given=c),
        }[family](m, c)
        case.verify(launch("90a", case))


@every_arch
@pytest.mark.parametrize("family", AWKWARD)
def test_accesses_are_whole(arch: str, family: str, launch: Run, rng: np.random.Generator) -> None:
    """Without bank conflicts, and no sector of global memory more than the words need."""
    case = {
        "scales_mn_major": lambda: scale_layouts.mn_major(rng, 1, 128, 64),
        "scales_pack_ue8m0": lambda: scale_layouts.packed(rng, 1, 128, 64),
        "scales_pack_ue8m0_along_k": lambda: scale_layouts.packed_along_k(rng, 128, None, given=12),
    }[family]()
    case.inputs["sf"] = aligned(case.inputs["sf"])
    with profile() as launches:
        launch(arch, case)
    counts = launches[0].counts()
    assert counts["shared"]["requests"] and counts["shared"]["conflicts"] == 0
    assert counts["global"]["sectors"] == (case.inputs["sf"].nbytes + case.expected.nbytes) // 32


def test_refusals(packs: list[str] | None) -> None:
    """Shapes that do not fit each other."""
    sf, out = np.ones((1, 3, 5), np.float32), np.empty((1, 2, 4), np.int32)
    for scalars, message in (({"M": 4}, "sf"), ({"M": 3, "row_block": 2}, "sf"),
                             ({"M": 3, "row_block": 0}, "row_block"), ({"M": 5, "row_block": 2}, "out")):  # fmt: skip
        with pytest.raises(loader.LoaderError, match=message):
            loader.launch("scales_pack_ue8m0", sf=sf, out=out, **scalars, packs=packs)
    with pytest.raises(loader.LoaderError, match="sizeof_group_k != 0 or W == ceil_div"):
        loader.launch("scales_pack_ue8m0_along_k", sf=sf[0], out=np.empty((2, 8), np.int32), packs=packs)
