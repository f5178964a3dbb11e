// SPDX-License-Identifier: Apache-2.0
// The launcher of the rotary embedding from a table, plain C++: what binding and device code share.
#pragma once

#include <cstdint>

#include "../include/dtype.h"

namespace dfi::rope {

struct Heads {
  void* ptr;             // [num_tokens, num_heads, head_dim], last dimension contiguous; overwritten
  int64_t token_stride;  // elements
  int64_t head_stride;   // elements
  int num_heads;
};

struct RopeParams {
  const void* positions;        // [num_tokens], int32 or int64, rows of the table
  const float* cos_sin_cache;   // [max_position, rotary_dim]: cosines, then sines
  Heads query;
  Heads key;
  int64_t num_tokens;
  int64_t position_stride;      // elements between positions
  int64_t cache_stride;         // elements between rows of the table
  int64_t max_position;
  int rotary_dim;               // even
  bool is_position_int64;
  bool is_interleaved;          // pairs are (2i, 2i + 1); else (i, i + rotary_dim / 2)
  bool triggers_early;          // set by the launcher: lets the next kernel start at once (one wave of blocks or less)
};

// Launches on `device` into `stream`; with `pdl` as a programmatic dependent launch (sm_90 and up).
// Returns nullptr, or CUDA's text of what went wrong. Zero tokens launch nothing.
const char* launch_rope(RopeParams params, DType dtype, int device, void* stream, bool pdl);

}  // namespace dfi::rope
