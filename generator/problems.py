"""What is wrong with a matrix, gathered so that all of it is said at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loader.errors import ExpressionError


class Problems:
    """Findings so far. Equal findings of many variants become one that counts them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, where: str, reason: str, variant: str | None = None) -> None:
        self._found.setdefault((where, reason), []).extend([variant] if variant else [])

    @contextmanager
    def at(self, where: str, variant: str | None = None) -> Iterator[None]:
        try:
            yield
        except ExpressionError as error:
            self.add(where, str(error), variant)

    def texts(self, file: str) -> list[str]:
        texts = []
        for (where, reason), variants in self._found.items():
            more = f" and {len(variants) - 1} more" if len(variants) > 1 else ""
            texts.append(f"{file}: {where}: {reason}" + (f" (variant {variants[0]}{more})" if variants else ""))
        return texts
