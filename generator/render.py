"""Renders a variant's CUDA source, and digests everything that its bytes depend on.

A template gets, by keyword: every axis, every constant, ``symbol``, ``family``, ``variant``, ``arch`` (``120a``),
``arch_major``, ``arch_minor``, ``shared`` (dynamic shared memory in bytes) and ``parameters`` (name -> manifest entry,
so that ``parameters.a_map.box`` is the box the host encodes). A name it uses and does not get is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from generator.errors import RenderError
from generator.expand import Variant
from loader.arch import ARCHS

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


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
        }  # fmt: skip
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
        headers = self._headers(text.encode(), Path(variant.template).parent)
        launch = {key: variant.launch[key] for key in ("block", "cluster", "shared", "pdl")}
        inputs = {
            "compiler": self.compiler, "flags": [*self.flags, *variant.flags], "arch": variant.arch,
            "source": hashlib.sha256(text.encode()).hexdigest(), "headers": headers, "launch": launch,
            "symbol": variant.symbol, "local_memory": variant.may_use_local_memory,
            "parameters": [(entry["offset"], entry["size"]) for entry in variant.parameters],
        }  # fmt: skip
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def _headers(self, content: bytes, folder: Path) -> dict[str, str]:
        """Name -> sha256 of every header of the project that ``content`` includes, directly or not."""
        found: dict[str, str] = {}
        pending = [(name, folder) for name in self._includes(content)]
        while pending:
            name, beside = pending.pop()
            path = self._resolve(name, beside)
            if path is None or path.as_posix() in found:
                continue
            digest, includes = self._header(path)
            found[path.as_posix()] = digest
            pending += [(included, path.parent) for included in includes]
        return found

    def _resolve(self, name: str, beside: Path) -> Path | None:
        """The header relative to templates/; ``None`` for one of the toolkit, which the compiler version stands for."""
        for folder in (beside, Path()):
            if (self.templates / folder / name).is_file():
                return folder / name
        return None

    def _read_header(self, path: Path) -> tuple[str, list[str]]:
        content = (self.templates / path).read_bytes()
        return hashlib.sha256(content).hexdigest(), self._includes(content)

    @staticmethod
    def _includes(content: bytes) -> list[str]:
        return [name.decode() for name in _INCLUDE.findall(content)]
