"""A model folder as rows: the matrices of its layers as a rank has them, and what the packs say of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .model_fields import ModelError, read
from .model_formats import BF16, Format, FormatOf, formats
from .model_headers import Headers
from .model_kernels import Fit, Packs, layouts
from .model_layers import Experts, Linear, matrices


class Row(NamedTuple):
    """Equal matrices, or the experts, of some layers, as a rank has them.

    sizes: n and k, or experts, topk, hidden, intermediate and halves. fits: what runs them. refused: an arch of the
    packs on which nothing does -> why.
    """

    part: str
    modules: tuple[str, ...]
    layers: tuple[int, ...]
    format: str
    sizes: dict[str, int]
    fits: tuple[Fit, ...]
    refused: dict[str, str]

    @property
    def matrices(self) -> int:
        """Calls in a layer: one for each matrix, and one for all experts."""
        return 1 if "experts" in self.sizes else len(self.modules)

    def bytes(self, fit: Fit) -> tuple[int, int, int]:
        """Of one layer: weights, scales, and what of both a token reads; its experts may be on other ranks."""
        weights, scales = self.matrices * fit.weight_bytes, self.matrices * fit.scale_bytes
        if "experts" not in self.sizes:
            return weights, scales, weights + scales
        return weights, scales, (weights + scales) // self.sizes["experts"] * self.sizes["topk"]


class Total(NamedTuple):
    """Bytes of all layers that run on an arch, as a rank has them, and the number of rows that do not."""

    weights: int
    scales: int
    token: int
    refused: int


class Description(NamedTuple):
    model_type: str
    method: str
    further: int  # layers that predict further tokens, which are not among the rows
    archs: tuple[str, ...]
    rows: tuple[Row, ...]

    def total(self, arch: str) -> Total:
        weights = scales = token = 0
        for row in self.rows:
            for fit in row.fits:
                if arch in fit.archs:
                    sums = row.bytes(fit)
                    weights += len(row.layers) * sums[0]
                    scales += len(row.layers) * sums[1]
                    token += len(row.layers) * sums[2]
        return Total(weights, scales, token, sum(arch in row.refused for row in self.rows))


def describe(folder: Path, tp: int = 1, ep: int = 1, layout: str = "") -> Description:
    """The layers of the model in ``folder`` as one of ``tp`` ranks has them, and one of ``ep`` its experts.

    With ``ep`` above 1 experts are whole, and ``tp`` shares out everything else. ``layout``: one of ``layouts()``, on
    which experts are to run where they can, rather than on what is best for the arch. Raises ``ModelError`` where the
    configuration is not understood, or the headers of files say otherwise; ``LoaderError`` where there is no pack.
    """
    if layout and layout not in layouts():
        raise ModelError(f"no choice of {layout} for experts; there is one of {', '.join(layouts())}")
    config, packs, headers = read(folder / "config.json"), Packs(layout), Headers(folder)
    method, format_of = formats(config, folder)
    found: dict[tuple, list[str]] = {}
    for matrix in matrices(config):
        for format, layers in _by_format(matrix, format_of):
            headers.check(matrix, format, layers)
            sizes, refusal = _of_rank(matrix, format, tp, ep)
            key = (matrix.part, layers, format, _kind(matrix), tuple(sizes.items()), refusal)
            found.setdefault(key, []).extend(matrix.modules)
    rows = []
    for (part, layers, format, kind, items, refusal), modules in found.items():
        sizes = dict(items)
        fits, refused = ((), dict.fromkeys(packs.archs, refusal)) if refusal else packs.fits(format, kind, sizes)
        rows.append(Row(part, tuple(modules), layers, format.name, sizes, fits, refused))
    further = config.size("num_nextn_predict_layers", 0, least=0)
    return Description(config.word("model_type"), method, further, packs.archs, tuple(rows))


def _kind(matrix: Linear | Experts) -> str:
    return "dense" if isinstance(matrix, Linear) else "swiglu" if matrix.gated else "relu2"


def _by_format(matrix: Linear | Experts, format_of: FormatOf) -> Iterator[tuple[Format, tuple[int, ...]]]:
    """The formats in which a checkpoint has a matrix, and the layers of each."""
    layers: dict[Format, list[int]] = {}
    for layer in matrix.layers:
        layers.setdefault(_format(matrix, layer, format_of), []).append(layer)
    for format, numbers in layers.items():
        yield format, tuple(numbers)


def _format(matrix: Linear | Experts, layer: int, format_of: FormatOf) -> Format:
    if isinstance(matrix, Linear) and matrix.plain:
        return BF16
    found = dict.fromkeys(format_of(module.format(layer)) for module in matrix.modules)
    return next(iter(found)) if len(found) == 1 else Format(" and ".join(format.name for format in found))


def _of_rank(matrix: Linear | Experts, format: Format, tp: int, ep: int) -> tuple[dict[str, int], str]:
    """The sizes that the rank with most has, and why they cannot be cut so, "" where they can."""
    unit = max(format.rows, format.columns)
    if isinstance(matrix, Experts):
        if ep > matrix.count:
            raise ModelError(f"expected at most {matrix.count} ranks for {matrix.count} experts, got {ep}")
        size = matrix.intermediate if ep > 1 else _part(matrix.part, matrix.intermediate, tp, unit)
        sizes = {"experts": -(-matrix.count // ep), "topk": matrix.topk, "hidden": matrix.hidden, "intermediate": size}
        return {**sizes, "halves": 2 if matrix.gated else 1}, ""
    sizes = {"n": matrix.n, "k": matrix.k}
    if not matrix.cut or tp == 1:
        return sizes, ""
    whole = sizes[matrix.cut]
    if not matrix.heads:
        return {**sizes, matrix.cut: _part(matrix.part, whole, tp, unit)}, ""
    if matrix.heads % tp and not (matrix.copies and tp % matrix.heads == 0):
        raise ModelError(f"{matrix.modules[0]}: {matrix.heads} heads cannot be shared out over {tp} ranks")
    part = whole // matrix.heads * max(1, matrix.heads // tp)
    group = format.rows if matrix.cut == "n" else format.columns
    refusal = f"a rank would have {part} of {whole}, which ends inside of {group} values of one scale"
    return {**sizes, matrix.cut: part}, refusal if part % group else ""


def _part(name: str, whole: int, ranks: int, unit: int) -> int:
    """The most that a rank gets of values that are cut between groups of ``unit``."""
    groups = -(-whole // unit)
    if ranks > groups:
        raise ModelError(f"{name}: {groups} groups of {unit} values cannot be shared out over {ranks} ranks")
    return min(whole, -(-groups // ranks) * unit)


def ranges(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) as "0-2, 5"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)
