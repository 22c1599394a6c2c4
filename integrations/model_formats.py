"""In which format each matrix of a checkpoint is stored, from what its configuration says of its quantisation."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .expert_formats import FORMATS
from .model_fields import Fields, ModelError, read


class Format(NamedTuple):
    """``rows`` and ``columns``: the values along N and along K that share a scale; a cut goes between them."""

    name: str
    rows: int = 1
    columns: int = 1


BF16 = Format("BF16")
NVFP4, MXFP4, MXFP8 = (Format(name, *FORMATS[name].block) for name in ("NVFP4", "MXFP4", "MXFP8"))
FP8, FP8_UE8M0 = (Format(f"FP8, {scales} scales of 128 x 128", *FORMATS["FP8"].block) for scales in ("fp32", "UE8M0"))
FP8_ROWS = Format("FP8, a scale for each row")
FP8_TENSOR = Format("FP8, a scale for each matrix")

FormatOf = Callable[[str], Format]  # of a module, by its name

# ModelOpt's names. Those that are not here are named in the description, and run on nothing.
ALGORITHMS = {
    "NVFP4": NVFP4,
    "W4A16_NVFP4": NVFP4,
    "MXFP4": MXFP4,
    "MXFP8": MXFP8,
    "FP8": FP8_TENSOR,
    "FP8_PER_CHANNEL_PER_TOKEN": FP8_ROWS,
}
# compressed-tensors' weights, of type float: bits, strategy, and values of a group.
FLOATS = {
    (4, "tensor_group", (16,)): NVFP4,
    (4, "group", (32,)): MXFP4,
    (8, "group", (32,)): MXFP8,
    (8, "block", (128, 128)): FP8,
    (8, "channel", ()): FP8_ROWS,
    (8, "tensor", ()): FP8_TENSOR,
}


def formats(config: Fields, folder: Path) -> tuple[str, FormatOf]:
    """The method of quantisation, and the format of a module: BF16 where it is none of those that are quantised.

    ModelOpt writes a file beside the configuration, hf_quant_config.json, and later the same into it.
    """
    beside = folder / "hf_quant_config.json"
    if "quantization_config" not in config:
        if not beside.is_file():
            return "none", lambda module: BF16
        return "modelopt", _modelopt(read(beside).part("quantization"))
    quantization = config.part("quantization_config")
    method = quantization.word("quant_method", "modelopt" if "quant_algo" in quantization else None)
    if method not in READERS:
        return method, lambda module: Format(f"quant_method {method}")
    return method, READERS[method](quantization)


def _mxfp4(quantization: Fields) -> FormatOf:
    """Of gpt-oss: the experts."""
    excluded = _listed(quantization.words("modules_to_not_convert"))
    return lambda module: MXFP4 if ".experts." in module and not excluded(module) else BF16


def _fp8(quantization: Fields) -> FormatOf:
    """Every matrix but lm_head, with scales of ``weight_block_size``, else one for the matrix."""
    excluded = _listed(("lm_head", *quantization.words("modules_to_not_convert")))
    block = quantization.sizes("weight_block_size")
    if quantization.word("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise quantization.wrong("fmt", "e4m3")
    if "moe_quant_algo" in quantization:
        raise quantization.wrong("moe_quant_algo", "nothing beside quant_method fp8")
    scales = quantization.word("scale_fmt", "float")
    known = {"float": FP8, "ue8m0": FP8_UE8M0}
    if scales not in known:
        raise quantization.wrong("scale_fmt", " or ".join(known))
    found = FP8_TENSOR if not block else known[scales]
    if block and block != (found.rows, found.columns):
        found = Format(f"FP8, scales of {' x '.join(map(str, block))}")
    return lambda module: BF16 if excluded(module) else found


def _modelopt(quantization: Fields) -> FormatOf:
    """One algorithm for all but ``exclude_modules``, later ``ignore``; or one for each of ``quantized_layers``."""
    algorithm = quantization.word("quant_algo")
    excluded = _listed((*quantization.words("exclude_modules"), *quantization.words("ignore")))
    if algorithm != "MIXED_PRECISION":
        found = _algorithm(quantization, algorithm)
        return lambda module: BF16 if excluded(module) else found
    layers = quantization.part("quantized_layers")
    known = {name: _algorithm(layers.part(name), layers.part(name).word("quant_algo")) for name in layers.entries}
    return lambda module: next((known[name] for name in _parents(module) if name in known), BF16)


def _parents(module: str) -> list[str]:
    """The module, and those that it is part of: a list may name experts as one."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _algorithm(quantization: Fields, name: str) -> Format:
    found = ALGORITHMS.get(name, Format(f"quant_algo {name}"))
    size = quantization.size("group_size", found.columns, least=0)
    if found.columns > 1 and size != found.columns:
        raise quantization.wrong("group_size", f"{found.columns}, for {name}")
    return found


def _compressed_tensors(quantization: Fields) -> FormatOf:
    """The first group whose targets name the module, or all matrices: Linear."""
    ignored = _targets(quantization, "ignore")
    groups = [(_targets(group, "targets"), _floats(group)) for group in quantization.part("config_groups").parts()]

    def format_of(module: str) -> Format:
        fitting = [found for targets, found in groups if not ignored(module) and targets(module)]
        return fitting[0] if fitting else BF16

    return format_of


def _floats(group: Fields) -> Format:
    weights = group.part("weights")
    bits, kind, strategy = weights.size("num_bits"), weights.word("type"), weights.word("strategy")
    sizes: tuple[int, ...] = ()
    if strategy in ("group", "tensor_group"):
        sizes = (weights.size("group_size"),)
    elif strategy == "block":
        sizes = weights.sizes("block_structure")
    if kind == "float" and (bits, strategy, sizes) in FLOATS:
        return FLOATS[bits, strategy, sizes]
    return Format(f"{bits}-bit {kind} by {strategy} {' x '.join(map(str, sizes))}".rstrip())


READERS: Mapping[str, Callable[[Fields], FormatOf]] = {
    "mxfp4": _mxfp4,
    "fp8": _fp8,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
}


def _listed(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a module, or one that it is part of, is in a list of names; ``*`` stands for anything.

    A name may lack what is before it, as lm_head does.
    """
    if not patterns:
        return lambda module: False
    translated = [fnmatch.translate(f"{before}{pattern}{after}") for pattern in dict.fromkeys(patterns)
                  for before in ("", "*.") for after in ("", ".*")]  # fmt: skip
    matches = re.compile("|".join(translated)).match
    return lambda module: matches(module) is not None


def _targets(quantization: Fields, key: str) -> Callable[[str], bool]:
    """Whether a module is named: itself, by ``re:`` and an expression that its name begins with, or as a Linear."""
    names = quantization.words(key)
    try:
        expressions = [re.compile(name.removeprefix("re:")) for name in names if name.startswith("re:")]
    except re.error as error:
        raise ModelError(f"{quantization.where}: {key}: expected an expression behind re:, {error}") from None
    return lambda module: module in names or "Linear" in names or any(e.match(module) for e in expressions)
