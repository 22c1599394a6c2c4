"""The gallery: every program of ``examples/``, with what it says of itself, and how it is run."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

# Programs -> how they run without a GPU; the others need one. What is in neither table is a module of these.
WITHOUT_GPU = {
    "numpy_example": "python examples/numpy_example.py",
    "sample_routed": "python examples/sample_routed.py --emulate 120a",
    "moe_layer": "python examples/moe_layer.py --emulate 120a",
    "expert_parallel": "python examples/expert_parallel.py --ranks 2 --emulate 120a",
}
WITH_GPU = {
    "torch_example": "python examples/torch_example.py",
    "jax_example": "python examples/jax_example.py",
    "cupy_example": "python examples/cupy_example.py",
}


def pages(root: Path, target: Path) -> Iterator[tuple[str, str]]:
    """One page. ``target``: the folder that it will lie in."""
    text = ["# Examples\n", "Whole programs, and two modules of theirs: `nvfp4.py` quantises inputs, `peers.py` is "
            "what ranks say to each other.\n"]  # fmt: skip
    folder = root / "examples"
    commands = {**WITHOUT_GPU, **WITH_GPU}
    for name in [*commands, *sorted(path.stem for path in folder.glob("*.py") if path.stem not in commands)]:
        path = folder / f"{name}.py"
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        where = "Runs without a GPU:" if name in WITHOUT_GPU else "Needs a GPU:"
        text += [f"## {name}\n", about + "\n"]
        text += [f"{where}\n", f"```bash\n{commands[name]}\n```\n"] if name in commands else []
        text += [f"```{{literalinclude}} {os.path.relpath(path, target)}\n:language: python\n```\n"]
    yield "examples", "\n".join(text)
