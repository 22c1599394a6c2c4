"""DeepGEMM's function of hyper-connections: products in tf32 and sums of squares from one reading of the rows."""

from __future__ import annotations

import torch

from . import loader


def tf32_hc_prenorm_gemm(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, sqr_sum: torch.Tensor, num_splits: int | None = None
) -> None:
    """d [M, N] = a [M, K] . b [N, K]^T and sqr_sum [M], the sums of a^2; a bf16, b fp32, which is rounded to tf32.

    With ``num_splits`` d is [S, M, N] and sqr_sum [S, M]: what each share of K adds, left for the caller to sum. Blocks
    of 64 are dealt out evenly, and the first shares have one more.
    """
    if num_splits is not None and (d.dim() != 3 or d.shape[0] != num_splits):
        raise ValueError(f"d: expected [{num_splits}, M, N] for num_splits {num_splits}, got {list(d.shape)}")
    if a.shape[0] == 0:
        return
    name = "hc_prenorm_tf32" if num_splits is None else "hc_prenorm_tf32_shares"
    loader.launch(name, a=a, b=b, out=d, square_sum=sqr_sum)
