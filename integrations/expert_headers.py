"""What the headers of a checkpoint say of a layer's experts or MLP, once they hold every tensor and no other."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

from .expert_formats import (
    EXPERT_FIRST,
    FOREIGN,
    FORMATS,
    NAME,
    OF_ATTENTION,
    PROJECTION_FIRST,
    PROJECTIONS,
    SOURCES,
    SUFFIX,
    UNNUMBERED,
    WEIGHT_SHAPE,
    WHOLE_NAME,
    CheckpointError,
    OtherFormatError,
    Source,
)
from .expert_layer import Layer, halves
from .safetensors_file import Tensor
from .scale_layouts import round_up

Entry = Callable[[str], Tensor]  # of a name; raises CheckpointError where there is none


def describe(entry: Entry, prefix: str, rests: list[str], target: str | None) -> Layer:
    """The layer below ``prefix``, for the kernels of ``target`` or for the usual ones of its format."""
    alone = OF_ATTENTION.fullmatch(prefix)
    parsed = {rest: SUFFIX.fullmatch(f".{rest}") if alone else NAME.fullmatch(rest) for rest in rests}
    matches = [match for match in parsed.values() if match]
    tool = _source(entry, prefix, parsed)
    unnumbered = WHOLE_NAME if alone else UNNUMBERED
    names = {
        EXPERT_FIRST if match["before"] else PROJECTION_FIRST if match["after"] else unnumbered for match in matches
    }
    if len(names) != 1:
        raise CheckpointError(f"{prefix}: experts are named in {len(names)} ways: {', '.join(sorted(names))}")
    present = {match["projection"] for match in matches}
    projections = next((known for known in PROJECTIONS if present <= set(known) and known[-1] in present), None)
    if projections is None:
        raise CheckpointError(f"{prefix}: projections {', '.join(sorted(present))} are none of {PROJECTIONS}")

    numbers = [int(match["before"] or match["after"] or 0) for match in matches]
    layer = Layer(prefix, tool.name, names.pop(), projections, experts=1 + max(numbers))
    suffixes = {match["suffix"] for match in matches}
    first = {suffix: layer.name(0, projections[0], suffix) for suffix in suffixes}
    shapes = {
        suffix: entry(first[suffix]).shape for suffix in (tool.weight_global, tool.input_global) if suffix in suffixes
    }
    weight_shape = entry(first[WEIGHT_SHAPE]).dtype if WEIGHT_SHAPE in suffixes and not layer.stacked else ""
    layer = _with_format(entry, dataclasses.replace(layer, shapes=shapes, weight_shape=weight_shape), target)
    if tool.bias in suffixes:
        layer = dataclasses.replace(layer, types=(*layer.types[:2], _bias_type(entry, first[tool.bias])))
    return _check_entries(entry, layer, {f"{prefix}.{rest}" for rest in rests})


def _source(entry: Entry, prefix: str, parsed: Mapping[str, re.Match | None]) -> Source:
    """How the tensors are named, by the suffixes that say so; those with global scales have suffixes of others."""
    for rest in parsed:
        for ending, meaning in FOREIGN.items():
            if rest.endswith(ending):
                raise CheckpointError(f"{prefix}.{rest}: {meaning}")
    suffixes = {match["suffix"] for match in parsed.values() if match}
    sources = [source for source in SOURCES.values() if suffixes.issuperset(source.marks)]
    sources = [source for source in sources if source.weight_global] or sources
    if len(sources) > 1:
        names = " and ".join(source.name for source in sources)
        raise CheckpointError(f"{prefix}: tensors of {names}: {', '.join(sorted(suffixes))}")
    if not sources:
        some = min(parsed)
        raise _other(prefix, f"{some} is {entry(f'{prefix}.{some}').dtype}")
    return sources[0]


def _other(prefix: str, what: str) -> OtherFormatError:
    return OtherFormatError(f"{prefix}: in no format that is read: {what}")


def _with_format(entry: Entry, layer: Layer, target: str | None) -> Layer:
    """The layer with the format that types and shapes of its first expert say, for kernels that take it."""
    tool = layer.tool
    names = [layer.name(0, layer.projections[0], suffix) for suffix in (tool.values, tool.scale)]
    types = tuple(entry(name).dtype for name in names)
    formats = [FORMATS[name] for name in tool.formats]
    if len(formats) > 1:
        formats = [form for form in formats if types[0] in form.values and types[1] in form.scales]
    if not formats:
        raise _other(layer.prefix, " and ".join(f"{name.removeprefix(f'{layer.prefix}.')} is {dtype}"
                                                for name, dtype in zip(names, types, strict=True)))  # fmt: skip
    found = [
        _measure(entry, dataclasses.replace(layer, weights=form.name, types=(*types, ""), target=form.targets[0]))
        for form in formats
    ]
    # Two formats may differ in the shape of their scales alone; where none has it, the first says what belongs there.
    fitting = [one for one in found if one.entries(one.projections[0])[tool.scale][1] == entry(names[1]).shape]
    layer = (fitting or found)[0]
    if not fitting and (shape := entry(names[1]).shape) in _coarse_shapes(layer):
        scale = names[1].removeprefix(f"{layer.prefix}.")
        raise _other(layer.prefix, f"{scale} is {list(shape)}, a scale for each row or matrix")
    if types[1] not in layer.form.scales:
        raise CheckpointError(f"{names[1]} is {types[1]}, not {' or '.join(layer.form.scales)}")
    if halves(layer.projections[0]) > 1 and layer.intermediate % layer.form.block[0]:
        raise CheckpointError(
            f"{names[0]} has {layer.intermediate} rows of gate, no multiple of {layer.form.block[0]}: gate and up "
            "would share scales"
        )
    if target is not None and target not in layer.form.targets:
        known = ", ".join(layer.form.targets[:-1]) + " and " * (len(layer.form.targets) > 1) + layer.form.targets[-1]
        raise OtherFormatError(f"{layer.prefix}: {layer.weights} has a layout for {known}, not for {target}")
    return dataclasses.replace(layer, target=target or layer.target)


def _coarse_shapes(layer: Layer) -> list[tuple[int, ...]]:
    """Of scales for a whole matrix, or for rows without a dimension behind them, which tools use for FP8."""
    if layer.weights != "FP8":
        return []
    lead, rows = (layer.experts,) * layer.stacked, layer.size(layer.projections[0])[0]
    return [(*lead, *shape) for shape in ((), (1,), (1, 1), (rows,))]


def _measure(entry: Entry, layer: Layer) -> Layer:
    """The layer with the sizes that its first expert's values have."""
    tool, form, ends = layer.tool, layer.form, (layer.projections[0], layer.projections[-1])
    shapes = []
    for projection in ends:
        name = layer.name(0, projection, tool.values)
        found = entry(name)
        shape = _joined(found.shape, tool.chunk)
        if found.dtype not in form.values or len(shape) != 2 + layer.stacked or 0 in shape:
            last = f"K/{form.pack * (tool.chunk or 1)}".removesuffix("/1") + f", {tool.chunk}" * bool(tool.chunk)
            expected = f"{' or '.join(form.values)} [{'E, ' * layer.stacked}N, {last}]"
            raise CheckpointError(f"{name} is {found.dtype} {list(found.shape)}, not {expected}")
        shapes.append(shape)
    experts, (gate, down) = layer.experts, (shape[-2:] for shape in shapes)
    if layer.alone:
        k = down[1] * form.pack
        return dataclasses.replace(layer, hidden=down[0], intermediate=k, columns=(k, k))
    # Rows of one matrix are the columns of the other. No shapes fit both ways round, but for gate and up apart whose
    # values are bytes: of these no tool has K first.
    transposed = layer.stacked and gate[0] < down[1] * halves(ends[0])
    if transposed:
        gate, down = gate[::-1], down[::-1]
    if layer.stacked:
        experts = shapes[0][0]
    intermediate, hidden = gate[0] // halves(ends[0]), down[0]
    columns = tuple(
        size if stored * form.pack == size else round_up(size, form.fill)
        for size, stored in ((hidden, gate[1]), (intermediate, down[1]))
    )
    return dataclasses.replace(
        layer, transposed=transposed, experts=experts, hidden=hidden, intermediate=intermediate, columns=columns
    )


def _joined(shape: tuple[int, ...], chunk: int) -> tuple[int, ...]:
    """The shape with its last two dimensions as one, where the last is a chunk; no shape where it is not."""
    if not chunk:
        return shape
    return (*shape[:-2], shape[-2] * chunk) if len(shape) > 1 and shape[-1] == chunk else ()


def _check_entries(entry: Entry, layer: Layer, present: set[str]) -> Layer:
    """The layer with the global scales whose shape is another one, if every tensor is there, and no other."""
    others, expected = {}, set()
    for expert in range(1 if layer.stacked else layer.experts):
        if not any(layer.name(expert, projection, layer.tool.values) in present for projection in layer.projections):
            raise CheckpointError(f"{layer.prefix}: expert {expert} of {layer.experts} is missing")
        for projection in layer.projections:
            tensors = layer.entries(projection)
            if layer.weight_shape:
                tensors[WEIGHT_SHAPE] = (layer.weight_shape, (2,))
            for suffix, (dtype, shape) in tensors.items():
                name = layer.name(expert, projection, suffix)
                found = entry(name)
                if (found.dtype, found.shape) != (dtype, shape):
                    what = f"{found.dtype} {list(found.shape)}"
                    raise CheckpointError(f"{name} is {what}, expected {dtype} {list(shape)}")
                expected.add(name)
            for suffix, usual in layer.shapes.items():
                name = layer.name(expert, projection, suffix)
                shape = _check_number_entry(entry, layer, projection, name)
                expected.add(name)
                if shape != usual:
                    others[name] = shape
    if unknown := sorted(present - expected):
        raise CheckpointError(f"{unknown[0]} and {len(unknown) - 1} more have no place in the layout of the kernels")
    return dataclasses.replace(layer, other_shapes=others)


def _check_number_entry(entry: Entry, layer: Layer, projection: str, name: str) -> tuple[int, ...]:
    """The shape of a global scale: one number, or in stacked tensors one for each expert or each half of it."""
    found, experts = entry(name), layer.experts
    count, fits, what = math.prod(found.shape), found.shape in ((), (1,)), "one number"
    if layer.stacked:
        fits = count == 1 or found.shape[0] == experts and count in (experts, experts * halves(projection))
        what = f"one number, or one for each of {experts} experts"
    if found.dtype != "F32" or not fits:
        raise CheckpointError(f"{name} is {found.dtype} {list(found.shape)}, not F32 of {what}")
    return found.shape


def _bias_type(entry: Entry, name: str) -> str:
    dtype = entry(name).dtype
    if dtype not in ("BF16", "F32"):
        raise CheckpointError(f"{name} is {dtype}, not BF16 or F32")
    return dtype
