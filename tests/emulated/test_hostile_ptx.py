"""The emulator makes Python of PTX: nothing of a hostile text gets into it but strings and numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from generated_code import foreign, source_of
from ptx import launch, module

import emulator
from emulator.execution.emitter import Emitter
from emulator.execution.program import _NAMESPACE, Program
from emulator.text.parse import parse

INSTRUCTIONS = (Path(__file__).parent / "opcodes.txt").read_text().splitlines()
SCOPE = ".reg .b32 %f<64>; .reg .b8 %b<4>; .reg .pred %unused; L0: TB: .branchtargets L0;"

# Words that would be code where they stood outside of quotes.
WORDS = (
    "__import__", "__builtins__", "__class__", "exec", "eval", "open", "import", "lambda", "def", "return", "None",
    "True", "C", "R", "m", "np", "t0", "v0", "k0", "cc", "block", "escaped", "\u00fcber", "\u4e2d", "_", "__", "$",
    "%x", "'", '"', "'''", '"""', "\\", "\\'", "\\n", "a'+escaped()+'b", 'a"+escaped()+"b', "escaped()", "a\\",
    "');escaped()#", '")\nescaped()\n#', "\n    escaped()\n", "\r", "\x0c", "\x85", "\u2028", "\u2029", "\0",
    "\x1b[2J", "{escaped()}", "{0}", "{", "}", "%s", "%(x)s", "#", "a:=1", "a;escaped()", "a if b else c", "@escaped",
    "*", "**k", "0 or escaped()", "1e", "0x", "0b2", "1_0", "9" * 5000, "[escaped()]", "[a]", "(escaped())", "a.b",
)  # fmt: skip
# Words that some of the places below take.
FITTING = ("__import__", "%p2", "%r5", "1", "40", "tid.x", "u32", "b32", "sat", "activemask.b32", "p0", "L0", "TB")
# Where PTX has names and numbers of its own.
PLACES = {
    "operand": "mov.u32 %r1, WORD;",
    "offset": "ld.global.u32 %r1, [%d1+WORD];",
    "base": "ld.shared.u32 %r1, [WORD];",
    "parameter": "ld.param.u64 %d1, [WORD];",
    "parameter and offset": "ld.param.u64 %d1, [WORD+8];",
    "symbol and offset": "mov.u64 %d1, WORD+4;",
    "special register": "mov.u32 %r1, %WORD;",
    "vector": "mov.b64 %d1, {WORD, %r1};",
    "pair": "setp.eq.s32 %p1|WORD, %r1, 0;",
    "negated": "selp.b32 %r1, %r2, %r3, !WORD;",
    "guard": "@WORD bra L0;",
    "label": "WORD: bra WORD;",
    "branch": "bra WORD;",
    "table": "brx.idx %r1, WORD;",
    "targets": "T: .branchtargets WORD; brx.idx %r1, T;",
    "opcode": "WORD %r1;",
    "modifier": "add.WORD.s32 %r1, %r2, %r3;",
    "type": "add.WORD %r1, %r2, %r3;",
    "register": ".reg .b32 WORD; mov.u32 WORD, 1;",
    "registers": ".reg .b32 WORD<4>; mov.u32 WORD1, 1;",
    "register type": ".reg .WORD x; mov.u32 x, 1;",
    "variable": ".shared .b8 WORD[4]; mov.u32 %r1, WORD;",
    "variable size": ".shared .b8 x[WORD]; mov.u32 %r1, x;",
    "call": "call.uni (r), WORD, (p);",
    "trap": "@%p1 trap WORD;",
    "wait group": "wgmma.wait_group.sync.aligned WORD;",
    "table of lop3": "lop3.b32 %r1, %r2, %r3, %r4, WORD;",
    "immediate of setmaxnreg": "setmaxnreg.inc.sync.aligned.u32 WORD;",
    "barrier": "bar.sync WORD, 32;",
    "location": ".loc 1 WORD 3\n ret;",
    "coordinates": "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d9, {WORD, %r2}], [%r40];",
    "selector": "mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0 "
                "{%r1,%r2,%r3,%r4}, {%r1,%r2,%r3,%r4}, {%r1,%r2}, {%r1,%r2,%r3,%r4}, %r1, {WORD, 0}, %r2, {0, 0};",
}  # fmt: skip


def placed(place: str, word: str) -> str:
    """A module with a word in a place."""
    return module(SCOPE + PLACES[place].replace("WORD", word))


def translate(text: str) -> list[str]:
    """The Python of every block of every entry point, whole and masked."""
    source = parse(text)
    programs = [Program(function, source.files) for function in source.entries.values()]
    return [source_of(program, block, masked)
            for program in programs for block in program.blocks for masked in (False, True)]


def sources(text: str) -> list[str]:
    """The same, and none where the text is refused."""
    try:
        return translate(text)
    except emulator.EmulatorError:
        return []


BODY = ".entry k() {\n"
REFUSED = {
    BODY + ".reg .b32 %r<100001>; }": "over 100000 registers",
    BODY + "ret;" * 100_001 + "}": "over 100000 statements",
    BODY + "{" * 101: "scopes lie over 100 deep in each other",
    ".global .b8 x[67108865];": "a variable of over 67108864 bytes",
    ".global .align 3 .b8 x[4];": "alignment 3, expected a power of two up to 4096",
    ".entry k(.param .align 0 .b8 x) { }": "alignment 0, expected a power of two up to 4096",
    ".global .b8 x = {0x};": "invalid literal for int",
    ".global .b8 x = 0f3F800000;": "int too big to convert",
    ".global .b64 x = 0x10000000000000000;": "an integer has at most 64 bits, got 65",
    ".entry ()": "an entry without a name",
    ".entry k(": "unbalanced parentheses",
    ".section x": "no '{' after this",
    BODY + "mov.b32 x,, y; }": "an operand is missing",
    BODY + "ld.b32 x, []; }": "an address is missing",
    BODY + "mov.b32 x, {{1}}; }": "cannot read operand '{1}' in another one",
    BODY + "ld.b32 x, [[y]]; }": "cannot read operand '[y]' in another one",
    BODY + "mov.b32 x|y|z, 1; }": "cannot read operand 'y|z' in another one",
    BODY + "mov.b32 x, {1; }": "cannot read vector '{1'",
    BODY + "mov.f32 x, 0f-1; }": "cannot read operand '0f-1'",
    BODY + "bra; }": "no label: bra",
    BODY + "bra 1; }": "no label: bra 1",
    BODY + "brx.idx 1; }": "no label: brx.idx 1",
    BODY + "tcgen05; }": "operands that tcgen05 does not take",
    BODY + "tcgen05.mma.cta_group::1.kind::f16; }": "tcgen05.mma without operands",
    BODY + ".reg .b16 %h; cvt.rn.satfinite.e4m3x2.f32 %h; }": "cvt without a source",
    BODY + "wgmma; }": "operands that wgmma does not take",
    BODY + "mbarrier; }": "operands that mbarrier does not take",
    BODY + ".reg .b64 %d; mov.b64 %d, {}; }": "operands that mov.b64 does not take",
    BODY + "setmaxnreg.inc 1+; }": "setmaxnreg",
}


@pytest.mark.parametrize("text", REFUSED, ids=REFUSED.values())
def test_text_that_is_refused(text: str) -> None:
    """What cannot be read, or asks for more than a kernel needs, is an error of the emulator's that says why."""
    with pytest.raises(emulator.EmulatorError) as caught:
        translate(text)
    assert REFUSED[text] in str(caught.value)


def test_lines_are_those_of_the_text() -> None:
    """Wherever a fault is, also before the place that was read last."""
    for before in range(4):
        with pytest.raises(emulator.PtxSyntaxError, match=f"PTX line {before + 2}: unknown predicate"):
            parse("\n" * before + ".entry k() {\n@p bra L;\n\n}")
    with pytest.raises(emulator.PtxSyntaxError, match="PTX line 2: alignment 3"):
        parse("\n.shared .align 3\n.b8\nx[4];")


@pytest.mark.parametrize(("name", "index"), [("%r0", 0), ("%r3", 3), ("%r4", None), ("%r03", None), ("%r00", None),
                                             ("%r", None), ("%r1x", None), ("%q0", None), ("%r" + "1" * 30, None)])
def test_numbered_registers(name: str, index: int | None) -> None:
    """Of `%r<4>` there are four, whose numbers have no zero in front."""
    scope = parse(".entry k() {\n.reg .b32 %r<4>; ret; }").entries["k"].instructions[0].scope
    found = scope.register(name)
    assert (found and found.index) == index


@pytest.mark.parametrize("place", PLACES)
def test_text_stays_text(place: str) -> None:
    """Whatever stands in a place of the PTX, the Python of it has the fixed syntax and names alone."""
    for word in (*WORDS, *FITTING):
        for source in sources(placed(place, word)):
            assert not foreign(source), (word, source)


@pytest.mark.parametrize("place", PLACES)
def test_places_give_code(place: str) -> None:
    """Each takes some word, so that there is something to look at above."""
    assert any(sources(placed(place, word)) for word in FITTING)


def test_names_of_the_module_stay_text() -> None:
    """Entry points, files, targets and variables as well."""
    for word in WORDS:
        for text in (module("bra L; L: ret;", name=word), module("ret;", target=f"sm_90a {word}"),
                     f'.file 1 "{word}"\n' + module(".loc 1 1 1\n trap;"), f".global .b8 {word}[4] = {{{word}}};"
                     + module(f"mov.u64 %d1, {word};")):
            for source in sources(text):
                assert not foreign(source), (word, source)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "partial"])
def test_code_of_every_opcode_has_the_fixed_names(masked: bool) -> None:
    """The set is that of all opcodes in use, and the check below sees more."""
    for instruction in INSTRUCTIONS:
        program = Program(parse(module(f"{SCOPE}\n{instruction};")).entries["kernel"], {})
        for block in program.blocks:
            assert not foreign(source_of(program, block, masked)), instruction


@pytest.mark.parametrize("code", [
    "escaped()", "import os", "C._private()", "C.__class__", "np.load('x')", "t0.tobytes()", "(lambda: 0)()", "tx = 1",
    "[t0 for t0 in R]", "f'{m}'", "v0.__class__", "global C", "__import__('os')", "C.device.globals", "mma.np",
    "t01 = m"])
def test_what_is_foreign(code: str) -> None:
    """Names, attributes and syntax that no emitter writes are seen."""
    assert foreign(f"def block(C, R, m):\n    {code}\n    return 1\n")


def test_unquoted_text_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emitter that forgot to quote a symbol would be found by the tests above."""
    read = Emitter.read

    def unquoted(self: Emitter, operand: object, kind: str) -> str:
        name = getattr(operand, "name", None)
        return self.temporary(f"C.symbol({name}, 0, 4)") if name else read(self, operand, kind)

    monkeypatch.setattr(Emitter, "read", unquoted)
    with pytest.raises(AssertionError):
        test_text_stays_text("operand")


def test_generated_code_has_no_functions_of_python() -> None:
    """Not even a name that got into it could reach an import or a file."""
    assert _NAMESPACE["__builtins__"] == {}
    scope: dict = {}
    for name in ("__import__", "open", "exec", "getattr"):
        with pytest.raises(NameError):
            exec(compile(ast.parse(name), "<ptx>", "exec"), dict(_NAMESPACE), scope)


def test_nothing_of_a_hostile_name_runs(tmp_path: Path) -> None:
    """A kernel launched under a name, and with symbols, that are code: they are looked up, and not executed."""
    trace = tmp_path / "trace"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    for body in (f"mov.u32 %r1, {code};", f"trap {code};", f"call.uni (r), {code}, (p);", "mov.u32 %r1, __import__;"):
        with pytest.raises(emulator.EmulatorError):
            launch(module(body), [])
    assert not trace.exists()
