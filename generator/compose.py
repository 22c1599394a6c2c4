"""Checks a composite of kernels.yaml: a call that runs several kernels in order over one workspace.

A step takes for each argument and scalar of its kernel the composite's of the same name, unless it maps it; an optional
argument that neither has is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generator import schema
from generator.problems import Problems
from generator.signature import Signature
from loader.expression import Expression, names
from loader.manifest import DTYPE_BYTES


def expand(name: str, composite: schema.Composite, families: Mapping[str, Signature],
           problems: Problems) -> dict[str, Any]:
    """The composite in manifest form, every mapping spelled out; what is wrong goes to ``problems``."""
    return _Composer(name, composite, families, problems).expand()


class _Composer:
    def __init__(self, name: str, composite: schema.Composite, families: Mapping[str, Signature],
                 problems: Problems) -> None:
        self.name, self.composite, self.families, self.problems = name, composite, families, problems
        signature = schema.Family.model_construct(
            summary=composite.summary, arguments=composite.arguments, scalars=composite.scalars,
            constraints=composite.constraints, skip=composite.skip, select=schema.Select(), parameters=None, targets={},
        )
        self.signature = Signature(name, signature, problems, section="composites")
        self.where = self.signature.where
        self.known = self.signature.dimensions | self.signature.scalars
        self.dtypes = {argument.name: set(argument.dtypes) for argument in composite.arguments}
        self.ranks = {argument.name: len(argument.shape) for argument in composite.arguments}
        self.written = {argument.name for argument in composite.arguments if argument.direction != "out"}

    def expand(self) -> dict[str, Any]:
        self.signature.check_signature()
        if self.name in self.families:
            self.problems.add(self.where, "a family has this name")
        self._check_split()
        self._check_workspace()
        steps = [self._step(f"{self.where}.steps[{index}]", step) for index, step in enumerate(self.composite.steps)]
        for argument in self.composite.arguments:
            if argument.direction == "out" and argument.name not in self.written:
                self.problems.add(self.where, f"no step writes {argument.name!r}")
        workspace = [scratch.model_dump() for scratch in self.composite.workspace]
        signature = {key: value for key, value in self.signature.manifest.items() if key != "select"}
        return {**signature, "split": self.composite.split, "workspace": workspace, "steps": steps}

    def _check_split(self) -> None:
        split = self.composite.split
        if split not in self.signature.dimensions:
            self.problems.add(f"{self.where}.split", f"unknown dimension {split!r}")
        for index, argument in enumerate(self.composite.arguments):
            for axis, entry in enumerate(argument.shape):
                if split in names(entry) and (axis or entry != split):
                    self.problems.add(f"{self.where}.arguments[{index}].shape[{axis}]",
                                      f"a call is split along {split!r}, which can only be a whole first dimension")

    def _check_workspace(self) -> None:
        for index, scratch in enumerate(self.composite.workspace):
            at = f"{self.where}.workspace[{index}]"
            if scratch.name in self.dtypes or scratch.name in self.known:
                self.problems.add(f"{at}.name", f"duplicate name {scratch.name!r}")
            if scratch.dtype not in DTYPE_BYTES and scratch.dtype not in self.signature.required:
                self.problems.add(f"{at}.dtype", f"{scratch.dtype!r} is no dtype and no argument that is always given")
            for axis, entry in enumerate(scratch.shape):
                self.signature.check_names(f"{at}.shape[{axis}]", entry, self.known)
            self.dtypes[scratch.name] = self.dtypes.get(scratch.dtype, {scratch.dtype})
            self.ranks[scratch.name] = len(scratch.shape)

    # Steps

    def _step(self, at: str, step: schema.Step) -> dict[str, Any]:
        family = self.families.get(step.kernel)
        if family is None:
            self.problems.add(f"{at}.kernel", f"unknown kernel {step.kernel!r}; known are {', '.join(self.families)}")
            return {}
        for kind, given, known in (("arguments", step.arguments, family.arguments),
                                   ("scalars", step.scalars, family.scalars)):
            for name in sorted(set(given) - set(known)):
                self.problems.add(f"{at}.{kind}.{name}", f"{step.kernel} has no such one")
        arguments = {name: step.arguments.get(name, name) for name in family.arguments}
        for name, argument in family.arguments.items():
            if argument.optional and name not in step.arguments and name not in self.dtypes:
                arguments[name] = None
            else:
                self._check_buffer(f"{at}.arguments.{name}", argument, arguments[name])
        self.written |= {buffer for name, buffer in arguments.items() if family.arguments[name].direction != "in"}
        scalars = {scalar.name: self._scalar(f"{at}.scalars.{scalar.name}", scalar,
                                             step.scalars.get(scalar.name, scalar.name))
                   for scalar in family.family.scalars}
        return {"kernel": step.kernel, "arguments": arguments, "scalars": scalars}

    def _check_buffer(self, at: str, argument: schema.Argument, buffer: str) -> None:
        if buffer not in self.dtypes:
            self.problems.add(at, f"unknown buffer {buffer!r}; known are {', '.join(self.dtypes)}")
            return
        if other := sorted(self.dtypes[buffer] - set(argument.dtypes)):
            self.problems.add(at, f"{buffer!r} may be {', '.join(other)}, which the kernel does not take")
        if self.ranks[buffer] != len(argument.shape):
            self.problems.add(at, f"{buffer!r} has {self.ranks[buffer]} dimensions, the kernel expects "
                              f"{len(argument.shape)}")
        if buffer in set(self.signature.arguments) - self.signature.required and not argument.optional:
            self.problems.add(at, f"{buffer!r} may be left out, which the kernel does not take")
        # What a kernel reads and writes it may have to write alone, as its scalars say.
        if argument.direction == "in" and buffer not in self.written:
            self.problems.add(at, f"no step before this one writes {buffer!r}")
        outer = self.signature.arguments.get(buffer)
        if argument.direction != "in" and outer is not None and outer.direction == "in":
            self.problems.add(at, f"the kernel writes {buffer!r}, which is an input")

    def _scalar(self, at: str, scalar: schema.Scalar, value: Expression) -> Expression:
        """The value of a kernel's scalar; a word among its choices becomes the index."""
        if scalar.choices and value in scalar.choices:
            return scalar.choices.index(value)
        if self.signature.check_names(at, value, self.known) and scalar.choices:
            same = [outer for outer in self.composite.scalars if outer.name == value]
            if not same or same[0].choices != scalar.choices:
                self.problems.add(at, f"expected a scalar with the choices {', '.join(scalar.choices)}, or one of them")
        return value
