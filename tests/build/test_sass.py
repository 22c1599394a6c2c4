"""The static profile: which instructions count as a kernel's main loop."""

import pytest

from generator import sass
from generator.errors import ToolchainError

# A persistent loop (0x20 to 0xb0) around the main loop (0x40 to 0x90). Its barrier wait is retried at 0xd0, behind the
# exit; the jump back from there to 0x60 is no loop of its own, nor is the padding at the end.
SASS = """
//--------------------- .text.kernel              --------------------------
	.section	.text.kernel,"ax",@progbits
        .global         kernel
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P0 EXIT ;
.L_x_5:
        /*0020*/                   LDS.64 R4, [R2] ;
        /*0030*/                   HMMA.16816.F32 R8, R4, R6, RZ ;
.L_x_1:
        /*0040*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R5 ;
        /*0050*/              @!P0 BRA `(.L_x_2) ;
.L_x_3:
        /*0060*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0070*/                   OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X R8, R4, R6, R8, R10, R12 ;
        /*0080*/                   OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X R8, R4, R6, R8, R10, R12 ;
        /*0090*/                   BRA.U UP0, `(.L_x_1) ;
        /*00a0*/                   STG.E desc[UR4][R2.64], R8 ;
        /*00b0*/               @P1 BRA `(.L_x_5) ;
        /*00c0*/                   EXIT ;
.L_x_2:
        /*00d0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R5 ;
        /*00e0*/              @!P0 BRA `(.L_x_2) ;
        /*00f0*/                   BRA `(.L_x_3) ;
.L_x_9:
        /*0100*/                   BRA `(.L_x_9);
        /*0110*/                   NOP ;
"""


def test_the_main_loop_is_the_innermost_with_tensor_instructions():
    """Outer loops and the retry behind the exit are not part of it."""
    profile = sass.parse(SASS)
    assert profile.symbol == "kernel"
    assert [(loop.first, loop.last) for loop in profile.loops] == [(0x40, 0x90)]
    assert profile.main_loop.counts == {"SYNCS": 1, "BRA": 2, "LDSM": 1, "OMMA": 2}
    assert profile.main_loop.per_tensor == 3


def test_a_kernel_counts_every_instruction_but_padding():
    """NOPs behind the end are not instructions of the kernel."""
    profile = sass.parse(SASS)
    assert profile.instructions == 17
    assert profile.tensor == 3
    assert profile.counts["EXIT"] == 2


def test_a_kernel_without_tensor_instructions_has_no_main_loop():
    """Nothing is divided by zero."""
    profile = sass.parse(SASS.replace("OMMA", "FFMA").replace("HMMA", "FFMA"))
    assert profile.main_loop is None
    assert profile.per_tensor is None


def test_what_is_around_the_main_loop_is_counted_apart():
    """The shortest loop that holds it, less what it has itself; nothing where no loop does."""
    assert sass.parse(SASS).around.counts == {"LDS": 1, "HMMA": 1, "STG": 1, "BRA": 1}
    assert sass.parse(SASS.replace("@P1 BRA `(.L_x_5)", "NOP")).around.instructions == 0
    assert sass.parse(SASS.replace("OMMA", "FFMA").replace("HMMA", "FFMA")).around.instructions == 0


def test_loops_without_products_are_counted_apart():
    """The innermost ones: here the retry, and where that is none and nothing multiplies, the main loop."""
    assert [(loop.first, loop.last) for loop in sass.parse(SASS).others] == [(0xD0, 0xE0)]
    once = SASS.replace("/*00e0*/              @!P0 BRA `(.L_x_2)", "/*00e0*/                   NOP")
    assert sass.parse(once).others == ()
    plain = sass.parse(once.replace("OMMA", "FFMA").replace("HMMA", "FFMA"))
    assert [(loop.first, loop.last) for loop in plain.others] == [(0x40, 0x90)]


def test_an_outer_loop_counts_where_the_inner_one_is_unrolled():
    """Without the inner jump, the persistent loop is the main loop."""
    profile = sass.parse(SASS.replace("BRA.U UP0, `(.L_x_1)", "NOP"))
    assert [(loop.first, loop.last) for loop in profile.loops] == [(0x20, 0xB0)]
    assert profile.main_loop.tensor == 3


def test_an_indirect_branch_reaches_its_listed_targets():
    """BRX names them in a note; the code behind it is reachable through them alone."""
    text = SASS.replace(
        "HMMA.16816.F32 R8, R4, R6, RZ ;", 'BRX R4 -0xc0 (*"BRANCH_TARGETS .L_x_1,.L_x_9"*);'
    )  # fmt: skip
    assert [(loop.first, loop.last) for loop in sass.parse(text).loops] == [(0x40, 0x90)]


# The loop is reached by falling through the jump at 0x10 and in no other way.
BEHIND_A_JUMP = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              {jump} ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32 R8, R4, R6, RZ ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/                   EXIT ;
"""


@pytest.mark.parametrize(
    ("jump", "conditional"),
    [
        ("BRA `(.L_x_2)", False),
        ("BRA.U `(.L_x_2)", False),
        ("@P1 BRA `(.L_x_2)", True),
        ("@!UP0 BRA `(.L_x_2)", True),
        ("BRA !P6, `(.L_x_2)", True),
        ("@P1 BRA P2, `(.L_x_2)", True),
        ("BRA.U UP0, `(.L_x_2)", True),
        ("BRA.U !UP3, `(.L_x_2)", True),
        ("EXIT", False),
        ("@P0 EXIT", True),
        ("RET.REL.NODEC R2 `(kernel)", False),
        ("CALL.REL.NOINC `(.L_x_2)", True),
    ],
)
def test_what_follows_a_jump(jump, conditional):
    """Only a predicate, before a jump or as its operand, lets it fall through; a call comes back."""
    loops = sass.parse(BEHIND_A_JUMP.format(jump=jump)).loops
    assert [(loop.first, loop.last) for loop in loops] == ([(0x20, 0x30)] if conditional else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no code section"), (SASS + "\n.text.other:\n", "expected one kernel, nvdisasm also shows .text.other")],
)
def test_other_text_is_refused(text, message):
    """No kernel, or two."""
    with pytest.raises(ToolchainError, match=message):
        sass.parse(text)
