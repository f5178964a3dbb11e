// SPDX-License-Identifier: Apache-2.0
// Launcher of the page append: how wide the words are.
#include <climits>

#include "../include/launch.cuh"
#include "append.cuh"

namespace dfi::kv_cache {
namespace {

bool allows_vectors(const AppendSide& side) {
  const int64_t strides = side.token_stride | side.token_head_stride | side.page_stride | side.entry_stride |
                          side.cache_head_stride | side.head_bytes;
  return strides % 16 == 0 && is_vec_aligned(side.tokens) && is_vec_aligned(side.cache);
}

template <typename Word>
const char* launch_words(const AppendParams& params, void* stream, bool pdl) {
  const AppendSide *k = &params.sides[0], *v = &params.sides[1];
  const int head_bytes = k->head_bytes > v->head_bytes ? k->head_bytes : v->head_bytes;
  const int words = ceil_div(head_bytes, static_cast<int>(sizeof(Word)));
  const int across = words < kAppendThreads ? words : kAppendThreads;
  const int heads = kAppendThreads / across < params.num_heads ? kAppendThreads / across : params.num_heads;
  const Grid grid{dim3(params.num_tokens, 2), dim3(across, heads)};
  return launch(append_kernel<Word>, params, grid, stream, pdl);
}

}  // namespace

const char* launch_append(AppendParams params, int element_bytes, int device, void* stream, bool pdl) {
  const int64_t widest = params.sides[0].head_bytes | params.sides[1].head_bytes;
  if (params.num_tokens == 0 || params.num_heads == 0 || widest == 0) return nullptr;
  if (params.num_tokens > INT_MAX) return "more tokens than a grid has blocks";
  const DeviceGuard guard(device);
  params.triggers_early = 2 * params.num_tokens <= num_multiprocessors(device);
  if (allows_vectors(params.sides[0]) && allows_vectors(params.sides[1])) {
    return launch_words<uint4>(params, stream, pdl);
  }
  return element_bytes == 4 ? launch_words<uint32_t>(params, stream, pdl) : launch_words<uint16_t>(params, stream, pdl);
}

}  // namespace dfi::kv_cache
