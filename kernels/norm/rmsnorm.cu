// SPDX-License-Identifier: Apache-2.0
// Launcher of RMSNorm: which kernel, how many threads.
#include <climits>

#include "../include/launch.cuh"
#include "rmsnorm.cuh"

namespace dfi::norm {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kThreadsOfManyRows = 512;
constexpr int kMaxVecs = 4;
// Results beyond this leave L2 (50 MB on Hopper) before anyone reads them.
constexpr int64_t kStreamingBytes = 32 << 20;

template <typename T>
bool is_vectorised(const RmsNormParams& params) {
  constexpr int kSize = kVecSize<T>;
  bool fits = params.hidden_size % kSize == 0 && params.hidden_size / kSize <= kMaxThreads * kMaxVecs;
  fits = fits && is_vec_aligned(params.input) && is_vec_aligned(params.weight) && is_vec_aligned(params.out);
  fits = fits && is_vec_aligned(params.residual);
  return fits && params.input_stride % kSize == 0 && params.out_stride % kSize == 0 && params.residual_stride % kSize == 0;
}

template <typename T, bool kAddResidual, int kVecs, int kThreads>
const char* launch_vectors(const RmsNormParams& params, void* stream, bool pdl) {
  const int per_vec = ceil_div(params.hidden_size / kVecSize<T>, kVecs);
  const Grid grid{dim3(params.num_rows), dim3(ceil_div(per_vec, kWarpSize) * kWarpSize)};
  return launch(rmsnorm_kernel<T, kAddResidual, kVecs, kThreads>, params, grid, stream, pdl);
}

template <typename T, bool kAddResidual>
const char* launch_rows(const RmsNormParams& params, int num_sms, void* stream, bool pdl) {
  if (!is_vectorised<T>(params)) {
    const int threads = ceil_div(params.hidden_size < kMaxThreads ? params.hidden_size : kMaxThreads, kWarpSize) * kWarpSize;
    const Grid grid{dim3(params.num_rows), dim3(threads)};
    return launch(rmsnorm_by_element_kernel<T, kAddResidual>, params, grid, stream, pdl);
  }
  const int num_vecs = params.hidden_size / kVecSize<T>;
  // With a row or less per multiprocessor the depth of one thread's work decides, beyond it the bytes in flight.
  if (params.num_rows <= num_sms && num_vecs <= kMaxThreads) {
    return launch_vectors<T, kAddResidual, 1, kMaxThreads>(params, stream, pdl);
  }
  if (num_vecs <= 2 * kThreadsOfManyRows) {
    return launch_vectors<T, kAddResidual, 2, kThreadsOfManyRows>(params, stream, pdl);
  }
  return launch_vectors<T, kAddResidual, kMaxVecs, kMaxThreads>(params, stream, pdl);
}

}  // namespace

const char* launch_rmsnorm(RmsNormParams params, DType dtype, int device, void* stream, bool pdl) {
  if (params.num_rows == 0 || params.hidden_size == 0) return nullptr;
  if (params.num_rows > INT_MAX) return "more rows than a grid has blocks";
  const DeviceGuard guard(device);
  const int num_sms = num_multiprocessors(device);
  params.triggers_early = params.num_rows <= num_sms;
  return with_dtype(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    params.is_streaming = params.num_rows * params.hidden_size * static_cast<int64_t>(sizeof(T)) > kStreamingBytes;
    return params.residual == nullptr ? launch_rows<T, false>(params, num_sms, stream, pdl)
                                      : launch_rows<T, true>(params, num_sms, stream, pdl);
  });
}

}  // namespace dfi::norm
