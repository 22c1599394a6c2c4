"""The performance model: its terms by hand, its constants, what it refuses, and the record of how far off it was."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import chips  # noqa: E402
import kernel_facts  # noqa: E402
import model  # noqa: E402
import model_cells  # noqa: E402
import model_fit  # noqa: E402
import published  # noqa: E402
from chips import Chip, Constant  # noqa: E402
from kernel_facts import Facts, UnknownVariantError, Work  # noqa: E402
from model_terms import Problem, predict, stage_clocks, tile_clocks, tile_rows  # noqa: E402

from generator import sass  # noqa: E402

RECORD = json.loads((ROOT / "benchmarks" / "results" / "model.json").read_text())


def chip(**values: float) -> Chip:
    """Two SMs at 1 GHz, whose loads and memory take next to no time; nothing beyond the terms."""
    found = {"sms": 2, "clock": 1.0, "dram": 1e9, "intake": 1e9, "start": 0.0} | values
    return Chip("test", **{name: Constant(value, "", "") for name, value in found.items()})


def card(**values: object) -> Facts:
    """A kernel of sm_120 without an epilogue: four warps, 16 tokens x 128, ten products in 40 instructions a stage."""
    found = {"name": "kernel", "arch": "120a", "block": (16, 128, 64), "ctas_per_sm": 1, "warps": 4,
             "loops": ((16, Work(40, 0, 10)),), "row_bytes": (36, 36), "out_bytes": 2.0}  # fmt: skip
    return Facts(**found | values)


def hopper(**values: object) -> Facts:
    """A kernel of sm_90: eight warps that multiply, three that dequantise, by 200 instructions for a job."""
    found = {"arch": "90a", "block": (16, 256, 256), "warps": 8, "loops": ((8, Work(700, 300, 32)),
             (16, Work(690, 360, 32))), "token_warps": 3, "job": Work(201)}  # fmt: skip
    return card(**found | values)


def microseconds(clocks: float) -> float:
    """Of a chip at 1 GHz."""
    return pytest.approx(clocks / 1e3)


def test_one_tile_takes_its_products():
    """Sixteen clocks each on a quarter of an SM, in as many stages as K has, a tail among them."""
    found = predict(chip(), card(), Problem((3,), 128, 130))
    assert found.microseconds == microseconds(3 * 10 * 16) and found.bound == "busiest SM: tensor core"


@pytest.mark.parametrize(("loop", "clocks"), [(Work(400, 0, 10), 400), (Work(400, 300, 10), 600),
                                              (Work(100, 90, 10), 180)])  # fmt: skip
def test_where_issue_slots_bind(loop, clocks):
    """A warp of each scheduler takes a slot an instruction, and two of a pipe of half rate."""
    found = predict(chip(), card(loops=((16, loop),)), Problem((3,), 128, 64))
    assert found.microseconds == microseconds(clocks) and found.bound == "busiest SM: issue"


def test_where_loads_bind():
    """Bytes of a stage over what an SM takes in: 16 and 128 rows of 36 bytes at 10 bytes a clock."""
    found = predict(chip(intake=10.0), card(), Problem((3,), 128, 64))
    assert found.microseconds == microseconds(144 * 36 / 10) and found.bound == "busiest SM: loads"


@pytest.mark.parametrize(("tiles", "waves"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_last_wave_takes_a_whole_tile(tiles, waves):
    """However few of its SMs have one; ``start`` comes on top, also where there is nothing to do."""
    found = predict(chip(start=7.0), card(), Problem((16,) * tiles, 128, 64))
    assert found.microseconds == microseconds(waves * 160 + 7000)


def test_ctas_of_an_sm_share_it():
    """Two at a time take twice as long each; one that is alone does not."""
    for tiles, clocks in ((2, 160), (3, 320), (4, 320), (5, 640)):
        found = predict(chip(), card(ctas_per_sm=2), Problem((16,) * tiles, 128, 64))
        assert found.microseconds == microseconds(clocks), tiles


def test_where_memory_binds():
    """Weights of experts with rows, tokens and results once; a last wave that multiplies longer than it loads adds up.
    """
    facts, slow = card(row_bytes=(36, 36)), chip(dram=4e-3)  # 4 bytes a clock
    of_one = (128 * 36 + 36 + 128 * 2) / 4
    assert predict(slow, facts, Problem((1, 0, 1), 128, 64)).microseconds == microseconds(2 * of_one)
    # Three tiles: the first two wait for memory; products of the third, alone, take longer than its bytes.
    longer = card(loops=((16, Work(0, 0, 100)),))
    found = predict(slow, longer, Problem((1, 1, 1), 128, 64))
    assert 1600 > of_one and found.bound == "memory" and found.microseconds == microseconds(2 * of_one + 1600)


def test_hopper_adds_what_one_warp_does_in_turn():
    """Weights and products, half of the tokens' slots, and a hand-over for each 128 of K; by the loop of the rows."""
    few, many = (stage_clocks(chip(), hopper(), rows, 1)["weights and products"] for rows in (8, 9))
    tokens, hand_over = 2 * 201 / 3 / 2, 2 * 225
    assert few == pytest.approx(32 * 2 * 13 + 2 * 700 + tokens + hand_over)
    assert many == pytest.approx(32 * 2 * 13 + 2 * 720 + tokens + hand_over)


def test_ctas_of_an_sm_of_hopper_share_all_but_the_hand_over():
    """While one hands over, the other one works; both load."""
    one, two = (stage_clocks(chip(intake=10.0), hopper(), 8, resident) for resident in (1, 2))
    assert two["loads"] == 2 * one["loads"]
    assert two["weights and products"] - 450 == pytest.approx(2 * (one["weights and products"] - 450))


def test_hopper_waits_for_few_dequantising_warps():
    """Each of its instructions takes 3.6 clocks: 16 jobs of a tile of 256 rows, dealt out to three."""
    facts = hopper(block=(256, 128, 128), loops=((256, Work(200, 0, 8)),))
    terms = stage_clocks(chip(), facts, 256, 1)
    assert max(terms, key=terms.get) == "tokens" and terms["tokens"] == pytest.approx(16 * 201 / 3 * 3.6)


@pytest.mark.parametrize(("facts", "clocks"), [
    (card(around=Work(100)), 160 + 1.5 * 100),  # the same warps
    (card(arch="100a", warps=1, loops=((16, Work(1, 0, 4)),), chunk=Work(10)), 4 * 36),  # others, hidden
    (card(arch="100a", warps=1, loops=((16, Work(1, 0, 4)),), chunk=Work(100)), 360),  # others, not hidden
])  # fmt: skip
def test_an_epilogue_hides_where_warps_have_nothing_else(facts, clocks):
    """Behind the products of the next tile, as far as it is not longer."""
    assert tile_clocks(chip(), facts, 16, 64, 1) == pytest.approx(clocks)


def test_products_take_the_published_clocks():
    """Of sm_100 within 1 clock of the table, of CTAs alone and in pairs."""
    alone = {64: 48.2, 80: 52, 96: 56, 112: 60, 128: 64.2, 256: 128.2}
    pairs = {64: 43.2, 80: 45.5, 96: 49.5, 128: 64.2, 256: 128.2}
    for table, pair in ((alone, False), (pairs, True)):
        for rows, clocks in table.items():
            assert chips.product_clocks("10", rows, pair) == pytest.approx(clocks, abs=1.6), (rows, pair)


def test_power_binds_where_it_is_known():
    """1 pJ a FLOP and 50 pJ a dequantised weight, of each tile, over the limit."""
    limited = chip(power=1e-3)._replace(sms=Constant(1000, "", ""))
    problem = Problem((16, 1), 256, 256)
    found = predict(limited, hopper(), problem)
    assert found.bound == "power"
    assert found.microseconds == pytest.approx((2 * 17 * 256 * 256 + 2 * 50 * 256 * 256) * 1e-12 / 1e-3 * 1e6)
    assert "power" not in predict(chip(), hopper(), problem).terms


def rows_in_order(counts: list[int], tokens: int, columns: int) -> list[int]:
    """As ``schedule::Grouped`` of the kernels counts: batch, swath of 16 row tiles, column, row tile."""
    found = []
    for count in counts:
        row_tiles = -(-count // tokens)
        for place in range(row_tiles * columns):
            swath = place // (16 * columns) * 16
            width, local = min(16, row_tiles - swath), place - swath * columns
            row = (swath + (local + local // width) % width) * tokens
            found.append(min(tokens, count - row))
    return found


def test_tiles_come_in_the_order_of_the_kernels(rng):
    """Of any counts, experts without rows among them."""
    counts = [0, *rng.integers(0, 700, 6).tolist(), 16 * 16 + 1, 0]
    problem, facts = Problem(tuple(counts), 128 * 5 - 8, 64), card()
    assert tile_rows(problem, facts).tolist() == rows_in_order(counts, 16, 5)


def test_every_constant_has_a_source():
    """And a unit; those called fitted are the ones that model_fit.py fits."""
    of_chips = [(name, constant) for one in chips.CHIPS.values() for name, constant in one._asdict().items()
                if isinstance(constant, Constant)]  # fmt: skip
    constants = [*of_chips, *chips.RATES._asdict().items()]
    for name, constant in constants:
        assert constant.value > 0 and constant.unit, name
        assert constant.source.startswith(("measured", "published", "estimated", "fitted")), (name, constant.source)
    assert {name for name, constant in constants if constant.source == "fitted"} == set(model_fit.VALUES)


def test_a_chip_that_is_not_known_is_refused():
    """With those that are."""
    with pytest.raises(chips.UnknownChipError, match="no constants of 'H800'; known are H100, H200, B200"):
        chips.chip("H800")


def family(**values: object) -> SimpleNamespace:
    arguments = [SimpleNamespace(name=name, dtypes=dtypes, shape=shape) for name, dtypes, shape in (
        ("a", ("e2m1x2",), ("M", ["/", "K", 2])), ("a_scale", ("ue4m3",), ("S", ["/", "K", 16])),
        ("b", ("e2m1x2",), ("E", "N", ["/", "K", 2])), ("b_scale", ("ue4m3",), ("E", "N", ["/", "K", 16])),
        ("out", ("bf16", "f32"), ("M", "N")))]  # fmt: skip
    return SimpleNamespace(**{"arguments": arguments, "scalars": (), "dimensions": ("M", "N", "K", "E")} | values)


def artifact(arch: str, grid: object = ("min", ["*", "sm_count", 2], ["ceil_div", "M", 16]), cluster: int = 1,
             **axes: object) -> SimpleNamespace:  # fmt: skip
    launch = SimpleNamespace(grid=(list(grid), 1, 1), block=(384, 1, 1), cluster=(cluster, 1, 1))
    tile = {"block_m": 32, "block_n": 128, "block_k": 256, "out": "f32"}
    return SimpleNamespace(family="gemm", variant="m32", arch=arch, axes=tile | axes, launch=launch)


def loop(**counts: int) -> sass.Loop:
    return sass.Loop(Counter(counts), 0, 16)


MAIN = loop(HGMMA=32, LOP3=100, IMAD=50, SHF=10)
JOB = loop(STS=8, HMUL2=32, LOP3=60)


def profile(*loops: sass.Loop, others: tuple[sass.Loop, ...] = (), around: int = 90) -> sass.Profile:
    return sass.Profile(Counter(), "gemm_m32", loops, others, sass.Mix(Counter(IMAD=around)))


def test_facts_come_from_manifest_and_sass():
    """Of loops by their rows, of bytes of a row with its scales, of the epilogue for one type of several."""
    types = SimpleNamespace(name="intermediate", choices=("f32", "bf16", "f16"))
    found = kernel_facts.facts(family(scalars=(types,)), artifact("90a", step=16, counts=2),
                               profile(MAIN, MAIN, others=(JOB,)))  # fmt: skip
    main = Work(192, 110, 32)
    assert found == Facts("gemm/m32", "90a", (32, 128, 256), 2, 8, ((16, main), (32, main)), (144, 144), 4,
                          Work(30), 3, Work(100, 60))  # fmt: skip
    assert main.slots == 220 and found.stage_bytes == 160 * 144 and found.loop(16)[0] == 16 and found.loop(17)[0] == 32


def test_facts_of_loops_that_skip_rows():
    """Of sm_12x a loop with a share of the products is for that share of the rows."""
    found = kernel_facts.facts(family(), artifact("120a"), profile(loop(OMMA=32), loop(OMMA=8)))
    assert [rows for rows, _ in found.loops] == [8, 32] and not found.token_warps


@pytest.mark.parametrize(("products", "b", "warps"), [(16, "e2m1x2", 8), (32, "e2m1x2", 4), (32, "bf16", 8)])
def test_warps_that_multiply_are_those_that_share_the_products(products, b, warps):
    """Of sm_12x: 32 x 128 x 256 in instructions of 16 x 8 and 32 bytes of the wider side, whatever else a block has."""
    of = family()
    of.arguments[2].dtypes = (b,)
    assert kernel_facts.facts(of, artifact("120a"), profile(loop(OMMA=products))).warps == warps


def test_facts_of_a_pair_are_those_of_one_of_its_ctas():
    """Half of the columns, half of the tokens' elements and all of their scales: 9.7 KB a product of 256 rows."""
    made = artifact("100a", grid=["*", ["min", ["//", "sm_count", 2], "M"], 2], cluster=2, block_m=256, block_n=256)
    found = kernel_facts.facts(family(), made, profile(loop(UTCOMMA=4), others=(loop(LDTM=1, STS=9),)))
    assert (found.block, found.row_bytes, found.ctas_per_sm) == ((256, 128, 256), (80, 144), 1) and found.pair
    assert found.stage_bytes / 4 == 9728 == published.pair(256, 2.0).stage_bytes / 4 and found.chunk == Work(10)


def test_results_of_an_activation_are_a_quarter_of_a_byte():
    """Of half of the columns, two in a byte."""
    out = [*family().arguments[:-1], SimpleNamespace(name="out", dtypes=("e2m1x2",), shape=("M", ["/", "I", 2]))]
    made = artifact("120a")
    del made.axes["out"]
    found = kernel_facts.facts(family(arguments=out, dimensions=("M", "I", "K")), made, profile(loop(OMMA=32)))
    assert found.out_bytes == 0.25


@pytest.mark.parametrize(("made", "of", "message"), [
    (artifact("120a"), profile(), "knows GEMMs of a and b to out with block_m"),
    (artifact("120a", cluster=2), profile(loop(OMMA=32)), "and no cluster but a pair's"),
    (artifact("100a", cluster=2), profile(loop(UTCOMMA=4)), "and no cluster but a pair's"),
    (artifact("90a"), profile(MAIN), "whose warps dequantise tokens"),
    (artifact("120a", grid=["*", "sm_count", "M"]), profile(loop(OMMA=32)), "a multiprocessor, this has 16384"),
    (artifact("120a", grid=["*", "sm_count", "rows"]), profile(loop(OMMA=32)), "'rows' has no value"),
])  # fmt: skip
def test_a_kernel_without_terms_is_refused(made, of, message):
    """With what the model knows."""
    with pytest.raises(UnknownVariantError, match=f"gemm/m32: .*{message}"):
        kernel_facts.facts(family(), made, of)


def test_a_variant_that_no_pack_has_is_refused():
    """With those of its arch."""
    packs = SimpleNamespace(families={"gemm": family()}, candidates=lambda name: [
        SimpleNamespace(artifact=artifact("90a")), SimpleNamespace(artifact=artifact("100a"))])  # fmt: skip
    assert kernel_facts.find(packs, "gemm", "90a", "m32")[1].artifact.arch == "90a"
    with pytest.raises(UnknownVariantError, match="no pack has gemm/m64 for 90a; there are m32"):
        kernel_facts.find(packs, "gemm", "90a", "m64")
    with pytest.raises(UnknownVariantError, match="no pack has gemm/m32 for 120a; there are none"):
        kernel_facts.find(packs, "gemm", "120a", "m32")
    with pytest.raises(UnknownVariantError, match="no pack has gem$"):
        kernel_facts.find(packs, "gem", "90a", "m32")


def test_routing_has_as_many_experts_as_were_recorded():
    """Each token picks distinct ones."""
    counts = model_cells.routed(4, 8, 3, 7)
    assert sum(counts) == 12 and max(counts) <= 4 and np.count_nonzero(counts) == 7
    with pytest.raises(ValueError, match="no draw of 1 tokens leaves 2 of 8 experts with rows"):
        model_cells.routed(1, 8, 3, 2)


def test_mixed_counts_are_two_draws_and_equal_ones():
    """All of as many rows; the fit is to such cells, of every tile."""
    cell = next(cell for cell in model_cells.of_mixed_counts("tune-h100") if cell.what == "8 x 4, 6144 x 7168")
    first, second, equal = (problem.counts for problem in cell.problems)
    assert sum(first) == sum(second) == 32 and first != second and equal == (4,) * 8 and not cell.fitted
    assert {(problem.n, problem.k) for problem in cell.problems} == {(6144, 7168)}


def test_a_fit_ends_where_no_change_helps():
    """At the least error of a sum of squares; the start does not matter there."""
    least = {name: values[-1] for name, values in model_fit.VALUES.items()}
    found = model_fit.descend(lambda values: sum((values[name] - least[name]) ** 2 for name in least))
    assert found == least


def test_published_rows_name_chips_with_their_own_constants():
    """Where a row ran at another clock or memory it says so, and every tile has a stage to load and to multiply."""
    for row in published.everything():
        assert row.microseconds > 0 and predict(row.chip, row.facts, row.problem).microseconds > 0
        assert row.chip.arch == row.facts.arch and row.chip_name.startswith(tuple(chips.CHIPS))


def test_the_record_agrees_with_its_rows():
    """Errors with times, and the summary with errors."""
    for rows, measured in ((RECORD["rows"], "measured"), (RECORD["far"], "measured"),
                           (RECORD["published"], "published")):  # fmt: skip
        for row in rows:
            assert row["error"] == pytest.approx(row["predicted"] / row[measured] - 1)
    stated = {row["cells"]: row for row in RECORD["summary"]}
    again = model.summaries(RECORD["rows"], RECORD["rows"], RECORD["published"])
    assert [row for row in again if not row["cells"].startswith("all tiles")] == [
        row for row in RECORD["summary"] if not row["cells"].startswith("all tiles")]  # fmt: skip
    assert stated["all tiles of all records"]["over 25%"] == len(RECORD["far"])


def test_the_record_holds_what_was_measured_and_not_fitted():
    """Every problem of the records but those of the fit, its fastest variant, and the time that was recorded."""
    cells = [cell for cell in model_cells.everything() if not cell.fitted]
    expected = {(cell.record, cell.what, f"{cell.family}/{cell.variant}", cell.microseconds)
                for cell in model_cells.fastest(cells)}  # fmt: skip
    assert {(row["record"], row["problem"], row["kernel"], row["measured"]) for row in RECORD["rows"]} == expected
    assert {row["record"] for row in RECORD["rows"]} == {cell.record for cell in cells} and len(expected) >= 40


def test_what_is_fitted_is_in_a_record():
    """Every problem that is named, with all of its tiles."""
    names = {(cell.record, cell.what) for cell in model_cells.of_mixed_counts("tune-h100")}
    assert {(name, what) for name, rows in chips.FIT_ROWS.items() for what in rows} < names


def test_the_document_shows_the_record():
    """Its tables are those that the program makes of it."""
    shown = (ROOT / "docs" / "model.md").read_text()
    assert [key for key, text in model.markdown(RECORD).items() if text not in shown] == []


def test_a_document_is_renewed_between_its_marks():
    """All else stays; one without marks is refused."""
    tables = model.markdown(RECORD)
    marks = "\n".join(f"{key}\n{table.splitlines()[0]}\nold\n{table.splitlines()[-1]}" for key, table in tables.items())
    renewed = model.renew(f"{marks}\nend", RECORD)
    assert renewed == "\n".join(f"{key}\n{table}" for key, table in tables.items()) + "\nend"
    assert model.renew(renewed, RECORD) == renewed
    with pytest.raises(ValueError, match="expected <!-- benchmarks/model.py, constants: begin -->"):
        model.renew("no marks", RECORD)


def test_the_record_is_of_this_model():
    """Constants and what is predicted for published rows are those of today: else it has to be recorded again."""
    assert RECORD["constants"] == model.constants()
    for recorded, row in zip(RECORD["published"], model.beside_published(), strict=True):
        assert recorded == row | {"predicted": pytest.approx(row["predicted"]), "error": pytest.approx(row["error"])}


@pytest.mark.parametrize(("words", "message"), [
    (["--chip", "H800"], "no constants of 'H800'"),
    (["--launch", "gemm/m64"], "no pack has gemm"),
])  # fmt: skip
def test_the_program_says_what_it_does_not_know(words, message, monkeypatch):
    """In a line, without a traceback."""
    monkeypatch.setattr(model, "registry", lambda: SimpleNamespace(families={}))
    arguments = {"launch": "gemm/m64", "chip": "H200", "rows": 1, "experts": 1, "n": 128, "k": 128}
    arguments |= {words[0].removeprefix("--"): words[1]}
    model.facts.cache_clear()
    with pytest.raises(SystemExit, match=message):
        model.launch(SimpleNamespace(**arguments))
