"""Renders a variant's CUDA source, and digests everything that its bytes depend on.

A template gets, by keyword: every axis, every constant, ``symbol``, ``family``, ``variant``, ``arch`` (``120a``),
``arch_major``, ``arch_minor``, ``shared`` (dynamic shared memory in bytes), ``parameters`` (name -> manifest entry, so
that ``parameters.a_map.box`` is the box the host encodes) and ``choices`` (scalar -> word -> the number that the kernel
gets, so that ``choices.division.ieee`` is one). A name it uses and does not get is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from generator import VERSION
from generator.errors import RenderError
from generator.expand import Variant
from loader.arch import ARCHS

# Of templates and headers. Files of other names are no sources, so none can be used.
SUFFIXES = (".j2", ".cuh")
# But for this one, in templates/ itself: nvcc reads it before every file, in place of the toolkit's of that name.
IMPLIED = "cuda_runtime.h"

# A name in quotes is looked up beside its file first, one in angle brackets on the include path alone.
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*(["<])([^">\n]+)[">]', re.MULTILINE)


def is_source(path: Path) -> bool:
    """Whether a file, by its path in templates/, may reach a kernel."""
    return path.suffix in SUFFIXES or path.as_posix() == IMPLIED


@dataclass(frozen=True)
class Source:
    """A rendered kernel. ``digest`` covers text, headers, flags, compiler and what the result is checked for."""

    variant: Variant
    text: str
    digest: str


class Renderer:
    """Renders from one templates directory, for one compiler version and set of flags."""

    def __init__(self, templates: Path, compiler: str, flags: tuple[str, ...]) -> None:
        self.templates, self.compiler, self.flags = templates, compiler, flags
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(templates), undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._header = cache(self._read_header)

    def render(self, variant: Variant) -> Source:
        arch = ARCHS[variant.arch]
        names = {
            **variant.axes, **variant.constants, "symbol": variant.symbol, "family": variant.family,
            "variant": variant.variant, "arch": variant.arch, "arch_major": arch.major, "arch_minor": arch.minor,
            "shared": variant.launch["shared"], "parameters": {entry["name"]: entry for entry in variant.parameters},
            "choices": variant.choices, "declaration": variant.declaration,
        }  # fmt: skip
        self._check_suffix(Path(variant.template))
        try:
            text = self.environment.get_template(variant.template).render(names)
        except jinja2.TemplateSyntaxError as error:
            raise RenderError(f"templates/{error.name}:{error.lineno}: {error.message}") from None
        except jinja2.TemplateNotFound as error:
            raise RenderError(f"templates/{error.name} does not exist") from None
        except jinja2.TemplateError as error:
            raise RenderError(f"templates/{variant.template}: {error.message}") from None
        return Source(variant, text, self._digest(variant, text))

    def _digest(self, variant: Variant, text: str) -> str:
        launch = {key: variant.launch[key] for key in ("block", "cluster", "shared", "pdl")}
        inputs = {
            "generator": VERSION, "compiler": self.compiler, "flags": [*self.flags, *variant.flags],
            "source": hashlib.sha256(text.encode()).hexdigest(), "headers": self._headers(text.encode()),
            "arch": variant.arch, "launch": launch, "symbol": variant.symbol,
            "local_memory": variant.may_use_local_memory,
            "parameters": [(entry["offset"], entry["size"]) for entry in variant.parameters],
        }  # fmt: skip
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def _headers(self, content: bytes) -> dict[str, str]:
        """Name -> sha256 of every header of the project that nvcc reads before ``content`` or for it."""
        found: dict[str, str] = {}
        implied = f'#include "{IMPLIED}"\n'.encode()
        pending = self._includes(implied + content, Path())  # a kernel is compiled away from its template
        while pending:
            path = pending.pop()
            if path.as_posix() not in found:
                found[path.as_posix()], includes = self._header(path)
                pending += includes
        return found

    @staticmethod
    def _check_suffix(path: Path) -> None:
        if not is_source(path):
            raise RenderError(f"templates/{path}: the name of a template ends in .j2, that of a header in .cuh")

    def _read_header(self, path: Path) -> tuple[str, list[Path]]:
        self._check_suffix(path)
        content = (self.templates / path).read_bytes()
        return hashlib.sha256(content).hexdigest(), self._includes(content, path.parent)

    def _includes(self, content: bytes, beside: Path) -> list[Path]:
        """Headers relative to templates/, less those of the toolkit, which the compiler version stands for."""
        found = []
        for mark, name in _INCLUDE.findall(content):
            places = [folder / name.decode() for folder in ((beside, Path()) if mark == b'"' else (Path(),))]
            found += [path for path in places if (self.templates / path).is_file()][:1]
        return found
