"""What the constraints of kernels.yaml keep from device code: numbers that an int32 does not hold."""


import pytest
from shipped_matrix import MATRIX

from loader.expression import evaluate

MAX_STEP = 1 << 16  # CTAs of a persistent grid, of any device


@pytest.mark.parametrize(("family", "columns", "factor"), [("grouped_fp4", "N", 1), ("grouped_fp4_swiglu", "I", 2)])
def test_tiles_fit_an_int(family, columns, factor, rng):
    """Also a step of the grid past the last tile, and rows and columns up to the next tile; no more is refused."""
    constraints = [item["expression"] for item in MATRIX.families[family]["constraints"]]
    blocks = {(v.axes["block_m"], v.axes["block_n"]) for v in MATRIX.variants if v.family == family}
    most = 0
    for _ in range(4000):
        edge = rng.integers(8)
        m = 2**31 - 1 - int(rng.integers(300)) if edge == 0 else int(2 ** rng.uniform(0, 31))
        n = 2**31 - 16 * int(1 + rng.integers(20)) if edge == 1 else 16 * int(2 ** rng.uniform(0, 27))
        experts = int(2 ** rng.uniform(0, 10))
        values = {"M": m, columns: n // factor // 16 * 16, "E": experts, "K": 32, "S": 128, "activation": 0}
        n = values[columns] * factor
        if n == 0 or not all(evaluate(constraint, values) for constraint in constraints):
            continue
        for block_m, block_n in blocks:
            tiles = (m // block_m + min(experts, m)) * -(-n // block_n)
            assert max(m + block_m, n + block_n, tiles + MAX_STEP) <= 2**31, (values, block_m, block_n)
            most = max(most, tiles)
    assert most > 2**30
