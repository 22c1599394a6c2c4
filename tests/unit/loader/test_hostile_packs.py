"""Packs made to harm are refused: each with an error that names the place, before the driver is asked for anything."""

from __future__ import annotations

import os
import random
import sys
import tracemalloc
from pathlib import Path

import hostile_packs
import pytest
from sample_call import arguments
from test_emulated import arguments as host_arguments

import loader
from loader import registry

MEMORY = 400 << 20
opened: list[str] | None = None


def record(event: str, arguments: tuple) -> None:
    """An audit hook, which no process gets rid of: it does nothing while no list is set."""
    if event == "open" and opened is not None and not isinstance(arguments[0], int):
        opened.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(record)


def attempt(directory: Path, on_host: bool) -> tuple[loader.LoaderError | None, list[str], int]:
    """The error of a launch, the files that were opened for it, and the most memory that it held."""
    global opened
    opened = files = []
    tracemalloc.start()
    try:
        if on_host:
            loader.launch("scale_rows", variant="m16_f32", packs=str(directory), **host_arguments())
        else:
            loader.launch("scale_rows", variant="m16_bf16", packs=str(directory), **arguments())
        return None, files, tracemalloc.get_traced_memory()[1]
    except loader.LoaderError as error:
        return error, files, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        opened = None


def is_inside(path: str, directory: Path) -> bool:
    """Of the pack, or a module of Python's that is imported late."""
    return path.startswith(f"{directory}{os.sep}") or path.endswith((".py", ".pyc"))


@pytest.mark.filterwarnings("ignore:host buffers")
@pytest.mark.parametrize("category", hostile_packs.CATEGORIES, ids=lambda category: category.__name__)
def test_hostile_pack(cuda, tmp_path, seed, category):
    """Refused with the error and the place that belong to it: of a manifest before any call of the driver, of a file
    before its image is loaded. No file outside is opened, and memory stays small."""
    on_host = category in (hostile_packs.listings, hostile_packs.kernels)
    for number, hostile in enumerate(category(random.Random(seed))):
        directory = tmp_path / str(number) / "pack"
        hostile.write(directory)
        error, files, memory = attempt(directory, on_host)
        assert type(error) is hostile.error, f"{hostile.label}: {error!r}"
        assert hostile.place in str(error), f"{hostile.label}: {error}"
        assert len(str(error)) < 2_000 + len(str(directory)) and str(error).isprintable(), hostile.label
        assert not cuda.calls or not isinstance(error, (loader.ManifestError, loader.DuplicateError)), hostile.label
        assert "cuLibraryLoadData" not in cuda.calls and not cuda.launches, hostile.label
        assert not [path for path in files if not is_inside(path, directory)], hostile.label
        assert memory < MEMORY, f"{hostile.label}: {memory}"
        registry._registries.clear()
        cuda.calls.clear()


def test_there_are_enough_of_them(seed):
    """Five hundred and more, of every category some."""
    counts = [sum(1 for _ in category(random.Random(seed))) for category in hostile_packs.CATEGORIES]
    assert min(counts) >= 20 and sum(counts) >= 500
