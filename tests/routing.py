"""The slow and plain meaning of the routing kernels, to the bit: rows of slots, their tokens in NVFP4, sums of tokens.

Nothing here comes from the code under test. numpy has no bf16: uint16 stands for its bits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from quantization import Approximations, encode_scale, fused_multiply_add, load, quantize, store
from reference import round_up, scale_offset

STORAGE = {"i32": np.int32, "i64": np.int64, "u8": np.uint8, "f32": np.float32, "f16": np.float16, "bf16": np.uint16}


class Guarded:
    """An output of ``shape`` inside a larger buffer, all of it poisoned; ``dtype`` is a key of ``STORAGE``."""

    POISON = 0xA5  # no value that a kernel writes: not -1
    GUARD_BYTES = 512

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        storage = np.dtype(STORAGE[dtype])
        size = int(np.prod(shape)) * storage.itemsize
        raw = np.full(2 * self.GUARD_BYTES + size + 16, self.POISON, np.uint8)
        start = self.GUARD_BYTES + -(raw.ctypes.data + self.GUARD_BYTES) % 16
        self._guards = raw[:start], raw[start + size :]
        self.array = raw[start : start + size].view(storage).reshape(shape)

    def intact(self) -> bool:
        """Whether nothing was written outside the output."""
        return all((guard == self.POISON).all() for guard in self._guards)


@dataclasses.dataclass(frozen=True)
class Routing:
    """The outputs of ``moe_route``, all i32."""

    expert_offsets: np.ndarray  # [E + 1]
    scale_offsets: np.ndarray  # [E]
    row_of_slot: np.ndarray  # [T, TOPK]
    slot_of_row: np.ndarray  # [T * TOPK]

    @property
    def owned(self) -> int:
        """Rows that belong to an expert."""
        return int(self.expert_offsets[-1])


def route(
    topk_ids: np.ndarray, num_experts: int, first_expert: int = 0, expert_map: np.ndarray | None = None
) -> Routing:
    """The slots of each local expert in their order, expert after expert. expert_map: local expert of each id."""
    local = {first_expert + expert: expert for expert in range(num_experts)} if expert_map is None else {
        id_: expert for id_, expert in enumerate(expert_map.tolist()) if 0 <= expert < num_experts}
    slots: list[list[int]] = [[] for _ in range(num_experts)]
    for slot, expert in enumerate(topk_ids.ravel().tolist()):
        if expert in local:
            slots[local[expert]].append(slot)
    counts = [len(of_expert) for of_expert in slots]
    order = [slot for of_expert in slots for slot in of_expert]
    row_of_slot, slot_of_row = np.full((2, topk_ids.size), -1, np.int32)
    row_of_slot[order] = np.arange(len(order))
    slot_of_row[: len(order)] = order
    return Routing(
        np.cumsum([0, *counts]).astype(np.int32),
        np.cumsum([0, *(round_up(count, 128) for count in counts)])[:-1].astype(np.int32),
        row_of_slot.reshape(topk_ids.shape),
        slot_of_row,
    )


def random_ids(rng: np.random.Generator, tokens: int, top_k: int, experts: int, skew: float = 1.0) -> np.ndarray:
    """Ids [T, TOPK], i64: distinct experts a token, of Zipf popularity. Some experts get many slots, some none."""
    popularity = (1 + rng.permutation(experts)) ** -skew
    # The largest of log p + Gumbel noise are a draw without replacement.
    keys = np.log(popularity) + rng.gumbel(size=(tokens, experts))
    return np.argsort(-keys, axis=1)[:, :top_k].astype(np.int64)


def combine(
    rows: np.ndarray, rows_type: str, row_of_slot: np.ndarray, weights: np.ndarray | None, out_type: str
) -> np.ndarray:
    """The output of ``moe_combine``, stored; ``weights`` f32 [T, TOPK], None for ones."""
    tokens, top_k = row_of_slot.shape
    values = load(rows, rows_type)
    sums = np.zeros((tokens, rows.shape[1]), np.float32)
    for token, k in np.ndindex(tokens, top_k):
        row = row_of_slot[token, k]
        if 0 <= row < rows.shape[0]:
            weight = np.float32(1) if weights is None else weights[token, k]
            sums[token] = fused_multiply_add(weight, values[row], sums[token])
    return store(sums, out_type)


def gathered(
    x: np.ndarray, x_type: str, routing: Routing, weights: np.ndarray, weighting: str
) -> tuple[np.ndarray, np.ndarray]:
    """What a gather quantises, fp32: the values of each owned row's token, and the weight of its slot."""
    top_k, slots = weights.shape[1], routing.slot_of_row[: routing.owned]
    values, weight = load(x, x_type)[slots // top_k], weights.ravel()[slots]
    if weighting == "input":
        with np.errstate(all="ignore"):
            values = load(store(values * load(store(weight, x_type), x_type)[:, None], x_type), x_type)
    return values, weight


def gather_quantize(
    before: dict[str, np.ndarray],
    x: np.ndarray,
    x_type: str,
    routing: Routing,
    weights: np.ndarray,
    global_scale: np.ndarray,
    scalars: dict[str, str],
    approximations: Approximations,
) -> dict[str, np.ndarray]:
    """The outputs of ``moe_gather_quantize`` by name, over what was in them ``before``."""
    expert = np.repeat(np.arange(len(global_scale)), np.diff(routing.expert_offsets))
    encode = encode_scale(global_scale, scalars["global_scale_kind"])[expert]
    values, weight = gathered(x, x_type, routing, weights, scalars["weighting"])
    packed, scales = quantize(values, encode, scalars["division"], approximations)

    after = {name: array.copy() for name, array in before.items()}
    after["a"][: routing.owned] = packed
    columns = after["a_scale"].shape[1]
    padded = np.zeros((routing.owned, columns), np.uint8)
    padded[:, : scales.shape[1]] = scales
    row = np.arange(routing.owned) - routing.expert_offsets[expert] + routing.scale_offsets[expert]
    after["a_scale"].reshape(-1)[scale_offset(row[:, None], np.arange(columns), columns)] = padded
    after["row_weight"][: routing.owned] = weight if scalars["weighting"] == "activation" else 1
    return after
