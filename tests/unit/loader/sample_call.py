"""A correct call of the sample pack's kernel."""

from device_buffers import FastTensor

M, K, E = 96, 64, 3


def arguments(kind=FastTensor, m=M, k=K, e=E, output="bf16", device=(2, 0), **replaced):
    """Keyword arguments of ``loader.launch("scale_rows", ...)``; ``replaced`` overrides some, None removes one."""
    call = {
        "a": kind("fp4x2", (m, k // 2), device=device),
        "scale": kind("e4m3", (-(-m // 32), k // 16), device=device),
        "offsets": kind("i32", (e + 1,), device=device),
        "out": kind(output, (m, k), device=device),
        "alpha": 2.5,
        "top": 4,
    }
    call.update(replaced)
    return {name: value for name, value in call.items() if value is not None}
