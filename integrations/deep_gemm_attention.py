"""DeepGEMM's MQA logits (the lightning indexer of sparse attention), of keys in one matrix or in pages, in FP8, and on
Blackwell in MXFP8 and MXFP4; and the sparse ones, of blocks of keys that each query names, in MXFP8 and MXFP4.

What a caller can see that differs: heads are any multiple of 4 up to 128, a page is any multiple of 16 keys, and a
request has up to 32 queries, or ``indices``, on Hopper, too; lengths need not be contiguous; logits of a page that does
not exist are -inf; logits are the same bytes however many multiprocessors share the work. Of sparse logits: those of a
block's keys that a query does not see are -inf, a list may have blocks in any order, also one that is none, such as -1,
a page is any multiple of 8 keys; metadata has 8 bytes for each 8 keys, and no workspace is kept for a stream.
"""

from __future__ import annotations

import torch

from . import loader

Operand = tuple[torch.Tensor, torch.Tensor | None]

ROW_BYTES = 1024  # rows of logits begin at multiples


def fp8_fp4_mqa_logits(
    q: Operand, kv: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor, cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor, clean_logits: bool = True, max_seqlen_k: int = 0,
    logits_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:  # fmt: skip
    """Logits [S, T]: the scale of a key times the sum over heads of relu(q . key) times the head's weight, for the
    keys from cu_seq_len_k_start on, before cu_seq_len_k_end, of each query.

    q: e4m3 [S, H, D] and None. kv: e4m3 [T, D] and its fp32 scales [T]. Or in MX formats: both e4m3, or int8 with two
    E2M1 in a byte, and scales of int32, [S, H] and [T], each four UE8M0 of 32 elements. weights: fp32 [S, H], with the
    scales of q in it where q has none; rows may lie apart. clean_logits: -inf where a query does not see a key, else
    such cells are anything. max_seqlen_k: if not 0, logits are [S, max_seqlen_k], the first key that a query sees in
    column 0, and nothing may be cleaned.
    """
    fmt, queries = _queries(q, "fp8_fp4_mqa_logits")
    if max_seqlen_k and clean_logits:
        raise ValueError(f"clean_logits: expected False where max_seqlen_k is {max_seqlen_k}, got True")
    columns = max_seqlen_k or kv[0].shape[0]
    logits = _logits(queries["q"].shape[0], columns, logits_dtype, queries["q"])
    form = "compressed" if max_seqlen_k else "cleaned" if clean_logits else "full"
    loader.launch(f"mqa_logits_{fmt}", **queries, kv=_packed(kv[0]), kv_scale=kv[1], weights=_rows(weights),
                  starts=cu_seq_len_k_start, ends=cu_seq_len_k_end, out=logits, form=form)  # fmt: skip
    return logits[:, :columns]


def fp8_mqa_logits(
    q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor, cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor, clean_logits: bool = True, max_seqlen_k: int = 0,
) -> torch.Tensor:  # fmt: skip
    """As ``fp8_fp4_mqa_logits``, in fp32."""
    return fp8_fp4_mqa_logits((q, None), kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits, max_seqlen_k)


def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_sms: int, indices: torch.Tensor | None = None
) -> torch.Tensor:
    """Where the share of each of num_sms CTAs begins, int32 [num_sms + 1, 2]: for ``fp8_fp4_paged_mqa_logits``.

    context_lens: int32 [B, next_n]. ``block_kv`` changes nothing: shares are of 128 keys. indices: int32 [B], equal
    ones beside each other are queries of one request; next_n is 1 then.
    """
    if context_lens.dim() != 2:
        raise ValueError(f"context_lens: expected 2 dimensions [B, next_n], got {tuple(context_lens.shape)}")
    schedule = torch.empty(num_sms + 1, 2, dtype=torch.int32, device=context_lens.device)
    loader.launch("paged_mqa_schedule", context_lens=context_lens.contiguous(), schedule=schedule, indices=indices)
    return schedule


def fp8_fp4_paged_mqa_logits(
    q: Operand, kv_cache: torch.Tensor, weights: torch.Tensor, context_lens: torch.Tensor,
    block_table: torch.Tensor, schedule_meta: torch.Tensor, max_context_len: int, clean_logits: bool = False,
    logits_dtype: torch.dtype = torch.float32, indices: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Logits [B * next_n, max_context_len] of the first ``context_lens`` keys of each query; the other cells are
    anything, and clean_logits must be False.

    q: e4m3 [B, next_n, H, D] and None, or in an MX format with scales [B, next_n, H], as of ``fp8_fp4_mqa_logits``.
    kv_cache: uint8 [pages, page, 1, bytes of a key + 4], of a page first the bytes of its keys, then their scales, fp32
    or four UE8M0; pages may lie apart. weights: fp32 [B * next_n, H]. context_lens: int32 [B, next_n].
    block_table: int32 [B, pages of a request]. schedule_meta: of ``get_paged_mqa_logits_metadata``.
    """
    fmt, queries = _queries(q, "fp8_fp4_paged_mqa_logits")
    data = queries["q"]
    if clean_logits:
        raise ValueError("clean_logits: expected False, got True: cells behind context_lens are not cleaned")
    logits = _logits(data.shape[0] * data.shape[1], max_context_len, logits_dtype, data)
    loader.launch(f"paged_mqa_logits_{fmt}", **queries, **_cache(kv_cache, data.shape[-1]), weights=_rows(weights),
                  context_lens=context_lens.contiguous(), block_table=_rows(block_table), schedule=schedule_meta,
                  indices=indices, out=logits)  # fmt: skip
    return logits[:, :max_context_len]


def fp8_paged_mqa_logits(
    q: torch.Tensor, kv_cache: torch.Tensor, weights: torch.Tensor, context_lens: torch.Tensor,
    block_table: torch.Tensor, schedule_meta: torch.Tensor, max_context_len: int, clean_logits: bool = False,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As ``fp8_fp4_paged_mqa_logits``, in fp32."""
    return fp8_fp4_paged_mqa_logits((q, None), kv_cache, weights, context_lens, block_table, schedule_meta,
                                    max_context_len, clean_logits, torch.float32, indices)  # fmt: skip


def get_sparse_mqa_logits_metadata(
    cu_seq_len_k_start: torch.Tensor, cu_seq_len_k_end: torch.Tensor, num_kv_tokens: int,
    sparse_kv_block_indices: torch.Tensor, qk_dtype: torch.dtype, sparse_block_kv: int, use_unaligned_ks: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Which keys the columns of ``fp8_fp4_sparse_mqa_logits`` are of, in bytes that only it reads.

    cu_seq_len_k_start, cu_seq_len_k_end: int32 [S], as of ``fp8_fp4_mqa_logits``. sparse_kv_block_indices: int32
    [S, blocks], of which ceil((end - start) / sparse_block_kv) count. Block i has the sparse_block_kv (8 or 16) keys
    from i * sparse_block_kv on, and with ``use_unaligned_ks`` start % sparse_block_kv behind. ``qk_dtype`` changes
    nothing.
    """
    metadata = _table(sparse_kv_block_indices, sparse_block_kv)
    loader.launch("sparse_mqa_table", blocks=sparse_kv_block_indices, starts=cu_seq_len_k_start,
                  ends=cu_seq_len_k_end, table=metadata, block=sparse_block_kv, unaligned=int(use_unaligned_ks),
                  keys=num_kv_tokens)  # fmt: skip
    return metadata.view(torch.uint8).flatten()


def get_paged_sparse_mqa_logits_metadata(
    context_lens: torch.Tensor, block_table: torch.Tensor, indices: torch.Tensor, page_kv: int,
    sparse_kv_block_indices: torch.Tensor, qk_dtype: torch.dtype, sparse_block_kv: int,
) -> torch.Tensor:  # fmt: skip
    """The same for ``fp8_fp4_paged_sparse_mqa_logits``, of queries that see the first ``context_lens`` keys of theirs.

    context_lens: int32, of S elements. block_table: int32 [S, pages of a query], pages of ``page_kv`` keys. ``indices``
    and ``qk_dtype`` change nothing: each query's own pages count, and no work is shared.
    """
    if page_kv % sparse_block_kv:
        raise ValueError(f"page_kv: expected a multiple of sparse_block_kv {sparse_block_kv}, got {page_kv}")
    metadata = _table(sparse_kv_block_indices, sparse_block_kv)
    loader.launch("sparse_mqa_table", blocks=sparse_kv_block_indices, ends=context_lens.flatten(),
                  block_table=_rows(block_table), table=metadata, block=sparse_block_kv, page=page_kv)  # fmt: skip
    return metadata.view(torch.uint8).flatten()


def fp8_fp4_sparse_mqa_logits(
    q: Operand, kv: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor, metadata: torch.Tensor,
    num_max_sparse_blocks: int, sparse_block_kv: int, use_unaligned_ks: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Logits, bf16 [S, num_max_sparse_blocks * sparse_block_kv], of the keys of each query's blocks, in their order;
    -inf of those that it does not see. Cells behind the blocks that count are anything.

    q, kv: in an MX format, as of ``fp8_fp4_mqa_logits``; up to 32 heads of 128. weights: bf16 [S, H]. metadata: of
    ``get_sparse_mqa_logits_metadata``, for as many blocks of as many keys; it knows ``use_unaligned_ks``.
    """
    fmt, queries = _mx_queries(q, "fp8_fp4_sparse_mqa_logits")
    return _sparse_logits(f"sparse_mqa_logits_{fmt}", queries, weights, metadata, num_max_sparse_blocks,
                          sparse_block_kv, kv=_packed(kv[0]), kv_scale=kv[1])  # fmt: skip


def fp8_fp4_paged_sparse_mqa_logits(
    q: Operand, kv_cache: torch.Tensor, weights: torch.Tensor, metadata: torch.Tensor, num_max_sparse_blocks: int,
    sparse_block_kv: int,
) -> torch.Tensor:  # fmt: skip
    """The same of keys in pages. q: [S, 1, H, D], its scales [S, 1, H]. kv_cache: as of ``fp8_fp4_paged_mqa_logits``.
    metadata: of ``get_paged_sparse_mqa_logits_metadata``."""
    fmt, queries = _mx_queries(q, "fp8_fp4_paged_sparse_mqa_logits")
    queries = {name: of.flatten(0, 1) for name, of in queries.items()}
    return _sparse_logits(f"paged_sparse_mqa_logits_{fmt}", queries, weights, metadata, num_max_sparse_blocks,
                          sparse_block_kv, **_cache(kv_cache, queries["q"].shape[-1]))  # fmt: skip


def _table(blocks: torch.Tensor, block: int) -> torch.Tensor:
    """Room for the table of sparse logits: an entry of two words for 8 keys, and one before them."""
    entries = blocks.shape[1] * block // 8 + 1
    return torch.empty(blocks.shape[0], entries, 2, dtype=torch.int32, device=blocks.device)


def _sparse_logits(
    family: str, queries: dict[str, torch.Tensor], weights: torch.Tensor, metadata: torch.Tensor, num_blocks: int,
    block: int, **keys: torch.Tensor | int,
) -> torch.Tensor:  # fmt: skip
    rows, columns = queries["q"].shape[0], num_blocks * block
    entries = columns // 8 + 1
    if metadata.dtype != torch.uint8 or metadata.numel() != rows * entries * 8:
        raise ValueError(f"metadata: expected {rows * entries * 8} bytes, of {rows} queries with {num_blocks} blocks "
                         f"of {block} keys, got {metadata.numel()} elements of {metadata.dtype}")  # fmt: skip
    logits = _logits(rows, columns, torch.bfloat16, queries["q"])
    loader.launch(family, **queries, **keys, weights=_rows(weights), out=logits,
                  table=metadata.view(torch.int32).view(rows, entries, 2))  # fmt: skip
    return logits[:, :columns]


def _cache(kv_cache: torch.Tensor, row_bytes: int) -> dict[str, torch.Tensor | int]:
    """Pages [pages, page, 1, row_bytes + 4], which may lie apart, as kernels take them."""
    pages, page, _, width = kv_cache.shape
    size, stride = page * width, kv_cache.stride(0) if pages > 1 else page * width
    if width != row_bytes + 4 or (kv_cache.stride(1), kv_cache.stride(3)) != (width, 1):
        raise ValueError(f"kv_cache: expected pages of [{page}, 1, {row_bytes + 4}] bytes without gaps, got shape "
                         f"{tuple(kv_cache.shape)} and strides {kv_cache.stride()}")  # fmt: skip
    return {"kv_cache": kv_cache.as_strided(((pages - 1) * stride + size,), (1,)), "pages": pages, "page": page,
            "page_stride": stride}  # fmt: skip


def _mx_queries(q: Operand, function: str) -> tuple[str, dict[str, torch.Tensor]]:
    if q[1] is None:
        raise NotImplementedError(f"{function}: q is covered with scales; got {q[0].dtype} without scales")
    return _queries(q, function)


def _queries(q: Operand, function: str) -> tuple[str, dict[str, torch.Tensor]]:
    """The format of a call, and its queries."""
    data, scales = q
    if scales is None and data.dtype == torch.float8_e4m3fn:
        return "fp8", {"q": data}
    if scales is None or data.dtype not in (torch.float8_e4m3fn, torch.int8, torch.uint8):
        got = f"{data.dtype} with{'out' if scales is None else ''} scales"
        raise NotImplementedError(f"{function}: q is covered in float8_e4m3fn, and with scales in int8, too; got {got}")
    return "mxfp8" if data.dtype == torch.float8_e4m3fn else "mxfp4", {"q": _packed(data), "q_scale": scales}


def _packed(x: torch.Tensor) -> torch.Tensor:
    """Two E2M1 in a byte, as loaders of kernels know them."""
    return x.view(torch.uint8) if x.dtype == torch.int8 else x


def _logits(rows: int, columns: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """Room for logits, of which more columns than are asked for make rows begin at multiples of ROW_BYTES."""
    aligned = ROW_BYTES // dtype.itemsize
    return torch.empty(rows, -(-columns // aligned) * aligned, dtype=dtype, device=like.device)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x [rows, columns] as a whole matrix, other columns with it; a copy where the last row would end behind memory."""
    if x.is_contiguous() or x.stride(1) != 1 or x.stride(0) < x.shape[1]:
        return x.contiguous()
    end = x.storage_offset() + x.shape[0] * x.stride(0)
    if end * x.itemsize > x.untyped_storage().nbytes():
        return x.contiguous()
    return x.as_strided((x.shape[0], x.stride(0)), (x.stride(0), 1))
