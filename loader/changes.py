"""What differs between two packs: ``python -m loader diff BEFORE AFTER``, as a table and as a page.

Instructions are those of the PTX, counted as they stand there; what a GPU's own code has of them only a disassembler
knows. Microseconds are the manifests' measured rows of the same problem on the same device.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .listing import ptx_text
from .manifest import Artifact
from .registry import Candidate, Pack

_INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*)[\w.:]*(?:\s[^;]*)?;", re.MULTILINE)
_SHOWN = 4  # opcodes of a kernel

Key = tuple[str, str, str]


class Change(NamedTuple):
    """One artifact of either pack. Numbers are (before, after), None where the pack has no such artifact;
    ``instructions`` has what the PTX gained of each opcode, or lost; ``speed`` is the geometric mean of after / before
    over ``rows`` measured problems."""

    family: str
    variant: str
    arch: str
    registers: tuple[int | None, int | None]
    shared: tuple[int | None, int | None]
    bytes: tuple[int | None, int | None]
    instructions: dict[str, int]
    speed: float | None
    rows: int


HEADERS = ("kernel", "variant", "arch", "registers", "shared", "bytes", "PTX", "measured")


def changes(before: Pack, after: Pack) -> list[Change]:
    """A line for every artifact that one pack has alone, or whose code or measured times differ. Raises what reading a
    file of a pack raises."""
    packs = before, after
    found = [{_key(artifact): artifact for artifact in pack.manifest.artifacts} for pack in packs]
    lines = []
    for key in sorted({*found[0], *found[1]}):
        one, other = (artifacts.get(key) for artifacts in found)
        speed, rows = _speed(packs, key, (one or other).tile)
        same = one is not None and other is not None and one.binary.sha256 == other.binary.sha256
        if not same or speed not in (None, 1):
            lines.append(_change(packs, key, (one, other), speed, rows))
    return lines


def _change(packs: tuple[Pack, Pack], key: Key, pair: tuple[Artifact | None, Artifact | None], speed: float | None,
            rows: int) -> Change:  # fmt: skip
    def both(read: Callable[[Artifact], int]) -> tuple[int | None, int | None]:
        return tuple(None if artifact is None else read(artifact) for artifact in pair)

    counts = [Counter() if artifact is None else Counter(_INSTRUCTION.findall(ptx_text(Candidate(pack, artifact))))
              for pack, artifact in zip(packs, pair, strict=True)]
    mix = {name: counts[1][name] - counts[0][name] for name in sorted(counts[0] | counts[1])}
    return Change(*key, both(lambda a: a.registers),
                  both(lambda a: a.launch.shared + a.static_shared), both(lambda a: a.binary.size),
                  {name: count for name, count in mix.items() if count}, speed, rows)


def _key(artifact: Artifact) -> Key:
    return artifact.family, artifact.variant, artifact.arch


def _speed(packs: tuple[Pack, Pack], key: Key, tile: str) -> tuple[float | None, int]:
    """After over before, of the problems that both packs measured on devices of one name."""
    times = []
    for pack in packs:
        family = pack.manifest.families.get(key[0])
        timed = [row for row in (family.measured if family else ()) if row.arch == key[2] and tile in row.microseconds]
        times.append({(row.device, *sorted(row.features.items())): row.microseconds[tile] for row in timed})
    ratios = [times[1][problem] / times[0][problem] for problem in times[0].keys() & times[1].keys()]
    return (math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else None), len(ratios)


def rows(found: Sequence[Change]) -> list[tuple[str, ...]]:
    """Of a table under ``HEADERS``: ``before -> after`` where the two differ."""
    def both(pair: tuple[int | None, int | None]) -> str:
        texts = ["none" if number is None else f"{number:,}" for number in pair]
        return texts[0] if texts[0] == texts[1] else " -> ".join(texts)

    def mix(change: Change) -> str:
        largest = sorted(change.instructions.items(), key=lambda item: (-abs(item[1]), item[0]))
        more = [f"and {len(largest) - _SHOWN} more"] if len(largest) > _SHOWN else []
        return ", ".join([*(f"{name} {count:+}" for name, count in largest[:_SHOWN]), *more])

    return [(change.family, change.variant, f"sm_{change.arch}", both(change.registers), both(change.shared),
             both(change.bytes), mix(change), "" if change.speed is None else f"{change.speed:.3f} of {change.rows}")
            for change in found]


def page(title: str, found: Sequence[Change]) -> str:
    """The same as a page of HTML."""
    def line(cell: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{cell}>{html.escape(text)}</{cell}>' for text in cells)}</tr>"

    body = "\n".join([line("th", HEADERS), *(line("td", cells) for cells in rows(found))])
    style = ("body{font:14px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left}"
             "tr:nth-child(even){background:#f4f4f4}")
    return (f"<!doctype html>\n<meta charset=utf-8>\n<title>{html.escape(title)}</title>\n<style>{style}</style>\n"
            f"<h1>{html.escape(title)}</h1>\n<table>\n{body}\n</table>\n")
