// SPDX-License-Identifier: Apache-2.0
// Launcher of the rotary embedding from a table: which kernel, how the heads are divided.
#include <climits>

#include "../include/launch.cuh"
#include "cos_sin_cache.cuh"

namespace dfi::rope {
namespace {

constexpr int kThreads = 256;
constexpr int kThreadsOfFewTokens = 64;

template <typename T>
bool is_aligned(const Heads& heads) {
  constexpr int kSize = kVecSize<T>;
  return is_vec_aligned(heads.ptr) && heads.token_stride % kSize == 0 && heads.head_stride % kSize == 0;
}

template <typename T>
bool is_vectorised(const RopeParams& params) {
  const int unit = params.is_interleaved ? kVecSize<T> : 2 * kVecSize<T>;  // rotated elements of one step
  const bool is_table_aligned = is_vec_aligned(params.cos_sin_cache) && params.cache_stride % 4 == 0;
  return params.rotary_dim % unit == 0 && is_table_aligned && is_aligned<T>(params.query) && is_aligned<T>(params.key);
}

template <typename T, bool kIsVectorised, bool kIsInterleaved>
const char* launch_heads(RopeParams params, int num_sms, void* stream, bool pdl) {
  constexpr int kPairs = !kIsVectorised ? 1 : kIsInterleaved ? kVecSize<T> / 2 : kVecSize<T>;
  const int num_heads = params.query.num_heads + params.key.num_heads;
  // Few tokens: small blocks, so that a token's heads spread over the multiprocessors.
  const int threads = params.num_tokens < num_sms ? kThreadsOfFewTokens : kThreads;
  const int steps = ceil_div(params.rotary_dim / 2, kPairs);
  const int across = steps < threads ? steps : threads;
  const int heads_of_block = threads / across < num_heads ? threads / across : num_heads;
  const int64_t blocks_of_token = ceil_div(num_heads, heads_of_block);
  if (blocks_of_token > 65535) return "more heads than a grid has blocks";
  params.triggers_early = params.num_tokens * blocks_of_token <= num_sms;
  const Grid grid{dim3(params.num_tokens, blocks_of_token), dim3(across, heads_of_block)};
  return launch(rope_kernel<T, kIsVectorised, kIsInterleaved>, params, grid, stream, pdl);
}

template <typename T, bool kIsVectorised>
const char* launch_form(const RopeParams& params, int num_sms, void* stream, bool pdl) {
  return params.is_interleaved ? launch_heads<T, kIsVectorised, true>(params, num_sms, stream, pdl)
                               : launch_heads<T, kIsVectorised, false>(params, num_sms, stream, pdl);
}

}  // namespace

const char* launch_rope(RopeParams params, DType dtype, int device, void* stream, bool pdl) {
  if (params.num_tokens == 0 || params.query.num_heads + params.key.num_heads == 0) return nullptr;
  if (params.num_tokens > INT_MAX) return "more tokens than a grid has blocks";
  const DeviceGuard guard(device);
  const int num_sms = num_multiprocessors(device);
  return with_dtype(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    return is_vectorised<T>(params) ? launch_form<T, true>(params, num_sms, stream, pdl)
                                    : launch_form<T, false>(params, num_sms, stream, pdl);
  });
}

}  // namespace dfi::rope
