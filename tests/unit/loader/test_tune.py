"""Timing variants and keeping the fastest, on a driver that has a clock of its own."""

import json
import random

import manifest_pack
import pytest
import sample_pack
from fake_cuda import image
from sample_call import arguments
from test_operands import random_problem

import loader
from loader import driver, expression, problems, registry, tune, tuned
from loader.__main__ import main
from loader.expression import evaluate

VALUES = [{"argument": "offsets", "minimum": 0, "maximum": "M", "multiple": 1, "ascending": True}]
SHAPE = {"kernel": "scale_rows", "problem": {"M": 96, "K": 64, "E": 3, "top": 4}}


class Clock:
    """What launches take: microseconds by tile, each up to ``noise`` more or less, as a share."""

    def __init__(self, noise=0.0, **times):
        self.times, self.noise, self.draw = times, noise, random.Random(5)

    def __call__(self, launch):
        tile = launch.symbol.split("_")[2]
        return self.times[tile] * (1 + self.noise * self.draw.uniform(-1, 1))


@pytest.fixture
def place(cuda, tmp_path, monkeypatch):
    """A folder with a pack whose integers have rules, which is the one in use."""
    manifest, files = sample_pack.build()
    family = manifest["families"]["scale_rows"]
    family["values"], family["scalars"][1]["default"] = VALUES, 4
    sample_pack.write(tmp_path / "pack", manifest, files)
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(tmp_path / "pack"))
    return tmp_path


def run(place, *shapes, status=0):
    """Tune shapes by the command; the rows that its file then has."""
    (place / "shapes.json").write_text(json.dumps(list(shapes) or [SHAPE]))
    loader.reload()
    options = ["--out", str(place / "tuned.json"), "--device", "cuda:0"]
    assert main(["tune", str(place / "shapes.json"), *options]) == status
    return tuned.read(str(place / "tuned.json"))


def test_what_wins_by_more_than_the_noise_is_kept(cuda, place, monkeypatch):
    """As a row that then decides."""
    cuda.clock = Clock(0.02, m16=4.0, m64=5.0)
    kept, = run(place)
    pack, = registry.registry().packs
    artifact = next(a for a in pack.manifest.artifacts if (a.variant, a.arch) == ("m16_bf16", "120a"))
    assert kept._replace(microseconds=4, default_microseconds=5, spread=0) == tuned.TunedRow(
        "scale_rows", "m16_bf16", artifact.binary.sha256, "120a", "Fake RTX", {"M": 96}, 4, 0, "m64_bf16", 5,
        {"loader": loader.__version__, "driver": "CUDA 13.0", "pack": pack.digest})
    assert abs(kept.microseconds - 4) < 0.08 and abs(kept.default_microseconds - 5) < 0.1 and 0 < kept.spread < 0.04
    monkeypatch.setenv(tuned.VARIABLE, str(place / "tuned.json"))
    loader.reload()
    assert loader.plan("scale_rows", **arguments()).variant == "m16_bf16"


@pytest.mark.parametrize("clock", [Clock(0.3, m16=4.9, m64=5.0), Clock(m16=5.0, m64=5.0), Clock(m16=6.0, m64=5.0)])
def test_what_does_not_is_not(cuda, place, clock):
    """Nothing for the default itself, nor for what is as fast, or faster by less than times differ."""
    cuda.clock = clock
    assert run(place) == ()


def test_tuning_again_keeps_the_choice(cuda, place):
    """Where times are as before but for noise; a tile that is faster by less than that does not take its place."""
    cuda.clock = Clock(0.02, m16=4.0, m64=5.0)
    first, = run(place)
    for seed in range(3):
        cuda.clock.draw = random.Random(seed)
        again, = run(place)
        assert (again.cubin, again.features) == (first.cubin, first.features)
    near = {"m16": (4.0, 4.1), "m32": (3.9, 4.2), "m8": (3.8, 3.9), "m64": (5.0, 5.1)}
    assert tune.choose(near, "m64", None) == "m8"
    assert tune.choose({**near, "m8": (3.8, 4.05)}, "m64", "m16") == "m16"
    assert tune.choose(near, "m64", "m16") == "m8" and tune.choose(near, "m64", "m64") == "m8"
    assert tune.choose({**near, "m8": (3.9, 5.0)}, "m64", "m8") == "m16"


def test_rows_are_merged(cuda, place):
    """What was known of a problem goes, also where nothing beats the default any more; all else stays."""
    others = [tuned.TunedRow("scale_rows", "m16_bf16", digest, "120a", device, {"M": m}, 1.0, 0.0, "m64_bf16", 2.0, {})
              for digest, device, m in (("0" * 64, "Fake RTX", 96), ("1" * 64, "Other", 96))]
    tuned.write(str(place / "tuned.json"), others)
    cuda.clock = Clock(m16=4.0, m64=5.0)
    both = run(place, SHAPE, {**SHAPE, "problem": {**SHAPE["problem"], "M": 32}})
    assert both[:2] == tuple(others) and [kept.features["M"] for kept in both[2:]] == [96, 32]
    cuda.clock = Clock(m16=4.5, m64=5.0)
    assert [kept.microseconds for kept in run(place)] == [1.0, 1.0, 4.0, 4.5]
    elsewhere = both[2]._replace(device="Other")
    tuned.write(str(place / "tuned.json"), [*both, elsewhere])
    cuda.clock = Clock(m16=5.0, m64=5.0)
    assert run(place) == (*others, both[3], elsewhere)


def test_the_default_is_what_the_packs_say(cuda, place, monkeypatch):
    """Not what rows of earlier say, or they would defend themselves."""
    cuda.clock = Clock(m16=4.0, m64=5.0)
    run(place)
    monkeypatch.setenv(tuned.VARIABLE, str(place / "tuned.json"))
    cuda.clock = Clock(m16=6.0, m64=5.0)
    assert run(place) == ()


def test_variants_take_turns(cuda, place):
    """Each is launched as often, with cold caches, on operands of two routings, and all that was taken comes back."""
    cuda.clock = Clock(m16=4.0, m64=5.0)
    cuda.calls.clear()
    run(place)
    count = (tune.BLOCKS + 1) * tune.ROUNDS * tune.ROUTINGS
    symbols = [launch.symbol for launch in cuda.launches]
    assert symbols.count("scale_rows_m16_bf16") == symbols.count("scale_rows_m64_bf16") == count
    assert cuda.calls.count("cuMemsetD8Async") == 2 * count
    assert len({(launch.symbol, launch.parameters) for launch in cuda.launches}) == 2 * tune.ROUTINGS
    runs = "".join("a" if symbol.endswith("m16_bf16") else "b" for symbol in symbols)
    rounds = [runs[begin:begin + 4] for begin in range(0, len(runs), 4)]
    assert {"".join(sorted(turns)) for turns in rounds} == {"aabb"} and len(set(rounds)) > 2
    assert len(cuda.freed) == len(cuda.pool) and not cuda.events and not cuda.stack


def test_a_problem_is_timed_once(cuda, place):
    """However many shapes are one to selection; each output type is one of its own."""
    cuda.clock = Clock(m16=4.0, m64=5.0)
    shapes = [{**SHAPE, "problem": {**SHAPE["problem"], "K": [64, 96], **more}} for more in ({}, {"out": "f32"})]
    assert [kept.variant for kept in run(place, *shapes)] == ["m16_bf16", "m16_f32"]
    assert len(cuda.launches) == 2 * 2 * (tune.BLOCKS + 1) * tune.ROUNDS * tune.ROUTINGS


def test_one_variant_is_not_timed(cuda, place, capsys):
    """There is nothing to choose."""
    manifest, files = sample_pack.build()
    manifest["artifacts"] = [artifact for artifact in manifest["artifacts"] if artifact["tile"] == "m16"]
    sample_pack.write(place / "pack", manifest, files)
    assert run(place) == () and cuda.launches == []
    assert "one variant" in capsys.readouterr().out


UNFIT = {
    "unknown kernel": ({"kernel": "scale_row"}, "UnknownKernelError: no kernel"),
    "missing dimension": ({"problem": {"M": 96, "E": 3, "top": 1}}, "MissingArgumentError: scale_rows: dimension K"),
    "constraint": ({"problem": {"M": 96, "K": 48, "E": 3, "top": 1}}, "ConstraintError: scale_rows: K % 32 == 0"),
    "unknown name": ({"problem": {"M": 96, "K": 64, "E": 3, "top": 1, "X": 3}}, "UnknownArgumentError: scale_rows"),
    "no work": ({"problem": {"M": 0, "K": 64, "E": 3, "top": 1}}, "TuningError: scale_rows: nothing to compute"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_timed_is_told(cuda, place, capsys, name):
    """By its place in the file; the others are timed, and the command says that something is missing."""
    cuda.clock = Clock(m16=4.0, m64=5.0)
    replaced, words = UNFIT[name]
    assert len(run(place, {**SHAPE, **replaced}, SHAPE, status=1)) == 1
    line, = [line for line in capsys.readouterr().out.splitlines() if words in line]
    assert f"{place / 'shapes.json'}: [0]" in line


def test_integers_without_a_rule_are_refused(cuda, place, capsys):
    """Nobody can say which of them a kernel may follow."""
    sample_pack.write(place / "pack")
    assert run(place, status=1) == () and cuda.launches == []
    assert "no rule of the manifest says what the integers of offsets may be" in capsys.readouterr().out


def test_memory_may_be_short(cuda, place, capsys):
    """That is told of the shape, whose memory comes back; the others are timed."""
    cuda.clock, cuda.largest = Clock(m16=4.0, m64=5.0), tune.FLUSH_BYTES
    large = {**SHAPE, "problem": {**SHAPE["problem"], "M": 1 << 21, "K": 96}}
    assert len(run(place, large, SHAPE, status=1)) == 1 and len(cuda.freed) == len(cuda.pool)
    assert "CudaError: cuMemAllocAsync failed: CUDA_ERROR_OUT_OF_MEMORY (2)" in capsys.readouterr().out


def test_a_launch_that_fails_ends_the_command(cuda, place, capsys):
    """The context may be lost. Rows of before are in the file, and memory and events came back."""
    cuda.clock = Clock(m16=4.0, m64=5.0)
    first, = run(place)
    cuda.fail["cuLaunchKernelEx"] = 719
    assert run(place, status=2) == (first,)
    assert "cuLaunchKernelEx failed: CUDA_ERROR_LAUNCH_FAILED (719)" in capsys.readouterr().err
    assert len(cuda.freed) == len(cuda.pool) and not cuda.events


def test_the_table_says_what_was_found(cuda, place, capsys):
    """Default and fastest variant with their times, and what became of it."""
    cuda.clock = Clock(m16=4.0, m64=5.0)
    run(place)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["kernel", "problem", "default", "us", "fastest", "us", "spread"]
    assert table[1].split() == ["scale_rows", "M", "96", "m64_bf16", "5.00", "m16_bf16", "4.00", "0.0%", "kept"]
    assert table[2] == f"{place}/tuned.json has 1 rows; LOADER_TUNED={place}/tuned.json lets them decide"
    for cuda.clock, verdict in ((Clock(m16=6.0, m64=5.0), "the default"),
                                (Clock(0.3, m16=4.5, m64=5.0), "within the noise")):
        run(place)
        assert verdict in capsys.readouterr().out


def test_where_rows_go_is_said_by_somebody(cuda, place, monkeypatch, capsys):
    """By ``--out``, else by the variable that lets them decide; a place where nothing can be written is told first."""
    (place / "shapes.json").write_text(json.dumps(SHAPE))
    with pytest.raises(SystemExit, match="tune: expected --out FILE, or LOADER_TUNED"):
        main(["tune", str(place / "shapes.json")])
    assert main(["tune", str(place / "shapes.json"), "--out", str(place / "no" / "rows.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err and not cuda.launches
    cuda.clock = Clock(m16=4.0, m64=5.0)
    monkeypatch.setenv(tuned.VARIABLE, str(place / "rows.json"))
    assert main(["tune", str(place / "shapes.json")]) == 0 and len(tuned.read(str(place / "rows.json"))) == 1
    (place / "rows.json").write_text("[]")
    assert main(["tune", str(place / "shapes.json")]) == 2 and (place / "rows.json").read_text() == "[]"


@pytest.mark.parametrize("variable", ["LOADER_TRACE_DIR", "LOADER_UNMEASURED_DIR"])
def test_a_trace_is_read(cuda, place, monkeypatch, variable):
    """What launches left there is tuned, and then they run what was fastest."""
    monkeypatch.setenv(variable, str(place / "trace"))
    calls = [arguments(), arguments(m=32), arguments(output="f32")]
    for call in calls:
        loader.launch("scale_rows", **call)
    monkeypatch.delenv(variable)
    shapes = problems.read([str(place / "trace")], registry.registry())
    cuda.clock = Clock(m16=4.0, m64=5.0)
    found = list(tune.tune(registry.registry(), shapes, driver.get().device(0), [], 0))
    assert [outcome.error for outcome in found] == [None] * 3
    assert {(outcome.row.variant, outcome.row.features["M"]) for outcome in found} == {
        ("m16_bf16", 96), ("m16_bf16", 32), ("m16_f32", 96)}


def shape_of(family, problem):
    """A problem as somebody writes it: numbers and words."""
    used = {name for argument in family.arguments if argument.name in problem.dtypes for extent in argument.shape
            for name in expression.names(extent)}
    words = {s.name: s.choices[problem.values[s.name]] if s.choices else problem.values[s.name] for s in family.scalars}
    sizes = {name: problem.values[name] for name in family.dimensions if name in used}
    return problems.Shape(family.name, {**sizes, **words, **problem.dtypes}, "here")


def is_small(family, problem):
    """Something to compute in some megabytes, with room for rows of scales, and without what may be left out."""
    return (problem is not None and max(problem.bytes) < 1 << 22 and not evaluate(family.skip or 0, problem.values)
            and problem.values.get("S", 1 << 30) >= problem.values.get("M", 0) + 128
            and not any(argument.optional and argument.name in problem.dtypes for argument in family.arguments))


def test_every_kernel_is_timed_or_refused(cuda, tmp_path, monkeypatch, rng):
    """All that the matrix has, without what may be left out: refused are those with integers that no rule is about."""
    manifest_pack.write(tmp_path, lambda artifact: image(artifact["symbol"], [
        [p["offset"], p["size"]] for p in artifact["parameters"]]) + artifact["arch"].encode())
    monkeypatch.setattr(tune, "BLOCKS", 1)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    found, device, outcomes = registry.load([str(tmp_path)], None, ()), driver.get().device(0), {}
    for name, family in found.families.items():
        problem = random_problem(rng, family)
        while not is_small(family, problem):
            problem = random_problem(rng, family)
        outcomes[name], = tune.tune(found, [shape_of(family, problem)], device, [], 0)
        cuda.memory.clear()
        cuda.launches.clear()
    errors = {name: str(outcome.error) for name, outcome in outcomes.items() if outcome.error}
    refused = {name for name, error in errors.items() if "no rule of the manifest" in error}
    timed = {name for name, outcome in outcomes.items() if outcome.times}
    assert refused and all("mqa_logits" in name for name in refused), refused
    assert not [name for name in timed if "mqa_logits" in name] and len(timed) > 50
    others = {name: error for name, error in errors.items() if name not in refused and "runs this on" not in error}
    assert not others
    assert len(cuda.freed) == len(cuda.pool)
