"""Short names for the types and functions of numpy that the arithmetic of PTX and generated code use most."""

from __future__ import annotations

import numpy as np

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
s8, s16, s32, s64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64
where, count_nonzero = np.where, np.count_nonzero
minimum, maximum, fmin, fmax = np.minimum, np.maximum, np.fmin, np.fmax
