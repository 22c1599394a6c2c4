"""ldmatrix and stmatrix against loops over the fragments that PTX ISA 9.7.14.5.15 and .16 describe."""

import numpy as np
import pytest

from emulator.checks.faults import IllegalInstruction
from emulator.units import ldmatrix

WARPS = 2


def form_of(text):
    return ldmatrix.load_form(tuple(text.split(".")))


@pytest.fixture
def memory():
    return np.random.default_rng(5).integers(0, 256, 8192, dtype=np.uint8)


@pytest.fixture
def rows():
    """Row addresses: distinct, in no order, 16-byte aligned."""
    rng = np.random.default_rng(6)
    return np.stack([rng.permutation(512)[:32] * 16 for _ in range(WARPS)]).astype(np.int64)


def load(form, memory, rows):
    if form.bits < 8:
        return ldmatrix.to_registers(ldmatrix.unpack(form, memory[ldmatrix.packed_addresses(form, rows)]))
    return ldmatrix.to_registers(memory[ldmatrix.addresses(form, rows)])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_m8n8(memory, rows, count, trans):
    """Lane l holds elements (l/4, 2(l%4)) and the next of matrix i in register i; .trans exchanges row and column."""
    got = load(form_of(f"sync.aligned.m8n8.x{count}{'.trans' * trans}.shared.b16"), memory, rows)
    assert got.shape == (WARPS, 32, count)
    for w in range(WARPS):
        matrices = [
            [[int(memory[rows[w, 8 * i + r] + 2 * c]) | int(memory[rows[w, 8 * i + r] + 2 * c + 1]) << 8 for c in
            range(8)]
             for r in range(8)]
            for i in range(count)
        ]  # fmt: skip
        for lane in range(32):
            for i, matrix in enumerate(matrices):
                r, c = lane // 4, 2 * (lane % 4)
                low, high = (matrix[c][r], matrix[c + 1][r]) if trans else (matrix[r][c], matrix[r][c + 1])
                assert got[w, lane, i] == low | high << 16


def elements(memory, address, bits):
    """The 16 elements of a row: packed little-endian from its first byte."""
    packed = int.from_bytes(memory[address : address + 16 * bits // 8].tobytes(), "little")
    return [packed >> bits * e & (1 << bits) - 1 for e in range(16)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("source, bits", [("b4x16_p64", 4), ("b6x16_p32", 6)])
def test_m8n16_unpacks_to_the_low_bits_of_bytes(memory, rows, count, source, bits):
    """Lane l holds elements 4(l%4) .. +3 of row l/4, one a byte; the padding of a row is not read."""
    form = form_of(f"sync.aligned.m8n16.x{count}.shared::cta.b8x16.{source}")
    got = load(form, memory, rows)
    for w in range(WARPS):
        for lane in range(32):
            for i in range(count):
                row = elements(memory, rows[w, 8 * i + lane // 4], bits)
                want = sum(row[4 * (lane % 4) + j] << 8 * j for j in range(4))
                assert got[w, lane, i] == want
    touched = ldmatrix.packed_addresses(form, rows) - rows[:, form.lane][..., None]
    assert touched.min() == 0 and touched.max() == form.bytes_read - 1 == 16 * bits // 8 - 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("types, bits", [("b8", 8), ("b8x16.b4x16_p64", 4), ("b8x16.b6x16_p32", 6)])
def test_m16n16_transposes(memory, rows, count, types, bits):
    """Registers 2i, 2i+1 of lane l: rows l/4 and l/4+8 of the transposed matrix i, columns 4(l%4) .. +3."""
    got = load(form_of(f"sync.aligned.m16n16.x{count}.trans.shared.{types}"), memory, rows)
    assert got.shape == (WARPS, 32, 2 * count)
    for w in range(WARPS):
        for i in range(count):
            matrix = [elements(memory, rows[w, 16 * i + r], bits) for r in range(16)]
            for lane in range(32):
                for h in range(2):
                    want = sum(matrix[4 * (lane % 4) + j][lane // 4 + 8 * h] << 8 * j for j in range(4))
                    assert got[w, lane, 2 * i + h] == want


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_stmatrix_m8n8_is_the_inverse_of_ldmatrix(rows, count, trans):
    """What ldmatrix of the same form reads back is what was stored; no other byte changes."""
    modifiers = tuple(f"sync.aligned.m8n8.x{count}{'.trans' * trans}.shared.b16".split("."))
    store, memory = ldmatrix.store_form(modifiers), np.zeros(8192, np.uint8)
    values = np.random.default_rng(7).integers(0, 1 << 32, (1, 32, count), dtype=np.uint32)
    memory[ldmatrix.addresses(store, rows[:1])] = ldmatrix.to_bytes(values)
    assert np.array_equal(load(ldmatrix.load_form(modifiers), memory, rows[:1]), values)
    untouched = np.ones(8192, bool)
    for address in rows[0, : 8 * count]:
        untouched[address : address + 16] = False
    assert not memory[untouched].any()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix_m16n8_stores_columns(rows, count):
    """Byte j of lane l is row l/4 + 8(j/2), column 2(l%4) + j%2 of the 16x8 matrix, stored column by column."""
    form = ldmatrix.store_form(tuple(f"sync.aligned.m16n8.x{count}.trans.shared.b8".split(".")))
    values = np.random.default_rng(8).integers(0, 1 << 32, (1, 32, count), dtype=np.uint32)
    memory = np.zeros(8192, np.uint8)
    memory[ldmatrix.addresses(form, rows[:1])] = ldmatrix.to_bytes(values)
    for i in range(count):
        for lane in range(32):
            for j in range(4):
                row, column = lane // 4 + 8 * (j // 2), 2 * (lane % 4) + j % 2
                assert memory[rows[0, 8 * i + column] + row] == int(values[0, lane, i]) >> 8 * j & 0xFF


@pytest.mark.parametrize(
    "text",
    [
        "sync.aligned.m8n8.x3.shared.b16",
        "aligned.m8n8.x1.shared.b16",
        "sync.aligned.m8n8.x1.shared.b8",
        "sync.aligned.m16n16.x1.shared.b8",
        "sync.aligned.m16n16.x4.trans.shared.b8",
        "sync.aligned.m8n16.x1.trans.shared.b8x16.b4x16_p64",
        "sync.aligned.m8n16.x1.shared.b8",
        "sync.aligned.m8n8.x1.global.b16",
    ],
)
def test_illegal_forms(text):
    """Forms that the ISA does not list are refused with their text."""
    with pytest.raises(IllegalInstruction, match="ldmatrix"):
        form_of(text)


def test_illegal_store():
    """m16n8 needs .trans."""
    with pytest.raises(IllegalInstruction, match="stmatrix"):
        ldmatrix.store_form(("sync", "aligned", "m16n8", "x1", "shared", "b8"))
