"""Parsing and folding of the expression language of kernels.yaml."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.expression import fold, parse
from loader.errors import ExpressionError
from loader.expression import evaluate, to_text, validate


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
