"""How long kernels stay in the driver, and packs in memory."""

import os
import sys
import threading
import time
from ctypes import CFUNCTYPE, c_int

import pytest
import sample_pack
from device_buffers import FastTensor
from own_process import run_with_pack
from sample_call import arguments
from test_composite import arguments as composite_arguments
from test_composite import write as write_composite

import loader
from loader import api, registry


def loads(cuda):
    return cuda.calls.count("cuLibraryLoadData")


def test_a_launch_after_unload_loads_anew(cuda, pack):
    """One library in the driver while a kernel is used, none behind ``unload``, and one again for the same problem."""
    call = arguments()
    for times in (1, 2, 3):
        loader.launch("scale_rows", **call)
        loader.launch("scale_rows", **call)
        assert (loads(cuda), len(cuda.libraries), len(cuda.launches)) == (times, 1, 2 * times)
        unloaded, = loader.unload()
        assert not cuda.libraries
        assert unloaded == ("scale_rows/m64_bf16", str(pack), "scale_rows/sm_120a/m64_bf16.cubin", unloaded.size, False)
        assert unloaded.size == (pack / unloaded.file).stat().st_size


def test_all_handles_are_returned(cuda, pack):
    """Of every kernel on every device; the driver is as it was before anything was loaded, and has waited."""
    before = dict(cuda._handles)
    loader.preload(device=[0, 1, 2])
    loader.launch("scale_rows", **arguments())
    assert len(cuda.libraries) == 8  # four for sm_90, four for both sm_120
    assert len(loader.unload()) == 8
    assert cuda._handles == before and not cuda.libraries and not cuda.stack
    assert {"cuCtxSynchronize", "cuLibraryUnload"} <= set(cuda.calls)


def test_unload_twice(cuda, pack):
    """The second time there is nothing, which is no error; nor is it before anything was loaded, without a driver."""
    assert loader.unload() == [] and "cuInit" not in cuda.calls
    loader.launch("scale_rows", **arguments())
    assert len(loader.unload()) == 1
    assert loader.unload() == []
    assert cuda.calls.count("cuLibraryUnload") == 1


def test_a_plan_keeps_its_kernel(cuda, pack):
    """What a plan can launch stays and is called held, and no other; once the plan is gone it goes, too."""
    plan = loader.plan("scale_rows", **arguments(output="f32"))
    loader.launch("scale_rows", **arguments())
    found = {each.kernel: each.held for each in loader.unload()}
    assert found == {"scale_rows/m64_f32": True, "scale_rows/m64_bf16": False}
    plan.launch()
    plan.launch(stream=0)
    plan.bind(**{name: value for name, value in arguments(output="f32").items() if name in ("a", "out")}).launch()
    loader.launch("scale_rows", **arguments(output="f32"))
    assert len(cuda.launches) == 4 + 1 and loads(cuda) == 2  # the plan's kernel was found, not loaded again
    del plan
    assert [each.held for each in loader.unload()] == [False]
    assert not cuda.libraries


def test_plans_of_a_composite_keep_their_kernels(cuda, tmp_path, monkeypatch):
    """Those of every step."""
    write_composite(tmp_path)
    monkeypatch.setenv("LOADER_ARTIFACTS", str(tmp_path))
    plan = loader.plan("thrice", **composite_arguments())
    loader.launch("thrice", **composite_arguments())
    steps, held = set(plan.steps), loader.unload("thrice")
    assert {each.kernel for each in held if each.held} == steps
    plan.launch()
    del plan
    assert {each.kernel for each in loader.unload("thrice") if not each.held} == steps
    assert not cuda.libraries


def test_what_is_named_goes(cuda, tmp_path):
    """Kernels by name and pack; others stay, and a name that is unknown is refused."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    sample_pack.write(tmp_path / "first", *sample_pack.build(["120a"]))
    sample_pack.write(tmp_path / "second", *sample_pack.build(["90a"]))
    loader.launch("scale_rows", **arguments(), packs=first)
    loader.launch("scale_rows", **arguments(device=(2, 2)), packs=second)
    with pytest.raises(loader.UnknownKernelError, match="did you mean scale_rows"):
        loader.unload("scale_row", packs=first)
    assert [each.pack for each in loader.unload("scale_rows", packs=first)] == [first]
    assert len(cuda.libraries) == 1
    assert [each.pack for each in loader.unload(packs=second)] == [second]
    assert not cuda.libraries


def test_a_capture_forbids_to_unload(cuda, pack):
    """Waiting for the device would end it; then everything is left as it was."""
    loader.launch("scale_rows", **arguments())
    cuda.capturing.add(0x55)
    with pytest.raises(loader.CaptureError, match="cuda:0 cannot be waited for"):
        loader.unload()
    assert len(cuda.libraries) == 1
    cuda.capturing.clear()
    loader.launch("scale_rows", **arguments())
    assert loads(cuda) == 1 and len(loader.unload()) == 1


def test_an_error_of_the_wait_leaves_everything(cuda, pack):
    """It is raised with the name of the call."""
    loader.launch("scale_rows", **arguments())
    cuda.fail["cuCtxSynchronize"] = 719
    with pytest.raises(loader.CudaError, match="cuCtxSynchronize failed: CUDA_ERROR_LAUNCH_FAILED"):
        loader.unload()
    cuda.fail.clear()
    loader.launch("scale_rows", **arguments())
    assert loads(cuda) == 1 and len(cuda.libraries) == 1


def test_what_is_launched_during_the_wait_is_waited_for(cuda, pack, monkeypatch):
    """By a plan that is gone before anything is freed."""
    plans, wait = [], cuda.cuCtxSynchronize

    def launching():
        status = wait()
        while plans:
            plans.pop().launch(stream=0)
        return status

    monkeypatch.setattr(cuda, "cuCtxSynchronize", CFUNCTYPE(c_int)(launching))
    plans.append(loader.plan("scale_rows", **arguments()))
    assert [each.held for each in loader.unload()] == [False]
    order = [name for name in cuda.calls if name in ("cuCtxSynchronize", "cuLaunchKernelEx", "cuLibraryUnload")]
    assert order[-3:] == ["cuLaunchKernelEx", "cuCtxSynchronize", "cuLibraryUnload"]


def test_unload_beside_launches(cuda, pack):
    """No launch of other threads, of problems old and new and by plans, ever reaches a function that was freed."""
    failures, done = [], threading.Event()

    def launching(number):
        calls = [arguments(m=32 * (1 + number), output=output) for output in ("bf16", "f32")]
        try:
            while not done.is_set():
                for call in calls:
                    loader.launch("scale_rows", **call, stream=0)
                    loader.plan("scale_rows", **call).launch(stream=0)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=launching, args=(number,)) for number in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        freed = 0
        while freed < 20 and not failures:
            freed += sum(not each.held for each in loader.unload())
            time.sleep(0)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failures
    assert loads(cuda) > 2  # there was something to free again and again
    loader.unload()
    assert not cuda.libraries


def rebuild(pack):
    """Replace the pack by one for sm_120a, with other binaries."""
    manifest, files = sample_pack.build(["120a"])
    for entry in manifest["artifacts"]:
        files[entry["file"]] += b"rebuilt"
        entry |= sample_pack.stored(entry["file"], files[entry["file"]]) | {"registers": 96}
    sample_pack.write(pack, manifest, files)


def test_reload_sees_a_pack_that_was_replaced(cuda, pack):
    """Its manifest and its binaries; until then the pack is the one that was read first, and plans stay valid."""
    call, plan = arguments(), loader.plan("scale_rows", **arguments())
    loader.launch("scale_rows", **call)
    before, = loader.packs()
    rebuild(pack)
    assert loader.packs() == (before,)
    loader.launch("scale_rows", **call)
    with pytest.raises(loader.IntegrityError):  # what was not loaded is another file now
        loader.launch("scale_rows", **arguments(output="f32"))
    assert loads(cuda) == 1
    loader.reload()
    after, = loader.packs()
    assert after.directory == before.directory and after.digest != before.digest and after.archs == ("120a",)
    loader.launch("scale_rows", **call)
    assert loads(cuda) == 2
    plan.launch()
    assert [each.held for each in loader.unload()] == [True, False]
    assert {artifact.registers for artifact in loader.kernels()["scale_rows"].artifacts} == {96}


@pytest.mark.parametrize("module,reads", [(registry, "open_pack"), (api, "_new_call")])
def test_a_reload_while_another_thread_reads(cuda, pack, monkeypatch, module, reads):
    """What that call has begun with is its own: the next one sees the pack that was replaced meanwhile."""
    original, threads = getattr(module, reads), []

    def interrupted(*arguments):
        result = original(*arguments)
        if not threads:
            rebuild(pack)
            threads.append(threading.Thread(target=loader.reload))
            threads[0].start()
            threads[0].join()
        return result

    monkeypatch.setattr(module, reads, interrupted)
    loader.outputs("scale_rows", **arguments())
    assert len(threads) == 1
    loader.launch("scale_rows", **arguments())
    assert {artifact.registers for artifact in loader.kernels()["scale_rows"].artifacts} == {96}
    unloaded, = loader.unload()
    assert unloaded.size == (pack / unloaded.file).stat().st_size


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_frees_nothing(tmp_path):
    """Modules are its parent's: ForkError, and the driver is not called."""
    code = """
loader.launch("scale_rows", packs=pack, **arguments())
pid = os.fork()
if pid == 0:
    try:
        loader.unload()
    except loader.ForkError:
        os._exit(7 if len(fake.libraries) == 1 else 8)
    os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(loader.unload()))
"""
    assert run_with_pack(tmp_path, code).split() == ["7", "1"]


def test_idle_memory_of_a_launch_keeps_no_kernel(cuda, pack):
    """What ``launch`` keeps for the next call refers to no module but through its problem: nothing waits for the
    collector of circles."""
    import gc

    gc.disable()
    try:
        for _ in range(3):
            loader.launch("scale_rows", **arguments())
            loader.launch("scale_rows", **arguments(kind=FastTensor, m=64))
            assert [each.held for each in loader.unload()] == [False]
    finally:
        gc.enable()
