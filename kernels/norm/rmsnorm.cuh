// SPDX-License-Identifier: Apache-2.0
// RMSNorm, alone or behind a residual addition: s = input (+ residual), out = s / sqrt(mean(s^2) + eps) * weight.
//
// One row per block, read once: each thread keeps kVecs vectors of 16 bytes in registers, the block adds the squares
// with one barrier, and the same registers become the output. Sums and products are float32, rounded once at the
// end; the residual receives s rounded, the norm is taken of the unrounded s. Rows that are odd, unaligned or longer
// than the registers hold take the second kernel, element by element, reading twice.
// Measured, H100, bf16, 8192 x 8192: one row per block with 512 threads x 2 vectors runs at the speed of a copy;
// 1024 x 1 is 13 % slower there but quickest for few rows; persistent blocks are 4-7 % slower.
// Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
#pragma once

#include "../include/convert.cuh"
#include "../include/ptx/pdl.cuh"
#include "../include/reduce.cuh"
#include "../include/vec.cuh"
#include "rmsnorm.h"

namespace dfi::norm {

constexpr int kPrefetchBytes = 128;  // one L2 line

// Weights are not in the way of the predecessor's writes: ask for them before waiting.
template <typename T>
__device__ __forceinline__ void prefetch_weight(const RmsNormParams& params) {
  const char* weight = static_cast<const char*>(params.weight);
  const int num_bytes = params.hidden_size * static_cast<int>(sizeof(T));
  for (int i = threadIdx.x * kPrefetchBytes; i < num_bytes; i += blockDim.x * kPrefetchBytes) prefetch_l2(weight + i);
}

// x = input (+ residual) of one vector; squares are added to `sum`.
template <typename T, bool kAddResidual>
__device__ __forceinline__ void add_and_square(const uint4& input, const uint4& residual, float (&x)[kVecSize<T>],
                                               float& sum) {
  unpack<T>(input, x);
  if constexpr (kAddResidual) {
    float r[kVecSize<T>];
    unpack<T>(residual, r);
#pragma unroll
    for (int j = 0; j < kVecSize<T>; ++j) x[j] += r[j];
  }
#pragma unroll
  for (int j = 0; j < kVecSize<T>; ++j) sum = fmaf(x[j], x[j], sum);
}

// Grid: num_rows. Block: whole warps, >= hidden_size / kVecSize<T> / kVecs threads.
template <typename T, bool kAddResidual, int kVecs, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads) rmsnorm_kernel(const __grid_constant__ RmsNormParams params) {
  constexpr int kSize = kVecSize<T>;
  static_assert(kVecs * kSize * sizeof(float) <= 128, "a thread's part of the row must stay in registers");
  __shared__ float partial[kMaxWarps];
  const int num_vecs = params.hidden_size / kSize;
  const int64_t row = blockIdx.x;
  const T* input = static_cast<const T*>(params.input) + row * params.input_stride;
  T* residual = static_cast<T*>(params.residual) + row * params.residual_stride;
  T* out = static_cast<T*>(params.out) + row * params.out_stride;
  const T* weight = static_cast<const T*>(params.weight);

  if (params.triggers_early) {
    ptx::pdl_launch_dependents();
    prefetch_weight<T>(params);
  }
  ptx::pdl_wait();

  // Few rows: the weights' way from L2 goes beside the row's. Many: they are in L1, and registers are dearer.
  constexpr bool kLoadsWeightFirst = kVecs == 1;
  uint4 raw[kVecs], raw_residual[kVecs], raw_weight[kVecs];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = threadIdx.x + i * blockDim.x;
    raw[i] = raw_residual[i] = make_uint4(0, 0, 0, 0);
    if (vec < num_vecs) {
      raw[i] = load_vec<Cache::kStreaming>(input + vec * kSize);
      if constexpr (kAddResidual) raw_residual[i] = load_vec<Cache::kStreaming>(residual + vec * kSize);
      if constexpr (kLoadsWeightFirst) raw_weight[i] = load_vec(weight + vec * kSize);
    }
  }

  float x[kVecs][kSize];
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    add_and_square<T, kAddResidual>(raw[i], raw_residual[i], x[i], sum);
    const int vec = threadIdx.x + i * blockDim.x;
    if constexpr (kAddResidual) {
      if (vec < num_vecs) store_vec(residual + vec * kSize, pack<T>(x[i]), params.is_streaming);
    }
  }
  const float scale = rsqrtf(block_sum(sum, partial) / params.hidden_size + params.eps);

#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = threadIdx.x + i * blockDim.x;
    if (vec < num_vecs) {
      float w[kSize];
      if constexpr (!kLoadsWeightFirst) raw_weight[i] = load_vec(weight + vec * kSize);
      unpack<T>(raw_weight[i], w);
#pragma unroll
      for (int j = 0; j < kSize; ++j) w[j] *= x[i][j] * scale;
      store_vec(out + vec * kSize, pack<T>(w), params.is_streaming);
    }
  }
}

// Any size, alignment and stride. Grid: num_rows. Block: whole warps.
template <typename T, bool kAddResidual>
__global__ void __launch_bounds__(1024) rmsnorm_by_element_kernel(const __grid_constant__ RmsNormParams params) {
  __shared__ float partial[kMaxWarps];
  const int64_t row = blockIdx.x;
  const T* input = static_cast<const T*>(params.input) + row * params.input_stride;
  T* residual = static_cast<T*>(params.residual) + row * params.residual_stride;
  T* out = static_cast<T*>(params.out) + row * params.out_stride;
  const T* weight = static_cast<const T*>(params.weight);
  const auto value = [&](int i) {
    if constexpr (kAddResidual) return to_float(input[i]) + to_float(residual[i]);
    return to_float(input[i]);
  };

  if (params.triggers_early) ptx::pdl_launch_dependents();
  ptx::pdl_wait();
  float sum = 0.f;
  for (int i = threadIdx.x; i < params.hidden_size; i += blockDim.x) {
    const float x = value(i);
    sum = fmaf(x, x, sum);
  }
  const float scale = rsqrtf(block_sum(sum, partial) / params.hidden_size + params.eps);
  // Each thread reads again what it read before and overwrites only that, so in-place rows are safe.
  for (int i = threadIdx.x; i < params.hidden_size; i += blockDim.x) {
    const float x = value(i);
    if constexpr (kAddResidual) residual[i] = from_float<T>(x);
    out[i] = from_float<T>(x * scale * to_float(weight[i]));
  }
}

}  // namespace dfi::norm
