"""Problems of hc_prenorm_tf32, their float64 reference, and how far fp32 sums may be from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import reference
from raw_buffer import RawBuffer

import loader

BLOCK = 64  # of K, which shares have whole


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """To nearest even with 10 bits of mantissa, as float64; of finite fp32."""
    bits = values.view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & 0xFFFFE000).view(np.float32).astype(np.float64)


@dataclass
class Problem:
    a: np.ndarray  # bits of bf16 [M, K]
    b: np.ndarray  # fp32 [N, K]
    shares: int | None  # None: of all of K

    @staticmethod
    def random(rng: np.random.Generator, m: int, n: int, k: int, shares: int | None = None) -> Problem:
        """Rows and columns whose sizes differ by powers of two."""
        a = rng.standard_normal((m, k)) * np.exp2(rng.integers(-6, 7, (m, 1)))
        b = rng.standard_normal((n, k)) * np.exp2(rng.integers(-6, 7, (n, 1)))
        bits = a.astype(np.float32).view(np.uint32)
        return Problem((bits >> 16).astype(np.uint16), b.astype(np.float32), shares)

    @property
    def spans(self) -> list[slice]:
        """Of K, those of the shares: as many blocks each, and one more in the first ones until none is left."""
        count = self.shares or 1
        blocks = np.arange(count + 1) * (self.a.shape[1] // BLOCK // count)
        blocks += np.minimum(np.arange(count + 1), self.a.shape[1] // BLOCK % count)
        return [slice(BLOCK * begin, BLOCK * end) for begin, end in zip(blocks[:-1], blocks[1:], strict=True)]

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [S, M, N], and how far sums may be from it. A product of 8 cuts its addends and the sum so far off at
        25 bits below the largest, and the sum to fp32; sums of at most 8 CTAs are added."""
        a, b = reference.as_float64(self.a, "bf16"), rounded_to_tf32(self.b)
        value, magnitude = (np.stack([left[:, span] @ right[:, span].T for span in self.spans])
                            for left, right in ((a, b), (abs(a), abs(b))))  # fmt: skip
        steps = max(span.stop - span.start for span in self.spans) / 8
        return value, magnitude * (steps * (9 * 2.0**-25 + 2.0**-23) + 8 * 2.0**-23) + 2.0**-149

    def expected_squares(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [S, M], and the same of sums of squares, each addition rounded."""
        squares = reference.as_float64(self.a, "bf16") ** 2
        value = np.stack([squares[:, span].sum(1) for span in self.spans])
        depth = max(span.stop - span.start for span in self.spans)
        return value, value * (depth + 8) * 2.0**-24 + 2.0**-149

    def outputs(self) -> tuple[reference.GuardedOutput, reference.GuardedOutput]:
        """Poisoned: rows of out, and as many of one element."""
        rows = len(self.spans) * len(self.a)
        return reference.GuardedOutput(rows, len(self.b), "f32"), reference.GuardedOutput(rows, 1, "f32")

    def launch(self, outputs: tuple[reference.GuardedOutput, reference.GuardedOutput], **options: object) -> None:
        """The kernel, on host memory."""
        family = "hc_prenorm_tf32" if self.shares is None else "hc_prenorm_tf32_shares"
        lead = () if self.shares is None else (self.shares,)
        out, square_sum = (output.array.reshape(*lead, len(self.a), -1) for output in outputs)
        loader.launch(family, a=RawBuffer.of(self.a), b=self.b, out=RawBuffer.of(out),
                      square_sum=RawBuffer.of(square_sum[..., 0]), **options)  # fmt: skip

    def verify(self, out: reference.GuardedOutput, square_sum: reference.GuardedOutput, context: str) -> None:
        """Every element within its bound, and nothing else written."""
        for output, (value, bound) in ((out, self.expected()), (square_sum, self.expected_squares())):
            rows = len(output.array)
            reference.check_within(output.values(rows), value.reshape(rows, -1), bound.reshape(rows, -1), context)
            assert output.intact(rows), f"{context}: wrote outside of its outputs"

    def run(self, context: str, **options: object) -> bytes:
        """Launches and verifies; the bytes of what was written."""
        outputs = self.outputs()
        self.launch(outputs, **options)
        self.verify(*outputs, context)
        return b"".join(output.array.tobytes() for output in outputs)
