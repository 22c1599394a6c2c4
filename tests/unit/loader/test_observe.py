"""Launches as callbacks see them: each one, before it happens, with what it is and why."""

import gc
import struct
import sys
import threading

import numpy as np
import pytest
import sample_pack
from device_buffers import FastTensor, Tensor
from own_process import run_with_pack
from sample_call import arguments
from test_composite import arguments as composite_arguments
from test_composite import write as write_composites
from test_emulated import FakeEmulator
from test_emulated import arguments as host_arguments

import loader
from loader import observe, select


@pytest.fixture
def seen(cuda):
    """The launches that were seen, each with how many the driver had then."""
    launches = []
    loader.on_launch(lambda launch: launches.append((launch, len(cuda.launches))))
    return launches


def test_a_launch_says_what_it_is(cuda, pack, seen):
    """Before it happens, with the parameter bytes that the driver then gets."""
    call = arguments()
    loader.launch("scale_rows", **call, stream=0)
    (launch, before), = seen
    queued, = cuda.launches
    assert before == 0 and launch == loader.Launch(
        "scale_rows", "m64_bf16", "120a", 0, (2, 1, 1), {"M": 96, "K": 64, "E": 3, "alpha": 2.5, "top": 4},
        "estimated", None, {
            "a": observe.Operand("e2m1x2", (96, 32), (32, 1), call["a"].pointer),
            "scale": observe.Operand("ue4m3", (3, 4), (4, 1), call["scale"].pointer),
            "offsets": observe.Operand("i32", (4,), (1,), call["offsets"].pointer),
            "out": observe.Operand("bf16", (96, 64), (64, 1), call["out"].pointer)}, 0, queued.parameters)
    assert queued.grid == launch.grid and queued.symbol == "scale_rows_m64_bf16"


@pytest.mark.parametrize("kind", [FastTensor, Tensor])
def test_every_launch_is_seen(cuda, pack, seen, kind):
    """The first one of a problem and later ones, with their own buffers and stream, also under capture."""
    loader.preload("scale_rows", device=0)
    cuda.streams, cuda.capturing = {0x5000: 0}, {0x5000}
    for stream in (0, 0, 0x5000):
        call = arguments(kind)
        loader.launch("scale_rows", **call, stream=stream)
        assert seen[-1][0].stream == stream and seen[-1][0].buffers["out"].pointer == call["out"].pointer
    assert [before for _, before in seen] == [0, 1, 2]
    assert [launch.parameters for launch, _ in seen] == [queued.parameters for queued in cuda.launches]


def test_plans_that_exist_are_seen(cuda, pack):
    """From the next launch on and until the callback is removed, with the buffers that are bound."""
    plan, launches = loader.plan("scale_rows", **arguments()), []
    plan.launch(0)
    remove = loader.on_launch(launches.append)
    plan.launch(0)
    out = FastTensor("bf16", (96, 64))
    plan.bind(out=out).launch(0)
    assert [launch.parameters for launch in launches] == [queued.parameters for queued in cuda.launches[1:]]
    assert launches[1].buffers["out"].pointer == out.pointer
    for _ in range(2):
        remove()
        plan.launch(0)
    assert len(launches) == 2 and len(cuda.launches) == 5


def test_plans_and_checks_are_no_launches(cuda, pack, seen):
    """Nor is what has nothing to compute."""
    loader.plan("scale_rows", **arguments())
    loader.explain("scale_rows", **arguments())
    loader.launch("scale_rows", **arguments(m=0))
    assert seen == [] and cuda.launches == []


def measured(m, device="Fake RTX"):
    return {"arch": "120a", "device": device, "features": {"M": m}, "microseconds": {"m16": 1.0, "m64": 2.0}}


@pytest.mark.parametrize(("rows", "variant", "reason", "chosen"), [
    ([], None, "estimated", "m64_bf16"), ([], "m16_bf16", "named", "m16_bf16"),
    ([measured(96), measured(90)], None, "measured", "m16_bf16"),
    ([measured(96)], "m64_bf16", "named", "m64_bf16"),
    ([measured(95)], None, "nearest", "m16_bf16"), ([measured(96, "Other")], None, "nearest", "m16_bf16"),
    ([measured(48)], None, "nearest", "m16_bf16"), ([measured(47)], None, "far", "m16_bf16"),
    ([measured(193), measured(1)], None, "far", "m16_bf16"), ([measured(10, "Other")], None, "far", "m16_bf16"),
    (None, None, "only", "m64_bf16"),
])
def test_the_reason_is_what_decided(cuda, tmp_path, seen, rows, variant, reason, chosen):
    """Measured: a row of the very problem and of a device of that name. Of others one is near up to twice a feature."""
    manifest, files = sample_pack.build()
    if rows is None:
        manifest["artifacts"] = [a | {"cost": None} for a in manifest["artifacts"] if a["variant"] == chosen]
    else:
        manifest["families"]["scale_rows"]["select"]["measured"] = rows
    sample_pack.write(tmp_path / "rows", manifest, files)
    loader.launch("scale_rows", packs=tmp_path / "rows", variant=variant, **arguments())
    assert (seen[0][0].reason, seen[0][0].variant) == (reason, chosen) and reason in select.REASONS


def test_each_kernel_of_a_composite_is_seen(cuda, tmp_path, monkeypatch, seen):
    """Before it is launched, with the composite's name; the same kernel's own call has none."""
    write_composites(tmp_path / "pack")
    monkeypatch.setenv("LOADER_ARTIFACTS", str(tmp_path / "pack"))
    call = composite_arguments()
    loader.launch("thrice", **call, kind="odd")
    plan = loader.plan("thrice", **call, workspace=FastTensor("u8", (256 + 11 * 128,)))
    plan.launch()
    loader.launch("scale_rows", **arguments())
    assert [before for _, before in seen] == list(range(len(cuda.launches)))
    assert [launch.parameters for launch, _ in seen] == [queued.parameters for queued in cuda.launches]
    assert [launch.composite for launch, _ in seen] == ["thrice"] * (len(seen) - 1) + [None] and len(seen) == 3 + 9 + 1
    assert [launch.problem["top"] for launch, _ in seen[:3]] == [2, 7, 8]
    assert {launch.problem["M"] for launch, _ in seen[3:-1]} == {8}


def test_words_are_words(cuda, tmp_path, seen):
    """A scalar with choices is said as the caller gave it; a buffer that is left out is none of the buffers."""
    manifest, files = sample_pack.build()
    family = manifest["families"]["scale_rows"]
    family["scalars"][1] |= {"choices": ["even", "odd"]}
    family["constraints"].pop()
    family["arguments"][2]["optional"] = True
    sample_pack.write(tmp_path / "words", manifest | {"schema": 4, "composites": {}}, files)
    loader.launch("scale_rows", packs=tmp_path / "words", **arguments(top="odd", offsets=None))
    assert seen[0][0].problem["top"] == "odd" and list(seen[0][0].buffers) == ["a", "scale", "out"]
    assert struct.unpack_from("<i", seen[0][0].parameters, 168)[0] == 1


@pytest.mark.parametrize("way", ["launch", "again", "plan"])
def test_what_a_callback_raises_stops_the_launch(cuda, pack, way):
    """The error is the caller's, later callbacks are not asked, and the next launch is as ever."""
    call, told = arguments(), []
    plan = loader.plan("scale_rows", **call)
    if way == "again":
        loader.launch("scale_rows", **call)
    before = len(cuda.launches)

    def refuse(launch):
        raise LookupError(launch.kernel)

    first, remove, last = map(loader.on_launch, (told.append, refuse, told.append))
    for _ in range(2):
        with pytest.raises(LookupError, match="scale_rows"):
            plan.launch() if way == "plan" else loader.launch("scale_rows", **call)
    assert len(cuda.launches) == before and len(told) == 2
    remove()
    plan.launch() if way == "plan" else loader.launch("scale_rows", **call)
    assert len(cuda.launches) == before + 1 and len(told) == 4
    first(), last()
    assert observe.watchers == []


def test_a_refusal_within_a_composite_gives_the_workspace_back(cuda, tmp_path):
    """Kernels before the refused one are queued, those behind it are not."""
    write_composites(tmp_path / "pack")

    def refuse(launch):
        if launch.problem["top"] == 7:
            raise LookupError

    loader.on_launch(refuse)
    with pytest.raises(LookupError):
        loader.launch("thrice", packs=tmp_path / "pack", **composite_arguments())
    assert len(cuda.launches) == 1 and len(cuda.freed) == len(cuda.pool) == 1


def test_a_callback_may_be_there_twice(cuda, pack):
    """Each registration is removed by its own function alone."""
    told = []
    one, other = loader.on_launch(told.append), loader.on_launch(told.append)
    loader.launch("scale_rows", **arguments())
    one(), one()
    loader.launch("scale_rows", **arguments())
    other()
    loader.launch("scale_rows", **arguments())
    assert len(told) == 3


def test_a_launch_that_is_kept_is_plain_data(cuda, pack, seen):
    """The kernel may be unloaded, and whoever changes what he got changes no other launch."""
    for _ in range(2):
        loader.launch("scale_rows", **arguments())
        launch = seen[-1][0]
        assert launch.problem["M"] == 96 and list(launch.buffers) == ["a", "scale", "offsets", "out"]
        launch.problem.clear()
        launch.buffers.clear()
    gc.collect()
    assert [outcome.held for outcome in loader.unload()] == [False] and len(seen) == 2


def test_callbacks_may_come_and_go_beside_launches(cuda, pack):
    """Every launch happens once, whoever watches meanwhile."""
    plans = [loader.plan("scale_rows", **arguments()) for _ in range(3)]
    threads = [threading.Thread(target=lambda plan=plan: [plan.launch(0) for _ in range(200)]) for plan in plans]
    cuda.streams = {}
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        loader.on_launch(lambda launch: None)()
    assert len(cuda.launches) == 600 and observe.watchers == []


@pytest.mark.filterwarnings("ignore:host buffers")
@pytest.mark.parametrize("planned", [False, True])
def test_emulated_launches_are_seen(pack, monkeypatch, planned):
    """Before the emulated device runs them, each time, and not where a callback raises."""
    fake, launches = FakeEmulator(), []
    monkeypatch.setitem(sys.modules, "emulator", fake)
    loader.on_launch(lambda launch: launches.append((launch, sum(len(device.launches) for device in fake.devices))))
    call = host_arguments()
    run = loader.plan("scale_rows", **call).launch if planned else lambda: loader.launch("scale_rows", **call)
    run(), run()
    assert [before for _, before in launches] == [0, 1]
    launch = launches[1][0]
    assert (launch.device, launch.stream, launch.arch, launch.reason) == (None, None, "120a", "estimated")
    assert launch.buffers["out"] == ("f32", (96, 64), (64, 1), call["out"].ctypes.data)
    assert launch.parameters == fake.devices[1].launches[0][6]
    loader.on_launch(lambda launch: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run()
    assert sum(len(device.launches) for device in fake.devices) == 2


def test_torch_ops_are_seen(cuda, pack, monkeypatch):
    """They are calls of ``loader.launch``, and so is what is registered of a pack."""
    torch = pytest.importorskip("torch")
    from integrations import ops

    monkeypatch.setattr(ops, "NAMESPACE", "block_scaled_seen")  # what is registered stays for other tests to find
    monkeypatch.setattr(ops, "_ops", {})
    ops.register([str(pack)])
    fake, launches = FakeEmulator(), []
    monkeypatch.setitem(sys.modules, "emulator", fake)
    loader.on_launch(launches.append)
    call = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in host_arguments().items()}
    with pytest.warns(RuntimeWarning, match="host buffers"):
        torch.ops.block_scaled_seen.scale_rows(*list(call.values())[:4], alpha=2.5, top=4)
    assert [launch.kernel for launch in launches] == ["scale_rows"]


def test_files_that_are_loaded_are_audited(tmp_path):
    """Manifest, binary and PTX, with the sha256 of their bytes; a hook that raises stops the load."""
    code = """
import hashlib
from loader import listing, registry
read = []
sys.addaudithook(lambda event, args: read.append(args) if event == registry.AUDIT_EVENT else None)
loader.launch("scale_rows", packs=pack, **arguments())
loader.launch("scale_rows", packs=pack, **arguments())
listing.ptx_text(registry.registry(pack).candidates("scale_rows")[0])
print(*[os.path.relpath(path, pack) for path, _ in read])
assert all(hashlib.sha256(open(path, "rb").read()).hexdigest() == digest for path, digest in read)

def refuse(event, args):
    if event == registry.AUDIT_EVENT:
        raise PermissionError(args[0])

sys.addaudithook(refuse)
try:
    loader.launch("scale_rows", packs=pack, **arguments(output="f32"))
except PermissionError as error:
    print(os.path.relpath(str(error), pack), len(fake.launches))
"""
    assert run_with_pack(tmp_path, code).split() == [
        "manifest.json", "scale_rows/sm_120a/m64_bf16.cubin", "scale_rows/sm_90a/m16_bf16.ptx.xz",
        "scale_rows/sm_120a/m64_f32.cubin", "2"]
