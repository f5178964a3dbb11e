// SPDX-License-Identifier: Apache-2.0
// Launcher of SiLU-and-mul: which kernel, how a row is divided.
#include <climits>

#include "../include/launch.cuh"
#include "silu_and_mul.cuh"

namespace dfi::activation {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 256;
constexpr int kThreadsOfFewRows = 128;
// Results beyond this leave L2 (50 MB on Hopper) before anyone reads them.
constexpr int64_t kStreamingBytes = 32 << 20;

// Divides `num_items` of a row over blocks of at most `max_threads`, evenly: 896 items are 4 x 224, not 3 x 256 + 128.
template <typename Kernel>
const char* launch_divided(Kernel kernel, SiluAndMulParams params, int num_items, int max_threads, int num_sms,
                           void* stream, bool pdl) {
  params.blocks_per_row = ceil_div(num_items, max_threads);
  const int threads = ceil_div(ceil_div(num_items, params.blocks_per_row), kWarp) * kWarp;
  const int64_t blocks = params.num_rows * params.blocks_per_row;
  if (blocks > INT_MAX) return "more rows than a grid has blocks";
  params.triggers_early = blocks <= num_sms;
  return launch(kernel, params, Grid{dim3(blocks), dim3(threads)}, stream, pdl);
}

template <typename T>
const char* launch_rows(const SiluAndMulParams& params, int num_sms, void* stream, bool pdl) {
  constexpr int kSize = kVecSize<T>;
  const bool is_vectorised = params.d % kSize == 0 && params.input_stride % kSize == 0 &&
                             params.out_stride % kSize == 0 && is_vec_aligned(params.input) && is_vec_aligned(params.out);
  if (!is_vectorised) {
    return launch_divided(silu_and_mul_by_element_kernel<T>, params, params.d, kMaxThreads, num_sms, stream, pdl);
  }
  const int num_vecs = params.d / kSize;
  // Less than a full machine of single vectors: spread them; else two per thread keep more bytes in flight.
  if (params.num_rows * num_vecs <= static_cast<int64_t>(num_sms) * 2048) {
    return launch_divided(silu_and_mul_kernel<T, 1>, params, num_vecs, kThreadsOfFewRows, num_sms, stream, pdl);
  }
  return launch_divided(silu_and_mul_kernel<T, 2>, params, ceil_div(num_vecs, 2), kMaxThreads, num_sms, stream, pdl);
}

}  // namespace

const char* launch_silu_and_mul(SiluAndMulParams params, DType dtype, int device, void* stream, bool pdl) {
  if (params.num_rows == 0 || params.d == 0) return nullptr;
  const DeviceGuard guard(device);
  return with_dtype(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    params.is_streaming = params.num_rows * params.d * static_cast<int64_t>(sizeof(T)) > kStreamingBytes;
    return launch_rows<T>(params, num_multiprocessors(device), stream, pdl);
  });
}

}  // namespace dfi::activation
