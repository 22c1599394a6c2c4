"""Markdown of generated pages: text that is data, tables, numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def plain(text: str) -> str:
    """``text`` without a meaning in Markdown or in a table."""
    return re.sub(r"([\\`*<>|\[\]_])", r"\\\1", " ".join(text.split()))


def code(text: Any) -> str:
    """In a monospaced font; a bar would end the cell of a table."""
    return "`" + str(text).replace("|", "\\|") + "`"


def codes(values: Iterable[Any]) -> str:
    return ", ".join(map(code, values))


def link(words: str, page: str) -> str:
    """To a page, by its path from this one without a suffix."""
    return f"[{words}]({page}.md)"


def number(value: Any) -> str:
    """Three significant digits, as benchmarks print them; a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: int | None = None) -> str:
    """``right``: the first of the columns that hold numbers. Cells are Markdown."""
    first = len(headers) if right is None else right
    marks = ["---" if index < first else "---:" for index in range(len(headers))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, marks, *rows)) + "\n"


def bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def toctree(pages: Iterable[str], hidden: bool = True) -> str:
    lines = [":hidden:", *pages] if hidden else pages
    return "```{toctree}\n" + "\n".join(lines) + "\n```\n"
