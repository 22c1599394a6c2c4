"""Where compiler tools are looked for, and what is said where one is missing."""

import sys

import pytest

from generator import toolchain
from generator.errors import ToolchainError


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A machine without any CUDA tool; ``tool`` below puts one somewhere."""
    for name in ("CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    return tmp_path


def tool(path, version="13.0.88"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release 13.0, V{version}"\n')
    path.chmod(0o755)
    return path


def release(folder, version="13.0.88"):
    return [tool(folder / name, version) for name in ("nvcc", "ptxas", "fatbinary")]


def test_path_comes_before_cuda_home_before_packages(empty, monkeypatch):
    """Each place is used where those before it have nothing."""
    package = tool(empty / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
    assert toolchain.find("nvcc", "p") == package
    home = tool(empty / "home" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(empty / "home"))
    assert toolchain.find("nvcc", "p") == home
    assert toolchain.find("nvcc", "p") != tool(empty / "path" / "nvcc")
    assert toolchain.find("nvcc", "p") == empty / "path" / "nvcc"


def test_the_newest_package_is_used(empty):
    """Packages of two major versions may be installed."""
    tool(empty / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
    newest = tool(empty / "site" / "nvidia" / "cu14" / "bin" / "nvcc")
    assert toolchain.find("nvcc", "p") == newest


def test_tools_come_from_the_folder_of_nvcc(empty, monkeypatch):
    """A ptxas elsewhere on PATH does not replace that of the release."""
    tool(empty / "path" / "ptxas", "12.0.0")
    release(empty / "home" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(empty / "home"))
    tool(empty / "path" / "gcc")
    found = toolchain.find_toolchain()
    assert found.ptxas == empty / "home" / "bin" / "ptxas"
    assert found.version == "13.0.88"


def test_two_releases_are_not_mixed(empty):
    """nvcc and ptxas must agree, or the version in the manifest would be half true."""
    release(empty / "path")
    tool(empty / "path" / "ptxas", "13.1.0")
    with pytest.raises(ToolchainError, match=r"nvcc is 13.0.88 but .*ptxas is 13.1.0; use one release"):
        toolchain.find_toolchain()


def test_a_missing_tool_names_its_package(empty):
    """The message is the next step."""
    with pytest.raises(ToolchainError, match="pip install nvidia-cuda-nvcc"):
        toolchain.find_toolchain()
    with pytest.raises(ToolchainError, match="pip install nvidia-cuda-nvdisasm"):
        toolchain.find_disassembler()


def test_a_missing_host_compiler_is_named(empty):
    """nvcc itself would only say `gcc: No such file or directory`."""
    release(empty / "path")
    with pytest.raises(ToolchainError, match=r"no gcc on PATH; install g\+\+"):
        toolchain.find_toolchain()


def test_a_tool_that_names_no_version_is_refused(empty):
    """Such as a broken wrapper."""
    release(empty / "path")
    (empty / "path" / "nvcc").write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(ToolchainError, match="names no version: 'hello'"):
        toolchain.find_toolchain()


def test_flags_of_the_environment_do_not_reach_the_compiler(monkeypatch):
    """They would change bytes without being in the manifest."""
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-G")
    tools = toolchain.Toolchain(*["x"] * 3, version="13.0.88")
    assert "NVCC_APPEND_FLAGS" not in tools.environment
    assert tools.environment["LC_ALL"] == "C"
