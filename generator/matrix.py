"""Reads kernels.yaml: YAML without duplicate keys, families that build on others (generator.inherit), its shape
(generator.schema), its meaning (generator.expand).

All findings are collected and raised at once as ``MatrixError``; each names file, entry and key. Findings about types
and unknown keys come first, alone: meaning is checked on data of the right shape only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from generator import compose, inherit, measured, schema
from generator.errors import MatrixError
from generator.expand import FamilyExpander, Variant
from generator.problems import Problems


@dataclass(frozen=True)
class Expansion:
    """The whole matrix: families and composites in manifest form, and variants sorted by family, arch, variant.

    measured: the files that it names, by their path from its folder.
    """

    families: dict[str, dict[str, Any]]
    composites: dict[str, dict[str, Any]]
    variants: list[Variant]
    measured: tuple[str, ...]


class _UniqueKeyLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path) -> Expansion:
    """The checked and expanded matrix of a kernels.yaml; ``MatrixError`` carries every finding."""
    file = path.name
    try:
        data = yaml.load(path.read_bytes(), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise MatrixError([f"{path}: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MatrixError([f"{file}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    ancestors = inherit.resolve(data, file)
    try:
        matrix = schema.Matrix.model_validate(data)
    except ValidationError as error:
        raise MatrixError([f"{file}: {problem}" for problem in schema.problems(error)]) from None
    problems = Problems()
    families, variants = {}, []
    for name, family in matrix.families.items():
        if family.kernels not in (None, *families):
            problems.add(f"families.{name}.kernels", f"{family.kernels!r} is no family above this one")
        rows = measured.read(path.parent, (name, *ancestors[name]), family.select.measured, problems)
        families[name] = FamilyExpander(name, family, problems, measured=rows)
        variants += families[name].expand()
    composites = {name: compose.expand(name, composite, families, problems)
                  for name, composite in matrix.composites.items()}
    texts = problems.texts(file)
    if texts:
        raise MatrixError(texts)
    manifests = {name: expander.manifest for name, expander in families.items()}
    files = tuple(dict.fromkeys(file for family in matrix.families.values() for file in family.select.measured))
    return Expansion(manifests, composites, sorted(variants, key=lambda v: (v.family, v.arch, v.variant)), files)
