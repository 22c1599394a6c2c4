"""Every kernel of the matrix as a Definition, as ``LOADER_TRACE_DIR`` writes it."""

import ast

import pytest
import shipped_matrix

from loader import expression
from loader.definition import definition
from loader.observe import Launch, Operand

FAMILIES = shipped_matrix.families()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kernel_has_a_definition(name):
    """Its shapes are of its axes, its program is one of Python that takes the inputs, its name fits a file."""
    family = FAMILIES[name]
    values = dict.fromkeys((*family.dimensions, *(scalar.name for scalar in family.scalars)), 4096)
    values |= {f"sizeof_{argument.name}": 1 for argument in family.arguments}
    buffers = {argument.name: Operand(argument.dtypes[-1], tuple(
        int(expression.evaluate(extent, values)) for extent in argument.shape), (), 0) for argument in family.arguments}
    found = definition(Launch(name, "", "", None, (1, 1, 1), values, "only", None, buffers, None, b""), family)
    tensors = {**found["inputs"], **found["outputs"]}
    assert tensors.keys() == buffers.keys() | {scalar.name for scalar in family.scalars} and found["outputs"]
    assert found["axes"].keys() == {axis for tensor in tensors.values() for axis in tensor["shape"] or ()} | {
        used for argument in family.arguments for extent in argument.shape for used in expression.names(extent)
        if used in family.dimensions}
    run, = ast.parse(found["reference"]).body
    assert [argument.arg for argument in run.args.args] == list(found["inputs"])
    assert len(found["name"]) < 200 and found["name"].isidentifier()
