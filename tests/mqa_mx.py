"""Problems of MQA logits of MXFP8 and MXFP4: queries and keys with a UE8M0 scale for 32 elements."""

from __future__ import annotations

import dataclasses

import mqa
import numpy as np
import reference

GROUP, SCALES = 32, 4  # elements of a scale, scales of a word
UE8M0_NAN = 0xFF
DENSE, PAGED = ({f"{form}mqa_logits_mxfp8": reference.E4M3, f"{form}mqa_logits_mxfp4": reference.E2M1}
                for form in ("", "paged_"))  # fmt: skip


def random_codes(rng: np.random.Generator, elements: np.ndarray, *shape: int, exact: bool) -> np.ndarray:
    """One a byte; exact: up to 2."""
    if elements is reference.E4M3:
        return mqa.random_e4m3(rng, *shape, exact=exact)
    return rng.choice(np.r_[:5, 8:13] if exact else np.arange(16), shape).astype(np.uint8)


def random_scales(rng: np.random.Generator, *shape: int, dim: int, exact: bool) -> np.ndarray:
    """[.., 4] bytes, of neighbours apart: 1/2, 1 and 2, or sixteen powers of two; NaN behind those of ``dim``."""
    found = rng.integers(126, 129, (*shape, SCALES)) if exact else rng.integers(119, 135, (*shape, SCALES))
    found[..., dim // GROUP :] = UE8M0_NAN
    return found.astype(np.uint8)


def stored(codes: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """E2M1 two in a byte."""
    return codes if elements is reference.E4M3 else codes[..., ::2] | codes[..., 1::2] << 4


def words(scales: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(scales).view(np.int32)[..., 0]


def scaled(codes: np.ndarray, scales: np.ndarray, elements: np.ndarray) -> np.ndarray:
    return elements[codes] * reference.UE8M0[scales[..., : codes.shape[-1] // GROUP]].repeat(GROUP, -1)


@dataclasses.dataclass
class Dense(mqa.Dense):
    """q and kv are codes, one a byte; their scales are bytes [.., 4]."""

    q_scale: np.ndarray
    elements: np.ndarray

    @classmethod
    def of(
        cls, rng: np.random.Generator, family: str, queries: int, heads: int, dim: int, keys: int, spare: int = 0,
        exact: bool = True,
    ) -> Dense:  # fmt: skip
        """As ``mqa.Dense.random``."""
        found, elements = mqa.Dense.random(rng, queries, heads, dim, keys, spare, exact), DENSE[family]
        found.q, found.kv = (random_codes(rng, elements, *old.shape, exact=exact) for old in (found.q, found.kv))
        found.kv_scale = random_scales(rng, keys, dim=dim, exact=exact)
        return cls(**vars(found), q_scale=random_scales(rng, queries, heads, dim=dim, exact=exact), elements=elements)

    def inputs(self) -> dict[str, np.ndarray]:
        data = {"q": stored(self.q, self.elements), "kv": stored(self.kv, self.elements)}
        return super().inputs() | data | {"kv_scale": words(self.kv_scale), "q_scale": words(self.q_scale)}

    def spoil(self, key: int) -> None:
        self.kv_scale[key, 0] = UE8M0_NAN

    def values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, kv = scaled(self.q, self.q_scale, self.elements), scaled(self.kv, self.kv_scale, self.elements)
        return q, kv, np.ones(len(self.kv))


@dataclasses.dataclass
class Paged(mqa.Paged):
    """q is codes, one a byte; its scales are bytes [B, next, H, 4]."""

    q_scale: np.ndarray | None = None
    elements: np.ndarray | None = None

    @classmethod
    def of(
        cls, rng: np.random.Generator, family: str, lengths: np.ndarray, heads: int, dim: int, page: int,
        spare: int = 0, exact: bool = True,
    ) -> Paged:  # fmt: skip
        """As ``mqa.Paged.random``."""
        found, elements = mqa.Paged.random(rng, lengths, heads, dim, page, spare, exact), PAGED[family]
        found.q = random_codes(rng, elements, *found.q.shape, exact=exact)
        pages = len(found.kv_cache)
        keys = stored(random_codes(rng, elements, pages, page, dim, exact=exact), elements)
        scales = random_scales(rng, pages, page, dim=dim, exact=exact)
        parts = keys, scales, np.full((pages, spare), 0xFF, np.uint8)
        found.kv_cache = np.concatenate([part.reshape(pages, -1) for part in parts], 1)
        q_scale = random_scales(rng, *lengths.shape, heads, dim=dim, exact=exact)
        return cls(**vars(found), q_scale=q_scale, elements=elements)

    @property
    def row_bytes(self) -> int:
        return self.q.shape[-1] // (1 if self.elements is reference.E4M3 else 2)

    def inputs(self) -> dict[str, object]:
        found = super().inputs() | {"q": stored(self.q, self.elements), "q_scale": words(self.q_scale)}
        del found["elements"]
        return found

    def values(self, request: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, scales, _ = (of[:count] for of in self.stored_keys(request))
        if self.elements is not reference.E4M3:
            rows = np.stack([rows & 15, rows >> 4], -1).reshape(len(rows), self.q.shape[-1])
        q = scaled(self.q[request], self.q_scale[request], self.elements)
        return q, scaled(rows, scales, self.elements), np.ones(len(rows))


def dense(rng: np.random.Generator, family: str, *sizes: int, **options: int | bool) -> mqa.Dense:
    """A problem of any family of keys in one matrix; arguments as of ``mqa.Dense.random``."""
    return Dense.of(rng, family, *sizes, **options) if family in DENSE else mqa.Dense.random(rng, *sizes, **options)


def paged(
    rng: np.random.Generator, family: str, lengths: np.ndarray, *sizes: int, **options: int | bool
) -> mqa.Paged:  # fmt: skip
    """The same of keys in pages, as ``mqa.Paged.random``."""
    if family in PAGED:
        return Paged.of(rng, family, lengths, *sizes, **options)
    return mqa.Paged.random(rng, lengths, *sizes, **options)
