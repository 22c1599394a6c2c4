"""What a program here is asked for on its command line: a seed, and whether to run on the emulated device."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence


def parse(doc: str, of: str = "weights and tokens", models: Sequence[str] = ()) -> argparse.Namespace:
    """``seed``, drawn where none is given, ``emulate``, an arch or None, and ``model``, one of ``models`` where there
    are any, by default the first. ``of``: what the seed is of."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help=f"of {of}; random by default")
    parser.add_argument("--emulate", metavar="ARCH", help="run on the emulated device of this arch")
    if models:
        parser.add_argument("--model", choices=models, default=models[0])
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4), "little")
    return options


def emulated(options: argparse.Namespace) -> str | None:
    """The emulated device to run on, None for a GPU that torch can reach."""
    if options.emulate:
        return f"emulated:{options.emulate}"
    try:
        import torch
    except ImportError:
        return "emulated"
    return None if torch.cuda.is_available() else "emulated"
