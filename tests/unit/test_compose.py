"""Composites and words of kernels.yaml: what expands to what, and every mistake with the place it names."""

import copy

import pytest
import yaml

from generator.errors import MatrixError
from generator.matrix import load

FAMILY = {
    "summary": "y = x",
    "arguments": [
        {"name": "x", "direction": "in", "dtypes": ["f16", "f32"], "shape": ["M", "K"], "alignment": 4, "doc": "in"},
        {"name": "y", "direction": "out", "dtypes": ["f16", "f32"], "shape": ["M", "K"], "alignment": 4, "doc": "out"},
    ],
    "scalars": [
        {"name": "way", "dtype": "i32", "choices": ["up", "down"], "default": "up", "doc": "rounding"},
        {"name": "factor", "dtype": "f32", "doc": "multiplier"},
    ],
    "parameters": [{"pointer": "x"}, {"pointer": "y"}],
    "targets": {"any": {
        "template": "t.cu.j2", "archs": ["90a"], "axes": {"threads": [32]}, "name": "t{threads}",
        "launch": {"grid": [1, 1, 1], "block": [32, 1, 1], "cluster": [1, 1, 1], "shared": 0, "pdl": True},
    }},
}  # fmt: skip
COMPOSITE = {
    "summary": "y = x, twice",
    "arguments": [
        {"name": "x", "direction": "in", "dtypes": ["f16"], "shape": ["T", "K"], "alignment": 4, "doc": "in"},
        {"name": "z", "direction": "out", "dtypes": ["f16", "f32"], "shape": ["T", "K"], "alignment": 4, "doc": "out"},
    ],
    "scalars": [{"name": "way", "dtype": "i32", "choices": ["up", "down"], "doc": "rounding"}],
    "split": "T",
    "workspace": [{"name": "between", "dtype": "z", "shape": ["T", "K"]}],
    "steps": [
        {"kernel": "copy", "arguments": {"y": "between"}, "scalars": {"factor": "fdiv(T, 2)"}},
        {"kernel": "copy", "arguments": {"x": "between", "y": "z"}, "scalars": {"way": "down", "factor": 1}},
    ],
}


def expand(tmp_path, changes=(), family=FAMILY):
    """The matrix with values of the composite replaced; a key is a dotted path."""
    composite = copy.deepcopy(COMPOSITE)
    for path, value in dict(changes).items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = composite
        for parent in parents:
            place = place[parent]
        place[last] = value
    path = tmp_path / "kernels.yaml"
    matrix = {"schema": 1, "families": {"copy": copy.deepcopy(family)}, "composites": {"twice": composite}}
    path.write_text(yaml.safe_dump(matrix, sort_keys=False))
    return load(path)


def test_mappings_are_spelled_out(tmp_path):
    """Arguments and scalars of the same name are taken; words become their index, others stay expressions."""
    steps = expand(tmp_path).composites["twice"]["steps"]
    assert steps == [
        {"kernel": "copy", "arguments": {"x": "x", "y": "between"},
         "scalars": {"way": "way", "factor": ["fdiv", "T", 2]}},
        {"kernel": "copy", "arguments": {"x": "between", "y": "z"}, "scalars": {"way": 1, "factor": 1}},
    ]  # fmt: skip


def test_templates_get_the_index_of_each_word(tmp_path):
    """By scalar and word."""
    assert expand(tmp_path).variants[0].choices == {"way": {"up": 0, "down": 1}}


WRONG = {
    "unknown kernel": ({"steps.0.kernel": "move"}, "steps[0].kernel: unknown kernel 'move'; known are copy"),
    "unknown buffer": ({"steps.0.arguments": {"y": "nowhere"}}, "steps[0].arguments.y: unknown buffer 'nowhere'"),
    "unknown argument": ({"steps.0.arguments": {"q": "x"}}, "steps[0].arguments.q: copy has no such one"),
    "unknown scalar": ({"steps.1.scalars": {"speed": 1, "factor": 1}}, "steps[1].scalars.speed: copy has no such one"),
    "read before it is written": (
        {"steps.0.arguments": {"x": "between", "y": "z"}}, "steps[0].arguments.x: no step before this one writes"),
    "an input is written": (
        {"steps.1.arguments": {"x": "between", "y": "x"}}, "the kernel writes 'x', which is an input"),
    "nothing writes the result": ({"steps.1.arguments": {"x": "x", "y": "between"}}, "no step writes 'z'"),
    "dtype that a kernel does not take": (
        {"workspace.0.dtype": "bf16"}, "steps[0].arguments.y: 'between' may be bf16, which the kernel does not take"),
    "dtype of nothing": ({"workspace.0.dtype": "q"}, "workspace[0].dtype: 'q' is no dtype and no argument"),
    "rank": ({"workspace.0.shape": ["T"]}, "'between' has 1 dimensions, the kernel expects 2"),
    "name twice": ({"workspace.0.name": "x"}, "workspace[0].name: duplicate name 'x'"),
    "unknown dimension": ({"workspace.0.shape": ["T", "Q"]}, "workspace[0].shape[1]: unknown name 'Q'"),
    "split of nothing": ({"split": "M"}, "split: unknown dimension 'M'"),
    "split in the middle": ({"split": "K"}, "a call is split along 'K', which can only be a whole first dimension"),
    "unknown word": ({"steps.1.scalars": {"way": "sideways", "factor": 1}}, "steps[1].scalars.way: unknown name"),
    "scalar with other words": (
        {"scalars.0.choices": ["left", "right"]}, "steps[0].scalars.way: expected a scalar with the choices up, down"),
    "scalar that nothing gives": ({"steps.0.scalars": {}}, "steps[0].scalars.factor: unknown name 'factor'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_names_its_place(tmp_path, case):
    """File, composite and key."""
    changes, words = WRONG[case]
    with pytest.raises(MatrixError) as raised:
        expand(tmp_path, changes)
    assert words in str(raised.value) and "kernels.yaml: composites.twice" in str(raised.value)


def optional_family(name):
    """``copy`` with an optional argument."""
    family = copy.deepcopy(FAMILY)
    family["arguments"].append({**FAMILY["arguments"][0], "name": name, "shape": ["G"], "optional": True})
    family["parameters"].append({"pointer": name})
    return family


OPTIONAL = {"name": "table", "direction": "in", "dtypes": ["f16"], "shape": ["G"], "alignment": 4, "doc": "in",
            "optional": True}  # fmt: skip


def test_a_step_leaves_out_what_the_composite_lacks(tmp_path):
    """An optional argument takes the composite's of the same name, or the one it is mapped to, or none."""
    changes = {"arguments": [*COMPOSITE["arguments"], OPTIONAL], "steps.1.arguments": {
        "x": "between", "y": "z", "more": "table"}}  # fmt: skip
    expansion = expand(tmp_path, changes, optional_family("more"))
    assert [step["arguments"]["more"] for step in expansion.composites["twice"]["steps"]] == [None, "table"]
    assert expansion.composites["twice"]["arguments"][2]["optional"] is True
    same_name = expand(tmp_path, changes | {"steps.1.arguments": {"x": "between", "y": "z"}}, optional_family("table"))
    assert [step["arguments"]["table"] for step in same_name.composites["twice"]["steps"]] == ["table", "table"]


WRONG_OPTIONAL = {
    "kernel that needs it": (
        {"steps.0.arguments": {"x": "table", "y": "between"}},
        "steps[0].arguments.x: 'table' may be left out, which the kernel does not take"),
    "dtype of a workspace": (
        {"workspace.0.dtype": "table"}, "workspace[0].dtype: 'table' is no dtype and no argument that is always given"),
    "unknown buffer": ({"steps.0.arguments": {"y": "between", "more": "q"}}, "steps[0].arguments.more: unknown buffer"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_OPTIONAL)
def test_nothing_relies_on_an_optional_argument(tmp_path, case):
    """No step whose kernel needs it, and no buffer of its dtype."""
    changes, words = WRONG_OPTIONAL[case]
    with pytest.raises(MatrixError) as raised:
        expand(tmp_path, {"arguments": [*COMPOSITE["arguments"], {**OPTIONAL, "shape": ["G", "K"]}], **changes},
               optional_family("more"))  # fmt: skip
    assert words in str(raised.value)


def test_a_composite_is_no_family(tmp_path):
    """One name, one meaning."""
    path = tmp_path / "kernels.yaml"
    path.write_text(yaml.safe_dump({"schema": 1, "families": {"copy": FAMILY}, "composites": {"copy": COMPOSITE}}))
    with pytest.raises(MatrixError, match="composites.copy: a family has this name"):
        load(path)


CHOICES = {
    "dtype": ({"dtype": "f32"}, "choices are passed by their index, as i32, got f32"),
    "twice": ({"choices": ["up", "up"]}, "duplicate choice"),
    "default": ({"default": "left"}, "default: expected one of up, down, got 'left'"),
    "no choices": ({"choices": None}, "default: expected a number, got 'up'"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_words_of_a_scalar(tmp_path, case):
    """Different ones, one of them the default, of an i32."""
    changes, words = CHOICES[case]
    family = copy.deepcopy(FAMILY)
    family["scalars"][0] |= changes
    with pytest.raises(MatrixError) as raised:
        expand(tmp_path, family=family)
    assert words in str(raised.value)


def test_a_step_may_write_what_its_kernel_can_read_too(tmp_path):
    """An ``inout`` counts as written: whether it is read, scalars of the kernel say."""
    family = copy.deepcopy(FAMILY)
    family["arguments"][1]["direction"] = "inout"
    steps = expand(tmp_path, family=family).composites["twice"]["steps"]
    assert [step["arguments"]["y"] for step in steps] == ["between", "z"]
