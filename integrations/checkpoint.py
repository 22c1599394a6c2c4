"""Experts, dense MLPs and projections of attention of NVFP4, MXFP4, MXFP8 and FP8 checkpoints, in the layout of the
kernels, and back.

``prepare`` reads the experts or the MLP of one layer, or one matrix of its attention, ``restore`` gives every tensor of
the checkpoint back, byte for byte, and ``python -m integrations.checkpoint convert IN OUT`` does it for whole
checkpoints, one expert in memory at a time. docs/weights.md has the layout.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import safetensors_file
from .expert_formats import TARGETS, CheckpointError, OtherFormatError
from .expert_layer import Layer
from .expert_layout import (
    fill,
    layout,
    owned_numbers,
    prepare,
    rank_part,
    restore,
    restore_expert,
    restore_numbers,
)
from .expert_tensors import Checkpoint
from .safetensors_file import SafetensorsError
from .scale_layouts import to_blocks

__all__ = ["Checkpoint", "CheckpointError", "Layer", "convert", "main", "prepare", "restore", "to_blocks"]

NAME_BYTES = 240  # of a file; a name may have 255, and it has a longer one while it is written


def convert(
    checkpoint: Checkpoint,
    layer: Layer,
    path: Path,
    check: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write the prepared layer to ``path``, whole or not at all, one expert in memory at a time.

    ``check`` restores each expert from the new file and compares every byte with the checkpoint. ``progress`` is called
    after each expert.
    """
    entries = layout(layer, checkpoint.has_nan_scales(layer))
    with safetensors_file.create(path, entries, layer.metadata) as arrays:
        for expert in layer.owned:
            fill(layer, expert, checkpoint.matrices(layer, expert), arrays)
            if check:
                _compare_expert(checkpoint, layer, expert, arrays)
            progress()
        if check:
            for name, restored in restore_numbers(arrays, layer):
                _compare(name, restored, owned_numbers(checkpoint, layer, name))


def _compare_expert(checkpoint: Checkpoint, layer: Layer, expert: int, arrays: Mapping[str, np.ndarray]) -> None:
    for projection, suffix, restored in restore_expert(arrays, layer, expert):
        original = rank_part(checkpoint, layer, expert, projection, suffix)
        _compare(layer.name(expert, projection, suffix), restored, original)


def _compare(name: str, restored: np.ndarray, original: np.ndarray) -> None:
    if restored.shape != original.shape or restored.tobytes() != original.tobytes():
        raise CheckpointError(f"{name} is not what it was after its preparation was undone")


def _choose(checkpoint: Checkpoint, pattern: str | None, numbers: set[int] | None) -> tuple[list[str], dict[str, str]]:
    """The prefixes to convert, and why the others are not."""
    chosen, skipped = [], {}
    for prefix in checkpoint.prefixes:
        number = re.search(r"\blayers\.(\d{1,9})\.", prefix)
        if pattern is None and re.search(r"(^|\.)(mtp|nextn)", prefix):
            skipped[prefix] = "predicts further tokens; --prefix takes it"
        elif pattern is not None and not fnmatch.fnmatchcase(prefix, pattern):
            skipped[prefix] = f"does not match {pattern}"
        elif numbers is not None and not (number and int(number[1]) in numbers):
            skipped[prefix] = "not among --layers"
        else:
            chosen.append(prefix)
    return chosen, skipped


def _layers(
    checkpoint: Checkpoint, prefixes: list[str], options: argparse.Namespace
) -> tuple[list[Layer], dict[str, str]]:
    """The chosen layers, every header checked, and why others of them cannot be converted."""
    ranks = options.tp or 1, options.rank or 0, options.ep or 1, options.ep_rank or 0
    layers, skipped = [], {}
    for prefix in prefixes:
        try:
            layers.append(checkpoint.layer(prefix, *ranks, options.target_layout))
        except OtherFormatError as error:
            skipped[prefix] = str(error).removeprefix(f"{prefix}: ")
    return layers, skipped


def _targets(checkpoint: Checkpoint, layers: Sequence[Layer], folder: Path) -> list[Path]:
    """The files to write: inside the folder, and none of those that are read."""
    if folder.exists() and checkpoint.path.is_dir() and os.path.samefile(folder, checkpoint.path):
        raise CheckpointError(f"{folder} is the folder of the checkpoint; files are written to another one")
    targets = []
    for layer in layers:
        experts = f".experts{layer.ep_rank}of{layer.ep}" if layer.ep > 1 else ""
        rank = f".rank{layer.rank}of{layer.tp}" if layer.tp > 1 else ""
        name = f"{layer.prefix}{experts}{rank}.safetensors"
        if not name.isprintable() or re.search(r"[/\\:]", name) or len(name.encode()) > NAME_BYTES:
            raise CheckpointError(f"{layer.prefix!r} cannot be the name of a file in {folder}")
        target = folder / name
        if target.exists() and any(os.path.samefile(target, file) for file in checkpoint.files):
            raise CheckpointError(f"{target} is a file of the checkpoint; files are written to another folder")
        if target.is_dir():
            raise CheckpointError(f"{target} is a folder")
        targets.append(target)
    return targets


def _layer_numbers(text: str) -> set[int]:
    """ "3,5-8" as {3, 5, 6, 7, 8}."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        if not match:
            raise argparse.ArgumentTypeError(f"{part!r} is neither a layer (3) nor a range of layers (5-8)")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def _convert_command(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text

    checkpoint = Checkpoint(options.source)
    chosen, skipped = _choose(checkpoint, options.prefix, options.layers)
    layers, foreign = _layers(checkpoint, chosen, options)
    skipped |= foreign
    if not layers:
        reasons = "".join(f"\n{prefix}: {reason}" for prefix, reason in skipped.items())
        raise CheckpointError(f"{options.source}: nothing to convert{reasons}")
    # Every header and every name is checked before the first byte is written.
    targets = _targets(checkpoint, layers, options.target)
    options.target.mkdir(parents=True, exist_ok=True)

    console = Console()
    table = Table(
        "layer", "source", "format", "layout", "experts", "hidden", "intermediate", "input scale", "MiB", "seconds",
        "round trip",
    )  # fmt: skip
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("experts", total=sum(len(layer.owned) for layer in layers))
        for layer, path in zip(layers, targets, strict=True):
            progress.update(task, description=layer.prefix)
            begin = time.monotonic()
            convert(checkpoint, layer, path, options.check, lambda: progress.advance(task))
            table.add_row(
                Text(layer.prefix),
                layer.source,
                layer.weights,
                layer.target,
                *(str(number) for number in (len(layer.owned), layer.hidden, layer.intermediate)),
                "as stored" if layer.input_scales else "none",
                f"{path.stat().st_size / 2**20:.1f}",
                f"{time.monotonic() - begin:.1f}",
                "every byte" if options.check else "not checked",
            )
    console.print(table)
    if skipped:
        table = Table("skipped", "why")
        for prefix, reason in skipped.items():
            table.add_row(Text(prefix), Text(reason))
        console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 1 with the error on stderr."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.checkpoint", description=__doc__.partition("\n")[0])
    command = parser.add_subparsers(required=True).add_parser("convert", help="prepare a checkpoint's matrices")
    command.add_argument("source", metavar="IN", type=Path, help="a safetensors file, or a folder with them")
    command.add_argument("target", metavar="OUT", type=Path, help="a folder; gets one file for each layer")
    command.add_argument("--layers", type=_layer_numbers, metavar="3,5-8", help="all layers if not given")
    command.add_argument(
        "--prefix", metavar="GLOB", help="of names of experts and MLPs; all but mtp and nextn if not given ('*' is all)"
    )
    command.add_argument(
        "--layout", dest="target_layout", choices=tuple(TARGETS), help="the kernels' name, where a format has two"
    )
    command.add_argument("--tp", type=int, metavar="N", help="split the intermediate size over N ranks")
    command.add_argument("--rank", type=int, metavar="R", help="the rank of these N that is written")
    command.add_argument("--ep", type=int, metavar="N", help="split the experts over N ranks")
    command.add_argument("--ep-rank", type=int, metavar="R", help="the rank of these N that is written")
    command.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True, help="restore and compare every byte"
    )
    options = parser.parse_args(arguments)
    for many, one in (("tp", "rank"), ("ep", "ep_rank")):
        ranks, rank, flag = getattr(options, many), getattr(options, one), f"--{one.replace('_', '-')}"
        if (ranks is None) != (rank is None):
            parser.error(f"--{many} and {flag} go together")
        if ranks is not None and not 0 <= rank < ranks:
            parser.error(f"{flag} {rank} is none of --{many} {ranks} ranks")
    try:
        _convert_command(options)
    except (CheckpointError, SafetensorsError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; files that were begun are gone, finished ones stay", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
