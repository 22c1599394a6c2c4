"""Families that build on another: what is merged, left out and replaced, and what is refused."""

import copy

import pytest

from generator import inherit
from generator.errors import MatrixError

BASE = {
    "summary": "base",
    "arguments": [{"name": "a", "shape": ["M"], "doc": "rows"}, {"name": "b", "shape": ["E"], "doc": "experts"}],
    "constraints": ["M > 0"],
    "parameters": [{"pointer": "a"}, {"pointer": "b"}, {"scalar": "M", "dtype": "i32", "value": "M"}],
    "select": {"domain": {"M": [1], "E": [2]}},
    "targets": {"any": {"axes": {"tile": [{"rows": 8}, {"rows": 16}]}, "parameters": [{"pointer": "b"}]}},
}


def merged(**own):
    """The family that says ``own`` of BASE, and its ancestors."""
    data = {"families": {"base": copy.deepcopy(BASE), "own": {"extends": "base", **own}}}
    ancestors = inherit.resolve(data, "kernels.yaml")
    assert data["families"]["base"] == BASE
    return data["families"]["own"], ancestors["own"]


def test_what_is_not_said_is_the_base():
    """All of it, and the base is an ancestor."""
    assert merged() == (BASE, ("base",))


def test_named_entries_are_merged_in_place_and_new_ones_follow():
    """Keys of an entry that are not given stay."""
    family, _ = merged(arguments=[{"name": "c", "shape": ["K"]}, {"name": "a", "shape": ["E", "M"]}])
    assert family["arguments"] == [
        {"name": "a", "shape": ["E", "M"], "doc": "rows"}, BASE["arguments"][1], {"name": "c", "shape": ["K"]}
    ]  # fmt: skip


def test_other_values_are_replaced():
    """Text, and lists of what has no name."""
    family, _ = merged(summary="own", constraints=[], targets={"any": {"axes": {"tile": [{"rows": 32}]}}})
    assert (family["summary"], family["constraints"]) == ("own", [])
    assert family["targets"]["any"] == {**BASE["targets"]["any"], "axes": {"tile": [{"rows": 32}]}}


def test_null_leaves_a_key_out():
    """Of a mapping."""
    assert merged(select={"domain": {"E": None}})[0]["select"] == {"domain": {"M": [1]}}


def test_without_leaves_names_out_everywhere():
    """Arguments and parameters, also those of a target."""
    family, _ = merged(without=["b", "M"])
    assert [entry["name"] for entry in family["arguments"]] == ["a"]
    assert family["parameters"] == [{"pointer": "a"}] and family["targets"]["any"]["parameters"] == []


def test_ancestors_are_the_nearest_first():
    """A family may build on one that builds on another."""
    data = {"families": {"base": BASE, "one": {"extends": "base"}, "two": {"extends": "one"}}}
    assert inherit.resolve(data, "")["two"] == ("one", "base")


@pytest.mark.parametrize("base", ["own", "later", None, 3, ["base"]])
def test_the_base_stands_above(base):
    """A family cannot build on itself, on a later one, or on nothing."""
    data = {"families": {"own": {"extends": base}, "later": {}}}
    with pytest.raises(MatrixError, match=r"families.own.extends: .* is no family above this one"):
        inherit.resolve(data, "kernels.yaml")


@pytest.mark.parametrize("without", ["b", ["c"], [["b"]], {"b": 1}])
def test_what_is_left_out_was_there(without):
    """A name that the base does not have is a mistake, not nothing."""
    with pytest.raises(MatrixError, match=r"families.own.without: expected names that base has, got "):
        merged(without=without)


def test_parameters_of_a_shared_target_are_those_of_each_family():
    """What the target does not say of one is said by the family, of which two may have the target."""
    target = {"parameters": [{"pointer": "a", "x": 1}]}
    base = {**BASE, "parameters": [{"pointer": "a", "y": 2}], "targets": {"any": target}}
    data = {"families": {"base": base, "own": {"extends": "base", "parameters": [{"pointer": "a", "y": 3}]}}}
    inherit.resolve(data, "kernels.yaml")
    found = [family["targets"]["any"]["parameters"] for family in data["families"].values()]
    assert found == [[{"pointer": "a", "y": 2, "x": 1}], [{"pointer": "a", "y": 3, "x": 1}]]
