// SPDX-License-Identifier: Apache-2.0
// Host side of a launch: the device of the call, programmatic dependent launch, dtype -> template argument.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "dtype.h"

namespace dfi {

// Makes `device` current for a scope. A kernel can be launched into a stream of the current device only.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cudaGetDevice(&previous_);
    is_switched_ = previous_ != device && cudaSetDevice(device) == cudaSuccess;
  }
  ~DeviceGuard() {
    if (is_switched_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool is_switched_ = false;
};

struct Grid {
  dim3 blocks;
  dim3 threads;
};

// Launches kernel(params). Returns nullptr, or CUDA's text of what went wrong.
template <typename Params>
const char* launch(void (*kernel)(Params), const Params& params, const Grid& grid, void* stream, bool pdl) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = pdl ? 1 : 0;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, params);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// Multiprocessors of a device, asked for once: the driver's answer costs as much as a launch.
inline int num_multiprocessors(int device) {
  constexpr int kMaxDevices = 64;
  static int counts[kMaxDevices] = {};  // a race writes the same number twice
  if (device >= kMaxDevices) return 1;
  if (counts[device] == 0) cudaDeviceGetAttribute(&counts[device], cudaDevAttrMultiProcessorCount, device);
  return counts[device];
}

template <typename T>
struct Type {
  using type = T;
};

// function(Type<T>{}) for the element type that `dtype` names.
template <typename Function>
const char* with_dtype(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function(Type<float>{});
    case DType::kBFloat16:
      return function(Type<__nv_bfloat16>{});
    case DType::kFloat16:
      return function(Type<__half>{});
  }
  return "unknown element type";
}

inline bool is_vec_aligned(const void* ptr) { return reinterpret_cast<uintptr_t>(ptr) % 16 == 0; }

template <typename Int>
constexpr Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

}  // namespace dfi
