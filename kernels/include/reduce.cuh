// SPDX-License-Identifier: Apache-2.0
// Sums over a warp and over a block; every thread receives the sum, and the order of additions is fixed.
#pragma once

namespace dfi {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;

template <int kWidth = kWarpSize>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Sum over a one-dimensional block of whole warps. One barrier: every warp adds the partial sums for itself, which is
// quicker than one warp adding and a second barrier. `partial` may be used again only after another barrier.
__device__ __forceinline__ float block_sum(float x, float (&partial)[kMaxWarps]) {
  x = warp_sum(x);
  const int lane = threadIdx.x % kWarpSize;
  if (lane == 0) partial[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  return warp_sum(lane < static_cast<int>(blockDim.x) / kWarpSize ? partial[lane] : 0.f);
}

}  // namespace dfi
