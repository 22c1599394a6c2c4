"""Host buffers: the same call reaches the emulator, with checked sizes and the packed parameters."""

import struct
import sys
import types

import numpy as np
import pytest

import loader


class FakeEmulator(types.ModuleType):
    """The emulator's interface, recording what it is asked to do."""

    def __init__(self):
        super().__init__("emulator")
        self.devices, self.loaded, self.fault = [], [], None
        self.EmulatorError = type("EmulatorError", (Exception,), {})
        recorder = self

        class Device:
            def __init__(self, arch, seed=0, lazy=True, checks=True):
                self.arch, self.mapped, self.maps, self.launches, self.still_mapped = arch, [], [], [], []
                recorder.devices.append(self)

            def map_buffer(self, pointer, size, writable, name):
                self.mapped.append((pointer, size, writable, name))
                self.still_mapped.append(pointer)

            def unmap_buffer(self, pointer):
                self.still_mapped.remove(pointer)

            def encode_tensor_map(self, *description):
                self.maps.append(description)
                return bytes(range(128))

            def launch(self, *launch):
                self.launches.append(launch)
                assert self.still_mapped
                if recorder.fault is not None:
                    raise recorder.fault

        self.Device = Device

    def load(self, text):
        self.loaded.append(text)
        return ("module", text)


@pytest.fixture
def emulator(monkeypatch):
    fake = FakeEmulator()
    monkeypatch.setitem(sys.modules, "emulator", fake)
    return fake


def aligned(shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + size].view(dtype).reshape(shape)


def arguments():
    return {"a": aligned((96, 32), np.uint8), "scale": aligned((3, 4), np.uint8), "offsets": aligned((4,), np.int32),
            "out": aligned((96, 64), np.float32), "alpha": 2.5, "top": 4}


@pytest.mark.filterwarnings("ignore:host buffers")
@pytest.mark.parametrize("detail", ["", ":90a"])
def test_cpu_is_another_name_of_the_emulated_device(pack, emulator, detail):
    """With an arch or without."""
    for kind in ("cpu", "emulated"):
        loader.launch("scale_rows", device=kind + detail, variant="m16_f32", **arguments())
    first, second = emulator.devices
    assert first.arch == second.arch


@pytest.mark.filterwarnings("ignore:host buffers")
def test_host_buffers_reach_the_emulator(pack, emulator):
    """Buffers are mapped with their sizes and access, and the kernel gets the bytes that a GPU would get."""
    call = arguments()
    loader.launch("scale_rows", device="emulated:120a", variant="m16_f32", **call)
    device, = emulator.devices
    pointers = {name: call[name].ctypes.data for name in ("a", "scale", "offsets", "out")}
    assert device.arch == "120a"
    assert device.mapped == [(pointers["a"], 96 * 32, False, "a"), (pointers["scale"], 12, False, "scale"),
                             (pointers["offsets"], 16, False, "offsets"), (pointers["out"], 96 * 64 * 4, True, "out")]
    assert device.maps == [(pointers["a"], "u8", (32, 96), (32,), (16, 16), 32)]
    (module, entry, grid, block, cluster, shared, parameters, programmatic), = device.launches
    assert programmatic and not device.still_mapped
    assert module == ("module", ".version 9.0\n// the PTX of scale_rows_m16_f32\n")
    assert (entry, grid, block, cluster, shared) == ("scale_rows_m16_f32", (4, 1, 1), (128, 1, 1), (1, 1, 1), 65536)
    assert parameters == bytes(range(128)) + struct.pack("<QQQifqi", pointers["scale"], pointers["offsets"],
                                                        pointers["out"], 96, 2.5, 64, 4)


@pytest.mark.filterwarnings("ignore:host buffers")
def test_inputs_that_share_memory_are_one_range(pack, emulator):
    """The smallest that holds them all, named after them; what only touches is a range of its own."""
    call = arguments()
    memory = aligned((96 * 32 + 64,), np.uint8)
    start = memory.ctypes.data
    call["a"], call["scale"] = memory[:96 * 32].reshape(96, 32), memory[96 * 32 - 4:96 * 32 + 8].reshape(3, 4)
    call["offsets"] = memory[96 * 32 + 8:96 * 32 + 24].view(np.int32)
    loader.launch("scale_rows", **call)
    assert emulator.devices[0].mapped == [
        (start, 96 * 32 + 8, False, "a and scale"), (start + 96 * 32 + 8, 16, False, "offsets"),
        (call["out"].ctypes.data, 96 * 64 * 4, True, "out")]
    assert emulator.devices[0].still_mapped == []


@pytest.mark.filterwarnings("ignore:host buffers")
def test_a_fault_is_an_error_of_the_loader(pack, emulator):
    """With kernel, variant and the fault's words; the fault itself is the cause."""
    emulator.fault = emulator.EmulatorError("access of 4 bytes outside every buffer")
    with pytest.raises(loader.EmulatedFaultError) as raised:
        loader.launch("scale_rows", device="emulated:120a", variant="m16_f32", **arguments())
    error = raised.value
    assert str(error) == ("scale_rows/m16_f32 on the emulated sm_120a: EmulatorError: access of 4 bytes outside every "
                          "buffer")
    assert (error.kernel, error.variant, error.text) == ("scale_rows", "m16_f32", str(emulator.fault))
    assert error.__cause__ is emulator.fault


def test_one_warning(pack, emulator):
    """Slowness is said once a process; a module is parsed once."""
    with pytest.warns(RuntimeWarning, match="host buffers run on the emulated sm_120a device"):
        loader.launch("scale_rows", **arguments())
    loader.plan("scale_rows", **arguments()).launch()
    assert len(emulator.loaded) == 1 and len(emulator.devices) == 2


@pytest.mark.filterwarnings("ignore:host buffers")
def test_arch_by_environment(pack, emulator, monkeypatch):
    """LOADER_EMULATED_ARCH names the emulated architecture."""
    monkeypatch.setenv("LOADER_EMULATED_ARCH", "sm_100a")
    loader.launch("scale_rows", **arguments())
    assert emulator.devices[0].arch == "100a"


def test_wrong_arch_by_environment(pack, emulator, monkeypatch):
    """An unknown one is refused with the variable's name."""
    monkeypatch.setenv("LOADER_EMULATED_ARCH", "86")
    with pytest.raises(loader.UnknownArchError, match="LOADER_EMULATED_ARCH: unknown arch '86'"):
        loader.launch("scale_rows", **arguments())


def test_size_is_capped(pack, emulator, monkeypatch):
    """A problem over the limit says how to lift it."""
    monkeypatch.setenv("LOADER_EMULATED_MAX_BYTES", "1000")
    with pytest.raises(loader.EmulationError, match="takes 1000; use device buffers, or set LOADER_EMULATED_MAX_BYTES"):
        loader.launch("scale_rows", **arguments())
    assert not emulator.devices


def test_nothing_to_compute(pack, emulator):
    """`skip` holds for host buffers too."""
    call = arguments() | {"a": aligned((0, 32), np.uint8), "scale": aligned((0, 4), np.uint8),
                          "out": aligned((0, 64), np.float32)}
    loader.launch("scale_rows", **call)
    assert not emulator.devices


def test_read_only_numpy_output(pack, emulator):
    """numpy's read-only flag is honoured."""
    call = arguments()
    call["out"].flags.writeable = False
    with pytest.raises(loader.ReadOnlyError, match="out is written by the kernel"):
        loader.launch("scale_rows", **call)


@pytest.mark.filterwarnings("ignore:host buffers")
def test_addresses_are_checked_at_every_call(pack, emulator):
    """Alignment of host buffers counts as on the device, also for a remembered problem."""
    call = arguments()
    loader.launch("scale_rows", **call)
    call["out"] = np.zeros(96 * 64 * 4 + 80, np.uint8)
    start = -call["out"].ctypes.data % 16 + 4
    call["out"] = call["out"][start:start + 96 * 64 * 4].view(np.float32).reshape(96, 64)
    with pytest.raises(loader.AlignmentError):
        loader.launch("scale_rows", **call)
    assert len(emulator.devices) == 1
