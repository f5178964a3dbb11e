// SPDX-License-Identifier: Apache-2.0
// SiLU-and-mul: out = a * sigmoid(a) * b, [a, b] = input.
//
// Elementwise, so bound by memory: each thread loads kVecs vectors of 16 bytes from either half before it computes,
// and a row's vectors are divided evenly over its blocks. Rows that are odd or unaligned go element by element.
// Source: Shazeer 2020, "GLU Variants Improve Transformer" (SwiGLU).
#pragma once

#include "../include/convert.cuh"
#include "../include/ptx/pdl.cuh"
#include "../include/vec.cuh"
#include "silu_and_mul.h"

namespace dfi::activation {

// The fast exponential and division are off by 2e-6 at most where the result is not tiny: beneath 16-bit rounding,
// not beneath float32's.
template <typename T>
__device__ __forceinline__ float silu(float a) {
  if constexpr (sizeof(T) == 4) return a / (1.f + expf(-a));
  return __fdividef(a, 1.f + __expf(-a));
}

// Grid: num_rows * blocks_per_row. Block: >= d / kVecSize<T> / kVecs / blocks_per_row threads.
template <typename T, int kVecs>
__global__ void __launch_bounds__(256) silu_and_mul_kernel(const __grid_constant__ SiluAndMulParams params) {
  constexpr int kSize = kVecSize<T>;
  const int64_t row = blockIdx.x / params.blocks_per_row;
  const int first = (blockIdx.x % params.blocks_per_row) * (blockDim.x * kVecs) + threadIdx.x;
  const int num_vecs = params.d / kSize;
  const T* gate = static_cast<const T*>(params.input) + row * params.input_stride;
  const T* up = gate + params.d;
  T* out = static_cast<T*>(params.out) + row * params.out_stride;

  if (params.triggers_early) ptx::pdl_launch_dependents();
  ptx::pdl_wait();
  uint4 raw_gate[kVecs], raw_up[kVecs];
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = first + i * blockDim.x;
    if (vec < num_vecs) {
      raw_gate[i] = load_vec<Cache::kStreaming>(gate + vec * kSize);
      raw_up[i] = load_vec<Cache::kStreaming>(up + vec * kSize);
    }
  }
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    const int vec = first + i * blockDim.x;
    if (vec < num_vecs) {
      float a[kSize], b[kSize];
      unpack<T>(raw_gate[i], a);
      unpack<T>(raw_up[i], b);
#pragma unroll
      for (int j = 0; j < kSize; ++j) a[j] = silu<T>(a[j]) * b[j];
      store_vec(out + vec * kSize, pack<T>(a), params.is_streaming);
    }
  }
}

// Any size, alignment and stride. Grid: num_rows * blocks_per_row. Block: >= d / blocks_per_row threads.
template <typename T>
__global__ void __launch_bounds__(256) silu_and_mul_by_element_kernel(const __grid_constant__ SiluAndMulParams params) {
  const int64_t row = blockIdx.x / params.blocks_per_row;
  const int i = (blockIdx.x % params.blocks_per_row) * blockDim.x + threadIdx.x;
  const T* gate = static_cast<const T*>(params.input) + row * params.input_stride;
  if (params.triggers_early) ptx::pdl_launch_dependents();
  ptx::pdl_wait();
  if (i >= params.d) return;
  const float a = to_float(gate[i]), b = to_float(gate[params.d + i]);
  static_cast<T*>(params.out)[row * params.out_stride + i] = from_float<T>(silu<T>(a) * b);
}

}  // namespace dfi::activation
