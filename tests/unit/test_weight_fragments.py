"""Weights in fragment order: every bit where docs/weights.md says it is, and back."""

from __future__ import annotations

import numpy as np
import pytest

from integrations.weight_fragments import from_fragments, to_fragments

BITS = 0xFFFFFFFF
PLACES = 0x81C081C0


def ror(word: int, right: int) -> int:
    return (word >> right | word << 32 - right) & BITS


def registers(word: int) -> list[int]:
    """Of a word, as the table of the document has them."""
    unmasked = (word, ror(word, 4), word << 4 ^ ror(word, 6), word << 6 ^ ror(word, 6))
    return [bits & PLACES for bits in unmasked]


@pytest.mark.parametrize("k", [2, 16, 96, 128, 400])
def test_each_weight_is_where_the_document_says(k: int, rng: np.random.Generator) -> None:
    """One by one, from the bytes; zeros behind K."""
    packed = rng.integers(0, 256, (2, 3, k // 2), dtype=np.uint8)
    fragments = to_fragments(packed)
    stages = -(-k // 128)
    assert fragments.shape == (2, 3, 64 * stages) and fragments.dtype == np.uint8
    for row, stored in zip(packed.reshape(6, -1), fragments.reshape(6, -1), strict=True):
        codes = [*np.stack([row & 15, row >> 4], -1).reshape(-1).tolist(), *[0] * (128 * stages - k)]
        for at in range(stages * 16):
            stage, lane, w = at // 16, at // 4 % 4, at % 4
            word = int.from_bytes(stored[4 * at : 4 * at + 4].tobytes(), "little")
            for r, found in enumerate(registers(word)):
                for half in (0, 1):
                    code = codes[128 * stage + 32 * w + 8 * r + 2 * lane + half]
                    assert found >> 16 * half & 0xFFFF == (code & 8) << 12 | (code & 7) << 6


@pytest.mark.parametrize("k", [32, 128, 2880])
def test_nothing_is_lost(k: int, rng: np.random.Generator) -> None:
    """Back to the same bytes, also of a part of a larger array; and every word is the fragments of some weights."""
    packed = rng.integers(0, 256, (4, 6, k), dtype=np.uint8)[::2, :, : k // 2]
    assert (from_fragments(to_fragments(packed), k) == packed).all()
    words = rng.integers(0, 256, (5, 64), dtype=np.uint8)
    assert (to_fragments(from_fragments(words, 128)) == words).all()


def test_tensors_become_the_same(rng: np.random.Generator) -> None:
    """As arrays do, and are tensors again."""
    torch = pytest.importorskip("torch")
    packed = rng.integers(0, 256, (3, 5, 104), dtype=np.uint8)
    fragments = to_fragments(torch.from_numpy(packed))
    assert (fragments.numpy() == to_fragments(packed)).all()
    assert torch.equal(from_fragments(fragments, 208), torch.from_numpy(packed))


def test_what_is_refused() -> None:
    """Other types, and rows of another length than K asks for."""
    for function in (to_fragments, lambda weights: from_fragments(weights, 128)):
        with pytest.raises(ValueError, match="^expected weights as uint8, got float32$"):
            function(np.zeros((2, 64), np.float32))
    for size, k, expected in ((64, 129, 128), (128, 128, 64), (64, 127, 64)):
        text = f"^expected rows of {expected} bytes for k = {k}, an even number, got {size}$"
        with pytest.raises(ValueError, match=text):
            from_fragments(np.zeros((2, size), np.uint8), k)
