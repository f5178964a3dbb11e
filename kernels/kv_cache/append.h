// SPDX-License-Identifier: Apache-2.0
// The launcher of the page append, plain C++: what binding and device code share.
#pragma once

#include <cstdint>

namespace dfi::kv_cache {

// One of keys and values. Strides and head_bytes are in bytes.
struct AppendSide {
  const void* tokens;    // [num_tokens, num_heads, head_dim], last dimension contiguous
  void* cache;           // [num_pages, page_size, num_heads, head_dim], last dimension contiguous
  int64_t token_stride;
  int64_t token_head_stride;
  int64_t page_stride;
  int64_t entry_stride;  // between the tokens of a page
  int64_t cache_head_stride;
  int head_bytes;
};

struct AppendParams {
  AppendSide sides[2];  // keys, values
  const int64_t* slots;  // [num_tokens]: page * page_size + place in the page
  int64_t slot_stride;   // elements
  int64_t num_tokens;
  int64_t num_slots;     // num_pages * page_size
  int page_size;
  int num_heads;
  bool triggers_early;   // set by the launcher: lets the next kernel start at once (one wave of blocks or less)
};

// Elements have 2 or 4 bytes. Launches on `device` into `stream`; with `pdl` as a programmatic dependent launch (sm_90 and up).
// Returns nullptr, or CUDA's text of what went wrong. Zero tokens launch nothing.
const char* launch_append(AppendParams params, int element_bytes, int device, void* stream, bool pdl);

}  // namespace dfi::kv_cache
