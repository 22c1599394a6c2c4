"""A page for each family and composite of kernels.yaml, as the generator reads it, and their index.

What a compiler reported (registers) comes from the manifest of a pack of the same sources; without one it is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from generator.matrix import Expansion
from generator.target import Variant
from site_pages import signature
from site_pages.markdown import bullets, code, codes, link, number, plain, table, toctree

# Heading -> what makes a family one of those under it, from its required arguments and the schedules of its kernels.
# The first that holds counts. One kernel serves several ways of saying where rows are, so arguments tell them apart.
WAYS: tuple[tuple[str, Callable[[set[str], set[str]], bool]], ...] = (
    ("Groups along K", lambda arguments, schedules: "k_groups" in schedules),
    ("Rows of experts, packed by offsets", lambda arguments, schedules: "expert_offsets" in arguments),
    ("Rows of experts, by the end of each group", lambda arguments, schedules: "group_ends" in arguments),
    ("Rows of experts, by a label of each row", lambda arguments, schedules: "row_groups" in arguments),
    ("Rows of experts, the first ones of a matrix each", lambda arguments, schedules: "mask" in arguments),
    ("One matrix", lambda arguments, schedules: "dense" in schedules),
    ("A matrix of tokens by a matrix of weights", lambda arguments, schedules: bool(schedules)),
    ("Without a tensor core", lambda arguments, schedules: True),
)
COMPOSITES = "Layers in one call"
OPERANDS = ("a", "b")
GENERATIONS = {"9": "Hopper", "10": "Blackwell, sm_100", "12": "Blackwell, sm_120"}


@dataclass(frozen=True)
class Result:
    """Recorded rows that concern a family: the page, its name, the day, how many rows; and, where there is something
    beside the kernels, in how many they are behind, and the geometric mean of the ratios."""

    page: str
    title: str
    date: str
    rows: int
    behind: int | None
    ratio: float | None


class Families:
    """Pages of one matrix. ``artifacts``: of a pack, by family, variant and arch. ``results``: of a family's name."""

    def __init__(self, expansion: Expansion, artifacts: Mapping[tuple[str, str, str], Mapping[str, Any]],
                 results: Callable[[str], Sequence[Result]]) -> None:  # fmt: skip
        self.families = {**expansion.composites, **expansion.families}
        self.composites, self.artifacts, self.results = expansion.composites, artifacts, results
        self.variants: dict[str, list[Variant]] = defaultdict(list)
        for variant in expansion.variants:
            self.variants[variant.family].append(variant)

    def pages(self) -> Iterator[tuple[str, str]]:
        yield "families/index", self._index()
        for name in self.families:
            yield f"families/{name}", self._page(name)

    def _way(self, name: str) -> str:
        if name in self.composites:
            return COMPOSITES
        schedules = {v.axes["schedule"] for v in self.variants[name] if "schedule" in v.axes}
        required = {argument["name"] for argument in self.families[name]["arguments"] if not argument["optional"]}
        arguments = required if schedules else set()
        return next(title for title, holds in WAYS if holds(arguments, schedules))

    def _formats(self, name: str) -> str:
        """Elements of both operands with their scales, or of the results where there are no operands."""
        dtypes = {argument["name"]: argument["dtypes"] for argument in self.families[name]["arguments"]}
        if set(OPERANDS) <= dtypes.keys():
            return " x ".join(
                "/".join(dtypes[operand]) + "".join(f" ({dtypes[scale][0]})" for scale in (f"{operand}_scale",)
                                                    if scale in dtypes) for operand in OPERANDS)  # fmt: skip
        outputs = [argument for argument in self.families[name]["arguments"] if argument["direction"] != "in"]
        return ", ".join(dict.fromkeys("/".join(argument["dtypes"]) for argument in outputs))

    def _archs(self, name: str) -> list[str]:
        if name in self.composites:
            of_steps = [set(self._archs(step["kernel"])) for step in self.composites[name]["steps"]]
            return _in_order(set.intersection(*of_steps))
        return _in_order({variant.arch for variant in self.variants[name]})

    def _index(self) -> str:
        text = ["# Kernels\n", f"{len(self.families) - len(self.composites)} families and {len(self.composites)} "
                "composites of `kernels.yaml`, by where their rows are, then by format: the elements of tokens and of "
                "weights, each with the type of its scales in parentheses.\n"]  # fmt: skip
        groups: dict[str, list[str]] = {title: [] for title in (COMPOSITES, *dict(WAYS))}
        for name in self.families:
            groups[self._way(name)].append(name)
        for title, names in groups.items():
            if names:
                rows = sorted((self._formats(name), index, name) for index, name in enumerate(names))
                text += [f"## {title}\n", table(
                    ["format", "kernel", "archs", "variants"],
                    [[code(form), link(code(name), name), ", ".join(self._archs(name)),
                      number(len(self.variants[name]) if name in self.variants else None)] for form, _, name in rows],
                    right=3)]  # fmt: skip
        return "\n".join([*text, toctree(self.families)])

    def _page(self, name: str) -> str:
        family = self.families[name]
        parts = [f"# {name}\n", plain(family["summary"]) + "\n", bullets(self._facts(name)),
                 "## Arguments\n", signature.arguments(family)]  # fmt: skip
        if family["scalars"]:
            parts += ["## Scalars\n", signature.scalars(family)]
        if family["constraints"] or family["skip"] is not None:
            parts += ["## Constraints\n", signature.constraints(family)]
        if family.get("values"):
            parts += ["## Integers\n", "Checked on host buffers and by `loader.check`.\n", signature.values(family)]
        parts += self._steps(name) if name in self.composites else self._variants(name)
        parts += self._results(name)
        return "\n".join(parts)

    def _facts(self, name: str) -> Iterator[str]:
        family = self.families[name]
        yield f"Archs: {', '.join(self._archs(name))}."
        if "overloads" in family:
            of = family["overloads"]
            yield f"A call of {link(code(of), of)} that gives {codes(self._own_arguments(name, of))} is one of this."
        forms = [other for other, entry in self.families.items() if entry.get("overloads") == name]
        if forms:
            yield f"Other forms of the call: {', '.join(link(code(form), form) for form in forms)}."
        kernels = self._kernels(name)
        if kernels not in (None, name):
            yield f"Its kernels are those of {link(code(kernels), kernels)}."
        users = [composite for composite, entry in self.composites.items()
                 if name in {step["kernel"] for step in entry["steps"]}]
        if users:
            yield f"A step of {', '.join(link(code(user), user) for user in users)}."

    def _own_arguments(self, name: str, of: str) -> list[str]:
        theirs = {argument["name"] for argument in self.families[of]["arguments"]}
        return [argument["name"] for argument in self.families[name]["arguments"]
                if argument["name"] not in theirs and not argument["optional"]]  # fmt: skip

    def _kernels(self, name: str) -> str | None:
        """The family after which the kernels of this one are named."""
        first = next(iter(self.variants.get(name, [])), None)
        return None if first is None else first.symbol.removesuffix(f"_{first.variant}")

    def _steps(self, name: str) -> Iterator[str]:
        composite = self.composites[name]
        yield "## Steps\n"
        yield "".join(f"{index}. {link(code(step['kernel']), step['kernel'])}\n"
                      for index, step in enumerate(composite["steps"], 1))  # fmt: skip
        yield "## Workspace\n"
        yield f"A call whose workspace is too small goes in chunks along {code(composite['split'])}.\n"
        yield table(["buffer", "dtype", "shape"], [
            [code(buffer["name"]), code(buffer["dtype"]), signature.shape(buffer["shape"])]
            for buffer in composite["workspace"]])  # fmt: skip

    def _variants(self, name: str) -> Iterator[str]:
        yield "## Variants\n"
        matched = self.families[name]["select"]["match"]
        if matched:
            yield f"The dtype of {codes(dict.fromkeys(matched.values()))} decides among those of a tile.\n"
        generations: dict[str, list[Variant]] = defaultdict(list)
        for variant in self.variants[name]:
            generations[variant.arch[:-2]].append(variant)
        for major, title in GENERATIONS.items():
            if major in generations:
                yield f"### {title}\n"
                yield self._tiles(generations[major], list(matched))

    def _tiles(self, variants: list[Variant], matched: list[str]) -> str:
        tiles: dict[str, list[Variant]] = defaultdict(list)
        for variant in variants:
            tiles[variant.tile].append(variant)
        rows = []
        for tile, those in sorted(tiles.items(), key=lambda item: _natural(item[0])):
            found = [self.artifacts.get((v.family, v.variant, v.arch)) for v in those]
            registers = [] if None in found else [_range(artifact["registers"] for artifact in found)]
            rows.append([code(tile), *(codes(dict.fromkeys(v.axes[axis] for v in those)) for axis in matched),
                         ", ".join(_in_order({v.arch for v in those})), _extents(those, "block"),
                         _extents(those, "cluster"),
                         _range(v.launch["shared"] for v in those), *registers])  # fmt: skip
        headers = ["tile", *map(code, matched), "archs", "threads", "cluster", "shared bytes"]
        complete = all(len(row) > len(headers) for row in rows)
        rows = [row[:len(headers) + complete] for row in rows]
        return table([*headers, *["registers"] * complete], rows, right=len(matched) + 2)

    def _results(self, name: str) -> Iterator[str]:
        found = self.results(name)
        yield "## Results\n"
        if not found:
            yield "No recorded result concerns this kernel by name.\n"
            return
        yield "Measured. The mean is geometric, of our times over the fastest ones beside them: below 1 we are ahead.\n"
        yield table(["record", "date", "rows", "behind in", "mean"], [
            [link(plain(result.title), f"../benchmarks/{result.page}"), result.date, str(result.rows),
             number(result.behind), number(result.ratio)] for result in found], right=2)  # fmt: skip


def _in_order(archs: set[str]) -> list[str]:
    return sorted(archs, key=lambda arch: (int(arch[:-1]), arch))


def _natural(text: str) -> list[tuple[int, str]]:
    """A key by which m8 comes before m16."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _range(values: Iterable[int]) -> str:
    numbers = sorted(set(values))
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _extents(variants: list[Variant], key: str) -> str:
    """Threads of a CTA, or CTAs of a cluster."""
    return _range(x * y * z for x, y, z in (variant.launch[key] for variant in variants))
