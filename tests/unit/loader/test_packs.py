"""Where packs come from, how several combine, and what is chosen from them."""

import copy
import json
import os
import signal
import subprocess
import sys

import own_process
import pytest
import sample_pack
from sample_call import arguments

import loader
from loader import registry
from loader.__main__ import main
from loader.arch import ARCHS


def write(directory, archs, **family):
    """A pack with the given architectures; ``family`` overrides keys of the family."""
    manifest, files = sample_pack.build(archs)
    manifest["families"]["scale_rows"].update(family)
    sample_pack.write(directory, manifest, files)
    return str(directory)


def measured(arch, device, m, **microseconds):
    return {"arch": arch, "device": device, "features": {"M": m}, "microseconds": microseconds}


def select_with(rows):
    return {"match": {"out": "out"}, "features": {"M": "M"}, "measured": rows}


def test_argument_before_environment(cuda, tmp_path, monkeypatch):
    """The argument alone is used where it is given, else the variable alone."""
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, write(tmp_path / "a", ["90a"]))
    other = write(tmp_path / "b", ["120a"])
    assert loader.kernels()["scale_rows"].archs == ("90a",)
    assert loader.kernels(packs=other)["scale_rows"].archs == ("120a",)
    assert loader.kernels(packs=[other])["scale_rows"].archs == ("120a",)


def test_packs_combine(cuda, tmp_path, monkeypatch):
    """Packs of several architectures are one registry; a directory may hold packs."""
    first, second = write(tmp_path / "a", ["90a"]), write(tmp_path / "b", ["120a"])
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, os.pathsep.join([first, second]))
    assert loader.kernels()["scale_rows"].archs == ("90a", "120a")
    assert loader.kernels(packs=str(tmp_path))["scale_rows"].archs == ("90a", "120a")
    loader.launch("scale_rows", **arguments(device=(2, 2)))
    loader.launch("scale_rows", **arguments(device=(2, 0)))
    assert [launch.device for launch in cuda.launches] == [2, 0]


def test_equal_artifacts_combine_and_different_ones_do_not(tmp_path):
    """The same artifact in two packs is one; another kernel of the same name is refused, and so is another family."""
    first, second = write(tmp_path / "a", ["90a"]), write(tmp_path / "b", ["90a", "120a"])
    assert len(loader.kernels(packs=[first, second])["scale_rows"].variants) == 4
    manifest, files = sample_pack.build(["90a"])
    name = manifest["artifacts"][0]["file"]
    files[name] += b"other"
    manifest["artifacts"][0].update(sample_pack.stored(name, files[name]))
    sample_pack.write(tmp_path / "c", manifest, files)
    with pytest.raises(loader.DuplicateError, match="is another kernel in pack"):
        loader.kernels(packs=[first, str(tmp_path / "c")])
    with pytest.raises(loader.DuplicateError, match="scale_rows is defined differently"):
        loader.kernels(packs=[first, write(tmp_path / "d", ["120a"], skip=None)])


@pytest.mark.parametrize("named", ["[block_scaled.packs]\nsome = some_pack", "[loader.artifacts]\nsome = some_pack",
                                   "[ block_scaled.packs ]\n# x = y\nsome=some_pack:anything [extra]"])
def test_installed_distribution(tmp_path, monkeypatch, named):
    """A distribution names its pack by an entry point; it comes after the variable and before the checkout."""
    site = tmp_path / "site"
    write(site / "some_pack", ["100a"])
    (site / "some_pack-1.dist-info").mkdir()
    (site / "some_pack-1.dist-info" / "entry_points.txt").write_text(
        f"[console_scripts]\nx = y:z\n\n{named}\n[other]\nq = r\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(registry, "CHECKOUT_ARTIFACTS", write(tmp_path / "checkout", ["90a"]))
    assert loader.kernels()["scale_rows"].archs == ("100a",)
    assert registry.registry().source == "installed distributions"


def test_pack_of_its_own_package(tmp_path, monkeypatch):
    """A copy of the loader in another package launches what lies beside it, unless a distribution brings that, too."""
    own = write(tmp_path / "copy" / "kernels", ["90a"])
    monkeypatch.setattr(registry, "OWN_PACK", own)
    monkeypatch.setattr(registry, "_installed", lambda: [write(tmp_path / "other", ["100a"])])
    assert loader.kernels()["scale_rows"].archs == ("90a",)
    assert registry.registry().source == "this package"
    registry.forget()
    monkeypatch.setattr(registry, "_installed", lambda: [own])
    assert registry.registry().source == "installed distributions"


def test_checkout(tmp_path, monkeypatch):
    """Without anything named, the checkout's artifacts; without those, the error says how to get some."""
    monkeypatch.setattr(registry, "CHECKOUT_ARTIFACTS", str(tmp_path / "artifacts"))
    with pytest.raises(loader.PackNotFoundError, match="build.py --arch ...` makes a pack") as caught:
        loader.kernels()
    assert registry.ENVIRONMENT_VARIABLE in caught.value.tried
    write(tmp_path / "artifacts", ["90a"])
    assert loader.kernels()["scale_rows"].archs == ("90a",)


def test_no_checkout(monkeypatch):
    """Where the loader is installed, nothing beside it is read, and no advice is given that needs a checkout."""
    monkeypatch.setattr(registry, "CHECKOUT_ARTIFACTS", None)
    with pytest.raises(loader.PackNotFoundError) as caught:
        loader.kernels()
    assert str(caught.value) == "no pack: LOADER_ARTIFACTS is not set, no installed distribution brings one"
    with pytest.raises(loader.PackNotFoundError, match=r"holds no manifest.json$"):
        loader.kernels(packs="/absent")


def test_only_the_artifact_that_runs_is_read(cuda, tmp_path):
    """A launch verifies one image: damage elsewhere in the pack is `verify`'s to find."""
    manifest, files = sample_pack.build(["120a"])
    files["scale_rows/sm_120a/m64_f32.cubin"] = b"damaged"
    sample_pack.write(tmp_path, manifest, files)
    loader.launch("scale_rows", variant="m16_bf16", packs=str(tmp_path), **arguments())
    assert len(cuda.launches) == 1
    assert [o.file for o in loader.verify(packs=str(tmp_path)) if o.error] == ["scale_rows/sm_120a/m64_f32.cubin"]


@pytest.mark.parametrize("m,tile", [(32, "m16"), (90, "m16"), (96, "m64"), (100_000, "m64")])
def test_nearest_measurement_decides(cuda, tmp_path, m, tile):
    """The nearest row in the logarithm of the features, and its fastest tile (the border of 16 and 512 is 90.5)."""
    rows = [measured("120a", "Fake RTX", 16, m16=5.0, m64=9.0), measured("120a", "Fake RTX", 512, m16=50.0, m64=20.0)]
    pack = write(tmp_path, ["120a"], select=select_with(rows))
    plan = loader.plan("scale_rows", packs=pack, **arguments(m=m))
    assert plan.variant == f"{tile}_bf16"
    assert any("us measured at M" in decision.reason for decision in plan.decisions)


def test_rows_of_this_device_come_first(cuda, tmp_path):
    """A row of another device decides only where this one was never measured."""
    rows = [measured("120a", "Other", 96, m16=1.0, m64=9.0), measured("120a", "Fake RTX", 512, m16=9.0, m64=1.0)]
    pack = write(tmp_path / "a", ["120a"], select=select_with(rows))
    assert loader.plan("scale_rows", packs=pack, **arguments()).variant == "m64_bf16"
    pack = write(tmp_path / "b", ["120a"], select=select_with(rows[:1]))
    assert loader.plan("scale_rows", packs=pack, **arguments()).variant == "m16_bf16"


def test_estimate_decides_where_nothing_was_measured(cuda, tmp_path):
    """The smallest cost; rows of another architecture do not count."""
    rows = [measured("90a", "Fake H200", 96, m16=1.0, m64=9.0)]
    pack = write(tmp_path, ["120a"], select=select_with(rows))
    plan = loader.plan("scale_rows", packs=pack, **arguments())
    assert plan.variant == "m64_bf16"
    assert {d.reason for d in plan.decisions if d.variant.endswith("bf16")} == {"2 us estimated", "6 us estimated"}


def test_no_silent_choice(cuda, tmp_path):
    """Several candidates without measurement or estimate are an error, one alone is not."""
    manifest, files = sample_pack.build(["120a"])
    for artifact in manifest["artifacts"]:
        artifact["cost"] = None
    sample_pack.write(tmp_path, manifest, files)
    with pytest.raises(loader.NoKernelError, match="neither measured nor estimated"):
        loader.launch("scale_rows", packs=str(tmp_path), **arguments())
    loader.launch("scale_rows", packs=str(tmp_path), variant="m16_bf16", **arguments())
    assert len(cuda.launches) == 1


@pytest.mark.parametrize("edit,text", [
    ({"grid": [0, 1, 1]}, "grid.x is 0, allowed is 1 .. 2147483647"),
    ({"grid": [1, 65536, 1]}, "grid.y is 65536, allowed is 1 .. 65535"),
    ({"grid": [3, 1, 1], "cluster": [2, 1, 1]}, "grid.x is 3, allowed is a multiple of the cluster's 2")])
def test_grid_is_never_adjusted(cuda, tmp_path, edit, text):
    """A grid that hardware cannot take raises with the limit."""
    manifest, files = sample_pack.build(["120a"])
    for artifact in manifest["artifacts"]:
        artifact["launch"].update(edit)
    sample_pack.write(tmp_path, manifest, files)
    with pytest.raises(loader.LaunchLimitError) as caught:
        loader.launch("scale_rows", packs=str(tmp_path), **arguments())
    assert text in str(caught.value) and not cuda.launches


def test_cluster_and_serialization_attributes(cuda, tmp_path):
    """Cluster dimensions and programmatic serialization reach the driver as attributes 4 and 6."""
    manifest, files = sample_pack.build(["120a"])
    for artifact in manifest["artifacts"]:
        artifact["launch"].update(grid=[4, 1, 1], cluster=[2, 1, 1])
    sample_pack.write(tmp_path, manifest, files)
    loader.launch("scale_rows", packs=str(tmp_path), **arguments())
    attributes = cuda.launches[0].attributes
    assert attributes[4][:12] == b"\2\0\0\0\1\0\0\0\1\0\0\0" and attributes[6][:4] == b"\1\0\0\0"


def test_explain_by_numbers_and_by_buffers(cuda, pack):
    """Both ways give the same choice, and nothing is loaded."""
    by_numbers = loader.explain("scale_rows", M=96, K=64, E=3, top=4, out="bf16", device="120a")
    by_buffers = loader.explain("scale_rows", **arguments())
    assert by_numbers.variant == by_buffers.variant == "m64_bf16"
    assert "-> " in str(by_numbers) and "sm_90a runs on compute capability 9.x only" in str(by_numbers)
    assert loader.explain("scale_rows", M=96, K=64, E=3, top=4, device="103a").variant is None
    assert "cuLibraryLoadData" not in cuda.calls and not cuda.launches


def test_explain_says_that_nothing_is_launched(cuda, pack):
    """Where ``skip`` holds, as ``launch`` does; by buffers and by numbers."""
    for problem in (arguments(m=0), {"M": 0, "K": 64, "E": 3, "top": 4}):
        explanation = loader.explain("scale_rows", **problem)
        assert (explanation.variant, explanation.arch, explanation.decisions) == (None, None, ())
        assert explanation.skipped == "M == 0"
        assert str(explanation).endswith("\nnothing to compute and no launch: M == 0")
    assert loader.explain("scale_rows", **arguments()).skipped is None
    assert main(["explain", "scale_rows", "M=0", "K=64", "E=3", "top=4", "--device", "120a"]) == 0


@pytest.mark.parametrize("device", ["110a", "sm_110a", "compute_110a", "emulated:110a", "90"])
def test_an_unknown_architecture_names_those_that_are_known(cuda, pack, device):
    """However it is written."""
    known = ", ".join(ARCHS)
    with pytest.raises(loader.UnknownArchError) as caught:
        loader.explain("scale_rows", M=96, K=64, E=3, top=4, device=device)
    assert str(caught.value) == f"unknown arch {device.removeprefix('emulated:')!r}; known are {known}"
    assert caught.value.known == known.split(", ")


# The command line


def test_command_line(cuda, pack, capsys):
    """Every command prints what it promises and exits with 0 where all is well."""
    for command, text in ((["list"], "90a 100a 120a 120f"), (["inspect", "scale_rows"], "requires K % 32 == 0"),
                          (["verify"], "32 of 32 files verified"), (["doctor"], "cuda:2 Fake H200"),
                          (["explain", "scale_rows", "M=96", "K=64", "E=3", "top=4", "--device", "120a"], "->")):
        assert main(command) == 0
        assert text in capsys.readouterr().out


def test_doctor_wants_a_kernel_for_each_device(cuda, tmp_path, capsys):
    """Not every kernel: some have no variant for some devices. A device for which there is none is what it reports."""
    manifest, files = sample_pack.build()
    other = copy.deepcopy(manifest["families"]["scale_rows"])
    manifest["families"]["scale_columns"] = other
    sample_pack.write(tmp_path / "all", manifest, files)
    assert main(["--packs", str(tmp_path / "all"), "doctor"]) == 0
    assert "scale_columns: no variant runs here" in capsys.readouterr().out
    assert main(["--packs", write(tmp_path / "one", ["90a"]), "doctor"]) == 1


def test_command_line_with_packs(tmp_path, capsys):
    """Packs named before the command combine."""
    packs = [write(tmp_path / arch, [arch]) for arch in ("90a", "120a")]
    assert main(["--packs", packs[0], "--packs", packs[1], "list"]) == 0
    assert " 90a 120a " in capsys.readouterr().out


@pytest.mark.parametrize(("unbuffered", "command"), [("", ["list"]), ("1", ["list"]), ("", ["--help"])])
def test_command_line_whose_reader_has_gone(tmp_path, unbuffered, command):
    """It ends as other programs do, by SIGPIPE and without a word, as output fails when printed or in the end."""
    pack = write(tmp_path, ["90a"])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        done = subprocess.run([sys.executable, "-m", "loader", "--packs", pack, *command], stdout=output,
                              stderr=subprocess.PIPE, text=True, cwd=own_process.ROOT, check=False,
                              env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_command_line_reports_damage(cuda, pack, capsys):
    """`verify` names a damaged file and exits with 1; an error is one line of its class and text."""
    (pack / "scale_rows/sm_90a/m16_f32.cubin").write_bytes(b"x")
    assert main(["verify"]) == 1
    assert "scale_rows/sm_90a/m16_f32.cubin" in capsys.readouterr().out
    assert main(["inspect", "other"]) == 2
    assert capsys.readouterr().err.startswith("UnknownKernelError: no kernel 'other'")
    (pack / "manifest.json").write_text(json.dumps(copy.deepcopy({"schema": 7})))
    registry._registries.clear()
    assert main(["list"]) == 2
    assert "SchemaError" in capsys.readouterr().err
