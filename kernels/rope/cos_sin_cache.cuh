// SPDX-License-Identifier: Apache-2.0
// Rotary embedding in place, cosines and sines from a table: (a, b) -> (a cos - b sin, b cos + a sin).
//
// A block serves some heads of one token, queries first, then keys; threadIdx.x walks the pairs of a head, threadIdx.y
// the heads, so no index is divided and the heads of a block read the token's row of the table from L1. A thread
// turns one vector of pairs: 16 bytes from either half of the rotated part, or 16 bytes of neighbours. What is odd or
// unaligned goes pair by pair. A position outside the table traps, as torch's device-side assertions do.
// Source: Su et al. 2021, "RoFormer".
#pragma once

#include "../include/convert.cuh"
#include "../include/ptx/pdl.cuh"
#include "../include/vec.cuh"
#include "cos_sin_cache.h"

namespace dfi::rope {

__device__ __forceinline__ int64_t position_of(const RopeParams& params, int64_t token) {
  const int64_t i = token * params.position_stride;
  const int64_t position = params.is_position_int64 ? static_cast<const int64_t*>(params.positions)[i]
                                                    : static_cast<const int32_t*>(params.positions)[i];
  if (position < 0 || position >= params.max_position) __trap();
  return position;
}

__device__ __forceinline__ void turn(float& a, float& b, float cos, float sin) {
  const float turned = a * cos - b * sin;
  b = b * cos + a * sin;
  a = turned;
}

// Pairs (i, i + half) of kVecSize<T> neighbouring i.
template <typename T>
__device__ __forceinline__ void turn_halves(T* x, const float* cos, const float* sin, int half) {
  constexpr int kSize = kVecSize<T>;
  float a[kSize], b[kSize];
  unpack<T>(load_vec(x), a);
  unpack<T>(load_vec(x + half), b);
#pragma unroll
  for (int j = 0; j < kSize; j += 4) {
    float c[4], s[4];
    unpack<float>(load_vec(cos + j), c);
    unpack<float>(load_vec(sin + j), s);
#pragma unroll
    for (int i = 0; i < 4; ++i) turn(a[j + i], b[j + i], c[i], s[i]);
  }
  store_vec(x, pack<T>(a));
  store_vec(x + half, pack<T>(b));
}

// The kVecSize<T> / 2 pairs (2i, 2i + 1) of one vector.
template <typename T>
__device__ __forceinline__ void turn_neighbours(T* x, const float* cos, const float* sin) {
  constexpr int kSize = kVecSize<T>;
  float a[kSize];
  unpack<T>(load_vec(x), a);
#pragma unroll
  for (int i = 0; i < kSize / 2; ++i) turn(a[2 * i], a[2 * i + 1], cos[i], sin[i]);
  store_vec(x, pack<T>(a));
}

template <typename T>
__device__ __forceinline__ void turn_pair(T* x, T* y, float cos, float sin) {
  float a = to_float(*x), b = to_float(*y);
  turn(a, b, cos, sin);
  *x = from_float<T>(a);
  *y = from_float<T>(b);
}

// Grid: (num_tokens, all heads / blockDim.y). Block: (vectors or pairs of a head, or fewer; heads).
template <typename T, bool kIsVectorised, bool kIsInterleaved>
__global__ void __launch_bounds__(256) rope_kernel(const __grid_constant__ RopeParams params) {
  constexpr int kPairs = !kIsVectorised ? 1 : kIsInterleaved ? kVecSize<T> / 2 : kVecSize<T>;  // of one step
  if (params.triggers_early) ptx::pdl_launch_dependents();
  ptx::pdl_wait();
  const int head = blockIdx.y * blockDim.y + threadIdx.y;
  if (head >= params.query.num_heads + params.key.num_heads) return;
  const int64_t token = blockIdx.x;
  const bool is_query = head < params.query.num_heads;
  const Heads& heads = is_query ? params.query : params.key;
  T* x = static_cast<T*>(heads.ptr) + token * heads.token_stride +
         (is_query ? head : head - params.query.num_heads) * heads.head_stride;
  const int half = params.rotary_dim / 2;
  const float* cos = params.cos_sin_cache + position_of(params, token) * params.cache_stride;
  const float* sin = cos + half;

  for (int pair = threadIdx.x * kPairs; pair < half; pair += blockDim.x * kPairs) {
    if constexpr (!kIsVectorised) {
      T* first = x + (kIsInterleaved ? 2 * pair : pair);
      turn_pair(first, first + (kIsInterleaved ? 1 : half), cos[pair], sin[pair]);
    } else if constexpr (kIsInterleaved) {
      turn_neighbours<T>(x + 2 * pair, cos + pair, sin + pair);
    } else {
      turn_halves<T>(x + pair, cos + pair, sin + pair, half);
    }
  }
}

}  // namespace dfi::rope
