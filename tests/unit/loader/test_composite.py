"""Composites: one call that runs several kernels over one workspace, and words as scalars."""

import contextlib
import copy
import struct

import pytest
import sample_pack
from device_buffers import FastTensor
from fake_cuda import tensor_map

import loader
from loader.call import Call


def composite():
    """``scale_rows`` of ``scale_rows``: a scratch buffer is written, then read as packed FP4."""
    shape = ["M", ["/", "K", 2]]
    return {
        "summary": "scales twice",
        "arguments": [
            {"name": "x", "direction": "in", "dtypes": ["e2m1x2"], "shape": shape, "alignment": 16, "doc": "rows"},
            {"name": "scale", "direction": "in", "dtypes": ["ue4m3"], "shape": ["R", ["/", "K", 16]],
             "alignment": 4, "doc": "scales"},
            {"name": "offsets", "direction": "in", "dtypes": ["i32"], "shape": [["+", "E", 1]], "alignment": 4,
             "doc": "offsets"},
            {"name": "first", "direction": "out", "dtypes": ["bf16", "f32"], "shape": ["M", "K"], "alignment": 16,
             "doc": "result of the first step"},
            {"name": "second", "direction": "out", "dtypes": ["bf16"], "shape": ["M", "K"], "alignment": 16,
             "doc": "result of the second step"},
        ],
        "scalars": [{"name": "kind", "dtype": "i32", "choices": ["plain", "odd"], "default": "plain", "doc": "what"},
                    {"name": "alpha", "dtype": "f32", "doc": "factor"}],
        "constraints": [{"text": "K % 32 == 0", "expression": ["==", ["%", "K", 32], 0]}],
        "skip": ["==", "M", 0],
        "split": "M",
        "workspace": [{"name": "unused", "dtype": "first", "shape": ["E"]},
                      {"name": "between", "dtype": "bf16", "shape": ["M", "K"]}],
        "steps": [
            {"kernel": "scale_rows", "scalars": {"alpha": "alpha", "top": ["+", "kind", 1]},
             "arguments": {"a": "x", "scale": "scale", "offsets": "offsets", "out": "first"}},
            {"kernel": "scale_rows", "scalars": {"alpha": 1.0, "top": 7},
             "arguments": {"a": "x", "scale": "scale", "offsets": "offsets", "out": "between"}},
            {"kernel": "scale_rows", "scalars": {"alpha": 1.0, "top": 8},
             "arguments": {"a": "x", "scale": "scale", "offsets": "offsets", "out": "second"}},
        ],
    }


def write(directory, change=lambda manifest: None):
    manifest, files = sample_pack.build()
    manifest |= {"schema": 2, "composites": {"thrice": composite()}}
    change(manifest)
    sample_pack.write(directory, manifest, files)


@pytest.fixture(autouse=True)
def composite_pack(tmp_path, monkeypatch):
    write(tmp_path / "pack")
    monkeypatch.setenv("LOADER_ARTIFACTS", str(tmp_path / "pack"))


def arguments(m=24, k=64, e=3, device=(2, 0), **replaced):
    call = {
        "x": FastTensor("fp4x2", (m, k // 2), device=device),
        "scale": FastTensor("e4m3", (-(-m // 32), k // 16), device=device),
        "offsets": FastTensor("i32", (e + 1,), device=device),
        "first": FastTensor("f32", (m, k), device=device),
        "second": FastTensor("bf16", (m, k), device=device),
        "alpha": 2.5,
    }
    return {name: value for name, value in {**call, **replaced}.items() if value is not None}


def parameters(call, out, top, alpha, first=0, count=24, k=64):
    """Of one step over ``count`` rows from ``first``, in the tile that is chosen for so many."""
    box = (16, 64 if count > 16 else 16)
    return tensor_map(call["x"].pointer + first * k // 2, 0, (k // 2, count), (k // 2,), box, 1, 2) + struct.pack(
        "<QQQifqi", call["scale"].pointer, call["offsets"].pointer, out, count, alpha, k, top)


def test_steps_run_in_order_over_memory_of_the_pool(cuda):
    """Without a workspace: allocated and freed in the order of the stream; each buffer of it begins at 256 bytes."""
    call = arguments()
    loader.launch("thrice", **call, kind="odd", stream=0)
    (device, stream, address, size), = cuda.pool
    assert (device, stream, size, cuda.freed) == (0, 0, 256 + 24 * 64 * 2, [(address, 0)])
    assert [launch.parameters for launch in cuda.launches] == [
        parameters(call, call["first"].pointer, 2, 2.5), parameters(call, address + 256, 7, 1.0),
        parameters(call, call["second"].pointer, 8, 1.0)]


def test_a_default_word_is_taken(cuda):
    """A scalar with choices that is left out."""
    call = arguments()
    loader.launch("thrice", **call)
    assert cuda.launches[0].parameters == parameters(call, call["first"].pointer, 1, 2.5)


def test_later_calls_use_the_addresses_given_then(cuda):
    """Nothing of an earlier call's addresses is left, nor of its workspace's."""
    call = arguments()
    for kind in ("odd", "plain", "odd"):
        call["first"] = FastTensor("f32", (24, 64))
        loader.launch("thrice", **call, kind=kind)
        assert cuda.launches[-3].parameters == parameters(call, call["first"].pointer, 1 + (kind == "odd"), 2.5)
        assert cuda.launches[-2].parameters == parameters(call, cuda.pool[-1][2] + 256, 7, 1.0)
    assert len(cuda.pool) == len(cuda.freed) == 3


@pytest.fixture
def prepared(monkeypatch):
    """Names of composites whose call was prepared and of kernels that were selected for one, in order."""
    names = []
    for method in ("prepare", "resolve"):
        original = getattr(Call, method)

        def counted(self, *arguments, original=original):
            names.append(self.family.name)
            return original(self, *arguments)

        monkeypatch.setattr(Call, method, counted)
    return names


@pytest.mark.parametrize("workspace", [None, 3328, 256 + 11 * 128], ids=["pool", "whole", "chunks"])
def test_a_problem_is_prepared_once(cuda, prepared, workspace):
    """Later calls find it, also after another problem, and launch what a call that prepares launches."""
    given = {} if workspace is None else {"workspace": FastTensor("u8", (workspace,))}
    call, other = arguments(scale=FastTensor("e4m3", (1, 4))), arguments(m=8)
    for each in (call, other):
        loader.launch("thrice", **each, **given)
    seen = list(prepared)
    steps = len(cuda.launches)
    for each in (call, other, call | {"kind": "plain"}):
        loader.launch("thrice", **each, **given)
    assert seen.count("thrice") == 2 and prepared == seen
    loader.launch("thrice", **call, kind="odd", **given)
    assert prepared.count("thrice") == 3
    pool = [address for _, _, address, _ in cuda.pool]
    assert len(pool) == len(cuda.freed) == (0 if given else 6)
    first, again = cuda.launches[:steps], cuda.launches[steps:2 * steps]
    if given:
        assert again == first
    else:
        assert [launch.parameters for launch in again[:3]] == [
            parameters(call, call["first"].pointer, 1, 2.5), parameters(call, pool[2] + 256, 7, 1.0),
            parameters(call, call["second"].pointer, 8, 1.0)]


def test_a_problem_with_no_rows_is_prepared_once(cuda, prepared):
    """Later calls find that there is nothing to compute."""
    call = arguments(m=0, scale=FastTensor("e4m3", (0, 4)))
    for _ in range(3):
        loader.launch("thrice", **call)
    assert prepared == ["thrice"] and cuda.launches == []


def test_a_known_problem_is_captured(cuda, prepared):
    """Its workspace comes from the pool on the stream that is captured, and is given back there."""
    call = arguments()
    loader.launch("thrice", **call)
    seen = list(prepared)
    cuda.capturing, cuda.streams = {0x5000}, {0x5000: 0}
    loader.launch("thrice", **call, stream=0x5000)
    assert prepared == seen and [launch.stream for launch in cuda.launches] == [0] * 3 + [0x5000] * 3
    assert (cuda.pool[1][1], cuda.freed[1]) == (0x5000, (cuda.pool[1][2], 0x5000))


def test_addresses_that_changed_are_checked_anew(cuda):
    """After a correct call, and again after one that was refused."""
    call = arguments()
    loader.launch("thrice", **call)
    call["first"].pointer += 8
    for _ in range(2):
        with pytest.raises(loader.AlignmentError, match="first must start at a multiple of 16"):
            loader.launch("thrice", **call)
    assert len(cuda.launches) == 3


@pytest.mark.parametrize("rows", [24, 12, 11, 8, 5, 1])
def test_a_small_workspace_splits_the_call(cuda, rows):
    """Equal chunks of as many rows as fit, each at its own part of the arguments; nothing is allocated."""
    workspace = FastTensor("u8", (256 + -(-rows * 128 // 256) * 256,))
    call = arguments(scale=FastTensor("e4m3", (1, 4)))
    loader.launch("thrice", **call, workspace=workspace)
    fitting = max(count for count in range(1, 25) if -(-count * 128 // 256) <= -(-rows * 128 // 256))
    size = -(-24 // -(-24 // fitting))
    expected = []
    for first in range(0, 24, size):
        count = min(size, 24 - first)
        expected += [parameters(call, call["first"].pointer + first * 256, 1, 2.5, first, count),
                     parameters(call, workspace.pointer + 256, 7, 1.0, first, count),
                     parameters(call, call["second"].pointer + first * 128, 8, 1.0, first, count)]
    assert [launch.parameters for launch in cuda.launches] == expected
    assert cuda.pool == []


def test_a_workspace_for_less_than_one_row(cuda):
    """Says how much is needed, for the whole and at least."""
    with pytest.raises(loader.ShapeError, match=r"thrice: workspace expects 3328 bytes, or at least 512 to go "
                                                r"through M = 24 in chunks, got 511"):
        loader.launch("thrice", **arguments(), workspace=FastTensor("u8", (511,)))
    assert cuda.launches == []


def test_workspace_bytes(cuda):
    """By dimensions and dtypes, or by buffers; what it says is enough for one pass."""
    assert loader.workspace_bytes("thrice", M=24, K=64, E=3, R=1, alpha=1.0, first="f32") == 3328
    assert loader.workspace_bytes("thrice", **arguments(e=300)) == 1280 + 3072
    assert loader.workspace_bytes("thrice", **arguments(e=300, first=FastTensor("bf16", (24, 64)))) == 768 + 3072
    loader.launch("thrice", **arguments(), workspace=FastTensor("u8", (3328,)))
    assert len(cuda.launches) == 3
    with pytest.raises(loader.UnknownKernelError, match="scale_rows is one kernel and takes no workspace"):
        loader.workspace_bytes("scale_rows", M=24, K=64, E=3, top=1)


def test_a_plan_launches_all_steps_again(cuda):
    """Also with a buffer bound anew; ``steps`` names the kernels."""
    call = arguments()
    plan = loader.plan("thrice", **call, workspace=FastTensor("u8", (3328,)))
    assert cuda.launches == [] and plan.kernel == "thrice" and plan.variant is None and plan.arch == "120a"
    assert plan.steps == ("scale_rows/m64_f32", "scale_rows/m64_bf16", "scale_rows/m64_bf16")
    call["first"] = FastTensor("f32", (24, 64))
    plan.bind(first=call["first"]).launch()
    plan.launch()
    assert cuda.launches[0].parameters == parameters(call, call["first"].pointer, 1, 2.5)
    assert cuda.launches[:3] == cuda.launches[3:]


def test_no_rows_launch_nothing(cuda):
    """Where the composite's ``skip`` holds."""
    loader.launch("thrice", **arguments(m=0, scale=FastTensor("e4m3", (0, 4))))
    loader.plan("thrice", **arguments(m=0, scale=FastTensor("e4m3", (0, 4)))).launch()
    assert cuda.launches == cuda.pool == []


def test_preload_loads_the_kernels_of_the_steps(cuda):
    """Each once; a launch under capture then loads nothing."""
    loaded = loader.preload("thrice", device=0)
    assert {entry.kernel for entry in loaded} == {"scale_rows"} and len(loaded) == 4
    cuda.capturing, cuda.streams = {0x5000}, {0x5000: 0}
    loader.launch("thrice", **arguments(), stream=0x5000)
    assert len(cuda.launches) == 3 and cuda.pool[0][1] == 0x5000


def test_capture_without_preload_is_refused(cuda):
    """Before anything was launched or allocated."""
    cuda.capturing, cuda.streams = {0x5000}, {0x5000: 0}
    with pytest.raises(loader.CaptureError):
        loader.launch("thrice", **arguments(), stream=0x5000)
    assert cuda.launches == cuda.pool == []


def test_explain_names_the_candidates_of_every_step(cuda):
    """As ``kernel/variant``; what was chosen is what a launch runs."""
    explanation = loader.explain("thrice", **arguments())
    chosen = [decision.variant for decision in explanation.decisions if decision.accepted]
    assert explanation.variant == ", ".join(chosen) == ", ".join(loader.plan("thrice", **arguments()).steps)
    there = loader.explain("thrice", M=24, K=64, E=3, R=1, alpha=1.0, kind="odd", first="f32", device="90a")
    assert there.arch == "90a" and len(there.decisions) == 48
    assert loader.explain("thrice", M=24, K=64, E=3, R=1, alpha=1.0, device="103a").variant is None


def test_explain_of_nothing_to_compute(cuda, tmp_path):
    """Says so, as a launch returns, though a step would refuse the problem."""
    def change(manifest):
        manifest["families"]["scale_rows"]["constraints"].append({"text": "M >= 1", "expression": [">=", "M", 1]})

    write(tmp_path, change)
    loader.launch("thrice", packs=str(tmp_path), **arguments(m=0))
    explanation = loader.explain("thrice", packs=str(tmp_path), M=0, K=64, E=3, R=0, alpha=1.0)
    assert (explanation.variant, explanation.skipped, cuda.launches) == (None, "M == 0", [])


def test_kernels_lists_composites(cuda):
    """With their signature, and no variants."""
    info = loader.kernels()["thrice"]
    assert info.variants == () and info.archs == ("90a", "100a", "120a", "120f")
    assert info.signature.endswith("kind: plain|odd = plain, alpha: f32)")


WRONG = {
    "unknown argument": ({"third": 1}, loader.UnknownArgumentError, "thrice has no argument 'third'"),
    "missing argument": ({"second": None}, loader.MissingArgumentError, "thrice: missing second"),
    "unknown word": ({"kind": "even"}, loader.ScalarError, "thrice: kind expects 'plain' or 'odd', got 'even'"),
    "index for a word": ({"kind": 1}, loader.ScalarError, "thrice: kind expects 'plain' or 'odd', got 1"),
    "constraint": ({"x": FastTensor("fp4x2", (24, 8)), "scale": FastTensor("e4m3", (1, 1)),
                    "first": FastTensor("f32", (24, 16)), "second": FastTensor("bf16", (24, 16))},
                   loader.ConstraintError, "K % 32 == 0 does not hold"),
    "shape that only a step knows": ({"scale": FastTensor("e4m3", (2, 4))}, loader.ShapeError,
                                     "scale_rows: scale dimension 0"),
    "workspace on another device": ({"workspace": FastTensor("u8", (4096,), device=(2, 1))}, loader.DeviceError,
                                    "workspace is on cuda:1"),
    "workspace of floats": ({"workspace": FastTensor("f32", (4096,))}, loader.DtypeError, "workspace expects u8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_launch_nothing(cuda, case):
    """Also right after a correct call."""
    replaced, error, words = WRONG[case]
    for _ in range(2):
        with pytest.raises(error) as raised:
            loader.launch("thrice", **arguments(**replaced))
        assert words in str(raised.value)
        assert len(cuda.launches) in (0, 3)
        loader.launch("thrice", **arguments())
        cuda.launches.clear()


def test_a_workspace_that_overlaps_an_argument(cuda):
    """It is written, so its memory is its own."""
    call = arguments()
    with pytest.raises(loader.OverlapError, match="first is written and shares memory with workspace"):
        loader.launch("thrice", **call, workspace=FastTensor("u8", (8192,), pointer=call["first"].pointer - 256))


def test_a_composite_has_no_variants(cuda):
    """Naming one is an error, not ignored."""
    with pytest.raises(loader.UnknownVariantError, match="thrice runs several kernels and has no variants, got 'm16'"):
        loader.launch("thrice", **arguments(), variant="m16")


def test_a_check_reads_what_the_call_gives_to_a_step(cuda, tmp_path):
    """A rule of a step about a buffer of the call is one of the call; a launch from a device reads nothing."""
    def rule(manifest):
        manifest["schema"] = 4
        manifest["families"]["scale_rows"]["values"] = [
            {"argument": "offsets", "minimum": 0, "maximum": "M", "multiple": 1, "ascending": True}]

    write(tmp_path / "ruled", rule)
    call, packs = arguments(), [str(tmp_path / "ruled")]
    for offsets, wrong in (((0, 5, 5, 24), ""), ((0, 5, 5, 25), "entry 3 of offsets is 25, expected 0 to 24")):
        cuda.memory[call["offsets"].pointer] = struct.pack("<4i", *offsets)
        with pytest.raises(loader.ValuesError, match=wrong) if wrong else contextlib.nullcontext():
            loader.check("thrice", **call, packs=packs)
    assert cuda.launches == []
    cuda.calls.clear()
    loader.launch("thrice", **call, packs=packs)
    assert "cuMemcpyDtoHAsync_v2" not in cuda.calls and len(cuda.launches) == 3


DAMAGE = {
    "unknown kernel": (("steps", 0, "kernel"), "scale_columns"),
    "unknown buffer": (("steps", 0, "arguments", "out"), "elsewhere"),
    "argument missing": (("steps", 0, "arguments"), {"a": "x"}),
    "scalar of unknown names": (("steps", 0, "scalars", "top"), "bottom"),
    "unknown split": (("split",), "T"),
    "split inside a shape": (("split",), "K"),
    "workspace without a dtype": (("workspace", 0, "dtype"), "fp5"),
    "workspace twice": (("workspace", 0, "name"), "between"),
    "workspace named as an argument": (("workspace", 0, "name"), "x"),
    "unknown key": (("colour",), "red"),
    "unknown key of a buffer": (("workspace", 0, "colour"), "red"),
    "unknown key of a step": (("steps", 0, "colour"), "red"),
    "steps that are no list": (("steps",), 1),
    "choices that are no words": (("scalars", 0, "choices"), [1, 2]),
    "choices twice": (("scalars", 0, "choices"), ["plain", "plain"]),
    "default that is no choice": (("scalars", 0, "default"), "even"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_composites(cuda, tmp_path, case):
    """Each is an error of the manifest before anything is loaded."""
    path, value = DAMAGE[case]

    def damage(manifest):
        place = manifest["composites"]["thrice"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = copy.deepcopy(value)

    write(tmp_path / "damaged", damage)
    with pytest.raises(loader.PackError) as raised:
        loader.launch("thrice", **arguments(), packs=[str(tmp_path / "damaged")])
    assert "composites" in str(raised.value) and cuda.launches == []
