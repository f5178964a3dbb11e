// SPDX-License-Identifier: Apache-2.0
// Page append: the keys and values of new tokens into their slots of a paged cache.
//
// Bytes are copied whatever they mean: 16 at a time where every address allows, else one element at a time. A block
// serves one token's keys or values; threadIdx.x walks a head, threadIdx.y the heads. A slot outside the cache traps,
// as torch's device-side assertions do. Where two tokens share a slot, either may win.
#pragma once

#include <cstdint>

#include "../include/ptx/pdl.cuh"
#include "append.h"

namespace dfi::kv_cache {

constexpr int kAppendThreads = 256;

// Grid: (num_tokens, 2). Block: (words of a head, or fewer; heads, or fewer).
template <typename Word>
__global__ void __launch_bounds__(kAppendThreads) append_kernel(const __grid_constant__ AppendParams params) {
  if (params.triggers_early) ptx::pdl_launch_dependents();
  ptx::pdl_wait();
  const AppendSide& side = params.sides[blockIdx.y];
  const int64_t token = blockIdx.x;
  const int64_t slot = params.slots[token * params.slot_stride];
  if (slot < 0 || slot >= params.num_slots) __trap();
  const char* from = static_cast<const char*>(side.tokens) + token * side.token_stride;
  char* to = static_cast<char*>(side.cache) + slot / params.page_size * side.page_stride +
             slot % params.page_size * side.entry_stride;
  const int num_words = side.head_bytes / static_cast<int>(sizeof(Word));
  for (int head = threadIdx.y; head < params.num_heads; head += blockDim.y) {
    const Word* source = reinterpret_cast<const Word*>(from + head * side.token_head_stride);
    Word* target = reinterpret_cast<Word*>(to + head * side.cache_head_stride);
    for (int i = threadIdx.x; i < num_words; i += blockDim.x) target[i] = source[i];
  }
}

}  // namespace dfi::kv_cache
