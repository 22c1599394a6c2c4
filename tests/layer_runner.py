"""Launches of a layer on the emulated device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from device_problem import Output
from moe_reference import AnyLayer, Tokens

import loader


class Runner:
    """Launches on an emulated device, each time under a fresh schedule and into a poisoned output."""

    def __init__(self, arch: str, packs: list[str] | None, reschedule: Callable[[], str]) -> None:
        self.arch, self.schedule, self.packs, self._reschedule = arch, "", packs, reschedule

    def launch(self, name: str, **arguments: Any) -> None:
        self.schedule = self._reschedule()
        loader.launch(name, **arguments, device=f"emulated:{self.arch}", packs=self.packs)

    def __call__(self, layer: AnyLayer, tokens: Tokens, out_type: str = "bf16", workspace: Any = None) -> torch.Tensor:
        """The layer's result; nothing else is written."""
        count, hidden = tokens.x.shape
        out = Output(count, hidden, out_type, tokens.x.device)
        self.launch(layer.composite, **tokens._asdict(), **layer.arguments, out=out.array, workspace=workspace)
        assert out.intact(count), f"{self.arch} {self.schedule}: wrote outside the output"
        return out.array

    def check_reach(
        self, layer: AnyLayer, tokens: Tokens, cases: Iterable[tuple[str, tuple[AnyLayer, Tokens], torch.Tensor]]
    ) -> None:
        """``cases``: a name, layer and tokens with a NaN, and which tokens it reaches; no byte of others changes."""
        clean = self(layer, tokens)
        assert not clean.isnan().any()
        for name, changed, reached in cases:
            out = self(*changed)
            assert torch.equal(out[~reached], clean[~reached]), f"{layer.composite} {self.arch} {name} {self.schedule}"
            assert out[reached].isnan().any(dim=1).all(), f"{layer.composite} {self.arch} {name} {self.schedule}"

    def workspace(self, layer: AnyLayer, tokens: Tokens, count: int, out_type: str = "bf16") -> torch.Tensor:
        """Poisoned, for ``count`` tokens."""
        experts, hidden, between = layer.shape
        size = loader.workspace_bytes(
            layer.composite, packs=self.packs, T=count, TOPK=tokens.topk_ids.shape[1], E=experts, H=hidden, I=between,
            x="bf16", topk_ids="i32", out=out_type, **layer.scalars,
        )  # fmt: skip
        return poisoned(size)


def poisoned(size: int) -> torch.Tensor:
    """Bytes of a workspace."""
    raw = torch.full((size + 256,), 0xFF, dtype=torch.uint8)
    return raw[-raw.data_ptr() % 256 :][:size]
