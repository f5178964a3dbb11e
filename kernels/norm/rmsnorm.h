// SPDX-License-Identifier: Apache-2.0
// The launcher of RMSNorm, plain C++: what binding and device code share.
#pragma once

#include <cstdint>

#include "../include/dtype.h"

namespace dfi::norm {

struct RmsNormParams {
  const void* input;       // [num_rows, hidden_size]
  void* residual;          // [num_rows, hidden_size], read and overwritten with the sum; nullptr: no addition
  const void* weight;      // [hidden_size]
  void* out;               // [num_rows, hidden_size]; may be `input`
  int64_t num_rows;
  int64_t input_stride;    // elements between rows
  int64_t residual_stride;
  int64_t out_stride;
  int hidden_size;
  float eps;               // added to the mean square
  bool triggers_early;     // set by the launcher: lets the next kernel start at once (one wave of blocks or less)
  bool is_streaming;       // set by the launcher: the result is larger than L2 keeps
};

// Launches on `device` into `stream`; with `pdl` as a programmatic dependent launch (sm_90 and up).
// Returns nullptr, or CUDA's text of what went wrong. Zero rows launch nothing.
const char* launch_rmsnorm(RmsNormParams params, DType dtype, int device, void* stream, bool pdl);

}  // namespace dfi::norm
