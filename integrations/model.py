"""What a model's layers run on: ``python -m integrations.model describe PATH`` reads its configuration and says so.

Which kernel of the packs takes which layer on which arch, what is refused and why, and the bytes; no weights are read,
and neither torch nor a GPU is needed. docs/models.md has the formats and the models that are known.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from . import loader
from .model_description import Description, Row, Total, describe, ranges
from .model_fields import ModelError
from .model_kernels import layouts
from .safetensors_file import SafetensorsError

__all__ = ["Description", "ModelError", "describe", "main"]


def _shape(sizes: dict[str, int]) -> str:
    if "n" in sizes:
        return f"{sizes['n']} x {sizes['k']}"
    hidden, size = sizes["hidden"], sizes["intermediate"]
    return f"{sizes['experts']} of {sizes['halves'] * size} x {hidden} and {hidden} x {size}"


def _names(row: Row) -> str:
    """The last words of the modules; of the experts' what they are."""
    if "experts" in row.sizes:
        return f"{len(row.modules)} projections, top {row.sizes['topk']}"
    return ", ".join(module.rpartition(".")[2] for module in row.modules)


def _padding(row: Row, padded: dict[str, int]) -> str:
    names = {"n": "N", "k": "K", "hidden": "H", "intermediate": "I"}
    return ", ".join(f"{names[name]} {size} -> {padded[name]}" for name, size in row.sizes.items()
                     if name in names and padded[name] != size)  # fmt: skip


def _size(count: int) -> str:
    """Bytes as people read them."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(max(count.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{count / 1024**power:.{2 if power else 0}f} {units[power]}"


def _kernel_rows(row: Row) -> Iterator[tuple[str, ...]]:
    first = (row.part, _names(row), str(len(row.layers)), row.format, _shape(row.sizes))
    for fit in row.fits:
        sums = (_size(size) for size in row.bytes(fit))
        yield (*first, fit.kernels, " ".join(fit.archs), _padding(row, fit.sizes), *sums)
        first = ("",) * 5
    if not row.fits:
        yield (*first, "none", *("",) * 5)


def _refusals(description: Description) -> Iterator[tuple[str, str, str]]:
    """What runs nowhere, or not on every arch; layers and archs of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in description.rows:
        for why in dict.fromkeys(row.refused.values()):
            archs = " ".join(arch for arch, reason in row.refused.items() if reason == why)
            found.setdefault((archs, why), []).append(f"{row.part} ({_names(row)}; {ranges(row.layers)})")
    for (archs, why), parts in found.items():
        yield "\n".join(parts), archs, why


def _totals(description: Description) -> Iterator[tuple[str, ...]]:
    """Archs of equal sums together."""
    archs: dict[Total, list[str]] = {}
    for arch in description.archs:
        archs.setdefault(description.total(arch), []).append(arch)
    for total, names in archs.items():
        yield " ".join(names), *map(_size, (total.weights, total.scales, total.token)), str(total.refused)


def _print(description: Description, tp: int, ep: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    ranks = f", a rank of tp {tp} and ep {ep}" if (tp, ep) != (1, 1) else ""
    console.print(Text(f"{description.model_type}, quantisation: {description.method}{ranks}"))
    tables = [
        (("part", "matrices", "layers", "format", "N x K", "kernel", "archs", "padding", "weights", "scales",
          "one token"), [cells for row in description.rows for cells in _kernel_rows(row)]),
        (("refused", "archs", "why"), list(_refusals(description))),
        (("all layers on", "weights", "scales", "one token", "rows refused"), list(_totals(description))),
    ]  # fmt: skip
    for columns, rows in tables:
        if rows:
            table = Table(*columns)
            for cells in rows:
                table.add_row(*map(Text, cells))
            console.print(table)
    if description.further:
        console.print(f"left out: layers that predict further tokens ({description.further})")


def _json(description: Description) -> str:
    rows = [{**row._asdict(), "fits": [fit._asdict() for fit in row.fits]} for row in description.rows]
    totals = {arch: description.total(arch)._asdict() for arch in description.archs}
    return json.dumps({**description._asdict(), "rows": rows, "totals": totals}, indent=1)


def _ranks(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text[:9]) and len(text) < 9):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of ranks")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 1 with the error on stderr."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.model", description=__doc__.partition("\n")[0])
    command = parser.add_subparsers(required=True).add_parser("describe", help="layers, kernels, archs, bytes")
    command.add_argument("folder", metavar="PATH", type=Path, help="a folder with config.json; weights may be there")
    command.add_argument("--tp", type=_ranks, default=1, metavar="N", help="ranks of tensor parallelism")
    command.add_argument("--ep", type=_ranks, default=1, metavar="N", help="ranks of expert parallelism")
    command.add_argument("--layout", choices=layouts(), default="", metavar="KERNELS",
                         help="what experts are to run on where several kernels take them")  # fmt: skip
    command.add_argument("--json", action="store_true", help="the same for programs; with whole numbers of bytes")
    options = parser.parse_args(arguments)
    try:
        description = describe(options.folder, options.tp, options.ep, options.layout)
    except (ModelError, SafetensorsError, loader.LoaderError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(_json(description))
    else:
        _print(description, options.tp, options.ep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
