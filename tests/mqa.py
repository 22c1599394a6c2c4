"""Problems of MQA logits, dense and paged, and what they mean, in float64 on dequantised operands.

out[query, key] = scale of the key * sum over heads of (weight * relu(query . key)), for the keys that a query sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import reference

E4M3_NAN = 0x7F


def random_e4m3(rng: np.random.Generator, *shape: int, exact: bool) -> np.ndarray:
    """Codes of either sign: multiples of 1/2 up to 2, or of a few exponents, and in some rows of any. No NaN."""
    if exact:
        codes = rng.choice(np.array([0, 0x30, 0x38, 0x3C, 0x40]), shape)
    else:
        codes = rng.integers(0x28, 0x48, shape)
        codes = np.where(rng.random((*shape[:-1], 1)) < 0.05, rng.integers(0, 0x7F, shape), codes)
    return (codes | rng.integers(0, 2, shape) << 7).astype(np.uint8)


def random_weights(rng: np.random.Generator, *shape: int, exact: bool) -> np.ndarray:
    """Multiples of 1/8 up to 2, or any."""
    return (rng.integers(-16, 17, shape) / 8 if exact else rng.standard_normal(shape)).astype(np.float32)


def random_scales(rng: np.random.Generator, *shape: int, exact: bool) -> np.ndarray:
    """Around 1, powers of two or any."""
    return (2.0 ** (rng.integers(-3, 4, shape) if exact else rng.uniform(-3, 3, shape))).astype(np.float32)


def dots(q: np.ndarray, k: np.ndarray, on_hopper: bool) -> tuple[np.ndarray, np.ndarray]:
    """q [rows, D] . k [keys, D] of values, and how far the sums of a tensor core may be off."""
    magnitude = abs(q) @ abs(k).T
    bound = (1.125 * q.shape[1] + 18) * 2.0**-23 * magnitude
    return q @ k.T, bound + (reference.cut_on_hopper(q, k, q.shape[1]) if on_hopper else 0)


def logits(
    q: np.ndarray, k: np.ndarray, key_scale: np.ndarray, weights: np.ndarray, exact: bool, on_hopper: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Value and bound [queries, keys], before they are stored, of values q [queries, H, D] and k [keys, D]."""
    (queries, heads, dim), keys = q.shape, len(k)
    values = q.reshape(-1, dim), k
    value, off = (values[0] @ values[1].T, np.zeros(1)) if exact else dots(*values, on_hopper)
    off = np.broadcast_to(off, value.shape)
    value, off = value.reshape(queries, heads, keys), off.reshape(queries, heads, keys)
    factor, scale = weights[:, :heads, None].astype(np.float64), key_scale.astype(np.float64)
    seen = np.where(np.isnan(value), value, np.maximum(value, 0))
    total = scale * (factor * seen).sum(1)
    if exact:
        return total, np.zeros_like(total)
    # A sum of as many terms, in any order, rounds no addend more often; the scale rounds once, and so may the result.
    rounded = (heads + 4) * 2.0**-24 * (abs(factor) * (seen + off)).sum(1)
    return total, abs(scale) * ((abs(factor) * off).sum(1) + rounded) + 2.0**-149


@dataclasses.dataclass
class Dense:
    """A call of ``mqa_logits_fp8``. exact: no order of sums rounds anything, also not in 13 bits, on sm_90."""

    q: np.ndarray
    kv: np.ndarray
    kv_scale: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    exact: bool

    @classmethod
    def random(
        cls, rng: np.random.Generator, queries: int, heads: int, dim: int, keys: int, spare: int = 0,
        exact: bool = True,
    ) -> Dense:  # fmt: skip
        """Ranges in any order, some empty, some beyond the keys on either side, some backwards. spare: what lies behind
        the weights of a query, NaN."""
        weights = np.full((queries, heads + spare), np.nan, np.float32)
        weights[:, :heads] = random_weights(rng, queries, heads, exact=exact)
        starts, ends = rng.integers(-9, keys + 9, (2, queries), dtype=np.int32)
        ends[rng.random(queries) < 0.2] = keys + 1000
        starts[rng.random(queries) < 0.2] = -1000
        empty = rng.random(queries) < 0.1
        ends[empty] = starts[empty]
        q, kv = (random_e4m3(rng, *shape, dim, exact=exact) for shape in ((queries, heads), (keys,)))
        return cls(q, kv, random_scales(rng, keys, exact=exact), weights, starts, ends, exact)

    def inputs(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("q", "kv", "kv_scale", "weights", "starts", "ends")}

    def spoil(self, key: int) -> None:
        """Makes a key NaN."""
        self.kv[key, 5] = E4M3_NAN

    def values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q, kv, and the factor of each key."""
        return reference.E4M3[self.q], reference.E4M3[self.kv], self.kv_scale

    def logits(self, on_hopper: bool) -> tuple[np.ndarray, np.ndarray]:
        """Value and bound [queries, keys]; zeros where nobody sees a key or one in front, or none behind."""
        keys = np.flatnonzero(self.seen().any(0))
        value, bound = np.zeros((2, len(self.q), len(self.kv)))
        if len(keys):
            some = slice(keys[0], keys[-1] + 1)
            q, kv, scale = self.values()
            keys = kv[some], scale[some]
            value[:, some], bound[:, some] = logits(q, *keys, self.weights, self.exact, on_hopper)
        return value, bound

    def seen(self) -> np.ndarray:
        """Whether a query sees a key."""
        keys = np.arange(len(self.kv))
        return (keys >= self.starts[:, None]) & (keys < self.ends[:, None])

    def columns(self, form: str) -> np.ndarray:
        """The column of out of each query and key."""
        keys = np.arange(len(self.kv))
        return keys - np.maximum(self.starts, 0)[:, None] if form == "compressed" else keys + 0 * self.starts[:, None]


def verify(
    out: reference.GuardedOutput, value: np.ndarray, bound: np.ndarray, seen: np.ndarray, columns: np.ndarray,
    cleaned: np.ndarray | None = None, context: str = "",
) -> float:
    """Every logit [queries, keys] that is seen within its bound, NaN where NaN is expected; -inf in the cells
    ``cleaned``; all else untouched. Returns the largest error over its bound."""  # fmt: skip
    stored, written = out.values(len(out.array)), np.zeros(out.array.shape, bool)
    row, key = np.nonzero(seen & (columns < out.array.shape[1]))
    column = columns[row, key]
    written[row, column] = True
    got, expected = stored[row, column], value[row, key]
    finite, least = np.isfinite(expected), bound[row, key]
    error = abs(np.where(finite, got, 0) - np.where(finite, expected, 0))
    total = least + (np.where(finite, abs(expected), 0) + least) * 2.0 ** -reference.PRECISION[out.out_type]
    bad = ~np.where(finite, error <= total, (got == expected) | np.isnan(expected) & np.isnan(got))
    if bad.any():
        at = int(bad.argmax())
        raise AssertionError(f"{context}: {int(bad.sum())} of {len(bad)} logits out of bounds; first query "
                             f"{row[at]} key {key[at]}: {got[at]!r}, expected {expected[at]!r} +- {total[at]:.3g}")
    if cleaned is not None:
        if not (stored[cleaned] == -np.inf).all():
            raise AssertionError(f"{context}: {int((stored[cleaned] != -np.inf).sum())} cells are not -inf")
        written |= cleaned
    if not (out.array.view(np.uint8).reshape(*out.array.shape, -1)[~written] == out.POISON).all() or not out.intact(
        len(out.array)
    ):
        raise AssertionError(f"{context}: wrote what is no logit")
    return float(np.max(error[total > 0] / total[total > 0], initial=0))


def page_of(axes: Mapping[str, Any], rng: np.random.Generator) -> int:
    """A size of pages that a variant takes: up to 128 keys, of which a box brings ``part``."""
    part = axes.get("part", 16)
    return int(rng.integers(1, 128 // part + 1)) * part


@dataclasses.dataclass
class Paged:
    """A call of ``paged_mqa_logits_fp8``, without its schedule. ``spare``: bytes of each page that are nobody's."""

    q: np.ndarray  # [B, next, H, D]
    kv_cache: np.ndarray
    weights: np.ndarray
    context_lens: np.ndarray
    block_table: np.ndarray
    page: int
    exact: bool
    indices: np.ndarray | None = None

    @classmethod
    def random(
        cls, rng: np.random.Generator, lengths: np.ndarray, heads: int, dim: int, page: int, spare: int = 0,
        exact: bool = True,
    ) -> Paged:  # fmt: skip
        """lengths [B, next]. Pages are scattered; columns of the table behind a request's lead out of the cache."""
        requests, width = len(lengths), reference.ceil_div(max(int(lengths.max()), 1), page)
        needed = [reference.ceil_div(int(of.max()), page) for of in lengths]
        pages = max(sum(needed), 1)
        order = iter(rng.permutation(pages))
        table = rng.choice(np.array([-1, 2**31 - 1, pages], np.int64), (requests, width)).astype(np.int32)
        for row, count in zip(table, needed, strict=True):
            row[:count] = [next(order) for _ in range(count)]
        cache = np.full((pages, page * (dim + 4) + spare), 0xFF, np.uint8)
        cache[:, : page * dim] = random_e4m3(rng, pages, page, dim, exact=exact).reshape(pages, -1)
        cache[:, page * dim : page * (dim + 4)] = random_scales(rng, pages, page, exact=exact).view(np.uint8)
        weights = random_weights(rng, lengths.size, heads, exact=exact)
        q = random_e4m3(rng, *lengths.shape, heads, dim, exact=exact)
        return cls(q, cache, weights, lengths.astype(np.int32), table, page, exact)

    def inputs(self) -> dict[str, object]:
        """The cache ends where its last page does."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "exact"}
        spare = self.kv_cache.shape[1] - self.page * (self.row_bytes + 4)
        cache = self.kv_cache.reshape(-1)[: self.kv_cache.size - spare].copy()
        found |= {"kv_cache": cache, "pages": len(self.kv_cache), "page_stride": self.kv_cache.shape[1]}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def row_bytes(self) -> int:
        return self.q.shape[-1]

    def stored_keys(self, request: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all pages of a row of the table: bytes [keys, row_bytes], scales [keys, 4], whether the page exists."""
        end, numbers = self.page * self.row_bytes, self.block_table[request]
        there = (numbers >= 0) & (numbers < len(self.kv_cache))
        pages = self.kv_cache[np.where(there, numbers, 0)]
        scales = pages[:, end : end + self.page * 4].reshape(-1, 4)
        return pages[:, :end].reshape(-1, self.row_bytes), scales, np.repeat(there, self.page)

    def values(self, request: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q of a request, its first keys, and the factor of each."""
        keys, scales, _ = self.stored_keys(request)
        factors = np.ascontiguousarray(scales).view(np.float32)[:, 0]
        return reference.E4M3[self.q[request]], reference.E4M3[keys[:count]], factors[:count]

    def logits(self, on_hopper: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value, bound, and whether it is seen, of every query and key of the table's width."""
        width = self.block_table.shape[1] * self.page
        value, bound = np.zeros((2, self.context_lens.size, width))
        for request, lengths in enumerate(self.context_lens):
            there = self.stored_keys(request)[2][: max(int(lengths.max()), 0)]
            rows = slice(request * len(lengths), (request + 1) * len(lengths))
            values = self.values(request, len(there))
            of_keys, bound[rows, : len(there)] = logits(*values, self.weights[rows], self.exact, on_hopper)
            value[rows, : len(there)] = np.where(there, of_keys, -np.inf)
        return value, bound, np.arange(width) < self.context_lens.reshape(-1, 1)

    def shares(self, ctas: int) -> np.ndarray:
        """What ``paged_mqa_schedule`` writes: a share begins where as many (block of 128 keys, query) lie before as the
        CTAs before it have together, in whole blocks of a request."""
        flat = self.context_lens.reshape(-1)
        numbers = np.arange(len(flat)) // self.context_lens.shape[1] if self.indices is None else self.indices
        firsts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        counts = np.diff(firsts, append=len(flat))
        blocks = -(-np.maximum.reduceat(np.maximum(flat, 0).astype(np.int64), firsts) // 128)
        after = np.cumsum(blocks * counts)
        if not after[-1]:
            return np.tile(np.array([len(flat), 0], np.int32), (ctas + 1, 1))
        begins = np.arange(ctas) * after[-1] // ctas
        owners = np.searchsorted(after, begins, side="right")
        inside = (begins - (after - blocks * counts)[owners]) // counts[owners]
        last = np.flatnonzero(blocks)[-1]
        return np.vstack([np.stack([firsts[owners], inside], 1), [firsts[last] + counts[last], 0]]).astype(np.int32)
