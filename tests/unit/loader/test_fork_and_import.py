"""What a whole process shows: a light import, and a fork that is refused."""

import os
import sys

import pytest
from own_process import run, run_with_pack


def test_import_is_standard_library_and_opens_nothing():
    """No module from outside the standard library, none of the slow ones inside it, and no CUDA library."""
    loaded = set(run("import sys; before = set(sys.modules); import loader; "
                     "print(*sorted(set(sys.modules) - before))").split())
    foreign = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names | {"loader"}}
    assert not foreign
    assert not loaded & {"dataclasses", "importlib.metadata", "inspect", "logging", "pathlib", "tempfile", "argparse"}


def test_import_opens_no_driver():
    """`import loader` maps no CUDA library into the process."""
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("no /proc")
    assert run("import loader; print('libcuda' in open('/proc/self/maps').read())").strip() == "False"


def test_public_names():
    """`__all__` is what the package offers, errors included."""
    import loader
    from loader import errors

    assert set(errors.__all__) <= set(loader.__all__)
    assert all(hasattr(loader, name) for name in loader.__all__)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_real_fork_is_refused(tmp_path):
    """A child forked after the driver was opened gets ForkError; one forked before does not."""
    code = """
def child():
    pid = os.fork()
    if pid == 0:
        try:
            loader.launch("scale_rows", packs=pack, **arguments())
            os._exit(0)
        except loader.ForkError:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

before = child()
loader.launch("scale_rows", packs=pack, **arguments())
print(before, child())
"""
    assert run_with_pack(tmp_path, code).split() == ["0", "7"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_during_the_first_use():
    """A child forked while another thread initialises CUDA gets ForkError; one forked before that may use it."""
    code = f"""
import os, signal, sys, threading
sys.path.insert(0, {os.path.dirname(__file__)!r})
from fake_cuda import FakeCuda
import loader
from loader import driver

fake = FakeCuda()
reached, go_on = threading.Event(), threading.Event()

def wait():
    reached.set()
    go_on.wait()

def open_library():
    wait()
    return fake

def initialise(flags):
    wait()
    return 0

def child():
    reached.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        driver.open_library = lambda: FakeCuda()
        try:
            driver.get()
            os._exit(0)
        except loader.ForkError:
            os._exit(7)
    reached.clear()
    go_on.set()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

driver.open_library = open_library
fake._cuInit = initialise
fake.cuInit = type(fake.cuInit)(fake._entry("cuInit"))
thread = threading.Thread(target=driver.get)
thread.start()
opening = child()
go_on.clear()
initialising = child()
thread.join()
print(opening, initialising, driver.get().device_count)
"""
    assert run(code).split() == ["0", "7", "3"]


def test_first_use_inside_the_first_use():
    """A finaliser that launches while the driver is being opened neither waits for itself nor makes a second one."""
    code = f"""
import signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from fake_cuda import FakeCuda
from loader import driver

signal.alarm(10)
fake, inner, again = FakeCuda(), [], True

def finalise():
    global again
    if again:
        again = False
        inner.append(driver.get())

def open_library():
    if where == "open":
        finalise()
    return fake

def initialise(flags):
    if where == "initialise":
        finalise()
    return 0

driver.open_library = open_library
fake._cuInit = initialise
fake.cuInit = type(fake.cuInit)(fake._entry("cuInit"))
for where in ("open", "initialise"):
    again, driver._driver = True, None
    print(driver.get() is inner[-1])
"""
    assert run(code).split() == ["True", "True"]
