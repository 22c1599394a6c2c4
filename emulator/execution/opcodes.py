"""The emitter of every opcode."""

from __future__ import annotations

from ..text.instructions import Instruction
from . import barriers, comparison, control, copies, floats, integers, memory, moves, tensor, warp
from .emitter import INTEGERS, Emitter, EmitterFunction, rule

_BITS = ("b16", "b32", "b64")
_WORDS = ("u32", "s32", "u64", "s64")
_SELECTED = (*_BITS, *INTEGERS, "f32", "f64")


def _by_type(integral: EmitterFunction, floating: EmitterFunction) -> EmitterFunction:
    def emit(e: Emitter, i: Instruction) -> None:
        (floating if i.modifiers[-1].startswith(("f", "bf")) else integral)(e, i)

    return emit


def _signed(form: str) -> EmitterFunction:
    return _by_type(rule(("s16", "s32", "s64"), form, ""), floats.sign)


def _logic(form: str) -> EmitterFunction:
    return rule(("pred", *_BITS), form, "", "")


EMITTERS: dict[str, EmitterFunction] = {
    # arithmetic
    "add": _by_type(integers.add, floats.binary),
    "sub": _by_type(integers.add, floats.binary),
    "mul": _by_type(integers.multiply, floats.binary),
    "mad": _by_type(integers.multiply_add, floats.fma),
    "div": _by_type(integers.divide, floats.divide),
    "rem": integers.divide,
    "min": _by_type(integers.minmax, floats.minmax),
    "max": _by_type(integers.minmax, floats.minmax),
    "neg": _signed("-{0}"),
    "abs": _signed("np.abs({0})"),
    "addc": integers.add_carry,
    "subc": integers.add_carry,
    "madc": integers.multiply_add,
    "mul24": integers.multiply24,
    "mad24": integers.multiply24,
    "sad": rule(INTEGERS, "{2} + (maximum({0}, {1}) - minimum({0}, {1}))", "", "", ""),
    "dp4a": integers.dp4a,
    "fma": floats.fma,
    "copysign": rule(("f32", "f64"), "np.copysign({1}, {0})", "", ""),
    "testp": floats.testp,
    **dict.fromkeys(("rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh"), floats.approximate),
    # bits
    "and": _logic("{0} & {1}"),
    "or": _logic("{0} | {1}"),
    "xor": _logic("{0} ^ {1}"),
    "not": rule(("pred", *_BITS), "~{0}", ""),
    "cnot": rule(_BITS, "({0} == 0).astype({0}.dtype)", ""),
    "lop3": integers.lop3,
    "shl": integers.shift,
    "shr": integers.shift,
    "shf": integers.funnel,
    "prmt": integers.prmt,
    "bfe": rule(_WORDS, "extract_field({0}, {1}, {2})", "", "u32", "u32"),
    "bfi": rule(("b32", "b64"), "insert_field({0}, {1}, {2}, {3})", "", "", "u32", "u32"),
    "bfind": integers.bfind,
    "bmsk": integers.bmsk,
    "szext": integers.szext,
    "popc": rule(("b32", "b64"), "population({0})", "", result="u32"),
    "clz": rule(("b32", "b64"), "leading_zeros({0})", "", result="u32"),
    "brev": rule(("b32", "b64"), "reverse_bits({0})", ""),
    # comparison, selection, moves
    "setp": comparison.setp,
    "set": comparison.set_,
    "selp": rule(_SELECTED, "where({2}, {0}, {1})", "", "", "pred"),
    "slct": comparison.slct,
    "mov": moves.mov,
    "cvt": moves.cvt,
    "cvta": moves.cvta,
    "isspacep": moves.isspacep,
    "mapa": moves.mapa,
    "getctarank": moves.getctarank,
    # memory
    "ld": memory.load,
    "ldu": memory.load,
    "st": memory.store,
    "atom": memory.atomic,
    "red": memory.atomic,
    "prefetch": memory.prefetch,
    "createpolicy": memory.create_policy,
    "fence": memory.fence,
    "membar": memory.fence,
    "cp": copies.copy,
    "tensormap": copies.tensormap,
    "clusterlaunchcontrol": copies.cluster_launch_control,
    # warps and barriers
    "shfl": warp.shfl,
    "vote": warp.vote,
    "match": warp.match_,
    "redux": warp.redux,
    "elect": warp.elect,
    "activemask": warp.activemask,
    "bar": barriers.barrier,
    "barrier": barriers.barrier,
    "mbarrier": barriers.mbarrier,
    # tensor cores
    "mma": tensor.mma_sync,
    "ldmatrix": tensor.ldmatrix,
    "stmatrix": tensor.stmatrix,
    "wgmma": tensor.wgmma,
    "tcgen05": tensor.tcgen05,
    # control flow
    "bra": control.bra,
    "brx": control.brx,
    "ret": control.leave,
    "exit": control.leave,
    "trap": control.trap,
    "brkpt": control.trap,
    "call": control.call,
    "nanosleep": control.nanosleep,
    "griddepcontrol": control.grid_dependence,
    "setmaxnreg": control.setmaxnreg,
}
