"""Parsing and folding of the expression language of kernels.yaml."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.expression import fold, parse
from loader.errors import ExpressionError
from loader.expression import MAX_DEPTH, evaluate, function, solve, to_text, validate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("M", "M"),
        (7, 7),
        ("7", 7),
        ("-7", -7),
        ("0.5", 0.5),
        ("K / 2", ["/", "K", 2]),
        ("a + b * c", ["+", "a", ["*", "b", "c"]]),
        ("(a + b) * c", ["*", ["+", "a", "b"], "c"]),
        ("a - b - c", ["-", ["-", "a", "b"], "c"]),
        ("a // b % c", ["%", ["//", "a", "b"], "c"]),
        ("-(a)", ["neg", "a"]),
        ("not a == b", ["not", ["==", "a", "b"]]),
        ("0 < a <= b", ["and", ["<", 0, "a"], ["<=", "a", "b"]]),
        ("a and b or c", ["or", ["and", "a", "b"], "c"]),
        ("a and b and c", ["and", ["and", "a", "b"], "c"]),
        ("min(a, b, 3)", ["min", ["min", "a", "b"], 3]),
        ("ceil_div(M, 128)", ["ceil_div", "M", 128]),
        ("8 if a == 4 else b", ["if", ["==", "a", 4], 8, "b"]),
        ("  M  ", "M"),
    ],
)
def test_text_becomes_the_list_form(text, expected):
    """Every construct of the language has one list form, and the loader accepts it."""
    assert parse(text) == expected
    validate(parse(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("M +", "cannot read 'M +'"),
        ("", "cannot read ''"),
        ("if(a, b, c)", "a choice is written `a if condition else b`"),
        ("M ** 2", "'M ** 2' in 'M ** 2' is not part of the expression language"),
        ("M & 1", "is not part of the expression language"),
        ("__import__('os')", "unknown function '__import__'"),
        ("M.real", "'M.real' in 'M.real' is not part"),
        ("M[0]", "is not part of the expression language"),
        ("[a for a in b]", "is not part of the expression language"),
        ("lambda: 0", "is not part of the expression language"),
        ("'text'", "is not part of the expression language"),
        ("True", "is not part of the expression language"),
        ("1j", "is not part of the expression language"),
        ("~a", "is not part of the expression language"),
        ("a in b", "is not part of the expression language"),
        ("floor(a)", "unknown function 'floor' in 'floor(a)'; known are ceil_div, fdiv, max, min, round_up"),
        ("ceil_div(a)", "'ceil_div' in 'ceil_div(a)' takes 2 operands, got 1"),
        ("min(a)", "'min' in 'min(a)' takes 2 operands, got 1"),
        ("min(a, b=c)", "unknown function 'min'"),
        ("min + 1", "'min' in 'min + 1' is not a name"),
        ("M; N", "cannot read"),
        ("(" * 500 + "M" + ")" * 500, "cannot read"),
        (True, "an expression is a number or text, got bool True"),
        (None, "an expression is a number or text, got NoneType None"),
        ([1], "an expression is a number or text, got list [1]"),
    ],
)
def test_what_is_no_expression_is_refused(text, message):
    """Nothing but the language gets through, and the message shows the text."""
    with pytest.raises(ExpressionError) as raised:
        parse(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("block_m * 2", 256),
        ("M // block_m", ["//", "M", 128]),
        ("min(sm_count, block_m * M)", ["min", "sm_count", ["*", 128, "M"]]),
        ("block_m == 128", 1),
        ("3 if block_m == 128 else M", 3),
        ("M if block_m > 128 else block_m", 128),
        ("block_m / 2", 64),
        ("fdiv(block_m, 256)", 0.5),
        ("M", "M"),
    ],
)
def test_folding_computes_what_is_known(text, expected):
    """Names of the variant become numbers; what the caller decides stays an expression."""
    assert fold(parse(text), {"block_m": 128}) == expected


def test_folding_refuses_an_inexact_division():
    """A tile that does not divide is an error of the matrix, not a rounded number."""
    with pytest.raises(ExpressionError, match="7 / 2 is not a whole number"):
        fold(parse("a / 2"), {"a": 7})


DEEP = {
    "negations": "-" * 900 + "M",
    "sum": "M" + " + 1" * 900,
    "functions": "max(" * 150 + "M" + ", 1)" * 150,
    "conditions": "1 if M else " * 900 + "0",
    "conjunction": "M" + " and M" * 900,
    "comparisons": "0" + " < M" * 900,
}


@pytest.mark.parametrize("what", DEEP)
def test_a_deep_expression_is_refused(what):
    """However it is nested, and never with an error of Python's own."""
    with pytest.raises(ExpressionError, match="cannot read|at most 100 operators deep"):
        parse(DEEP[what])


def test_the_deepest_expression_computes():
    """``MAX_DEPTH`` operators are read, evaluated, made a function and shown; one more is not."""
    expression = parse("M" + " + 1" * MAX_DEPTH)
    assert evaluate(expression, {"M": 3}) == function(expression)({"M": 3}) == 3 + MAX_DEPTH
    assert to_text(expression).count("+") == MAX_DEPTH
    for deeper in (["neg", expression], ["if", 1, 0, expression]):
        with pytest.raises(ExpressionError, match="an expression is at most 100 operators deep"):
            validate(deeper)


@pytest.mark.parametrize(("text", "message"), [
    ("M + 1e999", "a number of an expression is finite, got inf"),
    (float("nan"), "a number of an expression is finite, got nan"),
    (1 << 64, "an integer of an expression has at most 64 bits, got 65"),
    (f"fdiv({10**400}, 3)", "an integer of an expression has at most 64 bits, got 1329"),
    ("0x" + "f" * 5000, "an integer of an expression has at most 64 bits, got 20000"),
])  # fmt: skip
def test_numbers_that_no_computation_has_are_refused(text, message):
    """Infinities, and integers that nothing could show."""
    with pytest.raises(ExpressionError) as raised:
        parse(text)
    assert str(raised.value) == message


HUGE = 10**400
MIXED = {"a": HUGE, "b": 0.5}
FAILING = {
    **dict.fromkeys(("a + b", "a - b", "a * b", "a / b", "a // b", "a % b", "fdiv(a, b)", "fdiv(a, 3)",
                     "ceil_div(a, b)", "round_up(a, b)"), MIXED),
    **dict.fromkeys(("b / 0", "b // 0", "b % 0", "fdiv(b, 0)", "ceil_div(b, 0)", "round_up(b, 0)"), MIXED),
    **dict.fromkeys(("t + 1", "t - 1", "t / 2", "t // 2", "t % 2", "fdiv(t, 2)", "-(t)", "t < 1", "t >= 1", "min(t, 1)",
                     "max(1, t)", "ceil_div(t, 2)", "round_up(t, 2)"), {"t": "bf16"}),
    "absent + 1": {"a": 1},
    "a / 7": {"a": 10**5000},
}  # fmt: skip


@pytest.mark.parametrize("text", FAILING)
def test_what_cannot_be_computed_is_an_expression_error(text):
    """Where a float overflows, by 0, of text; evaluated and as a function, which say the same."""
    expression, values = parse(text), FAILING[text]
    with pytest.raises(ExpressionError) as evaluated:
        evaluate(expression, values)
    with pytest.raises(ExpressionError) as called:
        function(expression)(values)
    assert str(called.value) == str(evaluated.value)


@pytest.mark.parametrize("text", [text for text, values in FAILING.items() if values is MIXED])
def test_folding_refuses_what_cannot_be_computed(text):
    """At build time, as when it is evaluated."""
    with pytest.raises(ExpressionError):
        fold(parse(text), MIXED)


def test_folding_refuses_what_no_manifest_may_hold():
    """An integer of more bits than one may have."""
    assert fold(parse("a * a"), {"a": 1 << 31}) == 1 << 62
    with pytest.raises(ExpressionError, match="an integer of an expression has at most 64 bits, got 65"):
        fold(parse("a * a"), {"a": 1 << 32})


@pytest.mark.parametrize(("text", "result"), [("M + a", 0.5), ("M - a", 0.5), ("a - M", 0.5), ("M / b", HUGE)])
def test_what_cannot_be_solved_is_an_expression_error(text, result):
    """As what cannot be computed."""
    with pytest.raises(ExpressionError, match="cannot be computed"):
        solve(parse(text), "M", result, {"a": HUGE, "b": 0.5})


_LEAVES = st.sampled_from(["a", "b", "c"]) | st.integers(0, 9).map(str)
_TEXTS = st.recursive(
    _LEAVES,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "<", "=="]), inner).map(lambda t: f"({' '.join(t)})")
        | st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})")
        | st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})")
    ),
    max_leaves=12,
)


@given(_TEXTS, *[st.integers(-20, 20)] * 3)
def test_values_agree_with_python(text, a, b, c):
    """Parse and evaluate, folded or not, give what Python gives for the same text."""
    values = {"a": a, "b": b, "c": c}
    expected = eval(text, {"max": max}, values)  # the test's own text
    assert evaluate(parse(text), values) == expected
    assert evaluate(fold(parse(text), {"a": a}), values) == expected


@given(_TEXTS)
def test_text_survives_a_round_trip_of_values(text):
    """What messages show is the same expression."""
    expression = parse(text)
    if "if" not in text:
        values = {"a": 3, "b": -5, "c": 11}
        assert evaluate(parse(to_text(expression)), values) == evaluate(expression, values)
