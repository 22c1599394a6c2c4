"""Expands a family of kernels.yaml to one ``Variant`` a kernel and arch, and checks what its variants mean together."""

from __future__ import annotations

from generator.signature import Signature
from generator.target import TargetExpander, Variant


class FamilyExpander(Signature):
    """Checks and expands one family."""

    def expand(self) -> list[Variant]:
        self.check_signature()
        self.check_values()
        variants: list[Variant] = []
        for target_name, target in self.family.targets.items():
            variants += TargetExpander(self, target_name, target).expand()
        self._check_duplicates(variants)
        self._check_measured(variants)
        return variants

    def _check_duplicates(self, variants: list[Variant]) -> None:
        seen: dict[tuple[str, str], str] = {}
        for variant in variants:
            key = (variant.variant, variant.arch)
            if key in seen:
                self.problems.add(
                    f"{self.where}.targets", f"duplicate variant {variant.variant!r} for {variant.arch}: two targets "
                    "or two combinations of axes give the same name")  # fmt: skip
            seen[key] = variant.variant

    def _check_measured(self, variants: list[Variant]) -> None:
        tiles: dict[str, set[str]] = {}
        for variant in variants:
            tiles.setdefault(variant.arch, set()).add(variant.tile)
        for at, row in self.measured:
            if row.arch not in tiles:
                self.problems.add(f"{at}.arch", f"{row.arch!r} is built by no target; built are {', '.join(tiles)}")
                continue
            for tile in sorted(set(row.microseconds) - tiles[row.arch]):
                known = ", ".join(sorted(tiles[row.arch]))
                self.problems.add(f"{at}.microseconds.{tile}", f"unknown tile for {row.arch}; known are {known}")
            if set(row.features) != self.features:
                self.problems.add(f"{at}.features", f"expected exactly {', '.join(sorted(self.features))}")
