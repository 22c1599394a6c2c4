"""Static promises of the shipped kernels: no spills, the tensor cores of each generation, lean main loops."""

import json
import statistics
from pathlib import Path

import pytest

from generator import cli, sass, toolchain
from generator.errors import ToolchainError

ROOT = Path(__file__).resolve().parents[2]

try:
    toolchain.find_toolchain()
    toolchain.find_disassembler()
except ToolchainError as error:
    pytest.skip(f"no compiler: {error}", allow_module_level=True)

# arch -> opcodes that each of its kernels must hold
OPCODES = {"90a": {"HGMMA"}, "100a": {"UTCOMMA", "UTCCP"}, "120a": {"OMMA"}}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """One kernel of every tile and generation; output types differ in the epilogue only."""
    out = tmp_path_factory.mktemp("pack")
    options = ["--arch", ",".join(OPCODES), "--kernel", "grouped_fp4", "--variant", "*_bf16"]
    assert cli.main(["--out", str(out), "--lock", str(out / "lock.json"), *options]) == 0
    return out


@pytest.fixture(scope="module")
def profiles(pack):
    """Artifact and profile of each kernel."""
    artifacts = json.loads((pack / "manifest.json").read_text())["artifacts"]
    return [(artifact, sass.profile(pack / artifact["file"])) for artifact in artifacts]


def test_kernels_use_the_tensor_cores_of_their_generation(profiles):
    """Block-scaled FP4 natively on Blackwell, warpgroup products on Hopper."""
    assert {artifact["arch"] for artifact, _ in profiles} == set(OPCODES)
    for artifact, profile in profiles:
        missing = OPCODES[artifact["arch"]] - set(profile.counts)
        assert not missing, f"{artifact['symbol']} on {artifact['arch']} has no {missing}"


def test_kernels_stay_in_registers(profiles):
    """By ptxas's word and by SASS."""
    for artifact, profile in profiles:
        used = (artifact["spill_bytes"], artifact["local_bytes"], profile.counts["LDL"], profile.counts["STL"])
        assert used == (0, 0, 0, 0), f"{artifact['symbol']} on {artifact['arch']}"


def test_the_prefill_loop_of_sm120_is_lean(profiles):
    """At most 3.3 instructions per OMMA, which is what a CUTLASS grouped kernel of that tile needs."""
    loops = {artifact["tile"]: profile.main_loop for artifact, profile in profiles if artifact["arch"] == "120a"}
    assert loops["m128n128k128"].per_tensor <= 3.3
    assert loops["m256n128k128"].per_tensor <= 3.3


def test_the_issuing_loop_of_sm100_is_lean(profiles):
    """At most 86 instructions per 4 UTCOMMA."""
    for artifact, profile in profiles:
        if artifact["arch"] == "100a":
            loop = profile.main_loop
            assert loop.instructions / loop.counts["UTCOMMA"] <= 86 / 4, artifact["symbol"]


def test_cubins_are_small(profiles):
    """Median at most 48 KB."""
    assert statistics.median(artifact["size"] for artifact, _ in profiles) <= 48 << 10
