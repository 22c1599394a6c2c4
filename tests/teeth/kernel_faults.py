"""Single faults in the kernels: what somebody writing them could have got wrong.

Each is caught by a check of the emulator, by a deadlock, or by a wrong result. ``NOT_CAUGHT`` lists those that are not,
and why; they are run as well, and counted apart.
"""

from __future__ import annotations

import kernel_faults_90
import kernel_faults_100
import kernel_faults_120
import kernel_faults_einsum
import kernel_faults_fp8_mxfp4
import kernel_faults_fp8_swiglu
import kernel_faults_fragments
import kernel_faults_gated_fragments
import kernel_faults_hc_prenorm
import kernel_faults_majors
import kernel_faults_mqa
import kernel_faults_mqa_100
import kernel_faults_mqa_120
import kernel_faults_mqa_sparse
import kernel_faults_mx
import kernel_faults_mx_swiglu
import kernel_faults_mxfp8_rows
import kernel_faults_packed
import kernel_faults_pairs
import kernel_faults_promote_steps
import kernel_faults_quantize
import kernel_faults_rms_norm
import kernel_faults_rows
import kernel_faults_scales
import kernel_faults_schedule
import kernel_faults_split_k
import kernel_faults_ue8m0_mxfp4
import kernel_faults_ue8m0_swiglu

CAUGHT = [
    *kernel_faults_90.CAUGHT,
    *kernel_faults_100.CAUGHT,
    *kernel_faults_120.CAUGHT,
    *kernel_faults_einsum.CAUGHT,
    *kernel_faults_fp8_mxfp4.CAUGHT,
    *kernel_faults_fp8_swiglu.CAUGHT,
    *kernel_faults_fragments.CAUGHT,
    *kernel_faults_gated_fragments.CAUGHT,
    *kernel_faults_hc_prenorm.CAUGHT,
    *kernel_faults_majors.CAUGHT,
    *kernel_faults_mqa.CAUGHT,
    *kernel_faults_mqa_100.CAUGHT,
    *kernel_faults_mqa_120.CAUGHT,
    *kernel_faults_mqa_sparse.CAUGHT,
    *kernel_faults_mx.CAUGHT,
    *kernel_faults_mx_swiglu.CAUGHT,
    *kernel_faults_mxfp8_rows.CAUGHT,
    *kernel_faults_packed.CAUGHT,
    *kernel_faults_pairs.CAUGHT,
    *kernel_faults_promote_steps.CAUGHT,
    *kernel_faults_quantize.CAUGHT,
    *kernel_faults_rms_norm.CAUGHT,
    *kernel_faults_rows.CAUGHT,
    *kernel_faults_scales.CAUGHT,
    *kernel_faults_schedule.CAUGHT,
    *kernel_faults_split_k.CAUGHT,
    *kernel_faults_ue8m0_mxfp4.CAUGHT,
    *kernel_faults_ue8m0_swiglu.CAUGHT,
]
NOT_CAUGHT = [
    *kernel_faults_90.NOT_CAUGHT,
    *kernel_faults_rows.NOT_CAUGHT,
    *kernel_faults_fp8_swiglu.NOT_CAUGHT,
    *kernel_faults_hc_prenorm.NOT_CAUGHT,
    *kernel_faults_100.NOT_CAUGHT,
]
