"""The gallery: every program of ``examples/``, with what it says of itself, and how it is run."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from site_pages.outputs import Output

OTHER_LANGUAGES = {"amax.cpp": "cpp", "amax.rs": "rust"}  # files -> how Pygments calls it
# Programs -> how they run without a GPU; the others need one. What is in none of the tables is a module of these.
WITHOUT_GPU = {
    "numpy_example": "python examples/numpy_example.py",
    "sample_routed": "python examples/sample_routed.py --emulate 120a",
    "moe_layer": "python examples/moe_layer.py --emulate 120a",
    "gpt_oss": "python examples/gpt_oss.py --emulate 120a",
    "deepseek_fp8": "python examples/deepseek_fp8.py --emulate 90a",
    "nvfp4_checkpoint": "python examples/nvfp4_checkpoint.py --model glm4.5 --emulate 100a",
    "dense_mlp": "python examples/dense_mlp.py --emulate 120a",
    "expert_parallel": "python examples/expert_parallel.py --ranks 2 --emulate 120a",
    "jax_jit": "python examples/jax_jit.py",
    "indexer": "python examples/indexer.py --emulate 90a",
    "engine_experts": "python examples/engine_experts.py --emulate 90a",
    "vllm_plugin": "python examples/vllm_plugin.py --emulate 90a",
}
# Those that need no GPU but a package that tests need not have -> the package, and how they run.
WITH_PACKAGES = {
    "transformers_experts": ("transformers", "python examples/transformers_experts.py --emulate 90a"),
}
WITH_GPU = {
    "torch_example": "python examples/torch_example.py",
    "jax_example": "python examples/jax_example.py",
    "cupy_example": "python examples/cupy_example.py",
}


def pages(root: Path, target: Path, outputs: Mapping[str, Output]) -> Iterator[tuple[str, str]]:
    """One page. ``target``: the folder that it will lie in. ``outputs`` of programs, none where there is no pack."""
    text = ["# Examples\n", "Whole programs, and three modules of theirs: `nvfp4.py` quantises inputs, "
            "`model_layer.py` takes a layer from a checkpoint to its result, `ranks.py` is what ranks say to each "
            "other.\n"]  # fmt: skip
    text += ["What those without a GPU print came out as this site was built.\n" if outputs else
             "This site was built without a pack of the same sources, so none of them was run for it.\n"]  # fmt: skip
    folder = root / "examples"
    with_packages = {name: command for name, (_, command) in WITH_PACKAGES.items()}
    commands = {**WITHOUT_GPU, **with_packages, **WITH_GPU}
    for name in [*commands, *sorted(path.stem for path in folder.glob("*.py") if path.stem not in commands)]:
        path = folder / f"{name}.py"
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        where = "Runs without a GPU:" if name in WITHOUT_GPU else "Needs a GPU:"
        if name in WITH_PACKAGES:
            where = f"Needs `{WITH_PACKAGES[name][0]}`, and no GPU:"
        text += [f"## {name}\n", about + "\n"]
        text += [f"{where}\n", f"```bash\n{commands[name]}\n```\n"] if name in commands else []
        text += _printed(outputs[name]) if name in outputs else []
        text += [f"```{{literalinclude}} {os.path.relpath(path, target)}\n:language: python\n```\n"]
    for file, language in OTHER_LANGUAGES.items():
        path = os.path.relpath(folder / file, target)
        text += [f"## {file}\n", "Needs a GPU. How it is built stands in its first lines.\n",
                 f"```{{literalinclude}} {path}\n:language: {language}\n```\n"]  # fmt: skip
    yield "examples", "\n".join(text)


def _printed(output: Output) -> list[str]:
    """In a fence of which the text has none."""
    says = "It failed where this site was built, and said:" if output.failed else "It printed:"
    return [f"{says}\n", f"~~~~text\n{output.text}\n~~~~\n"]
