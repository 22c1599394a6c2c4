"""Problems of sparse MQA logits: blocks of keys for each query, of a problem of dense or paged MQA logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import mqa
import mqa_mx
import numpy as np
import quantization
import reference
from raw_buffer import RawBuffer

import loader

PART = 8  # keys of an entry of the table
FAMILIES = {f"{form}sparse_{name}": f"{form}{name}"
            for form in ("", "paged_") for name in ("mqa_logits_mxfp8", "mqa_logits_mxfp4")}  # fmt: skip
BEHIND = (-1, 2**31 - 1, 3)  # what may stand behind the blocks that count


@dataclasses.dataclass
class Sparse:
    """``data`` has queries, keys and ranges; ``blocks`` [queries, M] are of ``block`` keys."""

    family: str
    data: mqa_mx.Dense | mqa_mx.Paged
    blocks: np.ndarray
    block: int
    unaligned: bool

    @classmethod
    def random(
        cls, rng: np.random.Generator, family: str, lengths: np.ndarray, heads: int, width: int, block: int,
        page: int = 0, unaligned: bool = False, exact: bool = True, spare: int = 0,
    ) -> Sparse:  # fmt: skip
        """Queries see as many keys as ``lengths`` says, from different ones on where keys lie in one matrix. Blocks
        ascend as DeepGEMM's do. Of pages 16 bytes are nobody's; ``spare``: weights of a row that are."""
        sizes = heads, 128
        if page:
            data = mqa_mx.Paged.of(rng, FAMILIES[family], lengths[:, None], *sizes, page, 16, exact)
        else:
            keys = int(lengths.max()) + 40
            data = mqa_mx.Dense.of(rng, FAMILIES[family], len(lengths), *sizes, keys, exact=exact)
            first = rng.integers(0, 40, len(lengths))
            data.starts = (first if unaligned else first // block * block).astype(np.int32)
            data.ends = (data.starts + lengths).astype(np.int32)
        weights = np.full((len(lengths), heads + spare), np.nan, np.float32)
        weights[:, :heads] = reference.as_float64(quantization.to_bf16(data.weights[:, :heads]), "bf16")
        data.weights = weights
        blocks = rng.choice(np.array(BEHIND), (len(lengths), width)).astype(np.int32)
        found = cls(family, data, blocks, block, unaligned)
        for row, (begin, end), count in zip(found.blocks, found.ranges(), found.counts(), strict=True):
            every = np.arange(begin // block, begin // block + -(-(end - begin) // block))
            row[:count] = np.sort(rng.permutation(every)[:count])
        return found

    def ranges(self) -> list[tuple[int, int]]:
        """The keys of each query, which are there."""
        if isinstance(self.data, mqa_mx.Paged):
            most = self.data.block_table.shape[1] * self.data.page
            return [(0, min(max(int(end), 0), most)) for end in self.data.context_lens[:, 0]]
        begins, ends = (np.clip(of.astype(np.int64), 0, len(self.data.kv)) for of in (self.data.starts, self.data.ends))
        return [(int(begin), int(max(begin, end))) for begin, end in zip(begins, ends, strict=True)]

    def counts(self) -> list[int]:
        """How many blocks of each query count."""
        return [min(self.blocks.shape[1], -(-(end - begin) // self.block)) for begin, end in self.ranges()]

    def keys(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[queries, columns]: the key of a column, whether the query sees it, and whether the column is one of its."""
        shape = len(self.blocks), self.blocks.shape[1] * self.block
        key, seen = np.zeros(shape, np.int64), np.zeros(shape, bool)
        for s, ((begin, end), blocks) in enumerate(zip(self.ranges(), self.blocks, strict=True)):
            for column in range(shape[1]):
                key[s, column] = int(blocks[column // self.block]) * self.block + column % self.block
                key[s, column] += begin % self.block if self.unaligned else 0
                seen[s, column] = begin <= key[s, column] < end
        own = np.arange(shape[1]) < np.array(self.counts())[:, None] * self.block
        return key, seen & own, own

    def table(self) -> np.ndarray:
        """What ``sparse_mqa_table`` writes; -1 where it leaves what is there."""
        key, seen, own = self.keys()
        found = np.full((len(key), key.shape[1] // PART + 1, 2), -1, np.int64)
        found[:, 0] = [(count * self.block, 0) for count in self.counts()]
        paged = isinstance(self.data, mqa_mx.Paged)
        for s, column in np.argwhere(own[:, ::PART]) * [1, PART]:
            first, bits = key[s, column], int(sum(1 << i for i in range(PART) if seen[s, column + i]))
            if bits and paged:
                page = int(self.data.block_table[s, first // self.data.page])
                there = 0 <= page < (2**31 - 1) // self.data.page
                first, bits = (page * self.data.page + first % self.data.page, bits) if there else (0, 0)
            found[s, column // PART + 1] = (first, bits) if bits else (0, 0)
        return found.astype(np.int32)

    def logits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value and bound [queries, columns], and whether a column is written."""
        key, seen, own = self.keys()
        value, bound, *_ = self.data.logits(False)
        at = np.where(seen, key, 0)
        return (np.where(seen, np.take_along_axis(value, at, 1), -np.inf), np.take_along_axis(bound, at, 1), own)

    def table_inputs(self) -> dict[str, object]:
        given = {"blocks": self.blocks, "block": self.block, "unaligned": int(self.unaligned)}
        if isinstance(self.data, mqa_mx.Paged):
            ends = np.ascontiguousarray(self.data.context_lens[:, 0])
            return given | {"ends": ends, "block_table": self.data.block_table, "page": self.data.page}
        return given | {"starts": self.data.starts, "ends": self.data.ends, "keys": len(self.data.kv)}

    def inputs(self) -> dict[str, object]:
        """Of the logits, without their table. Weights are bits of bf16."""
        given = self.data.inputs() | {"weights": quantization.to_bf16(self.data.weights)}
        if isinstance(self.data, mqa_mx.Paged):
            given |= {"q": given["q"][:, 0], "q_scale": np.ascontiguousarray(given["q_scale"][:, 0])}
        return {name: value for name, value in given.items()
                if name not in ("starts", "ends", "context_lens", "block_table")}  # fmt: skip

    def make_table(self, **options: object) -> np.ndarray:
        """By the kernel, and as it should be."""
        table = np.full((len(self.blocks), self.blocks.shape[1] * self.block // PART + 1, 2), -1, np.int32)
        loader.launch("sparse_mqa_table", **self.table_inputs(), table=table, **options)
        assert np.array_equal(table, self.table())
        return table

    def run(self, table: np.ndarray, out: str, spare: int = 0, context: str = "", **options: object) -> np.ndarray:
        """Launches the logits, with ``spare`` more columns than there are keys, and verifies every cell."""
        value, bound, own = self.logits()
        result = reference.GuardedOutput(len(value), value.shape[1] + spare, out)
        given = self.inputs()
        weights = RawBuffer.of(given.pop("weights"))
        loader.launch(self.family, **given, weights=weights, table=table, out=RawBuffer.of(result.array), **options)
        mqa.verify(result, value, bound, own, np.broadcast_to(np.arange(value.shape[1]), value.shape), context=context)
        return result.array


def run_on(device: Any, rng: np.random.Generator, family: str, variant: str) -> None:
    """A problem with lists of every length on a GPU, by its ``upload`` and ``download``; verifies table and logits."""
    def launch(name: str, inputs: dict[str, object], **outputs: np.ndarray) -> None:
        given = {key: device.upload(x) if isinstance(x, np.ndarray) else x for key, x in inputs.items()}
        buffers = {key: device.upload(array) for key, array in outputs.items()}
        loader.launch(name, **given, **buffers, variant=variant if name == family else None)
        for key, array in outputs.items():
            device.download(buffers[key], array)

    page = 48 if family.startswith("paged") else 0
    problem = Sparse.random(rng, family, rng.integers(0, 700, 9), 28, 40, 16, page, unaligned=not page, spare=4)
    value, bound, own = problem.logits()
    table, out = np.full(problem.table().shape, -1, np.int32), reference.GuardedOutput(*value.shape, "bf16")
    launch("sparse_mqa_table", problem.table_inputs(), table=table)
    assert np.array_equal(table, problem.table())
    launch(family, problem.inputs() | {"table": table}, out=out.array)
    mqa.verify(out, value, bound, own, np.broadcast_to(np.arange(value.shape[1]), value.shape), context=variant)
