"""kernels.yaml: what expands to what, and every mistake with the place it names."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from shipped_matrix import MATRIX

from generator.compile import FLAGS
from generator.errors import MatrixError
from generator.matrix import load
from generator.render import Renderer
from loader.arch import ARCHS
from loader.expression import evaluate, names, solving_order
from loader.manifest import KEYWORDS, OWN_VALUES


def family():
    """A family that uses every part of the schema."""
    return {
        "summary": "y = factor * x",
        "arguments": [
            {"name": "x", "direction": "in", "dtypes": ["f16"], "shape": ["M", "K / 2"], "alignment": 16, "doc": "in"},
            {"name": "y", "direction": "out", "dtypes": ["f16", "f32"], "shape": ["M"], "alignment": 4, "doc": "out"},
        ],
        "scalars": [{"name": "factor", "dtype": "f32", "doc": "multiplier"}],
        "constraints": ["K % 8 == 0"],
        "skip": "M == 0",
        "select": {
            "match": {"out": "y"},
            "features": {"M": "M", "rows": "fdiv(M, 4)"},
            "domain": {"M": [1, 64, 4096], "sm_count": [132]},
            "measured": [],
        },
        "parameters": [
            {"scalar": "factor", "dtype": "f32", "value": "factor"},
            {"tensor_map": "x_map", "argument": "x", "element": "f16", "dims": ["K / 2", "M"], "strides": ["K"],
             "box": ["block_k", "block_m"], "swizzle": "block_k * 2"},
            {"pointer": "y"},
        ],
        "targets": {
            "hopper": {
                "template": "t.cu.j2",
                "archs": ["90a", "100a"],
                "axes": {
                    "tile": [{"block_m": 8, "stages": 2}, {"block_m": 128, "stages": 4}],
                    "block_k": [64, 32],
                    "out": ["f16", "f32"],
                },
                "exclude": [{"block_m": 8, "block_k": 32}],
                "name": "m{block_m}k{block_k}",
                "constants": {"threads": "block_m * 4", "stage": "block_m * block_k * sizeof_x"},
                "launch": {
                    "grid": ["min(sm_count, ceil_div(M, block_m))", 1, 1], "block": ["threads", 1, 1],
                    "cluster": [1, 1, 1], "shared": "stages * stage + 16 * sizeof_y", "pdl": False,
                },
                "cost": "ceil_div(M, block_m) * (100 + block_m) + block_k if rows < 1000 else rows - block_m - block_k",
            }
        },
    }  # fmt: skip


def recording(family="f", arch="90a", features=("M", "rows"), times=({"m8k64": 1.0},)):
    """A file of measured rows."""
    rows = [{"arch": arch, "device": "H", "features": dict.fromkeys(features, 1), "microseconds": t} for t in times]
    return json.dumps({"benchmark": "tune", "family": family, "rows": rows})


FAST = [{tile: 1.0, "m8k64": 2.0} for tile in ("m128k32", "m128k64")]
RECORDED = {
    "fast.json": recording(times=FAST),
    "fair.json": recording(times=[FAST[0] | {"m8k64": 0.5}, FAST[1], {"m128k32": 1}]),
    "tile.json": recording(times=[{"m8k64": 1.0}, {"m9": 1.0}]),
    "arch.json": recording(arch="120a", features=()),
    "feature.json": recording(features=["M"]),
    "family.json": recording(family="g"),
    "text.json": recording(times=[{"m8k64": "1.0"}]),
    "empty.json": recording(times=[]),
    "broken.json": "{",
}


def expand(tmp_path, families):
    for name, text in RECORDED.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "kernels.yaml"
    path.write_text(yaml.safe_dump({"schema": 1, "families": families}, sort_keys=False))
    return load(path)


def edited(changes):
    """The family with values replaced; a key is a dotted path, ``DELETE`` removes."""
    result = copy.deepcopy(family())
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = result
        for parent in parents:
            place = place[parent]
        if value is DELETE:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(value)
        else:
            place[last] = value
    return result


DELETE = object()
HOPPER = "families.f.targets.hopper"
ROOT = Path(__file__).resolve().parents[2]


def test_expansion_is_the_cross_product_less_exclusions(tmp_path):
    """Two tiles by two depths by two types on two archs, less what is excluded, sorted by arch and name."""
    variants = expand(tmp_path, {"f": family()}).variants
    names = [f"{tile}_{out}" for tile in ("m128k32", "m128k64", "m8k64") for out in ("f16", "f32")]
    assert [(v.arch, v.variant) for v in variants] == [(arch, name) for arch in ("100a", "90a") for name in names]


def test_a_variant_carries_numbers_where_they_are_known(tmp_path):
    """Axes and constants are folded; dimensions stay; offsets follow the C ABI."""
    variant = next(v for v in expand(tmp_path, {"f": family()}).variants if v.label == "f/m128k32_f32@90a")
    assert variant.symbol == "f_m128k32_f32"
    assert variant.tile == "m128k32"
    assert variant.axes == {"block_m": 128, "stages": 4, "block_k": 32, "out": "f32"}
    assert variant.constants == {"threads": 512, "stage": 8192}
    assert variant.launch == {
        "grid": [["min", "sm_count", ["ceil_div", "M", 128]], 1, 1], "block": [512, 1, 1], "cluster": [1, 1, 1],
        "shared": 4 * 8192 + 64, "pdl": False,
    }  # fmt: skip
    assert [(p["name"], p["offset"], p["size"]) for p in variant.parameters] == [
        ("factor", 0, 4), ("x_map", 64, 128), ("y", 192, 8)]  # fmt: skip
    assert variant.parameter_bytes == 200
    assert variant.parameters[1]["box"] == [32, 128]
    assert variant.parameters[1]["swizzle"] == 64


def test_a_family_keeps_its_constraints(tmp_path):
    """What a call must hold to reaches the manifest, as text and as an expression."""
    content = edited({"constraints": ["K % 4 == 0", "M < 9 or K == 8"]})
    assert expand(tmp_path, {"f": content}).families["f"]["constraints"] == [
        {"text": "K % 4 == 0", "expression": ["==", ["%", "K", 4], 0]},
        {"text": "M < 9 or K == 8", "expression": ["or", ["<", "M", 9], ["==", "K", 8]]},
    ]


def test_a_box_without_swizzle_may_be_wide(tmp_path):
    """Only the span of a swizzle bounds the bytes of a row."""
    content = edited({"parameters.1.swizzle": 0, "parameters.1.box.0": 256})
    assert {v.parameters[1]["box"][0] for v in expand(tmp_path, {"f": content}).variants} == {256}


def test_a_tensor_map_has_the_elements_of_its_argument(tmp_path):
    """Of each variant, where no others are named."""
    content = edited({"parameters.1": {"tensor_map": "y_map", "argument": "y", "dims": ["M"], "strides": [],
                                       "box": [8], "swizzle": 0}})  # fmt: skip
    found = expand(tmp_path, {"f": content}).variants
    assert {(v.axes["out"], v.parameters[1]["element"]) for v in found} == {("f16", "f16"), ("f32", "f32")}


@pytest.mark.parametrize(
    ("entry", "dimension"),
    [
        ("M", "M"), (["/", "K", 2], "K"), (["+", "E", 1], "E"), (["+", 1, "E"], "E"), (["*", 2, "E"], "E"),
        (["-", "E", 1], "E"), (["-", 9, "E"], "E"), (["/", 12, "E"], "E"), (["//", "K", 2], None),
        (["ceil_div", "K", 2], None), (["+", "A", "B"], None), (["*", ["+", "M", 1], 2], "M"), (["+", 1, 2], None),
        (3, None),
    ],
)  # fmt: skip
def test_which_shape_gives_a_dimension(entry, dimension):
    """A name among numbers, where the extent gives it back."""
    order, _ = solving_order([entry], ())
    assert [name for _, name in order if name] == ([dimension] if dimension else [])


def test_a_target_may_have_more_parameters(tmp_path):
    """They follow those of the family."""
    own = edited({"targets.hopper.parameters": [{"pointer": "again", "argument": "y"}]})
    for variant in expand(tmp_path, {"f": own}).variants:
        assert [p["name"] for p in variant.parameters] == ["factor", "x_map", "y", "again"]
        assert variant.parameter_bytes == variant.parameters[-1]["offset"] + 8


def test_a_target_says_what_differs_in_a_parameter(tmp_path):
    """It stays where the family has it, and what is not said stays, too; once is enough."""
    own = edited({"targets.hopper.parameters": [{"tensor_map": "x_map", "l2_promotion": 128}]})
    plain, variants = (expand(tmp_path, {"f": family}).variants for family in (edited({}), own))
    for before, variant in zip(plain, variants, strict=True):
        assert [p["name"] for p in variant.parameters] == ["factor", "x_map", "y"]
        assert variant.parameters[1] == {**before.parameters[1], "l2_promotion": 128}
    twice = edited({"targets.hopper.parameters": [{"pointer": "y"}, {"pointer": "y"}]})
    with pytest.raises(MatrixError, match=r"families.f.targets.hopper.parameters\[1\].pointer: duplicate name 'y'"):
        expand(tmp_path, {"f": twice})


def test_families_with_common_kernels(tmp_path):
    """A family that names another one's kernels has its symbols; a pointer may be called other than its argument."""
    own = edited({"parameters.2": {"pointer": "result", "argument": "y"}})
    variants = expand(tmp_path, {"f": own, "g": {**own, "kernels": "f"}}).variants
    assert {v.symbol.rpartition("_")[0] for v in variants if v.family == "g"} == {
        v.symbol.rpartition("_")[0] for v in variants if v.family == "f"}
    pointer = variants[0].parameters[2]
    assert (pointer["name"], pointer["argument"]) == ("result", "y")
    assert variants[0].declaration.endswith("* result")
    with pytest.raises(MatrixError, match=r"families.g.kernels: 'h' is no family above this one"):
        expand(tmp_path, {"f": own, "g": {**own, "kernels": "h"}})


@pytest.mark.parametrize("base", ["grouped_fp8", "grouped_fp8_mxfp4", "grouped_bf16", "grouped_bf16_nn",
                                  "grouped_fp8_ue8m0", "grouped_fp8_ue8m0_nn", "grouped_fp8_ue8m0_mxfp4",
                                  "grouped_mxfp4_fp8_ue8m0", "grouped_mxfp8_rows",
                                  "grouped_mxfp8_rows_mxfp4"])  # fmt: skip
def test_forms_of_rows_have_the_same_kernels(base):
    """Same sources, so each is compiled once."""
    renderer = Renderer(ROOT / "templates", "any", FLAGS)
    digests = {}
    for variant in MATRIX.variants:
        if variant.family in (base, *(f"{base}_{form}" for form in ("ends", "labels", "masked"))):
            digests.setdefault((variant.arch, variant.variant), []).append(renderer.render(variant).digest)
    assert digests
    assert all(len(each) == 4 and len(set(each)) == 1 for each in digests.values())


def test_expansion_does_not_depend_on_the_order_of_keys(tmp_path):
    """Sorted keys in the file give the same variants."""
    first = expand(tmp_path, {"f": family()})
    path = tmp_path / "kernels.yaml"
    axes = family()["targets"]["hopper"]["axes"]
    shuffled = edited({"targets.hopper.axes": dict(sorted(axes.items(), reverse=True))})
    path.write_text(yaml.safe_dump({"families": {"f": shuffled}, "schema": 1}))
    assert load(path).variants == first.variants


def test_measured_rows_decide_what_is_reachable(tmp_path):
    """Where an arch has rows, its tiles must win one of them, whatever they cost."""
    changes = {"targets.hopper.cost": "block_m * 1000 + block_k", "targets.hopper.archs": ["90a"]}
    assert [problem.split(": ")[2] for problem in problems(tmp_path, edited(changes))] == [
        "tile m128k64 can never be chosen on 90a",
        "tile m128k32 can never be chosen on 90a",
    ]
    found = problems(tmp_path, edited(changes | {"select.measured": ["fast.json"]}))
    assert [problem.split(": ", 2)[2] for problem in found] == [
        "tile m8k64 can never be chosen on 90a: it wins in no measured row"
    ]
    expansion = expand(tmp_path, {"f": edited(changes | {"select.measured": ["fair.json"]})})
    assert expansion.variants and expansion.measured == ("fair.json",)
    assert expansion.families["f"]["select"]["measured"] == json.loads(RECORDED["fair.json"])["rows"]


def test_requirements_hold_the_numbers_of_a_variant(tmp_path):
    """A tile that fits no problem, or never the cheapest of those that fit, can never be chosen."""
    rule = {"targets.hopper.requires": ["M <= block_m * 8"]}
    with_512 = {"select.domain.M": [1, 64, 1024, 4096]}
    found = problems(tmp_path, edited(rule | with_512))
    assert [problem.split(": ")[2] for problem in found] == ["tile m128k64 can never be chosen on 90a, 100a"]
    unfit = problems(tmp_path, edited({"targets.hopper.requires": ["M > block_m * 100"]} | with_512))
    assert "tile m128k64 can never be chosen on 90a, 100a" in [problem.split(": ")[2] for problem in unfit]
    expansion = expand(tmp_path, {"f": edited({"targets.hopper.requires": ["M > 8 - block_m"]})})
    variants = {variant.variant: variant.requires for variant in expansion.variants}
    assert variants["m8k64_f16"] == [{"text": "M > 0", "expression": [">", "M", 0]}]
    assert variants["m128k64_f16"] == [{"text": "M > -120", "expression": [">", "M", -120]}]


def test_equal_costs_go_to_the_name_that_sorts_first(tmp_path):
    """As in the loader, whatever the order in the file."""
    changes = {"targets.hopper.cost": "100 if block_k == 32 else 100", "targets.hopper.archs": ["90a"]}
    assert [problem.split(": ")[2] for problem in problems(tmp_path, edited(changes))] == [
        "tile m8k64 can never be chosen on 90a",
        "tile m128k64 can never be chosen on 90a",
    ]


def problems(tmp_path, content):
    with pytest.raises(MatrixError) as raised:
        expand(tmp_path, {"f": content})
    return raised.value.problems


CASES = {
    "values of no integers": (
        {"values": [{"argument": "a", "maximum": "M"}]},
        "families.f.values[0].argument: 'a' is no integer input that every call gives; these are none",
    ),
    "values beyond a name": (
        {"values": [{"argument": "a", "maximum": "Q"}]},
        "families.f.values[0].maximum: unknown name 'Q'",
    ),
    "unknown key of a family": ({"colour": 1}, "families.f.colour: unknown key"),
    "unknown key of a target": ({"targets.hopper.achs": []}, f"{HOPPER}.achs: unknown key"),
    "unknown key of a tensor map": ({"parameters.1.boxes": []}, "families.f.parameters[1].boxes: unknown key"),
    "missing key": ({"targets.hopper.launch.pdl": DELETE}, f"{HOPPER}.launch.pdl: missing key"),
    "wrong type": (
        {"arguments.0.alignment": "16"},
        "families.f.arguments[0].alignment: Input should be a valid integer, got '16'",
    ),
    "number for a string": (
        {"targets.hopper.archs.0": 90},
        f"{HOPPER}.archs[0]: Input should be a valid string, got 90",
    ),
    "unknown dtype": (
        {"arguments.0.dtypes.0": "fp4"},
        "families.f.arguments[0].dtypes[0]: Input should be 'e2m1x2', "
        "'ue4m3', 'ue8m0', 'e4m3', 'u8', 'i32', 'i64', 'f32', 'f16' or 'bf16', got 'fp4'",
    ),
    "switch as an axis": (
        {"targets.hopper.axes.block_k.0": True},
        f"{HOPPER}.axes.block_k[0]: expected an integer or a string (0 or 1 for a switch), got True",
    ),
    "two kinds of parameter": (
        {"parameters.0.pointer": "y"},
        "families.f.parameters[0]: expected exactly one of the keys pointer, scalar, tensor_map",
    ),
    "unreadable expression": (
        {"targets.hopper.cost": "M +"},
        f"{HOPPER}.cost: cannot read 'M +': invalid syntax; a choice is written `a if condition else b`",
    ),
    "tensor map over an optional argument": (
        {"arguments.0.optional": True, "arguments.1.shape": ["M", "K"]},
        "families.f.parameters[1].argument: 'x' is optional, a tensor map needs its address",
    ),
    "variants by an optional argument": (
        {"arguments.1.optional": True}, "families.f.select.match.out: optional argument 'y'"),
    "size of an optional argument at build time": (
        {"arguments.1.optional": True, "select.match": {}},
        f"{HOPPER}.launch.shared: 2048 + (16 * sizeof_y) has no value at build time (variant m8k64 and 1 more)"),
    "dimension that only an optional argument gives": (
        {"arguments.1.shape": ["M", "round_up(L, 2)"], "arguments.2": {
            "name": "z", "direction": "in", "dtypes": ["i32"], "shape": ["L"], "alignment": 4, "doc": "in",
            "optional": True}},
        "families.f.arguments[1].shape[1]: unknown name 'L'; known are K, M, factor"),
    "unknown dimension of a shape": (
        {"arguments.0.shape.1": "round_up(L, 4)"},
        "families.f.arguments[0].shape[1]: unknown name 'L'; known are M, factor",
    ),
    "unknown name in a constraint": (
        {"constraints.0": "block_m == 1"},
        "families.f.constraints[0]: unknown name 'block_m'; known are K, M, factor, sizeof_x, sizeof_y",
    ),
    "unreadable constraint": (
        {"constraints.0": "M ="},
        "families.f.constraints[0]: cannot read 'M =': invalid syntax; a choice is written `a if condition else b`",
    ),
    "unknown name in skip": (
        {"skip": "Q"},
        "families.f.skip: unknown name 'Q'; known are K, M, factor, sizeof_x, sizeof_y",
    ),
    "unknown name in the grid": (
        {"targets.hopper.launch.grid.1": "Z"},
        f"{HOPPER}.launch.grid[1]: unknown name 'Z'; known are K, M, block_k, block_m, factor, out, "
        "sizeof_x, sizeof_y, sm_count, stage, stages, threads",
    ),
    "dimension in shared memory": (
        {"targets.hopper.launch.shared": "M"},
        f"{HOPPER}.launch.shared: unknown name 'M'; known are block_k, block_m, out, sizeof_x, "
        "sizeof_y, stage, stages, threads",
    ),
    "string axis in shared memory": (
        {"targets.hopper.launch.shared": "out"},
        f"{HOPPER}.launch.shared: out has no value at build time (variant m8k64_f16 and 5 more)",
    ),
    "unknown name in a constant": (
        {"targets.hopper.constants.threads": "bock_m"},
        f"{HOPPER}.constants.threads: unknown name 'bock_m'; "
        "known are block_k, block_m, out, sizeof_x, sizeof_y, stages",
    ),
    "unknown axis in the name": (
        {"targets.hopper.name": "n{block_n}"},
        f"{HOPPER}.name: unknown axis 'block_n'; known are block_k, block_m, out, stages",
    ),
    "attribute in the name": (
        {"targets.hopper.name": "n{out.__class__}"},
        f"{HOPPER}.name: unknown axis 'out.__class__'; known are block_k, block_m, out, stages",
    ),
    "unknown arch": (
        {"targets.hopper.archs.1": "100"},
        f"{HOPPER}.archs[1]: unknown arch '100'; known are {', '.join(ARCHS)}",
    ),
    "duplicate arch": ({"targets.hopper.archs.1": "90a"}, f"{HOPPER}.archs[1]: duplicate arch '90a'"),
    "tile over shared memory": (
        {"targets.hopper.axes.tile.1.stages": 15},
        f"{HOPPER}.axes.tile[1]/block_k[0]: needs 245792 bytes of shared memory, sm_90a has 232448 "
        "(variant m128k64_f16)",
    ),
    "unreachable tile": (
        {
            "targets.hopper.exclude": [{"block_m": 8, "block_k": 32}, {"block_m": 128, "block_k": 32}],
            "targets.hopper.cost": "block_m",
        },
        f"{HOPPER}.axes.tile[1]/block_k[0]: tile m128k64 can never be chosen on 90a, 100a: it wins at no "
        "point of select.domain",
    ),
    "tile for problems that a constraint forbids": (
        {"constraints.1": "M + sm_count > 4000"},
        f"{HOPPER}.axes.tile[1]/block_k[1]: tile m128k32 can never be chosen on 90a, 100a",
    ),
    "cost without a domain": (
        {"select.domain": {}},
        f"{HOPPER}.cost: select.domain is empty, so no two tiles can be compared",
    ),
    "domain without a name that cost uses": (
        {"targets.hopper.cost": "K"},
        f"{HOPPER}.cost: 'K' has no value; known are M, rows, sm_count",
    ),
    "unknown name in the domain": ({"select.domain.L": [1]}, "families.f.select.domain.L: unknown name 'L'"),
    "ragged axis": (
        {"targets.hopper.axes.tile.1": {"block_m": 128}},
        f"{HOPPER}.axes.tile[1]: expected the keys of the first entry, block_m, stages",
    ),
    "duplicate axis entry": ({"targets.hopper.axes.block_k.1": 64}, f"{HOPPER}.axes.block_k[1]: duplicate entry"),
    "axis named as a dimension": (
        {"targets.hopper.axes.M": [1]},
        f"{HOPPER}.axes.M[0].M: duplicate name 'M': it is already a dimension or a scalar",
    ),
    "constant named as an axis": (
        {"targets.hopper.constants.stages": 1},
        f"{HOPPER}.constants.stages: duplicate name: it is already a key of axis 'tile'",
    ),
    "unknown name in a requirement": (
        {"targets.hopper.requires": ["Q <= block_m"]},
        f"{HOPPER}.requires[0]: unknown name 'Q'",
    ),
    "useless exclusion": (
        {"targets.hopper.exclude.1": {"block_m": 9}},
        f"{HOPPER}.exclude[1]: excludes no combination of the axes",
    ),
    "two variants of one name": (
        {"targets.hopper.name": "m{block_m}"},
        "families.f.targets: duplicate variant 'm128_f16' for 90a: two targets or two combinations "
        "of axes give the same name",
    ),
    "duplicate argument": ({"arguments.1.name": "x"}, "families.f.arguments[1].name: duplicate name 'x'"),
    "scalar named as an argument": ({"scalars.0.name": "y"}, "families.f.scalars[0].name: duplicate name 'y'"),
    "duplicate dtype": ({"arguments.0.dtypes": ["f16", "f16"]}, "families.f.arguments[0].dtypes: duplicate dtype"),
    "feature named as a scalar": (
        {"select.features.factor": "M"},
        "families.f.select.features.factor: 'factor' already names something else",
    ),
    "feature named as the device": (
        {"select.features.sm_count": "M"},
        "families.f.select.features.sm_count: 'sm_count' already names something else",
    ),
    "feature named as a dimension": (
        {"select.features.K": "M"},
        "families.f.select.features.K: 'K' already names something else",
    ),
    "unknown name in a feature": ({"select.features.rows": "Q"}, "families.f.select.features.rows: unknown name 'Q'"),
    "unknown name in a parameter": ({"parameters.0.value": "Q"}, "families.f.parameters[0].value: unknown name 'Q'"),
    "swizzle by a dimension": ({"parameters.1.swizzle": "M"}, "families.f.parameters[1].swizzle: unknown name 'M'"),
    "half a thread": (
        {"targets.hopper.launch.block.0": "fdiv(threads, 3)"},
        f"{HOPPER}.launch.block[0]: expected an integer of at least 1, got 10.66",
    ),
    "alignment": ({"arguments.0.alignment": 12}, "families.f.arguments[0].alignment: 12 is not a power of two"),
    "match without an axis": ({"select.match": {"kind": "y"}}, f"{HOPPER}.axes: select.match needs an axis 'kind'"),
    "match of an unknown argument": (
        {"select.match": {"out": "z"}},
        "families.f.select.match.out: unknown argument 'z'",
    ),
    "matched value no dtype": (
        {"targets.hopper.axes.out.1": "bf16"},
        f"{HOPPER}.axes.out[1]: 'bf16' is no dtype of argument 'y'; its dtypes are f16, f32",
    ),
    "parameter of an unknown argument": (
        {"parameters.2.pointer": "z"},
        "families.f.parameters[2].pointer: unknown argument 'z'; known are x, y",
    ),
    "no parameters": ({"parameters": DELETE}, f"{HOPPER}: no parameters: neither the target nor its family lists them"),
    "duplicate parameter": ({"parameters.3": {"pointer": "y"}}, "families.f.parameters[3].pointer: duplicate name 'y'"),
    "box too large": (
        {"parameters.1.box.1": "block_m * 4"},
        "families.f.parameters[1].box[1]: 512 is over the limit of 256 elements (variant m128k64_f16 and 3 more)",
    ),
    "box no multiple of 16 bytes": (
        {"parameters.1.box.0": 9, "parameters.1.swizzle": 0},
        "families.f.parameters[1].box[0]: the inner extent is 18 bytes, not a multiple of 16 "
        "(variant m8k64_f16 and 5 more)",
    ),
    "box over the swizzle": (
        {"parameters.1.box.0": 128},
        "families.f.parameters[1].box[0]: the inner extent is 256 bytes, over the swizzle span of 128 "
        "(variant m8k64_f16 and 3 more)",
    ),
    "swizzle": (
        {"parameters.1.swizzle": 48},
        "families.f.parameters[1].swizzle: 48 is not one of (0, 32, 64, 128) (variant m8k64_f16 and 5 more)",
    ),
    "element of a dtype that is no map's": (
        {"parameters.1.element": DELETE, "arguments.0.dtypes": ["e4m3"]},
        "families.f.parameters[1].element: expected one of u8, u16, u32, f32, tf32, bf16, f16, u4_align16: "
        "the dtype of 'x' is e4m3 (variant m8k64_f16 and 5 more)",
    ),
    "element of several dtypes": (
        {"parameters.1.element": DELETE, "arguments.0.dtypes": ["f16", "bf16"], "targets.hopper.constants.stage": "8"},
        "families.f.parameters[1].element: expected one of u8, u16, u32, f32, tf32, bf16, f16, u4_align16: "
        "the dtype of 'x' is not the same in all calls (variant m8k64_f16 and 5 more)",
    ),
    "rank": (
        {"parameters.1.dims": [1] * 6, "parameters.1.strides": [1] * 5, "parameters.1.box": [8] * 6},
        "families.f.parameters[1].dims: a tensor map has 1 to 5 dimensions, got 6",
    ),
    "strides": ({"parameters.1.strides": []}, "families.f.parameters[1].strides: expected 1 entries for 2 dimensions"),
    "inexact tile": (
        {"parameters.1.box.0": "block_k / 7"},
        "families.f.parameters[1].box[0]: 64 / 7 is not a whole number; "
        "use // or fdiv where rounding is meant (variant m8k64_f16 and 3 more)",
    ),
    "too many threads": (
        {"targets.hopper.launch.block.1": 4},
        f"{HOPPER}.launch.block: 2048 is over the limit of 1024 (variant m128k64_f16 and 3 more)",
    ),
    "no cluster": (
        {"targets.hopper.launch.cluster.0": 0},
        f"{HOPPER}.launch.cluster[0]: expected an integer of at least 1, got 0 (variant m8k64_f16 and 5 more)",
    ),
    "row of an unknown tile": (
        {"select.measured": ["tile.json"]},
        "families.f.select.measured[0]: tile.json: rows[1].microseconds.m9: "
        "unknown tile for 90a; known are m128k32, m128k64, m8k64",
    ),
    "row of an arch that is not built": (
        {"select.measured": ["arch.json"]},
        "families.f.select.measured[0]: arch.json: rows[0].arch: '120a' is built by no target; built are 90a, 100a",
    ),
    "row without a feature": (
        {"select.measured": ["fast.json", "feature.json"]},
        "families.f.select.measured[1]: feature.json: rows[0].features: expected exactly M, rows",
    ),
    "rows of another family": (
        {"select.measured": ["family.json"]},
        "families.f.select.measured[0]: family.json: family: these are times of 'g'",
    ),
    "row of another type": (
        {"select.measured": ["text.json"]},
        "families.f.select.measured[0]: text.json: rows[0].microseconds.m8k64",
    ),
    "file without rows": (
        {"select.measured": ["empty.json"]},
        "families.f.select.measured[0]: empty.json: rows: List should have at least 1 item",
    ),
    "file of rows that is not there": (
        {"select.measured": ["none.json"]},
        "families.f.select.measured[0]: none.json: No such file or directory",
    ),
    "file of rows that is no JSON": (
        {"select.measured": ["broken.json"]},
        "families.f.select.measured[0]: broken.json: top level: Invalid JSON: ",
    ),
    "file of rows twice": (
        {"select.measured": ["fast.json", "fast.json"]},
        "families.f.select.measured[1]: duplicate file 'fast.json'",
    ),
    "file of rows elsewhere": (
        {"select.measured": ["../fast.json"]},
        "families.f.select.measured[0]: '../fast.json' is no path below the folder of this file",
    ),
    "local memory of an unknown variant": (
        {"targets.hopper.local_memory": ["m9"]},
        f"{HOPPER}.local_memory[0]: unknown variant 'm9'",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), CASES.values(), ids=CASES.keys())
def test_a_mistake_names_file_entry_and_key(tmp_path, changes, expected):
    """One change to a good family gives this finding."""
    found = problems(tmp_path, edited(changes))
    assert any(problem.startswith(f"kernels.yaml: {expected}") for problem in found), "\n".join(found)


def test_all_mistakes_are_reported_at_once(tmp_path):
    """Findings in different entries do not hide each other."""
    found = problems(tmp_path, edited({"skip": "Q", "arguments.0.alignment": 3, "targets.hopper.archs.1": "91"}))
    assert len(found) == 3


def test_a_duplicate_key_is_an_error(tmp_path):
    """YAML itself would keep the last one."""
    path = tmp_path / "kernels.yaml"
    path.write_text("schema: 1\nfamilies: {}\nschema: 1\n")
    with pytest.raises(MatrixError, match=r"kernels.yaml: not readable as YAML: duplicate key 'schema'.* line 3"):
        load(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"schema: [", "kernels.yaml: not readable as YAML"),
        (b"\xff\xfe\xff", "kernels.yaml: not readable as YAML"),
        (b"", "kernels.yaml: top level: Input should be a valid dictionary"),
        (b"schema: 2\nfamilies: {}", "kernels.yaml: schema: Input should be 1, got 2"),
        (b"schema: 1\nfamilies: {min: 1}", "kernels.yaml: families.min: expected a name"),
    ],
)
def test_a_file_that_is_no_matrix_is_an_error(tmp_path, content, expected):
    """Syntax, encoding, emptiness, version."""
    path = tmp_path / "kernels.yaml"
    path.write_bytes(content)
    with pytest.raises(MatrixError) as raised:
        load(path)
    assert str(raised.value).startswith(expected)


@pytest.mark.parametrize("name", [*sorted(KEYWORDS | OWN_VALUES), "sizeof_x", "sizeof_other"])
def test_names_of_the_loader_are_refused(tmp_path, name):
    """No argument, scalar or dimension is called as a keyword of the calls or a value that the loader sets."""
    argument = {"direction": "in", "dtypes": ["f32"], "alignment": 4, "doc": "", "shape": ["M"]}
    for change, place in (({"arguments.2": {**argument, "name": name}}, "arguments[2].name"),
                          ({"arguments.2": {**argument, "name": "z", "shape": ["M", name]}}, "arguments[2].shape[1]"),
                          ({"scalars.1": {"name": name, "dtype": "i32", "doc": ""}}, "scalars[1].name")):
        with pytest.raises(MatrixError) as raised:
            expand(tmp_path, {"f": edited(change)})
        reason = f"families.f.{place}: {name!r} is a keyword of the loader's calls or a value that it sets"
        assert reason in str(raised.value)


# Families whose result is right where a dimension is 0: the largest of nothing, and the offsets of no slots; shares of
# no request; lists of no pages' keys.
RIGHT_OF_NOTHING = {"amax": {"M", "K"}, "moe_route": {"T", "TOPK"}, "paged_mqa_schedule": {"B"},
                    "sparse_mqa_table": {"P"}}  # fmt: skip
# Of queries with an index each a request has one; the bytes of 128 pages; lists of 128 columns, and of 128 blocks.
NOT_128 = {"paged_mqa_schedule": {"N": 1}} | {
    f"paged_mqa_logits_{fmt}": {"N": 1, "Z": 128 * 128 * 132, "page_stride": 128 * 132}
    for fmt in ("fp8", "mxfp8", "mxfp4")
} | {
    f"{form}sparse_mqa_logits_{fmt}": {"H": 32, "L": 17, "Z": 128 * 128 * 132, "page_stride": 128 * 132}
    for form in ("", "paged_") for fmt in ("mxfp8", "mxfp4")
} | {"sparse_mqa_table": {"block": 8, "unaligned": 0, "L": 129}}


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("name", MATRIX.families)
def test_no_dimension_of_0_drops_results(name, linear):
    """It is refused by a constraint, or there is nothing to compute."""
    family = FamilyReader(name, linear)
    assert family.refuses({}) == [] and not family.skips({})
    for dimension in family.dimensions - RIGHT_OF_NOTHING.get(name, set()):
        assert family.refuses({dimension: 0}) or family.skips({dimension: 0}), dimension


class FamilyReader:
    """Constraints and skip of a shipped family for a problem whose dimensions, and numbers without a default, are 128,
    but for those given."""

    def __init__(self, name, linear):
        self.family = MATRIX.families[name]
        shapes = [entry for argument in self.family["arguments"] for entry in argument["shape"]]
        scalars = {scalar["name"]: scalar.get("default", 128) for scalar in self.family["scalars"]}
        scalars = {key: 0 if isinstance(value, str) else value for key, value in scalars.items()}
        self.dimensions = set().union(*map(names, shapes)) - set(scalars) - {"R"}
        self.fixed = scalars | {f"sizeof_{argument['name']}": 2 for argument in self.family["arguments"]}
        self.fixed |= {"scale_layout": linear} | NOT_128.get(name, {})

    def _values(self, given):
        values = {**dict.fromkeys(self.dimensions, 128), **self.fixed, **given}
        return {**values, "R": values.get("T", 0) * values.get("TOPK", 0)}

    def refuses(self, given):
        return [constraint["text"] for constraint in self.family["constraints"]
                if not evaluate(constraint["expression"], self._values(given))]

    def skips(self, given):
        return self.family["skip"] is not None and evaluate(self.family["skip"], self._values(given))


@pytest.mark.parametrize("name", ["nvfp4_quantize_grouped", "silu_mul_nvfp4_quantize", "relu2_nvfp4_quantize"])
def test_no_rows_need_no_scales(name):
    """S = 0 is refused where there are rows, and only there."""
    assert FamilyReader(name, 0).refuses({"S": 0, "M": 1}) and not FamilyReader(name, 0).refuses({"S": 0, "M": 0})


def test_a_missing_file_is_an_error(tmp_path):
    """The path is named."""
    with pytest.raises(MatrixError, match="absent.yaml: No such file"):
        load(tmp_path / "absent.yaml")
