"""Selection of new problems: the same answers as expressions evaluated one by one, and words only when asked."""

import pytest
import sample_pack
from fake_cuda import FakeDevice
from sample_call import arguments

import loader
from loader import call, select
from loader.errors import ExpressionError
from loader.expression import OPERATORS, evaluate, function

VALUES = {"a": 7, "b": 2, "z": 0}
OPERANDS = (7, 2, "a", "b", ["+", "a", 1], ["-", 9, "b"])
EXPRESSIONS = [5, 2.5, "a", *([name, *operands] for name, (count, _) in OPERATORS.items() for operands in (
    [(x,) for x in OPERANDS] if count == 1 else [(x, y) for x in OPERANDS for y in OPERANDS])),
    *([name, x, y] for name in ("and", "or") for x in ("a", "z") for y in ("b", "z", ["//", 1, "z"])),
    *(["if", x, ["+", "a", 1], ["//", 1, x]] for x in ("a", "z", "b"))]


def answer(compute, *arguments):
    try:
        value = compute(*arguments)
    except ExpressionError as error:
        return str(error)
    return type(value), value


def test_function_is_evaluate():
    """An expression as a function gives the value, the type of it and the error that `evaluate` gives."""
    for expression in EXPRESSIONS:
        assert answer(function(expression), VALUES) == answer(evaluate, expression, VALUES), expression


@pytest.mark.parametrize(("expression", "text"), [(["//", "a", "z"], "a // z divides by zero"),
                                                  (["+", 1, ["%", 1, "z"]], "1 % z divides by zero"),
                                                  (["+", "c", 1], "'c' has no value")])
def test_function_says_what_is_wrong(expression, text):
    """Errors name the part of the expression that fails."""
    with pytest.raises(ExpressionError, match=text):
        function(expression)(VALUES)


def test_new_problems_of_a_known_choice(cuda, pack, monkeypatch):
    """A choice is made once for a device and its dtypes, an evaluator once an artifact; decisions are not worded."""
    made, worded = [], []
    choice, decisions = select.Choice, select._decisions
    monkeypatch.setattr(select, "Choice", lambda *args: made.append(args) or choice(*args))
    monkeypatch.setattr(select, "_decisions", lambda *args: worded.append(args) or decisions(*args))
    evaluator = call.geometry.Evaluator
    monkeypatch.setattr(call.geometry, "Evaluator", lambda *args: made.append(args) or evaluator(*args))
    cuda.devices[1] = FakeDevice(sm_count=2)
    for device, grid in ((0, [1, 2, 3]), (1, [1, 2, 2])):
        for m in (64, 128, 192):
            loader.launch("scale_rows", **arguments(m=m, device=(2, device)))
        assert [launch.grid[0] for launch in cuda.launches[-3:]] == grid
    assert len(made) == 3  # one choice a device, one evaluator
    loader.launch("scale_rows", **arguments(m=64, output="f32"))
    assert len(made) == 5 and cuda.launches[-1].symbol == "scale_rows_m64_f32"
    plan = loader.plan("scale_rows", **arguments(m=96))
    assert not worded
    decisions = plan.decisions
    assert len(decisions) == 16 and len(worded) == 1
    accepted, = (decision for decision in decisions if decision.accepted)
    assert (accepted.variant, accepted.arch, accepted.reason) == ("m64_bf16", "120a", "2 us estimated")


def test_each_arch_launches_by_its_own_numbers(cuda, tmp_path):
    """A variant of one name is another kernel on another device: its grid and parameters are those of its arch."""
    manifest, files = sample_pack.build(["90a", "120a"])
    for artifact in manifest["artifacts"]:
        if artifact["arch"] == "90a":
            artifact["axes"]["block_m"] *= 2
            artifact["launch"] |= {"grid": [["ceil_div", "M", "block_m"], 3, 1], "block": [256, 1, 1], "pdl": False}
            artifact["parameters"][4]["value"] = ["+", "M", 1]
    sample_pack.write(tmp_path, manifest, files)
    for ordinal in (0, 2, 0, 2):  # sm_120, sm_90
        loader.launch("scale_rows", variant="m16_bf16", packs=tmp_path, **arguments(m=96, device=(2, ordinal)))
    found = [(launch.device, launch.grid, launch.block[0], launch.parameters[152]) for launch in cuda.launches]
    assert found == [(0, (6, 1, 1), 128, 96), (2, (3, 3, 1), 256, 97)] * 2


def requiring(tmp_path, measured=()):
    """A pack whose tile of 64 rows, and no other, requires M <= 64."""
    manifest, files = sample_pack.build(["90a"])
    manifest |= {"schema": 5, "composites": {}}
    manifest["families"]["scale_rows"]["select"]["measured"] = list(measured)
    for artifact in manifest["artifacts"]:
        rule = {"text": "M <= 64", "expression": ["<=", "M", "block_m"]}
        artifact["requires"] = [rule] if artifact["tile"] == "m64" else []
    sample_pack.write(tmp_path, manifest, files)
    return {"packs": tmp_path, "device": "90a"}


def reasons(explanation):
    return {d.variant: d.reason for d in explanation.decisions if d.variant.endswith("_bf16")}


@pytest.mark.parametrize("measured", [False, True])
def test_a_variant_runs_what_it_requires(cuda, tmp_path, measured):
    """What does not fit a problem is passed over with that reason, however fast: by estimates and by measured rows."""
    rows = [{"arch": "90a", "device": "Fake H100", "features": {"M": m}, "microseconds": times}
            for m, times in ((64, {"m64": 1.0, "m16": 2.0}), (96, {"m64": 1.0}), (4096, {"m64": 1.0, "m16": 3.0}))]
    where = requiring(tmp_path, rows if measured else ())
    problem = {"K": 64, "E": 3, "alpha": 1.0, "top": 4}
    fits = loader.explain("scale_rows", M=64, **problem, **where)
    assert fits.variant.startswith("m64")
    other = loader.explain("scale_rows", M=65, **problem, **where)
    assert other.variant.startswith("m16") and reasons(other)["m64_bf16"] == "requires M <= 64"


def test_no_variant_runs_what_none_takes(cuda, tmp_path):
    """A variant that is asked for and does not fit is refused with what it requires, before anything is launched."""
    where = requiring(tmp_path)
    with pytest.raises(loader.NoKernelError, match="m64_bf16 sm_90a: requires M <= 64"):
        loader.launch("scale_rows", **arguments(m=96, device=(2, 2)), packs=where["packs"], variant="m64_bf16")
    assert not cuda.launches
