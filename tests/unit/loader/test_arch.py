"""Which target runs where: the rule itself, whatever archs are known today."""

import pytest

from loader import arch

CAPABILITIES = [(major, minor) for major in range(9, 14) for minor in range(6)]


@pytest.mark.parametrize("minor", range(4))
@pytest.mark.parametrize("major", range(9, 13))
def test_family_targets_run_upward_only(major, minor):
    """`f` code runs on its minor version and those above it, `a` code on its own, neither on another major one."""
    for suffix, runs in (("f", range(minor, 6)), ("a", [minor])):
        target = arch.Arch(major, minor, suffix)
        found = [capability for capability in CAPABILITIES if arch.refusal(target, capability) is None]
        assert found == [(major, m) for m in runs]


@pytest.mark.parametrize(("target", "capability", "reason"), [
    (arch.Arch(10, 3, "f"), (10, 0), "sm_103f runs on compute capability 10.3 or higher, the device has 10.0"),
    (arch.Arch(12, 1, "f"), (12, 0), "sm_121f runs on compute capability 12.1 or higher, the device has 12.0"),
    (arch.Arch(12, 0, "a"), (12, 1), "sm_120a runs on compute capability 12.0 only, the device has 12.1"),
    (arch.Arch(10, 0, "f"), (12, 0), "sm_100f runs on compute capability 10.x only, the device has 12.0"),
])
def test_the_reason_says_what_would_do(target, capability, reason):
    """What the code runs on, and what the device has."""
    assert arch.refusal(target, capability) == reason
